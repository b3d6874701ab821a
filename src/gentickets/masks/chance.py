"""How far two masks are apart, beside how far chance alone would put them.

Two masks that have nothing to do with each other agree on most weights once both are sparse: at density d they differ
on a share 2 d (1 - d) of them, 0.095 at 95 %. Where some layers are denser than others they differ on less still, and
their living weights overlap by more. A distance or an overlap says something only beside its chance level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from gentickets.masks.value import Masks
from gentickets.notebook import shown


@dataclass(frozen=True)
class Overlap:
    """How two masks overlap, and how two *independent* ones of the same layer densities would be expected to.

    Independent ones have as many weights alive in each tensor as these two have, at places drawn at random. `counts`:
    tensor → (weights, alive in the one, alive in the other, alive in both). Made by `overlap`.
    """

    counts: Mapping[str, tuple[int, int, int, int]]

    @property
    def by_layer(self) -> dict[str, Overlap]:
        """The same for each tensor by itself."""
        return {name: Overlap({name: counts}) for name, counts in self.counts.items()}

    @property
    def distance(self) -> float:
        """The share of weights on which the two differ, as `Masks.distance`. Of no weights: 0."""
        return self._share(sum(one + other - 2 * both for _, one, other, both in self.counts.values()))

    @property
    def chance_distance(self) -> float:
        """The expected distance of independent masks: the mean over all weights of p (1 - q) + q (1 - p), where p and q
        are the densities of the weight's tensor in the one and the other. 0 where every tensor is whole or empty in
        both, so that no other distance is possible."""
        return self._share(
            sum((one * (n - other) + other * (n - one)) / n for n, one, other, _ in self.counts.values() if n)
        )

    @property
    def relative_distance(self) -> float:
        """`distance` over `chance_distance`: 0 for equal masks, about 1 for independent ones, above 1 for masks that
        avoid each other. NaN where the chance level is 0: then there is nothing to compare."""
        return self.distance / self.chance_distance if self.chance_distance else math.nan

    @property
    def jaccard(self) -> float:
        """The share of the weights alive in either that are alive in both. NaN where none is."""
        return self._of_union(float(sum(both for *_, both in self.counts.values())))

    @property
    def chance_jaccard(self) -> float:
        """The same of independent masks: of their expected common and united numbers of living weights."""
        return self._of_union(sum(one * other / n for n, one, other, _ in self.counts.values() if n))

    def probability_below(self, distance: float) -> float:
        """The probability that independent masks are less than `distance` apart: that of equal ones, exactly, or by the
        normal distribution where that is more. Large where there are few ways to draw a mask."""
        if not self._variance:
            return float(self.chance_distance < distance)
        total = sum(n for n, *_ in self.counts.values())
        near = NormalDist(self.chance_distance * total, math.sqrt(self._variance)).cdf(distance * total)
        alike = all(one == other for _, one, other, _ in self.counts.values())
        return max(near, 1 / self._ways if alike and distance > 0 else 0.0)

    @property
    def _variance(self) -> float:
        """Of the number of weights on which independent masks differ: of hypergeometric overlaps, tensor by tensor."""
        drawn = [(n, one, other) for n, one, other, _ in self.counts.values() if n > 1]
        return sum(4 * one * other * (n - one) * (n - other) / (n * n * (n - 1)) for n, one, other in drawn)

    @property
    def _ways(self) -> float:
        """How many masks have as many alive in each tensor as the one."""
        logarithms = (
            math.lgamma(n + 1) - math.lgamma(alive + 1) - math.lgamma(n - alive + 1)
            for n, alive, _, _ in self.counts.values()
        )
        return math.exp(min(sum(logarithms), 700.0))

    def _share(self, differing: float) -> float:
        total = sum(n for n, *_ in self.counts.values())
        return differing / total if total else 0.0

    def _of_union(self, common: float) -> float:
        union = sum(one + other for _, one, other, _ in self.counts.values()) - common
        return common / union if union else math.nan

    def __repr__(self) -> str:
        return (
            f"Overlap(distance {self.distance:.4f}, by chance {self.chance_distance:.4f}; "
            f"Jaccard {self.jaccard:.4f}, by chance {self.chance_jaccard:.4f}; {len(self.counts)} tensors)"
        )

    def _repr_html_(self) -> str:
        heads = ("weight", "distance", "by chance", "Jaccard", "by chance")
        rows = (
            (name, *(f"{x:.4f}" for x in (one.distance, one.chance_distance, one.jaccard, one.chance_jaccard)))
            for name, one in self.by_layer.items()
        )
        return shown(self, heads, rows)


def overlap(one: Masks, other: Masks) -> Overlap:
    """How two masks of the same weights overlap, beside chance. Raises `MaskError` where names or shapes differ."""
    one.check_same(other)
    mine, theirs, both = one.counts(), other.counts(), (one & other).counts()
    return Overlap({name: (math.prod(one.shapes[name]), mine[name], theirs[name], both[name]) for name in one})

"""How much of its network a run prunes: a sparsity is of the weights that are masked, and these need not be all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gentickets.lab.results.reading import Run
from gentickets.lab.results.words import join

_NEARLY_ALL = 0.9
"""Masks over this share of the parameters are of the whole network: the rest is biases, norms and the like."""

_UNLIKE = 0.01
"""Parts of one network that differ by a larger share of its parameters are not the same."""


@dataclass(frozen=True)
class Part:
    """The weights that masks are of, by number and by the names of their components; `parameters`: the network's."""

    masked: int
    parameters: int
    components: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is the network, but for what nobody prunes."""
        return self.masked >= _NEARLY_ALL * self.parameters

    @property
    def words(self) -> str:
        """What follows the word sparsity: ` of the encoder`; nothing for the whole network."""
        if self.is_whole:
            return ""
        return f" of the {join(self.components)}" if self.components and all(self.components) else " of what is masked"

    def of_network(self, sparsity: float) -> float:
        """What a sparsity of the part is of all parameters, 0 to 1."""
        return sparsity * self.masked / self.parameters


def are_unlike(parts: Collection[Part]) -> bool:
    """Whether of two parts of one network one is more of it: equal sparsities of these are unequal networks."""
    return any(
        one.parameters == other.parameters and one.masked - other.masked > _UNLIKE * one.parameters
        for one in parts
        for other in parts
    )


def part_of(run: Run) -> Part | None:
    """What a run prunes, by its first level; None where its levels do not tell."""
    dense = next((result.cost for result in run.of("ticket", 0) if result.cost), None)
    pruned = next((result for result in run.of("ticket") if result.level), None)
    if dense is None or pruned is None or not dense.parameters:
        return None
    return Part(pruned.total, dense.parameters, tuple(pruned.components))

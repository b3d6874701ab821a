"""How many channels layers keep: at least so many each, multiples of a number, and what fits into a size.

All is decided over the groups of channels that live and die together, by their scores; a layer's width is what they
leave it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Literal, NamedTuple

import numpy as np

from gentickets.channels.groups import ChannelGroups
from gentickets.errors import PruneError
from gentickets.masks.names import component_of
from gentickets.options import Scope
from gentickets.pruning.selection import lots

SizeKey = Literal["parameters", "flops"]


class Asked(NamedTuple):
    """What is asked of layers' widths. `size`: the most that the network may have, and of what."""

    multiple: int
    at_least: float | None
    size: tuple[int, SizeKey] | None

    @classmethod
    def of(
        cls, groups: ChannelGroups | None, multiple: int, at_least: float | None, sizes: Mapping[SizeKey, int | None]
    ) -> Asked:
        """Raises `PruneError` for what is out of range, two sizes, and what only groups of channels have."""
        if multiple < 1 or (multiple > 1 and groups is None):
            raise PruneError(f"multiple={multiple}: 1 or more, and with groups= (gt.channel_groups) only")
        said: dict[str, object] = {"at_least": at_least, **{str(key): size for key, size in sizes.items()}}
        for key in [key for key, value in said.items() if value is not None and groups is None]:
            raise PruneError(f"{key}={said[key]}: with granularity='channel' and groups= (gt.channel_groups) only")
        if at_least is not None:
            check_at_least(at_least)
        wanted = [(check_size(size, key), key) for key, size in sizes.items() if size is not None]
        if len(wanted) > 1:
            raise PruneError("give one amount: parameters= or flops=")
        if wanted and multiple > 1:
            raise PruneError(f"multiple={multiple} puts channels back, and {wanted[0][1]}= is the most there may be")
        return cls(multiple, at_least, wanted[0] if wanted else None)


def check_at_least(at_least: object) -> None:
    """Raises `PruneError` for what is neither a number of channels nor a share of them."""
    whole = isinstance(at_least, Integral) and not isinstance(at_least, bool) and int(at_least) >= 1
    if not whole and not (isinstance(at_least, Real) and 0 < float(at_least) < 1):
        raise PruneError(f"at_least={at_least!r}: channels of each layer, 1 or more, or a share of them, below 1")


def check_size(size: object, key: SizeKey) -> int:
    """A size as a whole number. Raises `PruneError` for what is none, or less than 1."""
    if isinstance(size, Real) and not isinstance(size, bool) and float(size).is_integer() and float(size) >= 1:
        return int(float(size))
    raise PruneError(f"{key}={size!r}: a whole number, 1 or more: the most that the smaller network may have")


class Candidates:
    """The groups among which pruning chooses: which are alive, which have a score, and what these are."""

    def __init__(self, groups: ChannelGroups, score: np.ndarray, scored: np.ndarray, alive: np.ndarray, scope: Scope):
        self.groups, self.score, self.alive = groups, score, alive
        self.offered = scored & alive
        self.places = {place: own for place, numbers in groups.places.items() if len(own := numbers[scored[numbers]])}
        self.scope = scope

    @property
    def competing(self) -> dict[str, np.ndarray]:
        """What is compared among itself → the numbers of its groups that may go."""
        found: dict[str, list[np.ndarray]] = {}
        for place, numbers in self.places.items():
            where = {"global": "", "component": component_of(place), "layer": place}[self.scope]
            found.setdefault(where, []).append(numbers[self.alive[numbers]])
        return {where: np.concatenate(parts) for where, parts in found.items()}

    def best_first(self) -> np.ndarray:
        """The numbers of all groups that may go, the best first. Of what is compared only among itself, each gives of
        its own in turn; equal scores are spread over the layers likewise."""
        place = self._standing(self.places.values())
        if self.scope == "global":
            order = np.lexsort((place, -self.score))
        else:
            order = np.lexsort((-self.score, self._standing(self.competing.values())))
        return order[self.offered[order]]

    def _standing(self, parts: Iterable[np.ndarray]) -> np.ndarray:
        """Of each group, the share of its part that is no worse: from just above 0, the best, to 1."""
        standing = np.ones(len(self.groups))
        for numbers in parts:
            own = numbers[self.offered[numbers]]
            standing[_ranked(own, self.score)] = np.arange(1, len(own) + 1) / max(1, len(own))
        return standing

    def bound(self, at_least: float) -> np.ndarray:
        """bool: the groups that stay whatever the amount: of each layer the best, until it has `at_least` channels, or
        all that it has; and what has no score."""
        stays = self.alive & ~self.offered
        for layer, numbers in self.groups.layers.items():
            wide, always = self.groups.wide[layer], self.groups.always[layer]
            whole = always + int(wide.sum())
            wanted = at_least if isinstance(at_least, Integral) else math.ceil(at_least * whole - 1e-9)
            has = always + int(wide[stays[numbers]].sum())
            widths = dict(zip(numbers.tolist(), wide.tolist(), strict=True))
            for number in _ranked(numbers, self.score).tolist():
                if has >= wanted:
                    break
                if self.offered[number] and not stays[number]:
                    stays[number] = True
                    has += int(widths[number])
        return stays

    def exchanged(self, kept: np.ndarray, at_least: float, amount: str) -> np.ndarray:
        """`kept`, with what a bound keeps in the place of the worst of the others: as many as before.

        Raises `PruneError` where there are not as many others.
        """
        stays, kept = self.bound(at_least), kept.copy()
        for where, numbers in self.competing.items():
            missing = numbers[stays[numbers] & ~kept[numbers]]
            spare = numbers[kept[numbers] & ~stays[numbers]]
            if len(spare) < len(missing):
                bound, left = int(stays[numbers].sum()), int(kept[numbers].sum())
                raise PruneError(
                    f"at_least={at_least} keeps {bound:,} of {len(numbers):,} groups of channels"
                    f"{f' of {where!r}' if where else ''}, and {amount} leaves {left:,}: lower one of them"
                )
            kept[missing] = True
            kept[_ranked(spare, self.score)[len(spare) - len(missing) :]] = False
        return kept

    def largest(self, size: int, key: SizeKey, at_least: float | None) -> np.ndarray:
        """bool: from the best group down, each that still fits: nothing that is left out would. Where groups do not all
        compete, they end at the first in turn that would not, so that widths fall alike.

        Counted are the components of which something has a score. Raises `PruneError` where not even the least fits.
        """
        if np.isnan(self.score[self.offered]).any():
            raise PruneError("scores hold NaN: the model has diverged, or the criterion has")
        kept, of = self.bound(1 if at_least is None else at_least), self._size(key)
        if (least := of(kept)) > size:
            bound = "with a channel in each layer" if at_least is None else f"that at_least={at_least} allows"
            raise PruneError(f"{key}={size:,} is too few: the smallest network {bound} has {least:,}")
        order = self.best_first()
        order = order[~kept[order]]
        low, high = 0, len(order)  # so many of the best fit; so many do not, or are all
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if of(self._with(kept, order[:middle])) <= size else (low, middle - 1)
        kept = self._with(kept, order[:low])
        for number in order[low:] if self.scope == "global" else ():
            kept[number] = True
            kept[number] = of(kept) <= size
        return kept

    @staticmethod
    def _with(kept: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        more = kept.copy()
        more[numbers] = True
        return more

    def _size(self, key: SizeKey) -> Callable[[np.ndarray], int]:
        sizes = [one for one in self.groups.sizes.values() if one.goes_over(self.offered)]
        for one in sizes if key == "flops" else ():
            if one.doubt:
                warnings.warn(one.doubt, stacklevel=5)
        return lambda kept: sum(getattr(one, key)(kept) for one in sizes)


def keep_one_a_layer(kept: np.ndarray, groups: ChannelGroups, alive: np.ndarray, score: np.ndarray) -> None:
    """Puts back, in `kept`, the best group of each layer that would have none."""
    for layer, numbers in groups.layers.items():
        living = numbers[alive[numbers]]
        if not groups.always[layer] and len(living) and not kept[numbers].any():
            warnings.warn(f"every channel of {layer!r} would go: its best one is kept", stacklevel=5)
            kept[_ranked(living, score)[0]] = True


def round_up(kept: np.ndarray, groups: ChannelGroups, alive: np.ndarray, score: np.ndarray, multiple: int) -> None:
    """Puts back, in `kept`, the best groups of each layer up to the next multiple of channels, as far as it has them.

    Layers that share groups shift each other's counts: again until nothing moves, which only ever adds.
    """
    before = -1
    while before != (before := int(kept.sum())):
        for layer, numbers in groups.layers.items():
            dropped = numbers[alive[numbers] & ~kept[numbers]]
            missing = -(groups.always[layer] + int(kept[numbers].sum())) % multiple
            kept[_ranked(dropped, score)[:missing]] = True


def _ranked(numbers: np.ndarray, score: np.ndarray) -> np.ndarray:
    """`numbers` of groups, the best first; of equal scores by lot, so that none goes for where it stands."""
    drawn = lots("", len(score))[numbers]
    return numbers[np.lexsort((-drawn, -score[numbers]))]

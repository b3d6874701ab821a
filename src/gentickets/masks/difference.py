"""Two tickets side by side: their masks, the signs and values of their weights, their origins and rounds.

That two masks overlap, or that two weights have one sign, says something only beside how often chance alone would have
it so: half of the signs of unrelated weights are equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gentickets.errors import TicketError
from gentickets.masks.chance import Overlap, overlap
from gentickets.masks.lineage import expected_links, is_linked, rounds_of
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.notebook import shown

Kinship = Literal["equal", "ancestor", "descendant", "common", "none", "unknown"]
_LEFT_OUT = ("lineage", "from")


@dataclass(frozen=True)
class Signs:
    """The signs of the weights that two tickets start from, where they are alive in both and not 0 in either.

    `counts`: tensor → (weights, positive in the one, positive in the other, of one sign in both).
    """

    counts: Mapping[str, tuple[int, int, int, int]]

    @property
    def total(self) -> int:
        return sum(n for n, *_ in self.counts.values())

    @property
    def equal(self) -> float:
        """The share of one sign in both. NaN where there is none to compare."""
        return sum(same for *_, same in self.counts.values()) / self.total if self.total else math.nan

    @property
    def by_chance(self) -> float:
        """The share that is expected of weights of which as many are positive in each tensor, at any places."""
        agreeing = ((one * other + (n - one) * (n - other)) / n for n, one, other, _ in self.counts.values() if n)
        return sum(agreeing) / self.total if self.total else math.nan

    @property
    def by_layer(self) -> dict[str, Signs]:
        """The same for each tensor by itself."""
        return {name: Signs({name: counts}) for name, counts in self.counts.items()}


@dataclass(frozen=True)
class Difference:
    """How two tickets differ; made by `difference`.

    - `overlap`: of the masks that both have, at one shape; see `Overlap`, which has the chance level beside each number
    - `only_one`, `only_other`: names of masks that the other lacks, or has at another shape
    - `signs`: of the weights that both start from, where both have some
    - `equal_weights`: of the tensors of weights that both have, how many are equal bit for bit, and of how many
    - `origins`: fact → what the one and the other say of it, where they differ; None where one says nothing
    - `kinship`: what the one is to the other, by their lineages: "ancestor" where the other came from it by further
      rounds, "common" where both came from a third one; "unknown" where a lineage has no links (older versions wrote
      none). `shared_rounds`: how many rounds both have in common
    """

    overlap: Overlap
    only_one: tuple[str, ...]
    only_other: tuple[str, ...]
    signs: Signs
    equal_weights: tuple[int, int]
    origins: Mapping[str, tuple[Any, Any]]
    kinship: Kinship
    shared_rounds: int

    def __repr__(self) -> str:
        return (
            f"Difference({self.overlap!r}, signs equal {self.signs.equal:.4f}, by chance {self.signs.by_chance:.4f}; "
            f"lineage: {self.kinship})"
        )

    def _repr_html_(self) -> str:
        heads = ("weight", "distance", "by chance", "Jaccard", "by chance", "equal signs", "by chance")
        return shown(self, heads, self.rows())

    def rows(self) -> Iterator[tuple[str, ...]]:
        """A row a layer: name, then distance, Jaccard index and equal signs, each beside its chance level."""
        signs = self.signs.by_layer
        for name, one in self.overlap.by_layer.items():
            sign = signs.get(name, Signs({}))
            numbers = (one.distance, one.chance_distance, one.jaccard, one.chance_jaccard, sign.equal, sign.by_chance)
            yield name, *("" if math.isnan(number) else f"{number:.4f}" for number in numbers)


def difference(one: Ticket, other: Ticket) -> Difference:
    """Compares two tickets, tensor by tensor; of tickets for different models, what both have.

    Raises `TicketError` where they have no mask in common, by name and shape.
    """
    for ticket in (one, other):
        if not isinstance(ticket, Ticket):
            raise TicketError(
                f"two tickets are compared, and a {type(ticket).__name__} is none: Ticket.load(path) reads one"
            )
    mine, theirs = one.masks.shapes, other.masks.shapes
    common = [name for name, shape in mine.items() if theirs.get(name) == shape]
    if not common:
        raise TicketError(_nothing_in_common(one.masks, other.masks))
    here, there = (Masks.from_packed(*_only(ticket.masks, common)) for ticket in (one, other))
    kinship, shared = _kinship(one, other)
    return Difference(
        overlap(here, there),
        tuple(name for name in mine if name not in here),
        tuple(name for name in theirs if name not in here),
        _signs(here, there, one.weights, other.weights),
        _equal_weights(one.weights, other.weights),
        _differing(one.origin, other.origin),
        kinship,
        shared,
    )


def _only(masks: Masks, names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {name: masks.packed[name] for name in names}, {name: masks.shapes[name] for name in names}


def _nothing_in_common(one: Masks, other: Masks) -> str:
    if name := next((name for name in one if name in other), None):
        return (
            f"the tickets are for models of other sizes, and have no mask in common: {name!r} is {one.shapes[name]} in "
            f"the one and {other.shapes[name]} in the other"
        )
    some = (next(iter(masks), "nothing") for masks in (one, other))
    return (
        f"the tickets are for different models, and have no mask in common: {' in the one, '.join(some)} in the other"
    )


def _signs(here: Masks, there: Masks, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Signs:
    counts = {}
    for name, mask in here.items():
        if name not in one or name not in other or one[name].is_complex() or other[name].is_complex():
            continue
        both = (mask & there[name]).reshape(-1)
        mine, theirs = one[name].reshape(-1)[both], other[name].reshape(-1)[both]
        told = (mine != 0) & (theirs != 0)
        first, second = (mine > 0)[told], (theirs > 0)[told]
        counts[name] = (len(first), int(first.sum()), int(second.sum()), int((first == second).sum()))
    return Signs(counts)


def _equal_weights(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[int, int]:
    shared = [name for name, tensor in one.items() if name in other and other[name].shape == tensor.shape]
    equal = (one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in shared)
    return sum(equal), len(shared)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    mine, theirs = (dict(_flat(origin)) for origin in (one, other))
    return {
        key: (mine.get(key), theirs.get(key))
        for key in dict.fromkeys((*mine, *theirs))
        if json.dumps(mine.get(key), sort_keys=True) != json.dumps(theirs.get(key), sort_keys=True)
    }


def _flat(origin: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The facts of an origin by dotted names, its lineage left out and that of the ticket that it came from."""
    for key, value in origin.items():
        if above or key not in _LEFT_OUT:
            if isinstance(value, Mapping) and value:
                yield from _flat(value, f"{above}{key}.")
            else:
                yield f"{above}{key}", value


def _kinship(one: Ticket, other: Ticket) -> tuple[Kinship, int]:
    mine, theirs = (rounds_of(ticket.origin) for ticket in (one, other))
    if not (is_linked(mine) and is_linked(theirs)):
        return "unknown", 0
    first, second = expected_links(mine), expected_links(theirs)
    shared = sum(a == b for a, b in zip(first, second, strict=False))  # a link holds all before it
    if not shared:
        return "none", 0
    if shared == len(first) == len(second):
        return "equal", shared
    return ("ancestor" if shared == len(first) else "descendant" if shared == len(second) else "common"), shared

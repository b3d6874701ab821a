"""What a single operation does with channels, found by doing it again on other numbers.

Nothing is known of it by its name. An operation that moves numbers, moves those of `0, 1, 2 …` to where one can read
where they came from. Of any other, what a number of its result depends on is found by NaN: where some channels are not
a number, neither is what is made of them, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentickets.channels.trace import Node, Operation, mapped

_CODES = 4
"""How many halvings of the channels tell them apart: all of up to 2**4 channels, most pairs of more."""


class Probe:
    """Does operations of a run again."""

    def __init__(self) -> None:
        self._numbers = torch.Generator().manual_seed(0)
        self._choices = np.random.default_rng(0)
        self._last: tuple[Operation, dict[Node, Tensor], list[Tensor] | None] | None = None

    def again(self, operation: Operation, values: Mapping[Node, Tensor]) -> list[Tensor] | None:
        """What an operation makes of other values of what it reads; None where it fails, or makes something else.

        Chance falls alike each time.
        """

        def fresh(part: Any) -> Any:
            if not isinstance(part, Node):
                return part
            return values.get(part, part.value).clone()

        torch.random.default_generator.manual_seed(0)
        try:
            result = operation.call(*mapped(operation.args, fresh), **mapped(operation.kwargs, fresh))  # type: ignore[misc]
        except Exception:  # of whatever kind: it cannot be done so
            return None
        made: list[Tensor] = []
        mapped(result, lambda part: made.append(part) if isinstance(part, Tensor) else None)
        return made if len(made) == len(operation.made) else None

    # -- operations that move numbers ---------------------------------------------------------------------

    def moved(self, operation: Operation, sources: Sequence[Node]) -> list[np.ndarray] | None:
        """Of an operation that moves numbers of its sources and changes none: of each tensor that it makes, where each
        of its numbers came from, counted through all sources, or -1 for what was in none of them. Else None; also where
        all is -1, for then nothing was moved."""
        sizes = [source.value.numel() for source in sources]
        if (total := sum(sizes)) < 2:
            return None
        places = torch.arange(total, dtype=torch.float64)
        order = torch.from_numpy(self._choices.permutation(total))
        shuffled = torch.empty_like(places)  # each number on the place of another one, none on its own
        shuffled[order] = places[order.roll(1)]
        found: list[list[Tensor]] = []
        for numbers in (places, shuffled):
            pieces = numbers.split(sizes)
            values = {
                source: piece.reshape(source.value.shape).clone() for source, piece in zip(sources, pieces, strict=True)
            }
            if (made := self.again(operation, values)) is None:
                return None
            found.append(made)
        origins = []
        for one, other, node in zip(*found, operation.made, strict=True):
            if one.dtype != torch.float64 or one.shape != other.shape or one.shape != node.value.shape:
                return None
            first, second = one.detach().numpy(), other.detach().numpy()
            whole = (first >= 0) & (first < total) & (first == np.floor(first))
            index = np.where(whole, first, 0).astype(np.int64)
            comes = whole & (shuffled.numpy()[index] == second)
            if not (comes | (first == second)).all():
                return None
            origins.append(np.where(comes, index, -1))
        return origins if self._are_constants(operation, sources, [origin < 0 for origin in origins]) else None

    def _are_constants(self, operation: Operation, sources: Sequence[Node], places: Sequence[np.ndarray]) -> bool:
        """Whether those places are as they are whatever the numbers: what is the same for `0, 1, 2 …` in any order may
        be cut off at 0, or the largest of all. Not where they are all that there is."""
        if not any(place.any() for place in places):
            return True
        if all(place.all() for place in places):
            return False
        changed = {source: np.ones(tuple(source.value.shape), dtype=bool) for source in sources}
        touched = self.touched(operation, changed, ways=(False,))
        return touched is not None and not any(
            bool(reached.numpy()[place].any()) for reached, place in zip(touched, places, strict=True)
        )

    # -- operations that compute --------------------------------------------------------------------------

    def keeps_apart(self, operation: Operation, units: Mapping[Node, np.ndarray], made: Sequence[np.ndarray]) -> bool:
        """Whether what is made of some units of the sources is the same units of the results, and nothing else.

        `units`: source → the unit of each of its cells, of as many axes as it has, 1 where it is the same along one;
        `made`: the same for each tensor that the operation makes.
        """
        total = 1 + max((int(own.max()) for own in (*units.values(), *made) if own.size), default=0)
        codes = self._choices.permutation(total)
        for bit in range(min(_CODES, max(1, (total - 1).bit_length()))):
            for half in (0, 1):
                chosen = (codes >> bit) & 1 == half
                changed = {source: chosen[own] for source, own in units.items()}
                touched = self.touched(operation, changed, ways=(half == 0,))
                if touched is None:
                    return False
                for reached, own in zip(touched, made, strict=True):
                    if bool((reached & ~torch.from_numpy(chosen[own])).any()):
                        return False
        return True

    def touched(
        self, operation: Operation, changed: Mapping[Node, np.ndarray], ways: Sequence[bool] = (True, False)
    ) -> list[Tensor] | None:
        """Of each tensor that an operation makes, which of its numbers depend on what is `changed` in its sources.

        By NaN in what is changed (True among the `ways`), by other numbers (False), or by both: a few operations see to
        it that NaN does not spread.
        """
        if self._last is None or self._last[0] is not operation:
            self._last = (operation, *self._start(operation))
        _, start, before = self._last
        if before is None:
            return None
        reached = [torch.zeros(one.shape, dtype=torch.bool) for one in before]
        real = all(_is_real(node.value) for node in (*changed, *operation.made))
        for by_nan in ways if real else (False, False, False):
            values = dict(start)
            for source, which in changed.items():
                value = start.get(source, source.value)
                other = torch.full_like(value, float("nan")) if by_nan else self.like(value)
                values[source] = torch.where(torch.from_numpy(which), other, value)
            after = self.again(operation, values)
            if after is None or any(one.shape != other.shape for one, other in zip(after, before, strict=True)):
                return None
            reached = [r | _differs(one, other) for r, one, other in zip(reached, before, after, strict=True)]
        return reached

    def _start(self, operation: Operation) -> tuple[dict[Node, Tensor], list[Tensor] | None]:
        """Numbers of an operation's sources from which to change some, and what it makes of them: drawn ones, for those
        of the example may be 0; or else the example's."""
        drawn = {source: self.like(source.value) for source in operation.sources if _is_real(source.value)}
        for values in (drawn, {}):
            made = self.again(operation, values)
            sizes = [node.value.shape for node in operation.made]
            if made is not None and [one.shape for one in made] == sizes and all(map(_is_finite, made)):
                return values, made
        return {}, None

    def like(self, value: Tensor) -> Tensor:
        """Random numbers of a tensor's shape and dtype; whole ones from among its own range."""
        if value.dtype == torch.bool:
            return torch.rand(value.shape, generator=self._numbers) < 0.5
        if not (value.is_floating_point() or value.is_complex()):
            low, high = (int(value.min()), int(value.max())) if value.numel() else (0, 0)
            return torch.randint(low, high + 1, value.shape, generator=self._numbers, dtype=value.dtype)
        return torch.randn(value.shape, generator=self._numbers, dtype=value.dtype)


def _is_real(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _is_finite(value: Tensor) -> bool:
    return not _is_real(value) or not bool(value.isnan().any())


def _differs(one: Tensor, other: Tensor) -> Tensor:
    return (one != other) | (other != other) if _is_real(one) else one != other

"""What a single operation does with channels, found by doing it again on other numbers.

Nothing is known of it by its name. An operation that moves numbers, moves those of `0, 1, 2 …` to where one can read
where they came from. Of any other, what a number of its result depends on is found by NaN: where some channels are not
a number, neither is what is made of them, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
        self._last: tuple[Operation, list[Tensor] | None] | None = None

    def again(self, operation: Operation, values: Mapping[Node, Tensor]) -> list[Tensor] | None:
        """What an operation makes of other values of what it reads; None where it fails, or makes something else.

        Chance falls alike each time.
        """

        def fresh(part: object) -> object:
            if not isinstance(part, Node):
                return part
            value = values.get(part, part.value)
            return value if part in values else value.clone()

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
        of its numbers came from, counted through all sources, or -1 for what was in none of them. Else None."""
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
        return origins

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
                touched = self.touched(operation, {source: chosen[own] for source, own in units.items()})
                if touched is None:
                    return False
                for reached, own in zip(touched, made, strict=True):
                    if bool((reached & ~torch.from_numpy(chosen[own])).any()):
                        return False
        return True

    def touched(self, operation: Operation, changed: Mapping[Node, np.ndarray]) -> list[Tensor] | None:
        """Of each tensor that an operation makes, which of its numbers depend on what is `changed` in its sources."""
        if self._last is None or self._last[0] is not operation:
            self._last = (operation, self.again(operation, {}))
        before = self._last[1]
        if before is None or any(_is_real(one) and bool(one.isnan().any()) for one in before):
            return None
        reached: list[Tensor] | None = None
        for values in self._changed(operation, changed):
            after = self.again(operation, values)
            if after is None or any(
                one.shape != node.value.shape for one, node in zip(after, operation.made, strict=True)
            ):
                return None
            now = [_differs(one, other) for one, other in zip(before, after, strict=True)]
            reached = now if reached is None else [a | b for a, b in zip(reached, now, strict=True)]
        return reached

    def _changed(self, operation: Operation, changed: Mapping[Node, np.ndarray]) -> Iterator[dict[Node, Tensor]]:
        """NaN in all places that are changed; and where that cannot be, or cannot be seen, other numbers."""
        real = all(_is_real(node.value) for node in (*changed, *operation.made))
        for _ in range(1 if real else 3):
            yield {
                source: torch.where(
                    torch.from_numpy(which),
                    torch.full_like(source.value, float("nan")) if real else self.like(source.value),
                    source.value,
                )
                for source, which in changed.items()
            }

    def not_finite_at_zero(self, operation: Operation, sources: Sequence[Node]) -> list[Node]:
        """Those of the sources whose channels cannot be 0, as a pruned one is: it would be divided by."""
        found = []
        for source in sources:
            values = {other: self.like(other.value).abs() + 0.5 for other in sources if _is_real(other.value)}
            if source in values:
                values[source] = torch.zeros_like(values[source])
                made = self.again(operation, values)
                if made is not None and not all(bool(torch.isfinite(one).all()) for one in made):
                    found.append(source)
        return found

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


def _differs(one: Tensor, other: Tensor) -> Tensor:
    return (one != other) | (other != other) if _is_real(one) else one != other

"""Where live weights lie, and how they connect the two sides of a layer.

Every layer is one pattern of connections between a *small* side and a *big* one: weight (s, c, i, j) connects channel s
of the small side at position h to channel c of the big side at `stride * h - padding + dilation * i` (and alike along
the width). A convolution goes down from big to small, a transposed convolution up from small to big, a linear layer is
a pattern of one position.

Activations are kept batch innermost, as (channels, height, width, batch), and seen by the rest of the model as
(batch, channels, height, width) with those strides: what acts element by element keeps them, so a chain of sparse
layers never transposes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from gentickets.kernels import Rows, gather, is_roomy, new_side, padded, row_ends, sample, turned

Pair = tuple[int, int]
L = TypeVar("L")


@dataclass(frozen=True)
class Geometry:
    """How the positions of both sides meet: (height, width) each."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


ONE_POSITION = Geometry()
"""Of a linear layer, whose sides have no height and width."""


class Pattern:
    """Where the live weights are. `shape`: of the dense weight, (small channels, big channels a group), and the height
    and width of its kernel if it has one; `places`: int32 (weights,), where the live ones lie in it, flattened."""

    def __init__(self, shape: tuple[int, ...], places: np.ndarray, geometry: Geometry, groups: int = 1):
        self.shape, self.places, self.geometry, self.groups = shape, places, geometry, groups
        self.small, self.big = shape[0], shape[1] * groups
        self.flat = len(shape) == 2  # no positions: sides are (channels, batch)
        self._layouts: dict[tuple[Any, Pair, Pair], Any] = {}

    def live(self) -> np.ndarray:
        """(4, weights): small channel, big channel, row and column in the kernel."""
        small, inner, i, j = np.unravel_index(self.places, (*self.shape, 1, 1)[:4])
        return np.stack([small, small // (self.small // self.groups) * self.shape[1] + inner, i, j])

    def layout(self, small: Pair = (1, 1), big: Pair = (1, 1)) -> Layout:
        """The index arrays for images of these sizes, or for sides of one position."""
        return self.laid_out(Layout, small, big)

    def laid_out(self, kind: Callable[[Pattern, Pair, Pair], L], small: Pair, big: Pair) -> L:
        """The layout of that kind for images of these sizes; the last few are kept."""
        key = (kind, small, big)
        if key not in self._layouts:
            while len(self._layouts) >= 4:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[key] = kind(self, small, big)
        return self._layouts[key]

    @property
    def nbytes(self) -> int:
        """Bytes of all that says where the live weights are."""
        return self.places.nbytes + sum(layout.nbytes for layout in self._layouts.values())

    def __deepcopy__(self, memo: object) -> Pattern:
        return self  # a value: layers that are copied share it

    def __reduce__(self) -> tuple[Any, ...]:
        return Pattern, (self.shape, self.places, self.geometry, self.groups)


class Layout:
    """A pattern laid out over images of one size: what the kernels read, and how both sides are padded for them."""

    def __init__(self, pattern: Pattern, small: Pair, big: Pair):
        self.small: tuple[int, ...] = (pattern.small, *(() if pattern.flat else small))
        self.big: tuple[int, ...] = (pattern.big, *(() if pattern.flat else big))
        self.axes = tuple(range(1, len(self.small) + 1))  # those that a bias is added along
        g, live = pattern.geometry, pattern.live()
        self.pad_big = paddings(g, live, small, big)
        self.pad_small, steps = zip(*(meeting(g, axis, live, small, big) for axis in (0, 1)), strict=True)
        wide_big = [sum(pad) + size for pad, size in zip(self.pad_big, big, strict=True)]
        wide_small = [sum(pad) + size for pad, size in zip(self.pad_small, small, strict=True)]
        down = _down_rows(pattern, live, small, wide_big)
        self._down = Rows([down])
        self._up = Rows(_up_rows(pattern, live, steps, big, wide_small, self.pad_small))
        # Sampling walks the rows of going down, over a small side that is padded as going up wants it.
        sampled = dict(down)
        sampled["target"] = _positions(small, (1, 1), wide_small[1], tuple(pad[0] for pad in self.pad_small))
        self._sample = Rows([sampled])
        self.weights = live.shape[1]

    @property
    def nbytes(self) -> int:
        return self._down.nbytes + self._up.nbytes  # sampling shares the arrays of going down

    def down(
        self, values: Tensor, bias: Tensor | None, big: Tensor, slope: float = 1.0, *, roomy: bool = False
    ) -> Tensor:
        """`big`, padded → small, unpadded, and rectified where there is a slope for negative numbers."""
        out = new_side(big, self.small, big.shape[-1], roomy=roomy)
        return gather(self._down, values, bias, big, out, slope)

    def up(
        self,
        values: Tensor,
        bias: Tensor | None,
        small: Tensor,
        slope: float = 1.0,
        gate: Tensor | None = None,
        *,
        roomy: bool = False,
    ) -> Tensor:
        """`small`, padded → big, unpadded; times `slope` where `gate`, of the big side and laid out as what is given
        back, is not positive."""
        out = new_side(small, self.big, small.shape[-1], roomy=roomy)
        return gather(self._up, values, bias, small, out, slope, gate)

    def sample(self, small: Tensor, big: Tensor) -> Tensor:
        """The gradient of the live weights, (weights,), from both sides, padded."""
        grad = small.new_empty(self.weights)
        sample(self._sample, small, big, grad)
        return grad

    def sample_with_bias(self, small: Tensor, big: Tensor) -> tuple[Tensor, Tensor]:
        """The same of sides without positions, and the gradient of a bias of the small one, (small channels,).

        Over the positions of large images its plain sums would lose digits.
        """
        grad, sums = small.new_empty(self.weights), small.new_empty(self.small[0])
        sample(self._sample, small, big, grad, sums)
        return grad, sums

    def padded_big(self, big: Tensor) -> Tensor:
        return _padded(big, self.pad_big)

    def padded_small(self, small: Tensor) -> Tensor:
        return _padded(small, self.pad_small)


NONE = -(2**31)
"""A step far off: of a weight that writes nothing at that phase of a stride."""


def paddings(g: Geometry, live: np.ndarray, small: Pair, big: Pair) -> tuple[Pair, Pair]:
    """Zeros before and after the rows, and the columns, of the big side, so far as live weights reach."""

    def along(axis: int) -> Pair:
        reach = int(live[2 + axis].max(initial=0)) * g.dilation[axis] + 1
        last = (small[axis] - 1) * g.stride[axis] + reach
        return g.padding[axis], max(0, last - g.padding[axis] - big[axis])

    return along(0), along(1)


def meeting(g: Geometry, axis: int, live: np.ndarray, small: Pair, big: Pair) -> tuple[Pair, np.ndarray]:
    """Along one axis: by how much the small side is padded to go up, and, for (phase, weight), the step from
    a big position's place within its phase to the small position that the weight reads; far off where none."""
    stride = g.stride[axis]
    ahead = np.arange(stride)[:, None] + g.padding[axis] - live[2 + axis][None, :] * g.dilation[axis]
    steps = np.where(ahead % stride == 0, ahead // stride, NONE)
    found = steps[steps != NONE]
    last = np.ceil((big[axis] - np.arange(stride)) / stride).max(initial=1) - 1
    before = max(0, -int(found.min(initial=0)))
    after = max(0, int(found.max(initial=0) + last) - (small[axis] - 1))
    return (before, after), steps


def _padded(side: Tensor, pads: Any) -> Tensor:
    """(channels, height, width, batch), or (channels, batch), roomy, with zeros around."""
    rows, columns = pads
    return padded(_innermost(side, roomy=False), rows, columns) if any(rows) or any(columns) else innermost(side)


def innermost(side: Tensor) -> Tensor:
    """(channels, …, batch), in memory batch innermost, or first as dense layers leave it → the same, roomy."""
    if is_roomy(side):
        return side
    return padded(side) if side.is_contiguous() else _innermost(side, roomy=True)


def _innermost(side: Tensor, *, roomy: bool) -> Tensor:
    """The same, contiguous or roomy."""
    if side.is_contiguous():
        return side
    first = side.movedim(-1, 0)
    if first.is_contiguous():
        return turned(first.reshape(len(first), -1), side.shape[:-1], roomy=roomy)
    return innermost(side.contiguous()) if roomy else side.contiguous()


def _positions(count: Pair, step: Pair, width: int, start: Pair = (0, 0)) -> np.ndarray:
    """Row-major places of a grid of `count` positions that are `step` apart, in an image so wide."""
    rows = start[0] + step[0] * np.arange(count[0])
    columns = start[1] + step[1] * np.arange(count[1])
    return (rows[:, None] * width + columns).reshape(-1).astype(np.int32)


def _down_rows(pattern: Pattern, live: np.ndarray, small: Pair, wide: list[int]) -> dict[str, Any]:
    s, c, i, j = live
    g = pattern.geometry
    return {
        **row_ends(np.bincount(s, minlength=pattern.small)),
        "offset": ((c * wide[0] + i * g.dilation[0]) * wide[1] + j * g.dilation[1]).astype(np.int32),
        "order": None,
        "channel": np.arange(pattern.small, dtype=np.int32),
        "source": _positions(small, g.stride, wide[1]),
        "target": _positions(small, (1, 1), small[1]),
    }


def _up_rows(
    pattern: Pattern, live: np.ndarray, steps: Any, big: Pair, wide: list[int], pads: Any
) -> list[dict[str, Any]]:
    """One class for each phase of the stride: the big positions that the same weights write."""
    s, c, _, _ = live
    classes: list[dict[str, Any]] = []
    for down in range(pattern.geometry.stride[0]):
        for across in range(pattern.geometry.stride[1]):
            step = pattern.geometry.stride
            count = (-(-(big[0] - down) // step[0]), -(-(big[1] - across) // step[1]))
            if min(count) < 1:
                continue
            chosen = np.flatnonzero((steps[0][down] != NONE) & (steps[1][across] != NONE))
            order = chosen[np.argsort(c[chosen], kind="stable")]
            row = s[order] * wide[0] + steps[0][down][order] + pads[0][0]
            classes.append({
                **row_ends(np.bincount(c[order], minlength=pattern.big)),
                "offset": (row * wide[1] + steps[1][across][order] + pads[1][0]).astype(np.int32),
                "order": order.astype(np.int32),
                "channel": np.arange(pattern.big, dtype=np.int32),
                "source": _positions(count, (1, 1), wide[1]),
                "target": _positions(count, step, big[1], (down, across)),
            })  # fmt: skip
    return classes

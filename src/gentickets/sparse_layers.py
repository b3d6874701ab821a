"""Linear and convolutional layers that hold, compute and learn their live weights alone.

Every one of these layers is one pattern of connections between a *small* side and a *big* one: weight (s, c, i, j)
connects channel s of the small side at position h to channel c of the big side at `stride * h - padding + dilation * i`
(and alike along the width). A convolution goes down from big to small, a transposed convolution up from small to big,
a linear layer is a pattern of one position. The gradient of going down is going up, and the reverse; the gradient of
the weights is a sample of the products of both sides. So three operations, each other's derivatives, are all there
is, and second derivatives come free.

Activations are kept batch innermost, as (channels, height, width, batch), and seen by the rest of the model as
(batch, channels, height, width) with those strides: what acts element by element keeps them, so a chain of sparse
layers never transposes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.sparse_kernels import Rows, gather, sample

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """How the positions of both sides meet: (height, width) each."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


class Pattern:
    """Where the live weights are. `shape`: of the dense weight, (small channels, big channels a group), and the height
    and width of its kernel if it has one; `places`: int32 (weights,), where the live ones lie in it, flattened."""

    def __init__(self, shape: tuple[int, ...], places: np.ndarray, geometry: Geometry, groups: int = 1):
        self.shape, self.places, self.geometry, self.groups = shape, places, geometry, groups
        self.small, self.big = shape[0], shape[1] * groups
        self.flat = len(shape) == 2  # no positions: sides are (channels, batch)
        self._layouts: dict[tuple[Pair, Pair], Layout] = {}

    def live(self) -> np.ndarray:
        """(4, weights): small channel, big channel, row and column in the kernel."""
        small, inner, i, j = np.unravel_index(self.places, (*self.shape, 1, 1)[:4])
        return np.stack([small, small // (self.small // self.groups) * self.shape[1] + inner, i, j])

    def layout(self, small: Pair, big: Pair) -> Layout:
        """The index arrays for images of these sizes; the last few are kept."""
        sizes = (small, big)
        if sizes not in self._layouts:
            while len(self._layouts) >= 4:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[sizes] = Layout(self, small, big)
        return self._layouts[sizes]

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
        reach = [int(live[2 + axis].max(initial=0)) * g.dilation[axis] + 1 for axis in (0, 1)]
        self.pad_big = [
            (g.padding[axis], max(0, (small[axis] - 1) * g.stride[axis] + reach[axis] - g.padding[axis] - big[axis]))
            for axis in (0, 1)
        ]
        self.pad_small, steps = zip(*(self._meeting(g, axis, live, small, big) for axis in (0, 1)), strict=True)
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

    @staticmethod
    def _meeting(g: Geometry, axis: int, live: np.ndarray, small: Pair, big: Pair) -> tuple[Pair, np.ndarray]:
        """Along one axis: by how much the small side is padded to go up, and, for (phase, weight), the step from
        a big position's place within its phase to the small position that the weight reads; far off where none."""
        stride = g.stride[axis]
        ahead = np.arange(stride)[:, None] + g.padding[axis] - live[2 + axis][None, :] * g.dilation[axis]
        steps = np.where(ahead % stride == 0, ahead // stride, _NONE)
        found = steps[steps != _NONE]
        last = np.ceil((big[axis] - np.arange(stride)) / stride).max(initial=1) - 1
        before = max(0, -int(found.min(initial=0)))
        after = max(0, int(found.max(initial=0) + last) - (small[axis] - 1))
        return (before, after), steps

    def down(self, values: Tensor, bias: Tensor | None, big: Tensor, slope: float = 1.0) -> Tensor:
        """`big`, padded → small, unpadded, and rectified where there is a slope for negative numbers."""
        out = big.new_empty(*self.small, big.shape[-1])
        return gather(self._down, values, bias, big, out, slope)

    def up(
        self, values: Tensor, bias: Tensor | None, small: Tensor, slope: float = 1.0, gate: Tensor | None = None
    ) -> Tensor:
        """`small`, padded → big, unpadded; times `slope` where `gate`, of the big side, is not positive."""
        out = small.new_empty(*self.big, small.shape[-1])
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


_NONE = -(2**31)


def _padded(side: Tensor, pads: Any) -> Tensor:
    """(channels, height, width, batch), or (channels, batch), contiguous, with zeros around."""
    (top, bottom), (left, right) = pads
    if not (top or bottom or left or right):
        return side.contiguous()
    channels, height, width, batch = side.shape
    wide = side.new_zeros(channels, height + top + bottom, width + left + right, batch)
    wide[:, top : top + height, left : left + width].copy_(side)
    return wide


def _positions(count: Pair, step: Pair, width: int, start: Pair = (0, 0)) -> np.ndarray:
    """Row-major places of a grid of `count` positions that are `step` apart, in an image so wide."""
    rows = start[0] + step[0] * np.arange(count[0])
    columns = start[1] + step[1] * np.arange(count[1])
    return (rows[:, None] * width + columns).reshape(-1).astype(np.int32)


def _down_rows(pattern: Pattern, live: np.ndarray, small: Pair, wide: list[int]) -> dict[str, Any]:
    s, c, i, j = live
    g = pattern.geometry
    return {
        "ptr": np.concatenate([[0], np.bincount(s, minlength=pattern.small).cumsum()]).astype(np.int64),
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
            chosen = np.flatnonzero((steps[0][down] != _NONE) & (steps[1][across] != _NONE))
            order = chosen[np.argsort(c[chosen], kind="stable")]
            row = s[order] * wide[0] + steps[0][down][order] + pads[0][0]
            classes.append({
                "ptr": np.concatenate([[0], np.bincount(c[order], minlength=pattern.big).cumsum()]).astype(np.int64),
                "offset": (row * wide[1] + steps[1][across][order] + pads[1][0]).astype(np.int32),
                "order": order.astype(np.int32),
                "channel": np.arange(pattern.big, dtype=np.int32),
                "source": _positions(count, (1, 1), wide[1]),
                "target": _positions(count, step, big[1], (down, across)),
            })  # fmt: skip
    return classes


# -- the three operations, each other's derivatives --------------------------------------------------------------------


class _Down(torch.autograd.Function):
    """(values, bias, big side) → small side."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor | None, big: Tensor, layout: Layout) -> Tensor:
        padded = layout.padded_big(big)
        ctx.save_for_backward(values, bias, big, padded)
        ctx.layout = layout
        return layout.down(values, bias, padded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, bias, big, kept = ctx.saved_tensors
        layout: Layout = ctx.layout
        of_values, of_bias, of_big = wanted(ctx, (values, bias, big))
        if torch.is_grad_enabled():  # asked for derivatives of these derivatives
            return (
                _Sample.apply(grad, big, layout) if of_values else None,
                grad.sum(layout.axes) if of_bias else None,
                _Up.apply(values, None, grad, layout) if of_big else None,
                None,
            )
        padded = layout.padded_small(grad) if of_values or of_big else grad
        return (
            layout.sample(padded, kept) if of_values else None,
            grad.sum(layout.axes) if of_bias else None,
            layout.up(values, None, padded) if of_big else None,
            None,
        )


class _Up(torch.autograd.Function):
    """(values, bias, small side) → big side."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor | None, small: Tensor, layout: Layout) -> Tensor:
        padded = layout.padded_small(small)
        ctx.save_for_backward(values, bias, small, padded)
        ctx.layout = layout
        return layout.up(values, bias, padded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, bias, small, kept = ctx.saved_tensors
        layout: Layout = ctx.layout
        of_values, of_bias, of_small = wanted(ctx, (values, bias, small))
        if torch.is_grad_enabled():
            return (
                _Sample.apply(small, grad, layout) if of_values else None,
                grad.sum(layout.axes) if of_bias else None,
                _Down.apply(values, None, grad, layout) if of_small else None,
                None,
            )
        padded = layout.padded_big(grad) if of_values or of_small else grad
        return (
            layout.sample(kept, padded) if of_values else None,
            grad.sum(layout.axes) if of_bias else None,
            layout.down(values, None, padded) if of_small else None,
            None,
        )


class _Sample(torch.autograd.Function):
    """(small side, big side) → one number for each live weight."""

    @staticmethod
    def forward(ctx: Any, small: Tensor, big: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(small, big)
        ctx.layout = layout
        return layout.sample(layout.padded_small(small), layout.padded_big(big))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        small, big = ctx.saved_tensors
        grad = grad.contiguous()
        return (
            _Down.apply(grad, None, big, ctx.layout) if ctx.needs_input_grad[0] else None,
            _Up.apply(grad, None, small, ctx.layout) if ctx.needs_input_grad[1] else None,
            None,
        )


def wanted(ctx: Any, tensors: Iterable[object]) -> list[bool]:
    """Which gradients of a function's first arguments, tensors or None, this backward pass will use.

    `needs_input_grad` says which exist; `backward(inputs=...)` may want fewer, as when a GAN's generator is stepped
    through its discriminator.
    """
    nodes = iter(ctx.next_functions)  # of tensors alone: a bias of None has no place here
    return [tensor is not None and _will_run(next(nodes)[0]) for tensor in tensors]


def _will_run(node: Any) -> bool:
    """Whether this backward pass goes on to `node`; None: a tensor that needs no gradient."""
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except (RuntimeError, AttributeError):  # cannot be told of a leaf within `autograd.grad`, nor in every torch
        return True


# -- layers ------------------------------------------------------------------------------------------------------------


class SparseLayer(nn.Module):
    """A layer with `values`, its live weights, (weights,), in the order of the dense weight, and `bias`.

    Takes the place of a dense layer, whose bias it shares and whose weight `release` empties, so that the memory is
    free; `dense()` gives that layer back.
    """

    def __init__(self, layer: Any, mask: Tensor, geometry: Geometry = Geometry()):
        super().__init__()
        places = mask.reshape(-1).nonzero().reshape(-1)
        self.pattern = Pattern(tuple(mask.shape), places.int().numpy(), geometry, getattr(layer, "groups", 1))
        self.values = nn.Parameter(layer.weight.detach().reshape(-1)[places], layer.weight.requires_grad)
        self.register_parameter("bias", layer.bias)
        self._layer = (layer,)  # in a tuple: it is no child of this one

    def release(self) -> None:
        """Empties the weight of the dense layer, once this one stands in its place."""
        (layer,) = self._layer
        layer.weight.data, layer.weight.grad = layer.weight.data.new_empty(0), None
        layer.weight.is_emptied = True  # by which `hold` knows an optimiser that was made too early

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """The dense layer in whose place this one is, with its weights as they are now, and 0.0 where pruned."""
        (layer,) = self._layer
        weight = self.values.new_zeros(self.pattern.shape)
        weight.view(-1)[torch.from_numpy(self.pattern.places)] = self.values
        layer.weight.data, layer.weight.is_emptied = weight, False
        layer.weight.requires_grad_(self.values.requires_grad)
        layer.bias = self.bias  # another one, where one was loaded in its place
        return layer

    def check(self, given: Tensor, dims: int, axis: int, channels: int) -> None:
        """Raises `ValueError` for an input that the dense layer would not take either."""
        if given.dim() < dims or given.shape[axis] != channels:
            raise ValueError(
                f"{type(self).__name__} takes {channels} channels along axis {axis}, not {tuple(given.shape)}"
            )
        if self.values.device.type != "cpu" or given.device.type != "cpu":
            raise ValueError(f"{type(self).__name__} works on the CPU: restore(model) before moving it")

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.pattern.shape))}, {len(self.values):,} live weights"


def linear_down(values: Any, bias: Any, side: Tensor, layout: Layout) -> Tensor:
    """A linear layer of live weights, differentiable: (inputs, batch) → (outputs, batch)."""
    return _Down.apply(values, bias, side, layout)


class SparseLinear(SparseLayer):
    """`nn.Linear` with live weights alone: (..., inputs) → (..., outputs)."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.check(inputs, 1, -1, self.pattern.big)
        flat = inputs if inputs.dim() == 2 else inputs.reshape(-1, inputs.shape[-1])
        layout = self.pattern.layout((1, 1), (1, 1))
        out = linear_down(self.values, self.bias, flat.to(self.values.dtype).t(), layout).t()
        return out if inputs.dim() == 2 else out.reshape(*inputs.shape[:-1], self.pattern.shape[0])


class SparseConv2d(SparseLayer):
    """`nn.Conv2d` with live weights alone; zero padding only."""

    def __init__(self, layer: nn.Conv2d, mask: Tensor):
        super().__init__(layer, mask, _geometry(layer))

    def forward(self, images: Tensor) -> Tensor:
        self.check(images, 4, 1, self.pattern.big)
        g, big = self.pattern.geometry, tuple(images.shape[2:])
        small = tuple(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                big, g.padding, g.dilation, self.pattern.shape[2:], g.stride, strict=True
            )
        )
        layout = self.pattern.layout(small, big)  # type: ignore[arg-type]
        return _Down.apply(self.values, self.bias, _lanes(images, self.values), layout).permute(3, 0, 1, 2)


class SparseConvTranspose2d(SparseLayer):
    """`nn.ConvTranspose2d` with live weights alone."""

    def __init__(self, layer: nn.ConvTranspose2d, mask: Tensor):
        super().__init__(layer, mask, _geometry(layer))
        self.output_padding = layer.output_padding

    def forward(self, images: Tensor) -> Tensor:
        self.check(images, 4, 1, self.pattern.small)
        g, small = self.pattern.geometry, tuple(images.shape[2:])
        big = tuple(
            (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
            for size, stride, padding, dilation, kernel, extra in zip(
                small, g.stride, g.padding, g.dilation, self.pattern.shape[2:], self.output_padding, strict=True
            )
        )
        layout = self.pattern.layout(small, big)  # type: ignore[arg-type]
        return _Up.apply(self.values, self.bias, _lanes(images, self.values), layout).permute(3, 0, 1, 2)


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward and backward pass."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _lanes(images: Tensor, like: Tensor) -> Tensor:
    """(channels, height, width, batch), in the dtype of the weights."""
    return images.to(like.dtype).permute(1, 2, 3, 0)


def _geometry(layer: Any) -> Geometry:
    return Geometry(tuple(layer.stride), tuple(layer.padding), tuple(layer.dilation))


SPARSE: dict[type[nn.Module], Callable[[Any, Tensor], SparseLayer]] = {
    nn.Linear: SparseLinear,
    nn.Conv2d: SparseConv2d,
    nn.ConvTranspose2d: SparseConvTranspose2d,
}
"""The layers that there is a sparse form of."""


class StandIn:
    """A module in the place of `original`, with all that that one has; `dense()` gives it back."""

    _original: tuple[Any]  # in a tuple: it is no child of this one

    def __init__(self, original: nn.Module):
        self.__dict__ = {**vars(original), "_original": (original,)}

    def dense(self) -> nn.Module:
        return self._original[0]


class LanesNorm(StandIn, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that takes images batch innermost as they are: one row of numbers for each channel."""

    def forward(self, images: Tensor) -> Tensor:
        lanes = images.permute(1, 2, 3, 0)
        if images.is_contiguous() or not lanes.is_contiguous():
            return super().forward(images)
        rows = lanes.reshape(1, len(lanes), -1, 1)  # one image of the same numbers: its statistics are the same
        return super().forward(rows).view(lanes.shape).permute(3, 0, 1, 2)

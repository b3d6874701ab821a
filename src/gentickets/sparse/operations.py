"""Down, up and sampled: the three operations on a pattern of live weights, each other's derivatives.

The gradient of going down is going up, and the reverse; the gradient of the weights is a sample of the products of both
sides. So these three are all there is, and second derivatives come free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gentickets.kernels import turned
from gentickets.sparse.layout import Layout, innermost
from gentickets.sparse.wide import WideLayout

AnyLayout = Layout | WideLayout


def down(values: Any, bias: Any, big: Tensor, layout: AnyLayout) -> Tensor:
    """Big side → small side, both laid out as the layout has them, differentiable: a convolution, or a linear layer."""
    return _Down.apply(values, bias, big, layout)


def up(values: Any, bias: Any, small: Tensor, layout: AnyLayout) -> Tensor:
    """Small side → big side, differentiable: a transposed convolution."""
    return _Up.apply(values, bias, small, layout)


def turn(matrix: Tensor) -> Tensor:
    """A matrix's transpose, in memory too, differentiable."""
    return _Turn.apply(matrix)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        return turned(matrix.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Turn.apply(grad)


class _Down(torch.autograd.Function):
    """(values, bias, big side) → small side."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor | None, big: Tensor, layout: AnyLayout) -> Tensor:
        padded = layout.padded_big(big)
        ctx.save_for_backward(values, bias, big, padded)
        ctx.layout = layout
        return layout.down(values, bias, padded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, bias, big, kept = ctx.saved_tensors
        layout: AnyLayout = ctx.layout
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
    def forward(ctx: Any, values: Tensor, bias: Tensor | None, small: Tensor, layout: AnyLayout) -> Tensor:
        padded = layout.padded_small(small)
        ctx.save_for_backward(values, bias, small, padded)
        ctx.layout = layout
        return layout.up(values, bias, padded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, bias, small, kept = ctx.saved_tensors
        layout: AnyLayout = ctx.layout
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
    def forward(ctx: Any, small: Tensor, big: Tensor, layout: AnyLayout) -> Tensor:
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


Link = tuple[Layout, float]
"""Where a linear layer's live weights are, and the slope of the rectifier behind it for negative numbers; 1: none."""


def through(inputs: Tensor, chain: list[Link], tensors: Sequence[Tensor | None], *, batch_first: bool) -> Tensor:
    """(batch, inputs) → (batch, outputs) through linear layers, differentiable, as one step of autograd.

    `tensors`: values and bias of each. The outputs lie in memory batch first or innermost.
    """
    out = _Chain.apply(inputs, chain, batch_first, *tensors)
    return out if batch_first else out.t()


def rectified(outputs: Tensor, slope: float) -> Tensor:
    """Times `slope` where negative; 1: as they are."""
    if slope == 1:
        return outputs
    return F.relu(outputs) if slope == 0 else F.leaky_relu(outputs, slope)


class _Chain(torch.autograd.Function):
    """(batch, channels) → (batch, channels) through all links, or → (channels, batch) where not `batch_first`."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, chain: list[Any], batch_first: bool, *tensors: Tensor | None) -> Tensor:
        sides = [innermost(inputs.t())]
        for (layout, slope), values, bias in zip(chain, tensors[::2], tensors[1::2], strict=True):
            assert values is not None
            roomy = batch_first or len(sides) < len(chain)  # what is given away is contiguous
            sides.append(layout.down(values, bias, sides[-1], slope, roomy=roomy))
        # Without a rectifier the last side is not needed again, and whoever comes next may change it in place.
        ctx.save_for_backward(inputs, *sides[:-1], sides[-1] if chain[-1][1] != 1 else None, *tensors)
        ctx.chain, ctx.batch_first = chain, batch_first
        return turned(sides[-1]) if batch_first else sides[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        count = len(ctx.chain)
        given, sides, tensors = ctx.saved_tensors[0], ctx.saved_tensors[1 : count + 2], ctx.saved_tensors[count + 2 :]
        if torch.is_grad_enabled():  # asked for derivatives of these derivatives
            return _differentiable(ctx, given, tensors, grad)
        used = wanted(ctx, (given, *tensors))
        grads: list[Tensor | None] = [None] * len(tensors)
        first = next(k for k, want in enumerate(used) if want)
        grad = innermost(grad.t() if ctx.batch_first else grad)
        slope = ctx.chain[-1][1]
        if slope == 0:  # by another rule: 0 for an infinite gradient too
            grad = innermost(torch.ops.aten.threshold_backward(grad, sides[-1], 0))
        elif slope != 1:
            grad = innermost(torch.ops.aten.leaky_relu_backward(grad, sides[-1], slope, True))
        for k in reversed(range(count)):
            layout = ctx.chain[k][0]
            if used[2 * k + 1] and used[2 * k + 2]:
                grads[2 * k : 2 * k + 2] = layout.sample_with_bias(grad, sides[k])
            elif used[2 * k + 1]:
                grads[2 * k] = layout.sample(grad, sides[k])
            elif used[2 * k + 2]:
                grads[2 * k + 1] = grad.sum(1)
            if first > 2 * k:
                return None, None, None, *grads
            slope = ctx.chain[k - 1][1] if k else 1.0  # of the rectifier before this layer
            grad = layout.up(tensors[2 * k], None, grad, slope, sides[k], roomy=k > 0)
        return grad.t(), None, None, *grads


def _differentiable(ctx: Any, inputs: Tensor, tensors: tuple[Tensor | None, ...], grad: Tensor) -> tuple[Any, ...]:
    """The same gradients by a second pass, layer by layer, that autograd can follow."""
    with torch.enable_grad():
        # Of aliases: what the inputs, or a weight that comes twice, owe to these tensors elsewhere is not counted here.
        aliases = [None if tensor is None else tensor.view_as(tensor) for tensor in (inputs, *tensors)]
        assert aliases[0] is not None
        out = aliases[0].t()
        for (layout, slope), values, bias in zip(ctx.chain, aliases[1::2], aliases[2::2], strict=True):
            out = rectified(down(values, bias, out, layout), slope)
        out = out.t() if ctx.batch_first else out
        given = [tensor for tensor in aliases if tensor is not None and tensor.requires_grad]
        found = iter(torch.autograd.grad(out, given, grad, create_graph=True))
    first, *rest = (next(found) if tensor is not None and tensor.requires_grad else None for tensor in aliases)
    return first, None, None, *rest

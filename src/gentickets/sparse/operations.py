"""Down, up and sampled: the three operations on a pattern of live weights, each other's derivatives.

The gradient of going down is going up, and the reverse; the gradient of the weights is a sample of the products of both
sides. So these three are all there is, and second derivatives come free.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gentickets.sparse.layout import Layout


def down(values: Any, bias: Any, big: Tensor, layout: Layout) -> Tensor:
    """Big side → small side, both batch innermost, differentiable: a convolution, or a linear layer."""
    return _Down.apply(values, bias, big, layout)


def up(values: Any, bias: Any, small: Tensor, layout: Layout) -> Tensor:
    """Small side → big side, differentiable: a transposed convolution."""
    return _Up.apply(values, bias, small, layout)


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

"""Runs of sparse linear layers and rectifiers as one step of autograd.

At 99 % sparsity a small network multiplies so little that what remains is Python's and autograd's own work between the
layers; a run of them in one function has that once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.kernels import turned
from gentickets.sparse.beside import StandIn
from gentickets.sparse.layers import SparseLinear, is_hooked
from gentickets.sparse.layout import innermost
from gentickets.sparse.operations import down, wanted

Link = tuple[SparseLinear, float]
"""A layer and the slope of the rectifier behind it for negative numbers (0: ReLU); 1: no rectifier."""


class SparseSequential(StandIn, nn.Sequential):
    """`nn.Sequential` that takes each run of sparse linear layers and rectifiers in one.

    The last run, if no layer with weights follows it, gives its outputs batch first: what compares them with images
    would take many times as long on two layouts at once. Any other stays batch innermost, for layers to come.
    """

    def __getitem__(self, index: Any) -> Any:
        return self._original[0][index]  # a part of it is a plain sequence

    def forward(self, inputs: Any) -> Any:
        parts = list(_parts(list(self._modules.values())))
        last = _last_weighted(parts)
        for number, part in enumerate(parts):
            if isinstance(part, nn.Module):
                inputs = part(inputs)
            elif isinstance(inputs, Tensor) and inputs.dim() == 2:
                inputs = _chained(part, inputs, batch_first=number == last)
            else:
                for layer, slope in part:
                    inputs = _plain(layer(inputs), slope)
        return inputs


def runs(sequence: nn.Sequential, layers: Container[int]) -> Iterator[list[nn.Module]]:
    """Those of the `layers`, by id, that would be one step of autograd if they were sparse."""
    for part in _parts(list(sequence), lambda module: id(module) in layers):
        if isinstance(part, list):
            yield [layer for layer, _ in part]


def _is_link(module: nn.Module) -> bool:
    return isinstance(module, SparseLinear) and not is_hooked(module)


def _parts(modules: list[Any], is_link: Callable[[nn.Module], bool] = _is_link) -> Iterator[Any]:
    """Modules as they are, and runs of links."""
    run: list[Link] = []
    while modules:
        module = modules.pop(0)
        if is_link(module):
            slope = _slope(modules[0]) if modules else None
            if slope is not None:
                modules.pop(0)
            run.append((module, 1.0 if slope is None else slope))
            continue
        if run:
            yield run
            run = []
        yield module
    if run:
        yield run


def _last_weighted(parts: list[Any]) -> int:
    """The number of the last part that has weights: of one that is no module, a run of links."""
    weighted = [
        k for k, part in enumerate(parts) if isinstance(part, list) or next(part.parameters(), None) is not None
    ]
    return max(weighted, default=-1)


def _slope(module: nn.Module) -> float | None:
    """Of a rectifier; None for what is none."""
    if type(module) is nn.ReLU and not is_hooked(module):
        return 0.0
    if type(module) is nn.LeakyReLU and module.negative_slope > 0 and not is_hooked(module):
        return module.negative_slope
    return None


def _chained(links: list[Link], inputs: Tensor, batch_first: bool) -> Tensor:
    """(batch, inputs) → (batch, outputs), in memory batch first or batch innermost."""
    first = links[0][0]
    first.check(inputs, 2, -1, first.pattern.big)
    for (one, _), (other, _) in pairwise(links):
        if one.pattern.small != other.pattern.big:
            raise ValueError(
                f"{other} takes {other.pattern.big} numbers, and {one} before it gives {one.pattern.small}"
            )
    tensors = [tensor for layer, _ in links for tensor in (layer.weights(), layer.bias)]
    chain = [(layer.pattern.layout(), slope) for layer, slope in links]
    out = _Chain.apply(inputs.to(first.values.dtype), chain, batch_first, *tensors)
    return out if batch_first else out.t()


def _plain(outputs: Tensor, slope: float) -> Tensor:
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
            out = _plain(down(values, bias, out, layout), slope)
        out = out.t() if ctx.batch_first else out
        given = [tensor for tensor in aliases if tensor is not None and tensor.requires_grad]
        found = iter(torch.autograd.grad(out, given, grad, create_graph=True))
    first, *rest = (next(found) if tensor is not None and tensor.requires_grad else None for tensor in aliases)
    return first, None, None, *rest

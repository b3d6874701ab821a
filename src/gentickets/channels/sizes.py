"""How large a component is with some of its channel groups alone: its parameters, and the FLOPs of a pass forward.

Both are counted without cutting anything. A parameter has as many numbers as there are channels left along each of its
axes; an operation costs in proportion to the channels that it makes and reads. FLOPs are counted as `gentickets.cost`
does: two a multiply-add, two an element of a norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gentickets.channels.graph import ChannelGraph
from gentickets.channels.layers import is_grouped, is_linear, mixes_channels
from gentickets.channels.trace import Node, Operation, mapped
from gentickets.evaluating import evaluating
from gentickets.masks.names import NORMS, TRANSPOSED, joined, named_weights

_FLOPS_A_NORM = 2
"""An element."""

_NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm")
"""What norms are called as functions."""

_PRODUCTS = (
    "matmul", "rmatmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "einsum", "tensordot", "inner", "linear",
    "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "scaled_dot_product_attention", "multi_head_attention_forward",
)  # fmt: skip
"""What products are called as functions."""

Axes = Mapping[str, Mapping[int, np.ndarray]]
"""Parameter → axis → the group of each channel along it (-1: one that stays)."""


@dataclass(frozen=True)
class Work:
    """An operation's FLOPs for one example with all channels there, and the channels that it goes over.

    `sides`: the group of each channel, side by side. It costs the product of the shares of them that are left; with
    `least` the smallest of them, where they may be the same channels on several sides.
    """

    flops: float
    sides: tuple[np.ndarray, ...]
    least: bool = False


@dataclass(frozen=True)
class Sized:
    """What the size of a component is made of: the `shapes` of its parameters, the channels along their `axes`, and the
    operations of a pass forward."""

    shapes: Mapping[str, tuple[int, ...]]
    axes: Axes
    works: tuple[Work, ...]

    def goes_over(self, groups: np.ndarray) -> bool:
        """Whether any of some groups (bool) is of this component."""
        sides = (side for axes in self.axes.values() for side in axes.values())
        return any(bool(groups[side[side >= 0]].any()) for side in sides)

    def parameters(self, kept: np.ndarray) -> int:
        """How many parameters there are with those groups alone."""
        alive, total = np.append(kept, True), 0  # the last one is what -1 finds
        for name, shape in self.shapes.items():
            sides = list(shape)
            for axis, groups in self.axes.get(name, {}).items():
                sides[axis] = int(alive[groups].sum())
            total += math.prod(sides)
        return total

    def flops(self, kept: np.ndarray) -> int:
        """FLOPs of one example forward, with those groups alone."""
        alive, total = np.append(kept, True), 0.0
        for work in self.works:
            shares = [float(alive[groups].mean()) for groups in work.sides]
            total += work.flops * (min(shares, default=1.0) if work.least else math.prod(shares))
        return round(total)


def sized(graph: ChannelGraph, axes: Axes, numbers: Mapping[int, int], batch: int) -> Sized:
    """The size of a recorded component, `batch` its example's. `numbers`: group of the graph → its number."""

    def groups(labels: np.ndarray) -> np.ndarray:
        return np.array([numbers.get(int(group), -1) for group in graph.groups(labels)], dtype=np.int64)

    shapes = {joined(graph.component, name): tuple(w.shape) for name, w in named_weights(graph.net).items()}
    works = [work for operation in graph.run.operations for work in _works(graph, operation, groups, batch)]
    return Sized(shapes, axes, tuple(works))


def _works(
    graph: ChannelGraph, operation: Operation, groups: Callable[[np.ndarray], np.ndarray], batch: int
) -> Iterator[Work]:
    """What an operation computes; nothing of one that is free."""
    if not operation.made:
        return
    node, layer = operation.made[0], operation.call if operation.layer is not None else None
    if isinstance(layer, NORMS) or (layer is None and operation.name in _NORMS):
        yield Work(_FLOPS_A_NORM * node.value.numel() / batch, _channels(graph, node, groups))
    elif isinstance(layer, nn.Module) and node in graph.makes and (mixes_channels(layer) or is_grouped(layer)):
        over = operation.sources[0].value if isinstance(layer, TRANSPOSED) else node.value
        places = over.numel() // over.shape[-1 if is_linear(layer) else 1]
        sides = (graph.makes[node],) if is_grouped(layer) else (graph.makes[node], graph.reads[node])
        weight = layer.weight
        assert isinstance(weight, Tensor)
        yield Work(2 * weight.numel() * places / batch, tuple(groups(side) for side in sides))
    elif flops := _counted(operation):
        met = (side for one in (*operation.sources, node) for side in _channels(graph, one, groups))
        yield Work(flops / batch, tuple(met), least=True)


def _channels(graph: ChannelGraph, node: Node, groups: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, ...]:
    """The channels that a node has along the axis from which they go, if they go from one."""
    return (groups(graph.along(node, graph.axes[node])),) if node in graph.axes else ()


def _counted(operation: Operation) -> int:
    """FLOPs of a product as torch counts them, found by doing it again; 0 of what is none."""
    call = operation.call
    if call is None or operation.overwrites or not (isinstance(call, nn.Module) or operation.name in _PRODUCTS):
        return 0
    given = mapped((operation.args, operation.kwargs), lambda part: part.value if isinstance(part, Node) else part)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:  # torch knows what its plain form of attention costs, and not what every fused one does
        with (
            evaluating(call if isinstance(call, nn.Module) else nn.Module()),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            call(*given[0], **given[1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()

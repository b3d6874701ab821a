"""How large a component is with some of its channel groups alone: its parameters, and the FLOPs of a pass forward.

Both are counted without cutting anything. A parameter has as many numbers as there are channels left along each of its
axes; an operation costs in proportion to the channels that it makes and reads. What it costs with all of them is
counted while the component runs, as `gentickets.cost` does, and what runs beside the recorded operations is in the sum
too: of the whole component the two say the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from gentickets.channels.graph import ChannelGraph
from gentickets.channels.layers import is_grouped, mixes_channels
from gentickets.channels.trace import Node, Operation, Recorder, difference
from gentickets.flops.forward import batch_of, counted, counting
from gentickets.flops.operations import Operations
from gentickets.masks.examples import Example
from gentickets.masks.flow import titled
from gentickets.masks.names import clone, joined, named_weights

Axes = Mapping[str, Mapping[int, np.ndarray]]
"""Parameter → axis → the group of each channel along it (-1: one that stays)."""


@dataclass(frozen=True)
class Work:
    """An operation's FLOPs with all channels there, and the channels that it goes over.

    `sides`: the group of each channel, side by side. It costs that of the shares of them that are left: their product;
    the smallest of them, where they may be the same channels on several sides; or the largest, where not all that is
    multiplied goes over each of them.
    """

    flops: int
    sides: tuple[np.ndarray, ...] = ()
    of: Callable[[Sequence[float]], float] = math.prod


@dataclass(frozen=True)
class Sized:
    """What the size of a component is made of: the `shapes` of its parameters, the channels along their `axes`, and the
    operations of a pass forward of so many examples (`batch`).

    `doubt`: what speaks against these FLOPs, in a line; empty where nothing does.
    """

    shapes: Mapping[str, tuple[int, ...]]
    axes: Axes
    works: tuple[Work, ...]
    batch: int
    doubt: str

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
            total += work.flops * (work.of(shares) if shares else 1.0)
        return round(total / self.batch)


def sized(graph: ChannelGraph, axes: Axes, numbers: Mapping[int, int], example: Example) -> Sized:
    """The size of a recorded component. `numbers`: group of the graph → its number."""

    def groups(labels: np.ndarray) -> np.ndarray:
        return np.array([numbers.get(int(group), -1) for group in graph.groups(labels)], dtype=np.int64)

    def counter() -> Operations:
        return Operations({**dict(net.named_buffers()), **named_weights(net)})

    shapes = {joined(graph.component, name): tuple(w.shape) for name, w in named_weights(graph.net).items()}
    net = clone(graph.net)
    whole = counted(net, example, counter()).flops
    batch = batch_of(net, example, whole, counter)
    prices = _prices(graph, net, example, counter())
    works = [_work(graph, operation, price, groups) for operation, price in (prices or {}).items()]
    beside = whole - sum(work.flops for work in works)  # of numbers that come neither from an input nor from a weight
    doubts = [f"is priced {batch.guessed}; let the batch be the first axis of every input"] if batch.guessed else []
    if prices is None or beside < 0:
        doubts.append("does something else while it is recorded: its FLOPs are those of all its channels, or a guess")
    doubt = f"flops: {titled(graph.component)} {', and '.join(doubts)}" if doubts else ""
    return Sized(shapes, axes, (*works, Work(beside)), batch.size, doubt)


@dataclass(frozen=True)
class _Price:
    """What one operation takes: FLOPs, and how many products these are."""

    flops: int
    products: int


class _Priced(Recorder):
    """Records a run, and what each of its operations takes."""

    def __init__(self, net: nn.Module, counter: Operations):
        super().__init__(net)
        self.prices: dict[Operation, _Price] = {}
        self._counter = counter

    def _perform(self, operation: Operation, tensors: Sequence[Tensor], do: Callable[[], Any]) -> Any:
        flops, products = self._counter.flops, self._counter.counted
        result = super()._perform(operation, tensors, do)
        self.prices[operation] = _Price(self._counter.flops - flops, self._counter.counted - products)
        return result


def _prices(
    graph: ChannelGraph, net: nn.Module, example: Example, counter: Operations
) -> dict[Operation, _Price] | None:
    """The operations of a graph's run that take any FLOPs; None where the component does something else now."""
    recorder = _Priced(net, counter)
    with counting(net, counter):
        run = recorder.record(example)
    if difference(graph.run, run) is not None:
        return None
    pairs = zip(graph.run.operations, run.operations, strict=True)
    prices = {one: recorder.prices.get(again, _Price(0, 0)) for one, again in pairs if one.made}
    return {operation: price for operation, price in prices.items() if price.flops}


def _work(graph: ChannelGraph, operation: Operation, price: _Price, groups: Callable[[np.ndarray], np.ndarray]) -> Work:
    node, layer = operation.made[0], graph.layer_of(operation.made[0])
    if node in graph.makes and (mixes_channels(layer) or is_grouped(layer)):
        ends = [graph.makes[node]] if is_grouped(layer) else [graph.makes[node], graph.reads[node]]
        return Work(price.flops, tuple(groups(end) for end in ends))
    met = [_channels(graph, one, groups) for one in (*operation.sources, node)]
    sides = tuple(side for sides in met for side in sides)
    if price.products <= 1:
        return Work(price.flops, sides, min)
    # A product of several may go over no channels at all, where a tensor has none.
    return Work(price.flops, sides if all(met) else (), max)


def _channels(graph: ChannelGraph, node: Node, groups: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, ...]:
    """The channels that a node has along the axis from which they go, if they go from one."""
    return (groups(graph.along(node, graph.axes[node])),) if node in graph.axes else ()

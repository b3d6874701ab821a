"""Labels of the numbers of what each operation of a run makes: the channel that each belongs to (see `labels`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from torch import nn

from gentickets.channels.graph import ChannelGraph, cells_of
from gentickets.channels.layers import (
    blocks,
    is_grouped,
    is_linear,
    is_unflatten,
    mixes_channels,
    weighs_channels,
)
from gentickets.channels.probe import Probe
from gentickets.channels.trace import Node, Operation, Run


class Labeller:
    """Labels the numbers of what each operation of a run made."""

    def __init__(self, graph: ChannelGraph):
        self.graph = graph
        self._probe = Probe()
        self._called: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._raw: dict[str, np.ndarray] = {}

    def label(self, run: Run) -> None:
        """Labels every node of a run, in the order in which they came to be."""
        graph = self.graph
        for node in run.inputs:
            self._whole(node, "the input")
        for node in run.constants:
            self._whole(node, "a constant")
        for node in run.parameters:
            self._label_parameter(node)
        for operation in run.operations:
            graph.operations.append(operation)
            self._label(operation)
        for given in run.given:
            if isinstance(given, Node):
                graph.fix(graph.labels[given], "the output")

    def label_training(self, run: Run) -> None:
        """The same for what is done in training: its layers are those of evaluation; others stay whole."""
        known = set(self._called)
        self.label(run)
        for operation in run.operations:
            if operation.layer in self._called.keys() - known:
                for labels in self._called[operation.layer]:
                    self.graph.fix(labels, f"{operation.name} (called in training alone)")

    def _label_parameter(self, node: Node) -> None:
        """A parameter that code reads by itself: a vector may have a number for each channel, all else stays."""
        owner = self.graph.net.get_submodule(node.parameter.rpartition(".")[0])
        if (before := self._raw.get(node.parameter)) is not None:
            self.graph.labels[node] = before
            return
        vector = node.value.numel() == max(node.value.shape, default=1)
        if vector and node.value.numel() > 1 and not weighs_channels(owner):
            self.graph.labels[node] = self.graph.new(node.value.numel()).reshape(node.value.shape)
            self.graph.raw.append(node)
        else:
            self._whole(node, f"{node.parameter} (read by itself)")
        self._raw[node.parameter] = self.graph.labels[node]

    def _label(self, operation: Operation) -> None:
        graph, sources = self.graph, operation.sources
        unknown = operation.call is None or operation.overwrites or operation.tells
        if unknown or any(not node.value.numel() for node in (*sources, *operation.made)):
            self._not_understood(operation)
            return
        layer = graph.layer_of(operation.made[0])
        if weighs_channels(layer) and not self._lies_across(operation, layer):
            if not self._weighed(operation, layer):  # type: ignore[arg-type]
                self._not_understood(operation)
            return
        if all(graph.labels[source].size == 1 and graph.is_fixed(graph.labels[source]) for source in sources):
            looked_up = isinstance(layer, nn.Embedding)  # what stays whole for it is told by its name
            for node in operation.made:  # all of it stays, and there is nothing to tell apart
                label = self._stays(operation.name) if looked_up else graph.labels[sources[0]]
                graph.labels[node] = label.reshape([1] * node.value.dim())
                graph.links[node] = [(source, np.zeros(1, np.int64), np.zeros(1, np.int64)) for source in sources]
            return
        found = self._moved(operation, sources) or self._aligned(operation, sources)
        if not (found or self._unread(operation, sources) or self._joined(operation)):
            self._not_understood(
                operation, "" if self._can_be_tried(operation) else ", too large to try channel by channel"
            )
        elif is_unflatten(layer):
            source, made = sources[0], operation.made[0]
            self._same_each_call(operation, graph.along(source, 1), graph.along(made, 1))

    # -- layers that weigh channels -----------------------------------------------------------------------

    def _lies_across(self, operation: Operation, layer: nn.Module | None) -> bool:
        """Whether a linear layer mixes what lies along another axis than the channels, each of them by itself."""
        labels = self.graph.labels[operation.sources[0]]
        return is_linear(layer) and labels.size > 1 and labels.shape[-1] == 1

    def _weighed(self, operation: Operation, layer: nn.Module) -> bool:
        """A layer that has numbers of its own for each channel."""
        graph, sources, made = self.graph, operation.sources, operation.made[0]
        if len(sources) != 1 or len(list(operation.args)) + len(operation.kwargs) != 1:
            return False
        source = sources[0]
        mixes, grouped = mixes_channels(layer), is_grouped(layer)
        axis = made.value.dim() - 1 if is_linear(layer) else 1
        places = len(layer.kernel_size) if hasattr(layer, "kernel_size") else None  # type: ignore[arg-type]
        if made.value.dim() < 2 or (places is not None and made.value.dim() != 2 + places):
            return False  # no batch
        inputs = graph.along(source, axis)
        if graph.labels[source].size > 1 and len(set(graph.groups(inputs).tolist())) == 1:
            graph.fix(inputs, source.operation.name if source.operation is not None else source.parameter)
        if not (mixes or grouped):
            size = getattr(layer, "num_features", getattr(layer, "num_channels", getattr(layer, "num_parameters", 0)))
            if size != len(inputs) or source.value.shape != made.value.shape:
                return False
        shape = [1] * made.value.dim()
        shape[axis] = made.value.shape[axis]
        labels = graph.new(shape[axis]) if mixes or grouped else np.array(inputs)
        graph.labels[made], graph.makes[made], graph.reads[made] = labels.reshape(shape), labels, inputs
        if not mixes:
            self._keep_blocks(operation, layer, inputs, labels)
        self._same_each_call(operation, inputs, labels)
        return True

    def _keep_blocks(self, operation: Operation, layer: nn.Module, inputs: np.ndarray, labels: np.ndarray) -> None:
        """The channels of one group of a layer stay or go together; single ones, where it has no groups."""
        graph, source, made = self.graph, operation.sources[0], operation.made[0]
        of_input, of_output = blocks(layer, len(inputs)), blocks(layer, len(labels))
        first = np.unique(of_input, return_index=True)[1]
        graph.join(inputs, inputs[first][of_input])
        graph.join(labels, inputs[first][of_output])
        cells = graph.cells_along(source, 1)
        mine, its = np.nonzero(of_output[:, None] == of_input[None, :])
        graph.links[made] = [(source, np.repeat(mine, cells.shape[1]), cells[its].reshape(-1))]

    def _same_each_call(self, operation: Operation, inputs: np.ndarray, labels: np.ndarray) -> None:
        """A layer that is called twice has one weight: its channels are the same ones both times."""
        assert operation.layer is not None
        before = self._called.setdefault(operation.layer, (inputs, labels))
        for now, then in ((inputs, before[0]), (labels, before[1])):
            if len(now) == len(then):
                self.graph.join(now, then)
            else:  # a reshape by one module into different places
                self.graph.fix(np.concatenate([now, then]), f"{operation.name} (called with other sizes)")

    # -- everything else: it is what it is found to do --------------------------------------------------------

    def _moved(self, operation: Operation, sources: Sequence[Node]) -> bool:
        """Numbers are moved, and stay what they are: each keeps its label."""
        graph = self.graph
        movable = [source for source in sources if source.value.is_floating_point() or source.value.is_complex()]
        others = [source for source in sources if source not in movable]
        if not movable or not all(graph.is_fixed(graph.labels[source]) for source in others):
            return False
        origins = self._probe.moved(operation, movable)
        if origins is None:
            return False
        # Cells, counted through all sources, of every one of their numbers.
        starts = np.cumsum([0, *(graph.labels[source].size for source in movable)])
        cells = np.concatenate(
            [
                np.broadcast_to(start + cells_of(graph.labels[source]), source.value.shape).reshape(-1)
                for source, start in zip(movable, starts, strict=False)
            ]
        )
        of_cell = np.concatenate([graph.labels[source].reshape(-1) for source in movable])
        for node, origin in zip(operation.made, origins, strict=True):
            mine = _squeezed(np.where(origin < 0, -1, cells[origin]))
            flat = mine.reshape(-1)
            labels = np.where(flat < 0, -1, of_cell[flat])
            if (flat < 0).any():
                labels[flat < 0] = self._constant()
            graph.labels[node] = labels.reshape(mine.shape)
            graph.links[node] = [
                (source, own, flat[own] - start)
                for source, start, stop in zip(movable, starts, starts[1:], strict=False)
                if len(own := np.flatnonzero((flat >= start) & (flat < stop)))
            ] + [(source, *_all_pairs(flat.size, graph.labels[source].size)) for source in others]
        return True

    def _unread(self, operation: Operation, sources: Sequence[Node]) -> bool:
        """No number is read, but perhaps of what kind they are: what is made is the same whatever they are."""
        changed = {source: np.ones(tuple(source.value.shape), dtype=bool) for source in sources}
        touched = self._probe.touched(operation, changed)
        if touched is None or any(bool(reached.any()) for reached in touched):
            return False
        for node in operation.made:
            self.graph.labels[node] = np.full([1] * node.value.dim(), self._constant())
            self.graph.links[node] = []
        return True

    def _constant(self) -> int:
        return int(self._stays("a constant")[0])

    def _stays(self, why: str) -> np.ndarray:
        """A label of its own, which stays."""
        label = self.graph.new(1)
        self.graph.fix(label, why)
        return label

    def _aligned(self, operation: Operation, sources: Sequence[Node]) -> bool:
        """Number by number, or place by place: each channel of the result comes of the same one of each source."""
        return any(self._aligned_as(operation, sources, shapes) for shapes in self._alignments(operation, sources))

    def _alignments(self, operation: Operation, sources: Sequence[Node]) -> list[list[tuple[int, ...]]]:
        """How the axes of sources may lie in the results: by the last one; or, where a source lost some, in order."""
        ranks = {node.value.dim() for node in operation.made}
        if len(ranks) != 1:
            return []
        rank = ranks.pop()
        labels = [self.graph.labels[source] for source in sources]
        found = []
        if all(own.ndim <= rank for own in labels):
            found.append([(1,) * (rank - own.ndim) + own.shape for own in labels])
        if len(sources) == 1 and labels[0].ndim != rank:
            sizes = [size for size in labels[0].shape if size > 1]
            for places in itertools.combinations(range(rank), len(sizes)):
                shape = [1] * rank
                for place, size in zip(places, sizes, strict=True):
                    shape[place] = size
                if [tuple(shape)] not in found:
                    found.append([tuple(shape)])
        return [shapes for shapes in found if all(_fits(shapes, node) for node in operation.made)]

    def _aligned_as(self, operation: Operation, sources: Sequence[Node], shapes: list[tuple[int, ...]]) -> bool:
        graph = self.graph
        whole = np.broadcast_shapes(*shapes)
        cells = {
            source: np.broadcast_to(cells_of(graph.labels[source]).reshape(shape), whole)
            for source, shape in zip(sources, shapes, strict=True)
        }
        one_each = all(own.size == graph.labels[source].size for source, own in cells.items())
        units = {source: cells_of(graph.labels[source]).reshape(graph.labels[source].shape) for source in sources}
        made = np.arange(int(np.prod(whole))).reshape(whole)
        read_by_all = [s for s, own in cells.items() if graph.labels[s].size == 1 and own.size > 1]
        wide = [source for source in sources if source not in read_by_all]
        if not one_each:
            trial = _Partition(made.size)
            for source in wide:
                trial.join(cells[source].reshape(-1))
            made = trial.parts().reshape(whole)
            units = {}
            for source in wide:
                own = np.zeros(graph.labels[source].size, dtype=np.int64)
                own[cells[source].reshape(-1)] = made.reshape(-1)
                units[source] = own.reshape(graph.labels[source].shape)
        if not wide or not self._probe.keeps_apart(operation, units, [made] * len(operation.made)):
            return False
        first = graph.labels[wide[0]].reshape(-1)[cells[wide[0]]]
        for source in wide[1:]:
            graph.join(graph.labels[source].reshape(-1)[cells[source]], first)
        if not one_each:
            parts, index = np.unique(made, return_index=True)
            graph.join(first, first.reshape(-1)[index][np.searchsorted(parts, made)])
        for source in read_by_all:
            size = (1,) * (len(whole) - source.value.dim()) + tuple(source.value.shape)
            if all(side == 1 for side, wider in zip(size, whole, strict=True) if wider > 1):
                graph.fix(graph.labels[source], f"{operation.name} (every channel reads it)")
            else:  # it is as long as the others, and all one
                graph.join(first, np.broadcast_to(graph.labels[source].reshape(-1), first.size))
        for node in operation.made:
            graph.labels[node] = first.reshape(whole)
            graph.links[node] = [(source, np.arange(first.size), own.reshape(-1)) for source, own in cells.items()]
        return True

    def _joined(self, operation: Operation) -> bool:
        """Channels that come together in some number of the result stay or go together.

        What each channel by itself leaves its mark on is tried one by one. Where all are read together, nothing is
        left to tell apart.
        """
        if not self._can_be_tried(operation):
            return False
        graph, sources = self.graph, operation.sources
        groups = {source: graph.groups(graph.labels[source]) for source in sources}
        every = np.unique(np.concatenate([own.reshape(-1) for own in groups.values()]))
        fixed = set(graph.fixed)
        free = [group for group in every.tolist() if group not in fixed]
        units = [[group] for group in free] + [[group for group in every.tolist() if group in fixed]]
        units = [unit for unit in units if unit]
        marks = [np.full(tuple(node.value.shape), -1, dtype=np.int64) for node in operation.made]
        parts = _Partition(len(units))
        for number, unit in enumerate(units):
            touched = self._probe.touched(operation, {source: np.isin(own, unit) for source, own in groups.items()})
            if touched is None:
                return False
            for mark, reached in zip(marks, touched, strict=True):
                here = reached.numpy()
                for met in np.unique(mark[here]).tolist():
                    if met >= 0:
                        parts.join_two(met, number)
                mark[here & (mark < 0)] = number
            if number == 0 and len(units) > 1 and all(bool(reached.all()) for reached in touched):
                return False  # it is in everything, and so whatever else is read is with it
        numbers = parts.parts()
        if len(set(numbers.tolist())) == 1 and len(units) > 1:
            return False
        for number, unit in enumerate(units):
            graph.join(np.array(unit), np.full(len(unit), units[numbers[number]][0]))
        for node, mark in zip(operation.made, marks, strict=True):
            mine = _squeezed(np.where(mark < 0, -1, numbers[mark]))
            flat = mine.reshape(-1)
            labels = np.array([units[number][0] if number >= 0 else -1 for number in flat.tolist()], dtype=np.int64)
            if (flat < 0).any():
                labels[flat < 0] = self._constant()
            graph.labels[node] = labels.reshape(mine.shape)
            number_of = {group: numbers[number] for number, unit in enumerate(units) for group in unit}
            graph.links[node] = []
            for source, own in groups.items():
                of_source = np.array([number_of[group] for group in own.reshape(-1).tolist()])
                own_cells, its_cells = np.nonzero(flat[:, None] == of_source[None, :])
                graph.links[node].append((source, own_cells, its_cells))
        return True

    # -- what is not understood ---------------------------------------------------------------------------

    def _can_be_tried(self, operation: Operation) -> bool:
        """Whether its channels can be tried one by one: for the most that may be, ten seconds of one core."""
        labels = [self.graph.labels[source].reshape(-1) for source in operation.sources]
        channels = len(np.unique(self.graph.groups(np.concatenate(labels)))) if labels else 0
        return channels * sum(source.value.numel() for source in operation.sources) <= _MOST_TRIED

    def _not_understood(self, operation: Operation, why: str = "") -> None:
        """Everything that this operation reads stays whole, and so does what it makes."""
        for source in operation.sources:
            self.graph.fix(self.graph.labels[source], operation.name + why)
        for node in operation.made:
            self._whole(node, operation.name + why)

    def _whole(self, node: Node, why: str) -> None:
        self.graph.labels[node] = label = self.graph.new(1).reshape([1] * node.value.dim())
        self.graph.fix(label, why)


_MOST_TRIED = 2**28
"""Channels times numbers of what an operation reads, up to which each channel is tried by itself."""


class _Partition:
    """Numbers that are joined."""

    def __init__(self, count: int):
        self._parents = list(range(count))

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def join_two(self, one: int, other: int) -> None:
        self._parents[self._root(other)] = self._root(one)

    def join(self, colours: np.ndarray) -> None:
        """Joins numbers of the same colour."""
        first: dict[int, int] = {}
        for number, colour in enumerate(colours.tolist()):
            self.join_two(first.setdefault(colour, number), number)

    def parts(self) -> np.ndarray:
        """The part that each number is in, called after one of its numbers."""
        return np.array([self._root(number) for number in range(len(self._parents))], dtype=np.int64)


def _squeezed(cells: np.ndarray) -> np.ndarray:
    """The same, 1 long along every axis along which they do not differ; -1 differs from nothing."""
    for axis in range(cells.ndim):
        most = cells.max(axis, keepdims=True)
        if bool(((cells == most) | (cells == -1)).all()):
            cells = most
    return cells


def _fits(shapes: list[tuple[int, ...]], node: Node) -> bool:
    """Whether labels of these shapes lie in a node together."""
    try:
        whole = np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return len(whole) == node.value.dim() and all(
        size in (1, there) for size, there in zip(whole, node.value.shape, strict=True)
    )


def _all_pairs(mine: int, its: int) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(np.arange(mine), its), np.tile(np.arange(its), mine)

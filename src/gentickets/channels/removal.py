"""Which channels of a component go, by the masks of its layers.

A channel can go where pruned weights alone led to it or from it: where nothing that matters reads it, or where what it
holds does not depend on the input; then the constant is folded into the bias of the layers that read it. What is one
number in the example's call is no constant yet: it may be of its size, of its batch, of a number among the arguments,
of one draw of chance, or a noise whose strength is still zero. So it is looked at in other calls too (see `Reads`).
Channels that live and die together (see `labels`) go together or not at all.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.channels.graph import ChannelGraph
from gentickets.channels.layers import channel_axes, is_grouped, is_linear, mixes_channels, stores_inputs_first
from gentickets.channels.trace import Node, Recorder, Run
from gentickets.masks.examples import Call, Example, other_calls, tolerance
from gentickets.masks.layers import weight_norm_lengths
from gentickets.masks.names import (
    TRANSPOSED,
    WEIGHT_PLACES,
    clone,
    joined,
    named_layers,
)
from gentickets.masks.value import Masks

Read = Mapping[tuple[str, int], Tensor]
"""(layer, how often it was called before) → what it read."""


class Reads:
    """What the layers of a component read in the call that was recorded and in others, in which it calls the same ones.

    `filled`: the component with numbers in what starts from zero; `calls`: the others of its example that it runs in.
    """

    def __init__(self, graph: ChannelGraph, example: Example, filled: nn.Module | None):
        self._graph, self._example, self._filled = graph, example, filled
        self._names = _layers_called(graph.run)
        self.calls, self.masked = self._others_of(graph.net, _read(graph.run))

    @cached_property
    def once_filled(self) -> Run | None:
        """What the filled component does with the example; None where that is something else, or not finite."""
        run = self._again(clone(self._filled), Call("", self._example)) if self._filled is not None else None
        return run if run is not None and all(bool(one.isfinite().all()) for one in run.outputs.values()) else None

    @cached_property
    def filled(self) -> list[Read]:
        """As `masked`, with numbers in what starts from zero; empty where there is nothing like that."""
        if self._filled is None or self.once_filled is None:
            return []
        return self._others_of(self._filled, _read(self.once_filled))[1]

    def _others_of(self, net: nn.Module, first: Read) -> tuple[list[Call], list[Read]]:
        calls, found, net = [], [first], clone(net)  # what it keeps of these calls is not to stay
        for ways in other_calls(self._example):
            ran = ((call, run) for call in ways if (run := self._again(net, call)) is not None)
            if (one := next(ran, None)) is not None:
                calls.append(one[0])
                found.append(_read(one[1]))
        return calls, found

    def _again(self, net: nn.Module, call: Call) -> Run | None:
        """Another run of a network; None where it does not run, or reaches other layers."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run = Recorder(net).record(call.example, call.seed)
        except Exception:  # it is no input for it
            return None
        return run if _layers_called(run) == self._names else None

    def hang_on(self, differs: Callable[[Read], bool]) -> list[str]:
        """The numbers of one's own modules on which it hangs what some layers read."""
        own = [
            (name, key)
            for name, module in named_layers(self._graph.net)
            for key, value in vars(module).items()
            if type(value) is float and not type(module).__module__.startswith("torch.")
        ]

        def changed(numbers: Sequence[tuple[str, str]]) -> bool:
            net = clone(self._graph.net)
            layers = dict(named_layers(net))
            for name, key in numbers:
                setattr(layers[name], key, 0.75 * getattr(layers[name], key) + 0.1)
            run = self._again(net, Call("", self._example))
            return run is not None and differs(_read(run))

        if not own or not changed(own):
            return []
        found = [number for number in own if changed([number])] if len(own) <= _ONE_BY_ONE else own
        return [joined(joined(self._graph.component, name), key) for name, key in found or own]


_ONE_BY_ONE = 8
"""Up to how many numbers of modules are changed one by one."""


class Removal:
    """Which groups of channels of one component go, and what is folded where.

    Of each node, its cells are counted as in its labels (see `ChannelGraph`).
    """

    def __init__(self, graph: ChannelGraph, masks: Masks, reads: Reads):
        self.graph, self.masks, self._others = graph, masks, reads
        self._calls = _places(graph.run)
        self.nodes = list(graph.run.nodes)
        self.groups = {node: graph.groups(graph.labels[node]).reshape(-1) for node in self.nodes}
        self.mixing = {node for node in self.nodes if mixes_channels(graph.layer_of(node)) and node in graph.makes}
        self.reads = {node: self._cells_read(node) for node in self.nodes if node in graph.makes}
        self.alive = {node: self._alive(node) for node in self.mixing}
        self.varying = self._varying()
        self.trainable = self._trainable()
        self.needed = self._needed()
        self.gone = self._removable()

    # -- what the masks say -------------------------------------------------------------------------------

    def _cells_read(self, node: Node) -> np.ndarray:
        """(channels, cells): the cells of what a layer reads that are each of its input channels."""
        source = _source(node)
        return self.graph.cells_along(source, _input_axis(self.graph.layer_of(node), source))

    def _mask(self, node: Node, name: str, like: Tensor) -> Tensor:
        """The mask of a tensor of a node's layer: all alive where none covers it."""
        full = joined(self.graph.name_of(node), name)
        return self.masks[full] if full in self.masks else torch.ones(like.shape, dtype=torch.bool)

    def _weight_mask(self, node: Node) -> Tensor:
        """Which of the weights that a layer multiplies with are not pruned, under a norm too."""
        layer = self.graph.layer_of(node)
        own = dict(layer.named_parameters())  # type: ignore[union-attr]
        mask = torch.ones_like(layer.weight, dtype=torch.bool)  # type: ignore[union-attr, arg-type]
        for place in WEIGHT_PLACES:
            if place in own:
                mask &= self._mask(node, place, own[place])
        for length, _ in weight_norm_lengths(layer).values():  # type: ignore[arg-type]
            mask &= self._mask(node, length, own[length])
        return mask

    def _alive(self, node: Node) -> np.ndarray:
        """bool (outputs, inputs) of a mixing layer: whether a weight that is not pruned leads from one to the other."""
        return _out_in(self.graph.layer_of(node), self._weight_mask(node)).any(2).numpy()

    def _bias_alive(self, node: Node) -> np.ndarray:
        bias = getattr(self.graph.layer_of(node), "bias", None)
        if not isinstance(bias, Tensor):
            return np.zeros(len(self.groups[node]), dtype=bool)
        return self._mask(node, "bias", bias).numpy()

    def _gate(self, node: Node) -> np.ndarray:
        """Which cells a node lets through: not those whose gain, or whose filter in a group, is pruned."""
        layer = self.graph.layer_of(node)
        if node in self.reads and isinstance(layer.weight, Tensor):  # type: ignore[union-attr]
            mask = self._weight_mask(node)
            if is_grouped(layer) and isinstance(layer, TRANSPOSED):
                mask = mask.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
            if len(mask) == len(self.groups[node]) and not isinstance(layer, nn.PReLU):
                return mask.reshape(len(mask), -1).any(1).numpy()
        return np.ones(len(self.groups[node]), dtype=bool)

    # -- what follows from it -----------------------------------------------------------------------------

    def _read(self, node: Node, of: np.ndarray) -> np.ndarray:
        """Of each input channel of a layer: whether any of its cells is one of those."""
        return np.asarray(of[self.reads[node]].any(1))

    def _varying(self) -> dict[Node, np.ndarray]:
        """Node → which cells depend on the input."""
        varying: dict[Node, np.ndarray] = {}
        for node in self.nodes:
            if node in self.alive:
                reads = self._read(node, varying[_source(node)])
                varying[node] = np.asarray(self.alive[node][:, reads].any(1))
            elif node in self.graph.links:
                varying[node] = self._gathered(node, varying) & self._gate(node)
            else:
                varying[node] = np.ones(len(self.groups[node]), dtype=bool)
                if node.parameter and (mask := self._raw_mask(node)) is not None:
                    varying[node] = mask
        return varying

    def _trainable(self) -> dict[Node, np.ndarray]:
        """Node → which cells, being constant, hold a constant that training can change."""
        trainable: dict[Node, np.ndarray] = {}
        for node in self.nodes:
            layer = self.graph.layer_of(node)
            if node in self.alive:
                source = _source(node)
                reads = self._read(node, self.varying[source] | trainable[source] | self._not_zero(source))
                trainable[node] = self._bias_alive(node) | self.alive[node][:, reads].any(1)
            elif node in self.graph.links:
                found = self._gathered(node, trainable)
                if is_grouped(layer):
                    lost = self._gathered(node, {_source(node): self._not_zero(_source(node))})
                    found = self._bias_alive(node) | (self._gate(node) & (found | lost))
                elif node in self.reads and not isinstance(layer, nn.PReLU):
                    moves = layer.weight is None  # type: ignore[union-attr]  # its statistics do
                    found = self._bias_alive(node) | self._gate(node) if not moves else np.ones_like(found)
                trainable[node] = found
            elif node.parameter:
                trainable[node] = self.varying[node]
            else:
                trainable[node] = np.ones(len(self.groups[node]), dtype=bool)
        return trainable

    def _raw_mask(self, node: Node) -> np.ndarray | None:
        """Which numbers of a parameter that code reads by itself are not pruned; None where nothing is said of it."""
        owner, _, key = node.parameter.rpartition(".")
        where = self.graph.names[id(self.graph.net.get_submodule(owner))]
        full = joined(self.graph.component, joined(where, key))
        whole = full not in self.masks or self.graph.labels[node].size != node.value.numel()
        return None if whole else self.masks[full].reshape(-1).numpy()

    def _gathered(self, node: Node, of: Mapping[Node, np.ndarray]) -> np.ndarray:
        """Of each cell of a node: whether any cell that it comes from is one of those."""
        found = np.zeros(len(self.groups[node]), dtype=bool)
        for source, mine, its in self.graph.links[node]:
            np.logical_or.at(found, mine, of[source][its])
        return found

    def _not_zero(self, node: Node) -> np.ndarray:
        return _over_cells(node.value.ne(0), self.graph.labels[node].shape, Tensor.any)

    def _needed(self, pruned: bool = True) -> dict[Node, np.ndarray]:
        """Node → which cells the component's output depends on; as if nothing were pruned, where said so."""
        needed = {node: np.zeros(len(groups), dtype=bool) for node, groups in self.groups.items()}
        for node in self.graph.run.given:
            if isinstance(node, Node):
                needed[node][:] = True
        for operation in reversed(self.graph.run.operations):
            for node in reversed(operation.made):
                if node in self.alive:
                    alive = self.alive[node] if pruned else np.ones_like(self.alive[node])
                    read = np.asarray(alive[needed[node]].any(0))[:, None]
                    np.logical_or.at(needed[_source(node)], self.reads[node], read)
                elif node in self.graph.links:
                    passed = needed[node] & self._gate(node) if pruned else needed[node]
                    for source, mine, its in self.graph.links[node]:
                        np.logical_or.at(needed[source], its, passed[mine])
            if operation.tells or any(
                node not in self.alive and node not in self.graph.links for node in operation.made
            ):
                for source in operation.sources:
                    needed[source][:] = True
        return needed

    def _removable(self) -> set[int]:
        """The groups that go."""
        candidates = {int(g) for node in self.graph.axes if node in self.groups for g in self.groups[node]}
        candidates -= set(self.graph.fixed)
        read_when_dense = self._needed(pruned=False)
        for node in self.alive:
            layer, source = self.graph.layer_of(node), _source(node)
            # What no pruned weight silences stays, even where the code makes no use of it.
            unpruned = self.varying[node] & (self.needed[node] | ~read_when_dense[node])
            candidates -= {int(g) for g in self.groups[node][unpruned]}
            alive, read = self.alive[node], self.groups[source][self.reads[node]]
            stays = alive[self.needed[node]].any(0)
            constant = stays & ~self._read(node, self.varying[source])
            if constant.any():
                stays &= ~(constant & self._foldable(node))
            if _is_normed(layer):  # a norm sees the whole weight: only what is zero can be cut out of it unseen
                stays |= alive.any(0)
                candidates -= {int(g) for g in self.groups[node][alive.any(1)]}
            candidates -= {int(g) for g in read[stays].reshape(-1)}
        for node in self.nodes:
            if is_grouped(layer := self.graph.layer_of(node)) and node in self.reads and _is_normed(layer):
                candidates -= {int(g) for g in self.groups[node][self._gate(node)]}
            if node.parameter and (mask := self._raw_mask(node)) is not None:
                candidates -= {int(g) for g in self.groups[node][mask]}
        return self._keep_directions(self._never_all(candidates))

    def _foldable(self, node: Node) -> np.ndarray:
        """Which input channels of a layer, being constant, are worth a constant in each of its outputs: zero, or the
        same everywhere and in every call."""
        layer, source = self.graph.layer_of(node), _source(node)
        calls = [self._by_channel(node, reads) for reads in (self._others.masked, self._others.filled) if reads]
        zero = np.all([value.eq(0).all(1).numpy() for values in calls for value in values], axis=0)
        zero &= ~self._read(node, self.trainable[source])
        if isinstance(layer, TRANSPOSED):
            return zero
        same = zero | np.all([_is_one_number(torch.cat(values, 1)) for values in calls], axis=0)
        if is_linear(layer):
            return same
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        padded = layer.padding_mode == "zeros" and (isinstance(layer.padding, str) or any(layer.padding))
        return zero if padded else same

    def _by_channel(self, node: Node, reads: Sequence[Read]) -> list[Tensor]:
        """(channels, numbers) of what a layer reads in each call."""
        found = [read[self._calls[node]] for read in reads]
        axes = [value.dim() - 1 if is_linear(self.graph.layer_of(node)) else 1 for value in found]
        return [value.movedim(axis, 0).reshape(value.shape[axis], -1) for value, axis in zip(found, axes, strict=True)]

    def _never_all(self, candidates: set[int]) -> set[int]:
        for node in self.nodes:
            groups = self.groups[node]
            if len(groups) and all(int(g) in candidates for g in groups):
                candidates.discard(int(groups[0]))
                name = node.operation.name if node.operation is not None else node.parameter
                warnings.warn(
                    f"component {self.graph.component!r}: every channel of {name!r} is dead; one is kept: "
                    f"prune less of it, or with scope='layer', which leaves each layer some",
                    stacklevel=6,
                )
        return candidates

    def _keep_directions(self, candidates: set[int]) -> set[int]:
        """Weight norm divides each filter by its size, one of length 0 too: where it stays, a weight of it does."""
        directions = [found for node in self.alive for found in self._directions(node)]
        before = -1
        while before != (before := len(candidates)):
            for there, filters, others in directions:
                stay, left = (~np.isin(groups, list(candidates)) for groups in (filters, others))
                for number in np.flatnonzero(stay & there.any(1) & ~there[:, left].any(1)):
                    candidates.discard(int(others[there[number]][0]))
        return candidates

    def _directions(self, node: Node) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of a layer under weight norm: bool (filters, channels across them), where a number is other than 0; and the
        groups of both."""
        layer = self.graph.layer_of(node)
        outputs, inputs = self.groups[node], self.groups[_source(node)][self.reads[node]][:, 0]
        own = dict(layer.named_parameters())  # type: ignore[union-attr]
        for name, (_, axis) in weight_norm_lengths(layer).items():  # type: ignore[arg-type]
            there = _out_in(layer, own[name].ne(0) & self._mask(node, name, own[name])).any(2).numpy()
            side = channel_axes(layer)[name].get(axis)  # type: ignore[arg-type]
            if side is not None:
                yield (there, outputs, inputs) if side == "output" else (there.T, inputs, outputs)

    def folded(self, node: Node, reads: Sequence[Read]) -> Tensor | None:
        """What the constants that a layer no longer reads add to its bias, (outputs,), or None; by what it `reads` in
        the masked network, or in the filled one."""
        layer, lost = self.graph.layer_of(node), self._lost(node)
        if not lost.any():
            return None
        constant = self._by_channel(node, reads[:1])[0][:, 0]
        weight = _out_in(layer, layer.weight.detach()).sum(2)[:, lost]  # type: ignore[operator, union-attr]
        wide = torch.complex128 if weight.is_complex() else torch.float64
        return weight.to(wide) @ constant[lost].to(wide)

    def _lost(self, node: Node) -> np.ndarray:
        """Which of a layer's input channels go as constants."""
        source = _source(node)
        gone = np.array([int(g) in self.gone for g in self.groups[source]])
        return self._read(node, gone) & ~self._read(node, self.varying[source])

    def hangs_on(self) -> list[str]:
        """The numbers that code of one's own keeps on its modules, and what is folded would be another without."""
        lost = {node: lost for node in self.alive if (lost := self._lost(node)).any()}

        def differs(read: Read) -> bool:
            pairs = ((self._by_channel(node, [self._others.masked[0], read]), of) for node, of in lost.items())
            return any(not _is_one_number(torch.cat(both, 1)[torch.from_numpy(of)]).all() for both, of in pairs)

        return self._others.hang_on(differs) if lost else []


def _source(node: Node) -> Node:
    """The node that a layer reads."""
    return node.operation.sources[0]  # type: ignore[union-attr]


def _input_axis(layer: nn.Module | None, source: Node) -> int:
    """The axis of what a layer reads along which its input channels go."""
    return source.value.dim() - 1 if is_linear(layer) else 1


_ADDED_OTHERWISE = 2e-6
"""The relative difference that another order of adding makes."""


def _is_one_number(values: Tensor) -> np.ndarray:
    """Of each row: whether it holds one number, to rounding: the kernel for another size adds in another order."""
    first, allowed = values[:, :1], tolerance(values.dtype, _ADDED_OTHERWISE)
    near = (values - first).abs() <= allowed * first.abs().clamp(min=float(values.abs().max()) / 100)
    return (near | (values == first)).all(1).numpy()


def _layers_called(run: Run) -> list[str]:
    return [operation.layer for operation in run.operations if operation.layer is not None]


def _places(run: Run) -> dict[Node, tuple[str, int]]:
    """What each layer makes in a run → its name, and how often it was called before."""
    before: Counter[str] = Counter()
    found: dict[Node, tuple[str, int]] = {}
    for operation in run.operations:
        if operation.layer is not None:
            found |= dict.fromkeys(operation.made, (operation.layer, before[operation.layer]))
            before[operation.layer] += 1
    return found


def _read(run: Run) -> Read:
    """What layers that read one tensor read."""
    return {place: node.operation.sources[0].value for node, place in _places(run).items()}  # type: ignore[union-attr]


def _over_cells(value: Tensor, shape: tuple[int, ...], reduce: Any) -> np.ndarray:
    """A tensor's numbers taken together to cells, which are of that shape."""
    for axis, size in enumerate(shape):
        if size == 1:
            value = reduce(value, dim=axis, keepdim=True)
    return value.reshape(-1).numpy()


def _out_in(layer: nn.Module | None, weight: Tensor) -> Tensor:
    """A tensor of a layer's weight as (outputs, inputs, places)."""
    if isinstance(layer, TRANSPOSED) or stores_inputs_first(layer):
        weight = weight.transpose(0, 1)
    return weight.reshape(weight.shape[0], weight.shape[1], -1)


def _is_normed(layer: nn.Module | None) -> bool:
    """Whether the layer's weight is derived from another tensor (spectral norm, weight norm)."""
    return layer is not None and not isinstance(layer._parameters.get("weight"), nn.Parameter)

"""Which channels of a component go, by the masks of its layers.

A channel can go where pruned weights alone led to it or from it: where nothing that matters reads it, or where what it
holds does not depend on the input; then the constant is folded into the bias of the layers that read it. Channels that
live and die together (see `labels`) go together or not at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.channels.graph import ChannelGraph
from gentickets.channels.layers import is_grouped, is_linear, mixes_channels, stores_inputs_first
from gentickets.channels.trace import Node
from gentickets.masks.layers import weight_norm_lengths
from gentickets.masks.names import (
    TRANSPOSED,
    WEIGHT_PLACES,
    joined,
)
from gentickets.masks.value import Masks


class Removal:
    """Which groups of channels of one component go, and what is folded where.

    Of each node, its cells are counted as in its labels (see `ChannelGraph`).
    """

    def __init__(self, graph: ChannelGraph, masks: Masks):
        self.graph, self.masks = graph, masks
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
            matters = alive[self.needed[node]].any(0)
            stays = matters & (self._read(node, self.varying[source]) | ~self._foldable(node))
            if _is_normed(layer):  # a norm sees the whole weight: only what is zero can be cut out of it unseen
                stays |= alive.any(0)
                candidates -= {int(g) for g in self.groups[node][alive.any(1)]}
            candidates -= {int(g) for g in read[stays].reshape(-1)}
        for node in self.nodes:
            if is_grouped(layer := self.graph.layer_of(node)) and node in self.reads and _is_normed(layer):
                candidates -= {int(g) for g in self.groups[node][self._gate(node)]}
            if node.parameter and (mask := self._raw_mask(node)) is not None:
                candidates -= {int(g) for g in self.groups[node][mask]}
        return self._never_all(candidates)

    def _foldable(self, node: Node) -> np.ndarray:
        """Which input channels of a layer, being constant, are worth a constant in each of its outputs: zero, or the
        same everywhere."""
        layer, source = self.graph.layer_of(node), _source(node)
        value = _by_channel(source.value, _input_axis(layer, source))
        if source.value.dim() == 2:
            return np.ones(len(value), dtype=bool)
        zero = value.eq(0).all(1).numpy() & ~self._read(node, self.trainable[source])
        if isinstance(layer, TRANSPOSED):
            return zero
        same = zero | value.eq(value[:, :1]).all(1).numpy()
        if is_linear(layer):
            return same
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        padded = layer.padding_mode == "zeros" and (isinstance(layer.padding, str) or any(layer.padding))
        return zero if padded else same

    def _never_all(self, candidates: set[int]) -> set[int]:
        for node in self.nodes:
            groups = self.groups[node]
            if len(groups) and all(int(g) in candidates for g in groups):
                candidates.discard(int(groups[0]))
                name = node.operation.name if node.operation is not None else node.parameter
                warnings.warn(
                    f"component {self.graph.component!r}: every channel of {name!r} is dead; one is kept: "
                    f"prune less of it, or with scope='layer', which leaves each layer some",
                    stacklevel=5,
                )
        return candidates

    def folded(self, node: Node) -> Tensor | None:
        """What the constants that a layer no longer reads add to its bias, (outputs,), or None."""
        source, layer = _source(node), self.graph.layer_of(node)
        gone = np.array([int(g) in self.gone for g in self.groups[source]])
        lost = self._read(node, gone) & ~self._read(node, self.varying[source])
        if not lost.any():
            return None
        constant = _by_channel(source.value, _input_axis(layer, source))[:, 0]
        weight = _out_in(layer, layer.weight.detach()).sum(2)[:, lost]  # type: ignore[operator, union-attr]
        wide = torch.complex128 if weight.is_complex() else torch.float64
        return weight.to(wide) @ constant[lost].to(wide)


def _source(node: Node) -> Node:
    """The node that a layer reads."""
    return node.operation.sources[0]  # type: ignore[union-attr]


def _input_axis(layer: nn.Module | None, source: Node) -> int:
    """The axis of what a layer reads along which its input channels go."""
    return source.value.dim() - 1 if is_linear(layer) else 1


def _by_channel(value: Tensor, axis: int) -> Tensor:
    """(channels, numbers) of the first example of a batch."""
    return value[:1].movedim(axis, 0).flatten(1) if axis else value.reshape(len(value), -1)


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

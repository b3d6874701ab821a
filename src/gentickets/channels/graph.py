"""The channels of a recorded component: labels, the groups that they form, and the axes that they go along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from gentickets.channels.layers import weighs_channels
from gentickets.channels.trace import Node, Operation, Run
from gentickets.masks.names import Model, component_at, joined, named_layers

Link = tuple[Node, np.ndarray, np.ndarray]
"""(node, mine, its): my cells `mine` come from that node's cells `its`, pairwise, and from no other."""


@dataclass(frozen=True)
class Mend:
    """A number that code reads off a module: it is to be as many as there are along an axis of a node."""

    module: str
    attribute: str
    node: Node
    axis: int


@dataclass(eq=False)
class ChannelGraph:
    """A recorded component, with the label of every number at every node.

    `labels`: node → labels, of as many axes as the node has, 1 long where they are the same along one; each is a *cell*
    of the node, counted in order. `links` says where the cells of a node come from that neither mixes channels nor is
    unknown. `makes` and `reads`: the node that a layer makes → the label of each of its output and input channels;
    `raw`: the node of a parameter that code reads by itself. `axes`: node → the axis along which its channels go.
    `group` maps a label to its group; `fixed` holds the groups that must stay whole, each with what asks for it.
    `training`: what the component does in training, where it is something else that can be followed.
    """

    component: str
    net: nn.Module
    run: Run
    training: Run | None = field(default=None, kw_only=True)
    names: Mapping[int, str] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    labels: dict[Node, np.ndarray] = field(default_factory=dict)
    links: dict[Node, list[Link]] = field(default_factory=dict)
    makes: dict[Node, np.ndarray] = field(default_factory=dict)
    reads: dict[Node, np.ndarray] = field(default_factory=dict)
    raw: list[Node] = field(default_factory=list)
    axes: dict[Node, int] = field(default_factory=dict)
    mends: list[Mend] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)
    _fixed: dict[int, tuple[int, str]] = field(default_factory=dict)
    _order: int = 0

    # -- labels and their groups --------------------------------------------------------------------------

    def new(self, count: int) -> np.ndarray:
        """Fresh labels, each a group of its own."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def group(self, label: int) -> int:
        """The group that a label belongs to."""
        root = label
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[label] != root:
            self._parents[label], label = root, self._parents[label]
        return root

    def groups(self, labels: np.ndarray) -> np.ndarray:
        """`group`, elementwise."""
        each, where = np.unique(labels, return_inverse=True)
        found = np.array([self.group(label) for label in each.tolist()], dtype=np.int64)
        return found[where].reshape(labels.shape)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Channels that stay or go together from here on, pairwise."""
        for a, b in zip(one.reshape(-1).tolist(), other.reshape(-1).tolist(), strict=True):
            if (a := self.group(a)) != (b := self.group(b)):
                self._parents[a] = b
                if a in self._fixed:
                    self._fixed[b] = min(self._fixed.pop(a), self._fixed.get(b, (self._order, "")))

    def fix(self, labels: np.ndarray, why: str) -> bool:
        """Channels that stay; `why` names the operation that needs them all. Returns whether any could have gone."""
        new = False
        for label in labels.reshape(-1).tolist():
            if (group := self.group(label)) not in self._fixed:
                self._fixed[group], new = (self._order, why), True
                self._order += 1
        return new

    @property
    def fixed(self) -> dict[int, str]:
        """The groups that have a fixed channel, and the operation that needed it first."""
        return {group: why for group, (_, why) in self._fixed.items()}

    def is_fixed(self, labels: np.ndarray) -> bool:
        """Whether all of some labels are fixed."""
        return all(self.group(label) in self._fixed for label in labels.reshape(-1).tolist())

    # -- nodes --------------------------------------------------------------------------------------------

    @property
    def runs(self) -> list[Run]:
        """What the component does, in evaluation and in training."""
        return [self.run, *([self.training] if self.training is not None else [])]

    @property
    def uncalled(self) -> list[str]:
        """The layers that the example did not reach, by `name_of`: what they read on other inputs is not known."""
        called = {id(operation.call) for operation in (*self.run.operations, *self.operations)}
        read = {node.parameter for node in self.run.parameters}
        read |= {node.parameter for operation in self.operations for node in operation.sources}
        return [
            joined(self.component, self.names[id(module)])
            for name, module in self.net.named_modules()
            if weighs_channels(module)
            and id(module) not in called
            and not any(joined(name, key) in read for key, _ in module.named_parameters())
        ]

    def layer_of(self, node: Node) -> nn.Module | None:
        """The layer that made a node, if one did."""
        operation = node.operation
        return operation.call if operation is not None and operation.layer is not None else None  # type: ignore[return-value]

    def name_of(self, node: Node) -> str:
        """The dotted name, from the model's root, of the layer that made a node, wrapper prefixes left out."""
        return joined(self.component, self.names[id(self.layer_of(node))])

    def along(self, node: Node, axis: int) -> np.ndarray:
        """The label of each index along an axis of a node; what lies on other axes is joined with it."""
        labels = np.moveaxis(self.labels[node], axis, 0)
        flat = labels.reshape(len(labels), -1)
        if flat.shape[1] > 1:
            self.join(flat[:, 1:], np.repeat(flat[:, :1], flat.shape[1] - 1, axis=1))
        return np.broadcast_to(flat[:, 0], (node.value.shape[axis],))

    def cells_along(self, node: Node, axis: int) -> np.ndarray:
        """The cells of a node at each index along an axis, (indices, cells)."""
        cells = np.moveaxis(cells_of(self.labels[node]), axis, 0)
        flat = cells.reshape(len(cells), -1)
        return np.broadcast_to(flat, (node.value.shape[axis], flat.shape[1]))

    def kept(self, node: Node, gone: set[int]) -> tuple[int, np.ndarray] | None:
        """The axis of a node from which channels go, and the indices along it that stay; None where all do."""
        if not gone or node not in self.axes:
            return None
        axis = self.axes[node]
        groups = self.groups(self.along(node, axis))
        kept = np.flatnonzero([group not in gone for group in groups.tolist()])
        return (axis, kept) if len(kept) < len(groups) else None


def layers_of(model: Model, graph: ChannelGraph) -> dict[str, nn.Module]:
    """The layers of a traced component in a model that it was traced in, or a copy of it: by `name_of`."""
    net = component_at(model, graph.component)
    return {joined(graph.component, name): layer for name, layer in named_layers(net)}


def cells_of(labels: np.ndarray) -> np.ndarray:
    """The cells of a node, by its labels' axes."""
    return np.arange(labels.size).reshape(labels.shape)


# -- tensors are cut along an axis --------------------------------------------------------------------------


def settle(graph: ChannelGraph) -> None:
    """Finds the axis of each node along which its channels go, and joins what lies on other axes with it.

    Where a node's channels would then be one alone, they stay.
    """
    again = True
    while again:
        again = False
        fixed = graph.fixed
        for node, labels in graph.labels.items():
            groups = graph.groups(labels)
            if all(group in fixed for group in groups.reshape(-1).tolist()):
                graph.axes.pop(node, None)
                continue
            wide = [axis for axis in range(labels.ndim) if labels.shape[axis] > 1]
            axis = next((axis for axis in wide if _is_function_of(groups, axis)), None)
            if axis is None and wide:
                axis, again = max(wide, key=lambda axis: _groups_along(groups, axis)), True
                graph.along(node, axis)
            if axis is not None:
                graph.axes[node] = axis
                if len(set(graph.groups(graph.along(node, axis)).tolist())) == 1:
                    graph.fix(labels, node.operation.name if node.operation is not None else node.parameter)
                    fixed, again = graph.fixed, True


def _groups_along(groups: np.ndarray, axis: int) -> int:
    """How many groups are left where all that lies on other axes is joined."""
    rows = np.moveaxis(groups, axis, 0).reshape(groups.shape[axis], -1)
    parts: list[set[int]] = []
    for row in rows:
        met = [part for part in parts if not part.isdisjoint(row.tolist())]
        parts = [part for part in parts if part not in met] + [set(row.tolist()).union(*met)]
    return len(parts)


def _is_function_of(groups: np.ndarray, axis: int) -> bool:
    flat = np.moveaxis(groups, axis, 0).reshape(groups.shape[axis], -1)
    return bool((flat == flat[:, :1]).all())

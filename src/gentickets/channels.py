"""Which channels live and die together.

A component is traced (torch.fx) and run once on an example. Along the way every channel of every tensor gets a
label; where an operation forces two channels to be kept or removed together (a residual addition, a feature map made
of several features of a linear layer), their labels are joined. What comes in from outside and what goes out keeps
all its channels, and so does whatever meets an operation that is not understood: such channels are *fixed*. The
result is a `ChannelGraph`: the layers, and for each of their inputs and outputs one group number a channel.
"""

from __future__ import annotations

import math
import operator
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gentickets.errors import GenticketsError
from gentickets.naming import CHANNELWISE_NORMS, CONVOLUTIONS, PRUNABLE, TRANSPOSED, clone, unwrap

# What treats each channel alike and by itself, and leaves their number and order as they were.
_CHANNELWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh,
    nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ZeroPad2d,
    nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
_CHANNELWISE_FUNCTIONS: set[Any] = {
    F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.softplus, F.dropout, F.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, F.interpolate, F.hardtanh, F.tanh, F.sigmoid, torch.relu, torch.tanh, torch.sigmoid,
    torch.exp, torch.abs, torch.clamp, operator.neg,
    "relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_", "exp", "abs", "clamp", "contiguous", "float", "double",
    "clone",
}  # fmt: skip
_JOINING: set[Any] = {
    torch.add, torch.sub, torch.mul, torch.div, operator.add, operator.sub, operator.mul, operator.truediv,
    operator.iadd, operator.isub, operator.imul, "add", "add_", "sub", "mul", "mul_", "div",
}  # fmt: skip
_DIVIDING: set[Any] = {torch.div, operator.truediv, "div"}
_RESHAPING: set[Any] = {torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, operator.getitem}
_RESHAPING |= {"flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten"}


class Untraceable(GenticketsError):
    """A component whose graph cannot be followed: its masks can be held, but its channels have no known groups."""


Link = tuple[fx.Node, np.ndarray, np.ndarray]
"""(node, mine, its): my channels `mine` come from that node's channels `its`, pairwise, and from no other channel."""


@dataclass
class ChannelGraph:
    """A traced component, with the label of every channel (axis 1) at every node.

    `mixing` are the nodes whose layer makes each channel of all those it reads; `links` says where the channels of a
    node come from that neither mixes channels nor is unknown; `values` is what each node made of the example. `group`
    maps a label to its group; `fixed` holds the groups that must stay whole, each with what asks for it.
    """

    component: str
    module: fx.GraphModule
    labels: dict[fx.Node, Any] = field(default_factory=dict)
    links: dict[fx.Node, list[Link]] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    mixing: set[fx.Node] = field(default_factory=set)
    _parents: list[int] = field(default_factory=list)
    _fixed: dict[int, str] = field(default_factory=dict)

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
        return np.array([self.group(int(label)) for label in labels], dtype=np.int64)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Channels that stay or go together from here on, pairwise."""
        for a, b in zip(one, other, strict=True):
            self._parents[self.group(int(a))] = self.group(int(b))

    def fix(self, labels: np.ndarray, why: str) -> None:
        """Channels that stay; `why` names the operation that needs them all."""
        for label in labels:
            self._fixed.setdefault(int(label), why)

    @property
    def fixed(self) -> dict[int, str]:
        """The groups that have a fixed channel, and the operation that needs it."""
        return {self.group(label): why for label, why in reversed(self._fixed.items())}

    def layer_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def name_of(self, node: fx.Node) -> str:
        """The dotted name, from the model's root, of the module that a node calls."""
        return f"{self.component}.{node.target}"


def trace(model: nn.Module, component: str, example: Tensor) -> ChannelGraph:
    """The channel graph of one component, run in eval mode on `example`.

    Raises `Untraceable` that names the operation where the component's code cannot be followed.
    """
    net = clone(getattr(unwrap(model), component)).eval()
    tracer = _Tracer()
    labeller = None
    try:
        graph = tracer.trace(net)
        labeller = _Labeller(fx.GraphModule(tracer.root, graph), component)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            labeller.run(example)
    except (fx.proxy.TraceError, TypeError, AttributeError, RuntimeError, ValueError, LookupError) as error:
        where = _line_of(error) if labeller is None else f"at operation {labeller.at}"
        reason = " ".join(str(error).partition("While executing")[0].split())[:300]
        raise Untraceable(
            f"component {component!r} cannot be traced {where} ({type(error).__name__}: {reason}): its masks still "
            f"hold (masks.hold), but it cannot be shrunk or pruned by groups; leave it out of the example inputs"
        ) from error
    _fix_shared_weights(unwrap(model), labeller.graph_of)
    return labeller.graph_of


def _line_of(error: BaseException) -> str:
    """The line of the user's code at which an error arose, as far as the traceback tells."""
    not_theirs = (Path(torch.__file__).parent, Path(__file__))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.exists() and not any(path.is_relative_to(place) for place in not_theirs):
            return f"at `{frame.line}` in {path.name}, line {frame.lineno}"
    return "as it is written"


def _fix_shared_weights(model: nn.Module, graph: ChannelGraph) -> None:
    """A weight that two layers or two components share has channels that one trace does not see: they stay."""
    owners: dict[int, set[tuple[int, str]]] = {}
    for component, net in model.named_children():
        for layer in net.modules():
            for parameter in layer._parameters.values():
                owners.setdefault(id(parameter), set()).add((id(layer), component))
    for node in graph.module.graph.nodes:
        if node.op == "call_module" and isinstance(graph.labels.get(node), np.ndarray):
            layer = model.get_submodule(graph.name_of(node))
            if any(len(owners[id(parameter)]) > 1 for parameter in layer.parameters()):
                for at in (node, *node.all_input_nodes):
                    if isinstance(graph.labels.get(at), np.ndarray):
                        graph.fix(graph.labels[at], f"{node.target} (its weight is shared)")


class _Tracer(fx.Tracer):
    """Steps into everything but the layers whose effect on channels is known, and the wrappers around nothing."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = (*PRUNABLE, *CHANNELWISE_NORMS, *_CHANNELWISE_MODULES)
        return isinstance(m, known) or (super().is_leaf_module(m, module_qualified_name))


class _Labeller(fx.Interpreter):
    """Runs a traced component, and labels what each node makes."""

    def __init__(self, module: fx.GraphModule, component: str):
        super().__init__(module, garbage_collect_values=False)
        self.graph_of = ChannelGraph(component, module)
        self.at = "none"
        self._called: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.at = self._operation(n)
        result = super().run_node(n)
        graph = self.graph_of
        graph.values[n] = result
        graph.labels[n] = self._label(n, result)
        return result

    def _label(self, node: fx.Node, result: Any) -> Any:
        graph = self.graph_of
        if node.op == "placeholder":
            return self._fixed_labels(result, "the input")
        if node.op == "output":
            self._fix_inputs(node, "the output")
            return None
        if node.op == "call_module":
            return self._label_module(node, graph.layer_of(node), result)
        if node.op in ("call_function", "call_method"):
            return self._label_function(node, result)
        return None  # a parameter used as it is: no labels, and whoever mixes it with channels fixes them

    # -- modules ------------------------------------------------------------------------------------------

    def _label_module(self, node: fx.Node, layer: nn.Module | None, result: Any) -> Any:
        inputs = self._labels_of(node.args[0]) if len(node.args) == 1 and not node.kwargs else None
        if inputs is None or not isinstance(result, Tensor):
            return self._not_understood(node, result)
        if isinstance(layer, nn.Flatten | nn.Unflatten):
            return self._reshaped(node, node.args[0], result)
        if mixes_channels(layer) and not (isinstance(layer, nn.Linear) and result.dim() != 2):
            labels = self.graph_of.new(result.shape[1])
            self.graph_of.mixing.add(node)
        elif is_depthwise(layer) or isinstance(layer, CHANNELWISE_NORMS + _CHANNELWISE_MODULES):
            labels = self._passed_on(node, node.args[0])
        else:
            return self._not_understood(node, result)
        return self._same_each_call(node, inputs, labels)

    def _same_each_call(self, node: fx.Node, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """A layer that is called twice has one weight: its channels are the same ones both times."""
        before = self._called.setdefault(str(node.target), (inputs, labels))
        self.graph_of.join(inputs, before[0])
        self.graph_of.join(labels, before[1])
        return labels

    def _passed_on(self, node: fx.Node, *sources: Any) -> np.ndarray:
        """The channels of several nodes, elementwise: joined."""
        labels = [self._labels_of(source) for source in sources]
        assert labels[0] is not None
        every = np.arange(len(labels[0]))
        for source, other in zip(sources, labels, strict=True):
            assert other is not None
            self.graph_of.join(other, labels[0])
            self.graph_of.links.setdefault(node, []).append((source, every, every))
        return labels[0]

    # -- functions and methods ----------------------------------------------------------------------------

    def _label_function(self, node: fx.Node, result: Any) -> Any:
        target, graph = node.target, self.graph_of
        if target in ("size", "dim") or target is getattr or not node.all_input_nodes:
            return None
        if target in (torch.cat, torch.concat):
            return self._concatenated(node, result)
        if target in (torch.chunk, torch.split, "chunk", "split"):
            return self._not_understood(node, result)  # the code says where to cut: that is right for all channels only
        first = node.args[0] if node.args else None
        if target is operator.getitem and isinstance(first, fx.Node) and isinstance(graph.labels.get(first), tuple):
            return graph.labels[first][node.args[1]]
        if self._labels_of(first) is None and target not in _JOINING:
            return self._not_understood(node, result)
        if target in _CHANNELWISE_FUNCTIONS:
            return self._passed_on(node, first)
        if target in _JOINING:
            return self._joined(node, result)
        if target in _RESHAPING and isinstance(result, Tensor) and self._keeps_everything(first, result):
            return self._reshaped(node, first, result)
        if target in (torch.mean, torch.sum, "mean", "sum") and self._over_places(node, result):
            return self._passed_on(node, first)
        return self._not_understood(node, result)

    def _joined(self, node: fx.Node, result: Any) -> Any:
        """An elementwise operation of two: with a number, channels stay as they are; with a tensor, they join."""
        values = self.graph_of.values
        tensors = [a for a in node.args if isinstance(a, fx.Node) and isinstance(values[a], Tensor)]
        labels = [self._labels_of(a) for a in tensors]
        if not isinstance(result, Tensor) or result.dim() < 2 or not tensors:
            return self._not_understood(node, result)
        for source, found in zip(tensors, labels, strict=True):
            if found is None or values[source].dim() != result.dim() or len(found) != result.shape[1]:
                return self._not_understood(node, result)
        if node.target in _DIVIDING and isinstance(divisor := node.args[1], fx.Node) and divisor in tensors:
            self.graph_of.fix(labels[tensors.index(divisor)], f"{node.name} (a division by it)")  # type: ignore[arg-type]
        return self._passed_on(node, *tensors)

    def _concatenated(self, node: fx.Node, result: Tensor) -> Any:
        sources = list(node.args[0])  # type: ignore[arg-type]
        labels = [self._labels_of(source) for source in sources]
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if any(part is None for part in labels) or not isinstance(axis, int):
            return self._not_understood(node, result)
        if axis % result.dim() != 1:
            return self._passed_on(node, *sources)
        start = 0
        for source, part in zip(sources, labels, strict=True):
            assert part is not None
            every = np.arange(len(part))
            self.graph_of.links.setdefault(node, []).append((source, start + every, every))
            start += len(part)
        return np.concatenate(labels)  # type: ignore[arg-type]

    def _keeps_everything(self, first: Any, result: Tensor) -> bool:
        value = self.graph_of.values.get(first)
        return isinstance(value, Tensor) and value.numel() == result.numel() and value.dim() >= 2 and result.dim() >= 2

    def _reshaped(self, node: fx.Node, first: Any, result: Tensor) -> Any:
        """(batch, n, *S) → (batch, m, *T) in the same order: features are split among places, or gathered."""
        graph, labels, value = self.graph_of, self._labels_of(first), self.graph_of.values[first]
        if labels is None or result.shape[0] != value.shape[0]:
            return self._not_understood(node, result)
        before, after = math.prod(value.shape[2:]), math.prod(result.shape[2:])
        if before % after == 0:
            its = np.repeat(np.arange(len(labels)), before // after)
            mine, made = np.arange(len(its)), labels[its]
        elif after % before == 0:
            its = np.arange(len(labels))
            mine = its // (after // before)
            made = labels[:: after // before]
            graph.join(labels, made[mine])
        else:
            return self._not_understood(node, result)
        if self._says_channels(node, result):
            graph.fix(labels, f"{node.name} (its code says how many channels)")
        graph.links[node] = [(first, mine, its)]
        return made

    def _says_channels(self, node: fx.Node, result: Tensor) -> bool:
        """Whether the code itself spells out the number of channels, which would be wrong after shrinking."""
        if node.op == "call_module":
            return False  # nn.Unflatten: its size is renewed
        if node.target == "unflatten":
            return True
        if node.target in ("view", "reshape", torch.reshape):
            said = node.args[1] if len(node.args) == 2 else node.args[1:]
            sizes = said if isinstance(said, tuple | list) else ()
            # A node is a size that the code reads off a tensor: that is right for any number of channels.
            return len(sizes) >= result.dim() - 1 and isinstance(count := sizes[1 - result.dim()], int) and count != -1
        return False

    def _over_places(self, node: fx.Node, result: Any) -> bool:
        """Whether a mean or sum leaves batch and channels where they are."""
        value = self.graph_of.values.get(node.args[0])  # type: ignore[arg-type]
        if not isinstance(value, Tensor) or not isinstance(result, Tensor) or self._labels_of(node.args[0]) is None:
            return False
        axes = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        axes = (axes,) if isinstance(axes, int) else axes
        places = range(2, value.dim())
        return isinstance(axes, tuple | list) and all(isinstance(a, int) and a % value.dim() in places for a in axes)

    # -- what is not understood ---------------------------------------------------------------------------

    def _labels_of(self, argument: Any) -> np.ndarray | None:
        labels = self.graph_of.labels.get(argument) if isinstance(argument, fx.Node) else None
        return labels if isinstance(labels, np.ndarray) else None

    def _not_understood(self, node: fx.Node, result: Any) -> Any:
        """Everything that this node reads stays whole, and so does what it makes."""
        self._fix_inputs(node, self._operation(node))
        return self._fixed_labels(result, self._operation(node))

    def _operation(self, node: fx.Node) -> str:
        """What a node does, in words for a user."""
        layer = self.graph_of.layer_of(node)
        return node.name if layer is None else f"{node.target} ({type(layer).__name__})"

    def _fix_inputs(self, node: fx.Node, why: str) -> None:
        for source in node.all_input_nodes:
            labels = self.graph_of.labels.get(source)
            for part in labels if isinstance(labels, tuple) else (labels,):
                if isinstance(part, np.ndarray):
                    self.graph_of.fix(part, why)

    def _fixed_labels(self, result: Any, why: str) -> Any:
        if isinstance(result, tuple | list):
            return tuple(self._fixed_labels(part, why) for part in result)
        if not isinstance(result, Tensor) or result.dim() < 2:
            return None
        labels = self.graph_of.new(result.shape[1])
        self.graph_of.fix(labels, why)
        return labels


def mixes_channels(layer: nn.Module | None) -> bool:
    """Whether each output channel of a layer is a weighted sum over its input channels."""
    if isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        return layer.groups == 1
    return isinstance(layer, nn.Linear)


def is_depthwise(layer: nn.Module | None) -> bool:
    return isinstance(layer, CONVOLUTIONS) and layer.groups == layer.in_channels == layer.out_channels > 1


def trace_all(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> dict[str, ChannelGraph]:
    """The channel graph of each component that `example_inputs` has an input for."""
    return {component: trace(model, component, example) for component, example in example_inputs.items()}

"""Which channels live and die together.

A component is traced (torch.fx) and run once on an example. Along the way every channel of every tensor gets a
label; where an operation forces two channels to be kept or removed together (a residual addition, a feature map made
of several features of a linear layer), their labels are joined. What comes in from outside and what goes out keeps
all its channels, and so does whatever meets an operation that is not understood: such channels are *fixed*. The
result is a `ChannelGraph`: the layers, and for each of their inputs and outputs one group number a channel.

Only layers that weigh channels are known by their class. Whatever else an operation is called, it is understood where
it *does* as its shapes suggest: it is run on random numbers, with some channels changed, which must change the same
channels of its result and no others; and with some channels taken out, which must leave what is left as it was.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from gentickets.channels.trace import (
    Run,
    Untraceable,
    in_one_line,
    is_channelwise_norm,
    is_depthwise,
    is_unflatten,
    line_of,
    mixes_channels,
    operation,
)
from gentickets.masks.examples import Example, compare, examples_of, named_tensors, outputs, tolerance
from gentickets.masks.names import Model, clone, component_at, joined, named_layers, unwrap

_CUTS = 2
"""How often an operation is tried with some of its channels taken out."""

_CODES = 4
"""How many halvings of the channels tell them apart: all of up to 2**4 channels, most pairs of more."""


_DROPOUTS = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
)  # fmt: skip
"""Where chance takes single numbers or whole channels, each by itself: no channel depends on another."""


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
    net: nn.Module
    module: fx.GraphModule
    names: Mapping[int, str] = field(default_factory=dict)
    labels: dict[fx.Node, np.ndarray] = field(default_factory=dict)
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
        return self.net.get_submodule(str(node.target)) if node.op == "call_module" else None

    def name_of(self, node: fx.Node) -> str:
        """The dotted name, from the model's root, of the module that a node calls, wrapper prefixes left out."""
        return joined(self.component, self.names[id(self.layer_of(node))])


def trace(model: Model, component: str, example_input: Any) -> ChannelGraph:
    """The channel graph of one component (of the whole model, for the empty name), run in eval mode on an example.

    Raises `Untraceable` that names the operation where the component's code cannot be followed, and where the code
    takes another way on its example than it was followed. What the code does in training binds channels too, where it
    can be followed there; layers that it calls in training alone stay whole, with all that they read.
    """
    example = Example.of(example_input, component)
    if any(is_lazy(weight) for weight in component_at(model, component).parameters()):
        raise _untraceable(component, "as long as lazy layers have no weights (call it once before)")
    if any(tensor.is_meta for tensor in (*component_at(model, component).parameters(), *example.tensors)):
        raise _untraceable(component, "on the meta device, which has no values (to_empty and load it before)")
    net = clone(unwrap(component_at(model, component))).eval()
    run = Run(net, component)
    try:
        run.record(example)
        expected = outputs(net, example)
    except Exception as error:  # whatever is met in code that is not ours
        where = f"at operation {run.at}" if run.at else line_of(error)
        raise _untraceable(component, f"{where} ({type(error).__name__}: {in_one_line(error)})") from error
    if not _same(expected, run.outputs):
        raise _untraceable(component, "as it is written (the operations that were recorded give something else)")
    graph = ChannelGraph(component, net, run.module, {id(layer): name for name, layer in named_layers(net)})
    labeller = _Labeller(graph)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labeller.label(run)
        training = _in_training(net, component, example)
        if training is not None and str(training.module.graph) != str(run.module.graph):
            labeller.label_training(training)
    nodes = [*run.module.graph.nodes, *(training.module.graph.nodes if training is not None else ())]
    _fix_shared_weights(unwrap(model), graph, nodes)
    return graph


def _in_training(net: nn.Module, component: str, example: Example) -> Run | None:
    """What a component does in training, with its layers as in evaluation; None where that cannot be followed."""
    run = Run(net, component)
    try:
        run.record(example, training=True)
    except Exception:  # its code may ask for what the example, which is for evaluation, does not hold
        return None
    finally:
        net.eval()
    return run


def trace_all(model: Model, example_inputs: Any) -> dict[str, ChannelGraph]:
    """The channel graph of each component that `example_inputs` has an input for (see `examples.examples_of`)."""
    return {name: trace(model, name, example) for name, example in examples_of(model, example_inputs).items()}


def _untraceable(component: str, where: str) -> Untraceable:
    return Untraceable(
        f"component {component!r} cannot be traced {where}: its masks still hold (masks.hold), but it cannot be shrunk "
        f"or pruned by groups; leave it out of the example inputs"
    )


def _same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    compared = compare(expected, found)
    return compared.equal or (not compared.numbers and expected.keys() == found.keys())


def _fix_shared_weights(model: nn.Module, graph: ChannelGraph, nodes: Sequence[fx.Node]) -> None:
    """A weight that two layers or two components share, or that code reads by itself, has channels that one trace
    does not see: they stay."""
    parts = model.named_children() if graph.component else [("", model)]
    owners: dict[int, set[tuple[int, str]]] = {}
    for component, net in parts:
        for layer in net.modules():
            for parameter in layer._parameters.values():
                owners.setdefault(id(parameter), set()).add((id(layer), component))
    layers = layers_of(model, graph)
    read = {id(_attribute(graph.net, str(node.target))) for node in nodes if node.op == "get_attr"}
    for node in nodes:
        here = graph.layer_of(node)
        if here is not None and _weighs_channels(here) and node in graph.labels:
            shared = any(len(owners[id(parameter)]) > 1 for parameter in layers[graph.name_of(node)].parameters())
            if shared or any(id(tensor) in read for tensor in here.parameters()):
                for at in (node, *node.all_input_nodes):
                    if at in graph.labels:
                        graph.fix(graph.labels[at], f"{node.target} (its weight is shared)")


def layers_of(model: Model, graph: ChannelGraph) -> dict[str, nn.Module]:
    """The layers of a traced component in a model that it was traced in, or a copy of it: by `name_of`."""
    net = component_at(model, graph.component)
    return {joined(graph.component, name): layer for name, layer in named_layers(net)}


def _attribute(module: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(module.get_submodule(owner), name, None)  # None: a constant that tracing put there


# -- labelling ----------------------------------------------------------------------------------------------


class _Labeller:
    """Labels the channels of what each node of a run made."""

    def __init__(self, graph: ChannelGraph):
        self.graph_of = graph
        self._trial = _Trial(graph)
        self._called: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def label(self, run: Run) -> None:
        """Labels every node of a run, in the order in which they ran."""
        graph = self.graph_of
        graph.values.update(run.values)
        for node in run.module.graph.nodes:
            if node.op == "output":
                self._fix_inputs(node, "the output")
            elif node.op != "get_attr":  # a parameter used as it is: no labels, and who mixes it with channels sees
                labels = self._label(node)
                if labels is not None:
                    graph.labels[node] = labels
        for node, writer in run.overwritten.items():
            if node in graph.labels:
                graph.fix(graph.labels[node], f"{self._operation(writer)} (it writes over what is read later)")

    def label_training(self, run: Run) -> None:
        """The same for what is done in training: its layers are those of evaluation; others stay whole."""
        known = set(self._called)
        self._trial = _Trial(self.graph_of, chance=False)
        self.label(run)
        for node in run.module.graph.nodes:
            if node.op == "call_module" and str(node.target) in self._called.keys() - known:
                for labels in self._called[str(node.target)]:
                    self.graph_of.fix(labels, f"{self._operation(node)} (called in training alone)")

    def _label(self, node: fx.Node) -> np.ndarray | None:
        graph, result = self.graph_of, self.graph_of.values[node]
        if node.op == "placeholder":
            return self._fixed_labels(result, "the input")
        sources = [source for source in node.all_input_nodes if source in graph.labels]
        if not isinstance(result, Tensor):
            # A size that is read off a tensor is read anew from a smaller one; anything else may hold its channels.
            if any(True for _ in named_tensors(result)):
                self._fix_inputs(node, self._operation(node))
            return None
        self._trial.fix_counts(node, sources)
        if result.dim() < 2 or not sources or result.numel() == 0:
            return self._not_understood(node)
        layer = graph.layer_of(node)
        if _weighs_channels(layer):
            labels = self._weighed(node, layer, sources)
            return labels if labels is not None else self._not_understood(node)
        shapes = [graph.values[source].shape for source in sources]
        wide = [source for source, shape in zip(sources, shapes, strict=True) if shape[1] > 1]
        if all(graph.values[source].shape[1] == result.shape[1] for source in wide or sources):
            labels = self._elementwise(node, wide or sources, sources)
        elif len(sources) == 1 and graph.values[sources[0]].numel() == result.numel():
            return self._reshaped(node, sources[0])
        else:
            labels = self._concatenated(node)
        return labels if labels is not None else self._not_understood(node)

    # -- layers that weigh channels -----------------------------------------------------------------------

    def _weighed(self, node: fx.Node, layer: nn.Module | None, sources: Sequence[fx.Node]) -> np.ndarray | None:
        """A layer that has numbers of its own for each channel."""
        if len(sources) != 1 or len(node.args) + len(node.kwargs) != 1:
            return None
        graph, source = self.graph_of, sources[0]
        value, result = graph.values[source], graph.values[node]
        if mixes_channels(layer):
            places = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)  # type: ignore[union-attr, arg-type]
            if result.dim() != value.dim() or result.dim() != 2 + places:  # (batch, tokens, features), or no batch
                return None if places else self._elementwise(node, sources, sources)
            labels = graph.new(result.shape[1])
            graph.mixing.add(node)
        else:
            every = np.arange(value.shape[1])
            if getattr(layer, "num_features", len(every)) != len(every) or result.shape[1] != len(every):
                return None
            if not self._trial.keeps_apart(node, {source: every}, every):
                return None
            labels = graph.labels[source]
            graph.links[node] = [(source, every, every)]
        self._same_each_call(node, graph.labels[source], labels)
        return labels

    def _same_each_call(self, node: fx.Node, inputs: np.ndarray, labels: np.ndarray) -> None:
        """A layer that is called twice has one weight: its channels are the same ones both times."""
        before = self._called.setdefault(str(node.target), (inputs, labels))
        for now, then in ((inputs, before[0]), (labels, before[1])):
            if len(now) == len(then):
                self.graph_of.join(now, then)
            else:  # a reshape by one module into different places
                self.graph_of.fix(np.concatenate([now, then]), f"{self._operation(node)} (called with other sizes)")

    # -- everything else: it is what it is found to do --------------------------------------------------------

    def _elementwise(self, node: fx.Node, wide: Sequence[fx.Node], sources: Sequence[fx.Node]) -> np.ndarray | None:
        """Channel i of the result comes of channel i of each source, and of the only one of those that have one."""
        graph = self.graph_of
        first = graph.labels[wide[0]]
        every = np.arange(len(first))
        for source in sources:
            if source not in wide:
                graph.fix(graph.labels[source], f"{self._operation(node)} (every channel reads it)")
        for source in wide[1:]:
            graph.join(graph.labels[source], first)
        links = [(source, every, every if source in wide else np.zeros_like(every)) for source in sources]
        if not self._trial.keeps_apart(node, dict.fromkeys(wide, every), every):
            return None
        if not self._trial.survives_cuts(node, sources, first):
            graph.fix(first, f"{node.name} (its code says how many channels)")
        for source in self._trial.not_finite_at_zero(node, wide):
            graph.fix(graph.labels[source], f"{node.name} (not finite where a channel is 0)")
        graph.links[node] = links
        return first

    def _concatenated(self, node: fx.Node) -> np.ndarray | None:
        """The channels of one source after those of another."""
        graph = self.graph_of
        parts = [source for source in _inputs_in_order(node) if source in graph.labels]
        counts = [len(graph.labels[part]) for part in parts]
        if len(parts) < 2 or sum(counts) != graph.values[node].shape[1]:
            return None
        starts = np.cumsum([0, *counts])
        own = {part: start + np.arange(n) for part, start, n in zip(parts, starts, counts, strict=False)}
        made = np.concatenate([graph.labels[part] for part in parts])
        if not self._trial.keeps_apart(node, own, np.concatenate([own[part] for part in parts])):
            return None
        if not self._trial.survives_cuts(node, list(own), made):
            graph.fix(made, f"{node.name} (its code says how many channels)")
        graph.links[node] = [
            (part, start + np.arange(n), np.arange(n)) for part, start, n in zip(parts, starts, counts, strict=False)
        ]
        return made

    def _reshaped(self, node: fx.Node, source: fx.Node) -> np.ndarray | None:
        """(batch, n, *S) → (batch, m, *T) in the same order: features are split among places, or gathered."""
        graph, labels = self.graph_of, self.graph_of.labels[source]
        value, result = graph.values[source], graph.values[node]
        before, after = math.prod(value.shape[2:]), math.prod(result.shape[2:])
        if result.shape[0] != value.shape[0] or not self._trial.keeps_order(node, source):
            return self._not_understood(node)
        if before % after == 0:
            its = np.repeat(np.arange(len(labels)), before // after)
            mine, made = np.arange(len(its)), labels[its]
        elif after % before == 0:
            its = np.arange(len(labels))
            mine = its // (after // before)
            made = labels[:: after // before]
            graph.join(labels, made[mine])
        else:
            return self._not_understood(node)
        if is_unflatten(graph.layer_of(node)):  # its size is renewed
            self._same_each_call(node, labels, made)
        elif not self._trial.survives_cuts(node, [source], made):
            graph.fix(labels, f"{node.name} (its code says how many channels)")
        graph.links[node] = [(source, mine, its)]
        return made

    # -- what is not understood ---------------------------------------------------------------------------

    def _not_understood(self, node: fx.Node) -> np.ndarray | None:
        """Everything that this node reads stays whole, and so does what it makes."""
        self._fix_inputs(node, self._operation(node))
        return self._fixed_labels(self.graph_of.values[node], self._operation(node))

    def _operation(self, node: fx.Node) -> str:
        return operation(self.graph_of.net, node)

    def _fix_inputs(self, node: fx.Node, why: str) -> None:
        for source in node.all_input_nodes:
            if source in self.graph_of.labels:
                self.graph_of.fix(self.graph_of.labels[source], why)

    def _fixed_labels(self, result: Any, why: str) -> np.ndarray | None:
        if not isinstance(result, Tensor) or result.dim() < 2:
            return None
        labels = self.graph_of.new(result.shape[1])
        self.graph_of.fix(labels, why)
        return labels


def _weighs_channels(layer: nn.Module | None) -> bool:
    return mixes_channels(layer) or is_depthwise(layer) or is_channelwise_norm(layer)


def _inputs_in_order(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that a node reads, in the order of its arguments, as often as it reads them."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return iter(found)


class _Trial:
    """Runs single operations again on random numbers, to see what they do with channels."""

    def __init__(self, graph: ChannelGraph, chance: bool = True):
        self.graph, self._chance = graph, chance
        self._numbers = torch.Generator().manual_seed(0)
        self._choices = np.random.default_rng(0)

    def keeps_apart(self, node: fx.Node, own: Mapping[fx.Node, np.ndarray], made: np.ndarray) -> bool:
        """Whether changing some channels of the sources changes those channels of the result and no others.

        `own`: source → an id for each of its channels; `made`: whose id each channel of the result is to have.
        """
        total = 1 + max(int(ids.max()) for ids in own.values())
        codes = self._choices.permutation(total)
        values = {source: self._random(source) for source in own}
        before = self._again(node, values)
        for bit in range(min(_CODES, max(1, (total - 1).bit_length()))):
            for half in (0, 1):
                changed = (codes >> bit) & 1 == half
                others = {source: self._with_new(value, changed[own[source]]) for source, value in values.items()}
                after = self._again(node, others)
                untouched = torch.from_numpy(np.flatnonzero(~changed[made]))
                if before is None or after is None or before.shape != after.shape:
                    return False
                if not _equal(before.index_select(1, untouched), after.index_select(1, untouched), exact=True):
                    return False
        return True

    def survives_cuts(self, node: fx.Node, sources: Sequence[fx.Node], made: np.ndarray) -> bool:
        """Whether the operation does to fewer channels what it does to all; `made`: the labels of its result."""
        groups = {source: self.graph.groups(self.graph.labels[source]) for source in sources}
        values = {source: self._random(source) for source in sources}
        whole = self._again(node, values)
        of_made = self.graph.groups(made)
        for dropped in self._cuts(groups):
            cut = self._again(
                node, {source: _without(value, groups[source], dropped) for source, value in values.items()}, dropped
            )
            if whole is None or cut is None or not _equal(_without(whole, of_made, dropped), cut):
                return False
        return True

    def keeps_order(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether the operation moves numbers alone, and keeps them in their order."""
        value = self.graph.values[source]
        numbers = torch.arange(value.numel(), dtype=torch.float64)
        found = self._again(node, {source: numbers.reshape(value.shape)})
        return found is not None and torch.equal(found.reshape(-1), numbers)

    def not_finite_at_zero(self, node: fx.Node, sources: Sequence[fx.Node]) -> list[fx.Node]:
        """Those of the sources whose channels cannot be 0, as a pruned one is: it would be divided by."""
        found = []
        for source in sources:
            values = {other: self._random(other).abs() + 0.5 for other in sources if self._is_real(other)}
            if source in values:
                values[source] = torch.zeros_like(values[source])
                result = self._again(node, values)
                if result is not None and not bool(torch.isfinite(result).all()):
                    found.append(source)
        return found

    def fix_counts(self, node: fx.Node, sources: Sequence[fx.Node]) -> None:
        """Fixes tensors whose number of channels an operation on others is told: of theirs it would not know."""
        seen = {group for source in sources for group in self.graph.groups(self.graph.labels[source]).tolist()}
        for root in self._sizes_of(node):
            groups = self.graph.groups(self.graph.labels[root])
            if seen.issuperset(groups.tolist()):
                continue  # they are cut together
            for dropped in self._cuts({root: groups}):
                kept = _without(self.graph.values[root], groups, dropped)
                if self._told(node, {root: kept}) != self._told(node, {}):
                    self.graph.fix(self.graph.labels[root], f"{node.name} (it is told how many channels there are)")

    # -- how ------------------------------------------------------------------------------------------------

    def _cuts(self, groups: Mapping[fx.Node, np.ndarray]) -> Iterator[set[int]]:
        """Sets of groups that may go, each leaving every source some channel."""
        fixed = self.graph.fixed
        free = [group for group in np.unique(np.concatenate(list(groups.values()))).tolist() if group not in fixed]
        for _ in range(_CUTS):
            dropped: set[int] = set()
            for group in self._choices.permutation(free)[: max(1, len(free) // 2)].tolist():
                if all(any(g != group and g not in dropped for g in own) for own in groups.values()):
                    dropped.add(group)
            if dropped:
                yield dropped

    def _again(
        self, node: fx.Node, values: Mapping[fx.Node, Tensor], dropped: set[int] | frozenset[int] = frozenset()
    ) -> Tensor | None:
        """What an operation makes of other values of its sources; sizes that it is told are read anew from them.

        None where it fails, or makes no tensor. Chance falls alike each time.
        """
        given = dict(values)
        if dropped:  # a size may be read off another tensor with the same channels
            for root in self._sizes_of(node):
                if root not in given:
                    given[root] = _without(self.graph.values[root], self.graph.groups(self.graph.labels[root]), dropped)
        torch.random.default_generator.manual_seed(0)
        try:
            args, kwargs = self._arguments(node, given)
            result = self._run(node, args, kwargs)
        except Exception:  # of whatever kind: it cannot be done so
            return None
        return result if isinstance(result, Tensor) and result.dim() >= 2 else None

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_module":
            return self.graph.layer_of(node)(*args, **kwargs)  # type: ignore[misc]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if not self._chance and node.target in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _arguments(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[Any, Any]:
        """A node's arguments with other values of some nodes, and all sizes that follow from these."""
        known = dict(values)

        def fresh(at: fx.Node) -> Any:
            value = self._value(at, known)
            return value.detach().clone() if isinstance(value, Tensor) else value

        return fx.node.map_arg((node.args, node.kwargs), fresh)

    def _told(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> list[Any]:
        """The sizes among a node's arguments, with other values of some nodes."""
        known = dict(values)
        return [self._value(at, known) for at in node.all_input_nodes if self._is_size(at)]

    def _value(self, at: fx.Node, known: dict[fx.Node, Any]) -> Any:
        """One of the `known` values, a size that follows from them, or what a node made of the example."""
        if at not in known:
            known[at] = self.graph.values[at]
            if self._is_size(at):
                now = [self._value(source, known) for source in at.all_input_nodes]
                if any(
                    value is not self.graph.values[source]
                    for value, source in zip(now, at.all_input_nodes, strict=True)
                ):
                    args, kwargs = fx.node.map_arg((at.args, at.kwargs), known.__getitem__)
                    known[at] = self._run(at, args, kwargs)
        return known[at]

    def _is_size(self, node: fx.Node) -> bool:
        """Whether a node made numbers, and not tensors."""
        return node.op in ("call_function", "call_method") and not any(
            True for _ in named_tensors(self.graph.values[node])
        )

    def _sizes_of(self, node: fx.Node) -> list[fx.Node]:
        """The labelled nodes whose sizes a node is told."""
        found: dict[fx.Node, None] = {}
        open_ = [source for source in node.all_input_nodes if self._is_size(source)]
        seen = set(open_)
        while open_:
            for source in open_.pop().all_input_nodes:
                if source in self.graph.labels:
                    found[source] = None
                elif source not in seen and self._is_size(source):
                    seen.add(source)
                    open_.append(source)
        return list(found)

    def _is_real(self, node: fx.Node) -> bool:
        return bool(self.graph.values[node].is_floating_point())

    def _random(self, node: fx.Node) -> Tensor:
        return self._like(self.graph.values[node])

    def _like(self, value: Tensor) -> Tensor:
        """Random numbers of a tensor's shape and dtype; whole ones from among its own range."""
        if value.dtype == torch.bool:
            return torch.rand(value.shape, generator=self._numbers) < 0.5
        if not (value.is_floating_point() or value.is_complex()):
            low, high = int(value.min()), int(value.max())
            return torch.randint(low, high + 1, value.shape, generator=self._numbers, dtype=value.dtype)
        return torch.randn(value.shape, generator=self._numbers, dtype=value.dtype)

    def _with_new(self, value: Tensor, changed: np.ndarray) -> Tensor:
        """`value` with other random numbers in the channels that are `changed`."""
        where = torch.from_numpy(changed).reshape([1, -1] + [1] * (value.dim() - 2))
        return torch.where(where, self._like(value), value)


def _without(value: Tensor, groups: np.ndarray, dropped: set[int] | frozenset[int]) -> Tensor:
    """A tensor without its channels of some groups."""
    return value.index_select(1, torch.from_numpy(np.flatnonzero([group not in dropped for group in groups.tolist()])))


def _equal(one: Tensor, other: Tensor, exact: bool = False) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    bound = 0.0 if exact or not (one.is_floating_point() or one.is_complex()) else tolerance(one.dtype)
    scale = max(1.0, float(one.nan_to_num(0, 0, 0).abs().max())) if bound and one.numel() else 1.0
    return torch.allclose(one, other, rtol=0, atol=bound * scale, equal_nan=True)

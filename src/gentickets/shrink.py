"""A masked network → a physically smaller one that computes the same.

A channel can go where nothing that matters reads it, or where what it holds does not depend on the input: then the
constant is folded into the bias of the layers that read it. Channels that live and die together (see `channels`) go
together or not at all. The result is checked against the masked network before it is handed out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn

from gentickets.channels import ChannelGraph, mixes_channels, trace_all
from gentickets.errors import GenticketsError
from gentickets.masks import Masks
from gentickets.naming import CHANNELWISE_NORMS, TRANSPOSED, WEIGHT_PLACES, clone, named_state, named_weights, unwrap

Slices = dict[int, np.ndarray]
"""Axis → the indices that are kept along it."""

TOLERANCE = 1e-5
"""The largest difference, relative to the largest output, that the check allows between masked and shrunk net."""


class Shrinking:
    """What `shrink` does, with all that one may need of it.

    `model` is the smaller network, `masks` are the masks that are left to hold it to, `removed` counts the channels
    that went, by component, and `slices` says which part of each old tensor the new one is.
    """

    def __init__(self, model: nn.Module, masks: Masks, example_inputs: Mapping[str, Tensor]):
        masked = masks.apply_(clone(model))
        self.model = clone(masked)
        self.slices: dict[str, Slices] = {}
        self.removed: dict[str, int] = {}
        for component, graph in trace_all(masked, example_inputs).items():
            plan = _Plan(graph)
            self.removed[component] = len(plan.gone)
            self.slices |= _cut(self.model, graph, plan)
        self.masks = self._sliced_masks(masks)
        _check_equal(masked, self.model, example_inputs)

    def _sliced_masks(self, masks: Masks) -> Masks:
        return Masks({name: _sliced(mask, self.slices.get(name, {})) for name, mask in masks.items()})

    def carry_state(self, old: torch.optim.Optimizer, new: torch.optim.Optimizer, old_model: nn.Module) -> None:
        """Gives `new`, an optimiser over the smaller network, the state that `old` has for the larger one.

        State tensors of a weight's shape are sliced as the weight was; others are copied.
        """
        names = {id(weight): name for name, weight in named_weights(old_model).items()}
        state = {names[id(p)]: entry for p, entry in old.state.items() if id(p) in names}
        shapes = {name: weight.shape for name, weight in named_weights(old_model).items()}
        targets = named_weights(self.model)
        held = {id(p) for group in new.param_groups for p in group["params"]}
        for name, entry in state.items():
            if name in targets and id(targets[name]) in held:
                new.state[targets[name]] = {
                    key: _sliced(value, self.slices.get(name, {})).clone()
                    if isinstance(value, Tensor) and value.shape == shapes[name]
                    else (value.clone() if isinstance(value, Tensor) else value)
                    for key, value in entry.items()
                }


def shrink(model: nn.Module, masks: Masks, example_inputs: Mapping[str, Tensor]) -> nn.Module:
    """The smaller network that computes what `model` computes under `masks`, in eval mode.

    `example_inputs`: component → an input (batch of 2 or more) of the shape it takes; components without one stay as
    they are. `model` is left as it is. Where every channel of a place would go, its first one stays, with a warning.

    Raises `Untraceable` where a component's code cannot be followed, `MaskError` where the masks do not fit, and
    `GenticketsError` where the smaller network does not compute the same to 1e-5.
    """
    return Shrinking(model, masks, example_inputs).model


# -- which channels can go ----------------------------------------------------------------------------------


class _Plan:
    """Which groups of channels of one component go, and what is folded where."""

    def __init__(self, graph: ChannelGraph):
        self.graph = graph
        self.nodes = [n for n in graph.module.graph.nodes if isinstance(graph.labels.get(n), np.ndarray)]
        self.groups = {n: graph.groups(graph.labels[n]) for n in self.nodes}
        self.varying = self._varying()
        self.needed = self._needed()
        self.gone = self._removable()

    def layer(self, node: fx.Node) -> nn.Module | None:
        layer = self.graph.layer_of(node)
        return layer if mixes_channels(layer) and node not in self.graph.links and self._labelled(node) else None

    def _labelled(self, node: fx.Node) -> bool:
        return node in self.groups and bool(node.args) and node.args[0] in self.groups

    def _varying(self) -> dict[fx.Node, np.ndarray]:
        """Node → which channels depend on the input."""
        varying: dict[fx.Node, np.ndarray] = {}
        for node in self.nodes:
            count = len(self.groups[node])
            if (layer := self.layer(node)) is not None:
                varying[node] = np.asarray(_alive(layer)[:, varying[_source(node)]].any(1))
            elif node in self.graph.links:
                found = np.zeros(count, dtype=bool)
                for source, mine, its in self.graph.links[node]:
                    np.logical_or.at(found, mine, varying[source][its])
                varying[node] = found & self._gate(node, count)
            else:
                varying[node] = np.ones(count, dtype=bool)
        return varying

    def _needed(self) -> dict[fx.Node, np.ndarray]:
        """Node → which channels the component's output depends on."""
        needed = {node: np.zeros(len(groups), dtype=bool) for node, groups in self.groups.items()}
        for node in reversed(list(self.graph.module.graph.nodes)):
            if (layer := self.layer(node)) is not None:
                needed[_source(node)] |= _alive(layer)[needed[node]].any(0)
            elif node in self.graph.links:
                passed = needed[node] & self._gate(node, len(needed[node]))
                for source, mine, its in self.graph.links[node]:
                    np.logical_or.at(needed[source], its, passed[mine])
            else:
                for source in node.all_input_nodes:
                    if source in needed:
                        needed[source][:] = True
        return needed

    def _gate(self, node: fx.Node, count: int) -> np.ndarray:
        """Which channels a channelwise layer lets through: not those with a gain, or a depthwise filter, of 0."""
        layer = self.graph.layer_of(node)
        if isinstance(layer, CHANNELWISE_NORMS) or (layer is not None and hasattr(layer, "groups")):
            weight = getattr(layer, "weight", None)
            if isinstance(weight, Tensor):
                return (
                    (weight.detach().flatten(1) if weight.dim() > 1 else weight.detach()[:, None]).ne(0).any(1).numpy()
                )
        return np.ones(count, dtype=bool)

    def _removable(self) -> set[int]:
        """The groups that go."""
        candidates = {int(g) for groups in self.groups.values() for g in groups} - self.graph.fixed
        for node in self.nodes:
            if (layer := self.layer(node)) is None:
                continue
            source = _source(node)
            alive, read = _alive(layer), self.groups[source]
            matters = alive[self.needed[node]].any(0)
            stays = matters & (self.varying[source] | ~self._foldable(layer, source))
            if _is_normed(layer):  # a norm sees the whole weight: only what is zero can be cut out of it unseen
                stays |= alive.any(0)
                candidates -= {int(g) for g in self.groups[node][alive.any(1)]}
            candidates -= {int(g) for g in read[stays]}
        return self._never_all(candidates)

    def _foldable(self, layer: nn.Module, source: fx.Node) -> np.ndarray:
        """Which input channels, being constant, are worth a constant in each output: zero, or the same everywhere."""
        value = self.graph.values[source].detach()[0].flatten(1) if self.graph.values[source].dim() > 2 else None
        if value is None:
            return np.ones(self.graph.values[source].shape[1], dtype=bool)
        zero = value.eq(0).all(1).numpy()
        if isinstance(layer, (TRANSPOSED, nn.Linear)):
            return zero
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        padded = layer.padding_mode == "zeros" and (isinstance(layer.padding, str) or any(layer.padding))
        return zero if padded else zero | value.eq(value[:, :1]).all(1).numpy()

    def _never_all(self, candidates: set[int]) -> set[int]:
        for node in self.nodes:
            groups = self.groups[node]
            if len(groups) and all(int(g) in candidates for g in groups):
                candidates.discard(int(groups[0]))
                warnings.warn(
                    f"component {self.graph.component!r}: every channel of {node.name!r} is dead; one is kept",
                    stacklevel=5,
                )
        return candidates

    def kept(self, node: fx.Node) -> np.ndarray:
        """The indices of the channels that stay at a node."""
        return np.flatnonzero([int(g) not in self.gone for g in self.groups[node]])

    def folded(self, node: fx.Node) -> Tensor | None:
        """What the constants that a layer no longer reads add to its bias, (outputs,), or None."""
        layer, source = self.layer(node), _source(node)
        assert layer is not None
        lost = np.array([int(g) in self.gone for g in self.groups[source]]) & ~self.varying[source]
        if not lost.any():
            return None
        value = self.graph.values[source].detach()[0]
        constant = value.flatten(1)[:, 0] if value.dim() > 1 else value
        weight = _out_in(layer).sum(2)[:, lost]
        return weight.double() @ constant[lost].double()


def _source(node: fx.Node) -> fx.Node:
    """The node that a layer reads."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _out_in(layer: nn.Module) -> Tensor:
    """The effective weight as (outputs, inputs, places)."""
    weight = layer.weight.detach()  # type: ignore[operator]
    if isinstance(layer, TRANSPOSED):
        weight = weight.transpose(0, 1)
    return weight.reshape(weight.shape[0], weight.shape[1], -1)


def _alive(layer: nn.Module) -> np.ndarray:
    """bool (outputs, inputs): whether any weight leads from one to the other."""
    return _out_in(layer).ne(0).any(2).numpy()


def _is_normed(layer: nn.Module) -> bool:
    """Whether the layer's weight is derived from another tensor (spectral norm, weight norm)."""
    return not isinstance(layer._parameters.get("weight"), nn.Parameter)


# -- cutting ------------------------------------------------------------------------------------------------


@torch.no_grad()
def _cut(model: nn.Module, graph: ChannelGraph, plan: _Plan) -> dict[str, Slices]:
    """Cuts one component of `model` in place; returns the slices of its tensors by name."""
    slices: dict[str, Slices] = {}
    root = unwrap(model)
    for node in graph.module.graph.nodes:
        if node.op != "call_module" or node not in plan.groups or graph.name_of(node) in slices:
            continue
        layer = root.get_submodule(graph.name_of(node))
        kept = plan.kept(node)
        if plan.layer(node) is not None:
            folded = plan.folded(node)
            found = _cut_layer(layer, kept, plan.kept(_source(node)))
            _add_to_bias(layer, folded, kept)
        elif isinstance(layer, CHANNELWISE_NORMS):
            found = _cut_all(layer, {0: kept})
            layer.num_features = len(kept)
        elif hasattr(layer, "groups") and hasattr(layer, "weight"):  # depthwise
            found = _cut_all(layer, {0: kept})
            layer.in_channels = layer.out_channels = layer.groups = len(kept)  # type: ignore[assignment]
        elif isinstance(layer, nn.Unflatten):
            layer.unflattened_size = (len(kept), *list(layer.unflattened_size)[1:])
            continue
        else:
            continue
        slices |= {f"{graph.name_of(node)}.{key}": value for key, value in found.items()}
    return slices


def _cut_layer(layer: nn.Module, outputs: np.ndarray, inputs: np.ndarray) -> dict[str, Slices]:
    """Cuts a linear or convolutional layer, its norm's vectors included."""
    transposed = isinstance(layer, TRANSPOSED)
    of_weight = {0: inputs, 1: outputs} if transposed else {0: outputs, 1: inputs}
    # Not `layer.weight`: reading that, under new-style spectral norm in training, moves its singular vectors on.
    places = math.prod(getattr(layer, "kernel_size", ()))
    by_name: dict[str, Slices] = {"bias": {0: outputs}}
    by_name |= dict.fromkeys(WEIGHT_PLACES, of_weight)
    # Spectral norm's left and right singular vectors, old style and new: over outputs, and over (inputs, places).
    wide = (inputs[:, None] * places + np.arange(places)).reshape(-1)
    for left, right in (("weight_u", "weight_v"), ("parametrizations.weight.0._u", "parametrizations.weight.0._v")):
        if left in dict(layer.named_buffers()):
            by_name |= {left: {0: outputs}, right: {0: wide}}
    # Weight norm's lengths: one a slice along axis 0.
    for length in ("weight_g", "parametrizations.weight.original0"):
        if length in dict(layer.named_parameters()):
            by_name[length] = {0: of_weight[0]}
    found = _slice_tensors(layer, by_name)
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = len(inputs), len(outputs)
    else:
        layer.in_channels, layer.out_channels = len(inputs), len(outputs)  # type: ignore[assignment]
    return found


def _cut_all(layer: nn.Module, slices: Slices) -> dict[str, Slices]:
    """Cuts every tensor of a channelwise layer that has channels."""
    names = [name for name, tensor in named_state(layer).items() if tensor.dim() >= 1]
    return _slice_tensors(layer, dict.fromkeys(names, slices))


def _slice_tensors(layer: nn.Module, by_name: Mapping[str, Slices]) -> dict[str, Slices]:
    found: dict[str, Slices] = {}
    for owner_name, owner in layer.named_modules():
        for store in (owner._parameters, owner._buffers):
            for key, tensor in list(store.items()):
                name = f"{owner_name}.{key}" if owner_name else key
                if tensor is None or name not in by_name:
                    continue
                cut = _sliced(tensor.detach(), by_name[name]).clone()
                store[key] = nn.Parameter(cut, tensor.requires_grad) if store is owner._parameters else cut
                found[name] = by_name[name]
    # Old-style norms leave the derived weight as a plain attribute until the next forward pass.
    if isinstance(vars(layer).get("weight"), Tensor):
        vars(layer)["weight"] = _sliced(vars(layer)["weight"].detach(), by_name["weight"]).clone()
    return found


def _sliced(tensor: Tensor, slices: Slices) -> Tensor:
    for axis, indices in slices.items():
        tensor = tensor.index_select(axis, torch.from_numpy(indices).to(tensor.device))
    return tensor


def _add_to_bias(layer: nn.Module, folded: Tensor | None, kept: np.ndarray) -> None:
    if folded is None or not bool(folded.ne(0).any()):
        return
    like = next(layer.parameters())
    addition = folded[torch.from_numpy(kept)].to(like.device, like.dtype)
    if isinstance(layer.bias, Tensor):
        layer.bias += addition
    else:
        layer.bias = nn.Parameter(addition)


@torch.no_grad()
def _check_equal(masked: nn.Module, small: nn.Module, example_inputs: Mapping[str, Tensor]) -> None:
    """Raises `GenticketsError` where the smaller network computes something else, in eval mode."""
    for component, example in example_inputs.items():
        nets = [getattr(unwrap(net), component) for net in (masked, small)]
        modes = [net.training for net in nets]
        outputs = [_outputs(net.eval()(example)) for net in nets]
        for net, mode in zip(nets, modes, strict=True):
            net.train(mode)
        for expected, found in zip(*outputs, strict=True):
            scale = max(1.0, float(expected.abs().max()))
            error = float((expected - found).abs().max()) if expected.shape == found.shape else float("inf")
            if not error <= TOLERANCE * scale:
                raise GenticketsError(
                    f"component {component!r}: the shrunk network differs from the masked one by {error:.2g}; "
                    f"keep the masked one, and please report the model"
                )


def _outputs(result: Tensor | tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)

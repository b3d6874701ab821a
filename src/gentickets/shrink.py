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

from gentickets.channels import ChannelGraph, is_depthwise, trace_all
from gentickets.errors import GenticketsError
from gentickets.groups import channel_axes
from gentickets.masks import Masks
from gentickets.naming import CHANNELWISE_NORMS, TRANSPOSED, clone, named_layers, named_weights, unwrap

Slices = dict[int, np.ndarray]
"""Axis → the indices that are kept along it."""

TOLERANCE = 1e-5
"""The largest difference, relative to the largest output, that the check allows between masked and shrunk net."""


class Shrinking:
    """What `shrink` does, with all that one may need of it.

    `model` is the smaller network, on the device that the larger one is on, `masks` are the masks that are left to
    hold it to, `removed` counts the channels that went, by component, and `slices` says which part of each old tensor
    the new one is.
    """

    def __init__(self, model: nn.Module, masks: Masks, example_inputs: Mapping[str, Tensor]):
        device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        # Which channels go is worked out on the CPU: it is bookkeeping, and the check is exact to 1e-5 there.
        masked = _moved(masks.apply_(clone(model)), "cpu")
        example_inputs = {component: example.cpu() for component, example in example_inputs.items()}
        self.model = clone(masked)
        self.slices: dict[str, Slices] = {}
        self.removed: dict[str, int] = {}
        for component, graph in trace_all(masked, example_inputs).items():
            plan = _Plan(graph)
            self.removed[component] = len(plan.gone)
            self.slices |= _cut(self.model, graph, plan)
        self.masks = self._sliced_masks(masks)
        _check_equal(masked, self.model, example_inputs)
        _moved(self.model, device)

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


def _moved(model: nn.Module, device: str | torch.device) -> nn.Module:
    """`model` itself, all of it on a device."""
    for _, layer in named_layers(model):
        for key, value in vars(layer).items():
            if isinstance(value, Tensor):  # what an old-style norm derived: no parameter, no buffer
                vars(layer)[key] = value.detach().to(device)
    return model.to(device)


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
        """The layer of a node that mixes channels."""
        return self.graph.layer_of(node) if node in self.graph.mixing else None

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
        candidates = {int(g) for groups in self.groups.values() for g in groups} - set(self.graph.fixed)
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
        for node in self.nodes:
            if is_depthwise(layer := self.graph.layer_of(node)) and layer is not None and _is_normed(layer):
                candidates -= {int(g) for g in self.groups[node][self._gate(node, len(self.groups[node]))]}
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
            inputs = plan.kept(_source(node))
            found = _cut_layer(layer, kept, inputs)
            _add_to_bias(layer, folded, kept)
            if isinstance(layer, nn.Linear):
                layer.in_features, layer.out_features = len(inputs), len(kept)
            else:
                layer.in_channels, layer.out_channels = len(inputs), len(kept)  # type: ignore[assignment]
        elif isinstance(layer, CHANNELWISE_NORMS):
            found = _cut_layer(layer, kept)
            layer.num_features = len(kept)
        elif is_depthwise(layer):
            found = _cut_layer(layer, kept)
            layer.in_channels = layer.out_channels = layer.groups = len(kept)  # type: ignore[assignment]
        elif isinstance(layer, nn.Unflatten):
            layer.unflattened_size = (len(kept), *list(layer.unflattened_size)[1:])
            continue
        else:
            continue
        slices |= {f"{graph.name_of(node)}.{key}": value for key, value in found.items()}
    return slices


def _cut_layer(layer: nn.Module, outputs: np.ndarray, inputs: np.ndarray | None = None) -> dict[str, Slices]:
    """Cuts the tensors of a layer, its norm's vectors included; `inputs` are None where it has no say in them."""
    kept = {"output": outputs} if inputs is None else {"output": outputs, "input": inputs}
    by_name = {
        name: {axis: kept[side] for axis, side in axes.items() if side in kept}
        for name, axes in channel_axes(layer).items()
    }
    # Spectral norm's left and right singular vectors, old style and new: over outputs, and over (inputs, places).
    # The places not by `layer.weight`: reading that, under the new style in training, moves the vectors on.
    places = math.prod(getattr(layer, "kernel_size", ()))
    for left, right in (("weight_u", "weight_v"), ("parametrizations.weight.0._u", "parametrizations.weight.0._v")):
        if left in dict(layer.named_buffers()):
            wide = {} if inputs is None else {0: (inputs[:, None] * places + np.arange(places)).reshape(-1)}
            by_name |= {left: {0: outputs}, right: wide}
    return _slice_tensors(layer, by_name)


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

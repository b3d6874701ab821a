"""Which layers are known by their class, what of their tensors a channel owns, and a layer without some of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gentickets.masks.layers import weight_norm_lengths
from gentickets.masks.names import CHANNELWISE_NORMS, CONVOLUTIONS, TRANSPOSED, WEIGHT_PLACES, joined

Side = Literal["output", "input"]

Slices = dict[int, np.ndarray]
"""Axis → the indices that are kept along it."""

# What of a layer's class decides what it computes. A subclass with one of its own is not its parent.
_COMPUTING = ("forward", "__call__", "_call_impl", "__getattr__", "_conv_forward", "_output_padding", "weight", "bias")


# -- which layers are known ---------------------------------------------------------------------------------


def is_plain(layer: nn.Module | None) -> bool:
    """Whether a layer computes what its class in torch does, under spectral or weight norm at most.

    Not so with a forward of its own, with hooks that may change what it gives, or under any other parametrisation.
    """
    if layer is None or "forward" in vars(layer):
        return False
    kind = type_before_parametrizations(layer)
    known = next((base for base in kind.__mro__ if base.__module__.startswith("torch.nn.modules.")), nn.Module)
    if any(getattr(kind, name, None) is not getattr(known, name, None) for name in _COMPUTING):
        return False
    derived = layer._modules.get("parametrizations")
    for name, steps in derived._modules.items() if derived is not None else ():
        if name != "weight" or not isinstance(steps, nn.ModuleList) or len(steps) != 1:
            return False
        if not isinstance(steps[0], _SpectralNorm | _WeightNorm):
            return False
    return all(
        isinstance(hook, SpectralNorm | WeightNorm) or _is_ours(hook)
        for hook in (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
    )


def _is_ours(hook: Any) -> bool:
    """Whether a hook is one by which this package holds a model to its masks."""
    return (getattr(hook, "__module__", None) or type(hook).__module__).startswith("gentickets.")


def is_leaf(layer: nn.Module) -> bool:
    """Whether a layer is one of torch's own that has no others in it: one operation."""
    forward = getattr(type_before_parametrizations(layer), "forward", None)
    children = [name for name in layer._modules if name != "parametrizations"]
    return stores_inputs_first(layer) or (is_plain(layer) and forward is not nn.Module.forward and not children)


def stores_inputs_first(layer: nn.Module | None) -> bool:
    """Whether a layer is transformers' `Conv1D`: a linear one whose weight is (inputs, outputs). That package need not
    be importable."""
    own = vars(layer) if type(layer).__name__ == "Conv1D" else {}
    weight = own.get("_parameters", {}).get("weight")
    plain = not (own.get("_forward_hooks") or own.get("_modules") or "forward" in own)
    return isinstance(weight, Tensor) and plain and tuple(weight.shape) == (own.get("nx"), own.get("nf"))


def is_linear(layer: nn.Module | None) -> bool:
    """Whether a layer's channels lie along the last axis of what it reads and makes."""
    return (isinstance(layer, nn.Linear) and is_plain(layer)) or stores_inputs_first(layer)


def mixes_channels(layer: nn.Module | None) -> bool:
    """Whether each output channel of a layer is a weighted sum over its input channels."""
    if isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        return is_plain(layer) and layer.groups == 1
    return is_linear(layer)


def is_grouped(layer: nn.Module | None) -> bool:
    """Whether a layer filters groups of channels by themselves; single ones, where it is depthwise."""
    return isinstance(layer, CONVOLUTIONS + TRANSPOSED) and is_plain(layer) and layer.groups > 1


def is_channelwise(layer: nn.Module | None) -> bool:
    """Whether a layer has a number or more for each channel, and keeps channels apart."""
    if isinstance(layer, nn.PReLU):
        return is_plain(layer) and layer.num_parameters > 1
    return isinstance(layer, CHANNELWISE_NORMS) and is_plain(layer)


def is_group_norm(layer: nn.Module | None) -> bool:
    """Whether a layer normalises several channels together, in more groups than one."""
    return isinstance(layer, nn.GroupNorm) and is_plain(layer) and layer.num_groups > 1


def weighs_channels(layer: nn.Module | None) -> bool:
    """Whether a layer's tensors have slices that belong to channels."""
    return mixes_channels(layer) or is_grouped(layer) or is_channelwise(layer) or is_group_norm(layer)


def is_unflatten(layer: nn.Module | None) -> bool:
    """Whether a layer splits axis 1 into several: its own size says into how many channels."""
    return isinstance(layer, nn.Unflatten) and is_plain(layer) and layer.dim == 1


def blocks(layer: nn.Module, channels: int) -> np.ndarray:
    """Of each of a layer's channels, to which of its groups it belongs; to one of its own, where it has no groups."""
    groups: Any = channels
    if is_grouped(layer) or is_group_norm(layer):
        groups = layer.groups if is_grouped(layer) else layer.num_groups
    return np.repeat(np.arange(groups), channels // groups)


def channel_axes(layer: nn.Module) -> dict[str, dict[int, Side]]:
    """Tensor, by its name in the layer → axis → whether the layer's output or input channels lie along it.

    For norms by channel, convolutions and linear layers, plain or under spectral or weight norm.
    """
    if isinstance(layer, (*CHANNELWISE_NORMS, nn.GroupNorm, nn.PReLU)):
        return {name: {0: "output"} for name in ("weight", "bias", "running_mean", "running_var")}
    of_weight: dict[int, Side] = {0: "output", 1: "input"}
    if is_grouped(layer):  # along axis 1 are the channels of one group
        of_weight = {0: "input" if isinstance(layer, TRANSPOSED) else "output"}
    elif isinstance(layer, TRANSPOSED) or stores_inputs_first(layer):
        of_weight = {0: "input", 1: "output"}
    axes: dict[str, dict[int, Side]] = dict.fromkeys(WEIGHT_PLACES, of_weight)
    axes["bias"] = {0: "output"}
    for length, axis in weight_norm_lengths(layer).values():
        axes[length] = {axis: of_weight[axis]} if axis in of_weight else {}
    return axes


# -- cutting ------------------------------------------------------------------------------------------------


def cut_layer(layer: nn.Module, outputs: np.ndarray, inputs: np.ndarray | None = None) -> dict[str, Slices]:
    """Leaves a layer those output and input channels alone, in place; `inputs` are None where it has no say in them.

    Its norm's vectors and what it says of its own size go with them. Returns the slices of its tensors that lost
    something, by their names in the layer.
    """
    kept = {"output": outputs} if inputs is None else {"output": outputs, "input": inputs}
    axes = channel_axes(layer)
    by_name = {name: {axis: kept[side] for axis, side in sides.items() if side in kept} for name, sides in axes.items()}
    for left, right, original, dim in _singular_vectors(layer):
        by_name |= _cut_vectors(left, right, original.shape, dim, by_name["weight"])
    found = slice_tensors(layer, by_name)
    _set_sizes(layer, len(outputs if inputs is None else inputs), len(outputs))
    return found


def silence_layer(layer: nn.Module, outputs: np.ndarray) -> None:
    """Makes some output channels of a layer 0, in place, as a mask over all that they own does."""
    lengths = weight_norm_lengths(layer)
    parameters = dict(layer.named_parameters())
    for name, sides in channel_axes(layer).items():
        for axis, side in sides.items():
            if side == "output" and name in parameters and lengths.get(name, ("", None))[1] != axis:
                parameters[name].index_fill_(axis, torch.from_numpy(outputs).to(parameters[name].device), 0)


def _set_sizes(layer: nn.Module, inputs: int, outputs: int) -> None:
    """What a layer says of itself."""
    if is_grouped(layer):
        layer.groups = layer.groups * outputs // layer.out_channels  # type: ignore[operator, assignment]
    if isinstance(layer, nn.GroupNorm):
        layer.num_groups = layer.num_groups * outputs // layer.num_channels
    for key, size in (
        ("in_features", inputs),
        ("out_features", outputs),
        ("num_features", outputs),
        ("num_channels", outputs),
        ("num_parameters", outputs),
        ("in_channels", inputs),
        ("out_channels", outputs),
        ("nx", inputs),
        ("nf", outputs),
    ):
        if hasattr(layer, key):
            setattr(layer, key, size)


def _singular_vectors(layer: nn.Module) -> Iterator[tuple[str, str, Tensor, int]]:
    """Of a layer under spectral norm, old style or new: its left and right singular vectors, its underlying weight,
    and the axis of that weight which the left one goes along."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm) and hook.name == "weight":
            yield "weight_u", "weight_v", layer.weight_orig, hook.dim  # type: ignore[misc]
    for name, steps in layer.named_modules():
        if isinstance(steps, _SpectralNorm):  # parametrizations.weight.0
            yield f"{name}._u", f"{name}._v", layer.parametrizations.weight.original, steps.dim  # type: ignore[union-attr, misc]


def _cut_vectors(left: str, right: str, shape: torch.Size, dim: int, slices: Slices) -> dict[str, Slices]:
    """The slices of singular vectors of a weight of that `shape`: over axis `dim`, and over all others in order."""
    dim %= len(shape)
    others = [axis for axis in range(len(shape)) if axis != dim]
    places = np.arange(math.prod(shape[axis] for axis in others)).reshape([shape[axis] for axis in others])
    for place, axis in enumerate(others):
        if axis in slices:
            places = places.take(slices[axis], axis=place)
    return {left: {0: slices[dim]} if dim in slices else {}, right: {0: places.reshape(-1)}}


def slice_tensors(layer: nn.Module, by_name: Mapping[str, Slices]) -> dict[str, Slices]:
    """Cuts tensors of a layer in place; returns the slices of those that lost something. The others stay the same
    objects, which other layers may share."""
    found: dict[str, Slices] = {}
    for owner_name, owner in layer.named_modules():
        for store in (owner._parameters, owner._buffers):
            for key, tensor in list(store.items()):
                slices = by_name.get(joined(owner_name, key), {})
                if tensor is None or all(len(kept) == tensor.shape[axis] for axis, kept in slices.items()):
                    continue
                cut = sliced(tensor.detach(), slices).clone()
                store[key] = nn.Parameter(cut, tensor.requires_grad) if store is owner._parameters else cut
                found[joined(owner_name, key)] = slices
    # Old-style norms leave the derived weight as a plain attribute until the next forward pass.
    if isinstance(vars(layer).get("weight"), Tensor):
        vars(layer)["weight"] = sliced(vars(layer)["weight"].detach(), by_name["weight"]).clone()
    return found


def sliced(tensor: Tensor, slices: Slices) -> Tensor:
    """A tensor's slices along some of its axes."""
    for axis, indices in slices.items():
        tensor = tensor.index_select(axis, torch.from_numpy(indices).to(tensor.device))
    return tensor

"""What a weight is called, whatever wraps its model, and which weights pruning may touch.

Names are those of `model.named_parameters()` without the prefixes that wrappers add (DDP, Fabric,
`torch.compile`, weight averaging). Under spectral or weight norm the *underlying* tensor is the one that is named
(`weight_orig`, `weight_v`, `parametrizations.weight.original…`), so that the norm sees what is done to it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gentickets.errors import MaskError
from gentickets.masks.copying import copied

Model = nn.Module | Mapping[str, nn.Module]
"""A module whose children are the components, or a mapping from their names to them."""

A_MODEL_IS = (
    "a model is one nn.Module whose children are its components, or a dict of them such as "
    "{'generator': G, 'discriminator': D}"
)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Transposed convolutions: their weight has its output channels on axis 1."""

PRUNABLE = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
"""The layers whose weight is prunable by default. Biases, norms and embeddings are not."""

CHANNELWISE_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""The norms that treat each channel by itself."""

NORMS = (*CHANNELWISE_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

# Wrapper class → the child that holds the user's module. By class name, so that none need be importable.
_WRAPPED_IN = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "_FabricModule": "_forward_module",
    "OptimizedModule": "_orig_mod",
    "AveragedModel": "module",
    "Average": "module",
}

# Where the tensor that the optimiser steps lies, relative to its layer: plain, old-style spectral norm,
# old-style weight norm, and the two parametrised forms.
WEIGHT_PLACES = (
    "weight",
    "weight_orig",
    "weight_v",
    "parametrizations.weight.original",
    "parametrizations.weight.original1",
)

_PLAIN, _EXTRA = frozenset({bool, int, float, str}), "get_extra_state"


def as_model(model: Any) -> nn.Module:
    """A model from what a user has: a module as it is, a mapping of modules as one whose components they are.

    The modules of a mapping are shared, not copied. Raises `MaskError` that says what a model is for anything else.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, Mapping) and model and all(isinstance(net, nn.Module) for net in model.values()):
        try:
            return nn.ModuleDict(model)
        except (KeyError, TypeError) as error:
            raise MaskError(f"no name of a component: {error.args[0] if error.args else error}") from None
    raise MaskError(f"{A_MODEL_IS}; not a {type(model).__name__}")


@runtime_checkable
class Shadows(Protocol):
    """An average of a model that is no model: tensors in the order of the parameters, as in diffusers' `EMAModel`."""

    shadow_params: Sequence[Tensor]


def as_copy(copied: Any, model: nn.Module) -> tuple[nn.Module, frozenset[str]]:
    """A copy of `model` as a model with the same names, and of which of its weights there must be one in it.

    `copied`: a model, `Shadows`, or some components, each as one or the other. The tensors are shared.
    Raises `MaskError` for an average of other parameters.
    """
    if isinstance(copied, Mapping):
        parts = {name: as_copy(one, component_at(model, name)) for name, one in copied.items()}
        names = (joined(name, own) for name, (_, owned) in parts.items() for own in owned)
        return as_model({name: net for name, (net, _) in parts.items()}), frozenset(names)
    if not isinstance(copied, nn.Module) and isinstance(copied, Shadows):
        net = _of_shadows(copied, model)
        return net, frozenset(named_weights(net))
    return as_model(copied), frozenset(named_weights(model))


def _of_shadows(average: Shadows, model: nn.Module) -> nn.Module:
    shadows, weights = list(average.shadow_params), named_weights(model)
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    for names in (weights, trained):
        if [weight.shape for weight in names.values()] == [shadow.shape for shadow in shadows]:
            break
    else:
        raise MaskError(
            f"{type(average).__name__} keeps {len(shadows)} tensors, and not in the shapes of the {len(weights)} "
            f"parameters of the model: make it of model.parameters(), after the model has its form"
        )
    whole = nn.Module()
    for name, shadow in zip(names, shadows, strict=True):
        *path, own = name.split(".")
        place = whole
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.register_parameter(own, nn.Parameter(shadow.detach(), requires_grad=False))
    return whole


def unwrap(module: Model) -> nn.Module:
    """The module inside DDP, Fabric, `torch.compile`, averages and peft's models; a mapping of modules as a model."""
    module = as_model(module)
    while isinstance(inner := _inside(module), nn.Module):
        module = inner
    return module


def _inside(module: nn.Module) -> object:
    if child := _WRAPPED_IN.get(type(module).__name__):
        return getattr(module, child, None)
    if any(kind.__name__ == "PeftModel" for kind in type(module).__mro__):  # of which there is one for each task
        base = module.base_model
        return getattr(base, "model", base)
    return None


def has_forward(model: Model) -> bool:
    """Whether a model is called as one network: its class, or its script, has a forward pass of its own."""
    # Of a scripted module's class, to ask for `forward` is an error.
    return inspect.getattr_static(type(unwrap(model)), "forward", None) is not nn.Module.forward


def named_layers(model: Model, prefix: str = "", _seen: set[int] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Every module under `model` with its dotted name, wrapper prefixes left out, a shared module once."""
    model = unwrap(model)
    seen = set() if _seen is None else _seen
    if id(model) in seen:
        return
    seen.add(id(model))
    yield prefix, model
    for name, child in model.named_children():
        yield from named_layers(child, f"{prefix}.{name}" if prefix else name, seen)


def named_weights(model: Model) -> dict[str, nn.Parameter]:
    """`model.named_parameters()` as a dictionary, wrapper prefixes left out, shared tensors named once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for layer_name, layer in named_layers(model):
        for name, parameter in layer._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{layer_name}.{name}" if layer_name else name] = parameter
    return found


def named_state(model: Model) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, wrapper prefixes left out: the model's own tensors."""
    found: dict[str, Tensor] = dict(named_weights(model))
    for layer_name, layer in named_layers(model):
        for name, buffer in layer._buffers.items():
            if buffer is not None and name not in layer._non_persistent_buffers_set:
                found[f"{layer_name}.{name}" if layer_name else name] = buffer
    return found


def named_rest(model: Model) -> dict[str, Any]:
    """What training may change that is in no `named_state`, by name: numbers and text in the attributes of layers,
    buffers that are not persistent, and plain `get_extra_state`s (as `….get_extra_state`). Copies, for `put_rest`."""
    found: dict[str, Any] = {}
    for layer_name, layer in named_layers(model):
        for name, value in vars(layer).items():
            if type(value) in _PLAIN and name != "training":
                found[joined(layer_name, name)] = value
        for name in layer._non_persistent_buffers_set:
            if (buffer := layer._buffers.get(name)) is not None:
                found[joined(layer_name, name)] = buffer.detach().clone()
        if type(layer).get_extra_state is not nn.Module.get_extra_state:
            state = layer.get_extra_state()
            if _is_plain(state):
                found[joined(layer_name, _EXTRA)] = copy.deepcopy(state)
    return found


def put_rest(model: Model, rest: Mapping[str, Any]) -> None:
    """Puts what `named_rest` told of a model of the same layers back."""
    layers = dict(named_layers(model))
    for full, value in rest.items():
        layer_name, _, name = full.rpartition(".")
        layer = layers.get(layer_name)
        if layer is None:
            continue
        if name == _EXTRA:
            layer.set_extra_state(copy.deepcopy(value))
        elif isinstance(buffer := layer._buffers.get(name), Tensor):
            layer._buffers[name] = value.to(buffer.device, copy=True)
        else:
            setattr(layer, name, value)


def changed_rest(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `now` that were not so before."""
    return {name: value for name, value in now.items() if name not in before or not _same(before[name], value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) in _PLAIN and _is_plain(inside) for key, inside in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in _PLAIN or (isinstance(value, Tensor) and value.is_leaf)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype
        return same and torch.equal(one.nan_to_num(), other.to(one.device).nan_to_num())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other or (one != one and other != other))  # a NaN is what it was


def clone(model: Model) -> nn.Module:
    """A deep copy, of which nothing leads back to the model (see `gentickets.masks.copying`). Raises `MaskError`."""
    return copied(as_model(model))


def component_of(name: str) -> str:
    """The component that a weight belongs to: the first part of its dotted name."""
    return name.split(".", 1)[0]


def component_at(model: Model, name: str) -> nn.Module:
    """The component of that name; the whole model, unwrapped, for the empty name."""
    net = unwrap(model)
    return getattr(net, name) if name else net


def is_in(component: str, name: str) -> bool:
    """Whether a weight is in a component; every weight is in the whole, whose name is empty."""
    return not component or component_of(name) == component


def joined(prefix: str, name: str) -> str:
    """`prefix.name`, where either may be empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def components_of(model: Model) -> tuple[str, ...]:
    """The names of a model's components: its named children, in order."""
    return tuple(name for name, _ in unwrap(model).named_children())


def named_by(entries: Iterable[str] | str, names: Iterable[str], what: str) -> list[str]:
    """Those of `names`, in their order, that the entries mean: each a name, or a pattern where it is none.

    Raises `MaskError` that names the first entry that means none, and what comes close to it.
    """
    known = dict.fromkeys(names)
    found: set[str] = set()
    for entry in as_names(entries):
        if entry in known:
            found.add(entry)
            continue
        matching = [name for name in known if fnmatchcase(name, entry)] if isinstance(entry, str) else []
        if not matching:
            raise MaskError(f"{what}={entry!r} fits no weight of the model{_like(entry, known)}")
        found.update(matching)
    return [name for name in known if name in found]


def _like(entry: object, known: Iterable[str]) -> str:
    """What an entry that fits nothing may have meant, in words."""
    known, plain = list(known), str(entry).strip("*.")
    close = [name for name in known if plain and plain in name] or get_close_matches(plain, known, n=3, cutoff=0.5)
    if not close:
        return f": it has {', '.join(known[:3])}{' …' if len(known) > 3 else ''}"
    inside = plain in close[0]
    pattern = (
        f", or a pattern such as {f'{plain}.*' if close[0].startswith(plain) else f'*{plain}*'!r}" if inside else ""
    )
    return f": did you mean {', '.join(close[:3])}{' …' if len(close) > 3 else ''}{pattern}?"


def check_components(wanted: Iterable[str], known: Iterable[str]) -> None:
    """Raises `MaskError` that lists the components there are, where one of `wanted` is none of them."""
    known = tuple(known)
    for name in wanted:
        if name not in known:
            raise MaskError(f"no component {name!r}: the model has {', '.join(known) or 'none'}")


def as_names(names: Iterable[str] | str) -> tuple[str, ...]:
    """One name or several as several. Raises `MaskError` for what is neither."""
    if not isinstance(names, Iterable):
        raise MaskError(f"names are a string or several of them, and not {names!r}")
    return (names,) if isinstance(names, str) else tuple(names)

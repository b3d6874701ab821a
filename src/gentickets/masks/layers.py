"""Which weights pruning may touch, which it leaves dense, and which it must refuse.

By default those of convolutions and linear layers, or what `include=` names. A weight from which another is derived is
pruned underneath, where a zero there is a zero in effect and no norm divides by it (see `parametrised`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from gentickets.errors import MaskError
from gentickets.masks.names import (
    A_MODEL_IS,
    NORMS,
    PRUNABLE,
    WEIGHT_PLACES,
    Model,
    as_names,
    check_components,
    component_of,
    components_of,
    joined,
    named_by,
    named_layers,
    named_weights,
    unwrap,
)
from gentickets.masks.parametrised import Derived, Norm, derived, norm_of, not_zero_in_effect

W = TypeVar("W", bound=Tensor)


def prunable_weights(
    model: Model,
    components: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> dict[str, nn.Parameter]:
    """The weights that pruning may touch, by name.

    Without `include`: the weights of convolutions, transposed convolutions and linear layers; but no weight that a
    layer of another kind uses too, such as an embedding whose weight is also the head's. With it: every parameter
    that it names, exactly or by a shell-style pattern (`"decoder.*"`, `"*.attention.*.weight"`); an entry that is a
    parameter's name means that parameter alone, whatever brackets are in it. `exclude` takes names out in the same
    way; `components` keeps the named children only.

    Raises `MaskError` for a component that does not exist, for an entry of `include` or `exclude` that fits no
    parameter, for a parameter that has no shape yet, where nothing is left to prune, for a weight of which a zero would
    not be a zero in effect (see `check_zeros`), and for two parameters over one memory (see `check_own_memory`).
    """
    check_not_accelerated(model)
    if isinstance(components, nn.Module):  # as in dense(generator, discriminator)
        raise MaskError(f"{A_MODEL_IS}; not two modules")
    weights = named_weights(model)
    chosen = _default_prunable(model) if include is None else named_by(include, weights, "include")
    if components is not None:
        wanted = as_names(components)
        check_components(wanted, components_of(model))
        chosen = [name for name in chosen if component_of(name) in wanted]
    dropped = set(named_by(exclude, weights, "exclude"))
    chosen = [name for name in chosen if name not in dropped]
    if not chosen:
        others = _not_prunable(model, components) if include is None and not dropped else {}
        hint = f"; it has {_listed(others)}: include={_patterns(others)} takes them" if others else ""
        raise MaskError(
            f"no prunable weight in {type(unwrap(model)).__name__} (components={components}, "
            f"include={include}, exclude={as_names(exclude)})" + (hint or ": name others with include=")
        )
    found = {name: with_shape(name, weights[name]) for name in chosen}
    check_own_memory(weights)
    check_zeros(model, frozenset(chosen))
    return found


def _default_prunable(model: Model) -> list[str]:
    names, layers = named_weights(model), list(named_layers(model))
    # By who uses it and not by who comes first: an embedding tied to a head is left alone in either order.
    theirs = (*PRUNABLE, ParametrizationList)
    others = {id(p) for _, layer in layers if not isinstance(layer, theirs) for p in layer._parameters.values()}
    return [
        full
        for layer_name, layer in layers
        if isinstance(layer, PRUNABLE)
        for place in WEIGHT_PLACES
        if (full := joined(layer_name, place)) in names
        and id(names[full]) not in others
        # A `weight_v` without lengths is a stranger's singular vector.
        and (place != "weight_v" or "weight_g" in layer._parameters)
    ]


def with_shape(name: str, weight: W) -> W:
    """The weight itself. Raises `MaskError` where it has no shape yet, or not each of its numbers is here by itself."""
    if is_lazy(weight):
        raise MaskError(f"{name!r} has no shape yet (a lazy layer): pass a batch through the model first")
    if any(kind.__name__ == "DTensor" for kind in type(weight).__mro__):
        raise MaskError(f"{name!r} is sharded (a DTensor): mask and hold the model before fully_shard, or use DDP")
    if weight.layout != torch.strided:
        raise MaskError(f"{name!r} is stored as {weight.layout}, without its zeros: give the layer weight.to_dense()")
    if any(side > 1 and not step for side, step in zip(weight.shape, weight.stride(), strict=True)):
        raise MaskError(
            f"{name!r} is expanded: several of its weights are one number in memory, and cannot be pruned one by one; "
            f"give the layer nn.Parameter(weight.detach().clone())"
        )
    return weight


def check_own_memory(weights: Mapping[str, Tensor]) -> None:
    """Raises `MaskError` for two parameters that have numbers in common, as `b.data = a.data.t()` makes them: what is
    pruned of one would be pruned of the other, and in a copy of the model, as every ticket is, they come apart."""
    before: list[tuple[int, str]] = []  # (where it ends, its name), of those that began earlier and may reach further
    for start, end, name in sorted(_reaches(weights)):
        before = [(until, other) for until, other in before if until > start]
        for _, other in before:
            if weights[name].device == weights[other].device and _overlap(weights[name], weights[other]):
                raise MaskError(
                    f"{other!r} and {name!r} are two parameters over one memory, which come apart in every copy of the "
                    f"model, and each ticket is one: give both layers the one Parameter (b.weight = a.weight), or read "
                    f"it in forward (F.linear(x, a.weight.t()))"
                )
        before.append((end, name))


def _reaches(weights: Mapping[str, Tensor]) -> Iterator[tuple[int, int, str]]:
    """(first byte, the one behind the last, name) of every tensor that lies in memory."""
    for name, weight in weights.items():
        plain = not is_lazy(weight) and not weight.is_meta and weight.layout == torch.strided
        try:
            start = weight.data_ptr() if plain else 0
        except RuntimeError:  # a tensor that others keep for it
            continue
        if start and weight.numel():
            steps = sum((side - 1) * step for side, step in zip(weight.shape, weight.stride(), strict=True))
            yield start, start + (steps + 1) * weight.element_size(), name


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors, whose spans in memory do, have a byte in common."""
    (start, end, _), (also, until, _) = (span for tensor in (one, other) for span in _reaches({"": tensor}))
    begin = min(start, also)
    taken = np.zeros(max(end, until) - begin, dtype=bool)
    for tensor, at in ((one, start), (other, also)):
        size = tensor.element_size()
        axes = [(side, step * size) for side, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
        sides, steps = zip(*axes, (size, 1), strict=True)
        own = as_strided(taken[at - begin :], sides, steps)
        if own.any():
            return True
        own[...] = True
    return False


# -- what is derived of them ------------------------------------------------------------------------------------------


def weight_norm_lengths(layer: nn.Module) -> dict[str, tuple[str, int]]:
    """Under weight norm: {direction: (length, axis)}, by the tensors' names in the layer; otherwise nothing.

    The layer's weight is direction / |direction| * length, with one length for each slice along `axis`. A slice of
    zeros has no direction (0 / 0): such a slice is pruned by its length. One length for the whole weight: nothing.
    """
    return {
        one.origins[-1]: (norm.length, norm.axis)
        for one in derived(layer)
        if (norm := one.norm) is not None and norm.length is not None and norm.axis is not None
    }


def norms_of(model: Model, names: Container[str]) -> dict[str, Norm]:
    """What norms ask of those of these weights that lie under one."""
    found = {}
    for layer_name, one, origin, name in _underneath(model, names):
        if (norm := norm_of(one, origin)) is not None:
            found[name] = replace(norm, length=norm.length and joined(layer_name, norm.length))
    return found


def divided_by_zero(model: Model, masks: Mapping[str, Tensor]) -> str | None:
    """Where a norm of `model` would divide by 0 under these masks, in words; None where none does."""
    for layer_name, one, origin, name in _underneath(model, masks):
        norm = norm_of(one, origin)
        if norm is not None and (empty := int((~norm.slices(masks[name]).any(1)).sum())):
            what = "no weight" if norm.axis is None else f"no weight in {empty} of its filters"
            return f"layer {layer_name!r} keeps {what}, and its {norm.kind} would be 0/0, which is not a number"
    return None


def check_zeros(model: Model, names: Container[str]) -> None:
    """Raises `MaskError` for a weight among `names` where a zero would not be a zero in effect.

    So it is under parametrisations that mix the entries of a tensor (orthogonal, symmetric, centred), each of which is
    tried out; and where torch prunes the weight already.
    """
    for layer_name, one, origin, name in _underneath(model, names):
        if one.mend is not None:
            raise MaskError(_pruned_already(layer_name, one))
        if (reason := not_zero_in_effect(one, origin)) is not None:
            made = "another weight" if one.tensor == origin else repr(joined(layer_name, one.tensor))
            plain = layer_name and name == joined(layer_name, origin) and not re.search(r"[][*?]", layer_name)
            pattern = f"{layer_name}.*" if plain else name
            raise MaskError(
                f"{name!r} cannot be pruned: {one.by} makes {made} of it, and {reason}; "
                f"leave it out with exclude=({pattern!r},) or components="
            )


def _underneath(model: Model, names: Container[str]) -> Iterator[tuple[str, Derived, str, str]]:
    """(layer, derived tensor, its origin in the layer, the origin's name) of what is derived of these weights."""
    known: dict[int, str] | None = None
    for layer_name, layer in named_layers(model):
        for one in derived(layer):
            for origin in one.origins:
                if known is None:  # a weight that several layers share has one name
                    known = {id(weight): name for name, weight in named_weights(model).items()}
                name = known[id(layer.get_parameter(origin))]
                if name in names:
                    yield layer_name, one, origin, name


def check_not_pruned(model: Model) -> None:
    """Raises `MaskError` for a model that torch prunes already, with what ends that."""
    for layer_name, layer in named_layers(model):
        for one in derived(layer):
            if one.mend is not None:
                raise MaskError(_pruned_already(layer_name, one))


def check_not_accelerated(model: Model) -> None:
    """Raises `MaskError` for a model of which layers run on their live weights alone: the others would pass for all."""
    for layer_name, layer in named_layers(model):
        if getattr(layer, "on_live_weights", False):
            raise MaskError(
                f"{layer_name!r} runs on its live weights alone, and its dense weight is not there: leave "
                f"accelerate(...) first, or restore(model)"
            )


def _pruned_already(layer_name: str, one: Derived) -> str:
    return (
        f"{joined(layer_name, one.tensor)!r} is pruned already, by {one.by}, whose mask is not seen here: "
        f"make that final first with {one.mend}, or take it over with Masks.take_over_(model)"
    )


# -- what is left dense ----------------------------------------------------------------------------------------------


def left_out(model: Model, masks: Iterable[str] | None = None) -> dict[str, str]:
    """The parameters of `model` that `masks` do not cover, or the default selection does not touch: name → why."""
    layers = dict(named_layers(model))
    default = set(_default_prunable(unwrap(model)))
    chosen = default if masks is None else set(masks)
    return {
        name: "not chosen" if name in default else _why_dense(name, weight, layers)
        for name, weight in named_weights(model).items()
        if name not in chosen
    }


def warn_of_left_out(model: Model, components: Iterable[str] | None, exclude: Iterable[str]) -> None:
    """Warns in one line of weights that compute something and that the default selection does not touch."""
    others = _not_prunable(model, components)
    dropped = as_names(exclude)
    others = {n: why for n, why in others.items() if not any(fnmatchcase(n, pattern) for pattern in dropped)}
    if others:
        weights = named_weights(model)
        left = sum(weights[name].numel() for name in others)
        chosen = sum(weights[name].numel() for name in _default_prunable(unwrap(model)) if name not in others)
        share = left / max(1, left + chosen)
        warnings.warn(
            f"left dense: {_listed(others)}, {share:.0%} of the weights; only convolutions and linear layers are "
            f"pruned by default, include= takes others (gentickets.left_out(model) lists them)",
            stacklevel=3,
        )


_EMBEDDINGS = {"embed", "embedding", "embeddings", "emb", "pos", "position", "positional", "token", "tokens"}
_ONE_AXIS, _EMBEDDING, _NORM = "a bias, a gain or a number", "an embedding", "of a norm"


def _why_dense(name: str, weight: Tensor, layers: Mapping[str, nn.Module]) -> str:
    layer_name, _, own = name.rpartition(".")
    layer = layers[layer_name]
    if layer_name.endswith(f"parametrizations.{layer_name.rpartition('.')[2]}"):  # by the layer that has them
        layer = layers[layer_name.rpartition("parametrizations")[0].rstrip(".")]
    kind = type(layer).__name__
    if isinstance(layer, NORMS) or re.search(r"norm(\d+d)?$", kind.lower()) or own in ("weight_g", "original0"):
        return _NORM
    if is_lazy(weight) or sum(side > 1 for side in weight.shape) < 2:
        return _ONE_AXIS
    if "embed" in kind.lower() or _EMBEDDINGS.intersection(own.lower().split("_")):
        return _EMBEDDING
    return f"{kind}: neither a convolution nor a linear layer"


def _not_prunable(model: Model, components: Iterable[str] | None) -> dict[str, str]:
    """Weights of two or more axes in layers that are not pruned by default, and are no embeddings: name → why."""
    wanted = None if components is None else as_names(components)
    return {
        name: why
        for name, why in left_out(model).items()
        if why not in (_ONE_AXIS, _EMBEDDING, _NORM) and (wanted is None or component_of(name) in wanted)
    }


def _listed(others: Mapping[str, str]) -> str:
    """The first few of these weights, with their layers, and how many more there are."""
    few = ", ".join(f"{name!r} ({why.partition(':')[0]})" for name, why in list(others.items())[:3])
    return few if len(others) <= 3 else f"{few} and {len(others) - 3} more"


def _patterns(others: Mapping[str, str]) -> tuple[str, ...]:
    """Patterns that name these weights, by the ends of their names."""
    parts = (name.split(".") for name in others)
    ends = (".".join(part[-2:] if part[-1] == "weight" else part[-1:]) for part in parts)
    return tuple(dict.fromkeys("*" + re.sub(r"l\d+", "l*", end) for end in ends))

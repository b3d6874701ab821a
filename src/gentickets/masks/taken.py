"""Masks that others made, read off a network: off its zeros, or off the masks that torch keeps beside its weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gentickets.errors import MaskError
from gentickets.masks.layers import prunable_weights, with_shape
from gentickets.masks.names import (
    as_names,
    check_components,
    component_of,
    joined,
    named_by,
    named_layers,
    named_weights,
)
from gentickets.masks.parametrised import TORCH_AO, TORCH_PRUNE, Derived, derived
from gentickets.memory import nonzero

State = Mapping[str, Tensor]
"""A state dict: names and tensors, without the layers that have them."""

_FEW = 1 / 1000
"""So small a share of zeros may be chance: an underflow in half precision, a draw of exactly 0."""


def is_state(source: object) -> bool:
    """Whether this is a state dict, and not a model or a dict of modules."""
    return isinstance(source, Mapping) and any(isinstance(value, Tensor) for value in source.values())


# -- zeros -------------------------------------------------------------------------------------------------------------


def zeros_of(
    source: Any, components: Iterable[str] | None, include: Iterable[str] | str | None, exclude: Iterable[str] | str
) -> dict[str, Tensor]:
    """The tensors whose zeros are to be a mask, by name; see `Masks.of_zeros`, whose caller is warned of guesses."""
    choose = _of_state if is_state(source) else prunable_weights
    found: dict[str, Tensor] = {**choose(source, components, include, exclude)}
    for name, weight in found.items():
        _check_has_zeros(name, weight)
    zeros = {name: weight.numel() - _alive(weight) for name, weight in found.items()}
    if not any(zeros.values()):
        raise MaskError(
            f"none of these {len(found)} tensors has a weight that is 0.0: load the pruned weights first; masks with "
            f"everything alive are Masks.dense(model)"
        )
    named = set() if include is None else set(as_names(include))
    empty = [n for n, weight in found.items() if 0 < zeros[n] == weight.numel() and n not in named]
    if empty:
        are = "is" if len(empty) == 1 else "are"
        raise MaskError(
            f"{_some(empty)} {are} 0.0 everywhere: pruned whole, or a branch that starts from zero (a zero "
            f"convolution, adaLN-zero)? exclude={_names(empty)} leaves it dense; where it is pruned, name it: "
            f"masks.merge(gt.Masks.of_zeros(model, include=...))"
        )
    few = [n for n, weight in found.items() if 0 < zeros[n] < _FEW * weight.numel()]
    if few:
        warnings.warn(
            f"so few zeros may be chance, and are taken for pruned: {_some(few, zeros, found)}; "
            f"exclude={_names(few)} leaves such a tensor dense",
            stacklevel=3,
        )
    if include is None and not is_state(source):
        _warn_of_others(source, found, components, exclude)
    return found


def _of_state(
    state: State, components: Iterable[str] | None, include: Iterable[str] | str | None, exclude: Iterable[str] | str
) -> dict[str, Tensor]:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if held := next(_masks_of_state(tensors), None):
        raise MaskError(f"{held.name!r} has its mask beside it, by {held.by}: take that, with Masks.taken_from(state)")
    if include is None:
        raise MaskError(
            "a state dict does not say which of its tensors are weights of layers: name them with include= (names, or "
            "patterns such as '*.conv?.weight'), or load it into its model and take Masks.of_zeros(model)"
        )
    dropped = set(named_by(exclude, tensors, "exclude"))
    chosen = [name for name in named_by(include, tensors, "include") if name not in dropped]
    if components is not None:
        wanted = as_names(components)
        check_components(wanted, dict.fromkeys(component_of(name) for name in tensors))
        chosen = [name for name in chosen if component_of(name) in wanted]
    if not chosen:
        raise MaskError(f"nothing is left of include={include} without exclude={exclude}, components={components}")
    return {name: with_shape(name, tensors[name]) for name in chosen}


def _check_has_zeros(name: str, weight: Tensor) -> None:
    """Raises `MaskError` for a tensor that has no values, or whose numbers are codes for others (quantised)."""
    if weight.is_meta:
        raise MaskError(f"{name!r} is on the meta device and has no values: load them first")
    codes = weight.is_quantized or not (weight.is_floating_point() or weight.is_complex())
    if codes or is_traceable_wrapper_subclass(weight):
        kind = type(weight).__name__ if is_traceable_wrapper_subclass(weight) else str(weight.dtype)
        raise MaskError(
            f"{name!r} is quantised ({kind}): what is 0.0 in it is not seen; take the mask before that, or leave it "
            f"out with exclude=({name!r},)"
        )


def _alive(weight: Tensor) -> int:
    return int(np.bitwise_count(nonzero(weight)).sum(dtype=np.int64))


def _warn_of_others(
    model: Any, chosen: Mapping[str, Tensor], components: Iterable[str] | None, exclude: Iterable[str] | str
) -> None:
    """Warns in one line of matrices that have zeros and are not taken by default, such as a pruned embedding."""
    wanted, dropped = None if components is None else as_names(components), as_names(exclude)
    others: dict[str, Tensor] = {
        name: weight
        for name, weight in named_weights(model).items()
        if name not in chosen
        and (wanted is None or component_of(name) in wanted)
        and not any(fnmatchcase(name, pattern) for pattern in dropped)
        and weight.layout == torch.strided
        and weight.is_floating_point()
        and sum(side > 1 for side in weight.shape) > 1
    }
    zeros = {name: weight.numel() - _alive(weight) for name, weight in others.items()}
    if left := [name for name, weight in others.items() if _FEW * weight.numel() <= zeros[name] < weight.numel()]:
        warnings.warn(
            f"zeros that no mask holds: {_some(left, zeros, others)}; include= takes such tensors",
            stacklevel=4,
        )


def _some(names: list[str], zeros: Mapping[str, int] | None = None, of: Mapping[str, Tensor] | None = None) -> str:
    """The first few of them, with what share is 0.0, and how many more there are."""
    share = {} if zeros is None or of is None else {n: f" ({zeros[n]:,} of {of[n].numel():,})" for n in names}
    few = ", ".join(f"{name!r}{share.get(name, '')}" for name in names[:3])
    return few if len(names) <= 3 else f"{few} and {len(names) - 3} more"


def _names(names: list[str]) -> str:
    return repr(tuple(names)) if len(names) <= 3 else f"({names[0]!r}, …)"


# -- masks of torch's own ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """The mask that another tool keeps for a tensor: `name` is what the weight is called once that tool is gone."""

    name: str
    by: str
    mask: Tensor
    weight: Tensor
    layer: nn.Module | None = None
    tensor: str = ""

    def alive(self) -> Tensor:
        """True where the weight is alive. Raises `MaskError` where the mask is no mask of it."""
        if self.mask.shape != self.weight.shape:
            raise MaskError(f"{self.name!r} is {tuple(self.weight.shape)} and its mask is {tuple(self.mask.shape)}")
        if self.mask.is_meta:
            raise MaskError(f"the mask of {self.name!r} is on the meta device and has no values: load them first")
        if not ((self.mask == 0) | (self.mask == 1)).all():
            raise MaskError(f"the mask of {self.name!r}, by {self.by}, is not of zeros and ones alone")
        return self.mask != 0

    def end(self) -> None:
        """Makes a plain parameter of it, the same one that an optimiser may have."""
        assert self.layer is not None
        if self.by == TORCH_AO:
            parametrize.remove_parametrizations(self.layer, self.tensor, leave_parametrized=True)
        else:
            prune.remove(self.layer, self.tensor)


def taken_from(source: Any) -> list[Taken]:
    """Every mask that `torch.nn.utils.prune` or `torch.ao.pruning` keeps in a model, or in what is saved of it.

    Raises `MaskError` where there is none, and where more than a mask lies between a parameter and its weight.
    """
    if isinstance(source, Mapping) and {"state", "groups"} <= set(source):
        found = list(_masks_of_sparsifier(source))
    else:
        found = list(_masks_of_state(source) if is_state(source) else _masks_of_model(source))
    if not found:
        raise MaskError(
            f"there is no mask of {TORCH_PRUNE} or {TORCH_AO} here (which keeps those of a state in "
            f"sparsifier.state_dict()); of weights that are 0.0 by themselves: Masks.of_zeros(model)"
        )
    return found


def _masks_of_model(model: Any) -> Iterator[Taken]:
    users: dict[int, list[str]] = {}
    for layer_name, layer in named_layers(model):
        for key, parameter in layer._parameters.items():
            users.setdefault(id(parameter), []).append(joined(layer_name, key))
    for layer_name, layer in named_layers(model):
        for one in (made := derived(layer)):
            if one.mend is None:
                continue
            name = joined(layer_name, one.tensor)
            _check_alone(name, one, made, layer)
            mask, weight = _mask_in(layer, one), layer.get_parameter(one.origins[0])
            if len(users[id(weight)]) > 1:
                raise MaskError(
                    f"{name!r} is pruned by {one.by} where it is one parameter with {_some(users[id(weight)])}: masks "
                    f"of shared weights must be one; make it final in each layer, and take Masks.of_zeros(model)"
                )
            yield Taken(name, one.by, mask, weight, layer, one.tensor)


def _check_alone(name: str, one: Derived, made: list[Derived], layer: nn.Module) -> None:
    """Raises `MaskError` where more than one mask makes the weight."""
    others = [other.by for other in made if other is not one and (other.mend is None or other.tensor == one.tensor)]
    if one.by == TORCH_AO:
        steps: Any = layer.parametrizations[one.tensor]  # type: ignore[index]
        others += [type(step).__name__ for step in steps if type(step).__name__ != "FakeSparsity"]
        others += ["a second mask"] if len(steps) > 1 and not others else []
    if others:
        raise MaskError(
            f"{name!r} is made by {one.by} and by {others[0]} both: which of them comes first is not seen; "
            f"make the mask final with {one.mend}, and take Masks.of_zeros(model)"
        )


def _mask_in(layer: nn.Module, one: Derived) -> Tensor:
    place = f"parametrizations.{one.tensor}.0.mask" if one.by == TORCH_AO else f"{one.tensor}_mask"
    return layer.get_buffer(place)


def _masks_of_state(state: Mapping[str, Any]) -> Iterator[Taken]:
    """Of a model under `torch.nn.utils.prune`."""
    for key, mask in state.items():
        name = key.removesuffix("_mask")
        if name == key or f"{name}_orig" not in state:
            continue
        if beside := [k for k in (name, f"{name}_u", f"{name.removesuffix('_orig')}_u", f"{name}_g") if k in state]:
            raise MaskError(
                f"{name!r} is made by the mask of {TORCH_PRUNE} and by more, as {beside[0]!r} shows: load the state "
                f"into its model, make the mask final there, and take Masks.of_zeros(model)"
            )
        yield Taken(name, TORCH_PRUNE, mask, state[f"{name}_orig"])


def _masks_of_sparsifier(state: Mapping[str, Any]) -> Iterator[Taken]:
    """Of a sparsifier of `torch.ao.pruning`: the state of its model has weights without their masks."""
    for name, kept in state["state"].items():
        yield Taken(name, TORCH_AO, kept["mask"], kept["mask"])

"""The moving averages that a training returns, in whichever form people keep them, as models of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.errors import MaskError
from gentickets.masks.examples import WHOLE
from gentickets.masks.names import (
    Shadows,
    as_copy,
    check_components,
    clone,
    component_at,
    components_of,
    named_state,
    named_weights,
    unwrap,
)
from gentickets.training.averaging import Average, settle
from gentickets.training.loop import Trained

_WRAPPERS = re.compile(r"^((module|_orig_mod|_forward_module)\.)+")
_COUNTS = frozenset({"n_averaged"})
"""What `AveragedModel.state_dict()` holds beside the network's own tensors."""

_FORMS = "give a model of it, what hold(copies=…) takes, or its state_dict(), each component's under its name"


def averages_in(given: object, model: nn.Module) -> nn.Module | None:
    """What of that which a training returned are averages of `model`: one of the whole, or a module whose children are
    those of components; None where nothing is.

    An average is a model, `Shadows`, or a state dictionary: of the whole, of a component by its name in a dict, or of
    the one component that it fits. Numbers, losses, None and the model itself may stand beside it. They are copies:
    whoever averages may go on.

    Raises `MaskError` for what holds weights and is an average of nothing in the model, or of two things.
    """
    if isinstance(given, Trained):
        return given.averaged if components_of(given.averaged) else None
    found: dict[str, nn.Module] = {}
    for name, average in _found(given, model):
        if name in found or (found and WHOLE in (name, *found)):
            raise MaskError(f"train returned two averages of {_called(name)}: return the one that is to be judged")
        found[name] = average
    return found[WHOLE] if WHOLE in found else nn.ModuleDict(found) if found else None


def is_whole(averaged: nn.Module, model: nn.Module) -> bool:
    """Whether it is an average of the model, and not of components by themselves."""
    of_components = any(isinstance(child, Average) for child in unwrap(averaged).children())
    return not of_components and type(unwrap(averaged)) is type(unwrap(model)) and _alike(averaged, model)


def _found(given: object, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each average with the name of what it is of: a component, or `WHOLE`."""
    names = components_of(model)
    if isinstance(given, Trained):
        given = given.averaged
    if _is_of_itself(given, model):
        return
    if isinstance(given, nn.Module) and not is_whole(given, model) and _is_dict_of_nets(given, model):
        given = dict(unwrap(given).named_children())
    if isinstance(given, list | tuple):  # such as (averages, losses)
        for one in given:
            yield from _found(one, model)
    elif isinstance(given, Mapping) and not _is_state(given, model):
        for name, one in given.items():
            if _is_of_itself(one, model) or not _holds_weights(one, model, named=name in names):
                continue
            check_components([name], names)
            average = _average_of(one, component_at(model, name))
            if average is None:
                raise MaskError(f"train returned {_kind(one)} for {name!r}, which is no average of it: {_FORMS}")
            yield name, average
    elif _holds_weights(given, model):
        yield _of_what_it_fits(given, model)


def _of_what_it_fits(given: Any, model: nn.Module) -> tuple[str, nn.Module]:
    """An average without a name: of the whole, or of the only component that it fits."""
    if (whole := _average_of(given, model)) is not None:
        return WHOLE, whole
    fitting = [(name, _average_of(given, component_at(model, name))) for name in components_of(model)]
    found = [(name, average) for name, average in fitting if average is not None]
    if len(found) == 1:
        return found[0]
    fits = f"fits {' and '.join(name for name, _ in found)}" if found else "is no average of the model or a component"
    raise MaskError(f"train returned {_kind(given)} that {fits}: {_FORMS}")


def _average_of(given: Any, net: nn.Module) -> nn.Module | None:
    """A copy of `net` with the averaged tensors in it; None where what is given is no average of it."""
    if isinstance(given, nn.Module):
        if type(unwrap(given)) is type(unwrap(net)):
            return clone(unwrap(given)) if _alike(given, net) else None
        return _with_tensors(net, named_state(given), all_of_them=True)
    if isinstance(given, Shadows):
        try:
            shadows = named_weights(as_copy(given, net)[0])
        except MaskError:
            return None
        average = _with_tensors(net, shadows, all_of_them=False)
        return average and settle(average)  # of parameters alone: singular vectors are still those of the raw weights
    if isinstance(given, Mapping) and all(isinstance(one, Tensor) for one in given.values()):
        return _with_tensors(net, _unwrapped(given), all_of_them=True)
    return None


def _with_tensors(net: nn.Module, tensors: Mapping[str, Tensor], all_of_them: bool) -> nn.Module | None:
    """A copy of `net` with these in place of its own; None where they are others, or `all_of_them` should be there."""
    average = clone(net)
    places = unwrap(average).state_dict(keep_vars=True) | named_state(average)
    if any(name not in places or places[name].shape != tensor.shape for name, tensor in tensors.items()):
        return None
    if all_of_them and not named_weights(average).keys() <= tensors.keys():
        return None
    with torch.no_grad():
        for name, tensor in tensors.items():
            places[name].copy_(tensor)
    return average


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have weights of the same names and shapes."""
    ours, theirs = ({name: w.shape for name, w in named_weights(net).items()} for net in (one, other))
    return ours == theirs


# -- what is met in what trainings return ------------------------------------------------------------------------------


def _is_of_itself(given: object, model: nn.Module) -> bool:
    """Whether it is the model or of its own weights (a component, a module around it), and so no average."""
    return isinstance(given, nn.Module) and _ids(given) <= _ids(model)


def _ids(net: nn.Module) -> set[int]:
    return set(map(id, named_weights(net).values()))


def _is_dict_of_nets(given: nn.Module, model: nn.Module) -> bool:
    """Whether a module is not one network, but holds those of components."""
    children, own = components_of(given), list(unwrap(given).parameters(recurse=False))
    return bool(children) and set(children) <= set(components_of(model)) and not own


def _is_state(given: Mapping[Any, Any], model: nn.Module) -> bool:
    """Whether it is a state dictionary, of the model or of a component: tensors by the names of weights."""
    if not given or not all(isinstance(one, Tensor) for one in given.values()):
        return False
    known = {name for net in (model, *unwrap(model).children()) for name in named_weights(net)}
    return not known.isdisjoint(_unwrapped(given))


def _holds_weights(given: object, model: nn.Module, named: bool = False) -> bool:
    """Whether it may be an average, or has one in it, that must not be dropped in silence; what stands under a
    component's name (`named`) may be one by its tensors alone."""
    if isinstance(given, nn.Module):
        return bool(named_weights(given))
    if isinstance(given, Shadows):
        return True
    if isinstance(given, Tensor):
        return False  # a loss, or the course of one
    if isinstance(given, Mapping) and _is_state(given, model):
        return True
    if isinstance(given, Mapping | list | tuple):
        inside = list(given.values() if isinstance(given, Mapping) else given)
        tensors = named and any(isinstance(one, Tensor) and one.dim() for one in inside)
        return tensors or any(_holds_weights(one, model) for one in inside)
    # Of a class of one's own that keeps tensors by the names of weights, as averages written by hand do.
    return any(isinstance(one, Mapping) and _is_state(one, model) for one in getattr(given, "__dict__", {}).values())


def _unwrapped(state: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """A state dictionary by the names that its network has without wrappers."""
    return {_WRAPPERS.sub("", str(name)): tensor for name, tensor in state.items() if name not in _COUNTS}


def _called(name: str) -> str:
    return "the model" if name == WHOLE else repr(name)


def _kind(given: object) -> str:
    return f"a {type(given).__name__}"

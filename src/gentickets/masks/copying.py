"""A copy of a model, of which nothing leads back to the model.

`copy.deepcopy` keeps functions as they are. A function that a module has as an attribute or as a hook, and that closes
over the module or over a layer of it, would call the layers of the original in every copy: a ticket would be the dense
model, whatever its masks say. Such a model is refused; methods are copied with what they are methods of.
"""

from __future__ import annotations

import copy
import dis
import functools
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import (
    BuiltinMethodType,
    CellType,
    CodeType,
    FrameType,
    FunctionType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    TracebackType,
)
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.errors import MaskError

_OF_TORCH = ("_parameters", "_buffers", "_modules")
"""What `copy.deepcopy` copies one by one, as tensors and layers."""

_ENDS = (
    *(str, bytes, int, float, complex, type(None), Tensor, torch.dtype, torch.device),
    *(type, ModuleType, CodeType, FrameType, TracebackType),
)
"""What leads to nothing."""

_BEFORE_COPIES = ("__init__", "__new__")
"""Methods that no copy calls: what they close over went into the original."""

_PLAIN = frozenset({str, bool, int, float, type(None)})

_KEPT = (
    *(list, tuple, dict, set, frozenset, CellType, functools.partial, type(functools.cache(id))),
    *(MethodType, BuiltinMethodType, MethodWrapperType),
)
"""What is looked into wherever it is met; an object of another kind only where it is a copy, and so the model's own."""


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. What a pass has left in its attributes (an activation, the derived weight of an old-style norm), and
    `copy.deepcopy` refuses, the copy gets detached.

    Raises `MaskError` that names an attribute through which the copy would use layers of the original, and one that
    cannot be copied.
    """
    begun = {id(tensor): tensor.detach().clone() for tensor in _computed(model)}
    memo: dict[int, Any] = dict(begun)
    try:
        made = copy.deepcopy(model, memo)
    except Exception as error:  # whatever an attribute says that cannot be copied
        name = _not_copied(model, begun)
        raise MaskError(
            f"the model cannot be copied, as a search does for every ticket: {f'{name!r}, ' if name else ''}"
            f"{type(error).__name__}: {str(error)[:150]}; make it where it is used, or give its class a __deepcopy__"
        ) from error
    _check_apart(model, made, memo)
    return made


def _attributes(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Every attribute of every layer with its dotted name, but for what torch lists itself and what holds nothing; and
    the functions of classes that a function made, which may close over what that had."""
    for layer_name, layer in model.named_modules():
        prefix = f"{layer_name}." if layer_name else ""
        for name, value in vars(layer).items():
            if type(value) not in _PLAIN and name not in _OF_TORCH and not (isinstance(value, dict) and not value):
                yield prefix + name, value
        for made in type(layer).__mro__:
            if "<locals>" in made.__qualname__:
                own = {name: value for name, value in vars(made).items() if name not in _BEFORE_COPIES}
                yield from ((prefix + name, value) for name, value in own.items() if isinstance(value, FunctionType))


def _reached(root: object, parts: Callable[[Any], Iterable[object]], seen: dict[int, object]) -> Iterator[Any]:
    """All that `root` leads to by `parts`, each once. `seen` keeps what it has seen, so that no id is given twice."""
    stack = [root]
    while stack:
        one = stack.pop()
        if id(one) not in seen:
            seen[id(one)] = one
            yield one
            if not isinstance(one, _ENDS):
                stack.extend(parts(one))


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that a pass has computed and left in the attributes of layers, or in whatever these hold."""

    def parts(one: object) -> Iterable[object]:
        says_itself = hasattr(type(one), "__deepcopy__") and not isinstance(one, nn.Module)
        return () if says_itself or isinstance(one, FunctionType) else gc.get_referents(one)

    seen: dict[int, object] = {}
    for _, value in _attributes(model):
        yield from (one for one in _reached(value, parts, seen) if isinstance(one, Tensor) and not one.is_leaf)


def _not_copied(model: nn.Module, begun: Mapping[int, Tensor]) -> str | None:
    """The attribute that cannot be copied, where it is one."""
    for name, value in reversed(list(_attributes(model))):  # of the layers within before those that they are in
        try:
            copy.deepcopy(value, dict(begun))
        except Exception:
            return name
    return None


def _check_apart(model: nn.Module, made: nn.Module, memo: Mapping[int, Any]) -> None:
    """Raises `MaskError` where something of a copy leads to a layer or a parameter that it has a copy of."""
    originals = {id(one) for one in memo.get(id(memo), ()) if isinstance(one, nn.Module | nn.Parameter)}
    copies = {id(one) for one in memo.values()}

    def parts(one: object) -> Iterable[object]:
        if isinstance(one, FunctionType):
            return _of_function(one)
        if isinstance(one, weakref.ref):
            return (one(),)
        if isinstance(one, dict):
            return one.values()  # what is a key is noted down, as by hooks, and not used
        return gc.get_referents(one) if isinstance(one, _KEPT) or id(one) in copies else ()

    seen: dict[int, object] = {id(layer): layer for layer in made.modules()}  # each is looked at under its own name
    for name, value in _attributes(made):
        back = next((one for one in _reached(value, parts, seen) if id(one) in originals), None)
        if back is not None:
            raise MaskError(
                f"{name!r} uses {_called(back, model)}, and goes on to use it in every copy, so that a ticket would be "
                f"computed by the weights of the original: make it a method, or write what it does into forward"
            )


def _of_function(function: FunctionType) -> list[object]:
    """What a function brings along: what it closes over, its defaults and attributes, and the models that it reads as
    globals."""
    brought: list[object] = [*(function.__closure__ or ()), *(function.__defaults__ or ())]
    brought += [function.__kwdefaults__, vars(function)]
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        read = (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
        values = (function.__globals__.get(name) for name in read)
        brought += [value for value in values if isinstance(value, nn.Module | nn.Parameter)]
        codes += [inside for inside in code.co_consts if isinstance(inside, CodeType)]
    return brought


def _called(one: nn.Module | nn.Parameter, model: nn.Module) -> str:
    if one is model:
        return "the model itself"
    names = {id(of): name for name, of in (*model.named_modules(), *model.named_parameters())}
    return f"{names[id(one)]!r} of the model" if id(one) in names else f"a {type(one).__name__} of the model"

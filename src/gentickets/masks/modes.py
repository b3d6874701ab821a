"""What a mode sees of a network: all that it does, what each operation is called, and what a tensor stands for.

A `TorchFunctionMode` sees the operations that Python code asks for. What torch compiled, scripted or computes again
would run past it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _is_torch_function_mode_enabled, handle_torch_function
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

_Function = torch.autograd.function._SingleLevelFunction
_ScriptFunction, _ScriptMethod = torch._C.ScriptFunction, torch._C.ScriptMethod


@contextmanager
def in_sight() -> Iterator[None]:
    """Nothing of a network runs past a mode: compiled code runs operation by operation, checkpointed code once, and a
    scripted or traced function as the Python that it was made of. A script without Python, as a scripted module is, is
    one operation."""
    with (
        torch.compiler.set_stance("force_eager"),
        _replaced(checkpoint, _CHECKPOINTS),
        _replaced(_ScriptFunction, {"__call__": _seen(_ScriptFunction.__call__)}),
        _replaced(_ScriptMethod, {"__call__": _seen(_ScriptMethod.__call__)}),
    ):
        yield


@contextmanager
def _replaced(owner: Any, stands_for: Mapping[str, Any]) -> Iterator[None]:
    """These attributes, replaced for a while."""
    kept = {name: vars(owner)[name] for name in stands_for if name in vars(owner)}
    try:
        for name, other in stands_for.items():
            setattr(owner, name, other)
        yield
    finally:
        for name in stands_for:
            if name in kept:
                setattr(owner, name, kept[name])
            else:
                delattr(owner, name)


def _seen(call: Callable[..., Any]) -> Callable[..., Any]:
    """Stands for the call of a script: its Python, or one operation of the mode at work."""

    def stand_in(script: Any, *args: Any, **kwargs: Any) -> Any:
        # What it was made of, as torch keeps it for its compiler.
        if (python := getattr(script, "_torchdynamo_inline", None)) is not None:
            return python(*args, **kwargs)
        if _is_torch_function_mode_enabled():
            return handle_torch_function(script, (), *args, **kwargs)
        return call(script, *args, **kwargs)

    return stand_in


class _Called:
    """Stands for the function of a checkpoint that keeps nothing: it just calls."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _once(*_: Any, **__: Any) -> Iterator[None]:
    """Stands for the account that a checkpoint keeps of what it has to compute again, for a derivative: that would be
    done outside of any mode."""
    yield


_CHECKPOINTS = {"CheckpointFunction": _Called, "_checkpoint_without_reentrant_generator": _once}


@contextmanager
def functions_as_written() -> Iterator[None]:
    """Functions with a derivative of their own (`torch.autograd.Function`) are their forward code, operation by
    operation; those whose derivative does not follow from it (kernels, quantisers) are one operation, as they are."""

    def stand_in(function: Any, *args: Any) -> Any:
        def whole(*args: Any) -> Any:
            return super(_Function, function).apply(*args)

        if not _is_torch_function_mode_enabled():
            return whole(*args)
        alone = function.setup_context is not torch.autograd.Function.setup_context
        result = function.forward(*args) if alone else function.forward(_context(len(args)), *args)
        given, made = ([part for part in tree_leaves(parts) if isinstance(part, Tensor)] for parts in (args, result))
        if any(tensor.requires_grad for tensor in given) and not any(tensor.requires_grad for tensor in made):
            whole.__name__ = f"{function.__module__}.{function.__qualname__}"
            return handle_torch_function(whole, (), *args)
        return result

    # What `Function.apply` goes by, which code may have taken long before.
    with _replaced(_Function, {"apply": classmethod(stand_in)}):
        yield


def _context(count: int) -> SimpleNamespace:
    """Stands for what a function of so many arguments keeps for its derivative, which is not asked for."""
    told = ("save_for_backward", "save_for_forward", "mark_dirty", "mark_non_differentiable", "set_materialize_grads")
    return SimpleNamespace(needs_input_grad=(True,) * count, **dict.fromkeys(told, lambda *_, **__: None))


def name_of(call: Any) -> str:
    """What an operation is called: "tanh" for `torch.tanh`, a tensor's method, and any overload of aten's; "expit" for
    `torch.special.expit`; where it is none of torch's own, a name that none of those has."""
    if isinstance(call, torch._ops.OpOverload):
        call = call.overloadpacket
    if isinstance(call, torch._ops.OpOverloadPacket):
        return call.__name__ if call._qualified_op_name.startswith("aten::") else call._qualified_op_name
    if isinstance(call, _ScriptFunction | _ScriptMethod):
        return f"{call.name} (scripted)"
    return getattr(call, "__name__", "").removeprefix("special_")


def under(tensor: Tensor) -> Tensor:
    """The tensor that one inside `torch.vmap` or another transform of torch.func stands for; else itself."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor

"""A device that is pretended: its tensors say that they lie on "elsewhere", and are computed with on the CPU.

But never beside the CPU's own: code that makes a tensor and forgets to say where fails here as it does on a GPU, and so
does what reads one as an array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"


@cache
def _place() -> torch.device:
    """Registered when it is first needed: beside a GPU's, torch would not know which is the machine's accelerator."""
    _setup_privateuseone_for_python_backend(NAME)
    return torch.device(NAME, 0)


_CROSSING = {"_to_copy", "copy_", "set_"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that torch lets read from another device; those whose indices may lie on the CPU."""


class There(Tensor):
    """A tensor of the pretended device, around the one of the CPU that has its numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        told = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return Tensor._make_wrapper_subclass(
            cls, inner.size(), device=_place(), requires_grad=inner.requires_grad, **told
        )

    def __init__(self, inner: Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"There({self.inner!r})"


class _Draws(torch.Generator):
    """A generator of the pretended device; the numbers are the CPU's."""

    @property
    def device(self) -> torch.device:
        return _place()


def _generator(device: Any = "cpu") -> torch.Generator:
    return _Draws() if torch.device(device).type == NAME else _Real(device=device)


_Real = torch.Generator


class _Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


@contextmanager
def pretended() -> Iterator[None]:
    """Within, `.to("elsewhere")` and `device="elsewhere"` work."""
    _place()
    with _Pretending(), patch.object(torch, "Generator", _generator):
        yield


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """There is nothing to set up; a processor's refuses any device but its own."""


def fabric() -> Fabric:
    """A Fabric that trains on the pretended device, in float32; to be used within `pretended`."""
    return Fabric(strategy=SingleDeviceStrategy(device=_place(), accelerator=_Accelerator()))


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    name, wanted = func.overloadpacket.__name__, kwargs.get("device")
    if there and name not in _CROSSING | _INDEXED and any(t.dim() and not isinstance(t, There) for t in tensors):
        raise RuntimeError(f"expected all tensors to be on the same device: {func} of {NAME} and the CPU")
    goes_there = bool(there) if wanted is None else torch.device(wanted).type == NAME
    if name == "copy_":
        goes_there = isinstance(args[0], There)
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    return tree_map(_outside({id(tensor.inner): tensor for tensor in there}), result) if goes_there else result


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, There) else value


def _outside(known: dict[int, There]) -> Callable[[Any], Any]:
    """What was worked on in place is given back as the tensor that it was."""
    return lambda value: (
        (known[id(value)] if id(value) in known else There(value)) if isinstance(value, Tensor) else value
    )

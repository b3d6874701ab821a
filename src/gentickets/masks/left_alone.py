"""Whether something that was called left a model, its gradients and modes, and the global generators as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.errors import demand
from gentickets.masks.names import named_state, named_weights

T = TypeVar("T")

_OWN = "a generator of your own, of a seed"


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bit for bit, a NaN being one."""
    return (
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    ) and torch.equal(one.isnan(), other.isnan())


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name → a copy that shares no memory with it."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that is another, or not in both; None where there is none."""
    names = [*before, *(name for name in after if name not in before)]
    return next((n for n in names if n not in before or n not in after or not equal(before[n], after[n])), None)


@contextmanager
def left_alone(what: str, model: nn.Module) -> Iterator[None]:
    """Demands that the model, its gradients and modes, and the global generators are afterwards as before."""
    state, grads = copies(named_state(model)), _gradients(model)
    flags, generators = _flags(model), _generators()
    yield
    name = changed(state, named_state(model))
    demand(name is None, f"{what} changed {name!r} of the model: it may read weights, and not write them")
    name = changed(grads, _gradients(model))
    demand(name is None, f"{what} left a gradient on {name!r}: use torch.autograd.grad, or a copy of the model")
    now = _flags(model)
    name = next((name for name in flags if now.get(name) != flags[name]), None)
    demand(name is None, f"{what} left {name!r} in another mode (training, requires_grad) than it found it in")
    _check_drew_none(what, [name for name, one in _generators().items() if not np.array_equal(one, generators[name])])


def asked_twice(what: str, ask: Callable[[], T], source: str = _OWN) -> tuple[T, T]:
    """What it gives, and what it gives when it is asked again; the global generators are left as they were.

    Raises `Unmet` where it draws from one of them, each time or at first only, and not from `source`. One that it seeds
    itself is as good as one of its own.
    """
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        begun, first, then = _generators(), ask(), _generators()
        _draw_from_each()
        elsewhere, again, last = _generators(), ask(), _generators()
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        random.setstate(kept[2])

    def drew(name: str) -> bool:
        untouched = np.array_equal(begun[name], then[name]) and np.array_equal(elsewhere[name], last[name])
        return not untouched and not np.array_equal(then[name], last[name])

    _check_drew_none(what, [name for name in begun if drew(name)], source)
    return first, again


def _check_drew_none(what: str, moved: list[str], source: str = _OWN) -> None:
    demand(not moved, f"{what} drew from the global generator of {' and '.join(moved)}: draw from {source}")


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in named_weights(model).items()}
    return {name: grad.detach().clone() for name, grad in found.items() if grad is not None}


def _flags(model: nn.Module) -> dict[str, bool]:
    modes = {name or "the model": layer.training for name, layer in model.named_modules()}
    return modes | {name: weight.requires_grad for name, weight in named_weights(model).items()}


def _generators() -> dict[str, np.ndarray]:
    mersenne: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - somebody may draw from it
    return {
        "torch": torch.get_rng_state().numpy().copy(),
        "numpy": np.append(mersenne["state"]["key"], mersenne["state"]["pos"]),
        "random": np.asarray(random.getstate()[1], dtype=np.uint64),
    }


def _draw_from_each() -> None:
    """So that one which is seeded, and then drawn from, is told from one that is not drawn from again."""
    torch.rand(1)
    np.random.random()  # noqa: NPY002
    random.random()

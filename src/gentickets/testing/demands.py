"""What all checks share: demands that fail in a sentence, things left as they were, and building what is named."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.catalogue import Named
from gentickets.masks.names import named_state, named_weights


def demand(holds: object, sentence: str) -> None:
    """Raises `AssertionError` with the sentence, unless it holds (an `assert` is gone under `python -O`)."""
    if not holds:
        raise AssertionError(sentence)


def is_named(said: object) -> bool:
    """Whether it is a name, alone or with options."""
    return isinstance(said, str | Named) or (isinstance(said, Mapping) and "name" in said)


def needed(kind: str, said: Any) -> list[str]:
    """The arguments that it cannot do without."""
    target = Named.of(kind, said).load() if is_named(said) else said
    try:
        takes = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return []
    return [key for key, one in takes.items() if one.default is one.empty]


def built(kind: str, said: Any, **given: Any) -> Any:
    """What is checked: something of this kind by its name, or a class or function, given what it has an argument for;
    or an object as it is."""
    if is_named(said):
        return Named.of(kind, said).build(**given)
    if not inspect.isclass(said) and not inspect.isroutine(said):
        return said
    takes = inspect.signature(said).parameters
    told = {key: value for key, value in given.items() if key in takes}
    if inspect.isclass(said):
        return said(**told)
    return functools.partial(said, **told) if told else said


def titled(said: Any) -> str:
    """What it is called in a sentence."""
    if isinstance(said, str):
        return said
    if isinstance(said, Named):
        return said.name
    if isinstance(said, Mapping):
        return str(said.get("name"))
    return getattr(said, "__name__", None) or type(said).__name__


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bit for bit, a NaN being one."""
    return (
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    ) and torch.equal(one.isnan(), other.isnan())


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that is another, or not in both; None where there is none."""
    names = [*before, *(name for name in after if name not in before)]
    return next((n for n in names if n not in before or n not in after or not equal(before[n], after[n])), None)


@contextmanager
def left_alone(what: str, model: nn.Module, *, statistics: bool = False) -> Iterator[None]:
    """Demands that the model, its gradients and modes, and the global generators are afterwards as before.

    `statistics`: buffers may move, as those of batch norms do in training mode.
    """
    state, grads = copies(named_state(model)), _gradients(model)
    flags, generators = _flags(model), _generators()
    yield
    own = named_weights(model)
    after = {name: t for name, t in named_state(model).items() if not statistics or name in own}
    before = {name: t for name, t in state.items() if not statistics or name in own}
    name = changed(before, after)
    demand(name is None, f"{what} changed {name!r} of the model: it may read weights, and not write them")
    name = changed(grads, _gradients(model))
    demand(name is None, f"{what} left a gradient on {name!r}: use torch.autograd.grad, or a copy of the model")
    now = _flags(model)
    name = next((name for name in flags if now.get(name) != flags[name]), None)
    demand(name is None, f"{what} left {name!r} in another mode (training, requires_grad) than it found it in")
    moved = [name for name, one in _generators().items() if not np.array_equal(one, generators[name])]
    demand(
        not moved,
        f"{what} drew from the global generator of {' and '.join(moved)}: draw from a generator of your own, of a seed",
    )


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

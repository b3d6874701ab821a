"""What an optimiser keeps of each parameter: a number for each weight, or something else?

A tensor of a weight's shape need not go with its weights: of a square matrix, Shampoo's sums over rows and over columns
(Gupta et al. 2018) are of the same shape. What lies at a place is told by the parameters whose shape leaves no doubt.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Place = tuple[Any, ...]
"""Where a tensor lies in the state of a parameter: the keys on the way to it."""

_tried: WeakKeyDictionary[torch.optim.Optimizer, dict[Place, bool]] = WeakKeyDictionary()


def tensors_of_state(state: object, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """The tensors of an optimiser's state, however deep they lie in it."""
    if isinstance(state, Tensor):
        yield place, state
    elif isinstance(state, Mapping | list | tuple):
        for key, value in state.items() if isinstance(state, Mapping) else enumerate(state):
            yield from tensors_of_state(value, (*place, key))


def is_doubtful(weight: Tensor) -> bool:
    """Whether what has this weight's shape may be something else than a number for each of its weights: a sum over the
    rows of a square matrix times themselves, or, of a single number, another one."""
    return weight.dim() in (0, 2) and len(set(weight.shape)) <= 1


def goes_with_weights(optimizer: torch.optim.Optimizer, place: Place, weight: Tensor) -> bool | None:
    """Whether the state of a doubtful `weight` at `place` is a number for each weight; None where that cannot be told.

    Told by the oblong parameters of the optimiser, or, where it has none, by what another of its class, with the same
    options, keeps of one; torch's own keep nothing else of a matrix in its shape.
    """
    if weight.dim() and type(optimizer).__module__.startswith("torch.optim."):
        return True
    told = [
        value.shape == parameter.shape
        for parameter, state in optimizer.state.items()
        if parameter.dim() == 2 and not is_doubtful(parameter)
        for at, value in tensors_of_state(state)
        if at == place
    ]
    if told:
        return all(told)
    if optimizer not in _tried:
        _tried[optimizer] = _tried_out(optimizer, weight)
    return _tried[optimizer].get(place)


def _tried_out(optimizer: torch.optim.Optimizer, like: Tensor) -> dict[Place, bool]:
    """Where another optimiser keeps what is of an oblong weight's shape, and where it keeps something else; nothing of
    one that cannot be made or stepped so."""
    kind: Any = type(optimizer)
    options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    devices = [like.device] if like.device.type == "cuda" else []
    try:
        takes = inspect.signature(kind).parameters
        every = any(one.kind is one.VAR_KEYWORD for one in takes.values())
        known = {key: value for key, value in {**optimizer.defaults, **options}.items() if every or key in takes}
        with warnings.catch_warnings(), torch.random.fork_rng(devices=devices), torch.enable_grad():
            warnings.simplefilter("ignore")
            weight = nn.Parameter(torch.randn(3, 5, dtype=like.dtype, device=like.device))
            twin = kind([weight], **known)
            twin.param_groups[0].update(options)
            step = getattr(kind.step, "__wrapped__", kind.step)  # of which no hook hears, ours included
            for _ in range(2):
                weight.grad = torch.randn_like(weight)
                step(twin)
            return {place: value.shape == weight.shape for place, value in tensors_of_state(twin.state[weight])}
    except Exception:  # of a stranger's code, that may want other arguments, a closure, or other weights
        return {}

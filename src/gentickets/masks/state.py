"""What an optimiser keeps of each parameter: a number for each weight, or something else?

A tensor of a weight's shape need not go with its weights: of a square matrix, Shampoo's sums over rows and over columns
(Gupta et al. 2018) are of the same shape. What a key holds is told by the parameters whose shape leaves no doubt.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def goes_with_weights(optimizer: torch.optim.Optimizer, key: str) -> bool | None:
    """Whether `optimizer.state[parameter][key]` holds a number for each weight; None where that cannot be told.

    Told by every parameter that has it: by one of another shape it does not. Where all are square matrices or vectors,
    by what the optimiser's class keeps, by its defaults, after a step of an oblong one; torch's own all do.
    """
    doubtful = False
    sure = type(optimizer).__module__.startswith("torch.optim.")
    for parameter, state in optimizer.state.items():
        value = state.get(key) if isinstance(state, Mapping) else None
        if not isinstance(value, Tensor) or value.numel() <= 1:
            continue
        if value.shape != parameter.shape:
            return False
        sure |= parameter.dim() > 1 and not is_square(parameter)
        doubtful = True
    if sure or not doubtful:
        return sure
    return _of_an_oblong_one(optimizer, key)


def is_square(weight: Tensor) -> bool:
    """Whether a sum over a weight's rows times themselves has its shape."""
    return weight.dim() == 2 and weight.shape[0] == weight.shape[1] > 1


def _of_an_oblong_one(optimizer: torch.optim.Optimizer, key: str) -> bool | None:
    kind: Any = type(optimizer)
    weight = nn.Parameter(torch.linspace(-1, 1, 15).reshape(3, 5))
    weight.grad = torch.linspace(1, 2, 15).reshape(3, 5)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            takes = inspect.signature(kind).parameters
            every = any(one.kind is one.VAR_KEYWORD for one in takes.values())
            another = kind([weight], **{name: it for name, it in optimizer.defaults.items() if every or name in takes})
            another.step()
            value = another.state[weight].get(key)
    except Exception:  # it wants more than parameters and its defaults
        return None
    return value.shape == weight.shape if isinstance(value, Tensor) else None

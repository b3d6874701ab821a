"""Optimisers that a hold is given: which really step, which move each weight by itself, which cannot be held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.adam import FusedAdamW
from gentickets.errors import MaskError

EACH_BY_ITSELF = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Rprop,
    torch.optim.SparseAdam,
    FusedAdamW,
)
"""Optimisers of exactly these types move each weight by its own gradient and keep no other weights: to mask what they
stepped is enough. Any other may let the gradient of one weight move another (Muon, Adafactor), keep weights in its
state (schedule-free, Lookahead, the average of ASGD), or look at the model inside its step (SAM)."""

_TRANSPARENT = ("Fabric", "Lightning", "Accelerated")
"""Wrappers of optimisers that write no weight themselves, by how their class's name begins."""


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """All that it steps."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def check_can_be_held(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raises `MaskError` for an optimiser to which a hold on `model` would mean nothing."""
    kind, parameters = type(optimizer).__name__, list(parameters_of(optimizer))
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MaskError("LBFGS evaluates the model inside its step, between two maskings: use another")
    if any(getattr(parameter, "is_emptied", False) for parameter in parameters):
        raise MaskError("an optimiser has a weight that `accelerate` emptied: make it after accelerate(...)")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for parameter in parameters):
        raise MaskError(
            f"{kind} has no parameter of this model, but perhaps of a copy of it: make it of the model's own, as "
            f"{kind}(model.parameters()), or leave it out of the hold"
        )


def underlying(optimizers: Iterable[Any]) -> tuple[tuple[torch.optim.Optimizer, ...], bool]:
    """The torch optimisers that these are or drive, whose hooks fire; and whether one may write weights unseen.

    Hooks belong on the ones that really step: those inside Fabric's, Lightning's or accelerate's wrappers, or inside
    one that builds on another (SAM, Lookahead). Raises `MaskError` for one in which there is none.
    """
    found: dict[int, torch.optim.Optimizer] = {}
    hidden = False
    for given in optimizers:
        ahead, inner, seen = [given], 0, set()
        while ahead:
            one = ahead.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, torch.optim.Optimizer):
                if "_optimizer_step_post_hooks" in vars(one):
                    found[id(one)] = one
                    inner += 1
                else:
                    hidden |= not type(one).__name__.startswith(_TRANSPARENT)
            ahead.extend(
                part for part in getattr(one, "__dict__", {}).values() if isinstance(part, torch.optim.Optimizer)
            )
        if not inner:
            raise MaskError(
                f"cannot hold through {type(given).__name__}: it is no torch.optim.Optimizer "
                "(several are given one by one: masks.hold(model, opt_g, opt_d))"
            )
    return tuple(found.values()), hidden

"""LAMP: magnitudes that compare across layers (Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning",
ICLR 2021)."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from gentickets.masks.value import Masks
from gentickets.pruning.scores import magnitude
from gentickets.pruning.selection import lots

_MANY_TIES = 0.01
"""The share of a layer's weights that may be of one size without a word."""


def lamp(model: nn.Module, masks: Masks) -> dict[str, torch.Tensor]:
    """A weight's square over its own and those of its layer that come after it by size (Eq. 3), among what is alive.

    The largest of each layer scores 1, so that no layer goes first as a whole. So that this holds where weights are of
    one size too, as in a clipped critic, these come after one another by lot, as `prune` draws it and not by where they
    stand; where they are more than 1 % of a layer, a warning says so.
    """
    return {name: _of_layer(name, score, masks[name]) for name, score in magnitude(model, include=tuple(masks)).items()}


def _of_layer(name: str, magnitudes: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    squares = magnitudes.double().square().where(alive.to(magnitudes.device), 0.0).flatten()
    drawn = torch.from_numpy(lots(name, len(squares))).to(squares.device).argsort()
    order = drawn[squares[drawn].argsort(stable=True)]
    by_size = squares[order]
    _tell_ties(name, by_size[by_size > 0])
    rest = by_size.flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = by_size / rest.clamp(min=torch.finfo(torch.float64).tiny)
    return scores.reshape(magnitudes.shape)


def _tell_ties(name: str, squares: torch.Tensor) -> None:
    """Warns where many of a layer's weights, in order, are of one size."""
    sizes, counts = squares.unique_consecutive(return_counts=True)
    if len(counts) and (most := int(counts.max())) > max(1, _MANY_TIES * len(squares)):
        warnings.warn(
            f"{most:,} of {len(squares):,} weights of {name!r} are exactly {sizes[counts.argmax()].sqrt():.6g} from 0: "
            f"which of them LAMP has go first is drawn by lot",
            stacklevel=4,
        )

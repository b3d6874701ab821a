"""LAMP: magnitudes that compare across layers (Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning",
ICLR 2021)."""

from __future__ import annotations

import torch
from torch import nn

from gentickets.masks.value import Masks
from gentickets.pruning.scores import magnitude


def lamp(model: nn.Module, masks: Masks) -> dict[str, torch.Tensor]:
    """A weight's square over the sum of the squares of its layer that are no smaller (Eq. 3), among what is alive.

    The largest of each layer scores 1, so that no layer goes first as a whole.
    """
    return {name: _of_layer(score, masks[name]) for name, score in magnitude(model, include=tuple(masks)).items()}


def _of_layer(magnitudes: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    squares = magnitudes.double().square().where(alive.to(magnitudes.device), 0.0).flatten()
    order = squares.argsort(stable=True)
    rest = squares[order].flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = squares[order] / rest.clamp(min=torch.finfo(torch.float64).tiny)
    return scores.reshape(magnitudes.shape)

"""Spectral norm of live weights (Miyato et al. 2018): as torch computes it, from the weights that there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as OldSpectralNorm

from gentickets.sparse.layout import ONE_POSITION, Pattern
from gentickets.sparse.operations import down, up


@dataclass(frozen=True)
class Found:
    """A spectral norm in a layer. `holder`: the module with the singular vectors; `left`, `right`: their names there.

    `iterations` of the power method a training pass, which begins with the right vector where `right_first`.
    """

    holder: nn.Module
    left: str
    right: str
    iterations: int
    eps: float
    right_first: bool


def find(layer: nn.Module) -> Found | None:
    """The layer's spectral norm, of either of torch's styles, if its weight is derived by that alone; else None.

    Of a matrix whose rows are the weight's first axis: the one that the live weights of a row lie together in.
    """
    parametrised = getattr(layer, "parametrizations", None)
    if parametrised is not None:
        if list(parametrised) != ["weight"] or len(parametrised["weight"]) != 1:
            return None
        norm = parametrised["weight"][0]
        if type(norm) is not _SpectralNorm or norm.dim != 0 or parametrised["weight"].unsafe:
            return None
        return Found(norm, "_u", "_v", norm.n_power_iterations, norm.eps, right_first=False)
    norms = [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, OldSpectralNorm)]
    if len(norms) != 1 or norms[0].name != "weight" or norms[0].dim != 0:
        return None
    return Found(layer, "weight_u", "weight_v", norms[0].n_power_iterations, norms[0].eps, right_first=True)


class LiveSpectralNorm(nn.Module):
    """Live weights → the same, divided by the largest singular value of their matrix, estimated by the power method.

    In training mode each pass improves the estimate, and no gradient flows through that (Miyato et al., Appendix A).
    """

    left: Tensor
    right: Tensor

    def __init__(self, found: Found, pattern: Pattern):
        super().__init__()
        self._found = (found,)  # in a tuple: the layer that it holds is no child of this one
        rows, *rest = pattern.shape
        self.matrix = Pattern((rows, torch.Size(rest).numel()), pattern.places, ONE_POSITION)
        self.register_buffer("left", getattr(found.holder, found.left))
        self.register_buffer("right", getattr(found.holder, found.right))

    def forward(self, values: Tensor) -> Tensor:
        found = self._found[0]
        if self.training:
            with torch.no_grad():
                for _ in range(found.iterations):
                    self._iterate(values, found)
        left, right = self.left.clone(), self.right.clone()  # the next pass changes them in place
        return values / torch.dot(left, self._times(values, right))

    def _iterate(self, values: Tensor, found: Found) -> None:
        steps = [(self.left, lambda: self._times(values, self.right)), (self.right, lambda: self._back(values))]
        for vector, product in reversed(steps) if found.right_first else steps:
            vector.copy_(F.normalize(product(), dim=0, eps=found.eps))

    def _times(self, values: Tensor, right: Tensor) -> Tensor:
        return down(values, None, right.unsqueeze(1), self.matrix.layout()).squeeze(1)

    def _back(self, values: Tensor) -> Tensor:
        return up(values, None, self.left.unsqueeze(1), self.matrix.layout()).squeeze(1)

    def give_back(self) -> None:
        """Puts the singular vectors, as they are now, where the dense layer reads them."""
        found = self._found[0]
        setattr(found.holder, found.left, self.left)
        setattr(found.holder, found.right, self.right)

    @property
    def nbytes(self) -> int:
        """Bytes of the indices that the norm needs beside those of its layer."""
        return self.matrix.nbytes - self.matrix.places.nbytes  # which it shares with the layer's own pattern


def underlying(layer: Any) -> nn.Parameter:
    """The tensor that the optimiser steps in a layer that is plain or normed: its weight before the norm."""
    for place in ("weight", "weight_orig", "weight_v"):
        if isinstance(weight := layer._parameters.get(place), nn.Parameter):
            return weight
    before = layer.parametrizations.weight
    return before.original1 if hasattr(before, "original1") else before.original

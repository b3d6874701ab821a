"""Weight norm of live weights (Salimans and Kingma 2016): each filter is its direction, at a length that is learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm as OldWeightNorm

from gentickets.sparse.layout import Pattern


@dataclass(frozen=True)
class Lengths:
    """A weight norm in a layer: where the lengths of its filters are a parameter, and of what name."""

    holder: nn.Module
    name: str


def find_lengths(layer: nn.Module) -> Lengths | None:
    """The layer's weight norm, of either of torch's styles, if its weight is derived by that alone; else None.

    Of filters that are the weight's first axis: the one that the live weights of a row lie together in.
    """
    parametrised = getattr(layer, "parametrizations", None)
    if parametrised is not None:
        if list(parametrised) != ["weight"] or len(parametrised["weight"]) != 1:
            return None
        norm = parametrised["weight"][0]
        return Lengths(parametrised["weight"], "original0") if type(norm) is _WeightNorm and norm.dim == 0 else None
    norms = [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, OldWeightNorm)]
    return Lengths(layer, "weight_g") if len(norms) == 1 and (norms[0].name, norms[0].dim) == ("weight", 0) else None


class LiveWeightNorm(nn.Module):
    """Live weights → the same, each filter at its length, which stays the parameter that the dense layer has."""

    row: Tensor
    lengths: nn.Parameter

    def __init__(self, found: Lengths, pattern: Pattern):
        super().__init__()
        self._found = (found,)  # in a tuple: the layer that it holds is no child of this one
        self.register_parameter("lengths", getattr(found.holder, found.name))
        rows, *rest = pattern.shape
        self._rows = rows
        row = torch.from_numpy(pattern.places).long() // max(1, torch.Size(rest).numel())
        self.register_buffer("row", row, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        squares = values.new_zeros(self._rows).index_add(0, self.row, values.square())
        alive = squares > 0  # of filters without a live weight nothing is read, nor is a root of 0 differentiated
        norms = torch.where(alive, squares, 1.0).sqrt()
        return values * (self.lengths.reshape(-1).to(values.dtype) / norms)[self.row]

    def give_back(self) -> None:
        """Puts the lengths, as they are now, where the dense layer reads them."""
        found = self._found[0]
        setattr(found.holder, found.name, self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of the indices that the norm needs beside those of its layer."""
        return self.row.nbytes

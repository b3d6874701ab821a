"""Reconstruction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.objectives.base import Loss, Objective, binary_cross_entropy


@dataclass(frozen=True)
class Autoencoding(Objective):
    """Reconstruction: mean over all pixels of the squared error, the absolute error, or the cross-entropy."""

    loss: Literal["mse", "l1", "bce"] = "mse"
    """Of each pixel: the squared error, the absolute error, or the cross-entropy."""

    components: ClassVar = ("encoder", "decoder")
    averaged: ClassVar = ("encoder", "decoder")

    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Loss]:
        output = self.reconstruct(model, batch)
        if self.loss == "mse":
            value = F.mse_loss(output, batch)
        elif self.loss == "l1":
            value = F.l1_loss(output, batch)
        else:
            value = binary_cross_entropy(output, batch).mean()
        yield self.components, value

    def outputs(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        return {"decoder": self.reconstruct(model, batch)}

    def reconstruct(self, model: nn.Module, images: Tensor) -> Tensor:
        return model.decoder(model.encoder(images))  # type: ignore[operator]

    def example_inputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"encoder": images, "decoder": model.encoder(images)}  # type: ignore[operator]

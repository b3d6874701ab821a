"""Reconstruction with a small pull towards the normal distribution: the autoencoder of a latent space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gentickets.data.batches import Batch
from gentickets.objectives.base import Loss, Measure, Objective, conditioned, full
from gentickets.options import NotNegative


@dataclass(frozen=True)
class KLAutoencoding(Objective):
    """The autoencoder of latent diffusion (Rombach et al. 2022), without its perceptual and adversarial losses.

    The mean over pixels of the squared or the absolute error of one sample of the code, and `beta` times the mean over
    the code's numbers of KL(q(z | x) || N(0, 1)) in nats. The encoder gives a mean and a log variance, maps or vectors.
    Judged, and encoded, by the mean.
    """

    loss: Literal["mse", "l1"] = "mse"
    """Of each pixel: the squared or the absolute error."""
    beta: NotNegative = 1e-4
    """The weight of the KL divergence of a number of the code."""

    components: ClassVar = ("encoder", "decoder")
    averaged: ClassVar = ("encoder", "decoder")

    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Loss]:
        output, kl = self._forward(model, batch, rng)
        error = full(output) - batch
        yield self.components, (error.square() if self.loss == "mse" else error.abs()).mean() + self.beta * kl

    def _forward(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The decoder's output for one sample of the code, and the mean KL of a number of it."""
        mean, log_variance = (full(part) for part in model.encoder(batch))  # type: ignore[operator]
        noise = torch.randn(mean.shape, generator=rng, device=batch.device, dtype=mean.dtype)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return model.decoder(mean + noise * (0.5 * log_variance).exp()), kl  # type: ignore[operator]

    def outputs(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        return {"decoder": self._forward(model, batch, rng)[0]}

    def measures(self) -> Mapping[str, Measure]:
        label = "peak signal-to-noise ratio of reconstructions, dB, held-out images"
        return {"psnr": Measure(label, self.psnr, lower_is_better=False)}

    def psnr(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """Of each image, of the range from -1 to 1, (batch,)."""
        images, _ = conditioned(batch, False)
        error = (self.reconstruct(model, images) - images).square().flatten(1).mean(1)
        return 10 * (4 / error.clamp(min=1e-12)).log10()

    def reconstruct(self, model: nn.Module, images: Tensor) -> Tensor:
        return model.decoder(model.encoder(images)[0])  # type: ignore[operator]

    def example_inputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"encoder": images, "decoder": model.encoder(images)[0]}  # type: ignore[operator]

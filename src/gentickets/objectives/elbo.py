"""The evidence lower bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from gentickets.objectives.base import Loss, Objective, Reconstructs, Samples, binary_cross_entropy, full, latents


@dataclass(frozen=True)
class ELBO(Objective, Samples, Reconstructs):
    """The negative evidence lower bound (Kingma & Welling 2014), in nats per image, averaged over the batch.

    `-log p(x | z) + beta * KL(q(z | x) || N(0, I))`, one sample of z, the KL in closed form. `likelihood`:
    "gaussian" around the decoder's output with standard deviation `scale` on the [-1, 1] scale, constants left
    out of the loss (the default, √½, makes it the sum of squared errors), or "bernoulli" on intensities in
    [0, 1]. `beta` grows linearly from 0 over the first `warmup_steps` (beta-VAE: Higgins et al. 2017).
    """

    latent_size: int
    beta: float = 1.0
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    scale: float = math.sqrt(0.5)
    warmup_steps: int = 0

    components: ClassVar = ("encoder", "decoder")
    averaged: ClassVar = ("encoder", "decoder")

    def at(self, step: int) -> Self:
        if step >= self.warmup_steps:
            return self
        return replace(self, beta=self.beta * (step + 1) / self.warmup_steps, warmup_steps=0)

    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Loss]:
        output, kl = self._forward(model, batch, rng)
        if self.likelihood == "gaussian":
            distortion = (output - batch).square() / (2 * self.scale**2)
        else:
            distortion = binary_cross_entropy(output, batch)
        yield self.components, (distortion.flatten(1).sum(1) + self.beta * kl).mean()

    def _forward(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The decoder's output for one sample of z, and the KL of each image in nats."""
        mean, log_variance = (full(part) for part in model.encoder(batch))  # type: ignore[operator]
        noise = torch.randn(mean.shape, generator=rng, device=batch.device, dtype=mean.dtype)
        output = model.decoder(mean + noise * (0.5 * log_variance).exp())  # type: ignore[operator]
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return output, kl

    def bits_per_dimension(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Tensor:
        """The negative ELBO (beta 1) of each image in bits per pixel and channel, shape (batch,).

        The Gaussian is integrated over the 256 bins of an 8-bit image (the outermost ones open), so that the
        figure is one of a code for the image; the Bernoulli one is the cross-entropy of its intensities.
        """
        output, kl = self._forward(model, batch, rng)
        if self.likelihood == "gaussian":
            distortion = -_log_bin_probability(batch, output, self.scale)
        else:
            distortion = binary_cross_entropy(output, batch)
        nats = distortion.flatten(1).sum(1) + kl
        return nats / (math.log(2) * batch[0].numel())

    def sample(self, model: nn.Module, count: int, rng: torch.Generator) -> Tensor:
        return model.decoder(latents(count, self.latent_size, rng))  # type: ignore[operator]

    def reconstruct(self, model: nn.Module, images: Tensor) -> Tensor:
        return model.decoder(model.encoder(images)[0])  # type: ignore[operator]

    def example_inputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        return {"encoder": images, "decoder": images.new_zeros(len(images), self.latent_size)}


def _log_bin_probability(images: Tensor, mean: Tensor, scale: float) -> Tensor:
    """log of the mass that N(mean, scale²) has in each pixel's bin of width 2/255, open at -1 and 1."""
    normal = torch.distributions.Normal(0.0, 1.0)
    images, mean = images.double(), mean.double()
    upper = torch.where(images > 1 - 1 / 255, torch.inf, (images + 1 / 255 - mean) / scale)
    lower = torch.where(images < -1 + 1 / 255, -torch.inf, (images - 1 / 255 - mean) / scale)
    # The mass of [a, b] is that of [-b, -a]: taken on the left of the mean, where the difference keeps its digits.
    flip = lower > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    return (normal.cdf(upper) - normal.cdf(lower)).clamp(min=1e-300).log()

"""The evidence lower bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from gentickets.data.batches import Batch
from gentickets.objectives.base import (
    Loss,
    Measure,
    Objective,
    binary_cross_entropy,
    conditioned,
    conditions,
    example_labels,
    full,
    latents,
)
from gentickets.options import Count, NotNegative, Positive, Steps


@dataclass(frozen=True)
class ELBO(Objective):
    """The negative evidence lower bound (Kingma & Welling 2014), in nats per image, averaged over the batch.

    `-log p(x | z) + beta * KL(q(z | x) || N(0, I))`, one sample of z, the KL in closed form. `likelihood`:
    "gaussian" around the decoder's output with standard deviation `scale` on the [-1, 1] scale, constants left
    out of the loss (the default, √½, makes it the sum of squared errors), or "bernoulli" on intensities in
    [0, 1]. `beta` grows linearly from 0 over the first `warmup_steps` (beta-VAE: Higgins et al. 2017). `conditional`:
    p(x | z, y) and q(z | x, y), of labels that encoder and decoder take as their second argument (Sohn et al. 2015).
    """

    latent_size: Count
    """Numbers in the code of an image."""
    beta: NotNegative = 1.0
    """The weight of the KL divergence."""
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    """Of the pixels, given the code."""
    scale: Positive = 0.5**0.5
    """The standard deviation of the gaussian, where white is 1 and black is -1."""
    warmup_steps: Steps = 0
    """Steps over which beta grows from 0."""
    conditional: bool = False
    """Whether encoder and decoder are told the label of each image."""

    components: ClassVar = ("encoder", "decoder")
    averaged: ClassVar = ("encoder", "decoder")

    @property
    def wants_labels(self) -> bool:
        return self.conditional

    def at(self, step: int) -> Self:
        if step >= self.warmup_steps:
            return self
        return replace(self, beta=self.beta * (step + 1) / self.warmup_steps, warmup_steps=0)

    def losses(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Loss]:
        images, _ = conditioned(batch, self.conditional)
        output, kl = self._forward(model, batch, rng)
        if self.likelihood == "gaussian":
            distortion = (output - images).square() / (2 * self.scale**2)
        else:
            distortion = binary_cross_entropy(output, images)
        yield self.components, (distortion.flatten(1).sum(1) + self.beta * kl).mean()

    def _forward(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The decoder's output for one sample of z, and the KL of each image in nats."""
        images, labels = conditioned(batch, self.conditional)
        mean, log_variance = (full(part) for part in model.encoder(images, *labels))  # type: ignore[operator]
        noise = torch.randn(mean.shape, generator=rng, device=images.device, dtype=mean.dtype)
        output = model.decoder(mean + noise * (0.5 * log_variance).exp(), *labels)  # type: ignore[operator]
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return output, kl

    def outputs(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        return {"decoder": self._forward(model, batch, rng)[0]}

    def measures(self) -> Mapping[str, Measure]:
        name = "negative ELBO, bits per dimension, held-out images"
        label = name if self.likelihood == "gaussian" else f"{name} (Bernoulli cross-entropy)"
        return {"bits_per_dimension": Measure(label, self.bits_per_dimension)}

    def bits_per_dimension(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """The negative ELBO (beta 1) of each image in bits per pixel and channel, shape (batch,).

        The Gaussian is integrated over the 256 bins of an 8-bit image (the outermost ones open), so that the
        figure is one of a code for the image; the Bernoulli one is the cross-entropy of its intensities.
        """
        images, _ = conditioned(batch, self.conditional)
        output, kl = self._forward(model, batch, rng)
        if self.likelihood == "gaussian":
            distortion = -_log_bin_probability(images, output, self.scale)
        else:
            distortion = binary_cross_entropy(output, images)
        nats = distortion.flatten(1).sum(1) + kl
        return nats / (math.log(2) * images[0].numel())

    def sample(self, model: nn.Module, count: int, rng: torch.Generator, labels: Tensor | None = None) -> Tensor:
        beside = conditions(labels, self.conditional)
        return model.decoder(latents(count, self.latent_size, rng), *beside)  # type: ignore[operator]

    def reconstruct(self, model: nn.Module, images: Batch) -> Tensor:
        images, labels = conditioned(images, self.conditional)
        return model.decoder(model.encoder(images, *labels)[0], *labels)  # type: ignore[operator]

    def example_inputs(self, model: nn.Module, images: Batch) -> dict[str, Any]:
        labels = example_labels(images)
        images, _ = conditioned(images, False)
        code = images.new_zeros(len(images), self.latent_size)
        if not self.conditional:
            return {"encoder": images, "decoder": code}
        return {"encoder": (images, labels), "decoder": (code, labels)}


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

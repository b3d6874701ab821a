"""A generator against a discriminator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.objectives.base import Loss, Objective, Samples, full, latents


@dataclass(frozen=True)
class Adversarial(Objective, Samples):
    """A generator against a discriminator (Goodfellow et al. 2014): `n_critic` losses of D, then one of G.

    `loss`: "nonsaturating" (binary cross-entropy on logits), "hinge" (Miyato et al. 2018), "wasserstein"
    (Arjovsky et al. 2017). Latents are drawn from N(0, I), (batch, latent_size). `clip` bounds each weight of D
    after its step; `gradient_penalty` adds that factor times the mean of (|grad D| - 1)² between real and fake
    images (Gulrajani et al. 2017). The last fake batch that D was trained on is the one that G is trained on.

    Raises `ValueError` for a Wasserstein loss without either bound.
    """

    latent_size: int
    loss: Literal["nonsaturating", "hinge", "wasserstein"] = "nonsaturating"
    n_critic: int = 1
    clip: float | None = None
    gradient_penalty: float | None = None

    components: ClassVar = ("generator", "discriminator")
    averaged: ClassVar = ("generator",)

    def __post_init__(self) -> None:
        if self.loss == "wasserstein" and self.clip is None and self.gradient_penalty is None:
            raise ValueError("loss=wasserstein needs clip= (such as 0.01) or gradient_penalty= (such as 10)")
        if self.n_critic < 1:
            raise ValueError(f"n_critic={self.n_critic}: 1 or more")

    @property
    def batches_per_step(self) -> int:
        return self.n_critic

    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Loss]:
        fake = batch[:0]
        parts = batch.chunk(self.n_critic)
        for turn, real in enumerate(parts, start=1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and turn == len(parts)):
                fake = self.sample(model, len(real), rng)
            yield "discriminator", self._discriminator_loss(model, real, fake.detach(), rng)
            if self.clip is not None:
                with torch.no_grad():
                    for weight in model.discriminator.parameters():  # type: ignore[union-attr]
                        weight.clamp_(-self.clip, self.clip)
        yield "generator", self._generator_loss(_judge(model, fake))

    def _discriminator_loss(self, model: nn.Module, real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
        on_real, on_fake = _judge(model, real), _judge(model, fake)
        if self.loss == "nonsaturating":
            value = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        elif self.loss == "hinge":
            value = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
        else:
            value = on_fake.mean() - on_real.mean()
        if self.gradient_penalty is not None:
            value = value + self.gradient_penalty * _gradient_penalty(model, real, fake, rng)
        return value

    def _generator_loss(self, on_fake: Tensor) -> Tensor:
        return F.softplus(-on_fake).mean() if self.loss == "nonsaturating" else -on_fake.mean()

    def sample(self, model: nn.Module, count: int, rng: torch.Generator) -> Tensor:
        return model.generator(latents(count, self.latent_size, rng))  # type: ignore[operator]

    def example_inputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        return {"generator": images.new_zeros(len(images), self.latent_size), "discriminator": images}

    @torch.no_grad()
    def collapsed(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> str | None:
        """Collapsed: the samples differ from each other by less than 1 % of what real images do."""
        spread, real = self.sample(model, len(batch), rng).std(0).mean(), batch.std(0).mean()
        if spread < 0.01 * real:
            return f"the generator has collapsed: its samples differ by {spread:.2g}, real images by {real:.2g}"
        return None


def _judge(model: nn.Module, images: Tensor) -> Tensor:
    """The discriminator's logits, one an image."""
    return full(model.discriminator(images)).reshape(len(images), -1)  # type: ignore[operator]


def _gradient_penalty(model: nn.Module, real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """Mean of (|grad D(x)|₂ - 1)² at points drawn evenly between pairs of real and fake images."""
    share = torch.rand(len(real), 1, 1, 1, generator=rng, device=real.device)
    between = torch.lerp(real, full(fake), share).requires_grad_(True)
    (slope,) = torch.autograd.grad(_judge(model, between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()

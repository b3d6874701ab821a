"""A generator against a discriminator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.data.batches import Batch
from gentickets.objectives.base import (
    Loss,
    Measure,
    Objective,
    conditioned,
    conditions,
    example_labels,
    full,
    latents,
)
from gentickets.options import Count, NotNegative, Positive


@dataclass(frozen=True)
class Adversarial(Objective):
    """A generator against a discriminator (Goodfellow et al. 2014): `n_critic` losses of D, then one of G.

    `loss`: "nonsaturating" (binary cross-entropy on logits), "hinge" (Miyato et al. 2018), "wasserstein"
    (Arjovsky et al. 2017). Latents are drawn from N(0, I), (batch, latent_size). `clip` bounds each weight of D
    after its step; `gradient_penalty` adds that factor times the mean of (|grad D| - 1)² between real and fake
    images (Gulrajani et al. 2017). The last fake batch that D was trained on is the one that G is trained on.
    `conditional`: of labels that both take as their second argument (Mirza & Osindero 2014); fakes are of the labels of
    the real images.

    Raises `ValueError` for a Wasserstein loss without either bound.
    """

    latent_size: Count
    """Numbers in a latent vector."""
    loss: Literal["nonsaturating", "hinge", "wasserstein"] = "nonsaturating"
    """Cross-entropy, the hinge loss, or the difference of means (WGAN, which needs one of the two bounds below)."""
    n_critic: Count = 1
    """Steps of the discriminator for one of the generator."""
    clip: Positive | None = None
    """What bounds each weight of the discriminator (WGAN)."""
    gradient_penalty: NotNegative | None = None
    """The weight of the penalty on the discriminator's slope (WGAN-GP)."""
    conditional: bool = False
    """Whether generator and discriminator are told the label of each image."""

    components: ClassVar = ("generator", "discriminator")
    averaged: ClassVar = ("generator",)

    def __post_init__(self) -> None:
        if self.loss == "wasserstein" and self.clip is None and self.gradient_penalty is None:
            raise ValueError("loss=wasserstein needs clip= (such as 0.01) or gradient_penalty= (such as 10)")
        if self.n_critic < 1:
            raise ValueError(f"n_critic={self.n_critic}: 1 or more")

    @property
    def wants_labels(self) -> bool:
        return self.conditional

    @property
    def batches_per_step(self) -> int:
        return self.n_critic

    def losses(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Loss]:
        fake, labels = conditioned(batch[:0], self.conditional)
        parts: Sequence[Batch] = batch.chunk(self.n_critic)
        for turn, part in enumerate(parts, start=1):
            real, labels = conditioned(part, self.conditional)
            with torch.set_grad_enabled(torch.is_grad_enabled() and turn == len(parts)):
                fake = self.sample(model, len(real), rng, *labels)
            yield "discriminator", self._discriminator_loss(model, real, fake.detach(), labels, rng)
            if self.clip is not None:
                with torch.no_grad():
                    for weight in model.discriminator.parameters():  # type: ignore[union-attr]
                        weight.clamp_(-self.clip, self.clip)
        yield "generator", self._generator_loss(_judge(model, fake, labels))

    def _discriminator_loss(
        self, model: nn.Module, real: Tensor, fake: Tensor, labels: tuple[Tensor, ...], rng: torch.Generator
    ) -> Tensor:
        on_real, on_fake = self._terms(_judge(model, real, labels), _judge(model, fake, labels))
        value = on_real.mean() + on_fake.mean()
        if self.gradient_penalty is not None:
            value = value + self.gradient_penalty * _gradient_penalty(model, real, fake, labels, rng)
        return value

    def _terms(self, on_real: Tensor, on_fake: Tensor) -> tuple[Tensor, Tensor]:
        """What each logit of real and of fake images adds to the discriminator's loss."""
        if self.loss == "nonsaturating":
            return F.softplus(-on_real), F.softplus(on_fake)
        if self.loss == "hinge":
            return F.relu(1 - on_real), F.relu(1 + on_fake)
        return -on_real, on_fake

    def _generator_loss(self, on_fake: Tensor) -> Tensor:
        return F.softplus(-on_fake).mean() if self.loss == "nonsaturating" else -on_fake.mean()

    def outputs(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        images, labels = conditioned(batch[: len(batch) // self.n_critic], self.conditional)
        return {"generator": self.sample(model, len(images), rng, *labels)}

    def measures(self) -> Mapping[str, Measure]:
        """Its own loss, which judges no ticket: it says as much of the discriminator as of the samples."""
        label = f"discriminator loss ({self.loss}), held-out images against samples"
        return {"discriminator_loss": Measure(label, self.discriminator_loss, lower_is_better=False, decides=False)}

    def discriminator_loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """The discriminator's loss on each image and a sample, without a penalty on gradients, shape (batch,).

        Better higher: for the best discriminator it falls as the distributions part (Goodfellow et al. 2014,
        theorem 1).
        """
        images, labels = conditioned(batch, self.conditional)
        fake = self.sample(model, len(images), rng, *labels)
        on_real, on_fake = self._terms(_judge(model, images, labels), _judge(model, fake, labels))
        return (on_real + on_fake).mean(1)

    def sample(self, model: nn.Module, count: int, rng: torch.Generator, labels: Tensor | None = None) -> Tensor:
        beside = conditions(labels, self.conditional)
        return model.generator(latents(count, self.latent_size, rng), *beside)  # type: ignore[operator]

    def example_inputs(self, model: nn.Module, images: Batch) -> dict[str, Any]:
        labels = example_labels(images)
        images, _ = conditioned(images, False)
        noise = images.new_zeros(len(images), self.latent_size)
        if not self.conditional:
            return {"generator": noise, "discriminator": images}
        return {"generator": (noise, labels), "discriminator": (images, labels)}

    @torch.no_grad()
    def collapsed(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> str | None:
        """Collapsed: the samples differ from each other by less than 1 % of what real images do."""
        images, labels = conditioned(batch, self.conditional)
        spread, real = self.sample(model, len(images), rng, *labels).std(0).mean(), images.std(0).mean()
        if spread < 0.01 * real:
            return f"the generator has collapsed: its samples differ by {spread:.2g}, real images by {real:.2g}"
        return None


def _judge(model: nn.Module, images: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
    """The discriminator's logits, one or several an image: (batch, logits)."""
    return full(model.discriminator(images, *labels)).reshape(len(images), -1)  # type: ignore[operator]


def _gradient_penalty(
    model: nn.Module, real: Tensor, fake: Tensor, labels: tuple[Tensor, ...], rng: torch.Generator
) -> Tensor:
    """Mean of (|grad D(x)|₂ - 1)² at points drawn evenly between pairs of real and fake images."""
    share = torch.rand(len(real), 1, 1, 1, generator=rng, device=real.device)
    between = torch.lerp(real, full(fake), share).requires_grad_(True)
    (slope,) = torch.autograd.grad(_judge(model, between, labels).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()

"""What a generative model is trained for: objectives that yield their losses, component by component.

`losses` is a generator of `(components, loss)`: which components the loss trains (a name, or a tuple of names)
and a scalar to be minimised. It is evaluated lazily: the caller steps a loss before it asks for the next, so
that a generator's loss sees the discriminator that has just been stepped. Image batches are float tensors of
shape (batch, channels, height, width) in [-1, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.naming import CHANNELWISE_NORMS, unwrap

Loss = tuple[str | tuple[str, ...], Tensor]
"""Which components a loss trains, and the loss: a scalar, to be minimised."""


@dataclass(frozen=True)
class Objective(ABC):
    """The base of all objectives. A new one needs `losses`; the rest has defaults."""

    components: ClassVar[tuple[str, ...]] = ()
    """The components that a model needs to have."""

    averaged: ClassVar[tuple[str, ...]] = ()
    """The components of which a moving average is worth keeping: those that make images."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Loss]:
        """Yields `(components, loss)`, one loss at a time; all randomness comes from `rng` (on the batch's device)."""

    @property
    def batches_per_step(self) -> int:
        """How many batches of images one training step takes, concatenated."""
        return 1

    def at(self, step: int) -> Self:
        """The objective as it stands at a training step (for those that warm something up)."""
        return self

    def example_inputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """Component → one input of the shape that it takes."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its components take")

    def collapsed(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> str | None:
        """Why training on makes no sense, in words; None while it does."""
        return None


class Samples(ABC):
    """An objective whose model makes new images."""

    @abstractmethod
    def sample(self, model: nn.Module, count: int, rng: torch.Generator) -> Tensor:
        """`count` images from the model's prior, on the generator's device."""


class Reconstructs(ABC):
    """An objective whose model gives images back."""

    @abstractmethod
    def reconstruct(self, model: nn.Module, images: Tensor) -> Tensor:
        """The model's copy of `images`, without chance."""


def _unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (images + 1) / 2


def _full(output: Tensor) -> Tensor:
    """What a network gave in half precision as float32: losses subtract numbers that are nearly equal."""
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def _binary_cross_entropy(output: Tensor, images: Tensor) -> Tensor:
    """Per pixel, in nats; intensities read as probabilities."""
    probability = _unit(_full(output)).clamp(1e-6, 1 - 1e-6)
    target = _unit(images)
    return -(target * probability.log() + (1 - target) * (1 - probability).log())


@dataclass(frozen=True)
class Autoencoding(Objective, Reconstructs):
    """Reconstruction: mean over all pixels of the squared error, the absolute error, or the cross-entropy."""

    loss: Literal["mse", "l1", "bce"] = "mse"

    components: ClassVar = ("encoder", "decoder")
    averaged: ClassVar = ("encoder", "decoder")

    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Loss]:
        output = self.reconstruct(model, batch)
        if self.loss == "mse":
            value = F.mse_loss(output, batch)
        elif self.loss == "l1":
            value = F.l1_loss(output, batch)
        else:
            value = _binary_cross_entropy(output, batch).mean()
        yield self.components, value

    def reconstruct(self, model: nn.Module, images: Tensor) -> Tensor:
        return model.decoder(model.encoder(images))  # type: ignore[operator]

    def example_inputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"encoder": images, "decoder": model.encoder(images)}  # type: ignore[operator]


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
            distortion = _binary_cross_entropy(output, batch)
        yield self.components, (distortion.flatten(1).sum(1) + self.beta * kl).mean()

    def _forward(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The decoder's output for one sample of z, and the KL of each image in nats."""
        mean, log_variance = (_full(part) for part in model.encoder(batch))  # type: ignore[operator]
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
            distortion = _binary_cross_entropy(output, batch)
        nats = distortion.flatten(1).sum(1) + kl
        return nats / (math.log(2) * batch[0].numel())

    def sample(self, model: nn.Module, count: int, rng: torch.Generator) -> Tensor:
        return model.decoder(_latents(count, self.latent_size, rng))  # type: ignore[operator]

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
        return model.generator(_latents(count, self.latent_size, rng))  # type: ignore[operator]

    def example_inputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        return {"generator": images.new_zeros(len(images), self.latent_size), "discriminator": images}

    @torch.no_grad()
    def collapsed(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> str | None:
        """Collapsed: the samples differ from each other by less than 1 % of what real images do."""
        spread, real = self.sample(model, len(batch), rng).std(0).mean(), batch.std(0).mean()
        if spread < 0.01 * real:
            return f"the generator has collapsed: its samples differ by {spread:.2g}, real images by {real:.2g}"
        return None


def _latents(count: int, size: int, rng: torch.Generator) -> Tensor:
    return torch.randn(count, size, generator=rng, device=rng.device)


def _judge(model: nn.Module, images: Tensor) -> Tensor:
    """The discriminator's logits, one an image."""
    return _full(model.discriminator(images)).reshape(len(images), -1)  # type: ignore[operator]


def _gradient_penalty(model: nn.Module, real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """Mean of (|grad D(x)|₂ - 1)² at points drawn evenly between pairs of real and fake images."""
    share = torch.rand(len(real), 1, 1, 1, generator=rng, device=real.device)
    between = torch.lerp(real, _full(fake), share).requires_grad_(True)
    (slope,) = torch.autograd.grad(_judge(model, between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


@dataclass(frozen=True)
class GainPenalty(Objective):
    """Another objective, with `strength` times the sum of the norms' absolute gains added to each component's loss.

    It drives the gains of channels that do little to zero ("Network slimming", Liu et al. 2017, Eq. 1), so that
    they tell which channels to prune.
    """

    objective: Objective
    strength: float

    @property
    def components(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.objective.components

    @property
    def averaged(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.objective.averaged

    @property
    def batches_per_step(self) -> int:
        return self.objective.batches_per_step

    def at(self, step: int) -> GainPenalty:
        return GainPenalty(self.objective.at(step), self.strength)

    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Loss]:
        for components, loss in self.objective.losses(model, batch, rng):
            names = (components,) if isinstance(components, str) else components
            yield components, loss + self.strength * sum(map(_gains, (getattr(unwrap(model), n) for n in names)))

    def example_inputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        return self.objective.example_inputs(model, images)

    def collapsed(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> str | None:
        return self.objective.collapsed(model, batch, rng)


def _gains(component: nn.Module) -> Tensor | float:
    """The sum of the absolute gains of a component's channelwise norms."""
    norms = [layer.weight for layer in component.modules() if isinstance(layer, CHANNELWISE_NORMS)]
    return sum((gain.abs().sum() for gain in norms if isinstance(gain, Tensor)), 0.0)


OBJECTIVES: dict[str, type[Objective]] = {
    "autoencoding": Autoencoding,
    "elbo": ELBO,
    "adversarial": Adversarial,
}
"""The catalogue of objectives, by the name that recipes use."""

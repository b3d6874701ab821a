"""Denoising: a diffusion model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Len
from torch import Tensor, nn

from gentickets.data.batches import Batch
from gentickets.errors import GenticketsError
from gentickets.masks.names import component_at, unwrap
from gentickets.objectives.base import Loss, Measure, Objective, conditioned, conditions, example_labels, full
from gentickets.options import Count, Steps

DRAWS = 4_000
"""Over so many images, each at a time and with a noise of its own, the held-out loss is the mean, alike for all."""


@dataclass(frozen=True)
class Denoising(Objective):
    """What was added to a noisy image, told by its denoiser: the mean over all pixels of the squared error.

    DDPM (Ho et al. 2020): x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε, with t even among 0 … `timesteps` - 1 and ε from N(0, I); the
    denoiser takes (x_t, t), t being int64 (batch,), and tells ε, or with `prediction` "v" the velocity
    √ᾱ_t ε - √(1 - ᾱ_t) x_0 (Salimans & Ho 2022). `schedule` of ᾱ: see `signal`. Samples are made by DDIM without new
    noise (Song et al. 2021) in `sampling_steps` steps, x_0 clamped to [-1, 1] in each. With `conditional` the denoiser
    takes the labels as its third argument. With `times` [a, b] only the times a … b - 1 are drawn: the denoiser is one
    of several that share the way from noise to image, is judged by its own part of it, and makes no images by itself.

    Raises `ValueError` for more sampling steps than time steps, and for `times` that are none of these.
    """

    prediction: Literal["epsilon", "v"] = "epsilon"
    """What the denoiser tells: the noise, or the velocity, which is as large at all times."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the noise grows with time."""
    timesteps: Count = 1000
    """How many degrees of noise there are."""
    sampling_steps: Count = 20
    """In how many steps an image is made."""
    conditional: bool = False
    """Whether the denoiser is told the label of each image."""
    image_shape: list[Count] | None = None
    """Channels, height and width of the images that are made; null: as the denoiser itself says (`image_shape`)."""
    times: Annotated[list[Steps], Len(2, 2)] | None = None
    """The first time that it is trained and judged on, and the one after the last ([0, 250]); null: all."""

    components: ClassVar = ("denoiser",)
    averaged: ClassVar = ("denoiser",)

    def __post_init__(self) -> None:
        if not 1 <= self.sampling_steps <= self.timesteps:
            raise ValueError(f"sampling_steps={self.sampling_steps}: 1 to timesteps={self.timesteps}")
        if self.times is not None and not _is_region(self.times, self.timesteps):
            raise ValueError(f"times={self.times!r}: the first and the one after the last, of 0 to {self.timesteps}")

    @property
    def wants_labels(self) -> bool:
        return self.conditional

    @property
    def region(self) -> tuple[int, int]:
        """The first of its times, and the one after the last."""
        return (0, self.timesteps) if self.times is None else (self.times[0], self.times[1])

    def losses(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Loss]:
        yield "denoiser", self.denoising_loss(model, batch, rng).mean()

    def denoising_loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """The squared error of each image at a time and a noise of its own, mean over its pixels, shape (batch,)."""
        given, wanted = self._told(model, batch, rng)
        return (given - wanted).square().flatten(1).mean(1)

    def _told(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the denoiser says, and what would be true."""
        images, labels = conditioned(batch, self.conditional)
        times = torch.randint(*self.region, (len(images),), generator=rng, device=images.device)
        noise = torch.randn(images.shape, generator=rng, device=images.device)
        given = full(model.denoiser(self.noisy(images, times, noise), times, *labels))  # type: ignore[operator]
        return given, noise if self.prediction == "epsilon" else self.velocity(images, times, noise)

    def outputs(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        return {"denoiser": self._told(model, batch, rng)[0]}

    def measures(self) -> Mapping[str, Measure]:
        what = "denoising loss" if self.prediction == "epsilon" else "denoising loss (velocity)"
        if self.times is None:
            return {"denoising_loss": Measure(f"{what}, held-out images", self.denoising_loss, draws=DRAWS)}
        # Of some times it is another number, and bears another name: it is compared with none over all times.
        first, end = self.region
        label = f"{what} at times {first} to {end - 1}, held-out images"
        return {f"denoising_loss_{first}_{end}": Measure(label, self.denoising_loss, draws=DRAWS)}

    def example_inputs(self, model: nn.Module, images: Batch) -> dict[str, Any]:
        labels = (example_labels(images),) if self.conditional else ()
        images, _ = conditioned(images, False)
        times = torch.full((len(images),), sum(self.region) // 2, device=images.device)
        return {"denoiser": (images, times, *labels)}

    # -- noise and back -----------------------------------------------------------------------------------

    def noisy(self, images: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """x_t, from x_0, t and ε."""
        signal, scale = self._scales(times)
        return signal * images + scale * noise

    def velocity(self, images: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """v, from x_0, t and ε."""
        signal, scale = self._scales(times)
        return signal * noise - scale * images

    def clean(self, noisy: Tensor, times: Tensor, told: Tensor) -> Tensor:
        """x_0, from x_t, t and what a denoiser tells of it."""
        signal, scale = self._scales(times)
        if self.prediction == "epsilon":
            return (noisy - scale * told) / signal
        return signal * noisy - scale * told

    def noise(self, noisy: Tensor, times: Tensor, images: Tensor) -> Tensor:
        """ε, from x_t, t and x_0."""
        signal, scale = self._scales(times)
        return (noisy - signal * images) / scale

    def _scales(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 - ᾱ_t), (batch, 1, 1, 1)."""
        kept = signal(self.schedule, self.timesteps).to(times.device)[times][:, None, None, None]
        return kept.sqrt().float(), (1 - kept).sqrt().float()

    # -- new images ---------------------------------------------------------------------------------------

    @property
    def can_sample(self) -> bool:
        return self.times is None

    @torch.no_grad()
    def sample(self, model: nn.Module, count: int, rng: torch.Generator, labels: Tensor | None = None) -> Tensor:
        if self.times is not None:
            raise GenticketsError(f"times={list(self.times)}: a denoiser of some times alone makes no images")
        beside = conditions(labels, self.conditional)
        images = torch.randn(count, *self._shape(model), generator=rng, device=rng.device)
        steps = self.times_of_sampling()
        for now, then in zip(steps, [*steps[1:], None], strict=True):
            times = torch.full((count,), now, device=rng.device)
            told = full(model.denoiser(images, times, *beside))  # type: ignore[operator]
            clean = self.clean(images, times, told).clamp(-1, 1)
            if then is None:
                return clean
            images = self.noisy(clean, torch.full_like(times, then), self.noise(images, times, clean))
        raise AssertionError("there is always a last step")

    def times_of_sampling(self) -> list[int]:
        """The times at which a sample is denoised, falling: the middles of equal parts of all."""
        steps = self.sampling_steps
        return [(2 * part + 1) * self.timesteps // (2 * steps) for part in reversed(range(steps))]

    def _shape(self, model: nn.Module) -> list[int]:
        shape = self.image_shape or getattr(unwrap(component_at(model, "denoiser")), "image_shape", None)
        if shape is None:
            raise GenticketsError(
                "the denoiser does not say what images it makes: give image_shape=[channels, height, width]"
            )
        return list(shape)


@cache
def signal(schedule: Literal["cosine", "linear"], timesteps: int) -> Tensor:
    """ᾱ of each time, the share of an image's variance that is left of it: float64 (timesteps,), falling.

    "linear": β from 1e-4 to 0.02 in 1,000 steps, larger where there are fewer (Ho et al. 2020); "cosine":
    cos²((t / T + 0.008) / 1.008 · π / 2) (Nichol & Dhariwal 2021). No β is above 0.999.
    """
    if schedule == "linear":
        betas = torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64) * (1000 / timesteps)
    else:
        edges = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        kept = ((edges + 0.008) / 1.008 * math.pi / 2).cos().square()
        betas = 1 - kept[1:] / kept[:-1]
    return (1 - betas.clamp(max=0.999)).cumprod(0)


def _is_region(times: object, timesteps: int) -> bool:
    """Whether these are two whole numbers, the first time step and the one after the last."""
    if not isinstance(times, Sequence) or len(times) != 2 or any(type(time) is not int for time in times):
        return False
    return bool(0 <= times[0] < times[1] <= timesteps)

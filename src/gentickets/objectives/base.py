"""What a generative model is trained for: objectives that yield their losses, component by component.

`losses` is a generator of `(components, loss)`: which components the loss trains (a name, or a tuple of names)
and a scalar to be minimised. It is evaluated lazily: the caller steps a loss before it asks for the next, so
that a generator's loss sees the discriminator that has just been stepped. Image batches are float tensors of
shape (batch, channels, height, width) in [-1, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

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


def unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (images + 1) / 2


def full(output: Tensor) -> Tensor:
    """What a network gave in half precision as float32: losses subtract numbers that are nearly equal."""
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def binary_cross_entropy(output: Tensor, images: Tensor) -> Tensor:
    """Per pixel, in nats; intensities read as probabilities."""
    probability = unit(full(output)).clamp(1e-6, 1 - 1e-6)
    target = unit(images)
    return -(target * probability.log() + (1 - target) * (1 - probability).log())


def latents(count: int, size: int, rng: torch.Generator) -> Tensor:
    """Draws from N(0, I), (count, size)."""
    return torch.randn(count, size, generator=rng, device=rng.device)

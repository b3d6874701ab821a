"""What a generative model is trained for: objectives that yield their losses, component by component.

`losses` is a generator of `(components, loss)`: which components the loss trains (a name, or a tuple of names)
and a scalar to be minimised. It is evaluated lazily: the caller steps a loss before it asks for the next, so
that a generator's loss sees the discriminator that has just been stepped. Image batches are float tensors of
shape (batch, channels, height, width) in [-1, 1], with their labels beside them where an objective wants those.

An objective owns what only it can know: its options, which are its fields, what its components take, and how good a
model is at what it was trained for, on images that it has not seen (`measures`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from gentickets.data.batches import Batch, Labelled
from gentickets.errors import DataError, GenticketsError
from gentickets.masks.names import component_at

Loss = tuple[str | tuple[str, ...], Tensor]
"""Which components a loss trains, and the loss: a scalar, to be minimised."""


@dataclass(frozen=True)
class Measure:
    """How good a model is by its own objective, on images that it was not trained on: one number for each of them.

    `of(model, batch, rng)` gives the numbers, shape (batch,), of a model in evaluation mode and without gradients.
    `label` is what a report prints. `decides`: whether tickets may be judged by it. `draws`: over so many images the
    mean is taken, where chance falls in each: some come several times, or are left out, evenly. None: each one once.
    """

    label: str
    of: Callable[[nn.Module, Batch, torch.Generator], Tensor]
    lower_is_better: bool = True
    decides: bool = True
    draws: int | None = None

    def numbers(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """What `of` gives, as floats. Raises `DataError` where it is not one real number for each image."""
        found = self.of(model, batch, rng)
        each = isinstance(found, Tensor) and tuple(found.shape) == (len(batch),) and not found.is_complex()
        if not each:
            given = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            given += " of complex numbers" if isinstance(found, Tensor) and found.is_complex() else ""
            raise DataError(
                f"measure {self.label!r} is {given}: one number for each of {len(batch)} images is needed, "
                f"a tensor ({len(batch)},)"
            )
        return found if found.is_floating_point() else found.double()


@dataclass(frozen=True)
class Objective(ABC):
    """The base of all objectives. A new one needs `components` and `losses`; the rest has defaults.

    Its fields are its options, and the keys of a recipe's `objective`. One whose model makes new images has a `sample`,
    one whose model gives images back a `reconstruct`.
    """

    components: ClassVar[tuple[str, ...]] = ()
    """The components that a model needs to have."""

    averaged: ClassVar[tuple[str, ...]] = ()
    """The components of which a moving average is worth keeping: those that make images."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Any, rng: torch.Generator) -> Iterator[Loss]:
        """Yields `(components, loss)`, one loss at a time; all randomness comes from `rng` (on the batch's device).

        `batch` is a tensor of images, or `Labelled` ones where `wants_labels`.
        """

    @property
    def wants_labels(self) -> bool:
        """Whether batches are to be `Labelled`."""
        return False

    @property
    def batches_per_step(self) -> int:
        """How many batches of images one training step takes, concatenated."""
        return 1

    def at(self, step: int) -> Self:
        """The objective as it stands at a training step (for those that warm something up)."""
        return self

    def example_inputs(self, model: nn.Module, images: Any) -> dict[str, Any]:
        """Component → one input of the form that it takes: a tensor, or a tuple of arguments."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its components take")

    def collapsed(self, model: nn.Module, batch: Any, rng: torch.Generator) -> str | None:
        """Why training on makes no sense, in words; None while it does."""
        return None

    def outputs(self, model: nn.Module, batch: Any, rng: torch.Generator) -> dict[str, Tensor]:
        """Component → what it gives in a step on this batch, for the components whose outputs are as large as images.

        Models that are given the same batch and the same `rng` are asked the same: their outputs can be compared.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its components give (`outputs`)")

    # -- how a model is judged ----------------------------------------------------------------------------

    def measures(self) -> Mapping[str, Measure]:
        """Name → one of its own measures; first the one to judge by, where nobody says which."""
        return {}

    @property
    def can_sample(self) -> bool:
        """Whether its models make new images: whether it has a `sample`."""
        return type(self).sample is not Objective.sample

    def sample(self, model: nn.Module, count: int, rng: torch.Generator, labels: Tensor | None = None) -> Tensor:
        """`count` images from the model's prior, on the generator's device; of these `labels`, where it wants some."""
        raise NotImplementedError(f"{type(self).__name__} makes no new images")

    @property
    def can_reconstruct(self) -> bool:
        """Whether its models give images back: whether it has a `reconstruct`."""
        return type(self).reconstruct is not Objective.reconstruct

    def reconstruct(self, model: nn.Module, images: Any) -> Tensor:
        """The model's copy of `images` (`Labelled` where it wants labels), without chance."""
        raise NotImplementedError(f"{type(self).__name__} gives no images back")


def losses_of(
    objective: Objective, model: nn.Module, batch: Batch, rng: torch.Generator
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """The losses of one step, each with the components that it trains, computed when it is asked for.

    Raises `GenticketsError` for what is no loss that trains something.
    """
    given, called = objective.losses(model, batch, rng), type(objective).__name__
    if not isinstance(given, Iterator):
        raise GenticketsError(
            f"{called}.losses gives a {type(given).__name__}: yield each loss, which computes it when asked for"
        )
    for number, item in enumerate(given):
        what = f"loss {number} of {called}"
        names, loss = _loss(what, getattr(objective, "components", None), item)
        if torch.is_grad_enabled() and not loss.requires_grad:
            unfrozen({name: list(component_at(model, name).parameters()) for name in names}, names)
            raise GenticketsError(
                f"{what} has no gradient: was it detached, or computed without one? where nothing is to be trained in "
                f"a step, yield nothing"
            )
        yield names, loss


def _loss(what: str, components: tuple[str, ...] | None, item: Any) -> tuple[tuple[str, ...], Tensor]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise GenticketsError(f"{what} is a {type(item).__name__}: yield (components, loss)")
    said, loss = item
    names = (said,) if isinstance(said, str) else tuple(said) if isinstance(said, list | tuple) else ()
    if not names:
        raise GenticketsError(f"{what} names no component: yield (components, loss)")
    if components is not None and (unknown := [name for name in names if name not in components]):
        raise GenticketsError(
            f"{what} trains {unknown[0]!r}, which is not among its components {', '.join(components)}"
        )
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"of the shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise GenticketsError(f"{what} is {given}: give a tensor of one number, such as a mean over the batch")
    return names, loss


def unfrozen(
    parameters: Mapping[str, Sequence[nn.Parameter]], components: Sequence[str]
) -> dict[str, list[nn.Parameter]]:
    """What a loss of these components trains: of each its parameters that are not frozen, without those that have none.

    Raises `GenticketsError` where nothing is left for the loss.
    """
    found = {name: [weight for weight in parameters[name] if weight.requires_grad] for name in components}
    if not any(found.values()):
        raise GenticketsError(
            f"the loss of {'+'.join(components)} has nothing to train: all of its parameters are frozen "
            f"(requires_grad=False); unfreeze some, or let the objective yield no such loss"
        )
    return {name: weights for name, weights in found.items() if weights}


def conditioned(batch: Batch, conditional: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The images of a batch, and what components take beside them: the labels, or nothing.

    Raises `DataError` where labels are wanted and there are none.
    """
    if not isinstance(batch, Labelled):
        if conditional:
            raise DataError("conditional=True: batches need labels; give Labelled(images, labels)")
        return batch, ()
    return batch.images, (batch.labels,) if conditional else ()


def example_labels(batch: Batch) -> Tensor:
    """The labels of an example input: those of the batch, or else the class that there always is."""
    if isinstance(batch, Labelled):
        return batch.labels
    return batch.new_zeros(len(batch), dtype=torch.int64)


def conditions(labels: Tensor | None, conditional: bool) -> tuple[Tensor, ...]:
    """What a model that samples takes beside its noise. Raises `DataError` where labels are wanted and not given."""
    if conditional and labels is None:
        raise DataError("conditional=True: samples are of labels; give labels=, a class for each")
    return (labels,) if conditional and labels is not None else ()


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

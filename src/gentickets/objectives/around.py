"""Objectives around objectives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from gentickets.objectives.base import Loss, Measure, Objective


@dataclass(frozen=True)
class Around(Objective):
    """Another objective, and something more: the base of those that change its losses and leave all else to it.

    Override `losses`, going through those of `self.objective`.
    """

    objective: Objective
    """The objective within."""

    @property
    def components(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.objective.components

    @property
    def averaged(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.objective.averaged

    @property
    def wants_labels(self) -> bool:
        return self.objective.wants_labels

    @property
    def batches_per_step(self) -> int:
        return self.objective.batches_per_step

    def at(self, step: int) -> Self:
        inner = self.objective.at(step)
        return self if inner is self.objective else replace(self, objective=inner)

    def losses(self, model: nn.Module, batch: Any, rng: torch.Generator) -> Iterator[Loss]:
        yield from self.objective.losses(model, batch, rng)

    def example_inputs(self, model: nn.Module, images: Any) -> dict[str, Any]:
        return self.objective.example_inputs(model, images)

    def collapsed(self, model: nn.Module, batch: Any, rng: torch.Generator) -> str | None:
        return self.objective.collapsed(model, batch, rng)

    def outputs(self, model: nn.Module, batch: Any, rng: torch.Generator) -> dict[str, Tensor]:
        return self.objective.outputs(model, batch, rng)

    def measures(self) -> Mapping[str, Measure]:
        return self.objective.measures()

    @property
    def can_sample(self) -> bool:
        return self.objective.can_sample

    def sample(self, model: nn.Module, count: int, rng: torch.Generator, labels: Tensor | None = None) -> Tensor:
        given = () if labels is None else (labels,)
        return self.objective.sample(model, count, rng, *given)

    @property
    def can_reconstruct(self) -> bool:
        return self.objective.can_reconstruct

    def reconstruct(self, model: nn.Module, images: Any) -> Tensor:
        return self.objective.reconstruct(model, images)

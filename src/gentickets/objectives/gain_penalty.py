"""Another objective with a penalty on the gains of norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentickets.masks.names import CHANNELWISE_NORMS, unwrap
from gentickets.objectives.base import Loss, Objective


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

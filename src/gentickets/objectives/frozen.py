"""Another objective that leaves some components as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from gentickets.data.batches import Batch
from gentickets.masks.names import as_names, component_at
from gentickets.objectives.around import Around
from gentickets.objectives.base import Loss


@dataclass(frozen=True)
class Frozen(Around):
    """Another objective, whose losses do not train the components `kept`: not a bit of them changes.

    They are in evaluation mode while a loss is computed, so that no statistics of theirs move either; what trains
    nothing else is left out.
    """

    kept: tuple[str, ...] = ()
    """Which components stay as they are."""

    @property
    def averaged(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(name for name in self.objective.averaged if name not in self.kept)

    def losses(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Loss]:
        still = [module for name in self.kept for module in component_at(model, name).modules()]
        modes = [module.training for module in still]
        try:
            for module in still:
                module.training = False
            for components, loss in self.objective.losses(model, batch, rng):
                if trained := tuple(name for name in as_names(components) if name not in self.kept):
                    yield trained, loss
        finally:
            for module, training in zip(still, modes, strict=True):
                module.training = training

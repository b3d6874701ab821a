"""Another objective with a penalty on the gains of norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentickets.data.batches import Batch
from gentickets.masks.names import CHANNELWISE_NORMS, as_names, unwrap
from gentickets.objectives.around import Around
from gentickets.objectives.base import Loss
from gentickets.options import NotNegative


@dataclass(frozen=True)
class GainPenalty(Around):
    """Another objective, with `strength` times the sum of the norms' absolute gains added to each component's loss.

    It drives the gains of channels that do little to zero ("Network slimming", Liu et al. 2017, Eq. 1), so that
    they tell which channels to prune.
    """

    strength: NotNegative
    """The weight of the L1 penalty on the norms' gains."""

    def losses(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Loss]:
        for components, loss in self.objective.losses(model, batch, rng):
            gains = sum(_gains(getattr(unwrap(model), name)) for name in as_names(components))
            yield components, loss + self.strength * gains


def _gains(component: nn.Module) -> Tensor | float:
    """The sum of the absolute gains of a component's channelwise norms."""
    norms = [layer.weight for layer in component.modules() if isinstance(layer, CHANNELWISE_NORMS)]
    return sum((gain.abs().sum() for gain in norms if isinstance(gain, Tensor)), 0.0)

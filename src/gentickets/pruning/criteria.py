"""The criteria that recipes name: `criterion(model, masks)`, scores of what the masks have alive.

What is pruned already is 0.0 in the model. A criterion that needs more says so by the names of its arguments: it is
given `objective`, `batches` (by step), `seed` and `example_inputs`; all others are keys of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import nn

from gentickets.data.batches import Batch
from gentickets.masks.value import Masks
from gentickets.objectives.base import Objective
from gentickets.options import ScoreBatches
from gentickets.pruning.saliency import grasp, snip, synflow_score
from gentickets.pruning.scores import Scores, magnitude, random_scores


class Batches(Protocol):
    """Training images by step."""

    def at(self, step: int) -> Batch: ...


def by_magnitude(model: nn.Module, masks: Masks) -> Scores:
    """How far a weight is from 0."""
    return magnitude(model, include=tuple(masks))


def by_chance(model: nn.Module, masks: Masks, *, seed: int) -> Scores:
    """A number drawn for each weight."""
    return random_scores(model, seed, include=tuple(masks))


def by_snip(
    model: nn.Module,
    masks: Masks,
    *,
    objective: Objective,
    batches: Batches,
    seed: int,
    score_batches: ScoreBatches = 10,
) -> Scores:
    """What the loss would change by without a weight (Lee et al. 2019), on the first batches."""
    seen = [batches.at(step).cpu() for step in range(score_batches)]
    return snip(model, objective, seen, seed=seed, include=tuple(masks))


def by_grasp(
    model: nn.Module,
    masks: Masks,
    *,
    objective: Objective,
    batches: Batches,
    seed: int,
    score_batches: ScoreBatches = 10,
) -> Scores:
    """What the flow of gradients would lose without a weight (Wang et al. 2020), on the first batches."""
    seen = [batches.at(step).cpu() for step in range(score_batches)]
    return grasp(model, objective, seen, seed=seed, include=tuple(masks))


@dataclass(frozen=True)
class BySynflow:
    """What flows through a weight from input to output, without any image (Tanaka et al. 2020)."""

    example_inputs: Mapping[str, Any]

    iterations: ClassVar[int] = 100
    """How often it is asked on the way to a sparsity, where nothing else is said: pruned at once, layers collapse."""

    def __call__(self, model: nn.Module, masks: Masks) -> Scores:
        return synflow_score(self.example_inputs)(model, masks)

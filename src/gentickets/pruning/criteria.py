"""The criteria that recipes name: `criterion(model, masks)`, scores of what the masks have alive.

What is pruned already is 0.0 in the model. A criterion that needs more says so by the names of its arguments: it is
given `objective`, `batches` (by step), `seed` and `example_inputs`; all others are keys of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import nn

from gentickets.data.batches import Batch
from gentickets.masks.names import clone
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
    return _where_batches_lie(snip, model, masks, objective, batches, score_batches, seed)


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
    return _where_batches_lie(grasp, model, masks, objective, batches, score_batches, seed)


def _where_batches_lie(
    criterion: Callable[..., Scores],
    model: nn.Module,
    masks: Masks,
    objective: Objective,
    batches: Batches,
    count: int,
    seed: int,
) -> Scores:
    """Scored on the device that is trained on, which the batches of a run lie on; the scores lie where the model does.

    A model waits for its training on the CPU, where scoring one of millions of weights takes longer than a GPU trains
    it.
    """
    seen = [batches.at(step) for step in range(count)]
    home = next(model.parameters()).device
    if seen[0].device == home:
        return criterion(model, objective, seen, seed=seed, include=tuple(masks))
    found = criterion(clone(model).to(seen[0].device), objective, seen, seed=seed, include=tuple(masks))
    return Scores({name: scores.to(home) for name, scores in found.items()}, model)


@dataclass(frozen=True)
class BySynflow:
    """What flows through a weight from input to output, without any image (Tanaka et al. 2020)."""

    example_inputs: Mapping[str, Any]

    iterations: ClassVar[int] = 100
    """How often it is asked on the way to a sparsity, where nothing else is said: pruned at once, layers collapse."""

    def __call__(self, model: nn.Module, masks: Masks) -> Scores:
        return synflow_score(self.example_inputs)(model, masks)

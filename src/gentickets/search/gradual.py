"""Gradual magnitude pruning in one training (Zhu & Gupta 2017, "To prune, or not to prune")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from gentickets.errors import PruneError
from gentickets.masks.value import Masks
from gentickets.options import Count, NotNegative, Scope, Share
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import magnitude
from gentickets.search.from_scratch import FromScratch
from gentickets.search.method import Work
from gentickets.training.hooks import Hook, State


@dataclass(frozen=True)
class Gradual(Hook):
    """Prunes the smallest weights every so many steps, to s (1 - (1 - p)^3) of all, p going from 0 to 1.

    p is 0 at the first step of pruning and 1 at the last: the first and the last multiple of `every` that lie between
    `begin` and `end`. What is dead stays dead, and masks that are sparser already stay as they are.
    """

    sparsity: Share = 0.9
    """The share of the weights that is pruned in the end."""

    begin: NotNegative = 0.25
    """The share of the training's steps before the first pruning."""

    end: Share = 0.75
    """The share of the training's steps before the last pruning."""

    every: Count = 100
    """How many steps lie between two prunings."""

    scope: Scope = "global"
    """Among which weights the smallest are looked for."""

    moves_masks = True

    def span(self, steps: int) -> tuple[int, int]:
        """The first and the last step of pruning. Raises `PruneError` where none lies between `begin` and `end`."""
        begin, end = (Fraction(str(share)) * steps / self.every for share in (self.begin, self.end))
        first, last = max(1, math.ceil(begin)) * self.every, math.floor(end) * self.every
        if first > last:
            raise PruneError(
                f"every={self.every}: no step that it divides lies between begin={self.begin} and end={self.end} of "
                f"{steps} steps; prune more often, or longer"
            )
        return first, last

    def sparsity_at(self, step: int, steps: int) -> float:
        """The share of weights that is to be pruned after so many steps of `steps`."""
        first, last = self.span(steps)
        if step >= last:
            return self.sparsity
        return self.sparsity * (1 - (1 - max(0, step - first) / (last - first)) ** 3)

    def after_step(self, state: State) -> bool:
        first, last = self.span(state.steps)
        if self.is_due(state.step) and first <= state.step <= last and state.masks is not None:
            wanted = self.sparsity_at(state.step, state.steps)
            if wanted > state.masks.sparsity:
                weights = magnitude(state.model, include=list(state.masks))
                state.move_to(prune(weights, to_sparsity=wanted, within=state.masks, scope=self.scope))
        return False


@dataclass(frozen=True)
class GradualPruning(FromScratch):
    """One training for each sparsity, pruned by magnitude as it goes (Zhu & Gupta 2017).

    Each level begins dense. The live FLOPs that are told of its training are those of its beginning: an upper bound.
    """

    begin: NotNegative = 0.25
    """The share of the training's steps before the first pruning."""
    end: Share = 0.75
    """The share of the training's steps before the last pruning."""
    every: Count | None = None
    """How many steps lie between two prunings; null: a hundredth of the training."""

    def __post_init__(self) -> None:
        if self.begin >= self.end:
            raise ValueError(f"begin={self.begin} is not before end={self.end}")

    def begun(self, work: Work, index: int, model: nn.Module) -> tuple[Masks, Hook]:
        """All alive."""
        return self.covered(model), self._hook(index, work.steps)

    def check(self, steps: int) -> None:
        self._hook(1, steps).span(steps)

    def _hook(self, index: int, steps: int) -> Gradual:
        every = self.every or max(1, steps // 100)
        return Gradual(self.sparsity_at(index), self.begin, self.end, every, self.scope)

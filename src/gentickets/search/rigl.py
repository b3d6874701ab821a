"""Masks that move while training: the smallest weights are dropped, and as many others grown.

RigL grows where the dense gradient is largest (Evci et al. 2020, "Rigging the Lottery", Alg. 1), SET at random (Mocanu
et al. 2018). As in the authors' code (google-research/rigl, `sparse_optimizers.py`) what was just dropped may be grown
back, and then stays as it is; what is born begins at 0.0 with fresh moments. Two things differ: there the update takes
the place of an optimiser's step, here it comes after one, with that step's gradients; and there equal magnitudes are
told apart by noise, here by lot (see `prune`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from gentickets.masks.value import Masks
from gentickets.options import Count, Scope, Share, Steps
from gentickets.pruning.prune import TiesBroken, prune
from gentickets.pruning.scores import magnitude, random_scores
from gentickets.pruning.selection import Scored, keep_best
from gentickets.search.from_scratch import FromScratch
from gentickets.search.method import Work
from gentickets.training.hooks import Hook, State
from gentickets.training.seeds import derived_seed


@dataclass(frozen=True)
class DropAndGrow(Hook):
    """Moves the masks every so many steps; each layer keeps its number of live weights, exactly.

    Of a layer's n live weights floor(f n) are dropped, f = fraction / 2 (1 + cos(pi t / T)) at step t, T the step
    `until`. A component whose gradients overflowed in half precision has its masks moved the next time.
    """

    fraction: Share = 0.3
    """The share of a layer's live weights that is dropped at first; it falls to 0 as a cosine."""

    every: Count = 100
    """How many steps lie between two moves of the masks."""

    until: Share = 0.75
    """The share of the training's steps after which the masks stand still."""

    grow: Literal["gradient", "random"] = "gradient"
    """Which dead weights are grown: those of the largest gradient (RigL), or some at random (SET)."""

    seed: Steps = 0
    """What is grown at random follows from this number and the step."""

    moves_masks = True

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]
        return self.grow == "gradient"

    def share_at(self, step: int, steps: int) -> float:
        """The share of live weights that is dropped after so many steps of `steps`; 0 where masks stand still."""
        end = float(Fraction(str(self.until)) * steps)
        if not self.is_due(step) or step >= end:
            return 0.0
        return self.fraction / 2 * (1 + math.cos(math.pi * step / end))

    def after_step(self, state: State) -> bool:
        share, masks = self.share_at(state.step, state.steps), state.masks
        if share and masks is not None and (growth := self._growth(state, masks)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TiesBroken)  # who was born and has no gradient yet is 0.0, as others
                weights = magnitude(state.model, include=list(growth))
                kept = prune(weights, fraction=share, within=masks, scope="layer")
            state.move_to(kept | _grown(growth, kept, masks))
        return False

    def _growth(self, state: State, masks: Masks) -> Mapping[str, Tensor]:
        """How much each weight is worth to be grown, of those that have a mask."""
        if self.grow == "random":
            return random_scores(state.model, derived_seed(self.seed, state.step), include=list(masks))
        return {name: gradient.abs() for name, gradient in state.gradients.items()}


def _grown(growth: Mapping[str, Tensor], kept: Masks, before: Masks) -> Masks:
    """As many in each layer as were dropped, the best by `growth` of all that are not kept."""
    free = ~kept
    alive, dead, were = kept.counts(), free.counts(), before.counts()
    bits = {name: np.zeros_like(packed) for name, packed in kept.packed.items()}
    for name, score in growth.items():
        part = Scored(name, kept.shapes[name], score.detach().cpu(), free.packed[name], dead[name])
        bits |= keep_best([part], were[name] - alive[name]).kept
    return Masks.from_packed(bits, kept.shapes)


@dataclass(frozen=True)
class Moving(FromScratch):
    """Sparse from the first step to the last: the base of RigL and SET. Nothing dense is trained for a level."""

    scope: Scope = "erk"
    """How a sparsity is shared out among layers; `erk`, as the paper of RigL has it, gives each one by its sides."""
    drop: Share = 0.3
    """The share of a layer's live weights that moves at first; it falls to 0 as a cosine."""
    every: Count | None = None
    """How many steps lie between two moves of the masks; null: a hundredth of the training."""
    until: Share = 0.75
    """The share of the training's steps after which the masks stand still."""

    grow: ClassVar[Literal["gradient", "random"]]

    def begun(self, work: Work, index: int, model: nn.Module) -> tuple[Masks, Hook]:
        """A random mask of the level's sparsity."""
        seed = derived_seed(work.seed, 2, index)
        drawn = random_scores(model, seed, self.components)
        masks = prune(drawn, to_sparsity=self.sparsity_at(index), within=self.covered(model), scope=self.scope)
        every = self.every or max(1, work.steps // 100)
        return masks, DropAndGrow(self.drop, every, self.until, self.grow, seed)


@dataclass(frozen=True)
class RigL(Moving):
    """Sparse from the start, its masks growing where the gradient is largest (Evci et al. 2020)."""

    grow: ClassVar[Literal["gradient"]] = "gradient"


@dataclass(frozen=True)
class SET(Moving):
    """Sparse from the start, its masks growing at random (Mocanu et al. 2018)."""

    grow: ClassVar[Literal["random"]] = "random"

"""What more workers are worth: a run or a study, played through from measured steps on one worker to many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gentickets.lab.recipe import Recipe
from gentickets.lab.run.pieces import Piece, pieces_of
from gentickets.lab.run.plan import FIRST_STEPS_AND_FILES, STARTING, Plan
from gentickets.lab.run.schedule import Load, Schedule, Span, simulate
from gentickets.lab.run.seed import steps_by_piece
from gentickets.lab.run.sharing import taken_over

TAKEN_OVER_SECONDS = 0.1
"""What linking a level that another run trained takes."""


@dataclass(frozen=True)
class Scaled:
    """A plan on so many workers, and what one alone takes, in seconds."""

    workers: int
    schedule: Schedule
    alone: float

    @property
    def worker_hours(self) -> float:
        """What is paid for where the workers that get any piece are held until the last one is done."""
        return self.schedule.used * self.schedule.seconds / 3600

    @property
    def speedup(self) -> float:
        """Over one worker with a device to itself."""
        return self.alone / self.schedule.seconds if self.schedule.seconds else 1.0


def scaled(recipes: Sequence[Recipe], plans: Sequence[Plan], workers: int, devices: int | None = None) -> list[Scaled]:
    """The runs of some recipes, worked on together, by 1, 2, 4 … `workers`, with `devices` for all of them.

    `plans`: what was measured of each recipe, on the machine whose seconds these are. A training has its device to
    itself: with fewer `devices` than workers, some of these wait.
    """
    counts = sorted({2**power for power in range(workers.bit_length()) if 2**power < workers} | {workers})
    alone = _played(recipes, plans, 1).seconds
    at_once = workers if devices is None else devices
    return [Scaled(count, _played(recipes, plans, min(count, at_once)), alone) for count in counts]


def longest(recipes: Sequence[Recipe], plans: Sequence[Plan]) -> list[Span]:
    """The pieces that bound a run, however many work on it: each can only begin when the one before it is done."""
    return _played(recipes, plans, sum(len(pieces_of(recipe)) for recipe in recipes)).critical_path()


def _played(recipes: Sequence[Recipe], plans: Sequence[Plan], workers: int) -> Schedule:
    taken = taken_over(recipes)
    loads = [_load(*each) for each in zip(recipes, plans, taken, strict=True)]
    return simulate(loads, workers, starting=STARTING * max(plan.loading_seconds for plan in plans))


def _load(recipe: Recipe, plan: Plan, taken: dict[Piece, int]) -> Load:
    steps_of, every = steps_by_piece(recipe), recipe.evaluation.every

    def seconds(piece: Piece) -> float:
        if piece in taken:
            return TAKEN_OVER_SECONDS
        steps = steps_of(piece)
        evaluations = 1 + (steps // every if every is not None else 0)
        beside = FIRST_STEPS_AND_FILES * plan.loading_seconds
        return steps * plan.step_seconds + evaluations * plan.evaluate_seconds + beside

    return Load(recipe, seconds, taken)

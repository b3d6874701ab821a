"""Before a run: what will it take, and how is it made to fit into the time there is?"""

from __future__ import annotations

import math
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISREG

from torch import nn

from gentickets.cores import forget_peak, give_back, held_memory, memory, peak_memory
from gentickets.data import Batches, ImageSet
from gentickets.durations import duration, size
from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.judging import Judge
from gentickets.lab.recipe import Recipe, parsed
from gentickets.lab.results.reading import Run
from gentickets.lab.results.words import count
from gentickets.lab.run.hardware import make_fabric
from gentickets.lab.run.seed import steps_of_seed
from gentickets.lab.task import build_model
from gentickets.masks.names import named_state
from gentickets.masks.value import Masks
from gentickets.training.averaging import with_averages
from gentickets.training.devices import on_threads
from gentickets.training.loop import train

WARM_STEPS, CLOCK_SECONDS = 3, 1.0
"""Steps that are run before the clock, and seconds that the clock runs."""

STARTING, FIRST_STEPS_AND_FILES, PAGE = 1.0, 0.04, 0.7
"""What is no step and no evaluation, in units of the seconds that loading the program took, which tell how fast the
machine is at such work: the start of processes, what comes before and after the steps of each training, and the page.
Counted on quickstart runs of 120 steps."""

IN_A_STEP, BESIDE = 4, 9
"""Copies of the weights that a training holds on its device: weights, gradients and Adam's averages; and beside it, in
memory: as drawn, twice; as they were before this training; the level before, where it starts and where it ended; the
ticket's own; and a checkpoint on its way to disk, with both of Adam's averages. Counted, and found in runs."""

_LOADED = held_memory()
"""Bytes that a process holds once this is loaded, as one of the trainings' does before it begins; more where whoever
loads it had much in memory already."""

_LONG = 30 * 86_400
"""Seconds from which a plan is doubted aloud."""


@dataclass(frozen=True)
class Plan:
    """What a whole run is expected to take. `seconds` of wall clock, bytes of memory and disk; `threads` a training."""

    step_seconds: float
    evaluate_seconds: float
    trainings: int
    steps: int
    seconds: float
    memory_bytes: int
    disk_bytes: int
    threads: int = 1
    loading_seconds: float = 0.0
    weight_bytes: int = 0

    def words(self) -> str:
        return (
            f"{self.trainings} trainings, {self.steps:,} steps: about {duration(self.seconds)}, "
            f"{size(self.memory_bytes)} of memory, {size(self.disk_bytes)} of disk; "
            f"{count(self.threads, 'thread')} a training"
            f"{'; --time 12h would fit it into a night' if self.seconds > _LONG else ''}"
        )

    def check_possible(self, folder: Path) -> None:
        """Raises `GenticketsError` where this needs more memory than there is, or more disk than is free."""
        place = next(above for above in (folder, *folder.resolve().parents) if above.exists())
        free, there = shutil.disk_usage(place).free, memory()
        if self.disk_bytes > free:
            raise GenticketsError(
                f"{self.trainings:,} trainings would write {size(self.disk_bytes)}, and {size(free)} are free at "
                f"{place}: take fewer seeds, fewer search.rounds, or another --runs"
            )
        if self.memory_bytes > there:
            raise GenticketsError(
                f"the trainings would take {size(self.memory_bytes)} of memory, and {size(there)} are all there is: "
                "take fewer seeds at once, or a smaller model or training.batch_size"
            )

    def against(self, seconds: float, used: int | None = None, written: int | None = None) -> str:
        """What was planned beside what it took, in words. `used`: bytes of memory, `written`: of disk, where known."""
        words = f"planned {duration(self.seconds)}, took {duration(seconds)}"
        for planned, found, what in ((self.memory_bytes, used, "memory"), (self.disk_bytes, written, "disk")):
            words += "" if found is None else f"; planned {size(planned)} of {what}, used {size(found)}"
        return words


def check_fits(recipe: Recipe, model: nn.Module, shape: Sequence[int]) -> None:
    """Raises `RecipeError` where a model, which may be on the device meta, and its batches cannot be held in memory.

    `shape`: of one image. What is counted is the least that a training holds: weights, gradients, Adam's two averages,
    the weights of the levels that it rests on, and the images of a step, or of all on which SNIP and GraSP score.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    scored = recipe.build_method().batches_at_once()
    images = recipe.training.batch_size * recipe.build_objective().batches_per_step * scored
    needed = IN_A_STEP * weights, BESIDE * weights, 4 * images * math.prod(shape)
    if sum(needed) > memory():
        key = "model" if sum(needed[:2]) > needed[2] else f"training.batch_size={recipe.training.batch_size}"
        raise RecipeError(
            f"{key} is too large: a training would hold {size(needed[0])} of weights, gradients and Adam's averages, "
            f"{size(needed[1])} of the weights of levels and checkpoints, and {size(needed[2])} of images at once, and "
            f"there are {size(memory())} of memory"
        )


def measure(
    recipe: Recipe,
    images: ImageSet,
    judge: Judge,
    threads: int,
    workers: int,
    loading_seconds: float = 0.0,
    held: int | None = None,
) -> Plan:
    """Takes a few steps and one evaluation, and multiplies. `loading_seconds`: what loading the program took; `held`:
    the bytes that this process held before images and judge were made, so that a training's process can be told by
    what came on top."""
    give_back()
    forget_peak()
    held = held_memory() if held is None else held
    with on_threads(threads):
        step_seconds, evaluate_seconds, weights = _measure(recipe, images, judge)
    trained = _plan(recipe, step_seconds, evaluate_seconds, workers, loading_seconds)
    needed = max(0, peak_memory() - held) + BESIDE * weights
    give_back()
    forget_peak()
    # Several trainings are processes beside this one, and so are the devices of one; a single one is in it.
    processes = workers * recipe.training.devices
    memory_bytes = held_memory() + (processes * (_LOADED + needed) if processes > 1 else needed)
    disk_bytes = disk_needed(recipe, weights, trained.trainings, workers)
    held_now = {"memory_bytes": memory_bytes, "disk_bytes": disk_bytes, "weight_bytes": weights}
    return replace(trained, **held_now, threads=threads)


def disk_needed(recipe: Recipe, weights: int, trainings: int, workers: int) -> int:
    """Bytes on disk at most, of a model of so many bytes of weights.

    A ticket has them once, and a bit for each; what is kept of a trained level, as they ended, averaged, and at the
    best evaluation; a seed, those of its rewind step; a checkpoint, those of Adam too.
    """
    averaged = int(recipe.training.ema is not None)
    ended = weights * (1 + averaged + int(recipe.evaluation.every is not None))
    ticket = int(weights * (1 + 1 / 32)) + 200_000
    seeds = len(recipe.seeds)
    # With the ends alone: the dense model, the last ticket, and the level before until that is complete.
    kept = trainings if recipe.keep == "all" else min(trainings, 3 * seeds)
    rewound = seeds * weights if recipe.search.told("rewind_step", 0) else 0
    return trainings * ticket + kept * ended + rewound + workers * (3 + averaged) * weights


def fit_disk(recipe: Recipe, plan: Plan, budget: float, workers: int) -> tuple[Recipe, Plan]:
    """The recipe that keeps as much as fits into `budget` bytes of disk: all trained weights, or those of the ends.

    Raises `RecipeError` where neither does.
    """
    for keep in dict.fromkeys((recipe.keep, "ends")):
        tried = parsed({**recipe.dump(), "keep": keep})
        needed = disk_needed(tried, plan.weight_bytes, plan.trainings, workers)
        if needed <= budget:
            return tried, replace(plan, disk_bytes=needed)
    raise RecipeError(
        f"--disk {size(budget)} is too little: {plan.trainings:,} trainings would write {size(needed)}, though the "
        "trained weights of the ends alone were kept (keep=ends); give more, or fewer seeds, search.rounds or controls"
    )


def _measure(recipe: Recipe, images: ImageSet, judge: Judge) -> tuple[float, float, int]:
    """Seconds a step, seconds an evaluation, bytes of weights."""
    model, steps = rehearsal(recipe, images)
    begun = time.perf_counter()
    averaged = steps(WARM_STEPS)
    at_once = 10 if time.perf_counter() - begun < CLOCK_SECONDS else 1
    taken, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < CLOCK_SECONDS:
        averaged = steps(at_once)
        taken += at_once
    step_seconds = (time.perf_counter() - begun) / taken
    begun = time.perf_counter()
    judge.measure(with_averages(model, averaged))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in named_state(model).values())
    return step_seconds, time.perf_counter() - begun, weights


def rehearsal(recipe: Recipe, images: ImageSet) -> tuple[nn.Module, Callable[[int], nn.Module]]:
    """The recipe's model, and a function that takes so many more steps of its dense training and gives the averages.

    Of several devices one, with its share of each batch; what they take to agree is not counted. At rate 0, so that a
    recipe that diverges does so in its run, where that is recorded.
    """
    fabric = make_fabric(recipe)
    objective = recipe.build_objective()
    model = build_model(recipe, images, seed=0)
    masks = Masks.dense(model)
    count = recipe.training.batch_size // recipe.training.devices * objective.batches_per_step
    labelled = objective.wants_labels
    batches = Batches(images, count, seed=0, flip=recipe.data.flip, device=fabric.device, labelled=labelled)
    endless = replace(recipe.training.settings(0), steps=10**9, lr=0.0)
    taken = 0

    def steps(more: int) -> nn.Module:
        nonlocal taken
        start, taken = taken, taken + more
        done = train(model, objective, batches, endless, masks=masks, start_step=start, end_step=taken, fabric=fabric)
        return done.averaged

    return model, steps


def _plan(recipe: Recipe, step_seconds: float, evaluate_seconds: float, workers: int, loading_seconds: float) -> Plan:
    seeds = len(recipe.seeds)
    controls = recipe.controls
    kinds = int(controls.random_mask) + int(controls.redrawn_weights)
    trainings = seeds * (1 + recipe.rounds + kinds * len(controls.chosen(recipe.rounds)))
    steps = seeds * steps_of_seed(recipe)
    rounds_of_seeds = -(-seeds // workers)
    share = rounds_of_seeds / seeds
    every = recipe.evaluation.every
    evaluations = trainings + (steps // every / seeds if every is not None else 0)
    beside = (STARTING if workers > 1 else 0.0) + PAGE + share * trainings * FIRST_STEPS_AND_FILES
    seconds = share * (steps * step_seconds + evaluations * evaluate_seconds) + beside * loading_seconds
    return Plan(step_seconds, evaluate_seconds, trainings, steps, seconds, 0, 0, loading_seconds=loading_seconds)


def used_disk(folder: Path) -> int:
    """Bytes of the files in a run's folder; a file under several names counts once."""
    files: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        with suppress(OSError):  # another command may remove what it wrote
            told = path.lstat()
            if S_ISREG(told.st_mode):
                files[told.st_dev, told.st_ino] = told.st_size
    return sum(files.values())


def used_memory(run: Run, workers: int) -> int | None:
    """The most bytes that this process and `workers` trainings at once have held, as the levels' timings tell.

    None where none does. Pages that processes share are counted for each.
    """
    told = (level.timing for level in run.levels if level.timing is not None and level.timing.shared_from is None)
    most = max((timing.peak_bytes for timing in told if timing.peak_bytes is not None), default=None)
    if most is None:
        return None
    return peak_memory() + workers * most if workers > 1 else max(most, peak_memory())


def fit(recipe: Recipe, plan: Plan, budget: float, workers: int) -> tuple[Recipe, Plan, tuple[str, ...]]:
    """The recipe with as much of its steps and rounds as fits into `budget` seconds, and what was given up, in words.

    Steps go first, to no fewer than half (the rewind step in proportion); then rounds, from the deepest; then
    steps again, to a tenth. Raises `RecipeError` where not even the dense model and one round would fit.
    """
    least_rounds = min(recipe.rounds, 1)

    def seconds(rounds: int, share: float) -> float:
        return at(rounds, share)[1].seconds

    def at(rounds: int, share: float) -> tuple[Recipe, Plan]:
        tried = _scaled(recipe, rounds, share)
        return tried, _plan(tried, plan.step_seconds, plan.evaluate_seconds, workers, plan.loading_seconds)

    for least in (0.5, 0.1):
        possible = range(least_rounds, recipe.rounds + 1)
        fitting = bisect_right(possible, budget, key=lambda rounds: seconds(rounds, least))
        if fitting:
            rounds = possible[fitting - 1]
            share = next(share for share in _shares(least) if seconds(rounds, share) <= budget)
            tried, new = at(rounds, share)
            disk = int(plan.disk_bytes / plan.trainings * new.trainings)
            held = {"memory_bytes": plan.memory_bytes, "disk_bytes": disk, "weight_bytes": plan.weight_bytes}
            new = replace(new, **held, threads=plan.threads)
            return tried, new, _given_up(recipe, tried)
    raise RecipeError(
        f"--time {duration(budget)} is too short: the dense model and one round of "
        f"{recipe.training.steps // 10:,} steps would take longer; give more time, fewer seeds or a smaller model"
    )


def _shares(least: float) -> list[float]:
    return [share / 100 for share in range(100, round(least * 100) - 1, -5)]


def _scaled(recipe: Recipe, rounds: int, share: float) -> Recipe:
    raw = recipe.dump()
    steps = max(2, int(recipe.training.steps * share))
    raw["training"]["steps"] = steps
    if (rewind := recipe.search.told("rewind_step", None)) is not None:
        raw["search"]["rewind_step"] = min(steps - 1, int(rewind * share))
    raw["search"]["rounds"] = rounds
    return parsed(raw)


def _given_up(asked: Recipe, fitted: Recipe) -> tuple[str, ...]:
    lost = []
    if fitted.training.steps < asked.training.steps:
        lost.append(f"training.steps {asked.training.steps:,} → {fitted.training.steps:,}")
    before, after = (int(r.search.told("rewind_step", 0)) for r in (asked, fitted))
    if after < before:
        lost.append(f"search.rewind_step {before:,} → {after:,}")
    if fitted.rounds < asked.rounds:
        deepest, now = (r.build_method().sparsity_at(r.rounds) for r in (asked, fitted))
        lost.append(f"search.rounds {asked.rounds} → {fitted.rounds} (sparsity up to {now:.1%}, not {deepest:.1%})")
    many, few = (r.controls.chosen(r.rounds) for r in (asked, fitted))
    if len(few) < len(many):
        lost.append(f"controls at {len(many)} levels → {len(few)}")
    return tuple(lost)

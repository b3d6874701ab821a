"""How many threads a training gets: told, counted from its work, or measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from gentickets.cores import cores, threads_at_most
from gentickets.data import Batches, ImageSet
from gentickets.lab.recipe import Recipe
from gentickets.lab.run.plan import rehearsal
from gentickets.lab.task import build_model
from gentickets.metrics.cost import training_flops
from gentickets.training.devices import on_threads

ROUNDS, BLOCK_SECONDS = 5, 0.2
"""How often each number of threads is timed, and seconds that it is timed each time."""


def threads_of(recipe: Recipe, images: ImageSet, workers: int) -> int:
    """Intra-op threads of each of `workers` trainings side by side, whose processes share the cores.

    Counted and measured ones go by the cores that this process was given, and by OMP_NUM_THREADS. Measured ones are to
    be kept with the run: another measurement may find another number, which gives other bits.
    """
    processes = workers * recipe.training.devices
    asked, share = recipe.training.threads, threads_at_most(max(1, cores() // processes))
    if asked == "measured":
        return _fastest(recipe, images, share)
    return _counted(recipe, images, share) if asked == "auto" else asked


def _counted(recipe: Recipe, images: ImageSet, cores: int) -> int:
    objective = recipe.build_objective()
    few = Batches(images, 2 * objective.batches_per_step, seed=0, labelled=objective.wants_labels).at(0)
    each = training_flops(build_model(recipe, images, 0), objective, few).dense
    count = recipe.training.batch_size // recipe.training.devices * objective.batches_per_step
    return threads_for(each * count, cores)


def threads_for(flops: float, cores: int) -> int:
    """Intra-op threads for a training whose step takes so many FLOPs, forward and backward: one, or all cores.

    By work, not by a timing of this run: equal recipes must give equal bits, and the number of threads decides the
    order of sums. The bound lies between what was timed on two idle cores, one thread against two: steps of 0.07
    GFLOP ran 1.2 times as fast on two, steps of 0.4 GFLOP 1.5 times, convolutional ones of 1 to 25 GFLOP 1.7 to 2
    times. On a busy machine two threads wait for each other at every operation, tens of times as long as a small
    step takes: below the bound that risk is not worth a fifth.
    """
    return 1 if flops < 120e6 else max(1, cores)


def _fastest(recipe: Recipe, images: ImageSet, cores: int) -> int:
    """With how many of `cores`, a power of two or all, this machine as it is takes the recipe's dense steps fastest."""
    choices = sorted({2**k for k in range(cores.bit_length()) if 2**k <= cores} | {cores})
    if len(choices) == 1:
        return 1
    _, steps = rehearsal(recipe, images)
    return fastest(choices, lambda threads, count: _timed(threads, lambda: steps(count)))


def fastest(choices: list[int], seconds: Callable[[int, int], float]) -> int:
    """The smallest of `choices` that no other beats by more than a twentieth, by medians of interleaved timings.

    `seconds(threads, steps)`: of that many steps on that many threads.
    """
    counts = {threads: max(1, int(BLOCK_SECONDS / max(seconds(threads, 2) / 2, 1e-6))) for threads in choices}
    taken: dict[int, list[float]] = {threads: [] for threads in choices}
    for _ in range(ROUNDS):
        for threads, count in counts.items():
            taken[threads].append(seconds(threads, count) / count)
    medians = {threads: float(np.median(each)) for threads, each in taken.items()}
    return next(threads for threads in choices if medians[threads] <= 1.05 * min(medians.values()))


def _timed(threads: int, run: Callable[[], object]) -> float:
    with on_threads(threads):
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun

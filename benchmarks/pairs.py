"""How a contest is timed: ratios within a round, so that a machine that slows down slows all contenders alike."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.contest import Contender, Contest

Clock = Callable[[], float]
"""Seconds, as `time.perf_counter` gives them."""

FEWEST_ROUNDS = 3
_LONG = 1.0  # seconds; what takes longer is not run once more to see how often it fits into a measurement


@dataclass(frozen=True)
class Spread:
    """Median and quartiles (linear between the values) of what the rounds gave."""

    median: float
    q25: float
    q75: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        q25, median, q75 = np.quantile(values, [0.25, 0.5, 0.75])
        return cls(float(median), float(q25), float(q75))

    def verdict(self, at_most: float) -> str:
        """Whether the quartiles are below the target, above it, or on both sides."""
        if self.q75 <= at_most:
            return "reached"
        return "missed" if self.q25 > at_most else "within spread"


@dataclass(frozen=True)
class Timing:
    """One contender's result: its time over the reference's of the same round, and its own in milliseconds."""

    ratio: Spread
    ms: Spread


def measure(
    contest: Contest,
    rounds: int,
    shortest: float = 0.02,
    longest: float = math.inf,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Runs the contest for `rounds` rounds, in each of them every contender, in an order that is drawn anew.

    A contender is repeated until a measurement takes `shortest` seconds. After `longest` seconds no further round is
    begun, but there are never fewer than three.
    """
    repeats = {name: _repeats(contender, shortest, clock) for name, contender in contest.contenders.items()}
    order, rng = list(contest.contenders), random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    began = clock()
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and clock() - began > longest:
            break
        rng.shuffle(order)
        for name in order:
            contender = contest.contenders[name]
            seconds[name].append(_time(contender, repeats[name], clock))
    return compare(seconds, contest.reference)


def compare(seconds: Mapping[str, Sequence[float]], reference: str) -> dict[str, Timing]:
    """From the seconds of each contender, round by round, to their ratios."""
    base = seconds[reference]
    return {
        name: Timing(
            Spread.of([mine / theirs for mine, theirs in zip(own, base, strict=True)]),
            Spread.of([1000 * second for second in own]),
        )
        for name, own in seconds.items()
    }


def _repeats(contender: Contender, shortest: float, clock: Clock) -> int:
    """How often a contender is run in one measurement. Its first run, which warms it, does not say."""
    taken = _time(contender, 1, clock) * contender.per
    if taken < _LONG:
        taken = _time(contender, 1, clock) * contender.per
    return max(1, math.ceil(shortest / max(taken, 1e-6)))


def _time(contender: Contender, repeats: int, clock: Clock) -> float:
    """Seconds for one unit of the contender's work."""
    wait_for_gpu()
    start = clock()
    for _ in range(repeats):
        contender.run()
    wait_for_gpu()
    return (clock() - start) / (repeats * contender.per)


def wait_for_gpu() -> None:
    """What was asked of a GPU goes on after the call that asked for it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()

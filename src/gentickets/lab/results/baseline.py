"""Whether the dense model was trained far enough to be compared with.

A ticket that betters a dense model of sixty steps has shown nothing. So the package carries *reference curves*: of a
model, an objective and a set of images, the primary metric of the dense model after so many steps, over some seeds
(`references.yaml`, made by `python -m campaign.references`; the idea is that of MLPerf's reference convergence points).
A run whose dense model is clearly worse than its own reference gets no verdict. Of other models nothing is known, and
that is said. Nor is there a verdict where the averages that are judged lag behind the weights that they are of.
"""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from gentickets.catalogue import CATALOGUE, load
from gentickets.lab.results.reading import Run
from gentickets.lab.results.summary import Summary
from gentickets.lab.results.words import number

ALLOWED = 0.1
"""By so much the dense model may be worse than its reference, or its average than its weights, beside twice the
standard error of the difference."""


@dataclass(frozen=True)
class Point:
    """The dense model after `steps` of training: mean and sample standard deviation of the metric over `seeds`."""

    steps: int
    mean: float
    deviation: float
    seeds: int


@dataclass(frozen=True)
class Reference:
    """A reference curve, shortest training first, and the recipe that it is of."""

    preset: str
    points: tuple[Point, ...]

    lower_is_better: bool = True

    @property
    def best(self) -> Point:
        """The dense model where it is at its best: at the end, or before, where it overfits."""
        best = min if self.lower_is_better else max
        return best(reversed(self.points), key=lambda point: point.mean)

    @property
    def full(self) -> Point:
        """The dense model after the preset's own number of steps."""
        return self.points[-1]


@dataclass(frozen=True)
class Lag:
    """How the dense model is judged, by the average of its weights, and how by the weights themselves: means."""

    averaged: float
    raw: float


def identity(run: Run) -> dict[str, Any]:
    """What a reference is of: the model, the objective, the images, and the metric with its features."""
    metric = run.metrics()[run.primary]
    data = run.origin.get("data")
    return {
        "model": _said("model", run.recipe.get("model")),
        "objective": _said("objective", run.recipe.get("objective")),
        "images": data.get("fingerprint") if isinstance(data, Mapping) else None,
        "metric": metric.label,
    }


def reference_of(run: Run) -> Reference | None:
    """The reference of a run's dense model, None where there is none."""
    if not run.metrics():
        return None
    wanted = identity(run)
    for entry in _references():
        parts = {part: _said(part, entry["of"][part]) for part in ("model", "objective")}
        if {**entry["of"], **parts} == wanted:
            points = tuple(Point(**point) for point in entry["curve"])
            return Reference(entry["preset"], points, run.metrics()[run.primary].lower_is_better)
    return None


def falls_short(dense: Summary, reference: Reference) -> bool:
    """Whether the dense model is worse than its reference by more than chance, and by more than `ALLOWED`.

    Chance is reckoned from the spread of the reference: a run's own is no allowance.
    """
    if dense.mean is None:
        return False
    error = reference.best.deviation * math.sqrt(1 / dense.n + 1 / reference.best.seeds)
    return worse_by(dense, reference) > max(2 * error / abs(reference.best.mean), ALLOWED)


def worse_by(dense: Summary, reference: Reference) -> float:
    """By which share of it the dense model is worse than its reference; below 0 where it is better."""
    assert dense.mean is not None
    best = reference.best.mean
    return (dense.mean - best if reference.lower_is_better else best - dense.mean) / abs(best)


def overfits(run: Run, reference: Reference) -> bool:
    """Whether dense models that stop before a run's do are better, by more than chance."""
    best, full = reference.best, reference.full
    steps = max((result.end_step for result in run.of("ticket", 0)), default=0)
    error = math.hypot(best.deviation / math.sqrt(best.seeds), full.deviation / math.sqrt(full.seeds))
    return steps > best.steps and abs(full.mean - best.mean) > 2 * error


def lag_of(averaged: Mapping[int, float], raw: Mapping[int, float], lower_is_better: bool = True) -> Lag | None:
    """Where averages are worse than the weights that they are of, by more than chance and `ALLOWED`; else None.

    Seed → the metric of the dense model, by the average and by the weights. An average lags where a training is short
    beside what it averages over: it is then of a model that is no longer. What learns slower lags more, and is judged
    worse than it is.
    """
    seeds = sorted(averaged.keys() & raw.keys())
    if not seeds:
        return None
    means = Lag(statistics.fmean(averaged[seed] for seed in seeds), statistics.fmean(raw[seed] for seed in seeds))
    worse = [(averaged[seed] - raw[seed]) * (1 if lower_is_better else -1) for seed in seeds]
    error = statistics.stdev(worse) / math.sqrt(len(worse)) if len(worse) > 1 else 0.0
    return means if statistics.fmean(worse) > max(2 * error, ALLOWED * abs(means.raw)) else None


def still_falling(run: Run) -> float | None:
    """By which share the dense model's training loss fell from the third quarter of its training to the last.

    The mean over the seeds; None for losses that do not measure progress (those of adversaries), or without curves.
    """
    said = run.recipe.get("objective")
    if not isinstance(said, Mapping) or said.get("name") == "adversarial":
        return None
    falls = []
    for result in run.of("ticket", 0):
        losses = {
            line["step"]: sum(line["losses"].values())
            for line in result.curve()
            if isinstance(line, dict) and isinstance(line.get("losses"), dict) and isinstance(line.get("step"), int)
        }
        end = max(losses, default=0)
        third = [loss for step, loss in losses.items() if end / 2 < step <= end * 3 / 4]
        last = [loss for step, loss in losses.items() if step > end * 3 / 4]
        if third and last and statistics.fmean(third) > 0:
            falls.append(1 - statistics.fmean(last) / statistics.fmean(third))
    return statistics.fmean(falls) if falls else None


def told(dense: Summary, reference: Reference) -> str:
    """`0.105, where its reference is 0.0131 ± 0.0007 after 1,200 steps`."""
    best = reference.best
    bar = f"{number(best.mean)} ± {number(best.deviation, 1)} after {best.steps:,} steps"
    return f"{number(dense.mean)}, where its reference is {bar}"


def _said(kind: str, part: Any) -> dict[str, Any]:
    """What a part of a recipe says: keys that are null, or what they are by default, are as if they were not there."""
    if not isinstance(part, Mapping):
        return {}
    name, defaults = part.get("name"), dict[str, Any]()
    if isinstance(name, str) and name in CATALOGUE[kind]:
        taken = inspect.signature(load(kind, name)).parameters
        defaults = {key: one.default for key, one in taken.items()}
    return {key: value for key, value in part.items() if value is not None and value != defaults.get(key)}


@cache
def _references() -> tuple[dict[str, Any], ...]:
    text = resources.files("gentickets.lab.results").joinpath("references.yaml").read_text("utf-8")
    return tuple(yaml.safe_load(text) or ())

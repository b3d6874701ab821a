"""Whether the dense model was trained far enough to be compared with.

A ticket that betters a dense model of sixty steps has shown nothing. So the package carries *reference curves*: of a
model, an objective and a set of images, the primary metric of the dense model after so many steps, over some seeds
(`references.yaml`, made by `python -m campaign.references`; the idea is that of MLPerf's reference convergence points).
A run whose dense model is clearly worse than its own reference gets no verdict. Of other models nothing is known, and
that is said.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from gentickets.lab.results.reading import Run, Summary
from gentickets.lab.results.words import number

ALLOWED = 0.1
"""By so much the dense model may be worse than its reference, beside twice the standard error of the difference."""


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


def identity(run: Run) -> dict[str, Any]:
    """What a reference is of: the model, the objective, the images, and the metric with its features."""
    metric = run.metrics()[run.primary]
    data = run.origin.get("data")
    return {
        "model": _said(run.recipe.get("model")),
        "objective": _said(run.recipe.get("objective")),
        "images": data.get("fingerprint") if isinstance(data, Mapping) else None,
        "metric": metric.label,
    }


def reference_of(run: Run) -> Reference | None:
    """The reference of a run's dense model, None where there is none."""
    if not run.metrics():
        return None
    wanted = identity(run)
    for entry in _references():
        if entry["of"] == wanted:
            points = tuple(Point(**point) for point in entry["curve"])
            return Reference(entry["preset"], points, run.metrics()[run.primary].lower_is_better)
    return None


def falls_short(dense: Summary, reference: Reference) -> bool:
    """Whether the dense model is worse than its reference by more than chance, and by more than `ALLOWED`.

    Chance is reckoned from the spread of the reference: a run's own is no allowance.
    """
    if dense.mean is None:
        return False
    best = reference.best
    worse = dense.mean - best.mean if reference.lower_is_better else best.mean - dense.mean
    error = best.deviation * math.sqrt(1 / dense.n + 1 / best.seeds)
    return worse > max(2 * error, ALLOWED * abs(best.mean))


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


def _said(part: Any) -> dict[str, Any]:
    """What of a part of a recipe is said: keys that are null are as if they were not there."""
    return {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}


@cache
def _references() -> tuple[dict[str, Any], ...]:
    text = resources.files("gentickets.lab.results").joinpath("references.yaml").read_text("utf-8")
    return tuple(yaml.safe_load(text) or ())

"""Judging a model while it trains, on training images: when it could have stopped, and its best weights.

No held-out image has a say: what is chosen here is chosen by the training images alone, and then judged on the others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gentickets.lab.run import folder as disk
from gentickets.masks.names import named_state
from gentickets.training.averaging import with_averages
from gentickets.training.hooks import Hook, State

BEST = "best.safetensors"
"""The weights, averages in their place, at the best evaluation."""

MARGIN = 0.05
"""How near the best value is near enough to have stopped."""


class Validation(Hook):
    """Asks `score(model)`, lower is better, every `every` steps, and keeps the best weights in `folder`."""

    def __init__(self, score: Callable[[nn.Module], float], every: int, folder: Path):
        self._score, self.every, self._path = score, every, folder / BEST
        self.steps: list[int] = []
        self.values: list[float] = []

    def after_step(self, state: State) -> bool:
        if self.is_due(state.step):  # and not where a training ends in between
            with torch.no_grad():
                judged = with_averages(state.model, state.averaged)
                value = self._score(judged)
            if not self.values or value < min(self.values):
                disk.save_weights(self._path, named_state(judged))
            self.steps.append(state.step)
            self.values.append(value)
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `Damaged` where there was a best evaluation, and its weights are not there as they were written."""
        if state["values"]:
            disk.load_weights(self._path)
        self.steps, self.values = list(state["steps"]), list(state["values"])

    def summary(self) -> dict[str, Any]:
        """For metrics.json: the curve, the step of its best value, and where training could have stopped."""
        best = self.steps[self.values.index(min(self.values))] if self.values else None
        return {
            "steps": self.steps,
            "values": self.values,
            "best_step": best,
            "early_stopping_step": early_stopping_step(self.steps, self.values),
        }


def early_stopping_step(steps: Sequence[int], values: Sequence[float], margin: float = MARGIN) -> int | None:
    """The first evaluation at which the metric (lower is better), smoothed, is within `margin` of its best; else None.

    Smoothed over a tenth of all evaluations, so that no single lucky one sets the bar and no single unlucky one counts:
    "stays within" of a curve with 5 % of noise is met by the last evaluation alone. A value that is not finite is never
    near.
    """
    smooth = _smoothed(values)
    finite = [value for value in smooth if math.isfinite(value)]
    if not finite:
        return None
    limit = min(finite) + margin * abs(min(finite))
    return next(step for step, value in zip(steps, smooth, strict=True) if value <= limit)


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean over as many neighbours on each side as make up a tenth of all; itself alone for fewer than twenty."""
    side = len(values) // 20
    return [statistics.fmean(values[max(0, at - side) : at + side + 1]) for at in range(len(values))]

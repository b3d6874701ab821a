"""A metric of one's own: a function of generated and of real images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentickets.errors import DataError
from gentickets.metrics.measurement import Measurement


@dataclass(frozen=True)
class OfImages:
    """`function(samples, images) -> float` under a name, as a metric.

    Both are float32 (n, channels, height, width) in [-1, 1], samples beyond that clamped, as saving would; they need
    not be equally many. Lower is better, unless the function says otherwise: `function.lower_is_better = False`. What
    a report prints is the first line of its docstring, or else its name.
    """

    key: str
    function: Callable[[Tensor, Tensor], float]

    @property
    def lower_is_better(self) -> bool:
        return bool(getattr(self.function, "lower_is_better", True))

    @property
    def label(self) -> str:
        lines = (getattr(self.function, "__doc__", None) or "").strip().splitlines()
        return lines[0].strip().rstrip(".") if lines else self.key

    def __call__(self, samples: Tensor, images: Tensor) -> Measurement:
        """NaN where a sample is not finite. Raises `DataError` where the function fails or gives no number."""
        value = math.nan
        if bool(samples.isfinite().all()):
            value = self._value(samples.clamp(-1.0, 1.0), images)
        return Measurement(self.key, self.label, value, len(samples), self.lower_is_better)

    @torch.no_grad()
    def _value(self, samples: Tensor, images: Tensor) -> float:
        of = f"metric {self.key} of {len(samples)} samples and {len(images)} images"
        try:
            found = self.function(samples, images)
        except Exception as error:  # whatever another's function raises
            raise DataError(f"{of}: {type(error).__name__}: {error}") from error
        shape = f" of the shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
        try:
            return float(found if not isinstance(found, str) else None)
        except (TypeError, ValueError, RuntimeError):  # the last is torch's, of a tensor of several
            raise DataError(f"{of} is a {type(found).__name__}{shape}: give one number") from None

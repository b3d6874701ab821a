"""One measured number, with what one must know to quote it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """`key` names the column in a table, `label` what a report prints; `samples` counts the images.

    `deviation`: the standard deviation over the splits or subsets that `value` is the mean of, None without any.
    """

    key: str
    label: str
    value: float
    samples: int
    lower_is_better: bool = True
    deviation: float | None = None

"""One measured number, with what one must know to quote it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Measurement:
    """`key` names the column in a table, `label` what a report prints; `samples` counts the images.

    `deviation`: the standard deviation over the splits or subsets that `value` is the mean of, None without any.
    `by_network`: the values by each of several networks that `value` is the mean of, None where there is but one.
    """

    key: str
    label: str
    value: float
    samples: int
    lower_is_better: bool = True
    deviation: float | None = None
    by_network: tuple[float, ...] | None = None


def mean_over_networks(measured: Sequence[Measurement]) -> Measurement:
    """One metric by several networks as one measurement: means, and what each found. By one, it is as it is."""
    if len(measured) == 1:
        return measured[0]
    values = tuple(one.value for one in measured)
    deviations = [one.deviation for one in measured if one.deviation is not None]
    return replace(
        measured[0],
        label=f"{measured[0].label} (mean of {len(measured)} networks)",
        value=statistics.fmean(values),
        deviation=statistics.fmean(deviations) if deviations else None,
        by_network=values,
    )

"""The rule by which the field compares means: within one standard deviation of the dense model, or within some percent.

Kept beside the verdict, because papers are read by it. It passes an equal ticket three times in four with two seeds,
and gets easier the noisier the dense model is: see `estimation` for what the verdict rests on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from gentickets.lab.results.reading import Arm
from gentickets.lab.results.summary import Summary

RULE = "worse than the dense mean by no more than its standard deviation"


def within(arm: Summary | None, dense: Summary | None, allowance: float | None, lower_is_better: bool) -> bool:
    """Whether the mean of `arm` is worse than the dense one by no more than `allowance`; every seed must be there."""
    if arm is None or arm.mean is None or not arm.complete or allowance is None:
        return False
    if dense is None or dense.mean is None or not dense.complete:
        return False
    worse_by = arm.mean - dense.mean if lower_is_better else dense.mean - arm.mean
    return not _exceeds(worse_by, allowance, dense.mean)


def spread_of(dense: Summary | None) -> float | None:
    """What the rule allows: the dense model's sample standard deviation, None for one seed."""
    return dense.deviation if dense else None


def share_of(dense: Summary | None, margin: float) -> float | None:
    """What its form for means alone allows: `margin` of the dense mean."""
    return margin * abs(dense.mean) if dense and dense.mean is not None else None


def matches_up_to(
    summary: Mapping[tuple[Arm, int], Summary], allowance: Callable[[Summary | None], float | None], lower: bool
) -> float | None:
    """The sparsity of the ticket's last level before the first that is not `within`; None where the first is not."""
    dense, reached = summary.get(("ticket", 0)), None
    for level in sorted(level for arm, level in summary if arm == "ticket" and level):
        if not within(found := summary["ticket", level], dense, allowance(dense), lower):
            break
        reached = found.sparsity
    return reached


def _exceeds(value: float, allowance: float, scale: float) -> bool:
    """True where `value` is over `allowance` by more than rounding: what is on the line is not over it."""
    return value > allowance and not math.isclose(value, allowance, rel_tol=1e-9, abs_tol=1e-12 * abs(scale))

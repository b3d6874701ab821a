"""What a few seeds allow to say of a mean: its confidence interval, and whether it is worse than another."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence

from scipy import stats

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean by Student's t, n - 1 degrees of freedom; None for fewer than two."""
    if len(values) < 2:
        return None
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - float(half), mean + float(half)


def p_worse(values: Sequence[float], reference: Sequence[float], lower_is_better: bool) -> float | None:
    """One-sided p value of Welch's t-test that `values` are on average worse than `reference`.

    How often a difference as bad as this, or worse, would come about if the means were equal: a small one is evidence
    that the values are worse. None where either has fewer than two values, or neither varies.
    """
    if len(values) < 2 or len(reference) < 2:
        return None
    worse = "greater" if lower_is_better else "less"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # values that do not vary: the result is not finite
        found = stats.ttest_ind(values, reference, equal_var=False, alternative=worse)
    p = float(found.pvalue)
    return p if math.isfinite(p) else None

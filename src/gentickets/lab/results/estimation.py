"""What a few seeds allow to say: ratios with intervals, three answers, and how many more seeds would decide.

A *cell* is one arm at one level, with a value for each seed. The cells of a seed share its start and the order of its
batches, so two cells are compared seed by seed. Where all values of both are positive the comparison is of logarithms,
and its result a ratio; else it is of differences, as shares of the mean of the cell that is compared with, which then
has to be clearly away from 0.

How the spread of such a comparison is known:

- From `ENOUGH` seeds on by a bootstrap over the seeds (of Student's t: Efron & Tibshirani 1993, section 12.5), which
  assumes nothing of their distribution.
- With fewer, two cells alone say next to nothing (two seeds: t = 12.7), and all cells of the run together do not
  scatter alike: a dense model may scatter more than its tickets, a network that falls apart more than both. So the
  variance of a pair is drawn towards that of the pairs which one of the two makes with other cells that are about as
  good (a moderated t: Smyth 2004, "Linear models and empirical Bayes methods"). That counts as `SHARED` degrees of
  freedom and never as more, however alike the pairs look: so few seeds cannot show that they are.

No interval comes from one seed, nor from seeds that do not differ at all.

Where a value is the mean of what several networks measured, these are a sample too: others would have been as good. How
far the comparison hangs on them is told by a jackknife over the networks (Efron & Tibshirani 1993, chapter 11), and
its variance is added to that of the seeds (then always by t, degrees of freedom after Satterthwaite 1946). More seeds
do not lessen it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import stats

Answer = Literal["shown", "refuted", "undecided"]
Cell = Hashable
"""Such as (arm, level)."""

CONFIDENCE = 0.95
ENOUGH = 10
"""From so many seeds on the seeds themselves say how much they scatter."""

NEAR = 0.25
"""Cells whose means differ by less than this share may scatter alike."""

SHARED = 2
"""As how many degrees of freedom the spread of other pairs counts, beside the n - 1 of a pair's own."""

MOST_SEEDS = 200
"""More seeds than these nobody trains: an answer that needs more is not in reach."""

POWER = 0.8
"""How probably so many more seeds decide as are said to."""

_ALPHA = (1 - CONFIDENCE) / 2
_DRAWS = 10_000
_ROUNDING = 1e-12
_LARGEST = 700.0
"""The exponential of more is no number, and that of less 0."""


@dataclass(frozen=True)
class Estimate:
    """How one cell stands to another, over the seeds that both have.

    `ratio`: below 1 where the first has the smaller values; with its 95 % interval `low` to `high`, both None where
    there is no spread to judge by. NaN where the second is about 0, of which nothing is a share. `better`: the share of
    pairs of seeds, one of each cell, in which the first is better (ties count half): the probability of improvement.
    `method`: what the interval rests on, in words, or why there is none; `logarithms`: of ratios, and not of
    differences as shares of the second's mean.
    """

    ratio: float
    low: float | None
    high: float | None
    seeds: int
    better: float
    method: str
    logarithms: bool
    lower_is_better: bool
    # On the scale of the comparison, larger is worse: mean, standard error by the seeds, and Student's t of the method;
    # and the standard error by the networks with their number.
    _worse: float
    _error: float
    _freedom: float
    _draws: np.ndarray | None = None
    _networks: tuple[float, int] = (0.0, 1)

    def p_worse_by(self, margin: float) -> float:
        """One-sided p value of the hypothesis that the first is worse by `margin` (a share) or more.

        A small one is evidence that it is not. 1 without an interval: nothing is.
        """
        return self._p(self._bound(margin))

    def not_worse_by(self, margin: float) -> Answer:
        """Whether the first is worse by less than `margin`: shown, refuted, or not told by these seeds."""
        return self._answer(self._bound(margin), self._bound(margin))

    def ahead(self, margin: float) -> Answer:
        """Whether the first is better at all: refuted where it is not, or by less than `margin` at most."""
        return self._answer(0.0, -self._bound(margin))

    @property
    def if_networks_agreed(self) -> Estimate:
        """What more seeds could tell of it if the networks that measured it saw it alike: with many of them they do."""
        return replace(self, _networks=(0.0, 1))

    def seeds_for_not_worse(self, margin: float, levels: int = 1) -> float | None:
        """How many more seeds would decide `not_worse_by` with a probability of `POWER`, from what is known now.

        "Shown" then has to stand beside as many `levels` as are looked at (Holm's first step). 0 where that is so
        already; infinite for more than `MOST_SEEDS`; None where there is no spread to reckon with.
        """
        bound = self._bound(margin)
        return self._seeds_for(bound, bound, levels)

    def seeds_for_ahead(self, margin: float, levels: int = 1) -> float | None:
        """The same for `ahead`."""
        return self._seeds_for(0.0, -self._bound(margin), levels)

    def _seeds_for(self, shown_below: float, refuted_above: float, levels: int) -> float | None:
        if self.low is None:
            return None
        if self._answer(shown_below, refuted_above) == "refuted" or self._p(shown_below) <= _ALPHA / levels:
            return 0
        sigma = self._error * math.sqrt(self.seeds)
        more = np.arange(1, MOST_SEEDS + 1 - self.seeds)
        n = self.seeds + more
        error, freedom = _with_networks(sigma / np.sqrt(n), self._freedom + more, *self._networks)
        below = shown_below - stats.t.ppf(1 - _ALPHA / levels, freedom) * error
        above = refuted_above + stats.t.ppf(1 - _ALPHA, freedom) * error
        # Where the mean of all seeds will lie: the new ones scatter about a truth that the old ones leave open.
        place = stats.t(self._freedom, self._worse, more / n * np.hypot(self._error, sigma / np.sqrt(more)))
        enough = more[place.cdf(below) + place.sf(above) >= POWER]
        return int(enough[0]) if len(enough) else math.inf

    def _bound(self, margin: float) -> float:
        return math.log1p(margin) if self.logarithms else margin

    def _answer(self, shown_below: float, refuted_above: float) -> Answer:
        if self.low is None or self.high is None:
            return "undecided"
        best, worst = sorted((self._worse_of(self.low), self._worse_of(self.high)))
        if worst < shown_below:
            return "shown"
        return "refuted" if best > refuted_above else "undecided"

    def _worse_of(self, ratio: float) -> float:
        change = math.log(ratio) if self.logarithms else ratio - 1
        return change if self.lower_is_better else -change

    def _p(self, bound: float) -> float:
        if self.low is None:
            return 1.0
        error, freedom = _with_networks(self._error, self._freedom, *self._networks)
        t = (self._worse - bound) / error
        if self._draws is not None:
            return float((1 + np.sum(self._draws <= t)) / (1 + len(self._draws)))
        return float(stats.t.cdf(t, freedom))


@dataclass(frozen=True)
class _Scale:
    """What two cells are compared on: logarithms, or shares of a unit."""

    logarithms: bool
    unit: float = 1.0

    def of(self, value: float) -> float:
        return math.log(value) if self.logarithms else value / self.unit

    def ratio(self, change: float) -> float:
        return float(np.exp(np.clip(change, -_LARGEST, _LARGEST))) if self.logarithms else 1 + change

    @property
    def near(self) -> float:
        return math.log1p(NEAR) if self.logarithms else NEAR


class Cells:
    """The cells of one run, of one metric: cell → seed → value. A value that is not finite has no place here.

    `by_network`: the same, with the values of which each value is the mean, for those that are one over networks.
    """

    def __init__(
        self,
        values: Mapping[Any, Mapping[int, float]],
        lower_is_better: bool,
        by_network: Mapping[Any, Mapping[int, Sequence[float]]] | None = None,
    ):
        self.values: Mapping[Cell, Mapping[int, float]] = values
        self.lower_is_better = lower_is_better
        self._by_network: Mapping[Cell, Mapping[int, Sequence[float]]] = by_network or {}

    def compare(self, one: Cell, other: Cell) -> Estimate | None:
        """How `one` stands to `other`; None where they share no seed."""
        ours, theirs = self.values.get(one, {}), self.values.get(other, {})
        seeds = sorted(set(ours) & set(theirs))
        if not seeds:
            return None
        scale = self._scale(one, other)
        better = _better(list(ours.values()), list(theirs.values()), self.lower_is_better)
        if scale is None:
            why = "no share of a value that is about 0"
            return Estimate(
                math.nan, None, None, len(seeds), better, why, False, self.lower_is_better, math.nan, math.inf, 1.0
            )
        sign = 1.0 if self.lower_is_better else -1.0
        worse = np.array([sign * (scale.of(ours[s]) - scale.of(theirs[s])) for s in seeds])
        error, freedom, draws, method = self._error(worse, scale, (ours, theirs))
        mean = float(worse.mean())
        networks = self._of_networks(one, other, seeds, scale)
        if networks[0] and len(seeds) > 1:
            # Seeds that are resampled say nothing of few networks: both together are told by t alone.
            method, draws = "Student's t" if draws is not None else method, None
            method = f"{method}, with the spread over {networks[1]} networks"
        known = math.isfinite(error) and math.hypot(error, networks[0]) > _ROUNDING
        low, high = self._ends(mean, *_with_networks(error, freedom, *networks), draws) if known else (mean, mean)
        if not self.lower_is_better:
            low, high = high, low
        return Estimate(
            ratio=scale.ratio(sign * mean),
            low=scale.ratio(sign * low) if known else None,
            high=scale.ratio(sign * high) if known else None,
            seeds=len(seeds),
            better=better,
            method=method,
            logarithms=scale.logarithms,
            lower_is_better=self.lower_is_better,
            _worse=mean,
            _error=error,
            _freedom=freedom,
            _draws=draws,
            _networks=networks,
        )

    def _scale(self, one: Cell, other: Cell) -> _Scale | None:
        """What two cells are compared on; None where the second is too near to 0 for anything to be a share of it."""
        found = [*self.values[one].values(), *self.values[other].values()]
        found += [value for cell in (one, other) for of in self._by_network.get(cell, {}).values() for value in of]
        if all(value > 0 for value in found):
            return _Scale(logarithms=True)
        theirs = list(self.values[other].values())
        unit, spread = abs(float(np.mean(theirs))), float(np.std(theirs, ddof=1)) if len(theirs) > 1 else 0.0
        return _Scale(logarithms=False, unit=unit) if unit > 2 * spread and unit > 0 else None

    def _error(
        self, worse: np.ndarray, scale: _Scale, pair: tuple[Mapping[int, float], Mapping[int, float]]
    ) -> tuple[float, float, np.ndarray | None, str]:
        """The standard error of the mean of paired differences, its degrees of freedom, bootstrapped t, and words."""
        n = len(worse)
        if n == 1:
            return math.inf, 1.0, None, "one seed"
        own = float(np.var(worse, ddof=1))
        shared = self._shared(pair, scale) if n < ENOUGH else None
        if own <= _ROUNDING**2 and (shared or 0.0) <= _ROUNDING**2:
            return 0.0, n - 1, None, "seeds that do not differ"
        if n >= ENOUGH:
            return math.sqrt(own / n), n - 1, _bootstrapped(worse), "bootstrap over the seeds"
        if shared is None:
            return math.sqrt(own / n), n - 1, None, "Student's t"
        freedom = n - 1 + SHARED
        return math.sqrt(((n - 1) * own + SHARED * shared) / freedom / n), freedom, None, "moderated t"

    def _shared(self, pair: tuple[Mapping[int, float], Mapping[int, float]], scale: _Scale) -> float | None:
        """The mean variance of the paired differences of one of two cells from other cells: from those that are about
        as good as one of the two, from all where none is. None without any."""
        others = [cell for cell in self._distinct if cell not in pair and _fits(cell, scale)]
        means = [_mean(cell, scale) for cell in pair]
        near = [cell for cell in others if any(abs(_mean(cell, scale) - mean) < scale.near for mean in means)]
        found = [
            float(np.var([scale.of(cell[s]) - scale.of(other[s]) for s in both], ddof=1))
            for cell in pair
            for other in (near or others)
            if len(both := cell.keys() & other.keys()) > 1
        ]
        return float(np.mean(found)) if found else None

    def _of_networks(self, one: Cell, other: Cell, seeds: Sequence[int], scale: _Scale) -> tuple[float, int]:
        """The standard error of the comparison by its networks, and how many these are: (0, 1) for one."""
        cells = [self._by_network.get(cell, {}) for cell in (one, other)]
        counts = {len(cell.get(seed, ())) for cell in cells for seed in seeds}
        count = counts.pop()
        if counts or count < 2:
            return 0.0, 1
        ours, theirs = (np.array([cell[seed] for seed in seeds]) for cell in cells)
        without = []
        for left_out in range(count):
            means = [np.delete(side, left_out, axis=1).mean(axis=1) for side in (ours, theirs)]
            without.append(float(np.mean([scale.of(a) - scale.of(b) for a, b in zip(*means, strict=True)])))
        error = (count - 1) / math.sqrt(count) * float(np.std(without, ddof=1))
        return (error, count) if error > _ROUNDING else (0.0, 1)

    def _ends(self, mean: float, error: float, freedom: float, draws: np.ndarray | None) -> tuple[float, float]:
        if draws is None:
            half = float(stats.t.ppf(1 - _ALPHA, freedom)) * error
            return mean - half, mean + half
        upper, lower = np.quantile(draws, (1 - _ALPHA, _ALPHA))
        return mean - float(upper) * error, mean - float(lower) * error

    @cached_property
    def _distinct(self) -> list[Mapping[int, float]]:
        """The cells, a dense training that several arms share but once."""
        found: list[Mapping[int, float]] = []
        for cell in self.values.values():
            if cell not in found:
                found.append(cell)
        return found


def _fits(cell: Mapping[int, float], scale: _Scale) -> bool:
    return not scale.logarithms or all(value > 0 for value in cell.values())


def _mean(cell: Mapping[int, float], scale: _Scale) -> float:
    return float(np.mean([scale.of(value) for value in cell.values()]))


def _with_networks(error: Any, freedom: Any, of_networks: float, networks: int) -> tuple[Any, Any]:
    """Standard error and degrees of freedom, numbers or arrays, where networks scatter beside the seeds."""
    if not of_networks:
        return error, freedom
    total = np.hypot(error, of_networks)
    return total, total**4 / (error**4 / freedom + of_networks**4 / (networks - 1))


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean by Student's t, n - 1 degrees of freedom; None for fewer than two."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf(1 - _ALPHA, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """p values that stay right however many are looked at (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, worst = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def _better(ours: Sequence[float], theirs: Sequence[float], lower_is_better: bool) -> float:
    one, other = np.array(ours)[:, None], np.array(theirs)[None, :]
    wins = one < other if lower_is_better else one > other
    return float(np.mean(wins + 0.5 * (one == other)))


def _bootstrapped(values: np.ndarray) -> np.ndarray:
    """Student's t of resampled seeds, drawn by a fixed seed."""
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(0, len(values), (_DRAWS, len(values)))]
    deviations = drawn.std(axis=1, ddof=1)
    means = drawn.mean(axis=1) - values.mean()
    kept = deviations > 0
    return np.asarray(means[kept] / (deviations[kept] / math.sqrt(len(values))))

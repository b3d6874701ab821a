"""What a few seeds allow to say: ratios with intervals, three answers, and how many more seeds would decide.

A *cell* is one arm at one level, with a value for each seed. The cells of a seed share its start and the order of its
batches, so two cells are compared seed by seed. Where all values are positive the comparison is of logarithms, and its
result a ratio; else it is of differences, as shares of the mean of the cell that is compared with.

How the spread of such a comparison is known:

- From `ENOUGH` seeds on by a bootstrap over the seeds (of Student's t: Efron & Tibshirani 1993, section 12.5), which
  assumes nothing of their distribution.
- With fewer, two cells alone say next to nothing (two seeds: t = 12.7), and all cells of the run together do not
  scatter alike: a network that falls apart scatters more. So the spread of a pair is drawn towards that of all pairs of
  cells that are about as good, the more so the more alike these are (the moderated t of Smyth 2004, "Linear models and
  empirical Bayes methods").

No interval comes from one seed.

Where a value is the mean of what several networks measured, these are a sample too: others would have been as good. How
far the comparison hangs on them is told by a jackknife over the networks (Efron & Tibshirani 1993, chapter 11), and
its variance is added to that of the seeds (then always by t, degrees of freedom after Satterthwaite 1946). More seeds
do not lessen it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import optimize, special, stats

Answer = Literal["shown", "refuted", "undecided"]
Cell = Hashable
"""Such as (arm, level)."""

CONFIDENCE = 0.95
ENOUGH = 10
"""From so many seeds on the seeds themselves say how much they scatter."""

NEAR = 0.25
"""Cells whose means differ by less than this share may scatter alike."""

FEW = 6
"""Of fewer such cells their common spread is not known: then all cells of the run tell it."""

MOST_SEEDS = 200
"""More seeds than these nobody trains: an answer that needs more is not in reach."""

_ALPHA = (1 - CONFIDENCE) / 2
_DRAWS = 10_000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """How one cell stands to another, over the seeds that both have.

    `ratio`: below 1 where the first has the smaller values; with its 95 % interval `low` to `high`, both None for one
    seed. `better`: the share of pairs of seeds, one of each cell, in which the first is better (ties count half): the
    probability of improvement. `method`: what the interval rests on, in words; `logarithms`: of ratios, and not of
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

        A small one is evidence that it is not. 1 for one seed: nothing is.
        """
        return self._p(self._bound(margin))

    def not_worse_by(self, margin: float) -> Answer:
        """Whether the first is worse by less than `margin`: shown, refuted, or not told by these seeds."""
        return self._answer(self._bound(margin), self._bound(margin))

    def ahead(self, margin: float) -> Answer:
        """Whether the first is better at all: refuted where it is not, or by less than `margin` at most."""
        return self._answer(0.0, -self._bound(margin))

    def seeds_for_not_worse(self, margin: float) -> int | None:
        """How many more seeds would decide `not_worse_by`, if mean and spread stay as they are; 0 where it is decided.

        None where it would take more than `MOST_SEEDS`, and for one seed, which has no spread.
        """
        return self._seeds_for(abs(self._worse - self._bound(margin)))

    def seeds_for_ahead(self, margin: float) -> int | None:
        """The same for `ahead`."""
        return self._seeds_for(max(-self._worse, self._worse + self._bound(margin)))

    def _seeds_for(self, half_width: float) -> int | None:
        if self.low is None:
            return None
        spread = self._error * math.sqrt(self.seeds)
        for n in range(self.seeds, MOST_SEEDS + 1):
            freedom = self._freedom * (n - 1) / (self.seeds - 1)
            error, freedom = _with_networks(spread / math.sqrt(n), freedom, *self._networks)
            if float(stats.t.ppf(1 - _ALPHA, freedom)) * error < half_width:
                return n - self.seeds
        return None

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
        if not error:
            return 0.0 if self._worse < bound else 1.0
        t = (self._worse - bound) / error
        if self._draws is not None:
            return float((1 + np.sum(self._draws <= t)) / (1 + len(self._draws)))
        return float(stats.t.cdf(t, freedom))


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
        single = (value for cell in self._by_network.values() for found in cell.values() for value in found)
        means = (value for cell in values.values() for value in cell.values())
        self._logarithms = all(value > 0 for value in (*means, *single))

    def compare(self, one: Cell, other: Cell) -> Estimate | None:
        """How `one` stands to `other`; None where they share no seed."""
        ours, theirs = self.values.get(one, {}), self.values.get(other, {})
        seeds = sorted(set(ours) & set(theirs))
        if not seeds:
            return None
        scale = 1.0 if self._logarithms else abs(float(np.mean(list(theirs.values())))) or 1.0
        sign = 1.0 if self.lower_is_better else -1.0
        worse = np.array([sign * (self._scaled(ours[s]) - self._scaled(theirs[s])) / scale for s in seeds])
        error, freedom, draws, method = self._error(worse, scale, (one, other))
        mean = float(worse.mean())
        networks = self._of_networks(one, other, seeds, scale)
        if networks[0] and len(seeds) > 1:
            # Seeds that are resampled say nothing of few networks: both together are told by t alone.
            method, draws = "Student's t" if draws is not None else method, None
            method = f"{method}, with the spread over {networks[1]} networks"
        low, high = self._ends(mean, *_with_networks(error, freedom, *networks), draws)
        if not self.lower_is_better:
            low, high = high, low
        known = len(seeds) > 1
        return Estimate(
            ratio=self._ratio(mean),
            low=self._ratio(low) if known else None,
            high=self._ratio(high) if known else None,
            seeds=len(seeds),
            better=_better(list(ours.values()), list(theirs.values()), self.lower_is_better),
            method=method,
            logarithms=self._logarithms,
            lower_is_better=self.lower_is_better,
            _worse=mean,
            _error=error,
            _freedom=freedom,
            _draws=draws,
            _networks=networks,
        )

    def _scaled(self, value: float) -> float:
        return math.log(value) if self._logarithms else value

    def _ratio(self, worse: float) -> float:
        change = worse if self.lower_is_better else -worse
        return math.exp(change) if self._logarithms else 1 + change

    def _error(
        self, worse: np.ndarray, scale: float, pair: tuple[Cell, Cell]
    ) -> tuple[float, float, np.ndarray | None, str]:
        """The standard error of the mean of paired differences, its degrees of freedom, bootstrapped t, and words."""
        n = len(worse)
        if n == 1:
            return math.inf, 1.0, None, "one seed"
        own = float(np.std(worse, ddof=1))
        if n >= ENOUGH:
            return own / math.sqrt(n), n - 1, _bootstrapped(worse), "bootstrap over the seeds"
        prior, its_freedom, most = self._prior(self._near(pair, scale))
        if not most:
            return own / math.sqrt(n), n - 1, None, "Student's t"
        prior /= scale
        if math.isinf(its_freedom):
            used, freedom = prior, math.inf
        else:
            freedom = its_freedom + n - 1
            used = math.sqrt((its_freedom * prior**2 + (n - 1) * own**2) / freedom)
        return used / math.sqrt(n), min(freedom, most), None, "moderated t"

    def _of_networks(self, one: Cell, other: Cell, seeds: Sequence[int], scale: float) -> tuple[float, int]:
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
            pairs = zip(*means, strict=True)
            without.append(float(np.mean([self._scaled(a) - self._scaled(b) for a, b in pairs])) / scale)
        error = (count - 1) / math.sqrt(count) * float(np.std(without, ddof=1))
        return (error, count) if error > _ROUNDING else (0.0, 1)

    def _ends(self, mean: float, error: float, freedom: float, draws: np.ndarray | None) -> tuple[float, float]:
        if math.isinf(error):
            return mean, mean
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

    @cached_property
    def _spreads(self) -> dict[tuple[int, int], tuple[float, int]]:
        """Of each two of the distinct cells that scatter: the logarithm of the variance of their paired differences,
        and its degrees of freedom."""
        found = {}
        for i, one in enumerate(self._distinct):
            for j, other in enumerate(self._distinct[:i]):
                seeds = one.keys() & other.keys()
                if len(seeds) > 1:
                    variance = float(np.var([self._scaled(one[s]) - self._scaled(other[s]) for s in seeds], ddof=1))
                    if variance > 0:
                        found[i, j] = math.log(variance), len(seeds) - 1
        return found

    def _mean(self, cell: Mapping[int, float]) -> float:
        return float(np.mean([self._scaled(value) for value in cell.values()]))

    def _near(self, pair: tuple[Cell, Cell], scale: float) -> list[int]:
        """Which of the distinct cells are about as good as one of a pair; all of them where these are few."""
        width = (math.log1p(NEAR) if self._logarithms else NEAR) * scale
        means = [self._mean(self.values[one]) for one in pair]
        near = [
            number
            for number, cell in enumerate(self._distinct)
            if any(abs(self._mean(cell) - mean) < width for mean in means)
        ]
        return near if len(near) >= FEW else list(range(len(self._distinct)))

    def _prior(self, cells: Sequence[int]) -> tuple[float, float, int]:
        """The spread of paired differences that all pairs of cells tend to, on the scale of the values; with how many
        degrees of freedom it counts beside a pair's own (infinite where all scatter alike); and the most there are."""
        pairs = [(i, j) for at, i in enumerate(cells) for j in cells[:at] if (i, j) in self._spreads]
        logs, freedoms = [self._spreads[pair][0] for pair in pairs], [self._spreads[pair][1] for pair in pairs]
        most = (len(cells) - 1) * max(freedoms, default=0)
        if len(logs) < 2:
            return 0.0, 0.0, 0
        half = np.array(freedoms) / 2
        even = np.array(logs) - special.digamma(half) + np.log(half)
        beyond = float(np.var(even, ddof=1) - np.mean(special.polygamma(1, half)))
        if beyond <= 0:
            return math.exp(float(even.mean()) / 2), math.inf, most
        prior = _trigamma_inverse(beyond)
        level = float(even.mean()) + float(special.digamma(prior)) - math.log(prior)
        return math.exp(level / 2), 2 * prior, most


def _with_networks(error: float, freedom: float, of_networks: float, networks: int) -> tuple[float, float]:
    """Standard error and degrees of freedom where networks scatter beside the seeds."""
    if not of_networks or math.isinf(error):
        return error, freedom
    total = math.hypot(error, of_networks)
    return total, total**4 / (error**4 / freedom + of_networks**4 / (networks - 1))


def _trigamma_inverse(value: float) -> float:
    """x with trigamma(x) = `value` > 0: it falls from infinity to 0."""
    return math.exp(optimize.brentq(lambda x: float(special.polygamma(1, math.exp(x))) - value, -30, 30, xtol=1e-12))


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

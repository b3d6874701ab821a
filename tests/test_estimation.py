"""Ratios, intervals and answers, against references worked out otherwise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gentickets.lab.results.estimation import ENOUGH, MOST_SEEDS, SHARED, Cells, holm, mean_interval

VALUES = st.floats(0.1, 10)


def cells(lower_is_better=True, **values):
    return Cells({name: dict(enumerate(found)) for name, found in values.items()}, lower_is_better)


def drawn(rng, n, ratio=1.0, levels=8, spread=0.05):
    """A dense model and `levels` tickets, each `ratio` times as large, seeds with a share of their own."""
    own = rng.normal(0, spread, n)
    found = {"dense": dict(enumerate(np.exp(own + rng.normal(0, spread, n))))}
    for level in range(levels):
        found[f"ticket {level}"] = dict(enumerate(ratio * np.exp(own + rng.normal(0, spread, n))))
    return Cells(found, True)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=6))
def test_two_cells_alone_are_compared_by_students_t_of_paired_logarithms(pairs):
    ours, theirs = zip(*pairs, strict=True)
    found = cells(a=ours, b=theirs).compare("a", "b")
    logs = np.log(ours) - np.log(theirs)
    assert found.ratio == pytest.approx(math.exp(logs.mean()))
    assert found.seeds == len(pairs)
    if np.std(logs) > 1e-9:
        assert found.method == "Student's t"
        low, high = stats.t.interval(0.95, len(pairs) - 1, logs.mean(), stats.sem(logs))
        assert (found.low, found.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
        assert found.p_worse_by(0.05) == pytest.approx(
            stats.ttest_1samp(logs, math.log(1.05), alternative="less").pvalue, abs=1e-12
        )


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5))
def test_a_metric_that_is_better_when_higher_is_its_inverse_mirrored(pairs):
    ours, theirs = zip(*pairs, strict=True)
    lower = cells(a=ours, b=theirs).compare("a", "b")
    higher = cells(False, a=[1 / v for v in ours], b=[1 / v for v in theirs]).compare("a", "b")
    assert higher.ratio == pytest.approx(1 / lower.ratio)
    assert higher.better == pytest.approx(lower.better)
    assert higher.not_worse_by(0.05) == lower.not_worse_by(0.05)
    assert higher.ahead(0.05) == lower.ahead(0.05)
    if lower.low is not None:
        assert (higher.low, higher.high) == (pytest.approx(1 / lower.high), pytest.approx(1 / lower.low))


def test_values_below_zero_are_compared_as_shares_of_the_mean():
    found = cells(a=[-9.0, -11.0], b=[-10.0, -12.01]).compare("a", "b")
    assert found.ratio == pytest.approx(1 + 1.005 / 11.005)
    assert not found.logarithms
    assert found.not_worse_by(0.05) == "refuted"  # worse by 1 of 11 on both seeds
    assert found.not_worse_by(0.1) == "shown"


@pytest.mark.parametrize("dense", [(0.0, 0.0), (1e-5, -1e-5), (-0.01, 0.02), (0.0, 0.3)])
def test_of_what_is_about_nothing_there_is_no_share(dense):
    found = cells(a=[0.5, 0.6], b=list(dense)).compare("a", "b")
    assert math.isnan(found.ratio)
    assert (found.low, found.high, found.method) == (None, None, "no share of a value that is about 0")
    assert found.not_worse_by(0.05) == found.ahead(0.05) == "undecided"
    assert (found.p_worse_by(0.05), found.seeds_for_not_worse(0.05), found.better) == (1.0, None, 0.0)


def test_a_zero_elsewhere_leaves_a_pair_on_its_scale():
    pair = {"a": [1.0, 1.2, 1.1], "b": [1.1, 1.1, 1.3], "c": [1.0, 1.1, 1.2]}
    alone, beside = cells(**pair).compare("a", "b"), cells(**pair, d=[0.0, -1.0, 5.0]).compare("a", "b")
    assert beside.logarithms
    assert (alone.ratio, alone.low, alone.high) == (beside.ratio, beside.low, beside.high)


def test_the_spread_of_other_pairs_counts_as_two_degrees_of_freedom():
    """By hand: the pair's own variance, and the mean of those of the pairs that one of the two is in."""
    logs = np.array([[0.0, 0.1, 0.3], [0.1, 0.0, 0.2], [0.2, 0.1, 0.0]])
    found = cells(a=np.exp(logs[0]), b=np.exp(logs[1]), c=np.exp(logs[2])).compare("a", "b")
    own, *others = (np.var(logs[i] - logs[j], ddof=1) for i, j in ((0, 1), (0, 2), (1, 2)))
    error = math.sqrt((2 * own + SHARED * np.mean(others)) / (2 + SHARED) / 3)
    half = stats.t.ppf(0.975, 2 + SHARED) * error
    assert math.log(found.high / found.low) / 2 == pytest.approx(half)
    assert found.method == "moderated t"


def test_one_seed_shows_nothing():
    found = cells(a=[1.0], b=[2.0], c=[3.0]).compare("a", "b")
    assert (found.ratio, found.low, found.high) == (0.5, None, None)
    assert found.not_worse_by(0.5) == found.ahead(0.05) == "undecided"
    assert found.p_worse_by(0.05) == 1.0
    assert found.seeds_for_not_worse(0.05) is None


def test_only_seeds_that_both_have_are_compared():
    found = Cells({"a": {0: 2.0, 1: 2.0, 2: 9.0}, "b": {0: 1.0, 1: 1.0, 3: 7.0}}, True).compare("a", "b")
    assert (found.ratio, found.seeds) == (2.0, 2)
    assert Cells({"a": {0: 1.0}, "b": {1: 1.0}}, True).compare("a", "b") is None
    assert Cells({"a": {0: 1.0}}, True).compare("a", "b") is None


def test_the_probability_of_improvement_is_that_of_all_pairs_of_seeds():
    found = cells(a=[1.0, 2.0, 3.0], b=[2.0, 2.5, 4.0]).compare("a", "b")
    assert found.better == pytest.approx((3 + 2.5 + 1) / 9)


@pytest.mark.parametrize("n", [2, 3, 5, ENOUGH])
def test_the_interval_covers_the_true_ratio_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    covered = []
    for _ in range(150 if n < ENOUGH else 40):
        found = drawn(rng, n, ratio=1.1).compare("ticket 0", "dense")
        covered.append(found.low <= 1.1 <= found.high)
    assert 0.88 <= np.mean(covered) <= 1.0


@pytest.mark.parametrize("n", [2, 4])
def test_a_ticket_on_the_margin_is_seldom_shown_and_a_good_one_often(n):
    rng = np.random.default_rng(n)
    shown = {}
    for ratio in (1.0, 1.05, 1.1):
        answers = [drawn(rng, n, ratio, spread=0.01).compare("ticket 0", "dense").not_worse_by(0.05) for _ in range(80)]
        shown[ratio] = np.mean([answer == "shown" for answer in answers])
    assert shown[1.0] > 0.8
    assert shown[1.05] <= 0.1
    assert shown[1.1] == 0


def test_a_level_that_fell_apart_does_not_blur_those_that_did_not():
    rng = np.random.default_rng(0)
    calm = drawn(rng, 4, spread=0.001)
    wild = {f"wild {i}": dict(enumerate(5 * np.exp(rng.normal(0, 1.0, 4)))) for i in range(4)}
    both = Cells({**calm.values, **wild}, True)
    alone, beside = (found.compare("ticket 0", "dense") for found in (calm, both))
    assert math.log(beside.high / beside.low) < 2 * math.log(alone.high / alone.low)


def test_a_dense_training_that_several_arms_share_counts_once():
    rng = np.random.default_rng(0)
    once = drawn(rng, 3)
    again = Cells({**once.values, "dense again": once.values["dense"]}, True)
    one, other = (found.compare("ticket 0", "dense") for found in (once, again))
    assert (one.low, one.high) == (other.low, other.high)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_stepwise_bonferroni(p_values):
    adjusted = holm(p_values)
    ranked = sorted(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        rank = ranked.index(p)
        assert found == pytest.approx(max(min(1.0, (len(ranked) - i) * ranked[i]) for i in range(rank + 1)))


def test_the_seeds_that_are_said_to_decide_mostly_do():
    """An equal ticket: the answer by as many seeds as were said, over those runs that were told of a number."""
    rng = np.random.default_rng(2)
    decided = []
    for _ in range(250):
        whole = drawn(rng, ENOUGH - 1, spread=0.02, levels=4)
        found = cut(whole, 3).compare("ticket 0", "dense")
        more = found.seeds_for_not_worse(0.05)
        if more and more <= ENOUGH - 4:
            decided.append(cut(whole, 3 + int(more)).compare("ticket 0", "dense").not_worse_by(0.05) != "undecided")
    assert len(decided) > 40
    assert np.mean(decided) > 0.6


def cut(found, n):
    return Cells({cell: {seed: of[seed] for seed in range(n)} for cell, of in found.values.items()}, True)


def test_where_networks_differ_no_number_of_seeds_decides_and_more_networks_would():
    values = {"a": {}, "b": {}}
    for seed, scatter in enumerate((0.02, -0.02, 0.01, -0.01)):
        values["a"][seed] = [0.9 * np.exp(scatter + seen) for seen in (-0.2, 0.0, 0.2)]
        values["b"][seed] = [1.0, 1.0, 1.0]
    means = {cell: {seed: float(np.mean(seen)) for seed, seen in of.items()} for cell, of in values.items()}
    found = Cells(means, True, by_network=values).compare("a", "b")
    assert found.seeds_for_not_worse(0.05) == math.inf
    assert found.if_networks_agreed.seeds_for_not_worse(0.05) == 0
    alone = Cells(means, True).compare("a", "b")
    assert alone.if_networks_agreed == alone


def test_more_levels_and_more_noise_take_more_seeds():
    def noisy(spread):
        scatter = spread * np.array([1.0, -1.0, 0.5, -0.5])
        return cells(a=np.exp(scatter), b=np.exp(-scatter), c=np.exp(scatter / 2)).compare("a", "b")

    needed = [noisy(spread).seeds_for_not_worse(0.05) for spread in (0.001, 0.03, 0.05)]
    assert 0 == needed[0] < needed[1] < needed[2] < MOST_SEEDS
    assert needed[1] < noisy(0.03).seeds_for_not_worse(0.05, levels=5)
    on_the_line = cells(a=1.05 * np.exp([0.1, -0.1, 0.05, -0.05, 0.0]), b=[1.0] * 5).compare("a", "b")
    assert on_the_line.seeds_for_not_worse(0.05) == math.inf


@pytest.mark.parametrize("n", [2, ENOUGH, ENOUGH + 2])
def test_seeds_that_do_not_differ_show_nothing(n):
    found = cells(a=[0.1] * n, b=[0.1] * n).compare("a", "b")
    assert (found.ratio, found.low, found.high, found.method) == (1.0, None, None, "seeds that do not differ")
    assert found.not_worse_by(0.05) == found.ahead(0.05) == "undecided"
    assert found.seeds_for_ahead(0.05) is None


def test_values_of_any_size_have_an_interval():
    found = cells(a=[1.0, 1e60], b=[1e60, 1.0]).compare("a", "b")
    assert 0 < found.low < found.ratio < found.high
    assert math.isfinite(found.high)
    assert found.not_worse_by(0.05) == found.ahead(0.05) == "undecided"


@pytest.mark.parametrize("n", [3, 5])
def test_a_dense_model_that_scatters_more_than_its_tickets_does_not_make_a_match_easier(n):
    rng = np.random.default_rng(n)
    shown = []
    for _ in range(200):
        tickets = {f"ticket {i}": dict(enumerate(1.05 * np.exp(rng.normal(0, 0.02, n)))) for i in range(10)}
        dense = dict(enumerate(np.exp(rng.normal(0, 0.06, n))))
        found = Cells({"dense": dense, **tickets}, True).compare("ticket 0", "dense")
        shown.append(found.not_worse_by(0.05) == "shown")
    assert np.mean(shown) <= 0.08


def test_the_interval_of_a_mean():
    values = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert mean_interval(values) == (pytest.approx(low), pytest.approx(high))
    assert mean_interval([1.0]) is None

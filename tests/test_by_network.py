"""Values that are the mean over several networks: what each found is kept, and widens what is claimed."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gentickets.lab.recipe import kept_recipe, make_recipe
from gentickets.lab.results.estimation import ENOUGH, Cells
from gentickets.lab.results.reading import LevelResult, Metric, parse, read_run
from gentickets.lab.results.tables import write_csv
from gentickets.lab.results.verdict import judge
from gentickets.lab.results.verdict_words import sentences
from gentickets.lab.run.level import metrics_json
from gentickets.metrics import Measurement, mean_over_networks
from made_runs import make_run


def cells(lower_is_better=True, **found):
    """Cells of (seeds, networks): the values are the means over the networks."""
    arrays = {name: np.array(values) for name, values in found.items()}
    values = {name: dict(enumerate(array.mean(axis=1).tolist())) for name, array in arrays.items()}
    return Cells(values, lower_is_better, {name: dict(enumerate(array.tolist())) for name, array in arrays.items()})


def without(found):
    return Cells(found.values, found.lower_is_better)


def drawn(rng, seeds, networks, ratio, of_network):
    """A ticket and a dense model whose ratio each network sees a little otherwise, and each on a scale of its own."""
    seen = ratio * np.exp(rng.normal(0, of_network, networks))
    dense = np.exp(rng.normal(0, 0.01, (seeds, 1))) * np.exp(rng.normal(0, 0.5, networks))
    return cells(ticket=dense * seen * np.exp(rng.normal(0, 0.01, (seeds, 1))), dense=dense)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=4, max_size=4))
def test_of_differences_both_variances_add_up(rows):
    """Values below zero are compared linearly: seeds and networks by hand."""
    ours, theirs = np.array(rows[:2]), np.array(rows[2:]) - 100
    found = cells(a=ours, b=theirs).compare("a", "b")
    apart = (ours - theirs) / abs(theirs.mean())
    seeds, networks = stats.sem(apart.mean(axis=1)), stats.sem(apart.mean(axis=0))
    freedom = (seeds**2 + networks**2) ** 2 / (seeds**4 / 1 + networks**4 / 2) if seeds or networks else 1
    half = stats.t.ppf(0.975, freedom) * math.hypot(seeds, networks)
    assert not found.logarithms
    assert found.ratio == pytest.approx(1 + apart.mean())
    if math.hypot(seeds, networks) > 1e-9:
        assert (found.high - found.low) / 2 == pytest.approx(half, abs=1e-9)


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_networks_that_agree_change_nothing_and_others_widen(lower_is_better):
    agree = cells(lower_is_better, a=[[1.0, 1.0], [1.2, 1.2]], b=[[1.1, 1.1], [1.1, 1.1]])
    assert agree.compare("a", "b") == without(agree).compare("a", "b")
    scaled = cells(lower_is_better, a=[[1.0, 5.0], [1.2, 6.0]], b=[[1.1, 5.5], [1.1, 5.5]])
    assert scaled.compare("a", "b").method == "Student's t"  # the scale of a network is no disagreement
    differ = cells(lower_is_better, a=[[0.9, 1.1], [1.1, 1.3]], b=[[1.1, 1.1], [1.1, 1.1]])
    wide, narrow = differ.compare("a", "b"), without(differ).compare("a", "b")
    assert wide.ratio == narrow.ratio
    assert wide.method == f"{narrow.method}, with the spread over 2 networks"
    assert differ.compare("b", "a").ratio == pytest.approx(1 / wide.ratio)


@pytest.mark.parametrize("seeds", [3, ENOUGH])
def test_the_interval_covers_what_other_networks_would_have_found(seeds):
    rng = np.random.default_rng(seeds)
    covered, before = [], []
    for _ in range(120):
        found = drawn(rng, seeds, 3, 1.1, 0.05)
        for cells_, kept in ((found, covered), (without(found), before)):
            estimate = cells_.compare("ticket", "dense")
            kept.append(estimate.low <= 1.1 <= estimate.high)
    assert np.mean(covered) >= 0.88  # some 0.91 to 0.95: three networks of unlike scales are not quite three
    assert np.mean(before) < 0.6


def test_more_seeds_do_not_lessen_what_the_networks_disagree_on():
    rng = np.random.default_rng(0)
    found = drawn(rng, 4, 3, 1.0, 0.1)
    assert without(found).compare("ticket", "dense").seeds_for_not_worse(0.05) < math.inf
    estimate = found.compare("ticket", "dense")
    assert estimate.not_worse_by(0.05) == "undecided"
    assert estimate.seeds_for_not_worse(0.05) == math.inf
    assert estimate.p_worse_by(0.05) > without(found).compare("ticket", "dense").p_worse_by(0.05)


def test_one_seed_still_says_nothing():
    found = cells(a=[[1.0, 2.0]], b=[[2.0, 3.0]]).compare("a", "b")
    assert (found.low, found.high, found.method, found.p_worse_by(0.1)) == (None, None, "one seed", 1.0)


def test_values_of_unequal_networks_are_compared_as_they_are():
    values = {"a": {0: 1.0, 1: 1.2}, "b": {0: 1.1, 1: 1.1}}
    for networks in ({}, {"a": {0: [0.9, 1.1], 1: [1.1, 1.3]}}, {"a": {0: [1.0], 1: [1.2]}, "b": {0: [1.1], 1: [1.1]}}):
        assert Cells(values, True, networks).compare("a", "b") == Cells(values, True).compare("a", "b")


def test_the_mean_over_networks_says_what_it_is_the_mean_of():
    one = Measurement("kid", "KID", 1.0, 10, deviation=0.5)
    assert mean_over_networks([one]) is one
    both = mean_over_networks([one, replace(one, value=3.0, deviation=1.5)])
    assert (both.value, both.deviation, both.by_network) == (2.0, 1.0, (1.0, 3.0))
    assert both.label == "KID (mean of 2 networks)"
    assert "by_network" not in metrics_json([one])["kid"]
    assert json.loads(json.dumps(metrics_json([both])))["kid"]["by_network"] == [1.0, 3.0]
    broken = mean_over_networks([one, replace(one, value=math.nan)])
    assert math.isnan(broken.value)
    assert Metric("KID", broken.value, 10, True, broken.by_network).spread is None


def run_with(by_network):
    """A made run whose values are means over two networks."""
    run = make_run({0: (1.0, 1.01), 1: (1.0, 1.02), 2: (1.0, 1.0)}, random_mask={2: (2.0, 2.1)})
    levels = [
        replace(result, metrics={key: replace(m, by_network=by_network(m.value)) for key, m in result.metrics.items()})
        for result in run.levels
    ]
    return replace(run, levels=levels)


def test_a_verdict_rests_on_the_spread_over_networks_too():
    one, alike = run_with(lambda value: None), run_with(lambda value: (value, value))
    assert judge(alike).levels == judge(one).levels

    def apart(value):
        return (value - 0.2, value + 0.2) if value == 1.02 else (value, value)

    told = judge(run_with(apart))
    assert "with the spread over 2 networks" in told.levels[0].to_dense.method
    before, after = judge(one).levels[0].to_dense, told.levels[0].to_dense
    assert after.high - after.low > before.high - before.low
    assert any("with the spread over 2 networks" in line for line in sentences(told, run_with(apart)))


def test_results_have_the_spread_beside_the_value_and_runs_of_before_are_read(tmp_path):
    run = run_with(lambda value: (value - 0.5, value + 0.5))
    for result in run.levels:
        folder = (
            tmp_path
            / f"seed-{result.seed}"
            / (f"level-{result.level:02}" + ("-random_mask" if result.arm != "ticket" else ""))
        )
        folder.mkdir(parents=True)
        said = ("seed", "level", "arm", "status", "sparsity", "alive", "total", "primary", "start_step", "end_step")
        facts = {key: getattr(result, key) for key in said}
        (metric,) = result.metrics.values()
        kept = {"label": "score", "value": metric.value, "samples": 100, "lower_is_better": True}
        if result.seed == 0:
            kept["by_network"] = list(metric.by_network)
        (folder / "metrics.json").write_text(json.dumps({**facts, "metrics": {"score": kept}}))
        again: LevelResult = parse(folder / "metrics.json", LevelResult)
        assert again.metrics["score"].by_network == (metric.by_network if result.seed == 0 else None)
    (tmp_path / "recipe.yaml").write_text("{name: made, seeds: [0, 1]}")
    rows = list(csv.DictReader(write_csv(read_run(tmp_path)).open()))
    assert list(rows[0])[-3:] == ["score", "score_spread", "score_samples"]
    spreads = {row["seed"]: row["score_spread"] for row in rows}
    assert (float(spreads["0"]), spreads["1"]) == (pytest.approx(math.sqrt(0.5)), "")


def test_a_run_of_before_there_were_several_goes_on_with_one():
    raw = {"name": "x", "model": {"name": "dcgan"}, "objective": {"name": "adversarial"}}
    assert kept_recipe({**raw, "evaluation": {"samples": 100}}, "x").evaluation.classifiers == 1
    assert kept_recipe({**raw, "evaluation": {"classifiers": 3}}, "x").evaluation.classifiers == 3
    assert make_recipe(raw).evaluation.classifiers == 3

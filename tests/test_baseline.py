"""Is the dense model one to compare with?"""

import json
from pathlib import Path

import pytest
import yaml

from gentickets.lab.recipe.file import read_recipe
from gentickets.lab.results import baseline
from gentickets.lab.results.baseline import Point, Reference, falls_short, reference_of, still_falling
from gentickets.lab.results.summary import Summary
from gentickets.lab.results.verdict import judge
from gentickets.lab.results.verdict_words import headline, sentences
from made_runs import make_run, with_weights

FULL = Reference("made", (Point(50, 20.0, 1.0, 4), Point(100, 10.0, 0.2, 4)))


def dense(mean, deviation=0.2, n=4):
    return Summary("ticket", 0, 0.0, mean, deviation, n)


@pytest.mark.parametrize(("mean", "short"), [(10.0, False), (10.9, False), (11.2, True), (20.0, True), (5.0, False)])
def test_a_dense_model_may_be_a_tenth_worse_than_its_reference(mean, short):
    assert falls_short(dense(mean), FULL) is short
    points = tuple(Point(point.steps, 20 - point.mean, point.deviation, point.seeds) for point in FULL.points)
    assert falls_short(dense(20 - mean), Reference("made", points, lower_is_better=False)) is short


def test_a_noisy_run_is_not_excused_by_its_own_noise():
    assert falls_short(dense(11.5, deviation=9.0, n=2), FULL)


def test_a_dense_model_is_held_to_the_best_point_of_its_reference(monkeypatch):
    curve = Reference("made", (Point(50, 10.0, 0.2, 4), Point(100, 12.0, 0.2, 4)))
    assert (curve.best, curve.full) == curve.points
    assert falls_short(dense(12.0), curve)
    run = make_run({0: (10.5, 10.6), 1: (9.0, 11.0)}, random_mask={1: (20.0, 30.0)})
    monkeypatch.setattr("gentickets.lab.results.verdict.reference_of", lambda run: curve)
    assert "overfits" not in " ".join(sentences(judge(run), run))  # it stops at step 1
    for result in run.of("ticket", 0):
        object.__setattr__(result, "end_step", 100)
    said = " ".join(sentences(judge(run), run))
    assert (
        "not worse than its reference by more than 10%: 10.6, where its reference is 10.0 ± 0.2 after 50 steps" in said
    )
    assert "It overfits: dense models that stop earlier are better (10.0 after 50 steps, 12.0 after 100)" in said


def test_what_is_worse_within_chance_says_by_how_much(monkeypatch):
    noisy = Reference("made", (Point(100, 1.0, 0.2, 4),))
    run = make_run({0: (1.29, 1.31), 1: (1.3, 1.32)}, random_mask={1: (2.0, 2.5)})
    monkeypatch.setattr("gentickets.lab.results.verdict.reference_of", lambda run: noisy)
    said = " ".join(sentences(judge(run), run))
    assert "The dense model is worse than its reference by 30%, which may be chance: 1.30, where its reference" in said


def test_without_a_dense_model_to_compare_with_nothing_is_judged(monkeypatch):
    run = make_run({0: (1.3, 1.31), 1: (1.3, 1.31)}, random_mask={1: (1.3, 1.31)})
    monkeypatch.setattr(
        "gentickets.lab.results.verdict.reference_of", lambda run: Reference("made", (Point(9, 0.1, 0.01, 4),))
    )
    verdict = judge(run)
    assert verdict.no_verdict == "baseline"
    assert set(verdict.not_worse.values()) == {"undecided"}
    assert not any("stays within" in said for said in sentences(verdict, run))


@pytest.mark.parametrize("name", ["autoencoder", "vae", "gan"])
def test_the_presets_of_the_package_are_those_that_the_references_are_of(name):
    recipe = read_recipe(Path(__file__).parent.parent / "recipes" / "quickstart" / f"{name}.yaml", [], "full").dump()
    entries = [entry for entry in baseline._references() if entry["preset"] == f"recipes/quickstart/{name}.yaml:full"]
    parts = ("model", "objective")
    assert [{part: baseline._said(part, entry["of"][part]) for part in parts} for entry in entries] == [
        {part: baseline._said(part, recipe[part]) for part in parts}
    ]


def test_chance_is_allowed_for():
    assert falls_short(dense(11.5), FULL)
    noisy = Reference("made", (Point(100, 10.0, 1.0, 4),))
    assert not falls_short(dense(11.3), noisy)
    assert falls_short(dense(11.5), noisy)


def test_the_reference_is_that_of_the_same_model_images_and_metric(monkeypatch):
    run = make_run({0: (9.0, 11.0), 1: (9.0, 11.0)}, random_mask={1: (20.0, 30.0)})
    run.recipe["model"] = {"name": "m", "width": 4, "depth": None}
    run.origin["data"] = {"fingerprint": "ab"}
    entry = {
        "preset": "p",
        "of": baseline.identity(run),
        "curve": [{"steps": 9, "mean": 5.0, "deviation": 0.1, "seeds": 4}],
    }
    assert entry["of"]["model"] == {"name": "m", "width": 4}
    monkeypatch.setattr(baseline, "_references", lambda: (entry,))
    assert reference_of(run).full == Point(9, 5.0, 0.1, 4)
    verdict = judge(run)
    assert (verdict.answer, verdict.no_verdict) == (None, "baseline")
    assert headline(verdict) == (
        "No verdict: the dense model is not trained far enough to compare: 10.0, where its reference is 5.00 ± 0.1 "
        "after 9 steps (2 seeds)."
    )
    for key, value in (("model", {"name": "m", "width": 8}), ("objective", {"name": "elbo"})):
        other = make_run({0: (9.0, 11.0), 1: (9.0, 11.0)})
        other.recipe.update(run.recipe | {key: value})
        other.origin.update(run.origin)
        assert reference_of(other) is None
    assert any("No reference of this dense model is known" in said for said in sentences(judge(other), other))


def test_every_reference_of_the_package_is_whole():
    text = (baseline.resources.files("gentickets.lab.results") / "references.yaml").read_text()
    for entry in yaml.safe_load(text):
        assert set(entry["of"]) == {"model", "objective", "images", "metric"}
        steps = [Point(**point).steps for point in entry["curve"]]
        assert steps == sorted(steps)
        assert len(entry["of"]["images"]) == 64


@pytest.mark.parametrize(("losses", "fall"), [([8, 8, 4, 2], 0.5), ([8, 4, 2, 2], 0.0), ([1, 2, 3, 6], -1.0)])
def test_how_far_the_loss_still_fell(losses, fall, tmp_path):
    run = make_run({0: (9.0, 10.0)})
    for result in run.levels:
        object.__setattr__(result, "folder", tmp_path)
    lines = [{"step": 10 * (i + 1), "losses": {"a": loss / 2, "b": loss / 2}} for i, loss in enumerate(losses)]
    (tmp_path / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert still_falling(run) is None  # no objective is known
    run.recipe["objective"] = {"name": "autoencoding"}
    assert still_falling(run) == pytest.approx(fall)
    run.recipe["objective"] = {"name": "adversarial"}
    assert still_falling(run) is None


def averaged(weights, lower_is_better=True):
    dense = (1.4, 1.42, 1.41)
    run = make_run({0: dense, 1: dense}, lower_is_better, seeds=3, random_mask={1: (9.0, 9.1, 9.2)})
    return with_weights(run, weights)


@pytest.mark.parametrize(
    ("weights", "lower_is_better", "lags"),
    [
        ((1.0, 1.1, 1.05), True, True),
        ((1.0, 1.1, 1.05), False, False),  # the average is the better one
        ((2.0, 1.9, 2.1), False, True),
        ((1.33, 1.38, 1.35), True, False),  # within a tenth
        ((0.2, 1.5, 1.5), True, False),  # on one seed alone, which may be chance
    ],
)
def test_an_average_that_lags_behind_its_weights_is_no_dense_model_to_compare_with(weights, lower_is_better, lags):
    run = averaged(weights, lower_is_better)
    verdict = judge(run)
    assert (verdict.no_verdict == "baseline") == lags
    assert ("No verdict: the average of the dense model's weights lags behind them" in headline(verdict)) == lags
    assert bool(sentences(verdict, run))


def test_the_lag_is_told_in_numbers():
    assert headline(judge(averaged((1.0, 1.1, 1.05)))) == (
        "No verdict: the average of the dense model's weights lags behind them: it is at 1.41, and the weights that it "
        "is of 1.05 (3 seeds). Train longer, or average over fewer steps (training.ema)."
    )

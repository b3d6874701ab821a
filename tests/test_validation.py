"""Judging while training: when it could have stopped, and the best weights, on training images."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gentickets.lab.recipe import make_recipe
from gentickets.lab.results.reading import read_run
from gentickets.lab.results.tables import write_csv
from gentickets.lab.run import folder as disk
from gentickets.lab.run.again import evaluate_again
from gentickets.lab.run.seed import SeedRun
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.lab.run.validation import BEST, early_stopping_step
from gentickets.masks.names import named_state

TINY = {
    "name": "tiny",
    "model": {"name": "conv-vae", "width": 4, "latent": 4},
    "data": {"source": "digits", "size": 8},
    "objective": {"name": "elbo"},
    "training": {"steps": 30, "batch_size": 8, "lr": 0.01, "ema": 0.8, "checkpoint_seconds": 1e9},
    "search": {"rounds": 1, "fraction": 0.5, "rewind_step": 10},
    "evaluation": {"features": "none", "every": 5},
}


@given(st.lists(st.floats(0.01, 10) | st.just(math.nan), max_size=19))
def test_the_early_stopping_step_is_the_first_that_is_near(values):
    steps = list(range(10, 10 + len(values)))
    finite = [v for v in values if not math.isnan(v)]
    near = [i for i, v in enumerate(values) if v <= min(finite, default=0) * 1.05]
    assert early_stopping_step(steps, values) == (steps[near[0]] if near else None)


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_noise_does_not_put_off_the_early_stopping_step(noise):
    """A curve that is within 5 % of its end from its 21st evaluation on, of 78."""
    rng, steps = np.random.default_rng(0), list(range(78))
    true = 10 + 40 * np.exp(-np.arange(1, 79) / 5)
    found = [early_stopping_step(steps, list(true * np.exp(rng.normal(0, noise, 78)))) for _ in range(60)]
    assert 20 <= np.median(found) <= 30
    assert max(found) < 77


def test_a_negative_metric_has_its_margin_above():
    assert early_stopping_step([1, 2, 3], [-9.0, -9.6, -10.0]) == 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(folder)
    return folder


def run(folder, stop=lambda: False):
    recipe = make_recipe(TINY)
    train, held_out = load_data(recipe.data)
    disk.write_recipe(folder, recipe)
    data = {"fingerprint": train.fingerprint, "test_fingerprint": held_out.fingerprint}
    disk.write_json(folder / "origin.json", {"asked": recipe.dump(), "threads": 1, "gave_up": [], "data": data})
    SeedRun(recipe, folder, 0, train, make_judge(recipe, train, held_out), stop=stop).run()


def found(folder, level):
    return json.loads((folder / "seed-0" / level / "metrics.json").read_text())


def test_each_training_is_judged_as_it_goes(whole):
    dense, ticket = (found(whole, level)["validation"] for level in ("level-00", "level-01"))
    assert dense["steps"] == [5, 10, 15, 20, 25, 30]
    assert ticket["steps"] == [15, 20, 25, 30]
    for one in (dense, ticket):
        assert one["best_step"] == one["steps"][one["values"].index(min(one["values"]))]
        assert one["early_stopping_step"] == early_stopping_step(one["steps"], one["values"])


def test_the_last_evaluation_is_of_the_weights_that_are_kept_and_the_best_is_kept_too(whole):
    recipe = make_recipe(TINY)
    train, held_out = load_data(recipe.data)
    judge = make_judge(recipe, train, held_out)
    seed_run = SeedRun(recipe, whole, 0, train, judge)
    validation = found(whole, "level-01")["validation"]
    assert judge.glance(seed_run.judged(1, "ticket")) == validation["values"][-1]
    model = seed_run.load_level(1).model
    state = named_state(model)
    with torch.no_grad():
        for name, tensor in disk.load_weights(whole / "seed-0" / "level-01" / BEST).items():
            state[name].copy_(tensor)
    assert judge.glance(model) == min(validation["values"])


def test_raw_averaged_and_best_weights_are_told_apart(whole):
    metrics = found(whole, "level-01")["metrics"]
    values = [metrics[key]["value"] for key in ("bits_per_dimension", "bits_per_dimension_raw")]
    assert values[0] != values[1]
    assert "on training images" in metrics["bits_per_dimension_best"]["label"]
    heads = write_csv(read_run(whole)).read_text().splitlines()[0].split(",")
    assert {"early_stopping_step", "bits_per_dimension_raw", "bits_per_dimension_best"} <= set(heads)


def test_evaluating_again_finds_the_same(whole):
    before = found(whole, "level-01")
    evaluate_again(whole, {}, lambda event: None)
    assert found(whole, "level-01") == before


@pytest.mark.parametrize("steps", [7, 18, 45])
def test_an_interrupted_run_has_the_same_evaluations(steps, whole, tmp_path):
    asked = iter([False] * (steps - 1) + [True])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=lambda: next(asked))
    run(tmp_path)
    for level in ("level-00", "level-01"):
        expected = found(whole, level)
        assert found(tmp_path, level) == expected
        mine, theirs = ((f / "seed-0" / level / BEST).read_bytes() for f in (tmp_path, whole))
        assert mine == theirs

"""How many threads a training gets."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gentickets.lab import threads as module
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run import load_data, prepared
from gentickets.lab.seedrun import build_model
from gentickets.lab.single import train_one
from gentickets.lab.threads import fastest, threads_of
from gentickets.metrics.cost import training_flops

RAW = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 16, "depth": 1, "latent": 4},
    "data": {"source": "digits", "size": 8},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 20, "batch_size": 16, "threads": "measured"},
    "search": {"rounds": 1, "fraction": 0.5, "rewind_step": 5},
    "evaluation": {"samples": 50},
    "seeds": [0],
}


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=5))
def test_the_smallest_number_of_threads_that_is_as_good_as_the_best(each):
    """`each`: seconds a step on 1, 2, 4 ... threads, on a machine that is not noisy."""
    choices = [2**k for k in range(len(each))]
    chosen = fastest(choices, lambda threads, steps: each[choices.index(threads)] * steps)
    place = choices.index(chosen)
    assert each[place] <= 1.05 * min(each) * (1 + 1e-9)
    assert all(other > 1.05 * min(each) * (1 - 1e-9) for other in each[:place])


def test_one_disturbed_timing_does_not_decide():
    calls = []

    def seconds(threads, steps):
        calls.append(threads)
        disturbed = calls.count(2) == 4 and threads == 2
        return steps * (100.0 if disturbed else {1: 1.0, 2: 0.6}[threads])

    assert fastest([1, 2], seconds) == 2


@pytest.mark.parametrize(("cores", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_what_is_measured(monkeypatch, cores, expected):
    recipe = make_recipe(RAW)
    images, _ = load_data(recipe.data)
    seen = []
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(module, "fastest", lambda choices, seconds: seen.append(choices) or choices[-1])
    assert threads_of(recipe, images, workers=1) == cores
    assert seen == ([expected] if cores > 1 else [])  # where there is no choice nothing is timed
    assert threads_of(recipe, images, workers=2 * cores) == 1


def test_real_steps_are_timed_and_the_threads_of_the_process_stay(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(module, "BLOCK_SECONDS", 0.01)
    before = torch.get_num_threads()
    recipe = make_recipe(RAW)
    assert threads_of(recipe, load_data(recipe.data)[0], workers=1) in (1, 2)
    assert torch.get_num_threads() == before


def test_what_was_measured_is_kept_with_the_run(monkeypatch, tmp_path):
    recipe = make_recipe(RAW)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(module, "fastest", lambda *_: 3)
    with prepared(recipe, tmp_path / "run") as ready:
        assert ready.threads == 3
    before = torch.get_num_threads()
    try:
        train_one(recipe, tmp_path / "one", 0, None, lambda event: None)
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(module, "fastest", lambda *_: 1)
        torch.set_num_threads(before)
        train_one(recipe, tmp_path / "one", 0, None, lambda event: None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    with prepared(recipe, tmp_path / "run") as ready:
        assert ready.threads == 3


@pytest.mark.parametrize(
    ("changes", "images_a_step"),
    [
        ({}, 16),
        (
            {"model": {"name": "dcgan", "width": 4, "latent": 3}, "objective": {"name": "adversarial", "n_critic": 3}},
            48,
        ),
    ],
)
def test_threads_are_counted_from_the_work_of_all_the_images_of_a_step(monkeypatch, changes, images_a_step):
    recipe = make_recipe({**RAW, **changes, "training": {**RAW["training"], "threads": "auto"}})
    images, _ = load_data(recipe.data)
    asked = []
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(module, "threads_for", lambda flops, cores: asked.append((flops, cores)) or 5)
    assert threads_of(recipe, images, workers=2) == 5
    objective = recipe.build_objective()
    few = torch.zeros(2 * objective.batches_per_step, *images.shape)
    each = training_flops(build_model(recipe, images, 0), objective, few).dense
    assert asked == [(pytest.approx(each * images_a_step), 4)]


def test_a_number_of_threads_that_is_told_is_taken(monkeypatch):
    recipe = make_recipe({**RAW, "training": {**RAW["training"], "threads": 3}})
    for name in ("threads_for", "fastest"):
        monkeypatch.setattr(module, name, None)  # would fail: nothing is counted or measured
    assert threads_of(recipe, load_data(recipe.data)[0], workers=2) == 3

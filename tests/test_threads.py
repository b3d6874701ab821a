"""How many threads a training gets."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gentickets import cores as cores_module
from gentickets.cores import cores, threads_at_most
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run import threads as module
from gentickets.lab.run.prepare import prepared
from gentickets.lab.run.single import train_one
from gentickets.lab.run.stage import load_data
from gentickets.lab.run.threads import fastest, threads_of
from gentickets.lab.task import build_model
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


def on_cores(monkeypatch, count):
    """A process that was given so many cores, and told nothing of threads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(count)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("told", "expected"), [("1", 1), ("3", 3), ("64", 8), ("2,4", 2), ("", 8), ("many", 8), ("0", 1)]
)
def test_threads_are_no_more_than_omp_num_threads(monkeypatch, told, expected):
    on_cores(monkeypatch, 8)
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert threads_at_most(cores()) == expected


@pytest.mark.parametrize(("limits", "expected"), [
    ({}, 8), ({"": "max 100000"}, 8), ({"": "200000 100000"}, 2), ({"a/b": "150000 100000"}, 1),
    ({"a": "300000 100000", "a/b": "max 100000"}, 3), ({"a": "50000 100000"}, 1), ({"a/b": "nonsense"}, 8),
])  # fmt: skip
def test_cores_are_no_more_than_the_cgroups_quota(monkeypatch, tmp_path, limits, expected):
    on_cores(monkeypatch, 8)
    (tmp_path / "own").write_text("0::/a/b\n")
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    for folder, text in limits.items():
        (root / folder / "cpu.max").write_text(f"{text}\n")
    monkeypatch.setattr(cores_module, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(cores_module, "CGROUPS", root)
    assert cores() == expected


def test_one_disturbed_timing_does_not_decide():
    calls = []

    def seconds(threads, steps):
        calls.append(threads)
        disturbed = calls.count(2) == 4 and threads == 2
        return steps * (100.0 if disturbed else {1: 1.0, 2: 0.6}[threads])

    assert fastest([1, 2], seconds) == 2


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_what_is_measured(monkeypatch, count, expected):
    recipe = make_recipe(RAW)
    images, _ = load_data(recipe.data)
    seen = []
    on_cores(monkeypatch, count)
    monkeypatch.setattr(module, "fastest", lambda choices, seconds: seen.append(choices) or choices[-1])
    assert threads_of(recipe, images, workers=1) == count
    assert seen == ([expected] if count > 1 else [])  # where there is no choice nothing is timed
    assert threads_of(recipe, images, workers=2 * count) == 1


def test_real_steps_are_timed_and_the_threads_of_the_process_stay(monkeypatch):
    on_cores(monkeypatch, 2)
    monkeypatch.setattr(module, "BLOCK_SECONDS", 0.01)
    before = torch.get_num_threads()
    recipe = make_recipe(RAW)
    assert threads_of(recipe, load_data(recipe.data)[0], workers=1) in (1, 2)
    assert torch.get_num_threads() == before


def test_what_was_measured_is_kept_with_the_run(monkeypatch, tmp_path):
    recipe = make_recipe(RAW)
    on_cores(monkeypatch, 4)
    monkeypatch.setattr(module, "fastest", lambda *_: 3)
    assert prepared(recipe, tmp_path / "run").threads == 3
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
    assert prepared(recipe, tmp_path / "run").threads == 3


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
    on_cores(monkeypatch, 8)
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

"""What a run will take, by hand, and what is given up so that it fits."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gentickets.durations import duration, size
from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run import plan as module
from gentickets.lab.run.checks import check_buildable
from gentickets.lab.run.plan import Plan, fit, measure, rehearsal
from gentickets.lab.run.stage import load_data
from gentickets.masks.names import named_state

RAW = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 12, "depth": 1, "latent": 3},
    "data": {"source": "digits", "size": 8, "limit": 100},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 100, "batch_size": 8, "lr": 0.1},
    "search": {"rounds": 4, "fraction": 0.5, "rewind_step": 10},
    "controls": {"levels": [2, 4]},
    "evaluation": {"features": "none"},
    "seeds": [0, 1, 2],
}
STEPS = 3 * (100 + 4 * 90 + 2 * 90 + 2 * 100)
TRAININGS = 3 * (1 + 4 + 2 * 2)
ENDLESS = 1e12


@pytest.fixture(autouse=True)
def _quick(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.getbasetemp() / "plan-cache"))
    monkeypatch.setattr(module, "CLOCK_SECONDS", 0.001)


def planned(step_seconds=0.01, evaluate_seconds=1.0, workers=1, **changes):
    """The plan of a whole recipe, at these prices."""
    priced = Plan(step_seconds, evaluate_seconds, 1, 1, 0.0, 10**6, 10**6, 2)
    return fit(make_recipe(RAW | changes), priced, ENDLESS, workers)[1]


def test_trainings_steps_and_seconds_are_counted():
    plan = planned()
    assert (plan.trainings, plan.steps) == (TRAININGS, STEPS)
    assert plan.seconds == pytest.approx(0.01 * STEPS + TRAININGS)
    assert (plan.threads, plan.memory_bytes, plan.disk_bytes) == (2, 10**6, TRAININGS * 10**6)
    one = planned(controls={"levels": [2, 4], "random_mask": False})
    assert (one.trainings, one.steps) == (3 * (1 + 4 + 2), 3 * (100 + 4 * 90 + 2 * 100))


def test_seeds_side_by_side_take_the_time_of_their_turns():
    alone = planned().seconds
    assert planned(workers=3).seconds == pytest.approx(alone / 3)
    assert planned(workers=2).seconds == pytest.approx(alone * 2 / 3)  # two at once, then the third


def test_judging_while_training_is_counted():
    often = planned(evaluation={"features": "none", "every": 10})
    assert often.seconds > planned().seconds + STEPS // 10 / 3 * 0.99


def test_what_is_given_up_is_said_and_the_rewind_step_goes_with_the_steps():
    recipe = make_recipe(RAW)
    priced = Plan(0.01, 0.0, 1, 1, 0.0, 1, 1)
    fitted, new, lost = fit(recipe, priced, 0.01 * STEPS * 0.71, workers=1)
    assert (fitted.training.steps, fitted.search.rewind_step, fitted.search.rounds) == (70, 7, 4)
    assert new.seconds <= 0.01 * STEPS * 0.71
    assert lost == ("training.steps 100 → 70", "search.rewind_step 10 → 7")
    fewer, _, lost = fit(recipe, priced, 0.01 * STEPS * 0.3, workers=1)
    assert fewer.training.steps >= 50
    assert lost[-2:] == ("search.rounds 4 → 2 (sparsity up to 75.0%, not 93.8%)", "controls at 2 levels → 1")


def test_a_rehearsal_changes_no_weight_and_goes_on_where_it_was():
    recipe = make_recipe(RAW)
    images, _ = load_data(recipe.data)
    model, steps = rehearsal(recipe, images)
    before = {name: tensor.detach().clone() for name, tensor in named_state(model).items()}
    steps(2)
    steps(3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_state(model).items())


@pytest.mark.parametrize(("ema", "copies"), [(None, 2), (0.9, 3)])
def test_disk_and_memory_are_told_of_the_weights_and_the_processes(ema, copies):
    recipe = make_recipe(RAW | {"training": {**RAW["training"], "ema": ema}})
    images, _ = load_data(recipe.data)
    judged = []
    judge = SimpleNamespace(measure=judged.append)
    plan = measure(recipe, images, judge, threads=1, workers=2)
    weights = sum(4 * tensor.numel() for tensor in named_state(judged[0]).values())
    # A ticket and what was trained from it a training, the rewind step a seed, and a checkpoint a process.
    beside = 3 * weights + 2 * (copies + 1) * weights
    assert plan.disk_bytes == TRAININGS * (int(weights * (1 + 1 / 32)) + 200_000 + (copies - 1) * weights) + beside
    assert plan.weight_bytes == weights
    assert plan.memory_bytes >= 2 * 10**8  # of two processes, in bytes
    assert plan.step_seconds > 0
    assert (plan.trainings, plan.steps, plan.threads) == (TRAININGS, STEPS, 1)


def test_a_plan_in_words():
    words = Plan(0.01, 1.0, 27, 2520, 5000.0, 340 * 10**6, 12 * 10**8, 1).words()
    assert words == "27 trainings, 2,520 steps: about 83 min, 340 MB of memory, 1.2 GB of disk; 1 thread a training"


def test_durations_and_sizes_in_their_units():
    assert [duration(s) for s in (0.4, 89, 90, 5399, 5400, 12_000)] == [
        "0 s", "89 s", "2 min", "90 min", "1 h 30 min", "3 h 20 min"
    ]  # fmt: skip
    assert [size(b) for b in (999, 1000, 340e6, 1.2e9, 5e12)] == ["999 B", "1 kB", "340 MB", "1.2 GB", "5,000.0 GB"]


def test_starting_processes_files_and_the_page_are_counted_by_how_long_loading_took():
    priced = Plan(0.01, 1.0, 1, 1, 0.0, 10**6, 10**6, 2, loading_seconds=4.0)
    alone, beside = (fit(make_recipe(RAW), priced, ENDLESS, workers)[1] for workers in (1, 3))
    assert alone.loading_seconds == 4.0
    files = 4 * TRAININGS * module.FIRST_STEPS_AND_FILES
    assert alone.seconds == pytest.approx(planned().seconds + 4 * module.PAGE + files)
    assert beside.seconds == pytest.approx(planned(workers=3).seconds + 4 * (module.PAGE + module.STARTING) + files / 3)


def test_a_plan_is_told_beside_what_it_took():
    assert Plan(0.01, 1.0, 1, 1, 22.0, 1, 1).against(68.0) == "planned 22 s, took 68 s"


def test_what_cannot_be_is_refused_and_what_can_is_not(tmp_path):
    possible = Plan(0.01, 1.0, 7, 1, 1.0, 10**6, 10**6)
    possible.check_possible(tmp_path / "runs" / "new")
    with pytest.raises(GenticketsError, match=r"7 trainings would write 1,000\.0 TB, and .* are free at .*fewer seeds"):
        replace(possible, disk_bytes=10**15).check_possible(tmp_path / "runs" / "new")
    with pytest.raises(GenticketsError, match=r"1,000\.0 TB of memory"):
        replace(possible, memory_bytes=10**15).check_possible(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"name": "linear-autoencoder", "width": 10**7}},
            r"model is too large: .* 1,6\d\d\.\d TB of weights",
        ),
        (
            {"model": {"name": "linear-autoencoder", "latent": 10**9}},
            r"model is too large: .* 2,\d{3}\.\d GB of weights",
        ),
        ({"model": {"name": "linear-autoencoder", "hidden": [10**6, 10**6]}}, r"model is too large"),
        (
            {"training": {"steps": 100, "batch_size": 10**9}},
            r"batch_size=1000000000 is too large: .* 256\.0 GB of imag",
        ),
        ({"training": {"batch_size": 10**7}, "search": {"method": "snip", "score_batches": 10**5}}, "batch_size"),
    ],
)
def test_what_no_memory_holds_is_refused_with_the_sum_before_it_is_built(changes, message, monkeypatch):
    monkeypatch.setattr(module, "memory", lambda: 64 * 10**9)
    recipe = make_recipe(RAW | changes)
    images, _ = load_data(make_recipe(RAW).data)
    with pytest.raises(RecipeError, match=message):
        check_buildable(recipe, images)


def test_many_rounds_are_fitted_at_once_and_as_many_as_fit():
    recipe = make_recipe(RAW | {"search": {"rounds": 10_000, "fraction": 0.001}, "controls": {"levels": []}})
    fitted, plan, lost = fit(recipe, Plan(0.01, 0.0, 1, 1, 0.0, 1, 1), 0.01 * 50 * 3 * 8, workers=1)
    assert (fitted.search.rounds, fitted.training.steps) == (7, 50)
    assert plan.seconds <= 12
    assert lost[1].startswith("search.rounds 10000 → 7")


def test_a_night_is_proposed_where_a_plan_is_longer_than_a_month():
    plan = Plan(0.01, 1.0, 27, 2520, 5e6, 1, 1)
    assert "about 58 days" in plan.words()
    assert "--time 12h" in plan.words()

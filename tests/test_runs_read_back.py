"""What a run's folder is read for: each reader has what the run wrote, or refuses in one line; never something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gentickets.errors import GenticketsError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.results.reading import read_run
from gentickets.lab.run import folder as disk
from gentickets.lab.run import plan
from gentickets.lab.run import prepare as preparing
from gentickets.lab.run.again import evaluate_again
from gentickets.lab.run.merging import merge
from gentickets.lab.run.prepare import joined, prepared
from gentickets.lab.run.sharing import Donors
from gentickets.lab.run.status import Watch
from gentickets.lab.run.work import run_all
from gentickets.lab.shipping import of_level

RAW = {
    "name": "run",
    "model": {"name": "linear-autoencoder", "width": 12, "depth": 1, "latent": 4},
    "data": {"source": "digits", "size": 8, "limit": 100},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 6, "batch_size": 8, "lr": 0.003, "threads": 1},
    "search": {"rounds": 2, "fraction": 0.4, "rewind_step": 2},
    "controls": {"levels": [1], "redrawn_weights": False},
    "evaluation": {"features": "none"},
}
RECIPE = make_recipe(RAW)


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(plan, "CLOCK_SECONDS", 0.01)
        patch.setattr(plan, "give_back", lambda: None)  # collecting all of pytest's garbage takes half a second
        patch.setattr("gentickets.lab.run.prepare.cores", lambda: 1)
        yield


def made(folder, **changes):
    run_all([prepared(make_recipe({**RAW, **changes}), folder)], lambda event: None)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is done, and beside it one of another seed; not to be written to."""
    place = tmp_path_factory.mktemp("runs")
    made(place / "other", seeds=[1])
    return made(place / "run")


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def level(run, name="level-01"):
    return run / "seed-0" / name


def refused(read, *words):
    with pytest.raises(GenticketsError) as raised:
        read()
    said = str(raised.value)
    assert "\n" not in said
    assert all(word in said for word in words), said


# -- the recipe -------------------------------------------------------------------------------------------------------

OF_THE_RECIPE = {
    "find": lambda run, whole: prepared(RECIPE, run),
    "work": lambda run, whole: joined(run),
    "evaluate": lambda run, whole: evaluate_again(run, {}, lambda event: None),
    "status": lambda run, whole: Watch(run).look(),
    "report": lambda run, whole: read_run(run),
    "shrink": lambda run, whole: of_level(level(run)),
    "merge": lambda run, whole: merge([run, whole.parent / "other"], run.parent / "merged"),
}


def edit(run, part, key, value):
    recipe = disk.read_run_recipe(run).dump()
    (run / "recipe.yaml").write_text(json.dumps({**recipe, part: {**recipe[part], key: value}}))


@pytest.mark.parametrize("reader", OF_THE_RECIPE)
def test_no_reader_goes_by_a_recipe_that_was_changed_since(run, whole, reader):
    edit(run, "training", "lr", 0.5)
    refused(lambda: OF_THE_RECIPE[reader](run, whole), "recipe.yaml was changed since the run began", "training.lr")


def test_what_a_run_may_grow_by_is_no_change(run, whole):
    edit(run, "search", "rounds", 3)
    edit(run, "controls", "levels", [1, 2])
    edit(run, "evaluation", "margin", 0.2)
    assert read_run(run).recipe["evaluation"]["margin"] == 0.2
    assert joined(run).recipe.rounds == 3
    assert Watch(run).look().counts() == {"done": 4, "ready": 2}


def test_a_run_that_was_changed_gives_nothing_to_others(run, tmp_path):
    ready = prepared(make_recipe({**RAW, "name": "twin"}), tmp_path / "twin", dry=True)
    shutil.copytree(run, tmp_path / "twin")
    shutil.rmtree(tmp_path / "twin" / "seed-0")
    assert Donors(ready)._is_twin(run)
    edit(run, "training", "lr", 0.5)
    assert not Donors(ready)._is_twin(run)


def test_what_a_time_made_of_a_recipe_may_not_change_either(tmp_path, monkeypatch):
    fitted = make_recipe({**RAW, "training": {**RAW["training"], "steps": 5}})
    monkeypatch.setattr(preparing, "fit", lambda recipe, plan, *_: (fitted, plan, ("training.steps 6 → 5",)))
    prepared(RECIPE, tmp_path / "run", seconds=1.0)
    assert joined(tmp_path / "run").recipe.training.steps == 5
    edit(tmp_path / "run", "training", "steps", 4)
    refused(lambda: joined(tmp_path / "run"), "training.steps (4 there, 5 here)")
    origin = disk.read_origin(tmp_path / "run")
    del origin["fitted"]  # as older versions wrote it
    disk.write_json(tmp_path / "run" / "origin.json", origin)
    assert joined(tmp_path / "run").recipe.training.steps == 4


# -- the seconds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{}", "[]", '{"train_seconds": "1"}'])
def test_seconds_that_are_none_are_refused_by_whoever_reads_them(run, text):
    (level(run) / "timing.json").write_text(text)
    refused(lambda: Watch(run).look(), "timing.json")
    refused(lambda: read_run(run), "timing.json")

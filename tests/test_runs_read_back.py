"""What a run's folder is read for: each reader has what the run wrote, or refuses in one line; never something else."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gentickets.errors import GenticketsError
from gentickets.lab.listings import what_is_in
from gentickets.lab.recipe import make_recipe
from gentickets.lab.results.reading import read_run
from gentickets.lab.run import folder as disk
from gentickets.lab.run import plan
from gentickets.lab.run import prepare as preparing
from gentickets.lab.run.again import evaluate_again
from gentickets.lab.run.claims import Claims
from gentickets.lab.run.level import DamagedLevel, check_level
from gentickets.lab.run.merging import merge
from gentickets.lab.run.prepare import joined, prepared
from gentickets.lab.run.seed import SeedRun, drop_damaged
from gentickets.lab.run.sharing import Donors
from gentickets.lab.run.single import train_one
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.lab.run.status import Watch
from gentickets.lab.run.work import make_piece, run_all
from gentickets.lab.shipping import of_level
from gentickets.lab.study.study import joined_runs
from tests.disturbed import contents

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


@pytest.mark.parametrize("method", [{"name": "imp"}, ["imp"], 3])
def test_a_method_that_is_none_is_one_line(run, whole, method):
    edit(run, "search", "method", method)
    for read in OF_THE_RECIPE.values():
        refused(lambda read=read: read(run, whole), "search.method")


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


# -- the levels -------------------------------------------------------------------------------------------------------

OF_A_LEVEL = {
    "evaluate": lambda run, whole: evaluate_again(run, {}, lambda event: None),
    "shrink": lambda run, whole: of_level(level(run)),
    "inspect": lambda run, whole: list(what_is_in(level(run))),
    "merge": lambda run, whole: merge([run, whole.parent / "other"], run.parent / "merged"),
    "a search": lambda run, whole: of_run(run).load_level(1),
}


def of_run(run):
    train, held_out = load_data(RECIPE.data)
    return SeedRun(RECIPE, run, 0, train, make_judge(RECIPE, train, held_out))


def swapped(run, name):
    """Level 1 with a file of level 2, which is whole."""
    shutil.copy(level(run, "level-02") / name, level(run) / name)


def lost(run, name):
    (level(run) / name).unlink()


@pytest.mark.parametrize("reader", OF_A_LEVEL)
@pytest.mark.parametrize("name", ["trained.safetensors", "ticket.safetensors", "timing.json", "metrics.json"])
@pytest.mark.parametrize("what", [swapped, lost])
def test_no_reader_takes_a_file_of_another_level_or_none(run, whole, what, name, reader):
    what(run, name)
    before = contents(run)
    refused(lambda: OF_A_LEVEL[reader](run, whole), "level-01", *([] if name == "metrics.json" else [name]))
    assert contents(run) == before
    assert sorted(run.parent.iterdir()) == [run]


def test_what_was_measured_of_other_weights_and_a_level_of_elsewhere_are_refused(run, tmp_path):
    other = made(tmp_path / "other", training={**RAW["training"], "lr": 0.1})
    kept = (level(run) / "metrics.json").read_bytes()
    shutil.copy(level(other) / "metrics.json", level(run) / "metrics.json")
    refused(lambda: check_level(level(run)), "metrics.json is of another", "than the one beside it")
    measured = json.loads(kept)
    del measured["digests"], measured["digest"]  # as older versions wrote it
    (level(run) / "metrics.json").write_text(json.dumps(measured))
    assert check_level(level(run)) == []
    shutil.rmtree(level(run))
    shutil.copytree(level(run, "level-02"), level(run))
    refused(lambda: check_level(level(run)), "is of seed-0/level-02, which is not where it lies")


@pytest.mark.parametrize("line", ["x", "0" * 64 + "  a\0b", "0" * 64 + "  ../x", "0" * 63 + "g  x"])
def test_a_list_of_digests_that_is_none_is_damage(run, line):
    (level(run) / "SHA256SUMS").write_text(line + "\n")
    refused(lambda: of_level(level(run)), "SHA256SUMS is damaged")


def test_weights_that_a_level_does_not_list_are_not_its_own(run):
    kept = of_run(run).judged(1, "ticket").state_dict()
    for name in ("averaged.safetensors", "best.safetensors"):
        shutil.copy(level(run, "level-02") / "trained.safetensors", level(run) / name)
    found = of_run(run).judged(1, "ticket").state_dict()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    evaluate_again(run, {}, lambda event: None)
    assert set(disk.read_metrics(level(run))["metrics"]) == {"reconstruction_mse"}


@pytest.mark.parametrize("name", ["trained.safetensors", "ticket.safetensors"])
def test_work_makes_again_what_it_comes_upon_and_all_that_is_damaged(run, whole, name):
    """Come upon by whoever builds on it; looked for by whoever makes the whole run."""
    shutil.copy(level(run, "level-02") / name, level(run, "level-00") / name)
    for gone in ("level-01", "level-01-random_mask", "level-02"):
        shutil.rmtree(level(run, gone))
    with pytest.warns(UserWarning, match=rf"level-00/{name} is damaged .*: dropped, and made again"):
        run_all([joined(run)], lambda event: None)
    assert contents(run) == contents(whole)
    swapped(run, name)
    with pytest.warns(UserWarning, match=rf"level-01/{name} is damaged .*: dropped, and made again"):
        run_all(joined_runs(run), lambda event: None)
    assert contents(run) == contents(whole)
    assert not (run / ".claims").exists()


def test_a_piece_that_rests_on_what_is_damaged_waits_for_that(run, whole):
    swapped(run, "trained.safetensors")
    shutil.rmtree(level(run, "level-02"))
    with pytest.warns(UserWarning, match="dropped"):
        refused(lambda: make_piece(joined(run), "seed-0/level-02", lambda event: None), "it needs seed-0/level-01")
    make_piece(joined(run), "seed-0/level-01", lambda event: None)
    lost(run, "ticket.safetensors")
    with pytest.warns(UserWarning, match="dropped"):
        make_piece(joined(run), "seed-0/level-01", lambda event: None)
    run_all([joined(run)], lambda event: None)
    assert contents(run) == contents(whole)


def test_a_level_that_somebody_is_making_is_left_to_them_and_a_copy_of_ones_own_stays(run):
    swapped(run, "ticket.safetensors")
    claims = Claims(run)
    held = claims.take("seed-0/level-01")
    drop_damaged(run / "seed-0", RECIPE)
    assert level(run).exists()
    held.complete(claims, "seed-0/level-01")
    shutil.copytree(level(run), level(run, "level-01-mine"))
    with pytest.warns(UserWarning, match="dropped"):
        drop_damaged(run / "seed-0", RECIPE)
    assert not level(run).exists()
    assert level(run, "level-01-mine").exists()


def test_nothing_damaged_is_taken_over_from_another_run(run, whole, tmp_path):
    twin = tmp_path / "twin"
    lost(run, "ticket.safetensors")
    ready = replace(prepared(make_recipe({**RAW, "name": "twin"}), twin), donors=(run,))
    with pytest.warns(UserWarning, match=r"not taken over, but made anew: .*ticket\.safetensors is missing"):
        run_all([ready], lambda event: None)
    shared = {
        name: "shared_from" in disk.read_json(level(twin, name) / "timing.json") for name in ("level-00", "level-01")
    }
    assert shared == {"level-00": True, "level-01": False}
    for name in ("level-00", "level-01"):
        assert disk.read_metrics(level(twin, name))["metrics"] == disk.read_metrics(level(whole, name))["metrics"]


def test_a_ticket_in_a_level_of_which_it_is_none_is_not_trained(run, tmp_path):
    swapped(run, "ticket.safetensors")
    file = level(run) / "ticket.safetensors"
    refused(lambda: train_one(RECIPE, tmp_path / "one", 0, file, lambda event: None), "ticket.safetensors is damaged")
    refused(lambda: list(what_is_in(file)), "ticket.safetensors is damaged")


def test_what_is_damaged_is_said_by_another_process_as_here(run):
    error = DamagedLevel(level(run), "x is damaged")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.place) == (f"x is damaged: `gentickets work {run}` makes it again", level(run))


# -- the seconds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{}", "[]", '{"train_seconds": "1"}'])
def test_seconds_that_are_none_are_refused_by_whoever_reads_them(run, text):
    (level(run) / "timing.json").write_text(text)
    refused(lambda: Watch(run).look(), "timing.json")
    refused(lambda: read_run(run), "timing.json")

"""What is in a run's folder: a run's own files alone are taken, checked, and removed."""

from __future__ import annotations

import json

import pytest

from gentickets.errors import RecipeError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run import folder as disk

RECIPE = make_recipe({
    "name": "x", "model": {"name": "linear-autoencoder"}, "objective": {"name": "autoencoding"},
    "training": {"steps": 100}, "search": {"rounds": 3, "rewind_step": 10},
})  # fmt: skip


BEGUN = {"asked": RECIPE.dump(), "threads": 1, "gave_up": [], "data": {"fingerprint": "0"}}


def made(folder, recipe=RECIPE, gave_up=()):
    """A run's folder as it is when the run has begun."""
    folder.mkdir()
    disk.write_recipe(folder, recipe)
    disk.write_json(folder / "origin.json", BEGUN | {"gave_up": list(gave_up)})
    (folder / "seed-0" / "level-00").mkdir(parents=True)
    return folder


def with_keys(**changes):
    raw = RECIPE.dump()
    for path, value in changes.items():
        part, _, key = path.partition("__")
        raw[part][key] = value
    return make_recipe(raw)


def test_a_run_is_gone_on_with(tmp_path):
    recipe, origin, moved = disk.opened(made(tmp_path / "run"), RECIPE)
    assert recipe == RECIPE
    assert origin["gave_up"] == moved == []


@pytest.mark.parametrize("changes", [{"search__fraction": 0.8}, {"training__steps": 50}, {"data__size": 8}])
def test_a_recipe_that_was_changed_in_the_folder_is_refused(tmp_path, changes):
    folder = made(tmp_path / "run", with_keys(**changes))
    key = next(iter(changes)).replace("__", ".")
    with pytest.raises(RecipeError, match=rf"recipe.yaml was changed since the run began: {key}"):
        disk.opened(folder, RECIPE)


def test_a_recipe_that_lost_its_end_is_refused(tmp_path):
    raw = RECIPE.dump()
    raw["evaluation"]["samples"] = 64
    recipe = make_recipe(raw)
    folder = made(tmp_path / "run", recipe)
    disk.write_json(folder / "origin.json", BEGUN | {"asked": recipe.dump()})
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text[: text.index("evaluation:")])
    with pytest.raises(RecipeError, match=r"evaluation.samples \(2000 there, 64 here\)"):
        disk.opened(folder, recipe)


def test_what_was_fitted_into_a_time_may_be_smaller_and_what_may_grow_may_differ(tmp_path):
    fitted = with_keys(training__steps=50, search__rewind_step=5, search__rounds=1)
    assert disk.opened(made(tmp_path / "run", fitted, ["training.steps 100 → 50"]), RECIPE) is not None
    grown = with_keys(search__rounds=9, training__checkpoint_seconds=1.0)
    assert disk.opened(made(tmp_path / "grown", grown), RECIPE) is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key in BEGUN for value in (None, "2", -1, {}) if (key, value) != ("asked", {})],
)
def test_an_origin_that_lacks_what_a_run_rests_on_is_refused(tmp_path, key, value):
    folder = made(tmp_path / "run")
    for broken in (BEGUN | {key: value}, {other: BEGUN[other] for other in BEGUN if other != key}):
        (folder / "origin.json").write_text(json.dumps(broken))
        with pytest.raises(RecipeError, match=key) as refused:
            disk.opened(folder, RECIPE)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("asked", [{}, {"name": "x"}, RECIPE.dump() | {"seeds": "none"}])
def test_an_origin_whose_recipe_is_none_is_refused(tmp_path, asked):
    folder = made(tmp_path / "run")
    disk.write_json(folder / "origin.json", BEGUN | {"asked": asked})
    with pytest.raises(RecipeError):
        disk.opened(folder, RECIPE)


@pytest.mark.parametrize("text", ["[1]", "3", "", "\udcff", "[" * 10_000])
def test_an_origin_that_is_none_is_refused(tmp_path, text):
    folder = made(tmp_path / "run")
    (folder / "origin.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RecipeError, match=r"no readable origin\.json"):
        disk.opened(folder, RECIPE)


def test_a_folder_of_something_else_is_no_new_run(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years")
    with pytest.raises(RecipeError, match=r"holds what is no run's \(thesis.tex\): take another name"):
        disk.opened(tmp_path / "thesis", RECIPE)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / disk.LOCK).touch()
    assert disk.opened(tmp_path / "empty", RECIPE) is None


def test_a_fresh_start_removes_a_runs_own_files_alone(tmp_path):
    folder = made(tmp_path / "run")
    precious, elsewhere = folder / "notes.txt", tmp_path / "elsewhere"
    precious.write_text("mine")
    elsewhere.mkdir()
    (elsewhere / "picture.png").write_text("mine too")
    (folder / "seed-1").symlink_to(elsewhere)
    (folder / "results.csv").symlink_to(precious)
    (folder / disk.LOCK).touch()
    disk.remove_run(folder)
    assert sorted(entry.name for entry in folder.iterdir()) == [disk.LOCK, "notes.txt"]
    assert precious.read_text() == "mine"
    assert (elsewhere / "picture.png").read_text() == "mine too"


def test_what_is_no_run_is_not_removed(tmp_path):
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(RecipeError, match="is no run, and --fresh would remove"):
        disk.remove_run(tmp_path)

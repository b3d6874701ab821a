"""Judging a run again: on the images it was judged on, and all of it or nothing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from gentickets.errors import DataError, RecipeError
from gentickets.files import replace_file
from gentickets.lab import replacing
from gentickets.lab.recipe import make_recipe
from gentickets.lab.results.reading import read_run
from gentickets.lab.results.tables import write_csv
from gentickets.lab.run import again as module
from gentickets.lab.run import folder as disk
from gentickets.lab.run import plan
from gentickets.lab.run.again import evaluate_again
from gentickets.lab.run.prepare import joined, prepared
from gentickets.lab.run.work import run_all


def pictures(folder, seed):
    rng = np.random.default_rng(seed)
    for split, count in (("train", 40), ("test", 20)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / split / f"{number:02}.png")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run on images of one's own: its folder, and theirs."""
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "CLOCK_SECONDS", 0.01)
    monkeypatch.setattr(plan, "give_back", lambda: None)  # collecting all of pytest's garbage takes half a second
    pictures(tmp_path / "images", 0)
    recipe = make_recipe({
        "name": "x", "model": {"name": "linear-autoencoder", "width": 8, "depth": 1, "latent": 2},
        "data": {"source": str(tmp_path / "images"), "size": 8}, "objective": {"name": "autoencoding"},
        "training": {"steps": 4, "batch_size": 8, "threads": 1}, "search": {"rounds": 1, "fraction": 0.5},
        "controls": {"levels": []}, "evaluation": {"samples": 16},
    })  # fmt: skip
    run_all([prepared(recipe, tmp_path / "run")], lambda event: None)
    return tmp_path / "run", tmp_path / "images"


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_other_images_are_refused(run):
    folder, images = run
    before = contents(folder)
    pictures(images, 1)
    with pytest.raises(RecipeError, match="has changed since; put it back"):
        evaluate_again(folder, {}, lambda event: None)
    assert contents(folder) == before


def test_an_interrupted_evaluation_leaves_the_run_as_it_was(run, monkeypatch):
    folder, _ = run
    before, measure, seen = contents(folder), module.measure_level, []

    def interrupted(*arguments):
        if seen:
            raise KeyboardInterrupt
        seen.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr(module, "measure_level", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_again(folder, {"samples": 24}, lambda event: None)
    assert contents(folder) == before
    monkeypatch.setattr(module, "measure_level", measure)
    evaluate_again(folder, {"samples": 24}, lambda event: None)
    assert json.loads((folder / "origin.json").read_text())["asked"]["evaluation"]["samples"] == 24


def asked_of(folder, **places):
    raw = disk.read_run_recipe(folder).dump()
    raw["name"] = places.pop("name", raw["name"])
    return make_recipe({**raw, "data": {**raw["data"], **places}})


def measured(folder):
    return {str(path.relative_to(folder)): raw for path, raw in contents(folder).items() if path.parent != folder}


def test_images_that_were_moved_are_the_same_images(run, tmp_path, monkeypatch):
    folder, images = run
    before = measured(folder)
    images.rename(tmp_path / "elsewhere")
    for command in (
        lambda: evaluate_again(folder, {}, lambda event: None),
        lambda: joined(folder),
        lambda: prepared(asked_of(folder), folder),
    ):
        with pytest.raises(DataError, match=rf"does not exist.*find {folder}/recipe.yaml .*name=run data.source=…"):
            command()
    asked = asked_of(folder, source=str(tmp_path / "elsewhere"))
    for moment in range(3):  # the record, the recipe, the origin
        copy = shutil.copytree(folder, tmp_path / str(moment))
        with monkeypatch.context() as patch:
            patch.setattr(replacing, "replace_file", stopped_at(moment))
            with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match=r"the same images.*data\.source"):
                prepared(asked, copy)
        run_all([prepared(asked, copy)], lambda event: None)
        assert measured(copy) == before
        assert disk.read_run_recipe(copy).data.source == asked.data.source
        assert disk.read_origin(copy)["asked"]["data"]["source"] == asked.data.source
    evaluate_again(copy, {}, lambda event: None)
    assert measured(copy) == before


def test_other_images_elsewhere_are_another_recipe(run, tmp_path):
    folder, _ = run
    pictures(tmp_path / "other", 1)
    before = contents(folder)
    with pytest.raises(RecipeError, match=r"made by another recipe: data\.source .*take name=…"):
        prepared(asked_of(folder, source=str(tmp_path / "other")), folder)
    origin = disk.read_origin(folder)
    assert contents(folder) == before
    del origin["data"]["test_fingerprint"]  # then nothing says that what is held out is the same
    disk.write_json(folder / "origin.json", origin)
    shutil.copytree(tmp_path / "images", tmp_path / "same")
    with pytest.raises(RecipeError, match=r"made by another recipe: data\.source"):
        prepared(asked_of(folder, source=str(tmp_path / "same")), folder)


def test_a_run_whose_folder_was_renamed_goes_on_by_its_new_name(run, tmp_path):
    folder, _ = run
    copy = shutil.copytree(folder, tmp_path / "z")
    with pytest.warns(UserWarning, match=r"gone on with: name \('x' there, 'z' here\)"):
        run_all([prepared(asked_of(folder, name="z"), copy)], lambda event: None)
    assert measured(copy) == measured(folder)
    assert disk.read_run_recipe(copy).name == "z"


def test_levels_that_an_older_version_left_judged_by_unlike_networks_are_refused_until_they_are_judged_again(run):
    folder, _ = run
    for index, values in enumerate(([1.0, 2.0], [1.0, 2.0, 3.0])):
        path = folder / "seed-0" / f"level-0{index}" / "metrics.json"
        metrics = disk.read_json(path)
        metrics["metrics"]["reconstruction_mse"]["by_network"] = values
        disk.write_json(path, metrics)
    with pytest.raises(
        RecipeError, match=r"the mean of 3 networks, and of 2 in other levels: run `gentickets evaluate`"
    ):
        read_run(folder)
    evaluate_again(folder, {}, lambda event: None)
    assert len(read_run(folder).levels) == 2


def judged(folder):
    """What of a run says how it was judged; of its origin but its identity."""
    origin = {key: value for key, value in disk.read_origin(folder).items() if key != "id"}
    found = contents(folder)
    files = {str(path.relative_to(folder)): raw for path, raw in found.items() if path.name in JUDGED}
    return {**files, "origin": origin}


JUDGED = ("metrics.json", "results.csv", "recipe.yaml")

ENDED_BY = {
    "evaluate": lambda folder, asked: evaluate_again(folder, {"samples": 24}, lambda event: None),
    "find": lambda folder, asked: run_all([prepared(asked, folder)], lambda event: None),
    "work": lambda folder, asked: run_all([joined(folder)], lambda event: None),
}


def stopped_at(moment):
    """Writes so many files, and is stopped at the next."""
    left = iter([True] * moment)

    def write(path, content):
        if not next(left, False):
            raise KeyboardInterrupt
        replace_file(path, content)

    return write


@pytest.mark.parametrize("way", ENDED_BY)
def test_a_stop_at_any_moment_of_the_writing_leaves_the_old_or_the_new(run, tmp_path, monkeypatch, way):
    folder, _ = run
    for path in folder.glob("seed-0/level-*/metrics.json"):  # as if it had been measured otherwise before
        metrics = disk.read_json(path)
        metrics["metrics"]["reconstruction_mse"]["value"] = 9.0
        disk.write_json(path, metrics)
    write_csv(read_run(folder))
    old, whole = judged(folder), shutil.copytree(folder, tmp_path / "whole")
    evaluate_again(whole, {"samples": 24}, lambda event: None)
    new, asked = judged(whole), disk.read_run_recipe(whole)
    assert all(new[name] != old[name] for name in old)
    for moment in range(5):  # the record; two levels, origin, recipe
        copy = shutil.copytree(folder, tmp_path / str(moment))
        with monkeypatch.context() as patch:
            patch.setattr(replacing, "replace_file", stopped_at(moment))
            with pytest.raises(KeyboardInterrupt):
                evaluate_again(copy, {"samples": 24}, lambda event: None)
        if not moment:
            assert judged(copy) == old
            continue
        for read in (read_run, disk.read_run_recipe):
            with pytest.raises(
                RecipeError, match=r"being judged anew or moved, or that was stopped .* `gentickets work"
            ) as said:
                read(copy)
            assert "\n" not in str(said.value)
        ENDED_BY[way](copy, asked)
        assert judged(copy) == new
        assert not (copy / replacing.RECORD).exists()


@pytest.mark.parametrize(
    "name", ["../x", "seed-0/level-01/ticket.safetensors", "seed-0/level-00/../metrics.json", "/x"]
)
def test_a_strangers_record_writes_no_other_file(run, name):
    folder, _ = run
    disk.write_json(folder / replacing.RECORD, {"files": {name: "mine"}})
    before = contents(folder.parent)
    with pytest.raises(RecipeError, match="is no file of a run that is replaced"):
        joined(folder)
    assert contents(folder.parent) == before


def test_a_record_leads_nowhere_out_of_the_run_and_a_damaged_one_is_refused(run, tmp_path):
    folder, _ = run
    (tmp_path / "elsewhere").mkdir()
    (folder / "seed-0" / "level-07").symlink_to(tmp_path / "elsewhere")
    disk.write_json(folder / replacing.RECORD, {"files": {"seed-0/level-07/metrics.json": "mine"}})
    with pytest.raises(RecipeError, match="is no file of a run that is replaced"):
        joined(folder)
    assert not list((tmp_path / "elsewhere").iterdir())
    for text in ("{", "[]", '{"files": 3}', '{"files": {"recipe.yaml": 3}}'):
        (folder / replacing.RECORD).write_text(text)
        with pytest.raises(RecipeError, match="remove it, and run `gentickets evaluate` again"):
            joined(folder)

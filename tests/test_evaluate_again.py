"""Judging a run again: on the images it was judged on, and all of it or nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from gentickets.errors import RecipeError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run import again as module
from gentickets.lab.run.again import evaluate_again
from gentickets.lab.run.prepare import prepared
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

"""Run folders as they come to be: a file lost, damaged, of another kind, or somebody else's."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gentickets.errors import DataError, GenticketsError, RecipeError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.report import write_report
from gentickets.lab.results.reading import read_run
from gentickets.lab.results.summary import summarise
from gentickets.lab.results.tables import write_csv
from gentickets.lab.results.verdict import judge
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.prepare import prepared
from gentickets.lab.run.validation import BEST, Validation
from gentickets.lab.run.work import run_all
from gentickets.metrics import FeatureExtractor, FeatureStatistics, manifold_coverage
from gentickets.metrics.frechet import Moments
from tests.fuzz.runs import RECIPES

RECIPE = make_recipe(RECIPES[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is done; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "watched"
    go_on(folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "watched"))


def go_on(folder):
    run_all([prepared(RECIPE, folder)], lambda event: None)


def level(run, name="level-01"):
    return run / "seed-0" / name


def says(path, **changes):
    path.write_text(json.dumps(disk.read_json(path) | changes))


@pytest.mark.parametrize("line", [b"[1]", b"\xff", b"{", b'{"step": "x", "losses": {}}', b'{"step": 1, "losses": [1]}'])
def test_a_line_of_a_curve_that_is_none_is_named(run, line):
    (level(run) / "curve.jsonl").write_bytes(b'{"step": 1, "losses": {"x": 1.0}}\n' + line + b"\n")
    found = next(result for result in read_run(run).levels if (result.level, result.arm) == (1, "ticket"))
    with pytest.raises(RecipeError, match=r"curve\.jsonl, line 2: "):
        found.curve()


def test_what_stands_in_a_files_place_is_refused_at_once(run):
    for name in ("recipe.yaml", "origin.json", "seed-0/level-01/metrics.json", "seed-0/level-01/timing.json"):
        file = run / name
        kept = file.read_bytes()
        for put in (lambda file: os.mkfifo(file), lambda file: file.symlink_to("/dev/zero"), lambda file: file.mkdir()):
            file.unlink()
            put(file)
            with pytest.raises(GenticketsError, match=re.escape(file.name)):
                opened_and_read(run)
            file.rmdir() if file.is_dir() else file.unlink()
            file.write_bytes(kept)


def opened_and_read(run):
    prepared(RECIPE, run, dry=True)
    found = read_run(run).levels
    # What is no file is no level's: then one is left out.
    (lost,) = (r for r in found if r.level == 1 and r.arm == "ticket") if len(found) == 5 else (None,)
    if lost is None or lost.timing is None:
        raise GenticketsError("metrics.json or timing.json is none, and left out")


@pytest.mark.parametrize("text", ["1", "[]", "[" * 5000, '{"a": ' * 900, "", "{}"])
def test_json_that_says_something_else_is_one_line(run, text):
    (level(run) / "metrics.json").write_text(text)
    with pytest.raises(RecipeError, match=r"metrics\.json"):
        read_run(run)
    (level(run) / "metrics.json").unlink()
    (run / "origin.json").write_text(text)
    with pytest.raises(RecipeError, match=r"origin\.json"):
        prepared(RECIPE, run, dry=True)


@pytest.mark.parametrize(("key", "value"), [("train_seconds", float("nan")), ("images", -1), ("find_seconds", 1e300)])
def test_seconds_that_are_none_are_named(run, key, value):
    says(level(run) / "timing.json", **{key: value})
    with pytest.raises(RecipeError, match=rf"timing\.json: {key}"):
        read_run(run)


def test_a_value_that_no_model_has_counts_as_diverged_and_the_page_is_written_whatever_figures_are(run):
    metrics = disk.read_metrics(level(run))["metrics"]
    metrics["reconstruction_mse"]["value"] = 1e308
    says(level(run) / "metrics.json", metrics=metrics)
    assert summarise(read_run(run), "reconstruction_mse")["ticket", 1].diverged == 1
    assert judge(read_run(run)).matches_up_to is None
    shutil.rmtree(run / "figures", ignore_errors=True)
    (run / "figures").write_text("somebody else's")
    with pytest.warns(UserWarning, match=r"figures cannot be written"):
        assert write_report([run]).exists()


def test_levels_deeper_than_any_are_none(run):
    level(run).rename(level(run, "level-99999999"))
    assert read_run(run).depth == 2


def test_a_folder_that_cannot_be_written_is_still_read(run, tmp_path):
    (run / "results.csv").unlink()
    (run / "results.csv").mkdir()
    with pytest.warns(UserWarning, match=r"results\.csv cannot be written"):
        write_csv(read_run(run))
    with pytest.raises(GenticketsError, match=r"cannot write .* --out PAGE\.html"):
        write_report([run], tmp_path)


@pytest.mark.parametrize("lost", [("origin.json",), ("recipe.yaml",), ("origin.json", "recipe.yaml")])
def test_levels_whose_recipe_is_lost_are_not_gone_on_with(run, lost):
    for name in lost:
        (run / name).unlink()
    with pytest.raises(RecipeError, match=r"--fresh|name=…"):
        prepared(RECIPE, run, dry=True)


@pytest.mark.parametrize("name", ["origin.json", "seed-0/level-01/metrics.json"])
def test_a_changed_digit_is_found(run, name):
    text = (run / name).read_text()
    assert text.count('"threads": 1') + text.count('"level": 1') > 0
    (run / name).write_text(text.replace('"threads": 1', '"threads": 2').replace('"level": 1', '"level": 0'))
    with pytest.raises(RecipeError, match="its digest does not fit its content"):
        read_run(run)


def test_lost_and_damaged_levels_are_made_again_as_they_were(run, whole):
    half = run / "seed-0" / ".rewind.json.1.ab.partial"
    half.write_text("{")
    shutil.rmtree(level(run))
    weights = level(run, "level-00") / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"trained\.safetensors is damaged .*: dropped, and made again"):
        go_on(run)
    assert (run / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    assert not half.exists()
    for name in ("level-00", "level-01"):
        for file in ("ticket.safetensors", "trained.safetensors", BEST, "metrics.json"):
            assert (level(run, name) / file).read_bytes() == (level(whole, name) / file).read_bytes()


def test_a_picture_that_was_changed_costs_no_training(run):
    (level(run) / "samples.png").write_bytes(b"another")
    with pytest.raises(RecipeError, match=r"samples\.png is not as it was written, .*: put it back, or remove"):
        go_on(run)
    assert (level(run) / "trained.safetensors").exists()


def test_sums_are_those_of_sha256sum(run):
    assert publishing.changed_files(level(run)) == []
    (level(run) / "curve.jsonl").write_text("")
    assert publishing.changed_files(level(run)) == ["curve.jsonl"]
    (level(run) / publishing.SUMS).write_text("nonsense\n")
    with pytest.raises(GenticketsError, match="SHA256SUMS is damaged"):
        publishing.changed_files(level(run))


def test_best_weights_that_are_lost_are_not_gone_on_without(tmp_path):
    validation = Validation(lambda model: 1.0, 1, tmp_path)
    validation.after_step(SimpleNamespace(step=1, model=torch.nn.Linear(2, 2), averaged=torch.nn.Module()))
    state = validation.state_dict()
    Validation(lambda model: 1.0, 1, tmp_path).load_state_dict(state)
    (tmp_path / BEST).unlink()
    with pytest.raises(disk.Damaged, match=BEST):
        Validation(lambda model: 1.0, 1, tmp_path).load_state_dict(state)


def test_pixels_are_not_taken_for_normalised_images():
    extractor = FeatureExtractor("means", "means", 3, torch.nn.AdaptiveAvgPool2d(1))
    pixels = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    with pytest.raises(DataError, match=r"torch\.uint8"):
        FeatureStatistics.of_batches(extractor, pixels)


def test_there_is_no_gaussian_of_nothing_and_none_of_nan():
    for rows in (torch.zeros(0, 3), torch.zeros(1, 3), torch.full((5, 3), torch.nan), torch.full((2, 3), torch.inf)):
        moments = Moments(3)
        moments.add(rows)
        with pytest.raises(DataError):
            moments.gaussian()


def test_one_feature_that_is_none_leaves_no_coverage():
    real, fake = torch.randn(20, 3), torch.randn(20, 3)
    fake[0, 0] = torch.nan
    found = manifold_coverage(real, fake)
    assert all(math.isnan(value) for value in (found.precision, found.recall, found.density, found.coverage))

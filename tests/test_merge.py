"""Merging runs of other seeds: one run to the byte, or refused in a line; and nothing of a stranger's is followed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentickets.errors import GenticketsError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run import folder as disk
from gentickets.lab.run import merging as module
from gentickets.lab.run import plan, publishing
from gentickets.lab.run.claims import Claims
from gentickets.lab.run.merging import merge
from gentickets.lab.run.pieces import Board
from gentickets.lab.run.prepare import prepared
from gentickets.lab.run.status import Watch
from gentickets.lab.run.work import run_all, write_results
from tests.disturbed import contents

TINY = {
    "name": "one",
    "model": {"name": "linear-autoencoder", "width": 4, "depth": 1, "latent": 2},
    "data": {"source": "digits", "size": 8, "limit": 100},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 6, "batch_size": 8, "lr": 0.003, "threads": 1},
    "search": {"rounds": 1, "fraction": 0.4, "rewind_step": 2},
    "controls": {"levels": []},
    "evaluation": {"features": "none"},
}
SEEDS = (0, 3, 11)


def made(folder, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "CLOCK_SECONDS", 0.01)
        patch.setattr(plan, "give_back", lambda: None)  # collecting all of pytest's garbage takes half a second
        patch.setattr("gentickets.lab.run.prepare.cores", lambda: 1)
        run_all([prepared(make_recipe({**TINY, **changes}), folder)], lambda event: None)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each seed in a run of its own, by number; and the run that has them all, as `None`."""
    place, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    found = {seed: made(place / f"own-{seed}", seeds=[seed]) for seed in SEEDS}
    found[None] = made(place / "one", seeds=list(SEEDS))
    torch.set_num_threads(threads)
    return found


@pytest.fixture
def copies(runs, tmp_path):
    """Seeds 0 and 3, to be changed."""
    for seed in (0, 3):
        shutil.copytree(runs[seed], tmp_path / str(seed))
    return [tmp_path / "0", tmp_path / "3"]


@settings(max_examples=3)
@given(st.permutations(SEEDS), st.integers(1, 2))
def test_merged_it_is_the_run_with_all_seeds_in_any_order_and_in_steps(runs, tmp_path_factory, order, first):
    place = tmp_path_factory.mktemp("merged")
    parts = [runs[seed] for seed in order]
    if first == 2:  # two of them, and then the third to those
        merge(parts[:2], place / "some")
        parts = [place / "some", parts[2]]
    merge(parts, place / "all")
    write_results(place / "all")
    assert contents(place / "all") == contents(runs[None])
    status = Watch(place / "all").look()
    assert status.is_complete
    assert status.counts() == {"done": 6}


def test_the_merged_run_goes_on_and_the_others_stay(runs, tmp_path):
    before = [contents(runs[seed]) for seed in SEEDS[:2]]
    merge([runs[seed] for seed in SEEDS[:2]], tmp_path / "one")
    made(tmp_path / "one", seeds=list(SEEDS))
    assert contents(tmp_path / "one") == contents(runs[None])
    assert [contents(runs[seed]) for seed in SEEDS[:2]] == before
    assert disk.read_origin(tmp_path / "one")["id"] not in [disk.read_origin(runs[seed])["id"] for seed in SEEDS]


def refused(sources, into, *words):
    with pytest.raises(GenticketsError) as raised:
        merge(sources, into)
    said = str(raised.value)
    assert "\n" not in said
    assert all(word in said for word in words), said
    assert not into.exists() or into.name == "there"
    assert not list(into.parent.glob(".*partial"))


def changed(path: Path, **changes):
    disk.write_json(path / "origin.json", {**disk.read_origin(path), **changes})


def test_what_is_not_one_run_is_refused_in_a_line(copies, tmp_path):
    first, second = copies
    into = tmp_path / "merged"
    refused([first], into, "two run folders or more")
    refused([first, first], into, "both have seed 0")
    refused([first, tmp_path / "nowhere"], into, "is no run")
    (tmp_path / "there").mkdir()
    refused(copies, tmp_path / "there", "is there already", "--out")
    origin = disk.read_origin(second)
    for part, key in (("data", "fingerprint"), ("data", "test_fingerprint"), ("versions", "torch")):
        changed(second, **{part: {**origin[part], key: "another"}})
        refused(copies, into, "not of the same", part, key)
        changed(second, **origin)
    changed(second, code={"mine.py:Net": "0" * 64})
    refused(copies, into, "different code")
    changed(second, **origin)
    recipe = disk.read_run_recipe(second).dump()
    other = {**recipe, "training": {**recipe["training"], "lr": 0.5}}
    (second / "recipe.yaml").write_text(json.dumps(other))
    refused(copies, into, "changed since the run began", "training.lr", str(second))
    changed(second, asked=other)
    refused(copies, into, "differ in training.lr", str(first), str(second))


def test_images_that_lie_apart_are_the_same_where_both_splits_say_so(copies, tmp_path):
    recipe = disk.read_run_recipe(copies[1]).dump()
    moved = make_recipe({**recipe, "data": {**recipe["data"], "source": "elsewhere.npz"}})
    disk.write_recipe(copies[1], moved)
    changed(copies[1], asked=moved.dump())
    merge(copies, tmp_path / "merged")
    assert disk.read_run_recipe(tmp_path / "merged").data.source == "digits"
    for run in copies:  # as the oldest are
        data = disk.read_origin(run)["data"]
        changed(run, data={key: data[key] for key in data if key != "test_fingerprint"})
    refused(copies, tmp_path / "again", "differ in data.source")


def test_a_run_that_is_worked_on_is_refused_and_one_with_nothing_complete(copies, tmp_path):
    claims = Claims(copies[1])
    held = claims.take("seed-3/level-02")
    refused(copies, tmp_path / "merged", "is being worked on", "seed-3/level-02")
    held.complete(claims, "seed-3/level-02")
    shutil.rmtree(copies[1] / "seed-3")
    refused(copies, tmp_path / "merged", "no level is complete yet")


def test_links_in_a_strangers_run_are_not_followed(copies, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "secret").write_text("mine")
    level = copies[1] / "seed-3" / "level-01"
    (level / "secret.jsonl").symlink_to(secret)
    (level / "folder").symlink_to(tmp_path / "folder")
    (copies[1] / "seed-3" / "level-07").symlink_to(tmp_path / "folder")
    (copies[1] / "seed-3" / "rewind.json").unlink()
    (copies[1] / "seed-3" / "rewind.json").symlink_to(secret)
    (copies[1] / "seed-5").symlink_to(copies[0] / "seed-0")
    merge(copies, tmp_path / "merged")
    held = [path for path in (tmp_path / "merged").rglob("*") if path.is_file()]
    assert not [path for path in held if path.is_symlink() or path.read_bytes() == b"mine"]
    assert not (tmp_path / "merged" / "seed-5").exists()
    (level / "curve.jsonl").unlink()
    (level / "curve.jsonl").symlink_to(secret)
    refused(copies, tmp_path / "again", "curve.jsonl is not as it was written")


@pytest.mark.parametrize("name", ["my run", "ünï", ".hid", "a" * 201, "m\nx"])
def test_a_name_that_no_run_has_is_refused_before_anything_is_linked(runs, tmp_path, monkeypatch, name):
    monkeypatch.setattr(module, "link_or_copy", lambda *_: pytest.fail("linked"))
    refused([runs[seed] for seed in SEEDS[:2]], tmp_path / name, "--out", "name")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_merging_that_ends_early_leaves_nothing(runs, tmp_path, monkeypatch, error):
    link, left = module.link_or_copy, iter([True] * 5)

    def stopped(source, target):
        if not next(left, False):
            raise error
        link(source, target)

    monkeypatch.setattr(module, "link_or_copy", stopped)
    with pytest.raises((GenticketsError, KeyboardInterrupt)):
        merge([runs[seed] for seed in SEEDS[:2]], tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_a_control_that_a_level_cannot_have_is_left_out_of_the_merged_run_too(copies, tmp_path):
    for run in copies:
        recipe = disk.read_run_recipe(run)
        controls = {**recipe.dump()["controls"], "levels": [1]}
        disk.write_recipe(run, make_recipe({**recipe.dump(), "controls": controls}))
        for piece in Board(run, disk.read_run_recipe(run)).ready():
            Board(run, recipe).leave_out(piece)
    merge(copies, tmp_path / "merged")
    assert [Watch(run).look().counts() for run in copies] == [{"done": 2, "left out": 2}] * 2
    assert Watch(tmp_path / "merged").look().counts() == {"done": 4, "left out": 4}


def test_what_is_half_made_is_left_behind_and_told(copies, tmp_path):
    publishing.partial_of(copies[1] / "seed-3" / "level-02", 1).mkdir()
    words = merge(copies, tmp_path / "merged")
    assert words[-1] == "levels in the making were left behind in 3"
    assert not list((tmp_path / "merged").rglob("*.partial"))

"""What a run keeps of its trained weights: less on disk, and the same figures; what needs what is gone says so."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace

import pytest

from gentickets.cli import main
from gentickets.durations import parse_size
from gentickets.errors import RecipeError
from gentickets.lab import report as pages
from gentickets.lab.recipe import make_recipe
from gentickets.lab.recipe.plain_yaml import write_yaml
from gentickets.lab.run import plan as planning
from gentickets.lab.run import publishing
from gentickets.lab.run.keeping import let_go, to_be_made_again
from gentickets.lab.run.plan import Plan, fit_disk, used_disk
from gentickets.lab.run.prepare import load_data, make_judge
from gentickets.lab.run.publishing import changed_files
from gentickets.lab.run.seed import SeedRun
from gentickets.lab.task import build_model
from gentickets.masks.names import named_state

RAW = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 12, "depth": 1, "latent": 3},
    "data": {"source": "digits", "size": 8, "limit": 100},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 8, "batch_size": 8, "lr": 0.003, "execution": "dense", "ema": 0.9},
    "search": {"rounds": 3, "fraction": 0.2, "rewind_step": 2},
    "controls": {"levels": [1]},
    "evaluation": {"features": "none", "every": 4},
}
WEIGHTS = ("trained.safetensors", "averaged.safetensors", "best.safetensors")
DERIVED = ("timing.json", "SHA256SUMS", "curve.jsonl")  # with rates, or digests of such


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def stage(cache):
    recipe = make_recipe(RAW)
    train, held_out = load_data(recipe.data)
    return train, make_judge(recipe, train, held_out)


def run(folder, stage, **changes):
    SeedRun(make_recipe(RAW | changes), folder, 0, *stage).run()
    return folder / "seed-0"


@pytest.fixture(scope="module")
def whole(stage, tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), stage)


@pytest.fixture(scope="module")
def ends(stage, tmp_path_factory):
    return run(tmp_path_factory.mktemp("ends"), stage, keep="ends")


def files(seed, left_out=DERIVED):
    """Every file of every level, as bytes."""
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for path in sorted(seed.glob("level-*/*"))
        if path.name not in left_out
    }


def weighted(seed):
    return sorted({path.parent.name for name in WEIGHTS for path in seed.glob(f"level-*/{name}")})


def test_the_ends_stay_and_all_else_is_as_it_was(whole, ends):
    assert weighted(ends) == ["level-00", "level-03"]
    assert {path.name for path in (ends / "level-03").iterdir()} >= set(WEIGHTS)
    gone = {f"{level}/{name}" for level in ("level-01", "level-02", "level-01-random_mask", "level-01-redrawn_weights")
            for name in WEIGHTS}  # fmt: skip
    kept, every = files(ends), files(whole)
    assert kept == {name: raw for name, raw in every.items() if name not in gone}
    assert gone <= set(every)
    for place in ends.glob("level-*"):
        assert changed_files(place) == []
        assert (place / "ticket.safetensors").exists()


def test_what_is_let_go_of_later_is_let_go_of_as_on_the_way(whole, ends, tmp_path):
    seed = tmp_path / "seed-0"
    shutil.copytree(whole, seed)
    let_go(seed, "all")
    assert files(seed) == files(whole)
    let_go(seed, "ends")
    let_go(seed, "ends")
    assert files(seed) == files(ends)


def test_who_looks_while_weights_go_finds_a_whole_level(whole, tmp_path, monkeypatch):
    seed = tmp_path / "seed-0"
    shutil.copytree(whole, seed)
    read = publishing.read_file

    def reads(path, *more):
        if path.name == "trained.safetensors":
            let_go(seed, "ends")
        return read(path, *more)

    monkeypatch.setattr(publishing, "read_file", reads)
    assert changed_files(seed / "level-02") == []
    monkeypatch.undo()
    assert weighted(seed) == ["level-00", "level-03"]
    (seed / "level-02" / "ticket.safetensors").unlink()
    assert changed_files(seed / "level-02") == ["ticket.safetensors"]


def test_a_run_grows_by_rounds_and_controls(ends, stage, tmp_path):
    more = {"search": RAW["search"] | {"rounds": 4}, "controls": {"levels": [1, 2, 4]}}
    at_once = run(tmp_path / "at-once", stage, **more)
    shutil.copytree(ends, tmp_path / "later" / "seed-0")
    grown = run(tmp_path / "later", stage, keep="ends", **more)
    assert weighted(grown) == ["level-00", "level-04"]
    every = files(at_once)
    assert all(every[name] == raw for name, raw in files(grown).items())
    assert {name.split("/")[0] for name in files(grown)} == {name.split("/")[0] for name in every}


@pytest.mark.parametrize(("damaged", "with_it"), [("level-03", 2), ("level-02", 1)])
def test_what_a_damaged_level_rested_on_is_made_again_with_it(ends, stage, tmp_path, damaged, with_it):
    seed = tmp_path / "seed-0"
    shutil.copytree(ends, seed)
    path = seed / damaged / "ticket.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.warns(UserWarning, match=r"level-0\d.*(dropped|its trained weights were not kept)") as told:
        run(tmp_path, stage, keep="ends")
    assert sum("trained weights were not kept" in str(one.message) for one in told) == with_it
    assert files(seed) == files(ends)


def test_a_level_that_is_published_while_it_is_looked_for_leaves_all_as_it_is(ends, tmp_path, monkeypatch):
    seed, hidden = tmp_path / "seed-0", tmp_path / "hidden"
    shutil.copytree(ends, seed)
    (seed / "level-03").rename(hidden)
    assert [place.name for place in to_be_made_again(seed, 3)] == ["level-02", "level-01"]
    read = publishing.read_file

    def reads(path, *more):
        if hidden.exists():  # by another worker, whose next step lets the level before go
            hidden.rename(seed / "level-03")
        return read(path, *more)

    monkeypatch.setattr(publishing, "read_file", reads)
    assert to_be_made_again(seed, 3) == []


def test_a_level_that_ended_the_chain_untrained_leaves_the_last_trained_one(whole, tmp_path):
    seed = tmp_path / "seed-0"
    shutil.copytree(whole, seed)
    for name in WEIGHTS:
        (seed / "level-03" / name).unlink()
    let_go(seed, "ends")
    assert weighted(seed) == ["level-00", "level-02"]


def test_what_needs_what_is_gone_says_so_in_a_line_and_the_mend_works(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def program(*arguments):
        monkeypatch.setattr(sys, "argv", ["gentickets", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0, *capsys.readouterr()

    monkeypatch.setattr(planning, "CLOCK_SECONDS", 0.001)
    monkeypatch.setattr(pages, "write_report", lambda runs: runs[0] / "report.html")  # most of the time that this takes
    (tmp_path / "tiny.yaml").write_bytes(write_yaml(make_recipe(RAW).dump()))
    code, _, err = program("find", "tiny.yaml", "--disk", "1kB")
    assert (code, err.splitlines()[-1].count("--disk 1 kB is too little")) == (2, 1)
    assert not (tmp_path / "runs" / "tiny").exists()
    state = named_state(build_model(make_recipe(RAW), stage[0], 0)).values()
    little = planning.disk_needed(make_recipe(RAW | {"keep": "ends"}), sum(4 * one.numel() for one in state), 6, 1)
    code, out, err = program("find", "tiny.yaml", "--disk", f"{little}B")
    assert code == 0, err
    assert "(keep=ends)" in out
    assert "of disk, used" in out
    level = tmp_path / "runs" / "tiny" / "seed-0" / "level-01"
    assert weighted(level.parent) == ["level-00", "level-03"]
    for command in (("evaluate", "runs/tiny"), ("shrink", level), ("export", level, "--component", "decoder")):
        code, _, err = program(*command)
        assert (code, err.count("\n")) == (2, 1)
        assert "keep=ends" in err
    code, out, _ = program("find", "tiny.yaml")  # goes on, and keeps no more than before
    assert code == 0
    assert weighted(level.parent) == ["level-00", "level-03"]
    recipe, ticket = tmp_path / "runs/tiny/recipe.yaml", level / "ticket.safetensors"
    assert program("train", recipe, "--ticket", ticket, "--seed", 0)[0] == 0
    code, _, err = program("find", "tiny.yaml", "--disk", "2 parsecs", "--fresh")
    assert code == 2
    assert "write 2GB, 500MB or 1.5TB" in err


def test_the_laxest_rule_that_fits_is_taken():
    recipe = make_recipe(RAW | {"search": {"rounds": 10}, "controls": {"levels": []}, "seeds": [0, 1]})
    plan = Plan(0.01, 1.0, 22, 1, 1.0, 1, 0, weight_bytes=10**9)
    every = planning.disk_needed(recipe, 10**9, 22, 1)
    least = planning.disk_needed(make_recipe(recipe.dump() | {"keep": "ends"}), 10**9, 22, 1)
    assert every - least == (22 - 6) * 3 * 10**9  # as ended, averaged and best, of all but three levels a seed
    fitted, new = fit_disk(recipe, plan, every, 1)
    assert (fitted, new) == (recipe, replace(plan, disk_bytes=every))
    fitted, new = fit_disk(recipe, plan, every - 1, 1)
    assert (fitted.keep, new.disk_bytes) == ("ends", least)
    with pytest.raises(RecipeError, match=r"--disk .* is too little: 22 trainings would write .*keep=ends"):
        fit_disk(recipe, plan, least - 1, 1)


def test_sizes_as_people_write_them():
    assert [parse_size(text) for text in ("2GB", "500 MB", "1.5T", "2GiB", "7", "3kB")] == [
        2e9, 5e8, 1.5e12, 2 * 2**30, 7, 3000
    ]  # fmt: skip
    for wrong in ("", "GB", "0GB", "-1GB", "2 parsecs", "1e9"):
        with pytest.raises(RecipeError):
            parse_size(wrong)


def test_used_disk_counts_a_file_of_two_names_once(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").write_bytes(b"x" * 10)
    assert used_disk(tmp_path) == 1010

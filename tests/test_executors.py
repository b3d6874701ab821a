"""What is asked of clusters and what is handed to them; without any."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.executors import jobs, read_executor
from gentickets.lab.executors.jobs import Job, token_of
from gentickets.lab.executors.options import RayOptions, SlurmOptions, read_options
from gentickets.lab.executors.order import ToDo, comes_after
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.pieces import pieces_of, standing
from gentickets.lab.run.work import make_piece
from gentickets.lab.study.study import joined_arm, joined_runs, read_study, run_study


def recipe_with(rounds, levels):
    return make_recipe({
        "name": "tiny",
        "model": {"name": "linear-autoencoder", "width": 8, "depth": 1, "latent": 4},
        "data": {"source": "digits", "size": 8},
        "objective": {"name": "autoencoding"},
        "search": {"rounds": rounds},
        "controls": {"levels": levels},
        "seeds": [0],
    })  # fmt: skip


@given(st.integers(0, 5), st.sampled_from(["auto", "all", [1, 3], []]), st.integers(0, 6), st.randoms())
def test_a_job_that_comes_after_others_finds_its_piece_ready_or_not_to_come(rounds, levels, end, random):
    """Jobs begin in any order that their dependencies allow; the chain may end at any level."""
    recipe = recipe_with(rounds, levels)
    left, began, there = pieces_of(recipe), set(), set()
    while left:
        piece = random.choice([one for one in left if began.issuperset(comes_after(recipe, one))])
        left.remove(piece)
        began.add(piece)
        found = standing(recipe, 0, there.__contains__, lambda level: level.level == end)
        if piece in found.ready:
            there.add(piece)
        else:
            assert found.ended
    unforeseen = standing(recipe, 0, there.__contains__, lambda level: level.level == end).ready
    assert not set(unforeseen) & set(pieces_of(recipe))
    assert not unforeseen or end < rounds


def test_options_are_read_with_their_units():
    asked = read_options(SlurmOptions, ["partition=gpu time=1h30m", "gpus=2", "sbatch.nice=9 sbatch.mail-type=END"], "")
    assert asked == SlurmOptions(partition="gpu", time=5400, gpus=2, sbatch={"nice": "9", "mail-type": "END"})
    assert read_options(RayOptions, ["address=auto gpus=0.25"], "") == RayOptions(address="auto", gpus=0.25)


@pytest.mark.parametrize(
    ("kind", "said", "complaint"),
    [
        (SlurmOptions, "tim=2h", "--x 'tim=2h': key=value is needed, of partition, account"),
        (SlurmOptions, "time", "--x 'time': key=value is needed"),
        (SlurmOptions, "time=soon", "--x time=soon: Value error, it is no duration: write 2h"),
        (SlurmOptions, "gpus=-1", "--x gpus=-1: Input should be greater than or equal to 0"),
        (SlurmOptions, "sbatch=x", "of .*sbatch.KEY"),
        (SlurmOptions, "gpus.many=2", "of .*sbatch.KEY"),
        (SlurmOptions, "partition='gpu", "--x .*: No closing quotation"),
        (RayOptions, "gpus=some", "--x gpus=some: Input should be a valid number"),
        (RayOptions, "cpus=nan", "--x cpus=nan: "),
    ],
)
def test_what_is_no_option_is_refused_in_one_line(kind, said, complaint):
    with pytest.raises(GenticketsError, match=complaint):
        read_options(kind, [said], "--x")


@pytest.mark.parametrize(
    ("name", "more", "complaint"),
    [
        ("luck", {}, "--executor 'luck': one of local, slurm, ray"),
        ("local", {"slurm": ["time=2h"]}, "--slurm 'time=2h' is for --executor slurm, and this is --executor local"),
        ("slurm", {"ray": ["gpus=1"]}, "--ray 'gpus=1' is for --executor ray"),
        ("local", {"detach": True}, "--detach is for --executor slurm"),
        ("slurm", {}, "--executor slurm: no sbatch here; take it where jobs are submitted, a login node"),
    ],
)
def test_an_executor_that_cannot_be_is_refused_before_anything_is_loaded(name, more, complaint, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda command: None)
    with pytest.raises(GenticketsError, match=complaint):
        read_executor(name, **more)


def test_a_machine_that_sees_another_folder_or_none_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SEEN_SECONDS", 0.0)
    token = token_of(tmp_path)
    assert token == token_of(tmp_path)
    Job(str(tmp_path), (), token, "/").check_seen()
    with pytest.raises(GenticketsError, match="has another folder by that name: every machine must see the one run"):
        Job(str(tmp_path), (), "another", "/").check_seen()
    with pytest.raises(GenticketsError, match="has no such folder"):
        Job(str(tmp_path / "elsewhere"), (), token, "/").check_seen()


def test_a_piece_of_an_arm_is_taken_over_from_the_arm_before_it(tmp_path):
    recipe = recipe_with(1, []).dump()
    recipe["training"] |= {"steps": 12, "threads": 1}
    recipe["search"]["rewind_step"] = 3
    recipe["data"]["limit"], recipe["evaluation"]["features"] = 200, "none"
    arms = {"imp": {}, "one-shot": {"search.method": "one-shot"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "study": {"arms": arms, "small_dense": False}}))
    study = read_study(tmp_path / "recipe.yaml")
    folder = tmp_path / "runs" / study.name
    run_study(study, folder, lambda stage: lambda event: None)
    assert [ready.folder.name for ready in joined_runs(folder)] == ["imp", "one-shot"]
    place = folder / "one-shot" / "seed-0" / "level-00"
    shutil.rmtree(place)
    ready = joined_arm(folder, "one-shot")
    assert ToDo([joined_arm(folder, "imp"), ready]).left() == {"one-shot/seed-0/level-00": ()}
    assert make_piece(ready, "seed-0/level-00", lambda event: None) == f"{place}: complete"
    assert json.loads((place / "timing.json").read_text())["shared_from"] == "imp"
    with pytest.raises(RecipeError, match="has no arm 'luck': imp, one-shot"):
        joined_arm(folder, "luck")

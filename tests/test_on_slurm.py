"""Pieces as jobs of a real SLURM of one machine: the same results to the byte, whatever SLURM does to the jobs."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.disturbed import TINY, Program, contents
from tests.slurm_at_home import missing, slurm_at_home

pytest.importorskip("submitit")
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

TWO = {
    **TINY,
    "training": {**TINY["training"], "steps": 3000, "checkpoint_seconds": 1e6},
    "search": {"rounds": 1, "fraction": 0.4, "rewind_step": 10},
    "controls": {"levels": []},
}
"""Two pieces, one after the other, of some seconds each; they save their state only where they are asked to stop."""
SMALL = {**TWO, "training": {**TINY["training"], "steps": 60}, "controls": {"levels": [1]}, "seeds": [0, 1]}
GENTICKETS = [sys.executable, "-m", "gentickets"]
RUN = Path("runs", "tiny")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    place = tmp_path_factory.mktemp("slurm")
    with slurm_at_home(place / "cluster") as cluster:
        cluster.environment |= {
            "PYTHONPATH": str(Path(__file__).parent.parent / "src"),
            "OMP_NUM_THREADS": "1",
            "GENTICKETS_CACHE": str(place / "cache"),
        }
        yield cluster


@pytest.fixture
def place(tmp_path, slurm):
    yield tmp_path
    for job in slurm.jobs():
        slurm.run("scancel", "--full", "--signal=KILL", job, check=False)
        slurm.run("scancel", job, check=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A recipe's run in one process, without SLURM: its files."""
    made = {}

    def of(recipe):
        key = json.dumps(recipe)
        if key not in made:
            place = tmp_path_factory.mktemp("undisturbed")
            (place / "recipe.yaml").write_text(key)
            program = Program(place)
            assert program.ended(300)
            assert program.process.exitcode == 0, program.said
            made[key] = contents(place / RUN)
        return made[key]

    return of


def begun(slurm, place, recipe, *options):
    """`find --executor slurm`, in the cluster; its process."""
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    words = [*GENTICKETS, "find", "recipe.yaml", "--executor", "slurm", "--slurm", "look=1s", *options]
    return slurm.start_command(*words, cwd=place)


def ended(process, code=0):
    """What a command said, which is to have ended by itself."""
    said, complaints = process.communicate(timeout=300)
    assert process.returncode == code, said + complaints
    assert "Traceback" not in complaints
    return said + complaints


def until(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.1)


def trains(place):
    """Whether a first level is in training."""
    return any((place / RUN).glob("seed-0/.level-00*.partial/curve.jsonl"))


def saved(place):
    """Whether a first level has saved its state."""
    return any((place / RUN).glob("seed-0/.level-00*.partial/checkpoint.pt"))


@pytest.mark.parametrize("rounds", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_jobs_of_which_one_is_preempted_make_what_one_machine_makes(slurm, place, undisturbed, rounds):
    recipe = {**TWO, "search": {**TWO["search"], "rounds": rounds}}
    waiting = begun(slurm, place, recipe)
    until(lambda: trains(place))
    first, *later = sorted(slurm.jobs(), key=int)
    slurm.run("sbatch", "-p", "urgent", "-n2", "-o", "/dev/null", "--wrap", "sleep 1")
    until(lambda: slurm.field(first, "Restarts") == "1")
    assert saved(place)
    assert [slurm.field(job, "Dependency") for job in later] == [f"afterok:{first}(unfulfilled)"] * rounds
    said = ended(waiting)
    assert f"{rounds + 1} jobs submitted, 0 were in the queue" in said
    assert contents(place / RUN) == undisturbed(recipe)
    assert (place / RUN / "report.html").exists()
    assert not slurm.jobs()


@pytest.mark.soak
@pytest.mark.parametrize("options", ["cpus=1", "workers=2"])
def test_a_run_with_controls(slurm, place, undisturbed, options):
    ended(begun(slurm, place, SMALL, "--slurm", options))
    assert contents(place / RUN) == undisturbed(SMALL)


@pytest.mark.soak
def test_jobs_outlive_who_submitted_them_and_are_not_submitted_twice(slurm, place, undisturbed):
    waiting = begun(slurm, place, TWO)
    until(lambda: len(slurm.jobs()) == 2)
    jobs = slurm.jobs()
    slurm.signal(waiting, signal.SIGTERM)
    said = ended(waiting, 130)
    assert "the jobs go on; scancel --name=tiny-" in said
    assert set(slurm.jobs()) == set(jobs)
    said = ended(begun(slurm, place, TWO))
    assert "0 jobs submitted, 2 were in the queue" in said
    assert contents(place / RUN) == undisturbed(TWO)


@pytest.mark.soak
def test_who_does_not_wait_has_the_page_written_by_a_job(slurm, place, undisturbed):
    said = ended(begun(slurm, place, SMALL, "--detach"))
    assert "scancel --name=tiny-" in said
    until(lambda: not slurm.jobs(), 300)
    assert contents(place / RUN) == undisturbed(SMALL)
    assert (place / RUN / "report.html").exists()


@pytest.mark.soak
def test_a_job_whose_time_is_up_queues_again(slurm, place, undisturbed):
    """SLURM gives notice by USR2, here at once: its time has minutes for units."""
    waiting = begun(slurm, place, TWO)
    until(lambda: trains(place))
    job = min(slurm.jobs())
    slurm.run("scancel", "--signal=USR2", job)
    until(lambda: slurm.field(job, "Restarts") == "1")
    assert saved(place)
    ended(waiting)
    assert contents(place / RUN) == undisturbed(TWO)


@pytest.mark.soak
def test_a_job_that_fails_is_told_in_one_line_and_ends_those_after_it(slurm, place):
    waiting = begun(slurm, place, TWO)
    until(lambda: len(slurm.jobs()) == 2)
    origin = place / RUN / "origin.json"
    origin.write_text("{")
    said = ended(waiting, 2).splitlines()[-1]
    assert said.startswith("gentickets: seed-0/level-00: job ")
    assert "origin.json" in said
    assert "1 others were not made either" in said


@pytest.mark.soak
def test_a_node_that_sees_another_folder_is_told_in_one_line(slurm, place):
    waiting = begun(slurm, place, TWO, "--slurm", "sbatch.begin=now+5")
    until(lambda: len(slurm.jobs()) == 2)
    (place / RUN / ".executor" / "token").write_text("another")
    assert "has another folder by that name" in ended(waiting, 2).splitlines()[-1]


@pytest.mark.soak
def test_what_sbatch_refuses_is_told_in_one_line(slurm, place):
    said = ended(begun(slurm, place, TWO, "--slurm", "partition=none"), 2).splitlines()[-1]
    assert said.startswith("gentickets: SLURM refused a job for seed-0/level-00: sbatch: error: ")
    assert said.endswith("Invalid partition name specified")


@pytest.mark.soak
def test_an_array_of_plain_commands_shares_a_run(slurm, place, undisturbed):
    """What needs nothing but sbatch; all of it is preempted once, and begins again by itself."""
    recipe = {**TWO, "seeds": [0, 1]}
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    (place / "job.sh").write_text(f"#!/bin/bash\nexec {' '.join(GENTICKETS)} find recipe.yaml\n")
    slurm.run("sbatch", "--array=0-1", place / "job.sh", cwd=place)
    until(lambda: trains(place))
    slurm.run("sbatch", "-p", "urgent", "-n2", "-o", "/dev/null", "--wrap", "sleep 1")
    until(lambda: saved(place))
    until(lambda: not slurm.jobs(), 300)
    assert contents(place / RUN) == undisturbed(recipe)


@pytest.mark.soak
def test_a_plain_command_that_is_told_before_its_time_is_up_saves_its_state(slurm, place):
    recipe = {**TWO, "training": {**TWO["training"], "steps": 10**6}, "search": {"rounds": 0}}
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    (place / "job.sh").write_text(f"#!/bin/bash\nexec {' '.join(GENTICKETS)} find recipe.yaml\n")
    words = ("sbatch", "--parsable", "--time=2", "--signal=B:USR1@30", "-o", "log", place / "job.sh")
    job = slurm.run(*words, cwd=place).stdout.strip()
    slurm.wait(job, "FAILED", "TIMEOUT", "COMPLETED")
    assert (slurm.field(job, "ExitCode"), slurm.field(job, "JobState")) == ("130:0", "FAILED")
    assert (place / "log").read_text().splitlines()[-1] == "stopped; the same command goes on from here"
    assert saved(place)


@pytest.mark.soak
def test_tasks_of_one_job_share_a_run(slurm, place, undisturbed):
    recipe = {**TWO, "seeds": [0, 1]}
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    slurm.run("srun", "--ntasks=2", *GENTICKETS, "find", "recipe.yaml", cwd=place)
    assert contents(place / RUN) == undisturbed(recipe)

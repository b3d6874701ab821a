"""Every polite signal has one way out: trainings save, end, and only then the command says that it has stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gentickets.errors import GenticketsError
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.claims import check_at_rest

ENDLESS = {
    "name": "endless",
    "model": {"name": "linear-autoencoder", "width": 16, "depth": 1, "latent": 4},
    "data": {"source": "digits", "size": 8},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 10**7, "batch_size": 16, "checkpoint_seconds": 1e6},
    "search": {"rounds": 1, "fraction": 0.5},
    "evaluation": {"metrics": ["reconstruction_mse"]},
    "seeds": [0, 1],
}
"""Nothing that needs classifiers, which each test would train anew."""


@pytest.fixture
def training(tmp_path_factory, request):
    """The program in a session of its own, both seeds in training; its folder."""
    place = tmp_path_factory.mktemp("place")
    seeds = getattr(request, "param", [0, 1])
    (place / "recipe.yaml").write_text(yaml.safe_dump({**ENDLESS, "seeds": seeds}))
    process = subprocess.Popen(
        [sys.executable, "-m", "gentickets", "find", "recipe.yaml"],
        cwd=place,
        env={**os.environ, "GENTICKETS_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = place / "runs" / "endless"
    while process.poll() is None and not all(has_begun(partial(run, seed) / "curve.jsonl") for seed in seeds):
        time.sleep(0.05)
    yield process, run
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def has_begun(curve: Path) -> bool:
    return curve.exists() and curve.stat().st_size > 0


def partial(run: Path, seed: int) -> Path:
    return publishing.partial_of(run / f"seed-{seed}" / publishing.level_name(0))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How the program ended, and its last line."""
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    return process.returncode, said.strip().splitlines()[-1]


def trainings(process: subprocess.Popen[str]) -> list[int]:
    """The program's processes that are still there, but for multiprocessing's own helper."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            # After the command's name, in brackets: state, parent, group.
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            command = (entry / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        if int(group) == process.pid and state != "Z" and command and "resource_tracker" not in command:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("signals", [
    [signal.SIGINT, signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM],
], ids=["ctrl_c_twice", "terminated", "hung_up"])  # fmt: skip
def test_a_signal_to_the_whole_group_ends_it_with_both_states_saved(training, signals):
    process, run = training
    for which in signals:
        os.killpg(process.pid, which)
        time.sleep(0.01)
    assert ended(process) == (130, "stopped; the same command goes on from here")
    assert [(partial(run, seed) / publishing.CHECKPOINT).exists() for seed in (0, 1)] == [True, True]
    assert not trainings(process)
    check_at_rest(run)  # nobody has a claim any more


@pytest.mark.parametrize("training", [[0]], indirect=True)
def test_one_key_that_arrives_twice_costs_nothing(training):
    process, run = training
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert ended(process)[0] == 130
    assert (partial(run, 0) / publishing.CHECKPOINT).exists()


def test_a_third_signal_ends_a_training_that_does_not_save(training):
    process, _ = training
    (child, *_) = [number for number in trainings(process) if number != process.pid]
    os.kill(child, signal.SIGSTOP)  # one that will never save
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert ended(process) == (130, "stopped; the same command goes on from here")
    assert not trainings(process)


def test_whoever_still_writes_has_its_claim_and_an_orphan_ends(training):
    process, run = training
    child = next(number for number in trainings(process) if number != process.pid)
    os.kill(child, signal.SIGSTOP)
    process.kill()
    process.wait()
    with pytest.raises(GenticketsError, match="is being worked on"):
        check_at_rest(run)
    os.kill(child, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while not is_at_rest(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_at_rest(run)
    assert not trainings(process)


def is_at_rest(run: Path) -> bool:
    try:
        check_at_rest(run)
    except GenticketsError:
        return False
    return True


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / disk.LOCK
    for make in (lambda: lock.symlink_to(precious), lambda: os.mkfifo(lock), lock.mkdir):
        make()
        with pytest.raises(GenticketsError, match="is no lock of ours"), disk.locked(tmp_path / "run"):
            pass
        lock.rmdir() if lock.is_dir() and not lock.is_symlink() else lock.unlink()
    assert precious.read_text() == "mine"


def test_a_folder_in_which_nothing_came_to_be_is_not_left(tmp_path):
    with disk.locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    with disk.locked(tmp_path / "run"):
        (tmp_path / "run" / "recipe.yaml").write_text("name: x")
    assert (tmp_path / "run" / disk.LOCK).exists()

"""Whoever asks the program to stop before a training listens is heard, whatever is loaded and whatever swallows it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gentickets.interruptions import POLITE
from tests.disturbed import TINY, contents

SRC = Path(__file__).parent.parent / "src"
STOPPED = "stopped; the same command goes on from here"

# The program, with something that happens where a module is first looked for.
PROGRAM = """
import os, signal, sys, time, weakref
which, module, how, sys.argv = sys.argv[1], sys.argv[2], sys.argv[3], ["gentickets", *sys.argv[4:]]

def plainly():
    os.kill(os.getpid(), getattr(signal, which))

def twice():
    try:
        plainly()
    finally:
        plainly()

def and_it_is_swallowed():
    try:
        plainly()
    except BaseException:
        pass
    time.sleep(60)

def where_nobody_can_catch_it():
    class Thing: pass
    thing = Thing()
    kept = weakref.ref(thing, lambda gone: plainly())
    del thing
    time.sleep(60)

def and_it_becomes_another_error():
    try:
        plainly()
    except KeyboardInterrupt:
        raise RuntimeError("cannot be done") from None

class Finder:
    def find_spec(self, name, *rest):
        if name == module:
            globals()[how]()

if module == "nothing":
    import gentickets.lab.recipe as recipe
    recipe.check_keys = lambda *rest: globals()[how]()
sys.meta_path.insert(0, Finder())
from gentickets.__main__ import main
main()
"""


def hearing():
    """Ignores no signal, as what a shell begins in the background does of SIGINT."""
    for which in POLITE:
        signal.signal(which, signal.SIG_DFL)


def program(*words, **more):
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    more = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "preexec_fn": hearing, **more}
    return subprocess.Popen([sys.executable, *words], env=environment, text=True, **more)


@pytest.mark.parametrize(
    ("which", "module", "how"),
    [
        ("SIGTERM", "gentickets.cli", "plainly"),
        ("SIGHUP", "typer", "where_nobody_can_catch_it"),
        ("SIGUSR2", "torch", "and_it_is_swallowed"),
        ("SIGINT", "nothing", "twice"),
        ("SIGUSR1", "nothing", "and_it_is_swallowed"),
        ("SIGTERM", "nothing", "where_nobody_can_catch_it"),
        ("SIGHUP", "nothing", "and_it_becomes_another_error"),
    ],
)
def test_a_signal_while_something_is_loaded_or_prepared_is_one_line(tmp_path, which, module, how):
    started = program("-c", PROGRAM, which, module, how, "find", "quickstart/gan", cwd=tmp_path)
    _, said = started.communicate(timeout=60)
    assert (started.returncode, said.split("\n")) == (130, [STOPPED, ""])


def test_what_is_ignored_stays_ignored():
    started = program(
        "-c", PROGRAM, "SIGHUP", "typer", "plainly", "list", "recipes",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (0, "")


@pytest.mark.soak
def test_a_signal_at_any_moment_of_a_run_that_starts_from_nothing(tmp_path):
    """Sixty moments from Python's first instruction of ours to the last level, each with what it goes on to."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(SRC),
        "OMP_NUM_THREADS": "1",
        "GENTICKETS_CACHE": str(tmp_path / "c"),
    }
    find = [sys.executable, "-m", "gentickets", "find", "recipe.yaml"]

    def begun(place):
        place.mkdir(exist_ok=True)
        (place / "recipe.yaml").write_text(json.dumps({**TINY, "seeds": [0, 1]}))
        return subprocess.Popen(
            find, cwd=place, env=environment, start_new_session=True, text=True, preexec_fn=hearing,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    for place in (tmp_path / "cold", tmp_path / "whole"):
        start = time.monotonic()
        assert begun(place).wait(timeout=300) == 0
    seconds = time.monotonic() - start
    rng = random.Random(0)
    for number in range(60):
        case = tmp_path / str(number)
        process, at = begun(case), 0.1 + rng.random() * (seconds - 0.1)
        time.sleep(at)
        which = rng.choice(POLITE)
        for _ in range(rng.choice([1, 2])):
            if process.poll() is None:
                os.killpg(process.pid, which)
            time.sleep(0.02 * rng.random())
        _, said = process.communicate(timeout=300)
        print(f"{number}: {which.name} at {at:.2f} s: {process.returncode}", flush=True)
        assert "Traceback" not in said, said
        assert process.returncode == 0 or (process.returncode, said.splitlines()[-1]) == (130, STOPPED), said
        assert begun(case).wait(timeout=300) == 0
        assert contents(case / "runs" / "tiny") == contents(tmp_path / "whole" / "runs" / "tiny")

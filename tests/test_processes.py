"""Workers in processes of their own, of which one is killed at the worst instant: while it tells something."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gentickets.errors import GenticketsError
from gentickets.lab.run.processes import side_by_side

LONG = "x" * 2**24  # more than any pipe holds: whoever tells it is in the middle of telling for a while


def dies_while_telling(tell, stop):
    """The first of two to come is killed amid a word; the other works on until it is asked to stop."""
    try:
        os.mkdir(os.environ["FIRST"])
    except FileExistsError:
        while not stop():
            tell("more")
            time.sleep(0.01)
        tell("stopped")
        raise KeyboardInterrupt from None
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        tell(LONG)


def told(tell, stop):
    for number in range(3):
        tell(number)


def fails(tell, stop):
    raise GenticketsError("no such layer")


def waits(tell, stop):
    while not stop():
        time.sleep(0.05)
    assert stop()  # and stays so
    raise KeyboardInterrupt


def test_one_that_is_killed_while_it_tells_holds_nobody_up(tmp_path):
    program = (
        "from tests.test_processes import dies_while_telling, side_by_side\n"
        "heard = []\n"
        "try:\n"
        "    side_by_side(2, dies_while_telling, heard.append)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error, 'stopped' in heard)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"FIRST": str(tmp_path / "first")},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stdout.startswith("GenticketsError a training's process was killed from outside")
    assert done.stdout.endswith("True\n")


def test_all_is_heard_that_they_tell():
    heard = []
    side_by_side(2, told, heard.append)
    assert sorted(heard) == [0, 0, 1, 1, 2, 2]


def test_the_first_failure_is_raised_as_it_was():
    with pytest.raises(GenticketsError, match="no such layer"):
        side_by_side(2, fails, print)


def test_what_cannot_be_told_stops_them():
    def full(event):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        side_by_side(1, told_and_waits, full)


def told_and_waits(tell, stop):
    tell("something")
    waits(tell, stop)

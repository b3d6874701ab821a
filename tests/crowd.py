"""Several commands at work on one run, killed, stopped for several leases, cut off from the disk at random; and what
comes of it compared with a run that was left alone.

Beside what is done to them from outside, processes stop or kill themselves at a file operation: before a claim is
linked, a file replaced, a level's folder renamed onto its place, claims removed. In every second case they see nothing
of each other but the folder, as on machines of their own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gentickets.cli import main

# For the server: what a command imports as it goes.
from gentickets.lab import report, study  # noqa: F401
from gentickets.lab.run import claims
from tests.disturbed import TINY, contents

LEASE = 0.5
RECIPES: dict[str, dict[str, Any]] = {
    "two seeds, judged while training": {
        **TINY,
        "training": {**TINY["training"], "steps": 60, "ema": 0.9},
        "evaluation": {"features": "none", "every": 20},
        "seeds": [0, 1],
    },
    "one seed, weights let go": {**TINY, "keep": "ends", "controls": {"levels": [1, 2]}},
}
WAYS = (
    *["at their own hand"] * 3,
    *["killed", "killed with their group", "stopped"] * 2,
    "terminated",
    "the clock jumps",
    "the disk is full",
    "read-only",
)
COMMANDS = 3
PATIENCE = 240.0
EXPECTED = (
    *("is no run", "killed from outside"),
    *("no space left", "No space left", "0 B are free", "cannot write to", "Read-only"),
)
"""What a command may say: that the folder is not there yet, that one of its processes was killed, that the disk is
full or cannot be written. Anything else is found."""

HAZARDS = {"rename": (0.25, 0.1), "link": (0.08, 0.06), "replace": (0.02, 0.01), "rmtree": (0.1, 0.08)}
"""Operation → how often who does it is stopped before, and how often killed."""


@dataclass(frozen=True)
class Case:
    """What is done to the commands at work on which run."""

    recipe: str
    way: str
    apart: bool
    number: int

    def __str__(self) -> str:
        return f"case {self.number}: {self.recipe}; {self.way}; {'apart' if self.apart else 'on one machine'}"


def case_of(number: int) -> Case:
    rng = random.Random(f"crowd {number}")
    way = WAYS[number] if number < len(WAYS) else rng.choice(WAYS)
    return Case(list(RECIPES)[number % len(RECIPES)], way, number % 4 < 2, number)


@dataclass
class Outcome:
    """What was done in a case, by how often."""

    done: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return ", ".join(f"{what} {count}" for what, count in sorted(self.done.items()))


class Command:
    """`gentickets` in a folder, in a session of its own."""

    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload(["__main__", "tests.crowd"])

    def __init__(self, place: Path, words: list[str], case: Case | None = None):
        self.place, self.words = place, words
        self.out = place.with_name(f"{place.name}-said-{time.monotonic_ns()}")  # its disk may be full
        self.process = self._context.Process(target=_command, args=(place, words, self.out, case))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def members(self) -> Iterator[tuple[int, str]]:
        """The processes of its group that have not ended, with their states."""
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                number = int(entry.name)
                state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.pid and state not in "ZX":
                    yield number, state

    def signal(self, which: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, which)

    @property
    def said(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""


def _command(place: Path, words: list[str], out: Path, case: Case | None) -> None:
    """In a process of its own: what the shell would start."""
    os.setsid()
    os.chdir(place)
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ["GENTICKETS_LEASE"] = str(LEASE)
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]  # seeds load torch for seconds
    report.write_report = lambda runs: place / "report.html"  # drawing would take half of the time
    if case is not None:
        _endanger(case, _record(place))
    sys.argv = ["gentickets", *words]
    main()


def _endanger(case: Case, published: Path) -> None:
    """From here on this process notes what it publishes, and has what the case wants of it."""
    if case.apart:
        claims._machine = lambda: f"of process {os.getpid()}"  # type: ignore[assignment]
    if case.way == "the clock jumps":
        rng = random.Random(os.getpid())
        time.time = lambda: rng.uniform(0, 4e9)  # type: ignore[assignment]
    own_hand = case.way == "at their own hand"
    rename = os.rename

    def noted(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(target).name.startswith("level-"):
            with open(published, "a") as file:
                file.write(f"{Path(target).name} of {Path(target).parent.name}\n")

    os.rename = noted  # type: ignore[assignment]
    if own_hand:
        for module, name in ((os, "rename"), (os, "link"), (os, "replace"), (shutil, "rmtree")):
            setattr(module, name, _hazardous(getattr(module, name), *HAZARDS[name]))


_dice: dict[int, random.Random] = {}


def _hazardous(call: Callable[..., Any], stopped: float, killed: float) -> Callable[..., Any]:
    def endangered(*given: Any, **more: Any) -> Any:
        drawn = _dice.setdefault(os.getpid(), random.Random(os.getpid())).random()
        if drawn < stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif drawn < stopped + killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*given, **more)

    return endangered


def undisturbed(place: Path, recipe: str) -> tuple[dict[str, bytes], float]:
    """The files of a run that is left alone, and the seconds that it takes."""
    _prepared(place, recipe)
    first = Command._context.Process(target=int)  # the server is there after that, with torch
    first.start()
    first.join()
    begun = time.monotonic()
    _last(place, "undisturbed")
    return contents(place / "runs" / "tiny"), time.monotonic() - begun


def _prepared(place: Path, recipe: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "recipe.yaml").write_text(json.dumps(RECIPES[recipe]))


def _last(place: Path, what: object) -> None:
    command = Command(place, ["find", "recipe.yaml"])
    command.process.join(PATIENCE)
    assert not command.process.is_alive(), f"{what}: the last command has no end\n{command.said}"
    assert command.process.exitcode == 0, (
        f"{what}: the last command ended with {command.process.exitcode}\n{command.said}"
    )


def outcome(case: Case, place: Path, whole: dict[str, bytes], seconds: float) -> str:
    """Lets commands work on the run, does to them what the case says, and compares what the last one leaves.

    Returns what was done. Raises `AssertionError` where there are other numbers, a traceback, something left or twice,
    or no end; `NotImplementedError` where this machine cannot do it.
    """
    place.mkdir(parents=True)
    with _small_disk(place) if case.way in ("the disk is full", "read-only") else nullcontext():
        _prepared(place, case.recipe)
        done = _Crowd(case, place, seconds).work()
        _last(place, case)
        run = place / "runs" / "tiny"
        left = [path.name for path in (*run.glob(".*"), *run.glob("seed-*/.*")) if path.name != ".lock"]
        assert not left, f"{case}: left behind: {left}"
        twice = [level for level, times in Counter(_published(place)).items() if times > 1]
        assert not twice, f"{case}: published twice: {twice}"
        found = contents(run)
        differing = [name for name in {**whole, **found} if whole.get(name) != found.get(name)]
        assert not differing, f"{case} ({done}): others than undisturbed: {', '.join(differing)}"
    return str(done)


def _record(place: Path) -> Path:
    return place.with_name(f"{place.name}-published")


def _published(place: Path) -> list[str]:
    path = _record(place)
    return path.read_text().splitlines() if path.exists() else []


class _Crowd:
    """The commands of a case: begun, disturbed, begun again where they were, until the time is over and all end."""

    def __init__(self, case: Case, place: Path, seconds: float):
        self.case, self.place, self.rng = case, place, random.Random(case.number)
        self.done = Outcome()
        self._until = time.monotonic() + 1.5 * seconds
        self._commands = [self._begin(index) for index in range(COMMANDS)]
        self._stopped: dict[int, float] = {}
        self._next = time.monotonic() + self.rng.uniform(0, seconds / 3)
        self._every = seconds / 5

    def _begin(self, index: int) -> Command:
        words = ["work", "runs/tiny"] if index % 2 and (self.place / "runs/tiny/origin.json").exists() else None
        return Command(self.place, words or ["find", "recipe.yaml"], self.case)

    def work(self) -> Outcome:
        deadline = time.monotonic() + PATIENCE
        while any(command.process.is_alive() for command in self._commands):
            assert time.monotonic() < deadline, f"{self.case}: no end\n" + "\n".join(c.said for c in self._commands)
            self._wake()
            if time.monotonic() < self._until:
                if time.monotonic() > self._next:
                    self._disturb()
                    self._next = time.monotonic() + self.rng.uniform(0, 2 * self._every)
                self._begin_again()
            time.sleep(0.02)
        for command in self._commands:
            command.signal(signal.SIGKILL)  # nothing that it left behind may go on for ever
            self._check(command)
        return self.done

    def _begin_again(self) -> None:
        for index, command in enumerate(self._commands):
            if not command.process.is_alive() and command.process.exitcode != 0:
                self._check(command)
                self._commands[index] = self._begin(index)

    def _check(self, command: Command) -> None:
        code, said = command.process.exitcode, command.said
        assert "Traceback" not in said, f"{self.case}\n{said}"
        assert code in (0, 2, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT), f"{self.case}: {code}\n{said}"
        if code == 2:
            complaint = said[said.rindex("gentickets: ") :]
            assert any(words in " ".join(complaint.split()) for words in EXPECTED), f"{self.case}\n{said}"
            self.done.done["refused in a line"] += 1
        elif code == -signal.SIGKILL:
            self.done.done["killed"] += 1

    def _disturb(self) -> None:
        living = [command for command in self._commands if command.process.is_alive()]
        if not living:
            return
        command, way = self.rng.choice(living), self.case.way
        members = list(command.members())
        if way == "killed" and members:
            with suppress(ProcessLookupError):
                os.kill(self.rng.choice(members)[0], signal.SIGKILL)
        elif way == "killed with their group":
            command.signal(signal.SIGKILL)
        elif way == "stopped" and members:
            for number, _ in members if self.rng.random() < 0.5 else [self.rng.choice(members)]:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGSTOP)
        elif way == "terminated":
            command.signal(self.rng.choice([signal.SIGTERM, signal.SIGINT]))
            self.done.done["terminated"] += 1
        elif way == "the clock jumps":
            self._date_files()
        elif way == "the disk is full":
            self._fill()
        elif way == "read-only":
            self._lock_out()

    def _wake(self) -> None:
        """Lets go on who was stopped for long enough, by whomever; at the end at once."""
        now = time.monotonic()
        for command in self._commands:
            for number, state in command.members() if command.process.is_alive() else ():
                if state != "T":
                    self._stopped.pop(number, None)
                elif number not in self._stopped:
                    self._stopped[number] = now + LEASE * self.rng.uniform(0, 6)
                    self.done.done["stopped"] += 1
                elif now > self._stopped[number]:
                    with suppress(ProcessLookupError):
                        os.kill(number, signal.SIGCONT)

    def _date_files(self) -> None:
        with suppress(OSError):  # folders come and go
            for file in (self.place / "runs").rglob("*"):
                date = self.rng.uniform(0, 4e9)
                with suppress(OSError):
                    os.utime(file, (date, date))
        self.done.done["clocks"] += 1

    def _fill(self) -> None:
        ballast = self.place / "ballast"
        with suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(2**14))
        time.sleep(self.rng.uniform(0, 1))
        ballast.unlink()
        self.done.done["full"] += 1

    def _lock_out(self) -> None:
        for _ in range(100):
            if _mount("-o", "remount,ro", str(self.place)):
                time.sleep(self.rng.uniform(0, 1))
                assert _mount("-o", "remount,rw", str(self.place))
                self.done.done["locked out"] += 1
                return
            time.sleep(0.005)  # somebody is writing


@contextmanager
def _small_disk(place: Path) -> Iterator[None]:
    """A disk of some megabytes at `place`. Raises `NotImplementedError` where none can be made."""
    if os.geteuid() != 0 or not _mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)):
        raise NotImplementedError("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mount(*words: str) -> bool:
    try:
        return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0
    except OSError:
        return False

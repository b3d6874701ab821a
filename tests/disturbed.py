"""A run that is killed, signalled or damaged at a random moment, gone on with,
and compared with one that was left alone.

The program runs by its real command line, in processes that are forked from a server in which torch is loaded already,
so that a case costs a second. What is done in a case follows from its number; the moment is a time, so that what it
hits differs a little from machine to machine.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gentickets.cli import main

# For the server: what a command imports as it goes.
from gentickets.lab import report, study  # noqa: F401

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 8, "depth": 1, "latent": 4},
    "data": {"source": "digits", "size": 8, "limit": 400},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 120, "batch_size": 16, "lr": 0.003, "checkpoint_seconds": 0.05, "threads": 1},
    "search": {"rounds": 2, "fraction": 0.4, "rewind_step": 30},
    "controls": {"levels": [1]},
    "evaluation": {"features": "none"},
    "seeds": [0],
}
RECIPES: dict[str, dict[str, Any]] = {
    "autoencoder, judged while training": {**TINY, "evaluation": {"features": "none", "every": 20}},
    "autoencoder, two seeds": {**TINY, "seeds": [0, 1], "training": {**TINY["training"], "ema": 0.9}},
    "gan with averages": {
        **TINY,
        "model": {"name": "dcgan", "width": 2, "latent": 4},
        "objective": {"name": "adversarial"},
        "training": {**TINY["training"], "steps": 60, "ema": 0.9},
        "search": {**TINY["search"], "rounds": 1},
        "evaluation": {"samples": 64, "classifiers": 1},
    },
    "gan, two seeds": {
        **TINY,
        "model": {"name": "dcgan", "width": 2, "latent": 4},
        "objective": {"name": "adversarial"},
        "training": {**TINY["training"], "steps": 40},
        "search": {**TINY["search"], "rounds": 1, "rewind_step": 10},
        "controls": {"levels": []},
        "evaluation": {"samples": 64, "classifiers": 1},
        "seeds": [3, 5],
    },
    "early bird of channels": {
        **TINY,
        "model": {"name": "conv-vae", "width": 4, "latent": 4},
        "objective": {"name": "elbo"},
        "training": {**TINY["training"], "steps": 60},
        "search": {"method": "early-bird", "granularity": "channel", "rounds": 1, "fraction": 0.3, "window": 3,
                   "interval": 5},
        "evaluation": {"samples": 64, "classifiers": 1},
    },
}  # fmt: skip
WAYS = (
    *["kill the group"] * 4,
    *["kill one child", "kill the parent"] * 2,
    "INT",
    "TERM",
    "HUP",
    "INT twice",
    "STOP, CONT, TERM",
    *["damage"] * 2,
)
DAMAGES = ("a bit", "half", "zeros", "empty", "garbage", "removed")

WALL_CLOCK = ("timing.json", "settled.pt", "SHA256SUMS")
"""Files of a level that hold seconds, or the digest of one that does. Of a curve the rate is one too."""

RESUMPTIONS, PATIENCE = 20, 300.0


@dataclass(frozen=True)
class Case:
    """What is done to which run, and at which share of the time that it takes undisturbed."""

    recipe: str
    way: str
    moment: float
    damage: str | None
    number: int

    def __str__(self) -> str:
        what = f"{self.damage} of a random file" if self.damage else "no damage"
        return f"case {self.number}: {self.recipe}; {self.way} at {self.moment:.0%}; {what}"


def case_of(number: int) -> Case:
    rng = random.Random(number)
    recipe = list(RECIPES)[number % len(RECIPES)]
    two = len(RECIPES[recipe]["seeds"]) > 1
    way = rng.choice([way for way in WAYS if two or way not in ("kill one child", "kill the parent")])
    damaged = way == "damage" or rng.random() < 0.3
    return Case(recipe, way, rng.random(), rng.choice(DAMAGES) if damaged else None, number)


class Program:
    """`gentickets find` in a folder, in a session of its own."""

    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload(["__main__", "tests.disturbed"])

    def __init__(self, place: Path):
        self.place = place
        self.process = self._context.Process(target=_find, args=(place,))
        self.process.start()

    def ended(self, seconds: float) -> bool:
        self.process.join(seconds)
        return not self.process.is_alive()

    def signal(self, which: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, which)

    def children(self) -> list[int]:
        try:
            return [
                int(n) for n in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            ]
        except OSError:
            return []

    @property
    def said(self) -> str:
        return (self.place / "said").read_text(errors="replace")


def _find(place: Path) -> None:
    """In a process of its own: what the shell would start."""
    os.setsid()
    os.chdir(place)
    handle = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]  # seeds load torch for seconds
    report.write_report = lambda runs: place / "report.html"  # drawing would take half of the time
    sys.argv = ["gentickets", "find", "recipe.yaml"]
    main()


def undisturbed(place: Path, recipe: str) -> tuple[dict[str, bytes], float]:
    """The files of a run that is left alone, and the seconds that it takes."""
    _prepared(place, recipe)
    begun = time.monotonic()
    program = Program(place)
    assert program.ended(PATIENCE), "an undisturbed run has no end"
    assert program.process.exitcode == 0, program.said
    return contents(place / "runs" / "tiny"), time.monotonic() - begun


def outcome(case: Case, place: Path, whole: dict[str, bytes], seconds: float) -> str:
    """Does what the case says, goes on until it is done, and says what came of it: "same", or "refused".

    Raises `AssertionError` where there are other numbers, a traceback, or no end.
    """
    rng = random.Random(f"{case.number} in full")
    _prepared(place, case.recipe)
    program = Program(place)
    if not program.ended(case.moment * seconds) and case.way != "damage":
        _disturb(program, case.way)
    assert program.ended(PATIENCE), f"{case}: no end after {case.way}"
    assert "Traceback" not in program.said, f"{case}\n{program.said}"
    program.signal(signal.SIGKILL)  # nothing that it left behind may go on for ever
    hurt = _damage(rng, place / "runs" / "tiny", case.damage) if case.damage else None
    for _ in range(RESUMPTIONS):
        program = Program(place)
        assert program.ended(PATIENCE), f"{case}: no end when it goes on"
        said = program.said
        assert "Traceback" not in said, f"{case}, {hurt}\n{said}"
        if program.process.exitcode == 0:
            _compare(case, whole, contents(place / "runs" / "tiny"), hurt, said)
            return "same"
        assert program.process.exitcode == 2, f"{case}, {hurt}: exit code {program.process.exitcode}\n{said}"
        if "is being written by another command" in said:
            time.sleep(0.5)  # an orphan that has not ended yet
            continue
        complaints = [line for line in said.splitlines() if line.startswith("gentickets: ")]
        assert hurt is not None, f"{case}: refused, and nothing was damaged\n{said}"
        assert len(complaints) == 1, f"{case}, {hurt}: not one line\n{said}"
        return "refused"
    raise AssertionError(f"{case}: still locked\n{program.said}")


def _prepared(place: Path, recipe: str) -> None:
    place.mkdir(parents=True)
    (place / "recipe.yaml").write_text(json.dumps(RECIPES[recipe]))


def _disturb(program: Program, way: str) -> None:
    if way == "kill one child":
        for child in program.children()[-1:] or [program.process.pid or 0]:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    elif way == "kill the parent":
        program.process.kill()
    elif way == "kill the group":
        program.signal(signal.SIGKILL)
    elif way == "STOP, CONT, TERM":
        for which in (signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM):
            program.signal(which)
            time.sleep(0.05)
    else:
        for _ in range(2 if way.endswith("twice") else 1):
            program.signal(getattr(signal, f"SIG{way.split()[0]}"))
            time.sleep(0.02)


def _damage(rng: random.Random, folder: Path, damage: str) -> str | None:
    """Does it to one of the files that are there; its name."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        return None
    file = rng.choice(files)
    raw = file.read_bytes()
    if damage == "removed":
        file.unlink()
        return str(file.relative_to(folder))
    bit = rng.randrange(8 * len(raw)) if raw else 0
    changed = {
        "a bit": raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :] if raw else b"\x01",
        "half": raw[: len(raw) // 2],
        "zeros": bytes(len(raw)),
        "empty": b"",
        "garbage": rng.randbytes(len(raw)),
    }[damage]
    file.write_bytes(changed)
    return str(file.relative_to(folder))


def contents(folder: Path) -> dict[str, bytes]:
    """All that must be equal: file → bytes, without wall-clock."""
    found = {}
    for file in _compared(folder):
        raw = file.read_bytes()
        if file.name == "curve.jsonl":
            rows = [json.loads(line) for line in raw.splitlines()]
            raw = json.dumps([{key: row[key] for key in ("step", "losses")} for row in rows]).encode()
        found[str(file.relative_to(folder))] = raw
    return found


def _compared(folder: Path) -> Iterator[Path]:
    yield folder / "results.csv"
    for file in sorted(folder.glob("seed-*/**/*")):
        # What a rewind point cost is in rewind.json, in seconds too.
        if file.is_file() and file.name not in (*WALL_CLOCK, "rewind.json"):
            yield file


def _compare(case: Case, whole: dict[str, bytes], found: dict[str, bytes], hurt: str | None, said: str) -> None:
    # Once the dense level is complete nobody reads a rewind point again, and so nobody mends it. Nor is the curve of a
    # training in the making read by anything but figures: what it lost is lost, and no training is thrown away for it.
    place, _, name = (hurt or "").rpartition("/")
    unread = {hurt} if name.startswith("rewind.") else set()
    if name == "curve.jsonl" and place.endswith(".partial"):
        complete = re.sub(r"/[.](level-[^.]+)([.][0-9]+)?[.]partial$", r"/\1", place)
        unread = {f"{complete}/{name}"}
    differing = [name for name in {**whole, **found} if whole.get(name) != found.get(name) and name not in unread]
    assert not differing, f"{case}: {hurt} damaged, and others than undisturbed: {', '.join(differing)}\n{said}"

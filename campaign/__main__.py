"""Works through `list.yaml`, one run after another at the lowest priority, and keeps what each found.

    python -m campaign run --runs DIR [--into DIR] [--source mnist=FILE] [--source cifar10=FILE]
    python -m campaign pause --runs DIR        # until `resume`: for timings, say
    python -m campaign resume --runs DIR

Each run is a `gentickets find` of its own, which goes on from its last checkpoint: kill this at any moment and start
it again. A run that fails is told, and the next one begins. DIR lies outside any checkout; run from a checkout that
nobody works in, so that what is built meanwhile changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

HERE = Path(__file__).parent
CHECKOUT = HERE.parent
PROCESS = "campaign.json"
_LOWEST = 19


class Entry(NamedTuple):
    """One line of the list: a recipe, its budget, what is changed in it, and what the run is called."""

    recipe: str
    budget: str
    changes: tuple[str, ...]
    name: str


def entries(path: Path = HERE / "list.yaml") -> list[Entry]:
    """The campaign's runs, in order. The name is that of `name=…` among the changes, else the budget's own."""
    found = []
    for item in yaml.safe_load(path.read_text()):
        recipe, budget = item["recipe"], item.get("budget", "night")
        changes = tuple(item.get("changes", ()))
        told = [change.removeprefix("name=") for change in changes if change.startswith("name=")]
        keys = yaml.safe_load((CHECKOUT / recipe).read_text())
        found.append(Entry(recipe, budget, changes, told[0] if told else keys["budgets"][budget]["name"]))
    return found


def command(entry: Entry, runs: Path, sources: Mapping[str, str]) -> list[str]:
    """The command of one run: that of the docs, with the data where they lie here."""
    source = yaml.safe_load((CHECKOUT / entry.recipe).read_text())["data"]["source"]
    data = [f"data.source={sources[source]}"] if source in sources else []
    budget = ["--budget", entry.budget, "--runs", str(runs)]
    return [sys.executable, "-m", "gentickets", "find", entry.recipe, *budget, *data, *entry.changes]


def run(runs: Path, into: Path, sources: Mapping[str, str]) -> int:
    """Every run of the list that is not finished; 130 where one was stopped, 1 where one failed."""
    runs.mkdir(parents=True, exist_ok=True)
    os.nice(_LOWEST)
    _own_share_of_the_processor()
    (runs / PROCESS).write_text(json.dumps({"group": os.getpgrp(), "since": _started(os.getpid())}))
    failed = 0
    for entry in entries():
        done = runs / f"{entry.name}.done"
        if done.exists():
            continue
        _say(f"{entry.name}: {entry.recipe} --budget {entry.budget} {' '.join(entry.changes)}".rstrip())
        begun = time.monotonic()
        with (runs / f"{entry.name}.log").open("ab") as log:
            code = subprocess.run(
                command(entry, runs, sources), cwd=CHECKOUT, stdout=log, stderr=subprocess.STDOUT, check=False
            ).returncode
        _say(f"{entry.name}: ended with {code} after {(time.monotonic() - begun) / 60:.0f} minutes")
        if code == 130:
            return code
        if code:
            failed += 1
            continue
        from campaign.keeping import keep  # which loads torch: `pause` is to act at once

        keep(runs / entry.name, into, entry.name)
        done.write_text(_commit() + "\n")
    return 1 if failed else 0


def tell(runs: Path, which: signal.Signals) -> int:
    """Stops or continues the campaign that works in `runs`, with its trainings."""
    try:
        there: dict[str, Any] = json.loads((runs / PROCESS).read_text())
        if _started(there["group"]) != there["since"]:
            raise ProcessLookupError
        os.killpg(there["group"], which)
    except (OSError, ValueError, LookupError):
        print(f"no campaign works in {runs}", file=sys.stderr)
        return 2
    return 0


def _started(process: int) -> str:
    """When a process began, in the kernel's own count: a number that was given again is another process."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]


def _own_share_of_the_processor() -> None:
    """A session's processes share one weight under Linux's autogroup, whatever their nice values: lower that too."""
    autogroup = Path("/proc/self/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(_LOWEST))


def _commit() -> str:
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "no checkout"


def _say(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M"), text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m campaign", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "pause", "resume", "list"))
    parser.add_argument("--runs", type=Path, required=True, help="where the runs lie, outside any checkout")
    parser.add_argument("--into", type=Path, default=CHECKOUT / "docs" / "results", help="where finished tables go")
    parser.add_argument("--source", action="append", default=[], metavar="SET=FILE", help="data.source for a set")
    told = parser.parse_args()
    runs, into = told.runs.resolve(), told.into.resolve()
    if told.what == "run":
        return run(runs, into, dict(pair.split("=", 1) for pair in told.source))
    if told.what == "list":
        for entry in entries():
            print(f"{'done' if (runs / f'{entry.name}.done').exists() else '    '}  {entry.name}")
        return 0
    return tell(runs, signal.SIGSTOP if told.what == "pause" else signal.SIGCONT)


if __name__ == "__main__":
    sys.exit(main())

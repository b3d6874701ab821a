"""One table for the eye and one JSON document for later."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import steps
from benchmarks.contest import Benchmark, Contest
from benchmarks.pairs import Spread, Timing

_COLOUR = {"reached": "green", "missed": "red", "within spread": "yellow"}


def result(
    benchmark: Benchmark, contest: Contest, timings: Mapping[str, Timing], judged: bool = True
) -> dict[str, Any]:
    """What the JSON document says of one benchmark; its targets where the sizes are those that they are for."""
    rows = []
    for name, contender in contest.contenders.items():
        timing = timings[name]
        found = {key: Spread(value, value, value) for key, value in contender.figures.items()}
        found |= {"ratio": timing.ratio, "ms": timing.ms}
        targets = [
            {"of": key, "at_most": bound, "found": found[key].median, "verdict": found[key].verdict(bound)}
            for key, bound in contender.at_most.items()
            if judged
        ]
        figures = dict(contender.figures)
        rows.append({"name": name, **asdict(timing), "figures": figures, "targets": targets})
    return {"name": benchmark.name, "reference": contest.reference, "contenders": rows}


def machine() -> dict[str, Any]:
    """Where and on what the figures were taken."""
    return {
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if steps.device().type == "cuda" else None,
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout, with "+" where files differ from it; None outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def print_table(document: Mapping[str, Any]) -> None:
    """All benchmarks in one table; in a pipe it is as wide as it needs to be."""
    facts = document["machine"]
    console = Console()
    console = console if console.is_terminal else Console(width=180)
    title = (
        f"{facts['gpu'] or facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}, {facts['threads']} threads"
    )
    table = Table(title=f"{title}, {facts['date'][:10]}", title_justify="left")
    for name, side in {"": "left", "ratio": "right", "quartiles": "right", "ms": "right"}.items():
        table.add_column(name, justify=side, no_wrap=bool(name))  # type: ignore[arg-type]
    table.add_column("target")
    table.add_column("beside time")
    for each in document["benchmarks"]:
        table.add_section()
        table.add_row(f"[bold]{each['name']}[/bold]")
        for row in each["contenders"]:
            table.add_row(*_cells(row, row["name"] == each["reference"]))
    console.print(table)


def _cells(row: Mapping[str, Any], is_reference: bool) -> list[str]:
    ratio, ms = row["ratio"], row["ms"]["median"]
    targets = [
        f"{'' if t['of'] == 'ratio' else t['of'] + ' '}≤ {t['at_most']:g} [{_COLOUR[t['verdict']]}]{t['verdict']}[/]"
        for t in row["targets"]
    ]
    return [
        f"  {row['name']}",
        "1" if is_reference else f"{ratio['median']:.3g}",
        "" if is_reference else f"{ratio['q25']:.3g} – {ratio['q75']:.3g}",
        f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}",
        ", ".join(targets),
        ", ".join(f"{key} {_number(value)}" for key, value in row["figures"].items()),
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"

"""`python -m benchmarks.workers RECIPE [key=value …]`: a run on one worker and on two, for real, beside what `plan`
says.

Each worker is a process of its own (`gentickets work`), as in terminals or jobs of their own; the folder is prepared
before the clock runs, and the page is not written. What is planned goes by the steps that were measured just before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import report
from gentickets.files import replace_file


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="each number of workers so often, by turns (default: 3)")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    asked = parser.parse_args(arguments)
    rows = [row for _ in range(asked.rounds) for row in _round(asked.recipe, asked.overrides, asked.workers)]
    for row in rows:
        print(
            f"{row['workers']} workers: planned {row['planned']:.1f} s, took {row['took']:.1f} s "
            f"({row['took'] / row['planned']:.2f}); longest chain {row['longest']:.1f} s"
        )
    if asked.out is not None:
        command = ["python", "-m", "benchmarks.workers", str(asked.recipe), *asked.overrides]
        document = {"machine": report.machine(), "command": " ".join(command), "rows": rows}
        replace_file(asked.out, (json.dumps(document, indent=1) + "\n").encode())
    return 0


def _round(path: Path, overrides: list[str], counts: list[int]) -> list[dict[str, Any]]:
    begun = time.perf_counter()
    from gentickets.lab.recipe import read_recipe
    from gentickets.lab.run.prepare import prepared
    from gentickets.lab.run.scaling import longest, scaled
    from gentickets.lab.study.study import read_study  # noqa: F401  # as a command loads it

    loading = max(time.perf_counter() - begun, _loading())
    recipe = read_recipe(path, overrides)
    rows = []
    for count in counts:
        with TemporaryDirectory() as runs:
            ready = prepared(recipe, Path(runs) / recipe.name, loading_seconds=loading)
            assert ready.plan is not None
            planned = scaled([recipe], [ready.plan], count)[-1].schedule
            path_ = longest([recipe], [ready.plan])
            took = _timed(ready.folder, count)
        rows.append({
            "workers": count,
            "step_seconds": ready.plan.step_seconds,
            "evaluate_seconds": ready.plan.evaluate_seconds,
            "planned": planned.seconds,
            "planned_waiting": planned.idle,
            "longest": sum(span.end - span.start for span in path_),
            "took": took,
        })  # fmt: skip
    return rows


def _loading() -> float:
    """Seconds in which a fresh process loads the program."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import gentickets.lab.study.study, gentickets.lab.report"], check=True)
    return time.perf_counter() - begun


def _timed(folder: Path, workers: int) -> float:
    begun = time.perf_counter()
    command = [sys.executable, "-m", "gentickets", "work", str(folder)]
    crew = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(workers)]
    codes = [process.wait() for process in crew]
    assert not any(codes), f"a worker ended with {codes}"
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())

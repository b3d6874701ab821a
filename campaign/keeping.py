"""What the campaign keeps of a run or a study that has ended: its tables, for docs/results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gentickets.lab.results.reading import LevelResult, read_run
from gentickets.lab.results.tables import to_csv
from gentickets.lab.study.comparison import read_comparison


def keep(folder: Path, into: Path, name: str) -> None:
    """Copies what a run or a study measured: `NAME.csv`, `NAME-timings.csv`, and `NAME-networks.csv` with what each of
    several networks found of a metric that is their mean."""
    into.mkdir(parents=True, exist_ok=True)
    for file, suffix in (("results.csv", ""), ("study.csv", ""), ("timings.csv", "-timings")):
        if (folder / file).exists():
            (into / f"{name}{suffix}.csv").write_bytes((folder / file).read_bytes())
    if rows := list(_of_networks(folder)):
        (into / f"{name}-networks.csv").write_bytes(to_csv(list(rows[0]), rows))


def _of_networks(folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each network, metric and level; what names a level is as in the run's table, or the study's."""
    for place, result in _levels(folder):
        for key, metric in sorted(result.metrics.items()):
            for number, value in enumerate(metric.by_network or ()):
                yield place | {"metric": key, "network": number, "value": value}


def _levels(folder: Path) -> Iterator[tuple[dict[str, Any], LevelResult]]:
    if (folder / "study.csv").exists():
        for row in read_comparison(folder).rows:
            for result in row.results:
                yield {"arm": row.arm, "kind": row.kind, "level": row.level, "seed": result.seed}, result
    else:
        for result in read_run(folder).levels:
            yield {"seed": result.seed, "level": result.level, "arm": result.arm}, result

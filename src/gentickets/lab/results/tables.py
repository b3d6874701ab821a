"""The two tables of a run.

What was measured is in `results.csv`, which is equal byte for byte for equal runs. How long it took is in
`timings.csv`, which never is.
"""

from __future__ import annotations

import csv
import errno
import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gentickets.files import replace_file
from gentickets.lab.results.reading import Run


def write_csv(run: Run) -> Path:
    """Writes `results.csv` and, apart, `timings.csv` into the run's folder. Returns the path of the first.

    One row a level, in the order of `run.levels`. Floats are written so that reading gives the same float. Beside what
    several networks measured stands the spread over them. A folder that cannot be written, such as somebody else's, is
    left as it was, with a warning.
    """
    keys = sorted(run.metrics())
    heads = ["seed", "level", "arm", "status", "sparsity", "alive", "total", "start_step", "end_step"]
    place = heads[:3]
    rows = []
    for result in run.levels:
        row = {head: getattr(result, head) for head in heads}
        if result.validation is not None:
            row["early_stopping_step"] = result.validation.early_stopping_step
        for key, metric in result.metrics.items():
            row |= {key: metric.value, f"{key}_spread": metric.spread, f"{key}_samples": metric.samples}
        rows.append(row)
    heads += ["early_stopping_step"] if any(result.validation for result in run.levels) else []
    for key in keys:
        spread = [f"{key}_spread"] if any(row.get(f"{key}_spread") is not None for row in rows) else []
        heads += [key, *spread, f"{key}_samples"]
    tables = {"results.csv": to_csv(heads, rows)}
    clocks = ["find_seconds", "train_seconds", "evaluate_seconds", "images"]
    timed = [
        {head: getattr(r, head) for head in place} | {clock: getattr(r.timing, clock) for clock in clocks}
        for r in run.levels
        if r.timing is not None
    ]
    tables["timings.csv"] = to_csv(place + clocks, timed)
    try:
        for name, table in tables.items():
            replace_file(run.folder / name, table)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM, errno.EISDIR):
            raise
        warnings.warn(f"{run.folder / name} cannot be written ({error.strerror}): left as it was", stacklevel=2)
    return run.folder / "results.csv"


def to_csv(heads: list[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        cells = (row.get(head) for head in heads)
        writer.writerow(["" if c is None else repr(c) if isinstance(c, float) else c for c in cells])
    return text.getvalue().encode()

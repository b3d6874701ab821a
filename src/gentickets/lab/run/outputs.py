"""Files that a command is told to write: never one that a run keeps, nor the one that it is made from."""

from __future__ import annotations

import os
from pathlib import Path

from gentickets.errors import GenticketsError
from gentickets.lab.run.folder import is_ours
from gentickets.lab.run.publishing import SUMS

_MARKS = ("origin.json", "study.yaml")
"""One of these lies in every run's or study's folder."""
_OF_A_STUDY = ("study.yaml", "study.csv")


def check_output(file: Path, source: Path | None = None) -> None:
    """Raises `GenticketsError` where a file to be written is `source` itself, or would lie among those that a run
    keeps: what was computed would be lost."""
    if source is not None and file.exists() and source.exists() and file.samefile(source):
        raise GenticketsError(f"{file} is what is read: write another file, --out FILE")
    place = Path(os.path.realpath(file))
    if (place.parent / SUMS).exists() or _is_of_a_run(place):
        raise GenticketsError(
            f"{file} is among what a run keeps, of which no file may change: write it elsewhere, --out FILE"
        )


def _is_of_a_run(place: Path) -> bool:
    """Whether a run or a study keeps its own files in this place. What else lies beside these is the user's."""
    run = next((above for above in place.parents if any((above / mark).is_file() for mark in _MARKS)), None)
    if run is None:
        return False
    entry = run / place.relative_to(run).parts[0]
    return is_ours(entry) or entry.name in _OF_A_STUDY

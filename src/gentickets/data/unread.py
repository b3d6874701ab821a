"""What lies beside that which is read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from gentickets.data.damage import shown
from gentickets.data.sources import few


def files_beside(path: Path, suffixes: Collection[str]) -> tuple[str, ...]:
    """A phrase on the other files of these suffixes in the folder of `path`."""
    kinds = tuple(suffixes)
    others = sorted(
        entry.name
        for entry in path.parent.iterdir()
        if entry.name != path.name and entry.name.lower().endswith(kinds) and not entry.name.startswith(".")
    )
    return (f"files beside it ({few(map(shown, others))})",) if others else ()


def beside(folder: Path, read: Path, known: Collection[str] = ()) -> tuple[str, ...]:
    """A phrase on what `folder` has beside the folder `read` at or below it, hidden and `known` names apart."""
    if read == folder:
        return ()
    first = read.relative_to(folder).parts[0]
    others = sorted(
        entry.name for entry in folder.iterdir() if entry.name not in (first, *known) and not entry.name.startswith(".")
    )
    return (f"what lies beside the folder {shown(first)} ({few(map(shown, others))})",) if others else ()

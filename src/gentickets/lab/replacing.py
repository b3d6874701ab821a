"""Files of a run that are replaced together: all of them or none, whenever the command is stopped.

    RUN/.replacing    what some files are to hold, from the moment that all of it is known until all of it is in place

Whoever writes a run next ends what was stopped; whoever reads one refuses it meanwhile, for it would be half and half.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from gentickets.errors import RecipeError
from gentickets.files import read_file, replace_file
from gentickets.sealed import Damaged, sealed_json, unsealed_json

T = TypeVar("T")

RECORD = ".replacing"

_REPLACED = re.compile(r"recipe\.yaml|origin\.json|seed-\d{1,18}/level-\w{2,5}(-\w+)?/metrics\.json")
"""What a record may name: it may be a stranger's."""

_MOST_BYTES = 2**28


def replace_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replaces text files of a run's folder, by their place in it; `results.csv` goes where it rests on them.

    Under the folder's lock. Wherever this ends, all are as they were, or `finish` makes all of them new.
    """
    replace_file(folder / RECORD, sealed_json({"files": {name: content.decode() for name, content in files.items()}}))
    finish(folder)


def finish(folder: Path) -> None:
    """Ends a replacing that was stopped, where one was; under the folder's lock. Raises `RecipeError` for a record that
    is none."""
    if not (folder / RECORD).exists():
        return
    files = _recorded(folder / RECORD)
    for name, content in files.items():
        if (folder / name).parent.is_dir():  # else the level was dropped since
            replace_file(folder / name, content.encode())
    if any(name.endswith("metrics.json") for name in files):
        with suppress(OSError):
            (folder / "results.csv").unlink()
    (folder / RECORD).unlink()


def check_settled(folder: Path) -> None:
    """Raises `RecipeError` where a replacing was begun and has not ended."""
    if (folder / RECORD).exists():
        raise RecipeError(
            f"{folder} is being judged anew or moved, or that was stopped while it was written: wait for it, or end it "
            f"with `gentickets work {folder}`"
        )


def read_settled(folder: Path, read: Callable[[], T]) -> T:
    """What `read` makes of files that are replaced together. Where it refuses them they are read once more: they may
    have been replaced between the one and the other. Raises `RecipeError` as `check_settled` does, and as it."""
    check_settled(folder)
    try:
        return read()
    except RecipeError:
        check_settled(folder)
        return read()


def _recorded(path: Path) -> dict[str, str]:
    try:
        record: Any = unsealed_json(read_file(path, _MOST_BYTES))
    except (OSError, Damaged) as error:
        raise RecipeError(f"{path} cannot be read ({error}): remove it, and run `gentickets evaluate` again") from None
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict) or not all(isinstance(content, str) for content in files.values()):
        raise RecipeError(f"{path} names no files: remove it, and run `gentickets evaluate` again")
    for name in files:
        if _REPLACED.fullmatch(name) is None or _leads_out(path.parent, name):
            raise RecipeError(f"{path} names {name[:80]!r}, which is no file of a run that is replaced: remove it")
    return files


def _leads_out(folder: Path, name: str) -> bool:
    return any((folder / above).is_symlink() for above in list(Path(name).parents)[:-1])

"""From the word that a recipe says to the source that it means."""

from __future__ import annotations

import re
from pathlib import Path

from gentickets.data import digits, folders, hub, parquet
from gentickets.data.sources import Source
from gentickets.errors import DataError


def find(source: str, split: str, test: str | None) -> Source:
    """The source that `source` names: a set built in, a hub id, a `.parquet` file, a folder of images.

    `test` names another file or folder that holds the test split. Raises `DataError` where there is none.
    """
    path = Path(source).expanduser()
    built_in = source == "digits" or source in hub.SHORT_NAMES
    if test is not None and (built_in or not path.exists()):
        raise DataError(f"test: {test} goes with a local file or folder, and {source!r} is none: leave test out")
    if test is not None and not Path(test).expanduser().exists():
        raise DataError(f"test: {test} does not exist: name a .parquet file or a folder of images")
    if built_in:
        return digits.find(split) if source == "digits" else hub.find(source, split)
    held_out = Path(test).expanduser() if test is not None else None
    try:
        if split == "test" and held_out is not None and held_out.is_dir() != path.is_dir():
            return _of_another_kind(path, held_out)
        if path.is_dir():
            return folders.find(path, split, test)
        if path.is_file():
            return parquet.find(path, split, test)
    except OSError as error:
        raise DataError(f"source: {source} cannot be read ({error.strerror}): check its permissions") from error
    if not source.endswith(".parquet") and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return hub.find(source, split)
    known = ", ".join(("digits", *hub.SHORT_NAMES))
    raise DataError(
        f"source: {source!r} does not exist: name a .parquet file, a folder of images, a hub id, or one of {known}"
    )


def _of_another_kind(path: Path, held_out: Path) -> Source:
    """A test split that is a folder where the training one is a file, or the other way round."""
    if held_out.is_dir():
        return folders.whole(held_out, parquet.name_of(path))
    return parquet.whole(held_out, folders.name_of(path))

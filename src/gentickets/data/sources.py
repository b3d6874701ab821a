"""Where images come from. A source says who it is at once, and reads only where the cache has nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gentickets.data.decoding import Example
from gentickets.errors import DataError

CELEBA_CROP = 148
"""The side of the centre crop that the field takes from CelebA's aligned 178x218 images."""

LABEL_COLUMNS = ("label", "labels", "fine_label")
IMAGE_COLUMNS = ("img", "image")


@dataclass(frozen=True)
class Rows:
    """The examples of an opened source, in order, and how many there are."""

    count: int
    examples: Iterable[Example]
    hold_out: bool = False  # True: the source has no test split of its own, and these rows are all it has


@dataclass(frozen=True)
class Source:
    """One split of an image set. `identity` is everything about the source that decides its content."""

    name: str
    identity: Mapping[str, Any]
    read: Callable[[], Rows]
    crop: int | None = None


def find(source: str, split: str, test: str | None) -> Source:
    """The source that `source` names: a set built in, a hub id, a `.parquet` file, a folder of images.

    `test` names another file or folder that holds the test split. Raises `DataError` where there is none.
    """
    from gentickets.data import folders, hub, parquet

    path = Path(source).expanduser()
    built_in = source == "digits" or source in hub.SHORT_NAMES
    if test is not None and (built_in or not path.exists()):
        raise DataError(f"test: {test} goes with a local file or folder, and {source!r} is none: leave test out")
    if test is not None and not Path(test).expanduser().exists():
        raise DataError(f"test: {test} does not exist: name a .parquet file or a folder of images")
    if built_in:
        return _digits(split) if source == "digits" else hub.find(source, split)
    try:
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


def file_identity(path: Path) -> dict[str, Any]:
    """What tells one state of a file from another without reading it."""
    state = path.stat()
    return {"path": str(path.resolve()), "bytes": state.st_size, "modified": state.st_mtime_ns}


def _digits(split: str) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, a fifth of each class held out."""

    def read() -> Rows:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        labels = bunch.target.astype(np.int64)
        rows = np.flatnonzero(_held_out_by_class(labels) == (split == "test"))
        return Rows(len(rows), [Example(f"digit {row}", pixels[row], int(labels[row])) for row in rows])

    return Source("digits", {"set": "digits"}, read)


def _held_out_by_class(labels: np.ndarray) -> np.ndarray:
    """A bool a label: True for a fifth of each class, drawn by a fixed seed."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = np.random.Generator(np.random.PCG64([0, int(label)])).permutation(len(rows))
        held[rows[order[: round(len(rows) / 5)]]] = True
    return held

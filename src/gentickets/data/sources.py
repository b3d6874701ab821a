"""What a source of images is: it says who it is at once, and reads only where the cache has nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentickets.data.decoding import Example

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


def file_identity(path: Path) -> dict[str, Any]:
    """What tells one state of a file from another without reading it."""
    state = path.stat()
    return {"path": str(path.resolve()), "bytes": state.st_size, "modified": state.st_mtime_ns}

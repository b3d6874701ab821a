"""CelebA as its authors publish it: aligned images, and a file that says which split each is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gentickets.data.decoding import Example
from gentickets.data.sources import CELEBA_CROP, Opened, Rows, Source, file_identity, listing
from gentickets.errors import DataError

WHAT = "CelebA's folder"

_IMAGES = "img_align_celeba"
_PARTITION = "list_eval_partition.txt"


def holds(path: Path) -> bool:
    root = _root(path)
    return (root / _PARTITION).is_file() and (root / _IMAGES).is_dir()


def find(path: Path) -> Source:
    """The training and the test part of the partition file."""
    root = _root(path)
    partition = root / _PARTITION
    lines = [line.split() for line in partition.read_text("utf-8-sig").splitlines() if line.strip()]
    if any(len(line) != 2 for line in lines):
        raise DataError(f"source: {partition} is no CelebA partition file: each line is an image's name and 0, 1 or 2")
    parts = {wanted: [root / _IMAGES / name for name, part in lines if part == wanted] for wanted in "012"}
    for wanted, split in (("0", "train"), ("2", "test")):
        if not parts[wanted]:
            raise DataError(f"source: {partition} names no image of partition {wanted} ({split}): get the whole file")
    identity = {"partition": file_identity(partition), "files": listing([*parts["0"], *parts["2"]])}
    left_out = (f"partition 1 ({len(parts['1']):,} images)",) if parts["1"] else ()

    def opened() -> Opened:
        return Opened(_rows(parts["0"]), _rows(parts["2"]), f"partition 2 of {_PARTITION}", left_out=left_out)

    return Source("celeba", identity, opened, crop=CELEBA_CROP)


def whole(path: Path) -> Source:
    raise DataError(f"test: {path} is CelebA, which has splits of its own: name a folder of images")


def _root(path: Path) -> Path:
    return path.resolve().parent if path.resolve().name == _IMAGES else path


def _rows(files: list[Path]) -> Rows:
    def examples() -> Iterator[Example]:
        return (Example(str(file), file, None) for file in files)

    return Rows(len(files), examples, "CelebA's attributes are not read")

"""A folder of image files: split and class sub-folders, and CelebA's own layout."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gentickets.data.decoding import Example
from gentickets.data.sources import CELEBA_CROP, Rows, Source, file_identity
from gentickets.errors import DataError

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_TEST_FOLDERS = ("test", "val")
_CELEBA_IMAGES = "img_align_celeba"
_CELEBA_PARTITION = "list_eval_partition.txt"


def find(path: Path, split: str, test: str | None) -> Source:
    """The images of `path`: of `test`, a sub-folder, a partition file's part, or all, a part held out."""
    name = name_of(path)
    celeba = path.resolve().parent if name == _CELEBA_IMAGES else path
    if (celeba / _CELEBA_PARTITION).is_file() and (celeba / _CELEBA_IMAGES).is_dir():
        return _celeba(celeba, split)
    train = path / "train" if (path / "train").is_dir() else path
    own = next((path / sub for sub in _TEST_FOLDERS if train != path and (path / sub).is_dir()), None)
    held = Path(test).expanduser() if test is not None else own
    both = [train] if held is None or held.is_file() else [train, held]
    chosen = train if split == "train" or held is None else held
    return whole(chosen, name, classes_in=both, hold_out=held is None)


def name_of(path: Path) -> str:
    """What a set in this folder is called."""
    return path.resolve().name


def whole(path: Path, name: str, classes_in: list[Path] | None = None, hold_out: bool = False) -> Source:
    """All images under `path`. Its sub-folders, where every image lies in one, are classes.

    Classes are numbered over the sub-folders of all of `classes_in`, so that two splits agree.
    """
    files = _image_files(path)
    if not files:
        raise DataError(f"source: {path} has no images ({', '.join(sorted(_SUFFIXES))}) in it or below: name another")
    numbers = _class_numbers(classes_in or [path])
    labels: list[int | None] = [numbers.get(file.relative_to(path).parts[0]) for file in files]
    if len(numbers) < 2 or None in labels:
        labels = [None] * len(files)
    identity = {
        "folder": str(path.resolve()),
        "files": _listing(files),
        "classes": numbers,
        "hold_out": hold_out,
    }

    def read() -> Rows:
        examples = (Example(str(file), file, label) for file, label in zip(files, labels, strict=True))
        return Rows(len(files), examples, hold_out)

    return Source(name, identity, read)


def _image_files(path: Path) -> list[Path]:
    """In a fixed order. Hidden files (such as the `._*` that macOS leaves in archives) are none."""
    found = []
    for folder, below, names in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        inside = Path(folder)
        found += [inside / n for n in names if not n.startswith(".") and Path(n).suffix.lower() in _SUFFIXES]
    return sorted(found)


def _class_numbers(roots: list[Path]) -> dict[str, int]:
    names = {sub.name for root in roots for sub in root.iterdir() if sub.is_dir() and not sub.name.startswith(".")}
    return {name: number for number, name in enumerate(sorted(names))}


def _listing(files: list[Path]) -> str:
    """A hash of every file's path, size and time of change."""
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _celeba(root: Path, split: str) -> Source:
    """CelebA as its authors publish it: aligned images, and a file that says which split each is in."""
    partition = root / _CELEBA_PARTITION
    wanted = "0" if split == "train" else "2"
    lines = [line.split() for line in partition.read_text().splitlines() if line.strip()]
    if any(len(line) != 2 for line in lines):
        raise DataError(f"source: {partition} is no CelebA partition file: each line is an image's name and 0, 1 or 2")
    files = [root / _CELEBA_IMAGES / name for name, part in lines if part == wanted]
    if not files:
        raise DataError(f"source: {partition} names no image of partition {wanted} ({split}): get the whole file")

    def read() -> Rows:
        return Rows(len(files), (Example(str(file), file, None) for file in files))

    # Not a stat for each of 200,000 files: the folder's own state tells of an added or a removed one.
    folder = file_identity(root / _CELEBA_IMAGES)
    return Source("celeba", {"partition": file_identity(partition), "folder": folder}, read, crop=CELEBA_CROP)

"""CelebA as its authors publish it, and as Kaggle packs it anew: the published split, and the crop of the field."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from gentickets.data.damage import shown, told
from gentickets.data.decoding import Example
from gentickets.data.sources import CELEBA_CROP, Opened, Rows, Source, file_identity
from gentickets.data.unread import beside
from gentickets.errors import DataError

WHAT = "CelebA's folder"
NAME, CROP = "celeba", CELEBA_CROP

FOLDERS = ("img_align_celeba", "img_align_celeba_png")
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
# Where the authors' own download has them.
_WITHIN, _EVAL = ("", "Img", "celeba", "CelebA", "celebA"), "Eval"
UNLABELLED = "CelebA has attributes, and no classes"
_SUFFIXES = (".jpg", ".jpeg", ".png")
# The published split is by number: the first image of validation, the first of test, and how many there are.
_VALIDATION_FROM, _TEST_FROM, _COUNT = 162_771, 182_638, 202_599
_PUBLISHED = re.compile(r"\d{6}")
# What else comes with it.
_KNOWN = (
    "Anno", "Eval", "Img", "README.txt", "identity_CelebA.txt", "list_attr_celeba.txt", "list_attr_celeba.csv",
    "list_bbox_celeba.txt", "list_bbox_celeba.csv", "list_landmarks_align_celeba.txt", "list_landmarks_celeba.txt",
    "list_landmarks_align_celeba.csv", "img_align_celeba.zip", "img_align_celeba_png.7z", "img_celeba.7z",
)  # fmt: skip
_LARGEST_PARTITION = 64 * 2**20


class Arranged(NamedTuple):
    """The images of both splits, by what stands for them, and what is told."""

    train: list[str]
    test: list[str]
    held_out: str
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def holds(path: Path) -> bool:
    """The folder of images, or one around it."""
    return path.is_dir() and _images_folder(path) is not None


def find(path: Path) -> Source:
    """The training part, the test part held out."""
    folder = _images_folder(path)
    assert folder is not None
    partition = _partition_file(folder)
    names, states = _listed(folder)
    unread = beside(path, folder, PARTITIONS + _KNOWN)
    identity = {"celeba": str(folder.resolve()), "states": states, "told": " ".join(unread)}
    if partition is not None:
        identity["partition"] = str(file_identity(partition))

    def read() -> Opened:
        found = arranged(names, _text(partition) if partition else None, str(folder))
        train, test = (_rows([folder / name for name in part]) for part in (found.train, found.test))
        return Opened(train, test, found.held_out, None, (*found.left_out, *unread), found.notes)

    return Source(NAME, identity, read, crop=CROP)


def whole(path: Path) -> Source:
    """Never: CelebA has splits of its own."""
    raise DataError(f"test: {shown(path)} is CelebA, which has a split of its own: leave test out, or name a folder")


def layout(names: Iterable[PurePath]) -> tuple[dict[str, PurePath], PurePath | None] | None:
    """Of the names in an archive: file name → image, and the partition file; or None where it is no CelebA."""
    images, partitions = {}, []
    for name in names:
        if name.parent.name in FOLDERS and name.suffix.lower() in _SUFFIXES and not name.name.startswith("."):
            images[name.name] = name
        elif name.name in PARTITIONS:
            partitions.append(name)
    if not images:
        return None
    return images, min(partitions, key=lambda name: (PARTITIONS.index(name.name), name), default=None)


def arranged(names: Sequence[str], partition: str | None, where: str) -> Arranged:
    """Sorts the files called `names` into splits, by the text of the partition file or the published numbers.

    Raises `DataError` where that leaves a split without images.
    """
    by_stem = {name.rpartition(".")[0]: name for name in names}
    if partition is None:
        parts, notes = _by_number(by_stem, where), ["split by the published image numbers: no partition file is there"]
    else:
        parts, notes = _by_file(partition, where), []
        absent = sum(stem not in by_stem for stem in parts)
        if absent:
            notes.append(f"{absent:,} images that the partition file names are not there")
    split: dict[str, list[str]] = {"0": [], "1": [], "2": []}
    for stem in sorted(by_stem):
        if stem in parts:
            split[parts[stem]].append(by_stem[stem])
    for part, what in (("0", "train"), ("2", "test")):
        if not split[part]:
            raise DataError(
                f"source: {shown(where)} has no image of CelebA's partition {part} ({what}): get the whole set"
            )
    left_out = [f"partition 1 (validation, {len(split['1']):,} images)"] if split["1"] else []
    if others := len(by_stem) - sum(map(len, split.values())):
        left_out.append(f"{others:,} images that the partition file does not name")
    return Arranged(split["0"], split["2"], "partition 2 of CelebA", tuple(left_out), tuple(notes))


def _by_file(text: str, where: str) -> dict[str, str]:
    """Image's name without suffix → "0", "1" or "2", from lines `000001.jpg 0` or `000001.jpg,0`."""
    parts = {}
    for line in text.removeprefix("\ufeff").splitlines():
        words = line.replace(",", " ").split()
        if not words or words == ["image_id", "partition"]:
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise DataError(
                f"source: {shown(where)} has no CelebA partition file beside it: a line of it is {shown(line)[:60]!r}, "
                f"not an image's name and 0, 1 or 2"
            )
        parts[words[0].rpartition(".")[0]] = words[1]
    return parts


def _by_number(stems: Iterable[str], where: str) -> dict[str, str]:
    parts = {}
    for stem in stems:
        number = int(stem) if _PUBLISHED.fullmatch(stem) and stem.isascii() else 0
        if not 1 <= number <= _COUNT:
            raise DataError(
                f"source: {shown(where)} is named like CelebA's, has no {' or '.join(PARTITIONS)} beside it, "
                f"and has an image {shown(stem)!r}: get that file, or rename the folder"
            )
        parts[stem] = "0" if number < _VALIDATION_FROM else "1" if number < _TEST_FROM else "2"
    return parts


def _images_folder(path: Path) -> Path | None:
    """The folder of images that is meant: in Kaggle's download it lies in one of the same name."""
    around = [path] if path.resolve().name in FOLDERS else []
    around += [path / within / name for within in _WITHIN for name in FOLDERS]
    for folder in around:
        if folder.is_dir():
            return next((folder / name for name in FOLDERS if (folder / name).is_dir()), folder)
    return None


def _partition_file(folder: Path) -> Path | None:
    above = folder.resolve()
    for place in (above, *above.parents[:2]):
        for within in ("", _EVAL):
            for name in PARTITIONS:
                if (place / within / name).is_file():
                    return place / within / name
    return None


def _listed(folder: Path) -> tuple[list[str], str]:
    """The names of the images in a folder, sorted, and a hash of their states: a second for the 200,000 of CelebA."""
    states = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".") and entry.is_file():
                state = entry.stat()
                states[entry.name] = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    if not states:
        suffixes = ", ".join(_SUFFIXES)
        raise DataError(f"source: {shown(folder)} has no images ({suffixes}): get CelebA's img_align_celeba.zip")
    names = sorted(states)
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + repr(states[name]).encode())
    return names, digest.hexdigest()


def _text(partition: Path) -> str:
    with told(partition, "CelebA partition file"):
        if partition.stat().st_size > _LARGEST_PARTITION:
            raise ValueError("it is too large")
        return partition.read_text(encoding="utf-8-sig")


def _rows(files: Sequence[Path]) -> Rows:
    def examples() -> Iterator[Example]:
        return (Example(shown(file), file, None) for file in files)

    return Rows(len(files), examples, UNLABELLED)

"""Which parquet files are one set, of which splits, and which of several shards each is: by their names alone."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gentickets.data.damage import shown
from gentickets.data.folders import suffixes
from gentickets.data.sources import few, split_of
from gentickets.errors import DataError

SUFFIX = ".parquet"
# "train-00000-of-00003", "train-00000-of-00003-0123456789abcdef".
_SHARD = re.compile(r"(?P<stem>.*?)[-_.]?(?P<number>\d+)-of-(?P<of>\d+)(-[0-9a-f]{8,})?")
_NUMBERED = re.compile(r"(?P<stem>.*?)[-_.]?(?P<number>\d+)")


class Name(NamedTuple):
    """What a file's name says: of which set it is, of which split, and which shard of how many."""

    of_set: tuple[str, ...]
    split: str | None
    word: str
    shard: int | None
    shards: int | None


def shards_of(path: Path) -> list[Path]:
    """A file, and where its name says that it is one shard of several, the others."""
    mine = named(path, path.parent)
    if mine.shards is None:
        return [path]
    return [path] + [file for file in beside(path) if _same_set(mine, named(file, path.parent))]


def set_of(path: Path) -> list[Path]:
    """A file with the other shards of its split, and where it is for training the files of the other splits."""
    mine = named(path, path.parent)
    others = [(file, named(file, path.parent)) for file in beside(path)] if mine.split == "train" else []
    held = [file for file, other in others if other.split in ("test", "validation") and other.of_set == mine.of_set]
    return shards_of(path) + held


def beside(path: Path) -> list[Path]:
    """The other files of its folder."""
    return [
        file
        for file in sorted(path.parent.iterdir())
        if file.suffix.lower() == SUFFIX and file.name != path.name and file.is_file()
    ]


def below(path: Path) -> list[Path]:
    """The files of a folder and of the folders in it, two deep: the hub's `data/`, and `default/train/`. None where
    there are images too."""
    found: list[Path] = []
    for folder, below, names in os.walk(path):
        deep = len(Path(folder).relative_to(path).parts)
        below[:] = sorted(name for name in below if not name.startswith(".")) if deep < 2 else []
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in suffixes():
                return []
            if suffix == SUFFIX and os.path.isfile(os.path.join(folder, name)):
                found.append(Path(folder, name))
    return sorted(found)


def named(file: Path, base: Path) -> Name:
    """What the name of `file` says, and where that says no split its folder's, below `base`."""
    stem, shard, shards = file.stem, None, None
    match = _SHARD.fullmatch(stem)
    if match:
        stem, shard, shards = match["stem"], int(match["number"]), int(match["of"])
    elif match := _NUMBERED.fullmatch(stem):
        stem, shard = match["stem"], int(match["number"])
    words = [word for word in re.split(r"[-_. ]+", stem) if word]
    folders = list(file.relative_to(base).parts[:-1]) if file.is_relative_to(base) else []
    for at, word in enumerate(words):
        if (split := split_of(word)) is not None:
            return Name((*folders, *words[:at], *words[at + 1 :]), split, word, shard, shards)
    if folders and (split := split_of(folders[-1])) is not None:
        return Name((*folders[:-1], *words), split, folders[-1], shard, shards)
    return Name((*folders, *words), None, "", shard, shards)


def _same_set(mine: Name, other: Name) -> bool:
    return (mine.of_set, mine.split) == (other.of_set, other.split) and other.shards is not None


def by_split(names: dict[Path, Name], base: Path, asked: Path | None) -> dict[str, list[Path]]:
    """Files by their split: "train", "test", "validation", and "" where nothing says which.

    Where nothing does of any, or one file was `asked` for and lies alone, all is train.
    Raises `DataError` where none is.
    """
    sets = {name.of_set for name in names.values() if name.split is not None}
    if len(sets) > 1:
        words = ", ".join(sorted("-".join(one) or "''" for one in sets))
        raise DataError(f"source: {shown(base)} has the shards of {len(sets)} sets ({shown(words)}): name one of them")
    splits: dict[str, list[Path]] = {}
    for file, name in names.items():
        splits.setdefault(name.split or "", []).append(file)
    if len(splits) == 1 and (asked is not None or "" in splits):
        return {"train": next(iter(splits.values()))}
    if "train" not in splits:
        words = ", ".join(shown(names[files[0]].word or files[0].name) for files in splits.values())
        raise DataError(f"source: {shown(base)} has {words} and no train split: name the file to train on")
    return splits


def of_no_split(files: Sequence[Path]) -> str:
    """Files of which nothing says what they are for, in words."""
    return f"{count(files)} of no split ({few(shown(file.name) for file in files)})"


def count(files: Sequence[Path]) -> str:
    """How many, in words."""
    return f"{len(files)} file{'s' if len(files) != 1 else ''}"


def ordered(files: Sequence[Path], base: Path) -> list[Path]:
    """In the order of their numbers. Raises `DataError` where one is missing, or the numbers are of two sets."""
    names = {file: named(file, base) for file in files}
    in_order = sorted(files, key=lambda file: (file.parent, names[file].of_set, names[file].shard or 0, file.name))
    alike = sorted(file.name for file, name in names.items() if name.split and name.shard is None)
    if len(alike) > 1:
        raise DataError(f"source: {shown(base)} has {' and '.join(map(shown, alike))}: keep one of them, or name it")
    if files:
        _check_complete(names)
    return in_order


def _check_complete(names: dict[Path, Name]) -> None:
    """Raises `DataError` where files that are numbered "of so many" are not all of them."""
    first, last = min(names), max(names)
    totals = {name.shards for name in names.values()}
    if len(totals) > 1:
        raise DataError(
            f"source: {shown(first.parent)} has {shown(first.name)} beside {shown(last.name)}, of another number of "
            f"shards: keep one of the two"
        )
    if (total := totals.pop()) is None:
        return
    numbers = [name.shard for name in names.values()]
    there = set(numbers)
    if len(there) < len(numbers):
        raise DataError(f"source: {shown(first.parent)} has a shard of {total} twice, as {shown(first.name)}: keep one")
    lacking = [number for number in range(min(total, 100_000)) if number not in there]
    if lacking or len(there) != total:
        words = ", ".join(f"{number:05}-of-{total:05}" for number in lacking[:4]) + " …" * (len(lacking) > 4)
        raise DataError(
            f"source: {shown(first.parent)} has {len(there)} of the {total} shards of "
            f"{names[first].word or shown(first.name)}, not {words}: get the others"
        )

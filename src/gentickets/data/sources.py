"""What a source of images is: it says who it is at once, and reads only where the cache has nothing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gentickets.data.decoding import Example

CELEBA_CROP = 148
"""The side of the centre crop that the field takes from CelebA's aligned 178x218 images."""

LABEL_COLUMNS = ("label", "labels", "fine_label")
IMAGE_COLUMNS = ("img", "image")

Split = Literal["train", "test", "validation"]

_SPLIT_WORDS: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}  # fmt: skip
# What stands beside such a word in a name and changes nothing: training_set, test-images, val2017, trainA.
_NOISE = {"set", "split", "data", "image", "images", "img", "imgs", "a", "b", "hr", "lr"}


@dataclass(frozen=True)
class Rows:
    """The images of one split, in order, and how many there are.

    `examples` reads them anew at each call. `unlabelled`: why they have no labels, where that is known.
    """

    count: int
    examples: Callable[[], Iterable[Example]]
    unlabelled: str | None = None


@dataclass(frozen=True)
class Opened:
    """A source that has been opened: its splits, and what is to be told of it, in words.

    `test`: None where it holds nothing out of its own. `held_out`: which part of it `test` is. `classes`: the names
    of labels 0, 1, …, where they stand for names. `left_out`: what was not read, and why; `notes`: what else was
    decided.
    """

    train: Rows
    test: Rows | None = None
    held_out: str = ""
    classes: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """An image set. `identity` is everything about the source that decides its content."""

    name: str
    identity: Mapping[str, Any]
    read: Callable[[], Opened]
    crop: int | None = None


def split_of(name: str) -> Split | None:
    """Which split a folder's, a file's or a hub's name says, in whatever case: `Train`, `testing`, `val2017`."""
    found = {_SPLIT_WORDS.get(word) for word in _words(name) if word not in _NOISE}
    return found.pop() if len(found) == 1 else None


def splits_in(name: str) -> set[Split]:
    """The splits that a name speaks of, beside whatever else: `DIV2K_train_HR`."""
    return {_SPLIT_WORDS[word] for word in _words(name) if word in _SPLIT_WORDS}


def splits_among(names: Collection[str]) -> dict[str, Split]:
    """The names that say a split: by themselves, or beside others that differ in it alone (`seg_train`, `seg_test`)."""
    named = {name: split for name in names if (split := split_of(name)) is not None}
    alike: dict[tuple[str, ...], dict[str, Split]] = {}
    for name in names:
        if name not in named and len(said := splits_in(name)) == 1:
            rest = tuple(word for word in _words(name) if word not in _SPLIT_WORDS)
            alike.setdefault(rest, {})[name] = said.pop()
    for group in alike.values():
        if "train" in group.values() and len(set(group.values())) > 1:
            named |= group
    return named


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+", name)]


def few(names: Iterable[str]) -> str:
    """The first of the names, and how many more there are."""
    all_names = list(names)
    return " and ".join([*all_names[:1], *([f"{len(all_names) - 1:,} more"] if len(all_names) > 1 else [])])


def joined(source: Source, test: Source, named: str) -> Source:
    """`source`, with the images of `test` (called `named` by the user) held out in place of any of its own.

    Classes are matched by their names.
    """

    def read() -> Opened:
        ours, theirs = source.read(), test.read()
        left_out = [*ours.left_out, *theirs.left_out]
        if ours.test is not None:
            left_out.append(f"{ours.held_out} ({ours.test.count:,} images): another test set is named")
        rows, classes = theirs.train, ours.classes
        train = ours.train
        if ours.classes is not None and theirs.classes is not None:
            classes = tuple(sorted({*ours.classes, *theirs.classes}))
            train, rows = (
                _renumbered(part, of, classes) for part, of in ((train, ours.classes), (rows, theirs.classes))
            )
        elif ours.classes is not None or theirs.classes is not None:
            rows = _unlabelled(rows, "its classes have names in one of the two sources and numbers in the other")
        notes = tuple(dict.fromkeys((*ours.notes, *theirs.notes)))
        return Opened(train, rows, named, classes, tuple(left_out), notes)

    return replace(source, identity={"train": source.identity, "test": test.identity}, read=read)


def _renumbered(rows: Rows, old: tuple[str, ...], new: tuple[str, ...]) -> Rows:
    number = {before: new.index(name) for before, name in enumerate(old)}

    def examples() -> Iterator[Example]:
        for example in rows.examples():
            yield example._replace(label=None if example.label is None else number[example.label])

    return replace(rows, examples=examples)


def _unlabelled(rows: Rows, why: str) -> Rows:
    return replace(rows, examples=lambda: (example._replace(label=None) for example in rows.examples()), unlabelled=why)


def file_identity(path: Path) -> dict[str, Any]:
    """What tells one state of a file from another without reading it."""
    return {"path": str(path.resolve()), "state": _state(path)}


def listing(files: Iterable[Path]) -> str:
    """A hash of the path and the state of every file."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(file) + f"\0{_state(file)}\n".encode())
    return digest.hexdigest()


def _state(path: Path) -> list[int]:
    # The time of change too: an editor that keeps size and time of modification cannot keep that one.
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]

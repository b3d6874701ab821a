"""What is in a source, found once from all of its images, both splits: whatever is decided of a set is decided here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gentickets.data.decoding import Example, is_grey
from gentickets.data.sources import Opened, Rows, few
from gentickets.data.streams import chunks, with_progress
from gentickets.errors import DataError

HOLD_OUT = 0.1
"""Of a set without held-out images of its own, so many are drawn."""

_AT_ONCE = 512


@dataclass(frozen=True)
class Labels:
    """The labels of one split: the distinct ones, ascending; or None and the reason why it has none."""

    values: Sequence[int] | None
    reason: str | None = None


@dataclass(frozen=True)
class Survey:
    """What a source holds. `test`: how many images it holds out itself, None where it has none such.

    `grey` and `colour`: how many images of both splits have one channel, and how many have more. The rest is as in
    `sources.Opened`.
    """

    train: int
    test: int | None
    grey: int
    colour: int
    labels: Labels
    test_labels: Labels | None
    held_out: str
    classes: Sequence[str] | None
    left_out: Sequence[str]
    notes: Sequence[str]

    @property
    def held(self) -> int:
        """How many images are held out: the source's own, or a part of its only ones."""
        return self.test if self.test is not None else round(self.train * HOLD_OUT)

    @property
    def trained_on(self) -> int:
        """How many images there are to train on."""
        return self.train if self.test is not None else self.train - self.held

    @property
    def channels(self) -> int:
        """3 as soon as one image has colour: nothing is lost."""
        return 3 if self.colour else 1

    def labels_of(self, split: str) -> Labels:
        return self.test_labels if split == "test" and self.test_labels is not None else self.labels

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Survey:
        """What `as_json` gave. Raises `KeyError` or `TypeError` for anything else."""
        labels, test_labels = (None if raw[key] is None else Labels(**raw[key]) for key in ("labels", "test_labels"))
        return cls(**{**raw, "labels": labels, "test_labels": test_labels})


def survey(opened: Opened, name: str) -> Survey:
    """Looks at the header and the label of every image; a broken one is found where it is decoded.

    Raises `DataError` where every held-out image is a training image too, by its file.
    """
    seen = _look_at(opened.train, name)
    held = None if opened.test is None else _look_at(opened.test, name)
    labels, test_labels = seen.labels, None
    if held is not None:
        if held.files and held.files <= seen.files:
            raise DataError(
                f"source: every one of the {len(held.files):,} held-out images of {name} ({plain(opened.held_out)}) "
                f"is a training image: name other ones with data.test"
            )
        test_labels = _that_go_with(labels, held.labels, opened.classes)
    return Survey(
        opened.train.count,
        None if opened.test is None else opened.test.count,
        seen.grey + (held.grey if held else 0),
        seen.colour + (held.colour if held else 0),
        labels,
        test_labels,
        plain(opened.held_out),
        None if opened.classes is None else tuple(map(plain, opened.classes)),
        tuple(map(plain, opened.left_out)),
        tuple(map(plain, opened.notes)),
    )


def plain(text: str) -> str:
    """`text` as it can be written in UTF-8: the name of a file need not be that."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class _Seen:
    grey: int
    colour: int
    labels: Labels
    files: Set[tuple[int, int]]


def _look_at(rows: Rows, name: str) -> _Seen:
    kinds: Counter[bool | None] = Counter()
    distinct: set[int] = set()
    files: set[tuple[int, int]] = set()
    unlabelled = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for chunk in with_progress(chunks(rows.examples(), _AT_ONCE), rows.count, f"looking at {name}"):
            kinds.update(pool.map(is_grey, chunk))
            files.update(file for file in map(_file, chunk) if file is not None)
            for example in chunk:
                if example.label is None:
                    unlabelled += 1
                elif -(2**63) <= example.label < 2**63:
                    distinct.add(int(example.label))
                else:
                    raise DataError(f"{example.where} has the label {example.label}, beyond 64 bits: take smaller ones")
    if not unlabelled:
        return _Seen(kinds[True], kinds[False], Labels(tuple(sorted(distinct))), files)
    some = f"{unlabelled:,} of {rows.count:,} images have none" if unlabelled < rows.count else "the source has none"
    return _Seen(kinds[True], kinds[False], Labels(None, plain(rows.unlabelled or some)), files)


def _file(example: Example) -> tuple[int, int] | None:
    """Which file of the disk an image is, whatever it is called; None where it is a part of one."""
    if not isinstance(example.content, Path):
        return None
    try:
        state = example.content.stat()
    except OSError:  # gone since: decoding will say so
        return None
    return state.st_dev, state.st_ino


def _that_go_with(labels: Labels, held: Labels, classes: tuple[str, ...] | None) -> Labels:
    """The labels of held-out images; none where not one is a class of the training images."""
    if not labels.values or not held.values or set(labels.values) & set(held.values):
        return held
    names = [str(value) if classes is None else plain(classes[value]) for value in held.values]
    return Labels(None, f"their classes ({few(names)}) are none of the training images'")

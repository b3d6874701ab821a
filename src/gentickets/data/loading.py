"""`load`: the way from a source's name to an `ImageSet`, decoded once and then mapped from the cache."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from gentickets.data.cache import cache_folder, content_key, writing
from gentickets.data.decoding import Example, decode
from gentickets.data.entries import Entry, Note, stored_survey
from gentickets.data.finding import find
from gentickets.data.images import ImageSet, draw
from gentickets.data.room import check_room
from gentickets.data.sources import Opened, Rows, Source
from gentickets.data.streams import chunks, with_progress
from gentickets.data.surveying import Survey, survey
from gentickets.data.telling import Seen, told
from gentickets.errors import DataError

# Raise it where the same source would now decode to other pixels, or be told of in other words.
_FORMAT = 4
_AT_ONCE, _BYTES_AT_ONCE = 512, 2**26
_FIRST = 100
LEAST = 2
"""Images of a split. Statistics of fewer are none."""


def load(
    source: str | Source,
    *,
    size: int,
    channels: int | None = None,
    split: str = "train",
    crop: int | None = None,
    test: str | None = None,
    limit: int | None = None,
    cache: Path | None = None,
) -> ImageSet:
    """The images of `source`, `size` x `size`, decoded once and kept in the cache.

    `source`: "digits" (offline), "mnist", "fashion-mnist", "cifar10", "celeba" or "owner/name" from the hub,
    or a local file or folder: see docs/data.md. A local folder called "mnist" is "./mnist". Or a `Source` itself.
    `channels`: 1 grey, 3 RGB, None: grey where every image of both splits is. `split`: "train" or "test"; the test
    images are those of `test` (a file or folder), else the source's own, else one image in ten, drawn by a fixed seed.
    `crop`: the side, in source pixels, of a centre crop (None: the largest square; CelebA: 148).
    `limit`: at most so many training images, drawn by a fixed seed; a smaller limit gives a part of a larger one,
    and the test images are the same for all.
    `cache`: a folder (None: GENTICKETS_CACHE, else the user's cache folder).

    The set's `told` says what was read, left out and decided. Raises `DataError`, one line, for whatever is missing,
    broken, too large, or cannot be written.
    """
    if split not in ("train", "test"):
        raise DataError(f"split: {split!r} is neither 'train' nor 'test'")
    loading = _Loading(source, size, channels, crop, test, limit, cache)
    images, seen = loading.split(split)
    return replace(images, told=loading.told({split: seen}))


def load_splits(
    source: str | Source,
    *,
    size: int,
    channels: int | None = None,
    crop: int | None = None,
    test: str | None = None,
    limit: int | None = None,
    cache: Path | None = None,
) -> tuple[ImageSet, ImageSet]:
    """The training and the held-out images of `source`, as `load` gives each; both are told of what was read for both.

    Raises `DataError` too where a split has fewer than `LEAST` images, or every held-out image is a training image.
    """
    loading = _Loading(source, size, channels, crop, test, limit, cache)
    loading.check_counts()
    splits, seen = {}, {}
    for split in ("train", "test"):
        splits[split], seen[split] = loading.split(split)
    facts = {**loading.told(seen), **loading.in_both(splits["train"], splits["test"])}
    return replace(splits["train"], told=facts), replace(splits["test"], told=facts)


def looked_at(
    source: str | Source, crop: int | None = None, test: str | None = None, cache: Path | None = None
) -> tuple[Survey, tuple[int, int]]:
    """What is in a source, without decoding all of it; and the least and the largest side, in pixels, of the squares
    that its first images are cut to. Raises `DataError` as `load_splits` does."""
    loading = _Loading(source, size=4, channels=None, crop=crop, test=test, limit=None, cache=cache)
    loading.check_counts()
    first = itertools.islice(loading.opened.train.examples(), _FIRST)
    sides = [loading.side or min(decode(example, 4, 1, loading.side).size) for example in first]
    return loading.survey, (min(sides), max(sides))


@dataclass(frozen=True)
class _Loading:
    """One source, on its way to images of one kind."""

    source: str | Source
    size: int
    channels: int | None
    crop: int | None
    test: str | None
    limit: int | None
    cache: Path | None

    def __post_init__(self) -> None:
        if self.size < 4:
            raise DataError(f"size: {self.size} is too small: 4 pixels or more")
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels: {self.channels} is neither 1 (grey) nor 3 (RGB)")
        if self.crop is not None and self.crop < 1:
            raise DataError(f"crop: {self.crop} is too small: 1 pixel or more")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit: {self.limit} is too small: 1 image or more")
        self._check_room(1, self.channels or 1)

    def _check_room(self, count: int, channels: int) -> None:
        check_room("size", count, (channels, self.size, self.size), 1, "take a smaller size, or a limit")

    @property
    def said(self) -> str:
        """What the source is called in words."""
        return self.source if isinstance(self.source, str) else self.source.name

    @cached_property
    def found(self) -> Source:
        return find(self.source, self.test)

    @cached_property
    def opened(self) -> Opened:
        return self.found.read()

    @cached_property
    def survey(self) -> Survey:
        """From the cache, or made: of all images, so that no split and no limit has a say."""
        note = Note(self._place("survey", ".survey.json"))
        stored = stored_survey(note)
        if stored is None:
            stored = survey(self.opened, self.found.name)
            note.write(stored.as_json())
        return stored

    def _place(self, what: str, suffix: str = "", **wanted: object) -> Path:
        key = content_key({"format": _FORMAT, "source": self.found.identity, **wanted})
        slug = re.sub(r"[^A-Za-z0-9]+", "-", self.found.name).strip("-")[:80] or "images"
        return cache_folder(self.cache) / f"{slug}-{what}-{key}{suffix}"

    def split(self, split: str) -> tuple[ImageSet, Seen]:
        """The images of one split, from the cache or decoded, and what was seen of them."""
        limit = self.limit if split == "train" else None
        channels = self.channels or self.survey.channels
        place = self._place(f"{split}-{self.size}", channels=channels, crop=self.side, limit=limit)
        entry = Entry(place)
        stored = entry.read()
        if stored is None:
            self._decode_into(entry, split, channels, limit)
            stored = entry.read()
        if stored is None:
            raise DataError(f"cache: {entry.pixels} does not read back as it was written: name another disk by cache=")
        pixels, labels, fingerprint, seen = stored
        return ImageSet(self.found.name, split, pixels, labels, fingerprint), seen

    @property
    def side(self) -> int | None:
        """Of the crop."""
        return self.found.crop if self.crop is None else self.crop

    def _decode_into(self, entry: Entry, split: str, channels: int, limit: int | None) -> None:
        rows, chosen = self._chosen(split, limit)
        if not len(chosen):
            raise DataError(f"source: {self.found.name!r} has no images in its split {split!r}")
        self._check_room(len(chosen), channels)
        shape = (channels, self.size, self.size)
        at_once = max(1, min(_AT_ONCE, _BYTES_AT_ONCE // math.prod(shape)))
        labels: list[int | None] = []
        seen = Seen()
        with writing(entry.pixels) as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            _write_header(file, (len(chosen), *shape))
            parts = chunks(_only(rows.examples(), chosen), at_once)
            for chunk in with_progress(parts, len(chosen), f"decoding {self.found.name}"):
                for decoded in pool.map(lambda example: decode(example, self.size, channels, self.side), chunk):
                    file.write(np.ascontiguousarray(decoded.pixels).data)
                    seen.add(decoded)
                labels += [example.label for example in chunk]
        if len(labels) != len(chosen):
            name = self.found.name
            raise DataError(f"source: {name!r} ended after {len(labels)} of {len(chosen)} images: it is damaged")
        labelled = self.survey.labels_of(split).values is not None
        entry.finish(np.array(labels, dtype=np.int64) if labelled else None, seen)

    def _chosen(self, split: str, limit: int | None) -> tuple[Rows, np.ndarray]:
        """The rows of a split, and the numbers of those to decode, ascending. What is held out knows no limit."""
        rows = self.opened.test if split == "test" and self.opened.test is not None else self.opened.train
        chosen = np.arange(rows.count)
        if self.opened.test is None:
            held = draw(rows.count, self.survey.held, seed=0)
            chosen = held if split == "test" else np.setdiff1d(chosen, held)
        return rows, chosen if limit is None else chosen[draw(len(chosen), limit, seed=1)]

    def check_counts(self) -> None:
        """Raises `DataError` where there are too few images to train on, or too few held out to judge by."""
        held, trained_on = self.survey.held, min(self.limit or math.inf, self.survey.trained_on)
        if held < LEAST:
            of = self.survey.held_out if self.survey.test is not None else f"a tenth of {self.survey.train:,}"
            raise DataError(
                f"source: {self.said} holds out {held:,} image{'' if held == 1 else 's'} ({of}), and {LEAST} or more "
                f"are needed to judge by: name more with data.test"
            )
        if trained_on < LEAST:
            raise DataError(
                f"source: {self.said} leaves {trained_on:,} image{'' if trained_on == 1 else 's'} to train on, and "
                f"{LEAST} or more are needed: {'raise data.limit' if self.limit == 1 else 'name a larger set'}"
            )

    def told(self, seen: Mapping[str, Seen]) -> dict[str, str]:
        return told(self.survey, seen, self.said, self.size, self.channels, self.side)

    def in_both(self, train: ImageSet, test: ImageSet) -> dict[str, str]:
        """What is to be told of held-out images that are trained on."""
        note = Note(self._place("both", ".both.json", train=train.fingerprint, test=test.fingerprint))
        facts = note.read()
        if facts is None:
            facts = {"images": _in_both(train.pixels, test.pixels)}
            note.write(facts)
        both = facts["images"]
        if both == len(test) and self.survey.test is not None:
            raise DataError(
                f"source: {self.said}: every one of the {both:,} held-out images ({self.survey.held_out}) is among "
                f"the training images: name other ones with data.test"
            )
        return {"in both": f"{both:,} of the {len(test):,} held-out images are among the training ones"} if both else {}


def _in_both(train: np.ndarray, test: np.ndarray) -> int:
    """How many images of `test` are in `train`, to the bit."""
    known = {hashlib.sha256(image.data).digest() for image in map(np.ascontiguousarray, train)}
    return sum(hashlib.sha256(np.ascontiguousarray(image).data).digest() in known for image in test)


def _only(examples: Iterable[Example], chosen: np.ndarray) -> Iterator[Example]:
    """The examples at the row numbers `chosen`, which ascend. Reads no further than the last."""
    wanted = iter(chosen.tolist())
    row = next(wanted, None)
    for number, example in enumerate(examples):
        if number == row:
            yield example
            row = next(wanted, None)
            if row is None:
                return


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    # Written in sequence and not through a memory map: on a full disk that is an error, and not a SIGBUS.
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

"""`load`: the way from a source's name to an `ImageSet`, decoded once and then mapped from the cache."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from gentickets.data.cache import cache_folder, content_key, writing
from gentickets.data.decoding import Example, decode, is_grey
from gentickets.data.finding import find
from gentickets.data.images import ImageSet, draw, fingerprint
from gentickets.data.sources import Rows, Source
from gentickets.errors import DataError

# Raise it where the same source would now decode to other pixels.
_FORMAT = 2
_AT_ONCE = 512
_SHOW_PROGRESS_FROM = 4_000
# A set without a test split of its own holds one image in ten out.
_HOLD_OUT = 0.1


def load(
    source: str,
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
    a local `.parquet` file, or a local folder of images. A local folder called "mnist" is "./mnist".
    `channels`: 1 grey, 3 RGB, None as the source. `split`: "train" or "test"; the test images are those of
    `test` (a file or folder), else the source's own, else one image in ten, drawn by a fixed seed.
    `crop`: the side, in source pixels, of a centre crop (None: the largest square; CelebA: 148).
    `limit`: at most so many images, drawn by a fixed seed; a smaller limit gives a part of a larger one.
    `cache`: a folder (None: GENTICKETS_CACHE, else the user's cache folder).

    Raises `DataError`, one line, for whatever is missing, broken, or cannot be written.
    """
    _check(size, channels, split, crop, limit)
    found = find(source, split, test)
    crop = found.crop if crop is None else crop
    wanted = {"size": size, "channels": channels, "split": split, "crop": crop, "limit": limit}
    key = content_key({"format": _FORMAT, "source": found.identity, **wanted})
    slug = re.sub(r"[^A-Za-z0-9]+", "-", found.name).strip("-") or "images"
    entry = _Entry(cache_folder(cache) / f"{slug}-{split}-{size}-{key}")
    stored = entry.read()
    if stored is None:
        _decode_into(entry, found, size, channels, split, crop, limit)
        stored = entry.read()
    if stored is None:
        raise DataError(f"cache: {entry.pixels} does not read back as it was written: name another disk by cache=")
    return ImageSet(found.name, split, *stored)


def _check(size: int, channels: int | None, split: str, crop: int | None, limit: int | None) -> None:
    if size < 4:
        raise DataError(f"size: {size} is too small: 4 pixels or more")
    if channels not in (None, 1, 3):
        raise DataError(f"channels: {channels} is neither 1 (grey) nor 3 (RGB)")
    if split not in ("train", "test"):
        raise DataError(f"split: {split!r} is neither 'train' nor 'test'")
    if crop is not None and crop < 1:
        raise DataError(f"crop: {crop} is too small: 1 pixel or more")
    if limit is not None and limit < 1:
        raise DataError(f"limit: {limit} is too small: 1 image or more")


def _decode_into(
    entry: _Entry,
    found: Source,
    size: int,
    channels: int | None,
    split: str,
    crop: int | None,
    limit: int | None,
) -> None:
    rows = found.read()
    chosen = _choose(rows, split, limit)
    if not len(chosen):
        raise DataError(f"source: {found.name!r} has no images in its split {split!r}")
    examples = _only(rows.examples, chosen)
    chunks = iter(lambda: list(itertools.islice(examples, _AT_ONCE)), [])
    first = next(chunks, [])
    if channels is None:
        channels = 1 if all(is_grey(example) for example in first) else 3
    labels: list[int | None] = []
    with writing(entry.pixels) as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        _write_header(file, (len(chosen), channels, size, size))
        for chunk in _with_progress(itertools.chain([first], chunks), len(chosen), found.name):
            arrays = pool.map(lambda example: decode(example, size, channels, crop), chunk)
            file.write(np.stack(list(arrays)).tobytes())
            labels += [example.label for example in chunk]
    if len(labels) != len(chosen):
        raise DataError(f"source: {found.name!r} ended after {len(labels)} of {len(chosen)} images: it is damaged")
    entry.finish(None if None in labels else np.array(labels, dtype=np.int64))


def _choose(rows: Rows, split: str, limit: int | None) -> np.ndarray:
    """The row numbers to decode, ascending."""
    chosen = np.arange(rows.count)
    if rows.hold_out:
        held = draw(rows.count, round(rows.count * _HOLD_OUT), seed=0)
        chosen = held if split == "test" else np.setdiff1d(chosen, held)
    return chosen if limit is None else chosen[draw(len(chosen), limit, seed=1)]


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


def _with_progress(chunks: Iterable[list[Example]], total: int, name: str) -> Iterator[list[Example]]:
    """The chunks, with a bar on stderr where there are enough images that one waits."""
    if total < _SHOW_PROGRESS_FROM:
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"decoding {name}", total=total)
        for chunk in chunks:
            yield chunk
            progress.advance(task, len(chunk))


class _Entry:
    """One decoded set on disk: the pixels, the labels, and a note that is written last and seals both."""

    def __init__(self, stem: Path):
        self.pixels = stem.with_name(stem.name + ".npy")
        self.labels = stem.with_name(stem.name + ".labels.npy")
        self.note = stem.with_name(stem.name + ".json")

    def read(self) -> tuple[np.ndarray, np.ndarray | None, str] | None:
        """(pixels, labels, fingerprint), or None where the entry is absent, unfinished or damaged."""
        try:
            note = json.loads(self.note.read_text())
            pixels = np.asarray(np.load(self.pixels, mmap_mode="r", allow_pickle=False))
            labels = np.load(self.labels, allow_pickle=False) if note["labels"] else None
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or fingerprint(pixels, labels) != note["fingerprint"]:
                return None
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None
        if labels is not None:
            labels.setflags(write=False)
        return pixels, labels, note["fingerprint"]

    def finish(self, labels: np.ndarray | None) -> None:
        """Adds labels and the note to the pixels that were written."""
        if labels is not None:
            with writing(self.labels) as file:
                np.save(file, labels)
        pixels = np.load(self.pixels, mmap_mode="r", allow_pickle=False)
        note = {"labels": labels is not None, "fingerprint": fingerprint(pixels, labels)}
        with writing(self.note) as file:
            file.write(json.dumps(note).encode())

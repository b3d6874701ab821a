"""Images that somebody's own code gives: arrays, labels and splits, taken as a file of arrays is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gentickets.data import arrays
from gentickets.data.images import ImageSet
from gentickets.data.sources import Opened, Source
from gentickets.errors import DataError

TAKEN = (
    "an array (n, height, width) or with channels, (images, labels), an ImageSet, or {'train': …, 'test': …} of these"
)


def given(name: str, found: Any) -> Source:
    """The source that `found` is: an array of images, `(images, labels)`, an `ImageSet`, or a mapping with `train` and
    maybe `test` of these. It is known by its content, and goes on as a file of the same arrays would.

    Images are whole numbers from 0 to 255 or fractions in [0, 1] or [-1, 1]; `name` is what messages call it. Raises
    `DataError` for anything else.
    """
    if isinstance(found, Mapping) and "train" not in found:
        raise DataError(f"source: {name} gives a mapping of {', '.join(map(str, found)) or 'nothing'}: give {TAKEN}")
    splits = found if isinstance(found, Mapping) else {"train": found}
    if strange := [str(key) for key in splits if key not in ("train", "test")]:
        raise DataError(f"source: {name} gives {strange[0]!r} beside train and test: give {TAKEN}")
    held = {
        key: array
        for split, part in splits.items()
        if split == "train" or part is not None  # one that is asked for both may hold out none
        for key, array in _arrays(name, split, part)
    }
    images, note = _in_bytes({split: held[split] for split in ("train", "test") if split in held})
    held |= images

    def read() -> Opened:
        return arrays.of_memory(name, held, note)

    return Source(name, {"given": {key: _digest(array) for key, array in held.items()}, "name": name}, read)


def _arrays(name: str, split: str, part: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one split, by the keys that a file would have."""
    labels: Any = None
    if isinstance(part, ImageSet):
        part, labels = part.pixels, part.labels
    elif isinstance(part, tuple):
        if len(part) != 2:
            raise DataError(f"source: {name} gives {len(part)} things for {split}: give {TAKEN}")
        part, labels = part
    images = _array(name, part)
    if images.ndim < 3:
        raise DataError(f"source: {name} gives {_shape(images)} for {split}: give {TAKEN}")
    yield split, images
    if labels is not None:
        labelled = _array(name, labels)
        if labelled.ndim > 2:
            raise DataError(
                f"source: {name} gives labels of the shape {labelled.shape} for {split}: a pair is (images, labels); "
                f"splits are {{'train': …, 'test': …}}"
            )
        if labelled.shape[:1] != images.shape[:1]:
            raise DataError(
                f"source: {name} gives {_shape(labelled)} of labels for {len(images):,} images of {split}: one each"
            )
        yield f"{split}_labels", labelled


def _array(name: str, part: Any) -> np.ndarray:
    try:
        array = np.asarray(part)
    except Exception as error:  # whatever the thing says for itself, such as a tensor on another device
        raise DataError(f"source: {name} gives a {type(part).__name__} that is no array ({error})") from None
    if array.dtype.hasobject or not array.ndim:
        raise DataError(f"source: {name} gives a {type(part).__name__}: give {TAKEN}")
    return array


def _shape(array: np.ndarray) -> str:
    return f"an array of the shape {' x '.join(map(str, array.shape))}"


def _in_bytes(images: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Fractions that are no bytes as the nearest ones, and what is to be told of it.

    By the least and the largest of all splits together; what fits no range is left to be refused.
    """
    if not all(array.dtype.kind == "f" and array.size for array in images.values()):
        return dict(images), ""
    low = min(float(array.min()) for array in images.values())
    high = max(float(array.max()) for array in images.values())
    if not (low >= -1 and high <= 1) or all(map(arrays.on_a_grid, images.values())):
        return dict(images), ""
    signed = low < 0
    made = {
        split: np.rint((array.astype(np.float64) + signed) * (127.5 if signed else 255.0)).astype(np.uint8)
        for split, array in images.items()
    }
    words = f"{next(iter(images.values())).dtype} of {'-1' if signed else '0'} to 1, rounded to 256 steps"
    return made, f"given as {words}"


def _digest(array: np.ndarray) -> str:
    """SHA-256 of an array's kind, shape and content."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()

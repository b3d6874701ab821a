"""Images that somebody's own code gives: arrays, labels and splits, taken as a file of arrays is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gentickets.data import arrays
from gentickets.data.damage import line
from gentickets.data.decoding import as_shown, has_one_channel
from gentickets.data.images import ImageSet
from gentickets.data.sources import Opened, Source
from gentickets.errors import DataError

TAKEN = (
    "an array (n, height, width) or with channels, a list of PIL images, (images, labels), an ImageSet, or "
    "{'train': …, 'test': …} of these"
)


def given(name: str, found: Any) -> Source:
    """The source that `found` is: an array of images, a list of PIL images, `(images, labels)`, an `ImageSet`, or a
    mapping with `train` and maybe `test` of these. It is known by its content, and goes on as a file of the same arrays
    would.

    Images are whole numbers from 0 to 255 or fractions in [0, 1] or [-1, 1]; PIL images are taken as a viewer shows
    them, as those of files are; `name` is what messages call it. Raises `DataError` for anything else.
    """
    if isinstance(found, Mapping) and "train" not in found:
        raise DataError(f"source: {name} gives a mapping of {', '.join(map(str, found)) or 'nothing'}: give {TAKEN}")
    splits = found if isinstance(found, Mapping) else {"train": found}
    if strange := [str(key) for key in splits if key not in ("train", "test")]:
        raise DataError(f"source: {name} gives {strange[0]!r} beside train and test: give {TAKEN}")
    parts = {
        split: _part(name, split, part)
        for split, part in splits.items()
        if split == "train" or part is not None  # one that is asked for both may hold out none
    }
    images, note = _in_bytes({split: parts[split].images for split in ("train", "test") if split in parts})
    held = {key: array for split, part in parts.items() for key, array in part.arrays(split, images[split])}
    known = [split for split in images if parts[split].in_bytes]

    def read() -> Opened:
        return arrays.of_memory(name, held, note, known)

    identity = {"given": {key: _digest(array) for key, array in held.items()}, "name": name, "in bytes": known}
    return Source(name, identity, read)


class _Part(NamedTuple):
    """What is given for one split. `in_bytes`: whether the images are known to go from 0 to 255, however faint."""

    images: np.ndarray
    labels: np.ndarray | None
    in_bytes: bool

    def arrays(self, split: str, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The images, in bytes by now, and the labels, by the keys that a file would have."""
        yield split, images
        if self.labels is not None:
            yield f"{split}_labels", self.labels


def _part(name: str, split: str, part: Any) -> _Part:
    labels: Any = None
    in_bytes = isinstance(part, ImageSet)
    if isinstance(part, ImageSet):
        part, labels = part.pixels, part.labels
    elif isinstance(part, tuple):
        if len(part) != 2:
            raise DataError(f"source: {name} gives {len(part)} things for {split}: give {TAKEN}")
        part, labels = part
    if isinstance(part, Image.Image):
        raise DataError(f"source: {name} gives a single PIL image for {split}: give {TAKEN}")
    if isinstance(part, list) and any(isinstance(one, Image.Image) for one in part):
        part, in_bytes = _of_pictures(name, split, part), True
    images = _array(name, part)
    if images.ndim < 3:
        raise DataError(f"source: {name} gives {_shape(images)} for {split}: give {TAKEN}")
    if labels is None:
        return _Part(images, None, in_bytes)
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
    return _Part(images, labelled, in_bytes)


def _of_pictures(name: str, split: str, pictures: Sequence[Any]) -> np.ndarray:
    """PIL images as a viewer shows them: their numbers may be those of a palette, or of inks."""
    for one in pictures:
        if not isinstance(one, Image.Image):
            raise DataError(
                f"source: {name} gives a {type(one).__name__} among the PIL images of {split}: give {TAKEN}"
            )
    channels = 1 if all(map(has_one_channel, pictures)) else 3
    shown = [as_shown(one, f"{name}, image {number} of {split}", channels) for number, one in enumerate(pictures)]
    sizes = dict.fromkeys(one.size for one in shown)
    if len(sizes) > 1:
        (width, height), (wide, high), *_ = sizes
        raise DataError(
            f"source: {name} gives images of {width}x{height} and of {wide}x{high} for {split}: resize them to one size"
        )
    # With an axis of channels: a few grey images without one could be the channels of a single image.
    return np.stack([np.asarray(one).reshape(one.height, one.width, channels) for one in shown])


def _array(name: str, part: Any) -> np.ndarray:
    if any(map(np.ma.is_masked, part if isinstance(part, list) else [part])):
        raise DataError(f"source: {name} gives an array with masked values, which have no number: give filled(…) of it")
    try:
        array = np.asarray(part)
    except Exception as error:  # whatever the thing says for itself, such as a tensor on another device
        raise DataError(f"source: {name} gives a {type(part).__name__} that is no array ({line(error)})") from None
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

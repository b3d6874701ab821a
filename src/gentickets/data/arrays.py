"""Arrays of images: `.npy`, and `.npz` with the keys that people use. No pickle is opened, and no shape believed."""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gentickets.data import labels, packed
from gentickets.data.damage import shown, told
from gentickets.data.decoding import Example
from gentickets.data.sources import Opened, Rows, Source, file_identity
from gentickets.data.unread import files_beside
from gentickets.errors import DataError

WHAT = "a .npz or .npy file"

_TRAIN = ("x_train", "train_images", "images_train", "train_x", "train_data", "train")
_TEST = ("x_test", "test_images", "images_test", "test_x", "test_data", "test")
_VALIDATION = ("x_val", "val_images", "x_valid", "valid_images", "images_val", "val_x", "valid", "val")
_WHOLE = ("images", "imgs", "image", "x", "data", "arr_0")
# The images' key → where their labels lie.
_LABELS = {
    "x_train": ("y_train",), "train_images": ("train_labels",), "images_train": ("labels_train",),
    "train_x": ("train_y",), "train_data": ("train_labels",), "train": ("train_labels", "y_train"),
    "x_test": ("y_test",), "test_images": ("test_labels",), "images_test": ("labels_test",),
    "test_x": ("test_y",), "test_data": ("test_labels",), "test": ("test_labels", "y_test"),
    "arr_0": ("arr_1", "labels", "y"),
}  # fmt: skip
_ANY_LABELS = ("labels", "label", "y", "targets", "target")
# Below this, integers are no 0…255: 0/1 masks, the 17 greys of scikit-learn's digits.
_FAINT = 32
_AT_ONCE = 4 * 2**20


def holds(path: Path) -> bool:
    """A file with one of the two suffixes."""
    return path.suffix.lower() in (".npz", ".npy") and path.is_file()


def find(path: Path) -> Source:
    """The arrays of train and test, by their keys, or the one array of images."""
    unread = files_beside(path, (".npz", ".npy"))

    def read() -> Opened:
        opened = _open(path, whole=False)
        return replace(opened, left_out=(*opened.left_out, *unread))

    return Source(path.stem, {"arrays": file_identity(path), "told": list(unread)}, read)


def whole(path: Path) -> Source:
    """A file with one array of images."""
    return Source(path.stem, {"arrays": file_identity(path)}, lambda: _open(path, whole=True))


def of_memory(name: str, held: Mapping[str, np.ndarray], note: str = "", in_bytes: Collection[str] = ()) -> Opened:
    """Arrays in memory as a file of that name would have them: `train`, `train_labels`, `test`, `test_labels`.

    Those of the keys `in_bytes` go from 0 to 255, whatever numbers are in them.
    """
    found = {key: _of_memory(key, f"{name}, {key}", array, key in in_bytes) for key, array in held.items()}
    opened = _splits(Path(name), found, "train", "test" if "test" in held else None)
    return replace(opened, notes=(*((note,) if note else ()), *opened.notes))


def _of_memory(key: str, where: str, array: np.ndarray, in_bytes: bool) -> _Array:
    def stream() -> packed.Bounded:
        return packed.Bounded(io.BytesIO(array.tobytes()), where)

    return _Array(key, where, array.shape, array.dtype, False, stream, _BYTES if in_bytes else None)


def on_a_grid(array: np.ndarray) -> bool:
    """Whether all numbers are among the 256 that 8 bits give, on one of the scales that images are saved on."""
    return any(_on_grid(array, scale) for scale in (_BYTES, _UNIT, _SIGNED))


class _Array(NamedTuple):
    """One array within a file, known by its header."""

    name: str  # its key; "" where the file is the array
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool
    stream: Callable[[], packed.Bounded]  # from the start of its numbers
    scale: _Scale | None = None  # where it is known before any number is seen

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """The array, so many rows at a time. Raises `ValueError` where the file ends before."""
        row = math.prod(self.shape[1:])
        with self.stream() as stream:
            if self.by_columns:
                everything = np.frombuffer(_exactly(stream, self.bytes), dtype=self.dtype).reshape(self.shape[::-1]).T
                yield from (everything[start : start + rows] for start in range(0, self.shape[0], rows))
                return
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                content = _exactly(stream, count * row * self.dtype.itemsize)
                yield np.frombuffer(content, dtype=self.dtype).reshape(count, *self.shape[1:])

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows_at_once(self) -> int:
        return max(1, _AT_ONCE // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))


def _open(path: Path, whole: bool) -> Opened:
    with told(path, f"{path.suffix.lower()} file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix.lower() == ".npy":
            arrays = {"": _header("", shown(path), lambda: packed.plain(path), path.stat().st_size)}
        else:
            arrays = _members(path)
    lower = {name.lower(): name for name in arrays}
    if len(lower) < len(arrays):
        raise DataError(f"source: {shown(path)} has keys that differ by case alone: {_keys(arrays)}: rename them")
    train, test, validation = (_first(keys, lower) for keys in (_TRAIN, _TEST, _VALIDATION))
    held = test or validation
    if train is None:
        if held is not None and _first(_WHOLE, lower) is None and not whole:
            raise DataError(f"source: {shown(path)} has {held}, and no images to train on ({_keys(arrays)})")
        train, held = _only(path, arrays, lower), None
    elif whole and held is not None:
        raise DataError(f"test: {shown(path)} has splits of its own ({_keys(arrays)}): name a file with one array")
    return _splits(path, arrays, train, held)


def _splits(path: Path, arrays: dict[str, _Array], train: str, held: str | None) -> Opened:
    images = [_Images.of(arrays[key]) for key in (train, held) if key is not None]
    if len({of.scale for of in images}) > 1:
        raise DataError(
            f"source: {shown(path)} has {train} of {images[0].scale.words} and {held} of {images[1].scale.words}: "
            f"save both as uint8, 0 to 255"
        )
    keys = [_labels_key(key, arrays) for key in (train, held) if key is not None]
    of = _labels(path, arrays, images, keys)
    others = [shown(name) for name in arrays if name not in (train, held, *keys)]
    more = (f"{len(others) - 8} further arrays",) if len(others) > 8 else ()
    return Opened(
        images[0].rows(of.labels[0], of.why_none),
        images[1].rows(of.labels[1], of.why_none) if held is not None else None,
        held_out=shown(held or ""),
        classes=of.classes,
        left_out=(*(f"the array {name}" for name in others[:8]), *more),
        notes=images[0].notes,
    )


def _labels_key(images: str, arrays: dict[str, _Array]) -> str | None:
    return _first(_LABELS.get(images.lower(), _ANY_LABELS), {name.lower(): name for name in arrays})


def _labels(path: Path, arrays: dict[str, _Array], images: list[_Images], keys: list[str | None]) -> labels.Numbered:
    splits: list[list[Any]] = []
    for of, key in zip(images, keys, strict=True):
        count = of.array.shape[0]
        values: list[Any] | str = "has no labels beside it"
        if key is not None:
            array = arrays[key]
            if array.shape[:1] != (count,) and key != "arr_1":
                raise DataError(
                    f"source: {shown(path)} has {array.shape[0] if array.shape else 1:,} labels in {shown(key)} for "
                    f"{count:,} images: give one each"
                )
            with told(array.where, "array"):
                values = _values(array, count)
        if isinstance(values, str):
            counts = [of.array.shape[0] for of in images]
            return labels.absent(counts, f"{shown(key or of.array.name) or shown(path.name)} {values}")
        splits.append(values)
    return labels.numbered(next(key for key in keys if key), splits)


def _values(array: _Array, count: int) -> list[Any] | str:
    """A label for each image, or why not."""
    one_each = math.prod(array.shape) == count and array.shape[:1] == (count,)
    if array.bytes > packed.LARGEST:
        return f"has {array.bytes:,} bytes, too many for labels"
    if array.dtype.kind in "uibfUS" and one_each:
        return [value for block in array.blocks(array.rows_at_once) for value in block.reshape(-1).tolist()]
    if array.dtype.kind in "uibf" and array.shape[:1] == (count,) and len(array.shape) == 2:
        places: list[int] = []
        for block in array.blocks(array.rows_at_once):
            if not ((block != 0).sum(axis=1) == 1).all() or not (block.max(axis=1) == 1).all():
                break
            places += block.argmax(axis=1).tolist()
        if len(places) == count:
            return places
    return f"is {array.dtype} of shape {array.shape}, no label for each image"


def _only(path: Path, arrays: dict[str, _Array], lower: dict[str, str]) -> str:
    """The key of the images where nothing is said of splits."""
    named = _first(_WHOLE, lower)
    if named is not None:
        return named
    possible = [name for name, array in arrays.items() if len(array.shape) >= 3]
    if len(arrays) == 1:
        return next(iter(arrays))
    if len(possible) != 1:
        raise DataError(
            f"source: {shown(path)} has the keys {_keys(arrays)}, and none says which are the images: "
            f"call them images, or x_train and x_test"
        )
    return possible[0]


def _first(keys: tuple[str, ...], lower: dict[str, str]) -> str | None:
    return next((lower[key] for key in keys if key in lower), None)


def _keys(arrays: dict[str, _Array]) -> str:
    names = [shown(name) for name in list(arrays)[:8]]
    return ", ".join(names + ["…"] * (len(arrays) > 8)) or "none"


class _Scale(NamedTuple):
    """How numbers become 0…255: (value + `add`) · `times`, rounded."""

    words: str
    add: float
    times: float


_BYTES = _Scale("0 to 255", 0.0, 1.0)
_UNIT = _Scale("0 to 1", 0.0, 255.0)
_SIGNED = _Scale("-1 to 1", 1.0, 127.5)


class _Images(NamedTuple):
    """An array of images whose layout and scale are known."""

    array: _Array
    channels_first: bool
    scale: _Scale
    notes: tuple[str, ...]

    @classmethod
    def of(cls, array: _Array) -> _Images:
        """Raises `DataError` where layout or scale could be one or the other."""
        if array.dtype.hasobject:
            raise DataError(f"source: {array.where} holds python objects, which are never opened: save numbers")
        if not math.prod(array.shape):
            raise DataError(f"source: {array.where} is empty, {array.shape}: save images")
        if array.by_columns and array.bytes > packed.LARGEST:
            raise DataError(f"source: {array.where} lies column by column: save np.ascontiguousarray of it")
        first = _channels_first(array)
        with told(array.where, "array"):
            scale, _, high = _scale(array)
        layout = "(n, channels, height, width)" if first else "(n, height, width, channels)"
        layout = layout if len(array.shape) == 4 else "(n, height, width)"
        note = f"{shown(array.name) or 'the array'} taken as {layout}, {array.dtype} of {scale.words}"
        if scale == _BYTES and high < 128:
            note += f" (the largest is {high:g})"
        return cls(array, first, scale, (note,))

    def rows(self, of_labels: Sequence[int | None], unlabelled: str | None) -> Rows:
        return Rows(self.array.shape[0], lambda: self._examples(of_labels), unlabelled)

    def _examples(self, of_labels: Sequence[int | None]) -> Iterator[Example]:
        row, where = 0, self.array.where
        with told(where, "array"):
            for block in self.array.blocks(self.array.rows_at_once):
                for pixels in self._bytes(block):
                    yield Example(f"image {row} of {where}", pixels, of_labels[row])
                    row += 1

    def _bytes(self, block: np.ndarray) -> np.ndarray:
        if self.scale != _BYTES or block.dtype.kind == "f":
            block = np.rint((block.astype(np.float64) + self.scale.add) * self.scale.times)
        block = block.astype(np.uint8)
        if block.ndim == 4 and self.channels_first:
            block = block.transpose(0, 2, 3, 1)
        if block.ndim == 4 and block.shape[-1] == 1:
            block = block[..., 0]
        return np.ascontiguousarray(block)


def _channels_first(array: _Array) -> bool:
    shape, where = array.shape, array.where
    if math.prod(shape[1:]) * array.dtype.itemsize > packed.LARGEST:
        raise DataError(f"source: {where} has the shape {' x '.join(map(str, shape))}: no image is so large")
    if len(shape) == 3 and min(shape) > 4:
        return False
    if len(shape) == 4:
        first, last = shape[1] in (1, 3, 4), shape[3] in (1, 3, 4)
        if first != last:
            return first
    raise DataError(
        f"source: {where} has the shape {' x '.join(map(str, shape)) or '()'}, and nothing says which axis is which: "
        f"save images as (n, height, width), (n, height, width, channels) or (n, channels, height, width)"
    )


def _scale(array: _Array) -> tuple[_Scale, float, float]:
    """The scale of the numbers, where all of them together allow one only; the least and the largest."""
    if array.dtype == np.bool_:
        return _UNIT, 0.0, 1.0
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise DataError(f"source: {array.where} is of {shown(str(array.dtype))}: save images as uint8, 0 to 255")
    low, high = math.inf, -math.inf
    possible = {_BYTES, _UNIT, _SIGNED} if array.dtype.kind == "f" else {_BYTES, _UNIT}
    for block in array.blocks(array.rows_at_once):
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(f"source: {array.where} holds NaN or infinity: save images as uint8, 0 to 255")
        possible = {scale for scale in possible if _on_grid(block, scale)}
    if array.scale is not None:
        return array.scale, low, high
    if high < _FAINT:
        possible -= {_BYTES}
    elif _BYTES in possible:
        possible = {_BYTES}
    if len(possible) == 1:
        return possible.pop(), low, high
    raise DataError(
        f"source: {array.where} is {array.dtype} from {low:g} to {high:g}, and nothing says which is black and which "
        f"white: save it as uint8, 0 to 255 (or as bool)"
    )


def _on_grid(block: np.ndarray, scale: _Scale) -> bool:
    """Whether every number is one of the 256 that 8 bits give on this scale."""
    if block.dtype.kind != "f":
        return bool(block.min() >= 0 and block.max() <= (1 if scale == _UNIT else 255))
    # Half precision keeps 11 bits: near 255 a rounding is an eighth.
    steps = (block.astype(np.float64) + scale.add) * scale.times
    near = np.rint(steps)
    return bool(near.min() >= 0 and near.max() <= 255 and np.abs(steps - near).max() <= 0.13)


def _members(path: Path) -> dict[str, _Array]:
    arrays = {}
    for member in packed.listed(path):
        if not member.filename.endswith(".npy"):
            continue
        name = member.filename.removesuffix(".npy")
        if name in arrays:
            raise ValueError(f"the key {name!r} is there twice")
        where = f"{shown(path)}, {shown(name)}"
        arrays[name] = _header(name, where, functools.partial(packed.member, path, member), member.file_size)
    if not arrays:
        raise ValueError("it holds no arrays")
    return arrays


def _header(name: str, where: str, stream: Callable[[], packed.Bounded], size: int) -> _Array:
    """What the header tells, where it is as long as the file."""
    with stream() as start:
        version = np.lib.format.read_magic(start)
        if version == (1, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(start)
        elif version == (2, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_2_0(start)
        else:
            raise ValueError(f"array {name!r} is of the npy version {version}")
        begin = start.tell()
    if any(type(axis) is not int or axis < 0 for axis in shape):
        raise ValueError(f"array {name!r} has the shape {shape}")
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != size - begin:
        raise ValueError(f"array {name!r} tells of {shape} {dtype} and has {size - begin:,} bytes")
    by_columns = by_columns and len(shape) > 1

    def numbers() -> packed.Bounded:
        content = stream()
        _exactly(content, begin)
        return content

    return _Array(name, where, shape, dtype, by_columns, numbers)


def _exactly(stream: packed.Bounded, size: int) -> bytes:
    parts, left = [], size
    while left:
        part = stream.read(min(left, packed.LARGEST))
        if not part:
            raise ValueError("it ends too early")
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

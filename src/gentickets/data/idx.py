"""MNIST's own files: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` …, packed by gzip or not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from gentickets.data import packed
from gentickets.data.damage import shown, told
from gentickets.data.decoding import Example
from gentickets.data.sources import Opened, Rows, Source, file_identity
from gentickets.data.unread import beside
from gentickets.errors import DataError

WHAT = "MNIST's idx files"

# "emnist-letters-train-images-idx3-ubyte.gz", "t10k-images.idx3-ubyte"; the test part goes by t10k or test.
_NAME = re.compile(r"(?P<set>.*?)(?P<part>train|t10k|test)-(?P<of>images|labels)[-.]idx(?P<axes>[13])-ubyte(\.gz)?")
# Where torchvision keeps them within the folder that one names.
_BELOW = (".", "raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw")
_UNSIGNED_BYTE = 0x08


def holds(path: Path) -> bool:
    """A file so named, or a folder with one."""
    return _NAME.fullmatch(path.name) is not None if path.is_file() else _folder(path) is not None


def find(path: Path) -> Source:
    """The images of train, those of t10k (or test) held out; labels from the files beside them."""
    folder, sets = _sets(path)
    if len(sets) > 1:
        raise DataError(
            f"source: {shown(folder)} has the idx files of {len(sets)} sets ({', '.join(map(repr, sorted(sets)))}): "
            f"name one of their train files"
        )
    ((of_set, files),) = sets.items()
    if path.is_file() and not path.name.startswith(f"{of_set}train"):
        raise DataError(f"source: {shown(path)} is the part held out: name the folder, or its train-images-idx3-ubyte")
    if "train" not in files:
        raise DataError(f"source: {shown(folder)} has no {of_set}train-images-idx3-ubyte: get it, or name another")
    unread = beside(path, folder) if path.is_dir() else ()
    states = [file_identity(file) for part in sorted(files) for file in files[part].values()]
    name = of_set.strip("-_. ") or _name(folder)
    notes = ("EMNIST's files hold their images on their side, and so they are taken",) if "emnist" in name else ()
    return Source(
        name, {"idx": states, "told": list(unread)}, lambda: replace(_open(files), left_out=unread, notes=notes)
    )


def whole(path: Path) -> Source:
    """One file of images."""
    match = _NAME.fullmatch(path.name) if path.is_file() else None
    if match is None:
        raise DataError(f"test: {shown(path)} is a folder with splits of its own: name one of its files of images")
    folder, sets = _sets(path)
    part = "train" if match["part"] == "train" else "test"
    files = sets[match["set"]][part]
    identity = {"idx": [file_identity(file) for file in files.values()]}
    return Source(_name(folder), identity, lambda: Opened(_rows(files)))


def _folder(path: Path) -> Path | None:
    """The folder at or below `path` that has files of images."""
    for below in _BELOW:
        folder = path / below
        if folder.is_dir() and any(_is_of_images(file) for file in folder.iterdir()):
            return folder
    return None


def _is_of_images(file: Path) -> bool:
    match = _NAME.fullmatch(file.name)
    return match is not None and match["of"] == "images" and file.is_file()


def _name(folder: Path) -> str:
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "raw" else resolved.name


def _sets(path: Path) -> tuple[Path, dict[str, dict[str, dict[str, Path]]]]:
    """The folder, and set → part (train, test) → what (images, labels) → file. The plain one where both are there."""
    asked = _NAME.fullmatch(path.name) if path.is_file() else None
    folder = path.parent if asked else _folder(path)
    assert folder is not None
    sets: dict[str, dict[str, dict[str, Path]]] = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name, reverse=True):
        match = _NAME.fullmatch(file.name)
        if match is None or not file.is_file() or (asked and match["set"] != asked["set"]):
            continue
        part = "train" if match["part"] == "train" else "test"
        sets.setdefault(match["set"], {}).setdefault(part, {})[match["of"]] = file
    with_images = {
        name: {part: files for part, files in parts.items() if "images" in files} for name, parts in sets.items()
    }
    return folder, {name: parts for name, parts in with_images.items() if parts}


def _open(files: dict[str, dict[str, Path]]) -> Opened:
    if "test" not in files:
        return Opened(_rows(files["train"]))
    return Opened(_rows(files["train"]), _rows(files["test"]), held_out=files["test"]["images"].name)


def _rows(files: dict[str, Path]) -> Rows:
    images = files["images"]
    with told(images, "idx file"):
        count, height, width = _checked(images, 3)
        if min(height, width) < 1:
            raise ValueError(f"images of {width}x{height}")
        labels = _labels(files["labels"], count) if "labels" in files else None
    unlabelled = None if labels is not None else f"there is no file of labels beside {images.name}"
    return Rows(count, lambda: _examples(images, (count, height, width), labels), unlabelled)


def _examples(path: Path, shape: tuple[int, int, int], labels: np.ndarray | None) -> Iterator[Example]:
    count, height, width = shape
    with told(path, "idx file"), packed.opened(path) as file:
        _header(file, 3)
        for row in range(count):
            pixels = np.frombuffer(_exactly(file, height * width), dtype=np.uint8).reshape(height, width)
            label = None if labels is None else int(labels[row])
            yield Example(f"image {row} of {shown(path)}", pixels, label)


def _labels(path: Path, count: int) -> np.ndarray:
    with told(path, "idx file"):
        (found,) = _checked(path, 1)
        if found != count:
            raise DataError(f"source: {shown(path)} has {found:,} labels for {count:,} images: get both files anew")
        with packed.opened(path) as file:
            _header(file, 1)
            return np.frombuffer(_exactly(file, count), dtype=np.uint8).astype(np.int64)


def _checked(path: Path, axes: int) -> tuple[int, ...]:
    """The shape that the header tells, which is as long as the file: read through once, never believed before."""
    with packed.opened(path) as file:
        shape = _header(file, axes)
        wanted, found = math.prod(shape), 0
        while found <= wanted and (part := file.read(2**20)):
            found += len(part)
    if found != wanted:
        more = "more" if found > wanted else f"{found:,}"
        raise ValueError(f"its header tells of {' x '.join(map(str, shape))} bytes, and there are {more}")
    if not wanted:
        raise ValueError("it is empty")
    return shape


def _header(file: packed.Bounded, axes: int) -> tuple[int, ...]:
    magic = _exactly(file, 4)
    if magic[:2] != b"\0\0" or magic[3] != axes:
        raise ValueError(f"it begins with {magic.hex()}, not 0000 08 {axes:02}")
    if magic[2] != _UNSIGNED_BYTE:
        raise ValueError(f"its numbers are of type 0x{magic[2]:02x}, not unsigned bytes (0x08)")
    return tuple(int(size) for size in np.frombuffer(_exactly(file, 4 * axes), dtype=">u4"))


def _exactly(file: packed.Bounded, size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise ValueError("it ends too early")
    return content

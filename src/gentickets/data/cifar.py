"""CIFAR-10 and CIFAR-100 as their authors publish them for python: batches that are pickles, in a folder or `.tar.gz`.

A pickle may run anything. Here it may not: of all that it can call, five names are known, and in their place stand
objects that only keep what they were given. No code of the file's choosing, and none of numpy's, runs.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gentickets.data import packed
from gentickets.data.damage import shown, told
from gentickets.data.decoding import Example
from gentickets.data.sources import Opened, Rows, Source, file_identity
from gentickets.data.unread import beside
from gentickets.errors import DataError

WHAT = "CIFAR's python batches"

_SIDE = 32
# A pickle makes an object of each byte, if it wants. CIFAR-100's training images take some 300,000 operations.
_MOST_OPERATIONS = 2**21


class _Layout(NamedTuple):
    """The names of files and keys."""

    folder: str
    train: tuple[str, ...]
    test: str
    labels: bytes
    names_in: str
    names: bytes
    signs: tuple[tuple[str, ...], ...]  # a folder with all files of one of these is meant


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_LAYOUTS = (
    _Layout(
        folder="cifar-10-batches-py",
        train=_BATCHES,
        test="test_batch",
        labels=b"labels",
        names_in="batches.meta",
        names=b"label_names",
        signs=tuple((name,) for name in _BATCHES),
    ),
    _Layout(
        folder="cifar-100-python",
        train=("train",),
        test="test",
        labels=b"fine_labels",
        names_in="meta",
        names=b"fine_label_names",
        signs=(("train", "meta"),),
    ),
)


def holds(path: Path) -> bool:
    """Such a folder, the one that holds it, a batch within it, or the archive of that name."""
    if path.is_file():
        return _of_archive(path) is not None or _of_file(path) is not None
    return _of_folder(path) is not None


def find(path: Path) -> Source:
    """All training batches, in order; the test batch is held out."""
    if path.is_dir():
        found = _of_folder(path)
        assert found is not None
        folder, layout = found
        files = {name: folder / name for name in (*layout.train, layout.test, layout.names_in)}
        present = {name: file for name, file in files.items() if file.is_file()}
        if lacking := [name for name in layout.train if name not in present]:
            raise DataError(f"source: {shown(folder)} lacks {', '.join(lacking)}: unpack the whole archive again")
        unread = beside(path, folder)
        identity = {"cifar": [file_identity(file) for file in present.values()], "told": list(unread)}

        def read() -> Opened:
            return replace(_opened(layout, str(folder), _read_files(present)), left_out=unread)

        return Source(_name(layout), identity, read)
    layout_of_archive = _of_archive(path)
    if layout_of_archive is None:
        raise DataError(f"source: {shown(path)} is one batch of several: name the folder {shown(path.parent)}")
    layout = layout_of_archive
    return Source(
        _name(layout),
        {"cifar": [file_identity(path)]},
        lambda: _opened(layout, str(path), _read_archive(path, layout)),
    )


def whole(path: Path) -> Source:
    """One batch by itself."""
    layout = _of_file(path) if path.is_file() else None
    if layout is None:
        raise DataError(f"test: {shown(path)} has splits of its own: name one of its batches, such as test_batch")

    def read() -> Opened:
        with told(path, "batch of CIFAR"):
            return Opened(_rows([_batch(path.read_bytes(), layout.labels, path.name)], str(path)))

    return Source(_name(layout), {"cifar": [file_identity(path)]}, read)


def _name(layout: _Layout) -> str:
    return layout.folder.removesuffix("-batches-py").removesuffix("-python")


def _of_folder(path: Path) -> tuple[Path, _Layout] | None:
    """The folder of batches that `path` is, or holds."""
    for layout in _LAYOUTS:
        for folder in (path, path / layout.folder):
            if any(all((folder / name).is_file() for name in sign) for sign in layout.signs):
                return folder, layout
    return None


def _of_file(path: Path) -> _Layout | None:
    """The layout of the folder in which this file is a batch."""
    found = _of_folder(path.parent)
    return found[1] if found and found[0] == path.parent and path.name in (*found[1].train, found[1].test) else None


def _of_archive(path: Path) -> _Layout | None:
    for layout in _LAYOUTS:
        stem = _name(layout)
        if re.fullmatch(rf"{re.escape(stem)}(-python|-batches-py)?\.(tar\.gz|tgz|tar)", path.name):
            return layout
    return None


def _read_files(files: Mapping[str, Path]) -> Iterator[tuple[str, bytes]]:
    for name, file in files.items():
        if file.stat().st_size > packed.LARGEST:
            raise DataError(f"source: {shown(file)} has {file.stat().st_size:,} bytes: no batch of CIFAR is so large")
        with told(file, "batch of CIFAR"):
            yield name, file.read_bytes()


def _read_archive(path: Path, layout: _Layout) -> Iterator[tuple[str, bytes]]:
    """The archive's batches, in the order in which they lie there, which is not that of their numbers."""
    wanted = {*layout.train, layout.test, layout.names_in}
    with told(path, "archive of CIFAR"):
        for member, file in packed.members(path):
            name = member.name.rpartition("/")[2]
            if member.isreg() and not member.issparse() and name in wanted:
                wanted.discard(name)
                file.seek(member.offset_data)
                yield name, file.read(member.size)


class _Batch(NamedTuple):
    name: str
    pixels: np.ndarray
    labels: np.ndarray


def _opened(layout: _Layout, where: str, parts: Iterator[tuple[str, bytes]]) -> Opened:
    batches, classes = {}, None
    for name, content in parts:
        with told(f"{where}/{name}", "batch of CIFAR"):
            if name == layout.names_in:
                classes = _class_names(content, layout.names)
            else:
                batches[name] = _batch(content, layout.labels, name)
    if lacking := [name for name in layout.train if name not in batches]:
        raise DataError(f"source: {shown(where)} lacks {', '.join(lacking)}: get it anew")
    highest = max((int(batch.labels.max(initial=-1)) for batch in batches.values()), default=-1)
    if classes is not None and highest >= len(classes):
        raise DataError(f"source: {shown(where)} has a label {highest}, and names for {len(classes)}: get it anew")
    train = _rows([batches[name] for name in layout.train], where)
    if layout.test not in batches:
        return Opened(train, classes=classes)
    return Opened(train, _rows([batches[layout.test]], where), held_out=layout.test, classes=classes)


def _rows(batches: list[_Batch], where: str) -> Rows:
    def examples() -> Iterator[Example]:
        for batch in batches:
            for row, (pixels, label) in enumerate(zip(batch.pixels, batch.labels, strict=True)):
                yield Example(f"image {row} of {shown(where)}, {batch.name}", pixels, int(label))

    return Rows(sum(len(batch.labels) for batch in batches), examples)


def _batch(content: bytes, labels_key: bytes, name: str) -> _Batch:
    """The images of a batch, (n, 32, 32, 3), and their labels. Raises `ValueError` where it is anything else."""
    held = _unpickled(content)
    if not isinstance(held, dict):
        raise ValueError("it holds no dictionary")
    data, labels = (held.get(key, held.get(key.decode())) for key in (b"data", labels_key))
    if not isinstance(data, _Array):
        raise ValueError("it has no array 'data'")
    rows = data.checked()
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 1000 for label in labels):
        raise ValueError(f"its {labels_key.decode()!r} are no list of class numbers")
    if len(labels) != len(rows):
        raise ValueError(f"it has {len(labels)} labels for {len(rows)} images")
    pixels = rows.reshape(len(rows), 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return _Batch(name, pixels, np.array(labels, dtype=np.int64))


def _class_names(content: bytes, key: bytes) -> tuple[str, ...] | None:
    held = _unpickled(content)
    names = held.get(key, held.get(key.decode())) if isinstance(held, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names) or len(names) > 1000:
        return None
    return tuple(shown(name.decode("utf-8", "replace") if isinstance(name, bytes) else name) for name in names)


class _Array:
    """What stands in a pickle where numpy would make an array: keeps the state, and makes nothing."""

    state: Any = None

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state

    @classmethod
    def over(cls, raw: object, dtype: object, shape: object, order: object) -> _Array:
        """As numpy writes an array in pickles of protocol 5."""
        array = cls()
        array.state = (1, shape, dtype, order not in ("C", b"C"), raw)
        return array

    def checked(self) -> np.ndarray:
        """uint8 (n, 3072), a view of the bytes in the file."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("its array 'data' has no state")
        _, shape, dtype, by_columns, raw = self.state
        if not isinstance(dtype, _Dtype) or dtype.name not in ("u1", "uint8", b"u1", b"uint8") or by_columns:
            raise ValueError("its array 'data' is not of unsigned bytes, row by row")
        width = 3 * _SIDE * _SIDE
        if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != width or type(shape[0]) is not int:
            raise ValueError(f"its array 'data' is not of rows of {width} bytes")
        if not isinstance(raw, bytes | bytearray) or len(raw) != shape[0] * width or not raw:
            raise ValueError("its array 'data' is not as long as it says")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape[0], width)


class _Dtype:
    """A dtype's name."""

    def __init__(self, name: object = "", *_: object):
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.numeric", "_frombuffer"): _Array.over,
    ("numpy", "ndarray"): object,
    ("numpy", "dtype"): _Dtype,
}
"""The names that the batches use → what stands for them here; and `_codecs.encode`, by which python 3 writes bytes for
python 2."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._left = len(content)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encoded
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise ValueError(f"it wants to call {module}.{name}, which no batch of CIFAR does") from None

    def _encoded(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise ValueError("it holds bytes in a way that no batch of CIFAR does")
        self._left -= len(text)  # one long text may not be encoded again and again
        if self._left < 0:
            raise ValueError("it makes more bytes than it has")
        return text.encode("latin1")


def _unpickled(content: bytes) -> Any:
    """Plain data, with stand-ins for arrays."""
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if number > _MOST_OPERATIONS:
            raise ValueError(f"it has more than {_MOST_OPERATIONS:,} operations")
        # The unpickler makes room for as many remembered values as a file says it will have.
        if "PUT" in operation.name and int(argument or 0) > len(content):
            raise ValueError("it is damaged: it numbers its values beyond its end")
    return _Unpickler(content).load()

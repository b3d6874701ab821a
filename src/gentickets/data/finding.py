"""From the word that a recipe says to the source that it means."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from gentickets.data import archives, arrays, celeba, cifar, digits, folders, hub, idx, parquet
from gentickets.data.sources import Source, joined
from gentickets.errors import DataError


class Format(Protocol):
    """A way in which image sets lie on a disk: a module with these. `WHAT`: what it takes, for messages."""

    WHAT: str

    def holds(self, path: Path) -> bool:
        """Whether this path is such a set. By names and first bytes alone."""

    def find(self, path: Path) -> Source:
        """The set, with the split of its own that it holds out, if it has one."""

    def whole(self, path: Path) -> Source:
        """All of it as one split, which another set holds out. Raises `DataError` where it has splits of its own."""


# The first that holds a path takes it.
_FOLDERS: tuple[Format, ...] = (celeba, cifar, idx, parquet, folders)
_FILES: tuple[Format, ...] = (parquet, arrays, cifar, idx, archives)


def find(source: str | Source, test: str | None) -> Source:
    """The source that `source` is, or names: a set built in, a hub id, or a file or folder of a format that is known.

    `test` names another file or folder, whose images are held out. Raises `DataError` where there is none.
    """
    if isinstance(source, Source):
        return source if test is None else _with_test(Path(source.name), source, test)
    for key, said in (("source", source), ("test", test)):
        if said is not None and "\0" in said:
            raise DataError(f"{key}: {said!r} is no path: name {_taken()}")
    path = Path(os.path.expanduser(source))
    built_in = source == "digits" or source in hub.SHORT_NAMES
    with _one_line(source):
        local = not built_in and path.exists()
        if test is not None and not local and (built_in or _globbed(source) is None):
            raise DataError(f"test: {test} goes with a local file or folder, and {source!r} is none: leave test out")
        if built_in:
            return digits.find() if source == "digits" else hub.find(source)
        if local:
            found = _format_of(path, "source").find(path)
            return found if test is None else _with_test(path, found, test)
        if (shards := _globbed(source)) is not None:
            found = parquet.of_files(*shards)
            return found if test is None else _with_test(path, found, test)
        if path.is_symlink():
            raise DataError(f"source: {source} is a link to {os.readlink(path)}, which does not exist: mend it")
    if not source.endswith(".parquet") and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return hub.find(source)
    known = ", ".join(("digits", *hub.SHORT_NAMES))
    raise DataError(f"source: {source!r} does not exist: name {_taken()}, a hub id, or one of {known}")


def _with_test(path: Path, found: Source, test: str) -> Source:
    held = Path(os.path.expanduser(test))
    with _one_line(test, "test"):
        if not held.exists() and (shards := _globbed(test, "test")) is not None:
            return joined(found, parquet.whole_of_files(*shards), f"data.test ({test})")
        if not held.exists():
            raise DataError(f"test: {test} does not exist: name {_taken()}")
        if path.exists() and held.samefile(path):
            raise DataError(f"test: {test} is the source itself: name other images, or leave test out")
        return joined(found, _format_of(held, "test").whole(held), f"data.test ({test})")


def _globbed(source: str, key: str = "source") -> tuple[list[Path], Path] | None:
    """The parquet shards that a pattern such as `shards/*.parquet` names, and the folder around them all."""
    if not any(sign in source for sign in "*?["):
        return None
    files = [Path(name) for name in sorted(glob.glob(os.path.expanduser(source), recursive=True))]
    if not files:
        raise DataError(f"{key}: {source!r} fits no file: name {_taken()}")
    if other := next((file for file in files if not (file.is_file() and parquet.holds(file))), None):
        raise DataError(f"{key}: {source!r} fits {other}: a pattern is for .parquet files, else name the folder")
    return files, Path(os.path.commonpath([file.parent for file in files]))


def _format_of(path: Path, key: str) -> Format:
    for kind in _FOLDERS if path.is_dir() else _FILES:
        if kind.holds(path):
            return kind
    raise DataError(f"{key}: {path} is nothing that is read: name {_taken()}")


def _taken() -> str:
    """What can be named, in words."""
    return ", ".join(dict.fromkeys(kind.WHAT for kind in (*_FILES, *_FOLDERS)))


@contextlib.contextmanager
def _one_line(source: str, key: str = "source") -> Iterator[None]:
    """Turns what the disk refuses into one line that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(f"{key}: {source[:60]}… is longer than a path can be: name {_taken()}") from error
        place = os.fsdecode(error.filename) if error.filename is not None else source
        raise DataError(f"{key}: {place} cannot be read ({error.strerror}): check its permissions") from error

"""Files that are whole or absent, whatever happens while they are written; and plain ones when they are read."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears at `path` whole or not at all, whoever else writes it at the same time.

    Written beside its place, synced, renamed. Raises `OSError` where that fails; what was at `path` is then
    still there.
    """
    beside = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial"
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def replace_file(path: Path, content: bytes | Sequence[bytes | memoryview]) -> None:
    """Writes `content`, which may be in pieces, to `path`, whole or not at all; makes its folder. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        file.writelines([content] if isinstance(content, bytes) else content)


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name, whatever was there; a copy where the file system has no such thing."""
    beside = target.parent / f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial"
    try:
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)
        os.replace(beside, target)
    finally:
        with contextlib.suppress(OSError):  # of one file under two names, a replacement leaves both
            beside.unlink()


def read_file(path: Path, most: int | None = None) -> bytes:
    """The bytes of a plain file of no more than `most`; not of a pipe or a device, which may have no end.

    Raises `OSError`.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        if most is not None and state.st_size > most:
            raise OSError(errno.EFBIG, f"it has {state.st_size:,} bytes, and no more than {most:,} are read", str(path))
        return file.read()

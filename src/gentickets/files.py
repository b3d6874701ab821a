"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
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


def replace_file(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all; makes its folder. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        file.write(content)

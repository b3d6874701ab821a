"""The folder where decoded images and computed features are kept, and files that are whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from gentickets import files
from gentickets.errors import DataError


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """`cache` itself, else the environment's GENTICKETS_CACHE, else `gentickets` in the user's cache."""
    if cache is not None:
        return Path(os.path.expanduser(cache))
    if named := os.environ.get("GENTICKETS_CACHE"):
        return Path(os.path.expanduser(named))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "gentickets"


def content_key(parts: Mapping[str, Any]) -> str:
    """A short hash of everything that decides what a cached file holds."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears at `path` whole or not at all, whoever else writes it at the same time.

    Raises `DataError` where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.writing(path) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"cache: cannot write {path} ({error.strerror}): free some space, or name "
            f"another folder by cache= or GENTICKETS_CACHE"
        ) from error

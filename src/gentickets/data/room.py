"""What fits into memory, asked before anything is built."""

from __future__ import annotations

import math
import os
from pathlib import Path

from gentickets.errors import DataError

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory() -> float:
    """Bytes of memory that this process may have: the machine's, or its cgroup's; infinite where nothing says so."""
    try:
        most: float = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        most = math.inf
    for limit in _LIMITS:
        try:
            most = min(most, int(limit.read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    return most


def check_room(what: str, count: int, shape: tuple[int, int, int], of_bytes: int, mend: str) -> None:
    """Raises `DataError` where `count` images (channels, height, width) of so many bytes a value do not fit."""
    channels, height, width = shape
    needed, there = count * channels * height * width * of_bytes, memory()
    if needed > there:
        raise DataError(
            f"{what}: {count:,} images of {channels}x{height}x{width} take {needed / 1e9:,.1f} GB, and there are "
            f"{there / 1e9:,.1f} GB of memory: {mend}"
        )

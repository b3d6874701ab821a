"""What fits into memory, asked before anything is built."""

from __future__ import annotations

from gentickets.cores import memory
from gentickets.errors import DataError


def check_room(what: str, count: int, shape: tuple[int, int, int], of_bytes: int, mend: str) -> None:
    """Raises `DataError` where `count` images (channels, height, width) of so many bytes a value do not fit."""
    channels, height, width = shape
    needed, there = count * channels * height * width * of_bytes, memory()
    if needed > there:
        raise DataError(
            f"{what}: {count:,} images of {channels}x{height}x{width} take {needed / 1e9:,.1f} GB, and there are "
            f"{there / 1e9:,.1f} GB of memory: {mend}"
        )

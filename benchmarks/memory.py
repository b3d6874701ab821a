"""The peak memory of one call."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_bytes(run: Callable[[], object]) -> int | None:
    """The most that the process held in memory during `run`, above what it held before; None where Linux isn't."""
    gc.collect()
    try:
        _RESET.write_text("5")  # sets the high-water mark back to what is held now
        before = _high_water()
        run()
        return _high_water() - before
    except (OSError, LookupError):
        return None


def _high_water() -> int:
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(fields["VmHWM"].split()[0]) * 1024

"""How many cores and how much memory there are to use: those that this process was given, not those of the machine; and
how much of it this process holds."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")


def cores() -> int:
    """The cores that this process may run on, by its affinity (taskset, SLURM, cpusets) and its cgroup's quota."""
    try:
        given = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        given = os.cpu_count() or 1
    return max(1, int(min(given, _quota(OWN_CGROUP, CGROUPS))))


def threads_at_most(share: int) -> int:
    """`share` cores, or fewer where OMP_NUM_THREADS says so: whoever sets it means all that counts threads."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, min(share, int(told))) if told.isdecimal() else share


def memory() -> float:
    """Bytes of memory that this process may take: those of the machine, or a limit of its cgroup or one above it.

    Infinite where nothing says so.
    """
    try:
        found: float = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        found = math.inf
    limits = [folder / "memory.max" for folder in _cgroups(OWN_CGROUP, CGROUPS)]
    for limit in (*limits, CGROUPS / "memory.max", CGROUPS / "memory" / "memory.limit_in_bytes"):
        try:
            found = min(found, int(limit.read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return found


def peak_memory() -> int:
    """The most bytes that this process has held at once, shared pages among them.

    Not as `getrusage` has it, if that can be helped: there a process begins with the peak of the one that started it.
    """
    if (told := _status("VmHWM")) is not None:
        return told
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def held_memory() -> int:
    """The bytes that this process holds now; its peak where the system does not say."""
    return told if (told := _status("VmRSS")) is not None else peak_memory()


def forget_peak() -> None:
    """From now on `peak_memory` is of what follows, where the system can do that."""
    with contextlib.suppress(OSError):
        _FORGET.write_text("5")


def give_back() -> None:
    """Lets the system have what this process has freed and its allocator keeps, where that can be asked for."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(key: str) -> int | None:
    """A size of this process in bytes, as Linux tells it."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split() for line in lines if line.startswith(f"{key}:")), [])
    return int(found[1]) * 1024 if len(found) == 3 and found[1].isdecimal() else None


def _quota(own: Path, root: Path) -> float:
    """Cores' worth of time that the cgroup, or one above it, may take (`cpu.max`); infinite where nothing says so."""
    found = math.inf
    for folder in _cgroups(own, root):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            found = min(found, int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):  # no such limit, or "max"
            continue
    return found


def _cgroups(own: Path, root: Path) -> Iterator[Path]:
    """The folders of this process's cgroup and of those above it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    path = next((line.partition("::")[2] for line in lines if line.startswith("0::")), "/")
    place = root / path.strip("/")
    for folder in (place, *place.parents):
        if folder == root.parent:
            return
        yield folder

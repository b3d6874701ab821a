"""Claims: who works on which piece, agreed on by files in a folder that all workers see.

    RUN/.claims/seed-0+level-03/1       who took it first: a process, on which machine
    RUN/.claims/seed-0+level-03/1.beat  renewed while that process lives, with how far it is
    RUN/.claims/seed-0+level-03/1.over  given back: stopped, or failed and why
    RUN/.claims/seed-0+level-03/2       who took it after that

A number is taken by a hard link, which one worker alone can make; it is the claim's fence, and says whose partial
folder is whose. A claim is over where its owner gave it back, where its process is gone from this very machine, or
where its beat has not changed for a lease on the *observer's* monotonic clock: the clocks of two machines are never
compared.

A claim spares work; it protects nothing. A worker that slept past its lease may wake at any line and go on. What
protects is the publishing: a level's folder is renamed onto its place, and that fails where there is one already.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gentickets.errors import GenticketsError
from gentickets.files import read_file

LEASE_SECONDS = 180.0
"""How long a beat may stay the same before its owner counts as gone: far above the 60 s that NFS may show old
attributes."""

BEATS_PER_LEASE = 36

FOLDER = ".claims"

_MOST_BYTES = 2**16


@dataclass(frozen=True)
class Owner:
    """The process that took a claim. `machine`: equal for two processes that see each other's numbers, and for them
    alone; `started`: when it began, on that machine's own clock, so that a number used again is not taken for it."""

    token: str
    machine: str
    host: str
    process: int
    started: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@dataclass(frozen=True)
class Beat:
    """What an owner last told of itself: how long it has been at it, and how far it is."""

    seconds: float = 0.0
    done: int = 0
    total: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class Held:
    """A piece's newest claim as it is read: `over` where it was given back, with the reason where it failed."""

    number: int
    owner: Owner | None
    beat: Beat
    over: bool
    failure: str | None


class Claims:
    """The claims of one folder, as one process sees them over time."""

    def __init__(self, folder: Path, lease_seconds: float | None = None):
        self.folder = folder / FOLDER
        self.lease_seconds = _lease() if lease_seconds is None else lease_seconds
        self._watched: dict[tuple[str, int], tuple[bytes, float]] = {}

    def take(self, name: str) -> Claim | None:
        """Claims a piece; None where somebody has it, or was faster. Raises `OSError` where nothing can be written."""
        newest = self.newest(name)
        gone = newest is not None and newest.owner is not None and is_gone(newest.owner)
        if newest is not None and not (newest.over or gone or self._is_silent(name, newest.number)):
            return None
        place = self._place(name)
        place.mkdir(parents=True, exist_ok=True)
        number = 1 if newest is None else newest.number + 1
        owner = _myself()
        if not _link_once(place / str(number), json.dumps(asdict(owner)).encode(), owner.token):
            return None
        return Claim(place, number, self.lease_seconds / BEATS_PER_LEASE, newest is None or newest.over or gone)

    def newest(self, name: str) -> Held | None:
        """The claim with the highest number; None where nobody ever took the piece."""
        place = self._place(name)
        number = _newest(place)
        if number is None:
            return None
        over, failure = _given_back(place / f"{number}.over")
        return Held(number, _owner(place / str(number)), _beat(place / f"{number}.beat"), over, failure)

    def is_live(self, name: str) -> bool:
        """Whether somebody may be at work on a piece: its claim is not known to be over."""
        newest = self.newest(name)
        if newest is None or newest.over or (newest.owner is not None and is_gone(newest.owner)):
            return False
        return not self._is_silent(name, newest.number)

    def names(self) -> list[str]:
        """The pieces that were ever claimed and are not complete."""
        try:
            return sorted(entry.name.replace("+", "/") for entry in self.folder.iterdir() if entry.is_dir())
        except FileNotFoundError:
            return []

    def forget(self, name: str) -> None:
        """Removes a complete piece's claims. Whoever slept over them is refused where it publishes."""
        shutil.rmtree(self._place(name), ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # where nothing else is claimed

    def _place(self, name: str) -> Path:
        return self.folder / name.replace("/", "+")

    def _is_silent(self, name: str, number: int) -> bool:
        """Whether a beat has stayed the same for a lease, as far as this process has watched it."""
        try:
            now = read_file(self._place(name) / f"{number}.beat", _MOST_BYTES)
        except OSError:
            now = b""  # taken a moment ago, or by an owner that never came to its first beat
        before, since = self._watched.get((name, number), (None, 0.0))
        if now != before:
            self._watched[name, number] = now, time.monotonic()
            return False
        return time.monotonic() - since > self.lease_seconds


class Claim:
    """A piece that this process has claimed; a thread renews its beat until it is given back.

    `number` is its fence. `clean`: whether whoever had it before is known to write no more, rather than only silent.
    `lost`: somebody else has taken the piece since, because this process was silent; or it was removed. Looked at beat
    by beat.
    """

    def __init__(self, place: Path, number: int, every: float, clean: bool):
        self._place, self.number, self.clean = place, number, clean
        self.beat = Beat()
        self._begun = time.monotonic()
        self._over = threading.Event()
        self.lost = False
        self._write_beat()
        self._thread = threading.Thread(target=self._renew, args=(every,), daemon=True)
        self._thread.start()

    def tell(self, done: int, total: int, rate: float) -> None:
        """How far this is, for whoever reads the next beat."""
        self.beat = Beat(time.monotonic() - self._begun, done, total, rate)

    def give_back(self, failure: str | None = None) -> None:
        """Ends the claim: the next who asks may take the piece. `failure`: why it could not be made."""
        self._end()
        said = json.dumps({"failure": failure}).encode()
        with contextlib.suppress(OSError):  # then its silence says so
            _write(self._place / f"{self.number}.over", said)

    def complete(self, claims: Claims, name: str) -> None:
        """Ends the claim of a piece that is complete, and removes what was claimed of it."""
        self._end()
        claims.forget(name)

    def _end(self) -> None:
        self._over.set()
        self._thread.join()

    def _renew(self, every: float) -> None:
        while not self._over.wait(every):
            self.lost = _newest(self._place) != self.number
            self._write_beat()

    def _write_beat(self) -> None:
        told = asdict(self.beat) | {"seconds": time.monotonic() - self._begun}
        with contextlib.suppress(OSError):  # others may take it over then, and this process cannot publish
            _write(self._place / f"{self.number}.beat", json.dumps(told).encode())


def check_at_rest(folder: Path) -> None:
    """Raises `GenticketsError` where somebody may be at work on a piece of a run."""
    claims = Claims(folder)
    for name in claims.names():
        newest = claims.newest(name)
        if newest is not None and claims.is_live(name):
            who = newest.owner or "a process unknown"
            raise GenticketsError(
                f"{folder} is being worked on ({name} by {who}): stop that first; or remove {claims.folder}, where it "
                f"is long gone"
            )


def is_gone(owner: Owner) -> bool:
    """Whether an owner's process is known to have ended: one of this machine that is no longer there."""
    if owner.machine != _machine():
        return False
    return _started(owner.process) != owner.started


# -- files ------------------------------------------------------------------------------------------------------------


def _link_once(path: Path, content: bytes, token: str) -> bool:
    """Makes a file that is there whole or not at all, and was not there before; False where somebody else made it."""
    beside = path.with_name(f".{path.name}.{token}")
    _write(beside, content)
    try:
        os.link(beside, path)
    except FileExistsError:
        # Over NFS the answer to a link that was made may be lost, and the second try finds it there.
        owner = _owner(path)
        return owner is not None and owner.token == token
    except FileNotFoundError:
        return False  # the piece was completed meanwhile, and its claims removed
    except OSError as error:
        raise GenticketsError(
            f"{path.parent} cannot hold claims ({error.strerror}): several commands share a run by hard links, and "
            f"this file system has none; take another --runs"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return True


def _write(path: Path, content: bytes) -> None:
    """Opened and closed for each writing: that is when NFS sends it, and when a reader sees it."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _newest(place: Path) -> int | None:
    try:
        numbers = [int(entry) for entry in os.listdir(place) if entry.isdigit()]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return max(numbers, default=None)


def _read(path: Path) -> dict[str, Any]:
    """A small file's keys and values; none where it is not there or not whole yet."""
    try:
        found = json.loads(read_file(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _owner(path: Path) -> Owner | None:
    found = _read(path)
    try:
        return Owner(**{**found, "process": int(found["process"])})
    except (KeyError, TypeError, ValueError):
        return None


def _beat(path: Path) -> Beat:
    try:
        return Beat(**{key: float(value) for key, value in _read(path).items()})  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return Beat()


def _given_back(path: Path) -> tuple[bool, str | None]:
    if not path.exists():
        return False, None
    failure = _read(path).get("failure")
    return True, None if failure is None else str(failure)


# -- processes
# ----------------------------------------------------------------------------------------------------------


def _lease() -> float:
    said = os.environ.get("GENTICKETS_LEASE")
    try:
        seconds = LEASE_SECONDS if said is None else float(said)
    except ValueError:
        seconds = -1.0
    if not 0.5 <= seconds <= 86_400:
        raise GenticketsError(
            f"GENTICKETS_LEASE={said!r}: seconds from 0.5 to 86400 are needed; default {LEASE_SECONDS:.0f}"
        )
    return seconds


def _myself() -> Owner:
    process = os.getpid()
    return Owner(uuid.uuid4().hex, _machine(), platform.node(), process, _started(process) or "")


@cache
def _machine() -> str:
    """This start of this machine, as far as its processes see each other: a container is one of its own."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started}-{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{platform.node()}-{uuid.getnode():x}"


def _started(process: int) -> str | None:
    """When a process of this machine began, in ticks of its kernel; None where it is not there any more."""
    if sys.platform == "linux":
        try:
            # After the command's name, in brackets: the state, and 19 fields on the start.
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""

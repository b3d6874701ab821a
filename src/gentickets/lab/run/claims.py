"""Claims: who works on which piece, agreed on by files in a folder that all workers see.

    RUN/.claims/seed-0+level-03/1       who took it first: a process, on which machine
    RUN/.claims/seed-0+level-03/1.beat  renewed while that process lives, with how far it is
    RUN/.claims/seed-0+level-03/1.over  given back: stopped, or failed and why
    RUN/.claims/seed-0+level-03/2       who took it after that
    RUN/.claims/run/1                   who has the run to itself: nobody takes a piece of it meanwhile

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
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator
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

_WHOLE = "run"
"""What is claimed by whoever replaces what others work on. It is no piece's name."""

_LOOKS_PER_LEASE = 4
"""How often an owner must be seen silent before it counts as gone. A watcher that was stopped itself, for however
long, has looked once."""

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
        self._watched: dict[tuple[str, int], tuple[bytes, float, float]] = {}

    def take(self, name: str, above: int = 0) -> Claim | None:
        """Claims a piece; None where somebody has it, or was faster, or has the whole run. Its number is higher than
        `above`: than that of any folder in which the piece was built. Raises `OSError` where nothing can be written.
        """
        if self.is_live(_WHOLE):
            return None
        claim = self._take(name, above)
        if claim is not None and self.is_live(_WHOLE):  # since a moment ago: one of the two sees the other's
            claim.give_back()
            return None
        return claim

    @contextlib.contextmanager
    def alone(self) -> Iterator[Claim]:
        """Nobody takes a piece meanwhile, unless this is `lost`. Raises `GenticketsError` where somebody may be at work
        on one."""
        claim = self._take(_WHOLE, 0)
        if claim is None:
            newest = self.newest(_WHOLE)
            who = (newest and newest.owner) or "another command"
            raise GenticketsError(
                f"{self.folder.parent} is being judged or begun anew by {who}: wait for that; or remove "
                f"{self._place(_WHOLE)}, where it is long gone"
            )
        try:
            check_at_rest(self.folder.parent)
            yield claim
        finally:
            claim.complete(self, _WHOLE)

    def _take(self, name: str, above: int) -> Claim | None:
        if self.folder.is_symlink():
            raise GenticketsError(f"{self.folder} is a link, and no folder of ours: remove it")
        newest = self.newest(name)
        if newest is not None and self._may_live(name, newest):
            return None
        place, owner = self._place(name), _myself()
        number = max(above, newest.number if newest is not None else 0) + 1
        try:
            place.mkdir(parents=True, exist_ok=True)
            if not _made_once(place / str(number), json.dumps(asdict(owner)).encode(), owner.token):
                return None
        except FileNotFoundError:
            return None  # the piece was completed meanwhile, and its claims removed
        return Claim(place, number, owner.token, self.lease_seconds / BEATS_PER_LEASE, self._ended(name, number))

    def newest(self, name: str) -> Held | None:
        """The claim with the highest number; None where nobody ever took the piece."""
        place = self._place(name)
        number = max(_numbers(place), default=None)
        return None if number is None else _held(place, number)

    def _ended(self, name: str, number: int) -> frozenset[int]:
        """The claims before one whose owners are known to write no more, rather than only silent."""
        place = self._place(name)
        before = (_held(place, one) for one in _numbers(place) if one < number)
        return frozenset(held.number for held in before if held.over or (held.owner and is_gone(held.owner)))

    def is_live(self, name: str) -> bool:
        """Whether somebody may be at work on a piece: its claim is not known to be over."""
        newest = self.newest(name)
        return newest is not None and self._may_live(name, newest)

    def _may_live(self, name: str, newest: Held) -> bool:
        if newest.over or (newest.owner is not None and is_gone(newest.owner)):
            return False
        return not self._is_silent(name, newest.number)

    def names(self) -> list[str]:
        """The pieces that were ever claimed, and whose claims were not removed since."""
        try:
            found = sorted(entry.name.replace("+", "/") for entry in self.folder.iterdir() if entry.is_dir())
        except FileNotFoundError:
            return []
        return [name for name in found if name != _WHOLE]

    def forget(self, name: str) -> None:
        """Removes a complete piece's claims. Whoever slept over them is refused where it publishes."""
        shutil.rmtree(self._place(name), ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # where nothing else is claimed

    def clear(self) -> None:
        """Removes the claims of all pieces."""
        for name in self.names():
            self.forget(name)

    def _place(self, name: str) -> Path:
        return self.folder / name.replace("/", "+")

    def _is_silent(self, name: str, number: int) -> bool:
        """Whether a beat has stayed the same for a lease, as far as this process has watched it."""
        try:
            beat = read_file(self._place(name) / f"{number}.beat", _MOST_BYTES)
        except OSError:
            beat = b""  # taken a moment ago, or by an owner that never came to its first beat
        now = time.monotonic()
        before, looked, silent = self._watched.get((name, number), (None, now, 0.0))
        silent = silent + min(now - looked, self.lease_seconds / _LOOKS_PER_LEASE) if beat == before else 0.0
        self._watched[name, number] = beat, now, silent
        return silent > self.lease_seconds


class Claim:
    """A piece that this process has claimed; a thread renews its beat until it is given back.

    `number` is its fence. `ended`: the claims before it whose owners are known to write no more. `lost`: somebody else
    has taken the piece since, because this process was silent; or the claim was removed.
    """

    def __init__(self, place: Path, number: int, token: str, every: float, ended: frozenset[int]):
        self._place, self._token, self.number, self.ended = place, token, number, ended
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

    def look(self) -> bool:
        """Whether it is lost, as the folder says now. Once lost is lost."""
        with contextlib.suppress(OSError):  # a folder that cannot be read for a moment says nothing
            newest = max(_numbers(self._place), default=None)
            owner = _owner(self._place / str(self.number))
            if newest != self.number or (owner is not None and owner.token != self._token):
                self.lost = True
        return self.lost

    def give_back(self, failure: str | None = None) -> None:
        """Ends the claim: the next who asks may take the piece. `failure`: why it could not be made."""
        self._end()
        said = json.dumps({"token": self._token, "failure": failure}).encode()
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
            self.look()
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
        # Of a piece that is there, whoever claimed it was killed before it could say so.
        if newest is not None and claims.is_live(name) and not (folder / name).is_dir():
            who = newest.owner or "a process unknown"
            raise GenticketsError(
                f"{folder} is being worked on ({name} by {who}): stop that first; or remove {claims.folder}, where it "
                f"is long gone"
            )


def sweep(folder: Path) -> None:
    """Removes the claims of pieces that are complete: of those who were killed right after they published."""
    claims = Claims(folder)
    for name in claims.names():
        if (folder / name).is_dir():
            claims.forget(name)


def is_gone(owner: Owner) -> bool:
    """Whether an owner's process is known to have ended: one of this machine that is no longer there."""
    if owner.machine != _machine():
        return False
    try:
        os.kill(owner.process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # of another user, and there; or a number that says nothing
    now = _started(owner.process)
    return now is not None and now != owner.started


# -- files ------------------------------------------------------------------------------------------------------------


def _made_once(path: Path, content: bytes, token: str) -> bool:
    """Makes a file that was not there before; False where somebody else made it. Raises `FileNotFoundError` where its
    folder is gone.

    By a hard link it is there whole or not at all, over NFS too. Where the file system has none, by opening what must
    not be there: until it is written its owner is unknown, and not gone.
    """
    beside = path.with_name(f".{path.name}.{token}")
    try:
        _write(beside, content)
        os.link(beside, path)
    except FileExistsError:
        return _is_ours(path, token)
    except FileNotFoundError:
        raise
    except OSError:
        return _opened_once(path, content, token)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return True


def _opened_once(path: Path, content: bytes, token: str) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return _is_ours(path, token)
    return True


def _is_ours(path: Path, token: str) -> bool:
    """Over NFS the answer to what was done may be lost, and the second try finds it there already."""
    owner = _owner(path)
    return owner is not None and owner.token == token


def _write(path: Path, content: bytes) -> None:
    """Opened and closed for each writing: that is when NFS sends it, and when a reader sees it."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _numbers(place: Path) -> list[int]:
    try:
        return [int(entry) for entry in os.listdir(place) if re.fullmatch(r"[0-9]{1,18}", entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _held(place: Path, number: int) -> Held:
    owner = _owner(place / str(number))
    over, failure = _given_back(place / f"{number}.over", owner)
    return Held(number, owner, _beat(place / f"{number}.beat"), over, failure)


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


def _given_back(path: Path, owner: Owner | None) -> tuple[bool, str | None]:
    """Whether the owner of a claim said that it is over, and why it failed. Nobody else can say so."""
    found = _read(path)
    if not found or (owner is not None and found.get("token") != owner.token):
        return False, None
    failure = found.get("failure")
    return True, None if failure is None else str(failure)


# -- processes --------------------------------------------------------------------------------------------------------


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
    """This start of this machine, as far as its processes see each other: a container is one of its own.

    Where that cannot be known it is this process alone, whose end others then see by its silence.
    """
    if sys.platform != "linux":
        return f"{platform.node()}-{uuid.getnode():x}"
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()}-{started}-{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def _started(process: int) -> str | None:
    """When a process of this machine began, in ticks of its kernel, or that it has ended; None where nothing says."""
    try:
        # After the command's name, in brackets: the state, and 19 fields on the start.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "ended" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None

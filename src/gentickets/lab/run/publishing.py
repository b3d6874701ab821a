"""A level's folder: built beside its place, published whole or not at all, never onto another's work.

It is built as `.level-03.1.partial` (the number is its builder's claim), synced and renamed, onto nothing: where
another was faster, that one stays. Resuming is: skip what is complete, go on with what is partial. `SHA256SUMS` in a
complete folder has the digests of its files, as `sha256sum -c` reads them; metrics.json, which is written again by
`evaluate`, carries its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from gentickets.files import read_file, replace_file
from gentickets.sealed import Damaged

CHECKPOINT = "checkpoint.pt"
SUMS = "SHA256SUMS"

_BEGUN = ".begun"
"""Lies in a folder in the making. Where it is gone the folder was removed, and what is there was written since."""


def level_name(level: int, arm: str = "ticket") -> str:
    """`level-03`, or `level-03-random_mask` for a control."""
    return f"level-{level:02d}" if arm == "ticket" else f"level-{level:02d}-{arm}"


def partial_of(place: Path, fence: int | None = None) -> Path:
    """Where a level's folder is built before it is complete: by whoever has the claim of this number, or the newest."""
    if fence is None:
        fence = newest_fence(place)
    return place.with_name(f".{place.name}.{fence}.partial" if fence else f".{place.name}.partial")


def newest_fence(place: Path) -> int:
    """The highest number of a claim by which a level's folder was begun, whoever removed the claims since; 0: none."""
    return max((number for number, _ in _partials(place)), default=0)


def _partials(place: Path) -> list[tuple[int, Path]]:
    """The folders in which a level is or was built; those of older versions have no number, and count as 0."""
    named = re.compile(rf"\.{re.escape(place.name)}(?:\.(\d+))?\.partial")
    entries = place.parent.iterdir() if place.parent.is_dir() else ()
    found = ((named.fullmatch(entry.name), entry) for entry in entries)
    return sorted((int(match[1] or 0), entry) for match, entry in found if match is not None and entry.is_dir())


class Published(Exception):
    """Somebody else completed the level meanwhile; what was built of it here is gone."""


@contextlib.contextmanager
def building(place: Path, fence: int = 0) -> Iterator[Path]:
    """A folder to build in; complete on leaving without an exception, kept for a resumption otherwise.

    Raises `Published` where `place` is there by then: a folder is renamed onto nothing, never onto another's work. And
    where the folder is not the one that was begun: somebody removed it, and what was written since is not all of it.
    """
    partial = partial_of(place, fence)
    partial.mkdir(parents=True, exist_ok=True)
    if place.exists():  # looked at once more: what was made beside it makes NFS forget that there was nothing
        shutil.rmtree(partial, ignore_errors=True)
        raise Published(place)
    remove_halves(partial)
    (partial / _BEGUN).touch()
    yield partial
    if not (partial / _BEGUN).exists():
        shutil.rmtree(partial, ignore_errors=True)
        raise Published(place)
    (partial / _BEGUN).unlink()
    (partial / CHECKPOINT).unlink(missing_ok=True)
    sums = _write_sums(partial)
    for file in partial.iterdir():
        _sync(file)
    _sync(partial)
    try:
        os.rename(partial, place)
    except OSError as error:
        if not place.is_dir():
            raise
        # Over NFS the answer to a rename that was done may be lost, and the second try finds nothing to rename.
        if partial.exists() or (place / SUMS).read_bytes() != sums:
            shutil.rmtree(partial, ignore_errors=True)
            raise Published(place) from error
    _sync(place.parent)
    sweep(place)


def sweep(place: Path) -> None:
    """Removes all that was built of a level that is complete, and what was half written in it. Whoever still builds
    there comes too late."""
    remove_halves(place)
    for path in (*(path for _, path in _partials(place)), *place.parent.glob(f".{place.name}.*.copy")):
        shutil.rmtree(path, ignore_errors=True)


def go_on_from(place: Path, fence: int, ended: Collection[int]) -> None:
    """Gives the claim `fence` what one before it had built of a level.

    Where its owner is known to write no more (`ended`), the folder is renamed. Else it is copied: whoever only slept
    would write into what is another's by then.
    """
    before = [(number, path) for number, path in _partials(place) if number < fence]
    if not before or partial_of(place, fence).exists():
        return
    number, newest = before[-1]
    if number in ended:
        os.rename(newest, partial_of(place, fence))
        return
    beside = place.with_name(f".{place.name}.{fence}.{uuid.uuid4().hex[:8]}.copy")
    with contextlib.suppress(FileNotFoundError):  # it goes on, or publishes, after all
        beside.mkdir()
        # The state first: what was written after it is made again, what is older than it would be lost.
        for file in sorted(newest.iterdir(), key=lambda file: file.name != CHECKPOINT):
            shutil.copyfile(file, beside / file.name)
        os.rename(beside, partial_of(place, fence))
    shutil.rmtree(beside, ignore_errors=True)


def drop(place: Path) -> None:
    """Removes a complete level: at once, for whoever looks, and half of it is never taken for a level."""
    beside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.copy")
    os.rename(place, beside)
    shutil.rmtree(beside)


def remove_halves(folder: Path) -> None:
    """Removes the files that a command was writing when it was killed. Nobody else may write there."""
    for half in folder.glob(".*.partial"):
        if half.is_file():  # and no level in the making
            half.unlink(missing_ok=True)


def _write_sums(folder: Path) -> bytes:
    """The digests of all that a level's folder holds, but for metrics.json, which is written again by `evaluate`."""
    files = sorted(file for file in folder.iterdir() if file.name not in (SUMS, "metrics.json") and file.is_file())
    return list_digests(folder, {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})


def changed_files(folder: Path) -> list[str]:
    """The files of a complete level that are not as they were written; of one from before there were sums, none.

    Raises `Damaged` where the sums themselves cannot be read.
    """
    listed = digests_of(folder)
    changed = [name for name, digest in (listed or {}).items() if digest_of(folder / name) != digest]
    # Weights that another worker let go of meanwhile are not damaged.
    return changed if not changed or digests_of(folder) == listed else changed_files(folder)


def digests_of(folder: Path) -> dict[str, str] | None:
    """File → its digest, of all that a complete level has; None for one from before there were lists of them.

    Raises `Damaged` where the list cannot be read.
    """
    try:
        lines = read_file(folder / SUMS).decode().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise Damaged(f"{folder / SUMS} is damaged") from None
    found = [re.fullmatch(r"([0-9a-f]{64})  ([^/\x00-\x1f]+)", line) for line in lines]
    if None in found:
        raise Damaged(f"{folder / SUMS} is damaged")
    return {match[2]: match[1] for match in found if match is not None}


def list_digests(folder: Path, digests: Mapping[str, str]) -> bytes:
    """Writes the list of a level's digests; its bytes."""
    sums = "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()
    replace_file(folder / SUMS, sums)
    return sums


def digest_of(file: Path) -> str | None:
    """The digest of a plain file's bytes; None where it is none, or not there."""
    try:
        return hashlib.sha256(read_file(file)).hexdigest()
    except OSError:
        return None


def check_listed(file: Path) -> None:
    """Raises `Damaged` where a file lies in a complete level's folder and is not the one that was written there."""
    listed = digests_of(file.parent) or {}
    if listed.get(file.name, digest := digest_of(file)) != digest:
        raise Damaged(words_of_damage(file))


def words_of_damage(file: Path) -> str:
    """What is said of a level's file that is not the one that was written."""
    return f"{file} is {'damaged (its digest does not fit its content)' if file.exists() else 'missing'}"


def sync_names(folder: Path) -> None:
    """A loss of power forgets no file or folder that was made in `folder`, or renamed into it, before."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Streams that are unpacked only as far as an honest file goes: a few bytes may not become all of the memory."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from gentickets.data.damage import shown
from gentickets.errors import DataError

LARGEST = 256 * 2**20
"""The most bytes of one encoded image, and of one read."""

# Deflate packs a thousand to one at most. dSprites, white shapes on black, is packed 115 to one.
_RATIO = 250
_ALWAYS = 64 * 2**20


def most_unpacked(packed: int) -> int:
    """The bytes that so many packed ones may become."""
    return max(_ALWAYS, _RATIO * packed)


class Bounded(io.RawIOBase):
    """A stream for reading that ends in a `DataError` where too much is wanted at once, or over `most` bytes in all."""

    def __init__(self, stream: IO[bytes], where: str, most: int | None = None):
        super().__init__()
        self._stream, self._most, self._where = stream, most, where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self.readall()
        if size > LARGEST:
            raise DataError(f"source: {self._where} asks for {size:,} bytes at once: it is damaged")
        content = self._stream.read(size)
        self._check(self._stream.tell())
        return content

    def readall(self) -> bytes:
        parts = []
        while part := self.read(2**20):
            parts.append(part)
        return b"".join(parts)

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        content = self.read(len(view))
        view[: len(content)] = content
        return len(content)

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            self._check(offset)
        place = self._stream.seek(offset, whence)
        self._check(place)
        return place

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _check(self, place: int) -> None:
        if self._most is not None and place > self._most:
            raise DataError(
                f"source: {self._where} unpacks to more than {self._most:,} bytes, over {_RATIO} times its size: "
                f"unpack it yourself, if you trust it, and name the folder"
            )


def opened(path: Path) -> Bounded:
    """The content of a file, unpacked where it is packed by gzip, bzip2 or xz (told by its first bytes)."""
    unpack, where = _unpacking(path), shown(path)
    if unpack is None:
        return plain(path)
    return Bounded(unpack(path), where, most_unpacked(path.stat().st_size))


def plain(path: Path) -> Bounded:
    """The content of a file as it is."""
    return Bounded(open(path, "rb"), shown(path))


def member(path: Path, of: zipfile.ZipInfo) -> Bounded:
    """The content of one member of a zip file."""
    archive = zipfile.ZipFile(path)
    try:
        stream = archive.open(checked(path, of))
    finally:
        archive.close()  # the file stays open until the stream is closed too
    return Bounded(stream, f"{shown(path)}/{shown(of.filename)}", of.file_size)


def listed(path: Path) -> list[zipfile.ZipInfo]:
    """The members of a zip file. Raises `ValueError` where they share their bytes: a few could become any number."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    size = path.stat().st_size
    if (told := sum(member.compress_size for member in members)) > size:
        raise ValueError(f"it tells of {told:,} bytes in {size:,}")
    return members


def checked(path: Path, of: zipfile.ZipInfo, most: int | None = None) -> zipfile.ZipInfo:
    """The member, where it can be unpacked, and becomes no more than it may, or than `most`. Raises `DataError`."""
    where = f"{shown(path)}/{shown(of.filename)}"
    if of.flag_bits & 0x1:
        raise DataError(f"source: {where} is encrypted: pack it without a password")
    if of.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"source: {where} is packed by method {of.compress_type}: pack it by deflate, as zip does")
    if of.file_size > most_unpacked(of.compress_size) or (most is not None and of.file_size > most):
        raise DataError(
            f"source: {where} would become {of.file_size:,} bytes of {of.compress_size:,}: "
            f"unpack it yourself, if you trust it"
        )
    return of


def members(path: Path, at_most: int | None = None) -> Iterator[tuple[tarfile.TarInfo, Bounded]]:
    """What is in a tar file, in order, each with the stream that it lies in. None of it is unpacked.

    Raises `ValueError` where it does not end as a tar file does: a damaged header would end it before.
    """
    count, most = 0, 10_000 + path.stat().st_size // 32
    with opened(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        while (at_most is None or count < at_most) and (member := archive.next()):
            archive.members = []  # type: ignore[attr-defined]  # else every header of a long archive is kept
            count += 1
            if count > most:
                raise ValueError(f"it has more than {most:,} members")
            yield member, file
        if at_most is None:
            _check_end(file, archive.offset)


def _check_end(file: Bounded, at: int) -> None:
    """A block of zeros, and nothing after it."""
    file.seek(at)
    if file.read(512) != bytes(512):
        raise ValueError(f"it is damaged after {at:,} bytes")
    while rest := file.read(2**20):
        if any(rest):
            raise ValueError("it has more after its end")


def _unpacking(path: Path) -> Callable[[Path], IO[bytes]] | None:
    import bz2
    import gzip
    import lzma

    with open(path, "rb") as file:
        start = file.read(6)
    if start[:2] == b"\x1f\x8b":
        return lambda path: gzip.open(path, "rb")  # type: ignore[return-value]
    if start[:3] == b"BZh":
        return lambda path: bz2.open(path, "rb")
    if start == b"\xfd7zXZ\x00":
        return lambda path: lzma.open(path, "rb")
    return None

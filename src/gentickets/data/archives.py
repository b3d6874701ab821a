"""Images in a zip or tar file, arranged as the folder that it would unpack to. Nothing is unpacked to a disk.

What a name in an archive says is where an image stands among others, and no path that is opened: nothing leads out of
the archive, and links in it lead nowhere.
"""

from __future__ import annotations

import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from gentickets.data import celeba, packed
from gentickets.data.arranging import Part, arrange
from gentickets.data.damage import shown, told
from gentickets.data.decoding import Example
from gentickets.data.folders import suffixes
from gentickets.data.sources import Opened, Rows, Source, file_identity
from gentickets.data.unread import files_beside
from gentickets.errors import DataError

WHAT = "a .zip or .tar of images"

_ZIP = (".zip",)
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# So many of a tar's members are looked at before it is read, for whether it is CelebA's.
_PEEKED = 64
_LARGEST_TEXT = 64 * 2**20
_DEEPEST = 64


def holds(path: Path) -> bool:
    """A file with one of the suffixes."""
    return _suffix(path) is not None and path.is_file()


def find(path: Path) -> Source:
    """The images in it: split and class folders are understood, and CelebA's."""
    is_celeba = celeba.layout(_peeked(path)) is not None
    name, crop = (celeba.NAME, celeba.CROP) if is_celeba else (_name(path), None)
    unread = files_beside(path, (*_ZIP, *_TAR))

    def read() -> Opened:
        opened = _open(path, is_celeba)
        return replace(opened, left_out=(*opened.left_out, *unread))

    return Source(name, {"archive": file_identity(path), "told": list(unread)}, read, crop=crop)


def whole(path: Path) -> Source:
    """All images in it as one split."""

    def read() -> Opened:
        opened = _open(path, is_celeba=False)
        if opened.test is not None:
            raise DataError(f"test: {shown(path)} has splits of its own ({opened.held_out}): name the images alone")
        return opened

    return Source(_name(path), {"archive": file_identity(path)}, read)


def _suffix(path: Path) -> str | None:
    name = path.name.lower()
    return next((suffix for suffix in (*_ZIP, *_TAR) if name.endswith(suffix)), None)


def _name(path: Path) -> str:
    return path.name[: -len(_suffix(path) or "")] or path.name


@dataclass
class _Contents:
    """The images of an archive by their names, each with where it lies; the texts that matter; what else there is."""

    images: dict[PurePath, Any] = field(default_factory=dict)
    partitions: dict[PurePath, Any] = field(default_factory=dict)
    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    linked: int = 0
    outside: int = 0
    deep: int = 0
    again: int = 0

    def add(self, name: str, place: object, is_link: bool = False) -> None:
        # "a\\b" is how some programs for Windows write "a/b".
        path = PurePosixPath(shown(name.replace("\\", "/")))
        suffix = path.suffix.lower()
        if path.is_absolute() or ".." in path.parts:
            self.outside += 1
        elif len(path.parts) > _DEEPEST:
            self.deep += 1
        elif any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
            self.hidden += suffix in suffixes()
        elif is_link:
            self.linked += 1
        elif path.name in celeba.PARTITIONS:
            self.partitions[path] = place
        elif suffix not in suffixes():
            self.suffixes[suffix] += 1
        else:
            self.again += path in self.images
            self.images[path] = place  # of two of one name the last is the one that would be unpacked

    def left_out(self) -> tuple[str, ...]:
        by_suffix = ", ".join(f"{suffix or 'none'} {count:,}" for suffix, count in self.suffixes.most_common(8))
        phrases = (
            (self.suffixes, f"files by suffix ({by_suffix})"),
            (self.hidden, f"{self.hidden:,} hidden files"),
            (self.linked, f"{self.linked:,} links"),
            (self.outside, f"{self.outside:,} names that lead out of the archive"),
            (self.deep, f"{self.deep:,} names of more than {_DEEPEST} folders"),
            (self.again, f"{self.again:,} images of which a later one has the name"),
        )
        return tuple(words for there, words in phrases if there)


def _open(path: Path, is_celeba: bool) -> Opened:
    with told(path, f"{_suffix(path)} file"):
        contents = _contents(path)
    if not contents.images:
        but = f"; left out: {'; '.join(contents.left_out())}" if contents.left_out() else ""
        raise DataError(f"source: {shown(path)} has no images in it{but}: name another")
    names = list(contents.images) if _suffix(path) in _TAR else sorted(contents.images)
    found = celeba.layout([*names, *contents.partitions])
    if found is not None and is_celeba:
        return _open_celeba(path, contents, *found)
    if found is not None and _suffix(path) in _TAR:
        raise DataError(f"source: {shown(path)} has CelebA's folder deep within: unpack it, and name the folder")
    arranged = arrange(names, shown(path))
    train = _rows(path, contents, arranged.train)
    test = None if arranged.test is None else _rows(path, contents, arranged.test)
    left_out = (*contents.left_out(), *arranged.left_out)
    return Opened(train, test, arranged.held_out, arranged.classes, left_out)


def _open_celeba(path: Path, contents: _Contents, images: dict[str, PurePath], partition: PurePath | None) -> Opened:
    text = None
    if partition is not None:
        with told(path, "CelebA partition file"):
            text = _content(path, contents.partitions[partition], _LARGEST_TEXT).decode("utf-8-sig")
    found = celeba.arranged(list(images), text, str(path))
    train, test = (
        _rows(path, contents, Part(tuple(images[name] for name in part), unlabelled=celeba.UNLABELLED))
        for part in (found.train, found.test)
    )
    return Opened(train, test, found.held_out, None, (*contents.left_out(), *found.left_out), found.notes)


def _rows(path: Path, contents: _Contents, part: Part) -> Rows:
    labels: Sequence[int | None] = part.labels or [None] * len(part.names)
    rows = [(contents.images[name], name, label) for name, label in zip(part.names, labels, strict=True)]
    if _suffix(path) in _TAR:
        rows.sort(key=lambda row: row[0])  # packed, it is read from front to back

    def examples() -> Iterator[Example]:
        of_rows: Iterator[Any] = (_zipped if _suffix(path) in _ZIP else _tarred)(path, rows)
        for content, (_, name, label) in zip(of_rows, rows, strict=True):
            yield Example(f"{shown(path)}/{name}", content, label)

    return Rows(len(rows), examples, part.unlabelled)


# -- the two kinds ------------------------------------------------------------------------------------------------


def _contents(path: Path) -> _Contents:
    contents = _Contents()
    if _suffix(path) in _ZIP:
        for member in packed.listed(path):
            if not member.is_dir():
                contents.add(member.filename, member, stat.S_ISLNK(member.external_attr >> 16))
    else:
        for name, place, is_link in _members(path):
            contents.add(name, place, is_link)
    return contents


def _peeked(path: Path) -> list[PurePosixPath]:
    """Names in the archive: of a zip file all, of a tar the first. None where it is damaged, which is told later."""
    try:
        if _suffix(path) in _ZIP:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        else:
            names = [name for name, _, _ in _members(path, _PEEKED)]
    except (DataError, PermissionError):
        raise
    except Exception:
        return []
    return [PurePosixPath(shown(name)) for name in names]


def _members(path: Path, at_most: int | None = None) -> Iterator[tuple[str, tuple[int, int], bool]]:
    """(name, (where its content begins, how long it is), is it a link) of each file in a tar, in order."""
    for member, _ in packed.members(path, at_most):
        if member.isreg() or member.issym() or member.islnk():
            is_link = not member.isreg() or member.issparse()
            yield member.name, (member.offset_data, member.size), is_link


def _zipped(path: Path, rows: Sequence[tuple[Any, PurePath, int | None]]) -> Iterator[Callable[[], bytes]]:
    """What reads each image, on whichever thread it is wanted."""
    with told(path, ".zip file"):
        archive = zipfile.ZipFile(path)  # closed when the last of them is gone
    for member, _, _ in rows:
        yield partial(_of_zip, path, archive, member)


def _of_zip(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    return archive.read(packed.checked(path, member, packed.LARGEST))


def _tarred(path: Path, rows: Sequence[tuple[Any, PurePath, int | None]]) -> Iterator[bytes]:
    """Each image, from front to back."""
    with told(path, "tar file"), packed.opened(path) as file:
        for place, _, _ in rows:
            yield _at(file, place)


def _content(path: Path, place: Any, most: int) -> bytes:
    """One member's bytes."""
    if _suffix(path) in _ZIP:
        with zipfile.ZipFile(path) as archive:
            return archive.read(packed.checked(path, place, most))
    with packed.opened(path) as file:
        return _at(file, place)


def _at(file: packed.Bounded, place: tuple[int, int]) -> bytes:
    begin, size = place
    file.seek(begin)
    content = file.read(size)
    if len(content) != size:
        raise ValueError("it ends within an image")
    return content

"""A folder of image files: which of them are read. What its sub-folders mean is said in `arranging`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePath

from PIL import Image

from gentickets.data.arranging import Arranged, Part, arrange
from gentickets.data.decoding import Example
from gentickets.data.sources import Opened, Rows, Source, few, listing, split_of
from gentickets.errors import DataError

WHAT = "a folder of images"

_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".pbm", ".pcx"}
    | {".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"}
)

_NAMED = 8  # so many suffixes that are not read are named


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of images, in lower case, of which this machine's Pillow can read the content."""
    return _SUFFIXES & {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def holds(path: Path) -> bool:
    return path.is_dir()


def find(path: Path) -> Source:
    """The images of `path`: split and class sub-folders are understood."""
    found = walked(path)
    return _source(path, found, arrange(sorted(found.images), str(path)), _beside(path))


def whole(path: Path) -> Source:
    """All images of `path` as one split."""
    found = walked(path)
    arranged = arrange(sorted(found.images), str(path))
    if arranged.test is not None:
        raise DataError(f"test: {path} has splits of its own ({arranged.held_out}): name the folder that is meant")
    return _source(path, found, arranged, ())


def name_of(path: Path) -> str:
    """What a set in this folder is called."""
    return path.resolve().name


def _source(path: Path, found: Walked, arranged: Arranged, beside: tuple[str, ...]) -> Source:
    again: list[str] = []
    train = _distinct(found, arranged.train, again)
    test = None if arranged.test is None else _distinct(found, arranged.test, again)
    read = [found.images[name] for part in (train, test) if part is not None for name in part.names]
    linked = found.linked + sum(file.is_symlink() for file in read)
    notes = (f"links followed: {linked:,}",) if linked else ()
    left_out = (*replace(found, again=found.again + again).left_out(), *arranged.left_out, *beside)
    identity = {
        "folder": str(path.resolve()),
        "files": listing(read),
        "train": len(train.names),
        "classes": arranged.classes,
        "told": [arranged.held_out, *left_out],
    }

    def opened() -> Opened:
        own = None if test is None else _rows(found, test)
        return Opened(_rows(found, train), own, arranged.held_out, arranged.classes, left_out, notes)

    return Source(name_of(path), identity, opened)


def _rows(found: Walked, part: Part) -> Rows:
    labels = part.labels or [None] * len(part.names)

    def examples() -> Iterator[Example]:
        for name, label in zip(part.names, labels, strict=True):
            yield Example(str(found.images[name]), found.images[name], label)

    return Rows(len(part.names), examples, part.unlabelled)


def _beside(path: Path) -> tuple[str, ...]:
    """The splits that lie beside a folder that is one."""
    place = path.resolve()
    if split_of(place.name) is None:
        return ()
    try:
        others = sorted(other.name for other in place.parent.iterdir() if other.is_dir() and other != place)
    except OSError:  # nobody asked for what lies beside it
        return ()
    return tuple(f"the folder {name} beside it" for name in others if split_of(name) is not None)


# -- which files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walked:
    """The image files below a folder, by their path within it, and what else there was.

    `links`: the folders that were reached by a link. `again`: links to what is read anyway.
    """

    images: dict[PurePath, Path] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    no_files: list[str] = field(default_factory=list)

    @property
    def linked(self) -> int:
        return len(self.links)

    def left_out(self) -> tuple[str, ...]:
        """What was left out, a phrase each."""
        by_suffix = ", ".join(f"{suffix or 'none'} {count:,}" for suffix, count in self.suffixes.most_common(_NAMED))
        if rest := self.suffixes.total() - sum(count for _, count in self.suffixes.most_common(_NAMED)):
            by_suffix += f", others {rest:,}"
        phrases = (
            (by_suffix, f"files by suffix ({by_suffix})"),
            (self.hidden, f"hidden files ({few(self.hidden)})"),
            (self.dangling, f"links to nothing ({few(self.dangling)})"),
            (self.again, f"links to what is read already ({few(self.again)})"),
            (self.no_files, f"what is no file ({few(self.no_files)})"),
        )
        return tuple(words for there, words in phrases if there)


def walked(path: Path) -> Walked:
    """Every image below `path`. Links are followed, to no folder twice. Hidden files (such as the `._*` that macOS
    leaves in archives) are none. Raises `DataError` where there is no image."""
    found = Walked()
    try:
        _walk(path, PurePath(), found, frozenset(), set())
    except RecursionError:
        raise DataError(f"source: {path} has folders within folders without end: name one further down") from None
    if not found.images:
        but = f"; left out: {'; '.join(found.left_out())}" if found.left_out() else ""
        known = ", ".join(sorted(suffixes()))
        raise DataError(f"source: {path} has no images ({known}) in it or below{but}: name another")
    return found


def _walk(folder: Path, inside: PurePath, found: Walked, above: frozenset[str], seen: set[str]) -> None:
    if split_of(folder.name) is not None:
        seen = set()  # a split may link to images that lie in another folder too
    real = os.path.realpath(folder)
    above = above | {real}
    seen.add(real)
    links = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                if Path(entry.name).suffix.lower() in suffixes():
                    found.hidden.append(str(inside / entry.name))
            elif entry.is_dir(follow_symlinks=False):
                _walk(folder / entry.name, inside / entry.name, found, above, seen)
            elif os.path.isdir(entry.path):
                links.append(entry.name)
            else:
                _take(entry, folder, inside, found)
    for name in links:  # after what is really here
        target = os.path.realpath(folder / name)
        upwards = any(up == target or up.startswith(target.rstrip(os.sep) + os.sep) for up in above)
        if upwards or target in seen:
            found.again.append(str(inside / name))
        else:
            found.links.append(str(inside / name))
            _walk(folder / name, inside / name, found, above, seen)


def _take(entry: os.DirEntry[str], folder: Path, inside: PurePath, found: Walked) -> None:
    suffix = Path(entry.name).suffix.lower()
    if suffix not in suffixes():
        found.suffixes[suffix] += 1
    elif os.path.isfile(entry.path):
        found.images[inside / entry.name] = folder / entry.name
    elif entry.is_symlink() and not os.path.exists(entry.path):
        found.dangling.append(str(inside / entry.name))
    else:
        found.no_files.append(str(inside / entry.name))


def _distinct(found: Walked, part: Part, again: list[str]) -> Part:
    """The part without its links to images that it has anyway; they are added to `again`."""
    links = [found.images[name].is_symlink() for name in part.names]
    if not any(links):
        return part
    real = [os.path.realpath(found.images[name]) for name in part.names]
    have = {file for file, link in zip(real, links, strict=True) if not link}
    kept = []
    for row, (file, link) in enumerate(zip(real, links, strict=True)):
        if link and file in have:
            again.append(str(part.names[row]))
        else:
            kept.append(row)
            have.add(file)
    labels = None if part.labels is None else tuple(part.labels[row] for row in kept)
    return replace(part, names=tuple(part.names[row] for row in kept), labels=labels)

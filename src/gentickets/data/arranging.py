"""What folders mean: which images are trained on and which held out, and of which class each is, by paths alone.

A folder of images and an archive of images are arranged by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from gentickets.data.sources import Split, few, split_of, splits_among, splits_in
from gentickets.errors import DataError

# An image's path → what is left of that path below the folders that were passed on the way to it.
Paths = Mapping[PurePath, PurePath]

_HELD: tuple[Split, ...] = ("test", "validation")


@dataclass(frozen=True)
class Part:
    """One split: its images, their labels, or why they have none."""

    names: tuple[PurePath, ...]
    labels: tuple[int, ...] | None = None
    unlabelled: str | None = None


@dataclass(frozen=True)
class Arranged:
    """The two splits; `test` is None where none has a folder of its own. The rest is as in `sources.Opened`."""

    train: Part
    test: Part | None
    held_out: str
    classes: tuple[str, ...] | None
    left_out: tuple[str, ...]


def arrange(names: Sequence[PurePath], where: str) -> Arranged:
    """What the images `names`, relative paths in order, are, by the folders that they lie in below `where`.

    A folder that holds all the rest is passed through. A folder named as a split is that split, a test split before
    one for validation; what lies beside is not read, but where no folder is the training split it is that. Within a
    split a folder is a class, if every image lies in one. Raises `DataError` where it cannot be told.
    """
    (found,) = _passed_through({name: name for name in names})
    folders, loose = _by_folder(found)
    kinds = _kinds(folders, where)
    train, read = _training(found, folders, kinds, where)
    held = next((kinds[kind][0] for kind in _HELD if kind in kinds), None)
    left_out = [f"the folder {name} ({_images(folders[name])})" for name in folders if name not in (*read, held)]
    if loose and not any(name in train for name in loose):
        left_out.append(f"{_images(loose)} beside the folder {read[0]} ({few(map(str, loose))})")
    if "train" in kinds:
        train = _said_twice(train, read[0])
    below = _passed_through(*([train] if held is None else [train, _said_twice(folders[held], held)]))
    for part in below:
        _check_no_splits_within(part, where)
    labelled, classes = _labelled(below)
    test, held_out = (None, "") if held is None else (labelled[1], f"the folder {held}")
    return Arranged(labelled[0], test, held_out, classes, tuple(left_out))


def _passed_through(*parts: Paths) -> tuple[Paths, ...]:
    """The paths below the folders that hold all of them; a split's folder is none of these."""
    while True:
        tops = {path.parts[0] if len(path.parts) > 1 else None for part in parts for path in part.values()}
        if len(tops) != 1 or (only := tops.pop()) is None or split_of(only) is not None:
            return parts
        parts = tuple({name: _below(path) for name, path in part.items()} for part in parts)


def _said_twice(part: Paths, folder: str) -> Paths:
    """The paths of a split below the folders that say again which it is, as archives have them: `train/train`."""

    def again(name: str) -> bool:
        return name == folder or (split_of(name) is not None and split_of(name) == split_of(folder))

    while all(len(path.parts) > 1 and again(path.parts[0]) for path in part.values()):
        part = {name: _below(path) for name, path in part.items()}
    return part


def _below(path: PurePath) -> PurePath:
    return PurePath(*path.parts[1:])


def _by_folder(paths: Paths) -> tuple[dict[str, Paths], Paths]:
    """What lies in each folder, and what in none."""
    folders: dict[str, dict[PurePath, PurePath]] = {}
    loose = {}
    for name, path in paths.items():
        if len(path.parts) > 1:
            folders.setdefault(path.parts[0], {})[name] = _below(path)
        else:
            loose[name] = path
    return {folder: folders[folder] for folder in sorted(folders)}, loose


def _kinds(folders: Mapping[str, Paths], where: str) -> dict[Split, list[str]]:
    """The folders that are splits; of each kind the shortest name first, which is the plainest."""
    kinds: dict[Split, list[str]] = {}
    splits = splits_among(folders)
    for name in sorted(splits, key=lambda name: (len(name), name)):
        kinds.setdefault(splits[name], []).append(name)
    if len(training := kinds.get("train", [])) > 1:
        raise DataError(
            f"source: {where} has {len(training)} training folders ({', '.join(training)}): name one with data.source, "
            f"and its held-out images with data.test"
        )
    return kinds


def _training(
    found: Paths, folders: Mapping[str, Paths], kinds: Mapping[Split, list[str]], where: str
) -> tuple[Paths, list[str]]:
    """The training images, and the folders that they come from."""
    if "train" in kinds:
        return folders[kinds["train"][0]], kinds["train"]
    splits = [name for kind in _HELD for name in kinds.get(kind, ())]
    rest = {name: path for name, path in found.items() if len(path.parts) == 1 or path.parts[0] not in splits}
    if not rest:
        raise DataError(
            f"source: {where} has held-out images alone, in {', '.join(splits)}: name that folder itself to train on it"
        )
    return rest, [name for name in folders if name not in splits]


def _check_no_splits_within(part: Paths, where: str) -> None:
    """Raises `DataError` where folders deeper down are splits: read as one, test images would be trained on."""
    named, spoken_of = dict[PurePath, None](), dict[bool, PurePath]()
    for name, path in part.items():
        for depth, folder in enumerate(path.parts[:-1], start=len(name.parts) - len(path.parts) + 1):
            place = PurePath(*name.parts[:depth])
            if split_of(folder) is not None:
                named[place] = None
            for kind in splits_in(folder):
                spoken_of.setdefault(kind == "train", place)
    if named or len(spoken_of) == 2:
        places = list(map(str, named or spoken_of.values()))
        raise DataError(
            f"source: {where} has splits within its folders ({', '.join(places[:2])}): name the training images with "
            f"data.source and the held-out ones with data.test"
        )


def _labelled(parts: Sequence[Paths]) -> tuple[list[Part], tuple[str, ...] | None]:
    """Each split with its labels, numbered over the classes of all; and the names of the classes."""
    reasons = [_no_classes(part) for part in parts]
    whole = [part for part, reason in zip(parts, reasons, strict=True) if reason is None]
    classes = sorted({path.parts[0] for part in whole for path in part.values()})
    if len(classes) < 2:
        reasons = [reason or f"all lie in the one folder {classes[0]}" for reason in reasons]
    numbers = {name: number for number, name in enumerate(classes)}
    labelled = [
        Part(tuple(part), None if reason else tuple(numbers[path.parts[0]] for path in part.values()), reason)
        for part, reason in zip(parts, reasons, strict=True)
    ]
    return labelled, tuple(classes) if any(part.labels for part in labelled) else None


def _no_classes(part: Paths) -> str | None:
    """Why the folders of a split are no classes, if they are none."""
    stray = [str(name) for name, path in part.items() if len(path.parts) == 1]
    if len(stray) == len(part):
        return "there are no class folders"
    return f"{_images(stray)} beside the class folders ({few(stray)})" if stray else None


def _images(paths: Sequence[str] | Paths) -> str:
    return f"{len(paths):,} image{'' if len(paths) == 1 else 's'}"

"""From what a column says of each image to the number of its class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gentickets.data.damage import shown

COLUMNS = (
    "label", "labels", "fine_label", "class", "class_label", "class_id", "target", "targets", "category", "y",
    "coarse_label",
)  # fmt: skip
"""The names that a column of labels has, the first of those that are there."""

_LARGEST = 2**31 - 1


class Numbered(NamedTuple):
    """The labels of each split; the classes' names, where they have names; why there are none, where there are none;
    what else was decided."""

    labels: list[list[int | None]]
    classes: tuple[str, ...] | None = None
    why_none: str | None = None
    notes: tuple[str, ...] = ()


class Declared(NamedTuple):
    """What one file's column says of each image, and the names that the file declares for 0, 1, …, if it does."""

    values: Sequence[Any]
    names: tuple[str, ...] | None


def absent(counts: Sequence[int], why: str) -> Numbered:
    """No labels, in splits of so many images."""
    return Numbered([[None] * count for count in counts], why_none=why)


def numbered(column: str, splits: Sequence[Sequence[Any]]) -> Numbered:
    """Class numbers for the values of each split. Texts are numbered by sorted name, over all splits.

    Whole numbers, truth values and floats that are whole numbers stay what they are, None and NaN become None; all
    else has no numbers, and it is said why.
    """
    values = [[_plain(value) for value in split] for split in splits]
    present = [value for split in values for value in split if value is not None]
    kinds = {type(value) for value in present}

    def none(why: str) -> Numbered:
        return absent([len(split) for split in values], f"the column {shown(column)!r} {why}")

    if not present:
        return none("is empty")
    if kinds == {bool}:
        return Numbered([[None if v is None else int(v) for v in split] for split in values], ("false", "true"))
    if kinds == {str}:
        return _of_texts(values, present) or none(
            f"holds {len(set(present)):,} different texts in {len(present):,} rows"
        )
    if kinds == {float} and all(value.is_integer() for value in present):
        values = [[None if v is None else int(v) for v in split] for split in values]
    elif kinds != {int}:
        odd = next(value for value in present if type(value) is not int)
        words = " and ".join(sorted(kind.__name__ for kind in kinds))
        return none(f"holds {words}, such as {shown(repr(odd))[:40]}")
    numbers = [value for split in values for value in split if value is not None]
    if min(numbers) < 0 or max(numbers) > _LARGEST:
        return none(f"goes from {min(numbers)} to {max(numbers)}")
    return Numbered(values)


def numbered_by_name(column: str, splits: Sequence[Sequence[Declared]]) -> Numbered:
    """As `numbered`, over the files of each split. Where files declare unlike names, their numbers are matched by name:
    0, 1, … are the first file's names, then what the others have more."""
    files = [file for split in splits for file in split]
    declared = list(dict.fromkeys(file.names for file in files if file.names))
    if len(declared) > 1:
        if (why := _nameless(files)) is not None:
            counts = [sum(len(file.values) for file in split) for split in splits]
            return absent(counts, f"the column {shown(column)!r} {why}")
        classes = tuple(dict.fromkeys(name for names in declared for name in names))
        splits = [[_renumbered(file, classes) for file in split] for split in splits]
        notes: tuple[str, ...] = ("classes matched by name, which not all files number alike",)
    else:
        classes = declared[0] if declared else ()
        some = bool(classes) and not all(file.names for file in files)
        notes = ("class names that some files alone declare, taken for all",) if some else ()
    of = numbered(column, [[value for file in split for value in file.values] for split in splits])
    highest = max((label for split in of.labels for label in split if label is not None), default=-1)
    if of.classes is not None or not 0 <= highest < len(classes):
        return of
    return of._replace(classes=classes, notes=notes)


def _nameless(files: Sequence[Declared]) -> str | None:
    """Why numbers cannot be matched by name, where one has none."""
    for file in files:
        for value in file.values:
            if isinstance(value, int | float) and value == value and value not in range(len(file.names or ())):
                return f"has {value} in a file that declares no name for it, where others declare unlike ones"
    return None


def _renumbered(file: Declared, classes: Sequence[str]) -> Declared:
    """Its numbers as those of `classes`. Texts say for themselves what they are."""
    if file.names is None:
        return file
    places = {number: classes.index(name) for number, name in enumerate(file.names)}
    return file._replace(values=[places.get(value, value) for value in file.values])


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return None if isinstance(value, float) and math.isnan(value) else value


def _of_texts(values: list[list[Any]], present: list[str]) -> Numbered | None:
    names = sorted(set(present))
    if len(names) > max(1, len(present) // 2):
        return None
    if all(name.isascii() and name.isdecimal() and len(name) < 7 for name in names):
        return Numbered([[None if v is None else int(v) for v in split] for split in values])
    number = {name: at for at, name in enumerate(names)}
    labels = [[None if value is None else number[value] for value in split] for split in values]
    return Numbered(labels, tuple(map(shown, names)))

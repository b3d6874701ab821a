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
    """The labels of each split; the classes' names, where they have names; why there are none, where there are none."""

    labels: list[list[int | None]]
    classes: tuple[str, ...] | None = None
    why_none: str | None = None


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

"""What was read, left out and decided, in words: a set's facts as one line, in a run's origin and on its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gentickets.data.decoding import Decoded
from gentickets.data.sources import few
from gentickets.data.surveying import Survey

_DONE = {
    "transparent": "{} transparent, over white",
    "turned": "{} turned as their EXIF says",
    "deep": "{} of more than 8 bits, brought to 8",
    "frames": "{} of several frames, the first taken",
}
_SPLITS = {"train": "training", "test": "held-out"}
_NAMED = 10  # so many classes are named


@dataclass
class Seen:
    """What the images of one split were before they were decoded: counts of them, by mode and by what was done, and
    the least and the most (width, height)."""

    images: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    least: list[int] = field(default_factory=list)
    most: list[int] = field(default_factory=list)

    def add(self, decoded: Decoded) -> None:
        self.images += 1
        self.modes[decoded.mode] += 1
        self.done.update(decoded.done)
        self._span(decoded.size, decoded.size)

    def _span(self, least: Sequence[int], most: Sequence[int]) -> None:
        self.least = [min(pair) for pair in zip(self.least or least, least, strict=True)]
        self.most = [max(pair) for pair in zip(self.most or most, most, strict=True)]

    def __add__(self, other: Seen) -> Seen:
        both = Seen(self.images + other.images, self.modes + other.modes, self.done + other.done)
        for part in (self, other):
            if part.images:
                both._span(part.least, part.most)
        return both

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "modes": dict(self.modes), "done": dict(self.done)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Seen:
        """What `as_json` gave. Raises `KeyError` or `TypeError` for anything else."""
        return cls(**{**raw, "modes": Counter(raw["modes"]), "done": Counter(raw["done"])})


def told(
    survey: Survey, seen: Mapping[str, Seen], source: str, size: int, channels: int | None, crop: int | None
) -> dict[str, str]:
    """What there is to say of the splits in `seen`: fact → words."""
    all_seen = sum(seen.values(), Seen())
    counts = " and ".join(f"{part.images:,} {_SPLITS[split]}" for split, part in seen.items())
    facts = {
        "read": f"{counts} images of {source}",
        "were": _were(all_seen),
        "held out": survey.held_out if survey.test is not None else "one image in ten, drawn by a fixed seed",
        "limit": _limited(survey, seen),
        "labels": _labels(survey),
        "colour": _colour(survey, channels),
        "shown": ", ".join(
            text.format(f"{all_seen.done[what]:,}") for what, text in _DONE.items() if all_seen.done[what]
        ),
        "made": _made(all_seen, size, crop),
        "left out": "; ".join(survey.left_out),
        "also": "; ".join(survey.notes),
    }
    return {fact: words for fact, words in facts.items() if words}


def line(facts: Mapping[str, str]) -> str:
    """The facts as one line."""
    return "; ".join(words if fact == "read" else f"{fact}: {words}" for fact, words in facts.items())


def _were(seen: Seen) -> str:
    many = len(seen.modes) > 1
    modes = ", ".join(f"{mode} {count:,}" if many else mode for mode, count in seen.modes.most_common())
    least, most = (f"{width}x{height}" for width, height in (seen.least, seen.most))
    return f"{least}, {modes}" if least == most else f"{least} to {most}, {modes}"


def _limited(survey: Survey, seen: Mapping[str, Seen]) -> str:
    if "train" not in seen or seen["train"].images == survey.trained_on:
        return ""
    return f"{seen['train'].images:,} of {survey.trained_on:,} training images, drawn by a fixed seed"


def _labels(survey: Survey) -> str:
    ours, theirs = survey.labels, survey.test_labels
    if theirs is None or theirs.values is ours.values is None:
        return f"none, {ours.reason}" if ours.values is None else _classes(ours.values, survey)
    if ours.values is None or theirs.values is None:
        without, reason = ("training", ours.reason) if ours.values is None else ("held-out", theirs.reason)
        return f"{_classes(ours.values or theirs.values or (), survey)}; none of the {without} images, {reason}"
    words = _classes(sorted({*ours.values, *theirs.values}), survey)
    strange = [_name(value, survey) for value in theirs.values if value not in set(ours.values)]
    return f"{words}; among the held-out images alone: {few(strange)}" if strange else words


def _classes(values: Sequence[int], survey: Survey) -> str:
    number = f"{len(values):,} class{'' if len(values) == 1 else 'es'}"
    named = survey.classes is not None and len(values) <= _NAMED
    return f"{number} ({', '.join(_name(value, survey) for value in values)})" if named else number


def _name(value: int, survey: Survey) -> str:
    return str(value) if survey.classes is None else survey.classes[value]


def _colour(survey: Survey, channels: int | None) -> str:
    words = {1: "grey", 3: "RGB"}[channels or survey.channels]
    grey, colour = survey.grey, survey.colour
    why = ", as data.channels says" if channels is not None else ""
    if grey and colour:
        return f"{words}{why} ({grey:,} of {grey + colour:,} images are grey)"
    if channels is not None and channels != survey.channels:
        return f"{words}{why} (the images are {'grey' if grey else 'in colour'})"
    return words


def _made(seen: Seen, size: int, crop: int | None) -> str:
    cut = f"cropped to the centred {'square' if crop is None else f'{crop}x{crop}'}" if seen.done["cropped"] else ""
    made = f"brought to {size}x{size}" if seen.done["resized"] else ""
    return " and ".join(part for part in (cut, made) if part)

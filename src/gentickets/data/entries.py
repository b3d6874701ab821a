"""What the cache keeps of a set: the survey of a source, and the decoded images of a split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gentickets.data.cache import writing
from gentickets.data.images import fingerprint
from gentickets.data.surveying import Survey
from gentickets.data.telling import Seen
from gentickets.sealed import Damaged, sealed, unsealed

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, Damaged)


class Note:
    """A small file of facts, whole or absent; one that is damaged reads as absent."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(unsealed(self.path.read_bytes())))
        except _UNREADABLE:
            return None

    def write(self, facts: dict[str, Any]) -> None:
        with writing(self.path) as file:
            file.write(sealed(json.dumps(facts).encode()))


def stored_survey(note: Note) -> Survey | None:
    try:
        return None if (facts := note.read()) is None else Survey.from_json(facts)
    except _UNREADABLE:
        return None


class Entry:
    """One decoded set on disk: the pixels, the labels, and a note that is written last and seals both."""

    def __init__(self, stem: Path):
        self.pixels = stem.with_name(stem.name + ".npy")
        self.labels = stem.with_name(stem.name + ".labels.npy")
        self.note = Note(stem.with_name(stem.name + ".json"))

    def read(self) -> tuple[np.ndarray, np.ndarray | None, str, Seen] | None:
        """(pixels, labels, fingerprint, what was seen), or None where the entry is absent, unfinished or damaged."""
        try:
            if (facts := self.note.read()) is None:
                return None
            pixels = np.asarray(np.load(self.pixels, mmap_mode="r", allow_pickle=False))
            labels = np.load(self.labels, allow_pickle=False) if facts["labels"] else None
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or fingerprint(pixels, labels) != facts["fingerprint"]:
                return None
            seen = Seen.from_json(facts["seen"])
        except _UNREADABLE:
            return None
        if labels is not None:
            labels.setflags(write=False)
        return pixels, labels, facts["fingerprint"], seen

    def finish(self, labels: np.ndarray | None, seen: Seen) -> None:
        """Adds labels and the note to the pixels that were written."""
        if labels is not None:
            with writing(self.labels) as file:
                np.save(file, labels)
        pixels = np.load(self.pixels, mmap_mode="r", allow_pickle=False)
        found = fingerprint(pixels, labels)
        self.note.write({"labels": labels is not None, "fingerprint": found, "seen": seen.as_json()})

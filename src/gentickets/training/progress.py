"""What a training leaves behind as it goes: how far it is, its curve, and the state that it can go on from."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentickets.files import read_file, replace_file, writing
from gentickets.sealed import Damaged, sealed_pieces, unsealed_state


@dataclass(frozen=True)
class Progress:
    """What a training reports now and then: the step just done, its losses, and images a second since the last."""

    step: int
    losses: Mapping[str, float]
    images_per_second: float


class Checkpoint:
    """The state of a training in one file, always whole, and checked to the last bit before it is used.

    `key` tells whose checkpoint it is; one with another key is not resumed from. `every` seconds it is written.
    """

    def __init__(self, path: Path, key: str, every: float = 20.0):
        self.path, self.key, self.every = path, key, every
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.every

    def save(self, state: Mapping[str, Any]) -> None:
        with writing(self.path) as file:
            file.writelines(sealed_pieces({"key": self.key, **state}))
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The newest state, or None where there is none of this key. Never runs a pickle's code.

        A file that is damaged is removed with a warning: the training begins anew.
        """
        if not self.path.exists():
            return None
        try:
            state = unsealed_state(read_file(self.path))
        except (Damaged, OSError) as error:
            self.path.unlink()
            warnings.warn(f"{self.path} is damaged ({error}): dropped, and this training begins anew", stacklevel=2)
            return None
        return state if state.pop("key", None) == self.key else None


class Curve:
    """A JSON-lines file with the losses over the steps; lines beyond the point of a resumption are dropped."""

    def __init__(self, path: Path):
        self.path = path

    def rewind(self, step: int) -> None:
        lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []
        kept = [line for line in lines if (at := _step_of(line)) is not None and at <= step]
        if damaged := sum(_step_of(line) is None for line in lines[:-1]):  # the last may be half, of a kill
            warnings.warn(
                f"{self.path}: {damaged} damaged lines are dropped; nothing is computed from them", stacklevel=2
            )
        replace_file(self.path, "".join(line + "\n" for line in kept).encode())

    def add(self, progress: Progress) -> None:
        row = {
            "step": progress.step,
            "losses": {k: float(f"{v:.6g}") for k, v in progress.losses.items()},
            "images_per_second": round(progress.images_per_second, 1),
        }
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")


def _step_of(line: str) -> int | None:
    """The step that a line is of; None for half a line, or one that is damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError):
        return None
    return step if isinstance(step, int) else None


class Meter:
    """Images and seconds, those before a resumption included; and the rate since it was last asked.

    What hooks take that only look is counted apart, as `looked`.
    """

    def __init__(self, images: int, seconds: float):
        self.images, self.looked = images, 0.0
        self._before, self._begun = seconds, time.perf_counter()
        self._since, self._reported = self._begun, images

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._begun - self.looked

    @contextmanager
    def looking(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.looked += time.perf_counter() - begun

    def rate(self) -> float:
        now = time.perf_counter()
        rate = (self.images - self._reported) / max(now - self._since, 1e-9)
        self._since, self._reported = now, self.images
        return rate

"""How far a run or a search is, in lines for a file or a pipe."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from gentickets.durations import duration


class Lines:
    """How far one of them is: a line where a stage begins, one a minute, one at the end."""

    def __init__(self, clock: Callable[[], float] = monotonic, every: float = 60.0):
        self._clock, self._every = clock, every
        self._stage: str | None = None
        self._told = 0.0
        self._begun: tuple[float, int] | None = None

    def line(self, stage: str, done: int, total: int, rate: str = "") -> str | None:
        """The line that is due, with the rate and the time that is left at the pace so far; None where none is."""
        now = self._clock()
        self._begun = self._begun or (now, done)
        new, due = stage != self._stage, now - self._told >= self._every or done >= total
        if not new and not due:
            return None
        self._stage, self._told = stage, now
        seconds, steps = now - self._begun[0], done - self._begun[1]
        left = f"{duration((total - done) * seconds / steps)} left" if seconds and steps and done < total else ""
        return ", ".join(filter(None, (f"{stage}: {done:,} of {total:,} steps done", rate, left)))

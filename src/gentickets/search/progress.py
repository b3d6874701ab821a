"""How far a search is, on stderr: a bar for each training on a terminal, a line for each elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gentickets.lines import Lines
from gentickets.terminal import Terminal


class Told:
    """Tells of the trainings of one search: which round, how sparse, and how long the rest will take at this pace.

    `steps`: of all trainings that are to come, None where nobody knows. What the caller does between them counts in
    the pace, as it will go on.
    """

    def __init__(self, steps: int | None):
        self._console, self._lines = Terminal(stderr=True), Lines()
        self._done, self._steps = 0, steps

    @contextmanager
    def training(self, stage: str, steps: int) -> Iterator[None]:
        """Tells of one training of so many steps, while this lasts."""
        line = self._line(stage)
        if self._console.is_terminal:
            with self._bar(stage, line.rpartition(", ")[2] if line.endswith(" left") else ""):
                yield
        else:
            self._console.print(line)
            yield
        self._done += steps
        if self._done == self._steps:
            self._console.print(self._line(stage))

    def _line(self, stage: str) -> str:
        return stage if self._steps is None else self._lines.line(stage, self._done, self._steps) or stage

    @contextmanager
    def _bar(self, stage: str, left: str) -> Iterator[None]:
        """How much of the whole search is done, and since when this training runs: what it does nobody tells."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn(left, markup=False),
        )
        with Progress(*columns, console=self._console, refresh_per_second=2) as bars:
            bars.add_task(stage, total=self._steps, completed=self._done)
            yield

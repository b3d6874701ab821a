"""What is shown on a terminal, or in a file: text as it is, whoever wrote it, on whatever terminal there is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) != "\n"}


def printable(text: str) -> str:
    """`text` with its control characters written out: a name may come from a stranger's file, and set a terminal's
    title or colours."""
    return text.translate(_CONTROLS)


class Terminal(Console):
    """A console that takes no markup, shows control characters as what they are, and cuts no word of a table short."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False, **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        if isinstance(renderable, Table):
            options = self._wide_enough(renderable, options or self.options)
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def _wide_enough(self, table: Table, options: ConsoleOptions) -> ConsoleOptions:
        """Options by which each column is as wide as its longest word, on however narrow a terminal."""
        endless = options.update(width=10**6)
        for column in table.columns:
            cells = (column.header, *column.cells, column.footer)
            column.min_width = max(Measurement.get(self, endless, cell).minimum for cell in cells)
        return options.update(width=max(options.max_width, Measurement.get(self, endless, table).minimum))


def bear_with_any_encoding() -> None:
    """Lets a terminal that lacks a character show another in its place, where Python would end the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")

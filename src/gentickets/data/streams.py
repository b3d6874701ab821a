"""Examples on their way: so many at once, and how far they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from gentickets.data.decoding import Example

_SHOW_PROGRESS_FROM = 4_000
_MOST_HELD = 2**28


def chunks(examples: Iterable[Example], at_once: int) -> Iterator[list[Example]]:
    """The examples, so many at once, and fewer where they hold many bytes."""
    part: list[Example] = []
    held = 0
    for example in examples:
        part.append(example)
        content = example.content
        held += content.nbytes if isinstance(content, np.ndarray) else len(content) if isinstance(content, bytes) else 0
        if len(part) == at_once or held > _MOST_HELD:
            yield part
            part, held = [], 0
    if part:
        yield part


def with_progress(parts: Iterable[list[Example]], total: int, doing: str) -> Iterator[list[Example]]:
    """The parts, with a bar on stderr where there are enough images that one waits."""
    if total < _SHOW_PROGRESS_FROM:
        yield from parts
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(doing, total=total)
        for part in parts:
            yield part
            progress.advance(task, len(part))

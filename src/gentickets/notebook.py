"""How values show themselves in a notebook: a line and a small table, whatever is in them escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice

MOST = 16
"""Rows of a table: more are counted."""


def shown(line: object, heads: Sequence[str] = (), rows: Iterable[Sequence[object]] = ()) -> str:
    """A line, and below it a table of so many rows as fit: whole numbers with commas, other things as text."""
    rows = iter(rows)
    some = list(islice(rows, MOST))
    more = sum(1 for _ in rows)
    table = "".join(_row("td", cells) for cells in some)
    if more:
        table += f'<tr><td colspan="{len(heads)}">and {more:,} more</td></tr>'
    head = f"<thead>{_row('th', heads)}</thead>" if heads else ""
    body = f"<table>{head}<tbody>{table}</tbody></table>" if some else ""
    return f"<p>{escape(str(line))}</p>{body}"


def short(value: object, most: int = 60) -> str:
    """A value in text, on one line, and cut where it is long."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _row(tag: str, cells: Iterable[object]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(_said(cell))}</{tag}>' for cell in cells)}</tr>"


def _said(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else short(cell)

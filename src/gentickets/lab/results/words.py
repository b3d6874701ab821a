"""Numbers in words: how a value, a spread or a sparsity is written, everywhere that a result is told."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gentickets.lab.results.summary import Summary  # a type only: reading a run loads torch, and words do not


def number(value: float | None, digits: int = 3) -> str:
    """`value` to that many significant digits, whole numbers never cut short: `0.0123`, `291`, `12,345`."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def tell_apart(one: float, other: float) -> tuple[str, str]:
    """Both numbers, to as many digits as it takes for unequal ones to look unequal (7 at most)."""
    for digits in range(3, 8):
        pair = number(one, digits), number(other, digits)
        if pair[0] != pair[1] or one == other:
            break
    return pair


def plus_minus(summary: Summary | None) -> str:
    """Mean ± standard deviation, to the same decimal place; the mean alone for one seed."""
    if summary is None or summary.mean is None:
        return "–"
    mean, deviation = number(summary.mean), summary.deviation
    if deviation is None:
        return mean
    if "e" in mean:
        return f"{mean} ± {number(deviation, 2)}"
    places = len(mean.partition(".")[2])
    if 0 < deviation < 0.5 * 10**-places:
        return f"{mean} ± {number(deviation, 1)}"
    return f"{mean} ± {deviation:,.{places}f}"


def percent(share: float | None, none: str = "–") -> str:
    """A sparsity: `89.3%`, and with more digits near 100 %, so that nothing is rounded to all or nothing."""
    if share is None:
        return none
    for places in (1, 2, 3, 4):
        text = f"{share:.{places}%}"
        # Beyond 99 % one decimal is a tenth of what is left.
        if share == 1 or (float(text[:-1]) < 100 and not (share > 0.99 and places < 2)):
            break
    return text


def share(of: float) -> str:
    """A margin: `5%`, `2.5%`, `0.4%`, with the digits that it has."""
    return f"{of * 100:.6g}%"


def join(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def count(n: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"

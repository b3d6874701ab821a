"""Durations and sizes as people write and read them."""

from __future__ import annotations

import re

from gentickets.errors import RecipeError


def parse_time(text: str) -> float:
    """Seconds of `90s`, `30m`, `2h`, `1h30m`. Raises `RecipeError`."""
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip())
    try:
        parts = [float(part or 0) for part in match.groups()] if match else []
    except ValueError:
        parts = []
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not seconds:
        raise RecipeError(f"--time {text!r} is no duration: write 2h, 90m, 1h30m or 45s")
    return seconds


def parse_size(text: str) -> float:
    """Bytes of `2GB`, `500 MB`, `1.5TB`, `2GiB`. Raises `RecipeError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text.strip())
    if match is None or not (value := float(match[1])):
        raise RecipeError(f"--disk {text!r} is no size: write 2GB, 500MB or 1.5TB")
    return value * (1024 if match[3] else 1000) ** " kMGT".index(match[2] or " ")


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `12 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds >= 259_200:
        return f"{seconds / 86_400:,.0f} days"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def size(count: float) -> str:
    """Bytes in the unit that fits: `340 MB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB" if count < 10_000 else f"{count / 1000:,.1f} TB"

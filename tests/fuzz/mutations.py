"""Damage to bytes, and hostile values in the place of plain ones."""

from __future__ import annotations

import copy
import random
from typing import Any

HOSTILE_TEXT = (
    "", " ", "\x00", "\x1b]0;title\x07\x1b[31m", "a\nb", "<script>alert(1)</script>", "[/red]", "[bold]", "../../x",
    "/dev/zero", "ä" * 50, "\ud800", "\u202e", "None", "nan", "1e999", "x" * 5000, "{{7*7}}", "$HOME", "%s%n", "*",
    "a.b.c",
    "weight", "encoder", "-1", "null", "!!python/object/apply:os.system", "encoder.1.weight", "~", "yes", "0x10",
    "1:30",
)  # fmt: skip
HOSTILE_NUMBERS = (
    0, -1, 1, 2, 7, 255, 65536, 2**31, 2**31 - 1, 2**32, 2**53, 2**63, 2**64, 10**20, 10**400, -(2**63), 0.0, -0.0, 0.5,
    1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), True, False, None,
)  # fmt: skip


def any_of(rng: random.Random, *choices: Any) -> Any:
    return rng.choice(choices)


def hostile(rng: random.Random, depth: int = 0) -> Any:
    """Some plain value that one would not expect."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(HOSTILE_NUMBERS)
    if kind < 0.65:
        return rng.choice(HOSTILE_TEXT)
    if kind < 0.8 and depth < 3:
        return [hostile(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 5)))]
    if kind < 0.95 and depth < 3:
        return {str(rng.choice(HOSTILE_TEXT)): hostile(rng, depth + 1) for _ in range(rng.choice((0, 1, 3)))}
    if kind < 0.97 and depth == 0:
        return nested(rng.choice((50, 900, 5000)))
    return rng.randrange(-(10**6), 10**6)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def mutated(rng: random.Random, value: Any, times: int | None = None) -> Any:
    """A copy of plain data in which some places hold something else, lack, come twice, or have another name."""
    value = _copied(value)
    for _ in range(times or rng.choice((1, 1, 1, 2, 4))):
        value = _once(rng, value)
    return value


def _once(rng: random.Random, value: Any) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return hostile(rng)
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.55:
        holder[key] = hostile(rng)
    elif kind < 0.7:
        del holder[key]
    elif kind < 0.8:
        other, elsewhere = rng.choice(places)
        holder[key] = _copied(other[elsewhere]) if elsewhere in _keys(other) else hostile(rng)
    elif kind < 0.9 and isinstance(holder, dict):
        holder[str(rng.choice(HOSTILE_TEXT))] = holder.pop(key)
    elif isinstance(number := holder[key], int | float) and not isinstance(number, bool):
        holder[key] = rng.choice(
            (number + 1, number - 1, -number, number * 2, number / 2 if abs(number) < 1e9 else 0.5)
        )
    elif isinstance(holder[key], list):
        holder[key] = holder[key] * rng.choice((0, 2, 3))
    elif isinstance(holder, dict):
        holder[str(rng.choice(HOSTILE_TEXT))] = hostile(rng)
    else:
        holder.insert(key, hostile(rng))
    return value


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return "nested too deep"


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(value: Any) -> Any:
    """Every (holder, key) within plain data, but for what is nested absurdly deep."""
    waiting, seen = [(value, 0)], 0
    while waiting and seen < 2000:
        holder, depth = waiting.pop()
        if not isinstance(holder, dict | list) or depth > 12:
            continue
        for key in list(_keys(holder)):
            seen += 1
            yield holder, key
            waiting.append((holder[key], depth + 1))


def damaged(rng: random.Random, raw: bytes) -> bytes:
    """Bytes of which some are not as they were."""
    at = rng.randrange(len(raw) + 1)
    size = rng.choice((1, 1, 2, 8, 64, 1000))
    end = min(len(raw), at + size)
    kind = rng.randrange(9)
    if kind <= 2 and raw:
        place = min(at, len(raw) - 1)
        return raw[:place] + bytes([raw[place] ^ 1 << rng.randrange(8)]) + raw[place + 1 :]
    if kind == 3:
        return raw[:at]
    if kind == 4:
        return raw[:at] + bytes(end - at) + raw[end:]
    if kind == 5:
        return raw[:at] + rng.randbytes(size) + raw[at:]
    if kind == 6:
        return raw[:at] + rng.randbytes(end - at) + raw[end:]
    if kind == 7:
        return raw[:at] + raw[at:end] * rng.choice((2, 3, 50)) + raw[end:]
    return any_of(rng, b"", bytes(len(raw)), rng.randbytes(len(raw)), raw[at:], raw + raw, b"\xff" * 9, b"[" * 5000)

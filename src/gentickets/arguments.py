"""Keywords that several functions share, declared once as a `TypedDict`, and refused as Python refuses others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], kind: type) -> None:
    """Raises `TypeError`, as Python does, for a keyword that the function does not take."""
    known = kind.__optional_keys__  # type: ignore[attr-defined]
    if unknown := [name for name in given if name not in known]:
        takes = ", ".join(sorted(known))
        raise TypeError(f"{function.__name__}() got an unexpected keyword argument {unknown[0]!r}: it takes {takes}")

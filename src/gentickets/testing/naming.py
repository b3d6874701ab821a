"""What is checked: built from how it is named, and what it is called in a sentence."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from gentickets.catalogue import Named


def is_named(said: object) -> bool:
    """Whether it is a name, alone or with options."""
    return isinstance(said, str | Named) or (isinstance(said, Mapping) and "name" in said)


def needed(kind: str, said: Any) -> list[str]:
    """The arguments that it cannot do without."""
    target = Named.of(kind, said).load() if is_named(said) else said
    try:
        takes = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return []
    return [key for key, one in takes.items() if one.default is one.empty]


def built(kind: str, said: Any, **given: Any) -> Any:
    """What is checked: something of this kind by its name, or a class or function, given what it has an argument for;
    or an object as it is."""
    if is_named(said):
        return Named.of(kind, said).build(**given)
    if not inspect.isclass(said) and not inspect.isroutine(said):
        return said
    takes = inspect.signature(said).parameters
    told = {key: value for key, value in given.items() if key in takes}
    if inspect.isclass(said):
        return said(**told)
    return functools.partial(said, **told) if told else said


def titled(said: Any) -> str:
    """What it is called in a sentence."""
    if isinstance(said, str):
        return said
    if isinstance(said, Named):
        return said.name
    if isinstance(said, Mapping):
        return str(said.get("name"))
    return getattr(said, "__name__", None) or type(said).__name__

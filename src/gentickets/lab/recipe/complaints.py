"""What pydantic found wrong with a recipe, as a line that a user can act on: key, value and mend."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from gentickets.lab.recipe.owned import owners


def complaints(error: ValidationError, whole: type[BaseModel], where: str = "") -> str:
    """All that pydantic found wrong in a `whole`, one thing a key, as key, value and mend. `where`: what is above."""
    found: dict[str, str] = {}
    for first in error.errors():
        found.setdefault(_key(first["loc"]), _complaint(first, whole, where))
    unknown = any(first["type"] == "extra_forbidden" for first in error.errors())
    pointer = ["`gentickets list keys` shows every key"] if unknown and whole.__name__ == "Recipe" else []
    return "; ".join([*dict.fromkeys(found.values()), *pointer])


_KINDS = ("literal[", "constrained", "list[", "dict[", "float", "int", "function-")
"""How pydantic calls the members of a union, among the keys of a place."""


def _key(place: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in place if not str(part).startswith(_KINDS))


def _complaint(first: Any, whole: type[BaseModel], where: str) -> str:
    key, kind, said = ".".join(filter(None, (where, _key(first["loc"])))), first["type"], first["input"]
    if kind == "extra_forbidden" and where:
        takes = f"{key}: {whole.__name__} takes {_known_keys(first['loc'], whole)}"
        others = owners(getattr(whole, "kind", ""), str(first["loc"][-1]))
        return f"{takes}; it is a key of {', '.join(others)}" if others else takes
    if kind == "extra_forbidden":
        return f"unknown key {key}; known here: {_known_keys(first['loc'], whole)}"
    if kind == "missing":
        return f"{key} is missing{_such_as(key)}"
    if kind == "value_error":
        return first["msg"].removeprefix("Value error, ")
    shown = repr(said) if len(repr(said)) <= 100 else f"{repr(said)[:90]} …"
    if kind in ("model_type", "dict_type"):
        if said is None:
            return f"{key} is empty: write keys and values below it, or leave {key} out"
        return f"{key}={shown}: keys and values are needed below it{_such_as(key, said)}"
    if kind in ("list_type", "tuple_type"):
        mend = f": {key}=[{said}]" if isinstance(said, int | str) and not isinstance(said, bool) else ""
        return f"{key}={shown}: a list is needed{mend}"
    if kind == "int_type" and isinstance(said, float) and said.is_integer():
        return f"{key}={shown}: a whole number is needed: {int(said)}"
    if kind == "string_pattern_mismatch" and key == "name":
        return f"name={shown}: letters, digits, dots, - and _ are taken, 200 at most, no path"
    if kind == "string_type" and said is None:
        return f"{key} is empty: text is needed, or leave {key} out"
    if kind == "string_type" and isinstance(said, bool | int | float):
        return f"{key}={shown}: text is needed; put it in quotes, also inside those of a shell"
    return f"{key}={shown}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _such_as(key: str, said: Any = "") -> str:
    """How a key that needs others below it is written."""
    if key == "name":
        return ": the run's folder is called so"
    if key not in ("model", "objective"):
        return ""
    name = said if isinstance(said, str) and said else {"model": "dcgan", "objective": "adversarial"}[key]
    return f": {key}: {{name: {name}}}"


def _known_keys(location: tuple[str | int, ...], part: type[BaseModel]) -> str:
    for key in location[:-1]:
        named = part.model_fields.get(str(key))
        for inner in (named.annotation, *get_args(named.annotation)) if named is not None else ():
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                part = inner
    known = [name for name in part.model_fields if name not in ("name", "method") or "title" in part.model_fields]
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"{', '.join(known)}{f' (did you mean {near[0]}?)' if near else ''}"

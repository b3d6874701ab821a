"""The recipes that come with the package, by name: `quickstart/gan`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[2]
_PLACES = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")
"""In what was installed, and in a checkout."""


@cache
def recipes() -> Mapping[str, Path]:
    """Name → file."""
    for place in _PLACES:
        if found := sorted(place.glob("*/*.yaml")):
            return {path.relative_to(place).with_suffix("").as_posix(): path for path in found}
    return {}


def recipe_file(asked: str | Path) -> Path:
    """The file that is meant: the one there is of that name, else the shipped recipe that is called so.

    A shipped one may be called as it lies in a checkout too (recipes/quickstart/gan.yaml).
    """
    path = Path(asked)
    if path.exists():
        return path
    name = path.as_posix().removesuffix(".yaml").removeprefix("recipes/")
    return recipes().get(name, path)

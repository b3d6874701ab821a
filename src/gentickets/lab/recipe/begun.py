"""The recipe that a run's folder keeps beside what was asked when the run began: what may differ, and what may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gentickets.errors import RecipeError
from gentickets.lab.recipe.file import differing_keys, kept_recipe, with_keys
from gentickets.lab.recipe.recipe import Recipe

# What may change between two commands on one folder without making a finished level wrong.
_MAY_GROW = (
    "title",
    "seeds",
    "search.rounds",
    "controls",
    "on_failure",
    "keep",
    "training.checkpoint_seconds",
    "evaluation.margin",
)

PLACES = ("name", "data.source", "data.test")
"""Keys that say where something lies, and nothing of what it is: a folder may be renamed, and images moved."""

# What `--time` may have made smaller than was asked.
_FITTED = ("training.steps", "search.rewind_step")


def fitted_keys(recipe: Recipe) -> dict[str, Any]:
    """What `--time` may have made of a recipe, by dotted key, for the run's origin."""
    found = {"training.steps": recipe.training.steps, "search.rewind_step": recipe.search.told("rewind_step", None)}
    return {key: found[key] for key in _FITTED if found[key] is not None}


def check_unchanged(path: Path, raw: dict[str, Any], origin: Mapping[str, Any]) -> None:
    """Raises `RecipeError` where a run's recipe.yaml, which is `raw`, is not as it was when the run began: no level was
    made by what stands there now."""
    asked, fitted = origin["asked"], origin.get("fitted")
    if isinstance(fitted, dict):
        asked = with_keys(asked, fitted, str(path.parent))
    # Older runs do not say what was made of these.
    left_out = _FITTED if origin.get("gave_up") and not isinstance(fitted, dict) else ()
    if differing := _differing(path.parent, raw, asked, left_out):
        raise RecipeError(
            f"{path} was changed since the run began: {'; '.join(differing)} (first what stands there now): put it "
            f"back, or take find --fresh"
        )


def check_goes_on(folder: Path, asked: Recipe, origin: Mapping[str, Any]) -> list[str]:
    """Raises `RecipeError`, which says the keys, where a run is not to be gone on with as it is asked now.

    Returns the `PLACES` that differ: then it is, if the images are the same.
    """
    differing = _differing(folder, origin["asked"], asked.dump())
    moved = [words for words in differing if words.partition(" ")[0] in PLACES]
    if len(moved) < len(differing):
        raise of_another_recipe(folder, differing)
    return moved


def of_another_recipe(folder: Path, differing: Sequence[str]) -> RecipeError:
    """What is said of a folder that cannot be gone on with."""
    return RecipeError(
        f"{folder} was made by another recipe: {'; '.join(differing)}; take name=… for a new run, or --fresh"
    )


def read_alike(folder: Path, *asked: Any) -> list[dict[str, Any]]:
    """What was asked at several times, each read as a folder's: keys that are newer than it have their defaults, and a
    default that is said is none. Raises `RecipeError`."""
    return [kept_recipe(one, str(folder)).dump() for one in asked]


def _differing(folder: Path, one: Any, other: Any, left_out: Sequence[str] = ()) -> list[str]:
    """The keys by which two recipes of a folder differ, but for those that may."""
    if one == other:  # of one version, however old: then nothing is to be read
        return []
    return differing_keys(*(_fixed(dumped, left_out) for dumped in read_alike(folder, one, other)))


def _fixed(dumped: dict[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """A dumped recipe without the keys that may grow, and without those that are left out."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in dumped.items()}
    for path in (*_MAY_GROW, *left_out):
        part, _, key = path.partition(".")
        if key:
            kept[part].pop(key, None)
        else:
            kept.pop(part, None)
    return kept

"""Recipe files: read, with a budget and `key=value` laid over them, and compared."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gentickets.errors import RecipeError
from gentickets.files import read_file
from gentickets.lab.recipe.older import of_today
from gentickets.lab.recipe.plain_yaml import read_value, read_yaml
from gentickets.lab.recipe.recipe import Recipe, code_in, make_recipe, parsed
from gentickets.lab.recipe.shipped import recipe_file, recipes

_LARGEST = 10**6
"""Bytes that a recipe may have: what is larger is something else, or has no end."""

FULL = "full"
"""The budget that every recipe has: the recipe as it is written."""


def is_study(path: str | Path) -> bool:
    """Whether a recipe file holds a study. Raises `RecipeError` where it cannot be read."""
    return "study" in read_keys(path, allow_code=True)  # nothing is looked up


def read_recipe(
    path: str | Path, overrides: Iterable[str] = (), budget: str | None = None, allow_code: bool = False
) -> Recipe:
    """Reads and validates a recipe file: first the keys of `budget`, then `key=value` overrides (`training.steps=500`).

    Of a study, this is the recipe that its arms change. Code that an override names is run; what the file names, only
    with `allow_code`. Raises `RecipeError`, in one line, that names the file, the key, the value and what is possible.
    """
    check_keys(path, overrides, budget, allow_code)  # before whatever it names is loaded
    raw = read_keys(path, overrides, budget, allow_code)
    raw.pop("study", None)
    return make_recipe(raw, str(path))


def read_training(
    path: str | Path, overrides: Iterable[str] = (), budget: str | None = None, allow_code: bool = False
) -> Recipe:
    """As `read_recipe`, to train one model by: nothing is searched for, and a ticket knows its own step, so that a
    `search.rewind_step` which is not before the last step of the training is left out."""
    raw = read_keys(path, overrides, budget, allow_code)
    raw.pop("study", None)
    search, training = raw.get("search"), raw.get("training")
    if isinstance(search, dict) and isinstance(training, dict):
        rewind, steps = search.get("rewind_step"), training.get("steps")
        if type(rewind) is int and type(steps) is int and rewind >= steps:
            del search["rewind_step"]
    check_asked(parsed(raw, str(path)), str(path))
    return make_recipe(raw, str(path))


def check_keys(
    path: str | Path, overrides: Iterable[str] = (), budget: str | None = None, allow_code: bool = False
) -> None:
    """What is wrong with the keys themselves, of a study with those that its arms change, as `read_recipe` says it.

    Nothing of the catalogue is loaded, and so not torch, whose import takes two seconds.
    """
    raw = read_keys(path, overrides, budget, allow_code)
    raw.pop("study", None)
    check_asked(parsed(raw, str(path)), str(path))


def check_asked(recipe: Recipe, where: str) -> None:
    """Refuses what could be run and would not be what was asked for. Run folders of before may have it."""
    training, levels, rounds = recipe.training, recipe.controls.levels, recipe.rounds
    if training.warmup_steps >= training.steps:
        raise RecipeError(
            f"{where}: training.warmup_steps={training.warmup_steps} is not before training.steps={training.steps}"
        )
    judging = recipe.evaluation
    if judging.inception_weights is not None and judging.features != "inception":
        raise RecipeError(
            f"{where}: evaluation.inception_weights={judging.inception_weights} would not be read: take "
            f"evaluation.features=inception, which is {judging.features} now, or leave it out"
        )
    # Without rounds there is the dense model alone, and nobody can take it for more.
    if rounds and isinstance(levels, list) and (beyond := [level for level in levels if level > rounds]):
        raise RecipeError(
            f"{where}: controls.levels={levels}: there is no level {beyond[0]} with search.rounds={rounds}; "
            f"take controls.levels={[level for level in levels if level <= rounds]}, or auto"
        )


def read_keys(
    path: str | Path, overrides: Iterable[str] = (), budget: str | None = None, allow_code: bool = False
) -> dict[str, Any]:
    """The keys of a recipe or study file as plain data, its budgets used up, not validated. Raises `RecipeError`.

    A file that names code is refused without `allow_code`: it would run when the recipe is read.

    `path`: a file, or the name of a recipe that comes with the package, such as quickstart/gan.
    """
    path = recipe_file(path)
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        near = difflib.get_close_matches(str(path), recipes(), n=1)
        mend = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(
            f"cannot read recipe {path}: {error.strerror}; {mend}`gentickets list recipes` names some"
        ) from None
    if len(text) > _LARGEST:
        raise RecipeError(f"{path} is no recipe: it is larger than {_LARGEST:,} bytes")
    raw = read_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is no recipe: it holds {type(raw).__name__}, not keys and values")
    budgets = _mappings(raw.pop("budgets", {}), f"{path}: budgets")
    budgets.setdefault(FULL, {})
    chosen = FULL if budget is None else budget
    if chosen not in budgets:
        raise RecipeError(f"--budget {chosen or repr(chosen)}: {path} knows {', '.join(budgets)}")
    raw = _in_keys_of_today(with_keys(raw, budgets[chosen], f"{path}: budgets.{chosen}"), path)
    if not allow_code and (code := code_in(raw)):
        raise RecipeError(f"{path} names code ({code[0]}), which would run: say --allow-code if you trust it")
    return of_today(with_overrides(raw, overrides))


def _in_keys_of_today(raw: dict[str, Any], path: Path) -> Any:
    """`of_today`, and as a run of before kept it where it is a run's; what somebody wrote into that has to be read."""
    asked = dict(_flat(_asked_of_run(path)))
    written = {key for key, value in _flat(raw) if key not in asked or asked[key] != value}
    kept = of_today(raw, kept=bool(asked))
    return kept if written <= dict(_flat(kept)).keys() else of_today(raw)


def _asked_of_run(path: Path) -> dict[str, Any]:
    """What the run was asked for of which a file is the recipe; empty where it is no run's."""
    if path.name != "recipe.yaml":
        return {}
    try:
        asked = json.loads(read_file(path.with_name("origin.json"), _LARGEST))["asked"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return asked if isinstance(asked, dict) else {}


def with_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Plain data with `key=value` laid over it, as on the command line. Raises `RecipeError`."""
    raw = copy.deepcopy(raw)
    for override in overrides:
        _override(raw, override)
    return raw


def _mappings(found: Any, where: str) -> dict[str, dict[str, Any]]:
    """What must be names with keys and values below each. Raises `RecipeError`."""
    if not isinstance(found, dict) or not all(isinstance(below, dict) for below in found.values()):
        raise RecipeError(f"{where}: names are needed here, with keys and values below each")
    return {str(name): below for name, below in found.items()}


def with_keys(raw: dict[str, Any], changes: dict[str, Any], where: str) -> dict[str, Any]:
    """Plain data with other values at some keys, which may be dotted, nested or both. Raises `RecipeError`."""
    new = copy.deepcopy(raw)
    for path, value in changes.items():
        place = new
        *above, last = str(path).split(".")
        for key in above:
            place = _below(place, key, where)
        if isinstance(value, dict) and _NAMED_BY.get(last) not in (None, *value):
            _below(place, last, where)  # options of what is named there
        if isinstance(value, dict) and isinstance(place.get(last, {}), dict):
            place[last] = with_keys(place.get(last, {}), value, where)
        else:
            place[last] = value
    return new


_NAMED_BY = {"model": "name", "objective": "name", "search": "method", "criterion": "name", "around": "name"}
"""Key that may hold a name alone → the key that has the name where there are others beside it."""


def _below(place: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    below = place.setdefault(key, {})
    if isinstance(below, str) and key in _NAMED_BY:
        below = place[key] = {_NAMED_BY[key]: below}
    if not isinstance(below, dict):
        raise RecipeError(f"{where}: {key} is a value, with no keys below it")
    return below


def kept_recipe(raw: Any, where: str, code_may_run: bool = False) -> Recipe:
    """The recipe that a run folder keeps, with the keys that there were when it was made. Raises `RecipeError`.

    It runs no code that it names, and so cannot be built where it names some, unless `code_may_run`.
    """
    return parsed(of_today(raw, kept=True), where, code_may_run)


def differing_keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The dotted keys by which two dumped recipes differ, with both values."""
    mine, theirs = dict(_flat(one)), dict(_flat(other))
    return [
        f"{key} ({mine.get(key, 'absent')!r} there, {theirs.get(key, 'absent')!r} here)"
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key, "absent") != theirs.get(key, "absent")
    ]


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    shown = repr(override) if len(override) <= 100 else f"{override[:90]!r} …"
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"override {shown} is not key=value, such as training.steps=500")
    value = read_value(text, f"override {shown}: the value")
    place = raw
    for key in keys[:-1]:
        place = _below(place, key, f"override {shown}")
    place[keys[-1]] = value

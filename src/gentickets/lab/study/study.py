"""A study: the same task by several arms, each an ordinary run, beside small dense nets of the tickets' sizes.

    runs/NAME/
      study.yaml                       what was asked: the arms and their titles, what was published
      imp/  snip/  …                   a run folder an arm
      small-dense-11402/               dense nets trained from scratch, named by their parameter count
      study.csv  study.html

A study file is a recipe with two more keys: `budgets` (see `read_keys`) and `study`, which names the arms by the keys
that each changes. Every part of a study is a run that is resumed where it stands, and so is the study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gentickets.catalogue import CATALOGUE, Named
from gentickets.errors import HardwareError, RecipeError
from gentickets.files import replace_file
from gentickets.lab.recipe import Recipe, make_recipe, parsed
from gentickets.lab.recipe.complaints import complaints
from gentickets.lab.recipe.file import read_keys, with_keys
from gentickets.lab.recipe.older import SHORT
from gentickets.lab.recipe.owned import owner
from gentickets.lab.recipe.plain_yaml import read_yaml, write_yaml
from gentickets.lab.results.reading import read_run
from gentickets.lab.run import folder as disk
from gentickets.lab.run.hardware import make_fabric
from gentickets.lab.run.prepare import Prepared, joined, mended, prepared
from gentickets.lab.run.sharing import Donors, neighbours
from gentickets.lab.run.trainer import Tell
from gentickets.lab.run.work import run_all
from gentickets.lab.study.small_dense import PREFIX, small_dense_recipes

METHODS: tuple[str, ...] = (
    *(name for name in CATALOGUE["method"] if name not in ("at-init", "transferred", "by-time")),
    *SHORT,
)
"""What a plain recipe can be compared by. Tickets of other runs need a source, and so a study file that names it; what
prunes before training is named by its criterion."""

COMPARED = ("imp", "one-shot", "snip", "grasp", "synflow", "random-at-init")
"""The methods that a plain recipe is compared by, where none are named."""

DENSE = "dense"
"""What `published` calls the dense model of the first arm."""

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedRow(_Part):
    """One row of a published table, and the arm that it stands beside (at `level`, by default its deepest)."""

    technique: str
    arm: str
    level: Annotated[int, Field(ge=0)] | None = None
    metric: float | None = None
    weights: float | None = None
    flops: float | None = None
    seconds: float | None = None


class Published(_Part):
    """A published table: where it stands, what its metric is, and its rows."""

    source: str
    metric: str
    note: str | None = None
    rows: Annotated[list[PublishedRow], Field(min_length=1)]


class StudyPart(_Part):
    """The key `study` of a study file. `arms`: label → the keys of the recipe that this arm changes; `parts`: the same
    of runs whose tickets arms are made of, and that are not compared themselves."""

    arms: Annotated[dict[Label, dict[str, Any]], Field(min_length=1)]
    parts: dict[Label, dict[str, Any]] = {}
    small_dense: bool = True
    published: Published | None = None


@dataclass(frozen=True)
class Arm:
    """One arm of a study: its folder's name, what it is called, and its recipe."""

    label: str
    title: str
    recipe: Recipe


@dataclass(frozen=True)
class Study:
    """Everything that decides a study."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    small_dense: bool
    published: Published | None
    parts: tuple[Arm, ...] = ()

    @property
    def runs(self) -> tuple[Arm, ...]:
        """All that is made but small dense nets: what arms are made of, and then these."""
        return (*self.parts, *self.arms)


# -- reading ------------------------------------------------------------------------------------------------


def read_study(
    path: Path,
    overrides: Iterable[str] = (),
    methods: Sequence[str] | None = None,
    budget: str | None = None,
    allow_code: bool = False,
) -> Study:
    """The study that a file holds, or one of a plain recipe by `methods` (default: `COMPARED`), named NAME-compare.

    An arm is the recipe with the keys that the arm says, after the budget's and `key=value`. Raises `RecipeError`.
    """
    raw = read_keys(path, overrides, budget, allow_code)
    where = str(path)
    if "study" in raw:
        if methods is not None:
            raise RecipeError(f"--methods: {path} names its own arms; it takes key=value, or another recipe")
        return _study(raw, where)
    recipe = make_recipe(raw, where)
    raw["name"] = f"{recipe.name}-compare"
    raw["title"] = f"{recipe.title or recipe.name}: methods compared"
    raw["study"] = {
        "arms": {method: _method_arm(method, recipe) for method in _known(COMPARED if methods is None else methods)}
    }
    return _study(raw, where)


def _known(methods: Sequence[str]) -> Sequence[str]:
    if not methods:
        raise RecipeError(f"--methods: none is named; take some of {', '.join(METHODS)}")
    for method in methods:
        if method not in METHODS:
            raise RecipeError(f"--methods: {method!r} is none of {', '.join(METHODS)}")
    return methods


_ITS_OWN_CONTROL = ("random-at-init",)
"""A random mask, which need not be compared with one."""


def _method_arm(method: str, recipe: Recipe) -> dict[str, Any]:
    """What an arm changes so that `method` finds tickets of the recipe's sparsities."""
    deepest = round(recipe.build_method().sparsity_at(recipe.rounds), 6)
    kind: Any = Named("method", "at-init" if method in SHORT else method).load()
    changes: dict[str, Any] = {"search": {"method": method, **kind.as_arm(deepest)}}
    if method in _ITS_OWN_CONTROL:
        changes["controls"] = {"random_mask": False}
    elif len(changes["search"]) > 1:
        changes["controls"] = {"levels": "auto"}  # of other levels than the recipe's
    return changes


def _study(raw: dict[str, Any], where: str) -> Study:
    recipe = {key: value for key, value in raw.items() if key != "study"}
    try:
        part = StudyPart.model_validate(raw["study"])
    except ValidationError as error:
        raise RecipeError(f"{where}: study.{complaints(error, StudyPart)}") from None
    name = parsed(recipe, where).name
    parts, arms = (
        tuple(_arm(recipe, label, changes, f"{where}: {kind} {label}") for label, changes in said.items())
        for kind, said in (("part", part.parts), ("arm", part.arms))
    )
    if both := sorted(part.parts.keys() & part.arms.keys()):
        raise RecipeError(f"{where}: study: {both[0]!r} is both a part and an arm; take another label")
    for label in (*part.parts, *part.arms):
        if label == DENSE or label.startswith(PREFIX):
            raise RecipeError(f"{where}: study.arms: {label!r} is what the controls are called; take another label")
    margins = {arm.label: arm.recipe.evaluation.margin for arm in arms}
    if len(set(margins.values())) > 1:
        said = ", ".join(f"{label}: {margin:g}" for label, margin in margins.items())
        raise RecipeError(f"{where}: study.arms: unequal evaluation.margin ({said}); say one for all, beside the arms")
    for row in part.published.rows if part.published else ():
        if row.arm not in (DENSE, *part.arms):
            raise RecipeError(f"{where}: study.published: no arm {row.arm!r}; there are dense, {', '.join(part.arms)}")
    return Study(name, str(raw.get("title") or name), arms, part.small_dense, part.published, parts)


def _arm(recipe: dict[str, Any], label: str, changes: dict[str, Any], where: str) -> Arm:
    raw = with_keys(recipe, {"name": f"{recipe['name']}-{label}", "title": label}, where)
    raw = with_keys(raw, changes, where)
    title = str(raw["title"])
    raw["title"] = f"{recipe.get('title') or recipe['name']}: {title}"
    said = with_keys({}, changes, where)
    for part, key in (("search", "method"), ("objective", "name"), ("model", "name")):
        raw[part] = _of_what_it_names(part, key, raw.get(part), said.get(part))
    return Arm(label, title, make_recipe(raw, where))


def _of_what_it_names(part: str, key: str, whole: Any, said: Any) -> Any:
    """A part of an arm's recipe, without what the arm does not say itself and the thing that it names does not have."""
    if not isinstance(whole, dict):
        return {} if whole is None and part == "search" else whole
    kind = "method" if part == "search" else part
    name = "at-init" if whole.get(key) in SHORT else whole.get(key, "imp")
    if name not in CATALOGUE[kind]:
        return whole
    its_own = {key, "score_batches", *owner(kind, name).options, *(said if isinstance(said, dict) else ())}
    return {one: value for one, value in whole.items() if one in its_own}


# -- running ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A part of a study that is about to run. `shared`: seed → the run whose training it takes over."""

    index: int
    total: int
    label: str
    ready: Prepared
    shared: dict[int, str]


Begin = Callable[[Stage], Tell]
"""Told of each part before it runs; returns what listens to its seeds."""

Execute = Callable[[Sequence[Prepared], Tell], None]
"""Makes all that is not there yet of some runs, and writes their results."""


def run_study(
    study: Study,
    folder: Path,
    begin: Begin,
    execute: Execute = run_all,
    *,
    fresh: bool = False,
    dry: bool = False,
    command: str = "",
    loading_seconds: float = 0.0,
) -> dict[str, str]:
    """Runs every arm to its end, then the small dense nets; what is complete is skipped, as in a run.

    All arms are worked on at once: while one seed's chain goes on, whoever is free takes a piece of another arm.

    Returns label → reason of the arms that this machine has no hardware for, which are left out. With `dry`, each
    arm is only measured and told. `loading_seconds`: as for `prepared`. Raises `RecipeError` where the folder is a run,
    or an arm's folder was made by another recipe, and `HardwareError` where every arm would be left out.
    """
    if (folder / "recipe.yaml").exists():
        raise RecipeError(f"{folder} is a single run: take name=… for the study")
    how: Any = {"fresh": fresh, "command": command, "loading_seconds": loading_seconds}
    if not dry:
        with disk.one_line_errors(folder), disk.locked(folder, wait=True):
            write_record(folder, study, command)
    arms, left_out = _with_hardware(study.runs)
    runs, tellers, taking = list[Prepared](), dict[str, Tell](), dict[Path, dict[int, str]]()
    for index, arm in enumerate(arms):
        ready = prepared(arm.recipe, folder / arm.label, dry=dry, **how)
        ready = replace(ready, donors=tuple(run.folder for run in runs), beside=tuple(neighbours(folder)))
        taking[ready.folder] = {} if dry else Donors(ready).expected(taking)
        tellers[arm.label] = begin(Stage(index, len(study.runs), arm.label, ready, taking[ready.folder]))
        runs.append(ready)
    if not dry:
        execute(runs, lambda event: tellers[event.run](event))
        if study.small_dense:
            compared = {arm.label for arm in study.arms}
            own = [run for run in runs if run.folder.name in compared]
            _run_small_dense(study, own, folder, begin, execute, how)
    return left_out


def _with_hardware(all_arms: Sequence[Arm]) -> tuple[list[Arm], dict[str, str]]:
    """The arms that this machine can run, and label → reason of the others. Raises `HardwareError` where it is none."""
    arms, left_out = list[Arm](), dict[str, str]()
    for arm in all_arms:
        try:
            make_fabric(arm.recipe)
        except HardwareError as error:
            left_out[arm.label] = str(error)
        else:
            arms.append(arm)
    if not arms:
        raise HardwareError(next(iter(left_out.values())))
    return arms, left_out


def _run_small_dense(
    study: Study, arms: Sequence[Prepared], folder: Path, begin: Begin, execute: Execute, how: Mapping[str, Any]
) -> None:
    recipes = small_dense_recipes(study.arms[0].recipe, [read_run(arm.folder) for arm in arms])
    total, runs, tellers = len(study.runs) + len(recipes), list[Prepared](), dict[str, Tell]()
    for index, (label, recipe) in enumerate(recipes.items(), start=len(study.runs)):
        runs.append(prepared(recipe, folder / label, **how))
        tellers[label] = begin(Stage(index, total, label, runs[-1], {}))
    if runs:
        execute(runs, lambda event: tellers[event.run](event))


def joined_runs(folder: Path, allow_code: bool = False) -> list[Prepared]:
    """A run that is there, or all that there are of a study, to be worked on as they were asked."""
    if not (folder / "study.yaml").is_file():
        return [mended(joined(folder, allow_code))]
    beside = [entry.name for entry in sorted(folder.iterdir()) if entry.name.startswith(PREFIX)]
    labels = [label for label in (*read_record(folder).runs, *beside) if (folder / label / "recipe.yaml").is_file()]
    return [mended(joined_arm(folder, label, allow_code)) for label in labels]


def joined_arm(folder: Path, label: str, allow_code: bool = False) -> Prepared:
    """One run of a study that is there, which takes over what arms before it train the same. Raises `RecipeError`."""
    arms = read_record(folder).runs
    if label not in arms and not label.startswith(PREFIX):
        raise RecipeError(f"{folder} has no arm {label[:80]!r}: {', '.join(arms)}")
    ready = joined(folder / label, allow_code)
    if label not in arms:
        return ready
    before = (folder / arm for arm in arms[: arms.index(label)])
    donors = tuple(arm for arm in before if (arm / "recipe.yaml").is_file())
    return replace(ready, donors=donors, beside=tuple(neighbours(folder)))


# -- what is kept -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What a study's folder says of it. `arms`, `parts`: label → title."""

    folder: Path
    name: str
    title: str
    arms: dict[str, str]
    published: Published | None
    command: str
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> list[str]:
        """The labels of all runs but small dense nets, in the order in which they are made."""
        return [*self.parts, *self.arms]


def write_record(folder: Path, study: Study, command: str) -> None:
    """Writes `study.yaml`."""
    kept = {
        "name": study.name,
        "title": study.title,
        "command": command,
        "arms": {arm.label: arm.title for arm in study.arms},
        "parts": {arm.label: arm.title for arm in study.parts},
        "published": study.published.model_dump(mode="json") if study.published else None,
    }
    replace_file(folder / "study.yaml", write_yaml(kept))


def read_record(folder: Path) -> Record:
    """The record of the study in `folder`. Raises `RecipeError` where there is none that can be read."""
    path = folder / "study.yaml"
    try:
        raw = read_yaml(path.read_bytes(), str(path))
        published = Published.model_validate(raw["published"]) if raw["published"] else None
        arms = {str(label): str(title) for label, title in raw["arms"].items()}
        parts = {str(label): str(title) for label, title in raw.get("parts", {}).items()}
        return Record(folder, str(raw["name"]), str(raw["title"]), arms, published, str(raw["command"]), parts)
    except (OSError, RecipeError, ValidationError, KeyError, TypeError, AttributeError):
        raise RecipeError(f"{folder} is no study: it has no readable study.yaml") from None

"""A run folder read back as values."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from gentickets.errors import RecipeError
from gentickets.files import read_file
from gentickets.lab.recipe.begun import check_unchanged
from gentickets.lab.recipe.plain_yaml import read_yaml
from gentickets.lab.replacing import read_settled
from gentickets.options import Control
from gentickets.sealed import Damaged, check_json, unsealed_json

Arm = Literal["ticket", Control]
ARMS: tuple[Arm, ...] = get_args(Arm)
"""The ticket chain, and its controls."""

_LEVEL_FOLDER = re.compile(r"level-(\d{2,4}|10000)(?:-(random_mask|redrawn_weights))?")
_SEED_FOLDER = re.compile(r"seed-(0|[1-9]\d{0,12})")

_MOST_TEXT = 2**28
"""Bytes of one file of JSON or YAML that are read: the folder may be a stranger's."""

_BEYOND = 1e100
"""No metric of a model that came through is as large: sums and axes of such values overflow."""

_MOST_NETWORKS = 1000

Finite = Annotated[float, Field(allow_inf_nan=False, ge=0, le=_BEYOND)]
Whole = Annotated[int, Field(ge=0, le=2**63)]


@dataclass(frozen=True)
class Metric:
    """One number that was measured, with its words. `samples`: how many images it rests on.

    `by_network`: what each of several networks found, where `value` is their mean.
    """

    label: str
    value: float
    samples: Whole | None
    lower_is_better: bool
    by_network: Annotated[tuple[float, ...], Field(max_length=_MOST_NETWORKS)] | None = None

    @property
    def spread(self) -> float | None:
        """The standard deviation over the networks; None for one, and where any value is none of a model's."""
        values = self.by_network or ()
        return statistics.stdev(values) if len(values) > 1 and all(abs(value) <= _BEYOND for value in values) else None


@dataclass(frozen=True)
class Count:
    """How many weights are alive, and how many there are."""

    alive: Whole
    total: Whole

    @property
    def sparsity(self) -> float:
        """The share of weights that is pruned, 0 to 1. Of nothing: 0."""
        return 1.0 - self.alive / self.total if self.total else 0.0


@dataclass(frozen=True)
class Layer(Count):
    """The count of one weight tensor, and its shape."""

    shape: tuple[Whole, ...]


@dataclass(frozen=True)
class Cost:
    """What a level costs: FLOPs of one forward pass, bytes of the weights; `sparse` counts live ones only.

    `find_flops` is what finding the level's masks took in all, `train_flops` what training from them did, forward and
    backward; the `live` ones count live weights only. None in levels of before these were kept.
    """

    parameters: Whole
    alive_parameters: Whole
    flops_dense: Finite
    flops_sparse: Finite
    bytes_dense: Whole
    bytes_sparse: Whole
    find_flops: Finite | None = None
    find_live_flops: Finite | None = None
    train_flops: Finite | None = None
    train_live_flops: Finite | None = None


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one level, and how many training images they went into.

    `find_seconds`: of finding its masks, `train_seconds`: of training from them. `shared_from`: the run that trained
    it, where this one only took it over. `peak_bytes`: the most memory that the process had held by then.
    """

    train_seconds: Finite
    evaluate_seconds: Finite
    images: Whole
    find_seconds: Finite | None = None
    shared_from: str | None = None
    peak_bytes: Whole | None = None


@dataclass(frozen=True)
class Evaluations:
    """The metric in training, on training images: at which steps, its best one, and where it could have stopped.

    `early_stopping_step`: the first at which the metric, smoothed, is within 5 % of its best.
    """

    steps: list[Whole]
    values: list[float]
    best_step: Whole | None
    early_stopping_step: Whole | None


@dataclass(frozen=True)
class LevelResult:
    """One level folder: the ticket, or a control, of one seed. `metrics` may be empty where it failed.

    `sparse_layers`: those that were trained on their live weights alone. `digests`: of the files that were measured.
    """

    seed: int
    level: Annotated[int, Field(ge=0, le=10**4)]
    arm: Arm
    status: Literal["complete", "diverged", "disconnected"]
    sparsity: Annotated[float, Field(ge=0, le=1)]
    alive: Whole
    total: Whole
    primary: str
    start_step: Whole
    end_step: Whole
    reason: str | None = None
    components: dict[str, Count] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    sparse_layers: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    validation: Evaluations | None = None
    timing: Timing | None = None
    folder: Path = Path()

    def curve(self) -> list[dict[str, Any]]:
        """The lines of `curve.jsonl`, in order. Empty where there is no such file. Raises `RecipeError`."""
        path = self.folder / "curve.jsonl"
        if not path.is_file():
            return []
        lines = []
        for number, raw in enumerate(_read(path).splitlines(), 1):
            try:
                line = json.loads(raw.decode())
            except (ValueError, RecursionError) as error:
                raise RecipeError(f"{path}, line {number}: not JSON ({_one_line(error)})") from None
            if not (isinstance(line, dict) and _is_number(line.get("step")) and isinstance(line.get("losses"), dict)):
                raise RecipeError(f"{path}, line {number}: says no step and its losses")
            lines.append(line)
        return lines

    @property
    def samples(self) -> Path | None:
        """The grid of samples, or of reconstructions."""
        return self._picture("samples.png")

    @property
    def originals(self) -> Path | None:
        """The held-out inputs that `samples` reconstructs."""
        return self._picture("originals.png")

    def _picture(self, name: str) -> Path | None:
        path = self.folder / name
        # A link is none of ours: in a stranger's folder it may name any picture of the reader's.
        return path if path.is_file() and not path.is_symlink() else None


def came_through(result: LevelResult, key: str) -> Metric | None:
    """The metric `key` of a complete level, where it has a value that a model can have."""
    metric = result.metrics.get(key)
    return metric if result.status == "complete" and metric is not None and abs(metric.value) < _BEYOND else None


@dataclass(frozen=True)
class Run:
    """A run folder as it was read. `levels` are sorted by seed, level, and arm in the order of `ARMS`; `left_out`:
    (seed, arm, level) of controls that their level cannot have."""

    folder: Path
    name: str
    recipe: dict[str, Any]
    origin: dict[str, Any]
    levels: list[LevelResult]
    left_out: frozenset[tuple[int, str, int]] = frozenset()

    @property
    def title(self) -> str:
        """The recipe's title; without one, the run's name."""
        return str(self.recipe.get("title") or self.name)

    @property
    def primary(self) -> str:
        """The key of the metric that the run is judged by."""
        return self.levels[0].primary

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that the recipe asks for, and any other that is there."""
        asked = self.recipe.get("seeds")
        asked = [seed for seed in asked if isinstance(seed, int)] if isinstance(asked, list) else []
        return tuple(sorted({*asked, *(result.seed for result in self.levels)}))

    @property
    def depth(self) -> int:
        """The deepest level of the ticket chain in any seed."""
        return max((result.level for result in self.levels if result.arm == "ticket"), default=0)

    def metrics(self) -> dict[str, Metric]:
        """Key → the first measurement of it (label, direction, samples), the primary one first."""
        found: dict[str, Metric] = {}
        for result in self.levels:
            for key, metric in result.metrics.items():
                found.setdefault(key, metric)
        return {key: found[key] for key in sorted(found, key=lambda key: (key != self.primary, key))}

    def of(self, arm: Arm, level: int | None = None) -> list[LevelResult]:
        """The results of an arm, at one level or at all, in the order of seeds."""
        return [r for r in self.levels if r.arm == arm and (level is None or r.level == level)]


def read_run(folder: Path | str) -> Run:
    """The run in `folder`; levels that are not complete are left out.

    Raises `RecipeError` for a folder that is no run, that has no complete level, that is being judged anew, or that has
    a file which does not say what it must; the message names that file.
    """
    folder = Path(folder)
    recipe_path = folder / "recipe.yaml"
    if not recipe_path.is_file():
        raise RecipeError(f"{folder}: no run (there is no recipe.yaml in it)")
    recipe, origin = read_settled(folder, lambda: _begun(folder))
    levels = sorted(_read_levels(folder), key=lambda r: (r.seed, r.level, ARMS.index(r.arm)))
    if not levels:
        raise RecipeError(f"{folder}: no level is complete yet")
    _check_agreement(levels)
    name = str(recipe.get("name") or folder.resolve().name)
    return Run(folder, name, recipe, origin, levels, frozenset(_read_left_out(folder)))


def _begun(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and origin as plain data."""
    recipe_path, origin_path = folder / "recipe.yaml", folder / "origin.json"
    recipe = read_yaml(_read(recipe_path), str(recipe_path))
    origin = _read_json(origin_path) if origin_path.is_file() else {}
    for path, content in ((recipe_path, recipe), (origin_path, origin)):
        if not isinstance(content, dict):
            raise RecipeError(f"{path}: holds no mapping at its top level")
    if isinstance(origin.get("asked"), dict):  # as in every run's; not in what is there to be read alone
        check_unchanged(recipe_path, recipe, origin)
    return recipe, origin


def _read_levels(folder: Path) -> Iterator[LevelResult]:
    for seed_folder in folder.iterdir():
        seed = _SEED_FOLDER.fullmatch(seed_folder.name)
        for level_folder in seed_folder.iterdir() if seed and _is_own_folder(seed_folder) else ():
            place = _LEVEL_FOLDER.fullmatch(level_folder.name)
            if seed and place and _is_own_folder(level_folder) and (level_folder / "metrics.json").is_file():
                yield _read_level(level_folder, int(seed[1]), int(place[1]), place[2] or "ticket")


def _read_left_out(folder: Path) -> Iterator[tuple[int, str, int]]:
    """The marks of controls that their level cannot have."""
    for mark in folder.glob("seed-*/.level-*.none"):
        seed, place = _SEED_FOLDER.fullmatch(mark.parent.name), _LEVEL_FOLDER.fullmatch(mark.name[1:-5])
        if seed and place and place[2]:
            yield int(seed[1]), place[2], int(place[1])


def _is_own_folder(path: Path) -> bool:
    """Whether a folder lies where it seems to: links are not followed in what a stranger may have made."""
    return path.is_dir() and not path.is_symlink()


def _read_level(folder: Path, seed: int, level: int, arm: str) -> LevelResult:
    path = folder / "metrics.json"
    result: LevelResult = parse(path, LevelResult)
    if (result.seed, result.level, result.arm) != (seed, level, arm):
        found = f"seed {result.seed}, level {result.level}, {result.arm}"
        raise RecipeError(f"{path}: says {found}, which is not where it lies")
    if result.status == "complete" and result.primary not in result.metrics:
        raise RecipeError(f"{path}: a complete level without its primary metric {result.primary!r}")
    return replace(result, folder=folder, timing=read_timing(folder))


def read_timing(folder: Path) -> Timing | None:
    """A level's timing.json; None where there is none. Raises `RecipeError` where it does not say what it must."""
    path = folder / "timing.json"
    timing: Timing | None = parse(path, Timing) if path.is_file() else None
    return timing


def _check_agreement(levels: list[LevelResult]) -> None:
    """Raises `RecipeError` where levels would be compared by different metrics, in opposite directions, or by the means
    of fewer networks than others: an `evaluate` of older versions could be stopped between two levels."""
    direction, networks = dict[str, bool](), dict[str, int]()
    for result in levels:
        path = result.folder / "metrics.json"
        if result.primary != levels[0].primary:
            raise RecipeError(f"{path}: primary is {result.primary!r}, and {levels[0].primary!r} in other levels")
        for key, metric in result.metrics.items():
            if direction.setdefault(key, metric.lower_is_better) != metric.lower_is_better:
                raise RecipeError(f"{path}: lower_is_better of {key!r} is not that of the other levels")
            count = len(metric.by_network or ())
            if count and networks.setdefault(key, count) != count:  # older levels do not say it
                raise RecipeError(
                    f"{path}: {key!r} is the mean of {count} networks, and of {networks[key]} in other levels: run "
                    f"`gentickets evaluate` again"
                )


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def parse(path: Path, kind: type) -> Any:
    """The JSON file as a value of `kind`. Raises `RecipeError` that names the file and the field at fault."""
    raw = _read(path)
    try:
        check_json(raw)
        return _adapter(kind).validate_json(raw, strict=True)
    except Damaged as error:
        raise RecipeError(f"{path} is damaged ({error})") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{path}: {place + ': ' if place else ''}{_one_line(first['msg'])}") from None


def _read_json(path: Path) -> Any:
    try:
        return unsealed_json(_read(path))
    except Damaged as error:
        raise RecipeError(f"{path} is damaged ({error})") from None


def _read(path: Path) -> bytes:
    try:
        return read_file(path, _MOST_TEXT)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror})") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _BEYOND


def _one_line(error: object) -> str:
    return " ".join(str(error).split())

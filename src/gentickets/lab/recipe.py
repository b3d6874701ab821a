"""A recipe: everything that decides a run, validated, in YAML.

Keys left out take the defaults written here; `key=value` overrides any of them by its dotted path. A resolved
recipe (`dump`) says every key, so that a run folder shows what was done without this file beside it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gentickets import models
from gentickets.errors import PruneError, RecipeError
from gentickets.lab.plain_yaml import read_yaml
from gentickets.objectives import OBJECTIVES, Objective
from gentickets.pruning import Granularity, Scope
from gentickets.search.early_bird import TOLERANCES, Rule, check_tolerance
from gentickets.search.levels import Others, Retrain
from gentickets.training import Execution, Schedule, Settings

# A number is a number: not a truth value, nor text that could be read as one; and always a finite one.
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True, le=10**12)]
Share = Annotated[Real, Field(gt=0, lt=1)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
Steps = Annotated[Whole, Field(ge=0)]
Flag = Annotated[bool, Field(strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(_Part):
    """A model of the catalogue; options that are left out take the model's own defaults."""

    name: str
    width: Count | None = None
    depth: Count | None = None
    latent: Count | None = None
    hidden: list[Count] | None = None
    critic_norm: Flag | None = None

    @model_validator(mode="after")
    def _known(self) -> ModelPart:
        if self.name not in models.CATALOGUE:
            raise ValueError(f"model.name={self.name!r} is none of {', '.join(models.CATALOGUE)}")
        takes = models.options_of(self.name)
        for key in self.options:
            if key not in takes:
                raise ValueError(f"model.{key}: {self.name} takes {', '.join(takes)}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options that are said."""
        return self.model_dump(exclude={"name"}, exclude_none=True)

    @property
    def latent_size(self) -> int:
        return self.latent or int(models.options_of(self.name)["latent"])  # type: ignore[call-overload]


class DataPart(_Part):
    """The images: where from, and what they are made into. See `gentickets.data.load`."""

    source: str = "digits"
    size: Annotated[Whole, Field(ge=4)] = 16
    channels: Literal[1, 3] | None = None
    crop: Count | None = None
    test: str | None = None
    limit: Count | None = None
    flip: Flag = False


class ObjectivePart(_Part):
    """What is trained for: `autoencoding`, `elbo` or `adversarial`, with the options of that objective."""

    name: Literal["autoencoding", "elbo", "adversarial"]
    loss: str | None = None
    beta: NotNegative | None = None
    likelihood: Literal["gaussian", "bernoulli"] | None = None
    scale: Positive | None = None
    warmup_steps: Steps | None = None
    n_critic: Count | None = None
    clip: Positive | None = None
    gradient_penalty: NotNegative | None = None

    _losses = {"autoencoding": ("mse", "l1", "bce"), "adversarial": ("nonsaturating", "hinge", "wasserstein")}

    @model_validator(mode="after")
    def _known(self) -> ObjectivePart:
        takes = {field.name for field in fields(OBJECTIVES[self.name])} - {"latent_size"}
        said = self.model_dump(exclude={"name"}, exclude_none=True)
        for key in said:
            if key not in takes:
                raise ValueError(f"objective.{key}: {self.name} takes {', '.join(sorted(takes))}")
        if self.loss is not None and self.loss not in (known := self._losses[self.name]):
            raise ValueError(f"objective.loss={self.loss!r} is none of {', '.join(known)}")
        return self

    def build(self, latent_size: int) -> Objective:
        options = self.model_dump(exclude={"name"}, exclude_none=True)
        if self.name != "autoencoding":
            options["latent_size"] = latent_size
        return OBJECTIVES[self.name](**options)


class TrainingPart(_Part):
    """See `gentickets.training.Settings`.

    `threads`: intra-op threads of one training: "auto" by the work of a step, the same on every machine of so many
    cores; "measured" by timing some steps when the run begins, on the machine as it is then.
    """

    steps: Annotated[Whole, Field(ge=2)] = 2000
    batch_size: Annotated[Whole, Field(ge=2)] = 64
    lr: Positive | dict[str, Positive] = 1e-3
    betas: tuple[Annotated[Real, Field(ge=0, lt=1)], Annotated[Real, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: NotNegative = 0.0
    schedule: Schedule = "constant"
    warmup_steps: Steps = 0
    ema: Share | None = None
    clip_norm: Positive | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    execution: Execution = "auto"
    accelerator: Literal["cpu", "cuda", "auto"] = "auto"
    threads: Count | Literal["auto", "measured"] = "auto"
    checkpoint_seconds: NotNegative = 20.0

    def settings(self, seed: int) -> Settings:
        plain = self.model_dump(exclude={"accelerator", "threads", "checkpoint_seconds"})
        return Settings(**plain, seed=seed)


AT_INIT = ("snip", "grasp", "synflow", "magnitude-at-init", "random-at-init")
"""The methods that prune before the first step of training."""


class SearchPart(_Part):
    """Which weights are pruned, how much a round, and where each round starts from.

    `score_batches`: on how many batches SNIP and GraSP score. For `early-bird`, `granularity` says whether weights or
    whole channels go, and a mask is drawn every `interval` steps (None: an epoch) until it has changed by less than
    `tolerance` over `window` masks; where it has not by `settle_by` (a share of training), the newest mask is taken
    and said to be unsettled (`unsettled: last`), or the run stops (`stop`). `rule` says what a change is: `chance`, a
    share of the distance that independent masks of the same layer densities have (tolerance 0.2 unless said), or
    `hamming`, the paper's, the share of weights or channels that differ (0.1 unless said; refused where independent
    masks differ by no more). `gain_penalty` is the L1 penalty on the norms' gains while it searches. `transferred`
    takes the tickets of `source`, a run's folder (or its name, where it lies beside this run's), level by level;
    `carry` says which of its components becomes which of this model's (decoder: generator), `with_weights` whether
    its weights come along or its masks alone, and `exclude` what stays behind ("*.head.*", where a head's outputs mean
    something else).
    """

    method: Literal[
        "imp",
        "one-shot",
        "snip",
        "grasp",
        "synflow",
        "magnitude-at-init",
        "random-at-init",
        "early-bird",
        "transferred",
    ] = "imp"
    rounds: Annotated[Whole, Field(ge=0, le=10**4)] = 10
    fraction: Share = 0.2
    rewind_step: Steps = 0
    scope: Scope = "global"
    components: list[str] | None = None
    include: list[str] | None = None
    exclude: list[str] = []
    others: Others = "rewind"
    retrain: Retrain = "rewind"
    score_batches: Count = 10
    granularity: Granularity = "weight"
    window: Annotated[Whole, Field(ge=2)] = 5
    rule: Rule = "chance"
    tolerance: Annotated[Real, Field(gt=0, le=1)] = TOLERANCES["chance"]
    interval: Count | None = None
    settle_by: Annotated[Real, Field(gt=0, le=1)] = 0.5
    unsettled: Literal["last", "stop"] = "last"
    gain_penalty: NotNegative = 0.0
    source: str | None = None
    carry: dict[str, str] | None = None
    with_weights: Flag = False

    @model_validator(mode="before")
    @classmethod
    def _tolerance_of_the_rule(cls, said: Any) -> Any:
        if isinstance(said, dict) and "tolerance" not in said and said.get("rule") in TOLERANCES:
            return {**said, "tolerance": TOLERANCES[said["rule"]]}
        return said

    @model_validator(mode="after")
    def _fits_the_method(self) -> SearchPart:
        early = self.method == "early-bird"
        if (early or self.method in AT_INIT) and (self.rewind_step or self.retrain != "rewind"):
            why = "goes on from where its mask settled" if early else "prunes before training"
            raise ValueError(
                f"search.method={self.method} {why}: search.rewind_step must be 0 and search.retrain rewind"
            )
        if self.granularity == "channel" and not early:
            raise ValueError(f"search.granularity=channel: search.method={self.method} prunes weights; take early-bird")
        if (self.method == "transferred") != (self.source is not None and bool(self.carry)):
            raise ValueError(
                "search.method=transferred needs search.source (a run) and search.carry (such as decoder: generator), "
                "and no other method takes them"
            )
        if early and (self.include is not None or self.exclude):
            raise ValueError("search.include and search.exclude: early-bird prunes whole components; name components")
        for level in range(1, self.rounds + 1) if early else ():
            try:
                check_tolerance(self.tolerance, self.rule, self.sparsity_at(level))
            except PruneError as error:
                raise ValueError(f"search.{error} (level {level})") from None
        return self

    def sparsity_at(self, level: int) -> float:
        """What a level's sparsity is meant to be: `1 - (1 - fraction) ** level`."""
        return 1 - (1 - self.fraction) ** level


class ControlsPart(_Part):
    """At which levels the controls are run ("auto": three, spread over the deeper two thirds), and which."""

    levels: list[Count] | Literal["auto"] = "auto"
    random_mask: Flag = True
    redrawn_weights: Flag = True

    def chosen(self, rounds: int) -> list[int]:
        if self.levels == "auto":
            return sorted({max(1, math.ceil(rounds * share)) for share in (1 / 3, 2 / 3, 1)}) if rounds else []
        return [level for level in self.levels if level <= rounds]


class EvaluationPart(_Part):
    """How a trained model is judged, on held-out images. `samples`: how many are generated.

    `metrics`: "all" that the model and the images allow, or a list of keys, of which the first is the primary one
    where `primary` names none. `features`: the network in whose features samples are compared; "inception" costs
    much on a CPU, the most of it for `frechet_train`; "efficientnet-lite0" is pretrained too, an extra. `classifier`:
    what is trained on the labels, for `features: classifier` and for `downstream_accuracy`, and `classifiers`: over
    how many of them, of other seeds, the mean is taken. With `every` a training is judged every so many steps, on
    training images, for the step at which it could have stopped and for its best weights. `margin`: the share of the
    dense model's value by which a ticket may be worse and still be called as good.
    """

    primary: str | None = None
    metrics: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    samples: Annotated[Whole, Field(ge=16)] = 2000
    features: Literal["classifier", "inception", "efficientnet-lite0", "none"] = "classifier"
    inception_weights: str | None = None
    classifier: Literal["small", "resnet18"] = "small"
    classifiers: Annotated[Whole, Field(ge=1, le=20)] = 3
    every: Count | None = None
    margin: Annotated[Real, Field(gt=0, lt=1)] = 0.05


class Recipe(_Part):
    """Everything that decides a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    title: str | None = None
    model: ModelPart
    data: DataPart = DataPart()
    objective: ObjectivePart
    training: TrainingPart = TrainingPart()
    search: SearchPart = SearchPart()
    controls: ControlsPart = ControlsPart()
    evaluation: EvaluationPart = EvaluationPart()
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)] = [0]
    on_failure: Literal["continue", "stop"] = "continue"

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.search.rewind_step >= self.training.steps:
            raise ValueError(
                f"search.rewind_step={self.search.rewind_step} is not before training.steps={self.training.steps}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: the same seed twice would count as two runs")
        components = OBJECTIVES[self.objective.name].components
        rates = self.training.lr if isinstance(self.training.lr, dict) else {}
        named = (
            ("search.components", self.search.components or ()),
            ("search.carry", (self.search.carry or {}).values()),
            ("training.lr", rates),
        )
        for key, names in named:
            for name in names:
                if name not in components:
                    raise ValueError(f"{key}: no component {name!r}; {self.model.name} has {', '.join(components)}")
        if rates and set(rates) != set(components):
            raise ValueError(f"training.lr: give one rate, or one for each of {', '.join(components)}")
        try:
            self.build_objective()
        except ValueError as error:
            raise ValueError(f"objective: {error}") from None
        return self

    def build_objective(self) -> Objective:
        return self.objective.build(self.model.latent_size)

    def dump(self) -> dict[str, Any]:
        """Every key, as plain YAML types."""
        return self.model_dump(mode="json")


FULL = "full"
"""The budget that every recipe has: the recipe as it is written."""


def read_recipe(path: str | Path, overrides: Iterable[str] = (), budget: str | None = None) -> Recipe:
    """Reads and validates a recipe file: first the keys of `budget`, then `key=value` overrides (`training.steps=500`).

    Of a study, this is the recipe that its arms change. Raises `RecipeError`, in one line, that names the file, the
    key, the value and what is possible.
    """
    raw = read_keys(path, overrides, budget)
    raw.pop("study", None)
    recipe = make_recipe(raw, str(path))
    _check_asked(recipe, str(path))
    return recipe


def _check_asked(recipe: Recipe, where: str) -> None:
    """Refuses what could be run and would not be what was asked for. Run folders of before may have it."""
    training, levels, rounds = recipe.training, recipe.controls.levels, recipe.search.rounds
    if training.warmup_steps >= training.steps:
        raise RecipeError(
            f"{where}: training.warmup_steps={training.warmup_steps} is not before training.steps={training.steps}"
        )
    # Without rounds there is the dense model alone, and nobody can take it for more.
    if rounds and isinstance(levels, list) and (beyond := [level for level in levels if level > rounds]):
        raise RecipeError(
            f"{where}: controls.levels={levels}: there is no level {beyond[0]} with search.rounds={rounds}; "
            f"take controls.levels={[level for level in levels if level <= rounds]}, or auto"
        )


def read_keys(path: str | Path, overrides: Iterable[str] = (), budget: str | None = None) -> dict[str, Any]:
    """The keys of a recipe or study file as plain data, its budgets used up, not validated. Raises `RecipeError`."""
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"cannot read recipe {path}: {error.strerror}; `gentickets list recipes` names some"
        ) from None
    raw = read_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is no recipe: it holds {type(raw).__name__}, not keys and values")
    budgets = _mappings(raw.pop("budgets", {}), f"{path}: budgets")
    budgets.setdefault(FULL, {})
    chosen = budget or FULL
    if chosen not in budgets:
        raise RecipeError(f"--budget {chosen}: {path} knows {', '.join(budgets)}")
    raw = with_keys(raw, budgets[chosen], f"{path}: budgets.{chosen}")
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
        if isinstance(value, dict) and isinstance(place.get(last, {}), dict):
            place[last] = with_keys(place.get(last, {}), value, where)
        else:
            place[last] = value
    return new


def _below(place: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    below = place.setdefault(key, {})
    if not isinstance(below, dict):
        raise RecipeError(f"{where}: {key} is a value, with no keys below it")
    return below


def kept_recipe(raw: Any, where: str) -> Recipe:
    """The recipe that a run folder keeps, with every key that there was when it was made. Raises `RecipeError`.

    Before `search.rule` early birds went by the paper's, and all other methods kept a tolerance that they never used.
    Before `evaluation.classifiers` there was one.
    """
    evaluation = raw.get("evaluation") if isinstance(raw, dict) else None
    if isinstance(evaluation, dict) and "classifiers" not in evaluation:
        raw = {**raw, "evaluation": {**evaluation, "classifiers": 1}}
    search = raw.get("search") if isinstance(raw, dict) else None
    if isinstance(search, dict) and "rule" not in search and "tolerance" in search:
        others = {key: value for key, value in search.items() if key != "tolerance"}
        early = search.get("method") == "early-bird"
        raw = {**raw, "search": {**search, "rule": "hamming"} if early else others}
    return make_recipe(raw, where)


def make_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validates a recipe given as plain data. Raises `RecipeError`."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{where}: {complaints(error)}") from None


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
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"override {override!r} is not key=value, such as training.steps=500")
    value = read_yaml(text, f"override {override!r}: the value")
    place = raw
    for key in keys[:-1]:
        place = _below(place, key, f"override {override!r}")
    place[keys[-1]] = value


def complaints(error: ValidationError, whole: type[BaseModel] = Recipe) -> str:
    """All that pydantic found wrong in a `whole`, one thing a key, as key, value and mend."""
    found: dict[str, str] = {}
    for first in error.errors():
        found.setdefault(_key(first["loc"]), _complaint(first, whole))
    return "; ".join(dict.fromkeys(found.values()))


_KINDS = ("literal[", "constrained", "list[", "dict[", "float", "int", "function-")
"""How pydantic calls the members of a union, among the keys of a place."""


def _key(place: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in place if not str(part).startswith(_KINDS))


def _complaint(first: Any, whole: type[BaseModel]) -> str:
    key = _key(first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}; {_known_keys(first['loc'], whole)}"
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    return f"{key}={first['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(location: tuple[str | int, ...], part: type[BaseModel]) -> str:
    for key in location[:-1]:
        named = part.model_fields.get(str(key))
        for inner in (named.annotation, *get_args(named.annotation)) if named is not None else ():
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                part = inner
    return f"known here: {', '.join(part.model_fields)}"

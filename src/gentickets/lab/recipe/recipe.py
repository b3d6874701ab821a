"""A recipe: everything that decides a run, validated, in YAML.

Keys left out take the defaults written here; `key=value` overrides any of them by its dotted path. A resolved
recipe (`dump`) says every key, so that a run folder shows what was done without this file beside it.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gentickets.errors import PruneError, RecipeError
from gentickets.lab.recipe.catalogue import MODELS, OBJECTIVES
from gentickets.lab.recipe.plain_yaml import read_yaml
from gentickets.lab.recipe.shipped import recipe_file, recipes
from gentickets.options import (
    TOLERANCES,
    Execution,
    Granularity,
    Others,
    Retrain,
    Rule,
    Schedule,
    Scope,
    check_tolerance,
)

if TYPE_CHECKING:  # a recipe is read and refused without torch, whose import takes a second
    from gentickets.objectives import Objective
    from gentickets.training.loop import Settings


# A number is a number: not a truth value, nor text that could be read as one; and always a finite one.
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True, le=10**12)]
Share = Annotated[Real, Field(gt=0, lt=1)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
Steps = Annotated[Whole, Field(ge=0)]
Flag = Annotated[bool, Field(strict=True)]


NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
"""What a run's folder may be called: no path, and short enough for every file system."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelPart(_Part):
    """A model of the catalogue; options that are left out take the model's own defaults."""

    name: str
    """Which one; `gentickets list models` names all, with the options that each takes."""
    width: Annotated[Count, Field(le=10**7)] | None = None
    """Units or channels of the first layers, which later ones are multiples of."""
    depth: Annotated[Count, Field(le=1000)] | None = None
    """How many layers or stages."""
    latent: Annotated[Count, Field(le=10**9)] | None = None
    """Numbers in the code of an image."""
    hidden: Annotated[list[Annotated[Count, Field(le=10**7)]], Field(max_length=1000)] | None = None
    """Units of each hidden layer of a linear autoencoder's encoder, in place of width and depth."""
    critic_norm: Flag | None = None
    """Whether the discriminator has norms; a gradient penalty wants none."""

    @model_validator(mode="after")
    def _known(self) -> ModelPart:
        if self.name not in MODELS:
            raise ValueError(
                f"model.name={self.name!r} is none of {', '.join(MODELS)}; for a network of your own there is gt.imp, "
                "around your own train function (README.md)"
            )
        if other := [key for key in self.options if key not in MODELS[self.name]]:
            takes = ", ".join(MODELS[self.name])
            raise ValueError("; ".join(f"model.{key}: {self.name} takes {takes}" for key in other))
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options that are said."""
        return self.model_dump(exclude={"name"}, exclude_none=True)

    @property
    def latent_size(self) -> int:
        return self.latent or int(MODELS[self.name]["latent"])


class DataPart(_Part):
    """The images: where from, and what they are made into. See `gentickets.data.load`."""

    source: str = "digits"
    """Where the images come from; `gentickets list data` says what is taken."""
    size: Annotated[Whole, Field(ge=4)] = 16
    """The side to which they are scaled, in pixels."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 in colour; null: as they are."""
    crop: Count | None = None
    """The side of the square that is cut out of the middle, in source pixels; null: the largest (CelebA: 148)."""
    test: str | None = None
    """The held-out images: a file or folder; null: the source's own, or one image in ten."""
    limit: Count | None = None
    """At most so many images, drawn by a fixed seed."""
    flip: Flag = False
    """Whether every other training image is mirrored, by lot."""


class ObjectivePart(_Part):
    """What is trained for: `autoencoding`, `elbo` or `adversarial`, with the options of that objective."""

    name: Literal["autoencoding", "elbo", "adversarial"]
    """Which one; `gentickets list objectives` says what each takes."""
    loss: str | None = None
    """Autoencoding: mse, l1 or bce. Adversarial: nonsaturating, hinge or wasserstein."""
    beta: NotNegative | None = None
    """ELBO: the weight of the KL divergence."""
    likelihood: Literal["gaussian", "bernoulli"] | None = None
    """ELBO: of the pixels, given the code."""
    scale: Positive | None = None
    """ELBO: the standard deviation of the gaussian, where white is 1 and black is -1."""
    warmup_steps: Steps | None = None
    """ELBO: steps over which beta grows from 0."""
    n_critic: Annotated[Count, Field(le=10**6)] | None = None
    """Adversarial: steps of the discriminator for one of the generator."""
    clip: Positive | None = None
    """Adversarial: what bounds each weight of the discriminator (WGAN)."""
    gradient_penalty: NotNegative | None = None
    """Adversarial: the weight of the penalty on the discriminator's slope (WGAN-GP)."""

    @model_validator(mode="after")
    def _known(self) -> ObjectivePart:
        kind = OBJECTIVES[self.name]
        takes = ", ".join(sorted(kind.options))
        wrong = [f"objective.{key}: {self.name} takes {takes}" for key in self.options if key not in kind.options]
        if self.loss is not None and kind.losses and self.loss not in kind.losses:
            wrong.append(f"objective.loss={self.loss!r} is none of {', '.join(kind.losses)}")
        if self.loss == "wasserstein" and self.clip is None and self.gradient_penalty is None:
            wrong.append("objective.loss=wasserstein needs clip= (such as 0.01) or gradient_penalty= (such as 10)")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options that are said."""
        return self.model_dump(exclude={"name"}, exclude_none=True)

    def build(self, latent_size: int) -> Objective:
        from gentickets.objectives import OBJECTIVES

        size = {} if self.name == "autoencoding" else {"latent_size": latent_size}
        return OBJECTIVES[self.name](**self.options, **size)


class TrainingPart(_Part):
    """See `gentickets.training.loop.Settings`."""

    steps: Annotated[Whole, Field(ge=2)] = 2000
    """Optimiser steps of each training, from the first to the last."""
    batch_size: Annotated[Whole, Field(ge=2)] = 64
    """Images a step."""
    lr: Positive | dict[str, Positive] = 1e-3
    """The learning rate of Adam: one, or one for each component ({generator: 1e-4, discriminator: 4e-4})."""
    betas: tuple[Annotated[Real, Field(ge=0, lt=1)], Annotated[Real, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """How long Adam averages gradients and their squares."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay (AdamW)."""
    schedule: Schedule = "constant"
    """How the learning rate goes on after its warm-up."""
    warmup_steps: Steps = 0
    """Steps over which the learning rate grows from 0."""
    ema: Share | None = None
    """Decay of the moving average of the weights, which is what is judged; null: none."""
    clip_norm: Positive | None = None
    """The longest that the gradient of a component may be; null: any."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of the numbers in a step, as Lightning Fabric calls them."""
    execution: Execution = "auto"
    """Whether masked layers are trained on their live weights alone where that is faster, or dense."""
    accelerator: Literal["cpu", "cuda", "auto"] = "auto"
    """What is trained on."""
    threads: Annotated[Count, Field(le=10**4)] | Literal["auto", "measured"] = "auto"
    """Threads a training: so many; auto: by the work of a step; measured: by timing some steps when the run begins."""
    checkpoint_seconds: NotNegative = 20.0
    """Seconds between two checkpoints, from which a killed run goes on."""

    def settings(self, seed: int) -> Settings:
        from gentickets.training.loop import Settings

        plain = self.model_dump(exclude={"accelerator", "threads", "checkpoint_seconds"})
        return Settings(**plain, seed=seed)


AT_INIT = ("snip", "grasp", "synflow", "magnitude-at-init", "random-at-init")
"""The methods that prune before the first step of training."""


class SearchPart(_Part):
    """Which weights are pruned, how much a round, and where each round starts from."""

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
    """How tickets are found: iterative magnitude pruning, all at once, before training, early in it, or taken over."""
    rounds: Annotated[Whole, Field(ge=0, le=10**4)] = 10
    """How many tickets, each sparser than the one before; 0: the dense model alone."""
    fraction: Share = 0.2
    """The share of what is still alive that each round prunes."""
    rewind_step: Steps = 0
    """The step to whose weights a ticket goes back."""
    scope: Scope = "global"
    """Among which weights scores are compared."""
    components: list[str] | None = None
    """Which components are pruned; null: all."""
    include: list[str] | None = None
    """Which weights are pruned, by name or pattern ("generator.*"); null: all that can be."""
    exclude: list[str] = []
    """Which weights are not, by name or pattern; of a transferred ticket, what stays behind."""
    others: Others = "rewind"
    """What a component that is not pruned starts each round from."""
    retrain: Retrain = "rewind"
    """What a pruned network is trained again from: earlier weights and step, the earlier rate, or where it stands."""
    score_batches: Annotated[Count, Field(le=10**6)] = 10
    """On how many batches SNIP and GraSP score."""
    granularity: Granularity = "weight"
    """Whether weights or whole channels go; channels are for early-bird."""
    window: Annotated[Whole, Field(ge=2, le=10**4)] = 5
    """Early-bird: how many masks in a row must be near each other."""
    rule: Rule = "chance"
    """Early-bird: what near is, as a share of the distance of independent masks, or of the weights that differ."""
    tolerance: Annotated[Real, Field(gt=0, le=1)] = TOLERANCES["chance"]
    """Early-bird: how near; 0.1 where rule is hamming and nothing is said."""
    interval: Count | None = None
    """Early-bird: steps between two masks; null: an epoch."""
    settle_by: Annotated[Real, Field(gt=0, le=1)] = 0.5
    """Early-bird: the share of training by which the mask must have settled."""
    unsettled: Literal["last", "stop"] = "last"
    """Early-bird: where it has not, take the newest mask and say so, or stop."""
    gain_penalty: NotNegative = 0.0
    """Early-bird: the L1 penalty on the norms' gains while it searches."""
    source: str | None = None
    """Transferred: the run whose tickets are taken over, a folder, or its name where it lies beside this one."""
    carry: dict[str, str] | None = None
    """Transferred: which of its components becomes which of this model's ({decoder: generator})."""
    with_weights: Flag = False
    """Transferred: whether its weights come along, or its masks alone."""

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
    """What tickets are compared with, at which levels."""

    levels: list[Count] | Literal["auto", "all"] = "auto"
    """At which levels controls are run; auto: three, spread over the deeper two thirds; all: at every level."""
    random_mask: Flag = True
    """Whether a random mask of the same density in each layer is trained from the ticket's weights."""
    redrawn_weights: Flag = True
    """Whether the ticket's mask is trained over weights that are drawn again."""

    def chosen(self, rounds: int) -> list[int]:
        if self.levels == "auto":
            return sorted({max(1, math.ceil(rounds * share)) for share in (1 / 3, 2 / 3, 1)}) if rounds else []
        if self.levels == "all":
            return list(range(1, rounds + 1))
        return [level for level in self.levels if level <= rounds]


class EvaluationPart(_Part):
    """How a trained model is judged, on held-out images."""

    primary: str | None = None
    """The metric that decides; null: the first of `metrics`."""
    metrics: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Which are measured: all that the model and the images allow, or a list."""
    samples: Annotated[Whole, Field(ge=16, le=10**6)] = 2000
    """How many images are generated for them."""
    features: Literal["classifier", "inception", "efficientnet-lite0", "none"] = "classifier"
    """The network in whose features samples are compared; Inception costs much on a CPU, EfficientNet is an extra."""
    inception_weights: str | None = None
    """A local file with Inception's weights."""
    classifier: Literal["small", "resnet18"] = "small"
    """What is trained on the labels, for its features and for `downstream_accuracy`."""
    classifiers: Annotated[Whole, Field(ge=1, le=20)] = 3
    """Over how many of these, of other seeds, the mean is taken."""
    every: Count | None = None
    """Judge a training every so many steps too, on training images, for where it could have stopped; null: never."""
    margin: Annotated[Real, Field(gt=0, lt=1)] = 0.05
    """The share of the dense model's value by which a ticket may be worse and still be called as good."""


class Recipe(_Part):
    """Everything that decides a run."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    """What the run's folder is called."""
    title: str | None = None
    """What its page is called."""
    model: ModelPart
    data: DataPart = DataPart()
    objective: ObjectivePart
    training: TrainingPart = TrainingPart()
    search: SearchPart = SearchPart()
    controls: ControlsPart = ControlsPart()
    evaluation: EvaluationPart = EvaluationPart()
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)] = [0]
    """Each is a run of its own, from weights and an order of images of its own."""
    on_failure: Literal["continue", "stop"] = "continue"
    """What a level that diverges or is cut in two does to the rest."""

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        wrong = [*self._impossible_steps(), *self._unknown_components()]
        if len(set(self.seeds)) != len(self.seeds):
            wrong.append(f"seeds={self.seeds}: the same seed twice would count as two runs")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _impossible_steps(self) -> Iterator[str]:
        rewind, steps = self.search.rewind_step, self.training.steps
        if rewind >= steps:
            yield (
                f"search.rewind_step={rewind} is not before training.steps={steps}: take both, such as "
                f"training.steps={steps} search.rewind_step={steps // 10}"
            )

    def _unknown_components(self) -> Iterator[str]:
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
                    yield f"{key}: no component {name!r}; {self.model.name} has {', '.join(components)}"
        if rates and not set(components) <= set(rates):
            yield f"training.lr: give one rate, or one for each of {', '.join(components)}"

    def build_objective(self) -> Objective:
        return self.objective.build(self.model.latent_size)

    def dump(self) -> dict[str, Any]:
        """Every key, as plain YAML types."""
        return self.model_dump(mode="json")


_LARGEST = 10**6
"""Bytes that a recipe may have: what is larger is something else, or has no end."""

FULL = "full"
"""The budget that every recipe has: the recipe as it is written."""


def is_study(path: str | Path) -> bool:
    """Whether a recipe file holds a study. Raises `RecipeError` where it cannot be read."""
    return "study" in read_keys(path)


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
    """The keys of a recipe or study file as plain data, its budgets used up, not validated. Raises `RecipeError`.

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
    shown = repr(override) if len(override) <= 100 else f"{override[:90]!r} …"
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"override {shown} is not key=value, such as training.steps=500")
    value = read_yaml(text, f"override {shown}: the value")
    place = raw
    for key in keys[:-1]:
        place = _below(place, key, f"override {shown}")
    place[keys[-1]] = value


def complaints(error: ValidationError, whole: type[BaseModel] = Recipe) -> str:
    """All that pydantic found wrong in a `whole`, one thing a key, as key, value and mend."""
    found: dict[str, str] = {}
    for first in error.errors():
        found.setdefault(_key(first["loc"]), _complaint(first, whole))
    unknown = any(first["type"] == "extra_forbidden" for first in error.errors())
    pointer = ["`gentickets list keys` shows every key"] if unknown and whole is Recipe else []
    return "; ".join([*dict.fromkeys(found.values()), *pointer])


_KINDS = ("literal[", "constrained", "list[", "dict[", "float", "int", "function-")
"""How pydantic calls the members of a union, among the keys of a place."""


def _key(place: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in place if not str(part).startswith(_KINDS))


def _complaint(first: Any, whole: type[BaseModel]) -> str:
    key, kind, said = _key(first["loc"]), first["type"], first["input"]
    if kind == "extra_forbidden":
        return f"unknown key {key}; {_known_keys(first['loc'], whole)}"
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
    known = list(part.model_fields)
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"known here: {', '.join(known)}{f' (did you mean {near[0]}?)' if near else ''}"

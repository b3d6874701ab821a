"""A recipe: everything that decides a run, validated, in YAML.

Keys left out take the defaults written here, or those of what the recipe names: a model, an objective, a method of
search and a criterion own their keys (`owned`). A resolved recipe (`dump`) says every key, so that a run folder shows
what was done without this file beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from gentickets.catalogue import Named, digests, is_code
from gentickets.errors import GenticketsError, PruneError, RecipeError
from gentickets.lab.recipe.complaints import complaints
from gentickets.lab.recipe.named import NamedPart, SearchPart, check_may_run, metrics_asked, named_part, search_part
from gentickets.lab.recipe.older import of_today
from gentickets.options import CONTROLS, MOST, Control, Execution, Schedule

if TYPE_CHECKING:  # a recipe is read and refused without torch, whose import takes two seconds
    from gentickets.objectives import Objective
    from gentickets.search.method import Method
    from gentickets.training import Settings


# A number is a number: not a truth value, nor text that could be read as one; and always a finite one.
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True, le=MOST)]
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


class DataPart(_Part):
    """The images: where from, and what they are made into. See `gentickets.data.load`."""

    _code_may_run: bool = PrivateAttr(True)

    source: str = "digits"
    """Where the images come from, also my.py:name; `gentickets list data` says what is taken."""
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

    def model_post_init(self, context: Any) -> None:
        self._code_may_run = bool((context or {}).get("code_may_run", True)) or not is_code(self.source)

    def own_code(self) -> Callable[..., Any] | None:
        """The function that gives the images, where the source is code. Raises `RecipeError` where it may not run."""
        if not is_code(self.source):
            return None
        check_may_run(self.source, self._code_may_run)
        return Named("source", self.source).load()


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
    devices: Annotated[Count, Field(le=10**4)] = 1
    """How many devices, each with a process of its own and an equal share of every batch, one training runs on."""
    threads: Annotated[Count, Field(le=10**4)] | Literal["auto", "measured"] = "auto"
    """Threads a training: so many; auto: by the work of a step; measured: by timing some steps when the run begins."""
    checkpoint_seconds: NotNegative = 20.0
    """Seconds between two checkpoints, from which a killed run goes on."""

    def settings(self, seed: int) -> Settings:
        from gentickets.training.loop import Settings

        plain = self.model_dump(exclude={"accelerator", "devices", "threads", "checkpoint_seconds"})
        return Settings(**plain, seed=seed)


class ControlsPart(_Part):
    """What tickets are compared with, at which levels."""

    levels: list[Count] | Literal["auto", "all"] = "auto"
    """At which levels controls are run; auto: three, spread over the deeper two thirds; all: at every level."""
    random_mask: Flag = True
    """Whether a random mask of the same density in each layer is trained from the ticket's weights."""
    redrawn_weights: Flag = True
    """Whether the ticket's mask is trained over weights that are drawn again."""

    @property
    def arms(self) -> list[Control]:
        """The controls that are wanted, in their order."""
        return [arm for arm in CONTROLS if getattr(self, arm)]

    def chosen(self, rounds: int) -> list[int]:
        """The levels that have them in a chain of so many rounds."""
        if self.levels == "auto":
            return sorted({max(1, math.ceil(rounds * share)) for share in (1 / 3, 2 / 3, 1)}) if rounds else []
        if self.levels == "all":
            return list(range(1, rounds + 1))
        return [level for level in self.levels if level <= rounds]


class EvaluationPart(_Part):
    """How a trained model is judged, on held-out images."""

    primary: str | None = None
    """The metric that decides; null: the first of `metrics`."""
    metrics: Annotated[
        SerializeAsAny[Literal["all"] | list[str | NamedPart]],
        PlainValidator(
            metrics_asked, json_schema_input_type=Literal["all"] | Annotated[list[str], Field(min_length=1)]
        ),
    ] = "all"
    """Which are measured: all that the model and the images allow, or a list, with your own as my.py:name."""
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

    @property
    def asked(self) -> list[str]:
        """The metrics as results call them; `["all"]` for all."""
        return (
            ["all"] if self.metrics == "all" else [one if isinstance(one, str) else one.called for one in self.metrics]
        )

    @property
    def own_metrics(self) -> dict[str, Named]:
        """Name → one's own metric, to be built. Raises `RecipeError` where it is code that may not run."""
        return {one.called: one.named for one in self.metrics if isinstance(one, NamedPart)}


class Recipe(_Part):
    """Everything that decides a run."""

    _code_may_run: bool = PrivateAttr(True)

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    """What the run's folder is called."""
    title: str | None = None
    """What its page is called."""
    model: Annotated[SerializeAsAny[NamedPart], PlainValidator(partial(named_part, "model"))]
    data: DataPart = DataPart()
    objective: Annotated[SerializeAsAny[NamedPart], PlainValidator(partial(named_part, "objective"))]
    training: TrainingPart = TrainingPart()
    search: Annotated[SerializeAsAny[SearchPart], PlainValidator(search_part), Field(validate_default=True)] = {}  # type: ignore[assignment]
    controls: ControlsPart = ControlsPart()
    evaluation: EvaluationPart = EvaluationPart()
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)] = [0]
    """Each is a run of its own, from weights and an order of images of its own."""
    on_failure: Literal["continue", "stop"] = "continue"
    """What a level that diverges or is cut in two does to the rest."""
    keep: Literal["all", "ends"] = "all"
    """Whose trained weights stay on disk: all levels'; or the ends', which are the dense model and the last ticket."""

    def model_post_init(self, context: Any) -> None:
        self._code_may_run = bool((context or {}).get("code_may_run", True)) or not code_in(self.dump())

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        rewind, steps = self.search.told("rewind_step", 0), self.training.steps
        wrong = []
        if rewind >= steps:
            wrong.append(
                f"search.rewind_step={rewind} is not before training.steps={steps}: take both, such as "
                f"training.steps={steps} search.rewind_step={steps // 10}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            wrong.append(f"seeds={self.seeds}: the same seed twice would count as two runs")
        if self.training.batch_size % self.training.devices:
            wrong.append(
                f"training.batch_size={self.training.batch_size} cannot be shared out equally among "
                f"training.devices={self.training.devices}: take one that {self.training.devices} divides"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def rounds(self) -> int:
        """How many levels there are beside the dense one."""
        return int(self.search.told("rounds", 0))

    def build_objective(self) -> Objective:
        """What is trained for; a latent size that the objective needs is the model's, unless the recipe says one.

        Raises `RecipeError` where it needs what nobody tells.
        """
        size = next((size for key in ("latent_size", "latent") if (size := self.model.told(key, None))), None)
        given = {} if size is None else {"latent_size": size}
        return self.objective.named.build(**given)

    def build_method(self) -> Method:
        """How tickets are found. Raises `RecipeError` for options that clash."""
        named = self.search.named
        try:
            return named.build()
        except GenticketsError as error:
            raise RecipeError(f"search.{str(error).removeprefix('method.')}") from None

    def check(self) -> None:
        """Builds what can be built without images. Raises `RecipeError` for what does not go together."""
        components, method = self.build_objective().components, self.build_method()
        try:
            method.check(self.training.steps)
        except PruneError as error:
            raise RecipeError(f"search.{error}") from None
        rates = self.training.lr if isinstance(self.training.lr, dict) else {}
        named = {f"search.{key}": names for key, names in method.names().items()}
        for key, names in {**named, "training.lr": rates}.items():
            for name in names:
                if name not in components:
                    raise RecipeError(f"{key}: no component {name!r}; {self.model.name} has {', '.join(components)}")
        if rates and not set(components) <= set(rates):
            raise RecipeError(f"training.lr: give one rate, or one for each of {', '.join(components)}")

    def code(self) -> dict[str, str]:
        """Name → SHA-256 of the code behind it, for whatever the recipe names that is not of the catalogue."""
        return digests(code_in(self.dump()))

    def dump(self) -> dict[str, Any]:
        """Every key, as plain YAML types."""
        return self.model_dump(mode="json")

    def __reduce__(self) -> tuple[Callable[..., Recipe], tuple[Any, ...]]:
        """By its keys: the types of its parts are made of what it names, in each process anew."""
        return _unpickled, (self.dump(), self._code_may_run)


def _unpickled(raw: dict[str, Any], code_may_run: bool) -> Recipe:
    return parsed(raw, code_may_run=code_may_run)


def code_in(raw: dict[str, Any]) -> list[str]:
    """The names in a recipe's plain data that say where code lies."""
    return list(_code_in(raw))


def _code_in(raw: Any, key: str = "") -> Iterator[str]:
    if isinstance(raw, dict):
        for below, value in raw.items():
            yield from _code_in(value, str(below))
    elif isinstance(raw, list):
        for value in raw:
            yield from _code_in(value, key)
    elif is_code(raw) and key.rpartition(".")[2] in _NAMING:  # a study's arms may dot their keys
        yield raw


_NAMING = ("model", "objective", "name", "method", "criterion", "around", "metrics", "source")
"""Keys whose values may name code; `name` is that of a part, as a run's has no colon."""


def make_recipe(raw: dict[str, Any], where: str = "recipe", code_may_run: bool = True) -> Recipe:
    """A recipe of plain data, validated, with whatever it names built once. Raises `RecipeError`."""
    recipe = parsed(raw, where, code_may_run)
    try:
        recipe.check()
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    return recipe


def parsed(raw: dict[str, Any], where: str = "recipe", code_may_run: bool = True) -> Recipe:
    """A recipe of plain data, each of its keys validated, without loading what it names. Raises `RecipeError`."""
    try:
        return Recipe.model_validate(of_today(raw), context={"code_may_run": code_may_run})
    except ValidationError as error:
        raise RecipeError(f"{where}: {complaints(error, Recipe)}") from None

"""What a way of finding tickets is to a recipe: a frozen dataclass whose fields are its keys.

`Method.levels(work, last)` gives the levels of one seed, and `Method.control` what they are compared with. Both work by
`Work` alone: it makes the model, trains and keeps account, checkpoints and resumes. A method that is one file defines a
subclass, with a docstring below each field, and whatever else its levels need.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from gentickets.catalogue import Named
from gentickets.errors import Disconnected
from gentickets.flops.operations import Operations
from gentickets.masks.liveness import check_connected
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.objectives.base import Objective
from gentickets.options import Around, Criterion, Others, Retrain, Scope, Share, Steps, Tickets
from gentickets.pruning.scores import Scores, scored
from gentickets.search.levels import (
    Level,
    MakeModel,
    Rounds,
    random_mask_control,
    redrawn_weights_control,
    retrain_span,
)
from gentickets.training.hooks import Hook
from gentickets.training.loop import BatchSource, Trained


class Training(Protocol):
    """Trains a model in place, held to masks, checkpointed; None where it diverged, which the run records.

    `finding`: whether its price is one of finding masks.
    """

    def __call__(
        self,
        model: nn.Module,
        masks: Masks,
        start_step: int,
        end_step: int,
        *,
        hooks: Sequence[Hook] = (),
        prepare: Callable[[Mapping[str, Optimizer]], None] | None = None,
        objective: Objective | None = None,
        batches: BatchSource | None = None,
        finding: bool = False,
    ) -> Trained | None: ...


class Taken(NamedTuple):
    """A complete level or control of another run: what is judged of it, with the masks that it is held to, and the
    objective that it was trained for."""

    level: Level
    objective: Objective


@dataclass(frozen=True)
class Work:
    """One seed of a run, as its method sees it.

    `make_model` draws a model for the level in the making, `initial` the seed's own, always the same. `account` is told
    the seconds and FLOPs of every scoring. `few`: batches of a share of the images, always the same ones. `folder` is
    that of the level in the making: what a method writes there is kept, and found again when the level is resumed;
    `place` that of a complete level. `so_far` is what the trainings of this level took, as plain values, and `recall`
    counts them again. `load` reads a complete level of the chain back; `source` finds a level of another run, and
    `taken` gives a level or control of one as it was trained, whose price goes onto this level's account.
    """

    make_model: MakeModel
    initial: Callable[[], nn.Module]
    train: Training
    steps: int
    steps_per_epoch: int
    objective: Objective
    batches: BatchSource
    few: Callable[[float], BatchSource]
    example_inputs: Callable[[nn.Module], Mapping[str, Any]]
    origin: Mapping[str, Any]
    seed: int
    account: Callable[[float, float], None]
    folder: Callable[[], Path]
    place: Callable[[int], Path]
    so_far: Callable[[], dict[str, Any]]
    recall: Callable[[int, Mapping[str, Any]], None]
    load: Callable[[int], Level]
    source: Callable[[str, int], Path]
    taken: Callable[[str, int, str], Taken]

    def criterion(self, said: str | Mapping[str, Any] | Named) -> Callable[[nn.Module, Masks], Scores]:
        """A criterion by its name, given what it needs; every call is accounted for."""
        criterion = Named.of("criterion", said).build(
            objective=self.objective,
            batches=self.batches,
            seed=self.seed,
            example_inputs=self.example_inputs(self.initial()),
        )
        return _accounted(criterion, self.account)

    def retraining(self, around: str | Mapping[str, Any] | Named | None) -> Training:
        """`train`, where whatever is pruned is trained by the objective that `around` makes of the recipe's."""
        if around is None:
            return self.train
        named, wrapped = Named.of("around", around), list[Objective]()

        def train(model: nn.Module, masks: Masks, start_step: int, end_step: int, **more: Any) -> Trained | None:
            if masks.alive < masks.total:
                if not wrapped:
                    wrapped.append(named.build(objective=self.objective, teacher=self.load(0).model))
                more = {"objective": wrapped[0], **more}
            return self.train(model, masks, start_step, end_step, **more)

        return train


class Network(NamedTuple):
    """A network as it is trained, the masks that it is held to, and component → how many channels are gone from it."""

    model: nn.Module
    masks: Masks
    removed: Mapping[str, int]


class Method(ABC):
    """A way of finding tickets, one for each level of a ladder of sparsities.

    A subclass is a frozen dataclass. Its fields, those of its bases among them, are the keys of `search` in a recipe.
    """

    builds_on: ClassVar[Literal["nothing", "dense", "before", "search", "source"]] = "dense"
    """What was trained for a level's masks before it is begun: nothing, the dense model, the level before and all that
    it rests on, what the level before was searched by, or the level of another run. It is what they cost to find."""

    trains: ClassVar[bool] = True
    """Whether its levels and controls are trained, and not put together of what other runs have trained."""

    rounds: Tickets
    rewind_step: int = 0
    retrain: Retrain = "rewind"

    @abstractmethod
    def levels(self, work: Work, last: int) -> Iterator[Level]:
        """The levels that follow level `last` (-1: all, the dense model first), each trained by `work.train`.

        What is drawn is drawn when this is called, and not at the first level.
        """

    def check(self, steps: int) -> None:  # noqa: B027
        """Raises `PruneError` for options that go with no training of so many steps, before anything is trained."""

    @classmethod
    def as_arm(cls, deepest: float) -> dict[str, Any]:
        """The options that it takes in a comparison with a ladder of sparsities down to `deepest`; none but the
        ladder's own, as a rule."""
        return {}

    def covered(self, model: nn.Module) -> Masks:
        """The masks of the dense model: what may be pruned, all of it alive."""
        return Masks.dense(model)

    def sources(self, arm: str) -> tuple[str, ...]:
        """The other runs whose same level a level rests on, or whose same control a control does."""
        return ()

    def span(self, steps: int) -> tuple[int, int]:
        """The (start, end) steps of a level's training."""
        return retrain_span(self.retrain, steps, self.rewind_step)

    def search_steps(self, steps: int) -> int:
        """How many steps are trained for each level's masks alone, beside its own training."""
        return 0

    def sparsity_at(self, level: int) -> float:
        """What a level's sparsity is meant to be."""
        return 1.0 - (1.0 - float(getattr(self, "fraction", 0.0))) ** level

    def names(self) -> dict[str, Iterable[str]]:
        """Key → the components of the model that it names."""
        return {"components": getattr(self, "components", None) or ()}

    def batches_at_once(self) -> int:
        """How many batches of images are held at once beside training."""
        criterion = getattr(self, "criterion", None)
        return int(Named.of("criterion", criterion).options.get("score_batches", 1)) if criterion is not None else 1

    def network(self, ticket: Ticket, model: nn.Module, example_inputs: Mapping[str, Any]) -> Network:
        """What a level trains from its ticket. `model` is of the recipe; its weights are replaced."""
        return Network(ticket.install(model), ticket.masks, {})

    def has_controls(self, work: Work, index: int) -> bool:
        """Whether a complete level can be compared with controls."""
        return True

    def control(self, arm: str, level: Level, work: Work, seed: int) -> Level:
        """A control of a level, trained. Raises `Disconnected`, with its ticket, before a step is trained."""
        if arm == "random_mask":
            ticket, span = random_mask_control(level, seed), self.span(work.steps)
        else:
            ticket, span = redrawn_weights_control(level, work.make_model), (0, work.steps)
        connected(ticket, level.model, work)
        model = ticket.install(level.model)
        work.retraining(getattr(self, "around", None))(model, ticket.masks, *span)
        return Level(level.index, ticket.masks, model, ticket, span=span)


@dataclass(frozen=True)
class Ladder(Method):
    """Methods that prune a share more at each level."""

    rounds: Tickets = 10
    """How many tickets, each sparser than the one before; 0: the dense model alone."""
    fraction: Share = 0.2
    """The share of what is still alive that each round prunes."""
    scope: Scope = "global"
    """Among which weights scores are compared."""
    components: list[str] | None = None
    """Which components are pruned; null: all."""


@dataclass(frozen=True)
class Separate(Ladder):
    """Methods none of whose levels rests on another: each is trained for itself, beside the dense model."""

    builds_on: ClassVar[Literal["nothing", "dense"]] = "nothing"

    @abstractmethod
    def level(self, work: Work, index: int) -> Level:
        """One level, trained."""

    def levels(self, work: Work, last: int) -> Iterator[Level]:
        shared = Rounds(work.make_model, work.train, work.steps, 0, origin=work.origin) if last < 0 else None
        return self._levels(work, last, shared)

    def _levels(self, work: Work, last: int, shared: Rounds | None) -> Iterator[Level]:
        if shared is not None:
            yield shared.dense(self.covered(shared.initial))
        for index in range(max(last, 0) + 1, self.rounds + 1):
            yield self.level(work, index)


@dataclass(frozen=True)
class Chosen(Ladder):
    """Methods that prune single weights, chosen by name."""

    include: list[str] | None = None
    """Which weights are pruned, by name or pattern ("generator.*"); null: all that can be."""
    exclude: list[str] = field(default_factory=list)
    """Which weights are not, by name or pattern."""
    criterion: Criterion = "magnitude"
    """By what weights are compared; `gentickets list criteria` names all."""
    around: Around | None = None
    """What the objective of a retraining is wrapped in, such as distillation from the dense model; null: nothing."""

    def covered(self, model: nn.Module) -> Masks:
        return Masks.dense(model, self.components, self.include, self.exclude)

    @property
    def sparsities(self) -> list[float]:
        """Of levels 1 and on."""
        return [self.sparsity_at(level) for level in range(1, self.rounds + 1)]

    def chosen(self, work: Work) -> dict[str, Any]:
        """The arguments that all searches of single weights share."""
        return {
            "steps": work.steps,
            "scope": self.scope,
            "components": self.components,
            "include": self.include,
            "exclude": self.exclude,
            "example_inputs": work.example_inputs(work.initial()),
            "origin": work.origin,
        }


@dataclass(frozen=True)
class Rewound(Chosen):
    """Methods whose tickets go back to an early step of the dense training."""

    rewind_step: Steps = 0
    """The step to whose weights a ticket goes back."""
    others: Others = "rewind"
    """What a component that is not pruned starts each round from."""
    retrain: Retrain = "rewind"
    """What a pruned network is trained again from: earlier weights and step, the earlier rate, or where it stands."""

    def rewound(self) -> dict[str, Any]:
        """The arguments of a search that say what its rounds start from."""
        return {"rewind_step": self.rewind_step, "others": self.others, "retrain": self.retrain}

    def shared(self, work: Work) -> Rounds:
        """What the levels of one seed share, where each is retrained; what is wrong with it is said here."""
        how: dict[str, Any] = {"example_inputs": work.example_inputs(work.initial()), "origin": work.origin}
        train = work.retraining(self.around)
        return Rounds(work.make_model, train, work.steps, self.rewind_step, self.others, retrain=self.retrain, **how)


def connected(ticket: Ticket, model: nn.Module, work: Work) -> None:
    """Raises `Disconnected`, with the ticket as its `ticket`, where its masks cut a component in two."""
    try:
        check_connected(model, ticket.masks, work.example_inputs(model))
    except Disconnected as error:
        error.ticket = ticket
        raise


def _accounted(
    criterion: Callable[..., Mapping[str, Tensor]], account: Callable[[float, float], None]
) -> Callable[[nn.Module, Masks], Scores]:
    """A criterion whose every call is told to `account`; its FLOPs are counted once, each call costs the same."""
    known: list[float] = []

    def score(model: nn.Module, masks: Masks) -> Scores:
        begun = time.perf_counter()
        if known:
            scores = scored(criterion, model, masks)
        else:
            with Operations({}) as counter:
                scores = scored(criterion, model, masks)
            known.append(float(counter.dense))
        account(time.perf_counter() - begun, known[0])
        return scores

    return score

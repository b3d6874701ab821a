"""Tickets found in one model, trained in another: a VAE's decoder in a GAN's generator, and back (Kalibhat et al. 2021,
Sec. 4.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Unpack

from torch import nn

from gentickets.arguments import check_arguments
from gentickets.masks.lineage import continued, rounds_of
from gentickets.masks.names import as_names
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.options import Around, Others, Retrain, Steps, Tickets
from gentickets.search.arguments import Carrying
from gentickets.search.levels import Level, MakeModel, Rounds, Train, apart, check_begun, check_count
from gentickets.search.method import Method, Work


def transferred(
    make_model: MakeModel,
    train: Train,
    *,
    steps: int,
    tickets: Iterable[Ticket],
    carry: Mapping[str, str],
    rewind_step: int = 0,
    dense: Level | None = None,
    done: int = 0,
    **more: Unpack[Carrying],
) -> Iterator[Level]:
    """Yields the dense model as level 0, then one level for each of `tickets`, carried over and trained.

    `carry`: component of the tickets' model → component of this one (see `Ticket.transfer`); the components that
    nothing is carried to stay dense. What is carried is the masks, over this model's own weights at its rewind step;
    `with_weights` the weights too; but not for what `exclude` names (names of this model's weights, or patterns). The
    other arguments as in `gentickets.one_shot`; `tickets` are then those that follow the first `done`.

    Raises `TicketError` at a ticket that does not fit (both shapes named), and `Disconnected` at one whose masks cut
    a component in two, before it is trained.
    """
    check_arguments(transferred, more, Carrying)
    check_begun("dense", dense)
    check_count("done", done)
    shared = Rounds.of(make_model, train, steps, rewind_step, more)
    everything = Masks.dense(shared.initial, dict.fromkeys(carry.values()))
    if more.get("progress"):
        left = len(tickets) if isinstance(tickets, Sized) else None
        shared.tell(None if left is None else done + left, None if dense is None else done)
    left_behind, with_weights = as_names(more.get("exclude", ())), more.get("with_weights", False)
    how = {"components": carry, "with_weights": with_weights, "exclude": left_behind}
    return _levels(shared, everything, tickets, how, dense, done)


def _levels(
    shared: Rounds,
    everything: Masks,
    tickets: Iterable[Ticket],
    how: Mapping[str, Any],
    dense: Level | None,
    done: int,
) -> Iterator[Level]:
    begun = shared.dense(everything) if dense is None else apart(dense)
    if dense is None:
        yield apart(begun)
    for index, ticket in enumerate(tickets, start=done + 1):
        moved = ticket.transfer(begun.restarted(), **how)
        masks = everything.replace(moved.masks)
        facts = {**begun.ticket.origin, "transfer": moved.origin["transfer"], "from": ticket.origin}
        before = rounds_of(ticket.origin) or rounds_of(begun.ticket.origin)
        facts["lineage"] = continued(before, masks, transfer=dict(how["components"]))
        start = replace(begun, ticket=Ticket(masks, moved.weights, facts))
        level = shared.retrain(index, masks, start)
        level.ticket = Ticket(level.ticket.masks, level.ticket.weights, {**facts, **level.ticket.origin})
        yield level


@dataclass(frozen=True)
class Transferred(Method):
    """The tickets of another run, one a level, carried into this model."""

    source: str
    """The run whose tickets are taken over, a folder, or its name where it lies beside this one."""
    carry: dict[str, str]
    """Which of its components becomes which of this model's ({decoder: generator})."""
    rounds: Tickets = 10
    """How many of its tickets, from its level 1 on; 0: the dense model alone."""
    with_weights: bool = False
    """Whether its weights come along, or its masks alone."""
    exclude: list[str] = field(default_factory=list)
    """Which weights' masks stay behind, by name or pattern."""
    rewind_step: Steps = 0
    """The step of this model's dense training to whose weights a ticket goes back."""
    others: Others = "rewind"
    """What a component that nothing is carried to starts each level from."""
    retrain: Retrain = "rewind"
    """What a pruned network is trained again from: earlier weights and step, the earlier rate, or where it stands."""
    around: Around | None = None
    """What the objective of a retraining is wrapped in, such as distillation from the dense model; null: nothing."""

    builds_on: ClassVar[Literal["source"]] = "source"

    def __post_init__(self) -> None:
        if not self.carry:
            raise ValueError("carry={}: say which component becomes which, such as decoder: generator")

    def names(self) -> dict[str, Iterable[str]]:
        return {"carry": self.carry.values()}

    def sources(self, arm: str) -> tuple[str, ...]:
        return (self.source,) if arm == "ticket" else ()

    def covered(self, model: nn.Module) -> Masks:
        return Masks.dense(model, dict.fromkeys(self.carry.values()))

    def levels(self, work: Work, last: int) -> Iterator[Level]:
        if self.rounds:
            work.source(self.source, self.rounds)  # before anything is trained
        following = range(max(last, 0) + 1, self.rounds + 1)
        return transferred(
            work.make_model,
            work.retraining(self.around),
            steps=work.steps,
            tickets=(Ticket.load(work.source(self.source, index) / "ticket.safetensors") for index in following),
            carry=self.carry,
            with_weights=self.with_weights,
            exclude=self.exclude,
            rewind_step=self.rewind_step,
            others=self.others,
            retrain=self.retrain,
            example_inputs=work.example_inputs(work.initial()),
            origin=work.origin,
            dense=work.load(0) if last >= 0 else None,
            done=max(last, 0),
        )

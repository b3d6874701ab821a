"""Tickets found in one model, trained in another: a VAE's decoder in a GAN's generator, and back (Kalibhat et al. 2021,
Sec. 4.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from gentickets.masks.names import as_names, clone
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.search.levels import Level, MakeModel, Others, Retrain, Rounds, Train


def transferred(
    make_model: MakeModel,
    train: Train,
    *,
    steps: int,
    tickets: Iterable[Ticket],
    carry: Mapping[str, str],
    with_weights: bool = False,
    exclude: Iterable[str] = (),
    rewind_step: int = 0,
    others: Others = "rewind",
    retrain: Retrain = "rewind",
    example_inputs: Mapping[str, Tensor] | None = None,
    origin: Mapping[str, Any] | None = None,
    dense: Level | None = None,
    done: int = 0,
) -> Iterator[Level]:
    """Yields the dense model as level 0, then one level for each of `tickets`, carried over and trained.

    `carry`: component of the tickets' model → component of this one (see `Ticket.transfer`); the components that
    nothing is carried to stay dense. What is carried is the masks, over this model's own weights at its rewind step;
    `with_weights` the weights too; but not for what `exclude` names (names of this model's weights, or patterns). The
    other arguments as in `gentickets.one_shot`; `tickets` are then those that follow the first `done`.

    Raises `TicketError` at a ticket that does not fit (both shapes named), and `Disconnected` at one whose masks cut
    a component in two, before it is trained.
    """
    shared = Rounds(make_model, train, steps, rewind_step, others, example_inputs, origin, retrain)
    everything = Masks.dense(shared.initial, dict.fromkeys(carry.values()))
    how = {"components": carry, "with_weights": with_weights, "exclude": as_names(exclude)}
    return _levels(shared, everything, tickets, how, dense, done)


def _levels(
    shared: Rounds,
    everything: Masks,
    tickets: Iterable[Ticket],
    how: Mapping[str, Any],
    dense: Level | None,
    done: int,
) -> Iterator[Level]:
    if dense is None:
        dense = shared.dense(everything)
        yield dense
    for index, ticket in enumerate(tickets, start=done + 1):
        moved = ticket.transfer(dense.ticket.install(clone(dense.model)), **how)
        masks = everything.replace(moved.masks)
        facts = {**dense.ticket.origin, "transfer": moved.origin["transfer"], "from": ticket.origin}
        start = replace(dense, ticket=Ticket(masks, moved.weights, facts))
        level = shared.retrain(index, masks, start)
        level.ticket = Ticket(level.ticket.masks, level.ticket.weights, {**facts, **level.ticket.origin})
        yield level

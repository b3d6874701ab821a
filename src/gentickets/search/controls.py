"""What a ticket is compared with: its controls, trained one by one, of a level of a search or of a saved ticket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from gentickets.errors import PruneError
from gentickets.masks.names import as_names
from gentickets.masks.ticket import Ticket
from gentickets.options import CONTROLS
from gentickets.search.levels import (
    Level,
    MakeModel,
    Train,
    check_count,
    draw,
    random_mask_control,
    redrawn_weights,
    retrain_span,
    trained,
)
from gentickets.search.progress import Told
from gentickets.training.seeds import derived_seed


def search_controls(
    ticket: Level | Ticket,
    make_model: MakeModel,
    train: Train,
    *,
    steps: int,
    seed: int = 0,
    arms: Iterable[str] = CONTROLS,
    rewind_step: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[str, Level]]:
    """Yields each control of a ticket, trained: `(arm, level)`, an arm being what `gentickets.judge` calls it.

    - `"random_mask"`: the ticket's weights under a random mask of the same sparsity in each layer, trained as the
      ticket was;
    - `"redrawn_weights"`: the ticket's mask over weights drawn anew, trained from step 0 to `steps`.

    `ticket` is a level of a search, or a `Ticket`, such as one that was loaded; the model of a level is left alone.
    `make_model`, `train` and `steps` are those of the search. `seed` draws the mask, and torch's generator is at a seed
    that follows from it while `make_model` draws the weights: equal seeds, equal controls; the caller's generator goes
    on as if nothing had been drawn. A ticket of a search says the step that its weights are of, and how it was trained;
    of one that does not, `rewind_step` is that step.

    Raises `PruneError` for an unknown arm and a ticket that does not say its step (both at once); for a ticket of masks
    alone, whose weights a random mask would need; and where `make_model` draws the weights that the ticket has already
    (see `redrawn_weights_control`). Raises `TicketError` for a model that the ticket does not fit.
    """
    check_count("steps", steps, 1)
    check_count("seed", seed)
    if isinstance(ticket, Level | Ticket) and not ticket.masks.sparsity:
        raise PruneError("the dense model has no controls: nothing of it is pruned; give a later level")
    arms = as_names(arms)
    if unknown := [arm for arm in arms if arm not in CONTROLS]:
        raise PruneError(f"arms={unknown[0]!r} is none of {', '.join(CONTROLS)}")
    level = ticket if isinstance(ticket, Level) else _level_of(ticket, make_model, arms, seed)
    span = _span(level.ticket, steps, rewind_step)
    return _controls(level, make_model, train, steps, seed, arms, span, Told if progress else None)


def _controls(
    level: Level,
    make_model: MakeModel,
    train: Train,
    steps: int,
    seed: int,
    arms: tuple[str, ...],
    span: tuple[int, int],
    told: type[Told] | None,
) -> Iterator[tuple[str, Level]]:
    spans = {arm: span if arm == "random_mask" else (0, steps) for arm in arms}
    telling = told(sum(end - start for start, end in spans.values())) if told else None
    for arm, (start, end) in spans.items():
        if arm == "random_mask":
            ticket = random_mask_control(level, seed)
            model = replace(level, ticket=ticket).restarted()
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(seed, level.index, 1))
                ticket, drawn = redrawn_weights(level, make_model)
            model = ticket.install(drawn)
        if telling is None:
            averaged = trained(train, model, ticket.masks, start, end)
        else:
            with telling.training(f"{arm.replace('_', ' ')}, {ticket.masks.sparsity:.1%} pruned", end - start):
                averaged = trained(train, model, ticket.masks, start, end)
        yield arm, Level(level.index, ticket.masks, model, ticket, span=(start, end), averaged=averaged)


def _level_of(ticket: object, make_model: MakeModel, arms: tuple[str, ...], seed: int) -> Level:
    """The level that a ticket was of, its model as it is before it is trained."""
    if not isinstance(ticket, Ticket):
        raise PruneError(
            f"controls are of a level of a search, or of a Ticket (Ticket.load(path)); not of a {type(ticket).__name__}"
        )
    if not ticket.weights and "random_mask" in arms:
        raise PruneError("the ticket has masks alone, and no weights for a random mask: arms=['redrawn_weights']")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, 2))
        model = draw(make_model)
    return Level(_index(ticket.origin), ticket.masks, ticket.install(model), ticket)


def _index(origin: dict[str, Any]) -> int:
    """The level that an origin tells, 1 where it tells none."""
    lineage = origin.get("lineage")
    last = lineage[-1] if isinstance(lineage, list) and lineage else None
    found = last.get("level") if isinstance(last, dict) else None
    return found if isinstance(found, int) and found >= 0 else 1


def _span(ticket: Ticket, steps: int, rewind_step: int | None) -> tuple[int, int]:
    """The (start, end) steps of the ticket's training."""
    told = ticket.origin.get("rewind_step") if rewind_step is None else rewind_step
    if told is None:
        raise PruneError(
            "the ticket does not say the step of training that its weights are of: rewind_step=..., 0 for those of "
            "before training"
        )
    check_count("rewind_step", told)
    if told >= steps:
        raise PruneError(f"rewind_step={told} is out of range: from 0 to steps - 1 = {steps - 1}")
    return retrain_span(ticket.origin.get("retrain", "rewind"), steps, told)

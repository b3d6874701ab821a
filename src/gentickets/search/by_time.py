"""Tickets of regions of time, each found and trained apart, put together as one diffusion model that asks the one of
its time (as EB-Diff-Train, CVPR 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from gentickets.channels.shrinking import Shrinking
from gentickets.errors import RecipeError
from gentickets.masks.lineage import begun
from gentickets.masks.names import clone, component_at
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.models.by_time import ByTime
from gentickets.objectives.base import Objective
from gentickets.objectives.denoising import Denoising
from gentickets.options import Tickets
from gentickets.search.levels import Level, Rounds
from gentickets.search.method import Method, Network, Taken, Work

_DENOISER = "denoiser"


@dataclass(frozen=True)
class TicketsByTime(Method):
    """The tickets of runs of some times each (`objective.times`), put together as one model."""

    source: list[str]
    """The runs whose levels are put together, folders, or names of such that lie beside this one."""
    rounds: Tickets = 1
    """How many of their levels, from level 1 on; 0: the dense model alone."""

    builds_on: ClassVar[Literal["nothing"]] = "nothing"  # `Work.taken` counts what their levels took, search and all
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if len(set(self.source)) != len(self.source) or not self.source:
            raise ValueError(f"source={self.source}: the runs of all regions of time, each once")

    def sources(self, arm: str) -> tuple[str, ...]:
        return tuple(self.source)

    def levels(self, work: Work, last: int) -> Iterator[Level]:
        if self.rounds:
            for one in self.source:
                work.source(one, self.rounds)  # before anything is trained
        shared = Rounds(work.make_model, work.train, work.steps, 0, origin=work.origin) if last < 0 else None
        return self._levels(work, last, shared)

    def _levels(self, work: Work, last: int, shared: Rounds | None) -> Iterator[Level]:
        if shared is not None:
            yield shared.dense(self.covered(shared.initial))
        for index in range(max(last, 0) + 1, self.rounds + 1):
            yield self._together(work, index, "ticket")

    def control(self, arm: str, level: Level, work: Work, seed: int) -> Level:
        """The same controls of all regions, put together."""
        return self._together(work, level.index, arm)

    def network(self, ticket: Ticket, model: nn.Module, example_inputs: Mapping[str, Any]) -> Network:
        facts = ticket.origin["by_time"]
        networks, held, removed = list[nn.Module](), list[Masks](), 0
        for number in range(len(facts["starts"])):
            own = clone(model)
            part = _apart(ticket, number)
            part.install(own)
            if facts["smaller"]:
                shrinking = Shrinking(own, part.masks, example_inputs)
                own, part_held = shrinking.model, shrinking.masks
                removed += sum(shrinking.removed.values())
            else:
                part_held = part.masks
            networks.append(component_at(own, _DENOISER))
            held.append(part_held)
        setattr(model, _DENOISER, ByTime(networks, facts["starts"]))
        return Network(model, _together(held), {_DENOISER: removed})

    def _together(self, work: Work, index: int, arm: str) -> Level:
        """One level of every run, as one; nothing is trained."""
        model, taken = work.initial(), [work.taken(one, index, arm) for one in self.source]
        parts = _in_order(work.objective, dict(zip(self.source, taken, strict=True)))
        starts = [part.objective.region[0] for part in parts]  # type: ignore[attr-defined]
        levels = [part.level for part in parts]
        facts = {"starts": starts, "smaller": any(_is_smaller(level) for level in levels)}
        masks = _together([level.masks for level in levels])
        weights = {
            _named(name, number): tensor
            for number, level in enumerate(levels)
            for name, tensor in level.ticket.weights.items()
        }
        weights[f"{_DENOISER}.starts"] = torch.tensor(starts)
        origin = {
            **work.origin,
            "by_time": {**facts, "of": [level.ticket.origin for level in levels]},
            "lineage": begun(index, masks, work.origin),
        }
        networks = [component_at(level.model, _DENOISER) for level in levels]
        setattr(model, _DENOISER, ByTime(networks, starts))
        held = _together([level.masks if level.held is None else level.held for level in levels])
        return Level(index, masks, model, Ticket(masks, weights, origin), held=held, span=(0, 0))


def _in_order(objective: Objective, taken: Mapping[str, Taken]) -> list[Taken]:
    """The regions by time. Raises `RecipeError` where they are not all of it, each time once, for one objective."""
    if not isinstance(objective, Denoising) or objective.times is not None:
        raise RecipeError("search.method=by-time puts denoisers together: objective.name=denoising, without times")
    found: dict[str, tuple[int, int]] = {}
    for name, part in taken.items():
        if not isinstance(part.objective, Denoising) or replace(part.objective, times=None) != objective:
            raise RecipeError(f"search.source={name!r} has another objective: it must be this run's but for its times")
        found[name] = part.objective.region
    order = sorted(found, key=lambda name: found[name])
    edges = [0, *(found[name][1] for name in order)]
    if [found[name][0] for name in order] != edges[:-1] or edges[-1] != objective.timesteps:
        told = ", ".join(f"{name} {list(found[name])}" for name in order)
        raise RecipeError(
            f"search.source: {told} are not all times from 0 to {objective.timesteps}, each once: mend objective.times"
        )
    return [taken[name] for name in order]


def _named(name: str, number: int) -> str:
    """What a weight of a region's denoiser is called in the whole."""
    return f"{_DENOISER}.networks.{number}.{name.removeprefix(f'{_DENOISER}.')}"


def _together(masks: Sequence[Masks]) -> Masks:
    return Masks({_named(name, number): each[name] for number, each in enumerate(masks) for name in each})


def _apart(ticket: Ticket, number: int) -> Ticket:
    """The ticket of one region."""
    before = _named("", number)
    masks = {
        f"{_DENOISER}.{name.removeprefix(before)}": ticket.masks[name]
        for name in ticket.masks
        if name.startswith(before)
    }
    weights = {
        f"{_DENOISER}.{name.removeprefix(before)}": tensor
        for name, tensor in ticket.weights.items()
        if name.startswith(before)
    }
    return Ticket(Masks(masks), weights)


def _is_smaller(level: Level) -> bool:
    """Whether channels were cut out of a level's network, and not masked alone."""
    shapes = {name: tuple(tensor.shape) for name, tensor in level.model.named_parameters()}
    return any(
        shapes.get(name) != tuple(tensor.shape) for name, tensor in level.ticket.weights.items() if name in shapes
    )

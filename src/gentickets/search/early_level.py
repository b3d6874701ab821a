"""An early-bird level: trained dense until its mask has settled, then as the smaller network to the end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from gentickets.channels.groups import channel_groups
from gentickets.channels.shrinking import Shrinking
from gentickets.errors import GenticketsError
from gentickets.files import read_file, replace_file
from gentickets.masks.lineage import begun, shuffled
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.objectives import GainPenalty
from gentickets.options import TOLERANCES, Count, Granularity, NotNegative, Rule, check_tolerance
from gentickets.pruning.prune import random_like
from gentickets.sealed import Damaged, sealed_json, sealed_state, unsealed_json, unsealed_state
from gentickets.search.by_channel import ByChannel
from gentickets.search.early_bird import EarlyBird, random_channels_control
from gentickets.search.levels import Level
from gentickets.search.method import Network, Separate, Work, connected
from gentickets.training.hooks import Hook, State

HISTORY = "early-bird.json"
STATE = "settled.pt"
"""The optimisers' state where the mask settled, in the level's folder."""


@dataclass(frozen=True)
class Settled:
    """Where a dense training stood when its mask had settled. `account`: what it took (`Work.so_far`);
    `optimizers`: component → state dictionary."""

    ticket: Ticket
    step: int
    account: Mapping[str, Any]
    optimizers: Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class EarlyBirds(ByChannel, Separate):
    """Early-bird tickets: dense until the mask has settled, then the smaller network."""

    granularity: Granularity = "weight"
    """Whether weights or whole channels go."""
    window: Annotated[int, Ge(2), Le(10**4)] = 5
    """How many masks in a row must be near each other."""
    rule: Rule = "chance"
    """What near is, as a share of the distance of independent masks, or of the weights that differ."""
    tolerance: Annotated[float, Gt(0), Le(1)] | None = None
    """How near; null: 0.2, or 0.1 where rule is hamming."""
    interval: Count | None = None
    """Steps between two masks; null: an epoch."""
    settle_by: Annotated[float, Gt(0), Le(1)] = 0.5
    """The share of training by which the mask must have settled."""
    unsettled: Literal["last", "stop"] = "last"
    """Where it has not, take the newest mask and say so, or stop."""
    gain_penalty: NotNegative = 0.0
    """The L1 penalty on the norms' gains while it searches."""

    @classmethod
    def as_arm(cls, deepest: float) -> dict[str, Any]:
        return {"rounds": 1, "fraction": deepest}  # it finds one ticket: of the deepest sparsity

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity == "weight" and (self.by_size or self.at_least is not None):
            said = next(key for key in ("parameters", "flops", "at_least") if getattr(self, key) is not None)
            raise ValueError(f"{said} is of channels: take granularity=channel too")
        for level in range(1, self.rounds + 1) if not self.by_size else ():  # what a size leaves, a mask will tell
            try:
                check_tolerance(self.near, self.rule, self.sparsity_at(level))
            except GenticketsError as error:
                raise ValueError(f"{error} (level {level})") from None

    @property
    def near(self) -> float:
        """The tolerance, that of the rule where none is said."""
        return TOLERANCES[self.rule] if self.tolerance is None else self.tolerance

    def level(self, work: Work, index: int) -> Level:
        model = work.initial()
        settled = self._find(work, model, index)
        if settled is not None:
            return self._go_on(work, index, settled)
        ticket = Ticket(Masks.dense(model), model, work.origin)
        return Level(index, ticket.masks, model, ticket, span=(0, work.steps))

    def network(self, ticket: Ticket, model: nn.Module, example_inputs: Mapping[str, Any]) -> Network:
        small, masks, shrinking = self._smaller(ticket, model, example_inputs)
        return Network(small, masks, {} if shrinking is None else shrinking.removed)

    def has_controls(self, work: Work, index: int) -> bool:
        return (work.place(index) / STATE).exists()

    def control(self, arm: str, level: Level, work: Work, seed: int) -> Level:
        """Random channels from where the level settled, or its own ones drawn anew."""
        settled = read_settled(work.place(level.index))
        model = work.initial()
        inputs = work.example_inputs(model)
        if arm == "random_mask":
            ticket = self._random_ticket(settled.ticket, model, seed, inputs)
            return self._go_on(work, level.index, replace(settled, ticket=ticket))
        origin = {**settled.ticket.origin, "rewind_step": 0, "control": "redrawn_weights"}
        ticket = Ticket(settled.ticket.masks, work.make_model(), origin)
        small, masks, _ = self._smaller(ticket, model, inputs)
        work.train(small, masks, 0, work.steps)
        return Level(level.index, ticket.masks, small, ticket, held=masks, span=(0, work.steps))

    def _random_ticket(self, ticket: Ticket, model: nn.Module, seed: int, inputs: Mapping[str, Any]) -> Ticket:
        """As many weights or channels of each layer, at random, over the same weights."""
        if self.granularity == "channel":
            return random_channels_control(ticket, channel_groups(model, inputs), seed)
        masks = random_like(ticket.masks, seed)
        return Ticket(masks, ticket.weights, shuffled(ticket.origin, masks, seed))

    def _smaller(
        self, ticket: Ticket, model: nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[nn.Module, Masks, Shrinking | None]:
        """The ticket's network, physically smaller where channels were pruned, and the masks left to hold it to."""
        ticket.install(model)
        if self.granularity == "weight":
            return model, ticket.masks, None
        shrinking = Shrinking(model, ticket.masks, inputs)
        return shrinking.model, shrinking.masks, shrinking

    # -- until the mask has settled ---------------------------------------------------------------------------

    def _find(self, work: Work, model: nn.Module, level: int) -> Settled | None:
        """Trains `model` until its mask has settled; None where it diverged before.

        What was found is kept in the level's folder, and read back from there when the level is resumed. Raises
        `GenticketsError` where the mask never settles and the recipe says to stop then.
        """
        if (settled := _kept(work.folder())) is not None:
            work.recall(settled.step, settled.account)
            return settled
        bird, deadline = self._bird(work, model, level), max(1, int(self.settle_by * work.steps))
        watch = BirdWatch(bird, self.interval or work.steps_per_epoch)
        everything = Masks.dense(model)
        objective = GainPenalty(work.objective, self.gain_penalty) if self.gain_penalty else None
        done = work.train(model, everything, 0, deadline, hooks=[watch], objective=objective, finding=True)
        if done is None:
            return None
        self._check_seen(watch, level, done.step, deadline)
        masks = everything.replace(bird.masks)
        facts = {
            **work.origin,
            "rewind_step": done.step,
            "retrain": "rewind",
            "early_bird": {**bird.facts(), "steps": watch.steps},
            "lineage": begun(level, masks, work.origin),
        }
        states = {name: optimizer.state_dict() for name, optimizer in done.optimizers.items()}
        settled = Settled(Ticket(masks, model, facts), done.step, work.so_far(), states)
        _write_history(work.folder() / HISTORY, watch)
        _write_settled(work.folder(), settled)
        return settled

    def _bird(self, work: Work, model: nn.Module, level: int) -> EarlyBird:
        by_channel = self.granularity == "channel"
        return EarlyBird(
            granularity=self.granularity,
            window=self.window,
            tolerance=self.near,
            scope=self.scope,
            components=self.components,
            groups=channel_groups(model, work.example_inputs(model)) if by_channel else None,
            rule=self.rule,
            **self.amount(level),
        )

    def _check_seen(self, watch: BirdWatch, level: int, step: int, deadline: int) -> None:
        bird = watch.bird
        if not bird.distances:
            raise GenticketsError(
                f"early-bird: level {level} saw no mask in {deadline} steps (all gains are still equal, or "
                f"search.interval={watch.every} is longer): train longer, or observe more often"
            )
        if not bird.settled and self.unsettled == "stop":
            raise GenticketsError(
                f"early-bird: the mask of level {level} had not settled by step {step} (farthest within the window: "
                f"{_newest(bird)}): raise search.tolerance={self.near} or search.settle_by={self.settle_by}, "
                f"or take unsettled=last"
            )

    # -- then the smaller network -----------------------------------------------------------------------------

    def _go_on(self, work: Work, index: int, settled: Settled) -> Level:
        """Trains the ticket's network from where the mask settled to the end, the optimisers' state carried over."""
        ticket, model = settled.ticket, work.initial()
        connected(ticket, model, work)
        small, masks, shrinking = self._smaller(ticket, model, work.example_inputs(model))

        def carry(optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
            for name, optimizer in optimizers.items():
                if shrinking is None:
                    optimizer.load_state_dict(settled.optimizers[name])
                    continue
                old = torch.optim.AdamW(getattr(model, name).parameters())  # to read the state by weight
                old.load_state_dict(settled.optimizers[name])
                shrinking.carry_state(old, optimizer, model)

        work.train(small, masks, settled.step, work.steps, prepare=carry)
        return Level(index, ticket.masks, small, ticket, held=masks, span=(settled.step, work.steps))


class BirdWatch(Hook):
    """Draws a mask every `interval` steps and after the last one, and ends the training once it has settled."""

    def __init__(self, bird: EarlyBird, interval: int):
        self.bird, self.every = bird, interval
        self.steps: list[int] = []

    def after_step(self, state: State) -> bool:
        counted = len(self.bird.distances)
        self.bird.observe(state.model)
        if len(self.bird.distances) > counted:
            self.steps.append(state.step)
        return self.bird.settled

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "bird": self.bird.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = list(state["steps"])
        self.bird.load_state_dict(state["bird"])


def _newest(bird: EarlyBird) -> str:
    """The largest distance of the newest mask to those before it, beside that of independent masks."""
    pairs = {
        name: max(zip(found, bird.chances[-1][name], strict=True))
        for name, found in bird.distances[-1].items()
        if found
    }
    return (
        ", ".join(f"{name} {distance:.3f}, by chance {chance:.3f}" for name, (distance, chance) in pairs.items())
        or "none: a single mask"
    )


def _write_history(path: Path, watch: BirdWatch) -> None:
    """The whole curve and matrix of distances, beside those of independent masks."""
    bird = watch.bird

    def rounded(matrix: np.ndarray) -> list[list[float]]:
        return [[round(float(value), 6) for value in row] for row in matrix]

    replace_file(
        path,
        sealed_json(
            {
                "steps": watch.steps,
                "settled": bird.settled,
                "rule": bird.rule,
                "tolerance": bird.tolerance,
                "window": bird.window,
                "distances": bird.distances,
                "chances": bird.chances,
                "matrix": rounded(bird.distance_matrix()),
                "chance_matrix": rounded(bird.chance_matrix()),
            }
        ),
    )


def _write_settled(folder: Path, settled: Settled) -> None:
    settled.ticket.save(folder / "ticket.safetensors")
    state = {"step": settled.step, "account": dict(settled.account), "optimizers": dict(settled.optimizers)}
    replace_file(folder / STATE, sealed_state(state))


def read_settled(folder: Path) -> Settled:
    """What finding a ticket left in a level's folder. Raises `Damaged` where its state is not as it was written."""
    ticket = Ticket.load(folder / "ticket.safetensors")
    try:
        return Settled(ticket, **unsealed_state(read_file(folder / STATE)))
    except (Damaged, OSError) as error:
        raise Damaged(f"{folder / STATE} is damaged ({error})") from None


def _check_history(path: Path) -> None:
    try:
        unsealed_json(read_file(path))
    except (Damaged, OSError) as error:
        raise Damaged(f"{path} is damaged ({error})") from None


def _kept(folder: Path) -> Settled | None:
    """What was found before, and is whole; what is damaged is removed with a warning, and found again."""
    if not (folder / STATE).exists():
        return None
    try:
        _check_history(folder / HISTORY)
        return read_settled(folder)
    except GenticketsError as error:
        warnings.warn(f"{error}: dropped, and found again", stacklevel=2)
        (folder / STATE).unlink()
        (folder / "ticket.safetensors").unlink(missing_ok=True)
        return None

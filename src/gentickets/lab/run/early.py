"""An early-bird level: trained dense until its mask has settled, then as the smaller network to the end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.channels.groups import channel_groups
from gentickets.channels.shrinking import Shrinking
from gentickets.errors import GenticketsError
from gentickets.files import read_file, replace_file
from gentickets.lab.recipe.recipe import SearchPart
from gentickets.lab.run import folder as disk
from gentickets.lab.run.trainer import Trainer
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.objectives import GainPenalty
from gentickets.pruning.prune import random_like
from gentickets.sealed import Damaged, sealed_state, unsealed_state
from gentickets.search.early_bird import EarlyBird, random_channels_control
from gentickets.training.hooks import Hook, State

HISTORY = "early-bird.json"
STATE = "settled.pt"
"""The optimisers' state where the mask settled, in the level's folder."""


@dataclass(frozen=True)
class Settled:
    """Where a dense training stood when its mask had settled. `account`: what it took (`Trainer.account`);
    `optimizers`: component → state dictionary."""

    ticket: Ticket
    step: int
    account: Mapping[str, Any]
    optimizers: Mapping[str, dict[str, Any]]


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


def find_ticket(
    trainer: Trainer,
    model: nn.Module,
    search: SearchPart,
    level: int,
    example_inputs: Mapping[str, Tensor],
    origin: Mapping[str, Any],
) -> Settled | None:
    """Trains `model` until its mask has settled; None where it diverged before.

    What was found is kept in the trainer's folder, and read back from there when the level is resumed. Raises
    `GenticketsError` where the mask never settles and the recipe says to stop then.
    """
    if (settled := _kept(trainer.folder)) is not None:
        trainer.recall(settled.step, settled.account)
        return settled
    groups = channel_groups(model, example_inputs) if search.granularity == "channel" else None
    bird = EarlyBird(
        search.sparsity_at(level),
        granularity=search.granularity,
        window=search.window,
        tolerance=search.tolerance,
        scope=search.scope,
        components=search.components,
        groups=groups,
        rule=search.rule,
    )
    steps = trainer.settings.steps
    deadline = max(1, int(search.settle_by * steps))
    watch = BirdWatch(bird, search.interval or trainer.steps_per_epoch)
    everything = Masks.dense(model)
    objective = GainPenalty(trainer.objective, search.gain_penalty) if search.gain_penalty else None
    done = trainer.train(model, everything, 0, deadline, hooks=[watch], objective=objective, finding=True)
    if done is None:
        return None
    if not bird.distances:
        raise GenticketsError(
            f"early-bird: {trainer.stage} saw no mask in {deadline} steps (all gains are still equal, or "
            f"search.interval={watch.every} is longer): train longer, or observe more often"
        )
    if not bird.settled and search.unsettled == "stop":
        raise GenticketsError(
            f"early-bird: the mask of {trainer.stage} had not settled by step {done.step} (farthest within the window: "
            f"{_newest(bird)}): raise search.tolerance={search.tolerance} or search.settle_by={search.settle_by}, "
            f"or take unsettled=last"
        )
    masks = everything.replace(bird.masks)
    facts = {
        **origin,
        "rewind_step": done.step,
        "retrain": "rewind",
        "early_bird": {**bird.facts(), "steps": watch.steps},
        "lineage": [{"level": level, "sparsity": masks.sparsity, "masks": masks.fingerprint}],
    }
    states = {name: optimizer.state_dict() for name, optimizer in done.optimizers.items()}
    settled = Settled(Ticket(masks, model, facts), done.step, trainer.account(), states)
    _write_history(trainer.folder / HISTORY, watch)
    _write_settled(trainer.folder, settled)
    return settled


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

    disk.write_json(
        path,
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
        },
    )


def _write_settled(folder: Path, settled: Settled) -> None:
    settled.ticket.save(folder / "ticket.safetensors")
    state = {"step": settled.step, "account": dict(settled.account), "optimizers": dict(settled.optimizers)}
    replace_file(folder / STATE, sealed_state(state))


def read_settled(folder: Path) -> Settled:
    """What `find_ticket` left in a level's folder. Raises `Damaged` where its state is not as it was written."""
    ticket = Ticket.load(folder / "ticket.safetensors")
    try:
        return Settled(ticket, **unsealed_state(read_file(folder / STATE)))
    except (Damaged, OSError) as error:
        raise Damaged(f"{folder / STATE} is damaged ({error})") from None


def _kept(folder: Path) -> Settled | None:
    """What was found before, and is whole; what is damaged is removed with a warning, and found again."""
    if not (folder / STATE).exists():
        return None
    try:
        disk.read_json(folder / HISTORY)
        return read_settled(folder)
    except GenticketsError as error:
        warnings.warn(f"{error}: dropped, and found again", stacklevel=2)
        (folder / STATE).unlink()
        (folder / "ticket.safetensors").unlink(missing_ok=True)
        return None


def smaller(
    ticket: Ticket, model: nn.Module, search: SearchPart, example_inputs: Mapping[str, Tensor]
) -> tuple[nn.Module, Masks, Shrinking | None]:
    """The ticket's network, physically smaller where channels were pruned, and the masks that are left to hold it to.

    `model` is of the ticket's architecture; its weights are replaced.
    """
    ticket.install(model)
    if search.granularity == "weight":
        return model, ticket.masks, None
    shrinking = Shrinking(model, ticket.masks, example_inputs)
    return shrinking.model, shrinking.masks, shrinking


def train_on(
    trainer: Trainer, settled: Settled, model: nn.Module, search: SearchPart, example_inputs: Mapping[str, Tensor]
) -> tuple[nn.Module, Masks]:
    """Trains the ticket's network from where the mask settled to the end, with the optimisers' state carried over."""
    small, masks, shrinking = smaller(settled.ticket, model, search, example_inputs)

    def carry(optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        for name, optimizer in optimizers.items():
            if shrinking is None:
                optimizer.load_state_dict(settled.optimizers[name])
                continue
            old = torch.optim.AdamW(getattr(model, name).parameters())  # to read the state by weight
            old.load_state_dict(settled.optimizers[name])
            shrinking.carry_state(old, optimizer, model)

    trainer.train(small, masks, settled.step, trainer.settings.steps, prepare=carry)
    return small, masks


def random_ticket(
    settled: Settled, model: nn.Module, search: SearchPart, seed: int, example_inputs: Mapping[str, Tensor]
) -> Ticket:
    """The control of an early bird: as many weights or channels of each layer, at random, over the same weights."""
    ticket = settled.ticket
    if search.granularity == "channel":
        return random_channels_control(ticket, channel_groups(model, example_inputs), seed)
    origin = {**ticket.origin, "control": "random_mask", "control_seed": seed}
    return Ticket(random_like(ticket.masks, seed), ticket.weights, origin)

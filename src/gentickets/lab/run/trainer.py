"""Trains models for one seed of a run, into the folder of the level in the making, and keeps account of the price."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from gentickets.data import Batches, ImageSet
from gentickets.errors import Diverged
from gentickets.lab.recipe import Recipe
from gentickets.lab.run import publishing
from gentickets.lab.run.hardware import make_fabric
from gentickets.lab.run.parcels import packed
from gentickets.lab.run.ranks import Job, handed_over
from gentickets.lab.run.validation import Validation
from gentickets.lab.task import build_batches
from gentickets.masks.names import named_rest, named_state, put_rest
from gentickets.masks.value import Masks
from gentickets.metrics.cost import training_flops
from gentickets.objectives import Objective
from gentickets.sealed import Damaged
from gentickets.training.hooks import Hook
from gentickets.training.loop import BatchSource, Trained, train
from gentickets.training.progress import Checkpoint, Curve, Progress


@dataclass(frozen=True)
class Event:
    """What a seed tells while it works: which stage, the step in it, and how many steps of all are behind it. `run`:
    the name of its run's folder, where several are worked on."""

    seed: int
    stage: str
    done: int
    total: int
    progress: Progress | None = None
    run: str = ""


Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Price:
    """Wall-clock seconds and FLOPs, as computed and of the live weights alone."""

    seconds: float = 0.0
    flops: float = 0.0
    live_flops: float = 0.0

    def __add__(self, other: Price) -> Price:
        return Price(self.seconds + other.seconds, self.flops + other.flops, self.live_flops + other.live_flops)


@dataclass
class Outcome:
    """How the trainings of a level went: `find` is what they cost that found its masks, `train` what training from them
    did. `before`: what these masks had cost when the level was begun.

    `sparse_layers`: those that were trained on their live weights alone.
    """

    status: str = "complete"
    reason: str | None = None
    averaged: nn.Module = field(default_factory=nn.Module)
    images: int = 0
    before: Price = Price()
    find: Price = Price()
    train: Price = Price()
    sparse_layers: tuple[str, ...] = ()

    @property
    def found(self) -> Price:
        """All that the masks cost."""
        return self.before + self.find


class Trainer:
    """Trains for one seed. `tell` gets an `Event` now and then; `stop` is asked after every step (see `train`).

    `glance` judges a model in training, where the recipe asks for that: all trainings but those that find masks.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        images: ImageSet,
        total: int,
        tell: Callable[[Event], None],
        stop: Callable[[], bool],
        glance: Callable[[nn.Module], float],
    ):
        self.recipe, self.seed, self._tell, self._stop, self._glance = recipe, seed, tell, stop, glance
        self.settings = recipe.training.settings(seed)
        self.objective = recipe.build_objective()
        self.fabric = make_fabric(recipe)
        self.batches = build_batches(recipe, images, seed, self.fabric.device)
        self._few: dict[float, Batches] = {1.0: self.batches}
        self.total, self.done = total, 0
        self.stage, self.folder = "", Path()
        self.outcome = Outcome()
        self.validation: Validation | None = None

    def few(self, share: float) -> Batches:
        """Batches of a share of the images, drawn by a fixed seed: the same for every level and seed."""
        if share not in self._few:
            images = self.batches.images
            self._few[share] = build_batches(self.recipe, images, self.seed, self.fabric.device, share)
        return self._few[share]

    def enter(self, stage: str, folder: Path) -> None:
        """Begins a level: its trainings go into `folder`, their price onto a new account."""
        self.stage, self.folder, self.outcome = stage, folder, Outcome()
        every = self.recipe.evaluation.every
        self.validation = None if every is None else Validation(self._glance, every, folder)

    def train(
        self,
        model: nn.Module,
        masks: Masks,
        start_step: int,
        end_step: int,
        *,
        hooks: Sequence[Hook] = (),
        prepare: Callable[[Mapping[str, torch.optim.Optimizer]], None] | None = None,
        objective: Objective | None = None,
        batches: BatchSource | None = None,
        finding: bool = False,
    ) -> Trained | None:
        """`gentickets.training.loop.train`, checkpointed. None where it diverged; the outcome then says why.

        `finding`: whether the price is one of finding the masks.
        """
        key = f"{self.stage} {start_step}-{end_step} {masks.fingerprint}{' finding' if finding else ''}"
        before = {name: tensor.detach().clone() for name, tensor in named_state(model).items()}
        rest = named_rest(model)
        begun = [copy.deepcopy(hook.state_dict()) for hook in hooks]
        if self.validation is not None and not finding:
            hooks = [*hooks, self.validation]
        trained = None
        objective, batches = objective or self.objective, batches or self.batches
        try:
            with self._devices(model, masks, objective, batches, start_step, end_step) as fabric:
                trained = train(
                    model,
                    objective,
                    batches,
                    self.settings,
                    masks=masks,
                    start_step=start_step,
                    end_step=end_step,
                    checkpoint=Checkpoint(
                        self.folder / publishing.CHECKPOINT, key, self.recipe.training.checkpoint_seconds
                    ),
                    curve=Curve(self.folder / "curve.jsonl"),
                    on_progress=lambda progress: self._report(progress, start_step),
                    stop=self._stop,
                    hooks=hooks,
                    prepare=prepare,
                    fabric=fabric,
                )
            self._account(model, masks, trained, objective, finding)
        except Diverged as error:
            self.outcome.status, self.outcome.reason = "diverged", str(error)
            if not all(bool(torch.isfinite(tensor).all()) for tensor in named_state(model).values()):
                _restore(model, before, rest)
        except Damaged as error:  # the weights of the best evaluation, which only training from the start makes again
            warnings.warn(f"{error}: dropped, and this training begins anew", stacklevel=2)
            (self.folder / publishing.CHECKPOINT).unlink()
            _restore(model, before, rest)
            for hook, state in zip(hooks[:-1], begun, strict=True):  # which have gone on from the checkpoint already
                hook.load_state_dict(state)
            return self.train(
                model,
                masks,
                start_step,
                end_step,
                hooks=hooks[:-1],
                prepare=prepare,
                objective=objective,
                batches=batches,
                finding=finding,
            )
        model.cpu()
        self.done += (trained.step if trained is not None else end_step) - start_step
        return trained

    @contextmanager
    def _devices(
        self, model: nn.Module, masks: Masks, objective: Objective, batches: BatchSource, start: int, end: int
    ) -> Iterator[Fabric]:
        """What is trained on: this process's device, or several whose other processes are handed the training too."""
        training = self.recipe.training
        if training.devices == 1:
            yield self.fabric
            return
        share = next((share for share, few in self._few.items() if few is batches), None)
        job = Job(
            recipe=self.recipe,
            seed=self.seed,
            data=self.batches.images.fingerprint,
            share=share or 1.0,
            own=packed(batches) if share is None else None,
            network=packed((model, objective, masks)),
            start_step=start,
            end_step=end,
            threads=torch.get_num_threads(),
        )
        with handed_over(job, self.fabric.device.type) as fabric:
            yield fabric

    def account(self) -> dict[str, Any]:
        """What the trainings of this level took so far, and how they were judged: plain values, for `recall`."""
        evaluations = None if self.validation is None else self.validation.state_dict()
        return {"find": asdict(self.outcome.find), "train": asdict(self.outcome.train), "validation": evaluations}

    def recall(self, steps: int, account: Mapping[str, Any]) -> None:
        """Counts `steps` that were trained before, at their price then. Raises `Damaged` as `Validation` does."""
        if self.validation is not None and account["validation"] is not None:
            self.validation.load_state_dict(account["validation"])
        self.done += steps
        self.outcome.images += steps * self.batches.batch_size
        self.outcome.find += Price(**account["find"])
        self.outcome.train += Price(**account["train"])

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.batches.images) // self.batches.batch_size)

    def _account(self, model: nn.Module, masks: Masks, trained: Trained, objective: Objective, finding: bool) -> None:
        outcome = self.outcome
        outcome.averaged = trained.averaged
        outcome.sparse_layers = tuple(choice.layer for choice in trained.choices if choice.sparse)
        outcome.images += trained.images
        few = self.batches.at(0)[: 2 * objective.batches_per_step]
        each = training_flops(model, objective, few, masks)
        seconds = trained.seconds + (trained.looking if finding else 0.0)
        price = Price(seconds, each.dense * trained.images, each.live * trained.images)
        if finding:
            outcome.find += price
        else:
            outcome.train += price

    def _report(self, progress: Progress, start_step: int) -> None:
        self._tell(Event(self.seed, self.stage, self.done + progress.step - start_step, self.total, progress))


@torch.no_grad()
def _restore(model: nn.Module, before: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> None:
    """Puts a model back to what a training started from."""
    state = named_state(model)
    for name, tensor in before.items():
        state[name].copy_(tensor)
    put_rest(model, rest)

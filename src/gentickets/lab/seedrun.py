"""One seed of a run: the chain of tickets, then the controls, each level skipped where it is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from gentickets import models
from gentickets.data import Batches, ImageSet
from gentickets.errors import Disconnected, Diverged, GenticketsError
from gentickets.lab import folder as disk
from gentickets.lab import methods
from gentickets.lab.evaluation import Judge
from gentickets.lab.recipe import Recipe
from gentickets.liveness import check_connected
from gentickets.masks import Masks
from gentickets.metrics import Cost, cost
from gentickets.naming import clone, named_state
from gentickets.search import Level, random_mask_control, redrawn_weights_control
from gentickets.search.levels import Retrain, retrain_span
from gentickets.ticket import Ticket
from gentickets.training import Checkpoint, Curve, Progress, Trained, derived_seed, train, with_averages

CONTROLS = ("random_mask", "redrawn_weights")


@dataclass(frozen=True)
class Event:
    """What a seed tells while it works: which stage, the step in it, and how many steps of all are behind it."""

    seed: int
    stage: str
    done: int
    total: int
    progress: Progress | None = None


@dataclass
class Outcome:
    """How a level's training went."""

    status: str = "complete"
    reason: str | None = None
    trained: Trained = field(default_factory=lambda: Trained(nn.Module(), 0, 0.0))


def build_model(recipe: Recipe, images: ImageSet, seed: int, draw: int = 0) -> nn.Module:
    """The recipe's model with weights drawn from (seed, draw); torch's global generator is left as it was.

    Raises `GenticketsError` where the catalogue cannot build it for these images.
    """
    channels, height, _ = images.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, draw))
        try:
            return models.CATALOGUE[recipe.model.name](height, channels, **recipe.model.options)
        except ValueError as error:
            raise GenticketsError(f"model {recipe.model.name}, images {height}x{height}: {error}") from None


class SeedRun:
    """Runs one seed of a recipe inside a run folder.

    `tell` is called with an `Event` now and then; `stop` is asked after every training step and, where it says
    so, the state is saved and `KeyboardInterrupt` raised.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        seed: int,
        images: ImageSet,
        judge: Judge,
        tell: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
    ):
        self.recipe, self.seed, self.images, self.judge = recipe, seed, images, judge
        self.folder = folder / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tell, self.stop = tell, stop
        self.settings = recipe.training.settings(seed)
        self.span = retrain_span(recipe.search.retrain, self.settings.steps, recipe.search.rewind_step)
        self.objective = recipe.build_objective()
        self.fabric = make_fabric(recipe)
        self.batches = Batches(
            images,
            recipe.training.batch_size * self.objective.batches_per_step,
            seed=seed,
            flip=recipe.data.flip,
            device=self.fabric.device,
        )
        self.total = steps_of_seed(recipe)
        self._done = 0
        self._stage, self._partial, self._draw = "", self.folder, 0
        self._outcome = Outcome()

    # -- one training by itself ---------------------------------------------------------------------------

    def run_one(self, ticket: Ticket | None) -> dict[str, Any]:
        """Trains the dense model, or from a ticket as its level was trained, into `trained/`; returns its metrics."""
        place = self.folder / "trained"
        if not place.exists():
            model = build_model(self.recipe, self.images, self.seed)
            start = ticket.origin.get("rewind_step", 0) if ticket is not None else 0
            if not isinstance(start, int) or not 0 <= start < self.settings.steps:
                raise GenticketsError(
                    f"the ticket rewinds to step {start}, which is not before training.steps={self.settings.steps}"
                )
            ticket = ticket or Ticket(Masks.dense(model), model, {"recipe": self.recipe.name, "seed": self.seed})
            ticket.install(model)
            check_connected(model, ticket.masks, self._example_inputs(model))
            with disk.building(place) as partial:
                self._enter(place.name, partial, draw=0)
                retrain: Retrain = "fine-tune" if ticket.origin.get("retrain") == "fine-tune" else "rewind"
                span = retrain_span(retrain, self.settings.steps, start)
                self.total = span[1] - span[0]
                self._train(model, ticket.masks, *span)
                self._finish(partial, int(ticket.origin.get("level", 0)), "ticket", model, ticket, span)
        return disk.read_metrics(place)

    # -- the chain ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Everything of this seed that is not complete yet."""
        reached = self._chain()
        wanted = self.recipe.controls
        for level in wanted.chosen(reached):
            for arm in CONTROLS:
                if getattr(wanted, arm):
                    self._control(level, arm)

    def _chain(self) -> int:
        """Runs the ticket levels; returns the last that there is."""
        rounds = self.recipe.search.rounds
        complete = [n for n in range(rounds + 1) if (self.folder / disk.level_name(n)).exists()]
        last = len(complete) - 1
        if complete != list(range(last + 1)):
            raise GenticketsError(f"{self.folder} lacks {disk.level_name(last + 1)} but has later levels: use --fresh")
        for index in complete:
            self._done += self._steps_of("ticket", index)
        if last >= 0 and self._ended_at(last):
            return last
        levels = self._search(last)
        for index in range(last + 1, rounds + 1):
            place = self.folder / disk.level_name(index)
            with disk.building(place) as partial:
                self._enter(place.name, partial, index)
                level: Level | None = None
                try:
                    level = next(levels)
                except Disconnected as error:
                    self._write_disconnected(partial, index, "ticket", error.ticket, str(error))
                else:
                    span = self.span if index else (0, self.settings.steps)
                    self._finish(partial, index, "ticket", level.model, level.ticket, span)
            if level is None or self._ended_at(index):
                return index
        return rounds

    def _search(self, last: int) -> Iterator[Level]:
        """The recipe's search, to go on after level `last` (-1: from the start)."""
        probe = self.judge.held_out.images(range(2))
        model = build_model(self.recipe, self.images, self.seed)
        means = methods.Means(
            make_model=self._make_model,
            train=self._train,
            steps=self.settings.steps,
            objective=self.objective,
            batches=self.batches,
            example_inputs=self.objective.example_inputs(model, probe),
            origin={"recipe": self.recipe.name, "seed": self.seed, "data": self.images.fingerprint},
            seed=self.seed,
        )
        return methods.levels(self.recipe.search, means, last, self.load_level)

    def _make_model(self) -> nn.Module:
        """Draw 0 is the seed's own model; a component that starts fresh at a level takes that level's draw."""
        return build_model(self.recipe, self.images, self.seed, self._draw)

    def load_level(self, index: int, arm: str = "ticket") -> Level:
        """A complete level, read back: its ticket, and its model as trained."""
        place = self.folder / disk.level_name(index, arm)
        ticket = Ticket.load(place / "ticket.safetensors")
        model = build_model(self.recipe, self.images, self.seed)
        Ticket(ticket.masks, disk.load_weights(place / "trained.safetensors")).install(model)
        return Level(index, ticket.masks, model, ticket)

    def _ended_at(self, index: int) -> bool:
        """Whether the chain goes no further than this complete level."""
        status = disk.read_metrics(self.folder / disk.level_name(index))["status"]
        return status == "disconnected" or (status == "diverged" and self.recipe.on_failure == "stop")

    # -- training -----------------------------------------------------------------------------------------

    def _enter(self, stage: str, partial: Path, draw: int) -> None:
        self._stage, self._partial, self._draw, self._outcome = stage, partial, draw, Outcome()

    def _train(self, model: nn.Module, masks: Masks, start_step: int, end_step: int) -> None:
        """The `train` that the searches call: checkpointed, with the rewind point kept on disk."""
        rewind = self.folder / "rewind.safetensors"
        to_rewind = end_step == self.recipe.search.rewind_step
        if to_rewind and rewind.exists():
            Ticket(masks, disk.load_weights(rewind)).install(model)
            self._done += end_step - start_step
            self._outcome.trained.images += (end_step - start_step) * self.batches.batch_size
            return
        key = f"{self._stage} {start_step}-{end_step} {masks.fingerprint}"
        before = {name: tensor.detach().clone() for name, tensor in named_state(model).items()}
        try:
            trained = train(
                model,
                self.objective,
                self.batches,
                self.settings,
                masks=masks,
                start_step=start_step,
                end_step=end_step,
                checkpoint=Checkpoint(self._partial / disk.CHECKPOINT, key, self.recipe.training.checkpoint_seconds),
                curve=Curve(self._partial / "curve.jsonl"),
                on_progress=lambda progress: self._tell(progress, start_step),
                stop=self.stop,
                fabric=self.fabric,
            )
            so_far = self._outcome.trained  # the dense model is trained in two calls
            seconds = so_far.seconds + trained.seconds
            self._outcome.trained = Trained(trained.averaged, so_far.images + trained.images, seconds)
        except Diverged as error:
            self._outcome.status, self._outcome.reason = "diverged", str(error)
            _restore_if_broken(model, before)
        model.cpu()
        self._done += end_step - start_step
        # Not after a divergence: a resumed run must come upon it, and record it, again.
        if to_rewind and self._outcome.status == "complete":
            disk.save_weights(rewind, named_state(model))

    def _tell(self, progress: Progress, start_step: int) -> None:
        self.tell(Event(self.seed, self._stage, self._done + progress.step - start_step, self.total, progress))

    # -- controls -----------------------------------------------------------------------------------------

    def _control(self, index: int, arm: str) -> None:
        place = self.folder / disk.level_name(index, arm)
        if place.exists():
            self._done += self._steps_of(arm, index)
            return
        if disk.read_metrics(self.folder / disk.level_name(index))["status"] == "disconnected":
            return
        level = self.load_level(index)
        with disk.building(place) as partial:
            self._enter(place.name, partial, draw=1000 + index)
            if arm == "random_mask":
                ticket, span = random_mask_control(level, derived_seed(self.seed, 1, index)), self.span
            else:
                ticket, span = redrawn_weights_control(level, self._make_model), (0, self.settings.steps)
            model = ticket.install(level.model)
            try:
                check_connected(model, ticket.masks, self._example_inputs(model))
            except Disconnected as error:
                self._write_disconnected(partial, index, arm, ticket, str(error))
                return
            self._train(model, ticket.masks, *span)
            self._finish(partial, index, arm, model, ticket, span)

    # -- what is written ----------------------------------------------------------------------------------

    def _finish(
        self, partial: Path, index: int, arm: str, model: nn.Module, ticket: Ticket, span: tuple[int, int]
    ) -> None:
        """Judges a trained level and writes its folder's files."""
        outcome = self._outcome
        ticket.masks.audit(model)
        ticket.save(partial / "ticket.safetensors")
        disk.save_weights(partial / "trained.safetensors", named_state(model))
        averages = dict(outcome.trained.averaged.named_children())
        if averages:
            disk.save_weights(partial / "averaged.safetensors", named_state(outcome.trained.averaged.cpu()))
        begun = time.perf_counter()
        measured = []
        if outcome.status == "complete":
            judged = with_averages(model, outcome.trained.averaged)
            measured = self.judge.measure(judged)
            self.judge.picture(judged, partial)
        price = cost(model.cpu(), self._example_inputs(model), ticket.masks)
        disk.write_json(
            partial / "metrics.json",
            {
                **level_facts(self.seed, index, arm, ticket.masks),
                "status": outcome.status,
                "reason": outcome.reason,
                "primary": self.judge.primary,
                "metrics": metrics_json(measured),
                "cost": cost_json(price),
                "start_step": span[0],
                "end_step": span[1],
            },
        )
        seconds = {"train_seconds": outcome.trained.seconds, "evaluate_seconds": time.perf_counter() - begun}
        disk.write_json(partial / "timing.json", {**seconds, "images": outcome.trained.images})

    def _write_disconnected(self, partial: Path, index: int, arm: str, ticket: Ticket | None, reason: str) -> None:
        """A level that was not trained: its ticket, and why."""
        assert ticket is not None
        ticket.save(partial / "ticket.safetensors")
        disk.write_json(
            partial / "metrics.json",
            {
                **level_facts(self.seed, index, arm, ticket.masks),
                "status": "disconnected",
                "reason": reason,
                "primary": self.judge.primary,
                "metrics": {},
                "cost": None,
                "start_step": 0,
                "end_step": 0,
            },
        )
        disk.write_json(partial / "timing.json", {"train_seconds": 0.0, "evaluate_seconds": 0.0, "images": 0})

    def _example_inputs(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return self.objective.example_inputs(model.eval(), self.judge.held_out.images(range(2)))

    def _steps_of(self, arm: str, level: int) -> int:
        steps = self.settings.steps
        return steps if level == 0 or arm == "redrawn_weights" else steps - self.recipe.search.rewind_step


def make_fabric(recipe: Recipe) -> Fabric:
    """One device, in the recipe's precision. Raises `GenticketsError` where the machine lacks it."""
    training = recipe.training
    accelerator = training.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise GenticketsError("training.accelerator=cuda: no CUDA device here; take cpu, or auto")
    return Fabric(accelerator=accelerator, devices=1, precision=training.precision)


def steps_of_seed(recipe: Recipe) -> int:
    """How many training steps one seed takes: the dense model, each round, each control."""
    steps, rewind_step = recipe.training.steps, recipe.search.rewind_step
    rounds = recipe.search.rounds
    at = len(recipe.controls.chosen(rounds))
    retrained = rounds + (at if recipe.controls.random_mask else 0)
    return steps + retrained * (steps - rewind_step) + (at * steps if recipe.controls.redrawn_weights else 0)


def level_facts(seed: int, index: int, arm: str, masks: Masks) -> dict[str, Any]:
    """What a level's masks say of themselves, for metrics.json."""
    counts = masks.counts()
    layers = {
        name: {"alive": counts[name], "total": masks[name].numel(), "shape": list(shape)}
        for name, shape in masks.shapes.items()
    }
    components = {name: masks.select(name) for name in masks.components}
    return {
        "seed": seed,
        "level": index,
        "arm": arm,
        "sparsity": masks.sparsity,
        "alive": masks.alive,
        "total": masks.total,
        "components": {name: {"alive": part.alive, "total": part.total} for name, part in components.items()},
        "layers": layers,
    }


def metrics_json(measured: list[Any]) -> dict[str, Any]:
    return {m.key: {k: v for k, v in asdict(m).items() if k != "key"} for m in measured}


def cost_json(price: Cost) -> dict[str, Any]:
    names = ("parameters", "alive_parameters", "flops_dense", "flops_sparse", "bytes_dense", "bytes_sparse")
    return {name: getattr(price, name) for name in names}


@torch.no_grad()
def _restore_if_broken(model: nn.Module, before: Mapping[str, torch.Tensor]) -> None:
    """After a divergence: weights that are not finite go back to what this training started from."""
    state = named_state(model)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        for name, tensor in before.items():
            state[name].copy_(tensor)


def judged_model(seed_run: SeedRun, index: int, arm: str) -> nn.Module:
    """The model of a complete level as it is judged: as trained, with its averages where there are some."""
    level = seed_run.load_level(index, arm)
    path = seed_run.folder / disk.level_name(index, arm) / "averaged.safetensors"
    model = clone(level.model)
    if path.exists():
        state = named_state(model)
        with torch.no_grad():
            for name, tensor in disk.load_weights(path).items():
                state[name].copy_(tensor)
    return model

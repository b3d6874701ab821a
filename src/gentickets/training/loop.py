"""The one training loop, for every family of models.

A step of training is a function of the weights, the optimisers' state and the step's number: batches and noise
are drawn from (seed, step), learning rates follow from the step. A checkpoint therefore holds weights, optimiser
state and averages (and torch's global generator, which dropout uses), and a resumed run is bit for bit the
uninterrupted one on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from gentickets.adam import FusedAdamW
from gentickets.data.batches import Batch
from gentickets.errors import Diverged, GenticketsError
from gentickets.evaluating import evaluating
from gentickets.masks.holding import Hold
from gentickets.masks.names import clone, named_state, unwrap
from gentickets.masks.value import Masks
from gentickets.objectives.base import Objective
from gentickets.options import Execution, Schedule
from gentickets.sparse import Accelerated, Choice, accelerate, restore
from gentickets.training.averaging import Average, weight_of_start
from gentickets.training.progress import Checkpoint, Curve, Meter, Progress

_YOUNG = 200
"""Steps before which a model that gives one image for everything is untrained, and not collapsed."""

_START = 0.05
"""What the weights of the first step may weigh in an average at its end, without a warning."""


@dataclass(frozen=True)
class Settings:
    """How to train. `lr` is one learning rate, or one a component; Adam everywhere (AdamW's decoupled decay).

    `steps` is the length of a whole training, on which schedules are laid; a step is one pass through all losses
    of the objective. `ema` is the decay of the moving average, warmed up (see `averaging.decay_at`), None for no
    average. `clip_norm` bounds the gradient norm of each component, live weights counted. `precision` as Lightning
    Fabric names it; in "16-mixed" losses are scaled up, so that small gradients do not vanish; a component whose
    gradients overflow is not stepped.
    `execution`: "auto" trains masked layers on their live weights alone where that is faster (see `accelerate`; in
    single precision on a CPU, without watches), "dense" never does.
    """

    steps: int
    batch_size: int = 64
    lr: float | Mapping[str, float] = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    ema: float | None = None
    clip_norm: float | None = None
    precision: str = "32-true"
    execution: Execution = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ema is not None and not 0 <= self.ema <= 1:
            raise GenticketsError(f"ema={self.ema} is out of range: the decay of the moving average, from 0 to 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise GenticketsError(f"betas={self.betas} are out of range: two numbers from 0 to below 1")

    def lr_of(self, component: str) -> float:
        if isinstance(self.lr, Mapping):
            if component not in self.lr:
                raise GenticketsError(f"lr has no rate for component {component!r}: it names {', '.join(self.lr)}")
            return self.lr[component]
        return self.lr

    def lr_factor(self, step: int) -> float:
        """What the schedule multiplies the learning rate by at a step; beyond the end, what it was at the end."""
        step = min(step, self.steps - 1)
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if self.schedule == "linear":
            return max(0.0, 1 - progress)
        return 1.0


class BatchSource(Protocol):
    """Images by step: float (batch, channels, height, width) in [-1, 1], a function of the step alone; `Labelled` ones
    for an objective that wants labels."""

    def at(self, step: int) -> Batch: ...


class Watch(Protocol):
    """Looks at a training after each of its steps, and may end it. It leaves weights, modes and generators alone.

    Its state goes into the checkpoints: tensors, numbers, text, and lists and dictionaries of them.
    """

    def __call__(self, step: int, model: nn.Module, averaged: nn.Module) -> bool:
        """After `step` steps; True ends the training here."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Trained:
    """What came out: the averages by component (empty without `ema`), images seen, and seconds taken here.

    `watching` are the seconds that the watches took, which are not among `seconds`. `step`: where the training
    ended. `optimizers`: component → its optimiser, as it ended. `choices`: which masked layers ran on their live
    weights alone; in the optimisers those are other parameters than the model's.
    """

    averaged: nn.Module
    images: int
    seconds: float
    watching: float = 0.0
    step: int = 0
    optimizers: Mapping[str, torch.optim.Optimizer] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()


def train(
    model: nn.Module,
    objective: Objective,
    batches: BatchSource,
    settings: Settings,
    *,
    masks: Masks | None = None,
    start_step: int = 0,
    end_step: int | None = None,
    checkpoint: Checkpoint | None = None,
    curve: Curve | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    watches: Sequence[Watch] = (),
    prepare: Callable[[Mapping[str, torch.optim.Optimizer]], None] | None = None,
    report_every: int = 20,
    fabric: Fabric | None = None,
) -> Trained:
    """Trains `model` in place from `start_step` to `end_step` (default: `settings.steps`), and returns the rest.

    Fresh optimisers, which `prepare` may give a state before the first step; the weights are held to `masks`
    throughout. Each of `watches` is asked after every step, and the first that says so ends the training. Where
    `checkpoint` holds a state of its key, training goes on from there instead. Where `stop()` says so after a step,
    the state is saved and `KeyboardInterrupt` raised.

    Raises `Diverged` where a loss is not finite or the objective says that the model has collapsed (the step
    before is the last one taken), and `MaskError` where an audit finds the model or an average no longer sparse.
    """
    end_step = settings.steps if end_step is None else end_step
    fabric = fabric or Fabric(accelerator="cpu", devices=1, precision=fabric_precision(settings.precision))
    may_be_sparse = settings.execution == "auto" and settings.precision == "32-true"
    may_be_sparse &= not watches and prepare is None  # these know the model's own parameters
    if masks is not None:
        masks.apply_(model)  # before anything passes through it, and before averages are made of it
    if settings.ema is not None and objective.averaged and end_step == settings.steps:
        _warn_of_the_start(settings.ema, end_step - start_step)
    with _on_live_weights(model, objective, batches, start_step, masks if may_be_sparse else None, fabric) as fast:
        loop = _Loop(model, objective, settings, masks if fast is None else fast.masks, fabric, watches)
        step = loop.resume(checkpoint, start_step, prepare)
        if curve is not None:
            curve.rewind(step)
        meter = Meter(loop.images, loop.seconds)
        with loop.holding() as held:
            while step < end_step and not loop.ended:
                batch = fast.laid_out(batches.at(step)) if fast else batches.at(step)
                losses = loop.step(step, batch, held)
                step += 1
                meter.images += len(batch)
                if watches:
                    with meter.watching():
                        loop.watch(step)
                done = loop.ended or step == end_step
                if done or step % report_every == 0:
                    loop.check(step, losses, batch, held)
                    progress = Progress(step, {k: float(v) for k, v in losses.items()}, meter.rate())
                    if curve is not None:
                        curve.add(progress)
                    if on_progress is not None:
                        on_progress(progress)
                stopping = stop is not None and stop()
                if checkpoint is not None and (stopping or (not done and checkpoint.due())):
                    checkpoint.save({**loop.state(step), "images": meter.images, "seconds": meter.seconds})
                if stopping:
                    raise KeyboardInterrupt
        choices = () if fast is None else fast.choices
        return Trained(loop.finish(), meter.images, meter.seconds, meter.watched, step, loop.optimizers, choices)


def _warn_of_the_start(decay: float, steps: int) -> None:
    share = weight_of_start(decay, steps)
    if share > _START:
        warnings.warn(
            f"ema={decay}: after {steps} steps the weights of the first one are still {share:.0%} of the average; "
            f"train longer, or set ema=None",
            stacklevel=3,
        )


@contextmanager
def _on_live_weights(
    model: nn.Module,
    objective: Objective,
    batches: BatchSource,
    step: int,
    masks: Masks | None,
    fabric: Fabric,
) -> Iterator[Accelerated | None]:
    """The model accelerated while this lasts; None where it stays as it is."""
    wrapped = any(unwrap(module) is not module for module in model.modules())
    plain = fabric.device.type == "cpu" and isinstance(fabric.autocast(), nullcontext)
    examples = _examples(model, objective, batches.at(step)) if masks and plain and not wrapped else None
    if masks is None or examples is None:
        yield None
        return
    with accelerate(model, masks, examples) as fast:
        yield fast


def _examples(model: nn.Module, objective: Objective, batch: Batch) -> dict[str, Any] | None:
    """Inputs for the components, a whole batch each; None where the objective does not say what they take."""
    try:
        with evaluating(model):
            return objective.example_inputs(model, batch[: len(batch) // objective.batches_per_step])
    except NotImplementedError:
        return None


class _Loop:
    """The moving parts of one training."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: Settings,
        masks: Masks | None,
        fabric: Fabric,
        watches: Sequence[Watch] = (),
    ):
        self.model, self.objective, self.settings, self.masks = model, objective, settings, masks
        self.fabric, self.watches, self.ended = fabric, watches, False
        fabric.to_device(model)
        model.train()
        self.parameters = {name: list(getattr(unwrap(model), name).parameters()) for name in objective.components}
        # Fabric's own loss scaling forgets what overflowed after one optimiser, and a loss may step several.
        self.scaler = torch.amp.GradScaler(fabric.device.type, enabled=settings.precision == "16-mixed")
        self.optimizers = {name: self._optimizer(name) for name in self.parameters}
        self.averaged = nn.Module()
        if settings.ema is not None:
            for name in objective.averaged:
                setattr(self.averaged, name, Average(clone(getattr(unwrap(model), name)), settings.ema))
        self.rng = torch.Generator(device=fabric.device)
        self.images, self.seconds = 0, 0.0
        # A loss is looked at before its step on a CPU; on a GPU that would stall it, so at reports.
        self._look_at_each = fabric.device.type == "cpu"

    def _optimizer(self, component: str) -> torch.optim.Optimizer:
        settings, device = self.settings, self.fabric.device.type
        plain = device == "cpu" and not self.scaler.is_enabled()
        return (FusedAdamW if plain else torch.optim.AdamW)(
            self.parameters[component],
            lr=settings.lr_of(component),
            betas=(float(settings.betas[0]), float(settings.betas[1])),  # torch takes no whole number, such as 0
            weight_decay=settings.weight_decay,
            fused=device in ("cpu", "cuda"),
        )

    def watch(self, step: int) -> None:
        """Asks every watch whether the training ends here."""
        for watch in self.watches:
            self.ended |= watch(step, self.model, self.averaged)

    def holding(self) -> Any:
        if self.masks is None:
            return nullcontext()
        return self.masks.hold(self.model, *self.optimizers.values())

    def step(self, step: int, batch: Batch, held: Hold | None) -> dict[str, Tensor]:
        """One step: every loss of the objective in turn, each with a step of its components."""
        self.rng.manual_seed(derived_seed(self.settings.seed, step))
        factor = self.settings.lr_factor(step)
        seen: dict[str, Tensor] = {}
        losses = self.objective.at(step).losses(self.model, batch, self.rng)
        for components, loss in self._evaluated(losses):
            names = (components,) if isinstance(components, str) else components
            seen["+".join(names)] = loss.detach()
            if self._look_at_each:
                check_finite(seen, step)
            trained = [parameter for name in names for parameter in self.parameters[name]]
            for parameter in trained:
                parameter.grad = None
            # Only into these components: no gradient of G's loss is left lying in D.
            self.fabric.backward(self.scaler.scale(loss), inputs=trained)
            if self.settings.clip_norm is not None:
                self._clip(names, held)
            for name in names:
                for group in self.optimizers[name].param_groups:
                    group["lr"] = self.settings.lr_of(name) * factor
                self.scaler.step(self.optimizers[name])
            self.scaler.update()
        for name, average in self._averages():
            average.update_parameters(getattr(unwrap(self.model), name))
        return seen

    def _averages(self) -> Iterator[tuple[str, Average]]:
        return self.averaged.named_children()  # type: ignore[return-value]

    def finish(self) -> nn.Module:
        """The averages, as they are handed out: of dense layers, and with singular vectors of their own."""
        restore(self.averaged)
        for _, average in self._averages():
            average.settle()
        return self.averaged

    def _evaluated(self, losses: Iterator[Any]) -> Iterator[Any]:
        """The losses one by one, each computed in the precision asked for."""
        while True:
            with self._autocast():
                item = next(losses, None)
            if item is None:
                return
            yield item

    def _autocast(self) -> Any:
        if self.scaler.is_enabled():
            return torch.autocast(self.fabric.device.type, torch.float16)
        return self.fabric.autocast()

    def _clip(self, names: Sequence[str], held: Hold | None) -> None:
        for name in names:
            if self.scaler.is_enabled():
                self.scaler.unscale_(self.optimizers[name])
        if held is not None:
            held.mask_gradients()
        for name in names:
            nn.utils.clip_grad_norm_(self.parameters[name], self.settings.clip_norm)  # type: ignore[arg-type]

    def check(self, step: int, losses: Mapping[str, Tensor], batch: Batch, held: Hold | None) -> None:
        """Now and then: still sparse, still finite, still worth going on with?"""
        check_finite(losses, step - 1)
        if self.masks is not None and held is not None:
            held.audit()
            held.drop_momentum()
            masked = {name: net.network for name, net in self._averages() if name in self.masks.components}
            if masked:
                self.masks.select(masked).audit(nn.ModuleDict(masked), "the moving average")
        if not all(bool(torch.isfinite(p).all()) for ps in self.parameters.values() for p in ps):
            raise Diverged(f"step {step}: weights are no longer finite; lower the learning rate or clip_norm")
        if step > max(_YOUNG, self.settings.steps // 4):
            self.model.eval()
            reason = self.objective.collapsed(self.model, batch, self.rng)
            self.model.train()
            if reason is not None:
                raise Diverged(f"step {step}: {reason}")

    # -- checkpoints --------------------------------------------------------------------------------------

    def state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "model": named_state(self.model),
            "averaged": self.averaged.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "ended": self.ended,
            "watches": [watch.state_dict() for watch in self.watches],
        }

    def resume(
        self,
        checkpoint: Checkpoint | None,
        start_step: int,
        prepare: Callable[[Mapping[str, torch.optim.Optimizer]], None] | None,
    ) -> int:
        """Restores the newest checkpoint and returns its step; without one, seeds and returns `start_step`."""
        state = checkpoint.load() if checkpoint is not None else None
        # Other tensors: saved where layers ran in another form. Then this training begins anew.
        if state is None or set(state["model"]) != set(named_state(self.model)):
            torch.manual_seed(derived_seed(self.settings.seed, start_step))
            if prepare is not None:
                prepare(self.optimizers)
            return start_step
        own = named_state(self.model)
        with torch.no_grad():
            for name, tensor in state["model"].items():
                own[name].copy_(tensor)
        self.averaged.load_state_dict(state["averaged"])
        for name, saved in state["optimizers"].items():
            self.optimizers[name].load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        self.ended = state["ended"]
        for watch, kept in zip(self.watches, state["watches"], strict=True):
            watch.load_state_dict(kept)
        self.images, self.seconds = int(state["images"]), float(state["seconds"])
        return int(state["step"])


def fabric_precision(precision: str) -> Any:
    """The precision that Fabric is told: "16-mixed" is done here (see `_Loop.scaler`), the others by Fabric."""
    return "32-true" if precision == "16-mixed" else precision


def check_finite(losses: Mapping[str, Tensor], step: int) -> None:
    """Raises `Diverged` that names the first loss that is not finite."""
    for name, loss in losses.items():
        if not math.isfinite(value := loss.item()):
            raise Diverged(f"step {step}: the loss of {name} is {value}; lower the learning rate or set clip_norm")


def with_averages(model: nn.Module, averaged: nn.Module) -> nn.Module:
    """A copy of `model` in which the averaged components stand in the place of the raw ones."""
    copy = clone(model)
    for name, average in averaged.named_children():
        setattr(unwrap(copy), name, clone(unwrap(average)))
    return copy


def derived_seed(*parts: int) -> int:
    """A seed that follows from these numbers alone, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """So many intra-op threads while this lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(flops: float, cores: int) -> int:
    """Intra-op threads for a training whose step takes so many FLOPs, forward and backward: one, or all cores.

    By work, not by a timing of this run: equal recipes must give equal bits, and the number of threads decides the
    order of sums. The bound lies between what was timed on two idle cores, one thread against two: steps of 0.07
    GFLOP ran 1.2 times as fast on two, steps of 0.4 GFLOP 1.5 times, convolutional ones of 1 to 25 GFLOP 1.7 to 2
    times. On a busy machine two threads wait for each other at every operation, tens of times as long as a small
    step takes: below the bound that risk is not worth a fifth.
    """
    return 1 if flops < 120e6 else max(1, cores)

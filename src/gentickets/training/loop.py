"""The one training loop, for every family of models.

A step of training is a function of the weights, the optimisers' state and the step's number: batches and noise
are drawn from (seed, step), learning rates follow from the step. A checkpoint therefore holds weights, optimiser
state and averages (and torch's global generator, which dropout uses; and the masks, where a hook moves them), and a
resumed run is bit for bit the uninterrupted one on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, Unpack

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from gentickets.arguments import check_arguments
from gentickets.data.batches import Batch, Labelled
from gentickets.errors import Diverged, GenticketsError
from gentickets.masks.names import component_of, named_state
from gentickets.masks.value import Masks
from gentickets.objectives.base import Objective, losses_of, unfrozen
from gentickets.sparse import Accelerated, Choice
from gentickets.training.averaging import weight_of_start
from gentickets.training.calls import Calls
from gentickets.training.devices import one_device
from gentickets.training.execution import on_live_weights
from gentickets.training.hooks import Hook, check_hooks
from gentickets.training.parts import Parts
from gentickets.training.progress import Checkpoint, Curve, Meter, Progress
from gentickets.training.ranks import Ranks, Together, check_bare
from gentickets.training.seeds import derived_seed
from gentickets.training.settings import Settings
from gentickets.training.sparsity import Sparsity
from gentickets.training.tried import check_tried
from gentickets.training.whole_batch import Draw, first_axis_of, whole_batch

_YOUNG = 200
"""Steps before which a model that gives one image for everything is untrained, and not collapsed."""

_START = 0.05
"""What the weights of the first step may weigh in an average at its end, without a warning."""


class BatchSource(Protocol):
    """Images by step: float (batch, channels, height, width) in [-1, 1], a function of the step alone; `Labelled` ones
    for an objective that wants labels. Where they lie is no matter: they are moved to where they are trained on."""

    def at(self, step: int) -> Batch: ...


@dataclass
class Trained:
    """What came out: the averages by component (empty without `ema`), images seen, and seconds taken here.

    `looking` are the seconds that hooks took which only look; they are not among `seconds`. `step`: where the training
    ended. `optimizers`: component → its optimiser, as it ended. `choices`: which masked layers ran on their live
    weights alone; in the optimisers those are other parameters than the model's. `masks`: what the weights are held
    to at the end, wherever hooks moved it; None where to nothing.
    """

    averaged: nn.Module
    images: int
    seconds: float
    looking: float = 0.0
    step: int = 0
    optimizers: Mapping[str, torch.optim.Optimizer] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    masks: Masks | None = None


REPORTED = 20
"""Steps between two reports, where nothing else is said."""


class Beside(TypedDict, total=False):
    """What goes on beside a training. `checkpoint`: where it is kept, and goes on from. `curve`: its losses, on disk.
    `on_progress`: is told every `report_every` steps (20). `stop`: asked after each step. `prepare`: gives the fresh
    optimisers a state. `fabric`: the device and the precision; launched on several devices, these (see `train`)."""

    checkpoint: Checkpoint | None
    curve: Curve | None
    on_progress: Callable[[Progress], None] | None
    stop: Callable[[], bool] | None
    prepare: Callable[[Mapping[str, torch.optim.Optimizer]], None] | None
    report_every: int
    fabric: Fabric | None


def train(
    model: nn.Module,
    objective: Objective,
    batches: BatchSource,
    settings: Settings,
    *,
    masks: Masks | None = None,
    start_step: int = 0,
    end_step: int | None = None,
    hooks: Sequence[Hook] = (),
    **beside: Unpack[Beside],
) -> Trained:
    """Trains `model` in place from `start_step` to `end_step` (default: `settings.steps`), and returns the rest.

    What goes on beside it is said by keywords (see `Beside`). Fresh optimisers, which `prepare` may give a state before
    the first step; the weights are held to `masks` throughout, or to what `hooks` make of them: these are called after
    steps, in their order (see `Hook`), and may look, move the masks (of all prunable weights, where none are given), or
    end the training. Where `checkpoint` holds a state of its key, training goes on from there instead. Where `stop()`
    says so after a step, the state is saved and `KeyboardInterrupt` raised.

    On several devices each process calls this with the same arguments, and takes its share of every batch: the weights
    are those of one process, to rounding, and the same on all to the bit (see `gentickets.training.ranks`). Checkpoint,
    curve, progress and hooks are the first one's; what they decide holds for all.

    Raises `Diverged` where a loss is not finite or the objective says that the model has collapsed (the step
    before is the last one taken), `MaskError` where an audit finds the model or an average no longer sparse, and
    `GenticketsError` for what several devices would not compute as one does: a wrapped model, losses that are no means
    over images, a batch that cannot be shared out.
    """
    check_arguments(train, beside, Beside)
    check_hooks(hooks)
    end_step = settings.steps if end_step is None else end_step
    fabric = beside.get("fabric") or one_device("cpu", settings.precision)
    check_bare(model)
    ranks = Ranks.of(fabric)
    may_be_sparse = settings.execution == "auto" and settings.precision == "32-true"
    # What `prepare` and such hooks are given is of the model's own parameters.
    may_be_sparse &= beside.get("prepare") is None and not any(hook.is_dense for hook in hooks)
    may_be_sparse, moving = ranks.told((may_be_sparse, any(hook.moves_masks for hook in hooks)))
    if masks is None and moving:
        masks = Masks.dense(model)
    often = beside.setdefault("report_every", REPORTED)
    _check_called_alike(ranks, model, masks, (settings, start_step, end_step, often, type(objective).__name__))
    if masks is not None:
        masks.apply_(model)  # before anything passes through it, and before averages are made of it
    if settings.ema is not None and objective.averaged and end_step == settings.steps:
        _warn_of_the_start(settings.ema, end_step - start_step)
    live, steps = masks if may_be_sparse else None, range(start_step, end_step)
    with on_live_weights(model, objective, batches.at, steps, settings.seed, live, fabric, ranks) as fast:
        fabric.to_device(model)
        model.train()
        parts = Parts(model, objective, settings, fabric.device)
        sparsity = Sparsity(masks, parts, fast, moving)
        calls = Calls(hooks, parts, sparsity, ranks, settings.steps, bool(fast))
        loop = _Loop(objective, parts, sparsity, calls, fabric, ranks, fast)
        trained = loop.run(batches, start_step, end_step, beside)
        calls.share()
        return trained


def _warn_of_the_start(decay: float, steps: int) -> None:
    share = weight_of_start(decay, steps)
    if share > _START:
        warnings.warn(
            f"ema={decay}: after {steps} steps the weights of the first one are still {share:.0%} of the average; "
            f"train longer, or set ema=None",
            stacklevel=3,
        )


def _check_called_alike(ranks: Ranks, model: nn.Module, masks: Masks | None, more: tuple[object, ...]) -> None:
    """Raises `GenticketsError` where processes that train together were given different things to train."""
    if ranks.size == 1:
        return
    if not ranks.alike((*more, masks and masks.fingerprint)):
        raise GenticketsError(
            "settings, masks, steps or objective differ between the processes that train together: give all the same"
        )
    weights = named_state(model).values()
    ranks.check_same(weights, "the model's weights", "draw them after torch.manual_seed(…) of one seed on each")


class _Loop:
    """One training: its steps, what is asked after them, and what it goes on from."""

    def __init__(
        self,
        objective: Objective,
        parts: Parts,
        sparsity: Sparsity,
        calls: Calls,
        fabric: Fabric,
        ranks: Ranks,
        fast: Accelerated | None,
    ):
        self.model, self.objective, self.settings = parts.model, objective, parts.settings
        self.parts, self.sparsity, self.calls = parts, sparsity, calls
        self.fabric, self.ranks, self.fast = fabric, ranks, fast
        self.tried: set[tuple[Draw, ...]] = set()
        self.draws: tuple[Draw, ...] = ()
        self.rng = torch.Generator(device=fabric.device)
        self.images, self.seconds = 0, 0.0
        # A loss is looked at before its step on a CPU; on a GPU that would stall it, so at reports.
        self._look_at_each = fabric.device.type == "cpu"

    def run(self, batches: BatchSource, start_step: int, end_step: int, beside: Beside) -> Trained:
        """All steps, from the newest checkpoint or else `start_step` on; to the end, or where a hook ends it."""
        stop = beside.get("stop")
        if not self.ranks.is_first:
            beside = Beside(report_every=beside["report_every"])
        checkpoint, curve = beside.get("checkpoint"), beside.get("curve")
        step = self.resume(checkpoint, start_step, beside.get("prepare"))
        if curve is not None:
            curve.rewind(step)
        meter = Meter(self.images, self.seconds)
        with self.sparsity.hold():
            (due,) = self.ranks.any(self.calls.are_due(step + 1, end_step))
            while step < end_step and not self.calls.ended:
                batch, mine = self._shared(batches.at(step).to(self.fabric.device))
                losses, gradients = self.step(step, mine, self.calls.need_gradients(step + 1, end_step))
                step += 1
                meter.images += len(batch)
                if due:
                    self.calls.call(step, end_step, batch, gradients, meter)
                done = self.calls.ended or step == end_step
                if done or step % beside["report_every"] == 0:
                    self.check(step, losses, batch)
                    _tell(Progress(step, {k: float(v) for k, v in losses.items()}, meter.rate()), beside)
                asked = stop is not None and stop()
                upcoming = self.calls.are_due(step + 1, end_step)
                stopping, due, untried = self.ranks.any(asked, upcoming, self.is_untried)
                if untried:
                    self.try_out(step - 1, batch)
                if checkpoint is not None and (stopping or (not done and checkpoint.due())):
                    checkpoint.save({**self.state(step), "images": meter.images, "seconds": meter.seconds})
                if stopping:
                    raise KeyboardInterrupt
        choices = () if self.fast is None else self.fast.choices
        return Trained(
            self.parts.finished(),
            meter.images,
            meter.seconds,
            meter.looked,
            step,
            self.parts.optimizers,
            choices,
            self.sparsity.masks,
        )

    def _shared(self, batch: Batch) -> tuple[Batch, Batch]:
        """A batch as hooks see it, and what of it this rank computes, as its layers lay it out."""
        mine = self.ranks.share(batch, self.objective.batches_per_step)
        mine = self.fast.laid_out(mine) if self.fast else mine
        return (mine if self.ranks.size == 1 else batch), mine

    def step(
        self, step: int, batch: Batch, needs_gradients: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step: every loss of the objective in turn, each with a step of its components.

        Returns the losses by component and, where they are needed, gradients as in `State`.
        """
        self.rng.manual_seed(derived_seed(self.settings.seed, step))
        factor = self.settings.lr_factor(step)
        seen: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}
        losses = losses_of(self.objective.at(step), self.model, batch, self.rng)
        for names, loss in self._evaluated(losses, len(batch)):
            seen["+".join(names)] = self.ranks.mean(loss.detach())
            if self._look_at_each:
                check_finite(seen, step)
            of = unfrozen(self.parts.parameters, names)
            trained = [parameter for parameters in of.values() for parameter in parameters]
            for parameter in (parameter for name in names for parameter in self.parts.parameters[name]):
                parameter.grad = None  # of a frozen one too: by one that is left lying it would be stepped
            # Only into these components: no gradient of G's loss is left lying in D.
            self.fabric.backward(self.parts.scaler.scale(loss), inputs=trained)
            self.ranks.average(trained)
            if self.parts.scaler.is_enabled() and (needs_gradients or self.settings.clip_norm is not None):
                for name in of:
                    self.parts.scaler.unscale_(self.parts.optimizers[name])
            if needs_gradients:
                others = {name: grad for name, grad in gradients.items() if component_of(name) not in names}
                gradients = others | self.sparsity.gradients(names)
            if self.settings.clip_norm is not None:
                self._clip(names)
            for name in of:
                for group in self.parts.optimizers[name].param_groups:
                    group["lr"] = self.settings.lr_of(name) * factor
                self.parts.scaler.step(self.parts.optimizers[name])
            self.parts.scaler.update()
        self.parts.update_averages()
        return seen, gradients

    def _evaluated(self, losses: Iterator[Any], images: int) -> Iterator[Any]:
        """The losses one by one, each computed in the precision asked for, of `images` that are this rank's."""
        made: list[Draw] = []
        while True:
            with self._autocast(), self._of_whole_batch(images, made), self._diverging_together():
                item = next(losses, None)
            if item is None:
                self.draws = tuple(made)
                return
            yield item

    # -- several ranks ------------------------------------------------------------------------------------

    @contextmanager
    def _diverging_together(self) -> Iterator[None]:
        """Where the objective of one rank says that it has diverged, the loss of the others is none."""
        try:
            yield
        except Diverged:
            self.ranks.mean(torch.tensor(math.nan, device=self.fabric.device))
            raise

    def _of_whole_batch(self, images: int, made: list[Draw]) -> Any:
        if not isinstance(self.ranks, Together):
            return nullcontext()
        return whole_batch(self.ranks, first_axis_of((images // self.objective.batches_per_step, images)), made)

    @property
    def is_untried(self) -> bool:
        """Whether the last step drew as none did that was compared with one process."""
        return self.ranks.size > 1 and self.draws not in self.tried

    def try_out(self, step: int, batch: Batch) -> None:
        """Compares a step on the whole batch with what one process computes. Raises `GenticketsError`."""
        assert isinstance(self.ranks, Together)
        self.ranks.check_same(_tensors_of(batch), f"the images of step {step}", "give each process the whole batch")
        seed = derived_seed(self.settings.seed, step)
        check_tried(self.ranks, self.model, self.objective.at(step), batch, self.parts.parameters, seed, self.draws)
        self.tried.add(self.draws)

    def _autocast(self) -> Any:
        if self.parts.scaler.is_enabled():
            return torch.autocast(self.fabric.device.type, torch.float16)
        return self.fabric.autocast()

    def _clip(self, names: Sequence[str]) -> None:
        self.sparsity.mask_gradients()
        for name in names:
            nn.utils.clip_grad_norm_(self.parts.parameters[name], self.settings.clip_norm)  # type: ignore[arg-type]

    def check(self, step: int, losses: Mapping[str, Tensor], batch: Batch) -> None:
        """Now and then: still sparse, still finite, still worth going on with?"""
        check_finite(losses, step - 1)
        self.sparsity.audit()
        self.parts.check_finite(step)
        if self.ranks.size > 1:
            together = [*named_state(self.model).values(), *_tensors_of(batch)]
            self.ranks.check_same(together, f"step {step}: weights or images", "they no longer train one model")
        if step > max(_YOUNG, self.settings.steps // 4):
            reason = self.ranks.by_first(lambda: self._collapsed(batch))
            if reason is not None:
                raise Diverged(f"step {step}: {reason}")

    def _collapsed(self, batch: Batch) -> str | None:
        self.model.eval()
        reason = self.objective.collapsed(self.model, batch, self.rng)
        self.model.train()
        return reason

    # -- checkpoints --------------------------------------------------------------------------------------

    def state(self, step: int) -> dict[str, Any]:
        return {**self.parts.state(), **self.calls.state(), "step": step, "masks": self.sparsity.state()}

    def resume(
        self,
        checkpoint: Checkpoint | None,
        start_step: int,
        prepare: Callable[[Mapping[str, torch.optim.Optimizer]], None] | None,
    ) -> int:
        """Restores the newest checkpoint and returns its step; without one, seeds and returns `start_step`.

        On several ranks the first one does, and the others go on from its state.
        """

        def begin() -> dict[str, Any] | None:
            """The state to go on from, where it is another than that of all ranks; None for a fresh start."""
            state = checkpoint.load() if checkpoint is not None else None
            # Without hooks it is of an older version, and this begins anew as it does with another form's.
            if state is not None and self.parts.are_of(state) and "hooks" in state:
                self._load(state)
                return state
            torch.manual_seed(derived_seed(self.settings.seed, start_step))
            if prepare is None:
                return None
            prepare(self.parts.optimizers)
            return {**self.state(start_step), "images": 0, "seconds": 0.0} if self.ranks.size > 1 else None

        state = self.ranks.by_first(begin)
        if not self.ranks.is_first:
            torch.manual_seed(derived_seed(self.settings.seed, start_step))
            if state is not None:
                self._load({**state, "hooks": []})
        return start_step if state is None else int(state["step"])

    def _load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.parts.load(state)
        self.calls.load(state)
        self.sparsity.load(state["masks"])
        self.images, self.seconds = int(state["images"]), float(state["seconds"])


def _tell(progress: Progress, beside: Beside) -> None:
    if (curve := beside.get("curve")) is not None:
        curve.add(progress)
    if (told := beside.get("on_progress")) is not None:
        told(progress)


def _tensors_of(batch: Batch) -> list[Tensor]:
    return [batch.images, batch.labels] if isinstance(batch, Labelled) else [batch]


def check_finite(losses: Mapping[str, Tensor], step: int) -> None:
    """Raises `Diverged` that names the first loss that is not finite."""
    for name, loss in losses.items():
        if not math.isfinite(value := loss.item()):
            raise Diverged(f"step {step}: the loss of {name} is {value}; lower the learning rate or set clip_norm")

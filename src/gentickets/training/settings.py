"""How a training goes: steps, rates and their schedule, averages, precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gentickets.errors import GenticketsError
from gentickets.options import Execution, Schedule


@dataclass(frozen=True)
class Settings:
    """How to train. `lr` is one learning rate, or one a component; Adam everywhere (AdamW's decoupled decay).

    `steps` is the length of a whole training, on which schedules are laid; a step is one pass through all losses
    of the objective. `ema` is the decay of the moving average, warmed up (see `averaging.decay_at`), None for no
    average. `clip_norm` bounds the gradient norm of each component, live weights counted. `precision` as Lightning
    Fabric names it; in "16-mixed" losses are scaled up, so that small gradients do not vanish; a component whose
    gradients overflow is not stepped.
    `execution`: "auto" trains masked layers on their live weights alone where that is faster (see `accelerate`; in
    single precision on a CPU, with no hook that moves masks or needs gradients, and where the losses ask the same of
    sparse layers as of dense ones), "dense" never does.
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

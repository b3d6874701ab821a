"""What hooks cost a training on live weights: those that do nothing, and those that look at the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.steps import BATCH, build, magnitude_masks
from gentickets.options import Execution
from gentickets.training import Hook, Settings, State, train

STEPS = 100


class Idle(Hook):
    """Does nothing, every so many steps."""

    def __init__(self, every: int):
        self.every = every

    def after_step(self, state: State) -> bool:
        return False


class Looks(Idle):
    """Asks for the model and the averages."""

    def after_step(self, state: State) -> bool:
        return state.model is state.averaged  # which makes both, and is False


class _Same:
    """The same batch at every step."""

    def __init__(self, batch: Tensor):
        self.batch = batch

    def at(self, step: int) -> Tensor:
        return self.batch


@benchmark({"net": ("linear-ae",), "sparsity": (0.98,)}, {"net": ("tiny-ae",), "sparsity": (0.9,)})
def training_hooks(net: str, sparsity: float) -> Contest:
    """`train` for 100 steps, its start included, with moving averages, on live weights where that is faster."""
    ways: dict[str, Sequence[Hook]] = {
        "no hook": (),
        "an idle one, every step": [Idle(1)],
        "an idle one, every 50 steps": [Idle(50)],
        "one that looks, every 50 steps": [Looks(50)],
        "one that looks, every step": [Looks(1)],
    }
    goals = {"an idle one, every step": {"ratio": 1.02}, "one that looks, every 50 steps": {"ratio": 1.05}}
    contenders = {
        name: Contender(_training(net, sparsity, hooks), STEPS, at_most=goals.get(name, {}))
        for name, hooks in ways.items()
    }
    dense = Contender(_training(net, sparsity, (), "dense"), STEPS)
    return Contest("no hook", {**contenders, "no hook, dense": dense})


def _training(name: str, sparsity: float, hooks: Sequence[Hook], execution: Execution = "auto") -> Callable[[], object]:
    net = build(name)
    masks, batches = magnitude_masks(net, sparsity), _Same(net.batch)
    settings = Settings(steps=STEPS, batch_size=BATCH, lr=net.lr, ema=0.99, execution=execution)
    return lambda: train(net.model, net.objective, batches, settings, masks=masks, hooks=hooks)

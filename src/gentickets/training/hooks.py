"""What a training asks after its steps: hooks, which look at it, end it, or move its masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.data.batches import Batch
from gentickets.errors import GenticketsError, MaskError
from gentickets.masks.names import clone
from gentickets.masks.value import Masks
from gentickets.sparse import restore


@dataclass(eq=False, repr=False)
class State:
    """A training after `step` of its steps, as its hooks see it: good for the time of their call.

    `steps`: the length of a whole training, on which schedules are laid. `batch`: the images of the step.
    `masks`: what the weights are held to now; None where to nothing. `optimizers`: component → its optimiser; of a
    training on live weights alone these have other parameters than the model's. `gradients`: weight → its gradient
    of this step, neither masked nor clipped, for hooks that need them (see `Hook.needs_gradients`).
    """

    step: int
    steps: int
    batch: Batch
    masks: Masks | None
    optimizers: Mapping[str, torch.optim.Optimizer]
    gradients: Mapping[str, Tensor]
    _networks: tuple[nn.Module, nn.Module]
    _accelerated: bool
    _move: Callable[[Masks], None] | None

    @cached_property
    def model(self) -> nn.Module:
        """The model with dense layers. Of a training on live weights alone a copy, made when it is asked for."""
        return self._dense(self._networks[0])

    @cached_property
    def averaged(self) -> nn.Module:
        """The moving averages by component, likewise."""
        return self._dense(self._networks[1])

    def _dense(self, network: nn.Module) -> nn.Module:
        return restore(clone(network)) if self._accelerated else network

    def move_to(self, masks: Masks) -> None:
        """Holds the training to other masks of the same weights, from now on (see `Hold.move_to`), averages included.

        Raises `MaskError` for masks of other weights, and of a hook that did not say `moves_masks`.
        """
        if self._move is None:
            raise MaskError("a hook that moves masks says so: moves_masks = True")
        self._move(masks)
        self.masks = masks


class Hook(ABC):
    """The base of all hooks. A new one needs `after_step`; the rest has defaults.

    One that only looks leaves weights, modes and what it is shown alone; torch's generator is put back after it. The
    training goes on bit for bit as it would without it.
    """

    every: int = 1
    """How many steps lie between two calls: it is called after each step that this divides, and after the last one,
    be it the end of a call of `train` or where another hook ended the training."""

    moves_masks: bool = False
    """Whether it calls `State.move_to`. Such a training is not on live weights alone, and its hook is part of it: its
    seconds count, and torch's generator is as it leaves it."""

    needs_gradients: bool = False
    """Whether it reads `State.gradients`: of each masked weight that a loss of the step trained, the last such loss's.

    A component whose gradients are not all finite has none, and where another hook ended the training between two
    calls there are none. Such a training is not on live weights alone.
    """

    @abstractmethod
    def after_step(self, state: State) -> bool:
        """After a step; True ends the training here."""

    def state_dict(self) -> dict[str, Any]:
        """What goes into checkpoints: tensors, numbers, text, and lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave. (The moved masks are in the checkpoint by themselves.)"""
        if state:
            raise NotImplementedError(f"{type(self).__name__} has a state_dict and no load_state_dict")

    def is_due(self, step: int) -> bool:
        """Whether it is called after so many steps, be they the last or not."""
        return step % self.every == 0

    @property
    def is_dense(self) -> bool:
        """Whether it needs all weights to be there, dead ones too."""
        return self.moves_masks or self.needs_gradients


def check_hooks(hooks: Sequence[Hook]) -> None:
    """Raises `GenticketsError` for the first that says no sound number of steps between two calls."""
    for hook in hooks:
        every: object = hook.every
        if not isinstance(every, Integral) or every < 1:
            raise GenticketsError(f"{type(hook).__name__}: every={every!r} is no whole number of steps, 1 or more")

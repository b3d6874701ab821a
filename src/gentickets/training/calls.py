"""Calling the hooks of a training, after its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gentickets.data.batches import Batch
from gentickets.masks.value import Masks
from gentickets.training.hooks import Hook, State
from gentickets.training.parts import Parts
from gentickets.training.progress import Meter
from gentickets.training.ranks import Ranks
from gentickets.training.sparsity import Sparsity


class Calls:
    """The hooks of a training, in their order, and whether one of them has `ended` it.

    The first rank calls them; the others move their masks with it, and end with it.
    """

    def __init__(
        self, hooks: Sequence[Hook], parts: Parts, sparsity: Sparsity, ranks: Ranks, steps: int, accelerated: bool
    ):
        self._all, self._hooks = hooks, hooks if ranks.is_first else ()
        self._parts, self._sparsity, self._ranks = parts, sparsity, ranks
        self._steps, self._accelerated = steps, accelerated
        self.ended = False

    def are_due(self, step: int, end_step: int) -> bool:
        """Whether a hook is to be called after so many steps."""
        return any(step == end_step or hook.is_due(step) for hook in self._hooks)

    def need_gradients(self, step: int, end_step: int) -> bool:
        """Whether one that is due after so many steps needs them."""
        return any(hook.needs_gradients and (step == end_step or hook.is_due(step)) for hook in self._hooks)

    def call(self, step: int, end_step: int, batch: Batch, gradients: Mapping[str, Tensor], meter: Meter) -> None:
        """Calls the hooks that are due, and where one of them ended the training the others too."""

        def call() -> tuple[bool, Tensor]:
            self._call_all(step, end_step, batch, gradients, meter)
            return self.ended, torch.get_rng_state()

        self.ended, generator = self._ranks.by_first(call, hear=self._sparsity.move_to)
        if not self._ranks.is_first:
            torch.set_rng_state(generator)

    def share(self) -> None:
        """At the end: hooks, which were called on the first rank alone, are on the others as they ended there."""
        if self._ranks.size > 1:
            ended = self._ranks.told([hook.state_dict() for hook in self._all])
            for hook, state in zip(() if self._ranks.is_first else self._all, ended, strict=False):
                hook.load_state_dict(state)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the hooks."""
        return {"ended": self.ended, "hooks": [hook.state_dict() for hook in self._hooks]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.ended = state["ended"]
        for hook, kept in zip(self._hooks, state["hooks"], strict=True):
            hook.load_state_dict(kept)

    def _call_all(self, step: int, end_step: int, batch: Batch, gradients: Mapping[str, Tensor], meter: Meter) -> None:
        is_last = step == end_step
        networks, optimizers = (self._parts.model, self._parts.averaged), self._parts.optimizers
        masks = self._sparsity.masks
        shown = State(step, self._steps, batch, masks, optimizers, gradients, networks, self._accelerated, None)
        for hook in self._hooks:
            if is_last or hook.is_due(step):
                self.ended |= self._call(hook, shown, meter)
        for hook in self._hooks:
            if self.ended and not is_last and not hook.is_due(step):
                self._call(hook, shown, meter)

    def _call(self, hook: Hook, state: State, meter: Meter) -> bool:
        if not hook.moves_masks:
            device = self._parts.device
            with meter.looking(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                return bool(hook.after_step(state))
        self._parts.check_finite(state.step)
        state._move = self._move_to
        try:
            return bool(hook.after_step(state))
        finally:
            state._move = None

    def _move_to(self, masks: Masks) -> None:
        self._sparsity.move_to(masks)
        self._ranks.say(masks)

"""What the weights of a training, and the averages of them, are held to: masks, which hooks may move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.masks.holding import Hold
from gentickets.masks.names import component_of, named_weights
from gentickets.masks.value import Masks
from gentickets.sparse import Accelerated
from gentickets.training.parts import Parts


class Sparsity:
    """The masks of a training. `masks`: as they are now; None where nothing is pruned.

    `moves`: whether hooks move them; then they are part of what a checkpoint keeps.
    """

    def __init__(self, masks: Masks | None, parts: Parts, fast: Accelerated | None, moves: bool):
        self.masks, self._parts, self._fast, self._moves = masks, parts, fast, moves
        self._held: Hold | None = None

    @property
    def _dense(self) -> Masks | None:
        """The masks of the layers that are dense: sparse ones have no pruned weights that could be written."""
        return self.masks if self._fast is None else self._fast.masks

    @contextmanager
    def hold(self) -> Iterator[None]:
        """The weights are sparse after each step, while this lasts."""
        if self._dense is None:
            yield
            return
        with self._dense.hold(self._parts.model, *self._parts.optimizers.values()) as self._held:
            yield

    def move_to(self, masks: Masks) -> None:
        """Holds the weights and the averages to other masks from here on."""
        assert self.masks is not None
        assert self._held is not None
        self._held.move_to(masks)
        stay = self.masks & masks  # what is born begins at 0.0 in the averages too
        averages = dict(self._parts.averages())
        masked = {name: averages[name] for name in averages if name in stay.components}
        if masked:
            stay.select(masked).apply_(nn.ModuleDict({name: average.network for name, average in masked.items()}))
            for average in masked.values():
                average.unsettle()
        self.masks = masks

    def mask_gradients(self) -> None:
        """Takes away the gradients of pruned weights, which no norm should count."""
        if self._held is not None:
            self._held.mask_gradients()

    def gradients(self, components: Sequence[str]) -> dict[str, Tensor]:
        """Weight → its gradient as it is now, of those with masks in these components; none of a component where one
        is not finite."""
        found: dict[str, dict[str, Tensor]] = {component: {} for component in components}
        for name, weight in named_weights(self._parts.model).items():
            component = component_of(name)
            if component in found and self.masks is not None and name in self.masks and weight.grad is not None:
                found[component][name] = weight.grad.detach().clone()
        finite = [of for of in found.values() if all(bool(grad.isfinite().all()) for grad in of.values())]
        return {name: grad for of in finite for name, grad in of.items()}

    def audit(self) -> None:
        """Raises `MaskError` where the model or an average is no longer sparse."""
        if self._dense is None or self._held is None:
            return
        self._held.audit()
        self._held.drop_momentum()
        masked = {name: net.network for name, net in self._parts.averages() if name in self._dense.components}
        if masked:
            self._dense.select(masked).audit(nn.ModuleDict(masked), "the moving average")

    def state(self) -> dict[str, Tensor]:
        """The packed masks, where they move."""
        if self.masks is None or not self._moves:
            return {}
        return {name: torch.from_numpy(packed.copy()) for name, packed in self.masks.packed.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave, before anything is held."""
        if state and self.masks is not None:
            packed = {name: bits.numpy() for name, bits in state.items()}
            self.masks = Masks.from_packed(packed, self.masks.shapes)

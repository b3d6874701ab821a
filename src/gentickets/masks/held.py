"""One weight under its mask: where it lies, whether somebody has written to it, and its pruned places set to 0.0."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.kernels import can_mask, mask_
from gentickets.memory import as_bits, nonzero, window

if TYPE_CHECKING:
    from gentickets.masks.value import Masks  # a type only: masks are made without this module, and call it

_EVERY = 64
"""Of so many passes in a row, one looks at every weight, also where nobody seems to have written it. So does one of so
many steps at a weight whose places cannot be looked at (on a GPU)."""

_SAMPLE = 16
"""How many pruned places of each weight are looked at before every pass."""


class HeldWeight:
    """A weight under its mask: where it lies, and what it looked like when it was last known to be clean."""

    layer: nn.Module
    key: str

    def __init__(self, masks: Masks, name: str):
        self.name, self.shape = name, masks.shapes[name]
        self.parameters: list[nn.Parameter] = []  # the one in the model, then others that an optimiser still steps
        self.heir: nn.Parameter | None = None  # what its layer was given in its place, by a name
        self.move_to(masks)
        self._memory: np.ndarray | None = None
        self._places: np.ndarray | None = None
        self._zeros = b""
        self.version: float = -1
        self.strangers = 0  # steps of others when it was last known to be clean
        self.steps = 0  # of held optimisers, since the last pass
        self.blind = 0  # steps before which its places could not be looked at
        self.unlooked = 0  # passes since it was last known to be clean that took its version's word for it

    def move_to(self, masks: Masks) -> None:
        """Has it under another mask from here on; what it looks like then is to be noted (`known_clean`)."""
        self._masks, self.packed = masks, masks.packed[self.name]
        self._keep: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        dead = ~masks[self.name].numpy().reshape(-1)
        self.dead = bool(dead.any())
        self._sample = np.unravel_index(_some_of(dead), self.shape or (1,))
        self.address = -1

    def mask(self) -> Tensor:
        """True where the weight is alive."""
        return self._masks[self.name]

    def covers(self, other: HeldWeight) -> bool:
        """Whether all that is dead in `other`, the same weight under other masks, is dead here."""
        return self._masks is other._masks or not (self.packed & ~other.packed).any()

    def now(self) -> Tensor | None:
        """What stands in the weight's place in its layer."""
        return self.layer._parameters.get(self.key)

    def known_clean(self, strangers: int) -> None:
        """Takes note of how the weight, masked just now, looks."""
        weight = self.parameters[0]
        self.version, self.strangers, self.unlooked = _version(weight), strangers, 0
        if (address := weight.data_ptr()) != self.address:
            self.address = address
            self._memory, self._places = None, None
            if self.dead and weight.shape == self.shape and (found := window(weight)) is not None:
                self._memory, strides = found
                self._places = np.tensordot(strides, self._sample, 1)
                self._zeros = bytes(self._places.size * weight.element_size())

    def stepped(self) -> None:
        """After a held optimiser's step, which masked it."""
        self.version = _version(self.parameters[0])
        self.steps += 1
        self.unlooked = 0

    def is_written(self) -> bool:
        """Whether somebody has written to it, or put another in its place, in a way that leaves a trace."""
        weight = self.parameters[0]
        return (
            self.layer._parameters.get(self.key) is not weight
            or _version(weight) != self.version
            or weight.data_ptr() != self.address
        )

    def looks_written(self) -> bool:
        """Whether somebody has written to it in a way that leaves a trace, or that a few of its pruned places show."""
        return self.is_written() or (self._memory is not None and self._memory[self._places].tobytes() != self._zeros)

    def is_suspect_before_step(self) -> bool:
        """Whether a pass may have seen it written; asked once before each step."""
        due = False
        if self._memory is None and self.dead:
            due = self.blind % _EVERY == 0
            self.blind += 1
        return due or self.looks_written()

    def is_suspect(self, strangers: int) -> bool:
        """Whether somebody may have written to it since it was last known to be clean."""
        return self.strangers != strangers or self.unlooked + 1 >= _EVERY or self.looks_written()

    def written_late(self, strangers: int) -> bool:
        """Whether what is written in it now can only have been written since the last pass began."""
        if self.steps > 1:
            return False  # there were passes that nobody saw
        return not self.unlooked or self.is_suspect(strangers)  # which it was not at the last pass

    def strays(self) -> int:
        """How many pruned weights are not 0.0."""
        weight = self.parameters[0]
        if weight.shape != self.shape:
            return 0
        found = nonzero(weight) & ~self.packed
        return int(np.bitwise_count(found).sum(dtype=np.int64)) if found.any() else 0

    def keep(self, bits: Tensor) -> Tensor:
        """What to multiply `bits` by: 0 where a weight is pruned, 1 elsewhere."""
        key = (bits.dtype, bits.device)
        if key not in self._keep:
            mask = self.mask()
            # In the tensor's own strides, so that the product is one flat loop (channels_last included).
            self._keep[key] = torch.empty_like(bits).copy_(mask if bits.dim() == mask.dim() else mask[..., None])
        return self._keep[key]


def _version(weight: Tensor) -> float:
    """How often the weight was written to, as autograd counts; it does not for what is made in inference mode."""
    return math.nan if weight.is_inference() else weight._version  # NaN is no number's equal: looked at each time


def _some_of(places: np.ndarray) -> np.ndarray:
    """Where some of the true ones are, spread over all there are; without a list of them all."""
    if not len(places):
        return np.array([], dtype=np.int64)
    starts = np.linspace(0, len(places), _SAMPLE, endpoint=False).astype(np.int64)
    found = {int(start + places[start:].argmax()) for start in starts}
    return np.array(sorted(place for place in found if places[place]), dtype=np.int64)


def mask_gradients(weights: Iterable[tuple[Tensor | None, HeldWeight]]) -> None:
    dense = []
    for parameter, held in weights:
        if parameter is None or (grad := parameter.grad) is None:
            continue
        if grad.is_sparse:
            parameter.grad = _masked_rows(grad, held)
        else:
            dense.append((grad, held))
    zero_dead(dense)


def _masked_rows(grad: Tensor, held: HeldWeight) -> Tensor:
    """A sparse gradient, as an embedding with `sparse=True` gives it, without what belongs to pruned weights."""
    grad = grad.coalesce()
    places, values = grad.indices(), grad.values()
    keep = held.mask()[tuple(places.cpu())].to(values.device)
    return torch.sparse_coo_tensor(
        places, values.masked_fill(~keep, 0.0), grad.shape, is_coalesced=True, check_invariants=False
    )


def zero_dead(tensors: Sequence[tuple[Tensor, HeldWeight]]) -> None:
    """Sets the pruned places of these tensors to 0.0, be they NaN or infinite.

    By their bits: in one pass of a compiled kernel over the packed mask, which costs 1 % of a small net's step, or,
    where it cannot be had, by a product of whole numbers with 0 or 1, which reads four times as much.
    """
    others = []
    for tensor, held in tensors:
        if tensor.shape == held.shape and can_mask(tensor):  # another shape: the product refuses it
            mask_(tensor, held.packed)
            torch.autograd.graph.increment_version(tensor)  # so that a graph that needs the old weights is refused
        else:
            others.append((as_bits(tensor), held))
    if others:
        torch._foreach_mul_([bits for bits, _ in others], [held.keep(bits) for bits, held in others])

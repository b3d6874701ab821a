"""Holding a model to its masks while any optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gentickets.errors import MaskError
from gentickets.kernels import can_mask, mask_
from gentickets.naming import named_layers, named_weights

if TYPE_CHECKING:
    from gentickets.masks import Masks  # a type only: masks are made without this module, and call it


class Hold:
    """`Masks.hold` at work. Use it as a context; see there."""

    def __init__(
        self,
        masks: Masks,
        model: nn.Module,
        optimizers: tuple[torch.optim.Optimizer, ...],
        copies: tuple[nn.Module, ...],
    ):
        self.masks, self.model, self.copies = masks, model, copies
        self.optimizers = tuple(_plain(optimizer) for optimizer in optimizers)
        for optimizer in self.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                raise MaskError("LBFGS evaluates the model inside its step, between two maskings: use another")
            if any(getattr(p, "is_emptied", False) for group in optimizer.param_groups for p in group["params"]):
                raise MaskError("an optimiser has a weight that `accelerate` emptied: make it after accelerate(...)")
        for net in (model, *copies):
            masks.check_fits(net)
        self._held: dict[int, _HeldWeight] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Hold:
        if self._handles:
            raise MaskError("this hold is entered already: make another with masks.hold(...)")
        for net in (self.model, *self.copies):
            self.masks.apply_(net)
        self._find_weights()
        for layer_name, layer in named_layers(self.model):
            own = {key: f"{layer_name}.{key}" if layer_name else key for key in layer._parameters}
            own = {key: name for key, name in own.items() if name in self.masks}
            if own:
                hook = _MaskAfterLoad(self, own)
                self._handles.append(layer.register_load_state_dict_post_hook(hook))
        for optimizer in self.optimizers:
            self._drop_momentum(optimizer)
            self._handles.append(optimizer.register_load_state_dict_post_hook(self._drop_momentum))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._held.clear()
        if kind is None:
            self.audit()

    def audit(self) -> None:
        """Raises `MaskError` where the model, or a copy, has a pruned weight that is not exactly 0.0."""
        self.masks.audit(self.model)
        for average in self.copies:
            self.masks.audit(average, "an averaged copy of the model")

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Sets the gradients of pruned weights to 0.0.

        Not needed for sparsity. Call it between `backward` and gradient clipping, so that the norm is that of
        the sparse network and not of weights that do not exist.
        """
        _zero_dead([(grad, held) for held in self._held.values() if (grad := held.parameter.grad) is not None])

    @torch.no_grad()
    def drop_momentum(self) -> None:
        """Sets what the optimisers remember of pruned weights to 0.0.

        No weight depends on it. Where a gradient has become exactly zero, as below a unit that never fires, a moment
        shrinks from step to step, into denormal numbers, with which Adam's step takes twice as long.
        """
        for optimizer in self.optimizers:
            self._drop_momentum(optimizer)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        stepped = [
            held for group in optimizer.param_groups for parameter in group["params"]
            if (held := self._held.get(id(parameter))) is not None and parameter.grad is not None
        ]  # fmt: skip
        _zero_dead([(held.parameter, held) for held in stepped])

    def _find_weights(self) -> None:
        weights, known = named_weights(self.model), self._held
        self._held = {
            id(weights[name]): known.get(id(weights[name])) or _HeldWeight(self.masks, name, weights[name])
            for name in self.masks
        }

    @torch.no_grad()
    def _drop_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        _zero_dead([
            (value, held) for parameter, state in optimizer.state.items() if (held := self._held.get(id(parameter)))
            for value in state.values() if isinstance(value, Tensor) and value.shape == parameter.shape
        ])  # fmt: skip


class _HeldWeight:
    """A parameter under its mask. It is kept, so that no other tensor can come to have its id."""

    def __init__(self, masks: Masks, name: str, parameter: nn.Parameter):
        self.parameter, self.packed, self.shape = parameter, masks.packed[name], masks.shapes[name]
        self._masks, self._name = masks, name
        self._keep: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def keep(self, bits: Tensor) -> Tensor:
        """What to multiply `bits` by: 0 where a weight is pruned, 1 elsewhere."""
        key = (bits.dtype, bits.device)
        if key not in self._keep:
            # In the tensor's own strides, so that the product is one flat loop (channels_last included).
            self._keep[key] = torch.empty_like(bits).copy_(self._masks[self._name])
        return self._keep[key]


def _zero_dead(tensors: Sequence[tuple[Tensor, _HeldWeight]]) -> None:
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


def as_bits(tensor: Tensor) -> Tensor:
    """The same memory read as whole numbers, out of autograd's sight."""
    return tensor.detach().view(_BITS_OF[tensor.element_size()])


_BITS_OF = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _MaskAfterLoad:
    """Masks the weights of a held layer again when weights are loaded into it, alone or with the whole model.

    A copy of the model, made in memory or through a file, is not held: the hook does nothing there.
    """

    def __init__(self, hold: Hold, names: Mapping[str, str]):
        self.hold, self.names = hold, names

    @torch.no_grad()
    def __call__(self, layer: nn.Module, incompatible_keys: object) -> None:
        for key, name in self.names.items():
            weight = layer._parameters[key]
            assert weight is not None
            weight.masked_fill_(~self.hold.masks[name].to(weight.device), 0.0)
        self.hold._find_weights()  # `load_state_dict(..., assign=True)` puts new tensors in their place

    def __deepcopy__(self, memo: object) -> Any:
        return _nothing_after_load

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert_hook, ()


def _inert_hook() -> Any:
    return _nothing_after_load


def _nothing_after_load(module: nn.Module, incompatible_keys: object) -> None:
    return None


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside Fabric's wrapper: hooks belong on the one that really steps."""
    inner = getattr(optimizer, "optimizer", optimizer) if type(optimizer).__name__.startswith("Fabric") else optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        raise MaskError(f"cannot hold through {type(optimizer).__name__}: it is no torch.optim.Optimizer")
    return inner

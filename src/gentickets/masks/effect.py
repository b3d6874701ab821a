"""Is a zero in a weight a zero in effect? Found where it is used: as the network runs on its examples.

`parametrised` looks at what a layer makes of its own parameters. A module may as well read the weight of a layer
inside it, standardise it or take its exponential, and multiply with that; or write that into the weight itself, perhaps
in training alone. So half of each weight is set to 0 in a copy, and of whatever the copy multiplies with, in evaluation
and in training, that is made of one weight alone it is looked whether the zeros are left.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gentickets.errors import MaskError
from gentickets.masks.examples import Example, ExampleInputs, examples_of
from gentickets.masks.flow import tensors_in
from gentickets.masks.names import Model, clone, component_at, named_layers, named_weights, unwrap

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "mkldnn_linear"}
_MADE_BY_PRODUCTS = ("Mm", "Addmm", "Bmm", "Baddbmm", "Linear", "Convolution", "Mkldnn", "Mv", "Addmv", "Dot")

_ROUNDING = 1e-6
"""What is smaller, beside the largest of a weight, is 0 to rounding."""


def check_effect(model: Model, names: Iterable[str], example_inputs: ExampleInputs) -> None:
    """Raises `MaskError` for a weight among `names` of which some module, in evaluation or in training, makes another
    weight with fewer zeros, or writes fewer zeros into it.

    Products of two things that are made of weights alone, and sums of several weights (low-rank updates, branches that
    are merged, drawn weights), are not judged: in them a zero takes away what the weight adds. Nor is what cannot be
    run, or hides what it does from autograd. The model and the random state stay as they are.
    """
    if not (names := frozenset(names)) or any(weight.is_meta for weight in named_weights(model).values()):
        return
    for component, example in examples_of(model, example_inputs).items():
        for training in (False, True):
            if (lost := _lost_if_run(model, names, component, example, training)) is None:
                continue
            name, by = lost
            layer, when = name.rpartition(".")[0], ", in training," if training else ""
            raise MaskError(
                f"{name!r} cannot be pruned: the forward pass of {by}{when} makes another weight of it, and what is 0 "
                f"underneath is not 0 in effect; leave it out with exclude=({(f'{layer}.*' if layer else name)!r},) or "
                f"components="
            )


def _lost_if_run(
    model: Model, names: frozenset[str], component: str, example: Example, training: bool
) -> tuple[str, str] | None:
    """What `_lost` gives; None also where the pass cannot be run, as batch norm trains on no batch of one."""
    for buffers in (True, False):  # a buffer that is written to can have no derivative
        try:
            with _same_draws_after():
                return _lost(clone(unwrap(model)).train(training), names, component, example, buffers)
        except Exception:  # whatever a stranger's code says: others run it as it is, and tell
            continue
    return None


@contextmanager
def _same_draws_after() -> Iterator[None]:
    """Leaves every generator as it was: a pass in training may draw from any."""
    plain, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - what others draw from
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002


def _lost(
    probe: nn.Module, names: frozenset[str], component: str, example: Example, buffers: bool
) -> tuple[str, str] | None:
    """A weight whose zeros end in `probe`, a copy of the model, and the class of module in which they do; None where
    there is none."""
    for _, layer in list(named_layers(probe)):
        for child_name, child in list(layer.named_children()):
            if unwrap(child) is not child:
                setattr(layer, child_name, unwrap(child))  # no compiled code for one pass
    weights = {name: weight for name, weight in named_weights(probe).items() if name in names}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        alive = {name: torch.rand(weight.shape, generator=generator) < 0.5 for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.mul_(alive[name].to(weight.device))
    matrices = [buffer for buffer in probe.buffers() if buffers and len(_sides(buffer)) > 1]
    for tensor in (*probe.parameters(), *matrices):
        tensor.requires_grad_(tensor.is_floating_point() or tensor.is_complex())
    net = component_at(probe, component)
    where = next((weight.device for weight in net.parameters()), example.tensors[0].device)
    reads = _Reads(net, {id(weights[name]): (name, int(mask.sum())) for name, mask in alive.items()})
    with torch.inference_mode(False), torch.enable_grad(), reads:
        example.to(where)(net)
    return reads.lost


class _Reads(TorchDispatchMode):
    """Looks at what a network multiplies with. `weights`: id → (name, how many are alive)."""

    def __init__(self, net: nn.Module, weights: Mapping[int, tuple[str, int]]):
        super().__init__()
        self.lost: tuple[str, str] | None = None
        self._weights = weights
        self._sides = {_sides(p) for _, p in named_weights(net).items() if id(p) in weights}
        self._inside: list[str] = []
        for _, layer in named_layers(net):
            layer.register_forward_pre_hook(lambda module, _: self._inside.append(type(module).__name__))
            layer.register_forward_hook(lambda *_: self._inside.pop() and None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.lost is None and str(func._schema.name).removeprefix("aten::") in _PRODUCTS:
            operands = [tensor for tensor in tensors_in((args, kwargs or {})) if len(_sides(tensor)) > 1]
            for tensor in operands:
                # A weight itself may have been written to.
                if (tensor.grad_fn is not None or id(tensor) in self._weights) and _sides(tensor) in self._sides:
                    self._judge(tensor, [other for other in operands if other is not tensor])
        return func(*args, **(kwargs or {}))

    def _judge(self, made: Tensor, others: Iterable[Tensor]) -> None:
        leaves = _made_of(made)
        own = [leaf for leaf in leaves or () if id(leaf) in self._weights and _sides(leaf) == _sides(made)]
        if leaves is None or len(own) != 1 or any(_made_of(other) for other in others):
            return
        if any(len(_sides(leaf)) > 1 for leaf in leaves if leaf is not own[0]):
            return
        name, alive = self._weights[id(own[0])]
        size = made.detach().abs()
        if bool(size.isfinite().all()) and int((size > _ROUNDING * size.max()).sum()) > alive:
            self.lost = name, self._inside[-1] if self._inside else "the network"


def _sides(tensor: Tensor) -> tuple[int, ...]:
    """The sides that are more than 1, whatever their order: the same of a weight that lies another way."""
    return tuple(sorted(side for side in tensor.shape if side > 1))


def _made_of(tensor: Tensor) -> list[Tensor] | None:
    """The leaves that a tensor is made of, number by number; None where products have a part in it."""
    if tensor.grad_fn is None:
        return [tensor] if tensor.requires_grad else []
    found, seen, ahead = [], set(), [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name().startswith(_MADE_BY_PRODUCTS):
            return None
        if (leaf := getattr(node, "variable", None)) is not None:
            found.append(leaf)
        ahead.extend(_before(node))
    return found


def _before(node: Any) -> Iterator[Any]:
    return (one for one, _ in node.next_functions if one is not None)

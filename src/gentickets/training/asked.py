"""What the losses of a step ask of a model's weights: computed without a step, to be compared between two models.

The same network may stand there in dense layers or in sparse ones, whose weights are other tensors. What is asked of
both is told by the names of the dense weights, and of live weights alone.
"""

from __future__ import annotations

import copy
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gentickets.data.batches import Batch
from gentickets.errors import Diverged
from gentickets.masks.names import as_names, named_layers, named_weights
from gentickets.masks.value import Masks
from gentickets.objectives.base import Objective
from gentickets.sparse import Choice, restore
from gentickets.sparse.layers import SparseLayer

_NEAR, _FLOOR = 1e-3, 1e-5
"""How far numbers may be off, of their own size and at all: rounding is far below both.

Gradients that came by way of layers are not compared: where a rectifier gets 0 but for rounding, as a channel does of
which only the constant is left, dense and sparse layers may be on two sides of it.
"""


class Deed(NamedTuple):
    """A function that took a parameter, and the sum of the squares of all that it gave."""

    function: Any
    size: float


@dataclass
class Asked:
    """What the losses of a step ask of a model: `losses`, by component, and the rest by the names of dense weights.

    `done`: what the objective itself did with each, outside of all layers, in its order, and how large the outcome was.
    `written`: the weights after the losses. `beside`: of layers that can be sparse, what of the gradient, summed over
    all losses, did not come by way of the layer; `rounded`: how far that is off, by rounding.
    """

    losses: list[tuple[tuple[str, ...], float]]
    done: dict[str, list[Deed]]
    written: dict[str, Tensor]
    beside: dict[str, Tensor]
    rounded: dict[str, float]


def asked(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    step: int,
    seed: int,
    choices: Sequence[Choice],
    masks: Masks,
) -> Asked:
    """What the losses of a step ask of `model`, a copy of which nothing else is wanted: it is dense afterwards.

    `choices`: which of its layers are sparse, or would be. Raises whatever the objective does, and `Diverged` for a
    loss that is not finite.
    """
    model.train()
    for parameter in model.parameters():
        parameter.grad = None
    ways, own = _Ways(model, choices), _OwnDoing()
    losses = []
    with _same_chance(seed):
        rng = torch.Generator().manual_seed(seed)
        computed = objective.at(step).losses(model, copy.deepcopy(batch), rng)
        while True:
            with own.noting():
                item = next(computed, None)
            if item is None:
                break
            components, loss = as_names(item[0]), item[1]
            losses.append((components, float(loss.detach())))
            if not math.isfinite(losses[-1][1]):
                raise Diverged(f"step {step}: the loss of {'+'.join(components)} is {losses[-1][1]}")
            _backward(loss, [weight for name in components for weight in getattr(model, name).parameters()], ways)
    names = {id(layer.values): name for name, layer in ways.sparse_layers()}
    weights = named_weights(restore(model))  # gradients go with their weights
    names |= {id(weight): name for name, weight in weights.items()}
    done = {names[which]: functions for which, functions in own.done.items() if which in names}
    beside = {name: _gradient(weights[name]) - ways.passed.get(name, 0.0) for name in ways.layers}

    def live(of: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: one.detach()[masks[name]] if name in masks else one.detach() for name, one in of.items()}

    return Asked(losses, done, live(weights), live(beside), ways.rounded)


def _gradient(weight: nn.Parameter) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _backward(loss: Tensor, trained: Sequence[nn.Parameter], ways: _Ways) -> None:
    """Adds the gradients of a loss to those that there are of the components that it trains."""
    trained = [weight for weight in trained if weight.requires_grad]
    with ways.noting():
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    for weight, gradient in zip(trained, gradients, strict=True):
        if gradient is not None:
            weight.grad = gradient.clone() if weight.grad is None else weight.grad + gradient


class _OwnDoing:
    """What is done with parameters outside of the calls of all modules, and so by an objective itself: `done`, by the
    parameter's id, the functions that took it and the calls of its own module, in their order.

    Whether a bound is reached, or a penalty is 0 as yet, does not matter to it.
    """

    def __init__(self) -> None:
        self.done: dict[int, list[Deed]] = defaultdict(list)
        self._within = 0

    @contextmanager
    def noting(self) -> Iterator[None]:
        """While this lasts."""
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        try:
            with _Noting(self._note):
                yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, *_: Any) -> None:
        self._note(
            nn.Module.__call__, list(module.parameters(recurse=False)), None
        )  # as a parametrisation is, to be read
        self._within += 1

    def _leave(self, *_: Any) -> None:
        self._within -= 1

    def _note(self, function: Any, given: Any, outcome: Any) -> None:
        taken = [one for one in tree_leaves(given) if isinstance(one, nn.Parameter)] if not self._within else ()
        if taken:
            size = sum(float(one.detach().double().square().sum()) for one in tree_leaves(outcome) if _is_real(one))
            for one in taken:
                self.done[id(one)].append(Deed(function, size))


class _Noting(TorchFunctionMode):
    """Tells of each of torch's functions that is called, with what, and what it gave."""

    def __init__(self, note: Callable[[Any, Any, Any], None]):
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = func(*args, **(kwargs or {}))
        self._note(func, (args, kwargs), outcome)
        return outcome


class _Ways:
    """What of a weight's gradient came by way of its layer, for each of the layers that can be sparse, by name.

    A layer is given its weight by another tensor, which is the same, and notes what gradient passes through it. In a
    sum of float32 numbers what is left of it is exact to rounding, however large the rest: the layers' own gradients,
    which dense and sparse kernels sum in another order, are not compared with it.
    """

    def __init__(self, model: nn.Module, choices: Sequence[Choice]):
        layers = dict(named_layers(model))
        self.layers = {choice.weight: layers[choice.layer] for choice in choices if choice.sparse}
        self.passed: dict[str, Tensor] = {}
        self.rounded = dict.fromkeys(self.layers, 0.0)
        self._noting = False
        for name, layer in self.layers.items():
            if isinstance(layer, SparseLayer):
                layer.reads_by(partial(self._given, name, layer.spread))
            else:
                holder, _, own = name.rpartition(".")
                self._watch(layer, layers[holder], own, partial(self._given, name, lambda gradient: gradient))

    def sparse_layers(self) -> Iterator[tuple[str, SparseLayer]]:
        """Those that are sparse, by the names of their weights."""
        return ((name, layer) for name, layer in self.layers.items() if isinstance(layer, SparseLayer))

    def _watch(self, layer: nn.Module, holder: nn.Module, own: str, given: Callable[[Tensor], Tensor]) -> None:
        """Gives a dense layer its weight, the parameter `own` of `holder`, by another tensor while it is called."""
        weight: Any = holder._parameters[own]

        def put(tensor: Any) -> None:
            holder._parameters[own] = tensor

        layer.register_forward_pre_hook(lambda *_: put(given(weight)), prepend=True)  # before a norm reads it
        layer.register_forward_hook(lambda *_: put(weight), always_call=True)

    def _given(self, name: str, spread: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
        seen = weight.view_as(weight)
        if seen.requires_grad:
            seen.register_hook(partial(self._note, name, spread))
        return seen

    def _note(self, name: str, spread: Callable[[Tensor], Tensor], gradient: Tensor) -> None:
        if self._noting:
            spread_out = spread(gradient.detach())
            before = self.passed.get(name)
            self.passed[name] = spread_out.clone() if before is None else before + spread_out
            self.rounded[name] += 8 * torch.finfo(gradient.dtype).eps * _largest(spread_out)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """While the gradient is computed that a step would take, and not one that a loss takes for itself."""
        self._noting = True
        yield
        self._noting = False


@contextmanager
def _same_chance(seed: int) -> Iterator[None]:
    """Chance falls as from `seed`, however what it falls on lies in memory; generators are left as they were."""
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002 - an objective may draw from it
    try:
        with torch.random.fork_rng(devices=[]), _DrawnInOrder():
            torch.random.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002


class _DrawnInOrder(TorchDispatchMode):
    """Draws numbers in the order of the axes: torch's own order is that of memory, where sparse layers lay their
    results out otherwise."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        given = tree_map_only(Tensor, torch.Tensor.contiguous, args)
        drawn = func(*given, **(kwargs or {}))
        for argument, one, other in zip(func._schema.arguments, args, given, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and one is not other:
                one.copy_(other)
                drawn = one if drawn is other else drawn
        return drawn


# -- and whether it is the same ----------------------------------------------------------------------------------------


def unlike(expected: Asked, found: Asked) -> str | None:
    """How what is asked of sparse layers differs from what is asked of dense ones, in words."""
    if [names for names, _ in expected.losses] != [names for names, _ in found.losses]:
        return "other losses"
    for name in sorted(expected.done.keys() | found.done.keys()):
        if not _same_deeds(expected.done.get(name, ()), found.done.get(name, ())):
            return f"what it does itself with {name}"
    for name, one in expected.written.items():
        if _largest(found.written[name] - one) > _NEAR * _largest(one):
            return f"what it writes to {name}"
    for name, one in expected.beside.items():
        allowed = _NEAR * _largest(one) + expected.rounded[name] + found.rounded[name]
        if _largest(found.beside[name] - one) > allowed:
            return f"a gradient of {name} that does not come by way of its layer"
    for (names, wanted), (_, got) in zip(expected.losses, found.losses, strict=True):
        if not math.isclose(wanted, got, rel_tol=_NEAR, abs_tol=_FLOOR):
            return f"the loss of {'+'.join(names)}"
    return None


def _same_deeds(expected: Sequence[Deed], found: Sequence[Deed]) -> bool:
    if [deed.function for deed in expected] != [deed.function for deed in found]:
        return False
    sizes = ((one.size, other.size) for one, other in zip(expected, found, strict=True))
    return all(math.isclose(one, other, rel_tol=_NEAR) or one != one for one, other in sizes)


def _is_real(one: object) -> bool:
    return isinstance(one, Tensor) and one.is_floating_point()


def _largest(tensor: Tensor) -> float:
    """The largest of the numbers, as they are far from 0; 0 of none."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0

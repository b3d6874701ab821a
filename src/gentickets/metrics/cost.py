"""What a model costs to hold and to run: parameters, bytes and FLOPs, dense and with only what is alive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gentickets.evaluating import evaluating
from gentickets.masks import Masks
from gentickets.naming import (
    CONVOLUTIONS,
    NORMS,
    TRANSPOSED,
    WEIGHT_PLACES,
    check_components,
    check_not_pruned,
    clone,
    component_of,
    components_of,
    named_layers,
    named_weights,
    unwrap,
)
from gentickets.objectives import Objective

_FLOPS_A_NORM = 2


@dataclass(frozen=True)
class Cost:
    """Counts for one model or component.

    FLOPs are those of one forward pass of one example; a multiply-add counts as two. `bytes_dense` is every
    parameter in its own dtype; `bytes_sparse` the live values, one bit for each weight under a mask, and the
    parameters that no mask covers. `components` breaks a model's cost down by component.
    """

    parameters: int
    alive_parameters: int
    flops_dense: int
    flops_sparse: int
    bytes_dense: int
    bytes_sparse: int
    components: Mapping[str, Cost] = field(default_factory=dict)


def cost(
    model: nn.Module,
    example_inputs: Mapping[str, Tensor | tuple[Tensor, ...]],
    masks: Masks | None = None,
) -> Cost:
    """The cost of `model`, whose children are its components, under `masks` (None: everything is alive).

    `example_inputs` maps a component's name to a batch for it (a tuple of tensors where it takes several).
    Parameters and bytes are those of the whole model; FLOPs those of the components that have an example.
    Counted are convolutions (transposed ones at their true cost: input places x kernel), linear layers and
    norms (two an element); biases, activations and products of activations are not.

    The model runs in evaluation mode and is left as it was. Raises `MaskError` for a component that does not
    exist, or masks that do not fit.
    """
    names = components_of(model)
    check_components(example_inputs, names)
    alive = _Alive(model, masks)
    parts = {}
    for name in names:
        dense = sparse = 0
        if name in example_inputs:
            dense, sparse = _flops(getattr(unwrap(model), name), name, example_inputs[name], alive)
        held = [full for full in alive.weights if component_of(full) == name]
        parts[name] = alive.holding(held, dense, sparse, {})
    totals = [
        sum(part.flops_dense for part in parts.values()),
        sum(part.flops_sparse for part in parts.values()),
    ]
    return alive.holding(list(alive.weights), totals[0], totals[1], parts)


class _Alive:
    """How much of each parameter of a model is alive."""

    def __init__(self, model: nn.Module, masks: Masks | None):
        check_not_pruned(model)
        self.weights = named_weights(model) if masks is None else masks.check_fits(model)
        self.counts = {} if masks is None else masks.counts()
        self._names = {id(weight): name for name, weight in self.weights.items()}

    def of(self, name: str) -> int:
        return self.counts.get(name, self.weights[name].numel())

    def of_layer(self, layer: nn.Module) -> tuple[int, int]:
        """(weights, live weights) of a layer, wherever a norm has put its weight."""
        for place in WEIGHT_PLACES:
            try:
                name = self._names[id(layer.get_parameter(place))]
            except (AttributeError, KeyError):
                continue
            return self.weights[name].numel(), self.of(name)
        return 0, 0

    def holding(self, names: list[str], dense: int, sparse: int, components: dict[str, Cost]) -> Cost:
        """The cost of holding the parameters `names`, with these FLOPs."""
        bytes_dense = bytes_sparse = 0
        for name in names:
            weight = self.weights[name]
            bytes_dense += weight.numel() * weight.element_size()
            bytes_sparse += self.of(name) * weight.element_size()
            bytes_sparse += ceil(weight.numel() / 8) if name in self.counts else 0
        return Cost(
            parameters=sum(self.weights[name].numel() for name in names),
            alive_parameters=sum(self.of(name) for name in names),
            flops_dense=dense,
            flops_sparse=sparse,
            bytes_dense=bytes_dense,
            bytes_sparse=bytes_sparse,
            components=components,
        )


def _flops(component: nn.Module, name: str, example: Tensor | tuple[Tensor, ...], alive: _Alive) -> tuple[int, int]:
    """(dense, sparse) FLOPs of one example through one component."""
    inputs = example if isinstance(example, tuple) else (example,)
    component = unwrap(component)
    where = next((p.device for p in component.parameters()), inputs[0].device)
    totals = [0, 0]

    def count(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        dense, sparse = _of_call(layer, given, output, alive)
        totals[0] += dense
        totals[1] += sparse

    with ExitStack() as stack:
        for _, layer in named_layers(component, name):
            if isinstance(layer, CONVOLUTIONS + TRANSPOSED + NORMS + (nn.Linear,)):
                stack.callback(layer.register_forward_hook(count).remove)
        stack.enter_context(evaluating(component))
        component(*(tensor.to(where) for tensor in inputs))
    batch = len(inputs[0])
    return round(totals[0] / batch), round(totals[1] / batch)


def _of_call(layer: nn.Module, given: tuple[Any, ...], output: Any, alive: _Alive) -> tuple[int, int]:
    """(dense, sparse) FLOPs of one call of a layer, over its whole batch."""
    if isinstance(layer, NORMS):
        return _FLOPS_A_NORM * output.numel(), _FLOPS_A_NORM * output.numel()
    # Each weight is used once at each place of the output; of the input where the convolution is transposed.
    if isinstance(layer, TRANSPOSED):
        places = given[0].numel() // layer.in_channels
    elif isinstance(layer, nn.Linear):
        places = output.numel() // layer.out_features
    else:
        places = output.numel() // layer.out_channels
    weights, live = alive.of_layer(layer)
    return 2 * places * weights, 2 * places * live


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs that one image costs in training, forward and backward: as computed, and of the live weights alone."""

    dense: float
    live: float


def training_flops(model: nn.Module, objective: Objective, batch: Tensor, masks: Masks | None = None) -> TrainingFlops:
    """Counts one real step of `objective` on `batch`, every loss with its backward pass, and divides by the images.

    Counted are convolutions, linear layers and matrix products, with the shapes that they really have (transposed
    convolutions at their true cost), each gradient only where it is computed: a generator's loss costs the
    discriminator its input gradients, not its weights'. Norms, activations and the optimiser are not counted.
    `live`: each layer's share times the density of its weight under `masks`. The model is left as it was.
    """
    copy = clone(model).train()
    calls = _Calls(_Alive(copy, masks))
    rng = torch.Generator(device=batch.device).manual_seed(0)
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter, calls.noted(copy):
        for components, loss in objective.losses(copy, batch, rng):
            names = (components,) if isinstance(components, str) else components
            trained = [p for name in names for p in getattr(unwrap(copy), name).parameters()]
            calls.count_gradients(loss, names)
            # Not `autograd.grad`: the counter's hooks on layers whose input is a leaf fail there (spectral norm).
            torch.autograd.backward(loss, inputs=trained)
    dense = counter.get_total_flops() / len(batch)
    return TrainingFlops(dense, dense * calls.live / calls.dense if calls.dense else dense)


class _Calls:
    """The layer calls of a training step: what they cost, forward and backward, dense and live."""

    def __init__(self, alive: _Alive):
        self.dense = self.live = 0
        self._alive = alive
        self._made: list[tuple[str, int, int, bool, Any]] = []

    @contextmanager
    def noted(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for name, layer in named_layers(model):
                if isinstance(layer, CONVOLUTIONS + TRANSPOSED + (nn.Linear,)):
                    note = partial(self._note, component_of(name))
                    stack.callback(layer.register_forward_hook(note).remove)
            yield

    def _note(self, component: str, layer: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        dense, live = _of_call(layer, given, output, self._alive)
        self._add(dense, live, 1)
        self._made.append((component, dense, live, given[0].requires_grad, output.grad_fn))

    def count_gradients(self, loss: Tensor, trained: Iterable[str]) -> None:
        """Adds the gradients of the calls that `loss` rests on: of trained weights, and of inputs that need one."""
        reached, open_ = set(), [loss.grad_fn]
        while open_:
            node = open_.pop()
            if node is not None and node not in reached:
                reached.add(node)
                open_ += [following for following, _ in node.next_functions]
        for component, dense, live, of_input, node in self._made:
            if node in reached:
                self._add(dense, live, int(component in trained) + int(of_input))

    def _add(self, dense: int, live: int, times: int) -> None:
        self.dense += times * dense
        self.live += times * live

"""What a model costs to hold and to run: parameters, bytes and FLOPs, dense and with only what is alive."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

import torch
from torch.nn.parameter import is_lazy

from gentickets.data.batches import Batch
from gentickets.errors import MaskError
from gentickets.flops.forward import batch_of, counted
from gentickets.flops.operations import Operations, share_not_counted, uncompiled
from gentickets.masks.examples import WHOLE, Example, ExampleInputs, examples_of
from gentickets.masks.flow import titled
from gentickets.masks.layers import check_not_pruned
from gentickets.masks.names import (
    Model,
    clone,
    component_at,
    component_of,
    components_of,
    named_weights,
    unwrap,
)
from gentickets.masks.value import Masks
from gentickets.notebook import shown
from gentickets.objectives.base import Objective, losses_of, unfrozen


@dataclass(frozen=True, repr=False)
class Cost:
    """Counts for one model or component.

    FLOPs are those of one forward pass of one example; a multiply-add counts as two. `bytes_dense` is every
    parameter in its own dtype; `bytes_sparse` the live values, one bit for each weight under a mask, and the
    parameters that no mask covers. `components` breaks a model's cost down by component.

    `flops_between`: of these FLOPs those between activations (attention's queries with keys, and with values), which
    no mask thins. `not_counted`: operation → calls in one pass over the example, of what no formula is known for and
    what is therefore *not* in these FLOPs; `share_not_counted`: their share of the calls that are not free, 0 to 1.
    """

    parameters: int
    alive_parameters: int
    flops_dense: int
    flops_sparse: int
    bytes_dense: int
    bytes_sparse: int
    components: Mapping[str, Cost] = field(default_factory=dict)
    flops_between: int = 0
    not_counted: Mapping[str, int] = field(default_factory=dict)
    share_not_counted: float = 0.0

    def __repr__(self) -> str:
        missing = f"; {len(self.not_counted)} operations not counted" if self.not_counted else ""
        return (
            f"Cost({self.parameters:,} parameters, {self.alive_parameters:,} alive; {self.flops_dense:,} FLOPs, "
            f"{self.flops_sparse:,} of live weights; {self.bytes_dense:,} bytes, {self.bytes_sparse:,} sparse{missing})"
        )

    def _repr_html_(self) -> str:
        heads = ("part", "parameters", "alive", "FLOPs", "of live weights", "bytes", "sparse")
        parts = {"all": self, **self.components}
        rows = (
            (name, c.parameters, c.alive_parameters, c.flops_dense, c.flops_sparse, c.bytes_dense, c.bytes_sparse)
            for name, c in parts.items()
        )
        missing = "".join(f"; not counted: {name} × {calls:,}" for name, calls in list(self.not_counted.items())[:5])
        return shown(f"One example forward{missing}", heads, rows)


def cost(model: Model, example_inputs: ExampleInputs, masks: Masks | None = None, *, batch: int | None = None) -> Cost:
    """The cost of `model`, whose children are its components, under `masks` (None: everything is alive).

    `example_inputs` maps a component's name to a batch for it: a tensor, a tuple of arguments, or a dict of keywords. A
    model that is one network takes such a batch by itself. Parameters and bytes are those of the whole model; FLOPs
    those of the components that have an example.

    FLOPs are counted from the operations that really run. Counted are products: convolutions (transposed ones at their
    true cost: input places x kernel), matrix products, attention (whole, under a causal mask too), recurrent layers,
    distances; and norms (two an element). Biases, activations, pooling, losses and moves are free. A product's sparse
    FLOPs are its dense ones times the density of the weight that it reads, be that a slice, a copy in another precision
    or the weight under a norm. What a spectral norm computes once a pass is not counted.

    `batch`: how many examples the inputs are. Without it they lie along the first axis of the tensors that are longer
    than 1 there, which is a guess: the first of them is priced alone too, and where it takes another share of the FLOPs
    (attention with sequences first, no batch axis, work that is done once a batch), or does not run, a warning says so.
    Nothing tells a batch from another axis along which all goes alike, as time in a recurrent layer that takes
    sequences first: say `batch` there.

    Warns in one line of operations that it does not understand. The model runs in evaluation mode and is left as it
    was. Raises `MaskError` for a component that does not exist, masks that do not fit, an example that holds none, a
    layer that has no shape yet, a model that torch prunes already, and a batch of less than 1.
    """
    if batch is not None and not (isinstance(batch, int) and not isinstance(batch, bool) and batch >= 1):
        raise MaskError(f"batch={batch!r}: how many examples the inputs are, 1 or more")
    examples = examples_of(model, example_inputs)
    alive = _Alive(model, masks)
    parts, forward = {}, []
    for name in (WHOLE,) if WHOLE in examples else components_of(model):
        one = _forward(model, name, examples[name], alive, batch) if name in examples else _Forward()
        forward.append(one)
        if name != WHOLE:
            parts[name] = alive.holding([full for full in alive.weights if component_of(full) == name], one, {})
    found = alive.holding(list(alive.weights), sum(forward, start=_Forward()), parts)
    _warn_of_missing("cost", found.not_counted, found.share_not_counted)
    return found


@dataclass(frozen=True)
class _Forward:
    """What was counted in passes forward: FLOPs of one example, and calls of the whole batch."""

    dense: int = 0
    sparse: int = 0
    between: int = 0
    counted: int = 0
    not_counted: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: _Forward) -> _Forward:
        return _Forward(
            self.dense + other.dense,
            self.sparse + other.sparse,
            self.between + other.between,
            self.counted + other.counted,
            Counter(self.not_counted) + Counter(other.not_counted),
        )


def _forward(model: Model, name: str, example: Example, alive: _Alive, batch: int | None) -> _Forward:
    """One pass of an example through one component."""
    component = unwrap(component_at(model, name))
    counter = counted(component, example, alive.counter(model))
    if batch is None:
        found = batch_of(component, example, counter.flops, lambda: _Alive(model, None).counter(model))
        if found.guessed:
            warnings.warn(
                f"cost: {titled(name)} is priced {found.guessed}; batch= says how many examples the input is",
                stacklevel=3,
            )
        batch = found.size
    dense, sparse, between = (
        round(total / batch) for total in (counter.flops, counter.live + counter.norms, counter.between)
    )
    return _Forward(dense, sparse, between, counter.counted, counter.not_counted)


def _warn_of_missing(what: str, not_counted: Mapping[str, int], share: float) -> None:
    if not_counted:
        names = sorted(not_counted, key=lambda name: (-not_counted[name], name))
        listed = ", ".join(f"{name} x {not_counted[name]}" for name in names[:5])
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(
            f"{what}: {share:.0%} of the operations that compute something have no formula and are not in the FLOPs: "
            f"{listed}{more}",
            stacklevel=3,
        )


class _Alive:
    """How much of each parameter of a model is alive."""

    def __init__(self, model: Model, masks: Masks | None):
        check_not_pruned(model)
        self.weights = named_weights(model) if masks is None else masks.check_fits(unwrap(model))
        for name, weight in self.weights.items():
            if is_lazy(weight):
                raise MaskError(f"{name!r} has no shape yet: run the model once before it is priced")
        self.counts = {} if masks is None else masks.counts()
        self._masks = masks

    def of(self, name: str) -> int:
        return self.counts.get(name, self.weights[name].numel())

    def counter(self, model: Model) -> Operations:
        """Counts operations on these weights, of which so much is alive."""
        buffers = dict(unwrap(model).named_buffers())
        return Operations({**buffers, **self.weights}, self._masks)

    def holding(self, names: list[str], forward: _Forward, components: dict[str, Cost]) -> Cost:
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
            flops_dense=forward.dense,
            flops_sparse=forward.sparse,
            bytes_dense=bytes_dense,
            bytes_sparse=bytes_sparse,
            components=components,
            flops_between=forward.between,
            not_counted=dict(forward.not_counted),
            share_not_counted=share_not_counted(forward.not_counted, forward.counted),
        )


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs that one image costs in training, forward and backward: as computed, and of the live weights alone.

    `not_counted`: operation → calls in the step, of what is not in them; `share_not_counted` of the calls that are not
    free.
    """

    dense: float
    live: float
    not_counted: Mapping[str, int] = field(default_factory=dict)
    share_not_counted: float = 0.0


def training_flops(model: Model, objective: Objective, batch: Batch, masks: Masks | None = None) -> TrainingFlops:
    """Counts one real step of `objective` on `batch`, every loss with its backward pass, and divides by the images.

    Counted are all products (see `cost`) with the shapes that they really have, each gradient only where it is
    computed: a generator's loss costs the discriminator its input gradients, not its weights'. Norms, activations and
    the optimiser are not counted. `live`: each product times the density, under `masks`, of the weight that it reads or
    whose gradient it makes; what reads none, as attention's queries with its keys, whole. Warns in one line of
    operations that it does not understand. The model is left as it was.
    """
    copy = clone(model).train()
    counter = _Alive(copy, masks).counter(copy)
    rng = torch.Generator(device=batch.device).manual_seed(0)
    with torch.random.fork_rng(devices=[]), uncompiled(), counter:
        for names, loss in losses_of(objective, copy, batch, rng):
            parameters = {name: list(component_at(copy, name).parameters()) for name in names}
            trained = [parameter for of in unfrozen(parameters, names).values() for parameter in of]
            torch.autograd.backward(loss, inputs=trained)
    share = share_not_counted(counter.not_counted, counter.counted)
    _warn_of_missing("training_flops", counter.not_counted, share)
    images = len(batch)
    return TrainingFlops(counter.dense / images, counter.live / images, dict(counter.not_counted), share)

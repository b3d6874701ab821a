"""Which layers are faster on their live weights alone, by a table of measured rates.

A table and not a timing: the choice decides the order of sums, and equal runs must give equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from gentickets.kernels import room, threads
from gentickets.sparse.chain import runs


@dataclass(frozen=True)
class Rates:
    """What work takes on one thread, in microseconds or multiply-adds a microsecond. Only their ratios matter.

    The slower end for live weights of what `python -m benchmarks batches sparse` found on two makes of CPU
    (docs/performance.md), so that what is chosen is faster on both.
    """

    dense: float  # multiply-adds
    convolution: float  # the same of live weights alone, in whole vectors
    linear: float  # wide linear layers overflow the caches
    passes: int  # over the weights: forward, and for a step back to the inputs and the weights too
    dense_call: float
    sparse_call: float
    link_call: float  # of a chain of linear layers
    weight: float  # reading a weight; in a step its gradient, Adam and mask too
    turn: float  # an activation between a dense layer and a sparse one, which lie in memory in other orders


TRAINING = Rates(45_000.0, 17_000.0, 14_000.0, 3, 40.0, 80.0, 40.0, 0.0012, 0.0035)
INFERENCE = Rates(50_000.0, 17_000.0, 14_000.0, 1, 10.0, 50.0, 25.0, 0.00005, 0.0015)

_SHARED = 1e6  # multiply-adds from which on a kernel shares its work among threads, as _kernels.c says
_MARGIN = 1.1  # by which sparse has to be the faster: rates differ between machines, shapes and batches
_LEAST = 12  # numbers that take as long as any fewer: so much of a vector is spent on what is done for each weight


@dataclass
class Work:
    """What a layer was seen to do forward: multiply-adds; as many as they take in vectors, which a small batch does not
    fill; numbers given to it; whether all it gave was (batch, outputs); and the largest batch."""

    multiply_adds: float = 0.0
    in_vectors: float = 0.0
    inputs: int = 0
    flat: bool = True
    batch: int = 0

    def add(self, multiply_adds: float, batch: int, dtype: torch.dtype) -> None:
        """Another call, on `batch` numbers side by side."""
        self.batch = max(self.batch, batch)
        self.multiply_adds += multiply_adds
        self.in_vectors += multiply_adds * max(room(batch, dtype), _LEAST) / max(1, batch)


@dataclass(frozen=True)
class Cost:
    """What a layer of so many weights takes, but for its call, in microseconds of some machine.

    `gradients`: in a step of training; else forward alone.
    """

    work: Work
    weights: int
    density: float
    gradients: bool = True

    @property
    def rates(self) -> Rates:
        return TRAINING if self.gradients else INFERENCE

    @property
    def dense(self) -> float:
        return self.rates.passes * self.work.multiply_adds / self.rates.dense + self.weights * self.rates.weight

    @property
    def sparse(self) -> float:
        used = threads() if self.density * self.work.multiply_adds >= _SHARED else 1
        rate = (self.rates.linear if self.work.flat else self.rates.convolution) * used / torch.get_num_threads()
        return self.density * (self.rates.passes * self.work.in_vectors / rate + self.weights * self.rates.weight)


def faster(model: nn.Module, work: Mapping[int, Work], costs: Mapping[int, Cost]) -> set[int]:
    """The layers of the model, by id, that are better run on their live weights.

    `work`: of all layers, in the order of their calls; `costs`: of those that can be run so. Every layer is dense or
    sparse, a change from one to the other costs the turning of what passes between them, and the links of a chain of
    linear layers share a call: the cheapest way through all of them.
    """
    linked = _linked(model, costs)
    rates = next((cost.rates for cost in costs.values()), TRAINING)
    dense, sparse = _Way(0.0), _Way(math.inf)
    before = None
    for layer, done in work.items():
        turning = done.inputs * rates.turn if before is not None else 0.0  # the first is given what it likes best
        stay = _better(dense, sparse.then(turning))
        if layer not in costs:
            dense, sparse = stay.then(0.0), _Way(math.inf)
        else:
            cost = costs[layer]
            call = rates.link_call if (before, layer) in linked else rates.sparse_call
            go = _better(dense.then((turning + rates.sparse_call) * _MARGIN), sparse.then(call * _MARGIN))
            dense = stay.then(rates.dense_call + cost.dense)
            sparse = go.then(cost.sparse * _MARGIN, layer)
        before = layer
    return set(_better(dense, sparse).layers)


@dataclass(frozen=True)
class _Way:
    """A way through some layers: what it costs, and which of them are sparse on it."""

    cost: float
    layers: tuple[int, ...] = ()

    def then(self, cost: float, layer: int | None = None) -> _Way:
        return _Way(self.cost + cost, self.layers if layer is None else (*self.layers, layer))


def _better(one: _Way, other: _Way) -> _Way:
    return one if one.cost <= other.cost else other


def _linked(model: nn.Module, costs: Mapping[int, Cost]) -> set[tuple[int | None, int]]:
    """Pairs of linear layers, one after the other, that are one step of autograd where both are sparse."""
    links = {layer for layer, cost in costs.items() if cost.work.flat}
    found: set[tuple[int | None, int]] = set()
    for module in model.modules():
        if type(module) is nn.Sequential and module is not model:  # a model that is one itself is not swapped
            for run in runs(module, links):
                found |= {(id(one), id(other)) for one, other in pairwise(run)}
    return found

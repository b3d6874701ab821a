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

from gentickets.kernels import threads
from gentickets.sparse.chain import runs

# Of one thread, forward and backward together, in microseconds: rounded from what `python -m benchmarks sparse` found
# (docs/performance.md). Only their ratios matter.
_DENSE_RATE = 45_000.0  # multiply-adds a microsecond
_CONV_RATE, _LINEAR_RATE = 27_000.0, 21_000.0  # the same of live weights alone; wide linear layers overflow the caches
_DENSE_CALL, _SPARSE_CALL, _LINK_CALL = 40.0, 80.0, 40.0  # a call of a layer; a link: of a chain of linear layers
_UPDATE = 0.0012  # a weight's gradient, Adam and mask
_TURN = 0.0035  # an activation between a dense layer and a sparse one, which lie in memory in other orders
_SHARED = 1e6  # multiply-adds from which on a kernel shares its work among threads, as _kernels.c says
_MARGIN = 1.1  # by which sparse has to be the faster: rates differ between machines, shapes and batches


@dataclass
class Work:
    """What a layer was seen to do: multiply-adds forward, numbers given, whether all it gave was (batch, outputs)."""

    multiply_adds: float = 0.0
    inputs: int = 0
    flat: bool = True


@dataclass(frozen=True)
class Cost:
    """A step of training a layer of so many weights, but for its call, in microseconds of some machine."""

    work: Work
    weights: int
    density: float

    @property
    def dense(self) -> float:
        return 3 * self.work.multiply_adds / _DENSE_RATE + self.weights * _UPDATE

    @property
    def sparse(self) -> float:
        used = threads() if self.density * self.work.multiply_adds >= _SHARED else 1
        rate = (_LINEAR_RATE if self.work.flat else _CONV_RATE) * used / torch.get_num_threads()
        return self.density * (3 * self.work.multiply_adds / rate + self.weights * _UPDATE)


def faster(model: nn.Module, work: Mapping[int, Work], costs: Mapping[int, Cost]) -> set[int]:
    """The layers of the model, by id, that are better run on their live weights.

    `work`: of all layers, in the order of their calls; `costs`: of those that can be run so. Every layer is dense or
    sparse, a change from one to the other costs the turning of what passes between them, and the links of a chain of
    linear layers share a call: the cheapest way through all of them.
    """
    linked = _linked(model, costs)
    dense, sparse = _Way(0.0), _Way(math.inf)
    before = None
    for layer, done in work.items():
        turning = done.inputs * _TURN if before is not None else 0.0  # the first is given what it likes best
        stay = _better(dense, sparse.then(turning))
        if layer not in costs:
            dense, sparse = stay.then(0.0), _Way(math.inf)
        else:
            cost = costs[layer]
            call = _LINK_CALL if (before, layer) in linked else _SPARSE_CALL
            go = _better(dense.then((turning + _SPARSE_CALL) * _MARGIN), sparse.then(call * _MARGIN))
            dense = stay.then(_DENSE_CALL + cost.dense)
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
        if type(module) is nn.Sequential:
            for run in runs(module, links):
                found |= {(id(one), id(other)) for one, other in pairwise(run)}
    return found

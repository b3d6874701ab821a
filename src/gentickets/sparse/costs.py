"""Which layers are faster on their live weights alone, by a table of measured rates.

A table and not a timing: the choice decides the order of sums, and equal runs must give equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from gentickets.kernels import room, threads
from gentickets.sparse.chain import runs
from gentickets.sparse.wide import side_by_side


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
    wide: float  # multiply-adds of live weights in images as torch lays them out: neighbours lie across cache lines
    move: float  # an activation copied into a place with zeros around it


TRAINING = Rates(45_000.0, 17_000.0, 14_000.0, 3, 40.0, 80.0, 40.0, 0.0012, 0.0035, 10_000.0, 0.001)
INFERENCE = Rates(50_000.0, 17_000.0, 14_000.0, 1, 10.0, 50.0, 25.0, 0.00005, 0.0015, 11_000.0, 0.001)

_SHARED = 1e6  # multiply-adds from which on a kernel shares its work among threads, as _kernels.c says
_MARGIN = 1.1  # by which sparse has to be the faster: rates differ between machines, shapes and batches
_LEAST = 12  # numbers that take as long as any fewer: so much of a vector is spent on what is done for each weight

Way = Literal["lanes", "wide"]
"""How a sparse layer works: batch innermost, or on what passes through it as torch lays it out."""


@dataclass
class Work:
    """What a layer was seen to do forward: multiply-adds; as many as they take in vectors, which a small batch does not
    fill; numbers given to it; whether all it gave was (batch, outputs); and the largest batch. On what torch lays out:
    vectors again, along a row of an image or over tokens, and numbers that are copied for them, or turned; and whether
    operations of torch's own, near the layer, want images so.
    """

    multiply_adds: float = 0.0
    in_vectors: float = 0.0
    inputs: int = 0
    flat: bool = True
    batch: int = 0
    in_wide_vectors: float = 0.0
    moved: int = 0
    turned: int = 0
    as_torch_lays_out: bool = False

    def add(self, multiply_adds: float, batch: int, dtype: torch.dtype) -> None:
        """Another call, on `batch` numbers side by side."""
        self.batch = max(self.batch, batch)
        self.multiply_adds += multiply_adds
        self.in_vectors += multiply_adds * max(room(batch, dtype), _LEAST) / max(1, batch)

    def add_wide(self, multiply_adds: float, width: int, dtype: torch.dtype) -> None:
        """The same call on rows of so many: in vectors of the largest power of two in it, the last overlapping."""
        width = side_by_side(width)
        vector = min(64 // dtype.itemsize, 1 << (max(1, width).bit_length() - 1))
        self.in_wide_vectors += multiply_adds * -(-width // vector) * max(vector, _LEAST) / max(1, width)


@dataclass(frozen=True)
class Cost:
    """What a layer of so many weights takes, but for its call, in microseconds of some machine.

    `gradients`: in a step of training; else forward alone. `ways`: those in which it can be run on its live weights.
    `normed`: these are under a norm, which is taken of the live ones in every pass.
    """

    work: Work
    weights: int
    density: float
    gradients: bool = True
    ways: tuple[Way, ...] = ("lanes",)
    normed: bool = False

    @property
    def rates(self) -> Rates:
        return TRAINING if self.gradients else INFERENCE

    @property
    def dense(self) -> float:
        return self.rates.passes * self.work.multiply_adds / self.rates.dense + self.weights * self.rates.weight

    @property
    def sparse(self) -> float:
        """On live weights, batch innermost, given what lies so."""
        rate = self.rates.linear if self.work.flat else self.rates.convolution
        return self._on_live(self.work.in_vectors, rate) if "lanes" in self.ways else math.inf

    @property
    def wide(self) -> float:
        """On live weights, given what torch lays out, and giving such."""
        rates, work = self.rates, self.work
        around = work.moved * rates.move + work.turned * rates.turn + (rates.sparse_call if self.normed else 0.0)
        return self._on_live(work.in_wide_vectors, rates.wide) + around if "wide" in self.ways else math.inf

    def _on_live(self, in_vectors: float, rate: float) -> float:
        used = threads() if self.density * self.work.multiply_adds >= _SHARED else 1
        rate *= used / torch.get_num_threads()
        return self.density * (self.rates.passes * in_vectors / rate + self.weights * self.rates.weight)


def faster(model: nn.Module, work: Mapping[int, Work], costs: Mapping[int, Cost]) -> dict[int, Way]:
    """The layers of the model, by id, that are better run on their live weights, and in which way.

    `work`: of all layers, in the order of their calls; `costs`: of those that can be run so. Every layer works batch
    innermost or on what torch lays out, and there on all of its weights or the live ones; a change from one layout to
    the other costs the turning of what passes between them, and the links of a chain of linear layers share a call: the
    cheapest way through all of them.
    """
    linked = _linked(model, costs)
    rates = next((cost.rates for cost in costs.values()), TRAINING)
    plain, lanes = _Path(0.0), _Path(math.inf)
    before = None
    for layer, done in work.items():
        turning = done.inputs * rates.turn if before is not None else 0.0  # the first is given what it likes best
        stay = _better(plain, lanes.then(turning))
        if layer not in costs:
            plain, lanes = stay.then(0.0), _Path(math.inf)
        else:
            cost = costs[layer]
            call = rates.link_call if (before, layer) in linked else rates.sparse_call
            go = _better(plain.then((turning + rates.sparse_call) * _MARGIN), lanes.then(call * _MARGIN))
            plain = _better(
                stay.then(rates.dense_call + cost.dense),
                stay.then((rates.sparse_call + cost.wide) * _MARGIN, (layer, "wide")),
            )
            lanes = go.then(cost.sparse * _MARGIN, (layer, "lanes"))
        before = layer
    return dict(_better(plain, lanes).layers)


@dataclass(frozen=True)
class _Path:
    """A way through some layers: what it costs, and which of them are sparse on it."""

    cost: float
    layers: tuple[tuple[int, Way], ...] = ()

    def then(self, cost: float, layer: tuple[int, Way] | None = None) -> _Path:
        return _Path(self.cost + cost, self.layers if layer is None else (*self.layers, layer))


def _better(one: _Path, other: _Path) -> _Path:
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

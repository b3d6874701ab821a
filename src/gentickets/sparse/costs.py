"""Which layers are faster on their live weights alone, by a table of measured rates.

A table and not a timing: the choice decides the order of sums, and equal runs must give equal bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gentickets.kernels import threads
from gentickets.sparse.chain import runs

# Multiply-adds a microsecond, microseconds a call, and microseconds to update a weight, of one thread, forward and
# backward together: rounded from what `python -m benchmarks sparse-training` measured (docs/performance.md). Only their
# ratios matter.
_DENSE_RATE, _DENSE_CALL = 45_000.0, 40.0
_SPARSE_RATE, _SPARSE_CALL, _LINK_CALL = 20_000.0, 60.0, 30.0  # a link: of a chain of linear layers
_UPDATE = 0.0012  # gradient, Adam and mask
_WORTH = 0.72  # of the dense time: what lies around a sparse layer (pooling, sums, dense layers) has its layout changed
_WORTH_CHAIN = 0.9  # around a chain of linear layers that is its input and its output


@dataclass
class Work:
    """What a layer was seen to do: multiply-adds forward, and whether all it gave was (batch, outputs)."""

    multiply_adds: float = 0.0
    flat: bool = True


@dataclass(frozen=True)
class Cost:
    """A step of training a layer of so many weights, in microseconds of some machine."""

    work: Work
    weights: int
    density: float

    @property
    def dense(self) -> float:
        return _DENSE_CALL + 3 * self.work.multiply_adds / _DENSE_RATE + self.weights * _UPDATE

    @property
    def sparse(self) -> float:
        return _SPARSE_CALL + self._without_call

    @property
    def as_link(self) -> float:
        """The same as a link of a chain, whose links share a call."""
        return _LINK_CALL + self._without_call

    @property
    def _without_call(self) -> float:
        rate = _SPARSE_RATE * threads() / torch.get_num_threads()
        return self.density * (3 * self.work.multiply_adds / rate + self.weights * _UPDATE)


def faster(model: nn.Module, costs: Mapping[int, Cost]) -> set[int]:
    """The layers of the model, by id, that are run faster on their live weights: one by one, or as a chain.

    `costs` are those of the layers that can be run so.
    """
    found = {number for number, cost in costs.items() if cost.sparse < _WORTH * cost.dense}
    for chain in _chains(model, costs):
        dense = sum(costs[number].dense for number in chain)
        sparse = _SPARSE_CALL + sum(costs[number].as_link for number in chain)
        if sparse < _WORTH_CHAIN * dense:
            found.update(chain)
    return found


def _chains(model: nn.Module, costs: Mapping[int, Cost]) -> Iterator[list[int]]:
    """The linear layers that would be one step of autograd together: each worth it as a link of a chain."""
    links = {number for number, cost in costs.items() if cost.work.flat and cost.as_link < cost.dense}
    for module in model.modules():
        if type(module) is nn.Sequential:
            for run in runs(module, links):
                yield [id(layer) for layer in run]

"""Runs of sparse linear layers and rectifiers as one step of autograd.

At 99 % sparsity a small network multiplies so little that what remains is Python's and autograd's own work between the
layers; a run of them in one function has that once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from gentickets.sparse.beside import StandIn
from gentickets.sparse.layers import Connections, is_hooked
from gentickets.sparse.operations import rectified, through

Link = tuple[Connections, float]
"""A layer and the slope of the rectifier behind it for negative numbers (0: ReLU); 1: no rectifier."""


class SparseSequential(StandIn, nn.Sequential):
    """`nn.Sequential` that takes each run of sparse linear layers and rectifiers in one.

    The last run, if no layer with weights follows it, gives its outputs batch first: what compares them with images
    would take many times as long on two layouts at once. Any other stays batch innermost, for layers to come.
    """

    def __getitem__(self, index: Any) -> Any:
        return self._original[0][index]  # a part of it is a plain sequence

    def forward(self, inputs: Any) -> Any:
        parts = list(_parts(list(self._modules.values())))
        last = _last_weighted(parts)
        for number, part in enumerate(parts):
            if isinstance(part, nn.Module):
                inputs = part(inputs)
            elif isinstance(inputs, Tensor) and inputs.dim() == 2:
                inputs = _chained(part, inputs, batch_first=number == last)
            else:
                for layer, slope in part:
                    inputs = rectified(layer(inputs), slope)
        return inputs


def runs(sequence: nn.Sequential, layers: Container[int]) -> Iterator[list[nn.Module]]:
    """Those of the `layers`, by id, that would be one step of autograd if they were sparse."""
    for part in _parts(list(sequence), lambda module: id(module) in layers):
        if isinstance(part, list):
            yield [layer for layer, _ in part]


def _is_link(module: nn.Module) -> bool:
    return isinstance(module, Connections) and not is_hooked(module)


def _parts(modules: list[Any], is_link: Callable[[nn.Module], bool] = _is_link) -> Iterator[Any]:
    """Modules as they are, and runs of links."""
    run: list[Link] = []
    while modules:
        module = modules.pop(0)
        if is_link(module):
            slope = _slope(modules[0]) if modules else None
            if slope is not None:
                modules.pop(0)
            run.append((module, 1.0 if slope is None else slope))
            continue
        if run:
            yield run
            run = []
        yield module
    if run:
        yield run


def _last_weighted(parts: list[Any]) -> int:
    """The number of the last part that has weights: of one that is no module, a run of links."""
    weighted = [
        k for k, part in enumerate(parts) if isinstance(part, list) or next(part.parameters(), None) is not None
    ]
    return max(weighted, default=-1)


def _slope(module: nn.Module) -> float | None:
    """Of a rectifier; None for what is none."""
    if type(module) is nn.ReLU and not is_hooked(module):
        return 0.0
    if type(module) is nn.LeakyReLU and module.negative_slope > 0 and not is_hooked(module):
        return module.negative_slope
    return None


def _chained(links: list[Link], inputs: Tensor, batch_first: bool) -> Tensor:
    """(batch, inputs) → (batch, outputs), in memory batch first or batch innermost."""
    first = links[0][0]
    first.check(inputs, 2, -1, first.pattern.big)
    for (one, _), (other, _) in pairwise(links):
        if one.pattern.small != other.pattern.big:
            raise ValueError(
                f"{other} takes {other.pattern.big} numbers, and {one} before it gives {one.pattern.small}"
            )
    tensors = [tensor for layer, _ in links for tensor in (layer.weights(), layer.bias)]
    chain = [(layer.pattern.layout(), slope) for layer, slope in links]
    return through(inputs.to(first.values.dtype), chain, tensors, batch_first=batch_first)

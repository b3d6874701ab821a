"""What a pass forward of one component takes, and how many examples its input is.

Whoever prices a pass does it by way of this module, so that all prices of one network are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from gentickets.evaluating import evaluating
from gentickets.flops.operations import FLOPS_A_NORM, Operations, uncompiled
from gentickets.masks.examples import Example, named_tensors
from gentickets.masks.names import named_layers


@contextmanager
def counting(component: nn.Module, counter: Operations) -> Iterator[None]:
    """While it is entered, the component is in evaluation mode, and all that it does is counted."""

    def count_norm(layer: nn.Module, given: Any, output: Any) -> None:
        counter.norms += FLOPS_A_NORM * output.numel()

    with ExitStack() as stack:
        for _, layer in named_layers(component):
            if isinstance(layer, nn.RMSNorm):  # which runs as elementwise operations
                stack.callback(layer.register_forward_hook(count_norm).remove)
        for context in (evaluating(component), uncompiled(), counter.leaving(), counter):
            stack.enter_context(context)
        yield


def counted(component: nn.Module, example: Example, counter: Operations) -> Operations:
    """The counter, after one pass of an example through a component."""
    where = next((p.device for p in component.parameters()), example.tensors[0].device)
    with counting(component, counter):
        counter.gave(tensor for _, tensor in named_tensors(example.to(where)(component)))
    return counter


@dataclass(frozen=True)
class Batch:
    """How many examples an input is. `guessed`: nothing but its shape says so, and what speaks against it in words;
    empty where one example was found to take its share of the FLOPs."""

    size: int
    guessed: str = ""


_SHARE_ONCE = 0.01
"""The share of the FLOPs that may be taken once a batch without a word."""


def batch_of(component: nn.Module, example: Example, flops: int, counter: Callable[[], Operations]) -> Batch:
    """How many examples are in an example input that takes so many FLOPs: the length at which the first of them takes
    its share of these, by a counter each; where there is none, what shapes tell."""
    alone: int | None = None
    for place, length in enumerate(example.lengths):
        try:
            found = counted(component, example.first(1, length), counter()).flops
        except Exception:  # a stranger's code, which may want a batch of just that, or no batch at all
            continue
        if abs(found * length - flops) <= _SHARE_ONCE * flops:
            return Batch(length)
        alone = found if not place else alone
    batch = example.batch
    if not example.lengths:
        return Batch(batch)
    told = "do not run one by one" if alone is None else f"take {alone:,} alone and {flops / batch:,.0f} together"
    return Batch(batch, f"as {batch} examples along the first axis of its input, a guess: they {told}")

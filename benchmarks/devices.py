"""One training on two devices: two processes with one thread each, beside one process with two threads.

What is timed is whole steps of `gt.training.train` on batches of 64. The two share each batch, average their gradients
and agree after each step; with batch norm of each one's own images they train something else, which `train` refuses:
that row only tells what synchronising it costs.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.processes import SECONDS, work
from benchmarks.steps import build
from gentickets.training import Settings, loop, train
from gentickets.training.devices import several_devices
from gentickets.training.whole_batch import WholeDraws


@benchmark({"net": ("linear-ae", "vae", "dcgan")}, {"net": ("tiny-ae",)}, on_request=True)
def devices(net: str) -> Contest:
    """A step of one training on one device with two threads, or on two with one each."""
    closing = ExitStack()
    alone = [Rank(net, 0, 1, 2, True, None, closing)]
    ways = {"one process, two threads": alone, "one process, one thread": [Rank(net, 0, 1, 1, True, None, closing)]}
    for name, synchronised in {"two devices": True, "two devices, each its own batch norm": False}.items():
        place = Path(closing.enter_context(tempfile.TemporaryDirectory()), "meeting")
        ways[name] = [Rank(net, rank, 2, 1, synchronised, place, closing) for rank in (0, 1)]
    for ranks in ways.values():
        work(ranks, 3)  # type: ignore[arg-type]
    steps = max(2, round(SECONDS / alone[0].seconds_a_step()))
    contenders = {
        name: Contender(lambda ranks=ranks: work(ranks, steps), per=steps)  # type: ignore[misc]
        for name, ranks in ways.items()
    }
    return Contest("one process, two threads", contenders, closing)


class Rank:
    """A process that trains a net, one of `size`, as many steps as it is told."""

    def __init__(
        self, net: str, rank: int, size: int, threads: int, synchronised: bool, meeting: Path | None, closing: ExitStack
    ):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        told = (net, rank, size, threads, synchronised, meeting, theirs)
        process = context.Process(target=_train, args=told, daemon=True)
        process.start()
        theirs.close()
        closing.callback(process.join)
        closing.callback(self.pipe.close)  # the first of the two to be called: it ends the process

    def seconds_a_step(self) -> float:
        import time

        begun = time.perf_counter()
        work([self], 3)  # type: ignore[list-item]
        return (time.perf_counter() - begun) / 3


class _AsTold:
    """One batch for every step, each given when a step was asked for."""

    def __init__(self, batch: Tensor, pipe: Connection):
        self._batch, self._pipe, self._left = batch, pipe, -1

    def at(self, step: int) -> Tensor:
        if self._left == 0:
            self._pipe.send(None)
        if self._left <= 0:
            self._left = self._pipe.recv()
        self._left -= 1
        return self._batch


def _train(
    net: str, rank: int, size: int, threads: int, synchronised: bool, meeting: Path | None, pipe: Connection
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    made = build(net)
    if not synchronised:
        loop.whole_batch, loop.check_tried = _draws_alone, lambda *_: None  # type: ignore[assignment]
    settings = Settings(steps=10**9, batch_size=len(made.batch), lr=made.lr, betas=made.betas)
    joined: Any = nullcontext() if size == 1 else several_devices("cpu", "32-true", rank, size, meeting)
    with joined as fabric:
        try:
            train(made.model, made.objective, _AsTold(made.batch, pipe), settings, fabric=fabric)
        except EOFError:
            return


@contextmanager
def _draws_alone(ranks: Any, axis_of: Any, made: Any) -> Iterator[None]:
    with WholeDraws(axis_of, ranks.rank, ranks.size, made):
        yield

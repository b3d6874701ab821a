"""One training on two devices: two processes with one thread each, beside one process with two threads.

What is timed is whole steps of `gt.training.train` on batches of 64. The two share each batch, average their gradients
and agree after each step; with batch norm of each one's own images they train something else, which `train` refuses:
that row only tells what synchronising costs. Beside time: what all processes of a way compute in a step, which a busy
machine does not change as it changes time.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.steps import build
from gentickets.training import Settings, loop, train
from gentickets.training.devices import several_devices
from gentickets.training.whole_batch import WholeDraws

SECONDS = 1.0
"""About how long one measurement of the reference takes: short ones would time how processes are waited for."""


@benchmark({"net": ("linear-ae", "vae", "dcgan")}, {"net": ("tiny-ae",)}, on_request=True)
def devices(net: str) -> Contest:
    """A step of one training on one device with two threads, or on two with one each."""
    closing = ExitStack()
    ways = {
        "one process, two threads": Way(net, 1, 2, True, closing),
        "one process, one thread": Way(net, 1, 1, True, closing),
        "two devices": Way(net, 2, 1, True, closing),
        "two devices, each its own batch norm": Way(net, 2, 1, False, closing),
    }
    steps = 3
    for way in ways.values():
        way(steps)
    begun = time.perf_counter()
    ways["one process, one thread"](steps)
    steps = max(2, round(SECONDS * steps / (time.perf_counter() - begun)))
    contenders = {name: Contender(way.run(steps), per=steps, figures=way.figures) for name, way in ways.items()}
    return Contest("one process, two threads", contenders, closing)


class Way:
    """The processes of one way to train, which take as many steps as they are told."""

    def __init__(self, net: str, size: int, threads: int, synchronised: bool, closing: ExitStack):
        context = multiprocessing.get_context("spawn")
        place = Path(closing.enter_context(tempfile.TemporaryDirectory()), "meeting")
        self._pipes: list[Connection] = []
        self._cpu: list[tuple[int, float]] = []
        self.figures: dict[str, float] = {}
        for rank in range(size):
            ours, theirs = context.Pipe()
            told = (net, rank, size, threads, synchronised, place, theirs)
            process = context.Process(target=_train, args=told, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            closing.callback(process.join)
        for pipe in self._pipes:
            closing.callback(pipe.close)  # these are called first, and end the processes

    def __call__(self, steps: int) -> None:
        for pipe in self._pipes:
            pipe.send(steps)
        spent = sum(pipe.recv() for pipe in self._pipes)
        self._cpu.append((steps, spent))
        if len(self._cpu) > 1:  # the first has the start of the processes in it
            taken = sum(count for count, _ in self._cpu[1:])
            self.figures["CPU ms"] = round(1e3 * (spent - self._cpu[0][1]) / taken, 2)

    def run(self, steps: int) -> Any:
        return lambda: self(steps)


class _AsTold:
    """One batch for every step, each given when a step was asked for; tells the seconds that were computed so far."""

    def __init__(self, batch: Tensor, pipe: Connection):
        self._batch, self._pipe, self._left = batch, pipe, -1

    def at(self, step: int) -> Tensor:
        if self._left == 0:
            self._pipe.send(time.process_time())
        if self._left <= 0:
            self._left = self._pipe.recv()
        self._left -= 1
        return self._batch


def _train(net: str, rank: int, size: int, threads: int, synchronised: bool, meeting: Path, pipe: Connection) -> None:
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

"""Several trainings on one machine: as processes, or stacked into one by `torch.func.vmap`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, stack_module_state, vmap

from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.pairs import wait_for_gpu
from benchmarks.steps import Step, build, device, use

SECONDS = 0.4
"""About how long the processes work in one measurement: short ones would time how they are waited for."""


@benchmark({"net": ("linear-ae", "vae", "dcgan")}, {"net": ("tiny-ae",)})
def processes(net: str) -> Contest:
    """Time for one step's work: two processes with one thread each do twice as many at a time."""
    closing = ExitStack()
    together = [Worker(net, 1, closing), Worker(net, 1, closing)]
    alone = Worker(net, 2, closing)
    steps = max(2, round(SECONDS / alone.seconds_a_step))
    return Contest(
        "one process, two threads",
        {
            "one process, two threads": Contender(lambda: work([alone], steps), per=steps),
            "two processes, one thread each": Contender(lambda: work(together, steps), per=2 * steps),
        },
        closing,
    )


class Worker:
    """A process of its own that trains a net for as many steps as it is told."""

    def __init__(self, net: str, threads: int, closing: ExitStack):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=_train, args=(net, threads, str(device()), theirs), daemon=True)
        process.start()
        theirs.close()
        closing.callback(process.join)
        closing.callback(self.pipe.close)  # the first of the two to be called: it ends the process
        self.seconds_a_step: float = self.pipe.recv()


def work(workers: list[Worker], steps: int) -> None:
    for worker in workers:
        worker.pipe.send(steps)
    for worker in workers:
        worker.pipe.recv()


def _train(net: str, threads: int, where: str, pipe: Connection) -> None:
    import time

    torch.set_num_threads(threads)
    use(where)
    step = Step(build(net))
    step()
    wait_for_gpu()
    start = time.perf_counter()
    step()
    wait_for_gpu()
    pipe.send(time.perf_counter() - start)
    try:
        while True:
            for _ in range(pipe.recv()):
                step()
            wait_for_gpu()
            pipe.send(None)
    except EOFError:
        return


@benchmark({"count": (4,)}, {"count": (2,), "net": ("tiny-ae",)})
def stacked(count: int, net: str = "linear-ae") -> Contest:
    """A step of several linear autoencoders, one after the other or as one stack."""
    singles = [Step(build(net)) for _ in range(count)]

    def one_by_one() -> None:
        for step in singles:
            step()

    return Contest(
        "one after the other",
        {"one after the other": Contender(one_by_one), "torch.func.vmap": Contender(stacked_step(net, count))},
    )


def stacked_step(name: str, count: int) -> Callable[[], None]:
    nets = [build(name) for _ in range(count)]
    model, batch = nets[0].model, nets[0].batch
    weights, _ = stack_module_state([net.model for net in nets])
    adam = torch.optim.Adam(weights.values(), lr=nets[0].lr, fused=True)

    def loss(own: dict[str, Any]) -> torch.Tensor:
        return F.mse_loss(functional_call(model, own, (batch,)), batch)

    slopes = vmap(grad(loss))

    def step() -> None:
        for key, slope in slopes(weights).items():
            weights[key].grad = slope.detach()
        adam.step()

    return step

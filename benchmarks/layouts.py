"""Ways of running the same dense step: memory layout, threads, compilation, half precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.steps import Net, Step, build, device
from gentickets.training.devices import on_threads


@benchmark({"net": ("dcgan", "vae")}, {"width": (8,), "net": ("vae",)})
def channels_last(net: str, width: int = 64) -> Contest:
    """Batch and weights with the channels innermost."""
    last = build(net, width=width)
    images = last.batch.to(memory_format=torch.channels_last)
    last = replace(last, model=last.model.to(memory_format=torch.channels_last), batch=images)
    return _against_plain(net, Step(last), "channels_last", width=width)


@benchmark({"net": ("linear-ae", "vae", "dcgan")}, {"net": ("tiny-ae",)})
def threads(net: str) -> Contest:
    """One and two threads in the same process."""
    steps = {count: _with_threads(Step(build(net)), count) for count in (1, 2)}
    return Contest("one thread", {"one thread": Contender(steps[1]), "two threads": Contender(steps[2])})


@benchmark({"net": ("linear-ae", "dcgan")}, {"net": ("tiny-ae",)})
def half_precision(net: str) -> Contest:
    """bfloat16 by autocast."""
    step = Step(build(net))

    def autocast() -> None:
        with torch.autocast(device().type, torch.bfloat16):
            step()

    return _against_plain(net, autocast, "bf16 autocast")


@benchmark({"net": ("linear-ae", "vae", "dcgan")}, {"net": ("tiny-ae",)}, on_request=True)
def compiled(net: str) -> Contest:
    """`torch.compile` of each component; compiling, which takes some 20 s, is not timed."""
    return _against_plain(net, Step(with_compiled_parts(build(net))), "torch.compile(dynamic=False)")


def with_compiled_parts(net: Net) -> Net:
    """The net, each of its components by `torch.compile`, in place."""
    for name, component in list(net.model.named_children()):
        setattr(net.model, name, torch.compile(component, dynamic=False))
    return net


def _against_plain(net: str, step: Callable[[], None], name: str, **options: int) -> Contest:
    return Contest("plain", {"plain": Contender(Step(build(net, **options))), name: Contender(step)})


def _with_threads(step: Step, count: int) -> Callable[[], None]:
    def run() -> None:
        with on_threads(count):
            step()

    return run

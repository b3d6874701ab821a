"""What only a GPU raises: launches that cost more than their work, half precision, 2:4 sparsity, trainings together.

On request, with `--device cuda`. Without a GPU the ways that need one are left out and the others run, to be rehearsed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gentickets as gt
from benchmarks.channels import shrunk
from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.layouts import with_compiled_parts
from benchmarks.processes import Worker, stacked_step, work
from benchmarks.sparse_execution import CsrLinear
from benchmarks.steps import Step, build, capturable, device, magnitude_masks


@benchmark({"net": ("linear-ae", "vae", "dcgan")}, {"net": ("tiny-ae",)}, on_request=True)
def gpu_step(net: str) -> Contest:
    """A dense step: op by op, compiled, as one CUDA graph, and each in bfloat16; a held one at 90 % as a graph."""
    closing = ExitStack()
    ways: dict[str, Callable[[], object]] = {
        "eager": Step(build(net)),
        "eager, bf16 autocast": _in_bfloat16(Step(build(net))),
    }
    if device().type == "cuda":
        held = Step(build(net), capturable)
        masks = magnitude_masks(held.net, 0.9)
        closing.enter_context(masks.hold(held.net.model, *held.optimizers.values()))
        ways |= {
            "eager, TF32": _in_tf32(Step(build(net))),
            "torch.compile": Step(with_compiled_parts(build(net))),
            "CUDA graph": graphed(Step(build(net), capturable)),
            "CUDA graph, bf16 autocast": graphed(Step(build(net), capturable), _in_bfloat16),
            "CUDA graph, held at 90 %": graphed(held),
        }
    return Contest("eager", {name: Contender(way) for name, way in ways.items()}, closing)


@benchmark({}, {"width": (8,)}, on_request=True)
def gpu_table2(width: int = 128) -> Contest:
    """A step of Table 2's rows: dense, held to IMP's mask, and of an early bird that 57 % of the channels have left."""
    whole, kept = partial(build, "table2-dcgan", width=width), 0.43
    held, early = Step(whole()), partial(shrunk, "table2-dcgan", kept, width)
    closing = ExitStack()
    closing.enter_context(magnitude_masks(held.net, 0.79).hold(held.net.model, *held.optimizers.values()))
    ways: dict[str, Callable[[], object]] = {
        "dense": Step(whole()),
        "dense, bf16 autocast": _in_bfloat16(Step(whole())),
        "held at 79 %": held,
        "early bird": Step(early()),
        "early bird, bf16 autocast": _in_bfloat16(Step(early())),
    }
    if device().type == "cuda":
        ways["dense, CUDA graph"] = graphed(Step(whole(), capturable))
        ways["early bird, CUDA graph"] = graphed(Step(early(), capturable))
        ways["early bird, CUDA graph, bf16 autocast"] = graphed(Step(early(), capturable), _in_bfloat16)
    return Contest("dense", {name: Contender(way) for name, way in ways.items()}, closing)


def graphed(step: Step, within: Callable[[Step], Callable[[], object]] = lambda step: step) -> Callable[[], object]:
    """A whole step, its random draws and its optimisers included, as one CUDA graph; `within` wraps the step first."""
    run, stream = within(step), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(step.rng)
    with torch.cuda.graph(graph):
        run()

    def replay() -> None:
        assert step.optimizers  # a graph does not own the weights and images that it reads: they live as long as this
        graph.replay()

    return replay


def _in_bfloat16(step: Step) -> Callable[[], object]:
    def run() -> None:
        with torch.autocast(device().type, torch.bfloat16, cache_enabled=False):
            step()

    return run


def _in_tf32(step: Step) -> Callable[[], object]:
    def run() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        step()
        torch.set_float32_matmul_precision(before)

    return run


LINEAR = {"outputs": (1024, 4096), "inputs": (4096,), "batch": (128, 4096)}


@benchmark(LINEAR, {"outputs": (32,), "inputs": (64,), "batch": (16,)}, on_request=True)
def gpu_linear(outputs: int, inputs: int, batch: int) -> Contest:
    """One linear layer forwards, as at inference: half precision, 2:4 sparsity in it, compressed rows."""
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs, device=device())
    images = torch.randn(batch, inputs, device=device())
    half, half_images = weight.bfloat16(), images.bfloat16()
    ways: dict[str, Callable[[], object]] = {
        "float32": lambda: F.linear(images, weight),
        "bfloat16": lambda: F.linear(half_images, half),
    }
    for sparsity in (0.95, 0.99):
        rows = _pruned(weight, sparsity).to_sparse_csr()
        ways[f"torch.sparse at {sparsity:.0%}"] = lambda rows=rows: rows @ images.t()  # type: ignore[misc]
    if device().type == "cuda":
        half_of_four = torch.sparse.to_sparse_semi_structured(two_of_four(half))
        ways["bfloat16, 2:4"] = lambda: F.linear(half_images, half_of_four)
    return Contest("float32", {name: Contender(_without_gradients(way)) for name, way in ways.items()})


def two_of_four(weight: Tensor) -> Tensor:
    """The two largest of each four weights in a row, by magnitude, and 0.0 for the others."""
    fours = weight.reshape(-1, 4)
    kept = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, fours.abs().topk(2, dim=1).indices, True)
    return (fours * kept).reshape(weight.shape)


@benchmark({"sparsity": (0.95, 0.99)}, {"outputs": (32,), "inputs": (64,), "batch": (16,)}, on_request=True)
def gpu_sparse_linear(sparsity: float, outputs: int = 4096, inputs: int = 4096, batch: int = 128) -> Contest:
    """Forward and backward through one linear layer: dense, or compressed rows with sampled gradients."""
    torch.manual_seed(0)
    dense = nn.Linear(inputs, outputs, device=device())
    mask = _pruned(dense.weight.detach(), sparsity) != 0
    images = torch.randn(batch, inputs, device=device())
    return Contest("dense", {
        "dense": Contender(_there_and_back(dense, images)),
        "torch.sparse, sampled gradients": Contender(_there_and_back(CsrLinear(dense, mask), images)),
    })  # fmt: skip


def _pruned(weight: Tensor, sparsity: float) -> Tensor:
    masks = gt.prune({"weight": weight.abs()}, to_sparsity=sparsity)
    return weight * masks["weight"].to(weight.device)


def _there_and_back(layer: nn.Module, images: Tensor) -> Callable[[], object]:
    given = images.clone().requires_grad_()

    def run() -> None:
        layer(given).sum().backward()

    return run


def _without_gradients(way: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            way()

    return run


@benchmark({"net": ("linear-ae", "dcgan"), "count": (4, 8)}, {"net": ("tiny-ae",), "count": (2,)}, on_request=True)
def gpu_together(net: str, count: int) -> Contest:
    """A step of each of several trainings on one GPU, which one of them leaves idle."""
    closing = ExitStack()
    ways: dict[str, Contender] = {"one after the other": Contender(_in_turn([Step(build(net)) for _ in range(count)]))}
    if net.endswith("-ae"):
        ways["torch.func.vmap"] = Contender(stacked_step(net, count))
    workers = [Worker(net, 1, closing) for _ in range(count)]
    steps = max(2, round(0.4 / max(worker.seconds_a_step for worker in workers)))
    ways["processes"] = Contender(lambda: work(workers, steps), per=steps)
    if device().type == "cuda":
        ways["streams"] = Contender(_in_streams([Step(build(net)) for _ in range(count)]))
        graphs = [graphed(Step(build(net), capturable)) for _ in range(count)]
        ways["CUDA graphs, one after the other"] = Contender(_in_turn(graphs))
        graphs = [graphed(Step(build(net), capturable)) for _ in range(count)]
        ways["CUDA graphs in streams"] = Contender(_in_streams(graphs))
    return Contest("one after the other", ways, closing)


def _in_turn(steps: list) -> Callable[[], object]:  # type: ignore[type-arg]
    def run() -> None:
        for step in steps:
            step()

    return run


def _in_streams(steps: list) -> Callable[[], object]:  # type: ignore[type-arg]
    streams: Mapping[int, torch.cuda.Stream] = {k: torch.cuda.Stream() for k in range(len(steps))}

    def run() -> None:
        for k, step in enumerate(steps):
            with torch.cuda.stream(streams[k]):
                step()

    return run

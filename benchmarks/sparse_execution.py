"""Training and running on live weights alone: `gt.accelerate` beside the masked dense net and other ways."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import gentickets as gt
from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.steps import BATCH, Net, Step, as_in_train, build, device, magnitude_masks
from gentickets.channels.export import export
from gentickets.models import CATALOGUE

CASES = {"net": ("linear-ae", "deep-ae", "vae", "dcgan"), "sparsity": (0.9, 0.95, 0.98, 0.99)}
QUICK = {"net": ("tiny-ae",), "sparsity": (0.9,)}
TRAINING: Mapping[str, Mapping[float, float]] = {
    "linear-ae": {0.9: 0.5, 0.95: 0.29, 0.98: 0.2, 0.99: 0.14},
    "deep-ae": {0.9: 0.5, 0.95: 0.29, 0.98: 0.2, 0.99: 0.14},
    "dcgan": {0.95: 0.5},
}
"""A training step, as a share of the dense one: the goals."""
MEMORY = {0.9: 0.22, 0.95: 0.12, 0.98: 0.05, 0.99: 0.03}
"""Weights, gradients and Adam's moments, as a share of the dense net's: the goals, for nets of linear layers."""


@benchmark(CASES, QUICK)
def sparse_training(net: str, sparsity: float) -> Contest:
    """A whole training step; fused Adam everywhere, accelerated as `train` runs it.

    `memory`: weights, gradients, Adam's state, against dense.
    """
    closing = ExitStack()
    dense = Step(build(net))
    held = build(net)
    masks = magnitude_masks(held, sparsity)
    contenders = {"dense": Contender(dense)}
    holding = Step(held)
    closing.enter_context(masks.hold(held.model, *holding.optimizers.values()))
    contenders["masked dense"] = Contender(holding)
    step = _fast_step(build(net), masks, closing)
    step()
    dense()
    contenders["gentickets accelerate"] = Contender(
        step,
        figures={"memory": round(step.nbytes / dense.nbytes, 4), "loss, relative": _strays(net, masks)},
        at_most={**_goal("ratio", TRAINING.get(net, {}), sparsity), **_memory_goal(net, sparsity)},
    )
    if isinstance(held.objective, gt.Autoencoding):  # linear layers alone
        contenders["torch.sparse, sampled gradients"] = Contender(Step(_torch_sparse(build(net), masks)))
        contenders["dead units removed"] = Contender(Step(_shrunk(build(net), masks)))
    return Contest("dense", contenders, closing)


@benchmark(
    {"model": tuple(name for name in CATALOGUE if name.startswith("paper-")), "sparsity": (0.7, 0.9)},
    {"model": ("paper-linear-ae",), "sparsity": (0.9,)},
)
def sparse_catalogue(model: str, sparsity: float) -> Contest:
    """Every network of the paper, of width 32, trained as `train` does by itself: never slower than masked dense."""
    closing = ExitStack()
    held = _preset(model)
    masks = magnitude_masks(held, sparsity)
    dense = Step(held, as_in_train)
    closing.enter_context(masks.hold(held.model, *dense.optimizers.values()))
    fast = Contender(_fast_step(_preset(model), masks, closing), at_most={"ratio": 1.0})
    return Contest("masked dense", {"masked dense": Contender(dense), "gentickets accelerate": fast}, closing)


def _preset(name: str) -> Net:
    torch.manual_seed(0)
    images = (torch.rand(BATCH, 3, 32, 32) * 2 - 1).to(device())
    model = CATALOGUE[name](32, 3, width=32).to(device())
    if hasattr(model, "generator"):
        loss: gt.Objective = gt.Adversarial(128, loss="hinge")
    else:
        loss = gt.ELBO(32) if "vae" in name else gt.Autoencoding()
    return Net(model, loss, images)


@benchmark(CASES, QUICK)
def sparse_inference(net: str, sparsity: float) -> Contest:
    """The last component, in evaluation mode: a decoder on codes, a generator on latents."""
    closing = ExitStack()
    plain = build(net)
    masks = magnitude_masks(plain, sparsity)
    masks.apply_(plain.model)
    goal = {"ratio": 0.334} if net == "dcgan" and sparsity == 0.95 else {}
    ways = {
        "dense": plain,
        "gentickets accelerate": _accelerated(build(net), masks, closing),
        "dead units removed": _shrunk(build(net), masks),
    }
    contenders = {
        name: Contender(_running(way), at_most=goal if name == "gentickets accelerate" else {})
        for name, way in ways.items()
    }
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        for name in ("dense", "dead units removed"):
            contenders[f"{name}, onnxruntime"] = Contender(_in_onnxruntime(ways[name], closing))
    return Contest("dense", contenders, closing)


def _goal(kind: str, goals: Mapping[float, float], sparsity: float) -> dict[str, float]:
    return {kind: goals[sparsity]} if sparsity in goals else {}


def _memory_goal(net: str, sparsity: float) -> dict[str, float]:
    return _goal("memory", MEMORY, sparsity) if net in ("linear-ae", "deep-ae") else {}


def _fast_step(net: Net, masks: gt.Masks, closing: ExitStack) -> Step:
    """A step on live weights, as `train` takes it; what stays dense is held to its masks."""
    fast = closing.enter_context(gt.accelerate(net.model, masks, _examples(net)))
    step = Step(replace(net, batch=fast.laid_out(net.batch)), as_in_train)
    closing.enter_context(fast.masks.hold(net.model, *step.optimizers.values()))
    return step


def _accelerated(net: Net, masks: gt.Masks, closing: ExitStack) -> Net:
    """The net on its live weights, to be run and not trained."""
    closing.enter_context(gt.accelerate(net.model, masks, _examples(net)))
    return net


def _examples(net: Net) -> dict[str, Tensor]:
    return net.objective.example_inputs(net.model, net.batch)


def _shrunk(net: Net, masks: gt.Masks) -> Net:
    """Without what no longer takes part: exact, and all that an unstructured mask allows without sparse layers."""
    return replace(net, model=gt.shrink(net.model, masks, net.objective.example_inputs(net.model, net.batch[:2])))


def _running(net: Net) -> Callable[[], Tensor]:
    part, codes = _decoding(net)

    def run() -> Tensor:
        with torch.inference_mode():
            return part(codes)

    return run


def _in_onnxruntime(net: Net, closing: ExitStack) -> Callable[[], object]:
    """The exported component, batch norm folded, on as many threads as torch has."""
    onnxruntime = importlib.import_module("onnxruntime")
    part, codes = _decoding(net)
    file = Path(closing.enter_context(tempfile.TemporaryDirectory())) / "part.onnx"
    export(part, codes, file, "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: codes.cpu().numpy()}
    return lambda: session.run(None, given)


def _decoding(net: Net) -> tuple[nn.Module, Tensor]:
    """The component that makes images, in evaluation mode, and a batch of codes for it."""
    part: nn.Module = getattr(net.model, "generator" if hasattr(net.model, "generator") else "decoder").eval()
    torch.manual_seed(0)
    codes = torch.randn(len(net.batch), getattr(net.objective, "latent_size", 64)).to(device())
    return part, codes[:, : _width(part, codes)]


def _width(part: nn.Module, codes: Tensor) -> int:
    """How many numbers a component that starts with a linear layer takes."""
    first = next((layer for layer in part.modules() if isinstance(layer, nn.Linear)), None)
    return codes.shape[1] if first is None else first.in_features


def _strays(name: str, masks: gt.Masks, steps: int = 20) -> float:
    """The largest relative difference of a loss in 20 steps from those of the masked dense net."""
    losses: list[list[float]] = []
    for sparse in (False, True):
        with ExitStack() as closing:
            step = _fast_step(build(name), masks, closing) if sparse else Step(build(name))
            net = step.net
            if not sparse:
                closing.enter_context(masks.hold(net.model, *step.optimizers.values()))
            losses.append([])
            for _ in range(steps):
                step()
                losses[-1].append(next(net.objective.losses(net.model, net.batch, _rng()))[1].item())
    return max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))


def _rng() -> torch.Generator:
    return torch.Generator(device()).manual_seed(1)


class _Csr(torch.autograd.Function):
    """A linear layer by torch's compressed rows: products both ways, and sampled gradients of the live weights."""

    @staticmethod
    def forward(ctx, values, inputs, ptr, columns, shape):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(values, inputs, ptr, columns)
        ctx.shape = shape
        return (torch.sparse_csr_tensor(ptr, columns, values, shape) @ inputs.t()).t()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        values, inputs, ptr, columns = ctx.saved_tensors
        weight = torch.sparse_csr_tensor(ptr, columns, values, ctx.shape)
        zero = torch.sparse_csr_tensor(ptr, columns, torch.zeros_like(values), ctx.shape)
        sampled = torch.sparse.sampled_addmm(zero, grad.t().contiguous(), inputs.contiguous())
        return sampled.values(), (weight.t() @ grad.t()).t(), None, None, None


class CsrLinear(nn.Module):
    """A linear layer in torch's own compressed rows, trained on its live weights."""

    def __init__(self, layer: nn.Linear, mask: Tensor):
        super().__init__()
        sparse = (layer.weight.detach() * mask.to(layer.weight.device)).to_sparse_csr()
        self.ptr, self.columns, self.shape = sparse.crow_indices(), sparse.col_indices(), sparse.shape
        self.values = nn.Parameter(sparse.values().clone())
        self.bias = layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        return _Csr.apply(self.values, inputs, self.ptr, self.columns, self.shape) + self.bias


def _torch_sparse(net: Net, masks: gt.Masks) -> Net:
    """Every masked linear layer in torch's own compressed rows."""
    for name, mask in masks.items():
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        owner = net.model.get_submodule(parent)
        setattr(owner, child, CsrLinear(owner.get_submodule(child), mask))
    return net

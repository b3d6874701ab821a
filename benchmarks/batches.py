"""Training and running on live weights at every batch: never slower than the same net held to its masks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

import gentickets as gt
from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.steps import NETS, Net, Step, as_in_train, device, magnitude_masks
from gentickets import models

BATCHES = (1, 2, 4, 8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 256)
SPARSITIES = (0.8, 0.9, 0.95, 0.99)
SLOWEST = 1.05

WIDTH = 32
"""Of the convolutional nets: the size of the paper's. Wider ones gain more."""

CASES = {"net": ("linear-ae", "vae", "dcgan", "sngan"), "sparsity": SPARSITIES, "batch": BATCHES}
QUICK = {"net": ("tiny-ae",), "sparsity": (0.9,), "batch": (1, 16)}


@benchmark(CASES, QUICK, on_request=True)
def batches_training(net: str, sparsity: float, batch: int) -> Contest:
    """A whole step as `train` takes it. `sparse`: how many layers are; where none is, nothing is timed twice."""
    closing = ExitStack()
    held, quick = _net(net, batch), _net(net, batch)
    masks = magnitude_masks(held, sparsity)
    dense = Step(held, as_in_train)
    closing.enter_context(masks.hold(held.model, *dense.optimizers.values()))
    examples = quick.objective.example_inputs(quick.model, quick.batch)
    fast = closing.enter_context(gt.accelerate(quick.model, masks, examples))
    step = Step(replace(quick, batch=fast.laid_out(quick.batch)), as_in_train)
    closing.enter_context(fast.masks.hold(quick.model, *step.optimizers.values()))
    return _contest(dense, step, fast, closing)


@benchmark(CASES, QUICK, on_request=True)
def batches_inference(net: str, sparsity: float, batch: int) -> Contest:
    """The decoder or generator alone, in evaluation mode and without gradients, accelerated as a bare network."""
    closing = ExitStack()
    held, quick = (_generating(net) for _ in range(2))
    masks = gt.prune(gt.magnitude(held), to_sparsity=sparsity, scope="layer")
    masks.apply_(held)
    codes = torch.randn(batch, _width(net)).to(device())
    with torch.no_grad():
        fast = closing.enter_context(gt.accelerate(quick, masks, codes))
    return _contest(_running(held, codes), _running(quick, codes), fast, closing)


def _contest(
    dense: Callable[[], object], fast: Callable[[], object], accelerated: gt.Accelerated, closing: ExitStack
) -> Contest:
    contenders = {"masked dense": Contender(dense)}
    sparse = sum(choice.sparse for choice in accelerated.choices)
    if sparse:
        contenders["gentickets accelerate"] = Contender(fast, figures={"sparse": sparse}, at_most={"ratio": SLOWEST})
    return Contest("masked dense", contenders, closing)


def _net(name: str, batch: int) -> Net:
    torch.manual_seed(0)
    if name == "sngan":
        net = Net(
            models.sngan(32, 3, width=WIDTH, latent=128), gt.Adversarial(128, loss="hinge"), torch.empty(0, 3, 32, 32)
        )
    else:
        net = NETS[name](width=WIDTH) if name in ("vae", "dcgan") else NETS[name]()
    images = torch.rand(batch, *net.batch.shape[1:]) * 2 - 1
    return replace(net, model=net.model.to(device()), batch=images.to(device()))


def _generating(name: str) -> nn.Module:
    model = _net(name, 1).model
    part: nn.Module = getattr(model, "generator" if hasattr(model, "generator") else "decoder")
    return part.eval()


def _width(name: str) -> int:
    """How many numbers the component takes."""
    return {"tiny-ae": 4, "linear-ae": 64, "vae": 128, "dcgan": 100, "sngan": 128}[name]


def _running(part: nn.Module, codes: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return part(codes)

    return run

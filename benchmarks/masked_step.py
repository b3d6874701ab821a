"""What it costs to hold a model to its masks while it trains: gentickets and the usual ways."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import gentickets as gt
from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.steps import Net, Step, build, default, device, magnitude_masks

CASES = {"net": ("linear-ae", "vae", "dcgan"), "sparsity": (0.5, 0.9, 0.99)}
QUICK = {"net": ("tiny-ae",), "sparsity": (0.9,)}
HELD_AT_MOST = {"linear-ae": 1.05, "dcgan": 1.02}


@benchmark(CASES, QUICK)
def masked_step(net: str, sparsity: float) -> Contest:
    """A whole training step. All but one of the contenders have the fused Adam."""
    closing = ExitStack()
    steps = _updating(net, sparsity, closing)
    for name, attach in {"torch.nn.utils.prune": _prune_hooks, "parametrization": _parametrization}.items():
        steps[name] = Step(_attached(net, sparsity, attach))
    steps["torch.nn.utils.prune, default Adam"] = Step(_attached(net, sparsity, _prune_hooks), default)
    targets = {"gentickets hold": {"ratio": HELD_AT_MOST[net]}} if net in HELD_AT_MOST else {}
    return Contest(
        "dense", {name: Contender(step, at_most=targets.get(name, {})) for name, step in steps.items()}, closing
    )


@benchmark(CASES, QUICK)
def update_phase(net: str, sparsity: float) -> Contest:
    """Only what comes after the backward passes. What hooks and parametrizations cost comes before."""
    closing = ExitStack()
    steps = _updating(net, sparsity, closing)
    for step in steps.values():
        step()
    return Contest("dense", {name: Contender(step.update) for name, step in steps.items()}, closing)


def _updating(net: str, sparsity: float, closing: ExitStack) -> dict[str, Step]:
    """Steps of dense nets, and of nets that are masked after the optimiser's step."""
    held, looped, loading = build(net), build(net), build(net)
    steps = {
        "dense": Step(build(net)),
        "dense, default Adam": Step(build(net), default),
        "gentickets hold": Step(held),
    }
    masks = magnitude_masks(held, sparsity)
    masks.apply_(looped.model)
    masks.apply_(loading.model)
    closing.enter_context(masks.hold(held.model, *steps["gentickets hold"].optimizers.values()))
    steps["multiplied one by one"] = Step(looped, after=_one_by_one(looped, masks))
    steps["state dict multiplied and reloaded"] = Step(loading, after=reloaded(loading, masks))
    return steps


def _one_by_one(net: Net, masks: gt.Masks) -> Callable[[str], None]:
    """As open_lth does it: every masked tensor times its float mask, after each step."""
    kept = {name: mask.float().to(device()) for name, mask in masks.items()}

    def after(component: str) -> None:
        for name, weight in getattr(net.model, component).named_parameters(prefix=component):
            if name in kept:
                weight.data *= kept[name]

    return after


def reloaded(net: Net, masks: gt.Masks) -> Callable[[str], None]:
    """As many research scripts do it: the state dictionary times the masks, loaded again, after each step."""
    kept = {name: mask.float().to(device()) for name, mask in masks.items()}

    def after(component: str) -> None:
        part = getattr(net.model, component)
        state = part.state_dict()
        for name in state:
            if (full := f"{component}.{name}") in kept:
                state[name] = state[name] * kept[full]
        part.load_state_dict(state)

    return after


def _attached(net: str, sparsity: float, attach: Callable[[nn.Module, Tensor], object]) -> Net:
    """A net whose layers mask their own weights at each forward pass."""
    built = build(net)
    for name, mask in magnitude_masks(built, sparsity).items():
        attach(built.model.get_submodule(name.removesuffix(".weight")), mask.to(device()))
    return built


def _prune_hooks(layer: nn.Module, mask: Tensor) -> None:
    prune.custom_from_mask(layer, "weight", mask)


class _Masked(nn.Module):
    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask.float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def _parametrization(layer: nn.Module, mask: Tensor) -> None:
    parametrize.register_parametrization(layer, "weight", _Masked(mask))

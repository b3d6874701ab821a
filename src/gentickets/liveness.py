"""Does anything still flow? Finds the layer at which a mask cuts a component in two, before any training.

Every weight is replaced by a positive one where it is alive and by zero where it is not, biases are dropped,
and norms are made to pass their input on. Then a positive input reaches a layer's output if and only if a
path of live weights leads there, because nothing can cancel. The positive numbers are random, so that nothing
cancels by accident either where a network subtracts or divides (a mean taken off, vectors of length 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gentickets.errors import Disconnected
from gentickets.masks import Masks
from gentickets.naming import (
    NORMS,
    PRUNABLE,
    WEIGHT_PLACES,
    check_components,
    clone,
    components_of,
    divided_by_zero,
    named_layers,
    unwrap,
)

LEVELLING = (*NORMS, nn.LocalResponseNorm)
"""What rescales its input: left out where only paths count."""


def check_connected(model: nn.Module, masks: Masks, example_inputs: Mapping[str, Tensor]) -> None:
    """Raises `Disconnected` where a component has no live path from its input to its output.

    `example_inputs`: component name → one input tensor of the shape that the component takes (its values do
    not matter). The message names the component, and the layer that cuts it in two; or a layer of which so little is
    left that its norm divides by 0. The model, its statistics and the random state stay as they are. Raises
    `MaskError` for a component that does not exist.
    """
    check_components(example_inputs, components_of(model))
    for component, example in example_inputs.items():
        layer = _first_dead_layer(getattr(unwrap(model), component), masks, component, example)
        if layer is not None:
            places = {f"{layer}.{place}" for place in WEIGHT_PLACES}
            mask = next((mask for name, mask in masks.items() if name in places), torch.ones(0, dtype=torch.bool))
            raise Disconnected(
                f"component {component!r} has no live path from input to output: nothing passes layer "
                f"{layer!r}, which keeps {int(mask.sum()):,} of {mask.numel():,} weights; prune less, "
                f"or with scope=layer"
            )
    if (reason := divided_by_zero(model, masks)) is not None:
        raise Disconnected(f"{reason}: prune less, or keep a weight there")


def empty_layers(masks: Masks) -> list[str]:
    """The names of the weights of which nothing is alive. In a plain chain of layers each is a cut."""
    return [name for name, alive in masks.counts().items() if alive == 0]


@dataclass
class _Flow:
    """What an input does in a network: does it come out, and if not, which layers does it not pass?"""

    connected: bool
    starved: list[str]  # layers whose output does not depend on the input, in the order in which they ran
    unheard: list[str]  # layers whose output does not come out of the network, the last one first


def _first_dead_layer(net: nn.Module, masks: Masks, component: str, example: Tensor) -> str | None:
    """The name of the layer that cuts the network in two; None where none does."""
    probe = _positive_copy(net, masks, component)
    flow = _flow(probe, component, example)
    if flow.connected:
        return None
    # A starved layer may lie in a branch that others bypass. It is the cut where a network that is dense but
    # for this layer is cut too.
    dense = _positive_copy(net, Masks({}), component)
    cuts = (name for name in flow.starved if not _flow(dense, component, example, closed=name).connected)
    return next(cuts, None) or next(iter(flow.starved + flow.unheard), component)


def _flow(probe: nn.Module, component: str, example: Tensor, closed: str | None = None) -> _Flow:
    """Sends a positive input through `probe`; the layer `closed` lets nothing pass."""
    names = {id(layer): name for name, layer in named_layers(probe, component)}
    seen: dict[str, Tensor] = {}

    def note(layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        # Rescaled to a maximum of 1, so that depth neither overflows, underflows nor saturates an activation.
        name = names[id(layer)]
        peak = float(output.detach().abs().max()) if output.numel() else 0.0
        seen[name] = output * (0.0 if name == closed else 1.0 / peak if peak > 0 else 1.0)
        return seen[name]

    hooks = [layer.register_forward_hook(note) for layer in probe.modules() if isinstance(layer, PRUNABLE)]
    start = 0.5 + torch.rand(example.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start.requires_grad_()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.random.default_generator.manual_seed(0)
        output = total_output(probe(start))
        totals = {name: value.sum() for name, value in seen.items()}
    for hook in hooks:
        hook.remove()
    if _reaches(start, output):
        return _Flow(True, [], [])
    return _Flow(
        connected=False,
        starved=[name for name, total in totals.items() if not _reaches(start, total)],
        unheard=[name for name, value in reversed(seen.items()) if not _reaches(value, output)],
    )


def _reaches(value: Tensor, output: Tensor) -> bool:
    if not (output.requires_grad and value.requires_grad):
        return False
    (gradient,) = torch.autograd.grad(output, value, allow_unused=True, retain_graph=True)
    return gradient is not None and bool((gradient.nan_to_num() != 0).any())


def total_output(output: object) -> Tensor:
    """The sum of all real numbers that a component returns, in tensors, tuples, lists and dictionaries."""
    total = torch.zeros((), dtype=torch.float64)
    if isinstance(output, Tensor) and output.is_floating_point():
        return total + output.sum()
    if isinstance(output, list | tuple | Mapping):
        for part in output.values() if isinstance(output, Mapping) else output:
            total = total + total_output(part)
    return total


@torch.no_grad()
def _positive_copy(net: nn.Module, masks: Masks, component: str) -> nn.Module:
    """A float64 copy of `net`, positive at each live weight, 0 at each dead one, no biases and no norms."""
    probe = clone(unwrap(net)).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)
    done: set[int] = set()

    def fill(weight: Tensor, alive: Tensor | None) -> None:
        noise = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
        weight.copy_(0.5 + noise if alive is None else (0.5 + noise) * alive)

    for name, layer in list(named_layers(probe, component)):
        held = [place for place in WEIGHT_PLACES if f"{name}.{place}" in masks]
        strip_weight_norms(layer)
        own: dict[str, Tensor | None] = dict(layer._parameters)
        if isinstance(layer, PRUNABLE):
            own["weight"] = layer.weight
        for key, weight in own.items():
            if weight is None or id(weight) in done:  # two layers may share one weight, masked by one name
                continue
            done.add(id(weight))
            if key == "weight" and isinstance(layer, PRUNABLE):
                fill(weight, masks[f"{name}.{held[0]}"] if held else None)
            elif f"{name}.{key}" in masks:
                fill(weight, masks[f"{name}.{key}"])
            elif key == "bias" and isinstance(layer, PRUNABLE):
                weight.zero_()
        for child_name, child in list(layer.named_children()):
            if isinstance(unwrap(child), LEVELLING):
                setattr(layer, child_name, nn.Identity())
            elif unwrap(child) is not child:
                setattr(layer, child_name, unwrap(child))  # no compiled code for one pass
    return probe


class _Plain(nn.Module):
    """Stands where a parametrization was, and gives a weight of its own."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        return self.weight


def strip_weight_norms(layer: nn.Module) -> None:
    """Takes spectral and weight norm off: whether a path is alive does not depend on them."""
    if parametrize.is_parametrized(layer, "weight"):
        # Not `remove_parametrizations`: that takes `weight` from the class, which copy and original share.
        assert isinstance(layer.parametrizations, nn.ModuleDict)
        assert isinstance(layer.weight, Tensor)
        layer.parametrizations["weight"] = _Plain(torch.empty_like(layer.weight))
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, SpectralNorm):
            nn.utils.remove_spectral_norm(layer)
        elif isinstance(hook, WeightNorm):
            nn.utils.remove_weight_norm(layer)

"""Does anything still flow? Finds the layer at which a mask cuts a component in two, before a step is trained.

Every weight is replaced by a positive one where it is alive and by zero where it is not, biases are dropped and
norms are made to pass their input on. Then a positive input reaches a layer's output if and only if a path of
live weights leads there, because nothing can cancel.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gentickets.errors import Disconnected
from gentickets.masks import PRUNABLE, WEIGHT_PLACES, Masks, clone, named_layers, unwrap

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def check_connected(model: nn.Module, masks: Masks, example_inputs: Mapping[str, Tensor]) -> None:
    """Raises `Disconnected` where a component has no live path from its input to its output.

    `example_inputs`: component name → one input tensor of the shape that the component takes (its values do
    not matter). The message names the component, and the first layer that nothing reaches or leaves.
    """
    for component, example in example_inputs.items():
        cut = _first_dead_layer(model, masks, component, example)
        if cut is not None:
            layer, alive, total = cut
            raise Disconnected(
                f"component {component!r} has no live path from input to output: nothing passes layer {layer!r}, "
                f"which keeps {alive:,} of {total:,} weights; prune less, or with scope=layer"
            )


def empty_layers(masks: Masks) -> list[str]:
    """The names of the weights of which nothing is alive. In a plain chain of layers each is a cut."""
    return [name for name, alive in masks.counts().items() if alive == 0]


def _first_dead_layer(
    model: nn.Module, masks: Masks, component: str, example: Tensor
) -> tuple[str, int, int] | None:
    """The layer that cuts `component` in two, with how many weights it keeps and has; None where none does."""
    probe = _positive_copy(getattr(unwrap(model), component), masks, component)
    names = {id(layer): name for name, layer in named_layers(probe, component)}
    seen: dict[str, Tensor] = {}

    def note(layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        # Rescaled to a maximum of 1, so that depth neither overflows, underflows nor saturates an activation.
        peak = float(output.detach().max())
        seen[names[id(layer)]] = output = output / peak if peak > 0 else output
        return output

    for layer in probe.modules():
        if isinstance(layer, PRUNABLE):
            layer.register_forward_hook(note)
    ones = torch.ones(example.shape, dtype=torch.float64, requires_grad=True)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        output = _total(probe(ones))
        if _reaches(ones, output):
            return None
    starved = (name for name, value in seen.items() if not bool((value > 0).any()))
    unheard = (name for name, value in reversed(seen.items()) if not _reaches(value, output))
    dead = next(starved, None) or next(unheard, component)
    mask = next((masks[name] for name in masks if name.startswith(f"{dead}.")), torch.ones(0, dtype=torch.bool))
    return dead, int(mask.sum()), mask.numel()


def _reaches(value: Tensor, output: Tensor) -> bool:
    if not output.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(output, value, allow_unused=True, retain_graph=True)
    return gradient is not None and bool((gradient > 0).any())


def _total(output: object) -> Tensor:
    """The sum of everything that a component returns: a tensor, or a tuple of them."""
    if isinstance(output, Tensor):
        return output.sum()
    assert isinstance(output, list | tuple)
    return torch.stack([_total(part) for part in output]).sum()


@torch.no_grad()
def _positive_copy(net: nn.Module, masks: Masks, component: str) -> nn.Module:
    """A float64 copy of `net` with 1 at each live weight, 0 at each dead one, no biases and no norms."""
    probe = clone(net).cpu().double().eval()
    for name, layer in list(named_layers(probe, component)):
        mask = next((masks[f"{name}.{place}"] for place in WEIGHT_PLACES if f"{name}.{place}" in masks), None)
        _strip_weight_norms(layer)
        if isinstance(layer, PRUNABLE):
            assert isinstance(layer.weight, Tensor)
            layer.weight.copy_(torch.ones_like(layer.weight) if mask is None else mask)
            if isinstance(layer.bias, Tensor):
                layer.bias.zero_()
        for child_name, child in list(layer.named_children()):
            if isinstance(child, _NORMS):
                setattr(layer, child_name, nn.Identity())
    return probe


def _strip_weight_norms(layer: nn.Module) -> None:
    """Takes spectral and weight norm off: whether a path is alive does not depend on them."""
    if parametrize.is_parametrized(layer, "weight"):
        parametrize.remove_parametrizations(layer, "weight")
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, SpectralNorm):
            nn.utils.remove_spectral_norm(layer)
        elif isinstance(hook, WeightNorm):
            nn.utils.remove_weight_norm(layer)

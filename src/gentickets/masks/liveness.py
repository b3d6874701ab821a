"""Does anything still flow? Finds the layer at which a mask cuts a component in two, before any training.

Every weight is replaced by a positive one where it is alive and by zero where it is not, biases are dropped,
and norms are made to pass their input on. Then a positive input reaches a layer's output if and only if a
path of live weights leads there, because nothing can cancel. The positive numbers are random, so that nothing
cancels by accident either where a network subtracts or divides (a mean taken off, vectors of length 1).

Where a derivative ends (whole numbers, a quantiser, `round`, `detach`) it is led on by hand, so that a path through a
codebook counts as one. And nothing is called a cut that is none in the dense network under the same probe.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gentickets.errors import Disconnected, MaskError
from gentickets.masks.effect import check_effect
from gentickets.masks.examples import Example, ExampleInputs, examples_of, named_tensors
from gentickets.masks.flow import GAIN_AT, Double, each, gained, running, tensors_in, titled, writes
from gentickets.masks.layers import divided_by_zero
from gentickets.masks.names import (
    NORMS,
    PRUNABLE,
    WEIGHT_PLACES,
    Model,
    clone,
    component_at,
    is_in,
    joined,
    named_layers,
    unwrap,
)
from gentickets.masks.value import Masks


def check_connected(model: Model, masks: Masks, example_inputs: ExampleInputs) -> None:
    """Raises `Disconnected` where a component has no live path from its input to its output.

    Every tensor that a component gives and that depends on its input must do so under the masks (a VAE's means and
    variances both), and every input that reaches something must reach something. What does not depend on the input in
    the dense network is not judged; where that is all, a warning says so.

    `example_inputs`: component → what it takes, a tensor, a tuple or a dict of keywords (the values of real numbers do
    not matter, whole numbers are taken as they are); for a model that is one network, the bare input. The message
    names the component, and the layer that cuts it in two; or a layer of which so little is left that its norm divides
    by 0. The model, its statistics and the random state stay as they are. Raises `MaskError` for a component that does
    not exist, for masks that do not fit the model, where it cannot be run for the check, and for a pruned weight of
    which some module makes another one, in which zeros end.
    """
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    owned = {id(weight): masks[name] for name, weight in masks.check_fits(model).items() if name in masks}
    pruned = [name for name, alive in masks.counts().items() if alive < math.prod(masks.shapes[name])]
    check_effect(model, pruned, example_inputs)
    for component, example in examples_of(model, example_inputs).items():
        net = component_at(model, component)
        here = _with_shared(masks, owned, net, component)
        with running(net, example, component, MaskError, "cannot be checked for live paths"):
            cut = _cut(net, here, component, example)
        if cut is not None:
            raise Disconnected(_message(component, cut, here))
    if (reason := divided_by_zero(model, masks)) is not None:
        raise Disconnected(f"{reason}: prune less, or keep a weight there")


def _with_shared(masks: Masks, owned: Mapping[int, Tensor], net: nn.Module, component: str) -> Masks:
    """The masks by the names that weights have in this component too: another may share, and name, them."""
    return masks.replace(
        {
            joined(name, key): owned[id(weight)]
            for name, layer in named_layers(net, component)
            for key, weight in layer._parameters.items()
            if id(weight) in owned and joined(name, key) not in masks
        }
    )


def empty_layers(masks: Masks) -> list[str]:
    """The names of the weights of which nothing is alive. In a plain chain of layers each is a cut."""
    return [name for name, alive in masks.counts().items() if alive == 0]


@dataclass(frozen=True)
class _Cut:
    """Where a component is cut: the layer that nothing passes, and which of several inputs or outputs is cut off."""

    layer: str
    where: str


def _message(component: str, cut: _Cut, masks: Masks) -> str:
    places = {joined(cut.layer, place) for place in WEIGHT_PLACES}
    mask = next((mask for name, mask in masks.items() if name in places), None)
    if mask is None:  # weights that are not used by way of a layer
        empty = [name for name in empty_layers(masks) if is_in(component, name)]
        layer = f"weight {empty[0]!r}, which keeps none" if empty else f"layer {cut.layer!r}, which no mask covers"
    else:
        layer = f"layer {cut.layer!r}, which keeps {int(mask.sum()):,} of {mask.numel():,} weights"
    return (
        f"{titled(component)} has no live path from input to output{cut.where}: nothing passes {layer}; "
        f"prune less, or with scope=layer"
    )


@dataclass(frozen=True)
class _Flow:
    """One pass of a positive network, by name: what derivatives are taken by, and of, and what the layers gave."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]  # one number each
    layers: dict[str, Tensor]  # in the order in which they ran

    def reach(self, target: Tensor) -> set[str]:
        """The inputs that `target` depends on."""
        return {name for name, value in self.inputs.items() if _reaches(value, target)}

    def lost(self, dense: _Flow) -> list[tuple[str, str]]:
        """("input" or "output", its name) of all that have a path in `dense` and have none here."""
        before = {name: dense.reach(target) for name, target in dense.outputs.items()}
        now = {name: self.reach(target) for name, target in self.outputs.items()}
        deaf = [("output", name) for name, inputs in before.items() if inputs and not now.get(name, inputs)]
        heard = set().union(*now.values())
        mute = [("input", name) for name in dict.fromkeys(self.inputs) if name in set().union(*before.values()) - heard]
        return deaf + mute


def _cut(net: nn.Module, masks: Masks, component: str, example: Example) -> _Cut | None:
    """Where the network is cut in two; None where it is not."""
    flow = _flow(_positive_copy(net, masks, component), component, example)
    reached = [flow.reach(target) for target in flow.outputs.values()]
    if reached and all(reached) and set().union(*reached) == set(flow.inputs):
        return None
    probe = _positive_copy(net, Masks.full(masks.shapes), component)
    dense = _flow(probe, component, example)
    if not any(dense.reach(target) for target in dense.outputs.values()):
        warnings.warn(
            f"{titled(component)} was not checked for live paths: nothing that it gives depends on its input even "
            f"when dense, as far as derivatives can tell",
            stacklevel=3,
        )
        return None
    lost = flow.lost(dense)
    if not lost:
        return None
    kind, name = lost[0]
    ends = flow.inputs if kind == "input" else flow.outputs
    where = "" if len(ends) == 1 else f" ({kind} {name!r} is cut off)"
    starts = [flow.inputs[name]] if kind == "input" else list(flow.inputs.values())
    starved = [
        layer for layer, value in flow.layers.items() if not any(_reaches(start, _total(value)) for start in starts)
    ]
    # A starved layer may lie in a branch that others bypass. It is the cut where a network that is dense but
    # for this layer is cut too.
    for layer in starved:
        if (kind, name) in _flow(probe, component, example, closed=layer).lost(dense):
            return _Cut(layer, where)
    unheard = [
        layer
        for layer, value in reversed(flow.layers.items())
        if not any(_reaches(value, output) for output in flow.outputs.values())
    ]
    return _Cut(next(iter(starved + unheard), component), where)


class _LedOn(torch.autograd.Function):
    """A value as it is, that depends on others all the same."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *origins: Tensor) -> Tensor:
        ctx.shapes = [origin.shape for origin in origins]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        size = slopes[0].abs().sum()
        return (None, *(size.expand(shape) for shape in ctx.shapes))


class _Paths(Double):
    """Leaves norms with their gain, and leads derivatives on where they end: past whole numbers, comparisons and steps,
    and past what is detached."""

    _STEPS = ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "bernoulli", "floor_divide")
    _ENDS = (*_STEPS, "detach")

    def run(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Whatever the code around it switches off: a derivative that is not taken looks like one that ends.
        with torch.inference_mode(False), torch.enable_grad():
            if name.endswith("_") and name.rstrip("_") in self._ENDS and args[0].requires_grad:
                before = args[0].clone()
                return args[0].copy_(_LedOn.apply(func(before.detach().clone(), *args[1:], **kwargs), before))
            result = gained(name, func, args, kwargs) if name in GAIN_AT else func(*args, **kwargs)
        origins = list({id(o): o for tensor in tensors_in((args, kwargs)) for o in _origins(tensor)}.values())
        if not origins:
            return result
        if writes(name):
            _carry(args[0], origins)
        ends = name.rstrip("_") in self._STEPS or name == "__floordiv__"

        def led_on(value: Any) -> Any:
            if not isinstance(value, Tensor) or (value.requires_grad and not ends):
                return value
            if writes(name) or not (value.is_floating_point() or value.is_complex()):
                _carry(value, origins)
                return value
            with torch.inference_mode(False), torch.enable_grad():
                return _LedOn.apply(value.detach(), *origins)

        return each(result, led_on)


def _origins(tensor: Tensor) -> list[Tensor]:
    """What a tensor depends on: itself, where it has a derivative, or what was noted on it."""
    return [tensor] if tensor.requires_grad else getattr(tensor, "_origins", [])


def _carry(tensor: Any, origins: Iterable[Tensor]) -> None:
    if isinstance(tensor, Tensor) and not tensor.requires_grad:
        tensor._origins = list({id(o): o for o in (*_origins(tensor), *origins)}.values())  # type: ignore[attr-defined]


def _flow(probe: nn.Module, component: str, example: Example, closed: str | None = None) -> _Flow:
    """Sends a positive input through `probe`; the layer `closed` lets nothing pass."""
    names = {id(layer): name for name, layer in named_layers(probe, component)}
    layers: dict[str, Tensor] = {}
    starts: dict[int, Tensor] = {}
    draw = torch.Generator().manual_seed(1)

    def note(layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        # Rescaled to a maximum of 1, so that depth neither overflows, underflows nor saturates an activation.
        name = names[id(layer)]
        peak = output.abs().max().item() if output.numel() else 0.0
        layers[name] = output * (0.0 if name == closed else 1.0 / peak if peak > 0 else 1.0)
        return layers[name]

    def start(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            leaf = (0.5 + torch.rand(tensor.shape, generator=draw, dtype=torch.float64)).requires_grad_()
            given = leaf.clone()  # which may be written into
        else:
            leaf, given = torch.zeros((), dtype=torch.float64, requires_grad=True), tensor.clone()
            _carry(given, [leaf])
        starts[id(given)] = leaf
        return given

    hooks = [layer.register_forward_hook(note) for layer in probe.modules() if isinstance(layer, PRUNABLE)]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.random.default_generator.manual_seed(0)
        given = example.to("cpu").map(start)
        arguments = dict(named_tensors({**dict(enumerate(given.args)), **given.kwargs}))
        with _Paths():
            results = dict(named_tensors(given(probe)))
        totals = {path: _total(tensor) for path, tensor in results.items()}
    for hook in hooks:
        hook.remove()
    return _Flow({path: starts[id(t)] for path, t in arguments.items() if id(t) in starts}, totals, layers)


def _total(tensor: Tensor) -> Tensor:
    """One number that depends on what a tensor depends on: weighed at random, since an even sum may be a constant (of a
    softmax, a layer norm)."""
    if not (origins := _origins(tensor)):
        return torch.zeros((), dtype=torch.float64)
    draw = torch.Generator().manual_seed(2)
    parts = [torch.view_as_real(origin) if origin.is_complex() else origin for origin in origins]
    sums = [(part * (0.5 + torch.rand(part.shape, generator=draw, dtype=torch.float64))).sum() for part in parts]
    return torch.stack(sums).sum()


def _reaches(value: Tensor, output: Tensor) -> bool:
    if not (output.requires_grad and value.requires_grad):
        return False
    (gradient,) = torch.autograd.grad(output, value, allow_unused=True, retain_graph=True)
    return gradient is not None and bool((gradient.nan_to_num() != 0).any())


@torch.no_grad()
def _positive_copy(net: nn.Module, masks: Masks, component: str) -> nn.Module:
    """A float64 copy of `net`, positive at each live weight, 0 at each dead one, without biases."""
    probe = clone(unwrap(net)).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)
    done: set[int] = set()

    def fill(weight: Tensor, alive: Tensor | None) -> None:
        noise = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
        weight.copy_(0.5 + noise if alive is None else (0.5 + noise) * alive)

    for name, layer in list(named_layers(probe, component)):
        held = [place for place in WEIGHT_PLACES if joined(name, place) in masks]
        strip_weight_norms(layer)
        own: dict[str, Tensor | None] = dict(layer._parameters)
        if isinstance(layer, PRUNABLE):
            own["weight"] = layer.weight
        for key, weight in own.items():
            if weight is None or id(weight) in done:  # two layers may share one weight, masked by one name
                continue
            done.add(id(weight))
            if key == "weight" and isinstance(layer, PRUNABLE):
                fill(weight, masks[joined(name, held[0])] if held else None)
            elif joined(name, key) in masks:
                fill(weight, masks[joined(name, key)])
            elif isinstance(layer, NORMS):
                weight.fill_(1.0)
            elif key == "bias" and isinstance(layer, PRUNABLE):
                weight.zero_()
        for child_name, child in list(layer.named_children()):
            if unwrap(child) is not child:
                setattr(layer, child_name, unwrap(child))  # no compiled code for one pass
    return probe.requires_grad_(False)


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

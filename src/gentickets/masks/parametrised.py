"""Tensors that a layer derives from others: by a norm, by any other parametrisation, by a mask of torch's own.

What is pruned is the tensor underneath. That is only right where a zero there is a zero in effect. Spectral norm
(Miyato et al. 2018) and weight norm (Salimans & Kingma 2016) keep zeros, and divide by 0 where nothing else is left;
any other way is tried out, for both; and a tensor that torch prunes already has two masks, of which one is not ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm, _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm as OldSpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as OldWeightNorm
from torch.overrides import TorchFunctionMode

TORCH_PRUNE, TORCH_AO = "torch.nn.utils.prune", "torch.ao.pruning"
"""The two tools of torch's that keep a mask beside a weight."""


@dataclass(frozen=True)
class Norm:
    """What a norm asks of the tensor underneath: that something is left of each slice along `axis`, else it is 0 / 0.

    With `axis` None: of the tensor as a whole. `length`: under weight norm, the parameter of the lengths.
    """

    kind: str
    axis: int | None = None
    length: str | None = None

    def slices(self, tensor: Tensor) -> Tensor:
        """(slices, everything else): what must not be empty, a row each."""
        return tensor.reshape(1, -1) if self.axis is None else tensor.movedim(self.axis, 0).flatten(1)

    def whole(self, slices: Tensor, like: Tensor) -> Tensor:
        """`slices` back in the shape of `like`."""
        if self.axis is None:
            return slices.reshape(like.shape)
        return slices.reshape(like.movedim(self.axis, 0).shape).movedim(0, self.axis)


@dataclass(frozen=True)
class Derived:
    """A tensor of a layer that is made of parameters of it. `origins`: their names in the layer; `by`: what makes it.

    `norm`: what one of torch's norms asks of the last of the origins. `mend`: of a tensor that torch prunes already,
    what ends that. `maker`: of anything else, the module that makes the tensor, and what asks it for that.
    """

    tensor: str
    origins: tuple[str, ...]
    by: str
    norm: Norm | None = None
    mend: str | None = None
    maker: tuple[nn.Module, Callable[[nn.Module], Tensor]] | None = None


def derived(layer: nn.Module) -> list[Derived]:
    """What the layer derives, by torch's parametrisations and by hooks that run before it."""
    if not layer._forward_pre_hooks and "parametrizations" not in layer._modules:
        return [*_by_forward(layer)]
    return [*_by_parametrisations(layer), *_by_hooks(layer), *_by_forward(layer)]


def norm_of(one: Derived, origin: str) -> Norm | None:
    """What must be left of the parameter `origin`, so that nothing is divided by 0; None where nothing must."""
    if one.maker is None:
        return one.norm if origin == one.origins[-1] else None
    return _tried_out(one, origin).norm


def not_zero_in_effect(one: Derived, origin: str) -> str | None:
    """Why zeros in the parameter `origin` would be no zeros in effect, in words; None where they would be."""
    return None if one.maker is None else _tried_out(one, origin).reason


# -- finding -----------------------------------------------------------------------------------------------------------


def _by_parametrisations(layer: nn.Module) -> Iterator[Derived]:
    chains: Any = layer._modules.get("parametrizations") or {}
    for tensor, chain in chains.items():
        names = ["original"] if chain.is_tensor else [f"original{number}" for number in range(chain.ntensors)]
        origins = tuple(f"parametrizations.{tensor}.{name}" for name in names)
        steps = list(chain)
        by = " and ".join(f"parametrisation {type(step).__name__}" for step in steps)
        if any(type(step).__module__.startswith(TORCH_AO) for step in steps):
            yield Derived(tensor, origins, TORCH_AO, mend="sparsifier.squash_mask()")
            continue
        kinds = [type(step) for step in steps]
        if kinds == [_SpectralNorm]:  # of a vector it is the length, and that never below eps
            yield Derived(tensor, origins, by, Norm("spectral norm") if hasattr(steps[0], "_u") else None)
        elif kinds == [_WeightNorm]:
            yield Derived(tensor, origins, by, _weight_norm(steps[0].dim, chain.original1, origins[0]))
        else:
            yield Derived(tensor, origins, by, maker=(chain, _called))


def _weight_norm(dim: int, direction: Tensor, length: str) -> Norm:
    """torch's -1 is one length for the whole tensor, and so is None."""
    return Norm("weight norm", None if dim == -1 else dim % direction.dim(), length)


def _by_hooks(layer: nn.Module) -> Iterator[Derived]:
    known = set()
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            tensor: str = hook._tensor_name
            mend = f"torch.nn.utils.prune.remove(layer, {tensor!r})"
            yield Derived(tensor, (f"{tensor}_orig",), TORCH_PRUNE, mend=mend)
        elif isinstance(hook, OldSpectralNorm):
            tensor, origin = hook.name, f"{hook.name}_orig"
            yield Derived(tensor, (origin,), "spectral norm", Norm("spectral norm"))
        elif isinstance(hook, OldWeightNorm):
            tensor, length, origin = hook.name, f"{hook.name}_g", f"{hook.name}_v"
            norm = _weight_norm(hook.dim, layer.get_parameter(origin), length)
            yield Derived(tensor, (length, origin), "weight norm", norm)
        else:
            continue
        known.add(tensor)
    if len(known) < len(layer._forward_pre_hooks):
        yield from _by_unknown_hooks(layer, known)


def _by_unknown_hooks(layer: nn.Module, known: set[str]) -> Iterator[Derived]:
    """Tensors that lie in a layer as plain attributes, beside parameters named after them: `weight`, `weight_orig`."""
    for tensor, value in vars(layer).items():
        if isinstance(value, Tensor) and tensor not in known:
            origins = tuple(name for name in layer._parameters if name.startswith(f"{tensor}_"))
            if origins:
                yield Derived(tensor, origins, "a hook before its forward pass", maker=(layer, _hooked(tensor)))


def _by_forward(layer: nn.Module) -> Iterator[Derived]:
    """What a subclass makes of its weight in a forward pass of its own, as in weight standardisation."""
    plain = next((kind for kind in _LAYERS if isinstance(layer, kind)), None)
    own = plain is not None and type(layer).forward is not plain.forward and type(layer).__module__ != plain.__module__
    if own and "weight" in layer._parameters and _makes_another(layer):
        by = f"the forward pass of {type(layer).__name__}"
        yield Derived("weight", ("weight",), by, maker=(layer, _used))


# -- trying ------------------------------------------------------------------------------------------------------------

_SHARES = (0.2, 0.5, 0.9)
"""How much of a tensor is zero in each trial."""


@dataclass(frozen=True)
class _Trial:
    """What came of trying: why zeros are no zeros in effect, if they are not; what must be left, if anything must."""

    reason: str | None
    norm: Norm | None = None


_tried: WeakKeyDictionary[nn.Module, dict[Any, _Trial]] = WeakKeyDictionary()


def _tried_out(one: Derived, origin: str) -> _Trial:
    """Tried out once for every module that makes a tensor, in copies of it."""
    assert one.maker is not None
    known = _tried.setdefault(one.maker[0], {})
    if (key := (one.by, origin)) not in known:
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.random.default_generator.manual_seed(0)
                known[key] = _try_out(one, origin)
        except Exception as error:  # whatever a stranger's code does with numbers that it did not expect
            first = next(iter(str(error).splitlines()), "")
            if one.maker[1] is _used:  # it passed, and other numbers are no reason to refuse a layer
                known[key] = _Trial(None)
                return known[key]
            known[key] = _Trial(f"it cannot be tried out: {type(error).__name__}: {first}")
    return known[key]


def _try_out(one: Derived, origin: str) -> _Trial:
    """Puts zeros among random numbers, at random, and looks where they are in effect."""
    assert one.maker is not None
    maker, effect_of = one.maker
    if any(isinstance(step, _Orthogonal) for step in maker.modules()):  # known, and slow for large weights
        return _Trial(_NOT_ZERO)
    rng = torch.Generator().manual_seed(0)

    def effect(alive: Tensor, training: bool = False) -> Tensor:
        twin = _copy(maker).train(training)
        for parameter in twin.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.copy_(_away_from_zero(parameter, rng))
        twin.get_parameter(origin.rpartition(".")[2]).mul_(alive)
        return effect_of(twin)

    shape = maker.get_parameter(origin.rpartition(".")[2]).shape
    whole = effect(torch.ones(shape, dtype=torch.bool))
    if whole.shape != shape:
        return _Trial(f"it makes {tuple(whole.shape)} of {tuple(shape)}")
    norm = _divides(effect, shape, one.by)
    for share in _SHARES:
        alive = torch.rand(shape, generator=rng, dtype=torch.float64) >= share
        if norm is not None:
            slices = norm.slices(alive)
            slices[:, 0] = True
            alive = norm.whole(slices, alive)
        found = effect(alive)
        if (found[~alive] != 0).any() or (effect(alive, training=True)[~alive] != 0).any():
            return _Trial(_NOT_ZERO)
        if (found[alive] == 0).any() and effect_of is not _used:  # of which a causal convolution is none the worse
            return _Trial("what is not 0 underneath is 0 in effect")
    return _Trial(None, norm)


_NOT_ZERO = "what is 0 underneath is not 0 in effect"


def _divides(effect: Callable[[Tensor], Tensor], shape: torch.Size, by: str) -> Norm | None:
    """By what the maker divides, if it does: it gives what is not finite where that is 0."""
    for axis in [axis for axis, side in enumerate(shape) if side > 1]:
        alive = torch.ones(shape, dtype=torch.bool)
        alive.select(axis, 0).fill_(False)
        if not effect(alive).isfinite().all():
            return Norm(by, axis)
    return None if effect(torch.zeros(shape, dtype=torch.bool)).isfinite().all() else Norm(by)


def _away_from_zero(like: Tensor, rng: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=rng, dtype=torch.float64)
    return (0.5 + drawn) * (torch.randint(0, 2, like.shape, generator=rng) * 2 - 1)


def _copy(maker: nn.Module) -> nn.Module:
    """A copy in double precision; `deepcopy` refuses the derived tensors that hooks leave in a layer."""
    made = {id(value): value.detach().clone() for value in vars(maker).values() if isinstance(value, Tensor)}
    return copy.deepcopy(maker, made).cpu().double()


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_USE_A_WEIGHT = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
}  # fmt: skip


class _Uses(TorchFunctionMode):
    """Notes the weights that are multiplied with while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _USE_A_WEIGHT:
            self.weights.append(kwargs["weight"] if "weight" in kwargs else args[1])
        return function(*args, **kwargs)


_passes: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _makes_another(layer: nn.Module) -> bool:
    """Whether a layer with a forward pass of its own is known to multiply with another tensor than its weight."""
    if layer not in _passes:
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                _passes[layer] = _used(twin := _copy(layer)) is not twin.weight
        except Exception:  # it takes more than one tensor, or another one: no pass, no knowledge
            _passes[layer] = False
    return _passes[layer]


def _used(layer: Any) -> Tensor:
    """The weight that a forward pass multiplies with, of the shape that the layer's has."""
    if isinstance(layer, nn.Linear):
        example = torch.ones(1, layer.in_features, dtype=torch.float64)
    else:
        reach = [dilation * (side - 1) + 1 for side, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        example = torch.ones(1, layer.in_channels, *(side + 2 for side in reach), dtype=torch.float64)
    with _Uses() as uses:
        layer(example)
    (found,) = (weight for weight in uses.weights if weight.shape == layer.weight.shape)
    return found


def _called(chain: nn.Module) -> Tensor:
    found = chain()
    assert isinstance(found, Tensor)
    return found


def _hooked(tensor: str) -> Callable[[nn.Module], Tensor]:
    def effect(layer: nn.Module) -> Tensor:
        for hook in list(layer._forward_pre_hooks.values()):
            hook(layer, ())
        found = getattr(layer, tensor)
        assert isinstance(found, Tensor)
        return found

    return effect

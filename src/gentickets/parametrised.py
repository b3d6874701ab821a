"""Tensors that a layer derives from others: by a norm, by any other parametrisation, by a mask of torch's own.

What is pruned is the tensor underneath. That is only right where a zero there is a zero in effect. Spectral norm
(Miyato et al. 2018) and weight norm (Salimans & Kingma 2016) keep zeros, and divide by 0 where nothing else is left;
of every other way it is tried out; and a tensor that torch prunes already has two masks, of which one is not ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm as OldSpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as OldWeightNorm

NormKind = Literal["spectral norm", "weight norm"]


@dataclass(frozen=True)
class Norm:
    """What a norm asks of the tensor underneath: that something is left of each slice along `axis`, else it is 0 / 0.

    With `axis` None: of the tensor as a whole. `length`: under weight norm, the parameter of the lengths.
    """

    kind: NormKind
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

    `norms`: what norms ask of which origins. `mend`: of a tensor that torch prunes already, what ends that. `maker`:
    of anything else than one known norm, the module that makes the tensor, and what asks it for that.
    """

    tensor: str
    origins: tuple[str, ...]
    by: str
    norms: tuple[tuple[str, Norm], ...] = ()
    mend: str | None = None
    maker: tuple[nn.Module, Callable[[nn.Module], Tensor]] | None = None


def derived(layer: nn.Module) -> list[Derived]:
    """What the layer derives, by torch's parametrisations and by hooks that run before it."""
    if not layer._forward_pre_hooks and "parametrizations" not in layer._modules:
        return []
    return [*_by_parametrisations(layer), *_by_hooks(layer)]


def norms_of(layer: nn.Module) -> dict[str, Norm]:
    """What the layer's norms ask of its parameters, by their names in the layer."""
    return {name: norm for one in derived(layer) for name, norm in one.norms}


def prunes_already(layer: nn.Module) -> Derived | None:
    """A tensor of the layer that torch prunes already; None where there is none."""
    return next((one for one in derived(layer) if one.mend is not None), None)


def not_zero_in_effect(one: Derived, origin: str) -> str | None:
    """Why zeros in the parameter `origin` would be no zeros in effect, in words; None where they would be.

    Tried out once for every module that makes a tensor.
    """
    if one.maker is None:
        return None
    known = _tried.setdefault(one.maker[0], {})
    if (key := (one.by, origin)) not in known:
        known[key] = _try_out(one, origin)
    return known[key]


_tried: WeakKeyDictionary[nn.Module, dict[Any, str | None]] = WeakKeyDictionary()


# -- finding -----------------------------------------------------------------------------------------------------------


def _by_parametrisations(layer: nn.Module) -> Iterator[Derived]:
    chains: Any = layer._modules.get("parametrizations") or {}
    for tensor, chain in chains.items():
        names = ["original"] if chain.is_tensor else [f"original{number}" for number in range(chain.ntensors)]
        origins = tuple(f"parametrizations.{tensor}.{name}" for name in names)
        steps = list(chain)
        by = " and ".join(f"parametrisation {type(step).__name__}" for step in steps)
        masks = [step for step in steps if type(step).__module__.startswith("torch.ao.pruning")]
        if masks:
            yield Derived(tensor, origins, "torch.ao.pruning", mend="sparsifier.squash_mask()")
            continue
        norms = _of_steps(steps, chain, origins)
        known = len(steps) == 1 and type(steps[0]) in (_SpectralNorm, _WeightNorm)
        yield Derived(tensor, origins, by, norms, maker=None if known else (chain, _called))


def _of_steps(steps: list[nn.Module], chain: Any, origins: tuple[str, ...]) -> tuple[tuple[str, Norm], ...]:
    """What the norms among stacked parametrisations ask of the first tensors.

    What comes before a norm keeps zeros, or is refused: nothing is left for the norm where nothing was underneath.
    """
    found: list[tuple[str, Norm]] = []
    for number, step in enumerate(steps):
        if isinstance(step, _SpectralNorm) and hasattr(step, "_u") and chain.is_tensor:
            found.append((origins[0], Norm("spectral norm")))  # of a vector torch takes the length, never below eps
        elif isinstance(step, _WeightNorm) and number == 0 and len(origins) == 2:
            found.append((origins[1], _weight_norm(step.dim, chain.original1, origins[0])))
    return tuple(found)


def _weight_norm(dim: int, direction: Tensor, length: str) -> Norm:
    """torch's -1 is one length for the whole tensor, and so is None."""
    return Norm("weight norm", None if dim == -1 else dim % direction.dim(), length)


def _by_hooks(layer: nn.Module) -> Iterator[Derived]:
    known = set()
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            tensor: str = hook._tensor_name
            mend = f"torch.nn.utils.prune.remove(layer, {tensor!r})"
            yield Derived(tensor, (f"{tensor}_orig",), "torch.nn.utils.prune", mend=mend)
        elif isinstance(hook, OldSpectralNorm):
            tensor, origin = hook.name, f"{hook.name}_orig"
            yield Derived(tensor, (origin,), "spectral norm", ((origin, Norm("spectral norm")),))
        elif isinstance(hook, OldWeightNorm):
            tensor, length, origin = hook.name, f"{hook.name}_g", f"{hook.name}_v"
            norm = _weight_norm(hook.dim, layer.get_parameter(origin), length)
            yield Derived(tensor, (length, origin), "weight norm", ((origin, norm),))
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


# -- trying ------------------------------------------------------------------------------------------------------------

_SHARES = (0.2, 0.5, 0.9)
"""How much of a tensor is zero in each trial."""


@torch.no_grad()
def _try_out(one: Derived, origin: str) -> str | None:
    """Puts zeros at random among random numbers into a copy, and looks where they are in effect."""
    assert one.maker is not None
    maker, effect_of = one.maker
    rng = torch.Generator().manual_seed(0)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            for share in _SHARES:
                twin = _copy(maker)
                for parameter in twin.parameters():
                    if parameter.is_floating_point() or parameter.is_complex():
                        parameter.copy_(_away_from_zero(parameter, rng))
                underneath = twin.get_parameter(origin.rpartition(".")[2])
                alive = _alive(underneath.shape, share, dict(one.norms).get(origin), rng)
                underneath.mul_(alive)
                for training in (True, False):
                    effect = effect_of(twin.train(training))
                    if effect.shape != alive.shape:
                        return f"it makes {tuple(effect.shape)} of {tuple(alive.shape)}"
                    if bool((effect[~alive] != 0).any()):
                        return "what is 0 underneath is not 0 in effect"
                    if not training and bool((effect[alive] == 0).any()):
                        return "what is not 0 underneath is 0 in effect"
    except Exception as error:  # whatever a stranger's code does with numbers that it did not expect
        first = next(iter(str(error).splitlines()), "")
        return f"it cannot be tried out: {type(error).__name__}: {first}"
    return None


def _alive(shape: torch.Size, share: float, norm: Norm | None, rng: torch.Generator) -> Tensor:
    """A mask with so much dead, and something alive wherever a norm would divide by 0."""
    alive = torch.rand(shape, generator=rng, dtype=torch.float64) >= share
    if norm is None:
        return alive
    slices = norm.slices(alive)
    slices[:, 0] = True
    return norm.whole(slices, alive)


def _away_from_zero(like: Tensor, rng: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=rng, dtype=torch.float64)
    return (0.5 + drawn) * (torch.randint(0, 2, like.shape, generator=rng) * 2 - 1)


def _copy(maker: nn.Module) -> nn.Module:
    """A copy in double precision; `deepcopy` refuses the derived tensors that hooks leave in a layer."""
    made = {id(value): value.detach().clone() for value in vars(maker).values() if isinstance(value, Tensor)}
    return copy.deepcopy(maker, made).cpu().double()


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

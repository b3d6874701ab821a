"""Mask sets as values: algebra, counts, bits. `Masks` knows nothing of models beyond names and shapes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gentickets.cores import memory
from gentickets.durations import size
from gentickets.errors import MaskError
from gentickets.masks.adapters import mask_adapters
from gentickets.masks.holding import Hold
from gentickets.masks.layers import (
    check_own_memory,
    check_zeros,
    divided_by_zero,
    prunable_weights,
    warn_of_left_out,
    with_shape,
)
from gentickets.masks.names import Model, Shadows, as_names, check_components, component_of, named_weights
from gentickets.masks.taken import taken_from, zeros_of
from gentickets.memory import as_bits, nonzero, pack
from gentickets.notebook import shown

M = TypeVar("M", bound=Model)


class Masks(Mapping[str, Tensor]):
    """An immutable set of masks: parameter name → bool tensor, True where the weight is alive.

    Kept bit-packed (one bit a weight, C order, most significant bit first); every access unpacks a fresh
    tensor, so nothing that a caller does to it changes the set. Two sets combine (`&`, `|`, `^`, `~`,
    `distance`) only where they have the same names and shapes.

    Raises `MaskError` for a tensor that is not of dtype bool, that has no values (meta) or not all of them (sparse),
    and for a name that no weight can have.
    """

    __slots__ = ("_bits", "_shapes")
    _bits: Mapping[str, np.ndarray]
    _shapes: Mapping[str, tuple[int, ...]]

    def __init__(self, tensors: Mapping[str, Tensor]):
        bits, shapes = {}, {}
        if not isinstance(tensors, Mapping):
            raise MaskError(
                f"masks are a dict from a weight's name to a bool tensor, not a {type(tensors).__name__}; "
                f"of a model: Masks.dense(model)"
            )
        for name, tensor in tensors.items():
            _check_name(name)
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise MaskError(f"mask {name!r} is {kind}, not bool: compare first (`scores > threshold`)")
            if tensor.is_meta:
                raise MaskError(f"mask {name!r} is on the meta device and has no values: make it where it has some")
            if tensor.layout is not torch.strided or tensor.is_nested:
                lies = "nested" if tensor.is_nested else f"stored as {tensor.layout}"
                raise MaskError(f"mask {name!r} is {lies}: give a plain tensor of its weight's shape, as by to_dense()")
            bits[name] = pack(tensor)
            shapes[name] = tuple(tensor.shape)
        self._seal(bits, shapes)

    def _seal(self, bits: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> None:
        for packed in bits.values():
            packed.setflags(write=False)
        object.__setattr__(self, "_bits", MappingProxyType(bits))
        object.__setattr__(self, "_shapes", MappingProxyType(shapes))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Masks are immutable")

    # -- making -------------------------------------------------------------------------------------------

    @classmethod
    def dense(
        cls,
        model: Model,
        components: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
    ) -> Masks:
        """Masks with everything alive, over the prunable weights of `model` (see `prunable_weights`).

        Without `include`: warns in one line of weights that compute something and are left dense (see `left_out`).
        """
        shapes = {name: w.shape for name, w in prunable_weights(model, components, include, exclude).items()}
        if include is None:
            warn_of_left_out(model, components, exclude)
        return cls.full(shapes)

    @classmethod
    def of_zeros(
        cls,
        model: Model | Mapping[str, Tensor],
        components: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
    ) -> Masks:
        """The masks that a network's zeros imply: dead where a weight is exactly 0.0 (or -0.0), alive elsewhere.

        Of the weights that `dense` takes. Of a state dict, which does not know its layers, `include` must name them.
        What may be meant otherwise is told: warns of tensors with so few zeros that they may be chance, and of zeros
        in matrices that are not taken by default.

        Raises `MaskError` where there is no zero at all; for a tensor that is 0.0 everywhere, and so may be a branch
        that starts from zero, unless `include` has it by its own name; for quantised, sparse and sharded tensors; and
        where another tool keeps a mask beside the weights (see `taken_from`).
        """
        found = zeros_of(model, components, include, exclude)
        if include is None:  # not of a state dict, which must have it
            warn_of_left_out(cast(Model, model), components, exclude)
        return cls.from_packed({n: nonzero(w) for n, w in found.items()}, {n: w.shape for n, w in found.items()})

    @classmethod
    def taken_from(cls, model: Model | Mapping[str, Any]) -> Masks:
        """The masks by which `torch.nn.utils.prune` or `torch.ao.pruning` prunes a model.

        Of the model itself; of its state dict, which has the masks of the former; or of `sparsifier.state_dict()`,
        which has those of the latter. They cover the tensors that those prune, and have the names that these have once
        that is final (`decoder.0.weight` for `decoder.0.weight_orig`). What is given is left as it is.

        Raises `MaskError` where there is no such mask, where one is not of zeros and ones in the shape of its weight,
        where a weight is made by a norm or another parametrisation too, and where layers share it.
        """
        return cls({one.name: one.alive() for one in taken_from(model)})

    @classmethod
    def take_over_(cls, model: Model) -> Masks:
        """As `taken_from`, and then makes the pruning final: plain weights, exactly 0.0 where they are pruned.

        The parameters stay the same objects, so that an optimiser of theirs still steps them. Whatever pruned the
        model before (a sparsifier of `torch.ao`, a callback) must not go on with it.
        """
        found = taken_from(model)
        masks = cls({one.name: one.alive() for one in found})
        for one in found:
            one.end()
        masks.apply_(model)
        return masks

    @classmethod
    def full(cls, shapes: Mapping[str, Iterable[int]]) -> Masks:
        """Masks with everything alive, over weights of these names and shapes.

        Raises `MaskError`, before anything is allocated, where not even one bit a weight fits into memory.
        """
        sized = {name: tuple(int(side) for side in shape) for name, shape in shapes.items()}
        for name, shape in sized.items():
            _check_name(name)
            if min(shape, default=0) < 0:
                raise MaskError(f"mask {name!r} of shape {shape}: a side is a whole number from 0")
        total = sum(math.prod(shape) for shape in sized.values())
        if total > 8 * memory():
            raise MaskError(
                f"masks of {total:,} weights take {size(total // 8)} at one bit a weight, and there are "
                f"{size(memory())} of memory: choose fewer components, or a smaller model"
            )
        return cls._of({name: _ones(math.prod(shape)) for name, shape in sized.items()}, sized)

    @classmethod
    def from_packed(cls, bits: Mapping[str, np.ndarray], shapes: Mapping[str, Iterable[int]]) -> Masks:
        """Masks from packed bytes and shapes, as in `packed`. Raises `MaskError` where they disagree."""
        if set(bits) != set(shapes):
            raise MaskError(f"packed masks and shapes name different weights: {sorted(set(bits) ^ set(shapes))}")
        ready, sized = {}, {}
        for name, shape in shapes.items():
            _check_name(name)
            packed = np.array(bits[name]).reshape(-1)
            if packed.dtype != np.uint8:
                raise MaskError(f"mask {name!r} is packed as {packed.dtype}, not uint8")
            sized[name] = tuple(int(side) for side in shape)
            total = math.prod(sized[name])
            whole = min(sized[name], default=0) >= 0 and len(packed) == (total + 7) // 8
            if not whole or (total % 8 and packed[-1] & _beyond(total)):
                raise MaskError(f"mask {name!r}: {len(packed)} packed bytes do not hold a shape {sized[name]}")
            ready[name] = packed
        return cls._of(ready, sized)

    @classmethod
    def _of(cls, bits: dict[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> Masks:
        """Masks of bits that nobody else writes to and that are known to fit their shapes: neither copied nor read."""
        masks = object.__new__(cls)
        masks._seal(bits, dict(shapes))
        return masks

    def select(self, components: Iterable[str] | str) -> Masks:
        """The masks of one component, or of several. Raises `MaskError` for a name that is none."""
        wanted = as_names(components)
        check_components(wanted, self.components)
        return self._keep(name for name in self if component_of(name) in wanted)

    def only(self, names: Container[str]) -> Masks:
        """The masks of those weights that `names` has."""
        return self._keep(name for name in self if name in names)

    def merge(self, other: Mapping[str, Tensor]) -> Masks:
        """These masks and those of `other`, of other weights. Raises `MaskError` for a name that both have."""
        added = other if isinstance(other, Masks) else Masks(other)
        if shared := [name for name in added if name in self]:
            raise MaskError(
                f"both sets have a mask {shared[0]!r} ({len(shared)} names in all): put two networks into one model, "
                f"as {{'generator': G, 'discriminator': D}}, or take replace(...) for the other's in place of these"
            )
        return self.replace(added)

    def replace(self, other: Mapping[str, Tensor]) -> Masks:
        """These masks, with those of `other` in the place of the ones of their names, or added."""
        added = other if isinstance(other, Masks) else Masks(other)
        return Masks._of({**self._bits, **added._bits}, {**self._shapes, **added._shapes})

    def _keep(self, names: Iterable[str]) -> Masks:
        names = list(names)
        return Masks._of({n: self._bits[n] for n in names}, {n: self._shapes[n] for n in names})

    # -- reading ------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        flat = np.unpackbits(self._bits[name], count=math.prod(shape)).view(np.bool_)
        return torch.from_numpy(flat).reshape(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes  # Mapping's own would unpack the mask to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    @property
    def packed(self) -> Mapping[str, np.ndarray]:
        """Name → the packed bytes, read-only."""
        return self._bits

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → the shape of the weight."""
        return self._shapes

    @property
    def components(self) -> tuple[str, ...]:
        """The components that these masks speak of, in order."""
        return tuple(dict.fromkeys(component_of(name) for name in self))

    @property
    def total(self) -> int:
        """How many weights there are, dead and alive."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    @property
    def alive(self) -> int:
        """How many weights are alive."""
        return sum(self.counts().values())

    @property
    def sparsity(self) -> float:
        """The share of weights that is pruned, 0 to 1. Of an empty set: 0."""
        # Not 1 - density: the nearest float to the ratio, so that `prune(to_sparsity=...)` meets it exactly.
        return (self.total - self.alive) / self.total if self.total else 0.0

    @property
    def density(self) -> float:
        """The share of weights that is alive, 0 to 1. Of an empty set: 1."""
        return self.alive / self.total if self.total else 1.0

    def counts(self) -> dict[str, int]:
        """Name → how many weights are alive."""
        return {name: int(np.bitwise_count(bits).sum(dtype=np.int64)) for name, bits in self._bits.items()}

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over names, shapes and bits: equal for equal sets, whatever the order of names."""
        digest = hashlib.sha256()
        for name in sorted(self._bits):
            digest.update(f"{name}{self._shapes[name]}".encode())
            digest.update(self._bits[name].data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        alive = f"{self.alive:,} of {self.total:,} alive"
        return f"Masks({len(self)} tensors, {alive}, sparsity {self.sparsity:.2%})"

    def _repr_html_(self) -> str:
        return shown(self, ("weight", "shape", "alive", "of", "sparsity"), self._rows())

    def _rows(self) -> Iterator[tuple[object, ...]]:
        for name, alive in self.counts().items():
            shape, total = self._shapes[name], math.prod(self._shapes[name])
            yield name, " × ".join(map(str, shape)), alive, total, f"{1 - alive / total if total else 0.0:.2%}"

    # -- algebra ------------------------------------------------------------------------------------------

    def _combine(self, other: Masks, operation: Any) -> Masks:
        self.check_same(other)
        return Masks._of({n: operation(mine, other._bits[n]) for n, mine in self._bits.items()}, self._shapes)

    def __and__(self, other: Masks) -> Masks:
        return self._combine(other, np.bitwise_and) if isinstance(other, Masks) else NotImplemented

    def __or__(self, other: Masks) -> Masks:
        return self._combine(other, np.bitwise_or) if isinstance(other, Masks) else NotImplemented

    def __xor__(self, other: Masks) -> Masks:
        return self._combine(other, np.bitwise_xor) if isinstance(other, Masks) else NotImplemented

    def __invert__(self) -> Masks:
        bits = {name: ~packed for name, packed in self._bits.items()}
        for name, packed in bits.items():
            _clear_beyond(packed, math.prod(self._shapes[name]))
        return Masks._of(bits, self._shapes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return dict(self._shapes) == dict(other._shapes) and all(
            np.array_equal(mine, other._bits[name]) for name, mine in self._bits.items()
        )

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __le__(self, other: Masks) -> bool:
        """True where no weight is alive here that is dead in `other`."""
        if not isinstance(other, Masks):
            return NotImplemented
        self.check_same(other)
        return not any((mine & ~other._bits[name]).any() for name, mine in self._bits.items())

    def distance(self, other: Masks) -> float:
        """The normalised Hamming distance: the share of weights on which the two sets differ, 0 to 1.

        It says little by itself: `overlap` has it beside that of independent masks.
        """
        self.check_same(other)
        return (self ^ other).alive / self.total if self.total else 0.0

    def check_same(self, other: Masks) -> None:
        """Raises `MaskError` that names the first weight by which the two sets differ in name or shape."""
        if not isinstance(other, Masks):
            raise MaskError(f"masks are compared with Masks, and not with a {type(other).__name__}")
        for name, shape in self._shapes.items():
            if name not in other._shapes:
                raise MaskError(f"mask {name!r} is in one set and not in the other")
            if other._shapes[name] != shape:
                theirs = other._shapes[name]
                raise MaskError(f"mask {name!r} has shape {shape} in one set and {theirs} in the other")
        for name in other._shapes:
            if name not in self._shapes:
                raise MaskError(f"mask {name!r} is in one set and not in the other")

    # -- a value survives copying and pickling as a value ---------------------------------------------------

    def __deepcopy__(self, memo: object) -> Masks:
        return self

    def __copy__(self) -> Masks:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Masks.from_packed, (dict(self._bits), dict(self._shapes))

    # -- on a model ---------------------------------------------------------------------------------------

    def check_fits(self, model: Model) -> dict[str, nn.Parameter]:
        """The model's weights by name. Raises `MaskError` that names the first mask that fits none.

        None fits a weight of which a zero would not be a zero in effect (see `layers.check_zeros`), nor a model that
        has two parameters over one memory (see `layers.check_own_memory`).
        """
        weights = named_weights(model)
        for name, shape in self._shapes.items():
            if name not in weights:
                adapted = ".base_layer.".join(name.rpartition(".")[::2]) in weights
                hint = ": it has adapters, see masks.mask_adapters_(model)" if adapted else ""
                raise MaskError(f"the model has no weight {name!r}, which the masks cover{hint}")
            if tuple(with_shape(name, weights[name]).shape) != shape:
                found = tuple(weights[name].shape)
                raise MaskError(f"{name!r} is {found} in the model and {shape} in the masks")
        check_own_memory(weights)
        check_zeros(model, self)
        return weights

    def _values_of(self, model: Model) -> dict[str, nn.Parameter]:
        """As `check_fits`, of a model whose weights have values."""
        weights = self.check_fits(model)
        for name in self:
            if weights[name].is_meta:
                raise MaskError(
                    f"{name!r} is on the meta device and has no values: model.to_empty(device=...) and load first"
                )
        return weights

    @torch.no_grad()
    def apply_(self, model: M) -> M:
        """Sets every pruned weight of `model` to exactly 0.0, in place (NaN and infinity too); returns it.

        Raises `MaskError` where the masks do not fit, or leave nothing of what spectral or weight norm divides by, and
        for a model on the meta device, which has no values.
        """
        weights = self._values_of(model)
        if (reason := divided_by_zero(model, self)) is not None:
            raise MaskError(f"{reason}: keep a weight there, as prune does with scores of this model")
        for name, mask in self.items():
            # By a product of the bits, read as integers, with 0 or 1: a tenth of the time of `masked_fill_`.
            bits = as_bits(weights[name])
            keep = mask.to(bits.device)
            bits.mul_(keep if bits.dim() == keep.dim() else keep[..., None])
        parametrize._cache.clear()  # inside `parametrize.cached()` derived weights would be those of before
        return model

    def mask_adapters_(self, model: M) -> M:
        """Lets adapters move live weights alone: from here on, in training and when they are merged; returns the model.

        It knows LoRA layers of peft (in a `PeftModel`, or added to a model of diffusers or transformers), and weights
        with a parametrisation of one's own. A pass adds mask * (B A) where it added B A, so that the merged network
        (`merge_and_unload`, `fuse_lora`, `parametrize.remove_parametrizations`) is the one that was trained, and its
        pruned weights are exactly 0.0. The masks have the names of the model without adapters (`decoder.0.weight`), of
        which the pruned weights are set to 0.0. Adapters of peft that are added or loaded later are masked too, where a
        layer had one at the time. For further layers call it again, and for a parametrisation that is registered later,
        which comes behind the mask.

        Each pass makes the product B A as a whole: that takes the memory of one more weight in each layer.

        Raises `MaskError`, before it changes anything, where no covered weight has an adapter, where masks do not fit,
        for another kind of adapter (DoRA, quantised layers), and for one that is merged already.
        """
        mask_adapters(model, self)
        return model

    @torch.no_grad()
    def audit(self, model: Model, what: str = "the model") -> None:
        """Raises `MaskError` that names the first tensor of `model` with a pruned weight that is not 0.0."""
        weights = self._values_of(model)
        for name, bits in self._bits.items():
            # As bits: to index a tensor with a mask takes 8 bytes a weight and fifty times as long.
            stray = nonzero(weights[name]) & ~bits
            if stray.any():
                count = int(np.bitwise_count(stray).sum(dtype=np.int64))
                raise MaskError(f"{what} is no longer sparse: {name!r} has {count:,} pruned weights that are not 0.0")

    def hold(self, model: Model, *optimizers: torch.optim.Optimizer, copies: Any = ()) -> Hold:
        """A context in which every pass of `model` finds its pruned weights exactly 0.0, whoever writes them.

        On entry: applies the masks to `model` and to `copies` (EMA or other averages of it, each a model, diffusers'
        `EMAModel` or what else keeps `shadow_params` in the order of the parameters; a dict of components where not
        all have one, `{"generator": ema}`) and drops what momentum the optimisers hold for pruned weights. After each
        step of an optimiser: sets the pruned weights *that this optimiser stepped* back to 0.0, before any other
        hook of its; the others are not touched, so a graph that still needs them stays valid. Where an optimiser may
        couple weights, or keep some of its own (any but torch's that move each by itself; ASGD keeps an average), its
        gradients and its state are masked too, and what it asks of a closure sees masked weights. After
        `load_state_dict` of the model or a part of it: applies the masks again.

        Before each pass of the model, or of a part of it, it looks whether anybody else has written to its
        weights, and sets strays to 0.0, with one warning that names the weight; `Hold.mask` does so when asked,
        for loops that write by hand. A layer, a parameter or an entry of a dict of components that is put in
        another's place is held in its stead; what `torch.func.functional_call` puts there for one call is the caller's
        and stays as it is. Noticed at once is what autograd can see, every write that is dense, and whatever happens
        while another optimiser steps; a single place written through `.data`, and on a GPU whatever is, at the 64th
        pass at the latest. Of a compiled pass nobody hears but the compiled module itself: hold that
        (`masks.hold(torch.compile(gan), ...)`). On a GPU it masks without looking, since to look would wait for it.

        What writes a weight inside a pass, as a layer that centres it in place or a hook that adds noise, comes after
        the look. So there is another before each step: strays that a pass may have seen are set to 0.0, with a warning,
        and from then on a layer whose own pass writes its pruned weights is refused.

        On exit: sets what was written since the last pass began to 0.0, with a warning, and audits all. Left by an
        exception (Ctrl-C amid a step, early stopping), it sets all to 0.0, of the copies too, and raises nothing.

        Raises `MaskError` where the masks do not fit; for an optimiser that cannot be held (LBFGS) or that has no
        parameter of the model; on leaving, where a pass may have seen a pruned weight alive; and inside, at its first
        step and before it changes anything, for an optimiser of a pruned weight that the hold was not given, and for a
        layer that goes on to write pruned weights inside its pass.
        """
        several = (copies,) if isinstance(copies, nn.Module | Mapping | Shadows) else copies
        if not isinstance(several, Iterable):
            raise MaskError(f"copies={copies!r}: a copy of the model, or several; () where there is none")
        return Hold(self, model, optimizers, tuple(several))


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise MaskError(f"a mask is named after its weight, as in model.named_parameters(); not {name!r}")


def _ones(total: int) -> np.ndarray:
    bits = np.full((total + 7) // 8, 0xFF, dtype=np.uint8)
    _clear_beyond(bits, total)
    return bits


def _beyond(total: int) -> int:
    """The bits of the last packed byte that lie beyond `total` weights."""
    return 0xFF >> (total % 8) if total % 8 else 0


def _clear_beyond(bits: np.ndarray, total: int) -> None:
    if total % 8:
        bits[-1] &= ~_beyond(total) & 0xFF

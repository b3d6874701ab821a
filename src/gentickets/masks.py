"""Mask sets as values, and holding a model to one while any optimiser steps.

`Masks` knows nothing of models beyond names and shapes. Names are those of `model.named_parameters()`
without the prefixes that wrappers add (DDP, Fabric, `torch.compile`, weight averaging). Under spectral or
weight norm the *underlying* tensor is the one that is masked (`weight_orig`, `weight_v`,
`parametrizations.weight.original…`), so that the norm sees the masked weight.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.errors import MaskError

PRUNABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
"""The layers whose weight is prunable by default. Biases, norms and embeddings are not."""

# Wrapper class → the child that holds the user's module. By class name, so that none need be importable.
_WRAPPED_IN = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "_FabricModule": "_forward_module",
    "OptimizedModule": "_orig_mod",
    "AveragedModel": "module",
}

# Where the tensor that the optimiser steps lies, relative to its layer: plain, old-style spectral norm,
# old-style weight norm, and the two parametrised forms.
WEIGHT_PLACES = (
    "weight",
    "weight_orig",
    "weight_v",
    "parametrizations.weight.original",
    "parametrizations.weight.original1",
)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DDP, Fabric, `torch.compile` and weight-averaging wrappers."""
    while (child := _WRAPPED_IN.get(type(module).__name__)) and isinstance(
        inner := getattr(module, child, None), nn.Module
    ):
        module = inner
    return module


def named_layers(model: nn.Module, prefix: str = "", _seen: set[int] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Every module under `model` with its dotted name, wrapper prefixes left out, a shared module once."""
    model = unwrap(model)
    seen = set() if _seen is None else _seen
    if id(model) in seen:
        return
    seen.add(id(model))
    yield prefix, model
    for name, child in model.named_children():
        yield from named_layers(child, f"{prefix}.{name}" if prefix else name, seen)


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """`model.named_parameters()` as a dictionary, wrapper prefixes left out, shared tensors named once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for layer_name, layer in named_layers(model):
        for name, parameter in layer._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{layer_name}.{name}" if layer_name else name] = parameter
    return found


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, wrapper prefixes left out: the model's own tensors."""
    found: dict[str, Tensor] = dict(named_weights(model))
    for layer_name, layer in named_layers(model):
        for name, buffer in layer._buffers.items():
            if buffer is not None and name not in layer._non_persistent_buffers_set:
                found[f"{layer_name}.{name}" if layer_name else name] = buffer
    return found


def clone(model: nn.Module) -> nn.Module:
    """A deep copy. Where old-style spectral or weight norm left a derived weight in a layer's attributes,
    which `copy.deepcopy` refuses, the copy gets it detached."""
    derived = {
        id(value): value.detach().clone()
        for _, layer in named_layers(model)
        for value in vars(layer).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, derived)


def component_of(name: str) -> str:
    """The component that a weight belongs to: the first part of its dotted name."""
    return name.split(".", 1)[0]


def components_of(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's components: its named children, in order."""
    return tuple(name for name, _ in unwrap(model).named_children())


def prunable_weights(
    model: nn.Module,
    components: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> dict[str, nn.Parameter]:
    """The weights that pruning may touch, by name.

    Without `include`: the weights of convolutions, transposed convolutions and linear layers. With it: every
    parameter whose name matches one of these shell-style patterns (`"decoder.*"`, `"*.attention.*.weight"`).
    `exclude` takes names out by the same kind of pattern; `components` keeps the named children only.

    Raises `MaskError` for a component that does not exist, or where nothing is left to prune.
    """
    weights = named_weights(model)
    if include is None:
        chosen = _default_prunable(model)
    else:
        patterns = _as_names(include)
        chosen = [name for name in weights if any(fnmatchcase(name, p) for p in patterns)]
    if components is not None:
        wanted = _as_names(components)
        check_components(wanted, components_of(model))
        chosen = [name for name in chosen if component_of(name) in wanted]
    dropped = _as_names(exclude)
    chosen = [name for name in chosen if not any(fnmatchcase(name, p) for p in dropped)]
    if not chosen:
        raise MaskError(
            f"no prunable weight in {type(unwrap(model)).__name__} (components={components}, "
            f"include={include}, exclude={tuple(dropped)}): name others with include="
        )
    return {name: weights[name] for name in chosen}


def check_components(wanted: Iterable[str], known: Iterable[str]) -> None:
    """Raises `MaskError` that lists the components there are, where one of `wanted` is none of them."""
    known = tuple(known)
    for name in wanted:
        if name not in known:
            raise MaskError(f"no component {name!r}: the model has {', '.join(known) or 'none'}")


def _default_prunable(model: nn.Module) -> list[str]:
    names = named_weights(model)
    return [
        full
        for layer_name, layer in named_layers(model)
        if isinstance(layer, PRUNABLE)
        for place in WEIGHT_PLACES
        if (full := f"{layer_name}.{place}" if layer_name else place) in names
    ]


def _as_names(names: Iterable[str] | str) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


class Masks(Mapping[str, Tensor]):
    """An immutable set of masks: parameter name → bool tensor, True where the weight is alive.

    Kept bit-packed (one bit a weight, C order, most significant bit first); every access unpacks a fresh
    tensor, so nothing that a caller does to it changes the set. Two sets combine (`&`, `|`, `^`, `~`,
    `distance`) only where they have the same names and shapes.

    Raises `MaskError` for a tensor that is not of dtype bool.
    """

    __slots__ = ("_bits", "_shapes")
    _bits: Mapping[str, np.ndarray]
    _shapes: Mapping[str, tuple[int, ...]]

    def __init__(self, tensors: Mapping[str, Tensor]):
        bits, shapes = {}, {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise MaskError(f"mask {name!r} is {kind}, not bool: compare first (`scores > threshold`)")
            bits[name] = np.packbits(tensor.detach().cpu().numpy().reshape(-1))
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
        model: nn.Module,
        components: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
    ) -> Masks:
        """Masks with everything alive, over the prunable weights of `model` (see `prunable_weights`)."""
        weights = prunable_weights(model, components, include, exclude)
        return cls({name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()})

    @classmethod
    def from_packed(cls, bits: Mapping[str, np.ndarray], shapes: Mapping[str, Iterable[int]]) -> Masks:
        """Masks from packed bytes and shapes, as in `packed`. Raises `MaskError` where they disagree."""
        if set(bits) != set(shapes):
            raise MaskError(f"packed masks and shapes name different weights: {sorted(set(bits) ^ set(shapes))}")
        ready, sized = {}, {}
        for name, shape in shapes.items():
            packed = np.array(bits[name]).reshape(-1)
            if packed.dtype != np.uint8:
                raise MaskError(f"mask {name!r} is packed as {packed.dtype}, not uint8")
            sized[name] = tuple(int(side) for side in shape)
            total = math.prod(sized[name])
            whole = min(sized[name], default=0) >= 0 and len(packed) == (total + 7) // 8
            if not whole or (packed & _padding(total)).any():
                raise MaskError(f"mask {name!r}: {len(packed)} packed bytes do not hold a shape {sized[name]}")
            ready[name] = packed
        masks = object.__new__(cls)
        masks._seal(ready, sized)
        return masks

    def select(self, components: Iterable[str] | str) -> Masks:
        """The masks of one component, or of several. Raises `MaskError` for a name that is none."""
        wanted = _as_names(components)
        check_components(wanted, self.components)
        return self._keep(name for name in self if component_of(name) in wanted)

    def merge(self, other: Mapping[str, Tensor]) -> Masks:
        """These masks, with those of `other` added, or put in their place where a name is in both."""
        added = other if isinstance(other, Masks) else Masks(other)
        return Masks.from_packed({**self._bits, **added._bits}, {**self._shapes, **added._shapes})

    def _keep(self, names: Iterable[str]) -> Masks:
        names = list(names)
        return Masks.from_packed({n: self._bits[n] for n in names}, {n: self._shapes[n] for n in names})

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
            digest.update(f"{name}{self._shapes[name]}".encode() + self._bits[name].tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        alive = f"{self.alive:,} of {self.total:,} alive"
        return f"Masks({len(self)} tensors, {alive}, sparsity {self.sparsity:.2%})"

    # -- algebra ------------------------------------------------------------------------------------------

    def _combine(self, other: Masks, operation: Any) -> Masks:
        self.check_same(other)
        bits = {name: operation(mine, other._bits[name]) for name, mine in self._bits.items()}
        return Masks.from_packed(bits, self._shapes)

    def __and__(self, other: Masks) -> Masks:
        return self._combine(other, np.bitwise_and) if isinstance(other, Masks) else NotImplemented

    def __or__(self, other: Masks) -> Masks:
        return self._combine(other, np.bitwise_or) if isinstance(other, Masks) else NotImplemented

    def __xor__(self, other: Masks) -> Masks:
        return self._combine(other, np.bitwise_xor) if isinstance(other, Masks) else NotImplemented

    def __invert__(self) -> Masks:
        bits = {}
        for name, packed in self._bits.items():
            bits[name] = ~packed & ~_padding(math.prod(self._shapes[name]))
        return Masks.from_packed(bits, self._shapes)

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
        return not (self & ~other).alive if isinstance(other, Masks) else NotImplemented

    def distance(self, other: Masks) -> float:
        """The normalised Hamming distance: the share of weights on which the two sets differ, 0 to 1."""
        return (self ^ other).alive / self.total if self.total else 0.0

    def check_same(self, other: Masks) -> None:
        """Raises `MaskError` that names the first weight by which the two sets differ in name or shape."""
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

    def check_fits(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's weights by name. Raises `MaskError` that names the first mask that fits none."""
        weights = named_weights(model)
        for name, shape in self._shapes.items():
            if name not in weights:
                raise MaskError(f"the model has no weight {name!r}, which the masks cover")
            if tuple(weights[name].shape) != shape:
                found = tuple(weights[name].shape)
                raise MaskError(f"{name!r} is {found} in the model and {shape} in the masks")
        return weights

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> nn.Module:
        """Sets every pruned weight of `model` to exactly 0.0, in place (NaN and infinity too); returns it."""
        weights = self.check_fits(model)
        for name, mask in self.items():
            weights[name].masked_fill_(~mask.to(weights[name].device), 0.0)
        return model

    @torch.no_grad()
    def audit(self, model: nn.Module, what: str = "the model") -> None:
        """Raises `MaskError` that names the first tensor of `model` with a pruned weight that is not 0.0."""
        weights = self.check_fits(model)
        for name, mask in self.items():
            audit_tensor(name, weights[name], mask, what)

    def hold(self, model: nn.Module, *optimizers: torch.optim.Optimizer, copies: Iterable[nn.Module] = ()) -> Hold:
        """A context in which `model` stays exactly as sparse as these masks, whatever `optimizers` do.

        On entry: applies the masks to `model` and to `copies` (EMA or other averages of it) and drops what
        momentum the optimisers hold for pruned weights. After each step of an optimiser: sets the pruned
        weights *that this optimiser stepped* back to 0.0; the others are not touched, so a graph that still
        needs them stays valid. After `load_state_dict` of the model or a part of it: applies the masks again.
        On exit: audits all.

        Raises `MaskError` where the masks do not fit, and for an optimiser that cannot be held (LBFGS).
        """
        return Hold(self, model, optimizers, tuple(copies))


def audit_tensor(name: str, tensor: Tensor, mask: Tensor, what: str) -> None:
    """Raises `MaskError` where `tensor` is not exactly 0.0 at each place that `mask` says is pruned."""
    stray = int(torch.count_nonzero(tensor.detach()[~mask.to(tensor.device)]))
    if stray:
        raise MaskError(f"{what} is no longer sparse: {name!r} has {stray:,} pruned weights that are not 0.0")


def _padding(total: int) -> np.ndarray:
    """One byte for each packed byte, with 1 at the bits beyond `total`."""
    pad = np.zeros((total + 7) // 8, dtype=np.uint8)
    if total % 8:
        pad[-1] = 0xFF >> (total % 8)
    return pad


class Hold:
    """`Masks.hold` at work. Use it as a context; see there."""

    def __init__(
        self,
        masks: Masks,
        model: nn.Module,
        optimizers: tuple[torch.optim.Optimizer, ...],
        copies: tuple[nn.Module, ...],
    ):
        self.masks, self.model, self.copies = masks, model, copies
        self.optimizers = tuple(_plain(optimizer) for optimizer in optimizers)
        for optimizer in self.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                raise MaskError("LBFGS evaluates the model inside its step, between two maskings: use another")
        for net in (model, *copies):
            masks.check_fits(net)
        # The parameters themselves are kept too, so that no other tensor can come to have the id of one.
        self._held: dict[int, tuple[str, nn.Parameter]] = {}
        self._keep: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Hold:
        if self._handles:
            raise MaskError("this hold is entered already: make another with masks.hold(...)")
        for net in (self.model, *self.copies):
            self.masks.apply_(net)
        self._find_weights()
        for layer_name, layer in named_layers(self.model):
            own = {key: f"{layer_name}.{key}" if layer_name else key for key in layer._parameters}
            own = {key: name for key, name in own.items() if name in self.masks}
            if own:
                hook = _MaskAfterLoad(self, own)
                self._handles.append(layer.register_load_state_dict_post_hook(hook))
        for optimizer in self.optimizers:
            self._drop_momentum(optimizer)
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._held.clear()
        self._keep.clear()
        if kind is None:
            self.audit()

    def audit(self) -> None:
        """Raises `MaskError` where the model, or a copy, has a pruned weight that is not exactly 0.0."""
        self.masks.audit(self.model)
        for average in self.copies:
            self.masks.audit(average, "an averaged copy of the model")

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Sets the gradients of pruned weights to 0.0.

        Not needed for sparsity. Call it between `backward` and gradient clipping, so that the norm is that of
        the sparse network and not of weights that do not exist.
        """
        weights = named_weights(self.model)
        self._zero_dead([(name, grad) for name in self.masks if (grad := weights[name].grad) is not None])

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._zero_dead([
            (self._held[id(p)][0], p) for group in optimizer.param_groups for p in group["params"]
            if p.grad is not None and id(p) in self._held
        ])  # fmt: skip

    def _find_weights(self) -> None:
        weights = named_weights(self.model)
        self._held = {id(weights[name]): (name, weights[name]) for name in self.masks}

    def _zero_dead(self, tensors: list[tuple[str, Tensor]]) -> None:
        """Sets the pruned places of these tensors to 0.0.

        By a product of the bits, read as integers, with 0 or 1: unlike a product of floats it turns NaN,
        infinity and negative numbers into +0.0 too, and unlike `masked_fill_` it costs 0.1 % of a step.
        """
        if tensors:
            bits = [tensor.detach().view(_BITS_OF[tensor.element_size()]) for _, tensor in tensors]
            torch._foreach_mul_(bits, [self._multiplier(name, b) for (name, _), b in zip(tensors, bits, strict=True)])

    def _multiplier(self, name: str, bits: Tensor) -> Tensor:
        key = (name, bits.dtype, bits.device)
        if key not in self._keep:
            # In the tensor's own strides, so that the product is one flat loop (channels_last included).
            self._keep[key] = torch.empty_like(bits).copy_(self.masks[name])
        return self._keep[key]

    @torch.no_grad()
    def _drop_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter, state in optimizer.state.items():
            if id(parameter) not in self._held:
                continue
            dead = ~self.masks[self._held[id(parameter)][0]]
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(dead.to(value.device), 0.0)


_BITS_OF = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _MaskAfterLoad:
    """Masks the weights of a held layer again when weights are loaded into it, alone or with the whole model.

    A copy of the model, made in memory or through a file, is not held: the hook does nothing there.
    """

    def __init__(self, hold: Hold, names: Mapping[str, str]):
        self.hold, self.names = hold, names

    @torch.no_grad()
    def __call__(self, layer: nn.Module, incompatible_keys: object) -> None:
        for key, name in self.names.items():
            weight = layer._parameters[key]
            assert weight is not None
            weight.masked_fill_(~self.hold.masks[name].to(weight.device), 0.0)
        self.hold._find_weights()  # `load_state_dict(..., assign=True)` puts new tensors in their place

    def __deepcopy__(self, memo: object) -> Any:
        return _nothing_after_load

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert_hook, ()


def _inert_hook() -> Any:
    return _nothing_after_load


def _nothing_after_load(module: nn.Module, incompatible_keys: object) -> None:
    return None


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside Fabric's wrapper: hooks belong on the one that really steps."""
    inner = getattr(optimizer, "optimizer", optimizer) if type(optimizer).__name__.startswith("Fabric") else optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        raise MaskError(f"cannot hold through {type(optimizer).__name__}: it is no torch.optim.Optimizer")
    return inner

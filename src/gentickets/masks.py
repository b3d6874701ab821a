"""Mask sets as values, and holding a model to one while any optimiser steps.

`Masks` knows nothing of models beyond names and shapes. Names are those of `model.named_parameters()`
without the prefixes that wrappers add (DDP, Fabric, `torch.compile`, weight averaging). Under spectral or
weight norm the *underlying* tensor is the one that is masked (`weight_orig`, `weight_v`,
`parametrizations.weight.original…`), so that the norm sees the masked weight.
"""

from __future__ import annotations

import copy
import hashlib
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


def named_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module under `model` with its dotted name, wrapper prefixes left out."""
    model = unwrap(model)
    yield prefix, model
    for name, child in model.named_children():
        yield from named_layers(child, f"{prefix}.{name}" if prefix else name)


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
    """Parameters and persistent buffers by name, wrapper prefixes left out. The tensors are the model's own."""
    found: dict[str, Tensor] = dict(named_weights(model))
    for layer_name, layer in named_layers(model):
        for name, buffer in layer._buffers.items():
            if buffer is not None and name not in layer._non_persistent_buffers_set:
                found[f"{layer_name}.{name}" if layer_name else name] = buffer
    return found


def clone(model: nn.Module) -> nn.Module:
    """A deep copy. Where old-style spectral norm left a derived weight in a layer's attributes, which
    `copy.deepcopy` refuses after a forward pass, the copy gets it detached."""
    for _, layer in named_layers(model):
        for key, value in vars(layer).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(layer)[key] = value.detach()
    return copy.deepcopy(model)


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
            f"no prunable weight in {type(unwrap(model)).__name__} (components={components}, include={include}, "
            f"exclude={tuple(dropped)}): name others with include="
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
                raise MaskError(f"mask {name!r} is {kind}, not bool: compare first, as in `scores > threshold`")
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
        """Masks from packed bytes and shapes, as `packed` gives them. Raises `MaskError` where they disagree."""
        if set(bits) != set(shapes):
            raise MaskError(f"packed masks and shapes name different weights: {set(bits) ^ set(shapes)}")
        ready, sized = {}, {}
        for name, shape in shapes.items():
            packed = np.array(bits[name], dtype=np.uint8).reshape(-1)
            sized[name] = tuple(int(side) for side in shape)
            total = int(np.prod(sized[name], dtype=np.int64))
            if len(packed) != (total + 7) // 8 or (packed & _padding(total)).any():
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
        total = int(np.prod(shape, dtype=np.int64))
        flat = np.unpackbits(self._bits[name], count=total).view(np.bool_)
        return torch.from_numpy(flat).reshape(shape)

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
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self._shapes.values())

    @property
    def alive(self) -> int:
        """How many weights are alive."""
        return sum(self.counts().values())

    @property
    def sparsity(self) -> float:
        """The share of weights that is pruned, 0 to 1. Of an empty set: 0."""
        return 1.0 - self.density

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
        return f"Masks({len(self)} tensors, {self.alive:,} of {self.total:,} alive, sparsity {self.sparsity:.2%})"

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
            total = int(np.prod(self._shapes[name], dtype=np.int64))
            bits[name] = ~packed & ~_padding(total)
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
        return not ((self & ~other).alive)

    def distance(self, other: Masks) -> float:
        """The normalised Hamming distance: the share of weights on which the two sets differ, 0 to 1."""
        return (self ^ other).alive / self.total if self.total else 0.0

    def check_same(self, other: Masks) -> None:
        """Raises `MaskError` that names the first weight by which the two sets differ in name or shape."""
        for name, shape in self._shapes.items():
            if name not in other._shapes:
                raise MaskError(f"mask {name!r} is in one set and not in the other")
            if other._shapes[name] != shape:
                raise MaskError(f"mask {name!r} has shape {shape} in one set and {other._shapes[name]} in the other")
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
        """The model's weights by name. Raises `MaskError` that names the first mask with no weight of its shape."""
        weights = named_weights(model)
        for name, shape in self._shapes.items():
            if name not in weights:
                raise MaskError(f"the model has no weight {name!r}, which the masks cover")
            if tuple(weights[name].shape) != shape:
                raise MaskError(f"{name!r} is {tuple(weights[name].shape)} in the model and {shape} in the masks")
        return weights

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> nn.Module:
        """Sets every pruned weight of `model` to exactly 0.0, in place (NaN and infinity too), and returns it."""
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

    def hold(
        self, model: nn.Module, *optimizers: torch.optim.Optimizer, copies: Iterable[nn.Module] = ()
    ) -> Hold:
        """A context in which `model` stays exactly as sparse as these masks, whatever `optimizers` do.

        On entry: applies the masks to `model` and to `copies` (EMA or other averages of it) and drops what
        momentum the optimisers hold for pruned weights. After each step of an optimiser: sets the pruned
        weights *that this optimiser stepped* back to 0.0; the others are not touched, so a graph that still
        needs them stays valid. After `model.load_state_dict`: applies the masks again. On exit: audits all.
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
                raise MaskError("LBFGS evaluates the model inside its step, between two maskings: use another one")
        weights = masks.check_fits(model)
        self._names = {id(weights[name]): name for name in masks}
        # One multiplier a weight, in the weight's dtype and place: `_foreach_mul_` then costs 0.1 % of a step.
        self._keep: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Hold:
        self.masks.apply_(self.model)
        for copy in self.copies:
            self.masks.apply_(copy)
        for optimizer in self.optimizers:
            self._drop_momentum(optimizer)
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        inner = unwrap(self.model)
        self._handles.append(inner.register_load_state_dict_post_hook(_MaskAfterLoad(self.masks)))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._keep.clear()
        if kind is None:
            self.audit()

    def audit(self) -> None:
        """Raises `MaskError` where the model, or a copy, has a pruned weight that is not exactly 0.0."""
        self.masks.audit(self.model)
        for copy in self.copies:
            self.masks.audit(copy, "an averaged copy of the model")

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Sets the gradients of pruned weights to 0.0.

        Not needed for sparsity. Call it between `backward` and gradient clipping, so that the norm is that of
        the sparse network and not of weights that do not exist.
        """
        weights = named_weights(self.model)
        held = [weights[name] for name in self.masks if weights[name].grad is not None]
        if held:
            torch._foreach_mul_([w.grad for w in held], [self._multiplier(w) for w in held])

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        stepped = [
            p for group in optimizer.param_groups for p in group["params"]
            if p.grad is not None and id(p) in self._names
        ]  # fmt: skip
        if stepped:
            torch._foreach_mul_(stepped, [self._multiplier(p) for p in stepped])

    def _multiplier(self, parameter: Tensor) -> Tensor:
        keep = self._keep.get(id(parameter))
        if keep is None or keep.device != parameter.device or keep.dtype != parameter.dtype:
            mask = self.masks[self._names[id(parameter)]]
            # The weight's own strides, so that the product is one flat loop (channels_last included).
            keep = torch.empty_like(parameter, requires_grad=False).copy_(mask)
            self._keep[id(parameter)] = keep
        return keep

    @torch.no_grad()
    def _drop_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter, state in optimizer.state.items():
            name = self._names.get(id(parameter))
            if name is None:
                continue
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(~self.masks[name].to(value.device), 0.0)


class _MaskAfterLoad:
    """Masks a held model again when weights are loaded into it. A copy of the model is not held: inert there."""

    def __init__(self, masks: Masks):
        self.masks = masks

    def __call__(self, module: nn.Module, incompatible_keys: object) -> None:
        self.masks.apply_(module)

    def __deepcopy__(self, memo: object) -> Any:
        return _nothing_after_load

    def __reduce__(self) -> str:
        return "_nothing_after_load"


def _nothing_after_load(module: nn.Module, incompatible_keys: object) -> None:
    return None


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside Fabric's wrapper: hooks belong on the one that really steps."""
    return optimizer.optimizer if type(optimizer).__name__.startswith("Fabric") else optimizer

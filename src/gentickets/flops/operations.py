"""FLOPs counted from the operations that really run: what each multiplies, and how much of that is alive.

Every tensor operation below autograd is seen as it runs, so attention, recurrent layers, raw parameters and backward
passes count as layers do. An operation is one of three: a *product* with a formula; *free* (elementwise, views,
reductions, moves of numbers, draws); or *not understood*, and then it is listed by name: a sum that lacks something
says so.

How much of a product is alive follows the weights through memory. Beside each masked weight lies a shadow, one bool a
number, in the same layout: a view of the weight is the same view of the shadow, and what is computed from it (divided
by a norm, cast, modulated, put together) gets a shadow of its own, as long as zeros stay zeros on the way.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gentickets.flops.formulas import (
    BLANK,
    FORMULAS,
    FREE,
    FROM_SHAPES,
    KEEP_ZEROS,
    MOVE,
    NORMS,
    VECTORS,
    Bound,
    first_tensor,
)

OUTSIDE = "work outside of torch's operations"
"""Stands for what wrote to a tensor without an operation: a compiled kernel that was handed its memory, or numpy, from
which a tensor came that no operation made."""

_LEAVE = (Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
"""By which numbers leave torch, and work may be done on them that nobody sees."""

FLOPS_A_NORM = 2

Value = TypeVar("Value")


class Operations(TorchDispatchMode):
    """While it is entered, counts every tensor operation; a multiply-add counts as two FLOPs.

    `dense`: all products. `live`: the same, each scaled by the density of the weight that it reads, or whose gradient
    it makes. `between`: those of them that read no weight and make no weight's gradient, as attention's queries with
    its keys; no mask thins them. `norms`: two for each element that a norm puts out. `not_counted`: the calls of
    operations that are neither free nor have a formula; `counted`: the calls that have one.

    `weights` are the model's own tensors, `alive` the masks of some of them (name → bool tensor). Products of a matrix
    with a vector that read nothing but these are left out: the power iteration of a spectral norm is done once a pass,
    whatever the batch, and would make the price of one image depend on how many there are.
    """

    supports_higher_order_operators = True

    def __init__(self, weights: Mapping[str, Tensor], alive: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.dense = self.norms = self.between = self.counted = 0
        self.live = 0.0
        self.not_counted: Counter[str] = Counter()
        self._memory = _Memory(weights, alive or {})

    @property
    def flops(self) -> int:
        """All that was counted: products and norms."""
        return self.dense + self.norms

    def leaving(self) -> TorchFunctionMode:
        """A mode that notes that numbers leave torch: of tensors that no operation made it is then said."""
        return _Leaving(self)

    def has_left(self) -> None:
        """From here on looks where tensors come from."""
        self._memory.looks = True

    def gave(self, tensors: Iterable[Tensor]) -> None:
        """Looks at what a component gave: nothing reads it afterwards, by which unseen work would be noticed."""
        self._note_unseen(tensors)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(kind not in (Tensor, nn.Parameter) for kind in types):
            return NotImplemented  # a tensor of another kind: what it is made of comes here again
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):  # one that takes functions, whose work is not seen
            self.not_counted[str(func)] += 1
            return func(*args, **kwargs)
        name = _name(func)
        if name not in FORMULAS and func._can_decompose() and _are_ordinary(args, kwargs):
            with self:  # made of others, as all are in inference mode
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        out = func(*args, **kwargs)
        arguments = _arguments(func)
        bound = {**dict(zip(arguments, args, strict=False)), **kwargs}
        if not (func.is_view or name in FROM_SHAPES):
            written = {id(leaf) for key in arguments if arguments[key] for leaf in tree_leaves(bound.get(key))}
            self._note_unseen(leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) not in written)
        self._count(name, func, bound, out)
        self._memory.follow(name, func, args, kwargs, out)
        return out

    def _note_unseen(self, leaves: Iterable[Any]) -> None:
        if any(self._memory.is_blank(leaf) for leaf in leaves):
            self.not_counted[OUTSIDE] += 1

    def _count(self, name: str, func: Any, bound: Bound, out: Any) -> None:
        if name in NORMS:
            self.norms += FLOPS_A_NORM * first_tensor(out).numel()
            return
        formula = FORMULAS.get(name)
        if formula is None:
            if not _is_free(func, name):
                self.not_counted[name] += 1
            return
        try:
            products = formula(bound, out) if _are_ordinary(bound, out) else None
        except (KeyError, AttributeError):  # another version of torch, where an argument has another name
            products = None
        if products is None:
            self.not_counted[name] += 1
            return
        if name in VECTORS and self._memory.is_own(*_given(bound)):
            return
        self.counted += 1
        for flops, operands in products:
            if any(tensor.is_complex() for tensor in operands):
                flops *= 4
            axes = _CHANNELS if "conv" in name else _MATRIX
            self._add(flops, *self._memory.density(operands, first_tensor(out), axes))

    def _add(self, flops: int, alive: int, total: int, is_of_weight: bool) -> None:
        self.dense += flops
        self.live += flops * alive / total
        self.between += 0 if is_of_weight else flops


@dataclass(frozen=True)
class _Use:
    """A tensor that was multiplied with a weight: how it lay there, and of the weight two sides and what is alive.

    The gradient of that weight is a product of this tensor, lying so that it is summed over the other axis.
    """

    position: int
    lie: tuple[Any, ...]
    offset: int
    sides: tuple[int, ...]
    alive: int
    total: int

    def makes_gradient(self, position: int, tensor: Tensor, made: Tensor, axes: slice) -> bool:
        """Whether a product of `tensor`, at `position`, which gives `made`, is the gradient of that weight."""
        sides = tuple(made.shape[axes])
        if axes == _CHANNELS:  # turns batch and channels, and is made group by group
            outputs, inputs = self.sides
            fits = any(one == inputs and outputs % max(other, 1) == 0 for one, other in (sides, sides[::-1]))
            return fits and tensor.stride()[axes] == tuple(stride for _, stride in self.lie[::-1])
        # On the other side of the product, or on the same one and turned.
        lie = _lie(tensor, axes) if position != self.position else _lie(tensor, axes)[::-1]
        return tensor.storage_offset() == self.offset and sides in (self.sides, self.sides[::-1]) and lie == self.lie


class _Leaving(TorchFunctionMode):
    def __init__(self, counter: Operations):
        super().__init__()
        self._counter = counter

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _LEAVE:
            self._counter.has_left()
        return function(*args, **(kwargs or {}))


class _Memory:
    """What is known of tensors by where they lie: the model's own, their shadows, what was multiplied with them."""

    def __init__(self, weights: Mapping[str, Tensor], alive: Mapping[str, Tensor]):
        self._own, self._blank = _ByStorage[bool](), _ByStorage[bool]()
        self._shadows, self._uses = _ByStorage[_Shadow](), _ByStorage[list[_Use]]()
        self._made = _ByStorage[bool]()
        self.looks = False
        for name, weight in weights.items():
            self._own[weight] = True
            if name in alive:
                self._cast(weight, alive[name])

    # -- reading ----------------------------------------------------------------------------------------------

    def is_own(self, *tensors: Tensor) -> bool:
        """Whether these are the model's own parameters and buffers, or made of nothing else."""
        return bool(tensors) and all(self._own.get(tensor) for tensor in tensors)

    def is_blank(self, value: Any) -> bool:
        """Whether a tensor was made empty and has not been written by any operation, or came from outside of torch; it
        is said once."""
        if not isinstance(value, Tensor) or not value.numel():
            return False
        if self.looks and _has_storage(value) and not (self._own.get(value) or self._made.get(value)):
            self._made[value] = True
            return True
        return bool(self._blank.pop(value))

    def density(self, operands: Sequence[Tensor], out: Tensor, axes: slice) -> tuple[int, int, bool]:
        """(alive, total) of the weight that a product reads or whose gradient it makes; whether there is one.

        `axes`: the two along which it is summed or not, of its operands.
        """
        shadows = [self._shadow(tensor) for tensor in operands]
        masked = [position for position, shadow in enumerate(shadows) if shadow is not None]
        weights = masked or [position for position, tensor in enumerate(operands) if self.is_own(tensor)]
        if not masked and (use := self._gradient_of(operands, out, axes)) is not None:
            return use.alive, use.total, True
        counts = [(int(shadow.sum()), shadow.numel()) for shadow in shadows if shadow is not None and shadow.numel()]
        alive, total = min(counts, key=lambda count: count[0] / count[1], default=(1, 1))
        if len(operands) == 2 and len(weights) == 1 and operands[weights[0]].requires_grad:
            self._note_use(operands, 1 - weights[0], alive, total, axes)
        return alive, total, bool(weights)

    def _note_use(self, operands: Sequence[Tensor], position: int, alive: int, total: int, axes: slice) -> None:
        used, weight = operands[position], operands[1 - position]
        use = _Use(position, _lie(used, axes), int(used.storage_offset()), tuple(weight.shape[axes]), alive, total)
        if (uses := self._uses.get(used)) is None:
            self._uses[used] = uses = []
        uses.append(use)

    def _gradient_of(self, operands: Sequence[Tensor], out: Tensor, axes: slice) -> _Use | None:
        """The use of a weight whose gradient this product makes."""
        for position, tensor in enumerate(operands):
            uses = self._uses.get(tensor) or []
            for place in reversed(range(len(uses))):  # backward passes go from the last to the first
                if (use := uses[place]).makes_gradient(position, tensor, out, axes):
                    uses.insert(0, uses.pop(place))
                    return use
        return None

    # -- following --------------------------------------------------------------------------------------------

    def follow(self, name: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Notes what is known of the results of an operation, from what is known of its arguments."""
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = {_address(tensor) for tensor in given}
        for tensor in made:
            if _address(tensor) not in before:
                self._made[tensor] = True
        writes = any(_arguments(func).values())
        for tensor in made + given if writes else []:
            self._blank.pop(tensor)
        if name in BLANK:
            for tensor in made:
                self._blank[tensor] = True
        if not made or func.is_view or name in FROM_SHAPES:
            return
        if not writes and _address(made[0]) in before:
            return  # a view by another name
        if self.is_own(*given):
            for tensor in made:
                self._own[tensor] = True
        if any(self._shadow(tensor) is not None for tensor in given):
            self._cast(made[0], self._after(name, func, args, kwargs, made[0]))

    def _after(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor
    ) -> Tensor | None:
        """What of a result can be other than zero, where only what is alive in its arguments can; None: all of it."""
        shadows = [self._shadow(value) if isinstance(value, Tensor) else None for value in args]
        first = shadows[0] if shadows else None
        other = shadows[1] if len(shadows) > 1 else None
        alive = None
        if name in KEEP_ZEROS:
            alive = first
        elif name == "aten.copy":
            alive = other
        elif name == "aten.mul":
            alive = first & other if first is not None and other is not None else other if first is None else first
        elif name in ("aten.add", "aten.sub", "aten.complex") and first is not None and other is not None:
            alive = first | other
        elif name in ("aten.masked_fill", "aten.index_put") and _is_zero(args[2]):
            alive = first
        elif name in MOVE:
            moved = tree_map_only(Tensor, self._stand_in, (args, dict(kwargs)))
            alive = first_tensor(func(*moved[0], **moved[1]))
        return alive if alive is None else alive.expand(out.shape)

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """In the place of an argument: its shadow; of what has none, that all of it is alive; indices as they are."""
        shadow = self._shadow(tensor)
        if shadow is None and tensor.is_floating_point():
            return torch.full_like(tensor, not (tensor.numel() == 1 and _is_zero(tensor)), dtype=torch.bool)
        return tensor if shadow is None else shadow

    def _shadow(self, tensor: Tensor) -> Tensor | None:
        shadow = self._shadows.get(tensor)
        return None if shadow is None or shadow.itemsize != tensor.element_size() else shadow.seen_as(tensor)

    def _cast(self, tensor: Tensor, alive: Tensor | None) -> None:
        shadow = self._shadows.get(tensor)
        if shadow is None or shadow.itemsize != tensor.element_size():
            if alive is None or not _has_storage(tensor):
                return
            count = tensor.untyped_storage().nbytes() // tensor.element_size()
            device = "cpu" if tensor.is_meta else tensor.device
            shadow = _Shadow(torch.ones(count, dtype=torch.bool, device=device), tensor.element_size())
            self._shadows[tensor] = shadow
        shadow.seen_as(tensor).copy_(torch.ones((), dtype=torch.bool) if alive is None else alive)


@dataclass(frozen=True)
class _Shadow:
    """One bool for each number of a storage, True where it may be alive; `itemsize` bytes a number."""

    flat: Tensor
    itemsize: int

    def seen_as(self, tensor: Tensor) -> Tensor:
        return self.flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


class _ByStorage(Generic[Value]):
    """Values by the storage that a tensor lies in. A weak reference keeps its address from being given to another."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[StorageWeakRef, Value]] = {}

    def get(self, tensor: Tensor) -> Value | None:
        found = self._held.get(_address(tensor))
        return None if found is None else found[1]

    def pop(self, tensor: Tensor) -> Value | None:
        found = self._held.pop(_address(tensor), None)
        return None if found is None else found[1]

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        if _has_storage(tensor):
            reference = StorageWeakRef(tensor.untyped_storage())
            self._held[reference.cdata] = (reference, value)


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if _has_storage(tensor) else 0


def _is_zero(value: Any) -> bool:
    return not (value.is_meta or bool(value.any())) if isinstance(value, Tensor) else value == 0


def _lie(tensor: Tensor, axes: slice) -> tuple[tuple[int, int | None], ...]:
    """Sides and strides along two axes. Of matrices, where there is but one place, its stride says nothing."""
    sides = zip(tensor.shape[axes], tensor.stride()[axes], strict=True)
    return tuple((side, stride if side > 1 or axes == _CHANNELS else None) for side, stride in sides)


_MATRIX, _CHANNELS = slice(-2, None), slice(None, 2)
"""The axes that count: of matrices the last two, of convolutions batch and channels."""


# -- operations -----------------------------------------------------------------------------------------------------


def _name(func: Any) -> str:
    """`aten.addmm` of its in-place and out forms too."""
    return str(func._schema.name).replace("::", ".").rstrip("_")


@lru_cache(maxsize=4096)
def _arguments(func: Any) -> dict[str, bool]:
    """Argument → whether the operation writes to it, in order."""
    return {a.name: a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments}


def _given(bound: Bound) -> list[Tensor]:
    return [value for value in bound.values() if isinstance(value, Tensor)]


def _are_ordinary(*values: Any) -> bool:
    """Whether all tensors in these are neither sparse nor nested, so that their shapes say what is computed."""
    dense = (torch.strided, torch._mkldnn)  # type: ignore[attr-defined]
    return all(leaf.layout in dense and not leaf.is_nested for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


@lru_cache(maxsize=4096)
def _is_free(func: Any, name: str) -> bool:
    space, _, base = name.partition(".")
    if space in ("prim", "c10d", "_c10d_functional", "profiler"):
        return True
    if space != "aten":
        return False
    tagged = any(str(tag).removeprefix("Tag.") in ("pointwise", "reduction", "view_copy") for tag in func.tags)
    kin = (base.startswith("_foreach_") and base != "_foreach_mm") or base.startswith("_nested_")
    return func.is_view or tagged or kin or name.removesuffix("_backward") in FREE


def share_not_counted(not_counted: Mapping[str, int], counted: int) -> float:
    """The share of the calls that are not free which have no formula, 0 to 1."""
    missing = sum(not_counted.values())
    return missing / (missing + counted) if missing else 0.0


@contextmanager
def uncompiled() -> Iterator[None]:
    """Without fused forms whose operations cannot be seen: `torch.compile`, and attention's fast path."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Where it was never imported, nothing is compiled; to import it takes seconds.
        if "torch._dynamo" in sys.modules:
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)

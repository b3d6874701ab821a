"""A network run for its paths alone: in double precision throughout, and linear with nothing that subtracts.

Both are modes that see every operation of a network as it runs, whether a module or a function asked for it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gentickets.errors import GenticketsError, PruneError
from gentickets.masks.examples import Example, outputs
from gentickets.masks.modes import in_sight, name_of, under


def titled(component: str) -> str:
    """How a message speaks of a component: of the whole of a model where it has no name."""
    return f"component {component!r}" if component else "the network"


@contextmanager
def running(net: nn.Module, example: Example, component: str, kind: type[GenticketsError], what: str) -> Iterator[None]:
    """Turns what goes wrong in a copy of `net` in double precision into one line of this kind, that begins with what
    cannot be done. What goes wrong in `net` itself, on its example as it is, has an error of its own, and keeps it.
    All that it does is in sight of a mode."""
    try:
        with in_sight():
            yield
    except GenticketsError:
        raise
    except Exception as error:
        outputs(net, example)
        raise kind(
            f"{titled(component)} {what}: in double precision on the CPU it fails with {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among the arguments or the results of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The arguments or results of an operation with everything in them changed, in their tuples, lists and mappings."""
    if isinstance(value, Mapping):
        return {key: each(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        parts = [each(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return change(value)


def writes(name: str) -> bool:
    """Whether an operation of this name writes into its first argument."""
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


class Double(TorchFunctionMode):
    """Everything in double precision, also what a network makes in another on its way (`.float()`, `arange`)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = name_of(func)
        args, kwargs = each(args, _double), each(kwargs or {}, _double)
        if name in ("float", "half", "bfloat16"):
            func = Tensor.double
        return each(self.run(name, func, args, kwargs), _double)

    def run(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What stands for one operation; all in double precision, and without the mode."""
        return func(*args, **kwargs)


def _double(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else torch.complex128 if value.is_complex else value
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.double()
    return value.to(torch.complex128) if isinstance(value, Tensor) and value.dtype == torch.complex64 else value


# -- linear, and nothing cancels --------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions of each number by itself, and others that only rescale: what comes in goes out.
_PASSING = _words(
    """
    relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign tanh sigmoid logsigmoid log_sigmoid
    hardtanh hardswish hardsigmoid hardshrink softshrink tanhshrink threshold log_softmax softmin expit
    exp exp2 expm1 log log2 log10 log1p sqrt cbrt square sin cos tan sinc asin arcsin acos arccos atan arctan sinh cosh
    asinh arcsinh acosh arccosh atanh arctanh erf erfc erfinv logit i0 abs absolute neg negative positive
    sign sgn round floor ceil trunc fix clamp clip clamp_min clamp_max nan_to_num dropout dropout1d dropout2d
    dropout3d alpha_dropout feature_dropout feature_alpha_dropout bernoulli normalize local_response_norm
    __neg__ __abs__ __pos__ __rpow__
    """
)
# Sums over paths as they are, and products of numbers apart. What is in no list here is tried out.
_LINEAR = _words(
    """
    linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc convolution
    matmul mm bmm mv dot inner outer addmm addbmm baddbmm addmv addr einsum tensordot kron __matmul__ __rmatmul__
    addcmul embedding sum mean cumsum amax amin max min prod cumprod where cat concat concatenate stack hstack vstack
    clone contiguous to double cpu type type_as view reshape flatten permute repeat repeat_interleave roll flip pad
    interpolate upsample unfold fold pixel_shuffle pixel_unshuffle channel_shuffle index_select gather masked_fill
    __getitem__ __setitem__ __get__ __set__ grad
    """
)
_EXTREMES = _words("maximum minimum fmax fmin")
_SUMS = _words("add __add__ __radd__ __iadd__ sub subtract __sub__ __isub__ rsub __rsub__")
_PRODUCTS = _words("mul multiply __mul__ __rmul__ __imul__")
_QUOTIENTS = _words("div divide true_divide __truediv__ __itruediv__ __div__ __idiv__")
_POWERS = _words("pow float_power __pow__ __ipow__")
_INVERSES = _words("reciprocal rsqrt __rtruediv__ __rdiv__")
_CENTRES = _words("mean amax max")
_SPREADS = _words("std var std_mean var_mean")
_RECURRENT = _words("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
_IN_PLACE = _words("__iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ipow__ __setitem__ __set__")

# Norm → where its gain stands among the arguments, of the function in `functional` and of the one in `torch`.
GAIN_AT = {
    "layer_norm": (2, 2),
    "group_norm": (2, 2),
    "rms_norm": (2, 2),
    "batch_norm": (3, 1),
    "instance_norm": (3, 1),
}

_MASKING = -1e3
"""What adds less than this to a number takes it out, as the masks of attention do."""


class Linear(Double):
    """A network of positive weights made linear and positive, so that what comes out is a sum over paths.

    - Functions of each number by itself (activations, roots, exponentials), dropout and the like pass their input on.
    - What is subtracted is added; constants and numbers count by their size. The mean that a norm takes off is none.
    - A norm is left with its gain; what is divided by a number that depends on weights or input is not divided.
    - A number times an activation of itself (x · sigmoid(x)) is an activation.
    - Softmax divides by the sum of what it gets, held constant, and so attention is q · kᵀ · v with rows of sum 1.
    - An operation that is not known by name is left as it is where it is linear in each of the tensors that it gets,
      or in all of them at once.

    Raises `PruneError` for an operation that it cannot follow, and for one that gives something negative all the same.
    """

    def __init__(self, component: str):
        super().__init__()
        self.component = component
        self._sources: dict[int, tuple[Tensor, Tensor]] = {}  # result → (itself, what it is an activation of)
        self._centres: dict[int, tuple[Tensor, Tensor]] = {}  # mean or maximum → (itself, of what)

    def run(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(under(tensor) is not tensor and under(tensor).requires_grad for tensor in tensors_in((args, kwargs))):
            raise self._refusal(f"{name} in torch.vmap (or the like of torch.func)")
        if not any(tensor.requires_grad for tensor in tensors_in((args, kwargs))):
            return func(*args, **kwargs)
        if not args:
            key = next(iter(kwargs))
            if key not in ("input", "tensor", "self"):
                return func(**kwargs)
            args, kwargs = (kwargs[key],), {other: value for other, value in kwargs.items() if other != key}
        plain = name if name.endswith("__") else name.rstrip("_")
        result = self._stand_in(plain, func, args, kwargs)
        for tensor in tensors_in(result):
            if tensor.requires_grad and (tensor.is_complex() or bool((tensor < 0).any())):
                raise self._refusal(name)
        if writes(name) and isinstance(result, Tensor) and result is not args[0]:
            return args[0].copy_(result)
        return result

    def _refusal(self, name: str) -> PruneError:
        return PruneError(
            f"{titled(self.component)} uses {name.strip('_')!r}, of which synflow knows no form without a sign: "
            f"score it by another criterion (magnitude, snip, grasp)"
        )

    def _stand_in(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation gives here, as a result of its own where it works in place."""
        first = args[0]
        if name in _PASSING or (name in _EXTREMES and len(args) > 1 and not _flows(args[1])):
            return self._activation(first, first.clone()) if _flows(first) else self._as_it_is(name, func, args, kwargs)
        if name in _SUMS | _PRODUCTS | _QUOTIENTS | _POWERS:
            other = args[1] if len(args) > 1 else kwargs["exponent" if name in _POWERS else "other"]
            if name in _SUMS:
                return self._sum(name, first, other, kwargs.get("alpha", 1))
            if name in _PRODUCTS:
                return self._product(first, other)
            return self._quotient(first, other) if name in _QUOTIENTS else self._power(first, other)
        if name in _INVERSES:
            return torch.ones_like(first) * (_size(args[1]) if len(args) > 1 else 1.0)
        if name in GAIN_AT:
            return gained(name, func, args, kwargs)
        if name in ("softmax", "gumbel_softmax"):
            dim = args[1] if name == "softmax" and len(args) > 1 else kwargs.get("dim")
            return _shares(first, -1 if dim is None else dim)
        if name == "logsumexp":
            return first.sum(*args[1:], **kwargs)
        if name in _SPREADS:
            over = args[1] if len(args) > 1 and not isinstance(args[1], bool) else kwargs.get("dim")
            mean = first.mean(over, keepdim=kwargs.get("keepdim", False))
            self._centres[id(mean)] = (mean, first)
            return (mean.clone(), mean) if name.endswith("_mean") else mean
        if name == "glu":
            one, other = first.chunk(2, args[1] if len(args) > 1 else kwargs.get("dim", -1))
            return one * other
        if name == "lerp":
            weight = _size(args[2] if len(args) > 2 else kwargs["weight"])
            return _size(first) * (1 + weight if _flows(weight) else abs(1 - weight)) + _size(args[1]) * weight
        if name == "scaled_dot_product_attention":
            return _attention(*args, **kwargs)
        if name == "multi_head_attention_forward":
            return _heads(**inspect.signature(func).bind(*args, **kwargs).arguments)
        if name in _RECURRENT:
            raise self._refusal(name)
        result = (self._as_it_is if name in _LINEAR else self._tried)(name, func, args, kwargs)
        if name in _CENTRES:
            self._centres |= {id(tensor): (tensor, first) for tensor in tensors_in(result)}
        return result

    def _as_it_is(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation itself, with constants by their size; what it writes into stays the tensor that it is."""

        def sized(value: Any) -> Any:
            return _size(value) if isinstance(value, Tensor) else value

        if name == "masked_fill" and not isinstance(args[-1], Tensor):
            args = (*args[:-1], _size(args[-1]))
        kwargs = {key: _size(value) if key in ("alpha", "beta", "value") else value for key, value in kwargs.items()}
        written = writes(name_of(func))
        return func(
            args[0] if written else sized(args[0]),
            *each(args[1:], sized),
            **each(kwargs, sized),
        )

    def _tried(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation itself, where it is a sum over paths."""

        def do(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = self._as_it_is(name, func, args, kwargs)
            return args[0] if written and isinstance(args[0], Tensor) else result

        written = writes(name_of(func))
        before = (args[0].clone() if written and isinstance(args[0], Tensor) else args[0], *args[1:])
        result = do(args, kwargs)
        given = [tensor if tensor._base is None else tensor._base for tensor in tensors_in((args, kwargs))]
        moved = not written and all(any(t._base is base for base in given) for t in tensors_in(result))
        if any(map(_flows, tensors_in(result))) and not moved and _bends(do, before, kwargs):
            raise self._refusal(name)
        return result

    def _activation(self, of: Tensor, result: Tensor) -> Tensor:
        self._sources[id(result)] = (result, self._source(of))
        return result

    def _source(self, value: Any) -> Any:
        return self._sources[id(value)][1] if id(value) in self._sources else value

    def _same_source(self, one: Any, other: Any) -> bool:
        return _flows(one) and _flows(other) and self._source(one) is self._source(other)

    def _scaled(self, one: Any, other: Any, result: Tensor) -> Tensor:
        """Notes a number times, or plus, what flows: an activation of it."""
        of, by = (one, other) if _flows(one) else (other, one)
        return result if isinstance(by, Tensor) and by.dim() else self._activation(of, result)

    def _sum(self, name: str, one: Any, other: Any, alpha: Any) -> Tensor:
        if "sub" in name and id(other) in self._centres and self._centres[id(other)][1] is one:
            return self._activation(one, one.clone())
        result = _without_masked(one, other) + _without_masked(other, one) * _size(alpha)
        return self._activation(one, result) if self._same_source(one, other) else self._scaled(one, other, result)

    def _product(self, one: Any, other: Any) -> Tensor:
        if self._same_source(one, other):
            return self._activation(one, self._source(one).clone())
        return self._scaled(one, other, _whole_size(one) * _whole_size(other))

    def _quotient(self, one: Any, other: Any) -> Tensor:
        if _flows(other):
            return _whole_size(one) / other.detach() if other.is_leaf else _whole_size(one) * torch.ones_like(other)
        return self._scaled(one, other, one / _whole_size(other))

    def _power(self, base: Any, exponent: Any) -> Tensor:
        if not _flows(base):  # 2 ** x
            return self._activation(exponent, exponent.clone())
        lowest = exponent.detach().min() if isinstance(exponent, Tensor) else exponent
        return torch.ones_like(base) if lowest < 0 else self._activation(base, base.clone())


def _bends(do: Callable[[Any, Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation bends or saturates, for larger numbers than these or for smaller: whether its slope by some
    tensor that flows into it, and by all of them at once, is another at multiples of it."""
    flowing = [tensor.detach() for tensor in tensors_in((args, kwargs)) if _flows(tensor)]

    def slopes(chosen: Sequence[int], scale: float) -> Sequence[Tensor]:
        leaves = [
            flowing[place] * scale if place in chosen else flowing[place].clone() for place in range(len(flowing))
        ]
        by = [leaves[place].requires_grad_() for place in chosen]
        given = iter([leaf.clone() for leaf in leaves])  # which may be written into
        draw = torch.Generator().manual_seed(3)
        with torch.random.fork_rng(devices=[]):
            made = tensors_in(do(*each((args, kwargs), lambda part: next(given) if _flows(part) else part)))
            real = [tensor for tensor in made if _flows(tensor) and not tensor.is_complex()]
            # Weighed at random, since an even sum may be a constant.
            sums = [(t * (0.5 + torch.rand(t.shape, generator=draw, dtype=t.dtype))).sum() for t in real]
        if not sums:
            return [torch.zeros_like(leaf) for leaf in by]
        return torch.autograd.grad(torch.stack(sums).sum(), by, materialize_grads=True)

    def straight(chosen: Sequence[int]) -> bool:
        peak = max((float(flowing[place].max()) for place in chosen if flowing[place].numel()), default=0.0)
        # By powers of 2, which leave the order of numbers alone.
        unit = 2.0 ** -round(math.log2(peak)) if 0 < peak < math.inf else 1.0
        first, *others = [slopes(chosen, scale) for scale in (1.0, unit, 2 * unit)]
        return all(_close(one, other) for found in others for one, other in zip(first, found, strict=True))

    return not (all(straight([place]) for place in range(len(flowing))) or straight(range(len(flowing))))


def _close(one: Tensor, other: Tensor) -> bool:
    peak = max((float(slope.nan_to_num().abs().max()) for slope in (one, other) if slope.numel()), default=0.0)
    return torch.allclose(one, other, rtol=1e-6, atol=1e-9 * peak, equal_nan=True)


def _flows(value: Any) -> bool:
    """Whether a number depends on a weight or on the input."""
    return isinstance(value, Tensor) and value.requires_grad


def _size(value: Any) -> Any:
    """A constant by its size, 0 where it is not finite or masks something; what flows is positive already."""
    if isinstance(value, Tensor):
        if value.requires_grad or not value.is_floating_point():
            return value
        return torch.where((value > _MASKING) & value.isfinite(), value.abs(), 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return abs(value) if math.isfinite(value) and value > _MASKING else 0.0


def _whole_size(value: Any) -> Any:
    """A factor by its size, whole numbers too."""
    if isinstance(value, Tensor) and value.dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        return value.abs()
    return _size(value)


def _without_masked(value: Any, added: Any) -> Any:
    """`value` by its size, and 0 where what is `added` to it is a mask."""
    value = _whole_size(value)
    if isinstance(added, Tensor) and added.is_floating_point() and not added.requires_grad:
        return value * (added > _MASKING)
    return value


def _shares(values: Tensor, dim: int) -> Tensor:
    """Softmax, linear: values over their sum, which counts as a constant; all the same where all are 0."""
    total = values.detach().sum(dim, keepdim=True)
    return torch.where(total > 0, values / total.where(total > 0, 1.0), 1.0 / values.shape[dim])


def gained(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What is left of a norm: its gain, times its input."""
    place = GAIN_AT[name][0 if inspect.isfunction(func) else 1]
    values = args[0] if args else kwargs["input"]
    gain = kwargs.get("weight", args[place] if len(args) > place else None)
    if gain is None:
        return values.clone()
    if name in ("layer_norm", "rms_norm"):
        return values * _size(gain)
    return values * _size(gain).reshape(-1, *[1] * (values.dim() - 2))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`, linear; see `Linear`."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else abs(scale))
    if is_causal:
        scores = scores.tril()
    if attn_mask is not None:
        scores = scores * (attn_mask if attn_mask.dtype == torch.bool else attn_mask > _MASKING)
    return _shares(scores, -1) @ value


def _heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    in_proj_weight: Tensor | None,
    out_proj_weight: Tensor,
    use_separate_proj_weight: bool = False,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """`multi_head_attention_forward`, linear and without biases: (length, batch, width), or without the batch."""
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    if use_separate_proj_weight or in_proj_weight is None:
        into = [others[f"{which}_proj_weight"] for which in "qkv"]
    else:
        into = list(in_proj_weight.chunk(3))
    length, batch, _ = query.shape
    split = [
        F.linear(part, weight).unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)
        for part, weight in zip((query, key, value), into, strict=True)
    ]
    allowed = torch.ones(batch, num_heads, length, key.shape[0], dtype=torch.bool)
    for mask in (attn_mask, key_padding_mask):
        if mask is not None:
            free = ~mask if mask.dtype == torch.bool else mask > _MASKING
            if mask is key_padding_mask:
                free = free.reshape(batch, 1, 1, -1)
            elif mask.dim() == 3:
                free = free.unflatten(0, (batch, num_heads))
            allowed = allowed & free
    heads, keys, values = split
    weights = _shares(heads @ keys.mT * heads.shape[-1] ** -0.5 * allowed, -1)
    result = F.linear((weights @ values).permute(2, 0, 1, 3).flatten(2), out_proj_weight)
    told = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
    if not batched:
        result, told = result.squeeze(1), None if told is None else told.squeeze(0)
    return result, told

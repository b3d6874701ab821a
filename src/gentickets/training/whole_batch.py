"""What is of a whole batch, though each rank has a share of it: what is drawn for it, and its norms.

Objectives and models are written for one process and know of no ranks. While a loss is computed, every draw of torch's
generators is made for the whole batch, from generators that stand alike on all ranks, and this rank takes its rows; and
batch norm in training takes the mean and the variance of all ranks' images. Both are found where they happen, by torch
itself, whoever wrote the code; what draws in a way that has no such form is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gentickets.errors import GenticketsError
from gentickets.training.ranks import Together


class Draw(NamedTuple):
    """One draw: the operation, the shape that this rank has of it, and which axis of that is shared out; None: none."""

    operation: str
    shape: tuple[int, ...]
    axis: int | None


AxisOf = Callable[[int, str, tuple[int, ...]], int | None]
"""(how many draws came before, operation, this rank's shape) → the axis that is shared out among the ranks."""


def first_axis_of(rows: Sequence[int]) -> AxisOf:
    """The first axis that is as long as this rank's share of a batch."""
    return lambda _number, _operation, shape: next((axis for axis, side in enumerate(shape) if side in rows), None)


@contextmanager
def whole_batch(ranks: Together, axis_of: AxisOf, made: list[Draw]) -> Iterator[None]:
    """While this lasts, draws and batch norms are those of the whole batch. Draws are noted in `made`."""
    with WholeDraws(axis_of, ranks.rank, ranks.size, made), _WholeNorms(ranks):
        yield


# -- draws -------------------------------------------------------------------------------------------------------------

_SIZED = ("randn", "rand", "randint", "normal")
_LIKE = ("randn_like", "rand_like", "randint_like")
_IN_PLACE = ("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "log_normal_", "geometric_")


class WholeDraws(TorchDispatchMode):
    """Notes every draw in `made`, and makes those of an axis that is shared out for all ranks, to take its own rows."""

    def __init__(self, axis_of: AxisOf, rank: int, size: int, made: list[Draw]):
        super().__init__()
        self._axis_of, self._rank, self._size, self.made = axis_of, rank, size, made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._drawn(func, args, kwargs or {}) if _draws(func) else func(*args, **(kwargs or {}))

    def _drawn(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func.overloadpacket.__name__
        names = [argument.name for argument in func._schema.arguments]
        others = [given for given in args[1:] if isinstance(given, Tensor)]
        if name in _SIZED and "size" in names and "out" not in kwargs:
            place = names.index("size")
            axis = self._axis(name, args[place])
            whole = func(*args[:place], self._whole(args[place], axis), *args[place + 1 :], **kwargs)
            return self._mine(whole, axis)
        if name == "normal" and "size" not in names and "out" not in kwargs:
            return self._normal(*args, **kwargs)
        if (name in _LIKE or func is torch.ops.aten.bernoulli.p) and not others and "out" not in kwargs:
            axis = self._axis(name, args[0].shape)
            return self._mine(func(self._whole_like(args[0], axis), *args[1:], **kwargs), axis)
        if name in _IN_PLACE and not others:
            axis = self._axis(name, args[0].shape)
            if axis is None:
                return func(*args, **kwargs)
            whole = func(self._whole_like(args[0], axis), *args[1:], **kwargs)
            return args[0].copy_(self._mine(whole, axis))
        if name == "native_dropout":
            return self._dropped(func, *args)
        return self._watched(func, args, kwargs)

    def _normal(self, mean: Any, deviation: Any, *, generator: torch.Generator | None = None) -> Tensor:
        """Of means or deviations in tensors: standard ones of the whole batch, scaled and moved, as torch does it."""
        given = [each for each in (mean, deviation) if isinstance(each, Tensor)]
        shape = torch.broadcast_shapes(*(each.shape for each in given))
        axis = self._axis("normal", shape)
        whole = torch.empty(self._whole(shape, axis), dtype=given[0].dtype, device=given[0].device)
        return self._mine(whole.normal_(generator=generator), axis).mul_(deviation).add_(mean)

    def _dropped(self, func: Any, given: Tensor, share: float, train: bool | None) -> Any:
        """The fused dropout of GPUs: (what is left, which places stayed)."""
        if not train or not share:
            return func(given, share, train)
        axis = self._axis("native_dropout", given.shape)
        _, stayed = func(self._whole_like(given, axis).fill_(1), share, train)
        stayed = self._mine(stayed, axis)
        return given * stayed * (0.0 if share == 1 else 1 / (1 - share)), stayed

    def _watched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation that may draw, as some do where they drop something out: it goes through where it did not."""
        generators = [given for given in (*args, *kwargs.values()) if isinstance(given, torch.Generator)]
        generators += [torch.default_generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]
        before = [generator.get_state() for generator in generators]
        given = func(*args, **kwargs)
        if all(torch.equal(then, now.get_state()) for then, now in zip(before, generators, strict=True)):
            return given
        if func.overloadpacket.__name__ == "randperm" and self._axis("randperm", given.shape) is None:
            return given
        raise GenticketsError(
            f"torch.{func.overloadpacket.__name__} is drawn while a loss is computed, of which {self._size} devices "
            f"cannot take a share each: draw by torch.randn, rand, randint or dropout, or train on one device"
        )

    def _axis(self, operation: str, shape: Sequence[int]) -> int | None:
        axis = self._axis_of(len(self.made), operation, tuple(shape))
        self.made.append(Draw(operation, tuple(shape), axis))
        return axis

    def _whole(self, shape: Sequence[int], axis: int | None) -> list[int]:
        return [side * self._size if place == axis else side for place, side in enumerate(shape)]

    def _whole_like(self, tensor: Tensor, axis: int | None) -> Tensor:
        """An empty tensor for the whole batch, in memory in the order in which this rank's is."""
        if axis is None:
            return torch.empty_like(tensor)
        strides = tensor.stride()
        order = sorted(range(tensor.dim()), key=lambda place: -strides[place])
        return torch.empty_permuted(self._whole(tensor.shape, axis), order, dtype=tensor.dtype, device=tensor.device)

    def _mine(self, whole: Tensor, axis: int | None) -> Tensor:
        if axis is None:
            return whole
        each = whole.shape[axis] // self._size
        return whole.narrow(axis, self._rank * each, each).clone()


@cache
def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


# -- batch norm --------------------------------------------------------------------------------------------------------


class _WholeNorms(TorchFunctionMode):
    """Batch norm in training by the statistics of all ranks' images, whoever calls it; and so its running ones."""

    def __init__(self, ranks: Together):
        super().__init__()
        self._ranks = ranks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return self._normed(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _normed(
        self,
        func: Any,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
        rows = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        out, mean, variance, count = _Normed.apply(rows, weight, bias, eps, self._ranks)
        with torch.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            if running_var is not None:
                running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
        return out.to(input.dtype)


class _Normed(torch.autograd.Function):
    """(images, gain, bias) → normed by the statistics of all ranks; and these: mean, variance, over how many numbers.

    The first derivative is torch's own of given statistics, and what goes through these by hand: two passes over the
    images. Where a derivative of it is wanted too, both are made of plain operations.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Together
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _statistics(rows, ranks)
        ctx.save_for_backward(rows, weight, bias, mean, variance, count)
        ctx.mark_non_differentiable(mean, variance, count)
        ctx.eps, ctx.ranks = eps, ranks
        return F.batch_norm(rows, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, mean, variance, count = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _again(grad, rows, weight, bias, ctx)
        gain = torch.ones_like(mean) if weight is None else weight
        given, by_gain, by_bias = torch.ops.aten.native_batch_norm_backward(
            grad, rows, gain, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        of_gain, of_bias = ctx.ranks.sum_(torch.cat([by_gain, by_bias])).div_(count).chunk(2)
        inverse = torch.rsqrt(variance + ctx.eps)
        slope = -gain * inverse.square() * of_gain
        shift = -gain * inverse * of_bias - slope * mean
        shape = _along_channels(rows)
        given = given.addcmul_(rows, slope.view(shape)).add_(shift.view(shape))
        return given, None if weight is None else by_gain, None if bias is None else by_bias, None, None


def _again(grad: Tensor, rows: Tensor, weight: Tensor | None, bias: Tensor | None, ctx: Any) -> tuple[Any, ...]:
    """The derivatives, of plain operations that have derivatives themselves."""
    mean, variance, _ = _statistics(rows, ctx.ranks)
    scale, shape = torch.rsqrt(variance + ctx.eps), _along_channels(rows)
    out = (rows - mean.view(shape)) * (scale if weight is None else scale * weight).view(shape)
    out = out if bias is None else out + bias.view(shape)
    given = [tensor for tensor in (rows, weight, bias) if tensor is not None]
    wanted = [tensor for tensor in given if tensor.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    of = [next(found) if t is not None and t.requires_grad else None for t in (rows, weight, bias)]
    return (*of, None, None)


def _along_channels(rows: Tensor) -> list[int]:
    return [1, -1, *([1] * (rows.dim() - 2))]


def _statistics(rows: Tensor, ranks: Together) -> tuple[Tensor, Tensor, Tensor]:
    """The mean and the variance of each channel over all ranks, and over how many numbers they are taken.

    By each rank's own, and the means' distance from the mean of all: no large sums are subtracted.
    """
    variance, mean = torch.var_mean(rows, [0, *range(2, rows.dim())], correction=0)
    count = mean.new_tensor([rows.numel() / max(1, len(mean))])
    mine = torch.cat([mean, variance, count])
    at = torch.zeros(ranks.size, 1, dtype=mine.dtype, device=mine.device)
    at[ranks.rank] = 1
    everyone = _Sum.apply(at * mine, ranks)
    means, variances, counts = everyone.split([len(mean), len(mean), 1], 1)
    total = counts.sum()
    shares = counts / total
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), total


class _Sum(torch.autograd.Function):
    """The sum over all ranks of what each has; so is its derivative, and that one's."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, ranks: Together) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum_(mine.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad.contiguous(), ctx.ranks), None

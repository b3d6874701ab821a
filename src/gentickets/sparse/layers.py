"""Linear and convolutional layers that hold, compute and learn their live weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from gentickets.channels.layers import stores_inputs_first
from gentickets.errors import MaskError
from gentickets.sparse.layout import ONE_POSITION, Geometry, Pair, Pattern
from gentickets.sparse.operations import down, turn, up
from gentickets.sparse.spectral import LiveSpectralNorm, find, underlying
from gentickets.sparse.weight_norm import LiveWeightNorm, find_lengths
from gentickets.sparse.wide import WideLayout, side_by_side


class SparseLayer(nn.Module):
    """A layer with `values`, its live weights, (weights,), in the order of the dense weight, and `bias`.

    Takes the place of a dense layer, whose bias it shares and whose weight `release` empties, so that the memory is
    free; `dense()` gives that layer back. `norm`: the layer's spectral or weight norm, if it has one.

    Its forms are of the dense layers' classes too, so that whoever looks for linear layers finds them, and is told that
    there is no `weight`.
    """

    bias: Tensor | None
    on_live_weights = True
    """By this whoever reads dense weights knows it (see `gentickets.masks.layers.check_not_accelerated`)."""

    def __init__(self, layer: Any, mask: Tensor, geometry: Geometry = ONE_POSITION):
        nn.Module.__init__(self)  # and not that of the kind of layer that it also is, which would draw a weight
        weight, mask = self._rows_first(underlying(layer).detach()), self._rows_first(mask)
        places = mask.reshape(-1).nonzero().reshape(-1)
        shape = tuple(mask.shape) if mask.dim() != 3 else (*mask.shape[:2], 1, mask.shape[2])  # a sound has one row
        self.pattern = Pattern(shape, places.int().numpy(), geometry, getattr(layer, "groups", 1))
        self._shape = tuple(mask.shape)
        self.values = nn.Parameter(weight.reshape(-1)[places], underlying(layer).requires_grad)
        self.register_parameter("bias", layer.bias)
        self.norm = _live_norm(layer, self.pattern)
        self._layer = (layer,)  # in a tuple: it is no child of this one
        self._reads: Callable[[Tensor], Tensor] | None = None
        self._before: tuple[Tensor, Tensor, int] | None = None  # the gradient that the dense weight had, and its parts
        for name in getattr(type_before_parametrizations(layer), "__constants__", ()):
            setattr(self, name, getattr(layer, name))  # its sizes, which a model's code may read
        self.train(layer.training)

    @staticmethod
    def _rows_first(weight: Tensor) -> Tensor:
        """The dense weight with its outputs along the first axis, and the reverse."""
        return weight

    def __getattr__(self, name: str) -> Any:
        """Whoever asks for the dense weight is told that there is none: to go on without would be wrong in silence."""
        if name != "weight":
            return super().__getattr__(name)
        raise MaskError(
            f"a {type(self).__name__} ({'x'.join(map(str, self._shape))}) has no `weight`, only `values`, its live "
            f"weights in a row: restore(model) before it is read, or leave the layer dense (accelerate without its "
            f"mask; training.execution=dense)"
        )

    def weights(self) -> Tensor:
        """The live weights that the layer multiplies with: `values`, under the norm."""
        values = self.values if self._reads is None else self._reads(self.values)
        return values if self.norm is None else self.norm(values)

    def reads_by(self, function: Callable[[Tensor], Tensor]) -> None:
        """From now on the layer reads what `function` gives for its `values`, in whichever way it is passed."""
        self._reads = function

    def release(self) -> None:
        """Empties the weight of the dense layer, once this one stands in its place."""
        weight = underlying(self._layer[0])
        if (before := weight.grad) is not None:  # of a step that is not over: what comes is added, or it is zeroed
            live = self._rows_first(before).reshape(-1)[torch.from_numpy(self.pattern.places)]
            self.values.grad = live
            self._before = (before, live, live._version)
        weight.data, weight.grad = weight.data.new_empty(0), None
        weight.is_emptied = True  # type: ignore[attr-defined]  # by which `hold` knows an optimiser made too early
        self._forget_derived(weight)

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """The dense layer in whose place this one is, with its weights as they are now, and 0.0 where pruned."""
        (layer,) = self._layer
        weight = underlying(layer)
        weight.data, weight.is_emptied = self.spread(self.values), False  # type: ignore[attr-defined]
        weight.requires_grad_(self.values.requires_grad)
        weight.grad = self._gradient()
        layer.bias = self.bias  # another one, where one was loaded in its place
        layer.train(self.training)
        if self.norm is not None:
            self.norm.give_back()
        self._forget_derived(weight)
        return layer

    def spread(self, live: Tensor) -> Tensor:
        """Numbers of the live weights in the shape of the dense weight, 0.0 elsewhere."""
        whole = live.new_zeros(self._shape)
        whole.view(-1)[torch.from_numpy(self.pattern.places)] = live
        return self._rows_first(whole).contiguous()

    def _gradient(self) -> Tensor | None:
        """The gradient of the dense weight: that of before where nothing came to it, else that of the live weights."""
        gradient = self.values.grad
        if self._before is not None and gradient is not None and gradient is self._before[1]:
            whole, _, version = self._before
            if gradient._version == version and whole.dtype == gradient.dtype:
                return whole
        return None if gradient is None else self.spread(gradient)

    def _forget_derived(self, weight: Tensor) -> None:
        """Under the old spectral norm a layer keeps the weight of its last pass, until the next one."""
        (layer,) = self._layer
        if isinstance(vars(layer).get("weight"), Tensor):
            layer.weight = weight.data

    @property
    def nbytes(self) -> int:
        """Bytes of all that says where the live weights are."""
        return self.pattern.nbytes + (0 if self.norm is None else self.norm.nbytes)

    def check(self, given: Tensor, dims: int, axis: int, channels: int) -> None:
        """Raises `ValueError` for an input that the dense layer would not take either."""
        if given.dim() < dims or given.shape[axis] != channels:
            raise ValueError(
                f"{type(self).__name__} takes {channels} channels along axis {axis}, not {tuple(given.shape)}"
            )
        if given.device.type != "cpu":
            raise ValueError(f"{type(self).__name__} works on the CPU: restore(model) before moving it")
        traced = torch.jit.is_tracing() and not self.pattern.flat  # the layout for one size of images would be kept
        if traced or torch.compiler.is_exporting() or _is_transformed(given):
            raise MaskError(
                f"{type(self).__name__} cannot be traced, exported or transformed by torch.func: restore(model) first"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLayer:
        """For `.to(…)`, `.half()` and the like: what the kernels do not know is refused."""
        after = fn(self.values.detach()[:0])
        if after.device.type != "cpu" or after.dtype not in (torch.float32, torch.float64):
            to = str(after.dtype).removeprefix("torch.") if after.device.type == "cpu" else after.device.type
            raise MaskError(
                f"an accelerated model works in float32 or float64 on the CPU, not in {to}: restore(model) first"
                if after.device.type == "cpu"
                else f"an accelerated model works on the CPU, not on {to}: restore(model) first"
            )
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self._shape))}, {len(self.values):,} live weights"


class Connections(SparseLayer):
    """A product with live weights alone: (..., inputs) → (..., outputs)."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.check(inputs, 1, -1, self.pattern.big)
        given = inputs.to(self.values.dtype)
        if given.dim() == 2:
            return down(self.weights(), self.bias, given.t(), self.pattern.layout()).t()
        # Of tokens, as torch lays them out: attention and norms are slow, or take other ways, on anything else.
        flat = turn(given.reshape(-1, given.shape[-1]))
        rows = _in_rows(flat.shape[1])
        layout = self.pattern.laid_out(WideLayout, rows, rows)
        out = down(self.weights(), self.bias, flat.view(1, self.pattern.big, *rows), layout)
        return turn(out.view(self.pattern.small, flat.shape[1])).view(*given.shape[:-1], self.pattern.small)


class SparseLinear(Connections, nn.Linear):  # type: ignore[misc]
    """`nn.Linear` with live weights alone."""


class SparseConv1D(Connections):
    """transformers' `Conv1D` with live weights alone: a linear layer whose weight is (inputs, outputs)."""

    @staticmethod
    def _rows_first(weight: Tensor) -> Tensor:
        return weight.t()


class SparseConv2d(SparseLayer, nn.Conv2d):
    """`nn.Conv2d` with live weights alone; zero padding only."""

    def __init__(self, layer: nn.Conv2d, mask: Tensor):
        super().__init__(layer, mask, _geometry(layer))

    def forward(self, images: Tensor) -> Tensor:
        self.check(images, 4, 1, self.pattern.big)
        big = _size(images)
        layout = self.pattern.layout(_below(self, big), big)
        return down(self.weights(), self.bias, _lanes(images, self.values), layout).permute(3, 0, 1, 2)


class SparseConvTranspose2d(SparseLayer, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with live weights alone."""

    def __init__(self, layer: nn.ConvTranspose2d, mask: Tensor):
        super().__init__(layer, mask, _geometry(layer))
        self._extra = _pair(layer.output_padding, 0)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        self.check(images, 4, 1, self.pattern.small)
        small = _size(images)
        layout = self.pattern.layout(small, _above(self, small))
        return up(self.weights(), self.bias, _lanes(images, self.values), layout).permute(3, 0, 1, 2)


class WideConv(SparseLayer):
    """`nn.Conv1d` and `nn.Conv2d` with live weights alone, on sounds and images as torch lays them out."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d, mask: Tensor):
        super().__init__(layer, mask, _geometry(layer))
        g = self.pattern.geometry
        self._pointwise = self.pattern.shape[2:] == (1, 1) and (g.stride, g.padding) == ((1, 1), (0, 0))

    def forward(self, images: Tensor) -> Tensor:
        self.check(images, len(self._shape), 1, self.pattern.big)
        wide = images.to(self.values.dtype)
        if wide.dim() == 3 or self._pointwise:  # one row of all there is
            wide = wide.flatten(2).unsqueeze(2)
        big = _size(wide)
        layout = self.pattern.laid_out(WideLayout, _below(self, big), big)
        out = down(self.weights(), self.bias, wide, layout)
        if images.dim() == 3:
            return out.squeeze(2)
        return out.view(*out.shape[:2], *images.shape[2:]) if self._pointwise else out


class WideConv1d(WideConv, nn.Conv1d):
    """Of sounds."""


class WideConv2d(WideConv, nn.Conv2d):
    """Of images."""


class WideConvTranspose(SparseLayer):
    """`nn.ConvTranspose1d` and `nn.ConvTranspose2d` with live weights alone, as torch lays out what goes through."""

    def __init__(self, layer: nn.ConvTranspose1d | nn.ConvTranspose2d, mask: Tensor):
        super().__init__(layer, mask, _geometry(layer))
        self._extra = _pair(layer.output_padding, 0)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images, len(self._shape), 1, self.pattern.small)
        wide = images.to(self.values.dtype)
        wide = wide.unsqueeze(2) if wide.dim() == 3 else wide
        small = _size(wide)
        layout = self.pattern.laid_out(WideLayout, small, _above(self, small))
        out = up(self.weights(), self.bias, wide, layout)
        return out.squeeze(2) if images.dim() == 3 else out


class WideConvTranspose1d(WideConvTranspose, nn.ConvTranspose1d):  # type: ignore[misc]
    """Of sounds."""


class WideConvTranspose2d(WideConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]
    """Of images."""


def _has_norm(layer: nn.Module) -> bool:
    """Whether a layer's weight is derived by a norm that sparse layers know, and by nothing else."""
    return find(layer) is not None or find_lengths(layer) is not None


def _live_norm(layer: nn.Module, pattern: Pattern) -> LiveSpectralNorm | LiveWeightNorm | None:
    if (spectral := find(layer)) is not None:
        return LiveSpectralNorm(spectral, pattern)
    return None if (lengths := find_lengths(layer)) is None else LiveWeightNorm(lengths, pattern)


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward and backward pass, a norm of its weight included."""
    if module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    before = module._forward_pre_hooks
    return bool(before) and (len(before) > 1 or is_parametrized(module) or not _has_norm(module))


def _lanes(images: Tensor, like: Tensor) -> Tensor:
    """(channels, height, width, batch), in the dtype of the weights."""
    return images.to(like.dtype).permute(1, 2, 3, 0)


def _is_transformed(given: Tensor) -> bool:
    """Whether a tensor is one of `torch.func`'s, in whose memory no numbers lie."""
    wrapped = getattr(getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor", None)
    return wrapped is not None and bool(wrapped(given))


def _geometry(layer: Any) -> Geometry:
    return Geometry(_pair(layer.stride, 1), _pair(layer.padding, 0), _pair(layer.dilation, 1))


def _pair(along: tuple[int, ...], height: int) -> Pair:
    """Of both axes; along a sound's only one, and `height` for the row that it is."""
    return (along[0], along[1]) if len(along) == 2 else (height, along[0])


def _in_rows(tokens: int) -> Pair:
    """Tokens as an image of as many rows as fill their vectors."""
    width = max(1, side_by_side(tokens))
    return tokens // width, width


def _size(images: Tensor) -> Pair:
    height, width = images.shape[2:]
    return height, width


def _below(layer: SparseLayer, big: Pair) -> Pair:
    """The size of what a convolution makes of images of the size `big`."""
    g = layer.pattern.geometry
    height, width = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, padding, dilation, kernel, stride in zip(
            big, g.padding, g.dilation, layer.pattern.shape[2:], g.stride, strict=True
        )
    )
    if min(height, width) < 1:
        raise ValueError(f"images of {big[0]}x{big[1]} are smaller than the kernel of {layer}")
    return height, width


def _above(layer: SparseConvTranspose2d | WideConvTranspose, small: Pair) -> Pair:
    """The size of what a transposed convolution makes of images of the size `small`."""
    g = layer.pattern.geometry
    height, width = (
        (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
        for size, stride, padding, dilation, kernel, extra in zip(
            small, g.stride, g.padding, g.dilation, layer.pattern.shape[2:], layer._extra, strict=True
        )
    )
    return height, width


_LANES: Mapping[type[nn.Module], type[SparseLayer]] = MappingProxyType(
    {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d, nn.ConvTranspose2d: SparseConvTranspose2d}
)
_WIDE: Mapping[type[nn.Module], type[SparseLayer]] = MappingProxyType({
    nn.Linear: SparseLinear,
    nn.Conv1d: WideConv1d,
    nn.Conv2d: WideConv2d,
    nn.ConvTranspose1d: WideConvTranspose1d,
    nn.ConvTranspose2d: WideConvTranspose2d,
})  # fmt: skip


def lanes_form(layer: nn.Module) -> type[SparseLayer] | None:
    """The form of a layer that works batch innermost; None where it has none."""
    return SparseConv1D if stores_inputs_first(layer) else _LANES.get(_plain_type(layer))


def wide_form(layer: nn.Module) -> type[SparseLayer] | None:
    """The form of a layer that leaves what passes through it as torch lays it out; None where it has none."""
    return SparseConv1D if stores_inputs_first(layer) else _WIDE.get(_plain_type(layer))


def _plain_type(layer: nn.Module) -> type[nn.Module]:
    """A layer's type without the norm of its weight that sparse layers know; `nn.Module` where there is another."""
    plain = type_before_parametrizations(layer)
    return plain if plain is type(layer) or _has_norm(layer) else nn.Module

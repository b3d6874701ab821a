"""Tensors as the bits and the memory that they are."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor, nn

_BITS_OF = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FLOATS = {torch.float32: np.float32, torch.float64: np.float64}
_WORD_OF = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


def as_bits(tensor: Tensor) -> Tensor:
    """The same memory read as whole numbers, out of autograd's sight; of complex numbers, both parts of each."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).view(
        _BITS_OF[tensor.element_size() // (2 if tensor.is_complex() else 1)]
    )


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's memory, in C order; not copied where it is in that order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def pack(mask: Tensor) -> np.ndarray:
    """The bits of a bool tensor, in C order whatever its strides."""
    return np.packbits(mask.detach().cpu().numpy().reshape(-1))


def nonzero(weight: Tensor) -> np.ndarray:
    """The bits of `weight != 0`, packed; NaN is not 0, and -0.0 is."""
    found = window(weight) if weight.dtype in _FLOATS and weight.is_contiguous() else None
    if found is None:
        return pack(weight.detach() != 0)
    return np.packbits(found[0].view(_FLOATS[weight.dtype]) != 0)  # a quarter of the time of torch's comparison


def window(weight: Tensor) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """A weight's memory as whole numbers, with its strides; None where it lies in no memory of this process.

    It owns nothing and keeps nothing alive, unlike `Tensor.numpy`, which forbids a storage ever to be resized: it is
    good as long as the weight's address is the same.
    """
    plain = type(weight) is nn.Parameter or type(weight) is Tensor
    word = _WORD_OF.get(weight.element_size())
    if not plain or word is None or weight.device.type != "cpu" or weight.layout != torch.strided or not weight.numel():
        return None
    words = 1 + sum((side - 1) * stride for side, stride in zip(weight.shape, weight.stride(), strict=True))
    buffer = (ctypes.c_char * (words * weight.element_size())).from_address(weight.data_ptr())
    return np.frombuffer(memoryview(buffer), dtype=word), weight.stride() or (1,)

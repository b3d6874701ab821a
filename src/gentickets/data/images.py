"""An image set as a value: one uint8 array, its labels, and a fingerprint of both."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gentickets.errors import DataError


def fingerprint(pixels: np.ndarray, labels: np.ndarray | None) -> str:
    """SHA-256, in hexadecimal, over shape, pixels and labels. The same on every machine."""
    digest = hashlib.sha256(repr((tuple(map(int, pixels.shape)), labels is not None)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def normalised(pixels: Tensor) -> Tensor:
    """uint8 0…255 → float32 -1…1, on the device where `pixels` lie. Both ends are exact."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def as_tensor(pixels: np.ndarray) -> Tensor:
    """A read-only array as a tensor over the same memory. Never write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(pixels)


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images of one split, decoded.

    `pixels` is uint8 (n, channels, height, width), read-only; `labels` is int64 (n,) or None;
    `fingerprint` is that of both (see `from_arrays`, which computes it). `told`: what was read of the source, left out
    and decided, a fact each, in words.
    """

    name: str
    split: str
    pixels: np.ndarray
    labels: np.ndarray | None
    fingerprint: str
    told: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_arrays(
        cls, name: str, pixels: np.ndarray, labels: np.ndarray | None = None, split: str = "train"
    ) -> ImageSet:
        """An image set over a copy of arrays of one's own. Raises `DataError` for another dtype or shape, and for
        masked values."""
        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            raise DataError(
                f"pixels of {name!r} are {pixels.dtype} {pixels.shape}: give uint8 (n, channels, height, width)"
            )
        if np.ma.is_masked(pixels) or np.ma.is_masked(labels):
            raise DataError(f"{name!r} has masked values, which have no number: give filled(…) of the array")
        pixels = np.array(pixels, order="C")
        pixels.setflags(write=False)
        if labels is not None:
            labels = _whole_numbers(name, labels)
            if labels.shape != (len(pixels),):
                raise DataError(f"labels of {name!r} are {labels.shape} for {len(pixels)} images: give one each")
            labels.setflags(write=False)
        return cls(name, split, pixels, labels, fingerprint(pixels, labels))

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else "labels"
        return f"ImageSet({self.name!r}, {self.split!r}, {len(self):,} x {self.shape}, {labels})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def images(
        self,
        indices: Sequence[int] | np.ndarray | Tensor | slice | None = None,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """The images at `indices` (None: all), float32 (n, channels, height, width) in [-1, 1].

        What travels to `device` is uint8: a quarter of the bytes.
        """
        if indices is None:
            indices = slice(None)
        elif not isinstance(indices, slice):
            indices = np.asarray(indices, dtype=np.int64)
        return normalised(as_tensor(self.pixels[indices]).to(device))

    def subset(self, n: int, seed: int) -> ImageSet:
        """`n` images drawn without replacement by `seed`, in their old order.

        Raises `DataError` where there are fewer than `n`.
        """
        if not 1 <= n <= len(self):
            raise DataError(f"subset of {n} images: {self.name!r} ({self.split}) has {len(self)}")
        rows = draw(len(self), n, seed)
        labels = None if self.labels is None else self.labels[rows]
        return ImageSet.from_arrays(self.name, self.pixels[rows], labels, self.split)


def _whole_numbers(name: str, labels: np.ndarray) -> np.ndarray:
    """A copy of `labels` as int64. Raises `DataError` where they are no whole numbers of 64 bits."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels of {name!r} are {labels.dtype}: number the classes and give integers")
    if labels.size and int(labels.max()) >= 2**63:
        raise DataError(f"labels of {name!r} go up to {labels.max()}, beyond 64 bits with a sign: give smaller ones")
    return labels.astype(np.int64)


def draw(count: int, n: int, seed: int) -> np.ndarray:
    """`n` of `count` row numbers, drawn without replacement, ascending. A smaller draw lies in a larger."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    return np.sort(order[:n])

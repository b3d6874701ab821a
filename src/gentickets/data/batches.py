"""Batches as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gentickets.data.images import ImageSet, as_tensor, normalised
from gentickets.errors import DataError

# The third word of the seed of flips, so that their stream is not that of the epochs' orders.
_FLIPS = 1


@dataclass(frozen=True)
class Labelled:
    """A batch of images with their labels: what it is for images, `len`, a slice and `chunk`, it is for both.

    `images`: float32 (batch, channels, height, width) in [-1, 1]; `labels`: int64 (batch,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Labelled:
        return Labelled(self.images[rows], self.labels[rows])

    @property
    def device(self) -> torch.device:
        return self.images.device

    def to(self, device: str | torch.device) -> Labelled:
        return Labelled(self.images.to(device), self.labels.to(device))

    def cpu(self) -> Labelled:
        return self.to("cpu")

    def chunk(self, parts: int) -> tuple[Labelled, ...]:
        """As `torch.chunk`, along the batch."""
        pairs = zip(self.images.chunk(parts), self.labels.chunk(parts), strict=True)
        return tuple(Labelled(images, labels) for images, labels in pairs)


Batch = Tensor | Labelled
"""What one step is given: images, and their labels where the objective wants them."""


def batch_of(
    images: ImageSet, rows: slice | np.ndarray, device: str | torch.device = "cpu", labelled: bool = False
) -> Batch:
    """The images at `rows`, with their labels where these are wanted. Raises `DataError` where there are none."""
    pixels = images.images(rows, device)
    return Labelled(pixels, torch.from_numpy(_labels_of(images)[rows]).to(device)) if labelled else pixels


def _labels_of(images: ImageSet) -> np.ndarray:
    if images.labels is None:
        raise DataError(f"{images.name!r} ({images.split}) has no labels: train it with conditional=false")
    return images.labels


class Batches:
    """An endless stream of shuffled batches, of which each is a pure function of (seed, step).

    The stream runs through one permutation of the set after another; a batch may straddle two, so that each
    has `batch_size` images and each image comes once an epoch. With `flip`, each image is mirrored left to
    right with probability one half. On a CUDA device the whole uint8 set is kept there. With `labelled`, the labels
    of the images come with them.

    Raises `DataError` for a batch size below 1, a negative seed, an empty set, or labels that there are not.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        seed: int,
        flip: bool = False,
        device: str | torch.device = "cpu",
        labelled: bool = False,
    ):
        if batch_size < 1:
            raise DataError(f"batch_size: {batch_size} is too small: 1 or more")
        if seed < 0:
            raise DataError(f"seed: {seed} is negative: 0 or more")
        if not len(images):
            raise DataError(f"{images.name!r} ({images.split}) has no images to make batches of")
        self.images, self.batch_size, self.seed, self.flip = images, batch_size, seed, flip
        self.device = torch.device(device)
        self._pixels = as_tensor(images.pixels).to(self.device)
        self._labels = as_tensor(_labels_of(images)).to(self.device) if labelled else None
        self._orders: dict[int, np.ndarray] = {}

    def at(self, step: int) -> Batch:
        """The batch of `step` (0, 1, …): float32 (batch_size, channels, height, width) in [-1, 1], or `Labelled`."""
        rows = torch.from_numpy(self.indices(step)).to(self.device)
        batch = self._pixels.index_select(0, rows)
        if self.flip:
            mirrored = torch.from_numpy(self._mirrored(step)).to(self.device)
            batch.index_copy_(0, mirrored, batch.index_select(0, mirrored).flip(-1))
        return normalised(batch) if self._labels is None else Labelled(normalised(batch), self._labels[rows])

    def indices(self, step: int) -> np.ndarray:
        """Which images the batch of `step` holds: int64 (batch_size,). `images.labels[…]` are its labels."""
        if step < 0:
            raise DataError(f"step: {step} is negative: 0 or more")
        parts, start, left = [], step * self.batch_size, self.batch_size
        while left:
            epoch, offset = divmod(start, len(self.images))
            parts.append(self._order(epoch)[offset : offset + left])
            start, left = start + len(parts[-1]), left - len(parts[-1])
        return np.concatenate(parts)

    def _order(self, epoch: int) -> np.ndarray:
        """The order of one epoch. Two are remembered: a batch that straddles needs both."""
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._orders[epoch] = generator.permutation(len(self.images))
        return self._orders[epoch]

    def _mirrored(self, step: int) -> np.ndarray:
        """Which of the batch's images are mirrored: int64 positions."""
        generator = np.random.Generator(np.random.PCG64([self.seed, step, _FLIPS]))
        return np.flatnonzero(generator.random(self.batch_size) < 0.5)

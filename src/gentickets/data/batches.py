"""Batches as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gentickets.data.images import ImageSet, as_tensor, normalised
from gentickets.errors import DataError

# The third word of the seed of flips, so that their stream is not that of the epochs' orders.
_FLIPS = 1


class Batches:
    """An endless stream of shuffled batches, of which each is a pure function of (seed, step).

    The stream runs through one permutation of the set after another; a batch may straddle two, so that each
    has `batch_size` images and each image comes once an epoch. With `flip`, each image is mirrored left to
    right with probability one half. On a CUDA device the whole uint8 set is kept there.

    Raises `DataError` for a batch size below 1, a negative seed, or an empty set.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        seed: int,
        flip: bool = False,
        device: str | torch.device = "cpu",
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
        self._orders: dict[int, np.ndarray] = {}

    def at(self, step: int) -> Tensor:
        """The batch of `step` (0, 1, …): float32 (batch_size, channels, height, width) in [-1, 1]."""
        rows = torch.from_numpy(self.indices(step)).to(self.device)
        batch = self._pixels.index_select(0, rows)
        if self.flip:
            mirrored = torch.from_numpy(self._mirrored(step)).to(self.device)
            batch.index_copy_(0, mirrored, batch.index_select(0, mirrored).flip(-1))
        return normalised(batch)

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

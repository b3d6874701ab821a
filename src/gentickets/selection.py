"""Exactly the best so many of a group of scores, in one or two passes and hardly any memory beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gentickets.errors import PruneError

_BLOCK = 1 << 18
"""Weights looked at together: a multiple of 8, few enough that their scores stay in the processor's cache."""

_FEW = 1 << 14
"""So many weights, or fewer, are compared without first guessing a threshold."""


@dataclass(frozen=True)
class Scored:
    """The scores of one tensor and which of its weights are alive, read block by block.

    Nothing here is as large as the scores: they are neither copied, nor sorted, nor compressed to what is alive.
    """

    name: str
    shape: tuple[int, ...]
    scores: Tensor  # on the CPU
    bits: np.ndarray  # of the mask, packed
    alive: int

    @property
    def total(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """In which scores compare exactly: half precisions in float32, whole numbers up to 2**53 in float64 only."""
        return torch.float32 if self.scores.is_floating_point() and self.scores.itemsize <= 4 else torch.float64

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Scores, and packed bits of the mask, of up to `_BLOCK` weights at a time, in order of place."""
        flat = self.scores.reshape(-1)
        for at in range(0, self.total, _BLOCK):
            yield flat[at : at + _BLOCK].to(dtype).numpy(), self.bits[at // 8 : (at + _BLOCK + 7) // 8]

    def check(self, values: np.ndarray, bits: np.ndarray) -> None:
        """Refuses a block with NaN for an alive weight. The largest of some numbers is NaN where one of them is."""
        if np.isnan(values.max()) and np.isnan(values[_unpacked(bits, len(values))]).any():
            raise PruneError(f"scores of {self.name!r} hold NaN: the model has diverged, or the criterion has")

    def drawn(self, count: int, rng: np.random.Generator) -> Tensor:
        """The scores of those of `count` weights drawn with replacement that are alive."""
        places = rng.integers(self.total, size=count)
        if self.alive < self.total:
            places = places[_is_alive(self.bits, places)]
        return self.scores.reshape(-1).index_select(0, torch.from_numpy(places))


def _unpacked(bits: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(bits, count=count).view(np.bool_)


def _is_alive(bits: np.ndarray, places: np.ndarray) -> np.ndarray:
    return (bits[places >> 3] << (places & 7).astype(np.uint8)) & 0x80 != 0


def keep_best(group: list[Scored], keep: int) -> dict[str, np.ndarray]:
    """Name → packed bits, with exactly `keep` of the group's alive weights left: of equal scores the first go."""
    drop = sum(part.alive for part in group) - keep
    dtype = max((part.dtype for part in group), key=lambda dtype: dtype.itemsize)
    if not drop:
        for part in group:
            for values, bits in part.blocks(dtype):
                part.check(values, bits)
        return {part.name: part.bits for part in group}
    cut = _cut(group, drop, dtype)
    ties, kept = cut.ties, {}
    for part in group:
        packed = []
        for values, bits in part.blocks(dtype):
            stays = values > cut.threshold if cut.all_ties else values >= cut.threshold
            if ties and not cut.all_ties:  # the first ones go
                tied = np.flatnonzero(values == cut.threshold)
                tied = tied[_is_alive(bits, tied)][:ties]
                stays[tied] = False
                ties -= len(tied)
            packed.append(np.packbits(stays) & bits)
        kept[part.name] = np.concatenate(packed) if packed else part.bits
    return kept


class _Cut(NamedTuple):
    """Where a group is cut: what scores lower goes, and `ties` of those that score just this, which may be all."""

    threshold: float
    ties: int
    all_ties: bool


def _cut(group: list[Scored], drop: int, dtype: torch.dtype) -> _Cut:
    """Where the `drop` lowest scores of a group end.

    A sample says between which two scores it must lie but for one time in 10**8; one pass counts what is below and
    collects what is between, some 2 %, where it is then found exactly (Floyd and Rivest 1975, "Expected time bounds
    for selection"). Where the sample was wrong, another pass takes what is beyond.
    """
    low, high = _bracket(group, drop, dtype)
    while True:
        below, at_low, between, at_high = _split(group, low, high, dtype)
        rank = drop - below
        if rank <= 0:
            low, high = -math.inf, low
        elif rank <= at_low:
            return _Cut(low, rank, rank == at_low)
        elif (rank := rank - at_low) <= len(between):
            between.partition(rank - 1)
            threshold = float(between[rank - 1])
            ties = rank - int(np.count_nonzero(between[:rank] < threshold))
            return _Cut(threshold, ties, ties == int(np.count_nonzero(between == threshold)))
        elif (rank := rank - len(between)) <= at_high:
            return _Cut(high, rank, rank == at_high)
        else:
            low, high = high, math.inf


def _bracket(group: list[Scored], drop: int, dtype: torch.dtype) -> tuple[float, float]:
    """Two scores between which the `drop`-th lowest of a group lies, most likely: six standard errors to each side."""
    alive, total = sum(part.alive for part in group), sum(part.total for part in group)
    low, high = -math.inf, math.inf
    if alive > _FEW:
        rng, rate = np.random.default_rng(0), total ** (-1 / 3)
        sizes = [int(part.total * rate + rng.random()) for part in group]  # a small tensor by chance: in proportion
        drawn = [part.drawn(size, rng).to(dtype) for part, size in zip(group, sizes, strict=True) if size]
        sample = torch.cat(drawn).numpy()
        share = (drop - 0.5) / alive
        centre, margin = share * len(sample), 6 * math.sqrt(len(sample) * share * (1 - share)) + 6
        if (first := math.floor(centre - margin)) >= 0:
            low = float(np.partition(sample, first)[first])
        if (last := math.ceil(centre + margin)) < len(sample):
            high = float(np.partition(sample, last)[last])
    return low, high


def _split(group: list[Scored], low: float, high: float, dtype: torch.dtype) -> tuple[int, int, np.ndarray, int]:
    """Of a group's alive weights: how many score below `low`; at it; the scores between; how many score `high`.

    Scores at the two ends are counted and not collected, so that a model of equal scores is not collected whole.
    Raises `PruneError` for NaN.
    """
    above = at_low = at_high = 0
    between = [np.empty(0, np.float32)]
    for part in group:
        for values, bits in part.blocks(dtype):
            part.check(values, bits)
            chosen = values >= low
            if part.alive < part.total:
                chosen &= _unpacked(bits, len(values))
            above += int(np.count_nonzero(chosen))
            chosen &= values <= high
            near = values.take(np.flatnonzero(chosen))
            inner = near[(near > low) & (near < high)]
            ends = int(np.count_nonzero(near == low))
            at_low, at_high = at_low + ends, at_high + len(near) - len(inner) - ends
            between.append(inner)
    return sum(part.alive for part in group) - above, at_low, np.concatenate(between), at_high

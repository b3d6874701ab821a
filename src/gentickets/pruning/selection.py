"""Exactly the best so many of a group of scores, in one or two passes and hardly any memory beside them.

Where a group is cut through equal scores, each tensor loses the same share of its own that score just that (largest
remainders, to the exact count), and within a tensor they go by lot: by a hash of the tensor's name and the place. So
no tensor, channel or corner is emptied for where it stands, and equal scores give equal masks on every machine.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
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


@dataclass(frozen=True)
class Ties:
    """Where a group was cut through equal scores: of `alive` weights `tied` score just `score`, and `pruned` went."""

    score: float
    tied: int
    pruned: int
    alive: int


class Best(NamedTuple):
    """Name → packed bits of what is kept, and the ties that were broken for it, if any were."""

    kept: dict[str, np.ndarray]
    ties: Ties | None


def keep_best(group: list[Scored], keep: int) -> Best:
    """Exactly `keep` of the group's alive weights, the best; of equal scores each tensor loses the same share."""
    alive = sum(part.alive for part in group)
    dtype = max((part.dtype for part in group), key=lambda dtype: dtype.itemsize)
    if keep == alive:
        for part in group:
            for values, bits in part.blocks(dtype):
                part.check(values, bits)
        return Best({part.name: part.bits for part in group}, None)
    cut = _cut(group, alive - keep, dtype)
    kept, tied = {}, {}
    for part in group:
        kept[part.name], tied[part.name] = np.empty_like(part.bits), np.zeros_like(part.bits)
        at = 0
        for values, bits in part.blocks(dtype):
            block = slice(at, at := at + len(bits))
            stays = values > cut.threshold if cut.all_ties else values >= cut.threshold
            np.bitwise_and(np.packbits(stays), bits, out=kept[part.name][block])
            if not cut.all_ties and (equal := values == cut.threshold).any():
                np.bitwise_and(np.packbits(equal), bits, out=tied[part.name][block])
    if cut.all_ties:
        return Best(kept, None)
    counts = {name: int(np.bitwise_count(bits).sum()) for name, bits in tied.items()}
    for name, share in in_proportion(cut.ties, counts).items():
        if share:
            kept[name] ^= _by_lot(name, tied[name], share)
    return Best(kept, Ties(cut.threshold + 0.0, sum(counts.values()), cut.ties, alive))


def in_proportion(whole: int, sizes: dict[str, int]) -> dict[str, int]:
    """`whole` in shares in proportion to sizes, by largest remainders; equal remainders go by a hash of the name."""
    total = sum(sizes.values())
    exact = {name: Fraction(whole * size, total) for name, size in sizes.items()}
    shares = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: (shares[name] - exact[name], zlib.crc32(name.encode()), name))
    for name in by_remainder[: whole - sum(shares.values())]:
        shares[name] += 1
    return shares


_LOT_BITS = 53
"""A lot is a whole number of so many bits: more than a tensor has places."""


def _by_lot(name: str, tied: np.ndarray, count: int) -> np.ndarray:
    """Packed bits of `count` of the places that have theirs set in `tied`: those that draw the lowest lots.

    The lots are drawn again in each of three passes, not kept: how many begin with which 16 bits, which lot is the last
    to go among those that begin as it does, and who goes.
    """
    begins = np.zeros(1 << 16, np.int64)
    for _, _, lots in _lots(name, tied):
        begins += np.bincount(lots >> (_LOT_BITS - 16), minlength=len(begins))
    deciding = int(np.searchsorted(begins.cumsum(), count))
    rank = count - int(begins[:deciding].sum())
    among = np.concatenate([lots[lots >> (_LOT_BITS - 16) == deciding] for _, _, lots in _lots(name, tied)])
    last = np.partition(among, rank - 1)[rank - 1]
    goes = np.zeros_like(tied)
    for block, places, lots in _lots(name, tied):
        chosen = np.zeros(8 * len(tied[block]), np.bool_)
        chosen[places[lots <= last]] = True
        goes[block] = np.packbits(chosen)
    return goes


def lots(name: str, count: int) -> np.ndarray:
    """(count,) int64: what each place of a tensor draws, no two the same. Of equals the lowest goes first."""
    every = np.full((count + 7) // 8, 0xFF, np.uint8)
    return np.concatenate([np.empty(0, np.int64), *(drawn for _, _, drawn in _lots(name, every))])[:count]


def _lots(name: str, tied: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Block by block of `tied`: which places of the block are set, and the lot that each draws, no two of all the same.

    Every step is one to one modulo 2**53 (an odd factor; the upper half into the lower), after the finaliser of
    splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
    """
    all_bits, size = (1 << _LOT_BITS) - 1, _BLOCK // 8
    start = zlib.crc32(name.encode()) * 0x9E3779B97F4A7C15 & all_bits
    for at in range(0, len(tied), size):
        block = slice(at, at + size)
        if tied[block].any():
            places = np.flatnonzero(_unpacked(tied[block], 8 * size))
            lots = places.astype(np.uint64) + np.uint64(8 * at + start)
            for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
                lots = (lots * np.uint64(factor)) & np.uint64(all_bits)
                lots ^= lots >> np.uint64(27)
            yield block, places, lots.view(np.int64)


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

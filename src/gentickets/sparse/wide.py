"""Convolutions on images as torch lays them out: a row of pixels is what the kernels take side by side.

Batch innermost (`layout.py`) is fastest for full batches in networks of little else than convolutions. But what most
networks have between them, group norms, attention, concatenations, works on images as they are, and a turn each way
costs what the live weights spare; and sounds and images that are made one by one fill no vector with their batch. Here
nothing is turned: one live weight is one multiply-add of neighbours along the width. Where a convolution strides, the
columns of its big side are sorted by their place within a stride first, so that neighbours of the small side read
neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gentickets.kernels import Rows, gather_wide, nbytes, padded, row_ends, sample_wide, turned
from gentickets.sparse.layout import NONE, Pair, Pattern, meeting, paddings


class WideLayout:
    """A pattern laid out over images of one size, (batch, channels, height, width), of any number."""

    axes = (0, 2, 3)  # those that a bias is added along

    def __init__(self, pattern: Pattern, small: Pair, big: Pair):
        self._pattern, self._small, self._big = pattern, small, big
        g, live = pattern.geometry, pattern.live()
        self.weights = live.shape[1]
        self._pad_big = paddings(g, live, small, big)
        (rows, self._down_step), (columns, self._right_step) = (meeting(g, axis, live, small, big) for axis in (0, 1))
        self._pad_small = rows, columns
        self._small_wide = small[0] + sum(rows), small[1] + sum(columns)
        self._phases = g.stride[1]
        height, width = (sum(pad) + size for pad, size in zip(self._pad_big, big, strict=True))
        self._big_wide = height, -(-width // self._phases)  # rows, and columns of one phase
        self._lanes = -(-big[1] // self._phases)  # of one phase of what goes up
        self._below_at_once, self._above_at_once = side_by_side(small[1]), side_by_side(self._lanes)
        self._falling = self._below(live)
        self._rising = list(self._above(live))
        self._rows: dict[int, tuple[Rows, Rows, Rows]] = {}

    # -- the three operations ------------------------------------------------------------------------------------------

    def padded_big(self, big: Tensor) -> Tensor:
        """Images → (batch, channels, padded height, phases of the stride, columns of each)."""
        (above, below), (left, right) = self._pad_big
        height, columns = self._big_wide
        right = columns * self._phases - left - self._big[1]
        wide = _padded(big, (above, below), (left, right))
        if self._phases == 1:
            return wide
        sorted_ = wide.new_empty(*big.shape[:2], height, self._phases, columns)
        for phase in range(self._phases):
            sorted_[..., phase, :] = wide[..., phase :: self._phases]
        return sorted_

    def padded_small(self, small: Tensor) -> Tensor:
        return _padded(small, *self._pad_small)

    def down(self, values: Tensor, bias: Tensor | None, big: Tensor) -> Tensor:
        """`big`, padded → small, unpadded."""
        out = big.new_empty(len(big), self._pattern.small, *self._small)
        rows, _, _ = self._over(len(big))
        return gather_wide(rows, values, bias, big, out, self._small[0] * self._small[1], self._below_at_once)

    def up(self, values: Tensor, bias: Tensor | None, small: Tensor) -> Tensor:
        """`small`, padded → big, unpadded."""
        batch, channels, (height, width) = len(small), self._pattern.big, self._big
        out = small.new_empty(batch, channels, height, self._phases, self._lanes)
        _, rows, _ = self._over(batch)
        gather_wide(rows, values, bias, small, out, height * self._phases * self._lanes, self._above_at_once)
        if self._phases == 1:
            return out.view(batch, channels, height, width)
        images = out.new_empty(batch, channels, height, width)
        for phase in range(min(self._phases, width)):
            columns = images[..., phase :: self._phases]
            columns.copy_(out[..., phase, : columns.shape[-1]])
        return images

    def sample(self, small: Tensor, big: Tensor) -> Tensor:
        """The gradient of the live weights, (weights,), from both sides, padded."""
        _, _, rows = self._over(len(small))
        height, width = self._small_wide
        return sample_wide(rows, small, big, small.new_zeros(self.weights), height * width, self._below_at_once)

    # -- where numbers lie ---------------------------------------------------------------------------------------------

    def _over(self, batch: int) -> tuple[Rows, Rows, Rows]:
        """What the kernels read to go down, up and to sample, for so many images; the last few are kept."""
        if batch not in self._rows:
            while len(self._rows) >= 4:
                del self._rows[next(iter(self._rows))]
            self._rows[batch] = self._rows_over(batch)
        return self._rows[batch]

    def _rows_over(self, batch: int) -> tuple[Rows, Rows, Rows]:
        p, g = self._pattern, self._pattern.geometry
        rows, columns = self._small_wide
        across = self._phases * self._big_wide[1]  # from one row of the padded big side to the next
        above, left = self._pad_small[0][0], self._pad_small[1][0]
        parts = np.arange(0, self._small[1], self._below_at_once)
        steps = np.arange(self._small[0])[:, None]
        read = _places(batch, p.big * self._big_wide[0] * across, steps * g.stride[0] * across + parts)
        written = _places(batch, p.small * self._small[0] * self._small[1], steps * self._small[1] + parts)
        met = _places(batch, p.small * rows * columns, (steps + above) * columns + left + parts)
        parts = np.arange(0, self._lanes, self._above_at_once)
        rising = []
        for (down, right), weights in self._rising:
            steps = np.arange(-(-(self._big[0] - down) // g.stride[0]))[:, None]
            lines = ((steps * g.stride[0] + down) * self._phases + right) * self._lanes
            source = _places(batch, p.small * rows * columns, steps * columns + parts)
            target = _places(batch, p.big * self._big[0] * self._phases * self._lanes, lines + parts)
            rising.append({**weights, "source": source, "target": target})
        fallen = {**self._falling, "source": read}
        return Rows([{**fallen, "target": written}]), Rows(rising), Rows([{**fallen, "target": met}])

    def _below(self, live: np.ndarray) -> dict[str, Any]:
        s, c, i, j = live
        g, (rows, columns) = self._pattern.geometry, self._big_wide
        line = (c * rows + i * g.dilation[0]) * self._phases + j * g.dilation[1] % self._phases
        offset = line * columns + j * g.dilation[1] // self._phases
        reach = [pad[1] + pad[0] + size for pad, size in zip(self._pad_big, self._big, strict=True)]
        tile = _tile(self._small, g.stride[0], reach[0] - (self._small[0] - 1) * g.stride[0], columns)
        return _weights(s, self._pattern.small, c, self._pattern.big, offset, None, tile)

    def _above(self, live: np.ndarray) -> Any:
        """For each phase of the stride in both directions: which weights write there, and what they read."""
        s, c, _, _ = live
        (rows, columns), g = self._small_wide, self._pattern.geometry
        for down in range(min(g.stride[0], self._big[0])):
            for right in range(min(g.stride[1], self._big[1])):
                vertical, horizontal = self._down_step[down], self._right_step[right]
                chosen = np.flatnonzero((vertical != NONE) & (horizontal != NONE))
                order = chosen[np.argsort(c[chosen], kind="stable")]
                row = s[order] * rows + vertical[order] + self._pad_small[0][0]
                offset = row * columns + horizontal[order] + self._pad_small[1][0]
                steps = vertical[order]
                reach = 1 + int(steps.max(initial=0)) - int(steps.min(initial=0))
                tile = _tile((-(-self._big[0] // g.stride[0]), self._lanes), 1, reach, columns)
                big, small = self._pattern.big, self._pattern.small
                yield (down, right), _weights(c[order], big, s[order], small, offset, order, tile)

    @property
    def nbytes(self) -> int:
        """Bytes of the index arrays; sampling shares those of going down, and other batches all but the positions."""
        kept = [self._falling, *(weights for _, weights in self._rising)]
        return sum(nbytes(weights.values()) for weights in kept)


_CACHE = 24 * 1024  # bytes of images that stay at hand while the rows of weights pass over them
_RUN = 16  # weights of a row that are worth fetching its sums again


def _tile(positions: Pair, stride: int, reach: int, columns: int) -> int:
    """Bytes of one channel that four rows of a result are made of: of one image, or of several lower ones."""
    lines = reach + 3 * stride if positions[0] >= 4 else 4 * reach
    return 4 * max(1, lines) * min(columns, 80)


def _weights(
    row: np.ndarray, rows: int, channel: np.ndarray, channels: int, offset: np.ndarray, order: np.ndarray | None,
    tile: int,
) -> dict[str, Any]:  # fmt: skip
    """The rows of weights, sorted by their row and by the channel that they read within it: as many channels after each
    other as fit the cache, in each of them all rows. From the second on they add to what is there."""
    block = max(_CACHE // tile, -(-_RUN * rows * channels // max(1, len(row))))
    blocks = max(1, -(-channels // block))
    counts = np.bincount(row * blocks + channel // block, minlength=rows * blocks)
    ends = row_ends(counts)
    number = np.arange(rows, dtype=np.int32)
    named = np.concatenate([number, *[~number] * (blocks - 1)])
    begin, end = (ends[side].reshape(rows, blocks).T.reshape(-1) for side in ("begin", "end"))
    kept = (named >= 0) | (begin < end)
    return {
        "begin": begin[kept],
        "end": end[kept],
        "offset": offset.astype(np.int32),
        "order": None if order is None else order.astype(np.int32),
        "channel": named[kept],
    }


def side_by_side(width: int) -> int:
    """How many neighbours along a row are one position of the kernels: all of a short one, else equal parts of it that
    fill their vectors, so that one pass over the weights serves several."""
    if width <= 80:
        return width
    return max((part for part in range(33, 81) if not width % part), key=_filled, default=width)


def _filled(part: int) -> tuple[float, int]:
    return part / (-(-part // 16) * 16), part


def _places(batch: int, image: int, rows: np.ndarray) -> np.ndarray:
    """Where rows, or parts of them, begin in each of so many images, whose first numbers are `image` apart."""
    if batch * image >= 2**31:
        raise ValueError(f"a batch of {batch} is too large for sparse layers at {image:,} numbers an image: split it")
    return (np.arange(batch)[:, None] * image + rows.reshape(-1)).reshape(-1).astype(np.int32)


def _padded(images: Tensor, rows: Pair, columns: Pair) -> Tensor:
    """Contiguous, with so many rows and columns of zeros before and after."""
    images = _as_torch_has_them(images)
    if not any(rows) and not any(columns):
        return images
    batch, channels, height, width = images.shape
    wide = padded(images.view(batch * channels, height, width, 1), rows, columns)
    return wide.view(batch, channels, height + sum(rows), width + sum(columns))


def _as_torch_has_them(images: Tensor) -> Tensor:
    """Batch outermost in memory; torch's own way takes four times as long from batch innermost."""
    lanes = images.movedim(0, -1)
    if images.is_contiguous() or not lanes.is_contiguous():
        return images.contiguous()
    return turned(lanes.reshape(-1, len(images))).view(images.shape)

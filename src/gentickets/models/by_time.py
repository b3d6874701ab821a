"""Several denoisers as one: each is asked at times of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ByTime(nn.Module):
    """(images, times) → what the network of each image's time gives: network k is asked from time `starts[k]` on.

    `starts` rise from 0, one for each network. A batch of one time, as in sampling, is asked of one network; a mixed
    one is taken apart. Whatever else it is called with goes along, row by row.

    Raises `ValueError` for starts that are others.
    """

    def __init__(self, networks: Sequence[nn.Module], starts: Sequence[int]):
        super().__init__()
        if list(starts) != sorted(set(starts)) or len(starts) != len(networks) or starts[0] != 0:
            raise ValueError(f"starts={list(starts)}: rising from 0, one for each of {len(networks)} networks")
        self.networks = nn.ModuleList(networks)
        self.starts: Tensor
        self.register_buffer("starts", torch.tensor(list(starts), dtype=torch.int64))

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """What images its networks make, where they say."""
        return getattr(self.networks[0], "image_shape", None)

    def forward(self, images: Tensor, times: Tensor, *more: Tensor) -> Tensor:
        whose = torch.bucketize(times, self.starts, right=True) - 1
        asked = whose.unique().tolist()
        if len(asked) == 1:
            return self.networks[asked[0]](images, times, *more)
        told: Tensor | None = None
        for one in asked:
            rows = (whose == one).nonzero().flatten()
            given = self.networks[one](images[rows], times[rows], *(each[rows] for each in more))
            if told is None:
                told = given.new_empty(len(images), *given.shape[1:])
            told = told.index_copy(0, rows, given)
        assert told is not None
        return told

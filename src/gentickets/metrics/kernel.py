"""The kernel distance (KID: Bińkowski et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor


def kernel_distance(
    real: Tensor, fake: Tensor, subsets: int = 50, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The squared maximum mean discrepancy under (x·y / features + 1)³, unbiased: it can fall below zero.

    `real` and `fake` are (n, features). Mean and standard deviation over `subsets` draws of `subset_size` images
    of each (or of fewer, where one side has fewer), by `seed` alone.
    """
    real, fake = real.double(), fake.double()
    size = min(subset_size, len(real), len(fake))
    rng = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(subsets):
        a = real[torch.randperm(len(real), generator=rng)[:size]]
        b = fake[torch.randperm(len(fake), generator=rng)[:size]]
        found.append(_within(a) + _within(b) - 2 * _kernel(a, b).mean())
    values = torch.stack(found)
    return float(values.mean()), float(values.std(correction=0))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _within(a: Tensor) -> Tensor:
    """The mean of the kernel over pairs of different images."""
    kernel = _kernel(a, a)
    return (kernel.sum() - kernel.diagonal().sum()) / (len(a) * (len(a) - 1))

"""How far real and generated images cover each other, by the balls around each image's nearest neighbours.

Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020). An image's ball
reaches to its k-th nearest neighbour among the images of its own side, and is closed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gentickets.errors import DataError

K = 5
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Coverage:
    """All are better higher; `density` alone can be over 1.

    `precision`: the share of generated images inside the ball of a real one. `recall`: the share of real images
    inside the ball of a generated one. `density`: how many real balls hold a generated image, over k, on average.
    `coverage`: the share of real images whose ball holds a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_coverage(real: Tensor, fake: Tensor, k: int = K, chunk: int = 1024) -> Coverage:
    """Of features (n, features) and (m, features), in float64; compare sides of equal size only.

    NaN where a feature is not finite. Memory is that of `chunk` rows of distances. Raises `DataError` where a side has
    not more than `k` images.
    """
    if min(len(real), len(fake)) <= k:
        raise DataError(f"nearest neighbours: k={k} needs more than {k} images a side: {len(real)} and {len(fake)}")
    if not (bool(real.isfinite().all()) and bool(fake.isfinite().all())):
        return Coverage(math.nan, math.nan, math.nan, math.nan)
    # Distances are the same about any point; about the middle their squares lose the fewest digits.
    middle = real.double().mean(0)
    real, fake = real.double() - middle, fake.double() - middle
    slack = _ROUNDING * max(float(side.square().sum(1).max()) for side in (real, fake))
    around_real, around_fake = (_squared_radii(side, k, chunk) + slack for side in (real, fake))

    fake_is_inside = torch.zeros(len(fake), dtype=torch.bool)
    real_is_inside = holds_fake = inside = 0
    for start in range(0, len(real), chunk):
        squares = _squared_distances(real[start : start + chunk], fake)
        in_real = squares <= around_real[start : start + chunk, None]
        fake_is_inside |= in_real.any(0)
        holds_fake += int(in_real.any(1).sum())
        inside += int(in_real.sum())
        real_is_inside += int((squares <= around_fake).any(1).sum())
    return Coverage(
        precision=float(fake_is_inside.double().mean()),
        recall=real_is_inside / len(real),
        density=inside / (k * len(fake)),
        coverage=holds_fake / len(real),
    )


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2)


def _squared_radii(points: Tensor, k: int, chunk: int) -> Tensor:
    """The squared distance of each point to its k-th nearest other one, (n,)."""
    found = []
    for start in range(0, len(points), chunk):
        squares = _squared_distances(points[start : start + chunk], points)
        squares.diagonal(offset=start).fill_(torch.inf)
        found.append(squares.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(found).clamp(min=0)

"""The Fréchet distance from features of Inception's size, against the square root of a matrix by scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from benchmarks.contest import Contender, Contest, benchmark
from gentickets.metrics.frechet import Moments, frechet_distance

FEATURES = 2048
CASES = {"images": (5000, 1000)}
QUICK = {"images": (100,), "features": (32,)}


@benchmark(CASES, QUICK)
def frechet(images: int, features: int = FEATURES) -> Contest:
    """The distance itself, the moments of both sets gathered before."""
    sets = _features(images, features)
    covariances = [_mean_and_covariance(each) for each in sets]
    moments = [_moments(each) for each in sets]
    return _contest(
        lambda: _by_sqrtm(covariances),
        lambda: frechet_distance(*(each.gaussian() for each in moments)),
        images,
        features,
    )


@benchmark({"images": (5000,)}, QUICK)
def frechet_from_features(images: int, features: int = FEATURES) -> Contest:
    """All of it: covariances too."""
    sets = _features(images, features)
    return _contest(
        lambda: _by_sqrtm([_mean_and_covariance(each) for each in sets]),
        lambda: frechet_distance(*(_moments(each).gaussian() for each in sets)),
        images,
        features,
    )


def _contest(theirs: Callable[[], float], ours: Callable[[], float], images: int, features: int) -> Contest:
    """Equality is asked for where there are more images than features: with fewer, `sqrtm` itself loses digits."""
    expected = theirs()
    difference = {"relative difference": abs(ours() - expected) / expected}
    exact = {"relative difference": 1e-8} if images > features else {}
    return Contest(
        "scipy sqrtm",
        {
            "scipy sqrtm": Contender(theirs),
            "gentickets": Contender(ours, figures=difference, at_most={"ratio": 0.1} | exact),
        },
    )


def _features(images: int, features: int) -> list[Tensor]:
    """Two sets, float32, whose features are correlated and of sizes that differ, as a network's are."""
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(features, features, generator=rng) / features**0.5
    scale = torch.logspace(0, -1, features)
    first = torch.randn(images, features, generator=rng) * scale @ mixing
    second = torch.randn(images, features, generator=rng) * scale.flip(0) @ mixing + 0.05
    return [first, second]


def _moments(features: Tensor) -> Moments:
    moments = Moments(features.shape[1])
    for batch in features.split(500):
        moments.add(batch)
    return moments


def _mean_and_covariance(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    array = features.double().numpy()
    return array.mean(0), np.cov(array, rowvar=False)


def _by_sqrtm(sets: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """As the usual FID scripts have it."""
    (mean, covariance), (other_mean, other_covariance) = sets
    root = scipy.linalg.sqrtm(covariance @ other_covariance)
    spread = np.trace(covariance) + np.trace(other_covariance) - 2 * np.trace(root.real)
    return float(((mean - other_mean) ** 2).sum() + spread)

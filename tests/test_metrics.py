"""Distances and scores against independent implementations, each written here from its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gentickets import DataError
from gentickets.metrics import Gaussian, class_score, frechet_distance, kernel_distance, manifold_coverage
from gentickets.metrics.frechet import Moments


def points(n: int, seed: int, spread: float = 1.0, shift: float = 0.0, size: int = 6) -> Tensor:
    """Points whose axes have spreads from 1 to 1/4, correlated."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    axes = torch.linspace(1, 0.25, size, dtype=torch.float64)
    return torch.randn(n, size, generator=generator, dtype=torch.float64) @ (axes * mix) * spread + shift


def gaussian(features: Tensor, batch: int = 1000) -> Gaussian:
    moments = Moments(features.shape[1])
    for part in features.split(batch):
        moments.add(part)
    return moments.gaussian()


# -- Fréchet --------------------------------------------------------------------------------------------------


def frechet_by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(root)))


@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(60, 90), st.integers(60, 90)),
    shift=st.floats(-0.5, 0.5),
    batch=st.integers(1, 50),
)
def test_frechet_agrees_with_sqrtm_to_eight_digits(seed, sizes, shift, batch) -> None:
    a, b = points(sizes[0], seed, size=24), points(sizes[1], seed + 1, spread=0.7, shift=shift, size=24)
    found = frechet_distance(gaussian(a, batch), gaussian(b, batch))
    assert found == pytest.approx(frechet_by_sqrtm(a.numpy(), b.numpy()), rel=1e-8)


@pytest.mark.parametrize("sizes", [(10, 12), (10, 200), (200, 10), (30, 31), (31, 30), (2, 2)])
def test_frechet_of_fewer_images_than_features(sizes) -> None:
    """sqrtm is useless on singular matrices; the square root of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½ is not."""
    a, b = points(sizes[0], 1, size=30), points(sizes[1], 2, shift=0.3, size=30)
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    between = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * between
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(float(expected), rel=1e-5)


def test_frechet_with_dead_and_with_equal_features() -> None:
    a, b = points(300, 1), points(300, 2, spread=0.5, shift=0.2)
    alone = frechet_distance(gaussian(a), gaussian(b))
    dead = torch.zeros(300, 3, dtype=torch.float64)
    padded = frechet_distance(gaussian(torch.cat([a, dead], 1)), gaussian(torch.cat([b, dead], 1)))
    assert padded == pytest.approx(alone, rel=1e-10)
    twice = frechet_distance(gaussian(a.repeat(1, 2)), gaussian(b.repeat(1, 2)))
    assert twice == pytest.approx(2 * alone, rel=1e-8)
    collapsed = frechet_distance(gaussian(torch.zeros_like(a)), gaussian(b))
    assert collapsed == pytest.approx(float(b.mean(0).square().sum() + b.var(0).sum()), rel=1e-10)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 60), batch=st.integers(1, 60))
def test_a_gaussian_does_not_depend_on_how_its_images_come(seed, n, batch) -> None:
    features = points(n, seed, shift=100.0, size=20)
    found = gaussian(features, batch)
    assert found.count == n
    assert torch.allclose(found.mean, features.mean(0), rtol=1e-12)
    assert torch.allclose(found.root @ found.root.T, torch.cov(features.T), rtol=1e-9, atol=1e-11)
    assert found.root.numel() <= 20 * 20
    assert frechet_distance(found, found) == pytest.approx(0, abs=1e-10)


def test_frechet_of_gaussians_far_apart_in_scale() -> None:
    """Diagonal covariances have a closed form: here over sixteen orders of magnitude."""
    a, b = (torch.logspace(0, end, 40, dtype=torch.float64) for end in (-8, -6))
    zero = torch.zeros(40, dtype=torch.float64)
    found = frechet_distance(Gaussian(zero, a.diag(), 99), Gaussian(zero, b.diag(), 99))
    assert found == pytest.approx(float((a - b).square().sum()), rel=1e-10)


# -- the kernel distance ----------------------------------------------------------------------------------------


def kid_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD with the kernel (x·y/d + 1)³."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(kernel(x, y) for x in a for y in b) / (n * m)
    return within_a + within_b - 2 * across


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 25), shift=st.floats(-0.5, 0.5))
def test_kid_agrees_with_loops(seed, n, shift) -> None:
    a, b = points(n, seed), points(n, seed + 1, shift=shift)
    assert kernel_distance(a, b, subsets=2)[0] == pytest.approx(kid_by_loops(a.numpy(), b.numpy()), rel=1e-9, abs=1e-9)


def test_kid_is_the_mean_over_subsets_and_repeats() -> None:
    a, b = points(60, 1), points(50, 2, shift=0.4)
    whole = kid_by_loops(a.numpy(), b.numpy())
    state = torch.get_rng_state()
    mean, deviation = kernel_distance(a, b, subsets=400, subset_size=25)
    assert torch.equal(torch.get_rng_state(), state)
    assert mean == pytest.approx(whole, abs=4 * deviation / 20)
    assert deviation > 0
    assert kernel_distance(a, b, subsets=400, subset_size=25) == (mean, deviation)
    assert kernel_distance(a, b, subsets=400, subset_size=25, seed=1) != (mean, deviation)


# -- nearest neighbours -----------------------------------------------------------------------------------------


def coverage_by_loops(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    def radius(points: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]

    around_real = [radius(real, i) for i in range(len(real))]
    around_fake = [radius(fake, j) for j in range(len(fake))]
    apart = [[np.linalg.norm(r - f) for f in fake] for r in real]
    n, m = len(real), len(fake)
    precision = sum(any(apart[i][j] <= around_real[i] for i in range(n)) for j in range(m)) / m
    recall = sum(any(apart[i][j] <= around_fake[j] for j in range(m)) for i in range(n)) / n
    density = sum(apart[i][j] <= around_real[i] for i in range(n) for j in range(m)) / (k * m)
    coverage = sum(min(apart[i]) <= around_real[i] for i in range(n)) / n
    return precision, recall, density, coverage


@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(7, 30), st.integers(7, 30)),
    k=st.integers(1, 6),
    shift=st.floats(0, 1),
    chunk=st.integers(1, 40),
)
def test_neighbours_agree_with_loops(seed, sizes, k, shift, chunk) -> None:
    real, fake = points(sizes[0], seed, size=3), points(sizes[1], seed + 1, spread=0.6, shift=shift, size=3)
    found = manifold_coverage(real, fake, k, chunk)
    expected = coverage_by_loops(real.numpy(), fake.numpy(), k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)


def test_neighbours_tell_what_is_wrong() -> None:
    real = points(200, 1, size=2)
    same = manifold_coverage(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = manifold_coverage(real, real + 1e3)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    collapsed = manifold_coverage(real, real[:1].expand(200, 2))
    assert (collapsed.precision, collapsed.recall) == (1, 1 / 200)
    assert collapsed.coverage < 0.2
    half = manifold_coverage(real, real[real[:, 0] > 0].repeat(2, 1)[:100])
    assert half.precision == 1
    assert half.recall < 0.8


def test_balls_are_closed_up_to_rounding() -> None:
    """Every image six times, far from the middle: all balls have radius 0, and hold their own copies."""
    real = points(30, 1, size=40).repeat(6, 1) * 1e4 + 1e6
    found = manifold_coverage(real.float(), real.float(), chunk=7)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx(6 / 5)


def test_too_few_images_for_neighbours_are_refused() -> None:
    with pytest.raises(DataError, match="k=5 needs more than 5 images a side: 9 and 5"):
        manifold_coverage(points(9, 1), points(5, 1))


# -- class scores -----------------------------------------------------------------------------------------------


def score_by_loops(logits: np.ndarray) -> float:
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    marginal = [sum(row[c] for row in p) / len(p) for c in range(p.shape[1])]
    return math.exp(sum(q * math.log(q / marginal[c]) for row in p for c, q in enumerate(row)) / len(p))


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), splits=st.integers(1, 12))
def test_the_class_score_agrees_with_loops(seed, n, splits) -> None:
    logits = points(n, seed, spread=3.0).numpy()
    parts = [score_by_loops(part) for part in np.array_split(logits, min(splits, n))]
    mean, deviation = class_score(torch.from_numpy(logits), splits)
    assert mean == pytest.approx(np.mean(parts), rel=1e-9)
    assert deviation == pytest.approx(np.std(parts), rel=1e-6, abs=1e-9)


def test_the_class_score_goes_from_one_to_the_number_of_classes() -> None:
    certain = torch.eye(7).repeat(20, 1) * 1e4
    assert class_score(certain, splits=10)[0] == pytest.approx(7)
    assert class_score(torch.zeros(140, 7))[0] == pytest.approx(1)
    assert class_score(certain[:1].expand(140, 7))[0] == pytest.approx(1)


def test_where_lapacks_fast_way_gives_up_the_slow_one_answers(monkeypatch):
    rng = torch.Generator().manual_seed(3)
    few, many = torch.randn(6, 9, generator=rng), torch.randn(40, 9, generator=rng)
    many[:, 4:] = 0  # a covariance without a Cholesky root
    expected = frechet_distance(few, many), frechet_distance(few, few + 1)

    def gives_up(*_, **__):
        raise torch.linalg.LinAlgError("failed to converge")

    for name in ("eigh", "eigvalsh", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, gives_up)
    found = frechet_distance(few, many), frechet_distance(few, few + 1)
    assert found == pytest.approx(expected, rel=1e-9)

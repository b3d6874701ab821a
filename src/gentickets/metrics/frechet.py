"""The Fréchet distance between Gaussians (Heusel et al. 2017), from streams of features, in float64.

‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½. With Σ = R Rᵀ for any root R, the last trace is the sum of the singular
values of R₁ᵀR₂: no square root of a matrix is needed, and the root may have as few columns as there are images.
"""

from __future__ import annotations

from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from gentickets.errors import DataError

_EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The Gaussian with the mean and covariance of `count` images' features, float64.

    `mean` is (features,), `root` (features, columns) with `root @ root.T` the unbiased covariance.
    """

    mean: Tensor
    root: Tensor
    count: int


def frechet_distance(one: Gaussian | Tensor, other: Gaussian | Tensor) -> float:
    """The distance, 0 or more, of two Gaussians, or of those of features as they are: a tensor (images, features).

    It is called after the features that it is in, such as those of `gentickets.classifier_features`; FID it is in the
    published Inception's alone. Fewer images make it larger: compare at equal numbers. Of more images than memory holds
    features of: `gentickets.metrics.FeatureStatistics.of_batches(extractor, batches).gaussian`.

    Raises `DataError` for other numbers of features on the two sides, for fewer than two images, and for features that
    are not finite.
    """
    one, other = (_gaussian(side) for side in (one, other))
    if len(one.mean) != len(other.mean):
        raise DataError(f"{len(one.mean)} features on one side and {len(other.mean)} on the other: take the same ones")
    apart = (one.mean - other.mean).square().sum()
    spreads = one.root.square().sum() + other.root.square().sum()
    between = _sum_of_singular_values(one.root.T @ other.root)
    # Rounding can leave the distance of equal sets a hair below zero.
    return max(0.0, float(apart + spreads - 2 * between))


def _gaussian(side: Gaussian | Tensor) -> Gaussian:
    if isinstance(side, Gaussian):
        return side
    if not isinstance(side, Tensor) or side.dim() != 2:
        shape = f"a tensor {tuple(side.shape)}" if isinstance(side, Tensor) else f"a {type(side).__name__}"
        raise DataError(f"features are a tensor (images, features), and not {shape}: extractor(images) gives them")
    moments = Moments(side.shape[1])
    moments.add(side.detach().cpu())
    return moments.gaussian()


class Moments:
    """Gathers a Gaussian from batches of features, and holds never more than the covariance's size."""

    def __init__(self, num_features: int):
        self.count = 0
        self._size = num_features
        self._held: list[Tensor] = []  # as they came, while there are no more of them than features
        self._folded = 0
        self._mean = torch.zeros(num_features, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """One batch, (n, features)."""
        self._held.append(features.double())
        self.count += len(features)
        if self.count > self._size:
            self._fold(torch.cat(self._held))
            self._held = []

    def _fold(self, features: Tensor) -> None:
        """The pairwise update of mean and scatter (Chan et al. 1979): no large sums are subtracted."""
        if not self._folded:
            self._scatter = torch.zeros(self._size, self._size, dtype=torch.float64)
        mean, total = features.mean(0), self._folded + len(features)
        centred, shift = features - mean, mean - self._mean
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(shift, shift, alpha=self._folded * len(features) / total)
        self._mean += shift * (len(features) / total)
        self._folded = total

    def gaussian(self) -> Gaussian:
        """The Gaussian of all that was added. Raises `DataError` for fewer than two images, or one not finite."""
        if self.count < 2:
            raise DataError(f"a Gaussian of {self.count} images: two or more are needed")
        if not all(bool(part.isfinite().all()) for part in (self._mean, self._scatter, *self._held)):
            raise DataError("a Gaussian of features that are not finite: there is none")
        if self._folded:
            # As a file holds it, too: the last digit of a distance hangs on the order in memory.
            return Gaussian(self._mean, _root(self._scatter / (self.count - 1)).contiguous(), self.count)
        features = torch.cat(self._held)
        mean = features.mean(0)
        return Gaussian(mean, (_contrasts(features - mean).T / (self.count - 1) ** 0.5).contiguous(), self.count)


def _contrasts(centred: Tensor) -> Tensor:
    """n - 1 rows with the scatter of n rows whose sum is zero.

    Householder's reflection that takes (1, …, 1) to the first axis leaves the first row zero: left out, so that no
    singular value is zero for that reason alone.
    """
    axis = torch.full((len(centred),), len(centred) ** -0.5, dtype=centred.dtype)
    axis[0] -= 1
    return (centred - torch.outer(axis, axis @ centred) * (2 / axis.dot(axis)))[1:]


def _root(covariance: Tensor) -> Tensor:
    """R with R Rᵀ = `covariance`: Cholesky's, or by eigenvectors where it is singular, without its null space."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    diagonal = root.diagonal()
    rounding = len(covariance) * _EPSILON
    if not failed and diagonal.min() ** 2 > rounding * diagonal.max() ** 2:
        return root
    values, vectors = _eigenvectors(covariance)
    real = values > rounding * values[-1]
    return vectors[:, real] * values[real].sqrt()


# Divide and conquer, LAPACK's fast way, gives up on samples that are nearly one and the same, as of a network that has
# hardly been trained. Its slow steps do not.


def _eigenvectors(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and their vectors."""
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError:
        values, vectors = map(torch.from_numpy, scipy.linalg.eigh(symmetric.numpy(), driver="ev"))
    return values, vectors


def _eigenvalues(symmetric: Tensor) -> Tensor:
    try:
        return torch.linalg.eigvalsh(symmetric)
    except torch.linalg.LinAlgError:
        return torch.from_numpy(scipy.linalg.eigh(symmetric.numpy(), eigvals_only=True, driver="ev"))


def _singular_values(matrix: Tensor) -> Tensor:
    try:
        return torch.linalg.svdvals(matrix)
    except torch.linalg.LinAlgError:
        return torch.from_numpy(scipy.linalg.svd(matrix.numpy(), compute_uv=False, lapack_driver="gesvd"))


def _sum_of_singular_values(matrix: Tensor) -> Tensor:
    """Through the eigenvalues of the smaller Gram matrix, which is faster, where that keeps nine digits."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if not wide.numel():
        return wide.new_zeros(())
    squares = _eigenvalues(wide @ wide.T).clamp(min=0)
    values = squares.sqrt()
    error = _EPSILON * squares[-1] * (0.5 / values).sum()
    # `not` takes in what is infinite or NaN: a singular value of zero.
    return _singular_values(wide).sum() if not error < 1e-9 * values.sum() else values.sum()

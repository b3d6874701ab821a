"""The Fréchet distance and the kernel distance between real and generated images, in any features."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gentickets.data import ImageSet
from gentickets.data.cache import cache_folder, content_key, writing
from gentickets.errors import DataError
from gentickets.metrics.features import FeatureExtractor, seeded
from gentickets.metrics.inception import InceptionFeatures
from gentickets.metrics.measurement import Measurement

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class RealStatistics:
    """The features of real images, float32 (n, features), and the key of the extractor that they are of."""

    features: Tensor
    extractor_key: str

    @classmethod
    def of(
        cls,
        extractor: FeatureExtractor,
        images: ImageSet,
        count: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        batch_size: int = 256,
    ) -> RealStatistics:
        """Those of `images`, or of `count` of them drawn by a fixed seed; from the cache if it has them."""
        if count is not None and count < len(images):
            images = images.subset(count, seed=0)
        parts = {
            "format": _FORMAT,
            "data": images.fingerprint,
            "extractor": extractor.key,
            "weights": extractor.weights_hash,
            "count": len(images),
        }
        path = cache_folder(cache) / "features" / f"real-{content_key(parts)}.safetensors"
        features = _read(path, (len(images), extractor.num_features))
        if features is None:
            starts = range(0, len(images), batch_size)
            features, _ = _features(extractor, (images.images(slice(s, s + batch_size)) for s in starts))
            with writing(path) as file:
                file.write(safetensors.torch.save({"features": features}))
        return cls(features, extractor.key)


def distances(
    extractor: FeatureExtractor,
    real: RealStatistics,
    fake: Tensor | Iterable[Tensor] | Callable[[], Iterable[Tensor]],
    *,
    subsets: int = 50,
    subset_size: int = 1000,
    seed: int = 0,
) -> list[Measurement]:
    """`frechet` and `kid` of generated images against real ones. The same for the same input; no global RNG.

    `fake`: batches (n, channels, height, width) in [-1, 1] (what lies beyond is clamped, as saving would), or
    a function that gives them. KID is the mean over `subsets` random subsets of `subset_size` (or of fewer,
    where there are fewer images). Both are NaN where any value is not finite.

    Raises `DataError` where `real` is of another extractor, or either side has fewer than two images.
    """
    if real.extractor_key != extractor.key:
        raise DataError(
            f"real statistics are of {real.extractor_key!r}, and not of {extractor.key!r}: compute them anew"
        )
    batches = fake() if callable(fake) else fake
    features, finite = _features(extractor, [batches] if isinstance(batches, Tensor) else batches)
    samples = len(features)
    if min(samples, len(real.features)) < 2:
        raise DataError(f"{samples} generated and {len(real.features)} real images: two or more of each")
    frechet, kid = math.nan, math.nan
    if finite and real.features.isfinite().all():
        frechet = _frechet(real.features.double(), features.double())
        size = min(subset_size, samples, len(real.features))
        kid = _kernel(real.features.double(), features.double(), subsets, size, seed)
    is_fid = isinstance(extractor, InceptionFeatures)
    return [
        Measurement("frechet", "FID" if is_fid else f"Fréchet distance, {extractor.name}", frechet, samples),
        Measurement("kid", "KID" if is_fid else f"KID, {extractor.name}", kid, samples),
    ]


@torch.no_grad()
def _features(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> tuple[Tensor, bool]:
    """(float32 (n, features) on the CPU, whether images and features are all finite)."""
    found, finite = [torch.empty(0, extractor.num_features)], True
    for batch in _small(batches):
        batch = batch.detach().to(extractor.device, torch.float32)
        features = extractor(batch.clamp(-1.0, 1.0)).cpu()
        finite = finite and bool(batch.isfinite().all()) and bool(features.isfinite().all())
        found.append(features)
    return torch.cat(found), finite


def _small(batches: Iterable[Tensor], most: int = 256) -> Iterator[Tensor]:
    for batch in batches:
        yield from batch.split(most)


class _PassThrough(nn.Module):
    """Hands torchmetrics the features that were computed already, once for both of its metrics."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _frechet(real: Tensor, fake: Tensor) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_PassThrough(real.shape[1]), reset_real_features=False)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    # Rounding can leave the distance of equal sets a hair below zero.
    return max(0.0, float(metric.compute()))


def _kernel(real: Tensor, fake: Tensor, subsets: int, subset_size: int, seed: int) -> float:
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings(), seeded(seed):
        warnings.filterwarnings("ignore", message=".*save all extracted features.*")
        metric = KernelInceptionDistance(_PassThrough(real.shape[1]), subsets=subsets, subset_size=subset_size)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        return float(metric.compute()[0])


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The features kept at `path`, or None where they are absent or damaged."""
    try:
        features = safetensors.torch.load_file(path)["features"]
    except (OSError, safetensors.SafetensorError, KeyError):
        return None
    return features if tuple(features.shape) == shape else None

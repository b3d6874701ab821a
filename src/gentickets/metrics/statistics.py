"""What is known of a set of images in a network's features: gathered in one pass, for all metrics."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gentickets.data import ImageSet
from gentickets.data.cache import cache_folder, content_key, writing
from gentickets.errors import DataError
from gentickets.metrics.features import FeatureExtractor
from gentickets.metrics.frechet import Gaussian, Moments
from gentickets.sealed import Damaged, sealed_tensors, unsealed_tensors

_FORMAT = 3
KEPT = 10_000
"""How many images' own features are kept beside the Gaussian, for what needs more than mean and covariance."""


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Features of `count` images under one extractor.

    `gaussian` is over all of them, None where any value was not finite; `features`, float32 (n, features), are
    those of the first `KEPT`.
    """

    extractor_key: str
    count: int
    gaussian: Gaussian | None
    features: Tensor

    @classmethod
    def of_batches(
        cls, extractor: FeatureExtractor, batches: Tensor | Iterable[Tensor], kept: int = KEPT
    ) -> FeatureStatistics:
        """Of batches (n, channels, height, width) in [-1, 1]; what lies beyond is clamped, as saving would.

        Raises `DataError` for fewer than two images, and for whole numbers, such as pixels from 0 to 255.
        """
        return cls.by_each([extractor], batches, kept)[0]

    @classmethod
    def by_each(
        cls, extractors: Sequence[FeatureExtractor], batches: Tensor | Iterable[Tensor], kept: int = KEPT
    ) -> list[FeatureStatistics]:
        """Of the same batches by several extractors, in one pass over them."""
        gathered = [_Gathered(extractor, kept) for extractor in extractors]
        for batch in _small([batches] if isinstance(batches, Tensor) else batches):
            for one in gathered:
                one.add(batch)
        return [one.statistics() for one in gathered]

    @classmethod
    def of(
        cls,
        extractor: FeatureExtractor,
        images: ImageSet,
        count: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        kept: int = KEPT,
        batch_size: int = 256,
    ) -> FeatureStatistics:
        """Of `images`, or of `count` of them drawn by a fixed seed; from the cache if it has them.

        They are read in an order drawn by that seed, so that the first of their features are a fair draw.
        """
        count = len(images) if count is None else min(count, len(images))
        parts = {
            "format": _FORMAT,
            "data": images.fingerprint,
            "extractor": extractor.key,
            "weights": extractor.weights_hash,
            "count": count,
            "kept": kept,
        }
        path = cache_folder(cache) / "features" / f"real-{content_key(parts)}.safetensors"
        found = _read(path, extractor, count)
        if found is None:
            order = np.random.Generator(np.random.PCG64(0)).permutation(len(images))[:count]
            batches = (images.images(order[s : s + batch_size]) for s in range(0, count, batch_size))
            found = cls.of_batches(extractor, batches, kept)
            _write(path, found)
        return found


class _Gathered:
    """What one extractor has seen so far."""

    def __init__(self, extractor: FeatureExtractor, kept: int):
        self._extractor, self._kept = extractor, kept
        self._moments, self._count, self._finite = Moments(extractor.num_features), 0, True
        self._features = [torch.empty(0, extractor.num_features)]

    @torch.no_grad()
    def add(self, batch: Tensor) -> None:
        if not batch.is_floating_point():
            raise DataError(
                f"images of {batch.dtype}: statistics are of floats in [-1, 1]; pixels / 127.5 - 1 makes them"
            )
        batch = batch.detach().to(self._extractor.device, torch.float32)
        found = self._extractor(batch.clamp(-1.0, 1.0)).cpu()
        self._finite = self._finite and bool(batch.isfinite().all()) and bool(found.isfinite().all())
        self._features.append(found[: max(0, self._kept - self._count)])
        self._count += len(found)
        if self._finite:
            self._moments.add(found)

    def statistics(self) -> FeatureStatistics:
        if self._count < 2:
            raise DataError(f"statistics of {self._count} images: two or more are needed")
        gaussian = self._moments.gaussian() if self._finite else None
        return FeatureStatistics(self._extractor.key, self._count, gaussian, torch.cat(self._features))


def _small(batches: Iterable[Tensor], most: int = 256) -> Iterator[Tensor]:
    for batch in batches:
        yield from batch.split(most)


def _read(path: Path, extractor: FeatureExtractor, count: int) -> FeatureStatistics | None:
    """The statistics kept at `path`, or None where they are absent or damaged."""
    try:
        kept, _ = unsealed_tensors(path.read_bytes())
        gaussian = Gaussian(kept["mean"], kept["root"], count)
        return FeatureStatistics(extractor.key, count, gaussian, kept["features"])
    except (OSError, Damaged, KeyError):
        return None


def _write(path: Path, found: FeatureStatistics) -> None:
    if found.gaussian is None:
        return
    tensors = {"mean": found.gaussian.mean, "root": found.gaussian.root, "features": found.features}
    with writing(path) as file:
        file.write(sealed_tensors(tensors))

"""Every metric of generated images, from one pass of one network over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import torch

from gentickets.errors import DataError
from gentickets.metrics.downstream import class_score
from gentickets.metrics.features import FeatureExtractor
from gentickets.metrics.frechet import frechet_distance
from gentickets.metrics.inception import InceptionFeatures
from gentickets.metrics.kernel import kernel_distance
from gentickets.metrics.manifold import Coverage, K, manifold_coverage
from gentickets.metrics.measurement import Measurement
from gentickets.metrics.statistics import FeatureStatistics

COVERAGE = ("precision", "recall", "density", "coverage")
"""The keys of the metrics of nearest neighbours."""

MOST_NEIGHBOURS = 5_000
"""Nearest neighbours are looked for among so many images of each side at most: the cost grows with their square."""


@dataclass(frozen=True)
class Compared:
    """Generated images beside real ones, in the features of one network.

    `real` are those that the model was not trained on; `train`, those that it was, are for `frechet_train` alone.
    """

    extractor: FeatureExtractor
    fake: FeatureStatistics
    real: FeatureStatistics
    train: FeatureStatistics | None = None

    @property
    def neighbours(self) -> int:
        """Among how many images of each side nearest neighbours are looked for."""
        return min(len(self.fake.features), len(self.real.features), MOST_NEIGHBOURS)

    @cached_property
    def manifold(self) -> Coverage | None:
        """What nearest neighbours say; None where any value was not finite."""
        if not _is_finite(self.fake, self.real):
            return None
        return manifold_coverage(self.real.features[: self.neighbours], self.fake.features[: self.neighbours])


def sample_metrics(
    extractor: FeatureExtractor,
    fake: FeatureStatistics,
    real: FeatureStatistics,
    train: FeatureStatistics | None = None,
    keys: Iterable[str] | None = None,
) -> list[Measurement]:
    """The metrics of `keys` (None: all) of generated images against real ones, in the order of `SAMPLE_METRICS`.

    `real` are those that the model was not trained on; `train`, those that it was, are for `frechet_train` alone.
    Left out are that one without `train`, `inception_score` where the extractor has no head, and nearest
    neighbours where a side has too few images. The same for the same input; no global RNG. NaN where any value was
    not finite. A metric bears Inception's name (FID, KID, Inception Score) for `InceptionFeatures` alone.

    Raises `DataError` for statistics of another extractor, and for a Fréchet distance of fewer images than features:
    the smaller their number, the larger it is, and below that it is of their number more than of the images.
    """
    for statistics in (fake, real, *([train] if train else [])):
        if statistics.extractor_key != extractor.key:
            raise DataError(
                f"statistics are of {statistics.extractor_key!r}, not of {extractor.key!r}: compute them anew"
            )
    wanted = set(SAMPLE_METRICS if keys is None else keys)
    compared = Compared(extractor, fake, real, train)
    found = (metric(compared) for key, metric in SAMPLE_METRICS.items() if key in wanted)
    return [one for one in found if one is not None]


def _is_finite(*sides: FeatureStatistics) -> bool:
    return all(side.gaussian is not None for side in sides)


def _frechet(compared: Compared) -> Measurement:
    return _distance("frechet", compared.extractor, compared.fake, compared.real, "")


def _frechet_train(compared: Compared) -> Measurement | None:
    if compared.train is None:
        return None
    return _distance("frechet_train", compared.extractor, compared.fake, compared.train, " to the training images")


def _distance(
    key: str, extractor: FeatureExtractor, fake: FeatureStatistics, real: FeatureStatistics, to: str
) -> Measurement:
    value = math.nan
    if (few := min(fake.count, real.count)) < extractor.num_features:
        raise DataError(f"{key} of {few} images: fewer than the {extractor.num_features} {extractor.name}; take kid")
    if fake.gaussian is not None and real.gaussian is not None:
        value = frechet_distance(fake.gaussian, real.gaussian)
    fid = isinstance(extractor, InceptionFeatures)
    label = f"FID{to}" if fid else f"Fréchet distance{to}, {extractor.name}"
    return Measurement(key, f"{label} (n = {fake.count:,} against {real.count:,})", value, fake.count)


def _kid(compared: Compared) -> Measurement:
    value, deviation = math.nan, None
    extractor, fake, real = compared.extractor, compared.fake, compared.real
    if _is_finite(fake, real):
        value, spread = kernel_distance(real.features, fake.features)
        # Where every draw is all there is, its spread is that of rounding, and no error of the estimate.
        deviation = None if len(real.features) == len(fake.features) <= 1000 else spread
    label = "KID" if isinstance(extractor, InceptionFeatures) else f"KID, {extractor.name}"
    return Measurement("kid", label, value, len(fake.features), deviation=deviation)


@torch.no_grad()
def _score(compared: Compared) -> Measurement | None:
    extractor, fake = compared.extractor, compared.fake
    if extractor.head is None:
        return None
    value, deviation = math.nan, None
    if _is_finite(fake):
        logits = extractor.head(fake.features.to(extractor.device)).cpu()
        # An image a class in each part at least: in a part of one image nothing can differ, and the score would be 1.
        splits = max(1, min(10, len(logits) // logits.shape[1]))
        value, spread = class_score(logits, splits)
        deviation = spread if splits > 1 else None
    label = f"classifier score (exp of mutual information, network: {extractor.network})"
    if isinstance(extractor, InceptionFeatures):
        label = "Inception Score"
    samples = len(fake.features)
    return Measurement("inception_score", label, value, samples, lower_is_better=False, deviation=deviation)


def _of_neighbours(key: str) -> Callable[[Compared], Measurement | None]:
    def metric(compared: Compared) -> Measurement | None:
        if compared.neighbours <= K:
            return None
        value = math.nan if compared.manifold is None else getattr(compared.manifold, key)
        label = f"{key} (k = {K}), {compared.extractor.name}"
        return Measurement(key, label, value, compared.neighbours, lower_is_better=False)

    return metric


SAMPLE_METRICS: Mapping[str, Callable[[Compared], Measurement | None]] = MappingProxyType(
    {
        "frechet": _frechet,
        "kid": _kid,
        "frechet_train": _frechet_train,
        "inception_score": _score,
        **{key: _of_neighbours(key) for key in COVERAGE},
    }
)
"""Key → a metric of generated images (None where they do not allow it), in the order in which they are measured."""

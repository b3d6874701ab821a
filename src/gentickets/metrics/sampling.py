"""Every metric of generated images, from one pass of one network over them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from gentickets.errors import DataError
from gentickets.metrics.downstream import class_score
from gentickets.metrics.features import FeatureExtractor
from gentickets.metrics.frechet import frechet_distance
from gentickets.metrics.inception import InceptionFeatures
from gentickets.metrics.kernel import kernel_distance
from gentickets.metrics.manifold import K, manifold_coverage
from gentickets.metrics.measurement import Measurement
from gentickets.metrics.statistics import FeatureStatistics

COVERAGE = ("precision", "recall", "density", "coverage")
SAMPLE_METRICS = ("frechet", "kid", "frechet_train", "inception_score", *COVERAGE)
"""The keys, in the order in which they are measured."""

MOST_NEIGHBOURS = 5_000
"""Nearest neighbours are looked for among so many images of each side at most: the cost grows with their square."""


def sample_metrics(
    extractor: FeatureExtractor,
    fake: FeatureStatistics,
    real: FeatureStatistics,
    train: FeatureStatistics | None = None,
    keys: Iterable[str] = SAMPLE_METRICS,
) -> list[Measurement]:
    """The metrics of `keys` of generated images against real ones, in the order of `SAMPLE_METRICS`.

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
    wanted = set(keys)
    found = []
    if "frechet" in wanted:
        found.append(_frechet("frechet", extractor, fake, real, ""))
    if "kid" in wanted:
        found.append(_kid(extractor, fake, real))
    if "frechet_train" in wanted and train is not None:
        found.append(_frechet("frechet_train", extractor, fake, train, " to the training images"))
    if "inception_score" in wanted and extractor.head is not None:
        found.append(_score(extractor, fake))
    return found + _coverage(extractor, fake, real, wanted)


def _is_finite(*sides: FeatureStatistics) -> bool:
    return all(side.gaussian is not None for side in sides)


def _frechet(
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


def _kid(extractor: FeatureExtractor, fake: FeatureStatistics, real: FeatureStatistics) -> Measurement:
    value, deviation = math.nan, None
    if _is_finite(fake, real):
        value, spread = kernel_distance(real.features, fake.features)
        # Where every draw is all there is, its spread is that of rounding, and no error of the estimate.
        deviation = None if len(real.features) == len(fake.features) <= 1000 else spread
    label = "KID" if isinstance(extractor, InceptionFeatures) else f"KID, {extractor.name}"
    return Measurement("kid", label, value, len(fake.features), deviation=deviation)


@torch.no_grad()
def _score(extractor: FeatureExtractor, fake: FeatureStatistics) -> Measurement:
    value, deviation = math.nan, None
    if _is_finite(fake):
        assert extractor.head is not None
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


def _coverage(
    extractor: FeatureExtractor, fake: FeatureStatistics, real: FeatureStatistics, wanted: set[str]
) -> list[Measurement]:
    keys = [key for key in COVERAGE if key in wanted]
    count = min(len(fake.features), len(real.features), MOST_NEIGHBOURS)
    if not keys or count <= K:
        return []
    values = dict.fromkeys(keys, math.nan)
    if _is_finite(fake, real):
        measured = manifold_coverage(real.features[:count], fake.features[:count])
        values = {key: getattr(measured, key) for key in keys}
    return [
        Measurement(key, f"{key} (k = {K}), {extractor.name}", value, count, lower_is_better=False)
        for key, value in values.items()
    ]

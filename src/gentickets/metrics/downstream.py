"""What a classifier makes of generated and of reconstructed images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gentickets.data import ImageSet, batch_of
from gentickets.errors import DataError
from gentickets.metrics.classifier import Classifier
from gentickets.metrics.measurement import Measurement, mean_over_networks
from gentickets.metrics.reconstruction import reconstructed


@torch.no_grad()
def downstream_accuracy(
    classifiers: Sequence[Classifier],
    reconstruct: Callable[[Any], Tensor],
    images: ImageSet,
    batch_size: int = 256,
    labelled: bool = False,
) -> Measurement:
    """How often classifiers of the data set read the right label off a reconstruction, over all of `images`: the mean.

    `reconstruct` maps a batch (n, channels, height, width), on the classifiers' device, to one of the same shape; with
    `labelled`, it is given `Labelled` images.
    They were trained on images as they are, and their accuracy on those is in the label. NaN where a reconstruction is
    not finite. Raises `DataError` for images without labels, and where the shape differs.
    """
    if images.labels is None:
        raise DataError(f"{images.name!r} ({images.split}) has no labels: no classifier can be right on it")
    right, finite, device = [0] * len(classifiers), True, classifiers[0].device
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        given = reconstructed(reconstruct, batch_of(images, rows, device, labelled)).to(device, torch.float32)
        finite = finite and bool(given.isfinite().all())
        for index, classifier in enumerate(classifiers):
            right[index] += int((classifier.labels(given.clamp(-1.0, 1.0)) == images.labels[rows]).sum())
    originals = f"{statistics.fmean(one.accuracy for one in classifiers):.1%} on the originals"
    label = f"accuracy of the {classifiers[0].network} on reconstructions ({originals})"
    values = [count / len(images) if finite else math.nan for count in right]
    return mean_over_networks(
        [Measurement("downstream_accuracy", label, value, len(images), lower_is_better=False) for value in values]
    )


def class_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp of the mutual information between image and class, in [1, classes]: the Inception Score's formula.

    Salimans et al. (2016), exp E KL(p(y | x) ‖ p(y)), with p(y) the mean over a split. `logits` are
    (n, classes). Mean and standard deviation over `splits` consecutive parts (fewer where images are fewer).
    """
    scores = []
    for part in logits.double().tensor_split(min(splits, len(logits))):
        log = part.log_softmax(dim=1)
        marginal = log.exp().mean(0)
        divergences = (log.exp() * log).sum(1) - torch.xlogy(log.exp(), marginal).sum(1)
        scores.append(divergences.mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0))

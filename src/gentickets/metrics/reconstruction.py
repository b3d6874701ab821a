"""How well an autoencoder gives back images that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gentickets.data import Batch, ImageSet, Labelled, batch_of
from gentickets.errors import DataError
from gentickets.metrics.measurement import Measurement


def reconstructed(reconstruct: Callable[[Any], Tensor], batch: Batch) -> Tensor:
    """What is given back for a batch. Raises `DataError` where that is of another shape than the images."""
    given, images = reconstruct(batch), batch.images if isinstance(batch, Labelled) else batch
    if given.shape != images.shape:
        raise DataError(f"reconstruction of {tuple(images.shape)} images is {tuple(given.shape)}: same shape, please")
    return given


@torch.no_grad()
def reconstruction_mse(
    reconstruct: Callable[[Any], Tensor],
    images: ImageSet,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    labelled: bool = False,
) -> Measurement:
    """The mean squared error per pixel and channel, in the [-1, 1] scale, over all of `images`.

    `reconstruct` maps a batch (n, channels, height, width) to one of the same shape; put the model in the
    mode that it is to be judged in; with `labelled`, it is given `Labelled` images. Raises `DataError` where the shape
    differs.
    """
    total = 0.0
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        batch = images.images(rows, device)
        given = reconstructed(reconstruct, batch_of(images, rows, device, labelled))
        total += (given.to(batch.device).double() - batch.double()).square().sum().item()
    value = total / images.pixels.size
    return Measurement("reconstruction_mse", f"reconstruction MSE, {images.split} images", value, len(images))

"""How well an autoencoder gives back images that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gentickets.data import ImageSet, batch_of
from gentickets.errors import DataError
from gentickets.metrics.measurement import Measurement


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
        given = reconstruct(batch_of(images, rows, device, labelled))
        if given.shape != batch.shape:
            raise DataError(
                f"reconstruction of {tuple(batch.shape)} images is {tuple(given.shape)}: same shape, please"
            )
        total += (given.to(batch.device).double() - batch.double()).square().sum().item()
    value = total / images.pixels.size
    return Measurement("reconstruction_mse", f"reconstruction MSE, {images.split} images", value, len(images))

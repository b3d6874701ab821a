"""The convolutional towers told a class: labels as the second argument, and the towers as they are.

An encoder or a discriminator sees its class as one more channel of the image, a learned plane (Mirza & Osindero 2014);
a decoder or a generator adds a learned vector to its latents, so that each class has a prior of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class OfClass(nn.Module):
    """(images, labels) → what `tower` gives for the images with the plane of their class as their last channel."""

    def __init__(self, tower: nn.Module, classes: int, size: int):
        super().__init__()
        self.size = size
        self.plane = nn.Embedding(classes, size * size)
        self.tower = tower

    def forward(self, images: Tensor, labels: Tensor) -> Any:
        plane = self.plane(labels).unflatten(1, (1, self.size, self.size))
        return self.tower(torch.cat([images, plane], dim=1))


class FromClass(nn.Module):
    """(latents, labels) → what `tower` gives for the latents moved by the vector of their class."""

    def __init__(self, tower: nn.Module, classes: int, latent: int):
        super().__init__()
        self.shift = nn.Embedding(classes, latent)
        self.tower = tower

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return self.tower(latents + self.shift(labels))

"""Networks whose features tell image distributions apart.

Only `inception.py` gives Inception's. All features are named after what they come from, and a distance in others
is never called FID.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gentickets.errors import DataError


class FeatureExtractor(nn.Module):
    """From images, float (n, channels, height, width) in [-1, 1], to float32 (n, `num_features`).

    `name` is for people ("digits-classifier features"), `key` for tables ("digits_classifier"). `head` goes from
    features to the logits of classes, None where there are none; `accuracy` is that of a classifier on held-out
    images, None for others. Frozen: always in evaluation mode.
    """

    accuracy: float | None = None

    def __init__(
        self,
        name: str,
        key: str,
        num_features: int,
        body: nn.Module,
        channels: int | None = None,
        head: nn.Module | None = None,
    ):
        super().__init__()
        self.name, self.key, self.num_features, self.channels = name, key, num_features, channels
        self.body = body.requires_grad_(False)
        self.head = None if head is None else head.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureExtractor:
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Raises `DataError` for images with another number of channels."""
        if self.channels is not None and images.shape[1] != self.channels:
            raise DataError(f"{self.name} are of {self.channels}-channel images: these have {images.shape[1]}")
        return self.body(images).flatten(1).float()

    @property
    def network(self) -> str:
        """The network's name, in words: "digits-classifier"."""
        return self.name.removesuffix(" features")

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def weights_hash(self) -> str:
        """SHA-256 over the names and numbers of what makes the features."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.body.state_dict().items()):
            digest.update(f"body.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator at `seed`, and as before on leaving. Devices' generators are not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def random_features(channels: int, seed: int = 0) -> FeatureExtractor:
    """128 features of a convolutional net with fixed random weights: for images that have no labels."""
    with seeded(seed):
        body = _RandomConvolutions(channels)
    return FeatureExtractor("random-convolution features", of_seed("random_convolution", seed), 128, body, channels)


def of_seed(key: str, seed: int) -> str:
    """The key of one of several networks that differ by their seed alone."""
    return f"{key}_{seed}" if seed else key


class _RandomConvolutions(nn.Module):
    """Means over places of three random layers, at three scales."""

    def __init__(self, channels: int):
        super().__init__()
        widths = (channels, 32, 32, 64)
        layers = [nn.Conv2d(a, b, 3, 1, 1) for a, b in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        found, x = [], images
        for layer in self.layers:
            x = torch.relu(layer(x))
            found.append(x.mean(dim=(2, 3)))
            if min(x.shape[2:]) > 1:
                x = nn.functional.avg_pool2d(x, 2)
        return torch.cat(found, dim=1)

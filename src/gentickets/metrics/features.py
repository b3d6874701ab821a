"""Networks whose features tell image distributions apart.

Only `inception.py` gives Inception's. The features here are named after what they come from, and a distance
in them is never called FID.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gentickets.data import Batches, ImageSet
from gentickets.data.cache import cache_folder, content_key, writing
from gentickets.errors import DataError

# Raise it where the same images would now give another network.
_FORMAT = 1
_SMALL = 16  # images up to this side get the small classifier


class FeatureExtractor(nn.Module):
    """From images, float (n, channels, height, width) in [-1, 1], to float32 (n, `num_features`).

    `name` is for people ("digits-classifier features"), `key` for tables ("digits_classifier"); `accuracy` is
    that of the classifier on held-out images, None where there is none. Frozen: always in evaluation mode.
    """

    accuracy: float | None = None

    def __init__(self, name: str, key: str, num_features: int, body: nn.Module, channels: int | None = None):
        super().__init__()
        self.name, self.key, self.num_features, self.channels = name, key, num_features, channels
        self.body = body.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureExtractor:
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Raises `DataError` for images with another number of channels."""
        if self.channels is not None and images.shape[1] != self.channels:
            raise DataError(f"{self.name} are of {self.channels}-channel images: these have {images.shape[1]}")
        return self.body(images).flatten(1).float()

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def weights_hash(self) -> str:
        """SHA-256 over the network's names and numbers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator at `seed`, and as before on leaving. Devices' generators are not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def classifier_features(
    train: ImageSet, held_out: ImageSet | None = None, cache: str | os.PathLike[str] | None = None
) -> FeatureExtractor:
    """Features of a small classifier, trained once on the labels of `train` and then read from the cache.

    64 features for images up to 16 x 16 (seconds to train), 128 for larger ones (a minute or two). Its
    accuracy is measured on `held_out`; without that, a tenth of `train` is kept out of training for it.
    Images without labels, or with one class only, get `random_features` instead: look at `.name`.
    """
    classes = np.array([]) if train.labels is None else np.unique(train.labels)
    if len(classes) < 2:
        return random_features(train.shape[0])
    if held_out is None or held_out.labels is None:
        train, held_out = _split(train)
    path = cache_folder(cache) / "features" / f"classifier-{_classifier_key(train, held_out)}.safetensors"
    wide = max(train.shape[1:]) > _SMALL
    steps = (600 if train.shape[0] == 3 else 250) if wide else 150
    with seeded(0):
        network = _Classifier(train.shape, 128 if wide else 64, len(classes))
    accuracy = _read_network(path, network)
    if accuracy is None:
        _fit(network, train, classes, steps, batch_size=128 if wide else 64)
        accuracy = _accuracy(network, held_out, classes)
        with writing(path) as file:
            meta = {"accuracy": json.dumps(accuracy)}
            file.write(safetensors.torch.save(network.state_dict(), metadata=meta))
    slug = re.sub(r"[^a-z0-9]+", "_", train.name.lower()).strip("_")
    found = FeatureExtractor(
        f"{train.name}-classifier features",
        f"{slug}_classifier",
        network.width,
        network.trunk,
        train.shape[0],
    )
    found.accuracy = accuracy
    return found


def random_features(channels: int) -> FeatureExtractor:
    """128 features of a convolutional net with fixed random weights: for images that have no labels."""
    with seeded(0):
        body = _RandomConvolutions(channels)
    return FeatureExtractor("random-convolution features", "random_convolution", 128, body, channels)


def _split(train: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Nine tenths to train on and one tenth to judge by, drawn by a fixed seed."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(train))
    cut = max(1, len(train) // 10)
    assert train.labels is not None
    parts = [
        ImageSet.from_arrays(train.name, train.pixels[rows], train.labels[rows], train.split)
        for rows in (np.sort(order[cut:]), np.sort(order[:cut]))
    ]
    return parts[0], parts[1]


def _classifier_key(train: ImageSet, held_out: ImageSet) -> str:
    return content_key({"format": _FORMAT, "train": train.fingerprint, "held_out": held_out.fingerprint})


class _Classifier(nn.Module):
    """A convolutional trunk that ends in a mean over places (the features), and one linear layer."""

    def __init__(self, shape: tuple[int, int, int], width: int, classes: int):
        super().__init__()
        channels, side = shape[0], max(shape[1:])
        narrow, layers = width // 2, []
        inputs = channels
        while side > _SMALL:
            layers += _convolution(inputs, narrow, stride=2)
            inputs, side = narrow, (side + 1) // 2
        if inputs == channels:
            layers += _convolution(inputs, narrow)
        layers += _convolution(narrow, width, stride=2)
        layers += _convolution(width, width)
        layers += _convolution(width, width, stride=2)
        layers += _convolution(width, width)
        self.width = width
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


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


def _read_network(path: Path, network: _Classifier) -> float | None:
    """The accuracy kept with the network at `path`, which is loaded; None where it is absent or damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no iterator
            accuracy = float(json.loads(file.metadata()["accuracy"]))
        network.load_state_dict(state)
    except (OSError, safetensors.SafetensorError, RuntimeError, KeyError, ValueError, TypeError):
        return None
    return accuracy


def _fit(network: _Classifier, train: ImageSet, classes: np.ndarray, steps: int, batch_size: int) -> None:
    """A fixed number of steps, whatever the size of the set: the cost is bounded and the result repeats."""
    assert train.labels is not None
    labels = torch.from_numpy(np.searchsorted(classes, train.labels))
    batches = Batches(train, batch_size, seed=0, flip=train.shape[0] == 3)
    with torch.inference_mode(False), torch.enable_grad():
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
        network.train()
        for step in range(steps):
            wanted = labels[torch.from_numpy(batches.indices(step))]
            loss = nn.functional.cross_entropy(network(batches.at(step)), wanted, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def _accuracy(network: _Classifier, images: ImageSet, classes: np.ndarray) -> float:
    right = 0
    assert images.labels is not None
    for start in range(0, len(images), 256):
        rows = slice(start, start + 256)
        guesses = classes[network(images.images(rows)).argmax(dim=1).numpy()]
        right += int((guesses == images.labels[rows]).sum())
    return right / len(images)

"""A classifier of the images at hand: its features, its probabilities, and what it reads off an image."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.data import Batches, ImageSet
from gentickets.data.cache import cache_folder, content_key, writing
from gentickets.metrics.features import FeatureExtractor, of_seed, random_features, seeded
from gentickets.models.resnet import basic_block
from gentickets.sealed import Damaged, sealed_tensors, unsealed_tensors

# Raise it where the same images would now give another network.
_FORMAT = 2
_SMALL = 16  # images up to this side get the smaller network, and fewer steps

Network = Literal["small", "resnet18"]


class Classifier(FeatureExtractor):
    """Features of a classifier, and its head. `classes`: the labels that it knows, ascending; `accuracy` is known."""

    accuracy: float

    def __init__(self, name: str, key: str, network: _Network, channels: int, classes: np.ndarray, accuracy: float):
        super().__init__(name, key, network.width, network.trunk, channels, network.head)
        self.classes, self.accuracy = classes, accuracy

    def labels(self, images: Tensor) -> np.ndarray:
        """The most probable class of each image in (n, channels, height, width), int64 (n,)."""
        assert self.head is not None
        return self.classes[self.head(self(images)).argmax(dim=1).cpu().numpy()]


def has_classes(images: ImageSet) -> bool:
    """True where images have labels, of two classes or more."""
    return images.labels is not None and len(np.unique(images.labels)) > 1


def classifier_features(
    train: ImageSet,
    held_out: ImageSet | None = None,
    cache: str | os.PathLike[str] | None = None,
    network: Network = "small",
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> FeatureExtractor:
    """A classifier, trained once on the labels of `train` and then read from the cache: a `Classifier`, on the CPU.

    "small": 64 features for images up to 16 x 16 (seconds to train), 128 for larger ones (a minute or two); always
    trained on the CPU, so that it is the same wherever it is trained. "resnet18": ResNet-18 (He et al. 2016) with
    the stem of their CIFAR networks, 512 features, trained on `device` (a few minutes on a GPU, hours on a CPU).
    The accuracy is measured on `held_out`; without that, a tenth of `train` is kept out of training for it. `seed`:
    of its first weights and the order of its images. What differs by it alone, distances should not depend on: measure
    by several and take the mean.
    Images without labels, or with one class only, get `random_features` instead: look at `.name`.
    """
    if train.labels is None or not has_classes(train):
        return random_features(train.shape[0], seed)
    classes = np.unique(train.labels)
    if held_out is None or held_out.labels is None:
        train, held_out = _split(train)
    path = cache_folder(cache) / "features" / f"classifier-{_key(train, held_out, network, seed)}.safetensors"
    built = build(network, train.shape, len(classes), seed)
    accuracy = _read(path, built)
    if accuracy is None:
        built.to("cpu" if network == "small" else device)
        _fit(built, train, classes, *effort(network, train.shape), seed)
        accuracy = _accuracy(built, held_out, classes)
        with writing(path) as file:
            file.write(sealed_tensors(built.cpu().state_dict(), {"accuracy": json.dumps(accuracy)}))
    word = "classifier" if network == "small" else network
    slug = re.sub(r"[^a-z0-9]+", "_", train.name.lower()).strip("_")
    key = of_seed(f"{slug}_{word}", seed)
    return Classifier(f"{train.name}-{word} features", key, built, train.shape[0], classes, accuracy)


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


def _key(train: ImageSet, held_out: ImageSet, network: Network, seed: int) -> str:
    parts = {"format": _FORMAT, "train": train.fingerprint, "held_out": held_out.fingerprint}
    # Left out where they are what they were before they could be chosen.
    parts |= {"network": network} if network != "small" else {}
    return content_key(parts | ({"seed": seed} if seed else {}))


# -- the networks ---------------------------------------------------------------------------------------------


class _Network(nn.Module):
    """A convolutional trunk that ends in a mean over places (the `width` features), and one linear layer."""

    def __init__(self, layers: list[nn.Module], width: int, classes: int):
        super().__init__()
        self.width = width
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


def build(network: Network, shape: tuple[int, int, int], classes: int, seed: int = 0) -> _Network:
    """The classifier of images of this shape before it is trained, its weights the same for the same seed."""
    with seeded(seed):
        if network == "resnet18":
            return _Network(_resnet18(shape[0]), 512, classes)
        width = 64 if max(shape[1:]) <= _SMALL else 128
        return _Network(_small(shape, width), width, classes)


def _small(shape: tuple[int, int, int], width: int) -> list[nn.Module]:
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
    return layers + _convolution(width, width)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _resnet18(channels: int) -> list[nn.Module]:
    """Two residual blocks at each of four widths; the stem neither strides nor pools."""
    layers: list[nn.Module] = _convolution(channels, 64)
    inputs = 64
    for width in (64, 128, 256, 512):
        layers += [*basic_block(inputs, width, stride=1 if width == 64 else 2), *basic_block(width, width)]
        inputs = width
    return layers


# -- training -------------------------------------------------------------------------------------------------


def effort(network: Network, shape: tuple[int, int, int]) -> tuple[int, int]:
    """How long a classifier of images of this shape is trained: (steps, batch size)."""
    if max(shape[1:]) <= _SMALL:
        return (150 if network == "small" else 300), 64
    if network == "resnet18":
        return 4000, 128
    return (600 if shape[0] == 3 else 250), 128


def _read(path: Path, network: _Network) -> float | None:
    """The accuracy kept with the network at `path`, which is loaded; None where it is absent or damaged."""
    try:
        state, metadata = unsealed_tensors(path.read_bytes())
        accuracy = float(json.loads(metadata["accuracy"]))
        network.load_state_dict(state)
    except (OSError, Damaged, RuntimeError, KeyError, ValueError, TypeError):
        return None
    return accuracy


def _fit(network: _Network, train: ImageSet, classes: np.ndarray, steps: int, batch_size: int, seed: int) -> None:
    """A fixed number of steps, whatever the size of the set: the cost is bounded and the result repeats."""
    assert train.labels is not None
    device = network.head.weight.device
    labels = torch.from_numpy(np.searchsorted(classes, train.labels))
    batches = Batches(train, batch_size, seed=seed, flip=train.shape[0] == 3, device=device)
    with torch.inference_mode(False), torch.enable_grad():
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
        network.train()
        for step in range(steps):
            wanted = labels[torch.from_numpy(batches.indices(step))].to(device)
            loss = F.cross_entropy(network(batches.at(step)), wanted, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def _accuracy(network: _Network, images: ImageSet, classes: np.ndarray) -> float:
    right, device = 0, network.head.weight.device
    assert images.labels is not None
    for start in range(0, len(images), 256):
        rows = slice(start, start + 256)
        guesses = classes[network(images.images(rows, device)).argmax(dim=1).cpu().numpy()]
        right += int((guesses == images.labels[rows]).sum())
    return right / len(images)

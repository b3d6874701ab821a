"""The one network whose Fréchet distance may be called FID: Inception v3, weights of December 2015.

A file of weights may be a stranger's, named by a stranger's recipe. TorchScript is a program, which can overwrite any
file of whoever loads it, before it is ever called: it is loaded only where it is the published one, bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.data.cache import cache_folder
from gentickets.errors import DataError
from gentickets.metrics.features import FeatureExtractor
from gentickets.metrics.inception_net import SIDE, FIDInception

_FILE = "pt_inception-2015-12-05-6726825d.pth"
_ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{_FILE}"
_MEND = f"name a local {_FILE} (of pytorch-fid or torch-fidelity) or inception-2015-12-05.pt (TorchScript)"

PUBLISHED = {
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
}
"""SHA-256 of the two files that hold the weights of December 2015: the port's state dict, and the TorchScript."""


class InceptionFeatures(FeatureExtractor):
    """Inception's 2,048 pool features, by published weights. No other extractor may give a number called FID."""


def inception_features(weights: str | Path | None = None) -> FeatureExtractor:
    """Inception's pool features; what a distance in them may be called depends on the weights.

    `weights`: a state dict as pytorch-fid and torch-fidelity publish it (2,048 features and 1,008 logits; images
    are resized to 299 x 299 as pytorch-fid does, bilinear without antialiasing), or the published TorchScript file,
    which resizes for itself (features only). None downloads the state dict once, into the cache. A state dict that is
    not bit for bit the published one gives features under another name, and no FID.

    Nothing in the file is run, unless its SHA-256 is that of the published TorchScript. Raises `DataError`, one line,
    for a file that is absent or neither of these, or a download that fails.
    """
    path = _downloaded() if weights is None else Path(weights)
    if not path.is_file():
        raise DataError(f"inception weights: {path} does not exist: {_MEND}")
    content = path.read_bytes()  # once, so that what was checked is what is loaded
    digest = hashlib.sha256(content).hexdigest()
    body: nn.Module
    head: nn.Module | None = None
    if _is_program(content):
        body = _script(content, digest, path)
    else:
        network = _network(content, path)
        body, head = _Resized(network), _Logits(network)
    if digest in PUBLISHED:
        return InceptionFeatures("Inception features", "inception", 2048, body, head=head)
    key = f"inception_{digest[:8]}"
    return FeatureExtractor(f"Inception-v3 features of weights {digest[:8]}", key, 2048, body, head=head)


def _bytes(images: Tensor) -> Tensor:
    """[-1, 1] → uint8 RGB, as a saved image would have it: grey is repeated, and nothing is resized here."""
    pixels = ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


class _ScriptBody(nn.Module):
    def __init__(self, script: nn.Module):
        super().__init__()
        self.script = script

    def forward(self, images: Tensor) -> Tensor:
        return self.script(_bytes(images), return_features=True)


class _Resized(nn.Module):
    """The network on images of any size."""

    def __init__(self, network: FIDInception):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        pixels = _bytes(images).float() / 255
        pixels = F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.network(2 * pixels - 1)


class _Logits(nn.Module):
    """1,008 logits of the features, without the bias: so Salimans et al. (2016) computed the Inception Score."""

    def __init__(self, network: FIDInception):
        super().__init__()
        self.fc = network.fc

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.fc.weight)


def _is_program(content: bytes) -> bool:
    """Whether torch would take the file for a program rather than for weights."""
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return False
    return any(name.endswith("constants.pkl") or "/code/" in f"/{name}" for name in names)


def _script(content: bytes, digest: str, path: Path) -> nn.Module:
    """The published TorchScript module. Raises `DataError` for any other."""
    if digest not in PUBLISHED:
        raise DataError(
            f"inception weights: {path} is a TorchScript program and not the published one (SHA-256 {digest[:8]}…): "
            f"it could do anything when it is loaded; {_MEND}"
        )
    return _ScriptBody(torch.jit.load(io.BytesIO(content), map_location="cpu").eval())


def _network(content: bytes, path: Path) -> FIDInception:
    """The network with the weights of the state dict in a file, which is opened without running what is in it."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:80]
        raise DataError(f"inception weights: {path} cannot be read ({reason}): {_MEND}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"inception weights: {path} holds no state dict: {_MEND}")
    network = FIDInception()
    network.load(state, f"inception weights: {path}")
    return network


def _downloaded() -> Path:
    """The port's state dict in the cache; fetched, and checked by its hash, where it is not there yet."""
    path = cache_folder() / "features" / _FILE
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(_ADDRESS, str(path), hash_prefix="6726825d", progress=False)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:80]
            raise DataError(f"inception weights: download failed ({reason}): {_MEND}") from error
    return path

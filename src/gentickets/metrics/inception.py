"""The one network whose Fréchet distance may be called FID: Inception v3, weights of December 2015."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.errors import DataError
from gentickets.metrics.features import FeatureExtractor

_MEND = (
    "name a local inception-2015-12-05.pt (TorchScript), or pip install 'gentickets[inception]' "
    "and name its weights file or let it fetch them"
)


class InceptionFeatures(FeatureExtractor):
    """Inception's 2,048 pool features. The only extractor that may give a number called FID."""


def inception_features(weights: str | Path | None = None) -> FeatureExtractor:
    """True Inception features: of a local TorchScript file, or through the optional package `torch_fidelity`.

    `weights`: the TorchScript file, or a weights file for `torch_fidelity`; None lets that package fetch its
    own. Raises `DataError`, one line, where neither works.
    """
    if weights is not None and not Path(weights).is_file():
        raise DataError(f"inception weights: {weights} does not exist: {_MEND}")
    body = None if weights is None else _script(Path(weights))
    if body is None:
        body = _FidelityBody(_fidelity(weights))
    return InceptionFeatures("Inception features", "inception", 2048, body)


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


class _FidelityBody(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(_bytes(images))[0]


def _script(path: Path) -> nn.Module | None:
    """The TorchScript module at `path`, or None where it is none."""
    try:
        return _ScriptBody(torch.jit.load(path, map_location="cpu").eval())
    except RuntimeError:
        return None


def _fidelity(weights: str | Path | None) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        what = "no weights are named" if weights is None else f"{weights} is no TorchScript file"
        raise DataError(f"inception weights: {what}, and torch_fidelity is not installed: {_MEND}") from error
    try:
        if weights is not None:
            # That package unpickles the file without a guard: let torch's own refuse a hostile file first.
            torch.load(weights, map_location="cpu", weights_only=True)
        path = None if weights is None else str(weights)
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    except Exception as error:  # a download or an unpickling can fail in any way
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"inception weights: {weights or 'download'} failed ({reason}): {_MEND}") from error

"""Judging a trained model: every metric that its objective allows, on held-out images, and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gentickets.data import ImageSet
from gentickets.errors import RecipeError
from gentickets.lab.recipe import EvaluationPart
from gentickets.metrics import (
    FeatureExtractor,
    Measurement,
    RealStatistics,
    classifier_features,
    distances,
    inception_features,
    reconstruction_mse,
)
from gentickets.objectives import ELBO, Objective, Reconstructs, Samples

_SAMPLING_SEED = 20_210_202  # the same latents for every model, so that levels differ by their weights alone
_BATCH = 256
_ROWS, _COLUMNS = 6, 6


class Judge:
    """Measures models of one objective against one held-out set. Reads nothing but the model, changes nothing in it.

    Raises `RecipeError` where the recipe's primary metric is none that the objective allows.
    """

    def __init__(
        self,
        objective: Objective,
        train: ImageSet,
        held_out: ImageSet,
        part: EvaluationPart,
        device: str | torch.device = "cpu",
    ):
        self.objective, self.held_out, self.part = objective, held_out, part
        self.device = torch.device(device)
        self.extractor = self._extractor(train)
        if self.extractor is not None:
            self.real = RealStatistics.of(self.extractor, held_out)
        self.primary = part.primary or self.keys[0]
        if self.primary not in self.keys:
            raise RecipeError(f"evaluation.primary={self.primary!r} is none of {', '.join(self.keys)}")

    def _extractor(self, train: ImageSet) -> FeatureExtractor | None:
        if self.part.features == "none" or not isinstance(self.objective, Samples):
            return None
        if self.part.features == "inception":
            extractor = inception_features(self.part.inception_weights)
        else:
            extractor = classifier_features(train, self.held_out)
        return extractor.to(self.device).eval()

    @property
    def keys(self) -> list[str]:
        """The metrics that will be measured; the first is the default primary one."""
        keys = []
        if isinstance(self.objective, ELBO):
            keys.append("bits_per_dimension")
        if self.extractor is not None:
            keys += ["frechet", "kid"]
        if isinstance(self.objective, Reconstructs):
            keys.append("reconstruction_mse")
        if not keys:
            raise RecipeError("evaluation.features=none leaves nothing to measure for this objective")
        return keys

    @torch.no_grad()
    def measure(self, model: nn.Module) -> list[Measurement]:
        """Every metric, in the model's eval mode."""
        model.to(self.device).eval()
        found: list[Measurement] = []
        objective = self.objective
        if isinstance(objective, ELBO):
            found.append(self._bits_per_dimension(objective, model))
        if self.extractor is not None and isinstance(objective, Samples):
            found += distances(self.extractor, self.real, self._samples(objective, model))
        if isinstance(objective, Reconstructs):
            found.append(
                reconstruction_mse(
                    lambda images: objective.reconstruct(model, images), self.held_out, device=self.device
                )
            )
        return found

    def _bits_per_dimension(self, objective: ELBO, model: nn.Module) -> Measurement:
        rng = self._rng()
        total = 0.0
        for start in range(0, len(self.held_out), _BATCH):
            images = self.held_out.images(np.arange(start, min(start + _BATCH, len(self.held_out))), self.device)
            total += float(objective.bits_per_dimension(model, images, rng).sum())
        name = "negative ELBO, bits per dimension, held-out images"
        label = name if objective.likelihood == "gaussian" else f"{name} (Bernoulli cross-entropy)"
        return Measurement("bits_per_dimension", label, total / len(self.held_out), len(self.held_out))

    def _samples(self, objective: Samples, model: nn.Module) -> Iterator[Tensor]:
        rng = self._rng()
        for start in range(0, self.part.samples, _BATCH):
            yield objective.sample(model, min(_BATCH, self.part.samples - start), rng)

    def _rng(self) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(_SAMPLING_SEED)

    @torch.no_grad()
    def picture(self, model: nn.Module, folder: Path) -> None:
        """Writes `samples.png`: samples where the objective makes some, else reconstructions beside `originals.png`."""
        model.to(self.device).eval()
        count = _ROWS * _COLUMNS
        if isinstance(self.objective, Samples):
            grid(self.objective.sample(model, count, self._rng())).save(folder / "samples.png")
        elif isinstance(self.objective, Reconstructs):
            originals = self.held_out.images(np.arange(min(count, len(self.held_out))), self.device)
            grid(originals).save(folder / "originals.png")
            grid(self.objective.reconstruct(model, originals)).save(folder / "samples.png")


def grid(images: Tensor) -> Image.Image:
    """Images in [-1, 1] as one picture, six a row, a pixel apart, small ones enlarged."""
    pixels = ((images.nan_to_num(0).clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    count, channels, height, width = pixels.shape
    rows = -(-count // _COLUMNS)
    sheet = np.full((rows * (height + 1) - 1, _COLUMNS * (width + 1) - 1, channels), 128, np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // _COLUMNS * (height + 1), index % _COLUMNS * (width + 1)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    picture = Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet)
    factor = max(1, 48 // height)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)

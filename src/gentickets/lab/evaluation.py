"""Judging a trained model: every metric that its objective allows, on held-out images, and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gentickets.data import ImageSet
from gentickets.errors import RecipeError
from gentickets.lab.recipe import EvaluationPart
from gentickets.metrics import (
    COVERAGE,
    SAMPLE_METRICS,
    Classifier,
    FeatureExtractor,
    FeatureStatistics,
    K,
    Measurement,
    classifier_features,
    downstream_accuracy,
    has_classes,
    inception_features,
    reconstruction_mse,
    sample_metrics,
)
from gentickets.objectives import ELBO, Adversarial, Objective, Reconstructs, Samples

SAMPLING_SEED = 20_210_202  # the same latents for every model, so that levels differ by their weights alone
_BATCH = 256
_ROWS, _COLUMNS = 6, 6
_GLANCED = 1_000  # training images, or samples against them, that a glance looks at
MOST_TRAIN = 50_000  # so many training images the statistics for `frechet_train` are of, at most


class Judge:
    """Measures models of one objective against one held-out set. Reads nothing but the model, changes nothing in it.

    `keys` are the metrics that will be measured, `primary` the one to judge by. `extractor` is the network in whose
    features samples are compared, or else the classifier; None where neither is needed.

    Raises `RecipeError` where the recipe asks for a metric that objective and images do not allow.
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
        possible = self._possible(train)
        self.keys = self._asked(possible)
        self.primary = self._judged_by()
        self.extractor, self.classifier = self._networks(train)
        self._check_head()
        self.real = self.train = None
        self._seen = train
        if self.extractor is not None and self._sampled:
            self.real = FeatureStatistics.of(self.extractor, held_out)
            if "frechet_train" in self.keys or part.every is not None:
                self.train = FeatureStatistics.of(self.extractor, train, count=MOST_TRAIN, kept=0)

    # -- what is measured ---------------------------------------------------------------------------------

    def _possible(self, train: ImageSet) -> list[str]:
        """Every metric that objective, images and features allow; the first one to judge by is the default."""
        features = self.part.features
        labelled = features != "none" and has_classes(train) and self.held_out.labels is not None
        keys = []
        if isinstance(self.objective, ELBO):
            keys.append("bits_per_dimension")
        if isinstance(self.objective, Samples) and features != "none":
            keys += [
                key
                for key in SAMPLE_METRICS
                if not (key == "inception_score" and features == "classifier" and not has_classes(train))
                and not (key in COVERAGE and len(self.held_out) <= K)
            ]
        if isinstance(self.objective, Reconstructs):
            keys.append("reconstruction_mse")
            keys += ["downstream_accuracy"] if labelled else []
        if isinstance(self.objective, Adversarial):
            keys.append("discriminator_loss")
        return keys

    def _asked(self, possible: list[str]) -> list[str]:
        if self.part.metrics == "all":
            return possible
        for key in self.part.metrics:
            if key not in possible:
                raise RecipeError(f"evaluation.metrics: {key!r} is none of {', '.join(possible)}")
        return list(dict.fromkeys(self.part.metrics))

    def _judged_by(self) -> str:
        """The primary metric. The discriminator's loss is none: it says as much of the discriminator as of samples."""
        judging = [key for key in self.keys if key != "discriminator_loss"]
        if not judging:
            raise RecipeError(
                f"evaluation.features={self.part.features} and evaluation.metrics={self.part.metrics} "
                f"leave nothing to judge this objective by"
            )
        if self.part.primary is None:
            return judging[0]
        if self.part.primary not in judging:
            raise RecipeError(f"evaluation.primary={self.part.primary!r} is none of {', '.join(judging)}")
        return self.part.primary

    @property
    def _sampled(self) -> list[str]:
        return [key for key in self.keys if key in SAMPLE_METRICS]

    def _networks(self, train: ImageSet) -> tuple[FeatureExtractor | None, Classifier | None]:
        """What samples are compared by (else what reconstructions are read by), and the classifier."""
        part, own, extractor = self.part, None, None
        if "downstream_accuracy" in self.keys or (self._sampled and part.features == "classifier"):
            own = classifier_features(train, self.held_out, network=part.classifier, device=self.device)
            own = own.to(self.device)
        if self._sampled and part.features == "inception":
            extractor = inception_features(part.inception_weights).to(self.device)
        return extractor or own, own if isinstance(own, Classifier) else None

    def _check_head(self) -> None:
        """An Inception in TorchScript gives features alone."""
        if "inception_score" in self.keys and self.extractor is not None and self.extractor.head is None:
            if self.part.metrics != "all" or self.primary == "inception_score":
                raise RecipeError(
                    f"evaluation.metrics: inception_score needs class probabilities, and "
                    f"{self.part.inception_weights} gives features alone: name the weights as a state dict"
                )
            self.keys.remove("inception_score")

    # -- measuring ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, model: nn.Module, only: str | None = None) -> list[Measurement]:
        """Every metric of `keys`, or one of them, in the model's eval mode."""
        model.to(self.device).eval()
        found: list[Measurement] = []
        objective, keys = self.objective, self.keys if only is None else [only]
        if isinstance(objective, ELBO) and "bits_per_dimension" in keys:
            found.append(self._bits_per_dimension(objective, model))
        sampled = any(key in SAMPLE_METRICS for key in keys)
        if sampled and isinstance(objective, Samples) and self.extractor is not None and self.real is not None:
            fake = FeatureStatistics.of_batches(self.extractor, self._samples(objective, model))
            found += sample_metrics(self.extractor, fake, self.real, self.train, keys)
        if isinstance(objective, Reconstructs):
            found += self._reconstructions(objective, model, keys)
        if isinstance(objective, Adversarial) and "discriminator_loss" in keys:
            found.append(self._discriminator_loss(objective, model))
        return found

    @torch.no_grad()
    def glance(self, model: nn.Module) -> float:
        """How good a model in training is, lower is better, by training images alone: some 1,000 of them.

        The primary metric where that is bits per dimension or a reconstruction's error; the error too where it is the
        accuracy on reconstructions; for every metric of samples their Fréchet distance to the training images.
        """
        model.to(self.device).eval()
        objective, images = self.objective, self._seen.images(slice(0, _GLANCED), self.device)
        if self.primary == "bits_per_dimension" and isinstance(objective, ELBO):
            return float(objective.bits_per_dimension(model, images, self._rng()).mean())
        if self.primary in SAMPLE_METRICS and isinstance(objective, Samples):
            assert self.extractor is not None
            assert self.train is not None
            fake = FeatureStatistics.of_batches(self.extractor, objective.sample(model, _GLANCED, self._rng()))
            return sample_metrics(self.extractor, fake, self.train, self.train, ["frechet_train"])[0].value
        assert isinstance(objective, Reconstructs)
        return float((objective.reconstruct(model, images) - images).square().mean())

    def _reconstructions(self, objective: Reconstructs, model: nn.Module, keys: Sequence[str]) -> Iterator[Measurement]:
        def reconstruct(images: Tensor) -> Tensor:
            return objective.reconstruct(model, images)

        if "reconstruction_mse" in keys:
            yield reconstruction_mse(reconstruct, self.held_out, device=self.device)
        if "downstream_accuracy" in keys and self.classifier is not None:
            yield downstream_accuracy(self.classifier, reconstruct, self.held_out)

    def _bits_per_dimension(self, objective: ELBO, model: nn.Module) -> Measurement:
        rng = self._rng()
        total = 0.0
        for images in self._held_out_batches():
            total += float(objective.bits_per_dimension(model, images, rng).sum())
        name = "negative ELBO, bits per dimension, held-out images"
        label = name if objective.likelihood == "gaussian" else f"{name} (Bernoulli cross-entropy)"
        return Measurement("bits_per_dimension", label, total / len(self.held_out), len(self.held_out))

    def _discriminator_loss(self, objective: Adversarial, model: nn.Module) -> Measurement:
        """The objective's own loss without the penalty on gradients. Better higher: for the best discriminator it
        falls as the distributions part (Goodfellow et al. 2014, theorem 1)."""
        # The first loss alone is asked for, so that no bound is applied to the weights: `clip` only has to be there.
        plain = replace(objective, n_critic=1, gradient_penalty=None, clip=1.0)
        rng, total = self._rng(), 0.0
        for images in self._held_out_batches():
            _, loss = next(plain.losses(model, images, rng))
            total += float(loss) * len(images)
        count = len(self.held_out)
        label = f"discriminator loss ({objective.loss}), held-out images against samples"
        return Measurement("discriminator_loss", label, total / count, count, lower_is_better=False)

    def _held_out_batches(self) -> Iterator[Tensor]:
        for start in range(0, len(self.held_out), _BATCH):
            yield self.held_out.images(slice(start, start + _BATCH), self.device)

    def _samples(self, objective: Samples, model: nn.Module) -> Iterator[Tensor]:
        rng = self._rng()
        for start in range(0, self.part.samples, _BATCH):
            yield objective.sample(model, min(_BATCH, self.part.samples - start), rng)

    def _rng(self) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(SAMPLING_SEED)

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

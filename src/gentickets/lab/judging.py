"""Judging a trained model: every metric that its objective allows, on held-out images, and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    efficientnet_features,
    has_classes,
    inception_features,
    mean_over_networks,
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

    `keys` are the metrics that will be measured, `primary` the one to judge by. `extractors` are the networks in whose
    features samples are compared, or else the classifiers; none where neither are needed. What networks measure is the
    mean over them.

    Raises `RecipeError` where the recipe asks for a metric that objective and images do not allow, and where a Fréchet
    distance would be of fewer images than its network has features.
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
        self._seen = train
        self.classifiers: tuple[FeatureExtractor, ...] = ()
        self.extractors = self._networks()
        self._check_head()
        self.real: list[FeatureStatistics] = []
        self.train: list[FeatureStatistics] = []
        if self._sampled:
            self.real = [FeatureStatistics.of(one, held_out) for one in self.extractors]
        if self._looks_at_train:
            self.train = [FeatureStatistics.of(one, train, count=MOST_TRAIN, kept=0) for one in self.extractors]

    @property
    def features(self) -> dict[str, Any] | None:
        """What the networks are: their name, how many, of how many features, how accurate. None without any."""
        if not self.extractors:
            return None
        first = self.extractors[0]
        known = [one.accuracy for one in self.extractors if one.accuracy is not None]
        return {
            "name": first.name,
            "networks": len(self.extractors),
            "dimension": first.num_features,
            "accuracy": sum(known) / len(known) if known else None,
        }

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

    @property
    def _looks_at_train(self) -> bool:
        """Whether samples are compared with training images: to be told, or at a glance."""
        return "frechet_train" in self.keys or (self.part.every is not None and self.primary in SAMPLE_METRICS)

    def _networks(self) -> tuple[FeatureExtractor, ...]:
        """What samples are compared by (else what reconstructions are read by); the classifiers are kept."""
        part, pretrained = self.part, None
        if self._sampled and part.features == "inception":
            pretrained = inception_features(part.inception_weights)
        if self._sampled and part.features == "efficientnet-lite0":
            pretrained = efficientnet_features()
        if pretrained is not None:
            self._check_counts(pretrained)
        if "downstream_accuracy" in self.keys or (self._sampled and part.features == "classifier"):
            first = self._own(0)
            if pretrained is None:
                self._check_counts(first)  # before more of them are trained
            self.classifiers = (first, *(self._own(seed) for seed in range(1, part.classifiers)))
        return self.classifiers if pretrained is None else (pretrained.to(self.device),)

    def _own(self, seed: int) -> FeatureExtractor:
        """A network of the images at hand."""
        network = self.part.classifier
        found = classifier_features(self._seen, self.held_out, network=network, device=self.device, seed=seed)
        return found.to(self.device)

    def _check_counts(self, extractor: FeatureExtractor) -> None:
        """Raises `RecipeError` for a Fréchet distance of fewer images than features."""
        least, distances = extractor.num_features, [key for key in self._sampled if key.startswith("frechet")]
        counts = {f"evaluation.samples={self.part.samples}": self.part.samples} if distances else {}
        if "frechet" in distances:
            counts[f"data: {len(self.held_out)} held-out images"] = len(self.held_out)
        if self._looks_at_train:
            counts[f"data: {len(self._seen)} training images"] = len(self._seen)
        for said, count in counts.items():
            if count < least:
                raise RecipeError(
                    f"{said}: fewer than the {least} {extractor.name}, which a Fréchet distance needs at least; "
                    f"take {least} or more, or {self._without_distances(least)}"
                )

    def _without_distances(self, least: int) -> str:
        """What to say in a recipe to be judged without Fréchet distances."""
        primary = " and evaluation.primary=kid" if (self.part.primary or "").startswith("frechet") else ""
        others = [key for key in self.keys if key not in SAMPLE_METRICS and key != "discriminator_loss"]
        if self.part.metrics == "all" and self.primary in others:
            return "evaluation.features=none"
        every = " without evaluation.every" if self.part.every is not None and len(self._seen) < least else ""
        return f"evaluation.metrics=[kid]{primary}{every}"

    def _check_head(self) -> None:
        """An Inception in TorchScript gives features alone."""
        if "inception_score" in self.keys and any(one.head is None for one in self.extractors):
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
        if sampled and isinstance(objective, Samples):
            found += self._of_samples(objective, model, keys)
        if isinstance(objective, Reconstructs):
            found += self._reconstructions(objective, model, keys)
        if isinstance(objective, Adversarial) and "discriminator_loss" in keys:
            found.append(self._discriminator_loss(objective, model))
        return found

    @torch.no_grad()
    def glance(self, model: nn.Module) -> float:
        """How good a model in training is, lower is better, by training images alone: some 1,000 of them.

        The primary metric where that is bits per dimension or a reconstruction's error; the error too where it is the
        accuracy on reconstructions; for every metric of samples their Fréchet distance to the training images, by the
        first network alone, of as many samples as it has features at least.
        """
        model.to(self.device).eval()
        objective, images = self.objective, self._seen.images(slice(0, _GLANCED), self.device)
        if self.primary == "bits_per_dimension" and isinstance(objective, ELBO):
            return float(objective.bits_per_dimension(model, images, self._rng()).mean())
        if self.primary in SAMPLE_METRICS and isinstance(objective, Samples):
            extractor, train = self.extractors[0], self.train[0]
            count = max(_GLANCED, extractor.num_features)
            fake = FeatureStatistics.of_batches(extractor, self._samples(objective, model, count), kept=0)
            return sample_metrics(extractor, fake, train, train, ["frechet_train"])[0].value
        assert isinstance(objective, Reconstructs)
        return float((objective.reconstruct(model, images) - images).square().mean())

    def _of_samples(self, objective: Samples, model: nn.Module, keys: Sequence[str]) -> list[Measurement]:
        """By every network the same samples, and of each metric the mean."""
        samples = self._samples(objective, model, self.part.samples)
        trains: Sequence[FeatureStatistics | None] = self.train or [None] * len(self.real)
        fakes = FeatureStatistics.by_each(self.extractors, samples)
        by_network = [
            sample_metrics(extractor, fake, real, train, keys)
            for extractor, fake, real, train in zip(self.extractors, fakes, self.real, trains, strict=True)
        ]
        return [mean_over_networks(measured) for measured in zip(*by_network, strict=True)]

    def _reconstructions(self, objective: Reconstructs, model: nn.Module, keys: Sequence[str]) -> Iterator[Measurement]:
        def reconstruct(images: Tensor) -> Tensor:
            return objective.reconstruct(model, images)

        if "reconstruction_mse" in keys:
            yield reconstruction_mse(reconstruct, self.held_out, device=self.device)
        if "downstream_accuracy" in keys:
            readers = [one for one in self.classifiers if isinstance(one, Classifier)]
            yield downstream_accuracy(readers, reconstruct, self.held_out)

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

    def _samples(self, objective: Samples, model: nn.Module, count: int) -> Iterator[Tensor]:
        rng = self._rng()
        for start in range(0, count, _BATCH):
            yield objective.sample(model, min(_BATCH, count - start), rng)

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

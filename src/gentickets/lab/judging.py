"""Judging a trained model: every metric that its objective allows, on held-out images, and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gentickets.data import Batch, ImageSet, Labelled, batch_of
from gentickets.errors import DataError, RecipeError, Unmet
from gentickets.lab.recipe import EvaluationPart
from gentickets.masks.left_alone import asked_twice
from gentickets.metrics import (
    COVERAGE,
    SAMPLE_METRICS,
    Classifier,
    FeatureExtractor,
    FeatureStatistics,
    K,
    Measurement,
    OfImages,
    classifier_features,
    downstream_accuracy,
    efficientnet_features,
    has_classes,
    inception_features,
    mean_over_networks,
    reconstructed,
    reconstruction_mse,
    sample_metrics,
)
from gentickets.objectives import Measure, Objective

SAMPLING_SEED = 20_210_202  # the same latents for every model, so that levels differ by their weights alone
RECONSTRUCTED = "frechet_reconstructed"
"""The Fréchet distance of reconstructions to the held-out images that they are of; measured where it is asked for."""
_BATCH = 256
_ROWS, _COLUMNS = 6, 6
_GLANCED = 1_000  # training images, or samples against them, that a glance looks at
MOST_TRAIN = 50_000  # so many training images the statistics for `frechet_train` are of, at most


class Judge:
    """Measures models of one objective against one held-out set. Reads nothing but the model, changes nothing in it.

    `keys` are the metrics that will be measured, `primary` the one to judge by. `extractors` are the networks in whose
    features samples are compared, or else the classifiers; none where neither are needed. What networks measure is the
    mean over them. `metrics`: name → a function of samples and held-out images, as one more metric (see `OfImages`);
    each is tried once, on training images in the place of samples.

    Raises `RecipeError` where the recipe asks for a metric that objective and images do not allow, where a Fréchet
    distance would be of fewer images than its network has features, and where one of `metrics` gives no number;
    `DataError` where the objective wants labels and the images have none.
    """

    def __init__(
        self,
        objective: Objective,
        train: ImageSet,
        held_out: ImageSet,
        part: EvaluationPart,
        device: str | torch.device = "cpu",
        metrics: Mapping[str, Callable[[Tensor, Tensor], float]] | None = None,
    ):
        self.objective, self.held_out, self.part = objective, held_out, part
        self.device = torch.device(device)
        self._measures = objective.measures()
        self._others = {key: OfImages(key, function) for key, function in (metrics or {}).items()}
        self._possible = tuple(self._measurable(train))
        self.keys = self._asked(self._possible)
        self.primary = self._judged_by()
        self._seen = train
        for images in (train, held_out):
            self._batch(images, slice(0, 1))  # labels and all
        self._try_others()
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

    def _measurable(self, train: ImageSet) -> list[str]:
        """Every metric that objective, images and features allow; the first one to judge by is the default."""
        features = self.part.features
        labelled = features != "none" and has_classes(train) and self.held_out.labels is not None
        keys = [key for key, measure in self._measures.items() if measure.decides]
        if self.objective.can_sample and features != "none":
            keys += [
                key
                for key in SAMPLE_METRICS
                if not (key == "inception_score" and features == "classifier" and not has_classes(train))
                and not (key in COVERAGE and len(self.held_out) <= K)
            ]
        if self.objective.can_sample:
            keys += self._others
        if self.objective.can_reconstruct:
            keys.append("reconstruction_mse")
            keys += ["downstream_accuracy"] if labelled else []
            keys += [RECONSTRUCTED] if features != "none" else []
        return [*keys, *(key for key, measure in self._measures.items() if not measure.decides)]

    def _asked(self, possible: Sequence[str]) -> list[str]:
        if self.part.metrics == "all":
            return [key for key in possible if key != RECONSTRUCTED]
        for key in self.part.asked:
            if key in self._others and key not in possible:
                raise RecipeError(
                    f"evaluation.metrics: {key!r} compares samples, and {type(self.objective).__name__} makes none"
                )
            if key not in possible:
                raise RecipeError(f"evaluation.metrics: {key!r} is none of {', '.join(possible)}")
        return list(dict.fromkeys(self.part.asked))

    def _judged_by(self) -> str:
        """The primary metric: one that the objective says may decide."""
        judging = [key for key in self.keys if self._decides(key)]
        if not judging:
            raise RecipeError(
                f"evaluation.features={self.part.features} and evaluation.metrics=[{', '.join(self.part.asked)}] "
                f"leave nothing to judge this objective by"
            )
        if self.part.primary is None:
            return judging[0]
        if self.part.primary not in judging:
            raise RecipeError(f"evaluation.primary={self.part.primary!r} is none of {', '.join(judging)}")
        return self.part.primary

    def _decides(self, key: str) -> bool:
        return key not in self._measures or self._measures[key].decides

    @property
    def _sampled(self) -> list[str]:
        return [key for key in self.keys if key in (*SAMPLE_METRICS, RECONSTRUCTED)]

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
        if "frechet" in distances or RECONSTRUCTED in distances:
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
        others = [key for key in self.keys if key not in SAMPLE_METRICS and self._decides(key)]
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

    def _try_others(self) -> None:
        """Raises `RecipeError` for one that gives no number for real images, before anything is trained."""
        if strange := [key for key in self._others if key in {*SAMPLE_METRICS, *self._measures}]:
            raise RecipeError(f"evaluation.metrics: {strange[0]!r} is built in: give yours another name")
        count = min(self.part.samples, len(self._seen))
        for key, metric in self._others.items():
            if key not in self.keys:
                continue

            def ask(metric: OfImages = metric) -> float:
                some = self._seen.images(spread(len(self._seen), count), self.device)
                return metric(some, self.held_out.images(device=self.device)).value

            try:
                value, again = asked_twice(f"metric {key}", ask)
            except (DataError, Unmet) as error:
                raise RecipeError(f"evaluation.metrics: {error}") from error
            if not math.isfinite(value):
                raise RecipeError(f"evaluation.metrics: {key} is {value} of real images: a metric is a finite number")
            if not math.isclose(value, again, rel_tol=1e-3, abs_tol=1e-9):  # what is no chance is rounding
                raise RecipeError(
                    f"evaluation.metrics: {key} is {value:.6g} of real images, and {again:.6g} of the same ones: draw "
                    f"what it draws from a generator of a seed"
                )

    # -- measuring ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, model: nn.Module, only: str | None = None) -> list[Measurement]:
        """Every metric of `keys`, or one of them, in the model's eval mode."""
        model.to(self.device).eval()
        wanted = set(self.keys if only is None else [only])
        found = {key: self._mean(key, self._measures[key], model) for key in self._measures if key in wanted}
        if wanted & {*SAMPLE_METRICS, *self._others}:
            found |= {one.key: one for one in self._of_samples(model, wanted)}
        found |= {one.key: one for one in self._reconstructions(model, wanted)}
        return [found[key] for key in self._possible if key in found]

    @torch.no_grad()
    def glance(self, model: nn.Module) -> float:
        """How good a model in training is, lower is better, by training images alone: some 1,000 of them.

        The primary metric where that is bits per dimension or a reconstruction's error; the error too where it is the
        accuracy on reconstructions; for every metric of samples their Fréchet distance to the training images, by the
        first network alone, of as many samples as it has features at least.
        """
        model.to(self.device).eval()
        images = self._batch(self._seen, slice(0, _GLANCED))
        if self.primary in self._measures:
            measure = self._measures[self.primary]
            value = float(measure.numbers(model, images, self._rng()).mean())
            return value if measure.lower_is_better else -value
        if self.primary in self._others:
            samples = torch.cat(list(self._samples(model, _GLANCED, self._seen)))
            measured = self._others[self.primary](samples, self._seen.images(slice(0, _GLANCED), self.device))
            return measured.value if measured.lower_is_better else -measured.value
        if self.primary in SAMPLE_METRICS:
            extractor, train = self.extractors[0], self.train[0]
            count = max(_GLANCED, extractor.num_features)
            fake = FeatureStatistics.of_batches(extractor, self._samples(model, count, self._seen), kept=0)
            return sample_metrics(extractor, fake, train, train, ["frechet_train"])[0].value
        originals = self._seen.images(slice(0, _GLANCED), self.device)
        given = reconstructed(partial(self.objective.reconstruct, model), images)
        return float((given - originals).square().mean())

    def _mean(self, key: str, measure: Measure, model: nn.Module) -> Measurement:
        """The mean of one of the objective's measures over the held-out images, or over as many as it draws."""
        rng, total = self._rng(), 0.0
        rows = np.arange(len(self.held_out)) if measure.draws is None else spread(len(self.held_out), measure.draws)
        for start in range(0, len(rows), _BATCH):
            images = self._batch(self.held_out, rows[start : start + _BATCH])
            total += float(measure.numbers(model, images, rng).sum())
        return Measurement(key, measure.label, total / len(rows), len(rows), measure.lower_is_better)

    def _of_samples(self, model: nn.Module, wanted: set[str]) -> Iterator[Measurement]:
        """By every network the same samples, and of each metric the mean; the same samples for all other metrics."""
        samples: Iterable[Tensor] = self._samples(model, self.part.samples, self.held_out)
        others = [self._others[key] for key in self._others if key in wanted]
        if others:
            samples = list(samples)
        if not wanted.isdisjoint(SAMPLE_METRICS):
            trains: Sequence[FeatureStatistics | None] = self.train or [None] * len(self.real)
            fakes = FeatureStatistics.by_each(self.extractors, samples)
            by_network = [
                sample_metrics(extractor, fake, real, train, wanted)
                for extractor, fake, real, train in zip(self.extractors, fakes, self.real, trains, strict=True)
            ]
            yield from (mean_over_networks(measured) for measured in zip(*by_network, strict=True))
        if others:
            drawn = torch.cat(list(samples))
            # Images of its own for each: what one writes into them is no matter to the next.
            yield from (metric(drawn, self.held_out.images(device=self.device)) for metric in others)

    def _reconstructions(self, model: nn.Module, wanted: set[str]) -> Iterator[Measurement]:
        reconstruct, labelled = partial(self.objective.reconstruct, model), self.objective.wants_labels
        if "reconstruction_mse" in wanted:
            yield reconstruction_mse(reconstruct, self.held_out, device=self.device, labelled=labelled)
        if "downstream_accuracy" in wanted:
            readers = [one for one in self.classifiers if isinstance(one, Classifier)]
            yield downstream_accuracy(readers, reconstruct, self.held_out, labelled=labelled)
        if RECONSTRUCTED in wanted:
            rows = range(0, len(self.held_out), _BATCH)
            batches = (self._batch(self.held_out, slice(start, start + _BATCH)) for start in rows)
            given = (reconstructed(reconstruct, batch) for batch in batches)
            fakes = FeatureStatistics.by_each(self.extractors, given)
            distances = zip(self.extractors, fakes, self.real, strict=True)
            each = [sample_metrics(one, fake, real, None, ["frechet"])[0] for one, fake, real in distances]
            found = mean_over_networks(each)
            yield replace(found, key=RECONSTRUCTED, label=f"reconstructions: {found.label}")

    def _batch(self, images: ImageSet, rows: slice | np.ndarray) -> Batch:
        """Some images, with their labels where the objective wants those."""
        return batch_of(images, rows, self.device, self.objective.wants_labels)

    def _samples(self, model: nn.Module, count: int, like: ImageSet) -> Iterator[Tensor]:
        """So many samples, of labels as `like` has them where the objective wants some."""
        rng = self._rng()
        for start in range(0, count, _BATCH):
            end = min(start + _BATCH, count)
            labels = self._labels(like, spread(len(like), count)[start:end])
            samples = self.objective.sample(model, end - start, rng, *labels)
            if samples.shape != (wanted := (end - start, *like.shape)):
                raise DataError(f"samples are {tuple(samples.shape)}, and {wanted} were asked for")
            yield samples

    def _labels(self, images: ImageSet, rows: np.ndarray) -> tuple[Tensor, ...]:
        batch = self._batch(images, rows)
        return (batch.labels,) if isinstance(batch, Labelled) else ()

    def _rng(self) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(SAMPLING_SEED)

    @torch.no_grad()
    def picture(self, model: nn.Module, folder: Path) -> None:
        """Writes `samples.png`: samples where the objective makes some, else reconstructions beside `originals.png`."""
        model.to(self.device).eval()
        count = _ROWS * _COLUMNS
        if self.objective.can_sample:
            (samples,) = self._samples(model, count, self.held_out)
            grid(samples).save(folder / "samples.png")
        elif self.objective.can_reconstruct:
            rows = np.arange(min(count, len(self.held_out)))
            grid(self.held_out.images(rows, self.device)).save(folder / "originals.png")
            grid(self.objective.reconstruct(model, self._batch(self.held_out, rows))).save(folder / "samples.png")


def spread(available: int, count: int) -> np.ndarray:
    """Which `count` of so many images stand for all, evenly: some left out, or some several times. int64, ascending."""
    return np.arange(count) * available // count


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


def first_in_a_row(sheet: Image.Image, height: int, width: int, count: int) -> Image.Image | None:
    """The first images of a `grid` of so large ones, at most `count`, in one row; None where it is no such grid."""
    factor = max(1, 48 // height)
    rows, left = divmod(sheet.height + factor, (height + 1) * factor)
    if left or not rows or sheet.width != (_COLUMNS * (width + 1) - 1) * factor:
        return None
    count = min(count, rows * _COLUMNS)
    row = Image.new(sheet.mode, ((count * (width + 1) - 1) * factor, height * factor), 128 if sheet.mode == "L" else 0)
    if sheet.mode == "RGB":
        row.paste((128, 128, 128), (0, 0, *row.size))
    for index in range(count):
        top, at = index // _COLUMNS * (height + 1) * factor, index % _COLUMNS * (width + 1) * factor
        tile = sheet.crop((at, top, at + width * factor, top + height * factor))
        row.paste(tile, (index * (width + 1) * factor, 0))
    return row

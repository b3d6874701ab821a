"""Networks that repeat, statistics that are gathered once, and names that do not lie."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gentickets import DataError
from gentickets.data import Batches, ImageSet, load
from gentickets.metrics import (
    SAMPLE_METRICS,
    Classifier,
    FeatureExtractor,
    FeatureStatistics,
    classifier_features,
    downstream_accuracy,
    frechet_distance,
    reconstruction_mse,
    sample_metrics,
    sampling,
)
from gentickets.metrics import classifier as classifier_module
from gentickets.metrics.inception import InceptionFeatures


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GENTICKETS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return load("digits", size=8), load("digits", size=8, split="test")


def flat(num_features: int = 6, kind: type[FeatureExtractor] = FeatureExtractor, **options) -> FeatureExtractor:
    """The pixels themselves as features."""
    return kind("pixel features", "pixels", num_features, nn.Flatten(), **options)


def images_like(n: int, seed: int, spread: float = 0.3, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 1, 2, 3, generator=generator) * spread + shift).clamp(-1, 1)


def statistics(images: Tensor, **options) -> FeatureStatistics:
    return FeatureStatistics.of_batches(flat(), images, **options)


# -- the classifier ---------------------------------------------------------------------------------------------


def test_the_classifier_is_good_trained_once_and_leaves_the_generator_alone(digits, monkeypatch) -> None:
    state = torch.get_rng_state()
    with torch.no_grad():
        extractor = classifier_features(*digits)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(extractor, Classifier)
    assert (extractor.name, extractor.key) == ("digits-classifier features", "digits_classifier")
    assert extractor.network == "digits-classifier"
    assert extractor.accuracy > 0.97
    assert extractor(digits[1].images(slice(0, 5))).shape == (5, extractor.num_features) == (5, 64)
    assert not extractor.train().training
    assert not any(weight.requires_grad for weight in extractor.parameters())

    monkeypatch.setattr(classifier_module, "Batches", None)  # would fail: it is not trained again
    again = classifier_features(*digits)
    assert (again.weights_hash, again.accuracy) == (extractor.weights_hash, extractor.accuracy)


def test_labels_are_those_of_the_data_set_whatever_their_numbers(digits, tmp_path) -> None:
    train, test = (ImageSet.from_arrays(s.name, s.pixels, s.labels * 7 - 3, s.split) for s in digits)
    classifier = classifier_features(train, test, cache=tmp_path)
    guesses = classifier.labels(test.images())
    assert set(guesses) <= set(range(-3, 61, 7))
    assert (guesses == test.labels).mean() == pytest.approx(classifier.accuracy)


def test_training_repeats_and_a_damaged_cache_is_mended(digits, tmp_path) -> None:
    first = classifier_features(*digits)
    again = classifier_features(*digits, cache=tmp_path)
    assert again.weights_hash == first.weights_hash
    (file,) = (tmp_path / "features").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    assert classifier_features(*digits, cache=tmp_path).weights_hash == first.weights_hash
    assert file.read_bytes() == whole


def test_without_a_held_out_set_a_part_is_held_out(digits, monkeypatch, tmp_path) -> None:
    trained_on = []

    def batches(images: ImageSet, *arguments, **options) -> Batches:
        trained_on.append(images)
        return Batches(images, *arguments, **options)

    monkeypatch.setattr(classifier_module, "Batches", batches)
    monkeypatch.setattr(classifier_module, "effort", lambda *_: (3, 16))
    extractor = classifier_features(digits[0], cache=tmp_path)
    (part,) = trained_on
    held = len(digits[0]) // 10
    assert len(part) == len(digits[0]) - held
    rows = Counter(image.tobytes() for image in digits[0].pixels)
    assert not Counter(image.tobytes() for image in part.pixels) - rows
    # The accuracy is that on the images which were held out, and on no other.
    left = rows - Counter(image.tobytes() for image in part.pixels)
    kept = [row for row, image in enumerate(digits[0].pixels) if image.tobytes() in left]
    assert len(kept) == held
    guesses = extractor.labels(digits[0].images(np.array(kept)))
    assert extractor.accuracy == pytest.approx((guesses == digits[0].labels[kept]).mean())


@pytest.mark.parametrize(
    ("network", "name", "features"), [("small", "noise-classifier", 128), ("resnet18", "noise-resnet18", 512)]
)
def test_larger_images_and_the_resnet_have_more_features(monkeypatch, tmp_path, network, name, features) -> None:
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    images = ImageSet.from_arrays("noise", pixels, np.arange(12) % 3)
    monkeypatch.setattr(classifier_module, "effort", lambda *_: (2, 4))
    extractor = classifier_features(images, images, cache=tmp_path, network=network)
    assert extractor(images.images()).shape == (12, features)
    assert extractor.network == name
    assert extractor.head(extractor(images.images())).shape == (12, 3)


def test_resnet18_is_the_known_one_and_learns(digits, monkeypatch, tmp_path) -> None:
    """11,173,962 parameters is what ResNet-18 with the CIFAR stem has for RGB images and 10 classes."""
    built = classifier_module.build("resnet18", (3, 32, 32), 10)
    assert sum(weight.numel() for weight in built.parameters()) == 11_173_962
    few = digits[1].subset(64, seed=0)
    monkeypatch.setattr(classifier_module, "effort", lambda *_: (12, 32))
    assert classifier_features(few, few, cache=tmp_path, network="resnet18").accuracy > 0.5
    small = classifier_features(few, few, cache=tmp_path)
    assert small.num_features == 64  # the two have files of their own


@pytest.mark.parametrize("labels", [None, "one class"])
def test_images_without_classes_get_random_features_by_that_name(digits, labels) -> None:
    pixels = digits[0].pixels
    images = ImageSet.from_arrays("faces", pixels, np.zeros(len(pixels), dtype=np.int64) if labels else None)
    extractor = classifier_features(images)
    assert (extractor.name, extractor.key) == ("random-convolution features", "random_convolution")
    assert (extractor.accuracy, extractor.head) == (None, None)
    assert extractor(images.images(slice(0, 3))).shape == (3, 128)
    assert extractor.weights_hash == classifier_features(images).weights_hash


def test_images_of_another_kind_are_refused(digits) -> None:
    with pytest.raises(DataError, match="1-channel images: these have 3"):
        classifier_features(*digits)(torch.zeros(2, 3, 8, 8))


# -- statistics -------------------------------------------------------------------------------------------------


def test_real_statistics_are_computed_once(digits, tmp_path) -> None:
    extractor = flat(64)
    first = FeatureStatistics.of(extractor, digits[1], cache=tmp_path)
    assert first.features.shape == (359, 64)
    pixels = digits[1].images().flatten(1).double()
    assert torch.allclose(first.gaussian.mean, pixels.mean(0))
    assert torch.allclose(first.gaussian.root @ first.gaussian.root.T, torch.cov(pixels.T), atol=1e-10)
    calls: list[int] = []
    extractor.register_forward_hook(lambda *_: calls.append(1))
    again = FeatureStatistics.of(extractor, digits[1], cache=tmp_path)
    assert not calls
    assert torch.equal(again.features, first.features)
    assert torch.equal(again.gaussian.root, first.gaussian.root)
    # Not the values alone: a distance's last digit hangs on their order in memory, and a run is the same to the byte.
    assert again.gaussian.root.stride() == first.gaussian.root.stride()
    (file,) = (tmp_path / "features").iterdir()
    file.write_bytes(b"broken")
    assert torch.equal(FeatureStatistics.of(extractor, digits[1], cache=tmp_path).features, first.features)
    some = FeatureStatistics.of(extractor, digits[1], count=50, cache=tmp_path)
    assert (some.count, some.gaussian.count, some.features.shape) == (50, 50, (50, 64))
    assert some.gaussian.root.is_contiguous()
    bare = FeatureStatistics.of(extractor, digits[1], count=5000, kept=0, cache=tmp_path)
    assert (bare.count, bare.features.shape) == (359, (0, 64))
    assert frechet_distance(bare.gaussian, first.gaussian) == pytest.approx(0, abs=1e-9)


def test_the_features_that_are_kept_are_a_fair_draw_of_sorted_images(tmp_path) -> None:
    pixels = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1)
    found = FeatureStatistics.of(flat(1), ImageSet.from_arrays("sorted", pixels), cache=tmp_path, kept=40)
    grey = (found.features.flatten() + 1) * 127.5
    assert len(grey) == 40
    assert 70 < grey.mean() < 130


def test_generated_images_come_as_a_tensor_or_in_batches_and_are_clamped() -> None:
    images = images_like(40, 2, spread=2.0)
    whole = statistics(images)
    parts = statistics(iter((images * 3).clamp(-5, 5).sign().mul(2).split(7)))
    assert torch.equal(whole.features, images.flatten(1))
    assert parts.features.abs().max() == 1
    assert statistics(iter(images.split(7))).features.equal(whole.features)
    assert statistics(images, kept=10).features.equal(whole.features[:10])


def test_too_few_images_and_foreign_statistics_are_refused() -> None:
    with pytest.raises(DataError, match="1 images: two or more"):
        statistics(images_like(1, 2))
    with pytest.raises(DataError, match="0 images"):
        FeatureStatistics.of_batches(flat(), [])
    ours = statistics(images_like(9, 2))
    foreign = FeatureStatistics("inception", 9, ours.gaussian, ours.features)
    with pytest.raises(DataError, match="'inception', not of 'pixels'"):
        sample_metrics(flat(), ours, foreign)


# -- metrics of samples -----------------------------------------------------------------------------------------


def test_samples_are_looked_at_once_for_all_metrics() -> None:
    calls: list[int] = []
    extractor = flat(head=nn.Linear(6, 3))
    extractor.register_forward_hook(lambda *_: calls.append(1))
    real, train = statistics(images_like(60, 1)), statistics(images_like(80, 3))
    fake = FeatureStatistics.of_batches(extractor, images_like(70, 2))
    found = {one.key: one for one in sample_metrics(extractor, fake, real, train)}
    assert len(calls) == 1
    assert list(found) == list(SAMPLE_METRICS)
    assert found["frechet"].value == frechet_distance(fake.gaussian, real.gaussian)
    assert found["frechet_train"].value == frechet_distance(fake.gaussian, train.gaussian)
    assert found["frechet"].value != found["frechet_train"].value
    assert [found[key].samples for key in ("frechet", "kid", "precision")] == [70, 70, 60]
    higher = ("inception_score", "precision", "recall", "density", "coverage")
    assert [key for key in found if not found[key].lower_is_better] == list(higher)
    few = sample_metrics(extractor, fake, real, train, keys=["coverage", "kid"])
    assert [one.key for one in few] == ["kid", "coverage"]
    assert few == [found["kid"], found["coverage"]]


def test_what_cannot_be_measured_is_left_out(monkeypatch) -> None:
    real, fake = statistics(images_like(60, 1)), statistics(images_like(70, 2))
    assert [one.key for one in sample_metrics(flat(), fake, real)] == [
        "frechet", "kid", "precision", "recall", "density", "coverage",
    ]  # fmt: skip
    few = statistics(images_like(5, 1))
    assert [one.key for one in sample_metrics(flat(), fake, few, keys=["kid", *sampling.COVERAGE])] == ["kid"]
    with pytest.raises(DataError, match=r"^frechet of 5 images: fewer than the 6 pixel features; take kid$"):
        sample_metrics(flat(), fake, few)
    monkeypatch.setattr(sampling, "MOST_NEIGHBOURS", 20)
    assert [one.samples for one in sample_metrics(flat(), fake, real, keys=["recall"])] == [20]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite_give_nan(bad: float) -> None:
    images = images_like(300, 2)
    images[290, 0, 1, 1] = bad
    real = statistics(images_like(40, 1))
    found = sample_metrics(flat(head=nn.Linear(6, 3)), statistics(images), real, real)
    assert [one.key for one in found] == list(SAMPLE_METRICS)
    assert all(math.isnan(one.value) for one in found)
    assert {one.samples for one in found[:4]} == {300}


def test_only_inception_bears_inceptions_names() -> None:
    real, fake = statistics(images_like(9, 1)), statistics(images_like(9, 2))
    keys = ("frechet", "kid", "frechet_train", "inception_score")
    true = flat(kind=InceptionFeatures, head=nn.Linear(6, 3))
    assert [one.label for one in sample_metrics(true, fake, real, real, keys)] == [
        "FID (n = 9 against 9)",
        "KID",
        "FID to the training images (n = 9 against 9)",
        "Inception Score",
    ]
    pretender = FeatureExtractor("Inception features", "pixels", 6, nn.Flatten(), head=nn.Linear(6, 3))
    assert [one.label for one in sample_metrics(pretender, fake, real, real, keys)] == [
        "Fréchet distance, Inception features (n = 9 against 9)",
        "KID, Inception features",
        "Fréchet distance to the training images, Inception features (n = 9 against 9)",
        "classifier score (exp of mutual information, network: Inception)",
    ]


def test_noise_takes_real_images_away_from_real_images(digits) -> None:
    train, test = digits
    extractor = classifier_features(train, test)
    real = FeatureStatistics.of(extractor, test)
    clean = train.subset(359, seed=0).images()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for strength in (0.0, 0.3, 1.0):
        fake = FeatureStatistics.of_batches(extractor, clean + strength * noise)
        found.append({one.key: one for one in sample_metrics(extractor, fake, real)})
    for key, first in found[0].items():
        values = [one[key].value for one in found]
        if key == "recall":  # noise makes the balls of generated images larger: the best has not the most
            assert values[2] < min(values[:2])
            continue
        assert sorted(values, reverse=not first.lower_is_better) == values, key
    assert found[0]["frechet"].label == "Fréchet distance, digits-classifier features (n = 359 against 359)"
    assert found[0]["inception_score"].value > 5
    assert found[0]["coverage"].value > 0.8


# -- reconstruction ---------------------------------------------------------------------------------------------


def test_reconstruction_error_by_hand(digits) -> None:
    images = digits[1]
    assert reconstruction_mse(lambda x: x, images).value == 0.0
    off = reconstruction_mse(lambda x: x + 0.5, images, batch_size=100)
    assert (off.key, off.samples) == ("reconstruction_mse", 359)
    assert off.value == pytest.approx(0.25)
    zero = reconstruction_mse(torch.zeros_like, images)
    assert zero.value == pytest.approx(images.images().square().mean().item(), rel=1e-5)
    assert math.isnan(reconstruction_mse(lambda x: x * math.nan, images).value)
    with pytest.raises(DataError, match="same shape"):
        reconstruction_mse(lambda x: x[:, :, :4], images)


def test_downstream_accuracy_is_the_classifiers_on_what_it_is_given(digits) -> None:
    classifier = classifier_features(*digits)
    whole = downstream_accuracy([classifier], lambda x: x, digits[1], batch_size=100)
    assert (whole.key, whole.samples, whole.lower_is_better) == ("downstream_accuracy", 359, False)
    assert whole.value == pytest.approx(classifier.accuracy)
    assert f"{classifier.accuracy:.1%} on the originals" in whole.label
    zeros = int((digits[1].labels == classifier.labels(torch.zeros(1, 1, 8, 8))[0]).sum())
    assert downstream_accuracy([classifier], torch.zeros_like, digits[1]).value == pytest.approx(zeros / 359)
    upside_down = downstream_accuracy([classifier], lambda x: x.flip(-1, -2), digits[1])
    assert upside_down.value < 0.7
    assert math.isnan(downstream_accuracy([classifier], lambda x: x * math.nan, digits[1]).value)
    unlabelled = ImageSet.from_arrays("digits", digits[1].pixels)
    with pytest.raises(DataError, match="no labels"):
        downstream_accuracy([classifier], lambda x: x, unlabelled)

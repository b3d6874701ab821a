"""Distances against independent implementations, features that repeat, and names that do not lie."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gentickets import DataError
from gentickets.data import ImageSet, load
from gentickets.metrics import (
    FeatureExtractor,
    RealStatistics,
    classifier_features,
    distances,
    inception_features,
    reconstruction_mse,
)
from gentickets.metrics import features as features_module
from gentickets.metrics.inception import InceptionFeatures

# TorchScript is what the published Inception file is, however torch now speaks of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GENTICKETS_CACHE", str(folder))
        yield folder


def flat_extractor(num_features: int) -> FeatureExtractor:
    """The pixels themselves as features."""
    return FeatureExtractor("pixel features", "pixels", num_features, nn.Flatten())


def frechet_by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(root)))


def kid_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD with the kernel (x·y/d + 1)³."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(kernel(x, y) for x in a for y in b) / (n * m)
    return within_a + within_b - 2 * across


def images_like(n: int, seed: int, spread: float = 0.3, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 1, 2, 3, generator=generator) * spread + shift).clamp(-1, 1)


def values(real: Tensor, fake: Tensor, **options) -> tuple[float, float]:
    frechet, kid = distances(flat_extractor(6), RealStatistics(real.flatten(1), "pixels"), fake, **options)
    return frechet.value, kid.value


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(12, 40), shift=st.floats(-0.5, 0.5))
def test_distances_agree_with_independent_implementations(seed: int, n: int, shift: float) -> None:
    real, fake = images_like(n, seed), images_like(n, seed + 1, spread=0.2, shift=shift)
    frechet, kid = values(real, fake, subsets=2)
    a, b = real.flatten(1).double().numpy(), fake.flatten(1).double().numpy()
    assert frechet == pytest.approx(frechet_by_sqrtm(a, b), rel=1e-6, abs=1e-9)
    assert kid == pytest.approx(kid_by_loops(a, b), rel=1e-4, abs=1e-6)


def test_kid_is_the_mean_over_subsets() -> None:
    real, fake = images_like(60, 1), images_like(50, 2, shift=0.4)
    whole = kid_by_loops(real.flatten(1).double().numpy(), fake.flatten(1).double().numpy())
    assert values(real, fake, subsets=200, subset_size=25)[1] == pytest.approx(whole, rel=0.1)


def test_a_distribution_is_close_to_itself_and_far_from_another() -> None:
    real = images_like(300, 1)
    same, other = values(real, images_like(300, 2)), values(real, images_like(300, 3, shift=0.4))
    assert values(real, real)[0] == pytest.approx(0, abs=1e-6)
    assert same[0] < 0.05 < other[0]
    assert abs(same[1]) < 0.05 < other[1]


def test_distances_repeat_and_leave_the_generator_alone() -> None:
    real, fake = images_like(40, 1), images_like(40, 2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = values(real, fake, subset_size=10)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert values(real, fake, subset_size=10) == first
    assert values(real, fake, subset_size=10, seed=1)[1] != first[1]


def test_fakes_come_as_a_tensor_as_batches_or_from_a_function() -> None:
    real, fake = images_like(40, 1), images_like(40, 2)
    expected = values(real, fake)
    assert values(real, iter(fake.split(7))) == expected
    assert values(real, lambda: fake.split(9)) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite_give_nan(bad: float) -> None:
    fake = images_like(40, 2)
    fake[3, 0, 1, 1] = bad
    found = distances(flat_extractor(6), RealStatistics(images_like(40, 1).flatten(1), "pixels"), fake)
    assert [math.isnan(one.value) for one in found] == [True, True]
    assert [one.samples for one in found] == [40, 40]


def test_too_few_images_and_foreign_statistics_are_refused() -> None:
    real = RealStatistics(images_like(40, 1).flatten(1), "pixels")
    with pytest.raises(DataError, match="1 generated and 40 real"):
        distances(flat_extractor(6), real, images_like(1, 2))
    with pytest.raises(DataError, match="0 generated"):
        distances(flat_extractor(6), real, [])
    with pytest.raises(DataError, match="'inception'"):
        distances(flat_extractor(6), RealStatistics(real.features, "inception"), images_like(9, 2))


# -- features ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return load("digits", size=8), load("digits", size=8, split="test")


def test_the_classifier_is_good_trained_once_and_leaves_the_generator_alone(digits, monkeypatch) -> None:
    state = torch.get_rng_state()
    with torch.no_grad():
        extractor = classifier_features(*digits)
    assert torch.equal(torch.get_rng_state(), state)
    assert (extractor.name, extractor.key) == ("digits-classifier features", "digits_classifier")
    assert extractor.accuracy is not None
    assert extractor.accuracy > 0.97
    assert extractor(digits[1].images(slice(0, 5))).shape == (5, extractor.num_features) == (5, 64)
    assert not extractor.train().training
    assert not any(weight.requires_grad for weight in extractor.parameters())

    monkeypatch.setattr(features_module, "_fit", None)  # would fail: it is not trained again
    again = classifier_features(*digits)
    assert (again.weights_hash, again.accuracy) == (extractor.weights_hash, extractor.accuracy)


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
    seen = {}
    monkeypatch.setattr(features_module, "_fit", lambda network, train, *_, **__: seen.update(train=len(train)))
    extractor = classifier_features(digits[0], cache=tmp_path)
    assert seen["train"] == len(digits[0]) - len(digits[0]) // 10
    assert extractor.accuracy is not None


def test_larger_images_get_a_wider_network(monkeypatch, tmp_path) -> None:
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    images = ImageSet.from_arrays("noise", pixels, np.arange(40) % 3)
    monkeypatch.setattr(features_module, "_fit", lambda *_, **__: None)
    extractor = classifier_features(images, images, cache=tmp_path)
    assert extractor(images.images()).shape == (40, 128)


@pytest.mark.parametrize("labels", [None, "one class"])
def test_images_without_classes_get_random_features_by_that_name(digits, labels) -> None:
    pixels = digits[0].pixels
    images = ImageSet.from_arrays("faces", pixels, np.zeros(len(pixels), dtype=np.int64) if labels else None)
    extractor = classifier_features(images)
    assert (extractor.name, extractor.key) == ("random-convolution features", "random_convolution")
    assert extractor.accuracy is None
    assert extractor(images.images(slice(0, 3))).shape == (3, 128)
    assert extractor.weights_hash == classifier_features(images).weights_hash


def test_images_of_another_kind_are_refused(digits) -> None:
    with pytest.raises(DataError, match="1-channel images: these have 3"):
        classifier_features(*digits)(torch.zeros(2, 3, 8, 8))


def test_noise_takes_real_images_away_from_real_images(digits) -> None:
    train, test = digits
    extractor = classifier_features(train, test)
    real = RealStatistics.of(extractor, test)
    clean = train.subset(359, seed=0).images()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    found = [distances(extractor, real, clean + strength * noise) for strength in (0.0, 0.3, 1.0)]
    for key, (a, b, c) in zip(("frechet", "kid"), zip(*found, strict=True), strict=True):
        assert a.key == b.key == c.key == key
        assert a.value < b.value < c.value
    assert found[0][0].label == "Fréchet distance, digits-classifier features"
    assert found[0][1].label == "KID, digits-classifier features"
    assert found[0][0].samples == 359


def test_real_statistics_are_computed_once(digits, tmp_path) -> None:
    extractor = flat_extractor(64)
    first = RealStatistics.of(extractor, digits[1], cache=tmp_path)
    assert first.features.shape == (359, 64)
    calls: list[int] = []
    extractor.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(RealStatistics.of(extractor, digits[1], cache=tmp_path).features, first.features)
    assert not calls
    (file,) = (tmp_path / "features").iterdir()
    file.write_bytes(b"broken")
    assert torch.equal(RealStatistics.of(extractor, digits[1], cache=tmp_path).features, first.features)
    assert RealStatistics.of(extractor, digits[1], count=50, cache=tmp_path).features.shape == (50, 64)


# -- Inception -----------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """A TorchScript module that is called as Inception's is."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        return images.flatten(1).float()[:, :1].expand(-1, 2048) / 255


def test_a_local_script_gives_what_may_be_called_fid(tmp_path) -> None:
    path = tmp_path / "inception.pt"
    torch.jit.script(StandIn()).save(path)
    extractor = inception_features(path)
    assert (extractor.name, extractor.key, extractor.num_features) == (
        "Inception features",
        "inception",
        2048,
    )
    grey = torch.tensor([-1.0, 1.0, 0.0]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    found = extractor(grey)[:, 0]
    assert torch.allclose(found, torch.tensor([0.0, 1.0, 128 / 255]))
    assert len(extractor.weights_hash) == 64


def test_only_inception_is_labelled_fid() -> None:
    real = RealStatistics(images_like(9, 1).flatten(1), "inception")
    true = InceptionFeatures("Inception features", "inception", 6, nn.Flatten())
    assert [one.label for one in distances(true, real, images_like(9, 2))] == ["FID", "KID"]
    pretender = FeatureExtractor("Inception features", "inception", 6, nn.Flatten())
    labels = [one.label for one in distances(pretender, real, images_like(9, 2))]
    assert labels == ["Fréchet distance, Inception features", "KID, Inception features"]


def test_torch_fidelity_is_used_where_it_is_installed(monkeypatch, tmp_path) -> None:
    class Fake(nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            self.path = feature_extractor_weights_path

        def forward(self, images: Tensor) -> tuple[Tensor]:
            assert images.dtype == torch.uint8
            assert images.shape[1] == 3
            return (torch.zeros(len(images), 2048),)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Fake
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    weights = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, weights)
    for given_weights in (None, weights):
        assert inception_features(given_weights)(torch.zeros(2, 1, 8, 8)).shape == (2, 2048)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"bad\.pth failed"):
        inception_features(tmp_path / "bad.pth")


def test_inception_that_cannot_be_had_says_how(monkeypatch, tmp_path) -> None:
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"gentickets\[inception\]"):
        inception_features(None)
    with pytest.raises(DataError, match="does not exist"):
        inception_features(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"no script")
    with pytest.raises(DataError, match=r"bad\.pt is no TorchScript file"):
        inception_features(tmp_path / "bad.pt")


# -- reconstruction ------------------------------------------------------------------------------------------


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

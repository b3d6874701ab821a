"""SNGAN (Miyato et al. 2018): a discriminator whose every layer has a largest singular value of 1."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gentickets.models.convolutional import ConvDecoder, ConvHead, ConvTrunk
from gentickets.models.dcgan import GAN
from gentickets.options import Depth, Latent, Width


def sngan(size: int, channels: int, width: Width = 64, latent: Latent = 128, depth: Depth | None = None) -> GAN:
    """The towers of `dcgan`; the discriminator with spectral norm on every layer and no batch norm.

    Weights are drawn after Glorot & Bengio (2010), uniformly, biases are 0. What is trained and pruned in the
    discriminator are its `parametrizations.weight.original`: the norm is taken of what is left.
    Raises `ValueError` for sizes and depths that the towers cannot have.
    """
    generator = ConvDecoder(size, channels, width, latent, depth)
    discriminator = ConvHead(ConvTrunk(size, channels, width, depth, norm=False), 1)
    gan = GAN(generator, discriminator)
    for layer in gan.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in list(discriminator.modules()):
        if isinstance(layer, nn.Conv2d):
            spectral_norm(layer)  # after the drawing: its singular vectors are those of the weights as drawn
    return gan

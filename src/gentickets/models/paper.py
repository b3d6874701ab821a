"""The networks of Table 1 of Kalibhat, Balaji & Feizi (AAAI 2021), with the sizes of the paper as defaults.

Table 1 has nine; the VAE and the beta-VAE are one network under two objectives. `docs/models.md` sets each beside
the paper's: parameter counts, hyper-parameters, and every place where the two differ.
"""

from __future__ import annotations

from torch import nn

from gentickets.models.autoencoder import Autoencoder, linear_autoencoder
from gentickets.models.convolutional import depth_for
from gentickets.models.dcgan import GAN, dcgan
from gentickets.models.resnet import resnet_dcgan, resnet_vae
from gentickets.models.sngan import sngan
from gentickets.models.vae import VAE, conv_vae
from gentickets.options import CriticNorm, Depth, Latent, Width


def paper_linear_ae(size: int, channels: int, width: Width = 128, latent: Latent = 3) -> Autoencoder:
    """The paper's linear autoencoder: 784-128-64-12-3 and its mirror on MNIST.

    Another `width` scales the three inner layers, of which the last is never narrower than the code.
    Raises `ValueError` for a width below 2.
    """
    return linear_autoencoder(size, channels, hidden=[width, width // 2, max(latent, width * 12 // 128)], latent=latent)


def paper_conv_ae(size: int, channels: int, width: Width = 32, latent: Latent = 512) -> Autoencoder:
    """The paper's convolutional autoencoder: 32, 64, 128, 256 and 512 channels, the last 512 on 2x2 places its code.

    `latent`: channels of the code, which is (batch, latent, side, side), side = ⌈size / 16⌉. Kernels and
    strides after the authors' code, so that the parameter count is theirs; the padding is what halves exactly.
    Raises `ValueError` for a side that 4 does not divide.
    """
    if size < 4 or size % 4:
        raise ValueError(f"size={size}: paper-conv-ae takes images whose side is a multiple of 4")
    widths = [width, 2 * width, 4 * width, 8 * width, latent]
    encoder = nn.Sequential(
        nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU(),
        nn.Conv2d(widths[0], widths[1], 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(widths[1], widths[2], 2, stride=2), nn.ReLU(),
        nn.Conv2d(widths[2], widths[3], 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(widths[3], widths[4], 3, stride=2, padding=1), nn.ReLU(),
    )  # fmt: skip
    # A side of 28 is 7, then 4 (of 8) on the way down: on the way up, one row and column fewer than double.
    eighth = -(-size // 8)
    odd, quarter_odd = eighth % 2, size // 4 % 2
    decoder = nn.Sequential(
        nn.ConvTranspose2d(widths[4], widths[3], 3, stride=2, padding=1, output_padding=1 - odd), nn.ReLU(),
        nn.ConvTranspose2d(widths[3], widths[2], 2, stride=2, padding=quarter_odd, output_padding=quarter_odd),
        nn.ReLU(),
        nn.ConvTranspose2d(widths[2], widths[1], 2, stride=2), nn.ReLU(),
        nn.ConvTranspose2d(widths[1], widths[0], 5, padding=2), nn.ReLU(),
        nn.ConvTranspose2d(widths[0], channels, 2, stride=2), nn.Tanh(),
    )  # fmt: skip
    return Autoencoder(encoder, decoder)


def paper_vae(size: int, channels: int, width: Width = 64, latent: Latent = 32, depth: Depth | None = None) -> VAE:
    """The paper's VAE, and its beta-VAE (only the objective differs): `conv_vae`, four halvings deep.

    `depth` is 4, or as often as the side can be halved (28: twice). With `width=64, depth=4, latent=32`,
    `paper-dcgan` and `paper-wgan` have the same towers.
    """
    if depth is None:
        depth_for(size)  # refuses what no model takes
        depth = min(4, (size & -size).bit_length() - 1)
    return conv_vae(size, channels, width, latent, depth)


def paper_resnet_vae(size: int, channels: int, width: Width = 32, latent: Latent = 32) -> VAE:
    """The paper's ResNet-VAE: widths 32, 32, 64, 128 and 256, one residual block a stage."""
    return resnet_vae(size, channels, width, latent)


def paper_dcgan(size: int, channels: int, width: Width = 128, latent: Latent = 128, depth: Depth | None = None) -> GAN:
    """The paper's DCGAN: `dcgan` of width 128."""
    return dcgan(size, channels, width, latent, depth)


def paper_sngan(size: int, channels: int, width: Width = 128, latent: Latent = 128, depth: Depth | None = None) -> GAN:
    """The paper's SNGAN: `paper-dcgan`, with spectral norm in the discriminator in place of batch norm."""
    return sngan(size, channels, width, latent, depth)


def paper_resnet_dcgan(
    size: int, channels: int, width: Width = 128, latent: Latent = 128, critic_norm: CriticNorm = True
) -> GAN:
    """The paper's ResNet-DCGAN: residual blocks of width 128 in both nets."""
    return resnet_dcgan(size, channels, width, latent, critic_norm)


def paper_wgan(
    size: int,
    channels: int,
    width: Width = 128,
    latent: Latent = 128,
    depth: Depth | None = None,
    critic_norm: CriticNorm = True,
) -> GAN:
    """The paper's WGAN: the net of `paper-dcgan`, for weight clipping; `critic_norm=False` for a gradient penalty."""
    return dcgan(size, channels, width, latent, depth, critic_norm)

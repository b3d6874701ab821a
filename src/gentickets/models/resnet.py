"""Residual nets: a VAE after ResNet-18, and a GAN with the blocks of Gulrajani et al. (2017)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from gentickets.models.convolutional import depth_for
from gentickets.models.dcgan import GAN
from gentickets.models.vae import VAE
from gentickets.options import CriticNorm, Latent, Width


class Residual(nn.Module):
    """`body(x) + shortcut(x)`; without a shortcut, `body(x) + x`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, maps: Tensor) -> Tensor:
        return self.body(maps) + self.shortcut(maps)


def _conv(into: int, out: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, stride, padding=kernel // 2, bias=bias)


# -- the VAE ------------------------------------------------------------------------------------------------


class ResidualEncoder(nn.Module):
    """images → (mean, log variance) of q(z | x), each (batch, latent).

    A stem of stride 2, then one block a stage: widths 1, 2, 4 and 8 times `width`, halved between stages; a mean
    over places, and a linear layer.
    """

    def __init__(self, channels: int, width: int, latent: int):
        super().__init__()
        layers: list[nn.Module] = [_conv(channels, width, stride=2), nn.BatchNorm2d(width), nn.ReLU()]
        layers += basic_block(width, width)
        for into in (width, 2 * width, 4 * width):
            layers += basic_block(into, 2 * into, stride=2)
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8 * width, 2 * latent)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.head(self.trunk(images)).chunk(2, dim=1)
        return mean, log_variance


def basic_block(into: int, out: int, stride: int = 1) -> list[nn.Module]:
    """The basic block of He et al. (2016), Fig. 5 left, with its last ReLU."""
    body = nn.Sequential(
        _conv(into, out, stride=stride), nn.BatchNorm2d(out), nn.ReLU(), _conv(out, out), nn.BatchNorm2d(out)
    )
    plain = into == out and stride == 1
    shortcut = None if plain else nn.Sequential(_conv(into, out, 1, stride), nn.BatchNorm2d(out))
    return [Residual(body, shortcut), nn.ReLU()]


class ResidualDecoder(nn.Module):
    """(batch, latent) → images (batch, channels, size, size) in [-1, 1], the mirror of `ResidualEncoder`.

    Where that takes a stride, this repeats the nearest pixel, to just the side that the encoder had there.
    """

    def __init__(self, size: int, channels: int, width: int, latent: int):
        super().__init__()
        sides = [size]
        for _ in range(4):
            sides.append(math.ceil(sides[-1] / 2))
        layers: list[nn.Module] = [
            nn.Linear(latent, 8 * width),
            nn.Unflatten(1, (8 * width, 1, 1)),
            nn.Upsample(size=(sides[4], sides[4])),
        ]
        for into, side in ((8 * width, sides[3]), (4 * width, sides[2]), (2 * width, sides[1])):
            layers += _up(into, into // 2, side)
        layers += basic_block(width, width)
        layers += [nn.Upsample(size=(size, size)), _conv(width, channels, bias=True), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


def _up(into: int, out: int, side: int) -> list[nn.Module]:
    """`basic_block` backwards: its second convolution enlarges, and so does the shortcut, with 3x3 kernels here."""
    body = nn.Sequential(
        _conv(into, into), nn.BatchNorm2d(into), nn.ReLU(),
        nn.Upsample(size=(side, side)), _conv(into, out), nn.BatchNorm2d(out),
    )  # fmt: skip
    shortcut = nn.Sequential(nn.Upsample(size=(side, side)), _conv(into, out), nn.BatchNorm2d(out))
    return [Residual(body, shortcut), nn.ReLU()]


def resnet_vae(size: int, channels: int, width: Width = 32, latent: Latent = 32) -> VAE:
    """ResNet-18 (He et al. 2016) at half its width with one block a stage, and its mirror; images of any side."""
    return VAE(ResidualEncoder(channels, width, latent), ResidualDecoder(size, channels, width, latent))


# -- the GAN ------------------------------------------------------------------------------------------------


def resnet_dcgan(
    size: int, channels: int, width: Width = 128, latent: Latent = 128, critic_norm: CriticNorm = True
) -> GAN:
    """Pre-activation blocks, all of one width (Gulrajani et al. 2017; Miyato et al. 2018).

    The generator doubles a 4x4 map (28: 7x7) up to the image. The discriminator halves the image down to 8x8 or
    7x7 (at least once), has two more blocks and a mean over places, and gives one logit; it has batch norm, as a
    DCGAN has, but with `critic_norm=False`, as the gradient penalty needs it. Weights are drawn after Glorot &
    Bengio (2010), uniformly, √2 as wide within the blocks, as the authors of SNGAN do; biases are 0.

    Raises `ValueError` for sizes other than those of `depth_for`.
    """
    gan = GAN(_generator(size, channels, width, latent), _discriminator(size, channels, width, critic_norm))
    in_bodies = {id(layer) for block in gan.modules() if isinstance(block, Residual) for layer in block.body.modules()}
    for layer in gan.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight, math.sqrt(2) if id(layer) in in_bodies else 1.0)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return gan


def _generator(size: int, channels: int, width: int, latent: int) -> nn.Sequential:
    """(batch, latent) → images in [-1, 1]."""
    depth = depth_for(size)
    side = size // 2**depth
    layers: list[nn.Module] = [nn.Linear(latent, width * side * side), nn.Unflatten(1, (width, side, side))]
    for _ in range(depth):
        body = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Upsample(scale_factor=2), _conv(width, width),
            nn.BatchNorm2d(width), nn.ReLU(), _conv(width, width, bias=True),
        )  # fmt: skip
        layers.append(Residual(body, nn.Sequential(nn.Upsample(scale_factor=2), _conv(width, width, 1))))
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), _conv(width, channels, bias=True), nn.Tanh())


def _discriminator(size: int, channels: int, width: int, norm: bool) -> nn.Sequential:
    """images → (batch, 1) logits."""
    halvings = max(1, math.ceil(math.log2(size / 8)))
    first = nn.Sequential(
        *_normed_conv(channels, width, norm), nn.ReLU(), _conv(width, width, bias=True), nn.AvgPool2d(2)
    )
    blocks = [Residual(first, nn.Sequential(nn.AvgPool2d(2), _conv(channels, width, 1)))]
    for index in range(halvings + 1):
        halves = index < halvings - 1
        body = [*_judging(width, norm), *([nn.AvgPool2d(2)] if halves else [])]
        blocks.append(
            Residual(nn.Sequential(*body), nn.Sequential(_conv(width, width, 1), nn.AvgPool2d(2)) if halves else None)
        )
    return nn.Sequential(*blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1))


def _judging(width: int, norm: bool) -> list[nn.Module]:
    """The body of a block: activation first."""
    before: list[nn.Module] = [nn.BatchNorm2d(width)] if norm else []
    return [*before, nn.ReLU(), *_normed_conv(width, width, norm), nn.ReLU(), _conv(width, width, bias=True)]


def _normed_conv(into: int, out: int, norm: bool) -> list[nn.Module]:
    """A convolution and its batch norm, or one with a bias."""
    return [_conv(into, out), nn.BatchNorm2d(out)] if norm else [_conv(into, out, bias=True)]

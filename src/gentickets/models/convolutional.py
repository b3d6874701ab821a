"""The two towers that the convolutional models share, so that a ticket can travel from one to another.

`ConvTrunk` halves an image until it is small: the trunk of a VAE's encoder and of a GAN's discriminator.
`ConvDecoder` doubles a latent vector until it is an image: a VAE's decoder and a GAN's generator.
Layout after DCGAN (Radford et al. 2016): 4x4 kernels with stride 2, widths doubling towards the small end.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

SIZES = (8, 16, 28, 32, 64)


def depth_for(size: int) -> int:
    """How often an image is halved by default: down to 4x4 (28: to 7x7). Raises `ValueError` for other sizes."""
    if size not in SIZES:
        raise ValueError(f"size={size}: the models take images of side {', '.join(map(str, SIZES))}")
    return 2 if size == 28 else int(math.log2(size // 4))


def _side_after(size: int, depth: int) -> int:
    if depth < 1 or size % 2**depth:
        raise ValueError(f"depth={depth}: an image of side {size} cannot be halved so often; take a smaller depth")
    return size // 2**depth


class ConvTrunk(nn.Module):
    """(batch, channels, size, size) → (batch, out_channels, side, side), `depth` times halved.

    Convolution, batch norm (not in the first block, nor anywhere with `norm=False`), LeakyReLU 0.2.
    """

    def __init__(self, size: int, channels: int, width: int, depth: int | None = None, norm: bool = True):
        super().__init__()
        depth = depth_for(size) if depth is None else depth
        self.side = _side_after(size, depth)
        self.out_channels = width * 2 ** (depth - 1)
        layers: list[nn.Module] = []
        previous = channels
        for level in range(depth):
            out = width * 2**level
            normed = norm and level > 0
            layers.append(nn.Conv2d(previous, out, 4, stride=2, padding=1, bias=not normed))
            if normed:
                layers.append(nn.BatchNorm2d(out))
            layers.append(nn.LeakyReLU(0.2))
            previous = out
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ConvDecoder(nn.Module):
    """(batch, latent) → images (batch, channels, size, size) in [-1, 1], the mirror of `ConvTrunk`.

    Transposed convolution, batch norm, ReLU; the last one without a norm, through tanh.
    """

    def __init__(self, size: int, channels: int, width: int, latent: int, depth: int | None = None):
        super().__init__()
        depth = depth_for(size) if depth is None else depth
        out = width * 2 ** (depth - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent, out, _side_after(size, depth), bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        ]
        for level in reversed(range(depth - 1)):
            previous, out = out, width * 2**level
            layers += [
                nn.ConvTranspose2d(previous, out, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
        layers += [nn.ConvTranspose2d(out, channels, 4, stride=2, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents[:, :, None, None])


class ConvHead(nn.Module):
    """A trunk and one convolution over all that is left of the image: images → (batch, outputs)."""

    def __init__(self, trunk: ConvTrunk, outputs: int):
        super().__init__()
        self.trunk = trunk
        self.head = nn.Conv2d(trunk.out_channels, outputs, trunk.side)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images)).flatten(1)

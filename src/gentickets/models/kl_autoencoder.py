"""A small autoencoder in the style of latent diffusion's (Rombach et al. 2022): a map of few channels as the code.

Group norm, SiLU and residual blocks, halved by strided convolutions and doubled by repeating pixels before one; without
the attention in the middle, and with a tanh at the end.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.models.unet import group_norm
from gentickets.models.vae import VAE
from gentickets.options import Blocks, CodeChannels, Depth, Groups, Width


class Block(nn.Module):
    """Norm, SiLU, convolution, twice, beside the shortcut."""

    def __init__(self, into: int, out: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(into, groups), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(out, groups), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if into == out else nn.Conv2d(into, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(inner)))


class MapEncoder(nn.Module):
    """images → (mean, log variance) of q(z | x), each (batch, code, side, side)."""

    def __init__(self, channels: int, widths: list[int], code: int, blocks: int, groups: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for level, (before, width) in enumerate(itertools.pairwise([widths[0], *widths])):
            if level:
                layers.append(nn.Conv2d(before, width, 3, stride=2, padding=1))
            layers += [Block(width, width, groups) for _ in range(blocks)]
        layers += [Block(widths[-1], widths[-1], groups), group_norm(widths[-1], groups), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 2 * code, 3, padding=1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.layers(images).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)


class MapDecoder(nn.Module):
    """(batch, code, side, side) → images in [-1, 1]."""

    def __init__(self, channels: int, widths: list[int], code: int, blocks: int, groups: int):
        super().__init__()
        narrowing = widths[::-1]
        layers: list[nn.Module] = [
            nn.Conv2d(code, narrowing[0], 3, padding=1),
            Block(narrowing[0], narrowing[0], groups),
        ]
        for level, (before, width) in enumerate(itertools.pairwise([narrowing[0], *narrowing])):
            if level:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, width, 3, padding=1)]
            layers += [Block(width, width, groups) for _ in range(blocks)]
        layers += [group_norm(narrowing[-1], groups), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(narrowing[-1], channels, 3, padding=1), nn.Tanh())

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


def kl_autoencoder(
    size: int,
    channels: int,
    width: Width = 32,
    depth: Depth = 3,
    code: CodeChannels = 4,
    blocks: Blocks = 1,
    groups: Groups = 8,
) -> VAE:
    """`depth` resolutions, each of half the side and twice the width of the one before: 3 make a code of a quarter.

    Raises `ValueError` for images whose side cannot be halved as often.
    """
    if size % 2 ** (depth - 1):
        raise ValueError(f"depth={depth}: an image of side {size} cannot be halved {depth - 1} times")
    widths = [width * 2**level for level in range(depth)]
    return VAE(MapEncoder(channels, widths, code, blocks, groups), MapDecoder(channels, widths, code, blocks, groups))

"""A small U-Net that denoises: `denoiser` (noisy images, times → what was added)."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentickets.options import Blocks, Classes, Depth, Groups, Width, ZeroOutput


class Diffusion(nn.Module):
    """A `denoiser`; called, it denoises."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, images: Tensor, times: Tensor, *labels: Tensor) -> Tensor:
        return self.denoiser(images, times, *labels)


def unet(
    size: int,
    channels: int,
    width: Width = 32,
    depth: Depth = 2,
    blocks: Blocks = 1,
    groups: Groups = 8,
    zero_output: ZeroOutput = True,
    classes: Classes | None = None,
) -> Diffusion:
    """`UNet` as a model of one component. With `classes` it takes labels as its third argument."""
    return Diffusion(UNet(size, channels, width, depth, blocks, groups, zero_output, classes))


class UNet(nn.Module):
    """(images, times) → (batch, channels, size, size), after DDPM (Ho et al. 2020, App. B).

    `depth` resolutions, each half of the one before, with `width`, 2 `width` … channels and `blocks` residual blocks
    on the way down and on the way up; self-attention between two blocks at the bottom. Times are whole numbers,
    (batch,): sines and cosines of them go through two layers, and are told to every block. Group norm in at most
    `groups` groups. The last convolution begins at 0, unless `zero_output=False`: criteria that ask gradients before
    training find none before a layer of zeros.

    Raises `ValueError` for a side that cannot be halved so often, and for a width that is odd.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        width: int,
        depth: int,
        blocks: int,
        groups: int,
        zero_output: bool,
        classes: int | None,
    ):
        super().__init__()
        if size % 2 ** (depth - 1):
            raise ValueError(f"depth={depth}: an image of side {size} cannot be halved {depth - 1} times")
        if width % 2:
            raise ValueError(f"width={width}: an even number is needed, half sines and half cosines")
        self.image_shape = (channels, size, size)
        widths, told = [width * 2**level for level in range(depth)], 4 * width
        self.time = TimeEmbedding(width, told)
        self.label = None if classes is None else nn.Embedding(classes, told)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        for previous, out in itertools.pairwise([width, *widths]):
            self.down.append(Stage(previous, out, blocks, told, groups))
        self.middle = Stage(widths[-1], widths[-1], 1, told, groups)
        self.attention = Attention(widths[-1], groups)
        self.last = Stage(widths[-1], widths[-1], 1, told, groups)
        self.up, self.enlarge = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(depth)):
            self.up.append(Stage(2 * widths[level], widths[level], blocks, told, groups))
            if level:
                self.enlarge.append(nn.Conv2d(widths[level], widths[level - 1], 3, padding=1))
        self.norm = group_norm(width, groups)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        if zero_output:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        if (labels is None) != (self.label is None):
            raise ValueError("a U-Net takes labels where it was made with classes=, and needs them there")
        told = self.time(times)
        if self.label is not None:
            told = told + self.label(labels)
        told = F.silu(told)
        x, kept = self.stem(images), []
        for level, stage in enumerate(self.down):
            x = stage(F.avg_pool2d(x, 2) if level else x, told)
            kept.append(x)
        x = self.last(self.attention(self.middle(x, told)), told)
        for level, stage in enumerate(self.up):
            if level:
                x = self.enlarge[level - 1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = stage(torch.cat([x, kept.pop()], dim=1), told)
        return self.out(F.silu(self.norm(x)))


class TimeEmbedding(nn.Module):
    """Times, whole numbers (batch,) → (batch, out): sines and cosines of 1 to 1/10,000 of them, then two layers."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.rates: Tensor
        self.register_buffer("rates", torch.exp(-math.log(1e4) * torch.arange(width // 2) / (width // 2)))
        self.layers = nn.Sequential(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, times: Tensor) -> Tensor:
        angles = times[:, None] * self.rates
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))


class Stage(nn.Module):
    """Residual blocks at one resolution, the first from `into` to `out` channels."""

    def __init__(self, into: int, out: int, blocks: int, told: int, groups: int):
        super().__init__()
        sides = [into, *[out] * blocks]
        self.blocks = nn.ModuleList(Block(a, b, told, groups) for a, b in itertools.pairwise(sides))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, told)
        return x


class Block(nn.Module):
    """Norm, SiLU, convolution, twice, with what is told added in between, beside the shortcut."""

    def __init__(self, into: int, out: int, told: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(into, groups), nn.Conv2d(into, out, 3, padding=1)
        self.told = nn.Linear(told, out)
        self.norm2, self.conv2 = group_norm(out, groups), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if into == out else nn.Conv2d(into, out, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x))) + self.told(told)[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(inner)))


class Attention(nn.Module):
    """Every place looks at every other: one head of self-attention, beside the shortcut."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = group_norm(width, groups)
        self.query, self.key, self.value = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        layers = (self.query, self.key, self.value)  # each (batch, 1 head, places, channels)
        found = F.scaled_dot_product_attention(
            *(layer(normed).flatten(2).transpose(1, 2).unsqueeze(1) for layer in layers)
        )
        return x + self.out(found.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """In as many groups as divide the channels, at most `groups`."""
    return nn.GroupNorm(math.gcd(groups, channels), channels)

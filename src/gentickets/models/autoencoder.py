"""Autoencoders: `encoder` (images → codes) and `decoder` (codes → images in [-1, 1])."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from gentickets.models.convolutional import ConvDecoder, ConvHead, ConvTrunk
from gentickets.options import Depth, Hidden, Latent, Width


class Autoencoder(nn.Module):
    """An `encoder` and a `decoder`, one after the other."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


def linear_autoencoder(
    size: int,
    channels: int,
    width: Width = 128,
    depth: Depth = 2,
    latent: Latent = 16,
    hidden: Hidden | None = None,
) -> Autoencoder:
    """Fully connected with ReLU; `depth` hidden layers of `width`, `width / 2` …, then the code, and the mirror.

    `hidden` gives the widths one by one instead (the paper's MNIST net: `hidden=[128, 64, 12], latent=3`).
    Raises `ValueError` for widths below 1.
    """
    inner = [width // 2**level for level in range(depth)] if hidden is None else list(hidden)
    sides = [channels * size * size, *inner, latent]
    if min(sides) < 1:
        raise ValueError(f"hidden layers {sides}: each needs a width of 1 or more")
    down = _mlp(sides)
    up = _mlp(sides[::-1])
    encoder = nn.Sequential(nn.Flatten(), *down)
    decoder = nn.Sequential(*up, nn.Tanh(), nn.Unflatten(1, (channels, size, size)))
    return Autoencoder(encoder, decoder)


def _mlp(sides: Sequence[int]) -> list[nn.Module]:
    """Linear layers between the given widths, ReLU after each but the last."""
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sides):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return layers[:-1]


def conv_autoencoder(
    size: int, channels: int, width: Width = 32, latent: Latent = 64, depth: Depth | None = None
) -> Autoencoder:
    """`ConvTrunk` and `ConvDecoder` around a code of `latent` numbers; `depth` follows from the size."""
    encoder = ConvHead(ConvTrunk(size, channels, width, depth), latent)
    return Autoencoder(encoder, ConvDecoder(size, channels, width, latent, depth))

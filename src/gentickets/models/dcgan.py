"""DCGAN (Radford et al. 2016): `generator` (latents → images) and `discriminator` (images → logits)."""

from __future__ import annotations

from torch import Tensor, nn

from gentickets.models.conditional import FromClass, OfClass
from gentickets.models.convolutional import ConvDecoder, ConvHead, ConvTrunk
from gentickets.options import Classes, CriticNorm, Depth, Latent, Width


class GAN(nn.Module):
    """A `generator` and a `discriminator`; called, it generates."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module):
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator

    def forward(self, latents: Tensor, *labels: Tensor) -> Tensor:
        return self.generator(latents, *labels)


def dcgan(
    size: int,
    channels: int,
    width: Width = 64,
    latent: Latent = 100,
    depth: Depth | None = None,
    critic_norm: CriticNorm = True,
    classes: Classes | None = None,
) -> GAN:
    """`ConvDecoder` against `ConvTrunk` with one output; weights drawn from N(0, 0.02²), as in the paper's Sec. 4.

    `critic_norm=False` leaves batch norm out of the discriminator, as the gradient penalty needs it. With `classes`
    both take labels as their second argument.
    """
    generator: nn.Module = ConvDecoder(size, channels, width, latent, depth)
    seen = channels if classes is None else channels + 1
    discriminator: nn.Module = ConvHead(ConvTrunk(size, seen, width, depth, norm=critic_norm), 1)
    if classes is not None:
        generator, discriminator = FromClass(generator, classes, latent), OfClass(discriminator, classes, size)
    gan = GAN(generator, discriminator)
    for layer in gan.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    return gan

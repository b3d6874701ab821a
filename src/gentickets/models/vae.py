"""Variational autoencoders: `encoder` (images → mean, log variance) and `decoder` (latents → images)."""

from __future__ import annotations

from torch import Tensor, nn

from gentickets.models.conditional import FromClass, OfClass
from gentickets.models.convolutional import ConvDecoder, ConvHead, ConvTrunk
from gentickets.options import Classes, Depth, Latent, Width


class GaussianEncoder(ConvHead):
    """images → (mean, log variance) of q(z | x), each (batch, latent)."""

    def __init__(self, trunk: ConvTrunk, latent: int):
        super().__init__(trunk, 2 * latent)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        mean, log_variance = super().forward(images).chunk(2, dim=1)
        return mean, log_variance


class VAE(nn.Module):
    """An `encoder` to a Gaussian over latents, and a `decoder`; called, it reconstructs from the mean."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, images: Tensor, *labels: Tensor) -> Tensor:
        return self.decoder(self.encoder(images, *labels)[0], *labels)


def conv_vae(
    size: int,
    channels: int,
    width: Width = 32,
    latent: Latent = 32,
    depth: Depth | None = None,
    classes: Classes | None = None,
) -> VAE:
    """The trunk is that of `dcgan`'s discriminator, the decoder that of its generator, at equal arguments.

    With `classes` both take labels as their second argument.
    """
    seen = channels if classes is None else channels + 1
    encoder: nn.Module = GaussianEncoder(ConvTrunk(size, seen, width, depth), latent)
    decoder: nn.Module = ConvDecoder(size, channels, width, latent, depth)
    if classes is not None:
        encoder, decoder = OfClass(encoder, classes, size), FromClass(decoder, classes, latent)
    return VAE(encoder, decoder)

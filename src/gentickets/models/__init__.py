"""The catalogue: generative models as named components, sized by width, depth and image size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from gentickets.catalogue import CATALOGUE as NAMES
from gentickets.catalogue import load
from gentickets.models.autoencoder import conv_autoencoder, linear_autoencoder
from gentickets.models.dcgan import dcgan
from gentickets.models.kl_autoencoder import kl_autoencoder
from gentickets.models.resnet import resnet_dcgan, resnet_vae
from gentickets.models.sngan import sngan
from gentickets.models.unet import unet
from gentickets.models.vae import conv_vae

CATALOGUE: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {name: load("model", name) for name in NAMES["model"]}
)
"""Name → a function `(size, channels, **options) -> nn.Module` whose children are the components."""


def options_of(name: str) -> dict[str, object]:
    """The options of a model of the catalogue, with their defaults; size and channels come from the data."""
    parameters = inspect.signature(CATALOGUE[name]).parameters
    return {key: p.default for key, p in parameters.items() if key not in ("size", "channels")}


__all__ = [
    "CATALOGUE",
    "conv_autoencoder",
    "conv_vae",
    "dcgan",
    "kl_autoencoder",
    "linear_autoencoder",
    "options_of",
    "resnet_dcgan",
    "resnet_vae",
    "sngan",
    "unet",
]

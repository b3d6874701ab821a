"""What recipes name, with the options of each, known without loading it: torch's import takes a second.

That all of this is what the signatures say is checked by the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

_TOWERS = {"width": 32, "latent": 32, "depth": None}

MODELS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "linear-autoencoder": {"width": 128, "depth": 2, "latent": 16, "hidden": None},
        "conv-autoencoder": {**_TOWERS, "latent": 64},
        "conv-vae": {**_TOWERS, "classes": None},
        "dcgan": {"width": 64, "latent": 100, "depth": None, "critic_norm": True, "classes": None},
        "paper-linear-ae": {"width": 128, "latent": 3},
        "paper-conv-ae": {"width": 32, "latent": 512},
        "paper-vae": {**_TOWERS, "width": 64},
        "paper-resnet-vae": {"width": 32, "latent": 32},
        "paper-dcgan": {"width": 128, "latent": 128, "depth": None},
        "paper-sngan": {"width": 128, "latent": 128, "depth": None},
        "paper-resnet-dcgan": {"width": 128, "latent": 128, "critic_norm": True},
        "paper-wgan": {"width": 128, "latent": 128, "depth": None, "critic_norm": True},
    }
)
"""Model → its options, with their defaults."""


class Kind(NamedTuple):
    """What an objective is told by a recipe, and which components it trains."""

    components: tuple[str, ...]
    options: tuple[str, ...]
    losses: tuple[str, ...] = ()


OBJECTIVES: Mapping[str, Kind] = MappingProxyType(
    {
        "autoencoding": Kind(("encoder", "decoder"), ("loss",), ("mse", "l1", "bce")),
        "elbo": Kind(("encoder", "decoder"), ("beta", "likelihood", "scale", "warmup_steps", "conditional")),
        "adversarial": Kind(
            ("generator", "discriminator"),
            ("loss", "n_critic", "clip", "gradient_penalty", "conditional"),
            ("nonsaturating", "hinge", "wasserstein"),
        ),
    }
)
"""Objective → what it is told and trains."""

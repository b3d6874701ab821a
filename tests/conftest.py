"""What all tests share: one thread, one seed, and a few tiny models."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from gentickets.interruptions import POLITE
from gentickets.masks.value import Masks

torch.set_num_threads(1)

settings.register_profile(
    "gentickets",
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("gentickets")


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - user code may draw from it
    torch.manual_seed(0)


_HANDLERS, _HOOK = {which: signal.getsignal(which) for which in POLITE}, sys.unraisablehook
"""Before any test, and before the fixtures of whole modules, which are set up before those of their tests."""


@pytest.fixture(autouse=True)
def _same_signals() -> Iterator[None]:
    """The program ends deaf to signals; where a test or a fixture ran it in here, processes would inherit that."""
    _hear_as_before()
    yield
    _hear_as_before()


def _hear_as_before() -> None:
    sys.unraisablehook = _HOOK
    for which, handler in _HANDLERS.items():
        signal.signal(which, handler)


class Autoencoder(nn.Module):
    """Two linear components."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 3))
        self.decoder = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Gan(nn.Module):
    """A DCGAN in small: transposed convolutions, batch norm and tanh against strided convolutions."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(5, 6, 4, 1, 0, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4, 1, 3, padding=1),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            norm(nn.Conv2d(1, 4, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            norm(nn.Conv2d(4, 6, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            norm(nn.Linear(24, 1)),
        )


@pytest.fixture
def autoencoder() -> Autoencoder:
    return Autoencoder()


@pytest.fixture
def gan() -> Gan:
    return Gan()


@pytest.fixture
def make_gan() -> type[Gan]:
    return Gan


@pytest.fixture
def make_autoencoder() -> type[Autoencoder]:
    return Autoencoder


@pytest.fixture
def half() -> Callable[..., Masks]:
    """Masks of a model with about half of every prunable weight alive, at random places."""

    def make(model: nn.Module, seed: int = 0, **choice: object) -> Masks:
        generator = torch.Generator().manual_seed(seed)
        dense = Masks.dense(model, **choice)  # type: ignore[arg-type]
        return Masks({name: torch.rand(mask.shape, generator=generator) < 0.5 for name, mask in dense.items()})

    return make

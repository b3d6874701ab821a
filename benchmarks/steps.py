"""The networks of the benchmarks, and one training step of each as a callable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

import gentickets as gt
from gentickets import models
from gentickets.adam import FusedAdamW
from gentickets.models.paper import paper_dcgan

BATCH = 64

_DEVICE = torch.device("cpu")


def device() -> torch.device:
    """Where networks are built."""
    return _DEVICE


def use(name: str) -> None:
    """Has networks built on another device from here on. Raises `LookupError`, in one line, where there is none."""
    global _DEVICE
    if name not in ("cpu", "cuda"):
        raise LookupError(f"--device {name}: cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise LookupError("--device cuda: no CUDA device here; leave it out, or take cpu")
    _DEVICE = torch.device(name)


@dataclass(frozen=True)
class Net:
    """A model with what it takes to train it for a step: random images in [-1, 1] and Adam's settings."""

    model: nn.Module
    objective: gt.Objective
    batch: Tensor
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)

    def parameters(self, component: str) -> list[nn.Parameter]:
        return list(getattr(self.model, component).parameters())


def _images(channels: int, size: int) -> Tensor:
    return torch.rand(BATCH, channels, size, size) * 2 - 1


def tiny_ae() -> Net:
    return Net(models.linear_autoencoder(8, 1, hidden=[16], latent=4), gt.Autoencoding(), _images(1, 8))


def linear_ae() -> Net:
    """784-512-256-128-64 and mirror: 1.15 million weights."""
    model = models.linear_autoencoder(28, 1, hidden=[512, 256, 128], latent=64)
    return Net(model, gt.Autoencoding(), _images(1, 28))


def deep_ae() -> Net:
    """3072-1024-256-64 and mirror: 6.9 million weights."""
    model = models.linear_autoencoder(32, 3, hidden=[1024, 256], latent=64)
    return Net(model, gt.Autoencoding(), _images(3, 32))


def vae(width: int = 64) -> Net:
    return Net(models.conv_vae(32, 3, width=width, latent=128), gt.ELBO(128), _images(3, 32))


def dcgan(width: int = 64) -> Net:
    model = models.dcgan(32, 3, width=width, latent=100)
    return Net(model, gt.Adversarial(100), _images(3, 32), lr=2e-4, betas=(0.5, 0.999))


def table2_dcgan(width: int = 128) -> Net:
    """Of Table 2 of Kalibhat et al. (2021): 5.65 million weights at its width, batches of 100."""
    model = paper_dcgan(32, 3, width=width, latent=47)
    return Net(model, gt.Adversarial(47), torch.rand(100, 3, 32, 32) * 2 - 1, lr=2e-4, betas=(0.5, 0.999))


NETS: Mapping[str, Callable[..., Net]] = MappingProxyType(
    {
        "tiny-ae": tiny_ae,
        "linear-ae": linear_ae,
        "deep-ae": deep_ae,
        "vae": vae,
        "dcgan": dcgan,
        "table2-dcgan": table2_dcgan,
    }
)


def build(name: str, **options: int) -> Net:
    """The network of that name, on the device in use; equal names and options, equal weights and images."""
    torch.manual_seed(0)
    net = NETS[name](**options)
    return replace(net, model=net.model.to(device()), batch=net.batch.to(device()))


def magnitude_masks(net: Net, sparsity: float) -> gt.Masks:
    """The same sparsity in each layer: a global threshold would cut the VAE in two."""
    return gt.prune(gt.magnitude(net.model), to_sparsity=sparsity, scope="layer")


Adam = Callable[[list[nn.Parameter], Net], torch.optim.Optimizer]
"""Parameters and the net whose settings to take → an Adam over them."""


def fused(parameters: list[nn.Parameter], net: Net) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=net.lr, betas=net.betas, fused=True)


def default(parameters: list[nn.Parameter], net: Net) -> torch.optim.Optimizer:
    """What one gets without asking."""
    return torch.optim.Adam(parameters, lr=net.lr, betas=net.betas)


def capturable(parameters: list[nn.Parameter], net: Net) -> torch.optim.Optimizer:
    """As a CUDA graph needs it."""
    return torch.optim.Adam(parameters, lr=net.lr, betas=net.betas, fused=True, capturable=True)


def as_in_train(parameters: list[nn.Parameter], net: Net) -> torch.optim.Optimizer:
    """The one that `gentickets.training.loop.train` takes on a CPU: the fused one to the bit, with less around it."""
    return FusedAdamW(parameters, lr=net.lr, betas=net.betas, weight_decay=0.0, fused=True)


class Step:
    """A plain training step: each loss of the objective in turn, backward, Adam on the components that it trains.

    `after(component)` is called after each optimiser step, as loops do that mask there.
    """

    def __init__(self, net: Net, adam: Adam = fused, after: Callable[[str], None] | None = None):
        self.net, self.after = net, after
        self.parameters = {name: net.parameters(name) for name in net.objective.components}
        self.optimizers = {name: adam(own, net) for name, own in self.parameters.items()}
        self.rng = torch.Generator(net.batch.device).manual_seed(0)
        net.model.train()

    def __call__(self) -> None:
        self.on(self.net.batch)

    def on(self, batch: Tensor) -> None:
        """The step on a batch of its own."""
        for trained, loss in self.net.objective.losses(self.net.model, batch, self.rng):
            names = (trained,) if isinstance(trained, str) else trained
            weights = [weight for name in names for weight in self.parameters[name]]
            for weight in weights:
                weight.grad = None
            loss.backward(inputs=weights)
            self._update(names)

    @property
    def nbytes(self) -> int:
        """Bytes of weights, their gradients and the optimisers' state, once a step was taken."""
        own = [weight for weights in self.parameters.values() for weight in weights]
        states = [state for optimizer in self.optimizers.values() for state in optimizer.state.values()]
        kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return sum(2 * weight.nbytes for weight in own) + sum(value.nbytes for value in kept)

    def update(self) -> None:
        """All that comes after the backward passes, with the gradients of the last ones."""
        self._update(self.parameters)

    def _update(self, names: Iterable[str]) -> None:
        for name in names:
            self.optimizers[name].step()
            if self.after is not None:
                self.after(name)

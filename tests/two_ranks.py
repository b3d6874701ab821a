"""Small trainings, and what each of two processes makes of them together: imported by those processes.

A case is a function of a Fabric, of two devices or None; what it gives is compared between the ranks, and with what one
process gives. One that raises what a user can mend gives its words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from gentickets import models
from gentickets.data.batches import Labelled
from gentickets.errors import Diverged, GenticketsError
from gentickets.masks.names import named_state
from gentickets.masks.value import Masks
from gentickets.objectives import ELBO, Adversarial, Autoencoding, Denoising, GainPenalty, Objective
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import magnitude
from gentickets.search.rigl import DropAndGrow
from gentickets.sparse import execution
from gentickets.training import Checkpoint, Hook, Settings, State, train
from gentickets.training.devices import several_devices

IMAGES = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
SETTINGS = Settings(steps=3, batch_size=8, ema=0.9, clip_norm=1.0, weight_decay=0.01, lr=3e-3)

Case = Callable[[Fabric | None, Path], dict[str, Any]]
CASES: dict[str, Case] = {}


@dataclass
class Source:
    """Batches by step, as `data.Batches` gives them."""

    count: int = 8
    labelled: bool = False

    def at(self, step: int) -> Any:
        rows = torch.randint(0, 64, (self.count,), generator=torch.Generator().manual_seed(step))
        return Labelled(IMAGES[rows], rows % 3) if self.labelled else IMAGES[rows]


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def every_layer(_model: nn.Module, _work: Any, costs: Any) -> dict[int, Any]:
    """All that can run on live weights does, whatever it costs: a choice for `accelerate`."""
    return {layer: cost.ways[0] for layer, cost in costs.items()}


def autoencoder() -> nn.Module:
    torch.manual_seed(1)
    return models.linear_autoencoder(8, 1, width=8, latent=2)


def gan() -> nn.Module:
    torch.manual_seed(1)
    return models.dcgan(8, 1, width=4, latent=3)


def half(model: nn.Module) -> Masks:
    return prune(magnitude(model), fraction=0.5)


def trained(
    fabric: Fabric | None, model: nn.Module, objective: Objective, settings: Settings = SETTINGS, **more: Any
) -> dict[str, Any]:
    """Weights and averages after a training, and how far it came."""
    source = more.pop("source", Source(8 * objective.batches_per_step, objective.wants_labels))
    done = train(model, objective, source, settings, fabric=fabric, **more)
    averages = {f"average of {name}": tensor for name, tensor in named_state(done.averaged).items()}
    sparse = [choice.layer for choice in done.choices if choice.sparse]
    came = {"images": done.images, "step": done.step, "masks": done.masks, "sparse": sparse}
    return {**named_state(model), **averages, **came}


# -- families ----------------------------------------------------------------------------------------------------------


@case
def ae(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    model = autoencoder()
    return trained(fabric, model, GainPenalty(Autoencoding(), 0.1), masks=half(model))


@case
def ae_with_dropout(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    model = autoencoder()
    model.encoder.append(nn.Dropout(0.5))  # type: ignore[operator, union-attr]
    return trained(fabric, model, Autoencoding("l1"))


@case
def ae_with_a_frozen_encoder(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    model = autoencoder()
    model.encoder.requires_grad_(False)  # type: ignore[union-attr]
    return trained(fabric, model, Autoencoding(), masks=half(model))


@case
def ae_on_live_weights(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    return sparse_where_it_can_be(fabric, Autoencoding())


@dataclass(frozen=True)
class OverLinearLayers(Autoencoding):
    """Reconstruction, and a penalty over the weights of linear layers, which sparse ones are not."""

    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Any]:
        linear = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
        for components, loss in super().losses(model, batch, rng):
            yield components, loss + 0.01 * sum(weight.square().sum() for weight in linear)


@case
def ae_with_a_penalty_that_live_weights_would_drop(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    return sparse_where_it_can_be(fabric, OverLinearLayers())


def sparse_where_it_can_be(fabric: Fabric | None, objective: Objective) -> dict[str, Any]:
    before, execution.faster = execution.faster, every_layer
    try:
        model = autoencoder()
        return trained(fabric, model, objective, masks=half(model))
    finally:
        execution.faster = before


@case
def vae(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    torch.manual_seed(1)
    model = models.conv_vae(8, 1, width=4, latent=3)
    return trained(fabric, model, ELBO(3, warmup_steps=2), masks=half(model))


@case
def vae_of_labels(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    torch.manual_seed(1)
    return trained(fabric, models.conv_vae(8, 1, width=4, latent=3, classes=3), ELBO(3, conditional=True))


@case
def dcgan(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    model = gan()
    return trained(fabric, model, Adversarial(3, n_critic=2), masks=half(model))


@case
def wgan_with_a_penalty_through_batch_norm(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    model = gan()
    model.discriminator = nn.Sequential(
        nn.Conv2d(1, 4, 4, 2, 1, bias=False),  # a bias before batch norm has no gradient but rounding
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 1, 4),
    )
    return trained(fabric, model, Adversarial(3, loss="wasserstein", gradient_penalty=10.0))


@case
def denoiser(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    torch.manual_seed(1)
    # Not from a zero output, which magnitude would prune first; and without norms that make a bias of no effect.
    model = models.unet(8, 1, width=8, groups=2, zero_output=False)
    settings = replace(SETTINGS, lr=1e-3)
    found = trained(fabric, model, Denoising(timesteps=20, sampling_steps=4), settings, masks=half(model))
    # Attention is the same whatever is added to all its keys: that bias has no gradient but rounding.
    return {name: value for name, value in found.items() if not name.endswith("attention.key.bias")}


FAMILIES = tuple(CASES)


# -- what is decided ---------------------------------------------------------------------------------------------------


@case
def moving_masks(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    model = gan()
    settings = replace(SETTINGS, steps=6)
    return trained(
        fabric, model, Adversarial(3), settings, masks=half(model), hooks=[DropAndGrow(0.3, every=2, until=1)]
    )


@dataclass
class EndsBy(Hook):
    """Ends a training by something that is not the same everywhere, as a clock is not."""

    last: int
    seen: int = 0

    def after_step(self, state: State) -> bool:
        self.seen = state.step
        return state.step == self.last

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


@case
def ended_by_a_hook(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    hook = EndsBy(last=2 + rank_of(fabric))
    return {**trained(fabric, autoencoder(), Autoencoding(), hooks=[hook]), "seen": hook.seen}


@case
def stopped_and_gone_on_with(fabric: Fabric | None, folder: Path) -> dict[str, Any]:
    """Stopped on the last rank alone, by a state that the first one alone keeps."""
    settings = replace(SETTINGS, steps=7)
    kept = Checkpoint(folder / "state", "mine", every=1e9) if rank_of(fabric) == 0 else None
    asked = iter([False, False, True])

    def stop() -> bool:
        return (fabric is None or rank_of(fabric) == 1) and next(asked)

    def model() -> nn.Module:
        made = autoencoder()
        made.encoder.append(nn.Dropout(0.5))  # type: ignore[operator, union-attr]
        return made

    try:
        trained(fabric, model(), Autoencoding(), settings, checkpoint=kept, stop=stop)
        raise AssertionError("it was to stop")
    except KeyboardInterrupt:
        stopped_at = kept.load()["step"] if kept is not None else None  # type: ignore[index]
    torch.manual_seed(999)
    found = trained(fabric, model(), Autoencoding(), settings, checkpoint=kept)
    whole = trained(fabric, model(), Autoencoding(), settings)
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items() if isinstance(tensor, Tensor))
    return {**found, "stopped at": 3 if stopped_at is None else stopped_at}


class Broken(Source):
    """The last rank's last image of the second step is none."""

    def at(self, step: int) -> Tensor:
        images: Tensor = super().at(step).clone()
        images[-1] = torch.inf if step == 1 else images[-1]
        return images


@case
def diverged_on_the_last_rank(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    return trained(fabric, autoencoder(), Autoencoding(), source=Broken())


class SaysSo(Autoencoding):
    """Looks at its images itself, and ends a training by them."""

    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Any]:
        if not batch.isfinite().all():
            raise Diverged("an image is not finite")
        yield from super().losses(model, batch, rng)


@case
def diverged_by_word_of_the_last_rank(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    return {"both": ended_together(fabric, SaysSo())}


def ended_together(fabric: Fabric | None, objective: Objective) -> bool:
    try:
        trained(fabric, autoencoder(), objective, source=Broken())
    except Diverged:
        return True
    return False


# -- what is refused ---------------------------------------------------------------------------------------------------


class Summed(Autoencoding):
    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Any]:
        yield self.components, (self.reconstruct(model, batch) - batch).square().sum()


class Mixed(Autoencoding):
    """Looks across the images of a batch: each is mixed with another."""

    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Any]:
        yield from super().losses(model, batch.lerp(batch.flip(0), 0.3), rng)


class Shuffled(Autoencoding):
    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Any]:
        yield from super().losses(model, batch.lerp(batch[torch.randperm(len(batch), generator=rng)], 0.3), rng)


class NoisyBias(Autoencoding):
    """Draws as many numbers for a code, whatever the batch, as a rank has images."""

    def losses(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Any]:
        noise = torch.randn(4, generator=rng).sum()
        yield self.components, (self.reconstruct(model, batch) - batch + 0.1 * noise).square().mean()


class OwnNorm(nn.Module):
    """Statistics of a batch, by hand."""

    def forward(self, codes: Tensor) -> Tensor:
        return (codes - codes.mean(0)) / (codes.std(0) + 0.1)


@case
def refused_sum(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    return trained(fabric, autoencoder(), Summed())


@case
def refused_mixing(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    return trained(fabric, autoencoder(), Mixed())


@case
def refused_permutation(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    return trained(fabric, autoencoder(), Shuffled())


@case
def refused_ambiguous_draw(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    return trained(fabric, autoencoder(), NoisyBias())


@case
def refused_norm_by_hand(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    model = autoencoder()
    model.encoder.append(OwnNorm())  # type: ignore[operator, union-attr]
    return trained(fabric, model, Autoencoding())


@case
def refused_share(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    return trained(fabric, autoencoder(), Autoencoding(), source=Source(7))


@case
def refused_shards(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    class Own(Source):
        def at(self, step: int) -> Any:
            return super().at(step + 100 * rank_of(fabric))

    return trained(fabric, autoencoder(), Autoencoding(), source=Own())


@case
def refused_other_weights(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    torch.manual_seed(rank_of(fabric))
    return trained(fabric, models.linear_autoencoder(8, 1, width=8, latent=2), Autoencoding())


@case
def refused_other_masks(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    model = autoencoder()
    masks = Masks.dense(model) if rank_of(fabric) else half(model)
    return trained(fabric, model, Autoencoding(), masks=masks)


@case
def refused_wrapped(fabric: Fabric | None, _: Path) -> dict[str, Any]:
    assert fabric is not None
    return trained(fabric, fabric.setup_module(autoencoder()), Autoencoding())


@case
def refused_wrapped_and_no_fabric(_fabric: Fabric | None, _: Path) -> dict[str, Any]:
    return trained(None, nn.parallel.DistributedDataParallel(autoencoder()), Autoencoding())


@case
def refused_wrapped_component(_fabric: Fabric | None, _: Path) -> dict[str, Any]:
    model = autoencoder()
    model.encoder = nn.parallel.DistributedDataParallel(model.encoder)  # type: ignore[arg-type]
    return trained(None, model, Autoencoding())


# -- the processes -----------------------------------------------------------------------------------------------------


def rank_of(fabric: Fabric | None) -> int:
    return 0 if fabric is None else fabric.global_rank


def alone(name: str, folder: Path) -> dict[str, Any]:
    """What one process gives."""
    torch.manual_seed(0)
    return _given(CASES[name], None, folder)


def work(rank: int, folder: Path) -> None:
    """One of two processes: does every case, and writes what it gave."""
    torch.set_num_threads(1)
    with several_devices("cpu", "32-true", rank, 2, folder / "store") as fabric:
        for name, function in CASES.items():
            begun, place = time.monotonic(), folder / name
            place.mkdir(exist_ok=True)
            torch.manual_seed(0)
            found = {**_given(function, fabric, place), "seconds": time.monotonic() - begun}
            torch.save(found, folder / f"{name}.{rank}")
            dist.barrier()


def _given(function: Case, fabric: Fabric | None, folder: Path) -> dict[str, Any]:
    try:
        return function(fabric, folder)
    except GenticketsError as error:
        return {"refused": f"{type(error).__name__}: {error}"}

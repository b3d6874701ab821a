"""The bugs of the field's other tools, each with a test that catches it.

A bug that another file catches already is only named here; docs/traps.md tells what each of them is.

| trap | caught by (… shortens a name) |
|---|---|
| 1 a random mask that is the same mask | test_pruning: random_like_keeps_the_counts_and_moves_… |
| 2 pruned weights that come back at the next level | test_search: the_rounds_of_imp; test_hold: rounds_of_pruning_… |
| 3 an import that fails on a new torch | test_traps_paper: every_module_can_be_imported |
| 4 weights not zero after the step | test_hold: sparse_at_every_forward; here, for what is saved |
| 5 masks and spectral norm | test_masks: normed_layers_…; test_hold: spectral_norm_sees_…; here, for a search |
| 6 shrinking and spectral norm | test_shrink: random_nets |
| 7 no copy of a masked model | test_hold: copies_of_a_held_model_are_not_held; here, with averages |
| 8 transposed convolutions left dense | test_masks: default_prunable_weights |
| 9 Adam's old state moves pruned weights | test_hold: carried_adam_state_…; here, from round to round |
| 10 too many weights for torch.quantile | test_pruning: more_weights_than_torch_quantile_takes |
| 11 a call of CUDA on a machine without | test_early_bird: all of them run on the CPU |
| masks read off the zeros of a checkpoint | here |
| names added to a model's state; parameters replaced | here |
| memory that grows with the steps | here |
| a dead layer hides all later ones from shrinking | here |
| an optimiser of parameters that are gone after shrinking | here; test_shrink: training_goes_on_… |
| the "ticket" is the trained model | here; test_search: every_round_starts_from_… |
| averages that are not sparse | test_training: weights_and_averages_stay_…; test_hold: averaged_copies |
| channels of transposed convolutions on the wrong axis | test_early_bird: filters_of_transposed_… |
| layers counted twice | test_masks: shared_tensors_are_named_once; test_cost: a_layer_used_twice_… |
| shortcuts pruned away, nothing flows | test_liveness: residual_nets; test_saliency: synflow_keeps_… |
| resumed without the random state | test_training: dropout_is_resumed_too |
| distances of fewer images than features | test_metrics: frechet_of_fewer_images_than_features |
| a metric that failed in silence | test_features: samples_that_are_not_finite_…; test_results: a_value_that_is_not_… |
| one byte, or four, a mask weight; pickles | test_ticket: one_bit_a_mask_weight, loading_runs_no_pickle |
"""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import gentickets as gt
from gentickets import models
from gentickets.masks.names import named_state, named_weights
from gentickets.training.loop import Checkpoint, Settings, train

IMAGES = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


class Source:
    """Batches by step."""

    def at(self, step: int) -> Tensor:
        return IMAGES[torch.randint(0, 48, (8,), generator=torch.Generator().manual_seed(step))]


def dcgan() -> nn.Module:
    return models.dcgan(8, 1, width=4, latent=3)


def norm_all(model: nn.Module, norm: Any) -> nn.Module:
    """`norm` on every convolution of `model`, of both components."""
    for layer in list(model.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            norm(layer)
    return model


# -- holding to masks -----------------------------------------------------------------------------------------


def test_whatever_is_saved_after_any_step_is_sparse(tmp_path: Path) -> None:
    """A tool that masks at the next forward pass saves, and averages, weights that are dense."""
    model = dcgan()
    masks = gt.prune(gt.magnitude(model), fraction=0.6)
    saved: list[int] = []

    class Auditing(Checkpoint):
        def save(self, state: dict[str, Any]) -> None:
            super().save(state)
            kept = self.load()
            assert kept is not None
            saved.append(kept["step"])
            for name, mask in masks.items():
                assert not kept["model"][name][~mask].any()
                component, _, rest = name.partition(".")
                if component == "generator":
                    assert not kept["averaged"][f"generator.module.{rest}"][~mask].any()

    settings = Settings(steps=6, batch_size=8, lr=0.05, weight_decay=0.1, ema=0.5)
    train(model, gt.Adversarial(3), Source(), settings, masks=masks, checkpoint=Auditing(tmp_path / "c", "key", 0.0))
    assert saved == [1, 2, 3, 4, 5]
    masks.audit(model)


def test_holding_adds_no_name_and_replaces_no_parameter(autoencoder: nn.Module, half) -> None:
    """torch.nn.utils.prune puts `weight_orig` and `weight_mask` in the place of `weight`."""
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.1)
    names = list(autoencoder.state_dict())
    parameters = [id(p) for p in autoencoder.parameters()]
    with half(autoencoder).hold(autoencoder, optimizer):
        autoencoder(torch.randn(4, 10)).square().sum().backward()
        optimizer.step()
        assert list(autoencoder.state_dict()) == names
        assert [id(p) for p in autoencoder.parameters()] == parameters
        assert all(type(layer).__module__.startswith("torch.nn.modules") for layer in autoencoder.encoder)
    assert list(autoencoder.state_dict()) == names


def test_the_number_of_tensors_does_not_grow_with_the_steps(autoencoder: nn.Module, half) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.freeze()  # what other tests left behind is not looked through
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.01)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            autoencoder(torch.ones(4, 10)).square().sum().backward()
            optimizer.step()

    steps(1)
    before = tensors()
    for seed in range(3):  # rounds, too: what a hold kept goes when it ends
        with half(autoencoder, seed=seed).hold(autoencoder, optimizer) as hold:
            steps(2)
            hold.mask_gradients()
            held = tensors()
            steps(20)
            hold.mask_gradients()
            assert tensors() == held
    assert tensors() == before
    gc.unfreeze()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_a_search_under_spectral_norm_with_averages(norm: Any) -> None:
    """Old and new style: rounds copy, rewind, average and shrink a model that has been run."""
    settings = Settings(steps=5, batch_size=8, lr=0.01, ema=0.9)

    def training(model: nn.Module, masks: gt.Masks, start_step: int, end_step: int) -> None:
        done = train(
            model, gt.Adversarial(3), Source(), settings, masks=masks, start_step=start_step, end_step=end_step
        )
        masks.select("generator").audit(done.averaged)

    levels = list(gt.imp(lambda: norm_all(dcgan(), norm), training, steps=5, rewind_step=1, rounds=2, fraction=0.4))
    for level in levels:
        level.masks.audit(level.model)
        for name, layer in level.model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                mask = next(level.masks[key] for key in level.masks if key.startswith(f"{name}."))
                assert not layer.weight.detach()[~mask].any()  # what the layer really multiplies with
    assert levels[2].masks.alive < 0.4 * levels[0].masks.total
    inputs = {"generator": torch.randn(3, 3), "discriminator": IMAGES[:3]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        small = gt.shrink(levels[2].model, levels[2].masks, inputs)
    assert small.discriminator(IMAGES[:3]).shape == (3, 1)


def test_no_momentum_survives_from_round_to_round() -> None:
    """Adam's averages of one round must not take part in the next: its first step is one of a new optimiser."""
    settings = Settings(steps=6, batch_size=8, lr=0.05)
    given: list[dict[str, Tensor]] = []

    def training(model: nn.Module, masks: gt.Masks, start_step: int, end_step: int) -> None:
        given.append({name: tensor.detach().clone() for name, tensor in named_state(model).items()})
        steps = end_step if len(given) == 1 else 1
        train(model, gt.Adversarial(3), Source(), settings, masks=masks, start_step=start_step, end_step=steps)

    [_, level] = gt.imp(dcgan, training, steps=6, rounds=1, fraction=0.5)
    for name, weight in named_weights(level.model).items():
        moved = (weight.detach() - given[-1][name]).abs()
        moved = moved[moved > 0]
        # A new Adam moves every weight with a gradient by `lr`, whatever its size; one with old averages does not.
        assert len(moved), name
        assert float(moved.max()) <= 0.05 * (1 + 1e-4), name
        assert float(moved.median()) == pytest.approx(0.05, rel=1e-2), name


# -- tickets --------------------------------------------------------------------------------------------------


def test_a_live_weight_of_zero_stays_alive(tmp_path: Path) -> None:
    """Tools that keep no mask read it off the zeros of a checkpoint: a layer that starts at zero would be lost."""
    model = models.linear_autoencoder(8, 1, width=8, latent=2)
    masks = gt.prune(gt.magnitude(model, exclude="decoder.0.weight"), fraction=0.5, within=gt.Masks.dense(model))
    nn.init.zeros_(model.decoder[0].weight)
    gt.Ticket(masks, model).save(tmp_path / "t")
    ticket = gt.Ticket.load(tmp_path / "t")
    assert ticket.masks["decoder.0.weight"].all()
    fresh = ticket.install(models.linear_autoencoder(8, 1, width=8, latent=2))
    train(fresh, gt.Autoencoding(), Source(), Settings(steps=3, batch_size=8, lr=0.01), masks=ticket.masks)
    assert (fresh.decoder[0].weight != 0).any()
    ticket.masks.audit(fresh)


def test_a_ticket_holds_the_weights_to_start_from_and_not_the_trained_ones() -> None:
    settings = Settings(steps=4, batch_size=8, lr=0.01)

    def training(model: nn.Module, masks: gt.Masks, start_step: int, end_step: int) -> None:
        train(model, gt.Adversarial(3), Source(), settings, masks=masks, start_step=start_step, end_step=end_step)

    torch.manual_seed(4)
    start = named_state(dcgan())
    torch.manual_seed(4)
    for level in gt.imp(dcgan, training, steps=4, rounds=1, fraction=0.5):
        assert all(torch.equal(tensor, start[name]) for name, tensor in level.ticket.weights.items())
        trained = named_state(level.model)
        assert not torch.equal(trained["generator.layers.0.weight"], start["generator.layers.0.weight"])


# -- shrinking ------------------------------------------------------------------------------------------------


class One(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


@pytest.mark.filterwarnings("ignore:component")
def test_a_dead_layer_does_not_hide_the_later_ones() -> None:
    """A script that met a convolution without a live channel left every layer after it as it was."""
    model = One(nn.Sequential(*(nn.Conv2d(3 if i == 0 else 8, 8, 1, bias=i > 0) for i in range(4)), nn.Conv2d(8, 2, 1)))
    masks = gt.Masks.dense(model).replace({"net.1.weight": torch.zeros(8, 8, 1, 1, dtype=torch.bool)})
    for layer in (2, 3):
        alive = torch.ones(8, 8, 1, 1, dtype=torch.bool)
        alive[5:] = False
        masks = masks.replace({f"net.{layer}.weight": alive, f"net.{layer}.bias": alive[:, 0, 0, 0]})
    example = {"net": torch.randn(2, 3, 4, 4)}
    small = gt.shrink(model, masks, example)
    assert small.net[3].out_channels <= 5
    assert small.net[4].in_channels <= 5
    masked = masks.apply_(model)
    torch.testing.assert_close(small.net(example["net"]), masked.net(example["net"]))


def test_every_parameter_of_a_shrunk_net_is_trained() -> None:
    """An optimiser made before shrinking holds parameters that are gone: the shrunk layers stood still."""
    model = One(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 6)))
    masks = gt.prune(gt.magnitude(model), fraction=0.5, scope="layer", granularity="channel")
    masks = masks.replace({name: torch.ones_like(masks[name]) for name in ("net.4.weight", "net.4.bias")})
    small = gt.shrink(model, masks, {"net": torch.randn(4, 6)})
    assert small.net[0].out_features < 8
    assert not {id(p) for p in small.parameters()} & {id(p) for p in model.parameters()}
    before = [p.detach().clone() for p in small.parameters()]
    old = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(small.parameters(), 0.01)
    small.train().net(torch.randn(16, 6)).square().mean().backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    moved = [bool((a != b).any()) for a, b in zip(before, small.parameters(), strict=True)]
    # A bias before a batch norm has no gradient but rounding.
    assert all(m for m, (name, _) in zip(moved, small.named_parameters(), strict=True) if name != "net.0.bias")
    assert all(torch.equal(a, b) for a, b in zip(old, model.parameters(), strict=True))

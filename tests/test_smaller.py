"""A smaller decoder against a frozen encoder: bit-unchanged, of at most the size asked for, and beside its controls."""

from pathlib import Path

import numpy as np
import pytest
import torch

import gentickets as gt
from gentickets import testing
from gentickets.catalogue import Named
from gentickets.data.images import ImageSet
from gentickets.errors import RecipeError
from gentickets.lab.study.study import read_study
from gentickets.models.kl_autoencoder import kl_autoencoder
from gentickets.objectives import Autoencoding, Frozen, KLAutoencoding
from gentickets.search.smaller import BornSmall, Smaller
from gentickets.testing.bench import Bench

RECIPE = Path(__file__).parents[1] / "recipes/showcase/small-decoder.yaml"
HOW = {"rounds": 1, "components": ["decoder"], "frozen": ["encoder"], "parameters": 1500}


def make() -> torch.nn.Module:
    return kl_autoencoder(8, 1, width=8, depth=1, code=2, groups=4)


@pytest.fixture
def bench(tmp_path) -> Bench:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    return Bench(tmp_path, make, KLAutoencoding(), ImageSet.from_arrays("noise", pixels), steps=4)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "around"), [(Smaller, {"name": "distilled", "strength": 1.0}), (BornSmall, None)], ids=["smaller", "born"]
)
def test_the_encoder_is_that_of_the_dense_model_to_the_bit_and_the_decoder_is_trained(bench, kind, around):
    dense, small = bench.run(kind(**HOW, around=around, begin=1))
    for name, tensor in dense.model.encoder.state_dict().items():
        assert torch.equal(small.model.encoder.state_dict()[name], tensor)
    start = kind(**HOW).network(small.ticket, make(), bench.example_inputs(make())).model
    trained, before = small.model.decoder.parameters(), start.decoder.parameters()
    assert all(bool((now != was).any()) for now, was in zip(trained, before, strict=True))
    assert small.span == (1, 4)


def test_the_decoder_has_at_most_what_was_asked_for_and_its_controls_have_as_much(bench):
    method = Smaller(**HOW, at_least=2)
    dense, small = bench.run(method)
    controls = [method.control(arm, small, bench.work(), seed=3) for arm in ("random_mask", "redrawn_weights")]

    def size(level) -> int:
        return sum(weight.numel() for weight in level.model.decoder.parameters())

    assert size(small) <= 1500 < size(dense)
    assert [size(control) for control in controls] == [size(small)] * 2
    for control in controls:
        assert all(map(torch.equal, control.model.encoder.parameters(), dense.model.encoder.parameters()))
    assert controls[0].ticket.masks != small.ticket.masks
    assert controls[1].ticket.masks == small.ticket.masks
    assert [control.span for control in controls] == [(0, 4), (0, 4)]


def test_one_born_small_is_as_wide_everywhere_and_shares_no_weight_of_the_dense_decoder(bench):
    dense, small = bench.run(BornSmall(**HOW))
    start = small.ticket.weights
    assert not torch.equal(start["decoder.layers.0.weight"], dense.model.decoder.layers[0].weight)
    assert torch.equal(start["encoder.layers.0.weight"], dense.model.encoder.layers[0].weight)
    assert not BornSmall(**HOW).has_controls(bench.work(), 1)


def test_with_a_frozen_component_it_does_what_a_run_needs():
    options = {"name": "smaller", "rounds": 1, "fraction": 0.3, "components": ["decoder"], "frozen": ["encoder"]}
    testing.check_method(options, steps=2, counts=False)


def test_frozen_components_keep_their_statistics_and_their_modes():
    model = torch.nn.ModuleDict(
        {"encoder": torch.nn.BatchNorm2d(1), "decoder": torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))}
    ).train()
    objective = Frozen(Autoencoding(), kept=("encoder",))
    before = state(model)
    losses = list(objective.losses(_attributes(model), torch.rand(4, 1, 2, 2), torch.Generator()))
    assert [components for components, _ in losses] == [("decoder",)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert objective.averaged == ("decoder",)
    assert not list(
        Frozen(objective, ("decoder",)).losses(_attributes(model), torch.rand(4, 1, 2, 2), torch.Generator())
    )


def _attributes(model: torch.nn.ModuleDict) -> torch.nn.Module:
    holder = torch.nn.Module()
    holder.encoder, holder.decoder = model["encoder"], model["decoder"]
    return holder


def test_the_loss_of_a_latent_space_is_the_formula():
    torch.manual_seed(0)
    model, images = make(), torch.rand(3, 1, 8, 8) * 2 - 1
    ((components, loss),) = KLAutoencoding(beta=0.5).losses(model, images, torch.Generator().manual_seed(1))
    mean, log_variance = model.encoder(images)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    output = model.decoder(mean + noise * (log_variance / 2).exp())
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).mean()
    assert components == ("encoder", "decoder")
    torch.testing.assert_close(loss, (output - images).square().mean() + 0.5 * kl)
    error = (model(images) - images).square().mean((1, 2, 3))
    found = KLAutoencoding().measures()["psnr"].of(model, images, torch.Generator())
    torch.testing.assert_close(found, 20 * (2 / error.sqrt()).log10())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"components": None}, r"frozen=\['encoder'\]: say which components are pruned"),
        ({"frozen": ["decoder"]}, r"frozen: 'decoder' is pruned"),
        ({"flops": 10}, "parameters and flops are both said"),
        ({"parameters": [10, 20], "rounds": 3}, r"parameters=\[10, 20\] is for 2 of rounds=3: say one for each"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Smaller(**{**HOW, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("search.begin=1000000", "search.begin=1000000 is not before training.steps"),
        ("search.at_least=2.5", "at_least"),
        ("search.parameters=0", "parameters"),
    ],
)
def test_a_recipe_that_says_so_is_refused_before_anything_is_trained(changes, words):
    with pytest.raises((RecipeError, gt.PruneError), match=words):
        read_study(RECIPE, ["search.rounds=1", "search.flops=null", changes])


def test_early_birds_take_a_size_and_a_bound_of_channels_alone():
    bird = {"name": "early-bird", "rounds": 1, "window": 2, "tolerance": 0.9, "interval": 1}
    how = {**bird, "granularity": "channel", "parameters": 300, "at_least": 2}
    testing.check_method(how, steps=6, counts=False)
    for key, value in (("parameters", 300), ("flops", 300), ("at_least", 2)):
        with pytest.raises(RecipeError, match=f"{key} is of channels: take granularity=channel too"):
            Named.of("method", {**bird, key: value}).build()

"""The defects of the code behind "Winning Lottery Tickets in Deep Generative Models", each with a test that catches it.

A defect that another file catches already is only named here; docs/traps.md tells what each of them is.

| trap | caught by (… shortens a name) |
|---|---|
| 1 buffers masked and counted | here |
| 2 first and last layer neither pruned nor rewound | here; test_search: every_round_starts_from_… |
| 3 the unpruned net re-drawn, not rewound | test_search: what_an_unpruned_component_starts_from |
| 4 a random control with masks of its own | test_search: controls_keep_…; test_run: find_report_… |
| 5 late rewinding impossible | here |
| 6 layers left out by a part of their name | here |
| 7 a crash after training; options ignored; 28x28 hard-coded | here |
| 8 the first forward pass dense; the model reloaded every step | here; test_hold: sparse_at_every_forward |
| 9 a fraction where percent is wanted | here; test_pruning: amounts_out_of_range |
| 10 a mask "found" whatever its distance | here; test_early_bird: the_window_the_tolerance_… |
| 11 the mask of untrained gains | here; test_early_bird: untrained_gains_are_not_counted |
| 12 an import of what is not there; a norm exempt by its index | here |
| 13 a layer's role guessed from its shape; inputs on another device | here |
| 14 a pruned model that cannot be loaded | here |
| 14 optimiser state dropped when shrinking | test_shrink: training_goes_on_in_the_shrunk_net_… |
| 15 FLOPs of a pruned net with dense input channels | here |
| 16 transposed convolutions counted at output size | test_cost: transposed_convolution_costs_its_input_places |
| 16 two batch sizes in one count | here |
| 17 no resumption, no seeds | test_training: a_resumed_training_…; test_run: kill_9_… |
| 17 prefixes, network, stale cache, one-channel images | here; test_masks: names_survive_wrappers |
| SNIP: G's gradient in D's scores | test_saliency: no_loss_leaks_into_the_other_component |
| SNIP: one batch; weights re-drawn for it | test_saliency: the_gradients_of_several_…, everything_is_bit_for_bit_… |
| judged in training mode, off the prior, on fewer samples than said | here |
| judged on statistics of the training images | test_evaluation: held_out_and_training_images_are_never_mixed |
"""

from __future__ import annotations

import importlib
import io
import pkgutil
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gentickets as gt
from gentickets import models
from gentickets.data import ImageSet
from gentickets.lab.judging import Judge
from gentickets.lab.recipe import EvaluationPart, make_recipe
from gentickets.masks.names import clone, named_state
from gentickets.metrics import FeatureStatistics
from gentickets.metrics.features import random_features
from gentickets.objectives import Objective
from gentickets.training.loop import Settings, train

IMAGES = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
SETTINGS = Settings(steps=6, batch_size=8, lr=0.01)
FAMILIES = {
    "autoencoder": (lambda: models.conv_autoencoder(8, 1, width=4, latent=3), gt.Autoencoding()),
    "vae": (lambda: models.conv_vae(8, 1, width=4, latent=3), gt.ELBO(3)),
    "gan": (lambda: models.dcgan(8, 1, width=4, latent=3), gt.Adversarial(3)),
}


class Source:
    """Batches by step."""

    def at(self, step: int) -> Tensor:
        return IMAGES[torch.randint(0, 48, (8,), generator=torch.Generator().manual_seed(step))]


class Training:
    """A `train` for the searches, by the project's own loop; notes the state that each call was given."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.given: list[dict[str, Tensor]] = []

    def __call__(self, model: nn.Module, masks: gt.Masks, start_step: int, end_step: int) -> None:
        self.given.append({name: tensor.detach().clone() for name, tensor in named_state(model).items()})
        train(model, self.objective, Source(), SETTINGS, masks=masks, start_step=start_step, end_step=end_step)


def weighted_layers(model: nn.Module) -> dict[str, Tensor]:
    """Every convolution and linear layer's weight, found without the project's own names."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return {name: layer.weight.detach() for name, layer in model.named_modules() if isinstance(layer, kinds)}


def moved(model: nn.Module, amount: float, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return model


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = named_state(one), named_state(other)
    return set(mine) == set(theirs) and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path / "cache"))


# -- iterative pruning ----------------------------------------------------------------------------------------


def masks_of_every_entry(model: nn.Module, share: float) -> dict[str, Tensor]:
    """Trap 1 as it was: one threshold over all of `state_dict`, statistics and counters included."""
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    flat = torch.cat([tensor.abs().reshape(-1) for tensor in state.values()])
    threshold = flat.kthvalue(int(share * len(flat))).values
    return {name: tensor.abs() > threshold for name, tensor in state.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_of_norms_are_neither_masked_nor_counted(family: str) -> None:
    make, objective = FAMILIES[family]
    levels = list(gt.imp(make, Training(objective), steps=6, rewind_step=2, rounds=3, fraction=0.5))
    last = levels[-1]
    assert set(last.masks) <= set(dict(last.model.named_parameters()))
    total = sum(weight.numel() for weight in weighted_layers(last.model).values())
    assert last.masks.total == total
    zeros = sum(int((weight == 0).sum()) for weight in weighted_layers(last.model).values())
    assert last.masks.sparsity == zeros / total
    statistics = [name for name, _ in last.model.named_buffers()]
    assert statistics
    for level in levels:
        state = named_state(level.model)
        for name in (name for name in statistics if name.endswith("running_var")):
            assert (state[name] > 0).all()
        for name in (name for name in statistics if name.endswith("num_batches_tracked")):
            assert state[name] > 0
    defect = masks_of_every_entry(last.model, 0.95)  # would fail what is asserted above
    assert any(not defect[name].all() for name in statistics)


@pytest.mark.parametrize("name", list(models.CATALOGUE))
def test_every_layer_is_pruned_the_first_and_the_last_too(name: str) -> None:
    options = {key: 8 for key in ("width", "latent") if key in models.options_of(name)}
    model = moved(models.CATALOGUE[name](32, 3, **options), 0.01, 0).eval()
    total = sum(weight.numel() for weight in weighted_layers(model).values())
    pruned = gt.prune(gt.magnitude(model), fraction=0.8).apply_(clone(model))
    zeros = sum(int((weight == 0).sum()) for weight in weighted_layers(pruned).values())
    assert zeros == int(0.8 * total)  # of all the weights that there are, not of those that are masked
    gt.prune(gt.magnitude(model), fraction=0.8, scope="layer").apply_(model)
    for layer, weight in weighted_layers(model).items():
        assert int((weight == 0).sum()) == int(0.8 * weight.numel()), layer


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_starts_each_round_from_the_rewind_point(family: str) -> None:
    make, objective = FAMILIES[family]  # draws other weights at every call: what is not rewound shows
    training = Training(objective)
    levels = list(gt.imp(make, training, steps=6, rewind_step=2, rounds=2))
    _, rewind, *rounds = training.given
    for given, level in zip(rounds, levels[1:], strict=True):
        assert set(given) == set(rewind)
        for name, tensor in given.items():
            mask = level.masks[name] if name in level.masks else torch.ones(tensor.shape, dtype=torch.bool)
            assert torch.equal(tensor, torch.where(mask, rewind[name], torch.zeros_like(tensor))), name


def test_late_rewinding_goes_through_a_file_to_the_same_level(tmp_path: Path) -> None:
    """The weights of an intermediate step are kept, and a ticket with them is all that a round needs."""
    make, objective = FAMILIES["gan"]
    torch.manual_seed(3)
    early = make()
    train(early, objective, Source(), SETTINGS, end_step=2)
    torch.manual_seed(3)
    initial = named_state(make())
    torch.manual_seed(3)
    [dense, _, last] = gt.imp(make, Training(objective), steps=6, rewind_step=2, rounds=2)
    for name, tensor in last.ticket.weights.items():
        assert torch.equal(tensor, named_state(early)[name]), name
    assert not torch.equal(last.ticket.weights["generator.layers.0.weight"], initial["generator.layers.0.weight"])
    assert not equal_states(dense.model, early)
    last.ticket.save(tmp_path / "late.ticket")
    again = gt.Ticket.load(tmp_path / "late.ticket").install(make())
    train(again, objective, Source(), SETTINGS, masks=last.masks, start_step=2)
    assert equal_states(again, last.model)


def test_names_are_matched_whole_and_not_by_a_part() -> None:
    model = nn.Module()
    model.dec = nn.Sequential(*(nn.Linear(2, 2) for _ in range(14)))
    model.decoder = nn.Sequential(nn.Linear(2, 2))
    everything = set(gt.Masks.dense(model))
    assert len(everything) == 15
    assert everything - set(gt.Masks.dense(model, exclude="dec.1.weight")) == {"dec.1.weight"}
    assert everything - set(gt.Masks.dense(model, exclude=["dec.0.*", "dec.3.*"])) == {"dec.0.weight", "dec.3.weight"}
    assert set(gt.Masks.dense(model, include="dec.1.*")) == {"dec.1.weight", "dec.1.bias"}
    assert "decoder.0.weight" not in gt.Masks.dense(model, components="dec")
    assert set(gt.Masks.dense(model).select("decoder")) == {"decoder.0.weight"}
    with pytest.raises(gt.MaskError, match="no component 'd'"):
        gt.Masks.dense(model, components="d")


@pytest.mark.parametrize("name", list(models.CATALOGUE))
def test_every_option_of_a_model_is_obeyed(name: str) -> None:
    """A width that was read and ignored."""

    def sizes(**options: object) -> list[tuple[int, ...]]:
        small = {key: value for key, value in {"width": 8, "latent": 4}.items() if key in takes}
        model = models.CATALOGUE[name](32, 3, **{**small, **options})
        return [tuple(p.shape) for p in model.parameters()]

    takes = models.options_of(name)
    other = {"width": 16, "latent": 6, "depth": 1, "hidden": [9, 7], "critic_norm": not takes.get("critic_norm")}
    for key in takes.keys() & other.keys():
        assert sizes(**{key: other[key]}) != sizes(), key


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_forward_pass_of_a_training_is_sparse_already(family: str) -> None:
    make, objective = FAMILIES[family]
    model = make()
    masks = gt.prune(gt.magnitude(model), fraction=0.7)
    before = [int((tensor == 0).sum()) for tensor in weighted_layers(model).values()]
    assert sum(before) == 0
    passes: list[str] = []

    def check(layer: nn.Module, _: object, name: str) -> None:
        passes.append(name)
        weight = layer.weight.detach()  # type: ignore[operator]
        assert not weight[~masks[f"{name}.weight"]].any(), f"forward pass {len(passes)}: {name}"

    for name in weighted_layers(model):
        model.get_submodule(name).register_forward_pre_hook(lambda layer, given, name=name: check(layer, given, name))
    train(model, objective, Source(), Settings(steps=4, batch_size=8, lr=0.01, ema=0.9), masks=masks)
    assert len(passes) >= 4 * len(masks)


def test_masking_a_step_reloads_and_replaces_nothing(autoencoder: nn.Module, half, monkeypatch) -> None:
    """The authors copied and loaded the whole state after every step: that was the whole overhead."""
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.1)
    places = {name: (id(p), p.data_ptr()) for name, p in autoencoder.named_parameters()}
    with half(autoencoder).hold(autoencoder, optimizer) as hold:

        def never(*_: object, **__: object) -> None:
            raise AssertionError("the state was copied or loaded")

        for method in ("state_dict", "load_state_dict"):
            monkeypatch.setattr(nn.Module, method, never)
        for _ in range(3):
            autoencoder(torch.randn(4, 10)).square().sum().backward()
            optimizer.step()
            hold.audit()
    assert places == {name: (id(p), p.data_ptr()) for name, p in autoencoder.named_parameters()}


# -- early-bird -----------------------------------------------------------------------------------------------


def untrained() -> nn.Module:
    """A GAN with every gain at 1, as torch initialises them."""
    model = models.dcgan(16, 1, width=8, latent=6)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
    return model


def test_an_amount_is_a_fraction_and_never_percent() -> None:
    for wrong in ({"fraction": 20}, {"fraction": 0.5, "tolerance": 10}):
        with pytest.raises(gt.PruneError, match="out of range"):
            gt.EarlyBird(**wrong)
    with pytest.raises(gt.RecipeError, match=r"search\.fraction=20"):
        make_recipe(
            {
                "name": "x",
                "model": {"name": "dcgan"},
                "objective": {"name": "adversarial"},
                "search": {"fraction": 20},
            }
        )
    bird = gt.EarlyBird(fraction=0.2)  # of single weights, from the first mini-batch on
    assert not bird.observe(untrained())
    for name in ("generator", "discriminator"):
        assert bird.ticket.masks.select(name).sparsity == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize(("rule", "tolerance"), [("chance", 0.2), ("hamming", 0.1)])
@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_a_mask_that_moves_never_settles_and_one_that_stands_settles_at_the_fifth(granularity, rule, tolerance) -> None:
    bird = gt.EarlyBird(fraction=0.5, granularity=granularity, rule=rule)
    assert (bird.window, bird.tolerance) == (5, tolerance)
    for seed in range(10):
        assert not bird.observe(moved(untrained(), 3.0, seed))  # the defect: "found" at distances below 1
    farthest = [max(distances) for entry in bird.distances[1:] for distances in entry.values()]
    assert 0.1 < max(farthest) < 1
    model, still = moved(untrained(), 1.0, 0), gt.EarlyBird(fraction=0.5, granularity=granularity, rule=rule)
    assert [still.observe(model) for _ in range(5)] == [False] * 4 + [True]
    assert still.ticket.origin["early_bird"]["observation"] == 5


@pytest.mark.parametrize("one", [None, "discriminator"])
def test_the_mask_of_untrained_gains_is_not_one_of_the_five(one: str | None) -> None:
    """All gains 1 say nothing, even in one component alone: their mask is none, and does not count as an epoch."""
    bird = gt.EarlyBird(fraction=0.5, granularity="channel")
    start = untrained()
    if one is not None:
        moved(getattr(start, "generator" if one == "discriminator" else "discriminator"), 0.3, 1)
    assert not bird.observe(start)
    assert bird.distances == []
    model = moved(untrained(), 0.3, 1)
    assert [bird.observe(model) for _ in range(5)] == [False] * 4 + [True]
    assert [len(entry["generator"]) for entry in bird.distances] == [0, 1, 2, 3, 4]


def test_every_module_can_be_imported() -> None:
    found = [module.name for module in pkgutil.walk_packages(gt.__path__, "gentickets.")]
    assert len(found) > 30
    for name in found:
        importlib.import_module(name)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("name", ["conv-autoencoder", "conv-vae", "dcgan"])
def test_every_norm_is_scored_at_any_depth(name: str, size: int) -> None:
    model = models.CATALOGUE[name](size, 3, width=2, latent=4)
    norms = {f"{key}.weight" for key, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert set(gt.batchnorm_scale(model)) == norms
    assert {key.split(".")[0] for key in norms} == {key for key, _ in model.named_children()}


# -- shrinking and its cost -------------------------------------------------------------------------------------


def half_of_the_channels(model: nn.Module) -> gt.Masks:
    return gt.prune(gt.batchnorm_scale(moved(model, 0.3, 4)), fraction=0.5, scope="layer", granularity="channel")


def inputs_for(model: nn.Module, channels: int, latent: int, side: int = 16) -> dict[str, Tensor]:
    images, latents = torch.rand(3, channels, side, side) * 2 - 1, torch.randn(3, latent)
    of = {"generator": latents, "decoder": latents, "discriminator": images, "encoder": images}
    return {name: of[name] for name, _ in model.named_children()}


@pytest.mark.parametrize(
    ("width", "latent", "channels"), [(4, 4, 1), (4, 8, 3), (2, 8, 1), (3, 3, 3), (3, 1, 3), (4, 6, 1), (1, 1, 1)]
)
@pytest.mark.parametrize("name", ["conv-vae", "dcgan"])
def test_widths_that_coincide_confuse_nothing(name: str, width: int, latent: int, channels: int) -> None:
    """A width equal to the latent size, to the image's channels, or 1: the role of a layer is not in its shape."""
    model = models.CATALOGUE[name](16, channels, width=width, latent=latent)
    masks, inputs = half_of_the_channels(model), inputs_for(model, channels, latent)
    masked, small = masks.apply_(clone(model)).eval(), gt.shrink(model, masks, inputs).eval()
    gt.check_connected(model, masks, inputs)
    for component, example in inputs.items():
        for one, other in zip(outputs(masked, component, example), outputs(small, component, example), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert gt.cost(model, inputs).components[component].flops_dense > 0
    if width > 1:
        assert gt.cost(small, inputs).flops_dense < gt.cost(model, inputs).flops_dense


def outputs(model: nn.Module, component: str, example: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = getattr(model, component)(example)
    return found if isinstance(found, tuple) else (found,)


def test_examples_go_to_the_device_of_the_model() -> None:
    """An input on the CPU, a model elsewhere: here on torch's device without memory, which every machine has."""
    model = models.dcgan(8, 1, width=4, latent=3)
    inputs = inputs_for(model, 1, 3, side=8)
    there = models.dcgan(8, 1, width=4, latent=3).to("meta")
    assert gt.cost(there, inputs) == gt.cost(model, inputs)


def test_a_shrunk_model_is_saved_and_loaded_back() -> None:
    """Its own state fits no fresh model of the class; the ticket that made it says how to build one that it fits."""
    make, objective = (lambda: models.dcgan(16, 1, width=8, latent=6)), gt.Adversarial(6)
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    model = make()
    masks = half_of_the_channels(model)
    inputs = inputs_for(model, 1, 6)
    ticket = gt.Ticket(masks, model)
    small = gt.shrink(model, masks, inputs)
    source = type("Same", (), {"at": lambda self, step: images})()
    train(small, objective, source, Settings(steps=3, batch_size=8))
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    with pytest.raises(RuntimeError, match="size mismatch"):
        make().load_state_dict(state)
    torch.manual_seed(77)  # whatever weights the fresh model has
    again = gt.shrink(ticket.install(make()), ticket.masks, inputs)
    again.load_state_dict(state)
    assert equal_states(again, small)
    for component, example in inputs.items():
        assert torch.equal(outputs(again.eval(), component, example)[0], outputs(small.eval(), component, example)[0])


def test_flops_of_a_shrunk_net_count_its_real_input_channels() -> None:
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Module()
    model.net = nn.Sequential(*layers, nn.Conv2d(16, 3, 3, padding=1, bias=False))
    inputs = {"net": torch.rand(2, 3, 6, 6)}
    small = gt.shrink(model, half_of_the_channels(model), inputs)
    places = 6 * 6
    expected = 2 * 9 * places * (3 * 8 + 8 * 8 + 8 * 8 + 8 * 3) + 2 * 3 * 8 * places
    assert gt.cost(small, inputs).flops_dense == expected
    dense_inputs = 2 * 9 * places * (3 * 8 + 16 * 8 + 16 * 8 + 16 * 3) + 2 * 3 * 8 * places  # the defect
    assert expected < 0.6 * dense_inputs


def test_the_batch_of_an_example_does_not_count() -> None:
    model = models.dcgan(8, 1, width=4, latent=3)
    one = gt.cost(model, {"generator": torch.zeros(1, 3), "discriminator": torch.zeros(1, 1, 8, 8)})
    many = gt.cost(model, {"generator": torch.zeros(16, 3), "discriminator": torch.zeros(1, 1, 8, 8)})
    assert one == many
    assert one.flops_dense == sum(part.flops_dense for part in one.components.values())


# -- names, files, network ----------------------------------------------------------------------------------------


def test_a_ticket_of_a_wrapped_model_is_that_of_the_model(make_gan, half) -> None:
    gan = make_gan()
    masks = half(gan)
    expected = gt.Ticket(masks, gan).to_bytes()
    for wrapped in (nn.DataParallel(gan), torch.compile(gan), nn.DataParallel(torch.compile(gan))):
        assert gt.Masks.dense(wrapped) == gt.Masks.dense(gan)
        assert gt.Ticket(masks, wrapped).to_bytes() == expected
    bare = gt.Ticket(masks, nn.DataParallel(gan)).install(make_gan())
    assert equal_states(bare, masks.apply_(gan))
    with pytest.raises(gt.TicketError, match=r"the weights lack 'generator\.0\.weight'"):
        gt.Ticket(masks, nn.DataParallel(gan).state_dict())  # said, and not half loaded


def some_images(count: int, seed: int, channels: int = 1, side: int = 8, split: str = "train") -> ImageSet:
    rng = np.random.default_rng(seed)
    return ImageSet.from_arrays(
        "faces", rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8), None, split
    )


def test_statistics_of_other_images_or_features_are_never_taken_from_the_cache(tmp_path: Path) -> None:
    extractor, images = random_features(1), some_images(30, 1)
    first = FeatureStatistics.of(extractor, images, cache=tmp_path).features
    other = FeatureStatistics.of(extractor, some_images(30, 2), cache=tmp_path).features  # same name, size and count
    assert not torch.equal(first, other)
    changed = random_features(1)
    with torch.no_grad():
        changed.body.layers[0].weight.mul_(2)
    assert changed.key == extractor.key
    assert not torch.equal(FeatureStatistics.of(changed, images, cache=tmp_path).features, first)
    assert torch.equal(FeatureStatistics.of(extractor, images, cache=tmp_path).features, first)


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16), (3, 28)])
@pytest.mark.parametrize("name", ["linear-autoencoder", "conv-autoencoder", "conv-vae", "dcgan"])
def test_any_model_is_judged_on_any_images_without_a_network(
    name: str, channels: int, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authors' autoencoder trained a whole round, then crashed on its test batch."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", never)
    monkeypatch.setattr(socket, "create_connection", never)
    objective: Objective = {"conv-vae": gt.ELBO(3), "dcgan": gt.Adversarial(3)}.get(name, gt.Autoencoding())
    sets = some_images(130, 1, channels, side), some_images(130, 2, channels, side, "test")
    judge = Judge(objective, *sets, EvaluationPart(samples=130, classifiers=1))
    model = models.CATALOGUE[name](side, channels, width=4, latent=3)
    found = judge.measure(model)
    judge.picture(model, tmp_path)
    assert [one.key for one in found] == judge.keys
    assert all(np.isfinite(one.value) for one in found)
    assert (tmp_path / "samples.png").exists()


# -- judging ------------------------------------------------------------------------------------------------------


class Notes(nn.Module):
    """Keeps what it is given."""

    def forward(self, latents: Tensor) -> Tensor:
        self.given = latents
        return latents


def off_the_prior(count: int, size: int, rng: torch.Generator) -> Tensor:
    """As the authors sampled: mean and log variance drawn too."""
    mean, log_variance, noise = (torch.randn(count, size, generator=rng) for _ in range(3))
    return mean + (0.5 * log_variance).exp() * noise


@pytest.mark.parametrize(
    ("objective", "component"),
    [(gt.ELBO(32), "decoder"), (gt.ELBO(32, beta=4.0), "decoder"), (gt.Adversarial(32), "generator")],
)
def test_samples_are_drawn_from_the_standard_normal(objective: Objective, component: str) -> None:
    model = nn.Module()
    setattr(model, component, Notes())
    latents = objective.sample(model, 4096, torch.Generator().manual_seed(0))
    assert latents.shape == (4096, 32)

    def standard(drawn: Tensor) -> bool:
        covariance = torch.cov(drawn.T)
        return bool(drawn.mean(0).abs().max() < 0.08 and (covariance - torch.eye(32)).abs().max() < 0.12)

    assert standard(latents)
    wrong = off_the_prior(4096, 32, torch.Generator().manual_seed(0))
    assert not standard(wrong)
    assert float(wrong.var()) == pytest.approx(2.65, abs=0.1)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_models_are_judged_in_eval_mode_on_as_many_samples_as_asked(family: str) -> None:
    make, objective = FAMILIES[family]
    model = make()
    train(model, objective, Source(), SETTINGS)
    judge = Judge(objective, some_images(130, 1), some_images(130, 2), EvaluationPart(samples=300))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = judge.measure(clone(model).train())
    assert found == judge.measure(clone(model).eval())
    assert next(one.samples for one in found if one.key == "frechet") == 300  # no multiple of any batch
    judge.measure(model.train())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    @dataclass(frozen=True)
    class Trained(type(objective)):  # type: ignore[misc]
        def sample(self, model: nn.Module, count: int, rng: torch.Generator) -> Tensor:
            return super().sample(model.train(), count, rng)

    options = {"latent_size": objective.latent_size}
    defect = Judge(Trained(**options), some_images(130, 1), some_images(130, 2), EvaluationPart(samples=300))
    assert [one.value for one in defect.measure(clone(model))] != [one.value for one in found]


# -- the table ------------------------------------------------------------------------------------------------------


def test_every_test_named_in_the_docs_exists() -> None:
    here = Path(__file__).parent
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (here.parent / "docs" / "traps.md").read_text())
    assert len(named) > 80
    sources = {file: (here / file).read_text() if (here / file).exists() else "" for file, _ in named}
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in sources[file]] == []

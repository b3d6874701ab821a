"""The catalogue: shapes, components, sizes, initial weights, and the towers that tickets travel between."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

import gentickets as gt
from gentickets import models
from gentickets.channels.shrinking import Shrinking
from gentickets.lab.recipe import make_recipe
from gentickets.masks.names import clone, components_of, named_state
from gentickets.masks.value import Masks
from gentickets.models.convolutional import SIZES
from gentickets.models.resnet import Residual
from gentickets.training.loop import Settings, train

PAPER = {name: build for name, build in models.CATALOGUE.items() if name.startswith("paper-")}
DOCS = Path(__file__).parents[1] / "docs" / "models.md"


def count(model):
    return sum(p.numel() for p in model.parameters())


def example_inputs(model, size, channels, latent):
    """Component → a batch of three for it."""
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(3, channels, size, size, generator=generator) * 2 - 1
    if hasattr(model, "generator"):
        return {"generator": torch.randn(3, latent, generator=generator), "discriminator": images}
    with torch.no_grad():
        codes = clone(model).eval().encoder(images)
    return {"encoder": images, "decoder": codes[0] if isinstance(codes, tuple) else codes}


# -- the catalogue ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(models.CATALOGUE))
def test_every_model_gives_images_of_its_size_in_range(name, size, channels):
    sizes = {"width": 4, "latent": 5} if "latent" in models.options_of(name) else {"width": 4}
    model = models.CATALOGUE[name](size, channels, **sizes)
    images = torch.rand(2, channels, size, size) * 2 - 1
    if hasattr(model, "denoiser"):  # whose noise has no range
        assert model(images, torch.tensor([0, 999])).shape == images.shape
        return
    if hasattr(model, "generator"):
        output = model(torch.randn(2, 5))
        assert model.discriminator(images).shape == (2, 1)
    else:
        output = model(images)
    assert output.shape == images.shape
    assert float(output.detach().abs().max()) <= 1.0


def test_components_are_named_as_the_design_says():
    assert components_of(models.linear_autoencoder(8, 1)) == ("encoder", "decoder")
    assert components_of(models.conv_vae(8, 1)) == ("encoder", "decoder")
    assert components_of(models.resnet_vae(8, 1, width=4)) == ("encoder", "decoder")
    for build in (models.dcgan, models.sngan, models.resnet_dcgan):
        assert components_of(build(8, 1, width=4)) == ("generator", "discriminator")


def shapes_below(model, prefix):
    found = Masks.dense(model).shapes.items()
    return {name.removeprefix(prefix): shape for name, shape in found if name.startswith(prefix)}


def test_vae_and_gan_share_their_towers():
    vae, gan = models.conv_vae(32, 3, width=8, latent=16), models.dcgan(32, 3, width=8, latent=16)
    assert shapes_below(vae, "decoder.") == shapes_below(gan, "generator.") != {}
    assert shapes_below(vae, "encoder.trunk.") == shapes_below(gan, "discriminator.trunk.") != {}


def test_the_papers_linear_autoencoder_has_its_size():
    model = models.linear_autoencoder(28, 1, hidden=[128, 64, 12], latent=3)
    assert count(model) == 219_891  # 784-128-64-12-3 and its mirror
    widths = [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert widths == [128, 64, 12, 3, 12, 64, 128, 784]


def test_sizes_and_depths_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="size=20"):
        models.conv_vae(20, 1)
    with pytest.raises(ValueError, match="depth=4"):
        models.conv_vae(8, 1, depth=4)
    with pytest.raises(ValueError, match="width of 1"):
        models.linear_autoencoder(8, 1, width=2, depth=3)


# -- the presets of the paper -------------------------------------------------------------------------------

COUNTS = {  # at 28x28x1, 32x32x3 and 64x64x3
    "paper-linear-ae": (219_891, 807_907, 3_176_419),
    "paper-conv-ae": (2_936_673, 2_937_507, 2_937_507),  # the authors' code at 32x32x3: 2,937,507
    "paper-vae": (867_073, 5_711_619, 6_301_443),  # 5,713,731
    "paper-resnet-vae": (2_819_649, 2_820_803, 2_820_803),  # 2,821,251
    "paper-dcgan": (2_672_258, 6_315_396, 24_153_476),
    "paper-sngan": (2_672_002, 6_314_628, 24_151_684),
    "paper-resnet-dcgan": (2_486_658, 2_258_564, 2_882_436),
    "paper-wgan": (2_672_258, 6_315_396, 24_153_476),
}


def test_every_preset_has_its_count():
    assert set(COUNTS) == set(PAPER) <= set(models.CATALOGUE)
    with torch.device("meta"):  # shapes only: no 24 million numbers are drawn
        found = {
            name: tuple(count(build(size, channels)) for size, channels in ((28, 1), (32, 3), (64, 3)))
            for name, build in PAPER.items()
            if name != "paper-sngan"  # spectral norm iterates on real numbers
        }
    found["paper-sngan"] = tuple(count(PAPER["paper-sngan"](*shape)) for shape in ((28, 1), (32, 3), (64, 3)))
    assert found == COUNTS


def test_where_ours_is_smaller_than_the_authors_it_is_by_biases_before_norms():
    biases = sum(
        layer.num_features
        for block in models.resnet_vae(32, 3).decoder.modules()
        if isinstance(block, Residual) and isinstance(block.shortcut, nn.Sequential)
        for layer in (block.body[-1], block.shortcut[-1])
    )
    assert COUNTS["paper-resnet-vae"][1] + biases == 2_821_251


def test_the_documentation_says_the_counts():
    text = DOCS.read_text()
    for name, (small, middle, large) in COUNTS.items():
        row = re.search(rf"^\| `{name}`.*$", text, re.MULTILINE)
        assert row, name
        assert row[0].split(" | ")[1] == f"{small if name == 'paper-linear-ae' else middle:,}"
        assert row[0].rstrip(" |").split(" | ")[-1] == f"{large:,}"


def test_presets_tell_their_options_and_take_others():
    assert models.options_of("paper-sngan") == {"width": 128, "latent": 128, "depth": None}
    assert models.options_of("paper-linear-ae") == {"width": 128, "latent": 3}
    assert models.options_of("paper-wgan")["critic_norm"] is True
    assert count(PAPER["paper-sngan"](32, 3, width=8)) < 0.02 * COUNTS["paper-sngan"][1]
    assert all((build.__doc__ or "").strip() for build in PAPER.values())


def test_sides_that_a_preset_cannot_have_are_refused():
    for name in ("paper-vae", "paper-dcgan", "paper-sngan", "paper-resnet-dcgan", "paper-wgan"):
        with pytest.raises(ValueError, match=r"size=27.* 28, 32, 64"):
            PAPER[name](27, 1, width=4)
    with pytest.raises(ValueError, match=r"size=30.*multiple of 4"):
        PAPER["paper-conv-ae"](30, 1)
    with pytest.raises(ValueError, match="width of 1"):
        PAPER["paper-linear-ae"](28, 1, width=1)
    assert PAPER["paper-resnet-vae"](27, 1, width=4)(torch.zeros(2, 1, 27, 27)).shape == (2, 1, 27, 27)


def test_the_conv_autoencoders_code_is_the_papers():
    assert PAPER["paper-conv-ae"](32, 3).encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 2, 2)


def test_a_papers_decoder_ticket_becomes_a_papers_generator():
    sizes = {"width": 8, "depth": 4, "latent": 6}
    vae = PAPER["paper-vae"](32, 3, **sizes)
    ticket = gt.Ticket(gt.prune(gt.magnitude(vae), fraction=0.8), vae, {"seed": 0, "rewind_step": 0})
    for name in ("paper-dcgan", "paper-wgan", "paper-sngan"):
        gan = PAPER[name](32, 3, **sizes)
        moved = ticket.transfer(gan, {"decoder": "generator"})
        installed = moved.install(gan)
        moved.masks.audit(installed)
        assert torch.equal(installed.generator.layers[0].weight, vae.decoder.layers[0].weight * moved.masks[
            "generator.layers.0.weight"])  # fmt: skip


# -- initial weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PAPER))
def test_the_same_seed_draws_the_same_network(name):
    def drawn(seed):
        torch.manual_seed(seed)
        return named_state(PAPER[name](28, 1, width=8, latent=6))

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert any(not torch.equal(tensor, other[key]) for key, tensor in first.items())


@pytest.mark.parametrize("name", ["paper-dcgan", "paper-wgan"])
def test_dcgans_draw_as_their_paper_says(name):
    torch.manual_seed(0)
    for layer in PAPER[name](32, 3, width=32).modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.numel() > 1e4:
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert abs(layer.weight.mean().item()) < 1e-3


@pytest.mark.parametrize("name", ["paper-sngan", "paper-resnet-dcgan"])
def test_spectral_and_residual_gans_draw_after_glorot(name):
    torch.manual_seed(0)
    gan = PAPER[name](32, 3, width=16)
    in_bodies = {id(layer) for block in gan.modules() if isinstance(block, Residual) for layer in block.body.modules()}
    checked = 0
    for layer in gan.modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            continue
        weight = layer.parametrizations.weight.original if is_parametrized(layer, "weight") else layer.weight
        weight = weight.detach()
        places = weight[0, 0].numel()
        gain = math.sqrt(2) if id(layer) in in_bodies else 1.0
        bound = gain * math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * places))
        assert float(weight.abs().max()) <= bound * (1 + 1e-6)
        assert weight.numel() < 500 or float(weight.abs().max()) > 0.97 * bound
        assert layer.bias is None or not layer.bias.any()
        checked += 1
    assert checked >= 8


# -- norms --------------------------------------------------------------------------------------------------


def norms_of(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["paper-wgan", "paper-resnet-dcgan"])
def test_a_critic_for_the_gradient_penalty_judges_images_one_by_one(name):
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    normed = PAPER[name](32, 3, width=8).discriminator
    free = PAPER[name](32, 3, width=8, critic_norm=False).discriminator
    assert norms_of(normed)
    assert not norms_of(free)
    alone = torch.cat([free(image[None]) for image in images])
    torch.testing.assert_close(free(images), alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(normed(images), torch.cat([normed(image[None]) for image in images]), atol=1e-3)


def test_spectral_norm_is_on_every_layer_of_the_discriminator_and_nowhere_else():
    gan = PAPER["paper-sngan"](32, 3, width=8)
    convolutions = [layer for layer in gan.discriminator.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 4
    assert all(is_parametrized(layer, "weight") for layer in convolutions)
    assert not any(is_parametrized(layer) for layer in gan.generator.modules())
    assert not norms_of(gan.discriminator)
    assert len(norms_of(gan.generator)) == 3


def test_spectral_norm_sees_the_masked_weight_through_training():
    torch.manual_seed(0)
    gan = PAPER["paper-sngan"](28, 1, width=8, latent=6)
    masks = gt.prune(gt.magnitude(gan), to_sparsity=0.9, scope="layer")
    names = [name for name in masks if name.startswith("discriminator.")]
    assert names
    assert all(name.endswith(".parametrizations.weight.original") for name in names)
    settings = Settings(steps=2, batch_size=4, lr=2e-4, betas=(0.0, 0.9))
    train(gan, gt.Adversarial(6, loss="hinge"), Source(28, 1), settings, masks=masks)
    masks.audit(gan)
    gan.train()
    images = Source(28, 1).at(0)
    with torch.no_grad():
        for _ in range(100):  # one power iteration each
            gan.discriminator(images)
        gan.eval()
        for layer in (layer for layer in gan.discriminator.modules() if isinstance(layer, nn.Conv2d)):
            original = layer.parametrizations.weight.original
            sigma = torch.linalg.matrix_norm(original.flatten(1), 2)
            torch.testing.assert_close(layer.weight, original / sigma, rtol=2e-2, atol=1e-6)
            assert int(layer.weight.count_nonzero()) == int(original.count_nonzero()) <= 0.11 * original.numel()


def test_spectral_norm_stands_still_in_eval_mode():
    torch.manual_seed(0)
    critic = PAPER["paper-sngan"](28, 1, width=8).discriminator
    images = Source(28, 1).at(0)
    with torch.no_grad():
        critic(images)
        critic.eval()
        before = {name: tensor.clone() for name, tensor in named_state(critic).items()}
        assert torch.equal(critic(images), critic(images))
        assert torch.equal(critic(images), clone(critic)(images))
        assert all(torch.equal(tensor, before[name]) for name, tensor in named_state(critic).items())
        critic.train()(images)
        assert any(not torch.equal(tensor, before[name]) for name, tensor in named_state(critic).items())


# -- training: the recipes of the documentation -------------------------------------------------------------


class Source:
    """Batches by step."""

    def __init__(self, size, channels, count=10):
        self.shape = (count, channels, size, size)

    def at(self, step):
        return torch.rand(self.shape, generator=torch.Generator().manual_seed(step)) * 2 - 1


def documented_recipes():
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return yaml.safe_load(blocks[-1])


RECIPES = documented_recipes()


def test_the_documentation_has_a_recipe_for_each_of_the_nine_networks():
    assert {parts["model"]["name"] for parts in RECIPES.values()} == set(PAPER)
    assert len(RECIPES) == 9 + 1  # the Wasserstein GAN in two ways
    assert RECIPES["vae"]["model"] == RECIPES["beta-vae"]["model"]
    assert RECIPES["vae"]["objective"]["beta"] != RECIPES["beta-vae"]["objective"]["beta"]
    for parts in RECIPES.values():
        penalised = "gradient_penalty" in parts["objective"]
        assert penalised == (parts["model"].get("critic_norm") is False)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
@pytest.mark.parametrize("name", list(RECIPES))
def test_every_network_takes_two_finite_steps_under_its_recipe(name, size, channels):
    recipe = make_recipe({"name": name, **RECIPES[name], "data": {"size": size, "channels": channels}})
    assert recipe.model.told("latent", None) == models.options_of(recipe.model.name)["latent"]
    small = recipe.model.model_copy(update={"width": 8})
    torch.manual_seed(0)
    model = models.CATALOGUE[small.name](size, channels, **small.options)
    before = {key: tensor.clone() for key, tensor in named_state(model).items()}
    settings = replace(recipe.training.settings(0), steps=2, batch_size=2)
    train(model, recipe.build_objective(), Source(size, channels), settings)
    after = named_state(model)
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    for component in components_of(model):
        assert any(not torch.equal(t, before[key]) for key, t in after.items() if key.startswith(component))


# -- shrinking ----------------------------------------------------------------------------------------------


def unsettled(name, size, channels):
    """A small preset with statistics and gains as training leaves them; the biases of norms are 0."""
    torch.manual_seed(0)
    model = PAPER[name](size, channels, width=8, latent=6)
    with torch.no_grad():
        for layer in norms_of(model):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.normal_()
    return model.eval()


def gain_masks(model, share):
    """Gains and biases of norms pruned, at random, so that such a channel is 0 and stays so."""
    draws = torch.Generator().manual_seed(1)
    alive = {
        name: torch.rand(layer.num_features, generator=draws) >= share
        for name, layer in model.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
    }
    return {f"{name}.{part}": mask for name, mask in alive.items() for part in ("weight", "bias")}


def filter_masks(model, share):
    """Whole filters, their biases, and all that reads them, at random, in chains of layers without a norm.

    The last layer of a chain keeps all. What reads a dead filter dies too: spectral norm would see it otherwise.
    """
    draws = torch.Generator().manual_seed(1)
    masks = {}
    for component in components_of(model):
        net = getattr(model, component)
        if norms_of(net):
            continue
        layers = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        reads = None
        for name, layer in layers:
            axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            place = "parametrizations.weight.original" if is_parametrized(layer, "weight") else "weight"
            alive = torch.rand(layer.weight.shape[axis], generator=draws) >= share
            alive[0] = True
            if layer is layers[-1][1]:
                alive[:] = True
            mask = torch.ones(layer.weight.shape, dtype=torch.bool).transpose(0, axis)
            mask[~alive] = False
            if reads is not None:
                mask[:, ~reads] = False
            masks[f"{component}.{name}.{place}"] = mask.transpose(0, axis)
            masks[f"{component}.{name}.bias"] = alive
            reads = alive
    return masks


def assert_shrinks_to_the_same(model, masks, inputs):
    shrinking = Shrinking(model, masks, inputs)
    masked = masks.apply_(clone(model))
    for component, example in inputs.items():
        with torch.no_grad():
            expected, found = (getattr(net, component).eval()(example) for net in (masked, shrinking.model))
        for one, other in zip(*(out if isinstance(out, tuple) else (out,) for out in (expected, found)), strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * max(1.0, float(one.abs().max())))
    return shrinking


@pytest.mark.filterwarnings("ignore:component")
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
@pytest.mark.parametrize("name", list(PAPER))
def test_channel_tickets_of_the_presets_make_them_smaller(name, size, channels):
    model = unsettled(name, size, channels)
    inputs = example_inputs(model, size, channels, 6)
    masks = gt.Masks(gain_masks(model, 0.4) | filter_masks(model, 0.4))
    shrinking = assert_shrinks_to_the_same(model, masks, inputs)
    assert all(removed > 0 for removed in shrinking.removed.values()), shrinking.removed
    assert count(shrinking.model) < 0.9 * count(model)


@pytest.mark.filterwarnings("ignore:component")
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
@pytest.mark.parametrize("name", list(PAPER))
def test_unstructured_tickets_of_the_presets(name, size, channels):
    model = unsettled(name, size, channels)
    masks = gt.prune(gt.random_scores(model, 5), to_sparsity=0.9, scope="layer")
    assert_shrinks_to_the_same(model, masks, example_inputs(model, size, channels, 6))

"""Parameters that are not trained: they stay as they are, to the bit, and are pruned by nobody unsaid. And models that
are no new ones, whatever the seed."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import gentickets as gt
import two_ranks
from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.checks import check_buildable, check_searchable
from gentickets.lab.run.seed import SeedRun
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.masks.names import clone, component_of, named_state
from gentickets.metrics.cost import training_flops
from gentickets.sparse import execution
from gentickets.training import Settings, train

SETTINGS = Settings(steps=6, batch_size=8, ema=0.5, clip_norm=1.0, weight_decay=0.1, lr=1e-2)


def frozen(*names):
    """An autoencoder of which these weights, or components, are frozen."""
    model = two_ranks.autoencoder()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in names and component_of(name) not in names)
    return model


@pytest.mark.parametrize("names", [("encoder",), ("decoder",), ("encoder.1.weight", "decoder.0.bias")])
@pytest.mark.parametrize("execution_", ["dense", "live weights"])
def test_what_is_frozen_stays_as_it_is_and_the_rest_is_trained(names, execution_, monkeypatch):
    model = frozen(*names)
    flags = [weight.requires_grad for weight in model.parameters()]
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)  # of a step before it was frozen
    masks = two_ranks.half(model)
    masks.apply_(model)
    before = clone(model)
    if execution_ == "live weights":
        monkeypatch.setattr(execution, "faster", two_ranks.every_layer)
    done = train(model, gt.Autoencoding(), two_ranks.Source(), SETTINGS, masks=masks)
    assert any(choice.sparse for choice in done.choices) is (execution_ == "live weights")
    assert [weight.requires_grad for weight in model.parameters()] == flags
    for (name, now), then in zip(model.named_parameters(), before.parameters(), strict=True):
        is_frozen = name in names or component_of(name) in names
        assert torch.equal(now, then) is is_frozen, name
        if is_frozen and component_of(name) in gt.Autoencoding.averaged:
            assert torch.equal(named_state(done.averaged)[name], then)


def test_a_component_that_is_frozen_is_not_stepped_in_half_precision(monkeypatch):
    model = frozen("encoder")
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, enabled=True))
    before = clone(model)
    train(model, gt.Autoencoding(), two_ranks.Source(), replace(SETTINGS, ema=None))
    changed = {component_of(n) for n, w in named_state(model).items() if not torch.equal(w, named_state(before)[n])}
    assert changed == {"decoder"}


def test_a_frozen_weight_costs_no_gradient_of_its_own():
    each = {name: training_flops(frozen(*name), gt.Autoencoding(), two_ranks.IMAGES[:4]).dense for name in
            ((), ("encoder",), ("decoder",))}  # fmt: skip
    assert each[("encoder",)] < each[("decoder",)] < each[()]


def test_a_loss_with_nothing_to_train_is_one_line():
    model, said = frozen("encoder", "decoder"), r"the loss of encoder\+decoder has nothing to train: .* frozen"
    with pytest.raises(GenticketsError, match=said):
        train(model, gt.Autoencoding(), two_ranks.Source(), SETTINGS)
    with pytest.raises(GenticketsError, match=said):
        training_flops(model, gt.Autoencoding(), two_ranks.IMAGES[:4])


# -- in recipes ----------------------------------------------------------------------------------------------

MODELS = """
import functools
import torch
from torch import nn


def nets(size, channels, latent=3):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(size * size, 12), nn.ReLU(), nn.Linear(12, latent))
    decoder = nn.Sequential(nn.Linear(latent, size * size), nn.Unflatten(1, (channels, size, size)))
    return {"encoder": encoder, "decoder": decoder}


def frozen_encoder(size: int, channels: int, latent: int = 3):
    made = nets(size, channels, latent)
    made["encoder"].requires_grad_(False)
    return made


def frozen_layer(size: int, channels: int, latent: int = 3):
    made = nets(size, channels, latent)
    made["encoder"][1].requires_grad_(False)
    return made


def all_frozen(size: int, channels: int, latent: int = 3):
    return {name: net.requires_grad_(False) for name, net in nets(size, channels, latent).items()}


def pretrained(size: int, channels: int, latent: int = 3):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nets(size, channels, latent)


def pretrained_encoder(size: int, channels: int, latent: int = 3):
    return {"encoder": pretrained(size, channels)["encoder"], "decoder": nets(size, channels)["decoder"]}


@functools.cache
def cached(size: int, channels: int, latent: int = 3):
    return nets(size, channels, latent)
"""


def recipe_of(model, **parts):
    raw = {
        "name": "mine",
        "model": f"models.py:{model}",
        "data": {"source": "digits", "size": 8, "limit": 60},
        "objective": {"name": "autoencoding"},
        "training": {"steps": 4, "batch_size": 8},
        "search": {"rounds": 1, "fraction": 0.5},
        "controls": {"levels": [1]},
        "evaluation": {"features": "none"},
    }
    for key, value in parts.items():
        raw[key] = {**raw[key], **value}
    return make_recipe(raw)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield load_data(recipe_of_digits().data)


def recipe_of_digits():
    return make_recipe({"name": "d", "model": "linear-autoencoder", "objective": "autoencoding",
                        "data": {"source": "digits", "size": 8, "limit": 60}})  # fmt: skip


@pytest.fixture
def there(tmp_path, monkeypatch):
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)


WHOLE_DECODER = {"search": {"components": ["decoder"]}}
NOT_DRAWN = {"controls": {"redrawn_weights": False}}


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("model", "parts", "said"),
    [
        ("frozen_encoder", {}, "'encoder.1.weight' is frozen .* pruned.*leave it out, search.components=[decoder]"),
        ("frozen_encoder", {"search": {"exclude": ["encoder.1.weight"]}}, "'encoder.3.weight' is frozen"),
        ("frozen_layer", {}, "'encoder.1.weight' is frozen .* search.exclude=[encoder.1.weight]"),
        ("all_frozen", {}, "models.py:all_frozen: the loss of encoder+decoder has nothing to train"),
        ("pretrained", {}, "controls.redrawn_weights=true draws them anew: controls.redrawn_weights=false"),
        ("pretrained_encoder", {"search": {"components": ["encoder"]}}, "controls.redrawn_weights=false"),
        ("pretrained_encoder", {"search": {"others": "fresh", "components": ["decoder"]}}, "search.others=rewind"),
        ("cached", NOT_DRAWN, "'encoder.1.weight' is the same parameter in each model .*make a new one each time"),
    ],
)
def test_what_no_search_could_do_with_a_model_is_said_before_anything_is_trained(images, model, parts, said):
    with pytest.raises(RecipeError, match=re.escape(said).replace(r"\.\*", ".*").replace(r"\ ", " ")) as found:
        checked(recipe_of(model, **parts), images)
    assert "\n" not in str(found.value)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("frozen_encoder", WHOLE_DECODER),
        ("frozen_encoder", {"search": {"rounds": 0}, "controls": {"levels": []}}),
        ("frozen_layer", {"search": {"exclude": ["encoder.1.weight"]}}),
        ("pretrained", NOT_DRAWN),
        ("pretrained", {"controls": {"levels": []}}),
        ("pretrained_encoder", {}),
        ("pretrained_encoder", {"search": {"others": "fresh", "components": ["encoder"]}, **NOT_DRAWN}),
    ],
)
def test_what_a_search_can_do_is_let_pass(images, model, parts):
    checked(recipe_of(model, **parts), images)


def checked(recipe, images):
    check_buildable(recipe, images[0])
    check_searchable(recipe, images[0])


@pytest.mark.usefixtures("there")
def test_a_run_with_a_frozen_component_is_trained_and_its_controls_are(images, tmp_path):
    recipe = recipe_of("frozen_encoder", **WHOLE_DECODER)
    train_, held_out = images
    run = SeedRun(recipe, tmp_path / "run", 0, train_, make_judge(recipe, train_, held_out))
    run.run()
    levels = [run.load_level(0), run.load_level(1), run.load_level(1, "random_mask")]
    for one, other in itertools.pairwise(levels):
        for name, tensor in named_state(one.model).items():
            assert torch.equal(tensor, named_state(other.model)[name]) is (component_of(name) == "encoder"), name
    redrawn = run.load_level(1, "redrawn_weights")
    assert isinstance(redrawn.model.encoder[1], nn.Linear)
    assert not torch.equal(redrawn.model.encoder[1].weight, levels[0].model.encoder[1].weight)

"""A training runs on its live weights alone only where the losses ask the same of those as of dense layers."""

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gentickets import models
from gentickets.compiled import missing
from gentickets.masks.names import clone, named_state, named_weights
from gentickets.masks.value import Masks
from gentickets.objectives import ELBO, Adversarial, Autoencoding, GainPenalty
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import magnitude
from gentickets.sparse import execution as layers
from gentickets.training import Settings, execution, train
from gentickets.training.progress import Checkpoint
from two_ranks import Source, every_layer

pytestmark = pytest.mark.skipif(missing() is not None, reason="no kernels were compiled")

SETTINGS = Settings(steps=4, batch_size=8, lr=0.01)


def each_wide(_model, _work, costs):
    return {layer: cost.ways[-1] for layer, cost in costs.items()}


@pytest.fixture(autouse=True)
def every_layer_is_faster_so(monkeypatch):
    monkeypatch.setattr(layers, "faster", every_layer)
    monkeypatch.setattr(execution, "_told", set())


def autoencoder():
    torch.manual_seed(1)
    return models.linear_autoencoder(8, 1, width=8, latent=2)


def half(model):
    return prune(magnitude(model), fraction=0.5, scope="layer")


def told(train_it):
    """What a training gives, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given = train_it()
    return given, [str(warning.message) for warning in caught]


def ways(done):
    return {choice.layer: choice.sparse for choice in done.choices}


def assert_trained_dense(make, objective, settings=SETTINGS, source=None):
    """Trains as with execution=dense, to the bit, and says why in one line."""
    source = source or Source(settings.batch_size * objective.batches_per_step)
    model, dense = make(), make()
    masks = half(model)
    done, words = told(lambda: train(model, objective, source, settings, masks=masks))
    train(dense, objective, source, replace(settings, execution="dense"), masks=masks)
    assert not any(ways(done).values())
    (line,) = words
    assert line.startswith(f"{type(objective).__name__} asks something else of sparse layers than of dense ones")
    assert "training.execution=dense" in line
    assert "\n" not in line
    for name, weight in named_state(dense).items():
        assert torch.equal(named_state(model)[name], weight), name
    return line


# -- objectives that ask for more than layers give ---------------------------------------------------------------------


def by_class(model):
    return sum(layer.weight.square().sum() for layer in model.modules() if isinstance(layer, nn.Linear))


def by_axes(model):
    return sum(weight.square().sum() for weight in model.parameters() if weight.dim() >= 2)


def by_name(model):
    return sum(weight.square().sum() for name, weight in model.named_parameters() if "weight" in name)


def of_a_mean(model):
    return sum(weight.square().mean() for weight in model.parameters())


def of_filters(model):
    return sum(weight.norm(dim=-1).sum() for weight in model.parameters())


def of_biases(model):
    return sum(layer.bias.sum() for layer in model.modules() if isinstance(layer, nn.Linear))


def of_all(model):
    return sum(weight.square().sum() for weight in model.parameters())


def of_none(_model):
    return 0.0


@dataclass(frozen=True)
class Penalised(Autoencoding):
    """Reconstruction and a penalty over the weights, from a step on."""

    over: Callable[[nn.Module], Any] = of_none
    strength: float = 1e-3
    since: int = 0

    def at(self, step):
        return self if step >= self.since else replace(self, strength=0.0, since=0)

    def losses(self, model, batch, rng):
        for components, loss in super().losses(model, batch, rng):
            yield components, loss + self.strength * self.over(model)


def of_linear_layers(model):
    return sum(
        weight.square().sum()
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
        for weight in layer.parameters()
    )


@pytest.mark.parametrize("over", [by_class, by_axes, by_name, of_a_mean, of_filters])
@pytest.mark.parametrize("strength", [1.0, 1e-3, 1e-5])
def test_a_penalty_that_sparse_layers_would_drop_is_trained_with(over, strength):
    assert_trained_dense(autoencoder, Penalised(over=over, strength=strength))


def test_of_many_trainings_one_says_why():
    objective, models_ = Penalised(over=by_class), [autoencoder() for _ in range(3)]
    _, words = told(lambda: [train(one, objective, Source(), SETTINGS, masks=half(one)) for one in models_])
    assert len(words) == 1


def test_a_penalty_that_begins_later_is_trained_with():
    assert_trained_dense(autoencoder, Penalised(over=by_class, since=2))


@pytest.mark.parametrize("over", [of_all, of_none, of_biases, of_linear_layers])
def test_a_penalty_that_live_weights_have_as_well_leaves_them_sparse(over):
    model = autoencoder()
    done, words = told(lambda: train(model, Penalised(over=over), Source(), SETTINGS, masks=half(model)))
    assert all(ways(done).values())
    assert not words


@dataclass(frozen=True)
class Reads(Autoencoding):
    """Reconstruction, and a penalty over one layer, whatever its class."""

    def losses(self, model, batch, rng):
        for components, loss in super().losses(model, batch, rng):
            first = next(layer for layer in model.encoder.modules() if hasattr(layer, "in_features"))
            yield components, loss + 1e-3 * first.weight.square().sum()


def test_an_objective_that_fails_with_sparse_layers_is_trained_with_dense_ones():
    assert "it fails: " in assert_trained_dense(autoencoder, Reads())


@dataclass(frozen=True)
class Bounded(Autoencoding):
    """Reconstruction by weights that are bound before each step, as WGAN's."""

    to: float = 0.05

    def losses(self, model, batch, rng):
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data.clamp_(-self.to, self.to)
        yield from super().losses(model, batch, rng)


@pytest.mark.parametrize("to", [0.05, 0.36])  # which no weight has reached before the first step
def test_a_bound_that_would_pass_sparse_layers_by_is_kept_to(to):
    assert autoencoder().encoder[1].weight.abs().max() < 0.36
    assert_trained_dense(autoencoder, Bounded(to=to), replace(SETTINGS, steps=12, lr=0.1))


def over_bound(model):
    return sum(F.relu(weight.norm() - 50) for weight in model.parameters() if weight.dim() >= 2)


def test_a_penalty_on_what_is_not_reached_yet_is_trained_with():
    assert_trained_dense(autoencoder, Penalised(over=over_bound))


@dataclass(frozen=True)
class Orthogonal(Adversarial):
    """A generator against a discriminator whose filters are drawn to be orthogonal, as BigGAN's."""

    def losses(self, model, batch, rng):
        for components, loss in super().losses(model, batch, rng):
            flat = [w.flatten(1) for w in model.discriminator.parameters() if w.dim() >= 2]
            grams = [w @ w.T * (1 - torch.eye(len(w))) for w in flat if len(w) > 1]
            yield components, loss + 1e-4 * sum(gram.square().sum() for gram in grams)


@dataclass(frozen=True)
class OfSlopes(Autoencoding):
    """Reconstruction, and a penalty on its gradient by the weights, of which sparse layers have the live ones."""

    strength: float = 1e-4

    def losses(self, model, batch, rng):
        for components, loss in super().losses(model, batch, rng):
            slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True, allow_unused=True)
            yield components, loss + self.strength * sum(slope.square().sum() for slope in slopes if slope is not None)


def gan():
    torch.manual_seed(1)
    return models.dcgan(8, 1, width=4, latent=3)


@pytest.mark.parametrize(
    ("make", "objective"), [(gan, Orthogonal(3, n_critic=2)), (autoencoder, OfSlopes())], ids=["gan", "slopes"]
)
def test_a_penalty_in_one_of_several_losses_or_of_gradients_is_trained_with(make, objective):
    assert_trained_dense(make, objective)


@dataclass(frozen=True)
class Holds(Autoencoding):
    """Reconstruction, and a penalty over weights that it got hold of before."""

    weights: list[Any] = field(default_factory=list)

    def losses(self, model, batch, rng):
        for components, loss in super().losses(model, batch, rng):
            yield components, loss + 1e-3 * sum(weight.square().sum() for weight in self.weights)


def test_a_penalty_over_weights_that_an_objective_holds_is_trained_with():
    model, dense = autoencoder(), autoencoder()
    done, words = told(
        lambda: train(model, Holds(weights=list(model.parameters())), Source(), SETTINGS, masks=half(model))
    )
    train(dense, Penalised(over=of_all), Source(), replace(SETTINGS, execution="dense"), masks=half(dense))
    assert not any(ways(done).values())
    assert len(words) == 1
    for name, weight in named_weights(dense).items():
        assert torch.equal(named_weights(model)[name], weight)


# -- what asks for no more stays as fast, and as it was ----------------------------------------------------------------


def with_chance(way):
    """Layers that draw where their input lies in memory otherwise."""
    torch.manual_seed(1)
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(4, 4, 3, 2, 1)),
        *(nn.RReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.3), nn.Linear(8, 4)),
    )
    decoder = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    for layer in [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]:
        way(layer)
    return model


@dataclass(frozen=True)
class Noisy(Autoencoding):
    """Reconstruction of codes and images with noise from every generator there is."""

    def losses(self, model, batch, rng):
        code = model.encoder(batch)
        code = code + torch.randn_like(code) * 0.1 + torch.randn(code.shape, generator=rng) * 0.1
        code = code * (1 + 0.1 * random.random() + 0.1 * np.random.rand())  # noqa: NPY002
        yield self.components, F.mse_loss(model.decoder(code), batch)


@pytest.mark.filterwarnings("ignore:.*weight norm divides by")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_a_penalty_over_weights_under_a_norm_is_trained_with(norm):
    def make():
        model = autoencoder()
        norm(model.encoder[1]), norm(model.decoder[0])
        return model

    assert_trained_dense(make, Penalised(over=by_class))


NORMS = {
    "plain": lambda layer: layer,
    "spectral": nn.utils.parametrizations.spectral_norm,
    "old-spectral": nn.utils.spectral_norm,
    "lengths": nn.utils.parametrizations.weight_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight norm divides by")
@pytest.mark.parametrize("choose", [every_layer, each_wide])
@pytest.mark.parametrize("norm", NORMS)
def test_chance_and_norms_are_no_reason_to_stay_dense(norm, choose, monkeypatch):
    monkeypatch.setattr(layers, "faster", choose)
    model = with_chance(NORMS[norm])
    done = train(model, Noisy(), Source(), SETTINGS, masks=half(model))
    assert all(ways(done).values())


FAMILIES = {
    "vae": (lambda: models.conv_vae(8, 1, width=4, latent=3), ELBO(3, warmup_steps=3)),
    "gan": (gan, Adversarial(3, n_critic=2)),
    "wgan": (gan, Adversarial(3, "wasserstein", clip=0.01, n_critic=3)),
    "wgan-gp": (gan, Adversarial(3, "wasserstein", gradient_penalty=10.0)),
    "gains": (gan, GainPenalty(Adversarial(3, "hinge"), 1e-3)),
}


@pytest.mark.parametrize("choose", [every_layer, each_wide])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_objective_of_ours_is_trained_on_live_weights(family, choose, monkeypatch):
    monkeypatch.setattr(layers, "faster", choose)
    torch.manual_seed(1)
    make, objective = FAMILIES[family]
    model = make()
    done = train(model, objective, Source(8 * objective.batches_per_step), SETTINGS, masks=half(model))
    assert all(ways(done).values())


def test_a_rectifier_at_nothing_but_rounding_is_no_reason_to_stay_dense():
    """Of a channel a constant is left, and of that, normed, rounding: positive in one kind of layers, perhaps."""
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    decoder = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1), nn.Tanh())
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    with torch.no_grad():
        encoder[0].bias[:4], encoder[0].weight[:4] = 0.3, 0.0
    masks = Masks.dense(model)
    fed = torch.zeros(8, 8, 3, 3, dtype=torch.bool)
    fed[:, :4, 1, 1] = True  # only constants reach these channels
    masks = masks.replace({"encoder.0.weight": encoder[0].weight != 0, "encoder.2.weight": fed})
    done = train(model, Autoencoding(), Source(), SETTINGS, masks=masks)
    assert all(ways(done).values())


@settings(max_examples=15)
@given(seed=st.integers(0, 2**20), batch=st.integers(2, 9), fraction=st.floats(0.1, 0.97))
def test_rounding_is_no_reason_to_stay_dense(seed, batch, fraction):
    torch.manual_seed(seed)
    model = gan()
    masks = prune(magnitude(model), fraction=fraction, scope="layer")
    done = train(model, Adversarial(3), Source(batch), replace(SETTINGS, steps=1, seed=seed), masks=masks)
    assert all(ways(done).values())


@dataclass(frozen=True)
class Counts(Noisy):
    """Keeps count of its losses, and of what it was given, which it changes in place."""

    seen: list[int] = field(default_factory=list)

    def losses(self, model, batch, rng):
        self.seen.append(len(self.seen))
        batch.mul_(0.5 + 0.5 / len(self.seen))
        yield from super().losses(model, batch, rng)


def test_comparing_leaves_no_trace(monkeypatch):
    images = torch.rand(8, 1, 8, 8) * 2 - 1

    class Same:
        def at(self, _step):
            return images

    found = []
    for compared in (True, False):
        if not compared:
            monkeypatch.setattr(execution, "_differs", lambda *_: None)
        model, objective, kept = with_chance(NORMS["old-spectral"]), Counts(), images.clone()
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        done = train(model, objective, Same(), SETTINGS, masks=half(model))
        assert all(ways(done).values())
        assert objective.seen == list(range(SETTINGS.steps))
        found.append({**named_state(model), "images": images.clone()})
        images.copy_(kept)
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


@pytest.mark.parametrize("over", [by_class, of_all])
def test_a_resumed_training_runs_as_it_did_before(over, tmp_path):
    settings = replace(SETTINGS, steps=8, ema=0.9)
    whole, cut, again = autoencoder(), autoencoder(), autoencoder()
    masks, objective = half(whole), Penalised(over=over)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(whole, objective, Source(), settings, masks=masks)
        asked, checkpoint = iter([False, False, True]), Checkpoint(tmp_path / "c.pt", "key", every=1e9)
        with pytest.raises(KeyboardInterrupt):
            train(cut, objective, Source(), settings, masks=masks, checkpoint=checkpoint, stop=lambda: next(asked))
        begun = []
        done = train(
            again, objective, Source(), settings, masks=masks, checkpoint=checkpoint,
            on_progress=lambda progress: begun.append(progress.step), report_every=1,
        )  # fmt: skip
    assert begun[0] == 4
    assert any(ways(done).values()) == (over is of_all)
    for name, weight in named_state(whole).items():
        assert torch.equal(named_state(again)[name], weight), name


@dataclass(frozen=True)
class Uncopied(Autoencoding):
    """An objective with something that cannot be copied."""

    rng: Any = field(default_factory=lambda: (n for n in range(3)))


def test_an_objective_that_cannot_be_copied_is_trained_with_dense_layers():
    assert "cannot be copied" in assert_trained_dense(autoencoder, Uncopied())


@dataclass(frozen=True)
class Broken(Autoencoding):
    """Fails, whatever the layers."""

    def losses(self, model, batch, rng):
        raise RuntimeError("by itself")
        yield


@pytest.mark.filterwarnings("error")
def test_an_objective_that_fails_anyhow_does_so_in_its_own_words():
    model = autoencoder()
    before = clone(model)
    with pytest.raises(RuntimeError, match="by itself"):
        train(model, Broken(), Source(), SETTINGS, masks=half(model))
    assert [weight.shape for weight in before.parameters()] == [weight.shape for weight in model.parameters()]

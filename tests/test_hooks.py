"""Hooks: when they are called, what they see, and that a training with one that looks is the training without it."""

import pytest
import torch

from gentickets import models
from gentickets.compiled import missing
from gentickets.errors import GenticketsError
from gentickets.masks.names import clone, named_state
from gentickets.objectives import Adversarial, Autoencoding
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import magnitude
from gentickets.sparse import execution
from gentickets.training import Hook, Settings, train, with_averages

IMAGES = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
SETTINGS = Settings(steps=24, batch_size=8, ema=0.9, schedule="cosine", clip_norm=1.0)


class Source:
    """Batches by step."""

    def at(self, step):
        return IMAGES[torch.randint(0, 64, (8,), generator=torch.Generator().manual_seed(step))]


def family(name):
    torch.manual_seed(1)
    if name == "ae":
        return models.linear_autoencoder(8, 1, width=8, latent=2), Autoencoding()
    if name == "sngan":
        return models.sngan(8, 1, width=4, latent=3), Adversarial(3, loss="hinge")
    return models.dcgan(8, 1, width=4, latent=3), Adversarial(3)


def sparse(model, sparsity=0.8):
    return prune(magnitude(model), to_sparsity=sparsity, scope="layer")


def assert_same_bits(found, expected):
    for key, tensor in named_state(expected).items():
        assert torch.equal(named_state(found)[key], tensor), key


class Looks(Hook):
    """Keeps what it was shown, and draws from torch's generator, which it should not."""

    def __init__(self, every=1, end=None):
        self.every, self.end = every, end
        self.steps, self.shown = [], []

    def after_step(self, state):
        torch.rand(3)
        self.steps.append(state.step)
        self.shown.append((clone(state.model), clone(with_averages(state.model, state.averaged))))
        return state.step == self.end


@pytest.fixture
def every_layer_on_live_weights(monkeypatch):
    if missing() is not None:
        pytest.skip("no kernels were compiled")
    monkeypatch.setattr(
        execution, "faster", lambda model, work, costs: {key: cost.ways[0] for key, cost in costs.items()}
    )


def test_a_hook_is_called_every_so_many_steps_and_after_the_last():
    model, objective = family("ae")
    often, seldom = Looks(5), Looks(99)
    train(model, objective, Source(), SETTINGS, hooks=[often, seldom])
    assert often.steps == [5, 10, 15, 20, 24]
    assert seldom.steps == [24]
    often.steps.clear()
    train(model, objective, Source(), SETTINGS, start_step=8, end_step=12, hooks=[often])
    assert often.steps == [10, 12]


def test_where_a_hook_ends_a_training_the_others_are_called_too_and_once():
    model, objective = family("ae")
    before, ends, after = Looks(4), Looks(3, end=9), Looks(9)
    assert train(model, objective, Source(), SETTINGS, hooks=[before, ends, after]).step == 9
    assert before.steps == [4, 8, 9]
    assert ends.steps == [3, 6, 9]
    assert after.steps == [9]


@pytest.mark.parametrize("name", ["ae", "gan", "sngan"])
def test_a_hook_that_looks_leaves_a_training_on_live_weights_as_it_is(name, every_layer_on_live_weights):
    model, objective = family(name)
    masks = sparse(model)
    alone, seen = clone(model), clone(model)
    expected = train(alone, objective, Source(), SETTINGS, masks=masks)
    hook = Looks(7)
    found = train(seen, objective, Source(), SETTINGS, masks=masks, hooks=[hook])
    assert found.choices == expected.choices
    assert all(choice.sparse for choice in found.choices)
    assert_same_bits(seen, alone)
    assert_same_bits(found.averaged, expected.averaged)
    # What it was shown is the dense model of that step, to the bit: the one of a training that ends there.
    for step, (network, averaged) in zip([7, 14, 21, 24], hook.shown, strict=True):
        masks.audit(network)
        ended = clone(model)
        done = train(ended, objective, Source(), SETTINGS, masks=masks, end_step=step)
        assert list(named_state(network)) == list(named_state(model))
        assert_same_bits(network, ended)
        assert_same_bits(averaged, with_averages(ended, done.averaged))


def test_nobody_who_does_not_ask_for_the_model_pays_for_a_copy(every_layer_on_live_weights, monkeypatch):
    class Idle(Hook):
        def after_step(self, state):
            return False

    model, objective = family("ae")
    monkeypatch.setattr("gentickets.training.hooks.clone", None)
    train(model, objective, Source(), SETTINGS, masks=sparse(model), hooks=[Idle()])


def test_the_models_dropout_falls_as_it_would_without_a_hook():
    model, objective = family("ae")
    model.encoder.append(torch.nn.Dropout(0.5))
    alone = clone(model)
    train(alone, objective, Source(), SETTINGS)
    train(model, objective, Source(), SETTINGS, hooks=[Looks()])
    assert_same_bits(model, alone)


@pytest.mark.parametrize("every", [0, -1, 2.5, None])
def test_a_number_of_steps_that_is_none_is_refused(every):
    model, objective = family("ae")
    with pytest.raises(GenticketsError, match=r"Looks: every=.* is no whole number of steps"):
        train(model, objective, Source(), SETTINGS, hooks=[Looks(every)])


def test_a_hook_with_a_state_that_it_cannot_load_says_so():
    class Half(Hook):
        def after_step(self, state):
            return False

    Half().load_state_dict({})
    with pytest.raises(NotImplementedError, match="Half has a state_dict and no load_state_dict"):
        Half().load_state_dict({"seen": 1})

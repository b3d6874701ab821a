"""Which layers are run on their live weights: the cheapest way through all of them."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gentickets as gt
from gentickets import models
from gentickets.compiled import missing
from gentickets.objectives import Autoencoding
from gentickets.sparse import costs
from gentickets.sparse.costs import Cost, Work, faster

pytestmark = pytest.mark.skipif(missing() is not None, reason="no kernels were compiled")


@st.composite
def nets(draw):
    """Linear layers in a row, with what each does and how dense its mask is; some cannot be sparse."""
    count = draw(st.integers(1, 6))
    modules, layers = [], []
    for _ in range(count):
        layers.append(nn.Linear(1, 1))
        modules.append(layers[-1])
        modules += draw(st.sampled_from([[], [nn.ReLU()], [nn.Tanh()]]))
    work = {id(layer): Work(inputs=draw(st.integers(0, 10**5)), flat=draw(st.booleans())) for layer in layers}
    for done in work.values():
        done.add(draw(st.floats(0, 1e7)), draw(st.integers(1, 200)), torch.float32)
    gradients = draw(st.booleans())
    weighed = {
        layer: Cost(done, draw(st.integers(0, 10**5)), draw(st.floats(0, 1)), gradients)
        for layer, done in work.items()
        if draw(st.sampled_from([True, True, True, False]))
    }
    return nn.Sequential(*modules), layers, work, weighed


def price(net, layers, work, weighed, sparse):
    """What a step costs where just these layers are sparse, written down a second time."""
    modules, total = list(net), 0.0
    rates = next((cost.rates for cost in weighed.values()), costs.TRAINING)
    for number, layer in enumerate(layers):
        is_sparse, was_sparse = layer in sparse, number > 0 and layers[number - 1] in sparse
        if number > 0 and is_sparse != was_sparse:
            total += work[id(layer)].inputs * rates.turn * (costs._MARGIN if is_sparse else 1)
        cost = weighed.get(id(layer))
        if cost is None:
            continue
        if not is_sparse:
            total += rates.dense_call + cost.dense
            continue
        between = modules[modules.index(layers[number - 1]) + 1 : modules.index(layer)] if number else None
        both_flat = was_sparse and cost.work.flat and work[id(layers[number - 1])].flat
        chained = both_flat and all(isinstance(module, nn.ReLU) for module in between)
        total += (cost.sparse + (rates.link_call if chained else rates.sparse_call)) * costs._MARGIN
    return total


@settings(max_examples=200, deadline=None)
@given(nets())
def test_no_other_choice_is_cheaper(case):
    net, layers, work, weighed = case
    found = faster(nn.ModuleDict({"net": net}), work, weighed)  # a chain within a model
    assert set(found) <= set(weighed)
    able = [layer for layer in layers if id(layer) in weighed]
    choices = [set(chosen) for size in range(len(able) + 1) for chosen in itertools.combinations(able, size)]
    chosen = {layer for layer in layers if id(layer) in found}
    least = min(price(net, layers, work, weighed, choice) for choice in choices)
    assert price(net, layers, work, weighed, chosen) == pytest.approx(least)


def accelerated(model, objective, images, sparsity):
    """Which layers of a model are sparse where each keeps this share of its weights."""
    masks = gt.prune(gt.magnitude(model), to_sparsity=sparsity, scope="layer")
    with gt.accelerate(model, masks, objective.example_inputs(model, images)) as fast:
        return {choice.layer: choice.sparse for choice in fast.choices}


def test_a_step_that_is_all_overhead_stays_dense():
    model = models.linear_autoencoder(16, 1, hidden=[64, 32], latent=8)
    assert not any(accelerated(model, Autoencoding(), torch.rand(16, 1, 16, 16), 0.99).values())


@pytest.mark.parametrize(("sparsity", "wins"), [(0.2, False), (0.9, True)])
def test_linear_layers_go_sparse_where_enough_is_left_out(sparsity, wins):
    model = models.linear_autoencoder(28, 1, hidden=[512, 256, 128], latent=64)
    assert set(accelerated(model, Autoencoding(), torch.rand(64, 1, 28, 28), sparsity).values()) == {wins}


@pytest.mark.parametrize(("sparsity", "wins"), [(0.3, False), (0.9, True)])
def test_convolutions_go_sparse_together(sparsity, wins):
    model = models.conv_vae(32, 3, width=16, latent=32)
    found = accelerated(model, gt.ELBO(32), torch.rand(32, 3, 32, 32), sparsity)
    assert any(found.values()) == wins
    if wins:  # no dense layer between two sparse ones, which would change the layout twice
        assert all(found.values())


def test_a_layer_over_more_than_two_dimensions_is_no_link():
    torch.manual_seed(0)
    model = nn.Module()
    model.part = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.8, scope="layer")
    found = []
    for images in (torch.randn(64, 128), torch.randn(8, 8, 128)):  # as much to do
        with gt.accelerate(model, masks, {"part": images}) as fast:
            found.append([choice.sparse for choice in fast.choices])
    assert found == [[True, True], [False, False]]


@settings(max_examples=100, deadline=None)
@given(st.floats(1, 1e7), st.integers(1, 300), st.floats(0.01, 1), st.booleans())
def test_a_batch_that_fills_its_vectors_costs_the_least_a_number(adds, batch, density, gradients):
    whole = -(-batch // 16) * 16
    some, full = Work(), Work()
    some.add(adds * batch, batch, torch.float32)
    full.add(adds * whole, whole, torch.float32)
    one, other = (Cost(done, 0, density, gradients) for done in (some, full))
    assert one.sparse / batch >= other.sparse / whole * (1 - 1e-9)
    assert one.sparse <= other.sparse * (1 + 1e-9)  # and is no dearer than being filled up with zeros
    assert one.dense / batch == pytest.approx(other.dense / whole)


def chosen_at(batch, sparsity, gradients):
    """How many layers of a VAE are sparse for that batch."""
    model = models.conv_vae(32, 3, width=16, latent=32)
    masks = gt.prune(gt.magnitude(model), to_sparsity=sparsity, scope="layer")
    with torch.set_grad_enabled(gradients):
        given_inputs = gt.ELBO(32).example_inputs(model, torch.rand(batch, 3, 32, 32))
        with gt.accelerate(model, masks, given_inputs) as fast:
            return sum(choice.sparse for choice in fast.choices)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_small_batch_needs_more_pruned_than_a_large_one(gradients):
    assert chosen_at(1, 0.8, gradients) < chosen_at(64, 0.8, gradients)
    assert chosen_at(64, 0.95, gradients) > 0

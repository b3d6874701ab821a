"""Averages of networks: their weights, warmed up, and the norms that belong to them and to no other weights."""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import gentickets as gt
from gentickets.compiled import missing
from gentickets.masks.names import clone, named_state
from gentickets.objectives import Objective
from gentickets.sparse import execution
from gentickets.training.averaging import Average, decay_at, settle, weight_of_start, with_averages
from gentickets.training.hooks import Hook
from gentickets.training.loop import Settings, train
from gentickets.training.progress import Checkpoint
from two_ranks import every_layer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

OLD_AND_NEW = [nn.utils.spectral_norm, parametrizations.spectral_norm]


@pytest.fixture
def every_layer_on_live_weights(monkeypatch):
    """As if every layer were of a size that is faster so."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(execution, "faster", every_layer)


class Source:
    def at(self, step):
        return torch.randn(8, 6, generator=torch.Generator().manual_seed(step))


class Fit(Objective):
    """Learns to give twice what comes in."""

    components = ("net",)
    averaged = ("net",)

    def losses(self, model, batch, rng):
        yield "net", (model.net(batch) - 2 * batch).square().mean()

    def example_inputs(self, model, batch):
        return {"net": batch}


def deep(norm, layers=16):
    torch.manual_seed(0)
    return nn.ModuleDict({"net": nn.Sequential(*(norm(nn.Linear(6, 6)) for _ in range(layers)))})


def norms_of(net):
    """The largest singular value of what each layer really multiplies with, as it was in a forward pass."""
    net(torch.randn(2, 6))
    return [float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) for layer in net]


SETTINGS = Settings(steps=30, batch_size=8, lr=0.05, ema=0.9)


# -- the warm-up ----------------------------------------------------------------------------------------------


def test_the_decay_is_warmed_up():
    assert [decay_at(0.999, t) for t in (0, 1, 2, 90)] == [0.0, 2 / 11, 3 / 12, 91 / 100]
    assert decay_at(0.999, 10**6) == 0.999
    assert decay_at(0.3, 8) == 0.3


@given(st.floats(0.01, 0.9999), st.integers(1, 300))
def test_the_weight_of_the_start_is_that_of_an_average_of_one_and_zeros(decay, updates):
    net = nn.Linear(1, 1, bias=False).double()
    average = Average(net, decay)
    for number in range(updates):
        nn.init.constant_(net.weight, float(number == 0))
        average.update_parameters(net)
    assert average.module.weight.item() == pytest.approx(weight_of_start(decay, updates), abs=1e-9)


def test_an_average_that_is_mostly_its_start_warns_and_no_other():
    model = deep(lambda layer: layer, layers=1)
    with pytest.warns(UserWarning, match=r"ema=0\.999: after 2 steps .* still 18% of the average"):
        train(model, Fit(), Source(), replace(SETTINGS, steps=2, ema=0.999))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, Fit(), Source(), replace(SETTINGS, steps=1000, ema=0.999), end_step=2)  # of which nobody is judge
        train(model, Fit(), Source(), replace(SETTINGS, steps=20, ema=0.999))
        train(model, Fit(), Source(), replace(SETTINGS, steps=2, ema=None))


def test_an_average_of_a_thousand_steps_holds_nothing_of_its_start():
    """0.999 ** 999 = 0.37, without a warm-up."""
    assert weight_of_start(0.999, 1000) < 1e-9
    assert weight_of_start(0.999, 2) == 2 / 11


# -- what is averaged -----------------------------------------------------------------------------------------


def test_counts_are_the_networks_and_masks_of_minus_infinity_stay():
    net = nn.BatchNorm1d(3)
    net.register_buffer("bias_mask", torch.tensor([0.0, -torch.inf]))
    average = Average(net, 0.9)
    means = []
    for number in range(4):
        net(torch.randn(8, 3) + number)
        means.append(net.running_mean.clone())
        average.update_parameters(net)
    assert int(average.module.num_batches_tracked) == 4
    assert average.module.bias_mask.tolist() == [0.0, -torch.inf]
    expected = means[0]
    for kept, mean in zip([2 / 11, 3 / 12, 4 / 13], means[1:], strict=True):
        expected = kept * expected + (1 - kept) * mean
    torch.testing.assert_close(average.module.running_mean, expected)


# -- spectral norm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", OLD_AND_NEW)
def test_an_average_under_spectral_norm_has_norm_one(norm):
    model = deep(norm)
    for layer in model.net:  # vectors that are far from converged, as in early training
        for name, buffer in layer.named_buffers():
            assert name.endswith(("_u", "_v"))
            buffer.copy_(torch.nn.functional.normalize(torch.randn_like(buffer), dim=0))
    seen = []

    class Look(Hook):
        def after_step(self, state):
            if state.step in (1, 7):
                seen.extend(norms_of(with_averages(state.model, state.averaged).net.eval()))
                seen.extend(norms_of(clone(state.averaged).net.eval().module))
            return False

    done = train(model, Fit(), Source(), SETTINGS, hooks=[Look()])
    seen += norms_of(done.averaged.net.eval().module)
    seen += norms_of(with_averages(model, done.averaged).net.eval())
    assert len(seen) == 6 * 16
    assert seen == pytest.approx([1.0] * len(seen), abs=1e-5)


@pytest.mark.parametrize("norm", OLD_AND_NEW)
def test_sparse_layers_average_to_norm_one_too(norm, every_layer_on_live_weights):
    model = deep(norm, layers=4)
    masks = gt.prune(gt.magnitude(model), fraction=0.5, scope="layer")
    dense = clone(model)
    done = train(model, Fit(), Source(), SETTINGS, masks=masks)
    assert all(choice.sparse for choice in done.choices)
    wanted = train(dense, Fit(), Source(), replace(SETTINGS, execution="dense"), masks=masks)
    assert norms_of(done.averaged.net.eval().module) == pytest.approx([1.0] * 4, abs=1e-5)
    for key, tensor in named_state(wanted.averaged).items():
        torch.testing.assert_close(named_state(done.averaged)[key], tensor, rtol=1e-2, atol=3e-3, msg=key)


@pytest.mark.parametrize("norm", OLD_AND_NEW)
@pytest.mark.parametrize("steps", [11, 30])
def test_averages_under_spectral_norm_are_resumed_bit_for_bit(norm, steps, tmp_path):
    model = deep(norm, layers=3)
    whole, cut, again = clone(model), clone(model), clone(model)
    expected = train(whole, Fit(), Source(), SETTINGS).averaged
    checkpoint = Checkpoint(tmp_path / "c.pt", "key", every=0.0)
    asked = iter([False] * (steps - 1) + [True])
    with pytest.raises(KeyboardInterrupt):
        train(cut, Fit(), Source(), SETTINGS, checkpoint=checkpoint, stop=lambda: next(asked))
    found = train(again, Fit(), Source(), SETTINGS, checkpoint=checkpoint).averaged
    for one, other in ((again, whole), (found, expected)):
        for key, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[key]), key


@given(
    st.sampled_from(["old", "new", "stacked"]),
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.data(),
)
def test_settled_vectors_are_those_of_the_weights(kind, shape, data):
    """Along any axis, of any shape, under another parametrisation: sigma is the largest singular value."""

    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight + 1

    axis = data.draw(st.integers(-len(shape) if kind != "old" else 0, len(shape) - 1))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    layer = nn.Module()
    layer.kernel = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    if kind == "old":
        nn.utils.spectral_norm(layer, "kernel", dim=axis)
    else:
        if kind == "stacked":
            nn.utils.parametrize.register_parametrization(layer, "kernel", Twice())
        parametrizations.spectral_norm(layer, "kernel", dim=axis)
    with torch.no_grad():
        next(layer.parameters()).copy_(torch.randn(shape))
    settle(layer)
    layer.eval()
    weight = layer.kernel.detach()
    assert float(torch.linalg.matrix_norm(weight.movedim(axis, 0).flatten(1), 2)) == pytest.approx(1.0)
    assert layer.training is False

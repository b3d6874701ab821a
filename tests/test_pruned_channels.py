"""Channels of a layer by themselves: which of its numbers a channel is, whatever the layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import gentickets as gt


def test_the_channels_of_a_grouped_transposed_convolution_lie_on_two_axes():
    model = nn.ModuleDict({"g": nn.ConvTranspose2d(4, 4, 2, groups=2, bias=False)})
    weight = model["g"].weight.data
    for channel, size in enumerate((4.0, 1.0, 1.0, 2.0)):
        weight[2 * (channel // 2) : 2 * (channel // 2) + 2, channel % 2] = size
    gt.prune(gt.magnitude(model), to_sparsity=0.5, granularity="channel").apply_(model)
    assert [float(weight[2 * (c // 2), c % 2, 0, 0]) for c in range(4)] == [4.0, 0.0, 0.0, 2.0]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    bias=st.booleans(),
    axis=st.sampled_from([None, 0, 1]),
    rounds=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_exactly_the_pruned_channels_of_the_output_are_silent(kind, groups, inputs, outputs, bias, axis, rounds, seed):
    """Against the layer itself: a dead channel of its output is zero, every other one depends on the input."""
    torch.manual_seed(seed)
    layer = kind(groups * inputs, groups * outputs, 2, groups=groups, bias=bias)
    model = nn.ModuleDict({"g": layer if axis is None else parametrizations.weight_norm(layer, dim=axis)})
    count, masks = groups * outputs, None
    left = count
    for turn in range(rounds):
        scores = gt.random_scores(model, seed + turn)
        masks = gt.prune(scores, fraction=0.4, granularity="channel", within=masks)
        left = max(1, left - int(left * 0.4))
    masks.check_fits(model)
    with torch.no_grad():
        places = [4] * (model["g"].weight.dim() - 2)
        out = masks.apply_(model)["g"](torch.randn(3, groups * inputs, *places))
    assert out.isfinite().all()
    silent = out.transpose(0, 1).flatten(1).eq(0).all(1)
    assert int((~silent).sum()) == left


def test_the_score_of_a_channel_is_the_mean_over_its_weights():
    torch.manual_seed(0)
    model = nn.ModuleDict({"g": nn.ConvTranspose2d(6, 9, 2, groups=3)})
    weight = model["g"].weight.detach()
    means = [float(weight[2 * (c // 3) : 2 * (c // 3) + 2, c % 3].abs().mean()) for c in range(9)]
    masks = gt.prune(gt.magnitude(model), fraction=0.34, granularity="channel")
    lost = {c for c in range(9) if not masks["g.weight"][2 * (c // 3), c % 3].any()}
    assert lost == set(sorted(range(9), key=means.__getitem__)[:3])
    assert {c for c in range(9) if not masks["g.bias"][c]} == lost


def test_an_early_bird_reads_a_grouped_transposed_convolution():
    model = nn.ModuleDict({"g": nn.ConvTranspose2d(4, 8, 2, groups=2)})
    bird = gt.EarlyBird(0.5, granularity="channel", criterion=gt.magnitude)
    bird.observe(model)
    assert bird.ticket.install(model) is model
    assert bird.masks.counts() == {"g.weight": 2 * 2 * 2 * 4, "g.bias": 4}


def test_biases_by_name_have_an_axis_of_their_own():
    model = nn.ModuleDict({"g": nn.ConvTranspose2d(4, 6, 2)})
    masks = gt.prune(gt.magnitude(model, include="*"), fraction=0.5, granularity="channel", scope="layer")
    assert masks.counts() == {"g.weight": 3 * 4 * 4, "g.bias": 3}


def test_a_single_number_has_no_channels():
    with pytest.raises(gt.PruneError, match="'scale' is a single number and has no channels"):
        gt.prune({"scale": torch.tensor(1.0), "w": torch.randn(3, 2)}, fraction=0.5, granularity="channel")


class Conv1D(nn.Module):
    """As in transformers, for GPT-2: a linear layer whose weight is (inputs, outputs)."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize("outputs", [6, 4])
def test_channels_of_a_layer_that_stores_its_inputs_first_are_its_outputs(outputs):
    model = nn.ModuleDict({"net": Conv1D(outputs, 4)})
    model["net"].weight.data = torch.ones(4, 1) * torch.arange(1.0, outputs + 1)
    scores = gt.magnitude(model, include=["net.weight"])
    masks = gt.prune(scores, to_sparsity=0.5, granularity="channel")
    kept = torch.arange(outputs) >= outputs // 2
    assert torch.equal(masks["net.weight"], kept.expand(4, outputs))
    assert torch.equal(masks["net.bias"], kept)
    masks.check_fits(model)

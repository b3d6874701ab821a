"""Who is kept: the best that live, by sizes and not by signs; and what is no score, or no amount."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import gentickets as gt

# -- sizes ------------------------------------------------------------------------------------------------------


def test_the_size_of_the_lowest_whole_number() -> None:
    """-128 has no absolute value in int8."""
    model = nn.ModuleDict({"u": nn.Linear(4, 1, bias=False)})
    model.u.weight = nn.Parameter(torch.tensor([[-128, 1, 2, 3]], dtype=torch.int8), requires_grad=False)
    assert gt.magnitude(model)["u.weight"].tolist() == [[128.0, 1.0, 2.0, 3.0]]
    assert gt.prune(gt.magnitude(model), fraction=0.75)["u.weight"].tolist() == [[True, False, False, False]]


def test_gains_count_by_their_size() -> None:
    model = nn.ModuleDict({"u": nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))})
    with torch.no_grad():
        model.u[1].weight.copy_(torch.tensor([-3.0, 1.0, -0.5, 2.0]))
    scores = gt.batchnorm_scale(model)
    assert scores["u.1.weight"].tolist() == [3.0, 1.0, 0.5, 2.0]
    kept = gt.prune(scores, fraction=0.5, granularity="channel")
    assert kept["u.1.weight"].tolist() == kept["u.1.bias"].tolist() == [True, False, False, True]


def test_random_scores_are_fine_enough_to_have_no_ties() -> None:
    scores = gt.random_scores(nn.ModuleDict({"u": nn.Linear(1000, 300)}), 0)
    assert scores["u.weight"].unique().numel() == 300_000


# -- the best come back -----------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4, 8]))
def test_multiple_puts_the_best_channels_back(seed: int, multiple: int) -> None:
    torch.manual_seed(seed)
    model = {"net": nn.Sequential(nn.Linear(4, 11), nn.ReLU(), nn.Linear(11, 13), nn.ReLU(), nn.Linear(13, 3))}
    groups = gt.channel_groups(nn.ModuleDict(model), {"net": torch.randn(2, 4)})
    scores = gt.magnitude(model)
    plain = gt.prune(scores, fraction=0.45, granularity="channel", groups=groups)
    masks = gt.prune(scores, fraction=0.45, granularity="channel", groups=groups, multiple=multiple)
    assert plain <= masks
    for layer, width in (("net.0", 11), ("net.2", 13)):
        each = scores[f"{layer}.weight"].mean(1)
        kept = masks[f"{layer}.weight"].any(1)
        count = int(plain[f"{layer}.weight"].any(1).sum())
        assert int(kept.sum()) == min(width, -(-count // multiple) * multiple)
        assert kept.all() or each[kept].min() >= each[~kept].max()


def test_what_is_dead_does_not_come_back_by_multiple() -> None:
    model = {"net": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))}
    groups = gt.channel_groups(nn.ModuleDict(model), {"net": torch.randn(2, 4)})
    scores = gt.magnitude(model)
    scores["net.0.weight"] = torch.arange(8.0)[:, None].expand(8, 4).contiguous()
    first = gt.prune(scores, fraction=0.25, granularity="channel", groups=groups)  # 0 and 1 go
    scores["net.0.weight"] = scores["net.0.weight"].flip(0)  # now the best, but dead
    masks = gt.prune(scores, fraction=0.5, granularity="channel", groups=groups, within=first, multiple=4)
    assert masks["net.0.weight"].any(1).tolist() == [False, False, True, True, True, True, False, False]


def test_a_filter_under_weight_norm_keeps_its_best_living_weight() -> None:
    model = nn.ModuleDict({"net": nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 2)))})
    scores = gt.random_scores(model, 0)
    (name,) = scores
    scores[name][:] = torch.tensor([[9.0, 1.0, 2.0, 1.0], [5.0, 6.0, 7.0, 8.0]])
    alive = torch.tensor([[False, True, True, False], [True, True, True, True]])
    within = gt.Masks({name: alive})
    with pytest.warns(UserWarning, match="weight norm"):
        masks = gt.prune(scores, fraction=0.5, within=within)
    assert masks[name].tolist() == [[False, False, True, False], [False, True, True, True]]


def test_channels_of_a_transposed_layer_under_weight_norm_fit_the_model() -> None:
    """There weight norm has a length for each input: the outputs go by the weights."""
    model = nn.ModuleDict({"net": nn.Sequential(parametrizations.weight_norm(nn.ConvTranspose2d(3, 5, 3)))})
    masks = gt.prune(gt.magnitude(model), fraction=0.4, granularity="channel")
    masks.apply_(model)
    masks.audit(model)
    assert masks["net.0.parametrizations.weight.original1"].any(0).any(-1).any(-1).sum() == 3


def test_channels_pruned_by_their_lengths_stay_dead() -> None:
    model = nn.ModuleDict({"net": nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 10)))})
    scores = gt.magnitude(model)
    half = gt.prune(scores, fraction=0.5, granularity="channel")
    (lengths,) = [name for name in half if name.endswith("original0")]
    assert int(half[lengths].sum()) == 5
    quarter = gt.prune(gt.random_scores(model, 1), fraction=0.4, granularity="channel", within=half)
    assert quarter <= half
    assert int(quarter[lengths].sum()) == 3


# -- attention --------------------------------------------------------------------------------------------------


class Attending(nn.Module):
    """An autoencoder whose encoder attends, by torch's fused attention or written out."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.encoder, self.decoder = Block(way), nn.Linear(6, 6)


class Block(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.into, self.out = way, nn.Linear(6, 18), nn.Linear(6, 6)
        self.heads = nn.MultiheadAttention(6, 2, batch_first=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.into(x).chunk(3, -1)
        if self.way == "module":
            return self.out(self.heads(q, k, v, need_weights=False)[0])
        if self.way == "fused":
            return self.out(F.scaled_dot_product_attention(q, k, v))
        return self.out((q @ k.mT / 6**0.5).softmax(-1) @ v)


@pytest.mark.parametrize("criterion", [gt.snip, gt.grasp])
def test_fused_attention_scores_as_written_out(criterion) -> None:
    fused, written = Attending("fused").double(), Attending("written").double()
    written.load_state_dict(fused.state_dict())
    batches = [torch.randn(3, 4, 6, dtype=torch.float64)]
    one, other = (criterion(model, gt.Autoencoding(), batches) for model in (fused, written))
    for name in one:
        assert torch.allclose(one[name], other[name], rtol=1e-8, atol=1e-14), name
    assert one["encoder.into.weight"].any()
    within = criterion(Attending("module"), gt.Autoencoding(), [torch.randn(3, 4, 6)], include="*in_proj_weight")
    assert within["encoder.heads.in_proj_weight"].any()


def test_a_model_may_be_a_dict_of_modules() -> None:
    parts = {"encoder": nn.Linear(4, 2), "decoder": nn.Linear(2, 4)}
    model, images = nn.ModuleDict(parts), [torch.randn(5, 4)]
    for criterion in (
        gt.magnitude, lambda m: gt.random_scores(m, 1), lambda m: gt.snip(m, gt.Autoencoding(), images),
        lambda m: gt.grasp(m, gt.Autoencoding(), images), lambda m: gt.synflow(m, {"encoder": images[0]}),
    ):  # fmt: skip
        one, other = criterion(parts), criterion(model)
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


# -- what is no score, and no amount ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (nn.Linear(2, 2), r"scores= is a Linear: give what a criterion returns, such as gt\.magnitude\(model\)"),
        ([torch.rand(3)], "scores= is a list"),
        ({"w": [1.0, 2.0]}, "scores of 'w' are a list"),
        ({"w": nn.Linear(2, 2)}, "scores of 'w' are a Linear"),
        ({"w": torch.rand(3, dtype=torch.complex64)}, r"scores of 'w' are complex.*abs\(\)"),
        ({"w": torch.rand(3, device="meta")}, "scores of 'w' are on the meta device"),
        ({"w": torch.eye(3).to_sparse()}, "scores of 'w' are sparse"),
        ({"w": torch.tensor([1.0, torch.nan])}, "scores of 'w' hold NaN"),
    ],
)
@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_what_is_no_score_is_refused_in_a_line(scores, said: str, granularity: str) -> None:
    with pytest.raises(gt.PruneError, match=said) as caught:
        gt.prune(scores, fraction=0.2, granularity=granularity)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["fraction", "to_sparsity"])
@pytest.mark.parametrize("amount", ["abc", "0.2", True, [0.2], torch.rand(2), 1j])
def test_what_is_no_amount_is_refused_in_a_line(key: str, amount: object) -> None:
    with pytest.raises(gt.PruneError, match=f"^{key}=.* is no number: a share from 0 to 1") as caught:
        gt.prune({"w": torch.rand(4)}, **{key: amount})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_any_number_is_an_amount() -> None:
    for amount in (0.2, np.float32(0.2), np.float64(0.2), torch.tensor(0.2, dtype=torch.float64), Fraction(1, 5)):
        assert gt.prune({"w": torch.rand(10)}, fraction=amount).alive == 8  # type: ignore[arg-type]
    assert gt.prune({"w": torch.rand(10)}, fraction=1).alive == 0


def test_a_granularity_is_one_of_two() -> None:
    with pytest.raises(gt.PruneError, match="granularity='channels' is none of weight, channel"):
        gt.prune({"w": torch.rand(4)}, fraction=0.5, granularity="channels")  # type: ignore[arg-type]


def test_scores_without_numbers_and_without_sides() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = gt.prune({"a": torch.rand(0, 3), "b": torch.tensor(2.0), "c": torch.tensor([1.0, torch.inf])}, 0.4)
    assert {name: mask.tolist() for name, mask in masks.items()} == {"a": [], "b": True, "c": [False, True]}
    true = torch.tensor([True, False, True])
    assert gt.prune({"w": true}, fraction=0.4)["w"].tolist() == true.tolist()

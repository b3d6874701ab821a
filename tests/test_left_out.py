"""What the default selection leaves dense: listed with its reason, and said where it computes something."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets import MaskError, Masks, models


class Conv1D(nn.Module):
    """A linear layer with its weight the other way round, as in GPT-2."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.randn(1, 6, 16))
        self.tokens = nn.Embedding(5, 16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.norm = nn.LayerNorm((6, 16))
        self.head = nn.Linear(16, 4)


def test_everything_that_is_left_has_a_reason():
    model = nn.ModuleDict({"net": Transformer()})
    with pytest.warns(UserWarning, match="left dense"):
        masks = Masks.dense(model)
    left = gt.left_out(model)
    assert {*left, *masks} == {name for name, _ in model.named_parameters()}
    assert not {*left} & {*masks}
    assert "MultiheadAttention" in left["net.attention.in_proj_weight"]
    assert left["net.tokens.weight"] == left["net.pos_embedding"] == "an embedding"
    assert left["net.norm.weight"] == "of a norm"
    assert left["net.head.bias"] == "a bias, a gain or a number"


def test_what_masks_leave_out():
    model = {"net": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))}
    masks = Masks.full({"net.0.weight": (4, 4)})
    assert gt.left_out(model, masks)["net.1.weight"] == "not chosen"
    assert gt.left_out(model, Masks.full({f"net.{k}.{n}": (4, 4) for k in (0, 1) for n in ("weight", "bias")})) == {}


def test_the_warning_is_one_line_that_names_tensors_layers_and_their_share():
    model = nn.ModuleDict({"net": Transformer()})
    with pytest.warns(UserWarning, match="left dense") as caught:
        Masks.dense(model)
    (warning,) = caught
    # 3 x 16 x 16 of them, beside 16 x 16 of the projection out and 16 x 4 of the head.
    assert "left dense: 'net.attention.in_proj_weight' (MultiheadAttention), 71% of the weights" in str(warning.message)
    assert "\n" not in str(warning.message)
    with pytest.warns(UserWarning, match=r"'net.weight_hh_l0' \(LSTM\), 'net.weight_ih_l1' \(LSTM\) and 1 more"):
        Masks.dense(nn.ModuleDict({"net": nn.LSTM(4, 4, 2), "head": nn.Linear(4, 4)}))


def test_no_warning_for_what_was_chosen_or_dropped_by_name():
    model = nn.ModuleDict({"net": Transformer(), "other": nn.Linear(4, 4)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Masks.dense(model, include="*weight")
        Masks.dense(model, exclude="*.in_proj_weight")
        Masks.dense(model, components="other")


@pytest.mark.parametrize("name", models.CATALOGUE)
def test_the_catalogue_leaves_nothing_out(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {key: 4 for key in ("width", "latent") if key in models.options_of(name)}
        Masks.dense(models.CATALOGUE[name](32, 1, **options))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_the_lengths_of_a_weight_norm_are_of_a_norm(norm):
    model = nn.ModuleDict({"net": norm(nn.Conv2d(3, 4, 3))})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Masks.dense(model)
    assert sorted(set(gt.left_out(model).values())) == ["a bias, a gain or a number", "of a norm"]


def test_a_model_of_other_layers_alone_is_refused_with_the_patterns_that_take_them():
    model = nn.ModuleDict({"net": nn.ModuleDict({"c_attn": Conv1D(4, 12), "c_fc": Conv1D(4, 16)})})
    with pytest.raises(
        MaskError, match=r"no prunable weight in ModuleDict .*'net\.c_attn\.weight' \(Conv1D\)"
    ) as caught:
        Masks.dense(model)
    assert "include=('*c_attn.weight', '*c_fc.weight') takes them" in str(caught.value)
    assert set(Masks.dense(model, include=("*c_attn.weight", "*c_fc.weight"))) == {
        "net.c_attn.weight",
        "net.c_fc.weight",
    }
    with pytest.raises(MaskError, match=r"include=\('\*weight_ih_l\*', '\*weight_hh_l\*'\) takes them"):
        Masks.dense(nn.ModuleDict({"net": nn.LSTM(4, 4, 2)}))
    with pytest.raises(MaskError, match="name others with include="):
        Masks.dense(nn.ModuleDict({"net": nn.ReLU()}))

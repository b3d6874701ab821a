"""Bounds on widths, and networks of at most so many parameters or FLOPs: exact, and the largest there are."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gentickets as gt
from gentickets.models.unet import unet

SIZES = ("parameters", "flops")


class Decoder(nn.Module):
    """Group norm, a residual block, a shortcut of another width, attention, and a plain end."""

    def __init__(self, width: int = 8, groups: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(groups, width), nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, 2 * width), nn.Conv2d(2 * width, width, 3, padding=1)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.batch_norm = nn.BatchNorm2d(width)
        self.out = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.conv1(torch.nn.functional.silu(self.norm1(x)))
        x = x + self.conv2(torch.nn.functional.silu(self.norm2(inner)))
        return self.out(self.batch_norm(self.up(x)).relu())


class Pair(nn.Module):
    """Two components, one of which is looked at."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(2, 3, 3), Decoder(width)


def drawn(seed: int, width: int = 8) -> tuple[nn.Module, dict, gt.ChannelGroups, dict]:
    torch.manual_seed(seed)
    model = Pair(width)
    example = {"decoder": torch.randn(2, 3, 6, 6)}
    groups = gt.channel_groups(model, example)
    return model, example, groups, gt.magnitude(model, ["decoder"])


def channels(model: nn.Module) -> list[int]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    layers = dict(model.decoder.named_modules())
    return [layer.out_channels for name, layer in layers.items() if isinstance(layer, kinds) and name != "out"]


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(0, 0.9))
@pytest.mark.filterwarnings("ignore:every channel of")
def test_the_counts_of_groups_are_those_of_the_shrunk_network(seed, width, fraction):
    model, example, groups, scores = drawn(seed, 4 * width)
    masks = gt.prune(scores, fraction=fraction, granularity="channel", groups=groups)
    found = gt.cost(gt.shrink(model, masks, example), example).components["decoder"]
    kept = groups.kept(masks)
    assert (groups.parameters(kept), groups.flops(kept)) == (found.parameters, found.flops_dense)


@pytest.mark.parametrize("fraction", [0.0, 0.6])
@pytest.mark.filterwarnings("ignore:every channel of")
def test_the_counts_of_attention_and_of_a_network_of_its_own_code(fraction):
    net = unet(8, 1, width=8)
    example = {"denoiser": (torch.randn(2, 1, 8, 8), torch.tensor([3, 5]))}
    groups = gt.channel_groups(net, example)
    masks = gt.prune(gt.magnitude(net), fraction=fraction, granularity="channel", groups=groups)
    found, kept = gt.cost(gt.shrink(net, masks, example), example), groups.kept(masks)
    assert (groups.parameters(kept), groups.flops(kept)) == (found.parameters, found.flops_dense)


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_counts_of_a_transformer_layer(batch_first):
    net = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first), nn.Linear(16, 3)).eval()
    model, example = nn.ModuleDict({"net": net}), {"net": torch.randn(4, 4, 16)}
    groups = gt.channel_groups(model, example)
    masks = gt.prune(gt.magnitude(model), fraction=0.4, granularity="channel", groups=groups)
    found, kept = gt.cost(gt.shrink(model, masks, example), example), groups.kept(masks)
    assert (groups.parameters(kept), groups.flops(kept)) == (found.parameters, found.flops_dense)


class Through(nn.Module):
    """Something between two linear layers, which may read parts of its own."""

    def __init__(self, middle, width: int = 16, out: int = 16, dtype: torch.dtype | None = None, **parts):
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(8, width, dtype=dtype), nn.Linear(out, 8, dtype=dtype), middle
        for name, part in parts.items():
            self.register_buffer(name, part) if type(part) is Tensor else setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        found = self.last(self.middle(self, self.first(x.to(self.first.weight.dtype))))
        return found.abs() if found.is_complex() else found


def numbers(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def heads(net: nn.Module, h: Tensor) -> Tensor:
    """Attention of four heads, all of which may go."""
    query, key, value = (layer(h).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    return nn.functional.scaled_dot_product_attention(query, key, value, net.seen).transpose(1, 2).flatten(2)


LAYERS = {name: nn.Linear(16, 16) for name in "qkv"}
FOUND = {
    "lstm": Through(lambda net, h: net.inner(h)[0], inner=nn.LSTM(16, 16, batch_first=True)),
    "distances": Through(lambda net, h: torch.cdist(h, net.book), out=5, book=numbers(5, 16)),
    "bilinear": Through(lambda net, h: net.inner(h, h), inner=nn.Bilinear(16, 16, 16)),
    "written over": Through(lambda net, h: h.new_zeros(len(h), 6, 6).baddbmm_(h, h.mT), out=6),
    "a vector": Through(lambda net, h: h * h[..., 0].mv(net.inner)[:, None, None], inner=numbers(6)),
    "a chain": Through(
        lambda net, h: torch.linalg.multi_dot([h.flatten(0, 1), net.one, net.other]).view_as(h),
        one=numbers(16, 3),
        other=numbers(3, 16),
    ),
    "of buffers": Through(lambda net, h: h * (net.one @ net.one).mean(), one=torch.randn(6, 6)),
    "rms norm": Through(lambda net, h: net.inner(h), inner=nn.RMSNorm(16)),
    "attention": Through(heads, **LAYERS, seen=None),
    "attention of some": Through(heads, **LAYERS, seen=torch.ones(6, 6).tril().bool()),
}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.filterwarnings("ignore:every channel of", "ignore:.* a guess")
def test_whatever_cost_counts_is_in_the_flops_of_groups(name):
    net, example = FOUND[name].eval(), torch.randn(3, 6, 8)
    groups = gt.channel_groups(net, example)
    assert groups.flops() == gt.cost(net, example).flops_dense
    if len(groups):
        masks = gt.prune(gt.magnitude(net), fraction=0.5, granularity="channel", groups=groups)
        found = gt.cost(gt.shrink(net, masks, example), example).flops_dense
        assert found == groups.flops(groups.kept(masks)) < groups.flops()


def test_complex_products_are_in_the_flops_of_groups():
    inner = nn.Linear(16, 12, dtype=torch.complex64)
    net = Through(lambda net, h: net.inner(h), out=12, dtype=torch.complex64, inner=inner)
    groups = gt.channel_groups(net, torch.randn(3, 8))
    assert groups.flops() == gt.cost(net, torch.randn(3, 8)).flops_dense == 8 * (8 * 16 + 16 * 12 + 12 * 8)


def test_a_size_in_flops_holds_behind_layers_that_no_channel_goes_through():
    net = Through(lambda net, h: net.inner(h)[0], width=8, out=8, inner=nn.LSTM(8, 8, batch_first=True))
    net, example = nn.Sequential(net, nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)), torch.randn(3, 6, 8)
    groups, whole = gt.channel_groups(net, example), gt.cost(net, example).flops_dense
    how = {"granularity": "channel", "groups": groups}
    masks = gt.prune(gt.magnitude(net), flops=whole - 3_000, **how)
    assert whole - 4_000 < gt.cost(gt.shrink(net, masks, example), example).flops_dense <= whole - 3_000
    with pytest.raises(gt.PruneError, match=r"flops=1,000 is too few: the smallest network .* has [\d,]+$"):
        gt.prune(gt.magnitude(net), flops=1_000, **how)


def test_flops_are_of_as_many_examples_as_cost_takes_them_for(recwarn):
    net, example = Through(lambda net, h: h * net.table.mean()), torch.randn(4, 8)
    net.register_forward_pre_hook(lambda net, given: (setattr(net, "table", given[0]), given[1])[1:])
    inputs = (torch.randn(10, 3), example)
    assert gt.channel_groups(net, inputs).flops() == gt.cost(net, inputs).flops_dense == 4 * 8 * 16
    assert not recwarn.list


def test_flops_of_a_guessed_number_of_examples_are_told_where_they_are_asked_for(recwarn):
    net = nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 2, 32), nn.Linear(16, 3))
    groups, how = gt.channel_groups(net, torch.randn(5, 2, 8)), {"granularity": "channel"}
    gt.prune(gt.magnitude(net), parameters=groups.parameters(), groups=groups, **how)
    assert not recwarn.list
    with pytest.warns(
        UserWarning, match="flops: the network is priced as 5 examples .* a guess: they .*; let the batch"
    ):
        gt.prune(gt.magnitude(net), flops=20_000, groups=groups, **how)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1.1), st.sampled_from(SIZES), st.sampled_from(["global", "layer"]))
def test_never_above_and_nothing_that_goes_would_have_fitted(seed, share, key, scope):
    model, example, groups, scores = drawn(seed)
    count = getattr(groups, key)
    size = int(share * count())
    try:
        masks = gt.prune(scores, **{key: size}, scope=scope, granularity="channel", groups=groups)
    except gt.PruneError as error:  # the least network of all is larger
        least = int(re.search(r"has ([\d,]+)$", str(error))[1].replace(",", ""))
        assert least > size
        again = gt.prune(scores, **{key: least}, scope=scope, granularity="channel", groups=groups)
        assert count(groups.kept(again)) == least
        return
    kept = groups.kept(masks)
    assert count(kept) <= size
    rest = np.flatnonzero(~kept)
    above = []
    for number in rest:
        more = kept.copy()
        more[number] = True
        above.append(count(more) > size)
    assert all(above) if scope == "global" else any(above) or not len(rest)
    shrunk = gt.cost(gt.shrink(model, masks, example), example).components["decoder"]
    assert {"parameters": shrunk.parameters, "flops": shrunk.flops_dense}[key] == count(kept)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(0.3, 1), min_size=2, max_size=2), st.sampled_from(SIZES))
def test_whoever_asks_for_more_gets_no_less(seed, shares, key):
    _, _, groups, scores = drawn(seed)
    count = getattr(groups, key)
    few, many = (
        count(groups.kept(gt.prune(scores, **{key: int(s * count())}, granularity="channel", groups=groups)))
        for s in sorted(shares)
    )
    assert few <= many


def test_by_layer_all_widths_fall_alike():
    model, example, groups, scores = drawn(3, width=16)
    size = groups.parameters() // 4
    masks = gt.prune(scores, parameters=size, scope="layer", granularity="channel", groups=groups)
    shares = [now / was for now, was in zip(channels(gt.shrink(model, masks, example)), channels(model), strict=True)]
    assert max(shares) - min(shares) <= 0.26  # the channels of a norm's group go together: four groups a layer


def bound(groups: gt.ChannelGroups, scores: dict, at_least: float) -> int:
    """How many groups a bound keeps, found by asking for less and less; no layer of `Decoder` is whole."""
    for share in np.linspace(0, 1, len(groups) + 1)[::-1]:
        try:
            masks = gt.prune(scores, share, at_least=at_least, granularity="channel", groups=groups)
        except gt.PruneError:
            continue
        return int(groups.kept(masks).sum())
    raise AssertionError


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.one_of(st.integers(1, 12), st.floats(0.05, 0.6)), st.floats(0, 0.9))
def test_a_bound_holds_and_the_amount_is_met_all_the_same(seed, at_least, fraction):
    model, example, groups, scores = drawn(seed, width=12)
    before = channels(model)
    how = {"granularity": "channel", "groups": groups}
    left = len(groups) - int(fraction * len(groups))
    if (stays := bound(groups, scores, at_least)) > left:
        with pytest.raises(gt.PruneError, match=rf"keeps {stays} of {len(groups)} groups .* leaves {left}: lower one"):
            gt.prune(scores, fraction=fraction, at_least=at_least, **how)
        return
    masks = gt.prune(scores, fraction=fraction, at_least=at_least, **how)
    assert groups.kept(masks).sum() == left
    for now, was in zip(channels(gt.shrink(model, masks, example)), before, strict=True):
        assert now >= (min(at_least, was) if isinstance(at_least, int) else at_least * was)


def test_a_bound_takes_from_the_others_what_a_starved_layer_gets():
    model, example, groups, scores = drawn(0, width=12)
    with torch.no_grad():
        model.decoder.conv1.weight *= 1e-3  # a global choice would empty it
    scores = gt.magnitude(model, ["decoder"])
    how = {"granularity": "channel", "groups": groups, "fraction": 0.5}
    with pytest.warns(UserWarning, match=r"every channel of 'decoder\.(conv1|norm2)' would go"):
        free = gt.prune(scores, **how)
    bound = gt.prune(scores, at_least=0.5, **how)
    assert gt.shrink(model, free, example).decoder.conv1.out_channels == 6  # one group of its norm
    assert gt.shrink(model, bound, example).decoder.conv1.out_channels == 12
    assert groups.kept(bound).sum() == len(groups) - int(0.5 * len(groups))


def test_a_bound_and_a_size_together():
    model, example, groups, scores = drawn(1, width=16)
    masks = gt.prune(scores, parameters=groups.parameters() // 3, at_least=8, granularity="channel", groups=groups)
    assert min(channels(gt.shrink(model, masks, example))) >= 8


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"parameters": 10},
            r"parameters=10 is too few: the smallest network with a channel in each layer has [\d,]+$",
        ),
        ({"flops": 10, "at_least": 0.5}, r"flops=10 is too few: the smallest network that at_least=0.5 allows has"),
        ({"parameters": 0}, "parameters=0: a whole number, 1 or more"),
        ({"parameters": 1.5}, "parameters=1.5: a whole number"),
        ({"parameters": True}, "parameters=True: a whole number"),
        ({"flops": "1e9"}, "flops='1e9': a whole number"),
        ({"parameters": 1000, "flops": 1000}, "give one amount: parameters= or flops="),
        ({"parameters": 1000, "fraction": 0.5}, "give one amount: parameters=, fraction= or to_sparsity="),
        (
            {"parameters": 1000, "multiple": 8},
            "multiple=8 puts channels back, and parameters= is the most there may be",
        ),
        ({"fraction": 0.5, "at_least": 0}, "at_least=0: channels of each layer, 1 or more"),
        ({"fraction": 0.5, "at_least": 2.5}, "at_least=2.5: channels of each layer"),
        ({"fraction": 0.9, "at_least": 8}, r"at_least=8 keeps \d+ of \d+ groups of channels, and fraction=0.9 leaves"),
        ({"parameters": 1000, "groups": None}, r"parameters=1000: with granularity='channel' and groups="),
        ({"fraction": 0.5, "at_least": 2, "groups": None}, r"at_least=2: with granularity='channel' and groups="),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(asked, words):
    _, _, groups, scores = drawn(0)
    with pytest.raises(gt.PruneError, match=words) as error:
        gt.prune(scores, granularity="channel", **{"groups": groups, **asked})
    assert "\n" not in str(error.value)


def test_scores_that_are_no_numbers_are_refused():
    _, _, groups, scores = drawn(0)
    broken = {name: score * float("nan") for name, score in scores.items()}
    with pytest.raises(gt.PruneError, match="NaN"):
        gt.prune(broken, parameters=2000, granularity="channel", groups=groups)


def test_an_early_bird_takes_a_size_and_goes_on_from_its_state_alone():
    model, _, groups, _ = drawn(2)
    how = {"granularity": "channel", "window": 2, "components": ["decoder"], "groups": groups}
    how["criterion"] = lambda net: gt.magnitude(net, ["decoder"])
    bird = gt.EarlyBird(parameters=1500, at_least=2, **how)
    assert "parameters=1500" in repr(bird)
    assert [bird.observe(model), bird.observe(model)] == [False, True]
    assert groups.parameters(groups.kept(bird.masks)) <= 1500
    assert bird.facts()["parameters"] == 1500
    again = gt.EarlyBird(parameters=1500, at_least=2, **how)
    again.load_state_dict(bird.state_dict())
    assert again.masks == bird.masks
    with pytest.raises(gt.PruneError, match="the state was kept with"):
        gt.EarlyBird(0.5, **how).load_state_dict(bird.state_dict())
    with pytest.raises(gt.PruneError, match="the state was kept with parameters=1500"):
        gt.EarlyBird(parameters=1400, at_least=2, **how).load_state_dict(bird.state_dict())


@pytest.mark.parametrize("asked", [{}, {"fraction": 0.5, "parameters": 9}, {"parameters": 9, "flops": 9}])
def test_an_early_bird_takes_one_amount(asked):
    _, _, groups, _ = drawn(0)
    with pytest.raises(gt.PruneError, match="give one amount: fraction=, parameters= or flops="):
        gt.EarlyBird(**asked, granularity="channel", groups=groups)


@pytest.mark.parametrize(
    "asked", [{"parameters": 1000}, {"fraction": 0.5, "at_least": 8}, {"fraction": 0.5, "multiple": 7}]
)
def test_groups_of_equal_score_go_by_lot_and_not_by_where_they_stand(asked):
    """As in a critic whose weights are all at the clip."""
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    for layer in (net[0], net[2]):
        layer.weight.data = 0.01 * layer.weight.data.sign()
    groups = gt.channel_groups(net, torch.randn(2, 16))
    masks = gt.prune(gt.magnitude(net), granularity="channel", groups=groups, **asked)
    kept = masks["0.weight"].any(1)
    stands = kept.nonzero().flatten().double().mean()
    assert 0 < int(kept.sum()) < 32
    assert 8 < float(stands) < 23


def test_code_that_does_something_else_while_it_is_counted_is_priced_whole_and_told():
    def middle(net: nn.Module, h: Tensor) -> Tensor:
        return h.mul(2) if torch.utils._python_dispatch._get_current_dispatch_mode() else h + h

    net, example = Through(middle), torch.randn(3, 8)
    groups = gt.channel_groups(net, example)
    with pytest.warns(UserWarning, match="flops: the network does something else while it is recorded"):
        assert groups.flops(np.zeros(len(groups), bool)) == gt.cost(net, example).flops_dense

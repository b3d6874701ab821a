"""Channel groups: every group that is pruned is zero in all its slices, and physically gone once shrunk."""

import itertools
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import gentickets as gt
from gentickets import models
from gentickets.channels.shrinking import Shrinking
from gentickets.masks.examples import Example
from gentickets.masks.names import clone, named_weights
from gentickets.search.early_bird import channel_scores

WRAPPERS = {
    "none": lambda layer: layer,
    "spectral-old": nn.utils.spectral_norm,
    "spectral-new": parametrizations.spectral_norm,
    "weight-old": nn.utils.weight_norm,
    "weight-new": parametrizations.weight_norm,
}


class One(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Net(nn.Module):
    """A U-Net's skip, residual additions, a depthwise filter, a reshape to features and back, transposed layers."""

    def __init__(self, width: int, plan: list[str], norm: bool, wrap=lambda layer: layer):
        super().__init__()
        self.stem = wrap(nn.Conv2d(2, width, 3, padding=1))
        self.plan = plan
        self.branches, self.mixes = nn.ModuleList(), nn.ModuleList()
        for kind in plan:
            middle = width + 1
            self.branches.append(
                nn.Sequential(
                    wrap(nn.Conv2d(width, middle, 3, padding=1, bias=not norm)),
                    nn.BatchNorm2d(middle) if norm else nn.Identity(),
                    nn.LeakyReLU(0.2),
                    wrap(nn.Conv2d(middle, middle, 3, padding=1, groups=middle)),
                    wrap(nn.ConvTranspose2d(middle, width, 2, stride=2)),
                    nn.AvgPool2d(2),
                    nn.BatchNorm2d(width) if norm else nn.Identity(),
                )
            )
            self.mixes.append(wrap(nn.Conv2d(2 * width if kind == "cat" else width, width, 1)))
        self.down = wrap(nn.Linear(width * 16, 5))
        self.up = wrap(nn.Linear(5, width * 16))
        self.shape = nn.Unflatten(1, (width, 4, 4))
        self.out = wrap(nn.ConvTranspose2d(width, 2, 4, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        for kind, branch, mix in zip(self.plan, self.branches, self.mixes, strict=True):
            if kind == "cat":
                h = mix(torch.cat([h, branch(h)], dim=1))
            elif kind == "skip":
                h = h + 0.5 * branch(h)
            else:
                h = F.silu(mix(branch(h)))
        h = F.max_pool2d(h, 2)
        h = self.up(torch.sigmoid(self.down(h.flatten(1))))
        return self.out(self.shape(h))


def unsettle(model: nn.Module, seed: int) -> nn.Module:
    """Gains, biases and statistics as training leaves them: not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for tensor, shift in ((layer.running_mean, 0.0), (layer.bias, 0.0), (layer.weight, 0.0)):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 + shift)
                layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return model


def assert_exactly_shrunk(model: nn.Module, groups: gt.ChannelGroups, masks: gt.Masks, inputs: dict) -> nn.Module:
    """The contract: zero in every slice, the same function, and exactly the widths that the masks say."""
    kept = groups.kept(masks)
    masked = masks.apply_(clone(model)).eval()
    shrinking = Shrinking(model, masks, inputs)
    small = shrinking.model.eval()
    for component, example in inputs.items():
        with torch.no_grad():
            outputs = [Example.of(example, component)(getattr(net, component)) for net in (masked, small)]
        for expected, found in zip(*[o if isinstance(o, tuple) else (o,) for o in outputs], strict=True):
            assert expected.isfinite().all()
            bound = 1e-5 * max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    sizes = {name: list(weight.shape) for name, weight in named_weights(model).items()}
    for number in np.flatnonzero(~kept):
        for piece in groups[number]:
            sizes[piece.name][piece.axis] -= len(piece.indices)
    assert {name: list(weight.shape) for name, weight in named_weights(small).items()} == sizes
    assert sum(shrinking.removed.values()) == int((~kept).sum())
    return small


# -- what belongs to a group --------------------------------------------------------------------------------


def slices(groups: gt.ChannelGroups, number: int) -> set[tuple]:
    return {(piece.name, piece.axis, piece.indices, piece.side) for piece in groups[number]}


def test_the_slices_of_a_chain():
    net = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    groups = gt.channel_groups(One(net), {"net": torch.randn(2, 1, 6, 6)})
    assert len(groups) == 3
    assert len(list(groups)) == 3
    assert slices(groups, 1) == {
        ("net.0.weight", 0, (1,), "output"),
        ("net.1.weight", 0, (1,), "output"),
        ("net.1.bias", 0, (1,), "output"),
        ("net.3.weight", 1, (1,), "input"),
    }
    assert groups[-1] == groups[2] == groups[1:][1]
    with pytest.raises(IndexError):
        groups[3]
    assert groups.whole == {"net.3": "the output"}


def test_additions_concatenations_and_reshapes_tie_channels():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.ConvTranspose2d(1, 2, 1, bias=False)
            self.read, self.flat = nn.Conv2d(4, 1, 1, bias=False), nn.Linear(8, 1)

        def forward(self, x):
            h = self.a(x) + self.b(x)
            return self.read(torch.cat([x, h, x], 1)), self.flat(h.flatten(1))

    groups = gt.channel_groups(One(Tied()), {"net": torch.randn(2, 1, 2, 2)})
    assert [slices(groups, i) for i in range(2)] == [
        {
            ("net.a.weight", 0, (i,), "output"),
            ("net.a.bias", 0, (i,), "output"),
            ("net.b.weight", 1, (i,), "output"),
            ("net.read.weight", 1, (1 + i,), "input"),
            ("net.flat.weight", 1, tuple(range(4 * i, 4 * i + 4)), "input"),
        }
        for i in range(2)
    ]
    assert {name: list(numbers) for name, numbers in groups.layers.items()} == {"net.a": [0, 1], "net.b": [0, 1]}
    assert list(groups.places) == ["net.a"]


def test_weight_norm_is_pruned_by_its_lengths():
    net = nn.Sequential(*[WRAPPERS["weight-new"](layer) for layer in (nn.Linear(2, 3), nn.Linear(3, 1))])
    groups = gt.channel_groups(One(net), {"net": torch.randn(2, 2)})
    masks = groups.masks(np.array([True, False, True]))
    assert masks["net.0.parametrizations.weight.original0"].flatten().tolist() == [True, False, True]
    assert "net.0.parametrizations.weight.original1" not in masks  # a filter of zeros has no direction
    assert masks["net.1.parametrizations.weight.original1"].tolist() == [[True, False, True]]
    assert groups.kept(masks).tolist() == [True, False, True]


# -- which groups go ----------------------------------------------------------------------------------------


def naive_scores(groups: gt.ChannelGroups, scores: dict[str, Tensor]) -> list[float]:
    found = []
    for pieces in groups:
        means = [
            float(np.mean([float(scores[p.name].select(p.axis, i).double().mean()) for i in p.indices]))
            for p in pieces
            if p.side == "output" and p.name in scores
        ]
        found.append(float(np.mean(means)) if means else float("nan"))
    return found


def first_place(groups: gt.ChannelGroups) -> list[str]:
    return [next(place for place, numbers in groups.places.items() if i in numbers) for i in range(len(groups))]


@settings(max_examples=25)
@given(
    plan=st.lists(st.sampled_from(["plain", "cat", "skip"]), min_size=1, max_size=3),
    fraction=st.sampled_from([0.0, 0.1, 0.29, 0.5]),
    scope=st.sampled_from(["global", "component", "layer"]),
    gains=st.booleans(),
    seed=st.integers(0, 100),
)
def test_the_lowest_groups_go_exactly_as_many_as_asked(plan, fraction, scope, gains, seed):
    torch.manual_seed(seed)
    model = unsettle(One(Net(5, plan, norm=True)), seed)
    groups = gt.channel_groups(model, {"net": torch.randn(2, 2, 8, 8)})
    scores = gt.batchnorm_scale(model) if gains else gt.magnitude(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = gt.prune(scores, fraction=fraction, scope=scope, granularity="channel", groups=groups)
    places, expected = first_place(groups), set()
    scored = sorted((s, places[i], i) for i, s in enumerate(naive_scores(groups, scores)) if not np.isnan(s))
    competing = [scored] if scope != "layer" else [[e for e in scored if e[1] == p] for p in groups.places]
    for entries in competing:
        expected |= {i for _, _, i in entries[: int(len(entries) * round(fraction * 100) // 100)]}
    for numbers in groups.layers.values():  # none is emptied
        if set(numbers) <= expected:
            expected -= {max(numbers, key=lambda i: naive_scores(groups, scores)[i])}
    assert set(np.flatnonzero(~groups.kept(masks))) == expected
    for number in range(len(groups)):
        for piece in groups[number]:
            mask = masks[piece.name].index_select(piece.axis, torch.tensor(piece.indices))
            assert bool(mask.any()) == (number not in expected)


def test_rounds_never_revive_and_keep_what_unstructured_pruning_took():
    torch.manual_seed(0)
    model = unsettle(One(Net(6, ["skip", "cat"], norm=True)), 0)
    groups = gt.channel_groups(model, {"net": torch.randn(2, 2, 8, 8)})
    start = gt.prune(gt.random_scores(model, 1), fraction=0.3)
    masks, alive = start, len(groups)
    for seed in range(3):
        scores = gt.random_scores(model, seed)
        deeper = gt.prune(scores, fraction=0.15, within=masks, granularity="channel", groups=groups)
        assert all(torch.equal(deeper[n] & masks[n], deeper[n]) for n in masks)
        alive -= int(alive * 0.15)
        assert int(groups.kept(deeper).sum()) == alive
        masks = deeper
    by_share = gt.prune(gt.random_scores(model, 9), to_sparsity=0.5, granularity="channel", groups=groups)
    assert int(groups.kept(by_share).sum()) == len(groups) - len(groups) // 2


def test_no_layer_is_emptied_and_the_warning_names_it():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    model = One(net)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [3.0], [2.0]]).expand(3, 2) * 1e-3)
        net[2].weight.fill_(1.0)
    inputs = {"net": torch.randn(2, 2)}
    groups = gt.channel_groups(model, inputs)
    with pytest.warns(UserWarning, match=r"every channel of 'net\.0' would go: its best one is kept"):
        masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    assert groups.kept(masks).tolist() == [False, True, False, True, True, True, True]
    assert assert_exactly_shrunk(model, groups, masks, inputs).net[0].out_features == 1


@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_counts_are_rounded_up_to_multiples(multiple):
    torch.manual_seed(0)
    model = One(Net(11, ["skip", "cat", "plain"], norm=False))
    inputs = {"net": torch.randn(2, 2, 8, 8)}
    groups = gt.channel_groups(model, inputs)
    scores = gt.random_scores(model, 0)
    exact = gt.prune(scores, fraction=0.55, granularity="channel", groups=groups)
    rounded = gt.prune(scores, fraction=0.55, granularity="channel", groups=groups, multiple=multiple)
    assert exact <= rounded
    for layer, numbers in groups.layers.items():
        before, after = (int(groups.kept(masks)[numbers].sum()) for masks in (exact, rounded))
        assert groups.always[layer] == 0
        assert after == min(len(numbers), -(-before // multiple) * multiple)
    assert_exactly_shrunk(model, groups, rounded, inputs)


def test_refusals():
    model = One(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    groups = gt.channel_groups(model, {"net": torch.randn(2, 2)})
    scores = gt.magnitude(model)
    with pytest.raises(gt.PruneError, match="granularity='channel'"):
        gt.prune(scores, fraction=0.5, groups=groups)
    with pytest.raises(gt.PruneError, match=r"multiple=8: .*groups="):
        gt.prune(scores, fraction=0.5, granularity="channel", multiple=8)
    with pytest.raises(gt.PruneError, match="scope=erk"):
        gt.prune(scores, fraction=0.5, scope="erk", granularity="channel", groups=groups)
    with pytest.raises(gt.PruneError, match=r"'net\.0\.weight' have shape \(3,\), the groups' model \(3, 2\)"):
        gt.prune({"net.0.weight": torch.ones(3)}, fraction=0.5, granularity="channel", groups=groups)
    with pytest.raises(gt.PruneError, match="nothing to prune"):
        gt.prune({"net.1.weight": torch.ones(1, 3)}, fraction=0.5, granularity="channel", groups=groups)
    with pytest.raises(gt.PruneError, match="NaN"):
        gt.prune({"net.0.weight": torch.full((3, 2), torch.nan)}, 0.5, granularity="channel", groups=groups)
    with pytest.raises(gt.MaskError, match="no component 'nets'"):
        gt.channel_groups(model, {"nets": torch.randn(2, 2)})
    other = gt.Masks({"net.0.weight": torch.ones(4, 2, dtype=torch.bool)})
    with pytest.raises(gt.MaskError, match=r"'net\.0\.weight' is \(3, 2\) in the groups' model"):
        gt.prune(scores, fraction=0.5, within=other, granularity="channel", groups=groups)


# -- the contract of shrinking ------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    width=st.integers(2, 6),
    plan=st.lists(st.sampled_from(["plain", "cat", "skip"]), min_size=1, max_size=3),
    norm=st.booleans(),
    wrapper=st.sampled_from(list(WRAPPERS)),
    share=st.sampled_from([0.2, 0.5, 0.9]),
    gains=st.booleans(),
    trained=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_pruned_group_of_a_random_net_is_gone(width, plan, norm, wrapper, share, gains, trained, seed):
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = unsettle(One(Net(width, plan, norm, WRAPPERS[wrapper])), seed)
        inputs = {"net": torch.randn(3, 2, 8, 8)}
        groups = gt.channel_groups(model, inputs)
        unused = {f"net.mixes.{number}" for number, kind in enumerate(plan) if kind == "skip"}
        assert set(groups.whole) == {"net.out"} | unused  # the example does not reach these
        scores = gt.batchnorm_scale(model) if norm and gains else gt.magnitude(model)
        masks = gt.prune(scores, fraction=share, granularity="channel", groups=groups)
        if trained:  # spectral norm has iterated with the masked weights, and not only with the whole ones
            masks.apply_(model)
            model(inputs["net"])
        assert_exactly_shrunk(model, groups, masks, inputs)


@pytest.mark.parametrize("wrapper", list(WRAPPERS))
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_step_of_the_masked_net_is_a_step_of_the_shrunk_one(wrapper, norm):
    """With Adam's state carried over, norms by their statistics; in double precision, so that nothing hides."""
    torch.manual_seed(0)
    model = unsettle(One(Net(6, ["skip", "cat", "plain"], norm, WRAPPERS[wrapper])).double(), 0)
    inputs = {"net": torch.randn(4, 2, 8, 8, dtype=torch.float64)}
    target = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    groups = gt.channel_groups(model, inputs)
    scores = channel_scores(model, groups=groups)
    masks = gt.prune(scores, fraction=0.5, scope="layer", granularity="channel", groups=groups)
    if norm:
        assert all(not masks[name].all() for name in gt.batchnorm_scale(model))

    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, held: gt.Masks, count: int) -> None:
        net.train()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        with held.hold(net, optimizer):
            for _ in range(count):
                optimizer.zero_grad()
                (net(inputs["net"]) - target).square().mean().backward()
                optimizer.step()

    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    steps(model, adam, masks, 3)
    shrinking = Shrinking(model, masks, inputs)
    small = shrinking.model
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    small_adam = torch.optim.Adam(small.parameters(), lr=1e-2)
    shrinking.carry_state(adam, small_adam, model)
    steps(model, adam, masks, 1)
    steps(small, small_adam, shrinking.masks, 1)
    for name, weight in named_weights(small).items():
        expected = named_weights(model)[name]
        for axis, indices in shrinking.slices.get(name, {}).items():
            expected = expected.index_select(axis, torch.from_numpy(indices))
        torch.testing.assert_close(weight, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", list(models.CATALOGUE))
def test_every_model_of_the_catalogue_shrinks_by_every_group(name):
    torch.manual_seed(0)
    small = {key: value for key, value in {"width": 8, "latent": 6}.items() if key in models.options_of(name)}
    model = models.CATALOGUE[name](16, 3, **small)
    unsettle(model, 0)
    images, latents = torch.rand(3, 3, 16, 16) * 2 - 1, torch.randn(3, 6)
    if hasattr(model, "denoiser"):
        inputs = {"denoiser": (images, torch.tensor([3, 500, 900]))}
    elif hasattr(model, "generator"):
        inputs = {"generator": latents, "discriminator": images}
    else:
        with torch.no_grad():
            codes = model.eval().encoder(images)
        inputs = {"encoder": images, "decoder": codes if isinstance(codes, Tensor) else codes[0]}
    groups = gt.channel_groups(model, inputs)
    scores = channel_scores(model, groups=groups)
    masks = gt.prune(scores, fraction=0.5, scope="layer", granularity="channel", groups=groups)
    small = assert_exactly_shrunk(model, groups, masks, inputs)
    assert sum(p.numel() for p in small.parameters()) < 0.65 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "operation",
    [
        nn.Upsample(scale_factor=2), nn.UpsamplingNearest2d(scale_factor=2), nn.AvgPool2d(2), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(3), nn.LeakyReLU(0.1), nn.SiLU(), nn.Tanh(), nn.GELU(), nn.Dropout(0.5),
        nn.Dropout2d(0.5), nn.Sigmoid(), nn.Softplus(), nn.ReLU(inplace=True), nn.ReflectionPad2d(1),
        nn.InstanceNorm2d(6, affine=True), nn.BatchNorm2d(6, affine=False),
        lambda h: F.interpolate(h, scale_factor=2), lambda h: F.interpolate(h, size=(5, 5), mode="nearest"),
        lambda h: F.avg_pool2d(h, 2), lambda h: F.max_pool2d(h, 2), lambda h: F.adaptive_avg_pool2d(h, 1),
        lambda h: F.leaky_relu(h, 0.1), F.silu, F.gelu, torch.tanh, lambda h: h.tanh(),
        lambda h: F.dropout(h, 0.5, False),
        lambda h: h.mean((2, 3), keepdim=True), lambda h: h.mean([-1, -2], keepdim=True), lambda h: 1 - h,
        lambda h: h * torch.sigmoid(h), lambda h: h + h.mean((2, 3), keepdim=True), lambda h: -h / 2,
        lambda h: h.view(h.size(0), h.size(1), 8, 4), lambda h: h.flatten(2)[:, :, None],
        lambda h: torch.relu(input=h), lambda h: torch.stack([h, h], 2)[:, :, 0], nn.PixelShuffle(1), nn.Linear(4, 4),
        lambda h: h[:, :, ::2], lambda h: h.flip(-1), lambda h: h.transpose(2, 3), lambda h: h.softmax(-1),
        lambda h: F.pad(h, (1, 1)), lambda h: torch.where(h > 0, h, 0.2 * h),
        lambda h: torch.mean(h, axis=(2, 3))[:, :, None, None],
        lambda h: torch.flatten(h, start_dim=2).unsqueeze(dim=-1),
        lambda h: torch.reshape(input=h, shape=(h.shape[0], h.shape[1], 4, 8)),
        lambda h: h * torch.amax(h, dim=(2, 3), keepdim=True), nn.Softsign(), nn.PReLU(),
        lambda h: h * h.relu().sigmoid().view(h.size(0), h.size(1), 8, 4), nn.ConstantPad2d(1, 0.0),
        nn.LayerNorm((8, 4)),
        lambda h: h.unflatten(2, (2, 4)).flatten(2, 3), nn.Hardsigmoid(), lambda h: h.flip(1), nn.PReLU(6),
        lambda h: h.add_(1).mul(2), lambda h: h[torch.arange(len(h))], lambda h: h.permute(0, 2, 3, 1).movedim(-1, 1),
        lambda h: torch.einsum("bchw,bchw->bchw", h, h), nn.CircularPad2d(1),
        lambda h: F.pad(h, (1, 1, 0, 2), "replicate"), lambda h: h / (1 + h.abs()),
    ],
)  # fmt: skip
def test_operations_that_keep_channels_apart(operation):
    class Through(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 1)
            self.operation = operation

        def forward(self, x):
            return self.second(self.operation(self.first(x)))

    torch.manual_seed(0)
    model = One(Through())
    inputs = {"net": torch.randn(2, 1, 8, 4)}
    groups = gt.channel_groups(model, inputs)
    assert len(groups) == 6
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    assert assert_exactly_shrunk(model, groups, masks, inputs).net.first.out_channels == 3


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (nn.GroupNorm(1, 6), r"operation \(GroupNorm\)"),
        (nn.Softmax2d(), r"operation \(Softmax2d\)"),
        (nn.Sequential(nn.PixelShuffle(1), nn.ChannelShuffle(2)), r"operation\.1 \(ChannelShuffle\) .*"),
        (lambda h: h.roll(1, dims=1), r"roll \(its code says how many channels\)"),
        (lambda h: F.group_norm(h, 3), r"group_norm \(its code says how many channels\)"),
        (lambda h: F.group_norm(h, 1), "group_norm"),
        (lambda h: h / h.mean((2, 3), keepdim=True), r"div \(not finite where a channel is 0\)"),
        (lambda h: h.view(-1, 6, 4, 8), r"view \(its code says how many channels\)"),
        (lambda h: h[:, [5, 4, 3, 2, 1, 0]], r"getitem \(its code says how many channels\)"),
        (lambda h: h[:, [0, 1, 2, 3, 4, 5]], r"getitem \(its code says how many channels\)"),
        (lambda h: h.index_select(dim=1, index=torch.tensor([1, 0, 3, 2, 5, 4])), "index_select .*"),
        (lambda h: torch.channel_shuffle(h, 3), r"channel_shuffle .*"),
        (lambda h: h.sort(dim=1)[0], "sort"),
        (lambda h: torch.cat([h[:, 3:], h[:, :3]], 1), r"getitem \(its code .*"),
        (lambda h: torch.gather(h, 1, torch.ones(2, 6, 8, 4, dtype=torch.long)), r"gather \(its code .*"),
        (lambda h: h.movedim(1, 3).reshape(2, 6, 8, 4), "reshape"),
        (lambda h: h[:, h[0].mean((1, 2)) > -9], "getitem"),
        (lambda h: h.view(2, 2, 3, 8, 4).transpose(1, 2).reshape(2, 6, 8, 4), r"view \(its code says .*\)"),
        (lambda h: h / h.shape[1], r"div \(its code says how many channels\)"),
        (lambda h: F.normalize(h), "norm|normalize"),
        (lambda h: h * torch.arange(6.0).reshape(1, 6, 1, 1), r"mul \(its code says how many channels\)"),
    ],
)
def test_operations_that_need_all_channels_are_named_and_the_layer_stays_whole(operation, named):
    class Through(nn.Module):
        def __init__(self):
            super().__init__()
            self.zeroth, self.first, self.second = nn.Conv2d(1, 5, 1), nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(6, 1, 1)
            self.operation = operation

        def forward(self, x):
            return self.second(self.operation(self.first(self.zeroth(x))))

    torch.manual_seed(0)
    model = One(Through())
    inputs = {"net": torch.randn(2, 1, 8, 4)}
    groups = gt.channel_groups(model, inputs)
    assert list(groups.layers) == ["net.zeroth"]
    assert re.fullmatch(named, groups.whole["net.first"])
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    assert_exactly_shrunk(model, groups, masks, inputs)


def test_what_layers_or_components_share_stays_whole():
    pair = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())})
    pair["encoder"].append(nn.Linear(4, 5))
    pair["decoder"] = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    pair["decoder"][0].weight = nn.Parameter(torch.randn(4, 5))
    pair["encoder"][2].weight = nn.Parameter(torch.randn(4, 4))
    pair["encoder"][0] = shared = nn.Linear(3, 4)
    pair["decoder"][2] = nn.Sequential(nn.Linear(4, 3), shared)
    inputs = {"encoder": torch.randn(2, 3), "decoder": torch.randn(2, 5)}
    groups = gt.channel_groups(pair, inputs)
    assert list(groups.layers) == ["encoder.2", "decoder.0"]
    assert groups.whole["encoder.0"] == "0 (its weight is shared)"
    masks = gt.prune(gt.magnitude(pair), fraction=0.5, granularity="channel", groups=groups)
    small = gt.shrink(pair, masks, inputs)
    assert small.encoder[2].out_features + small.decoder[0].out_features == 4


# -- weight norm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("wrapper", ["weight-old", "weight-new"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_filter_that_is_wholly_pruned_does_not_divide_by_zero(wrapper, granularity):
    torch.manual_seed(0)
    wrap = WRAPPERS[wrapper]
    net = nn.Sequential(
        wrap(nn.Linear(3, 4)), nn.Unflatten(1, (4, 1, 1)), wrap(nn.ConvTranspose2d(4, 3, 2)), wrap(nn.Conv2d(3, 2, 2))
    )
    model = One(net)
    x = torch.randn(5, 3)
    scores = gt.magnitude(model)
    masks = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            masks = gt.prune(scores, fraction=0.5, within=masks, granularity=granularity)
            assert masks.apply_(clone(model))(x).isfinite().all()
    assert any("each keeps its best weight" in str(w.message) for w in caught) == (granularity == "weight")
    if granularity == "channel":
        dead = [n for n in masks if n.endswith(("weight_g", "original0")) and not masks[n].all()]
        assert dead
        masked = masks.apply_(clone(model))
        masked(x)
        layer = masked.net[0]
        length = masks["net.0.weight_g" if wrapper == "weight-old" else "net.0.parametrizations.weight.original0"]
        assert torch.equal(layer.weight.detach().ne(0).any(1), length.flatten())


# -- early birds --------------------------------------------------------------------------------------------


def test_an_early_bird_decides_by_groups():
    torch.manual_seed(0)
    model = models.CATALOGUE["paper-sngan"](16, 1, width=8, latent=6)
    inputs = {"generator": torch.randn(3, 6), "discriminator": torch.rand(3, 1, 16, 16) * 2 - 1}
    groups = gt.channel_groups(model, inputs)
    bird = gt.EarlyBird(fraction=0.5, granularity="channel", window=3, tolerance=0.1, groups=groups)
    kept = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += (0.3 if seed < 2 else 0.0) * torch.randn(parameter.shape, generator=generator)
        bird.observe(model)
        kept.append(groups.kept(bird.ticket.masks))
    assert bird.settled == all(np.array_equal(one, kept[-1]) for one in kept[-3:])
    for index, (old, new) in enumerate(itertools.pairwise(kept)):
        for component in inputs:
            ours = [i for i, place in enumerate(first_place(groups)) if place.startswith(component)]
            share = float((old[ours] != new[ours]).mean())
            assert bird.distances[index + 1][component][-1] == pytest.approx(share)
    assert any(d > 0 for d in bird.distances[1]["discriminator"] + bird.distances[1]["generator"])
    assert_exactly_shrunk(model, groups, bird.ticket.masks, inputs)
    with pytest.raises(gt.PruneError, match="granularity='channel'"):
        gt.EarlyBird(fraction=0.5, groups=groups)


def test_components_without_groups_of_gains_go_by_filters():
    model = models.dcgan(16, 1, width=8, latent=6, critic_norm=False)
    groups = gt.channel_groups(model, {"generator": torch.randn(2, 6), "discriminator": torch.randn(2, 1, 16, 16)})
    scores = channel_scores(model, groups=groups)
    assert set(scores) == {
        "generator.layers.1.weight",
        "generator.layers.4.weight",
        "discriminator.trunk.layers.0.weight",
        "discriminator.trunk.layers.2.weight",
    }
    assert set(channel_scores(model, "generator", groups)) == {f"generator.layers.{i}.weight" for i in (1, 4)}


class Attending(nn.Module):
    """Attention as in ViT, MAE, DINO and DiT: a head is as wide as the stream says."""

    def __init__(self, heads: int):
        super().__init__()
        self.enter, self.qkv, self.leave = nn.Linear(6, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.wide, self.narrow, self.out, self.heads = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 6), heads

    def forward(self, x):
        h = self.enter(x)
        b, n, c = h.shape
        q, k, v = self.qkv(h).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        h = h + self.leave(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return self.out(h + self.narrow(F.gelu(self.wide(h))))


@pytest.mark.parametrize("heads", [2, 4, 8])
def test_what_only_equal_shares_keep_right_is_not_offered(heads):
    """`c // heads` is right where stream and heads lose the same share; every choice of what is offered must do."""
    torch.manual_seed(heads)
    net, x = Attending(heads).eval(), torch.randn(2, 5, 6)
    groups = gt.channel_groups(net, x)
    assert list(groups.layers) == ["wide"]
    assert len(groups) == 32
    assert "its code says how many channels" in groups.whole["qkv"]
    for fraction in (0.1, 0.25, 0.3, 0.5, 0.9):
        masks = gt.prune(gt.magnitude(net), fraction=fraction, granularity="channel", groups=groups)
        assert Shrinking(net, masks, x).removed[""] == int(32 * fraction)

"""Which channel is where, for structures that are easily taken for another: in random nets, and one by one."""

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
from gentickets.channels.shrinking import Shrinking
from gentickets.channels.trace import Untraceable
from gentickets.masks.names import clone


def one(net: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"net": net})


# -- random nets ----------------------------------------------------------------------------------------------


class Masked(nn.Conv2d):
    """A convolution with a forward of its own: half of its weights count."""

    def __init__(self, width: int):
        super().__init__(width, width, 3, padding=1)
        self.register_buffer("causal", (torch.rand_like(self.weight) > 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.causal, self.bias, padding=1)


class SubPixel(nn.Conv2d):
    """A convolution whose subclass turns four of its channels into one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pixel_shuffle(super().forward(x), 2), 2)


class Plain(nn.Conv2d):
    """A subclass that computes what its parent does."""

    def __init__(self, width: int):
        super().__init__(width, width, 3, padding=1)


def noisy(layer: nn.Module, given: tuple, result: Tensor) -> Tensor:
    return result * torch.linspace(0.5, 1.5, result.shape[1]).reshape(1, -1, 1, 1)


def hooked(width: int) -> nn.Module:
    layer = nn.Conv2d(width, width, 1)
    layer.register_forward_hook(noisy)
    return layer


class Zoo(nn.Module):
    """One step after another, each a structure of its own; `width` channels in between, a multiple of 4."""

    def __init__(self, width: int, plan: list[str]):
        super().__init__()
        self.plan, self.width = plan, width
        self.stem, self.out = nn.Conv2d(2, width, 3, padding=1), nn.Conv2d(width, 2, 1)
        self.act, self.pool = nn.ReLU(), nn.AvgPool2d(3, 1, 1)
        build = {
            "conv": lambda: nn.Conv2d(width, width, 3, padding=1),
            "masked": lambda: Masked(width),
            "subpixel": lambda: SubPixel(width, 4 * width, 1),
            "plain": lambda: Plain(width),
            "hooked": lambda: hooked(width),
            "grouped": lambda: nn.ConvTranspose2d(width, width, 3, padding=1, groups=4),
            "cat": lambda: nn.Conv2d(2 * width, width, 1),
            "gate": lambda: nn.Linear(width, width),
            "zero": lambda: nn.Conv2d(width, width, 1),
            "bottleneck": lambda: nn.Sequential(
                nn.Conv2d(width, width // 2, 1), self.act, nn.Conv2d(width // 2, width, 1), nn.BatchNorm2d(width)
            ),
            "norm": lambda: parametrizations.spectral_norm(nn.Conv2d(width, width, 1), dim=1),
        }
        self.steps = nn.ModuleList(build.get(kind, nn.Identity)() for kind in plan)
        for kind, step in zip(plan, self.steps, strict=True):
            if kind == "zero":
                nn.init.zeros_(step.weight)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> dict:
        h = self.act(self.stem(x))
        for kind, step in zip(self.plan, self.steps, strict=True):
            if kind == "permute":
                h = h[:, list(reversed(range(self.width)))]
            elif kind == "flip":
                h = h.flip(1)
            elif kind == "shuffle":
                h = torch.channel_shuffle(h, 2)
            elif kind == "cat":
                h = step(torch.concat(tensors=[self.act(h), self.pool(h)], axis=-3))
            elif kind == "gate":
                h = h * torch.sigmoid(step(torch.mean(h, axis=(2, 3))))[:, :, None, None]
            elif kind in ("zero", "bottleneck"):
                h = self.act(h + step(h))
            elif kind == "shift":
                h = h if shift is None else h + shift.reshape(-1, 1, 1, 1)
            else:
                h = self.pool(self.act(step(h)))
        return {"image": self.out(h), "rest": (None, h.mean())}


KINDS = [
    "conv", "masked", "subpixel", "plain", "hooked", "grouped", "cat", "gate", "zero", "bottleneck", "norm",
    "permute", "flip", "shuffle", "shift",
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    plan=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    width=st.sampled_from([4, 8]),
    share=st.sampled_from([0.3, 0.6, 0.9]),
    shifted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_groups_of_random_nets_are_zero_where_they_say_and_gone_once_shrunk(plan, width, share, shifted, seed):
    """Zeroing a group's makers leaves nothing that its readers' columns could read; shrinking removes exactly it."""
    torch.manual_seed(seed)
    net = Zoo(width, plan)
    x = torch.randn(2, 2, 6, 6)
    inputs = {"net": (x, torch.rand(2)) if shifted else x}
    model = one(net)
    groups = gt.channel_groups(model, inputs)
    if not len(groups):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = gt.prune(gt.random_scores(model, seed), fraction=share, granularity="channel", groups=groups)
        shrinking = Shrinking(model, masks, inputs)
    kept = groups.kept(masks)
    assert sum(shrinking.removed.values()) == int((~kept).sum())
    # The columns of the readers are zero in the masks, and need not be: what they read is zero already.
    makers = {piece.name for group in groups for piece in group if piece.side == "output"}
    readers = {name for name in masks if name not in makers}
    with torch.no_grad():
        given = inputs["net"] if shifted else (x,)
        whole = masks.apply_(clone(model)).eval()
        but_readers = gt.Masks({n: m for n, m in masks.items() if n not in readers}).apply_(clone(model)).eval()
        small = shrinking.model.eval()
        expected, by_makers, found = (each["net"](*given)["image"] for each in (whole, but_readers, small))
    if "norm" not in plan:  # a spectral norm sees those columns
        torch.testing.assert_close(by_makers, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# -- one by one -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_of_channels_does_not_cut_the_network(seed):
    class Permuted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)
            self.order = torch.randperm(8, generator=torch.Generator().manual_seed(seed)).tolist()

        def forward(self, x):
            return self.b(torch.relu(self.a(x))[:, self.order])

    model, x = one(Permuted()), torch.randn(64, 4)
    groups = gt.channel_groups(model, {"net": x})
    assert not len(groups)
    assert groups.whole["net.a"] == "getitem (its code says how many channels)"
    with pytest.raises(
        gt.PruneError, match=r"nothing to prune \(2 layers stay whole: 1 for its code .*, 1 for the output"
    ):
        gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_module_without_weights_joins_nothing_when_it_is_called_again(repeats):
    act = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 6, 3), act, nn.Conv2d(6, 3, 1), *[act] * (repeats - 1))
    groups = gt.channel_groups(one(net), {"net": torch.randn(2, 3, 8, 8)})
    assert {name: len(numbers) for name, numbers in groups.layers.items()} == {"net.0": 4, "net.2": 6}
    assert len(groups) == 10


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.first(x)))))))


def test_a_layer_called_twice_reads_the_channels_that_it_makes():
    groups = gt.channel_groups(one(Twice()), {"net": torch.randn(2, 4)})
    assert set(groups.layers["net.first"]) == set(groups.layers["net.shared"])
    assert len(groups) == 6


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: torch.cat([a, b], 1), lambda a, b: torch.cat([a, b], dim=-1),
        lambda a, b: torch.cat((a, b), axis=1),
        lambda a, b: torch.concat(tensors=[a, b], axis=-1), lambda a, b: torch.concatenate([a, b], dim=1),
        lambda a, b: torch.hstack((a, b)),
    ],
)  # fmt: skip
def test_channels_one_after_another_however_it_is_written(join):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Linear(4, 5), nn.Linear(4, 3), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(join(torch.relu(self.a(x)), torch.relu(self.b(x))))

    groups = gt.channel_groups(one(Joined()), {"net": torch.randn(2, 4)})
    reads = [
        (piece.indices, {other.name for other in group if other.side == "output"})
        for group in groups
        for piece in group
        if piece.name == "net.last.weight"
    ]
    assert [indices for indices, _ in sorted(reads)] == [(i,) for i in range(8)]
    assert all(("net.a.weight" in made) == (indices[0] < 5) for indices, made in reads)


def test_groups_of_which_no_maker_is_covered_are_alive():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    groups = gt.channel_groups(one(net), {"net": torch.randn(2, 4)})
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[2] = False
    assert groups.kept(gt.Masks({"net.0.weight": mask})).sum() == len(groups) - 1


def test_multiple_puts_the_best_channels_back():
    torch.manual_seed(0)
    model = one(nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 3, 3)))
    groups = gt.channel_groups(model, {"net": torch.randn(2, 3, 8, 8)})
    scores = gt.magnitude(model)
    masks = gt.prune(scores, fraction=0.5, granularity="channel", groups=groups, multiple=8)
    best = set(scores["net.0.weight"].flatten(1).mean(1).argsort(descending=True)[:8].tolist())
    assert set(np.flatnonzero(masks["net.0.weight"].flatten(1).any(1).numpy()).tolist()) == best


def test_what_a_layer_computes_in_its_own_way_keeps_what_it_reads_and_makes():
    for own in (Masked(6), hooked(6), parametrizations.orthogonal(nn.Conv2d(6, 6, 1)), SubPixel(6, 24, 1)):
        model = one(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 1), own, nn.Conv2d(6, 3, 1)))
        assert list(gt.channel_groups(model, {"net": torch.randn(2, 3, 6, 6)}).layers) == ["net.0"]
    instance = nn.Conv2d(6, 6, 1)
    instance.forward = lambda x: F.conv2d(x, instance.weight.flip(0))
    model = one(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 1), instance, nn.Conv2d(6, 3, 1)))
    with pytest.raises(gt.GenticketsError, match=r"'3\.forward' uses '3' of the model.*make it a method"):
        gt.channel_groups(model, {"net": torch.randn(2, 3, 6, 6)})  # each copy would read the weight of the original


def test_a_held_layer_is_still_its_layer():
    model = one(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gt.Masks.dense(model).hold(model, optimizer):
        assert len(gt.channel_groups(model, {"net": torch.randn(2, 4)})) == 6


def test_a_weight_that_code_reads_by_itself_keeps_its_channels():
    class TiedAutoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x):
            return F.linear(torch.relu(self.layer(x)), self.layer.weight.t())

    assert not len(gt.channel_groups(one(TiedAutoencoder()), {"net": torch.randn(2, 4)}))


class OtherwiseInTraining(nn.Module):
    """An auxiliary head, and a code that is drawn, in training alone."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way
        self.first, self.mean, self.spread = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.last, self.head = nn.Linear(6, 4), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.relu(self.first(x))
        mean, spread = self.mean(h), self.spread(h)
        if self.training and self.way == "drawn":
            mean = mean + torch.randn_like(mean) * spread.exp()
        if self.training and self.way == "head":
            return self.last(mean), self.head(h)
        return self.last(F.dropout(mean, 0.2, self.training))


@pytest.mark.parametrize("way", ["drawn", "head", "neither"])
def test_what_code_does_in_training_binds_channels_too(way):
    torch.manual_seed(0)
    model, x = one(OtherwiseInTraining(way)), {"net": torch.randn(3, 4)}
    groups = gt.channel_groups(model, x)
    makers = {name: set(numbers.tolist()) for name, numbers in groups.layers.items()}
    assert ("net.first" in makers) == (way != "head")
    if way == "drawn":
        assert not makers.get("net.mean", set()) ^ makers.get("net.spread", set())
    if len(groups):
        masks = gt.prune(gt.magnitude(model), fraction=0.4, granularity="channel", groups=groups)
        small = gt.shrink(model, masks, x)
        small["net"].train()(x["net"])


class InPlace(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.a, self.b, self.c, self.write = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3), write

    def forward(self, x):
        h = self.a(x)
        return self.c(self.write(h, self.b(x)))


def test_what_is_added_in_place_is_added():
    groups = gt.channel_groups(one(InPlace(lambda h, g: (h.add_(g), h)[1])), {"net": torch.randn(2, 4)})
    assert {name: len(numbers) for name, numbers in groups.layers.items()} == {"net.a": 6, "net.b": 6}
    assert len(groups) == 6


def by_a_view(h, g):
    h[:, :3].add_(g[:, :3])
    return h


def by_an_item(h, g):
    h[:, 0] = g[:, 1]
    return h


def into_another(h, g):
    other = torch.zeros(len(h), 6)
    other[:, :3], other[:, 3:] = h[:, :3], g[:, 3:]
    return other


def into_a_view_of_another(h, g):
    other = torch.zeros(len(h), 6)
    other.narrow(1, 0, 6).copy_(h + g)
    return other


@pytest.mark.parametrize("write", [by_a_view, by_an_item, into_another, into_a_view_of_another])
def test_what_is_written_by_way_of_another_tensor_stays_whole(write):
    torch.manual_seed(0)
    model, x = one(InPlace(write)), {"net": torch.randn(2, 4)}
    groups = gt.channel_groups(model, x)
    assert "net.a" in groups.whole
    if len(groups):  # what is not read at all
        masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
        gt.shrink(model, masks, x)


def test_an_input_without_a_batch_is_not_taken_for_one_of_channels():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3))
    assert not len(gt.channel_groups(one(net), {"net": torch.randn(3, 8, 8)}))


def test_a_whole_network_says_why():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 3, 1)
    )
    groups = gt.channel_groups(one(net), {"net": torch.randn(2, 3, 8, 8)})
    why = "3 layers whole (2 for GroupNorm, 1 for the output)"
    assert repr(groups) == f"ChannelGroups(0 groups made by 0 layers, {why})"
    bird = gt.EarlyBird(0.5, granularity="channel", groups=groups)
    with pytest.raises(gt.MaskError, match=r"every layer stays whole \(net.0: 1 \(GroupNorm\); .*net.4: the output\)"):
        bird.observe(one(net))


def test_errors_of_the_users_code_are_told_in_one_line():
    class Failing(nn.Module):
        def forward(self, x):
            raise KeyError("no such table")

    with pytest.raises(Untraceable, match=r"cannot be traced at `raise KeyError.*KeyError: 'no such table'") as caught:
        gt.channel_groups(one(Failing()), {"net": torch.randn(2, 4)})
    assert "\n" not in str(caught.value)


# -- what runs past modes -------------------------------------------------------------------------------------


def gate(a: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(a) * torch.sigmoid(b)


def energy(h: Tensor) -> Tensor:
    return h.pow(2).mean()


class Gated(nn.Module):
    """A gate as WaveNet has it, and a term for its loss that forward keeps."""

    def __init__(self, gate, energy, inner=lambda layer: layer):
        super().__init__()
        self.i, self.f, self.g, self.o = (nn.Conv1d(*sides, 3, padding=1) for sides in ((3, 8), (8, 8), (8, 8), (8, 3)))
        self.f, self.ways = inner(self.f), (gate, energy)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.i(x))
        self.term = self.ways[1](h)
        return self.o(self.ways[0](self.f(h), self.g(h)))


def compiled_part(layer: nn.Module) -> nn.Module:
    return torch.compile(nn.Sequential(layer, nn.Identity()), backend="eager")


SCRIPTED_GATE, SCRIPTED_ENERGY = torch.jit.script(gate), torch.jit.script(energy)
TRACED_GATE = torch.jit.trace(gate, (torch.ones(2), torch.ones(2)))


@pytest.mark.parametrize(
    ("ways", "inner"),
    [
        ((gate, lambda h: SCRIPTED_ENERGY(h)), nn.Sequential),
        ((lambda a, b: SCRIPTED_GATE(a, b), energy), nn.Sequential),
        ((lambda a, b: TRACED_GATE(a, b), energy), nn.Sequential),
        ((torch.compile(gate, backend="eager"), energy), nn.Sequential),
        ((gate, energy), compiled_part),
    ],
)
def test_scripted_traced_and_compiled_code_has_the_channels_of_the_code(ways, inner):
    x = torch.randn(4, 3, 16)
    plain, other = gt.channel_groups(Gated(gate, energy), x), gt.channel_groups(Gated(*ways, inner), x)
    assert len(plain) == len(other) == 8  # those of the layer of which all is read stay
    assert list(plain.whole.values()) == list(other.whole.values())
    assert plain.flops() == other.flops()


def test_a_scripted_function_without_its_code_is_one_operation():
    roll = torch.jit.script(nn.Sequential(nn.Tanh()))
    groups = gt.channel_groups(Gated(lambda a, b: roll(a * b), lambda h: 0), torch.randn(4, 3, 16))
    assert len(groups) == 16


class Hidden(nn.Module):
    def __init__(self, way, layer):
        super().__init__()
        self.a, self.b, self.way, self.layer = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 3, 1), way, layer

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.layer:
            return self.b(self.way(h))  # hidden
        self.term = self.way(h).mean()  # hidden
        return self.b(torch.relu(h))


def past_torch(h: Tensor) -> Tensor:
    return torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(h)).tanh()


@pytest.mark.parametrize(
    ("way", "layer"),
    [(torch.vmap(torch.tanh), True), (torch.vmap(torch.tanh), False), (past_torch, True)],
)
def test_what_a_layer_reads_and_nothing_seen_made_is_refused_with_its_line(way, layer):
    with pytest.raises(
        Untraceable, match=r"cannot be traced at `.*# hidden` in test_channels_found.py, line"
    ) as caught:
        gt.channel_groups(Hidden(way, layer), torch.randn(4, 3, 16))
    assert "\n" not in str(caught.value)


class Timed(nn.Module):
    """A layer that reads a constant: the frequencies of a time that stands fast."""

    def __init__(self):
        super().__init__()
        self.i, self.t, self.o = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        steady = torch.vmap(torch.cos)(torch.arange(4.0))  # hangs on nothing
        return self.o(torch.relu(self.i(x) + self.t(steady[None])))


def test_layers_that_read_constants_are_reached():
    net, x = Timed().eval(), torch.randn(3, 4)
    groups = gt.channel_groups(net, x)
    assert groups.whole == {"o": "the output"}
    assert len(groups) == 8
    masks = groups.masks(np.arange(8) >= 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = gt.shrink(net, masks, x)
    assert small.t.out_features == small.i.out_features == 5
    assert torch.allclose(small.eval()(x), masks.apply_(clone(net)).eval()(x), atol=1e-6)


def test_lazy_layers_are_refused_until_they_have_weights():
    net = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4))
    with pytest.raises(Untraceable, match="lazy layers have no weights"):
        gt.channel_groups(one(net), {"net": torch.randn(2, 5)})
    net(torch.randn(2, 5))
    assert len(gt.channel_groups(one(net), {"net": torch.randn(2, 5)})) == 8


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_constants_are_folded_whole():
    torch.manual_seed(0)
    model = one(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).to(torch.complex64))
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[:2] = False
    small = gt.shrink(model, gt.Masks({"net.0.weight": mask}), {"net": torch.randn(2, 4, dtype=torch.complex64)})
    assert small["net"][0].out_features == 4


# -- what looks like a constant -----------------------------------------------------------------------------------


class Between(nn.Module):
    """Something between two of three layers, which may read a layer of its own."""

    def __init__(self, middle, **layers: nn.Module):
        super().__init__()
        self.a, self.b, self.out, self.middle = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 3), middle
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.b(self.middle(self, self.a(x)))))


def by_gates(net: nn.Module, h: Tensor) -> Tensor:
    """A recurrent layer whose state begins with zeros, and as many of them as there are channels."""
    state = torch.zeros_like(h)
    for _ in range(2):
        share = torch.sigmoid(net.gate(torch.cat([h, state], 1)))
        state = (1 - share) * state + share * torch.tanh(h)
    return state


ALIKE = {
    "cut off above": lambda net, h: h.clamp(min=0) + 0.2 * h.clamp(max=0),
    "cut off on both sides": lambda net, h: h + F.hardtanh(h, -1, 0),
    "what whole numbers lack": lambda net, h: h + h.frac(),
    "zeros of its shape": lambda net, h: torch.zeros_like(h) + h,
    "another's shape": lambda net, h: h + h.new_full((2, 1, 1), 0.5).sum(),
}


@pytest.mark.parametrize("middle", ALIKE.values(), ids=ALIKE)
def test_what_is_the_same_for_whole_numbers_from_0_up_is_no_constant(middle):
    torch.manual_seed(0)
    net, x = Between(middle), torch.randn(4, 3, 9, 9)
    groups = gt.channel_groups(net, x)
    assert len(groups) == 16
    gt.shrink(net, gt.prune(gt.magnitude(net), fraction=0.5, granularity="channel", groups=groups), x)


def test_the_largest_number_of_all_is_no_constant():
    groups = gt.channel_groups(Between(lambda net, h: h / h.amax()), torch.randn(4, 3, 9, 9))
    assert groups.whole["a"] == "amax"


def test_a_state_that_begins_with_zeros_goes_with_its_channels():
    torch.manual_seed(0)
    net, x = Between(by_gates, gate=nn.Conv2d(16, 8, 3, padding=1)), torch.randn(2, 3, 8, 8)
    groups = gt.channel_groups(net, x)
    assert len(groups) == 16
    assert {"a", "gate", "b"} <= groups.layers.keys()
    gt.shrink(net, gt.prune(gt.magnitude(net), fraction=0.5, granularity="channel", groups=groups), x)


def test_a_layer_whose_output_is_cut_off_at_0_is_read():
    def middle(net: nn.Module, h: Tensor) -> Tensor:
        return net.all(h) + net.gate(h).clamp(max=0)

    layers = {"gate": nn.Conv2d(8, 1, 3, padding=1), "all": nn.Conv2d(8, 8, 3, padding=1)}
    for seed in range(4):
        torch.manual_seed(seed)
        net = Between(middle, **{name: clone(layer) for name, layer in layers.items()})
        for layer in net.children():
            nn.init.normal_(layer.bias)
        gt.shrink(net, gt.prune(gt.magnitude(net), fraction=0.98, scope="layer"), torch.randn(4, 3, 9, 9))

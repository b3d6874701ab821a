"""Structures of the networks that people have: heads, gated and modulated layers, groups, tokens; code that counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gentickets as gt
from gentickets.channels.shrinking import Shrinking
from gentickets.channels.trace import Untraceable
from gentickets.masks.names import clone


def halved(net: nn.Module, inputs, fraction: float = 0.5) -> Shrinking:
    """Half of the channels of every layer gone; that both networks are the same is checked by `Shrinking`."""
    groups = gt.channel_groups(net, inputs)
    masks = gt.prune(gt.random_scores(net, 0), fraction=fraction, scope="layer", granularity="channel", groups=groups)
    shrinking = Shrinking(net, masks, inputs)
    assert sum(shrinking.removed.values()) == int((~groups.kept(masks)).sum()) > 0
    return shrinking


def widths(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in net.named_parameters()}


# -- attention ------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Heads in the several ways in which they are written."""

    def __init__(self, way: str, width: int = 16, heads: int = 4, kv_heads: int = 4):
        super().__init__()
        self.way, self.heads, self.kv_heads, self.head_dim = way, heads, kv_heads, width // heads
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)
        if way == "fused":
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, self.head_dim * n) for n in (heads, kv_heads, kv_heads))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        h = self.norm(x)
        if self.way == "fused":
            q, k, v = self.qkv(h).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            parts = (self.q(h), self.k(h), self.v(h))
            if self.way == "by head_dim":
                q, k, v = (part.view(batch, tokens, -1, self.head_dim).transpose(1, 2) for part in parts)
            else:
                counts = (self.heads, self.kv_heads, self.kv_heads)
                q, k, v = (p.view(batch, tokens, n, -1).transpose(1, 2) for p, n in zip(parts, counts, strict=True))
        if self.way == "batched":
            q, k, v = (part.reshape(batch * self.heads, tokens, self.head_dim) for part in (q, k, v))
            weights = torch.baddbmm(torch.zeros(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=0.5).softmax(-1)
            mixed = torch.bmm(weights, v).reshape(batch, self.heads, tokens, self.head_dim)
        elif self.way == "products":
            mixed = torch.einsum("bhij,bhjd->bhid", ((q @ k.mT) * self.head_dim**-0.5).softmax(-1), v)
        else:
            drop = 0.2 if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, enable_gqa=self.heads != self.kv_heads)
        return x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))


@pytest.mark.parametrize("way", ["fused", "by head_dim", "by heads", "batched", "products"])
def test_whole_heads_go(way):
    torch.manual_seed(0)
    net = Attention(way)
    shrinking = halved(net, torch.randn(2, 5, 16))
    small = shrinking.model
    rows = small.qkv.out_features if way == "fused" else 3 * small.q.out_features
    assert (rows, small.out.in_features, small.out.out_features) == (24, 8, 16)
    counted = {"by head_dim": [], "fused": ["heads"]}.get(way, ["heads", "kv_heads"])
    assert shrinking.mended == dict.fromkeys(counted, (4, 2))
    small(torch.randn(3, 7, 16)).sum().backward()


def test_queries_that_share_a_key_go_together():
    torch.manual_seed(0)
    small = halved(Attention("by head_dim", kv_heads=2), torch.randn(2, 5, 16)).model
    assert (small.q.out_features, small.k.out_features, small.v.out_features) == (8, 4, 4)


# -- gates, modulation, tokens --------------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self, way: str):
        super().__init__()
        self.way, self.norm, self.up, self.down = way, nn.LayerNorm(6), nn.Linear(6, 16), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.norm(x))
        if self.way == "glu":
            return x + self.down(F.glu(h, -1))
        if self.way == "split":
            one, other = h.split(h.shape[-1] // 2, dim=-1)
        elif self.way == "slices":
            one, other = h[..., : h.shape[-1] // 2], h[..., h.shape[-1] // 2 :]
        else:
            one, other = h.chunk(2, dim=-1)
        return x + self.down(one * F.gelu(other))


@pytest.mark.parametrize("way", ["glu", "chunk", "split", "slices"])
def test_the_two_halves_of_a_gated_layer_go_together(way):
    torch.manual_seed(0)
    small = halved(Gated(way), torch.randn(2, 5, 6)).model
    assert (small.up.out_features, small.down.in_features) == (8, 4)


class Modulated(nn.Module):
    """A convolution whose channels are scaled and shifted by an embedding (FiLM), a learned scale, groups of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.film, self.first = nn.Linear(3, 16), nn.Conv2d(2, 8, 3, padding=1)
        self.norm, self.scale = nn.GroupNorm(4, 8), nn.Parameter(torch.rand(8, 1, 1))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.film(t)[:, :, None, None].chunk(2, dim=1)
        return self.last(F.silu(self.norm(self.first(x)) * (1 + scale) + shift) * self.scale)


def test_scales_and_shifts_go_with_their_channels_by_whole_groups_of_a_norm():
    torch.manual_seed(0)
    net, inputs = Modulated(), (torch.randn(2, 2, 6, 6), torch.randn(2, 3))
    small = halved(net, inputs).model
    assert (small.norm.num_groups, small.norm.num_channels) == (2, 4)
    assert widths(small) | {"film.weight": (8, 3), "first.weight": (4, 2, 3, 3), "scale": (4, 1, 1)} == widths(small)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(*inputs).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("layer", "left"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=4), (4, 1 * 4)),
        (nn.Conv2d(8, 16, 3, padding=1, groups=8), (4, 8)),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (4, 4)),
        (nn.Conv2d(8, 4, 3, padding=1, groups=4), (4, 2)),
        (nn.ConvTranspose2d(8, 8, 3, padding=1, groups=4), (4, 4)),
        (nn.ConvTranspose2d(8, 16, 3, padding=1, groups=8), (4, 8)),
    ],
)
def test_groups_of_a_convolution_go_whole(layer, left):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(layer.out_channels, 2, 1))
    small = halved(net, torch.randn(2, 2, 6, 6)).model
    assert (small[2].in_channels, small[2].out_channels) == left
    assert (small[0].out_channels, small[4].in_channels) == left
    assert small[2].groups == layer.groups // 2


@pytest.mark.parametrize("shuffle", [nn.PixelShuffle(2), nn.PixelUnshuffle(2)])
def test_pixels_are_shuffled_by_whole_channels(shuffle):
    torch.manual_seed(0)
    inner = 2 if isinstance(shuffle, nn.PixelShuffle) else 32
    net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.PReLU(8), shuffle, nn.ReLU(), nn.Conv2d(inner, 2, 1))
    small = halved(net, torch.randn(2, 2, 6, 6)).model
    assert (small[0].out_channels, small[1].num_parameters, small[4].in_channels) == (4, 4, inner // 2)


class Mixer(nn.Module):
    """Tokens are mixed along one axis and channels along the other; a position is added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tokens, self.channels = nn.Conv2d(3, 8, 2, 2), nn.Linear(9, 9), nn.Linear(8, 8)
        self.position, self.head = nn.Parameter(torch.randn(8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).flatten(2)
        h = (h + self.tokens(h)).transpose(1, 2) + self.position
        return self.head(torch.relu(self.channels(h)).mean(1))


def test_channels_are_found_on_whatever_axis_they_lie():
    torch.manual_seed(0)
    small = halved(Mixer(), torch.randn(2, 3, 6, 6)).model
    assert widths(small)["position"] == (4,)
    assert (small.stem.out_channels, small.channels.in_features, small.tokens.in_features) == (4, 4, 9)
    assert (small.channels.out_features, small.head.in_features) == (4, 4)


# -- code that counts, asserts, asks --------------------------------------------------------------------------


@dataclass
class Result:
    sample: Tensor


class Counting(nn.Module):
    """Asserts, counts and keeps numbers, as library code does."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.out_channels = 8, 6
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor, *, scale: float | None = None) -> Result:
        assert x.shape[1] == 3
        assert len(x) > 0
        h = self.first(x)
        if h.shape[1] != self.channels:
            raise ValueError("not my channels")
        h = self.second(torch.relu(h)).view(len(x), self.out_channels, int(np.prod(h.shape[2:])))
        h = h.reshape(*h.shape[:2], *x.shape[2:])
        return Result(self.third(h) * (1.0 if scale is None else scale))


def test_numbers_that_code_reads_off_its_modules_follow_and_are_listed():
    torch.manual_seed(0)
    net, inputs = Counting(), {"x": torch.randn(2, 3, 4, 4), "scale": 0.5}
    shrinking = halved(net, inputs)
    assert shrinking.mended == {"channels": (8, 4), "out_channels": (6, 3)}
    assert shrinking.model(torch.randn(5, 3, 2, 2)).sample.shape == (5, 3, 2, 2)


class ByValues(nn.Module):
    def __init__(self, way: str):
        super().__init__()
        self.way, self.a, self.b = way, nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.way == "branch" and x[0, 0] > 0:
            h = h * 2
        if self.way == "number":
            h = h * float(x.abs().max())
        if self.way == "array":
            h = h * torch.from_numpy(x.detach().numpy() ** 2).sum()
        return self.b(h)


def test_a_branch_by_values_is_refused_by_its_line():
    with pytest.raises(Untraceable, match=r"at `h = h \* 2` in test_whole_networks.py, .*\(other numbers") as told:
        gt.channel_groups(ByValues("branch"), torch.ones(2, 4))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("way", ["number", "array", "none"])
def test_numbers_that_code_takes_from_tensors_are_no_secret(way):
    torch.manual_seed(0)
    assert halved(ByValues(way), torch.randn(2, 4)).model.a.out_features == 3


def test_a_network_that_is_another_each_time_is_refused():
    class Whim(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(np.random.default_rng().random())

    with pytest.raises(Untraceable, match="gives something else each time, although chance falls as from one seed"):
        gt.channel_groups(Whim(3, 3), torch.randn(2, 3))


def test_what_a_network_keeps_of_a_run_is_not_kept():
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen += 1
            return self.b(torch.relu(self.a(x))) + 0 * self.seen

    torch.manual_seed(0)
    net = Remembering()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert halved(net, torch.randn(2, 4)).model.a.out_features == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in clone(net).state_dict().items())


class Prefixed(nn.Module):
    """A learned token before the others, and a learned vector that nothing else is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.token, self.condition = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(5))
        self.read = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], dim=1)
        return self.out(torch.relu(self.mix(h) + self.read(self.condition.expand(len(x), -1))[:, None]))


def test_a_learned_token_has_the_channels_of_those_that_it_stands_beside():
    torch.manual_seed(0)
    small = halved(Prefixed(), torch.randn(2, 4, 3)).model
    sizes = widths(small)
    assert (sizes["token"], sizes["embed.weight"], sizes["mix.weight"]) == ((1, 1, 4), (4, 3), (3, 4))
    assert (sizes["condition"], sizes["read.weight"]) == ((5,), (3, 5))  # no score is of the condition


def test_a_parameter_that_no_mask_covers_is_alive():
    torch.manual_seed(0)
    net = Prefixed()
    for masks in (gt.Masks.dense(net), gt.Masks({})):
        assert widths(gt.shrink(net, masks, torch.randn(2, 4, 3))) == widths(net)


class Conv1D(nn.Module):
    """As in transformers, for GPT-2: a linear layer whose weight is (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


def test_a_linear_layer_that_stores_its_inputs_first_is_one():
    torch.manual_seed(0)
    net, x = nn.Sequential(Conv1D(8, 3), nn.GELU(), Conv1D(3, 8)), torch.randn(2, 4, 3)
    groups = gt.channel_groups(net, x)
    scores = gt.magnitude(net, include=["0.weight", "2.weight"])
    masks = gt.prune(scores, fraction=0.5, granularity="channel", groups=groups)
    small = gt.shrink(net, masks, x)
    assert (small[0].nf, small[2].nx, tuple(small[2].weight.shape)) == (4, 4, (4, 3))


class Cosine(nn.Module):
    """Channels that meet in a product of the network with itself."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(3, 2)

    def forward(self, x):
        made = self.first(x)
        return self.last(torch.einsum("nc,nd->ncd", made, made.sin()).flatten(1)[:, :3])


def test_what_is_too_large_to_try_channel_by_channel_stays_whole_and_says_so(monkeypatch):
    monkeypatch.setattr("gentickets.channels.labelling._MOST_TRIED", 10)
    groups = gt.channel_groups({"net": Cosine()}, {"net": torch.randn(3, 6)})
    assert "einsum, too large to try channel by channel" in groups.whole["net.first"]

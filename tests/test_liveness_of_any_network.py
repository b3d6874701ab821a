"""No dense network is called cut, whatever it takes, gives and computes; and what is cut is found there too."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gentickets as gt


def closed(masks: gt.Masks, *names: str) -> gt.Masks:
    return masks.replace({name: torch.zeros_like(masks[name]) for name in names})


@dataclasses.dataclass
class Output:
    sample: Tensor
    loss: object = None


class InDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Output:
        return Output(self.b(torch.relu(self.a(x))))


class Quantised(InDataclass):
    """A VQ-VAE in evaluation: no derivative passes its codebook."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.codes = nn.Embedding(7, 5)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        z = self.a(x)
        if self.how == "round":
            return self.b(torch.round(3 * z) / 3)
        if self.how == "straight through":
            return self.b(z + (torch.round(z) - z).detach())
        if self.how == "sign under no_grad":
            with torch.no_grad():
                z = torch.sign(z)
            return self.b(z)
        index = torch.cdist(z, self.codes.weight).argmin(-1)
        if self.how == "embedding":
            return self.b(self.codes(index))
        if self.how == "index":
            return self.b(self.codes.weight[index])
        if self.how == "one-hot":
            return self.b(F.one_hot(index, 7).to(x.dtype) @ self.codes.weight)
        chosen = torch.zeros(len(x), 7, dtype=torch.float32)
        chosen.scatter_(1, index[:, None], 1)
        return self.b(chosen @ self.codes.weight)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.position = nn.Embedding(11, 4), nn.Embedding(9, 4)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids.long()) + self.position(torch.arange(ids.shape[1]))
        angles = torch.arange(ids.shape[1], dtype=torch.float32)[:, None] * torch.ones(4, dtype=torch.float32)
        x = x + angles.sin()
        x = x + F.scaled_dot_product_attention(x, x, x, is_causal=True)
        return self.b(torch.tanh(self.a(F.layer_norm(x, (4,)))).float())


class Timed(nn.Module):
    """A denoiser of a sample and a time."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.a, self.b = nn.Linear(2, 5), nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor, t: Tensor, guidance: float = 1.0) -> tuple[Tensor, None]:
        frequencies = torch.exp(-torch.arange(2, dtype=torch.float32))
        h = self.a(x) * guidance + self.time((t.float()[:, None] * frequencies).cos())
        return self.b(F.silu(h)), None


class Denoiser(nn.Module):
    """A U-Net in small, as diffusion models have it: keyword results, attention, zero-initialised branches."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.time = nn.Linear(width, 2 * width)
        self.a, self.down = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, stride=2)
        self.norm, self.qkv = nn.GroupNorm(2, width), nn.Conv2d(width, 3 * width, 1)
        self.zero, self.b = nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, 3, 3, padding=1)
        nn.init.zeros_(self.zero.weight)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        frequencies = torch.exp(-4.0 * torch.arange(2, dtype=torch.float32))
        angles = t[:, None].float() * frequencies[None]
        scale, shift = self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, :, None, None].chunk(2, 1)
        first = self.a(2 * x - 1.0)
        h = self.down(F.pad(F.silu(first), (0, 1, 0, 1)))
        q, k, v = self.qkv(self.norm(h) * (1 + scale) + shift).flatten(2).mT.chunk(3, -1)
        h = h + self.zero(F.scaled_dot_product_attention(q, k, v).mT.reshape(h.shape))
        return {"sample": self.b(torch.cat([F.interpolate(h, scale_factor=2.0), first], 1))}


NETS = {
    "denoiser": (Denoiser(), (torch.randn(2, 3, 8, 8), torch.tensor([1, 500]))),
    "dataclass": (InDataclass(), torch.randn(2, 4)),
    **{
        how: (Quantised(how), torch.randn(2, 4))
        for how in ("round", "straight through", "sign under no_grad", "embedding", "index", "one-hot", "scatter")
    },
    "tokens": (Tokens(), torch.randint(0, 11, (2, 5))),
    "tokens as floats": (Tokens(), torch.randint(0, 11, (2, 5)).float()),
    "two inputs": (Timed(), (torch.randn(3, 4), torch.tensor([1, 50, 900]))),
    "keywords": (Timed(), {"x": torch.randn(3, 4), "t": torch.tensor([1, 50, 900]), "guidance": 2.0}),
}


@pytest.mark.parametrize("name", NETS)
def test_what_is_dense_is_connected_and_what_is_cut_is_not(name: str) -> None:
    net, example = NETS[name]
    dense = gt.Masks.dense(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gt.check_connected({"net": net}, gt.Masks.dense(nn.ModuleDict({"net": net})), {"net": example})
        if not isinstance(example, dict):
            gt.check_connected(net, dense, example)
    for layer in ("a", "b"):
        masks = gt.Masks({f"net.{name}": mask for name, mask in closed(dense, f"{layer}.weight").items()})
        with pytest.raises(
            gt.Disconnected, match=f"'net' has no live path .* nothing passes layer 'net.{layer}', which"
        ):
            gt.check_connected({"net": net}, masks, {"net": example})


def test_an_input_that_reaches_nothing_any_more_is_named() -> None:
    net, example = NETS["two inputs"]
    masks = closed(gt.Masks.dense(net), "time.weight")
    for time in (example[1], example[1].float()):
        with pytest.raises(gt.Disconnected, match=r"input '\[1\]' is cut off\): nothing passes layer 'time'"):
            gt.check_connected(net, masks, (example[0], time))


def test_a_component_whose_second_output_is_cut() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.mu, self.logvar = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x)
            return self.mu(h), self.logvar(h)

    model, example = {"encoder": Encoder()}, {"encoder": torch.randn(2, 4)}
    dense = gt.Masks.dense(nn.ModuleDict(model))
    gt.check_connected(model, dense, example)
    with pytest.raises(gt.Disconnected, match=r"output '\[0\]' is cut off\).*'encoder\.mu', which keeps 0 of 10"):
        gt.check_connected(model, closed(dense, "encoder.mu.weight"), example)
    with pytest.raises(gt.Disconnected, match=r"'encoder\.body', which keeps 0 of 20"):
        gt.check_connected(model, closed(dense, "encoder.body.weight"), example)


def test_a_constant_output_is_no_cut() -> None:
    """A softmax over one class, and the sum of a softmax, depend on nothing even when dense."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1))
    gt.check_connected(net, gt.Masks.dense(net), torch.randn(2, 4))
    with pytest.raises(gt.Disconnected):
        gt.check_connected(net, closed(gt.Masks.dense(net), "0.weight"), torch.randn(2, 4))


def test_what_cannot_be_judged_is_said() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor(self.a(x).tolist())

    net = Opaque()
    for masks in (gt.Masks.dense(net), closed(gt.Masks.dense(net), "a.weight")):
        with pytest.warns(UserWarning, match="the network was not checked for live paths") as caught:
            gt.check_connected(net, masks, torch.randn(2, 4))
        assert caught[0].filename == __file__


def test_a_network_that_will_not_run_so_is_refused_in_a_line() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return self.a(x)

    with pytest.raises(
        gt.MaskError, match=r"'net' cannot be checked for live paths.*TypeError: float32 only"
    ) as caught:
        gt.check_connected({"net": Single()}, gt.Masks({}), {"net": torch.randn(2, 4)})
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # that of the network itself
        gt.check_connected({"net": nn.Linear(4, 4)}, gt.Masks({}), {"net": torch.randn(2, 3)})


def test_masked_gains_count_and_unmasked_ones_do_not() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    nn.init.zeros_(net[1].weight)  # trains on
    x = torch.randn(1, 1, 3, 3)
    gt.check_connected(net, gt.Masks.dense(net), x)
    gains = torch.zeros(2, dtype=torch.bool)
    with pytest.raises(gt.Disconnected):
        gt.check_connected(net, gt.Masks.dense(net).replace({"1.weight": gains, "1.bias": gains}), x)


def test_an_input_that_is_written_into() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return self.a(x.clamp_(0, 1))

    example = torch.randn(2, 4)
    kept = example.clone()
    gt.check_connected(InPlace(), gt.Masks.dense(InPlace()), example)
    gt.synflow(InPlace(), example)
    assert torch.equal(example, kept)

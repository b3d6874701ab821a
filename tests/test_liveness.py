"""Does anything flow? Against a naive reachability, and on the nets that people train."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gentickets import Disconnected, MaskError, Masks, check_connected
from gentickets.masks.liveness import empty_layers


def one(net: nn.Module) -> nn.Module:
    """A model whose only component is `net`."""
    model = nn.Module()
    model.net = net
    return model


def closed(masks: Masks, *names: str) -> Masks:
    return masks.replace({name: torch.zeros_like(masks[name]) for name in names})


def mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, next_wide in itertools.pairwise(widths):
        layers += [nn.Linear(wide, next_wide), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def naive_reach(masks: list[list[list[bool]]]) -> int | None:
    """The first layer that puts out nothing, by boolean products of matrices; None: something comes out."""
    alive = [True] * len(masks[0][0])
    for index, mask in enumerate(masks):
        alive = [any(m and a for m, a in zip(row, alive, strict=True)) for row in mask]
        if not any(alive):
            return index
    return None


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.floats(0.0, 1.0),
    st.integers(0, 10**6),
)
def test_against_boolean_matrix_products(widths: list[int], keep: float, seed: int) -> None:
    model = one(mlp(widths))
    generator = torch.Generator().manual_seed(seed)
    masks = Masks({n: torch.rand(m.shape, generator=generator) < keep for n, m in Masks.dense(model).items()})
    cut = naive_reach([mask.tolist() for mask in masks.values()])
    inputs = {"net": torch.zeros(2, widths[0])}
    if cut is None:
        check_connected(model, masks, inputs)
    else:
        name = list(masks)[cut].removesuffix(".weight")
        with pytest.raises(
            Disconnected, match=f"'net'.* layer '{name}', which keeps {masks.counts()[name + '.weight']} of"
        ):
            check_connected(model, masks, inputs)


def test_dense_models_are_connected(gan: nn.Module, autoencoder: nn.Module) -> None:
    inputs = {"generator": torch.zeros(2, 5, 1, 1), "discriminator": torch.zeros(2, 1, 8, 8)}
    check_connected(gan, Masks.dense(gan), inputs)
    check_connected(gan, Masks({}), inputs)
    check_connected(autoencoder, Masks.dense(autoencoder), {"encoder": torch.zeros(1, 10)})


@pytest.mark.parametrize("name", ["generator.0", "generator.3", "generator.6", "discriminator.2"])
def test_an_emptied_layer_is_named(name: str, gan: nn.Module) -> None:
    inputs = {"generator": torch.zeros(2, 5, 1, 1), "discriminator": torch.zeros(2, 1, 8, 8)}
    masks = closed(Masks.dense(gan), f"{name}.weight")
    assert empty_layers(masks) == [f"{name}.weight"]
    component, total = name.split(".")[0], masks[f"{name}.weight"].numel()
    with pytest.raises(Disconnected) as caught:
        check_connected(gan, masks, inputs)
    message = str(caught.value)
    assert f"component {component!r}" in message
    assert f"{name!r}, which keeps 0 of {total} weights" in message
    assert "\n" not in message
    others = {key: value for key, value in inputs.items() if key != component}
    check_connected(gan, masks, others)


def test_a_cut_without_an_empty_layer() -> None:
    model = one(mlp([4, 4, 4, 4]))
    first, second = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    first[:2] = True  # only units 0 and 1 are fed
    second[:, 2:] = True  # only units 2 and 3 are read
    masks = Masks.dense(model).replace({"net.0.weight": first, "net.2.weight": second})
    assert empty_layers(masks) == []
    with pytest.raises(Disconnected, match=r"'net\.2', which keeps 8 of 16"):
        check_connected(model, masks, {"net": torch.zeros(1, 4)})
    second[0, 1] = True
    check_connected(model, masks.replace({"net.2.weight": second}), {"net": torch.zeros(1, 4)})


class Residual(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.tanh(self.head(x + self.branch(x)))


def test_residual_nets() -> None:
    model, inputs = one(Residual()), {"net": torch.zeros(1, 3, 6, 6)}
    dense = Masks.dense(model)
    branch_off = closed(dense, "net.branch.0.weight")
    check_connected(model, branch_off, inputs)
    for name in ("stem", "head"):
        for masks in (dense, branch_off):  # the branch is empty too, and comes first, but is no cut
            with pytest.raises(Disconnected, match=f"layer 'net.{name}'"):
                check_connected(model, closed(masks, f"net.{name}.weight"), inputs)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.mu, self.logvar = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> object:
        h = F.gelu(self.body(x))
        return {
            "stats": (self.mu(h), -self.logvar(h)),
            "index": torch.zeros(1, dtype=torch.long),
            "kind": "vae",
        }


def test_outputs_in_tuples_and_dictionaries() -> None:
    model, inputs = one(Heads()), {"net": torch.zeros(2, 6)}
    dense = Masks.dense(model)
    check_connected(model, dense, inputs)
    for name, index in (("mu", 0), ("logvar", 1)):
        cut = closed(dense, f"net.{name}.weight")
        with pytest.raises(Disconnected, match=rf"output \"\['stats'\]\[{index}\]\" is cut off.*'net\.{name}'"):
            check_connected(model, cut, inputs)
    with pytest.raises(Disconnected, match=r"'net\.body'"):
        check_connected(model, closed(dense, "net.body.weight"), inputs)


class Odd(nn.Module):
    """What does not keep positive numbers positive: differences, vectors of length one, a sampled code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.normalize(self.a(x), dim=1)
        h = h * torch.rsqrt(h.square().mean(1, keepdim=True))
        h = F.layer_norm(h, (8,))
        return 1 - self.b(h + torch.randn_like(h))


def test_networks_that_subtract_and_divide() -> None:
    model, inputs = one(Odd()), {"net": torch.zeros(2, 6)}
    dense = Masks.dense(model)
    check_connected(model, dense, inputs)
    for name in ("a", "b"):
        with pytest.raises(Disconnected, match=f"layer 'net.{name}'"):
            check_connected(model, closed(dense, f"net.{name}.weight"), inputs)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.spectral_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        parametrizations.weight_norm,
    ],
)
@pytest.mark.parametrize("used", [False, True])
def test_spectral_and_weight_norm(norm: Callable[[nn.Module], nn.Module], used: bool, make_gan) -> None:
    gan = make_gan(norm)
    if used:
        gan.discriminator(torch.randn(2, 1, 8, 8)).sum().backward()
    before = {name: value.clone() for name, value in gan.state_dict().items()}
    masks = Masks.dense(gan).select("discriminator")
    inputs = {"discriminator": torch.zeros(2, 1, 8, 8)}
    check_connected(gan, masks, inputs)
    second = list(masks)[1]
    with pytest.raises(Disconnected, match=r"layer 'discriminator\.2', which keeps 0 of 384"):
        check_connected(gan, closed(masks, second), inputs)
    assert all(torch.equal(before[name], value) for name, value in gan.state_dict().items())
    gan.discriminator(torch.randn(2, 1, 8, 8)).sum().backward()


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_touched(training: bool, gan: nn.Module, half) -> None:
    gan.train(training)
    gan.discriminator.eval()
    masks = half(gan)
    before = copy.deepcopy(gan.state_dict())
    modes = [m.training for m in gan.modules()]
    ids = [id(m) for m in gan.modules()]
    hooks = [len(m._forward_hooks) for m in gan.modules()]
    rng = torch.get_rng_state()
    example = torch.randn(2, 5, 1, 1, generator=torch.Generator().manual_seed(0))
    kept = example.clone()
    for _ in range(2):
        check_connected(gan, masks, {"generator": example})
        with pytest.raises(Disconnected):
            check_connected(gan, closed(masks, "generator.0.weight"), {"generator": example})
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.equal(example, kept)
    assert all(torch.equal(before[name], value) for name, value in gan.state_dict().items())
    assert modes == [m.training for m in gan.modules()]
    assert ids == [id(m) for m in gan.modules()]
    assert hooks == [len(m._forward_hooks) for m in gan.modules()]
    assert all(p.grad is None and p.dtype == torch.float32 for p in gan.parameters())


def test_a_network_that_draws_leaves_the_random_state(autoencoder: nn.Module) -> None:
    model = one(Odd())
    rng = torch.get_rng_state()
    check_connected(model, Masks.dense(model), {"net": torch.zeros(1, 6)})
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.ReLU, nn.SELU, nn.Identity])
@pytest.mark.parametrize("depth", [30, 60])
def test_deep_nets(activation: type[nn.Module], depth: int) -> None:
    torch.manual_seed(1)
    model = one(nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(64, 64), activation())]))
    inputs = {"net": torch.zeros(1, 64)}
    dense = Masks.dense(model)
    check_connected(model, dense, inputs)
    thin = Masks({name: torch.eye(64, dtype=torch.bool) for name in dense})  # one weight a unit
    check_connected(model, thin, inputs)
    line = torch.zeros(64, 64, dtype=torch.bool)
    line[3, 3] = True
    one_path = Masks(dict.fromkeys(dense, line))  # a single path
    check_connected(model, one_path, inputs)
    middle = f"net.{depth}.weight"
    with pytest.raises(Disconnected, match=f"layer 'net.{depth}', which keeps 1 of"):
        check_connected(model, one_path.replace({middle: line.roll(1, 1)}), inputs)


def test_deep_residual_net_does_not_saturate() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(40))
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + torch.relu(block(x))
            return torch.tanh(self.head(x))

    model = one(Deep())
    check_connected(model, Masks.dense(model), {"net": torch.zeros(1, 8)})


def test_shared_and_tied_layers_keep_their_mask() -> None:
    shared = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = shared.weight
    for net in (nn.Sequential(shared, nn.ReLU(), shared), nn.Sequential(shared, tied)):
        model = one(net)
        masks = Masks.dense(model)
        assert list(masks) == ["net.0.weight"]
        check_connected(model, masks, {"net": torch.zeros(1, 4)})
        upper = torch.zeros(4, 4, dtype=torch.bool)
        upper[0, 1] = True  # once passes, twice does not
        with pytest.raises(Disconnected):
            check_connected(model, Masks({"net.0.weight": upper}), {"net": torch.zeros(1, 4)})


def test_masked_weights_of_other_layers_count() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.out = nn.Parameter(-torch.ones(3)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x * self.gain)

    model = one(Gate())
    masks = Masks.dense(model, include=["*.gain", "*.weight"])
    check_connected(model, masks, {"net": torch.zeros(1, 3)})
    with pytest.raises(Disconnected):
        check_connected(model, closed(masks, "net.gain"), {"net": torch.zeros(1, 3)})


def test_compiled_parts_and_held_models(make_autoencoder, half) -> None:
    model = make_autoencoder()
    masks = Masks.dense(model)
    inner = make_autoencoder()
    inner.encoder[0] = torch.compile(inner.encoder[0])
    inner.decoder = torch.compile(inner.decoder)
    for wrapped in (torch.compile(model), inner):
        inputs = {"encoder": torch.zeros(1, 10), "decoder": torch.zeros(1, 3)}
        check_connected(wrapped, masks, inputs)
        with pytest.raises(Disconnected, match=r"'encoder\.0'"):
            check_connected(wrapped, closed(masks, "encoder.0.weight"), inputs)
    with half(model).hold(model):
        check_connected(model, masks, {"encoder": torch.zeros(1, 10)})


def third(x: Tensor) -> Tensor:
    return torch.round(3 * x) / 3


SCRIPTED_THIRD = torch.jit.script(third)
TRACED_THIRD = torch.jit.trace(third, torch.ones(2))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "step", [lambda x: SCRIPTED_THIRD(x), lambda x: TRACED_THIRD(x), lambda x: torch.ops.aten.round.default(3 * x)]
)
def test_steps_lead_on_however_they_are_called(step: Callable[[Tensor], Tensor]) -> None:
    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(step(self.a(x)))

    model = one(Stepped())
    masks = Masks.dense(model)
    check_connected(model, masks, {"net": torch.zeros(1, 3)})
    with pytest.raises(Disconnected):
        check_connected(model, closed(masks, "net.a.weight"), {"net": torch.zeros(1, 3)})


def test_unknown_component(autoencoder: nn.Module) -> None:
    with pytest.raises(MaskError, match="no component 'coder': the model has encoder, decoder"):
        check_connected(autoencoder, Masks.dense(autoencoder), {"coder": torch.zeros(1, 10)})

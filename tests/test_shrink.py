"""A shrunk network computes what the masked one does, for every model and for random nets; and is really smaller."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as new_spectral_norm

import gentickets as gt
from gentickets import models
from gentickets.channels.labels import trace
from gentickets.channels.shrinking import Shrinking, shrink
from gentickets.channels.trace import Untraceable
from gentickets.masks.examples import Example
from gentickets.masks.names import clone


def unsettle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics, gains and biases as training leaves them: not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.2)
                layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
                layer.bias.copy_(torch.randn(layer.num_features, generator=generator) * 0.2)
                layer.weight.copy_(torch.randn(layer.num_features, generator=generator))
    return model


def kill_channels(model: nn.Module, share: float, seed: int = 0) -> gt.Masks:
    """Masks in which random channels are dead as a channel ticket has them: filters, biases, gains."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name, layer in model.named_modules():
        weight = next((n for n, _ in layer.named_parameters(recurse=False) if n.startswith("weight")), None)
        if weight is None:
            continue
        tensor = dict(layer.named_parameters(recurse=False))[weight]
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        alive = torch.from_numpy(rng.random(tensor.shape[axis]) >= share)
        shape = [-1 if a == axis else 1 for a in range(tensor.dim())]
        masks[f"{name}.{weight}"] = alive.reshape(shape).expand(tensor.shape).clone()
        if layer.bias is not None:
            masks[f"{name}.bias"] = alive
    return gt.Masks(masks)


def assert_same(masked: nn.Module, small: nn.Module, inputs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for component, example in inputs.items():
        nets = (getattr(masked, component).eval(), getattr(small, component).eval())
        with torch.no_grad():
            outputs = [Example.of(example, component)(net) for net in nets]
        outputs = [out if isinstance(out, tuple) else (out,) for out in outputs]
        for expected, found in zip(*outputs, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1.0, float(expected.abs().max())))


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def family(name: str, side: int = 16, channels: int = 1):
    torch.manual_seed(0)
    small = {key: value for key, value in {"width": 8, "latent": 6}.items() if key in models.options_of(name)}
    model = unsettle(models.CATALOGUE[name](side, channels, **small))
    images, latents = torch.rand(3, channels, side, side) * 2 - 1, torch.randn(3, 6)
    if hasattr(model, "denoiser"):
        return model, {"denoiser": (images, torch.tensor([3, 500, 900]))}
    if hasattr(model, "generator"):
        return model, {"generator": latents, "discriminator": images}
    with torch.no_grad():
        codes = model.eval().encoder(images)  # a map of places in some
    return model.train(), {"encoder": images, "decoder": codes if isinstance(codes, Tensor) else codes[0]}


@pytest.mark.filterwarnings("ignore:component")
@pytest.mark.parametrize("sparsity", [0.0, 0.8, 0.97, 0.995])
@pytest.mark.parametrize("name", list(models.CATALOGUE))
def test_unstructured_tickets_of_every_model(name, sparsity):
    model, inputs = family(name)
    masks = gt.prune(gt.magnitude(model), to_sparsity=sparsity, scope="layer")
    small = shrink(model, masks, inputs)
    assert_same(masks.apply_(clone(model)), small, inputs)
    if sparsity == 0.0:
        assert size(small) == size(model)
    if sparsity == 0.995:
        group_norms = name in ("unet", "kl-autoencoder")  # which keep their channels
        assert size(small) < (1.0 if group_norms else 0.7) * size(model)


@pytest.mark.filterwarnings("ignore:component")
@pytest.mark.parametrize("side", [8, 28, 32])
@pytest.mark.parametrize("name", ["conv-autoencoder", "conv-vae", "dcgan"])
def test_channel_tickets_of_every_model_and_size(name, side):
    model, inputs = family(name, side, channels=3)
    masks = kill_channels(model, 0.5)
    outputs = [n for n in masks if n.startswith(("encoder.head", "discriminator.head"))]
    last = [n for n in masks if n.startswith(("decoder.layers", "generator.layers"))][-2:]
    masks = masks.replace({n: torch.ones(masks.shapes[n], dtype=torch.bool) for n in (*outputs, *last)})
    small = shrink(model, masks, inputs)
    assert_same(masks.apply_(clone(model)), small, inputs)
    assert size(small) < 0.8 * size(model)


def test_the_model_and_its_modes_are_left_as_they_were():
    model, inputs = family("dcgan")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    small = shrink(model, kill_channels(model, 0.3), {"generator": inputs["generator"]})
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.generator.training
    assert small.training
    assert size(small.discriminator) == size(model.discriminator)


class Residual(nn.Module):
    """Blocks with additions, concatenations, pooling, a reshape to features and back."""

    def __init__(self, width: int, plan: list[str], norm: bool, wrap=lambda layer: layer):
        super().__init__()
        self.stem = wrap(nn.Conv2d(2, width, 3, padding=1))
        self.plan = plan
        self.blocks = nn.ModuleList()
        for kind in plan:
            middle = 2 * width if kind == "cat" else width
            self.blocks.append(
                nn.Sequential(
                    wrap(nn.Conv2d(width, width, 3, padding=1, bias=not norm)),
                    nn.BatchNorm2d(width) if norm else nn.Identity(),
                    nn.LeakyReLU(0.2),
                    wrap(nn.Conv2d(width, width, 1)),
                )
            )
            self.blocks.append(wrap(nn.Conv2d(middle, width, 1)))
        self.down = nn.Linear(width * 16, 12)
        self.up = nn.Linear(12, width * 16)
        self.shape = nn.Unflatten(1, (width, 4, 4))
        self.out = nn.ConvTranspose2d(width, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        for index, kind in enumerate(self.plan):
            branch, mix = self.blocks[2 * index], self.blocks[2 * index + 1]
            if kind == "add":
                h = mix(h + branch(h))
            elif kind == "cat":
                h = mix(torch.cat([h, branch(h)], dim=1))
            elif kind == "skip":
                h = h + branch(h) * 0.5
            else:
                h = mix(nn.functional.silu(branch(h)))
        h = nn.functional.avg_pool2d(h, 2)
        h = self.up(torch.tanh(self.down(h.flatten(1))))
        return self.out(self.shape(h))


class One(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net


@settings(max_examples=30)
@given(
    width=st.integers(2, 6),
    plan=st.lists(st.sampled_from(["add", "cat", "skip", "plain"]), min_size=1, max_size=3),
    norm=st.booleans(),
    structured=st.booleans(),
    share=st.sampled_from([0.3, 0.6, 0.9]),
    wrapper=st.sampled_from(["none", "old", "new"]),
    seed=st.integers(0, 1000),
)
def test_random_nets(width, plan, norm, structured, share, wrapper, seed):
    torch.manual_seed(seed)
    wrap = {"none": lambda layer: layer, "old": nn.utils.spectral_norm, "new": new_spectral_norm}[wrapper]
    model = unsettle(One(Residual(width, plan, norm, wrap)), seed)
    inputs = {"net": torch.randn(3, 2, 8, 8)}
    model.net(inputs["net"])  # spectral norm has iterated once, as in training
    if structured and wrapper != "new":
        masks = kill_channels(model, share, seed)
    else:
        masks = gt.prune(gt.random_scores(model, seed), to_sparsity=share, scope="layer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = masks.apply_(clone(model))
        with torch.no_grad():
            if not bool(expected.net.eval()(inputs["net"]).isfinite().all()):
                return  # spectral norm of a matrix of zeros is 0 / 0 in the masked net already
        small = shrink(model, masks, inputs)
    assert_same(expected, small, inputs)


def test_dead_inputs_are_folded_into_the_next_bias():
    """A hidden unit with no live input is a constant; dropping it must not drop what it adds."""
    model = One(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False)))
    masks = gt.Masks.dense(model)
    mask = masks["net.0.weight"]
    mask[1] = False
    masks = masks.replace({"net.0.weight": mask})
    small = shrink(model, masks, {"net": torch.randn(3, 4)})
    assert small.net[0].weight.shape == (2, 4)
    constant = torch.tanh(model.net[0].bias[1]) * model.net[2].weight[:, 1]
    torch.testing.assert_close(small.net[2].bias.detach(), constant.detach())


def test_a_constant_under_zero_padding_is_not_folded():
    """At the border a padded convolution sees fewer copies of it: removing it would be wrong, so it stays."""
    model = One(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)))
    masks = gt.Masks.dense(model)
    mask = masks["net.0.weight"]
    mask[1] = False
    masks = masks.replace({"net.0.weight": mask})
    example = {"net": torch.randn(2, 1, 6, 6)}
    small = shrink(model, masks, example)
    assert small.net[0].out_channels == 3
    assert_same(masks.apply_(clone(model)), small, example)
    without_bias = masks.replace({"net.0.bias": torch.tensor([True, False, True])})
    assert shrink(model, without_bias, example).net[0].out_channels == 2


def test_the_last_channel_of_a_place_stays():
    model = One(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    masks = gt.Masks({"net.0.weight": torch.zeros(3, 4, dtype=torch.bool)})
    with pytest.warns(UserWarning, match="one is kept"):
        small = shrink(model, masks, {"net": torch.randn(3, 4)})
    assert small.net[0].out_features == 1
    assert_same(masks.apply_(clone(model)), small, {"net": torch.randn(5, 4)})


def test_what_is_not_understood_stays_whole():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 1, 3)
            self.norm = nn.GroupNorm(2, 6)

        def forward(self, x):
            return self.second(self.norm(self.first(x)).roll(1, dims=1))

    model = One(Odd())
    masks = kill_channels(model, 0.5).replace({"net.norm.weight": torch.ones(6, dtype=torch.bool)})
    small = shrink(model, masks, {"net": torch.randn(2, 1, 8, 8)})
    assert small.net.first.out_channels == 6


def test_a_hard_coded_number_of_channels_is_kept():
    class Hard(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.out = nn.Linear(3, 6 * 4), nn.Conv2d(6, 1, 1)

        def forward(self, z):
            return self.out(torch.relu(self.up(z)).view(-1, 6, 2, 2))

    model = One(Hard())
    mask = torch.ones(24, 3, dtype=torch.bool)
    mask[:8] = False
    masks = gt.Masks({"net.up.weight": mask, "net.up.bias": mask[:, 0]})
    example = {"net": torch.randn(2, 3)}
    assert_same(masks.apply_(clone(model)), shrink(model, masks, example), example)


def test_code_that_cannot_be_traced_names_why_and_offers_the_masks():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    line = r"return self\.layer\(x\) if x\.sum\(\) > 0 else x"
    with pytest.raises(Untraceable, match=rf"component 'net' cannot be traced at `{line}` in .*masks\.hold"):
        trace(One(Branching()), "net", torch.randn(2, 3))
    wrong_size = One(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    with pytest.raises(Untraceable, match=r"at operation 1 \(Linear\) \(RuntimeError: .*masks\.hold") as caught:
        trace(wrong_size, "net", torch.randn(2, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tokens", [(4,), (4, 5), ()])
def test_the_channels_of_a_linear_layer_are_on_the_last_axis(tokens):
    """(batch, tokens, features), of whatever rank; but for those of the output."""
    model = One(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)))
    masks = kill_channels(model, 0.5)
    masks = masks.replace({name: torch.ones_like(masks[name]) for name in ("net.4.weight", "net.4.bias")})
    example = {"net": torch.randn(2, *tokens, 3)}
    small = shrink(model, masks, example)
    kept = [int(masks[f"net.{layer}.bias"].sum()) for layer in (0, 2)]
    assert [small.net[layer].out_features for layer in (0, 2)] == kept
    assert_same(masks.apply_(clone(model)), small, example)


def test_training_goes_on_in_the_shrunk_net_as_in_the_masked_one():
    """Same loss, same optimiser state: the same weights after some steps, on both components at once."""
    model, inputs = family("linear-autoencoder", side=8)
    masks = kill_channels(model, 0.4)
    keep = [n for n in masks if n.startswith(("encoder.5", "decoder.4"))]
    masks = masks.replace({n: torch.ones(masks.shapes[n], dtype=torch.bool) for n in keep})
    images = torch.rand(16, 1, 8, 8) * 2 - 1

    def steps(net, adam, held, count):
        with held.hold(net, adam):
            for _ in range(count):
                adam.zero_grad()
                (net(images) - images).square().mean().backward()
                adam.step()

    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    steps(model, adam, masks, 5)
    shrinking = Shrinking(model, masks, inputs)
    small = shrinking.model
    assert size(small) < 0.8 * size(model)
    small_adam = torch.optim.Adam(small.parameters(), lr=1e-2)
    shrinking.carry_state(adam, small_adam, model)
    steps(model, adam, masks, 10)
    steps(small, small_adam, shrinking.masks, 10)
    torch.testing.assert_close(small(images), model(images), rtol=1e-4, atol=1e-5)

"""`accelerate`: the same training on live weights alone, and the dense model back afterwards."""

import contextlib
import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.prune import l1_unstructured

import gentickets as gt
from gentickets import models
from gentickets.compiled import missing
from gentickets.errors import GenticketsError, MaskError
from gentickets.masks.names import clone, named_state
from gentickets.objectives import ELBO, Adversarial, Autoencoding
from gentickets.sparse import execution
from gentickets.sparse.layers import SparseLayer

pytestmark = pytest.mark.skipif(missing() is not None, reason="no kernels were compiled")


def every_layer(model, work, costs):
    return {layer: cost.ways[0] for layer, cost in costs.items()}


accelerate = functools.partial(gt.accelerate, choose=every_layer)
"""Test models are small; which layers are worth it has tests of its own."""


def family(name):
    torch.manual_seed(1)
    images = torch.rand(16, 1, 16, 16) * 2 - 1
    if name == "ae":
        return models.linear_autoencoder(16, 1, hidden=[64, 32], latent=8), Autoencoding(), images
    if name == "vae":
        return models.conv_vae(16, 1, width=8, latent=4), ELBO(4), images
    make = models.sngan if name == "sngan" else models.dcgan
    return make(16, 1, width=8, latent=6), Adversarial(6), images


def trained(model, masks, objective, images, steps):
    """Trains in place under `masks`; all losses."""
    parts = {name: getattr(model, name) for name in objective.components}
    optimizers = {name: torch.optim.AdamW(part.parameters(), lr=1e-3) for name, part in parts.items()}
    rng, losses = torch.Generator().manual_seed(0), []
    with masks.hold(model, *optimizers.values()):
        for _ in range(steps):
            for components, loss in objective.losses(model, images, rng):
                names = (components,) if isinstance(components, str) else components
                for name in names:
                    optimizers[name].zero_grad()
                loss.backward(inputs=[p for name in names for p in parts[name].parameters()])
                for name in names:
                    optimizers[name].step()
                losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("name", "steps"), [("ae", 100), ("vae", 100), ("gan", 20), ("sngan", 20)])
@pytest.mark.parametrize("sparsity", [0.9, 0.99])
def test_training_is_that_of_the_masked_model(name, steps, sparsity):
    model, objective, images = family(name)
    masks = gt.prune(gt.magnitude(model), to_sparsity=sparsity, scope="layer")
    fast = clone(model)
    expected = trained(model, masks, objective, images, steps)
    with accelerate(fast, masks, objective.example_inputs(fast, images)) as accelerated:
        assert all(choice.sparse for choice in accelerated.choices)
        assert not len(accelerated.masks)
        found = trained(fast, accelerated.masks, objective, images, steps)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-4)
    masks.audit(fast)
    if name == "ae":  # Adam's first steps are signs of gradients: in deeper nets rounding turns a few of them
        for key, tensor in named_state(model).items():
            torch.testing.assert_close(named_state(fast)[key], tensor, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["ae", "vae", "gan", "sngan"])
def test_what_goes_in_comes_out_in_its_place(name):
    model, objective, images = family(name)
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.8, scope="layer")
    masks.apply_(model)
    before = {key: tensor.clone() for key, tensor in named_state(model).items()}
    layers, tensors = dict(model.named_modules()), dict(model.named_parameters())
    model.eval()
    given = objective.example_inputs(model, images)
    part = next(iter(given))
    expected = getattr(model, part)(given[part])
    with contextlib.suppress(KeyError), accelerate(model, masks, given):
        torch.testing.assert_close(getattr(model, part)(given[part]), expected)
        assert not model.training
        raise KeyError("whatever goes wrong in the user's loop")
    assert dict(model.named_modules()) == layers
    assert all(after is tensors[key] for key, after in model.named_parameters())
    assert {key: tensor.shape for key, tensor in named_state(model).items()} == {k: t.shape for k, t in before.items()}
    assert all(torch.equal(tensor, before[key]) for key, tensor in named_state(model).items())


def test_only_live_weights_have_memory():
    model, objective, images = family("ae")
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.95, scope="layer")
    with accelerate(model, masks, objective.example_inputs(model, images)) as fast:
        optimizer = torch.optim.Adam(model.parameters())
        objective_loss = next(objective.losses(model, images, torch.Generator()))[1]
        objective_loss.backward()
        optimizer.step()
        weights = sum(p.numel() for key, p in model.named_parameters() if not key.endswith("bias"))
        assert weights == masks.alive
        moments = [v for p, state in optimizer.state.items() for v in state.values() if v.shape == p.shape]
        biases = sum(p.numel() for key, p in model.named_parameters() if key.endswith("bias"))
        assert sum(m.numel() for m in moments) == 2 * (masks.alive + biases)
        assert fast.index_bytes <= 20 * masks.alive + 50_000


def test_a_copy_is_restored_by_itself():
    model, objective, images = family("gan")
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.8, scope="layer")
    masks.apply_(model)
    expected = {key: tensor.clone() for key, tensor in named_state(model).items()}
    with accelerate(model, masks, objective.example_inputs(model, images)):
        average = copy.deepcopy(model)
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, SparseLayer):
                    layer.values.zero_()
    gt.restore(average)
    for key, tensor in named_state(average).items():
        assert torch.equal(tensor, expected[key]), key


class Odd(nn.Module):
    """Layers that have no sparse form, each for a reason."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(3, 3, 3, padding="same"),
            weight_norm(nn.Conv2d(3, 3, 3, padding=1), dim=1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3, padding=1),
        )
        self.part[3].register_forward_hook(lambda *_: None)
        self.part[4].weight = self.part[5].weight
        self.other = nn.Linear(2, 2)


def test_what_cannot_be_sparse_stays_dense_and_says_why():
    model = Odd()
    masks = gt.Masks.dense(model)
    fast = accelerate(model, masks, {"part": torch.randn(2, 3, 8, 8)})
    why = {choice.layer: choice.why for choice in fast.choices if not choice.sparse}
    assert why["part.0"] == why["part.1"] == "its padding is not by numbers of zeros"
    assert why["part.3"] == "it has hooks"
    assert why["part.4"] == "its weight is shared with another layer"
    assert why["other"] == "not called as a layer on the example inputs"
    assert why["part.2"] == "ParametrizedConv2d has no sparse form"
    assert set(fast.masks) == set(masks)
    assert not fast


def test_without_kernels_all_stays_dense(monkeypatch):
    model, objective, images = family("ae")
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.95, scope="layer")
    monkeypatch.setattr(execution, "missing", lambda: "no compiler")
    with accelerate(model, masks, objective.example_inputs(model, images)) as fast:
        assert {choice.why for choice in fast.choices} == {"no compiler"}
        assert fast.masks == masks


def test_half_precision_models_stay_dense():
    model, objective, images = family("ae")
    model.bfloat16()
    masks = gt.Masks.dense(model)
    fast = accelerate(model, masks, objective.example_inputs(model, images.bfloat16()))
    assert {choice.why for choice in fast.choices} == {"in bfloat16"}
    assert repr(fast).endswith(" layers on their live weights: in bfloat16)")


def test_misuse_is_told():
    model, objective, images = family("ae")
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.9, scope="layer")
    given = objective.example_inputs(model, images)
    with pytest.raises(MaskError, match="no component 'generator'"):
        accelerate(model, masks, {"generator": images})
    with accelerate(model, masks, given), pytest.raises(MaskError):
        accelerate(model, masks, given)
    accelerate(model, masks, given)
    with pytest.raises(MaskError, match="accelerated already"):
        accelerate(model, gt.Masks({}), given)


def test_lanes_change_no_number():
    for shape in ((5, 3), (5, 2, 3, 4)):
        images = torch.randn(shape)
        laid = gt.lanes(images)
        assert torch.equal(laid, images)
        assert laid.stride(0) == 1


class Peculiar(nn.Module):
    """Components whose code asks more of a layer than to be called."""

    def __init__(self, way):
        super().__init__()
        self.part = way()


class AsksForItsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, inputs):
        return self.layer(inputs.to(self.layer.weight.dtype))


class JoinsTheBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 2)

    def forward(self, images):
        return self.layer(images).view(-1)


class CallsByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.ConvTranspose2d(2, 3, 2, stride=2)

    def forward(self, images):
        return self.layer(images, output_size=(7, 7))


@pytest.mark.parametrize(
    ("way", "shape"), [(AsksForItsWeight, (5, 6)), (JoinsTheBatch, (5, 2, 4, 4)), (CallsByKeyword, (5, 2, 3, 3))]
)
def test_a_model_whose_code_cannot_run_with_sparse_layers_stays_dense(way, shape):
    model = Peculiar(way)
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.8)
    layers, weights = dict(model.named_modules()), {name: p.clone() for name, p in model.named_parameters()}
    masks.apply_(model)
    fast = accelerate(model, masks, {"part": torch.randn(shape)})
    assert not fast
    assert all("does not run with sparse layers" in choice.why for choice in fast.choices)
    assert fast.masks == masks
    assert dict(model.named_modules()) == layers
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, weights[name] * masks[name] if name in masks else weights[name])


def test_an_optimiser_from_before_is_refused():
    model, objective, images = family("ae")
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.9, scope="layer")
    optimizer = torch.optim.Adam(model.parameters())
    with (
        accelerate(model, masks, objective.example_inputs(model, images)) as fast,
        pytest.raises(MaskError, match="make it after"),
    ):
        fast.masks.hold(model, optimizer)


def test_what_is_loaded_or_frozen_within_stays_so():
    model, objective, images = family("ae")
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.9, scope="layer")
    with accelerate(model, masks, objective.example_inputs(model, images)):
        state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        model.requires_grad_(False)
    assert not any(p.requires_grad for p in model.parameters())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, state[name]), name
    masks.audit(model)


def test_an_interruption_while_swapping_loses_nothing(monkeypatch):
    model, objective, images = family("ae")
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.9, scope="layer")
    masks.apply_(model)
    before = {name: tensor.clone() for name, tensor in named_state(model).items()}
    release = SparseLayer.release
    calls = []

    def interrupted(layer):
        release(layer)
        calls.append(layer)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(SparseLayer, "release", interrupted)
    with pytest.raises(KeyboardInterrupt):
        accelerate(model, masks, objective.example_inputs(model, images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_state(model).items())


def test_a_copied_component_that_is_one_layer_is_restored():
    model = Peculiar(lambda: nn.Linear(6, 4))
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.8)
    with accelerate(model, masks, {"part": torch.randn(5, 6)}):
        copied = gt.restore(copy.deepcopy(model.part))
        assert type(copied) is nn.Linear
        torch.testing.assert_close(copied(torch.ones(2, 6)), model.part(torch.ones(2, 6)))


def test_a_layer_without_a_live_weight_is_trained_like_the_others():
    model, objective, images = family("ae")
    masks = gt.Masks({**gt.Masks.dense(model), "encoder.3.weight": torch.zeros(32, 64, dtype=torch.bool)})
    dense = clone(model)
    expected = trained(dense, masks, objective, images, 5)
    with accelerate(model, masks, objective.example_inputs(model, images)) as fast:
        assert "encoder.3" in [choice.layer for choice in fast.choices if choice.sparse]
        found = trained(model, fast.masks, objective, images, 5)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_a_frozen_norm_stays_frozen():
    model = Peculiar(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8)))
    model.train().part[1].eval()
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    with accelerate(model, masks, {"part": torch.randn(4, 8)}):
        assert not model.part[1].training
        assert model.part[0].training
    assert not model.part[1].training


def test_a_layer_restored_by_itself_keeps_its_mode():
    model = Peculiar(lambda: nn.Sequential(spectral_norm(nn.Linear(8, 8))))
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    with accelerate(model, masks, {"part": torch.randn(4, 8)}):
        layer = gt.restore(copy.deepcopy(model.part[0]).eval())
    assert not layer.training
    assert not layer.parametrizations.weight[0].training


class Judges(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs):
        scores = self.layer(inputs)
        return scores, scores > 0


def test_outputs_that_are_no_floats_are_not_compared():
    model = Peculiar(Judges)
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    with accelerate(model, masks, {"part": torch.randn(4, 8)}) as fast:
        assert fast


class Picky(nn.Module):
    """Takes twice what its layer gives, where that is not a plain one."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.layer, self.scale = nn.Linear(64, 64), scale

    def forward(self, inputs):
        out = self.layer(inputs) * self.scale
        return out if type(self.layer) is nn.Linear else 2 * out


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_model_that_gives_something_else_with_sparse_layers_stays_dense(scale, gradients):
    model = nn.ModuleDict({"net": Picky(scale)})
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.9)
    with torch.set_grad_enabled(gradients), accelerate(model, masks, {"net": torch.randn(8, 64)}) as fast:
        assert [(choice.sparse, choice.why) for choice in fast.choices] == [
            (False, "the model gives something else with sparse layers")
        ]
        assert type(model["net"].layer) is nn.Linear


@dataclasses.dataclass
class Sample:
    sample: torch.Tensor


class Denoiser(nn.Module):
    """Takes images, steps and, if there is one, a condition; gives a dataclass, wrong where asked to be."""

    def __init__(self, honest=True):
        super().__init__()
        self.before, self.after, self.honest = nn.Linear(6, 8), nn.Linear(8, 6), honest

    def forward(self, images, step, condition=None):
        hidden = self.before(images).relu() + step[:, None]
        out = self.after(hidden if condition is None else hidden + condition)
        return Sample(out if self.honest or type(self.after) is nn.Linear else -out)


IMAGES, STEPS = torch.linspace(-1, 1, 30).reshape(5, 6), torch.arange(5)
GIVEN = {
    "tuple": (IMAGES, STEPS),
    "list": [IMAGES, STEPS, None],
    "keywords": {"step": STEPS, "images": IMAGES, "condition": torch.ones(8)},
}


@pytest.mark.parametrize("way", GIVEN)
@pytest.mark.parametrize("honest", [True, False])
def test_components_take_several_arguments_and_what_they_give_is_compared(way, honest):
    torch.manual_seed(0)
    model = nn.ModuleDict({"unet": Denoiser(honest)})
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    with accelerate(model, masks, {"unet": GIVEN[way]}) as fast:
        assert {choice.sparse for choice in fast.choices} == {honest}
        if not honest:
            assert {choice.why for choice in fast.choices} == {"the model gives something else with sparse layers"}


def test_a_network_by_itself_takes_its_bare_input():
    torch.manual_seed(0)
    net = Denoiser()
    masks = gt.prune(gt.magnitude(net), to_sparsity=0.5)
    masks.apply_(net)
    expected = net(IMAGES, STEPS).sample
    with accelerate(net, masks, (IMAGES, STEPS)) as fast:
        assert [(choice.layer, choice.sparse) for choice in fast.choices] == [("before", True), ("after", True)]
        torch.testing.assert_close(net(IMAGES, STEPS).sample, expected)
    assert type(net.before) is nn.Linear


def test_a_network_that_is_one_layer_is_not_swapped_and_says_so():
    layer = nn.Linear(6, 4)
    masks = gt.prune(gt.magnitude(layer), to_sparsity=0.5)
    for model, given in ((layer, torch.ones(3, 6)), ({"net": layer}, {"net": torch.ones(3, 6)})):
        named = masks if model is layer else gt.Masks({"net.weight": masks["weight"]})
        with accelerate(model, named, given) as fast:
            assert [choice.why for choice in fast.choices] == [
                "it is the network itself, which is not swapped in place"
            ]
        assert layer(torch.ones(3, 6)).shape == (3, 4)


def test_a_dict_of_networks_is_swapped_within_them():
    torch.manual_seed(0)
    gan = {"generator": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), "discriminator": Denoiser()}
    masks = gt.prune(gt.magnitude(gan), to_sparsity=0.5)
    masks.apply_(gan)
    expected = gan["generator"](torch.ones(3, 4))
    fast = accelerate(gan, masks, {"generator": torch.ones(3, 4), "discriminator": (IMAGES, STEPS)})
    assert all(choice.sparse for choice in fast.choices)
    torch.testing.assert_close(gan["generator"](torch.ones(3, 4)), expected)
    gt.restore(gan)
    assert type(gan["generator"][0]) is type(gan["discriminator"].before) is nn.Linear


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, inputs):
        return self.layer(inputs).argmax(1)


def test_where_nothing_can_be_compared_nothing_is_swapped():
    model = nn.ModuleDict({"quantiser": Tokens()})
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    with accelerate(model, masks, {"quantiser": IMAGES}) as fast:
        assert not fast
        assert all("component 'quantiser' gives no real numbers" in choice.why for choice in fast.choices)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_model_is_tried_forward_and_can_be_trained_afterwards(mode):
    torch.manual_seed(0)
    model = nn.ModuleDict({"net": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))})
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    masks.apply_(model)
    expected = model["net"](IMAGES)
    with mode():
        with accelerate(model, masks, {"net": IMAGES.clone()}) as fast:
            assert [(choice.sparse, choice.why) for choice in fast.choices] == [(True, "fewer multiplications")] * 2
            torch.testing.assert_close(model["net"](IMAGES), expected)
        accelerate(model, masks, {"net": IMAGES})
    model["net"](IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    gt.restore(model)
    model["net"](IMAGES).sum().backward()


def test_why_a_layer_stays_dense_names_the_batch_and_what_for():
    model = nn.ModuleDict({"net": nn.Linear(8, 8)})
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    for gradients, purpose in ((True, "in training"), (False, "without gradients")):
        with torch.set_grad_enabled(gradients), gt.accelerate(model, masks, {"net": torch.ones(3, 8)}) as fast:
            (choice,) = fast.choices
            assert choice.why == f"dense is faster at density 0.50 and a batch of 3, {purpose}"


def convolutional():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 4, 2, 1))
    return nn.ModuleDict({"net": net}), torch.randn(5, 3, 6, 6)


@pytest.mark.parametrize(
    "change",
    [nn.Module.bfloat16, nn.Module.half, lambda model: model.to("meta"), lambda model: model.to(torch.float16)],
)
def test_an_accelerated_model_is_not_converted_to_what_it_cannot_run_in(change):
    model, images = convolutional()
    with (
        accelerate(model, gt.prune(gt.magnitude(model), to_sparsity=0.5), {"net": images}),
        pytest.raises(MaskError, match=r"restore\(model\) first"),
    ):
        change(model)
    assert model["net"](images).shape == (5, 2, 12, 12)


def test_an_accelerated_model_runs_in_double_precision():
    model, images = convolutional()
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    expected = model["net"](images)
    with accelerate(model, masks, {"net": images}):
        expected = model["net"](images)
        torch.testing.assert_close(model.double()["net"](images.double()).float(), expected)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "way",
    [
        lambda net, images: torch.export.export(net, (images,)),
        lambda net, images: torch.func.grad(lambda inputs: net(inputs).sum())(images),
        lambda net, images: torch.func.vmap(lambda image: net(image[None]))(images),
        lambda net, images: torch.jit.trace(net, images),
    ],
)
def test_an_accelerated_model_is_not_exported_nor_transformed(way):
    model, images = convolutional()
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    with (
        accelerate(model, masks, {"net": images}),
        pytest.raises(MaskError, match=r"restore\(model\) first"),
    ):
        way(model["net"], images)
    way(model["net"], images)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_traced_linear_layers_take_other_batches_and_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with accelerate(net, gt.prune(gt.magnitude(net), to_sparsity=0.5), IMAGES):
        traced = torch.jit.trace(net, IMAGES)
        with torch.no_grad():
            net[0].values.mul_(2)
        torch.testing.assert_close(traced(IMAGES[:3]), net(IMAGES[:3]))


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 10, 16, 25])
def test_batches_of_any_size_go_through_what_was_laid_out_for_another(batch):
    model, images = convolutional()
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    masks.apply_(model)
    given_images = torch.randn(batch, 3, 6, 6)
    expected = model["net"](given_images)
    with accelerate(model, masks, {"net": images}) as fast:
        torch.testing.assert_close(model["net"](given_images), expected)
        torch.testing.assert_close(model["net"](fast.laid_out(given_images)), expected)
    assert fast.laid_out(torch.ones(3)).shape == (3,)


def test_a_choice_that_says_no_way_is_one_line():
    model, _, images = family("ae")
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.9)
    with pytest.raises(GenticketsError, match="choose gave a set: give"):
        gt.accelerate(model, masks, {"encoder": images}, choose=lambda model, work, costs: set(costs))


@pytest.mark.parametrize("norm", [None, spectral_norm, weight_norm])
def test_a_look_in_the_middle_of_an_accumulated_step_loses_no_gradient(norm):
    torch.manual_seed(0)
    layers = [nn.Linear(16, 32), nn.Linear(32, 16)]
    net = nn.Sequential(layers[0] if norm is None else norm(layers[0]), nn.ReLU(), layers[1]).eval()
    model, x = nn.ModuleDict({"g": net}), torch.randn(8, 16)
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.8, scope="layer")
    masks.apply_(model)
    net(x).square().mean().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    with torch.no_grad(), accelerate(model, masks, {"g": x}) as fast:
        assert fast
        net(x)
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in model.named_parameters())

    twin = clone(model)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.grad = one.grad.clone()
    twin["g"](2 * x).square().mean().backward()
    with accelerate(model, masks, {"g": x}):
        net(2 * x).square().mean().backward()
    for name, parameter in model.named_parameters():
        alive = masks[name] if name in masks else torch.ones_like(parameter, dtype=torch.bool)
        torch.testing.assert_close(parameter.grad[alive], twin.get_parameter(name).grad[alive])

    with accelerate(model, masks, {"g": x}):
        model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


ASKING = {
    "the layer": lambda net: net[0].weight,
    "whether there is one": lambda net: hasattr(net[0], "weight"),
    "all linear layers": lambda net: [layer.weight for layer in net if isinstance(layer, nn.Linear)],
    "a fresh draw": lambda net: copy.deepcopy(net)[0].reset_parameters(),
    "torch's pruning": lambda net: l1_unstructured(copy.deepcopy(net)[0], "weight", 0.5),
}


@pytest.mark.parametrize("way", ASKING)
def test_whoever_asks_a_sparse_layer_for_its_weight_is_told(way):
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    masks = gt.prune(gt.magnitude(net), fraction=0.5, scope="layer")
    with accelerate(net, masks, torch.randn(3, 6)):
        with pytest.raises(MaskError, match=r"SparseLinear \(4x6\) has no `weight`.*restore\(model\).*=dense"):
            ASKING[way](net)
        assert not hasattr(net[0], "other")
    ASKING[way](net)


def test_weight_decay_by_the_number_of_axes_reaches_live_weights_that_are_named():
    def net():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    x, dense, fast_net = torch.randn(5, 6), net(), net()
    masks = gt.prune(gt.magnitude(dense), fraction=0.5, scope="layer")

    def decayed(model, live):
        return [weight for name, weight in model.named_parameters() if weight.dim() >= 2 or name in live]

    def step(model, weights):
        optimizer = torch.optim.SGD(weights, lr=0.1, weight_decay=0.5)
        model(x).square().mean().backward()
        optimizer.step()

    step(masks.apply_(dense), decayed(dense, ()))
    with accelerate(fast_net, masks, x) as fast:
        step(fast_net, decayed(fast_net, {f"{choice.layer}.values" for choice in fast.choices if choice.sparse}))
    masks.apply_(dense)
    for one, other in zip(dense.parameters(), fast_net.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "read",
    [gt.channel_groups, lambda net, inputs: gt.Masks.dense(net), lambda net, inputs: gt.magnitude(net)],
    ids=["channel_groups", "Masks.dense", "magnitude"],
)
def test_what_reads_dense_weights_says_that_they_are_not_there(read):
    """Of an accelerated model the layers that stayed dense would pass for all."""
    net = nn.ModuleDict({"net": nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))})
    masks, inputs = gt.prune(gt.magnitude(net), fraction=0.9), {"net": torch.randn(8, 64)}
    with (
        accelerate(net, masks, inputs),
        pytest.raises(MaskError, match=r"'net\.0' runs on its live weights alone, .*: leave accelerate"),
    ):
        read(net, inputs)
    read(net, inputs)

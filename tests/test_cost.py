"""Costs against numbers that were worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gentickets import MaskError, Masks, models
from gentickets.masks.names import named_state
from gentickets.metrics.cost import cost, training_flops
from gentickets.objectives import Adversarial, Autoencoding


def parts(**components: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, component in components.items():
        model.add_module(name, component)
    return model


def keep_first(model: nn.Module, alive: int) -> Masks:
    """Masks over all prunable weights of which the first `alive` of each tensor live."""
    dense = Masks.dense(model)
    return Masks({name: torch.arange(mask.numel()).reshape(mask.shape) < alive for name, mask in dense.items()})


def test_convolution_with_stride_padding_and_groups() -> None:
    model = parts(net=nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2))
    found = cost(model, {"net": torch.zeros(5, 4, 9, 9)}, keep_first(model, 10))
    # 6 x (4/2) x 3 x 3 = 108 weights, 5 x 5 places, 6 biases.
    assert found.flops_dense == 2 * 108 * 25
    assert found.flops_sparse == 2 * 10 * 25
    assert (found.parameters, found.alive_parameters) == (114, 16)
    assert found.bytes_dense == 4 * 114
    assert found.bytes_sparse == 4 * 16 + 14  # 108 bits fill 14 bytes


def test_transposed_convolution_costs_its_input_places() -> None:
    model = parts(net=nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1, bias=False))
    found = cost(model, {"net": torch.zeros(2, 3, 7, 6)}, keep_first(model, 24))
    assert found.flops_dense == 2 * (3 * 5 * 4 * 4) * (7 * 6)
    assert found.flops_sparse == 2 * 24 * (7 * 6)


def test_linear_over_a_sequence_and_norm() -> None:
    model = parts(net=nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3)))
    found = cost(model, {"net": torch.zeros(2, 4, 8)})
    assert found.flops_dense == found.flops_sparse == 2 * 8 * 3 * 4 + 2 * 4 * 3
    assert found.bytes_dense == found.bytes_sparse == 4 * (8 * 3 + 3 + 6)


def test_one_dimension_and_three() -> None:
    one, three = nn.Conv1d(2, 3, 5), nn.ConvTranspose3d(2, 3, 2)
    found = cost(parts(a=one, b=three), {"a": torch.zeros(1, 2, 9), "b": torch.zeros(1, 2, 3, 3, 3)})
    assert found.components["a"].flops_dense == 2 * (2 * 3 * 5) * 5
    assert found.components["b"].flops_dense == 2 * (2 * 3 * 8) * 27


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    groups=st.integers(1, 2),
    batch=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_any_convolution_is_counted_weight_by_weight(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    padding: int,
    groups: int,
    batch: int,
    transposed: bool,
) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(inputs * groups, outputs * groups, kernel, stride, padding, groups=groups, bias=False)
    example = torch.zeros(batch, inputs * groups, 6, 7)
    places = (example if transposed else layer(example))[0, 0].numel()
    model = parts(net=layer)
    found = cost(model, {"net": example}, keep_first(model, 1))
    assert found.flops_dense == 2 * places * outputs * groups * inputs * kernel * kernel
    assert found.flops_sparse == 2 * places


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_weights_under_spectral_norm_are_found(norm) -> None:
    model = parts(critic=nn.Sequential(norm(nn.Linear(6, 4, bias=False))))
    found = cost(model, {"critic": torch.zeros(3, 6)}, keep_first(model, 7))
    assert (found.flops_dense, found.flops_sparse) == (2 * 24, 2 * 7)
    assert found.alive_parameters == 7


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_under_weight_norm_are_found(norm) -> None:
    model = parts(critic=norm(nn.Linear(6, 4, bias=False)))
    found = cost(model, {"critic": torch.zeros(3, 6)}, keep_first(model, 7))
    assert (found.flops_dense, found.flops_sparse) == (2 * 24, 2 * 7)
    assert (found.parameters, found.alive_parameters) == (28, 11)


def test_a_layer_used_twice_costs_twice_and_is_held_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    found = cost(parts(net=nn.Sequential(layer, nn.ReLU(), layer)), {"net": torch.zeros(1, 4)})
    assert (found.flops_dense, found.parameters) == (2 * 2 * 16, 16)


def test_half_precision_counts_its_own_bytes() -> None:
    found = cost(parts(net=nn.Linear(4, 4).half()), {})
    assert found.bytes_dense == 2 * 20


def test_the_sum_of_the_components_and_what_has_no_example() -> None:
    model = parts(encoder=nn.Linear(4, 2), decoder=nn.Linear(2, 4))
    found = cost(model, {"decoder": torch.zeros(1, 2)})
    assert set(found.components) == {"encoder", "decoder"}
    assert found.components["encoder"].flops_dense == 0
    assert found.flops_dense == found.components["decoder"].flops_dense == 16
    assert found.parameters == sum(part.parameters for part in found.components.values()) == 22


def test_a_component_with_several_inputs() -> None:
    found = cost(parts(net=nn.Bilinear(2, 2, 2)), {"net": (torch.zeros(1, 2), torch.zeros(1, 2))})
    assert found.parameters == 10


def test_the_model_is_left_as_it_was() -> None:
    model = parts(net=nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5).eval()))
    model.train()
    model.net[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    cost(model, {"net": torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.net[0].training
    assert not model.net[2].training
    assert torch.equal(torch.get_rng_state(), state)


def test_hooks_and_modes_are_undone_after_a_failure() -> None:
    model = parts(net=nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 5)))
    with pytest.raises(RuntimeError):
        cost(model, {"net": torch.zeros(1, 4)})
    assert not any(layer._forward_hooks for layer in model.modules())
    assert all(layer.training for layer in model.modules())


def test_a_wrapped_model_costs_the_same() -> None:
    model = parts(net=nn.Linear(4, 4))
    example = {"net": torch.zeros(1, 4)}
    assert cost(torch.optim.swa_utils.AveragedModel(model), example) == cost(model, example)


def test_unknown_components_and_foreign_masks_are_refused() -> None:
    model = parts(net=nn.Linear(4, 4))
    with pytest.raises(MaskError, match="no component 'generator'"):
        cost(model, {"generator": torch.zeros(1, 4)})
    with pytest.raises(MaskError, match="no weight"):
        cost(model, {}, Masks({"net.bogus": torch.ones(2, dtype=torch.bool)}))


# -- training -------------------------------------------------------------------------------------------------


def layer_flops(model, example):
    """Layer → forward FLOPs of one image, by hand: twice its weights, once a place."""
    found = {}

    def note(layer, given, output):
        if isinstance(layer, nn.Linear):
            places = 1
        elif isinstance(layer, nn.ConvTranspose2d):
            places = given[0].shape[2] * given[0].shape[3]
        else:
            places = output.shape[2] * output.shape[3]
        found[layer] = 2 * places * layer.weight.numel()

    handles = [
        layer.register_forward_hook(note)
        for layer in model.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    with torch.no_grad():
        model.eval()(example)
    for handle in handles:
        handle.remove()
    return list(found.values())


def test_training_flops_of_an_autoencoder_are_forward_and_both_gradients_but_that_of_the_images():
    model = models.conv_autoencoder(16, 1, width=4, latent=6)
    images = torch.rand(2, 1, 16, 16)
    encoder = layer_flops(model.encoder, images)
    decoder = layer_flops(model.decoder, model.encoder(images))
    expected = 3 * (sum(encoder) + sum(decoder)) - encoder[0]
    assert training_flops(model, Autoencoding(), images).dense == expected


def test_training_flops_of_a_gan_count_each_pass_that_is_really_made():
    model = models.dcgan(16, 1, width=4, latent=6)
    images = torch.rand(4, 1, 16, 16)
    generator = layer_flops(model.generator, torch.rand(2, 6))
    discriminator = layer_flops(model.discriminator, images)
    fake = 3 * sum(generator) - generator[0]
    both = 2 * (3 * sum(discriminator) - discriminator[0])
    judged = 2 * sum(discriminator)
    assert training_flops(model, Adversarial(6), images).dense == fake + both + judged


def test_live_training_flops_follow_the_density_of_each_layer():
    model = models.dcgan(16, 1, width=4, latent=6)
    images = torch.rand(4, 1, 16, 16)
    dense = training_flops(model, Adversarial(6), images)
    assert dense.live == dense.dense
    masks = Masks.dense(model)
    assert training_flops(model, Adversarial(6), images, masks & ~masks).live == 0
    half = {name: torch.arange(mask.numel()).reshape(mask.shape) % 2 == 0 for name, mask in masks.items()}
    found = training_flops(model, Adversarial(6), images, Masks(half))
    assert found.dense == dense.dense
    assert found.live == pytest.approx(dense.dense / 2)
    # The generator alone: its passes are the only ones that cost nothing then.
    without = Masks({name: mask & (not name.startswith("generator")) for name, mask in masks.items()})
    generator = layer_flops(model.generator, torch.rand(2, 6))
    fake = 3 * sum(generator) - generator[0]
    assert training_flops(model, Adversarial(6), images, without).live == pytest.approx(dense.dense - fake)


def test_training_flops_leave_the_model_as_it_was():
    model = models.dcgan(16, 1, width=4, latent=6).eval()
    before = {name: tensor.clone() for name, tensor in named_state(model).items()}
    images = torch.rand(4, 1, 16, 16)
    chance = torch.get_rng_state()
    training_flops(model, Adversarial(6), images)
    assert torch.equal(chance, torch.get_rng_state())
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_state(model).items())


def test_training_flops_of_a_spectrally_normed_discriminator_are_those_of_the_plain_one():
    plain, normed = (models.CATALOGUE[name](16, 1, width=4, latent=6) for name in ("paper-dcgan", "paper-sngan"))
    images = torch.rand(4, 1, 16, 16)
    expected = training_flops(plain, Adversarial(6, loss="hinge"), images).dense
    found = training_flops(normed, Adversarial(6, loss="hinge"), images)
    # The norm's own products of matrix and vector are made once a step, however many images there are.
    assert found.dense == found.live == expected


# -- of how many examples -------------------------------------------------------------------------------------


class Told(nn.Module):
    """What it is told beside its images may be one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.told, self.layer = nn.Linear(1, 8), nn.Linear(8, 8)

    def forward(self, x, t):
        return self.layer(x) + self.told(t)


def test_one_call_has_one_price_whatever_the_order_of_its_inputs():
    x, t, one = torch.randn(4, 8), torch.randn(4, 1), torch.randn(1, 1)
    assert cost(Told(), {"x": x, "t": t}).flops_dense == cost(Told(), {"t": t, "x": x}).flops_dense == 2 * (64 + 8)
    for inputs in ({"x": x, "t": one}, {"t": one, "x": x}):
        with pytest.warns(UserWarning, match="as 4 examples .* they take 144 alone and 132 together; batch= says"):
            assert cost(Told(), inputs).flops_dense == 2 * 64 + 2 * 8 // 4


class Looked(nn.Module):
    """Takes a table that has nothing to do with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8, bias=False)

    def forward(self, table, x):
        return self.layer(x) + table.mean()


def test_the_batch_is_the_length_at_which_one_takes_its_share(recwarn):
    table, x = torch.randn(10, 3), torch.randn(4, 8)
    assert cost(Looked(), {"table": table, "x": x}).flops_dense == 128
    assert cost(Looked(), {"x": x, "table": table}).flops_dense == 128
    assert not recwarn.list


@pytest.mark.parametrize(
    ("net", "example", "batch"),
    [
        (nn.TransformerEncoderLayer(8, 2, 16), torch.randn(5, 2, 8), 2),
        (nn.Conv2d(3, 8, 3), torch.randn(3, 8, 8), 1),
    ],
    ids=["sequence first", "no batch axis"],
)
def test_a_batch_that_does_not_lie_along_the_first_axis_is_told_and_can_be_said(net, example, batch, recwarn):
    first = example.transpose(0, 1) if batch == 2 else example[None]
    same = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) if batch == 2 else net
    expected = cost(same, first).flops_dense
    assert cost(net, example, batch=batch).flops_dense == expected
    assert not recwarn.list
    with pytest.warns(UserWarning, match="along the first axis of its input, a guess"):
        cost(net, example)


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, "2"])
def test_a_batch_that_is_no_number_of_examples_is_refused(batch):
    with pytest.raises(MaskError, match="batch="):
        cost(nn.Linear(2, 2), torch.zeros(2, 2), batch=batch)


class ByNumpy(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(8, 8, bias=False), last

    def forward(self, x):
        if self.last:
            x = self.layer(x)
        x = torch.from_numpy(x.detach().numpy() @ self.layer.weight.detach().numpy().T)
        return x if self.last else self.layer(x)


@pytest.mark.parametrize("last", [True, False])
def test_what_numpy_computed_is_named_and_not_free(last):
    with pytest.warns(UserWarning, match="work outside of torch's operations"):
        found = cost(ByNumpy(last), torch.randn(2, 8))
    assert found.not_counted == {"work outside of torch's operations": 1}
    assert found.flops_dense == 128

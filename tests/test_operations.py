"""FLOPs of operations that really run, against formulas by hand: dense, live, and what is not understood."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import gentickets as gt
from gentickets import MaskError, Masks
from gentickets.metrics.cost import cost, training_flops


class Regression:
    """An objective that runs the one component `net` on the batch and squares what it gives."""

    batches_per_step = 1

    def losses(self, model, batch, rng):
        yield "net", model.net(batch).square().mean()


class Penalty:
    """The gradient penalty of a critic: a loss whose backward pass goes through a backward pass."""

    batches_per_step = 1

    def losses(self, model, batch, rng):
        images = batch.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(model.net(images).sum(), images, create_graph=True)
        yield "net", slope.square().sum()


class Net(nn.Module):
    """A network that is a function of itself and its input, with parameters of these shapes, or layers."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(torch.randn(part)))

    def forward(self, inputs):
        return self.function(self, inputs)


def as_model(net: nn.Module) -> nn.Module:
    return nn.ModuleDict({"net": net})


def some_alive(model: nn.Module, share: float = 0.3) -> Masks:
    generator = torch.Generator().manual_seed(0)
    shapes = Masks.dense(model, include="*").shapes
    return Masks({name: torch.rand(shape, generator=generator) < share for name, shape in shapes.items()})


def prices(net: nn.Module, example: Tensor, masks: Masks | None = None) -> tuple[float, float]:
    """(of one example forward, of one image in training), live where there are masks."""
    model = as_model(net)
    forward, trained = cost(model, {"net": example}, masks), training_flops(model, Regression(), example, masks)
    return (forward.flops_dense, trained.dense) if masks is None else (forward.flops_sparse, trained.live)


# -- convolutions -------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    dimensions=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    groups=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 2),
    transposed=st.booleans(),
)
def test_training_a_convolution_of_any_kind_costs_its_gradients_once_each(
    dimensions, inputs, outputs, groups, stride, dilation, batch, transposed
):
    kinds = {False: (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
    kinds[True] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    kind = kinds[transposed][dimensions - 1]
    layer = kind(inputs * groups, outputs * groups, 2, stride, groups=groups, dilation=dilation, bias=False)
    example = torch.randn(batch, inputs * groups, *[5] * dimensions)
    places = (example if transposed else layer(example))[0, 0].numel()
    forward = 2 * places * layer.weight.numel()
    # The images need no gradient: forward, and the gradient of the weight.
    assert prices(layer, example) == (forward, 2 * forward)
    first = nn.Conv1d(1, 1, 1) if dimensions == 1 else nn.Conv2d(1, 1, 1) if dimensions == 2 else nn.Conv3d(1, 1, 1)
    both = Net(lambda net, x: net.second(net.first(x[:, :1]).expand_as(x)), first=first, second=layer)
    expected = 3 * forward + 2 * 2 * 5**dimensions
    assert prices(both, example)[1] == expected
    masks = some_alive(as_model(layer))
    alive = 2 * places * masks.counts()["net.weight"]
    assert prices(layer, example, masks) == (alive, 2 * alive)


def test_depthwise_and_grouped_gradients_are_not_those_of_full_convolutions():
    depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
    assert prices(depthwise, torch.randn(1, 32, 8, 8)) == (2 * 32 * 9 * 64, 2 * 2 * 32 * 9 * 64)
    grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
    assert prices(grouped, torch.randn(1, 16, 8, 8)) == (2 * 16 * 4 * 9 * 64, 2 * 2 * 16 * 4 * 9 * 64)


def test_a_convolution_whose_weight_is_made_for_each_image():
    def modulated(net, x):
        scale = net.style(x.mean((2, 3)))
        weight = net.weight * (scale[:, None, :, None, None] + 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        batch, channels, *places = x.shape
        images = F.conv2d(
            x.reshape(1, batch * channels, *places), weight.reshape(-1, channels, 3, 3), padding=1, groups=batch
        )
        return images.reshape(batch, -1, *places)

    net = Net(modulated, weight=(6, 4, 3, 3), style=nn.Linear(4, 4, bias=False))
    example = torch.randn(3, 4, 8, 8)
    assert prices(net, example) == (2 * 216 * 64 + 32, 2 * (2 * 216 * 64 + 32))
    alive = (masks := some_alive(as_model(net))).counts()
    live = 2 * 64 * alive["net.weight"] + 2 * alive["net.style.weight"]
    assert prices(net, example, masks) == (live, 2 * live)


# -- attention ----------------------------------------------------------------------------------------------------


def test_attention_of_two_heads_over_64_tokens():
    def attention(net, x):
        queries, keys, values = net.qkv(x).view(len(x), 64, 2, 24).transpose(1, 2).chunk(3, -1)
        return F.scaled_dot_product_attention(queries, keys, values)

    net = Net(attention, qkv=nn.Linear(16, 48, bias=False))
    example = torch.randn(2, 64, 16)
    projected, between = 2 * 64 * 16 * 48, 2 * (2 * 64 * 64 * 16)
    assert prices(net, example) == (projected + between, 2 * projected + 3 * between)
    assert prices(net, example)[1] == 983040
    assert cost(as_model(net), {"net": example}).flops_between == between
    masks = some_alive(as_model(net))
    live = projected * masks.density
    found = prices(net, example, masks)
    assert found == pytest.approx((live + between, 2 * live + 3 * between))


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_multi_head_attention_is_counted_with_the_density_of_each_of_its_weights(need_weights, training):
    def attention(net, x):
        return net.attention(x, x, x, need_weights=need_weights)[0]

    net = Net(attention, attention=nn.MultiheadAttention(16, 2, batch_first=True)).train(training)
    model, example = as_model(net), torch.randn(2, 6, 16)
    masks = some_alive(model)
    alive = masks.counts()
    into, out = (2 * 6 * alive[f"net.attention.{name}"] for name in ("in_proj_weight", "out_proj.weight"))
    between = 2 * (2 * 6 * 6 * 16)
    found = cost(model, {"net": example}, masks)
    assert (found.flops_dense, found.flops_sparse) == (12288 + between, into + out + between)
    assert found.flops_between == between
    trained = training_flops(model, Regression(), example, masks)
    assert trained.dense == 27648 + 3 * between
    assert trained.live == 2 * into + 3 * out + 3 * between
    assert torch.backends.mha.get_fastpath_enabled()


def test_cross_attention_reads_slices_of_one_weight():
    """Queries from one sequence, keys and values from another: the slices have densities of their own."""
    net = Net(
        lambda net, x: net.attention(x[:, :2], x, x, need_weights=False)[0],
        attention=nn.MultiheadAttention(8, 2, batch_first=True, bias=False),
    )
    model = as_model(net)
    mask = torch.zeros(24, 8, dtype=torch.bool)
    mask[:8] = True  # the queries' third alone
    masks = Masks({"net.attention.in_proj_weight": mask})
    found = cost(model, {"net": torch.randn(1, 5, 8)}, masks)
    assert found.flops_sparse == 2 * 2 * 64 + found.flops_between + 2 * 2 * 64
    assert found.flops_dense == found.flops_sparse + 2 * 5 * 128


def test_a_transformer_that_is_dead_costs_its_products_of_activations_and_norms():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
    padded = torch.tensor([[False, False, False, True]] * 3)
    model = as_model(Net(lambda net, x: net.encoder(x, src_key_padding_mask=padded), encoder=net))
    nothing = ~Masks.dense(model, include="*")
    example = torch.randn(3, 4, 8)
    between = 2 * 2 * (2 * 4 * 4 * 8)
    found = cost(model, {"net": example}, nothing)
    assert found.flops_dense == 2 * (2 * 4 * (4 * 64 + 2 * 128) + 2 * 2 * 4 * 8) + between
    assert found.flops_sparse == between + 2 * 2 * 2 * 4 * 8
    assert training_flops(model, Regression(), example, nothing).live == 3 * between


# -- recurrent layers ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(6, 5, batch_first=True),
        nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True),
        nn.LSTM(6, 5, proj_size=3, batch_first=True),
        nn.GRU(6, 5, 2, batch_first=True),
        nn.RNN(6, 5, batch_first=True, bidirectional=True),
    ],
    ids=["lstm", "deep", "projected", "gru", "rnn"],
)
def test_recurrent_layers_use_every_matrix_once_a_step(layer):
    model = as_model(Net(lambda net, x: net.layer(x)[0], layer=layer))
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    masks = some_alive(model)
    found = cost(model, {"net": torch.randn(3, 4, 6)}, masks)
    assert found.flops_dense == 2 * 4 * sum(matrices.values())
    assert found.flops_sparse == 2 * 4 * sum(masks.counts()[name] for name in matrices)
    assert not found.not_counted
    nothing = masks & ~masks
    trained = training_flops(model, Regression(), torch.randn(3, 4, 6), nothing)
    assert trained.live == 0
    # Two to three times the pass forward: an input that needs no gradient may save one.
    assert 1.9 * found.flops_dense <= trained.dense <= 3 * found.flops_dense


# -- raw parameters, and what a weight goes through before it multiplies -----------------------------------------

ONE_MATRIX = {
    "addmm": (lambda net, x: torch.addmm(net.weight[0], x, net.weight), (6, 5)),
    "matmul": (lambda net, x: x @ net.weight, (6, 5)),
    "on the left": (lambda net, x: (net.weight @ x.T).T, (5, 6)),
    "batched on the left": (lambda net, x: net.weight @ x[:, :, None], (5, 6)),
    "einsum": (lambda net, x: torch.einsum("bi,oi->bo", x, net.weight), (5, 6)),
    "heads": (lambda net, x: torch.einsum("bi,hio->bho", x, net.weight), (2, 6, 5)),
    "slices": (lambda net, x: x @ net.weight[:, :2] + x @ net.weight[:, 2:4], (6, 4)),
    "put together": (lambda net, x: F.linear(x, torch.cat([net.weight[:2], net.weight[2:]])), (5, 6)),
    "flipped": (lambda net, x: F.linear(x, net.weight.flip(0)), (5, 6)),
    "picked": (lambda net, x: F.linear(x, net.weight[torch.tensor([2, 0, 1])]), (3, 6)),
    "cast": (lambda net, x: F.linear(x.double(), net.weight.double()).float(), (5, 6)),
    "scaled": (lambda net, x: F.linear(x, net.weight / net.weight.norm() * 2), (5, 6)),
    "quantised": (lambda net, x: F.linear(x, net.weight + (net.weight.sign() - net.weight).detach()), (5, 6)),
    "unfolded": (lambda net, x: net.weight @ F.unfold(x.reshape(-1, 1, 2, 3), 1), (5, 1)),
    "one by one": (lambda net, x: torch.stack([F.linear(row, net.weight) for row in x]), (5, 6)),
    "checkpointed": (
        lambda net, x: torch.utils.checkpoint.checkpoint(F.linear, x, net.weight, use_reentrant=False),
        (5, 6),
    ),
}


@pytest.mark.parametrize("name", ONE_MATRIX)
def test_the_live_share_of_a_product_is_the_density_of_what_its_weight_became(name):
    function, shape = ONE_MATRIX[name]
    net = Net(function, weight=shape)
    example = torch.randn(4, 6)
    masks = some_alive(as_model(net))
    (dense, trained), (live, live_trained) = prices(net, example), prices(net, example, masks)
    per_weight = dense / net.weight.numel()
    assert per_weight == (12 if name == "unfolded" else 2)
    assert live == pytest.approx(per_weight * masks.alive, abs=1)
    # The input needs no gradient, the weight does.
    assert trained == 2 * dense
    assert live_trained == pytest.approx(2 * live, abs=1)


def test_what_does_not_stay_zero_is_not_called_sparse():
    centred = Net(lambda net, x: F.linear(x, net.weight - net.weight.mean()), weight=(5, 6))
    masks = some_alive(as_model(centred))
    assert prices(centred, torch.randn(4, 6), masks) == prices(centred, torch.randn(4, 6))


@pytest.mark.parametrize(
    "mask_again",
    [
        lambda weight, mask: weight.mul_(mask),
        lambda weight, mask: weight.masked_fill_(~mask, 0.0),
        lambda weight, mask: weight.__setitem__(~mask, 0.0),
        lambda weight, mask: weight.copy_(torch.where(mask, weight, 0.0)),
        lambda weight, mask: weight.view(torch.int32).mul_(mask),
    ],
    ids=["mul", "masked_fill", "index", "copy", "bits"],
)
def test_a_hook_that_masks_again_changes_no_price(mask_again):
    net = nn.Linear(6, 5, bias=False)
    masks = some_alive(as_model(net))

    def hook(layer, given):
        mask_again(layer.weight.data, masks["net.weight"])

    net.register_forward_pre_hook(hook)
    assert prices(net, torch.randn(4, 6), masks) == (2 * masks.alive, 4 * masks.alive)


def test_layers_that_read_the_same_activation_have_a_density_each():
    net = Net(lambda net, x: net.a(x) * net.b(x) + net.c(x), **{n: nn.Linear(8, 8, bias=False) for n in "abc"})
    mask = {
        f"net.{n}.weight": torch.arange(64).reshape(8, 8) < alive for n, alive in zip("abc", (3, 50, 3), strict=True)
    }
    masks = Masks(mask)
    assert prices(net, torch.randn(3, 8), masks) == (2 * masks.alive, 4 * masks.alive)
    two = masks.select("net").merge({})  # and where only some are masked
    two = Masks({name: two[name] for name in list(two)[:2]})
    assert prices(net, torch.randn(3, 8), two) == (2 * (53 + 64), 4 * (53 + 64))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_weights_under_norms_in_training(norm):
    net = nn.Sequential(norm(nn.Linear(60, 40, bias=False)), norm(nn.Linear(40, 50, bias=False)))
    model = as_model(net)
    masks = Masks({n: torch.rand(m.shape) < 0.3 for n, m in Masks.dense(model).items()})
    first, second = masks.counts().values()
    example = torch.randn(8, 60)
    assert cost(model, {"net": example}, masks).flops_sparse == 2 * masks.alive
    live = training_flops(model, Regression(), example, masks).live
    assert live == 4 * first + 6 * second


@pytest.mark.parametrize(
    ("net", "example"),
    [
        (nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)), torch.randn(2, 6)),
        (nn.Sequential(nn.Conv1d(3, 5, 3), nn.Tanh(), nn.Conv1d(5, 4, 3, 2, 1)), torch.randn(2, 3, 9)),
        (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Tanh(), nn.Conv2d(6, 4, 3)), torch.randn(2, 4, 7, 7)),
        (
            nn.Sequential(nn.ConvTranspose2d(3, 5, 3, 2), nn.Tanh(), nn.ConvTranspose2d(5, 4, 3)),
            torch.randn(2, 3, 5, 5),
        ),
    ],
    ids=["linear", "conv1d", "grouped", "transposed"],
)
def test_a_gradient_penalty_is_counted_and_dies_with_its_weights(net, example):
    model = as_model(net)
    masks = Masks.dense(model)
    found = training_flops(model, Penalty(), example, masks & ~masks)
    assert found.live == 0
    if isinstance(net[0], nn.Linear):
        # Forward, gradients of both inputs, then through those: weight and input of the first, weight of the
        # second, and once more the weight of the first by way of the tangent.
        assert found.dense == 2 * (72 + 72 + 48 + 48 + 24 + 48)


# -- what is not understood ---------------------------------------------------------------------------------------


def test_an_operation_without_a_formula_is_named():
    model = as_model(Net(lambda net, x: torch.fft.irfft(torch.fft.rfft(net.layer(x))), layer=nn.Linear(8, 8)))
    with pytest.warns(UserWarning, match=r"67% .* have no formula .* aten\._fft_c2r x 1, aten\._fft_r2c x 1") as caught:
        found = cost(model, {"net": torch.randn(2, 8)})
    assert len(caught) == 1
    assert found.not_counted == found.components["net"].not_counted == {"aten._fft_r2c": 1, "aten._fft_c2r": 1}
    assert found.share_not_counted == pytest.approx(2 / 3)
    assert found.flops_dense == 2 * 64
    with pytest.warns(UserWarning, match="training_flops: .*_fft_"):
        trained = training_flops(model, Regression(), torch.randn(2, 8))
    assert trained.not_counted["aten._fft_r2c"] >= 1
    assert 0 < trained.share_not_counted < 1


def test_operations_of_others_are_named():
    @torch.library.custom_op("gentickets_tests::squash", mutates_args=())
    def squash(x: Tensor) -> Tensor:
        return x @ x.T

    model = as_model(Net(lambda net, x: squash(net.layer(x)), layer=nn.Linear(4, 4)))
    with pytest.warns(UserWarning, match="gentickets_tests.squash x 1"):
        assert cost(model, {"net": torch.randn(2, 4)}).not_counted == {"gentickets_tests.squash": 1}


def test_work_that_no_operation_shows_is_noticed():
    """A kernel that writes to memory by itself, in the middle of a network or at its end."""

    def by_numpy(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out.numpy()[:] = x.numpy() * 2
        return out

    for function in (lambda net, x: net.layer(by_numpy(x)), lambda net, x: by_numpy(net.layer(x))):
        model = as_model(Net(function, layer=nn.Linear(4, 4)))
        with pytest.warns(UserWarning, match="work outside of torch's operations"):
            assert cost(model, {"net": torch.randn(2, 4)}).share_not_counted == 0.5


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda net, x: (net.weight.to_sparse() @ x.T).T, "mm"),
        (lambda net, x: F.linear(torch.nested.nested_tensor([x, x[:1]]), net.weight).to_padded_tensor(0.0), "linear"),
        (lambda net, x: torch.cond(x.sum() > 9, lambda v: v @ net.weight.T, lambda v: v @ net.weight.T, (x,)), "cond"),
    ],
    ids=["sparse", "nested", "of functions"],
)
def test_what_shapes_do_not_tell_is_not_priced_as_if_they_did(function, name):
    model = as_model(Net(function, weight=(5, 6)))
    with pytest.warns(UserWarning, match=f"have no formula .*{name} x 1"):
        found = cost(model, {"net": torch.randn(2, 6)})
    assert found.flops_dense == 0


def test_a_model_without_memory_is_priced_by_its_shapes():
    with torch.device("meta"):
        model = as_model(nn.Linear(5000, 7000, bias=False))
    masks = Masks.dense(as_model(nn.Linear(5000, 7000)))
    found = cost(model, {"net": torch.zeros(1, 5000)}, masks & ~masks)
    assert (found.flops_dense, found.flops_sparse) == (2 * 5000 * 7000, 0)


def test_ordinary_networks_are_understood_whole():
    layers = [
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="circular"),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.PixelUnshuffle(2),
        nn.PReLU(),
        nn.InstanceNorm2d(32),
        nn.AdaptiveAvgPool2d(2),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.BatchNorm1d(128),
        nn.GLU(),
        nn.LayerNorm(64),
        nn.RMSNorm(64),
        nn.Softmax(-1),
    ]
    model = as_model(nn.Sequential(*layers))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cost(model, {"net": torch.randn(2, 3, 4, 4)})
        training_flops(model, Regression(), torch.randn(2, 3, 4, 4))
    norms = 8 * 16 + 32 * 4 + 128 + 64 + 64
    assert found.flops_dense == 2 * (3 * 8 * 9 * 16) + 2 * norms
    assert (found.not_counted, found.share_not_counted) == ({}, 0.0)


def test_embeddings_are_free_and_distances_are_not():
    tokens = as_model(nn.Embedding(5, 6))
    assert cost(tokens, {"net": torch.tensor([[1, 2]])}).flops_dense == 0
    codes = Net(lambda net, x: torch.cdist(x, net.codes), codes=(7, 6))
    assert prices(codes, torch.randn(3, 6)) == (2 * 7 * 6, 2 * 2 * 7 * 6)
    bilinear = as_model(nn.Bilinear(4, 5, 3))
    assert cost(bilinear, {"net": (torch.randn(2, 4), torch.randn(2, 5))}).flops_dense == 2 * 3 * 4 * 5


def test_a_complex_product_is_four_real_ones():
    net = Net(lambda net, x: torch.view_as_real(x.cfloat() @ torch.complex(net.weight, net.weight)), weight=(6, 5))
    assert cost(as_model(net), {"net": torch.randn(2, 6)}).flops_dense == 4 * 2 * 30


# -- any example, any output --------------------------------------------------------------------------------------


@dataclass
class Sample:
    sample: Tensor
    extra: None = None


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x, t, scale=None):
        return Sample(self.layer(x) * t + (0 if scale is None else scale))


@pytest.mark.parametrize(
    "example",
    [
        (torch.randn(3, 4), 5),
        [torch.randn(3, 4), torch.ones(())],
        {"x": torch.randn(3, 4), "t": torch.ones(3, 1), "scale": 2.0},
    ],
    ids=["tuple", "list", "keywords"],
)
def test_examples_of_several_inputs_and_outputs_of_any_kind(example):
    net = Denoiser()
    assert cost({"net": net}, {"net": example}).flops_dense == 32
    if not isinstance(example, dict):
        bare = cost(net, example)
        assert (bare.flops_dense, bare.parameters, bare.components) == (32, 16, {})


def test_a_single_network_has_the_names_of_its_own_weights():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    masks = Masks({"2.weight": torch.arange(12).reshape(2, 6) < 5})
    found = cost(net, torch.randn(3, 4), masks)
    assert (found.flops_dense, found.flops_sparse) == (2 * (24 + 12), 2 * (24 + 5))
    with torch.inference_mode():
        assert cost(net, torch.randn(3, 4), masks).flops_sparse == found.flops_sparse


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_layers_of_no_width_cost_nothing():
    net = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3, bias=False))
    masks = Masks.dense(as_model(net))
    assert prices(net, torch.randn(2, 4)) == (0, 0)
    assert prices(net, torch.randn(2, 4), masks) == (0, 0)


def test_refusals_are_one_line():
    net = nn.Linear(4, 4)
    with pytest.raises(MaskError, match="'net' is a batch of none"):
        cost(as_model(net), {"net": torch.zeros(0, 4)})
    with pytest.raises(MaskError, match=r"'net\.weight' has no shape yet: run the model once"):
        cost(as_model(nn.LazyLinear(3)), {"net": torch.zeros(2, 4)})
    with pytest.raises(MaskError, match="ModuleDict has no forward of its own: name the component"):
        cost(as_model(net), torch.zeros(2, 4))
    with pytest.raises(MaskError, match="'Linear' holds no tensor"):
        cost(net, 3)


def test_a_compiled_layer_is_counted_as_the_layer_that_it_is():
    model = as_model(nn.Sequential(torch.compile(nn.Linear(4, 3, bias=False), backend="eager"), nn.ReLU()))
    assert cost(model, {"net": torch.randn(2, 4)}).flops_dense == 24


def test_an_accelerated_model_says_that_its_kernels_are_not_seen():
    """Where the compiled kernels run, their work is in no operation; where they are not built, nothing is hidden."""
    model = as_model(nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)))
    masks = some_alive(model, 0.02)
    masks = Masks({name: masks[name] for name in masks if name.endswith("weight")})
    masks.apply_(model)
    dense = cost(model, {"net": torch.randn(64, 256)}, masks)
    gt.accelerate(model, masks, {"net": torch.randn(64, 256)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = cost(model, {"net": torch.randn(64, 256)})
    assert found.flops_dense == dense.flops_dense or found.not_counted
    assert bool(found.not_counted) == any("work outside of torch" in str(warning.message) for warning in caught)

"""Convolutions on images and sounds as torch lays them out, and layers over tokens: what the masked dense ones give."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm as new_weight_norm

import gentickets as gt
from gentickets.compiled import missing
from gentickets.masks.names import clone
from gentickets.sparse.layers import SparseLinear, is_hooked, lanes_form, wide_form
from gentickets.sparse.spectral import underlying

pytestmark = pytest.mark.skipif(missing() is not None, reason="no kernels were compiled")


def masked(layer, density, seed=0):
    """The layer with a random mask applied, the mask, and its sparse twin."""
    mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed)) < density
    with torch.no_grad():
        layer.weight.mul_(mask)
    return layer, mask, wide_form(layer)(copy.deepcopy(layer), mask)


@st.composite
def convolutions(draw):
    """A convolution of one or two dimensions, of any geometry, and a batch for it in some layout."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    torch.manual_seed(number(0, 1000))
    dimensions, groups = number(1, 2), number(1, 2)
    channels = groups * number(1, 3), groups * number(1, 3)
    several = lambda low, high: tuple(number(low, high) for _ in range(dimensions))  # noqa: E731
    kernel, stride, padding, dilation = several(1, 4), several(1, 3), several(0, 2), several(1, 2)
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if draw(st.booleans()):
        layer = (nn.Conv1d, nn.Conv2d)[dimensions - 1](*channels, kernel, **options)
    else:
        extra = tuple(number(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dimensions - 1]
        layer = kind(*channels, kernel, output_padding=extra, **options)
    size = draw(st.sampled_from([(8, 11), (9, 17), (7, 40), (8, 81), (7, 150)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    images = torch.randn(number(1, 5), channels[0], *size[2 - dimensions :], dtype=dtype)
    laid_out = draw(st.sampled_from(["torch's", "lanes", "channels last"]))
    if laid_out == "lanes":
        images = gt.lanes(images)
    elif laid_out == "channels last":
        images = images.movedim(1, -1).contiguous().movedim(-1, 1)
    return layer.to(dtype), images


@settings(max_examples=200, deadline=None)
@given(convolutions(), st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]), st.integers(0, 99))
def test_output_and_gradients_are_those_of_the_masked_layer(case, density, seed):
    layer, mask, sparse = masked(case[0], density, seed)
    one, other = case[1].clone().requires_grad_(), case[1].clone().requires_grad_()
    expected, found = layer(one), sparse(other)
    assert found.shape == expected.shape
    assert found.is_contiguous()
    grad = torch.randn(expected.shape, dtype=expected.dtype)
    expected.backward(grad)
    found.backward(gt.lanes(grad) if seed % 2 else grad)
    pairs = [(found, expected), (other.grad, one.grad), (sparse.values.grad, layer.weight.grad[mask])]
    if layer.bias is not None:
        pairs.append((sparse.bias.grad, layer.bias.grad))
    places = expected.numel() / max(1, expected.shape[1])
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6 * places if got.dtype == torch.float32 else 1e-9)


SMALL = {
    "sound": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 2, 7)),
    "sound, transposed": (lambda: nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1, dilation=2), (2, 2, 4)),
    "images": (lambda: nn.Conv2d(2, 3, (3, 2), stride=2, padding=1), (2, 2, 4, 5)),
    "images, pointwise": (lambda: nn.Conv2d(3, 2, 1), (2, 3, 3, 4)),
    "images, transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 2, 2, 3)),
    "tokens": (lambda: nn.Linear(5, 4), (2, 3, 5)),
}


@pytest.mark.parametrize("kind", SMALL)
def test_first_and_second_derivatives_by_finite_differences(kind):
    torch.manual_seed(3)
    make, shape = SMALL[kind]
    _, _, sparse = masked(make().double(), 0.4)
    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def run(values, bias, inputs):
        return torch.func.functional_call(sparse, {"values": values, "bias": bias}, (inputs,))

    inputs = (sparse.values, sparse.bias, images)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("kind", SMALL)
def test_the_dense_layer_comes_back_in_its_own_shape(kind):
    torch.manual_seed(0)
    make, shape = SMALL[kind]
    dense = make()
    weight, mask = dense.weight, torch.rand(dense.weight.shape) < 0.3
    sparse = wide_form(dense)(dense, mask)
    sparse.release()
    with torch.no_grad():
        sparse.values += 1
    expected = sparse(torch.ones(shape))
    assert sparse.dense() is dense
    assert dense.weight is weight
    assert weight.shape == mask.shape
    assert not weight[~mask].any()
    torch.testing.assert_close(dense(torch.ones(shape)), expected)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_linear_layer_over_tokens_of_any_rank_gives_them_as_torch_lays_them_out(data):
    number = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    torch.manual_seed(number(0, 99))
    layer = nn.Linear(number(1, 20), number(1, 20), bias=data.draw(st.booleans())).double()
    layer, mask, sparse = masked(layer, 0.4)
    tokens = torch.randn(*data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=4)), layer.in_features).double()
    if data.draw(st.booleans()):  # as of images whose places are tokens
        tokens = tokens.movedim(-1, 1).contiguous().movedim(1, -1)
    one, other = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    expected, found = layer(one), sparse(other)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)
    (expected.sin().sum() + expected.sum()).backward()
    (found.sin().sum() + found.sum()).backward()
    torch.testing.assert_close(other.grad, one.grad)
    torch.testing.assert_close(sparse.values.grad, layer.weight.grad[mask])


@pytest.mark.parametrize("batch", [1, 6])
def test_two_threads_give_the_bits_of_one(batch):
    torch.manual_seed(0)
    _, _, sparse = masked(nn.Conv2d(16, 32, 3, padding=1), 0.5)
    images = torch.randn(batch, 16, 32, 33)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            sparse.values.grad = None
            out = sparse(images)
            out.square().sum().backward()
            found.append((out.detach(), sparse.values.grad))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_batches_and_sizes_may_change():
    torch.manual_seed(0)
    layer, _, sparse = masked(nn.Conv2d(3, 4, 3, padding=1, stride=2), 0.5)
    for batch, size in [(1, 8), (5, 8), (2, 12), (3, 7), (4, 9), (6, 10), (7, 8), (1, 8)]:
        images = torch.randn(batch, 3, size, size)
        torch.testing.assert_close(sparse(images), layer(images))


def test_which_layers_have_which_form():
    assert lanes_form(nn.Conv1d(2, 2, 3)) is None
    for kind in (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d):
        assert issubclass(wide_form(kind(2, 2, 3)), kind)  # found by whoever looks for such layers
    assert lanes_form(nn.Linear(2, 2)) is wide_form(nn.Linear(2, 2)) is SparseLinear
    assert wide_form(nn.Conv3d(2, 2, 3)) is None


NORMED = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "sound": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), (5, 4, 9)),
    "sound, transposed": (lambda: nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1), (2, 4, 9)),
}


@pytest.mark.parametrize("kind", NORMED)
@pytest.mark.parametrize("norm", [new_weight_norm, old_weight_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_is_that_of_the_masked_layer_step_after_step(kind, norm):
    torch.manual_seed(0)
    make, shape = NORMED[kind]
    layer = norm(make().double())
    weight = underlying(layer)
    mask = torch.rand(weight.shape) < 0.5
    mask.view(len(mask), -1)[:, 0] = True  # no filter without a live weight, whose length would divide by zero
    weight.data *= mask
    sparse = wide_form(layer)(clone(layer), mask)
    sparse.release()
    assert not is_hooked(layer)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (layer, sparse)]
    for _ in range(3):
        images = torch.randn(shape, dtype=torch.float64)
        one, other = images.clone().requires_grad_(), images.clone().requires_grad_()
        expected, found = layer(one), sparse(other)
        torch.testing.assert_close(found, expected)
        for given_images, out, optimizer in ((one, expected, optimizers[0]), (other, found, optimizers[1])):
            optimizer.zero_grad()
            (slope,) = torch.autograd.grad(out.sin().sum(), given_images, create_graph=True)
            (out.square().sum() + slope.square().sum()).backward()
        torch.testing.assert_close(other.grad, one.grad)
        torch.testing.assert_close(sparse.values.grad, weight.grad[mask])
        weight.grad *= mask
        for optimizer in optimizers:
            optimizer.step()
    back = sparse.dense()
    torch.testing.assert_close(dict(back.named_parameters()), dict(layer.named_parameters()))
    torch.testing.assert_close(back(images), layer(images))


def chosen(net, images, gradients=True, sparsity=0.95):
    """In which way each masked layer of a network is run."""
    masks = gt.prune(gt.magnitude(net), to_sparsity=sparsity, scope="layer")
    with torch.set_grad_enabled(gradients), gt.accelerate(net, masks, images) as fast:
        return [choice.way for choice in fast.choices]


def blocks(between):
    torch.manual_seed(0)
    layers = [[nn.Conv2d(32, 32, 3, padding=1), between(), nn.SiLU()] for _ in range(3)]
    return nn.Sequential(*[layer for block in layers for layer in block])


@pytest.mark.parametrize("gradients", [True, False])
def test_convolutions_work_as_torch_lays_out_where_a_norm_wants_images_so_and_for_single_images(gradients):
    images = torch.randn(32, 32, 16, 16)
    assert chosen(blocks(lambda: nn.GroupNorm(4, 32)), images, gradients) == ["wide"] * 3
    assert chosen(blocks(lambda: nn.BatchNorm2d(32)), images, gradients) == ["lanes"] * 3
    single = torch.randn(1, 32, 64, 64)
    assert chosen(blocks(lambda: nn.BatchNorm2d(32)), single, gradients) == ["wide"] * 3


def test_each_component_is_laid_out_by_what_is_in_it():
    torch.manual_seed(0)
    gan = {"generator": blocks(lambda: nn.BatchNorm2d(32)), "critic": blocks(lambda: nn.GroupNorm(4, 32))}
    images = torch.randn(32, 32, 16, 16)
    assert chosen(gan, {"generator": images, "critic": images}) == ["lanes"] * 3 + ["wide"] * 3


def test_attention_and_what_is_around_it_gains_from_the_width_of_its_layers():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, activation="gelu")
    masks = gt.prune(gt.magnitude(net), to_sparsity=0.95, scope="layer")
    masks.apply_(net)
    tokens = torch.randn(4, 64, 256)
    expected = net.eval()(tokens)
    with gt.accelerate(net, masks, tokens) as fast:
        assert {choice.layer: choice.way for choice in fast.choices} == {
            "self_attn.out_proj": None,  # whose weight is read by a function
            "linear1": "wide",
            "linear2": "wide",
        }
        torch.testing.assert_close(net(tokens), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 7, 5), (2, 0, 5), (2, 0, 3, 5)])
def test_no_tokens_at_all_give_none_and_gradients_of_nothing(shape):
    layer, _, sparse = masked(nn.Linear(5, 4), 0.4)
    tokens = torch.zeros(shape, requires_grad=True)
    found = sparse(tokens)
    assert found.shape == layer(tokens).shape
    found.sum().backward()
    assert tokens.grad.shape == shape
    assert not sparse.values.grad.any()

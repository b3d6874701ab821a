"""Layers of live weights alone: they compute what the masked dense layer does, and so do all their gradients."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm as new_spectral_norm
from torch.nn.utils.parametrizations import weight_norm

from gentickets.compiled import missing
from gentickets.kernels import mask_, tanh, turned
from gentickets.masks.names import clone
from gentickets.sparse.beside import FastTanh, LanesNorm, LanesPool, LanesUpsample
from gentickets.sparse.chain import SparseSequential
from gentickets.sparse.layers import SparseLinear, is_hooked, lanes_form
from gentickets.sparse.spectral import underlying

pytestmark = pytest.mark.skipif(missing() is not None, reason="no kernels were compiled")


def masked(layer, density, seed=0):
    """The layer with a random mask applied, the mask, and its sparse twin."""
    mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed)) < density
    with torch.no_grad():
        layer.weight.mul_(mask)
    return layer, mask, lanes_form(layer)(copy.deepcopy(layer), mask)


def lanes(images):
    return images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


@st.composite
def layers(draw):
    """A layer of any kind and geometry, and a batch for it."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    torch.manual_seed(number(0, 1000))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    batch = draw(st.sampled_from([1, 3, 8, 16, 17, 64, 81, 128]))
    kind = draw(st.sampled_from(["linear", "conv", "transposed"]))
    bias = draw(st.booleans())
    if kind == "linear":
        layer = nn.Linear(number(1, 30), number(1, 30), bias=bias)
        return layer.to(dtype), torch.randn(batch, layer.in_features, dtype=dtype)
    groups = number(1, 2)
    channels = groups * number(1, 3), groups * number(1, 3)
    kernel, stride = (number(1, 4), number(1, 4)), (number(1, 3), number(1, 3))
    padding, dilation = (number(0, 2), number(0, 2)), (number(1, 2), number(1, 2))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    if kind == "conv":
        layer = nn.Conv2d(*channels, kernel, **options)
    else:
        extra = tuple(number(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        layer = nn.ConvTranspose2d(*channels, kernel, output_padding=extra, **options)
    images = torch.randn(batch, channels[0], number(8, 11), number(8, 11), dtype=dtype)
    return layer.to(dtype), lanes(images) if draw(st.booleans()) else images


@settings(max_examples=150, deadline=None)
@given(layers(), st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]), st.integers(0, 99))
def test_output_and_gradients_are_those_of_the_masked_layer(case, density, seed):
    layer, mask, sparse = masked(case[0], density, seed)
    one, other = case[1].clone().requires_grad_(), case[1].clone().requires_grad_()
    expected, found = layer(one), sparse(other)
    assert found.shape == expected.shape
    grad = torch.randn(expected.shape, dtype=expected.dtype)
    expected.backward(grad)
    found.backward(grad)
    pairs = [(found, expected), (other.grad, one.grad), (sparse.values.grad, layer.weight.grad[mask])]
    if layer.bias is not None:
        pairs.append((sparse.bias.grad, layer.bias.grad))
    places = expected.numel() / max(1, expected.shape[1])
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6 * places if got.dtype == torch.float32 else 1e-9)


SMALL = {
    "linear": (lambda: nn.Linear(5, 4), (3, 5)),
    "conv": (lambda: nn.Conv2d(2, 3, (3, 2), stride=2, padding=1), (2, 2, 4, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 2, 2, 3)),
}


NORMED = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (5, 4, 4, 3)),
}


@pytest.mark.parametrize("kind", NORMED)
@pytest.mark.parametrize("norm", [new_spectral_norm, old_spectral_norm])
@pytest.mark.parametrize("iterations", [1, 3])
def test_spectral_norm_is_that_of_the_masked_layer_pass_after_pass(kind, norm, iterations):
    torch.manual_seed(0)
    make, shape = NORMED[kind]
    layer = norm(make().double(), n_power_iterations=iterations)
    weight = underlying(layer)
    mask = torch.rand(weight.shape) < 0.4
    weight.data *= mask
    sparse = lanes_form(layer)(clone(layer), mask)
    sparse.release()
    for training in (True, True, False, True):
        layer.train(training)
        sparse.train(training)
        images = torch.randn(shape, dtype=torch.float64)
        one, other = images.clone().requires_grad_(), images.clone().requires_grad_()
        layer.zero_grad()
        sparse.zero_grad()
        expected, found = layer(one), sparse(other)
        torch.testing.assert_close(found, expected)
        expected.square().sum().backward()
        found.square().sum().backward()
        torch.testing.assert_close(other.grad, one.grad)
        torch.testing.assert_close(sparse.values.grad, weight.grad[mask])
        torch.testing.assert_close(sparse.bias.grad, layer.bias.grad)
    back = sparse.dense()
    states = [{key: tensor for key, tensor in net.state_dict().items() if key != "weight"} for net in (back, layer)]
    torch.testing.assert_close(*states)  # the singular vectors among them
    torch.testing.assert_close(back(images), layer(images))


def test_only_a_spectral_norm_along_the_first_axis_has_a_lanes_form():
    plain = nn.Conv2d(3, 4, 3)
    assert lanes_form(plain) is not None
    assert lanes_form(new_spectral_norm(copy.deepcopy(plain), dim=1)) is None
    assert lanes_form(new_spectral_norm(nn.ConvTranspose2d(3, 4, 3))) is None
    assert lanes_form(weight_norm(copy.deepcopy(plain), dim=1)) is None
    assert lanes_form(new_spectral_norm(new_spectral_norm(copy.deepcopy(plain)))) is None
    assert is_hooked(old_spectral_norm(nn.ConvTranspose2d(3, 4, 3)))
    assert not is_hooked(old_spectral_norm(copy.deepcopy(plain)))


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


def test_a_gradient_penalty_reaches_the_live_weights():
    torch.manual_seed(0)
    layer, mask, sparse = masked(nn.Conv2d(3, 4, 3, padding=1), 0.3)
    for module, weight in ((layer, "weight"), (sparse, "values")):
        images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
        (slope,) = torch.autograd.grad(module(images).tanh().sum(), images, create_graph=True)
        slope.square().sum().backward()
        assert getattr(module, weight).grad.abs().sum() > 0
    torch.testing.assert_close(sparse.values.grad, layer.weight.grad[mask])


def test_a_backward_pass_for_other_parameters_leaves_the_weights_gradient_out(monkeypatch):
    _, _, sparse = masked(nn.Linear(6, 4), 0.5)
    sampled = []
    layout = sparse.pattern.layout((1, 1), (1, 1))
    monkeypatch.setattr(layout, "sample", lambda *sides: sampled.append(sides))
    before = torch.ones(6, requires_grad=True)
    sparse(before.expand(8, 6) * 2).sum().backward(inputs=[before])
    assert before.grad is not None
    assert sparse.values.grad is None
    assert not sampled


LARGE = {  # enough to do that it is shared among threads
    "linear": (lambda: nn.Linear(300, 200), (81, 300)),
    "conv": (lambda: nn.Conv2d(8, 8, 4, stride=2, padding=1), (81, 8, 12, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1), (81, 8, 12, 12)),
}


@pytest.mark.parametrize("kind", LARGE)
def test_two_threads_give_the_bits_of_one(kind):
    torch.manual_seed(0)
    make, shape = LARGE[kind]
    layer, mask, sparse = masked(make(), 0.5)
    images = torch.randn(shape)
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
    layer(images).square().sum().backward()
    torch.testing.assert_close(found[1][1], layer.weight.grad[mask], rtol=1e-3, atol=1e-2)


def test_the_dense_layer_comes_back_with_what_was_learned():
    torch.manual_seed(0)
    dense = nn.Conv2d(3, 4, 3)
    weight, mask = dense.weight, torch.rand(dense.weight.shape) < 0.3
    sparse = lanes_form(dense)(dense, mask)
    sparse.release()
    assert weight.numel() == 0  # its memory is free
    with torch.no_grad():
        sparse.values += 1
    expected = sparse(torch.ones(2, 3, 5, 5))
    back = sparse.dense()
    assert back is dense
    assert back.weight is weight
    assert not weight[~mask].any()
    torch.testing.assert_close(back(torch.ones(2, 3, 5, 5)), expected)


def test_more_than_two_dimensions_and_half_precision_inputs():
    layer, _, sparse = masked(nn.Linear(6, 4), 0.5)
    inputs = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(sparse(inputs), layer(inputs))
    torch.testing.assert_close(sparse(inputs.bfloat16()), layer(inputs.bfloat16().float()))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_on_lanes_is_batch_norm(momentum, affine):
    norm = nn.BatchNorm2d(4, momentum=momentum, affine=affine)
    twin = LanesNorm(copy.deepcopy(norm))
    for step in range(3):
        images = torch.randn(8, 4, 3, 5, generator=torch.Generator().manual_seed(step)) + step
        found = twin(lanes(images))
        torch.testing.assert_close(found, norm(images))
        assert found.stride() == lanes(images).stride()
    assert int(twin.num_batches_tracked) == 3
    norm.eval()
    twin.eval()
    torch.testing.assert_close(twin(lanes(images)), norm(images))
    torch.testing.assert_close(twin(images), norm(images))
    torch.testing.assert_close(twin.dense().running_var, norm.running_var)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 70), st.integers(0, 70), st.sampled_from([torch.float32, torch.float64]))
def test_a_turned_matrix_is_its_transpose(rows, columns, dtype):
    matrix = torch.randn(rows, columns, dtype=dtype)
    found = turned(matrix)
    assert found.is_contiguous()
    assert torch.equal(found, matrix.t())


def test_tanh_is_exact_to_rounding():
    inputs = torch.cat([torch.linspace(-12, 12, 1_000_003), torch.logspace(-30, 1, 10_001)])
    expected = inputs.double().tanh()
    torch.testing.assert_close(tanh(inputs).double(), expected, rtol=4e-7, atol=0)
    assert tanh(inputs).abs().max() <= 1
    special = torch.tensor([torch.nan, 9.1, -10.0, torch.inf, -torch.inf, 0.0, -0.0])
    torch.testing.assert_close(tanh(special), special.tanh(), rtol=0, atol=0, equal_nan=True)


def test_tanh_keeps_the_layout_and_has_both_derivatives():
    module = FastTanh(nn.Tanh())
    images = torch.randn(4, 3, 5, 2)
    for laid in (images, lanes(images), images[:, :2]):  # the last one does not fill its memory
        torch.testing.assert_close(module(laid), laid.tanh())
        assert module(laid).stride() == laid.tanh().stride()
    for wide in (images, images.double()):
        one, other = wide.clone().requires_grad_(), wide.clone().requires_grad_()
        for inputs, way in ((one, module), (other, torch.tanh)):
            (slope,) = torch.autograd.grad(way(inputs).square().sum(), inputs, create_graph=True)
            slope.square().sum().backward()
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@st.composite
def resized(draw):
    """A pooling or enlarging module, its stand-in, and images."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    height, width = number(1, 6), number(1, 6)
    if draw(st.booleans()):
        window = (number(1, 3), number(1, 3)) if draw(st.booleans()) else number(1, 3)
        stride = draw(st.sampled_from([None, 2]))
        padding, height, width = 0 if window == 1 else number(0, 1), height + 3, width + 3
        divisor = draw(st.sampled_from([None, None, None, 3]))
        if isinstance(window, tuple):
            padding = 0
        module = nn.AvgPool2d(window, stride, padding, draw(st.booleans()), divisor_override=divisor)
        stand_in = LanesPool(module)
    else:
        wanted = draw(
            st.sampled_from([{"scale_factor": 2}, {"scale_factor": (3, 2)}, {"scale_factor": 1.5}, {"size": 6}])
        )
        module = nn.Upsample(**wanted, mode=draw(st.sampled_from(["nearest", "nearest", "bilinear"])))
        stand_in = LanesUpsample(module)
    return module, stand_in, torch.randn(number(1, 4), number(1, 3), height, width, dtype=torch.float64)


@settings(max_examples=100, deadline=None)
@given(resized(), st.booleans())
def test_resizing_on_lanes_is_resizing(case, on_lanes):
    module, stand_in, images = case
    one, other = images.clone().requires_grad_(), (lanes(images) if on_lanes else images).clone().requires_grad_()
    expected, found = module(one), stand_in(other)
    torch.testing.assert_close(found, expected)
    for inputs, out in ((one, expected), (other, found)):  # the gradient of a gradient
        (slope,) = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        slope.square().sum().backward()
    torch.testing.assert_close(other.grad, one.grad)
    assert stand_in.dense() is module


@st.composite
def chains(draw):
    """A sequence of linear layers, masked or not, rectifiers and others between them; and which weights are frozen."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    between = [nn.ReLU, lambda: nn.LeakyReLU(0.2), nn.Tanh, nn.Identity, lambda: nn.LeakyReLU(-0.1)]
    width, modules = draw(st.integers(1, 9)), []
    for _ in range(draw(st.integers(1, 4))):
        out = draw(st.integers(1, 9))
        modules.append(nn.Linear(width, out, bias=draw(st.booleans())))
        modules += [make() for make in draw(st.lists(st.sampled_from(between), max_size=2))]
        width = out
    sequence = nn.Sequential(*modules).double()
    for parameter in sequence.parameters():
        parameter.requires_grad_(draw(st.booleans()))
    return sequence


@settings(max_examples=100, deadline=None)
@given(chains(), st.data())
def test_a_chain_is_its_layers_one_by_one(sequence, data):
    chain = copy.deepcopy(sequence)
    masks = {}
    for place, layer in enumerate(sequence):
        if isinstance(layer, nn.Linear) and data.draw(st.booleans()):
            _, masks[place], chain[place] = masked(layer, 0.5, seed=place)
    chain = SparseSequential(chain)
    size = data.draw(st.sampled_from([1, 5, 8, 32, 41, 64]))  # whole vectors and tiles of the kernels, or not
    batch = torch.randn(size, sequence[0].in_features, dtype=torch.float64)
    given_grad = data.draw(st.booleans())
    one, other = batch.clone().requires_grad_(given_grad), batch.clone().requires_grad_(given_grad)
    expected, found = sequence(one), chain(other)
    torch.testing.assert_close(found, expected)
    if not expected.requires_grad:
        assert not found.requires_grad
        return
    weights = [
        (layer.weight, masks.get(place), chain[place])
        for place, layer in enumerate(sequence)
        if isinstance(layer, nn.Linear)
    ]
    second = given_grad and data.draw(st.booleans())
    for images, out in ((one, expected), (other, found)):
        if second:  # a penalty on the gradient
            (slope,) = torch.autograd.grad(out.sin().sum(), images, create_graph=True)
            out = out.sum() + slope.square().sum()
        out.sum().backward()
    if given_grad:
        torch.testing.assert_close(other.grad, one.grad)
    for weight, mask, layer in weights:
        wanted = weight.grad if mask is None or weight.grad is None else weight.grad[mask]
        got = layer.weight.grad if mask is None else layer.values.grad
        if wanted is None:
            assert got is None
        else:
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.LeakyReLU(0.2)])
@pytest.mark.parametrize("batch", [3, 16, 64])
def test_a_rectifier_in_a_chain_is_that_one_for_infinite_numbers_too(module, batch):
    layer = nn.Linear(1, 4, bias=False)
    layer.weight.data = torch.tensor([[1.0], [-1.0], [0.5], [-2.0]])
    chain = SparseSequential(nn.Sequential(SparseLinear(layer, torch.ones(4, 1, dtype=torch.bool)), module))
    inputs = torch.tensor([torch.inf, -torch.inf, 1.0, torch.nan, -1.0])[torch.arange(batch) % 5, None]
    torch.testing.assert_close(chain(inputs), module(layer(inputs)), equal_nan=True)


def test_an_infinite_gradient_ends_at_a_shut_rectifier():
    for behind in ([], [nn.Linear(4, 2)]):  # the rectifier is the chain's last, or lies within it
        layer, mask, sparse = masked(nn.Linear(3, 4), 0.5)
        for bias in (layer.bias, sparse.bias):
            bias.data.fill_(-9.0)
        plain = nn.Sequential(layer, nn.ReLU(), *behind)
        chain = SparseSequential(nn.Sequential(sparse, nn.ReLU(), *[masked(last, 1.0)[2] for last in behind]))
        for net in (plain, chain):
            out = net(torch.ones(5, 3))
            out.backward(torch.full_like(out, torch.inf))
        torch.testing.assert_close(sparse.values.grad, layer.weight.grad[mask])


def test_only_the_last_layers_of_a_sequence_give_their_outputs_batch_first():
    _, _, first = masked(nn.Linear(6, 8), 0.5)
    inputs = torch.randn(5, 6)
    assert SparseSequential(nn.Sequential(first, nn.ReLU(), nn.Tanh()))(inputs).is_contiguous()
    before_images = nn.Sequential(first, nn.Unflatten(1, (8, 1, 1)), nn.Conv2d(8, 2, 1))
    seen = []
    before_images[2].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    SparseSequential(before_images)(inputs)
    assert seen[0].stride()[0] == 1  # batch innermost, as a sparse convolution wants it


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.float64]))
def test_masking_by_packed_bits_zeroes_what_is_dead_and_nothing_else(count, seed, dtype):
    rng = np.random.default_rng(seed)
    alive = rng.random(count) < rng.random()
    numbers = rng.choice([np.inf, -np.inf, np.nan, -0.0, 1.5, -2.5, 1e-310], size=count)
    weights = torch.from_numpy(numbers).to(dtype)
    expected = torch.where(torch.from_numpy(alive), weights, 0.0)
    mask_(weights, np.packbits(alive))
    assert weights.numpy().tobytes() == expected.numpy().tobytes()


def test_masking_many_weights_with_threads():
    torch.manual_seed(0)
    weights, alive = torch.randn(1_500_003), torch.rand(1_500_003) < 0.3
    expected = torch.where(alive, weights, 0.0)
    mask_(weights, np.packbits(alive.numpy()))
    assert torch.equal(weights, expected)


def test_a_chain_keeps_hooks_and_takes_more_dimensions():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    _, _, first = masked(plain[0], 0.5)
    _, _, last = masked(plain[2], 0.5)
    hooked = nn.ReLU()
    seen = []
    hooked.register_forward_hook(lambda module, inputs, output: seen.append(output))
    chain = SparseSequential(nn.Sequential(first, hooked, last))
    inputs = torch.randn(2, 5, 4)
    torch.testing.assert_close(chain(inputs), plain(inputs))
    torch.testing.assert_close(chain(inputs[0]), plain(inputs[0]))
    assert len(seen) == 2


def test_stepping_one_part_through_a_chain_leaves_the_weights_of_the_other_alone():
    _, _, sparse = masked(nn.Linear(6, 4), 0.5)
    chain = SparseSequential(nn.Sequential(sparse, nn.ReLU()))
    before = torch.ones(6, requires_grad=True)
    chain(before.expand(8, 6) * 2).sum().backward(inputs=[before])
    assert before.grad is not None
    assert sparse.values.grad is None


@pytest.mark.parametrize("kind", SMALL)
def test_an_input_that_the_dense_layer_refuses_is_refused(kind):
    make, shape = SMALL[kind]
    _, _, sparse = masked(make(), 0.5)
    wrong = torch.randn(shape[0], shape[1] - 1, *shape[2:])
    with pytest.raises(ValueError, match="channels along axis"):
        sparse(wrong)
    if kind == "linear":
        with pytest.raises(ValueError, match="channels along axis"):
            SparseSequential(nn.Sequential(sparse))(wrong)


@pytest.mark.parametrize("kind", SMALL)
def test_an_empty_batch(kind):
    make, shape = SMALL[kind]
    layer, _, sparse = masked(make(), 0.5)
    out = sparse(torch.randn(0, *shape[1:]))
    assert out.shape == layer(torch.randn(0, *shape[1:])).shape
    out.sum().backward()
    assert not sparse.values.grad.any()


def test_what_follows_a_chain_may_change_its_output_in_place():
    layer, mask, sparse = masked(nn.Linear(6, 4), 0.5)
    plain = nn.Sequential(layer, nn.Hardtanh(inplace=True))
    chain = SparseSequential(nn.Sequential(sparse, nn.Hardtanh(inplace=True)))
    inputs = torch.randn(5, 6)
    plain(inputs).sum().backward()
    chain(inputs).sum().backward()
    torch.testing.assert_close(sparse.values.grad, layer.weight.grad[mask])


def test_second_derivatives_of_a_chain_with_parameters_of_another_call():
    _, _, sparse = masked(nn.Linear(6, 4).double(), 0.5)
    chain = SparseSequential(nn.Sequential(sparse, nn.LeakyReLU(0.2)))
    values, bias = (torch.randn_like(p, requires_grad=True) for p in (sparse.values, sparse.bias))
    inputs = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)

    def run(*given):
        return torch.func.functional_call(chain, {"0.values": given[0], "0.bias": given[1]}, (given[2],))

    assert torch.autograd.gradgradcheck(run, (values, bias, inputs))


def test_a_part_of_a_chain_is_a_plain_sequence():
    _, _, sparse = masked(nn.Linear(6, 4), 0.5)
    chain = SparseSequential(nn.Sequential(sparse, nn.ReLU(), nn.Tanh()))
    assert chain[0] is sparse
    inputs = torch.randn(3, 6)
    torch.testing.assert_close(torch.tanh(chain[:-1](inputs)), chain(inputs))


def test_a_fresh_norm_without_momentum_is_evaluated():
    norm = nn.BatchNorm2d(4, momentum=None).eval()
    images = torch.randn(8, 4, 3, 5)
    torch.testing.assert_close(LanesNorm(norm)(lanes(images)), norm(images))


def test_second_derivatives_of_a_chain_that_is_passed_twice_or_holds_a_layer_twice():
    torch.manual_seed(0)
    _, _, layer = masked(nn.Linear(8, 8).double(), 1.0)
    for chain, passes in ((nn.Sequential(layer), 2), (nn.Sequential(layer, nn.ReLU(), layer), 1)):
        out = torch.randn(5, 8, dtype=torch.float64)
        for _ in range(passes):
            out = SparseSequential(chain)(out)
        total = out.square().sum()
        (once,) = torch.autograd.grad(total, layer.values, retain_graph=True)
        (again,) = torch.autograd.grad(total, layer.values, create_graph=True)
        torch.testing.assert_close(again, once)


@pytest.mark.parametrize("size", [1, 3])
def test_a_norms_gradients_are_right_in_whatever_layout_they_come(size):
    torch.manual_seed(0)
    norm, images, weight = nn.BatchNorm2d(8), torch.randn(64, 8, size, size), torch.randn(64, 8, size, size)
    for given_grad in (weight, lanes(weight), weight.contiguous(memory_format=torch.channels_last)):
        found = []
        for module, inputs in ((norm, images.clone()), (LanesNorm(norm), lanes(images))):
            inputs.requires_grad_()
            (slope,) = torch.autograd.grad(module(inputs), inputs, given_grad, create_graph=True)
            found += [slope, torch.autograd.grad(slope.square().sum(), inputs)[0]]
        torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[3], found[1], rtol=1e-3, atol=1e-4)


def test_what_follows_an_enlargement_may_change_its_output_in_place():
    for module in (nn.Upsample(scale_factor=1), nn.Upsample(size=(2, 2))):
        for images in (torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 1, 1)):
            laid = lanes(images)
            with torch.no_grad():
                LanesUpsample(module)(laid).add_(1)
            assert not laid.any()


def test_options_in_lists_are_those_in_tuples():
    images = lanes(torch.randn(2, 3, 4, 4))
    for module, stand_in in ((nn.Upsample(size=[8, 8]), LanesUpsample), (nn.AvgPool2d([2, 2]), LanesPool)):
        torch.testing.assert_close(stand_in(module)(images), module(images))


def test_tanh_of_another_device_is_left_to_torch():
    assert FastTanh(nn.Tanh())(torch.empty(4, 4, device="meta")).device.type == "meta"


def test_what_is_set_on_a_stand_in_is_on_the_original_afterwards():
    norm = nn.BatchNorm2d(4)
    stand_in = LanesNorm(norm)
    stand_in.momentum = 0.5
    stand_in.eval()
    assert stand_in.dense() is norm
    assert norm.momentum == 0.5
    assert not norm.training


def test_layers_that_do_not_fit_each_other_are_refused_in_a_chain_too():
    _, _, one = masked(nn.Linear(8, 4), 1.0)
    _, _, other = masked(nn.Linear(50, 3), 1.0)
    with pytest.raises(ValueError, match="takes 50 numbers"):
        SparseSequential(nn.Sequential(one, other))(torch.randn(4, 8))


def test_weights_with_strides_are_read_as_they_are():
    layer, _, sparse = masked(nn.Linear(6, 4), 0.5)
    wide = torch.stack([sparse.values.detach(), torch.full_like(sparse.values, 9.0)], 1)
    sparse.load_state_dict({"values": wide[:, 0], "bias": layer.bias.detach()}, assign=True)
    torch.testing.assert_close(sparse(torch.ones(2, 6)), layer(torch.ones(2, 6)))


def test_images_smaller_than_the_kernel_are_refused():
    _, _, sparse = masked(nn.Conv2d(3, 4, 3), 0.5)
    with pytest.raises(ValueError, match="smaller than the kernel"):
        sparse(torch.randn(2, 3, 2, 2))

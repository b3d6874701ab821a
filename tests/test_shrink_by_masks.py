"""The masks decide what goes, not values: what starts from zero stays and trains on; and every check can fail."""

import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import gentickets as gt
from gentickets.channels.shrinking import Shrinking
from gentickets.masks.names import clone, named_weights


def one(net: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"net": net})


def sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def assert_same_numbers(masked: nn.Module, small: nn.Module, *given, **more) -> None:
    """Both give the same for a call, chance falling alike."""
    results = []
    for net in (masked.eval(), small.eval()):
        torch.manual_seed(3)
        with torch.no_grad():
            results.append(net(*given, **more))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5 * float(results[0].abs().max()))


def trained(model: nn.Module, call, masks: gt.Masks, steps: int = 4, optimizer=None) -> nn.Module:
    """Some steps of SGD towards a fixed target, norms by their statistics."""
    model.eval()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    with masks.hold(model, optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            (call(model) - 1).square().mean().backward()
            optimizer.step()
    return model


# -- what starts from zero ------------------------------------------------------------------------------------


class ZeroGain(nn.Module):
    """A residual branch whose last gain starts from 0 (Goyal et al. 2017; the default of timm's ResNets)."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.norm, self.out = nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x):
        x = self.stem(x)
        return self.out(x + self.norm(self.b(torch.relu(self.a(x)))))


class ZeroConvolution(nn.Module):
    """A branch behind a convolution of zeros, weight and bias (Zhang et al. 2023, ControlNet)."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.zero, self.out = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 3, 1)
        nn.init.zeros_(self.zero.weight), nn.init.zeros_(self.zero.bias)

    def forward(self, x):
        x = self.stem(x)
        return self.out(x + self.zero(torch.relu(self.a(x))))


class ZeroGate(nn.Module):
    """A branch whose gate is made by a linear layer of zeros (Peebles & Xie 2023, adaLN-zero)."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.gate, self.out = nn.Linear(3, 8), nn.Conv2d(8, 3, 1)
        nn.init.zeros_(self.gate.weight), nn.init.zeros_(self.gate.bias)

    def forward(self, x):
        gate = self.gate(x.mean((2, 3)))[:, :, None, None]
        x = self.stem(x)
        return self.out(x + gate * self.b(torch.relu(self.a(x))))


class ZeroOut(nn.Sequential):
    """A last layer of zeros, as denoisers have: nothing reaches the output yet."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        nn.init.zeros_(self[2].weight), nn.init.zeros_(self[2].bias)


FROM_ZERO = [ZeroGain, ZeroConvolution, ZeroGate, ZeroOut]


@pytest.mark.parametrize("kind", FROM_ZERO)
@pytest.mark.parametrize("covered", [True, False])
def test_dense_masks_cut_nothing_whatever_starts_from_zero(kind, covered):
    torch.manual_seed(0)
    model, x = one(kind()), {"net": torch.randn(2, 3, 6, 6)}
    masks = gt.Masks.dense(model) if covered else gt.Masks({})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = gt.shrink(model, masks, x)
    assert sizes(small) == sizes(model)


@pytest.mark.parametrize("kind", FROM_ZERO)
def test_what_starts_from_zero_trains_on_in_the_smaller_network(kind):
    torch.manual_seed(0)
    model, x = one(kind()).double(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    groups = gt.channel_groups(model, {"net": x})
    masks = gt.prune(gt.random_scores(model, 0), fraction=0.5, granularity="channel", groups=groups, scope="layer")
    shrinking = Shrinking(model, masks, {"net": x})
    assert sum(shrinking.removed.values()) == int((~groups.kept(masks)).sum()) > 0
    masked = trained(masks.apply_(clone(model)), lambda net: net["net"](x), masks)
    small = trained(shrinking.model, lambda net: net["net"](x), shrinking.masks)
    zeros = [name for name, weight in named_weights(model).items() if not weight.any()]
    for name in zeros:
        assert named_weights(small)[name].any()
    torch.testing.assert_close(small["net"](x), masked["net"](x), rtol=0, atol=1e-12)


def test_zeros_go_where_masks_say_so():
    """To cut by value is a matter of making masks of the values."""
    torch.manual_seed(0)
    model, x = one(ZeroGain()), {"net": torch.randn(2, 3, 6, 6)}
    nonzero = gt.Masks({name: weight.detach().ne(0) for name, weight in model.named_parameters()})
    with pytest.warns(UserWarning, match="one is kept"):
        small = gt.shrink(model, nonzero, x)
    assert small["net"].a.out_channels == 1


def test_what_a_layer_that_no_mask_covers_makes_is_alive():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model = one(net)
    with torch.no_grad():
        net[2].weight[:3] = 0
        net[2].bias[:3] = 0
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[:2] = False
    masks = gt.Masks({"net.0.weight": mask, "net.0.bias": mask[:, 0]})
    small = gt.shrink(model, masks, {"net": torch.randn(3, 4)})
    assert [layer.out_features for layer in (small["net"][0], small["net"][2])] == [4, 6]


def test_a_channel_that_no_living_weight_reads_goes():
    torch.manual_seed(0)
    model = one(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, [1, 4]] = False
    assert gt.shrink(model, gt.Masks({"net.2.weight": mask}), {"net": torch.randn(3, 4)})["net"][0].out_features == 4


def test_a_constant_that_training_can_change_stays_where_a_border_would_show_it():
    """A filter without weights and a bias that starts from 0, read with zero padding: not the same as a bias."""
    torch.manual_seed(0)
    model = one(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)))
    nn.init.zeros_(model["net"][0].bias)
    mask = torch.ones(3, 1, 3, 3, dtype=torch.bool)
    mask[1] = False
    masks, x = gt.Masks({"net.0.weight": mask}), {"net": torch.randn(2, 1, 6, 6)}
    assert gt.shrink(model, masks, x)["net"][0].out_channels == 3
    masks = masks.replace({"net.0.bias": torch.tensor([True, False, True])})
    assert gt.shrink(model, masks, x)["net"][0].out_channels == 2


def test_a_pruned_bias_that_takes_up_a_constant_is_alive():
    torch.manual_seed(0)
    model = one(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    first = torch.ones(3, 4, dtype=torch.bool)
    first[1] = False
    second = torch.ones(2, 3, dtype=torch.bool)
    second[0, 1] = False
    masks = gt.Masks({"net.0.weight": first, "net.2.weight": second, "net.2.bias": torch.zeros(2, dtype=torch.bool)})
    shrinking = Shrinking(model, masks, {"net": torch.randn(3, 4)})
    shrinking.masks.audit(shrinking.model)
    assert shrinking.model["net"][0].out_features == 2
    assert shrinking.masks["net.2.bias"].tolist() == [False, True]


def test_weights_that_are_shared_are_shared_in_the_smaller_network():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(*s) for s in ((6, 6), (6, 5), (5, 6), (6, 6)))
            self.d.weight = self.a.weight

        def forward(self, x):
            return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))

    torch.manual_seed(0)
    model, x = one(Tied()), {"net": torch.randn(3, 6)}
    groups = gt.channel_groups(model, x)
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    small = gt.shrink(model, masks, x)
    assert small["net"].b.out_features == 3
    assert small["net"].a.weight is small["net"].d.weight


# -- what components take and give ----------------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    sample: Tensor
    more: object = None


class Denoiser(nn.Module):
    """Takes an image, perhaps a time, and a scale; gives what it is asked to give it in."""

    def __init__(self, form="tensor"):
        super().__init__()
        self.form = form
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 3, 1)
        self.time = nn.Linear(1, 8)

    def forward(self, x, t=None, scale=1.0):
        h = self.a(x)
        if t is not None:
            h = h + self.time(t[:, None])[:, :, None, None]
        out = self.c(torch.concat(tensors=(h, self.b(torch.relu(h))), axis=1)) * scale
        return {
            "tensor": out,
            "dict": {"sample": out, "nothing": None, "deep": (x, {"mean": out.mean((2, 3))})},
            "tuple": (out, None),
            "dataclass": Result(out),
        }[self.form]


INPUTS = {
    "tensor": torch.randn(2, 3, 6, 6),
    "tuple": (torch.randn(2, 3, 6, 6), torch.rand(2)),
    "list": [torch.randn(2, 3, 6, 6), None, 2],
    "dict": {"t": torch.rand(2), "scale": 0.5, "x": torch.randn(2, 3, 6, 6)},
}


def call(net: nn.Module, given) -> Tensor:
    if isinstance(given, dict):
        return net(**given)
    return net(*given) if isinstance(given, tuple | list) else net(given)


@pytest.mark.parametrize("given", list(INPUTS))
@pytest.mark.parametrize("form", ["tensor", "dict", "tuple", "dataclass"])
@pytest.mark.parametrize("holder", ["component", "dict of modules", "bare"])
def test_any_nesting_of_what_a_component_takes_and_gives(given, form, holder):
    if holder == "bare" and given == "dict":
        return  # a mapping is component → input
    torch.manual_seed(0)
    net = Denoiser(form)
    model = {"component": one(net), "dict of modules": {"net": net}, "bare": net}[holder]
    inputs = INPUTS[given] if holder == "bare" else {"net": INPUTS[given]}
    groups = gt.channel_groups(model, inputs)
    assert len(groups) == 16
    scores = gt.magnitude(net if holder == "bare" else one(net))
    masks = gt.prune(scores, fraction=0.5, granularity="channel", groups=groups, scope="layer")
    shrinking = Shrinking(model, masks, inputs)
    name = "" if holder == "bare" else "net"
    assert shrinking.removed == {name: 8}
    numbers = 2 * 2 * 3 * 36
    assert shrinking.compared[name] > (numbers * 2 + 2 * 2 * 3 if form == "dict" else numbers)
    small = shrinking.model if holder == "bare" else shrinking.model["net"]
    masked = masks.apply_(clone(model))
    masked = masked if holder == "bare" else masked["net"]
    small.form = masked.form = "tensor"
    with torch.no_grad():
        torch.testing.assert_close(call(small, INPUTS[given]), call(masked, INPUTS[given]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("result", [None, 3, "text"])
def test_a_component_that_gives_nothing_to_compare_is_refused(result):
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            self.layer(x)
            return result

    model, x = one(Silent()), {"net": torch.randn(2, 3)}
    with pytest.raises(gt.GenticketsError, match=r"'net' gives no tensor of real numbers .* nothing can be compared"):
        gt.shrink(model, gt.Masks.dense(model), x)


class Odd:
    """Neither a container nor a dataclass."""


class Wrapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.layer = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        odd = Odd()
        odd.value = self.layer(self.first(x) if isinstance(x, Tensor) else x)
        return odd


def test_a_result_of_any_class_is_followed_and_so_is_code_that_asks_for_types():
    model, x = one(Wrapping()), {"net": torch.randn(2, 3)}
    groups = gt.channel_groups(model, x)
    assert len(groups) == 4
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    assert Shrinking(model, masks, x).compared == {"net": 2 * 2 * 3 + 3 * 3}  # in a batch of 3 too


# -- what is a constant ---------------------------------------------------------------------------------------


class Holding(nn.Module):
    """Channels without their inputs hold `relu(bias)`, and what its code makes of that before `last` reads it."""

    def __init__(self, make, images=False, strength=1.0):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1) if images else nn.Linear(4, 6)
        self.last, self.make, self.strength = nn.Linear(6, 3), make, strength
        nn.init.uniform_(self.first.bias, 0.1, 0.5)
        self.noise = nn.Parameter(torch.zeros(1))

    def forward(self, x, alpha=1.0, count=3):
        return self.last(self.make(self, torch.relu(self.first(x)), alpha, count))


def without_inputs(model: Holding) -> gt.Masks:
    mask = torch.ones_like(model.first.weight, dtype=torch.bool)
    mask[:2] = False
    return gt.Masks({"first.weight": mask})


def images(side, batch=2):
    return torch.randn(batch, 3, side, side)


OF_THE_EXAMPLE = {
    "a sum over places": (lambda net, h, a, n: h.sum((2, 3)), (images(8),), (images(16),)),
    "a number of places": (lambda net, h, a, n: h.mean((2, 3)) * h.shape[-1] ** -0.5, (images(8),), (images(12),)),
    "a number of rows": (lambda net, h, a, n: h / len(h), (torch.randn(4, 4),), (torch.randn(7, 4),)),
    "a length": (lambda net, h, a, n: h / h.shape[1], (torch.randn(2, 4, 4),), (torch.randn(2, 6, 4),)),
    "a fraction": (lambda net, h, a, n: h * a, (torch.randn(4, 4), 0.5), (torch.randn(4, 4), 0.9)),
    "a fraction at which it is zero": (
        lambda net, h, a, n: h * (a - 0.5), (torch.randn(4, 4), 0.5), (torch.randn(4, 4), 0.9),
    ),
    "a whole number": (lambda net, h, a, n: h / n, (torch.randn(4, 4), 1.0, 5), (torch.randn(4, 4), 1.0, 9)),
    "one draw": (lambda net, h, a, n: h + torch.randn(()), (torch.randn(4, 4),), (torch.randn(4, 4),)),
    "a draw for each row": (
        lambda net, h, a, n: h + torch.randn(len(h), 1), (torch.randn(4, 4),), (torch.randn(4, 4),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(OF_THE_EXAMPLE))
def test_what_is_of_the_example_alone_is_no_constant(kind):
    torch.manual_seed(0)
    make, example, other = OF_THE_EXAMPLE[kind]
    model = Holding(make, images=example[0].dim() == 4)
    masks = without_inputs(model)
    shrinking = Shrinking(model, masks, example)
    masked = masks.apply_(clone(model))
    assert shrinking.removed == {"": 0}
    assert not shrinking.folded
    assert_same_numbers(masked, shrinking.model, *example)
    assert_same_numbers(masked, shrinking.model, *other)


def test_a_noise_whose_strength_is_still_zero_is_no_constant():
    model, x = Holding(lambda net, h, a, n: h + net.noise * torch.randn(len(h), 1)), torch.randn(4, 4)
    small, masked = gt.shrink(model, without_inputs(model), x), without_inputs(model).apply_(clone(model))
    for net in (small, masked):
        net.noise.data.fill_(0.7)
    assert_same_numbers(masked, small, x)


def test_what_is_a_constant_in_every_call_is_folded_and_told():
    """Of images of other sizes, batches and numbers too."""
    model = Holding(lambda net, h, a, n: h.mean((2, 3)), images=True)
    shrinking = Shrinking(model, without_inputs(model), images(8))
    assert shrinking.removed == {"": 2}
    assert shrinking.folded == {"last.bias": 3}
    masked = without_inputs(model).apply_(clone(model))
    for other in (images(8), images(16), images(8, batch=5)):
        assert_same_numbers(masked, shrinking.model, other)


def test_a_constant_that_hangs_on_an_attribute_is_told_with_its_name():
    model = Holding(lambda net, h, a, n: h * net.strength)
    with pytest.warns(UserWarning, match=r"folded into biases with strength as they are now: shrink again where"):
        assert Shrinking(model, without_inputs(model), torch.randn(4, 4)).removed == {"": 2}


# -- the comparison -------------------------------------------------------------------------------------------


class CountsItsChannels(nn.Module):
    """Code that reads a width off a layer: the shrunk network computes something else."""

    def __init__(self, factor):
        super().__init__()
        self.first, self.second, self.factor = nn.Linear(4, 6), nn.Linear(6, 3), factor

    def forward(self, x):
        return self.second(torch.relu(self.first(x))) * self.factor(self.first.out_features)


def half_of_the_first(model: nn.Module, count: int = 3) -> gt.Masks:
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[:count] = False
    return gt.Masks({"net.first.weight": mask, "net.first.bias": mask[:, 0]})


@pytest.mark.parametrize("factor", [float, lambda n: float("nan") if n < 6 else 1.0, lambda n: torch.ones(n - 5)])
def test_channels_that_the_code_counts_stay(factor):
    model, x = one(CountsItsChannels(factor)), {"net": torch.randn(2, 4)}
    assert gt.shrink(model, half_of_the_first(model), x)["net"].first.out_features == 6
    assert "its code says how many channels" in gt.channel_groups(model, x).whole["net.first"]


def mostly(otherwise):
    """Does not mind an even number of channels; what a trial with a few choices of them does not see."""
    return lambda n: 1.0 if n % 2 == 0 else otherwise(n)


@pytest.mark.parametrize("factor", [float, lambda n: float("nan"), lambda n: torch.ones(n + 5)])
def test_channels_that_only_these_masks_show_to_be_counted_stay(factor):
    """The channels that really go are tried too, before anything is cut."""
    model, x = one(CountsItsChannels(mostly(factor))), torch.randn(2, 4)
    assert len(gt.channel_groups(model, {"net": x})) == 6
    masks = half_of_the_first(model, 3)
    with pytest.warns(UserWarning, match=r"'net': 3 channels that the masks prune stay: its code does something else"):
        small = gt.shrink(model, masks, {"net": x})
    assert small["net"].first.out_features == 6
    assert_same_numbers(masks.apply_(clone(model))["net"], small["net"], x)


class CountsWhereItDoesNotShow(nn.Module):
    """A network that adds a shortcut wherever widths happen to agree; `last` starts from zero, as in diffusion."""

    def __init__(self, zeros=True):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 3, 1)
        if zeros:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x):
        h = F.silu(self.a(x))
        k = F.silu(self.b(h))
        return self.last(k + h if k.shape == h.shape else k)


@pytest.mark.parametrize("zeros", [True, False])
def test_widths_that_agree_by_chance_bring_no_other_network(zeros):
    model, x = CountsWhereItDoesNotShow(zeros), torch.randn(2, 3, 6, 6)
    mask = torch.arange(16) < 8
    masks = gt.Masks({"a.weight": mask[:, None, None, None].expand(16, 3, 3, 3), "a.bias": mask})
    with pytest.warns(UserWarning, match="8 channels that the masks prune stay"):
        small = gt.shrink(model, masks, x)
    masked = masks.apply_(clone(model))
    for net in (small, masked):
        net.last.weight.data = torch.linspace(-1, 1, 24).reshape(3, 8, 1, 1)
    assert_same_numbers(masked, small, x)


class CountsBehindZeros(nn.Module):
    """What a width is divided by shows only where the layer before it holds something."""

    def __init__(self, scale):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 3)
        for tensor in (self.second.weight, self.second.bias, self.last.bias):
            tensor.data *= scale

    def forward(self, x):
        return self.last(self.second(torch.relu(self.first(x))) / mostly(float)(self.first.out_features))


@pytest.mark.parametrize("scale", [0, 1e-4])
def test_a_difference_that_zeros_or_small_numbers_hide_is_one(scale):
    model = CountsBehindZeros(scale)
    masks = gt.Masks({name.removeprefix("net."): mask for name, mask in half_of_the_first(one(model), 3).items()})
    with pytest.raises(gt.GenticketsError, match=r"differs from the masked one by .*(no longer zero)?; keep"):
        gt.shrink(model, masks, torch.randn(2, 4))


def test_equal_outputs_of_an_example_of_zeros_are_not_enough():
    model = one(CountsItsChannels(mostly(float)))
    with torch.no_grad():
        for layer in (model["net"].first, model["net"].second):
            layer.bias.zero_()
    with pytest.raises(gt.GenticketsError, match="differs from the masked one"):
        gt.shrink(model, half_of_the_first(model), {"net": torch.zeros(2, 4)})


def test_what_draws_noise_is_compared_with_the_same_noise():
    class Sampling(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mean, self.spread = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            h = torch.relu(self.first(x))
            mean = self.mean(h)
            return mean + torch.randn_like(mean) * (0.5 * self.spread(h)).exp()

    torch.manual_seed(0)
    model, x = one(Sampling()), {"net": torch.randn(2, 4)}
    assert gt.shrink(model, half_of_the_first(model), x)["net"].first.out_features == 3


def test_chance_that_falls_on_channels_keeps_them_whole():
    """`F.dropout` is on unless it is told of evaluation: its draws over fewer channels would be others."""

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.third(F.dropout(torch.relu(self.second(torch.relu(self.first(x)))), 0.3))

    model, x = one(Dropping()), {"net": torch.randn(2, 4)}
    groups = gt.channel_groups(model, x)
    assert list(groups.layers) == ["net.first"]
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    assert gt.shrink(model, masks, x)["net"].first.out_features == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_of_any_dtype_is_no_difference(dtype):
    torch.manual_seed(0)
    layers = [nn.Linear(64, 48), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Linear(48, 48), nn.ReLU()]
    model = one(nn.Sequential(*layers, nn.Linear(48, 64))).to(dtype)
    x = {"net": torch.randn(4, 64, dtype=dtype)}
    groups = gt.channel_groups(model, x)
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    shrinking = Shrinking(model, masks, x)
    assert shrinking.removed == {"net": 24 * 7}
    assert next(shrinking.model.parameters()).dtype == dtype


def test_every_module_is_in_the_mode_that_it_was_in():
    model = nn.ModuleDict({"net": nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))})
    model.train()
    model["net"][1].eval()  # a frozen norm
    modes = [layer.training for layer in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = {"net": torch.randn(2, 1, 8, 8)}
    gt.channel_groups(model, x)
    small = gt.shrink(model, gt.Masks.dense(model), x)
    assert [layer.training for layer in model.modules()] == modes
    assert [layer.training for layer in small.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


# -- norms and states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_singular_vectors_are_cut_by_the_axis_of_their_norm(norm, axis):
    """Training mode goes on from the vectors: one more forward pass moves both networks alike."""
    torch.manual_seed(0)
    axis = axis % 4 if norm is nn.utils.spectral_norm and axis < 0 else axis
    if axis == 3:
        return  # the old form takes no axis from the end
    flat = axis if axis >= 0 else -1
    net = nn.Sequential(
        norm(nn.Conv2d(3, 12, 3), dim=axis),
        nn.ReLU(),
        norm(nn.ConvTranspose2d(12, 6, 3), dim=axis),
        nn.ReLU(),
        nn.Flatten(),
        norm(nn.Linear(6 * 64, 10), dim=flat),
        nn.ReLU(),
        norm(nn.Linear(10, 4), dim=flat),
    ).double()
    model, x = one(net), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    groups = gt.channel_groups(model, {"net": x})
    assert len(groups) == 12 + 6 + 10
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups, scope="layer")
    masked = masks.apply_(clone(model)).train()
    for _ in range(3):
        masked["net"](x)  # the vectors are those of masked weights
    shrinking = Shrinking(masked, masks, {"net": x})
    assert sum(shrinking.removed.values()) == 14
    small = shrinking.model
    for _ in range(2):
        torch.testing.assert_close(small["net"](x), masked["net"](x), rtol=0, atol=1e-9)


def test_state_of_another_shape_than_its_weight_is_not_carried_over():
    torch.manual_seed(0)
    model, x = one(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))), {"net": torch.randn(4, 8)}
    groups = gt.channel_groups(model, x)
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    old = torch.optim.Adafactor(model.parameters(), lr=0.01)
    trained(model, lambda net: net["net"](x["net"]), masks, optimizer=old)
    shrinking = Shrinking(model, masks, x)
    new = torch.optim.Adafactor(shrinking.model.parameters(), lr=0.01)
    with pytest.raises(gt.GenticketsError, match=r"Adafactor keeps '\w+' of 'net\.0\.weight' in another shape") as told:
        shrinking.carry_state(old, new, model)
    assert "\n" not in str(told.value)
    assert not new.state


class Shampoo(torch.optim.Optimizer):
    """Keeps a sum over rows and one over columns of a matrix (Gupta et al. 2018), and a momentum."""

    def __init__(self, params, lr=0.05, told=True):
        super().__init__(params, {"lr": lr} if told else {})

    @torch.no_grad()
    def step(self, closure=None):
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            state["momentum"] = weight.grad.clone()
            if weight.dim() == 2:
                state["left"], state["right"] = weight.grad @ weight.grad.T, weight.grad.T @ weight.grad
            weight -= 0.05 * state["momentum"]


class Momentum(Shampoo):
    """Its momentum alone."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state.pop("left", None), state.pop("right", None)


class Particular(Momentum):
    """Is not made by its defaults."""

    def __init__(self, params, more):
        super().__init__(params)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kind", "refused"), [(Shampoo, "left"), (Momentum, ""), (lambda p: Particular(p, 1), "momentum"),
                          (torch.optim.Adam, "")],
)  # fmt: skip
def test_state_of_a_square_weight_is_cut_only_where_it_is_a_number_for_each_weight(kind, refused, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias), nn.ReLU(), nn.Linear(8, 8, bias))
    x = torch.randn(4, 8)
    groups = gt.channel_groups(model, x)
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    old = kind(model.parameters())
    model(x).sum().backward()
    old.step()
    shrinking = Shrinking(model, masks, x)
    new = kind(shrinking.model.parameters())
    if refused:
        with pytest.raises(
            gt.GenticketsError, match=rf"keeps '{refused}' of '0\.weight', which was cut, .* leave"
        ) as told:
            shrinking.carry_state(old, new, model)
        assert "\n" not in str(told.value)
        return
    shrinking.carry_state(old, new, model)
    for weight in shrinking.model.parameters():
        assert {value.shape for value in new.state[weight].values() if value.numel() > 1} == {weight.shape}


@pytest.mark.parametrize("kind", ["Adam", "SGD", "RMSprop", "Rprop", "ASGD", "Adagrad", "NAdam", "Adadelta"])
def test_steps_go_on_with_the_state_that_is_carried_over(kind):
    torch.manual_seed(0)
    model = one(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8))).double()
    x = torch.randn(4, 8, dtype=torch.float64)
    options = {"momentum": 0.9} if kind == "SGD" else {}
    build = getattr(torch.optim, kind)
    groups = gt.channel_groups(model, {"net": x})
    masks = gt.prune(gt.magnitude(model), fraction=0.5, granularity="channel", groups=groups)
    old = build(model.parameters(), lr=0.01, **options)
    trained(model, lambda net: net["net"](x), masks, optimizer=old)
    shrinking = Shrinking(model, masks, {"net": x})
    new = build(shrinking.model.parameters(), lr=0.01, **options)
    shrinking.carry_state(old, new, model)
    trained(model, lambda net: net["net"](x), masks, optimizer=old)
    trained(shrinking.model, lambda net: net["net"](x), shrinking.masks, optimizer=new)
    torch.testing.assert_close(shrinking.model["net"](x), model["net"](x), rtol=0, atol=1e-10)


# -- lengths of weight norm that are pruned ---------------------------------------------------------------------

LENGTH, DIRECTION = (f"parametrizations.weight.original{number}" for number in (0, 1))


def under_weight_norm(norm, dim: int) -> nn.Module:
    return nn.Sequential(*(norm(nn.Linear(*sides), dim=dim) for sides in ((4, 5), (5, 2))))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm], ids=["new", "old"])
@pytest.mark.parametrize("seed", [7, 8, 10])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*every channel of")
def test_filters_of_length_0_keep_a_direction(norm, seed):
    torch.manual_seed(seed)
    layers = nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(6, 6, 3), nn.Conv1d(6, 3, 1)
    net = nn.Sequential(*(part for layer in layers for part in (norm(layer), nn.ReLU())))
    masks = gt.prune(gt.random_scores(net, seed, include="*"), fraction=0.7)
    made = Shrinking(net, masks, torch.randn(5, 4, 7))
    assert_same_numbers(masks.apply_(clone(net)), made.masks.apply_(clone(made.model)), torch.randn(3, 4, 9))


def test_of_what_a_filter_of_length_0_reads_one_channel_stays():
    net = under_weight_norm(parametrizations.weight_norm, dim=0)
    masks = {name: mask.clone() for name, mask in gt.Masks.dense(net, include="*").items()}
    masks[f"0.{LENGTH}"][[1, 2, 3]] = masks["0.bias"][[1, 2, 3]] = False  # channels 1, 2 and 3 are dead
    masks[f"1.{LENGTH}"][0] = False
    masks[f"1.{DIRECTION}"][0, [0, 4]] = False  # the filter of length 0 reads nothing else
    masks[f"1.{DIRECTION}"][1, [1, 2, 3]] = False  # and nobody else reads them
    made = Shrinking(net, gt.Masks(masks), torch.randn(5, 4))
    assert made.removed == {"": 2}
    assert sizes(made.model)[f"1.{DIRECTION}"] == (2, 3)


def test_of_what_a_column_of_length_0_leads_to_one_channel_stays():
    net = under_weight_norm(parametrizations.weight_norm, dim=1)
    masks = {name: mask.clone() for name, mask in gt.Masks.dense(net, include="*").items()}
    masks[f"0.{LENGTH}"][:, 0] = masks["0.bias"][[1, 2, 3]] = False
    masks[f"0.{DIRECTION}"][[0, 4], 0] = False  # the column of length 0 leads to channels 1, 2 and 3
    masks[f"0.{DIRECTION}"][1:4, 1:] = masks[f"1.{LENGTH}"][:, 1:4] = False  # and nothing else has to do with them
    made = Shrinking(net, gt.Masks(masks), torch.randn(5, 4))
    assert made.removed == {"": 2}
    assert sizes(made.model)[f"0.{DIRECTION}"] == (3, 4)

"""A zero in a weight that a module makes another of: refused where it ends, left alone where it does not."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gentickets as gt

IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Made(nn.Module):
    """Multiplies with what it makes of the weight of the layer in it."""

    def __init__(self, make, layer: nn.Module | None = None, use=F.conv2d) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 8, 3, bias=False) if layer is None else layer
        self.make, self.use = make, use
        self.gain = nn.Parameter(torch.rand(8, 1, 1, 1) + 0.5)
        self.a, self.b = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 27))
        self.other = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.register_buffer("base", torch.randn(8, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.make(self.inner.weight, self))


def standardised(w: Tensor, net: Made) -> Tensor:
    return (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True) * net.gain


ENDS = {
    "centred": lambda w, net: w - w.mean((1, 2, 3), keepdim=True),
    "standardised": standardised,
    "by batch norm": lambda w, net: F.batch_norm(w.reshape(1, 8, -1), None, None, training=True).view_as(w),
    "softplus": lambda w, net: F.softplus(w),
    "exp": lambda w, net: w.exp(),
}
KEEPS = {
    "equalised learning rate": lambda w, net: w * 0.1,
    "gain": lambda w, net: w * net.gain,
    "demodulated": lambda w, net: w * net.gain * ((w * net.gain) ** 2).sum((1, 2, 3), keepdim=True).rsqrt(),
    "low-rank update": lambda w, net: w + (net.a @ net.b).view_as(w),
    "merged branches": lambda w, net: w + net.other,
    "drawn": lambda w, net: w + net.other * torch.randn_like(w),
    "upon a base": lambda w, net: w + net.base,
    "turned": lambda w, net: w.rot90(1, (-2, -1)),
    "quantised": lambda w, net: (((w / 0.01 + 3).round().clamp(0, 255)) - 3) * 0.01,
    "straight through": lambda w, net: w + (w.round() - w).detach(),
}


def net_of(make) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Made(make), nn.ReLU(), nn.Conv2d(8, 3, 3))


def pruned(net: nn.Module) -> gt.Masks:
    return gt.prune(gt.magnitude(net), to_sparsity=0.5, scope="layer")


@pytest.mark.parametrize("how", ENDS)
def test_a_weight_whose_zeros_end_in_the_module_around_its_layer_is_refused(how):
    net = net_of(ENDS[how])
    masks, before = pruned(net), copy.deepcopy(net.state_dict())
    words = r"^'0\.inner\.weight' cannot be pruned: the forward pass of Made .*exclude=\('0\.inner\.\*',\)"
    with pytest.raises(gt.MaskError, match=words):
        gt.check_connected(net, masks, IMAGES)
    with pytest.raises(gt.MaskError, match=words):
        gt.accelerate(net, masks, IMAGES)
    left = gt.prune(gt.magnitude(net, exclude=("0.inner.*",)), to_sparsity=0.5)
    gt.check_connected(net, left, IMAGES)
    gt.check_connected(net, gt.Masks.dense(net), IMAGES)
    with torch.no_grad():
        assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items() if not n.startswith(("0.inner", "2")))


@pytest.mark.parametrize("how", KEEPS)
def test_a_weight_whose_zeros_are_left_is_pruned(how):
    net = net_of(KEEPS[how])
    gt.check_connected(net, pruned(net), IMAGES)


@pytest.mark.parametrize(
    "use",
    [F.linear, lambda x, w: x @ w.t(), lambda x, w: (w @ x.t()).t(), lambda x, w: torch.einsum("bi,oi->bo", x, w)],
)
@pytest.mark.parametrize("ends", [True, False])
def test_whatever_it_multiplies_by(use, ends):
    """Also where a batch is as long as a layer is wide, so that all that passes through has its shape."""
    torch.manual_seed(0)
    made = Made(lambda w, net: F.softplus(w) if ends else 2 * w, nn.Linear(6, 6, bias=False), use)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), made)
    if ends:
        with pytest.raises(gt.MaskError, match=r"'2\.inner\.weight' cannot be pruned"):
            gt.check_connected(net, pruned(net), torch.rand(6, 6))
    else:
        gt.check_connected(net, pruned(net), torch.rand(6, 6))


class Writing(nn.Conv2d):
    """Centres its weight in place, in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.sub_(self.weight.mean((1, 2, 3), keepdim=True))
        return super().forward(x)


def noisy(conv: nn.Module, *_: object) -> None:
    if conv.training:
        conv.weight.data.add_(float(np.random.rand() + random.random()))  # noqa: NPY002 - whatever a layer draws from


def hooked() -> nn.Module:
    conv = nn.Conv2d(3, 8, 3)
    conv.register_forward_pre_hook(noisy)
    return conv


@pytest.mark.parametrize(("make", "kind"), [(lambda: Writing(3, 8, 3), "Writing"), (hooked, "Conv2d")])
def test_a_weight_that_is_written_in_training_alone_is_refused(make, kind):
    net = nn.Sequential(make(), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 3, 3)).eval()
    masks, before = pruned(net), copy.deepcopy(net.state_dict())
    draws = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    with pytest.raises(
        gt.MaskError, match=rf"^'0\.weight' cannot be pruned: the forward pass of {kind}, in training, "
    ):
        gt.check_connected(net, masks, IMAGES)
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(draws[0], after[0])
    assert draws[1:] == after[1:]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net.training
    gt.check_connected(net, gt.prune(gt.magnitude(net, exclude=("0.weight",)), fraction=0.5), IMAGES)


def test_a_search_refuses_before_anything_is_trained():
    def train(*_):
        raise AssertionError("it trained")

    with pytest.raises(gt.MaskError, match="cannot be pruned: the forward pass of Made"):
        next(gt.imp(lambda: net_of(ENDS["exp"]), train, steps=2, rounds=1, example_inputs=IMAGES))

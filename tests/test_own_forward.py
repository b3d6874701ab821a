"""Layers that make another weight of theirs in a forward pass of their own: refused, where a zero is none in effect."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gentickets as gt


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class Positive(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.softplus(self.weight), self.bias)


class Centred(nn.ConvTranspose1d):
    def forward(self, x):
        return F.conv_transpose1d(x, weight=self.weight - self.weight.mean(), bias=self.bias)


class Equalised(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * self.in_features**-0.5, self.bias)


class Causal(nn.Conv2d):
    """Half of the kernel is never used, as in PixelCNN."""

    def forward(self, x):
        seen = torch.ones_like(self.weight)
        seen[..., 2:, :] = 0
        return F.conv2d(x, self.weight * seen, self.bias)


class Sign(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.sign() * self.weight.abs().mean(), self.bias)


class TwoArguments(nn.Linear):
    def forward(self, x, t):
        return F.linear(x + t, self.weight - 1, self.bias)


class ByHand(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T


class Noisy(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.dropout(self.weight, training=self.training), self.bias)


class Unit(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


@pytest.mark.parametrize("layer", [Standardised(3, 4, 3), Positive(6, 6), Centred(3, 4, 3)])
def test_a_layer_that_mixes_its_weights_is_refused_by_name(layer):
    model = nn.ModuleDict({"net": nn.Sequential(layer, nn.Linear(4, 4))})
    message = f"'net.0.weight' cannot be pruned: the forward pass of {type(layer).__name__} makes another weight"
    with pytest.raises(gt.MaskError, match=message):
        gt.magnitude(model)
    masks = gt.Masks({"net.0.weight": torch.rand(layer.weight.shape) < 0.5})
    for use in (masks.apply_, masks.hold):
        with pytest.raises(gt.MaskError, match=message):
            use(model)
    assert list(gt.Masks.dense(model, exclude="net.0.*")) == ["net.1.weight"]


@pytest.mark.parametrize("kind", [Equalised, Sign, TwoArguments, ByHand, Noisy])
def test_what_keeps_zeros_or_cannot_be_known_is_pruned(kind):
    model, state = nn.ModuleDict({"net": kind(6, 6)}), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    assert masks.counts() == {"net.weight": 18}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_are_not_used_do_no_harm():
    assert gt.prune(gt.magnitude(nn.ModuleDict({"net": Causal(2, 2, 3)})), to_sparsity=0.5).alive == 18


def test_a_layer_that_divides_by_its_weights_keeps_one_in_each_row():
    model = nn.ModuleDict({"net": Unit(6, 6)})
    model.net.weight.data[2] *= 1e-4
    with pytest.warns(UserWarning, match="the forward pass of Unit divides by"):
        masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
    assert masks["net.weight"].any(1).all()
    assert masks.apply_(model).net(torch.ones(1, 6)).isfinite().all()

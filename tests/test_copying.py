"""A copy of a model leads nowhere back to the model; one that would is refused by the name of what leads there."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import gentickets as gt
from gentickets.masks.names import clone

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def run(self, x):
        return self.b(self.a(x).relu())

    def look(self, layer, args, out):
        return out + self.b.bias

    def forward(self, x):
        return self.f(x) if hasattr(self, "f") else self.run(x)


class Holder:
    def __init__(self, function):
        self.function = function


class Slotted:
    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function


def wrapped(function):
    @functools.wraps(function)
    def inner(x):
        return function(x)

    return inner


def nested(layer):
    return lambda x: [layer(one) for one in x]


def of_a_local_class(net):
    layer = net.a

    class Local(Net):
        def forward(self, x):
            return layer(x)

    made = Local()
    made.a = layer
    return made


LEADING: dict[str, tuple[Callable[[Net], object], str]] = {
    "a list of functions": (lambda net: setattr(net, "f", [lambda x: net.a(x)]), "'f' uses the model itself"),
    "a dictionary": (lambda net: setattr(net.a, "f", {"x": ({"y": lambda x: net.b(x)},)}), r"'a\.f'"),
    "a default": (lambda net: setattr(net, "f", lambda x, layer=net.a: layer(x)), "'f' uses 'a' of the model"),
    "a keyword's default": (lambda net: setattr(net, "f", lambda x, *, layer=net.a: layer(x)), "'f' uses 'a'"),
    "a weight": (lambda net: setattr(net, "f", nested(net.a.weight)), "'f' uses 'a.weight'"),
    "a function within": (lambda net: setattr(net, "f", nested(net.a)), "'f' uses 'a'"),
    "a partial of one": (lambda net: setattr(net, "f", functools.partial(lambda k, x: net.a(x), 3)), "'f'"),
    "a decorated method": (lambda net: setattr(net, "f", wrapped(net.run)), "'f'"),
    "a cached method": (lambda net: setattr(net, "f", functools.cache(net.run)), "'f'"),
    "a method of a weight": (lambda net: setattr(net, "f", net.a.weight.mul), "'f' uses 'a.weight'"),
    "an object that has one": (lambda net: setattr(net, "f", Holder(lambda x: net.a(x))), "'f'"),
    "an object with slots": (lambda net: setattr(net, "f", Slotted(lambda x: net.a(x))), "'f'"),
    "a weak reference": (lambda net: setattr(net.b, "parent", weakref.ref(net)), r"'b\.parent' uses the model itself"),
    "a forward": (lambda net: setattr(net, "forward", lambda x: net.b(x)), "'forward'"),
    "a hook": (
        lambda net: net.b.register_forward_hook(lambda layer, args, out: out + net.a.weight.sum()),
        r"'b\._forward_hooks'",
    ),
    "a hook before": (
        lambda net: net.b.register_forward_pre_hook(lambda layer, args: net.a(args[0])),
        r"'b\._forward_pre_hooks'",
    ),
}


@pytest.mark.parametrize("what", LEADING)
def test_what_would_use_the_layers_of_the_original_is_refused_by_its_name(what):
    net = Net()
    make, said = LEADING[what]
    make(net)
    with pytest.raises(gt.MaskError, match=f"{said}.*make it a method") as caught:
        clone(net)
    assert "\n" not in str(caught.value)


def test_the_functions_of_a_class_made_in_a_function_are_looked_at_too():
    with pytest.raises(gt.MaskError, match="'forward' uses 'a'"):
        clone(of_a_local_class(Net()))


NET = Net()


def test_a_model_that_is_read_as_a_global_is_found():
    NET.f = lambda x: NET.a(x)
    try:
        with pytest.raises(gt.MaskError, match="'f' uses the model itself"):
            clone(NET)
        other = Net()
        other.f = lambda x: NET.a(x)  # of another model
        clone(other)
        other.f = lambda x: x.NET  # a name that is no global
        clone(other)
    finally:
        del NET.f


def frozen(net):
    extractor = nn.Linear(4, 4).requires_grad_(False)
    net.f = lambda x: extractor(x)


def noting(net):
    kept = []
    net.a.register_forward_hook(lambda layer, args, out: kept.append(out))
    net(X)


def normed(net):
    net.a, net.b = parametrizations.spectral_norm(net.a), parametrizations.weight_norm(net.b)


def masked(net):
    hold = gt.prune(gt.magnitude(net), fraction=0.5).hold(net)
    hold.__enter__()


APART: dict[str, Callable[[Net], object]] = {
    "a method": lambda net: setattr(net, "f", net.run),
    "a partial of a method": lambda net: setattr(net, "f", functools.partial(net.run)),
    "a partial with a weight": lambda net: setattr(
        net, "f", functools.partial(nn.functional.linear, weight=net.a.weight)
    ),
    "a forward that is a method": lambda net: setattr(net, "forward", types.MethodType(lambda s, x: s.b(x), net)),
    "a module that is no part of it": frozen,
    "functions of torch": lambda net: setattr(net, "f", torch.relu),
    "a hook that notes": noting,
    "a hook that is a method": lambda net: net.a.register_forward_hook(net.look),
    "norms": normed,
    "torch's pruning": lambda net: nn.utils.prune.l1_unstructured(net.a, "weight", 0.5),
    "torch.compile": lambda net: net.compile(),
    "held": masked,
    "its parent": lambda net: object.__setattr__(net.a, "parent", net),
}


@pytest.mark.parametrize("what", APART)
def test_what_leads_elsewhere_is_copied_and_is_the_copys_own(what):
    net = Net().eval()
    APART[what](net)
    copied = clone(net.eval())
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in net.parameters()}
    if what in ("held", "torch.compile"):
        return
    expected = net(X)
    assert torch.equal(copied(X), expected)
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
    assert torch.equal(copied(X), expected)


def test_whatever_a_pass_has_left_is_copied_without_its_graph():
    net = Net()
    given = net.a(X)
    net.given, net.b.more = [given, {"x": (given * 2,)}], Holder(given.sum())
    copied = clone(net)
    assert torch.equal(copied.given[0], given)
    assert copied.given[0] is not given
    assert torch.equal(copied.given[1]["x"][0], given * 2)
    for tensor in (copied.given[0], copied.given[1]["x"][0], copied.b.more.function):
        assert tensor.is_leaf
        assert not tensor.requires_grad
    assert not given.is_leaf


def test_what_cannot_be_copied_is_named():
    net = Net()
    net.b.drawn = (number for number in range(3))
    with pytest.raises(gt.MaskError, match=r"cannot be copied.*'b\.drawn', TypeError: cannot pickle 'generator'"):
        clone(net)


class OfFunctions(nn.Module):
    """Its layers are called by functions that close over it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)
        self.steps = [lambda h: self.a(h).relu(), lambda h: self.b(h)]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class Keeping(nn.Module):
    """It keeps what a layer gave, for a loss or a look at it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.given = nn.Linear(4, 8), nn.Linear(8, 4), []

    def forward(self, x):
        self.given = [self.a(x).relu()]
        return self.b(self.given[0])


def train(model, masks, start_step, end_step):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with masks.hold(model, optimizer):
        for _ in range(start_step, end_step):
            optimizer.zero_grad()
            (model(X) - X).square().mean().backward()
            optimizer.step()


def test_a_search_refuses_a_model_of_functions_before_it_trains():
    def untrained(*given):
        raise AssertionError("trained")

    with pytest.raises(gt.MaskError, match="'steps' uses the model itself"):
        gt.imp(OfFunctions, untrained, steps=2, rounds=1)


def test_a_ticket_of_a_model_that_keeps_activations_is_another_than_the_dense_one():
    dense, ticket = gt.imp(Keeping, train, steps=3, rounds=1, fraction=0.7)
    assert not torch.equal(dense.model(X), ticket.model(X))
    ticket.masks.audit(ticket.model)


def test_what_notes_layers_down_or_only_made_the_model_is_no_use_of_it():
    seen = {}
    net = Net()
    for layer in net.modules():
        layer.register_forward_hook(lambda layer, args, out: seen.update({layer: out}))
    net(X)
    assert len(seen) == 3
    made = clone(net)
    assert torch.equal(made(X), net(X))

    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return self.inner(x)

    assert clone(Local()).inner is not net

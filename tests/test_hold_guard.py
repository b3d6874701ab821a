"""Pruned weights are exactly 0.0 at every pass, whoever wrote them, and whoever is forgotten is named."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from gentickets import MaskError, Masks
from gentickets.masks.names import named_weights

X = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))


def alive(model: nn.Module, masks: Masks) -> int:
    """How many pruned weights are not 0.0."""
    weights = named_weights(model)
    return sum(int(torch.count_nonzero(weights[name].detach()[~mask])) for name, mask in masks.items())


@contextmanager
def seen(model: nn.Module, masks: Masks) -> Iterator[list[int]]:
    """The pruned weights that are alive, in the whole model, as each of its modules begins a pass."""
    counts: list[int] = []
    handles = [m.register_forward_pre_hook(lambda *_: counts.append(alive(model, masks))) for m in model.modules()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def told(message: str) -> Iterator[None]:
    """What is inside warns of this."""
    with pytest.warns(UserWarning, match=message):
        yield


def loss(model: nn.Module) -> Tensor:
    return (model(X) - X).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


def dense_write(model: nn.Module) -> None:
    for weight in model.parameters():
        weight.data.add_(0.1)


# -- optimisers that the hold was not given ----------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.AdamW(p, fused=True)])
def test_a_forgotten_optimiser_is_named_at_its_first_step_and_changes_nothing(make, gan: nn.Module, half) -> None:
    masks = half(gan)
    opt_g, opt_d = torch.optim.SGD(gan.generator.parameters(), 0.1), make(gan.discriminator.parameters())
    with masks.hold(gan, opt_g):
        before = copy.deepcopy(gan.state_dict())
        gan.discriminator(torch.ones(2, 1, 8, 8)).mean().backward()
        with pytest.raises(MaskError, match=r"Adam.* 'discriminator\.0\.weight'.*masks\.hold\(model, \*optimizers\)"):
            opt_d.step()
        assert all(torch.equal(tensor, before[name]) for name, tensor in gan.state_dict().items())
    opt_d.step()  # nothing is held any more


def test_an_optimiser_of_what_is_not_pruned_may_step(gan: nn.Module, half) -> None:
    masks = half(gan, components="generator").replace(Masks.dense(gan, "discriminator"))
    opt_g, opt_d = torch.optim.SGD(gan.generator.parameters(), 0.1), torch.optim.Adam(gan.discriminator.parameters())
    with masks.hold(gan, opt_g), seen(gan, masks) as counts:
        for _ in range(3):
            gan.discriminator(gan.generator(torch.randn(2, 5, 1, 1))).mean().backward()
            opt_d.step()
            opt_g.step()
    assert not any(counts)


def test_an_optimiser_over_a_copy_is_refused_on_entry(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    other = torch.optim.SGD(copy.deepcopy(autoencoder).parameters(), 0.1)
    with pytest.raises(MaskError, match="SGD has no parameter of this model"):
        masks.hold(autoencoder, other)
    with pytest.raises(MaskError, match=r"through list.*one by one"):
        masks.hold(autoencoder, [torch.optim.SGD(autoencoder.parameters(), 0.1)])


# -- optimisers that do more than move each weight by its gradient -----------------------------------------


class ScheduleFree(torch.optim.Optimizer):
    """SGD without a schedule (Defazio et al. 2024): the iterate lies in the state, and `eval` swaps its average in."""

    def __init__(self, params, lr=0.1, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})
        self.steps = 0

    def _swap(self, share):
        for group in self.param_groups:
            for weight in group["params"]:
                if "z" in self.state[weight]:
                    weight.data.lerp_(self.state[weight]["z"], share(group["beta"]))

    def eval(self):
        self._swap(lambda beta: 1 - 1 / beta)

    def train(self):
        self._swap(lambda beta: 1 - beta)

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                state.setdefault("z", weight.clone())
                weight.data.lerp_(state["z"], 1 / self.steps)
                weight.data.sub_(weight.grad, alpha=group["lr"] * 0.1)
                state["z"].sub_(weight.grad, alpha=group["lr"])


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021): climbs, looks, comes back, and steps by another optimiser."""

    def __init__(self, params, rho=0.5):
        super().__init__(params, {"rho": rho})
        self.base = torch.optim.SGD(self.param_groups, 0.1)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self):
        for weight in (w for group in self.param_groups for w in group["params"]):
            self.state[weight]["was"] = weight.data.clone()
            weight.add_(weight.grad, alpha=0.5)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for weight in (w for group in self.param_groups for w in group["params"]):
            weight.data = self.state[weight]["was"]
        self.base.step()

    def step(self, closure):
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class Coupled(torch.optim.Optimizer):
    """Moves every weight by the mean of its row's gradients, as orthogonalising ones do in effect."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for weight in (w for group in self.param_groups for w in group["params"]):
            weight.sub_(0.1 * weight.grad.mean(-1, keepdim=True).expand_as(weight))


def test_a_schedule_free_optimiser_swaps_sparse_weights_in(autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), ScheduleFree(autoencoder.parameters())
    train(autoencoder, optimizer)  # with an iterate that is dense
    with warnings.catch_warnings(), masks.hold(autoencoder, optimizer), seen(autoencoder, masks) as counts:
        warnings.simplefilter("error")
        for _ in range(3):
            train(autoencoder, optimizer)
            for swap in (optimizer.eval, optimizer.train):
                swap()
                assert not alive(autoencoder, masks)
                autoencoder(X)
    assert counts
    assert not any(counts)


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_closure_inside_a_step_sees_sparse_weights(in_one_step: bool, autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), Sam(autoencoder.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(autoencoder)
        value.backward()
        return value

    with masks.hold(autoencoder, optimizer) as hold, seen(autoencoder, masks) as counts:
        for _ in range(3):
            closure()
            if in_one_step:
                optimizer.step(closure)
            else:
                hold.mask_gradients()
                optimizer.first_step()
                closure()
                optimizer.second_step()
            assert not alive(autoencoder, masks)
    assert not any(counts)


@pytest.mark.parametrize("how", [lambda o, c: o.step(c), lambda o, c: o.step(closure=c)])
def test_a_closure_is_masked_also_where_no_pass_is_looked_at(how, autoencoder: nn.Module, half) -> None:
    """As in a compiled model: the closure itself finds the weights masked."""
    masks, optimizer, counts = half(autoencoder), Sam(autoencoder.parameters()), []
    with masks.hold(autoencoder, optimizer):
        loss(autoencoder).backward()
        how(optimizer, lambda: (counts.append(alive(autoencoder, masks)), loss(autoencoder).backward()))
    assert counts == [0]


def test_no_gradient_of_a_pruned_weight_moves_a_live_one(make_autoencoder, half) -> None:
    one, masks = make_autoencoder(), half(make_autoencoder())
    two = copy.deepcopy(one)
    for model in (one, two):
        with masks.hold(model, optimizer := Coupled(model.parameters())) as hold:
            for _ in range(3):
                optimizer.zero_grad()
                loss(model).backward()
                if model is two:
                    hold.mask_gradients()
                optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_an_optimiser_without_hooks_is_looked_after(autoencoder: nn.Module, half) -> None:
    class Lookahead(torch.optim.Optimizer):  # as several public ones: no super().__init__()
        def __init__(self, inner):
            self.inner, self.param_groups, self.defaults = inner, inner.param_groups, {}
            self.slow = [w.detach().clone() for group in self.param_groups for w in group["params"]]

        def step(self, closure=None):
            self.inner.step()
            for weight, slow in zip((w for g in self.param_groups for w in g["params"]), self.slow, strict=True):
                weight.data.flatten()[:1].copy_(slow.lerp_(weight.data, 0.5).flatten()[:1])  # one place of each alone

    masks, optimizer = ~half(autoencoder), Lookahead(torch.optim.SGD(autoencoder.parameters(), 0.1))
    masks = Masks({name: mask & (torch.arange(mask.numel()).view(mask.shape) > 0) for name, mask in masks.items()})
    with told("before a pass"), masks.hold(autoencoder, optimizer), seen(autoencoder, masks) as counts:
        for _ in range(3):
            loss(autoencoder).backward()
            optimizer.step()
        autoencoder(X)
    assert not any(counts)


def test_float32_masters_are_no_way_around(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    masters = [weight.detach().clone().requires_grad_() for weight in autoencoder.parameters()]
    optimizer = torch.optim.Adam(masters, 0.1, fused=True)
    with told("before a pass"), masks.hold(autoencoder), seen(autoencoder, masks) as counts:
        for _ in range(3):
            loss(autoencoder).backward()
            for master, weight in zip(masters, autoencoder.parameters(), strict=True):
                master.grad = weight.grad
            optimizer.step()
            for master, weight in zip(masters, autoencoder.parameters(), strict=True):
                weight.data[0].copy_(master[0])  # by `.data`, and not all of it
        autoencoder(X)
    assert not any(counts)


def test_an_average_hooked_in_before_the_hold_is_made_of_masked_weights(autoencoder: nn.Module, half) -> None:
    masks, optimizer, counts = half(autoencoder), torch.optim.SGD(autoencoder.parameters(), 0.1, momentum=0.9), []
    optimizer.register_step_post_hook(lambda *_: counts.append(alive(autoencoder, masks)))
    with masks.hold(autoencoder, optimizer):
        train(autoencoder, optimizer)
    assert counts == [0, 0, 0]


# -- writes by hand ----------------------------------------------------------------------------------------


@torch.no_grad()
def _copied(weight: Tensor) -> None:
    weight.copy_(torch.ones_like(weight))


def _another_memory(weight: Tensor) -> None:
    weight.data = torch.ones_like(weight)


WRITES: dict[str, Callable[[Tensor], object]] = {
    "data": lambda weight: weight.data.fill_(1.0),
    "no_grad": _copied,
    "numpy": lambda weight: weight.detach().numpy().fill(1.0),
    "another memory": _another_memory,
    "nan": lambda weight: weight.data.fill_(float("nan")),
}


@given(how=st.sampled_from(sorted(WRITES)), part=st.sampled_from(["whole", "encoder", "layer"]), train=st.booleans())
def test_whoever_writes_densely_is_noticed_at_once(how: str, part: str, train: bool, make_autoencoder, half) -> None:
    model = make_autoencoder()
    masks = half(model)
    net, inputs = {"whole": (model, X), "encoder": (model.encoder, X), "layer": (model.encoder[2], torch.ones(1, 12))}[
        part
    ]
    with masks.hold(model):
        net(inputs)
        model.train(train)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for _ in range(2):
                WRITES[how](model.encoder[2].weight)
                net(inputs)
                assert not alive(model, masks)
        [once] = heard
        assert "'encoder.2.weight' had" in str(once.message)


def test_one_place_through_data_is_found_after_a_while(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    place = tuple((~masks["encoder.0.weight"]).nonzero()[3])
    with masks.hold(autoencoder):
        autoencoder(X)
        autoencoder.encoder[0].weight.data[place] = 1.0
        for _ in range(62):
            autoencoder(X)
        with told("1 pruned weights that were not 0.0 before a pass"), seen(autoencoder, masks) as counts:
            autoencoder(X)  # which is at the latest the 64th since it was known to be clean
        assert not any(counts)


def test_a_change_of_mode_is_a_reason_to_look(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    place = tuple((~masks["encoder.0.weight"]).nonzero()[3])
    with masks.hold(autoencoder), told("before a pass"):
        autoencoder(X)
        autoencoder.encoder[0].weight.data[place] = 1.0
        autoencoder.eval()(X)
        assert not alive(autoencoder, masks)


def test_who_writes_by_hand_masks_by_hand(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    with warnings.catch_warnings(), masks.hold(autoencoder) as hold, seen(autoencoder, masks) as counts:
        warnings.simplefilter("error")
        dense_write(autoencoder)
        hold.mask()
        autoencoder(X)
    assert not any(counts)


def test_weights_that_a_parent_borrows_are_looked_at(half) -> None:
    """torch's attention multiplies with `out_proj.weight` and never calls `out_proj`."""
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)})
    masks = Masks({"a.out_proj.weight": torch.rand(8, 8) < 0.5})
    with masks.hold(model), told("'a.out_proj.weight'"):
        for _ in range(2):
            dense_write(model)
            model.a(*(torch.randn(3, 2, 8),) * 3)
            assert not alive(model, masks)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_a_norm_sees_masked_weights_after_a_write_by_hand(norm, half) -> None:
    model = nn.Sequential(norm(nn.Linear(10, 12, bias=False)))
    masks = half(model)
    with masks.hold(model), told("before a pass"):
        dense_write(model)
        for _ in range(100):
            model(X)
        [(name, raw)] = [(name, weight) for name, weight in named_weights(model).items() if name in masks]
        expected = (raw * masks[name]).detach()
        found = model(torch.eye(10)).detach().T
        torch.testing.assert_close(found, expected / torch.linalg.matrix_norm(expected, 2), rtol=1e-3, atol=1e-4)


def test_a_weight_put_in_another_ones_place_is_held_too(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    with masks.hold(autoencoder) as hold, told("'encoder.0.weight'"):
        autoencoder.encoder[0].weight = nn.Parameter(torch.ones(12, 10))
        late = torch.optim.SGD(autoencoder.parameters(), 0.1)
        loss(autoencoder).backward()
        assert not alive(autoencoder, masks)
        hold.mask_gradients()
        assert not autoencoder.encoder[0].weight.grad[~masks["encoder.0.weight"]].any()
        with pytest.raises(MaskError, match=r"'encoder\.0\.weight'"):
            late.step()


def test_weights_assigned_by_a_load_are_masked_with_their_gradients(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.1)
    with masks.hold(autoencoder, optimizer) as hold:
        autoencoder.load_state_dict(copy.deepcopy(autoencoder.state_dict()), assign=True)
        loss(autoencoder).backward()
        hold.mask_gradients()
        weights = named_weights(autoencoder)
        assert all(not weights[name].grad[~mask].any() for name, mask in masks.items())


def test_a_functional_call_leaves_the_callers_tensors_and_the_hold_alone(autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.SGD(autoencoder.parameters(), 0.1)
    donor = {name: torch.ones_like(weight) for name, weight in autoencoder.named_parameters()}
    own = {name: weight.detach() for name, weight in autoencoder.named_parameters()}
    with warnings.catch_warnings(), masks.hold(autoencoder, optimizer):
        warnings.simplefilter("error")
        functional_call(autoencoder, donor, X)
        torch.func.grad(lambda weights: functional_call(autoencoder, weights, X).sum())(own)
        torch.vmap(autoencoder)(X)
        train(autoencoder, optimizer)
        assert not alive(autoencoder, masks)
    assert all(bool((tensor == 1).all()) for tensor in donor.values())


def test_a_functional_call_leaves_another_models_parameters_alone(autoencoder: nn.Module, make_autoencoder, half):
    """A teacher's parameters are the teacher's, whatever stood in the place before, and fast weights are stepped."""
    masks, teacher = half(autoencoder), make_autoencoder()
    optimizer, own, right = torch.optim.SGD(autoencoder.parameters(), 0.1), copy.deepcopy(teacher), teacher(X)
    fast = {name: nn.Parameter(weight.detach().clone()) for name, weight in teacher.named_parameters()}
    inner = torch.optim.SGD(fast.values(), 0.1)
    with warnings.catch_warnings(), masks.hold(autoencoder, optimizer):
        warnings.simplefilter("error")
        for _ in range(2):
            assert torch.equal(functional_call(autoencoder, dict(teacher.named_parameters()), X), right)
            functional_call(autoencoder, fast, X).square().mean().backward()
            inner.step()
            train(autoencoder, optimizer, 1)
            assert not alive(autoencoder, masks)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), own.parameters(), strict=True))
    assert alive(teacher, masks)


def test_what_stands_in_a_weights_place_for_longer_than_a_call_is_held_from_the_next_step(autoencoder, half):
    """Put there past `register_parameter`, as conversions do that replace parameters."""
    masks, optimizer = half(autoencoder), torch.optim.SGD(autoencoder.parameters(), 0.1)
    with masks.hold(autoencoder, optimizer):
        autoencoder.encoder[0]._parameters["weight"] = nn.Parameter(torch.ones(12, 10))
        loss(autoencoder).backward()
        with told("'encoder.0.weight' had .* before a step of SGD, and a pass may have seen them"):
            optimizer.step()
        assert not alive(autoencoder, masks)
        late = torch.optim.SGD(autoencoder.parameters(), 0.1)
        with pytest.raises(MaskError, match=r"SGD is about to step 'encoder\.0\.weight'"):
            late.step()


def test_masking_by_hand_finds_what_was_put_in_a_weights_place(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    with warnings.catch_warnings(), masks.hold(autoencoder) as hold:
        warnings.simplefilter("error")
        autoencoder.encoder[0].weight = nn.Parameter(torch.ones(12, 10))
        hold.mask()
        assert not alive(autoencoder, masks)


# -- written inside a pass ---------------------------------------------------------------------------------


class Centred(nn.Linear):
    """Centres its weight in place, in training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.sub_(self.weight.mean(1, keepdim=True))
        return super().forward(x)


def _noise(layer: nn.Module, *_: object) -> None:
    layer.weight.data.add_(0.1)


def written_in_passes(how: str) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), (Centred if how == "layer" else nn.Linear)(12, 10))
    if how == "hook":
        net[2].register_forward_pre_hook(_noise)
    return net


IN_PASS = r"'2\.weight' had [0-9]+ pruned weights that were not 0.0 before a step of .*, and a pass may have seen them"


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.ASGD])
@pytest.mark.parametrize("how", ["layer", "hook"])
def test_a_weight_written_inside_a_pass_is_told_at_the_step_and_the_next_pass_refused(how, kind, closure, half):
    net = written_in_passes(how)
    masks = half(net)
    optimizer = kind(net.parameters())

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    def step() -> None:
        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()

    def steps() -> None:
        with masks.hold(net, optimizer):
            with told(IN_PASS):
                step()
            assert not alive(net, masks)
            step()

    with pytest.raises(
        MaskError, match=r"'2\.weight' had .* at the end of a pass of \w+, and none when it began.*exclude="
    ):
        steps()
    assert not alive(net, masks)


def test_a_weight_written_between_a_pass_and_its_step_is_told_once_and_trains_on(autoencoder, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.SGD(autoencoder.parameters(), 0.1)
    with (
        masks.hold(autoencoder, optimizer),
        seen(autoencoder, masks) as counts,
        warnings.catch_warnings(record=True) as heard,
    ):
        warnings.simplefilter("always")
        for _ in range(3):
            loss(autoencoder).backward()
            dense_write(autoencoder)
            optimizer.step()
    assert not any(counts)
    assert len(heard) == 1
    assert "and a pass may have seen them" in str(heard[0].message)
    with warnings.catch_warnings(), masks.hold(autoencoder, optimizer) as hold:
        warnings.simplefilter("error")
        loss(autoencoder).backward()
        dense_write(autoencoder)
        hold.mask()
        optimizer.step()


def test_a_weight_whose_places_cannot_be_looked_at_is_looked_at_before_the_first_step() -> None:
    """As on a GPU: no version tells of `.data`."""
    net = nn.Linear(10, 12, dtype=torch.complex128)
    net.register_forward_pre_hook(_noise)
    masks, optimizer = Masks({"weight": torch.rand(12, 10) < 0.5}), torch.optim.SGD(net.parameters(), 0.1)
    with masks.hold(net, optimizer), told("'weight' had .* before a step of SGD, and a pass may have seen them"):
        net(X.to(torch.complex128)).abs().mean().backward()
        optimizer.step()


def test_a_layer_that_writes_its_live_weights_alone_may(half) -> None:
    net = written_in_passes("none")
    masks, optimizer = half(net), torch.optim.SGD(net.parameters(), 0.1)

    def shrink(layer: nn.Module, *_: object) -> None:
        layer.weight.data.mul_(0.9)

    net[2].register_forward_pre_hook(shrink)
    with warnings.catch_warnings(), masks.hold(net, optimizer):
        warnings.simplefilter("error")
        train(net, optimizer)


def test_an_optimiser_whose_step_failed_is_looked_at_again(autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), Sam(autoencoder.parameters())
    with masks.hold(autoencoder, optimizer):
        loss(autoencoder).backward()
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: 1 // 0)
        loss(autoencoder).backward()
        dense_write(autoencoder)
        with told("a pass may have seen them"):
            optimizer.step(lambda: loss(autoencoder).backward())


# -- leaving -----------------------------------------------------------------------------------------------


def interrupted(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Ctrl-C when the step has moved the weights, and nobody has masked them yet."""

    def raising(*_: object) -> None:
        dense_write(model)
        raise KeyboardInterrupt

    optimizer.register_step_post_hook(raising)
    optimizer._optimizer_step_post_hooks.move_to_end(next(reversed(optimizer._optimizer_step_post_hooks)), last=False)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.ASGD, Coupled])
def test_a_step_that_is_interrupted_leaves_a_sparse_model(kind, autoencoder: nn.Module, half) -> None:
    masks, optimizer, average = half(autoencoder), kind(autoencoder.parameters()), copy.deepcopy(autoencoder)

    def stopped() -> None:
        with masks.hold(autoencoder, optimizer, copies=average):
            train(autoencoder, optimizer, 1)
            dense_write(average)
            interrupted(optimizer, autoencoder)
            train(autoencoder, optimizer, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyboardInterrupt):
            stopped()
    assert not alive(autoencoder, masks)
    assert not alive(average, masks)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_hold_left_by_an_exception_leaves_a_sparse_model(replaced: bool, autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.SGD(autoencoder.parameters(), 0.1)

    def stopped() -> None:
        with masks.hold(autoencoder, optimizer):
            train(autoencoder, optimizer)
            dense_write(autoencoder)
            if replaced:
                autoencoder.encoder[0] = nn.Linear(10, 12)
            raise StopIteration

    with pytest.raises(StopIteration):
        stopped()
    assert not alive(autoencoder, masks)


@pytest.mark.parametrize("errors", [False, True])
def test_what_a_pass_may_have_seen_is_told_on_leaving_by_an_exception_and_hides_it_never(errors, autoencoder, half):
    masks = half(autoencoder)
    place = tuple((~masks["decoder.2.weight"]).nonzero()[3])

    def stopped() -> None:
        with masks.hold(autoencoder):
            autoencoder(X)
            autoencoder.decoder[2].weight.data[place] = 1e-30
            autoencoder(X)
            raise StopIteration

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("error" if errors else "always")
        with pytest.raises(StopIteration):
            stopped()
    assert not alive(autoencoder, masks)
    assert [str(one.message) for one in heard] == ([] if errors else [
        "'decoder.2.weight' had 1 pruned weights that were not 0.0 on leaving the hold by an exception, and a pass may "
        "have seen them: set to 0.0"
    ])  # fmt: skip


def test_a_hold_whose_entry_fails_has_hooked_into_nothing(autoencoder: nn.Module, half, monkeypatch) -> None:
    optimizer = torch.optim.SGD(autoencoder.parameters(), 0.1)
    hold = half(autoencoder).hold(autoencoder, optimizer)
    monkeypatch.setattr(optimizer, "register_step_post_hook", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        hold.__enter__()
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(m._forward_pre_hooks or m._load_state_dict_post_hooks for m in autoencoder.modules())
    monkeypatch.undo()
    with hold:
        train(autoencoder, optimizer)


def test_what_was_written_after_the_last_pass_is_masked_and_told(autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.SGD(autoencoder.parameters(), 0.1)
    with (
        told(r"'decoder\.2\.weight' had [0-9]+ pruned.*after its last pass"),
        masks.hold(autoencoder, optimizer),
    ):
        train(autoencoder, optimizer)
        autoencoder.decoder[2].weight.data.fill_(1e-30)
    masks.audit(autoencoder)


def test_what_a_pass_may_have_seen_is_an_error(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    place = tuple((~masks["decoder.2.weight"]).nonzero()[3])

    def pass_on() -> None:
        with masks.hold(autoencoder):
            autoencoder(X)
            autoencoder.decoder[2].weight.data[place] = 1e-30
            autoencoder(X)

    with pytest.raises(MaskError, match=r"the model is no longer sparse: 'decoder\.2\.weight' has 1 pruned"):
        pass_on()


def test_nothing_of_a_hold_stays(gan: nn.Module, half) -> None:
    from torch.optim import optimizer as torchs

    masks, optimizer = half(gan), Sam(gan.parameters())
    before = [len(hooks) for hooks in (torchs._global_optimizer_pre_hooks, torchs._global_optimizer_post_hooks)]
    with masks.hold(gan, optimizer):
        gan.generator(torch.randn(2, 5, 1, 1))
    after = [len(hooks) for hooks in (torchs._global_optimizer_pre_hooks, torchs._global_optimizer_post_hooks)]
    assert after == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in gan.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer.base._optimizer_step_post_hooks


def test_a_pass_that_ends_in_an_error_leaves_the_guard_up(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    with masks.hold(autoencoder), told("before a pass"):
        with pytest.raises(RuntimeError):
            autoencoder(torch.ones(1, 3))
        dense_write(autoencoder)
        autoencoder.encoder[0](X)
        assert not alive(autoencoder.encoder[0], Masks({"weight": masks["encoder.0.weight"]}))
        autoencoder(X)


def test_a_training_step_as_a_forward_is_looked_at_in_its_parts(make_autoencoder, half) -> None:
    """As Lightning passes it through DDP: passes and steps of others inside one pass."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.counts = make_autoencoder(), []

        def forward(self, masks):
            for _ in range(2):
                with torch.no_grad():
                    for weight in self.net.parameters():
                        weight.add_(0.1)
                self.net(X)
                self.counts.append(alive(self, masks))

    model = Whole()
    masks = half(model, components="net")
    with masks.hold(model), told("before a pass"):
        model(masks)
    assert model.counts == [0, 0]


# -- compiled, copied, checkpointed ------------------------------------------------------------------------


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("when", ["before", "inside", "held", "in place"])
def test_compiled(when: str, fullgraph: bool, autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.Adam(autoencoder.parameters(), 0.01)
    twin = copy.deepcopy(autoencoder)

    def compiled() -> nn.Module:
        return torch.compile(autoencoder, fullgraph=fullgraph, backend="eager")

    net = None if when == "inside" else autoencoder if when == "in place" else compiled()
    if when == "in place":
        autoencoder.compile(fullgraph=fullgraph, backend="eager")
    with masks.hold(net if when == "held" else autoencoder, optimizer):
        train(net if net is not None else (net := compiled()), optimizer)
        assert not alive(autoencoder, masks)
        if when in ("held", "in place"):
            dense_write(autoencoder)
            with told("before a pass"):
                net(X)
            assert not alive(autoencoder, masks)
    plain = torch.optim.Adam(twin.parameters(), 0.01)
    with masks.hold(twin, plain):
        train(twin, plain)
    if when in ("before", "inside"):
        for one, other in zip(autoencoder.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other)


def test_copies_made_inside_have_no_guard(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    with masks.hold(autoencoder):
        twin = copy.deepcopy(autoencoder)
        dense_write(twin)
        twin(X)
        assert alive(twin, masks)
        assert not alive(autoencoder, masks)


def test_checkpointed_passes(autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.Adam(autoencoder.parameters(), 0.1)
    with warnings.catch_warnings(), masks.hold(autoencoder, optimizer), seen(autoencoder, masks) as counts:
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.zero_grad()
            codes = torch.utils.checkpoint.checkpoint(autoencoder.encoder, X, use_reentrant=False)
            autoencoder.decoder(codes).square().mean().backward()
            optimizer.step()
    assert not any(counts)


# -- odd weights -------------------------------------------------------------------------------------------


def test_sparse_gradients_are_masked() -> None:
    model = nn.ModuleDict({"e": nn.Embedding(6, 4, sparse=True)})
    mask = torch.rand(6, 4) < 0.5
    optimizer = torch.optim.SparseAdam(model.parameters())
    with Masks({"e.weight": mask}).hold(model, optimizer) as hold:
        model.e(torch.tensor([1, 2, 1])).sum().backward()
        before = model.e.weight.grad.to_dense()
        hold.mask_gradients()
        assert model.e.weight.grad.is_sparse
        assert torch.equal(model.e.weight.grad.to_dense(), before * mask)
        optimizer.step()
        assert not model.e.weight.detach()[~mask].any()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights(dtype: torch.dtype) -> None:
    model = nn.ParameterDict({"c": nn.Parameter(torch.randn(3, 4, dtype=dtype))})
    mask = torch.rand(3, 4) < 0.5
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Masks({"c": mask}).hold(model, optimizer) as hold:
        model.c.grad = torch.ones_like(model.c)
        hold.mask_gradients()
        assert torch.equal(model.c.grad, mask.to(dtype))
        model.c.grad = torch.ones_like(model.c)
        optimizer.step()
        assert not model.c.detach()[~mask].any()
        assert bool(model.c.detach()[mask].all())


def test_weights_of_no_and_of_one_number() -> None:
    model = nn.ParameterDict({"none": nn.Parameter(torch.zeros(0, 3)), "one": nn.Parameter(torch.tensor(2.0))})
    masks = ~Masks.dense(model, include="*")
    with masks.hold(model):
        assert model.one == 0
        model.one.data.fill_(1.0)
        with pytest.raises(MaskError, match="'one' has 1"):
            masks.audit(model)
        masks.apply_(model)


def test_what_has_no_values_here_is_refused(half) -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(3, 4))
    masks = ~Masks.dense(empty)
    for use in (masks.apply_, masks.audit, lambda net: masks.hold(net).__enter__()):
        with pytest.raises(MaskError, match=r"'0.weight' is on the meta device.*to_empty"):
            use(empty)
    with pytest.raises(MaskError, match=r"'0.weight' has no shape yet"):
        Masks.dense(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_weights_are_masked_without_a_look(make_autoencoder, half) -> None:
    model = make_autoencoder().cuda()
    masks = half(model)
    with masks.hold(model):
        with torch.no_grad():
            model.encoder[0].weight.add_(1.0)
        model(X.cuda())
        assert not alive(model, Masks({name: mask.cuda() for name, mask in masks.items()}))

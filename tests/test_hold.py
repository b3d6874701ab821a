"""A held model is exactly sparse at every forward pass, whatever steps it."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gentickets import MaskError, Masks, prune, random_scores
from gentickets.masks.names import named_weights
from gentickets.masks.state import tensors_of_state
from gentickets.masks.steppers import EACH_BY_ITSELF

X = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))

Make = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "sgd maximise": lambda p: torch.optim.SGD(p, 0.01, momentum=0.5, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, 0.1, betas=(0.5, 0.999), amsgrad=True),
    "adam foreach": lambda p: torch.optim.Adam(p, 0.1, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5),
    "adamw foreach": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "rmsprop foreach": lambda p: torch.optim.RMSprop(p, 0.01, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "radam": lambda p: torch.optim.RAdam(p, 0.1),
    "asgd": lambda p: torch.optim.ASGD(p, 0.1, t0=0),
}


@contextmanager
def watched(model: nn.Module, masks: Masks) -> Iterator[list[int]]:
    """Checks, inside each forward pass of each layer, that what is pruned is exactly 0.0 there."""
    weights, passes = named_weights(model), [0]
    dead = [(name, weights[name], ~mask) for name, mask in masks.items()]

    def check(*_: object) -> None:
        passes[0] += 1
        for name, weight, where in dead:
            assert torch.count_nonzero(weight.detach()[where]) == 0, name

    handles = [module.register_forward_pre_hook(check) for module in model.modules()]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(4, 10, generator=generator)
        (model(x) - x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_sparse_at_every_forward(kind: str, autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    optimizer = OPTIMIZERS[kind](autoencoder.parameters())
    train(autoencoder, optimizer)  # momentum gathered before, also for what is pruned now
    before = {n: w.detach().clone() for n, w in named_weights(autoencoder).items()}
    with masks.hold(autoencoder, optimizer), watched(autoencoder, masks) as passes:
        train(autoencoder, optimizer, 5)
        fewer = masks & half(autoencoder, seed=1)
        with fewer.hold(autoencoder, optimizer), watched(autoencoder, fewer):
            train(autoencoder, optimizer, 5)
    assert passes[0] > 10
    after = named_weights(autoencoder)
    assert all((after[n].detach() != before[n])[fewer[n]].any() for n in fewer)
    for name in fewer:  # +0.0: no sign is left either
        assert not torch.signbit(after[name].detach()[~fewer[name]]).any()


@given(
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    seed=st.integers(0, 1000),
    clip=st.booleans(),
    keep=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_sparse_whatever_the_mask(kind: str, seed: int, clip: bool, keep: float, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 7), nn.Tanh(), nn.Linear(7, 10)).to(dtype)
    masks = Masks({n: torch.rand(m.shape) < keep for n, m in Masks.dense(model).items()})
    optimizer = OPTIMIZERS[kind](model.parameters())
    with masks.hold(model, optimizer) as hold, watched(model, masks):
        for _ in range(3):
            x = torch.randn(4, 10, dtype=dtype)
            optimizer.zero_grad(set_to_none=bool(seed % 2))
            (model(x) - x).square().mean().backward()
            if clip:
                hold.mask_gradients()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        model(x)


def test_live_weights_move_as_if_gradients_were_masked(make_autoencoder, half) -> None:
    """The mask after a step is not to change what a live weight does."""
    torch.manual_seed(3)
    one = make_autoencoder()
    two = copy.deepcopy(one)
    masks = half(one)
    opt_one = torch.optim.Adam(one.parameters(), 0.01)
    opt_two = torch.optim.Adam(two.parameters(), 0.01)
    with masks.hold(one, opt_one):
        train(one, opt_one, 10)
    masks.apply_(two)
    weights = named_weights(two)
    for name, mask in masks.items():
        weights[name].register_hook(lambda grad, mask=mask: grad * mask)
    train(two, opt_two, 10)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_carried_adam_state_moves_nothing_that_is_pruned(autoencoder: nn.Module, half) -> None:
    """With gradients masked and Adam's old state kept, momentum alone moves every pruned weight."""
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.1)
    train(autoencoder, optimizer, 20)
    masks = half(autoencoder)
    weights = named_weights(autoencoder)
    assert any(optimizer.state[weights[n]]["exp_avg"][~masks[n]].any() for n in masks)
    with masks.hold(autoencoder, optimizer) as hold, watched(autoencoder, masks):
        for n in masks:
            for key in ("exp_avg", "exp_avg_sq"):
                assert not optimizer.state[weights[n]][key][~masks[n]].any()
                assert optimizer.state[weights[n]][key][masks[n]].any()
        for step in range(3):
            optimizer.zero_grad(set_to_none=False)
            x = torch.randn(4, 10)
            (autoencoder(x) - x).square().mean().backward()
            hold.mask_gradients()
            optimizer.step()
            assert int(optimizer.state[weights["encoder.0.weight"]]["step"]) == 21 + step
            assert all(not optimizer.state[weights[n]]["exp_avg"][~masks[n]].any() for n in masks)


def pruned_momentum(optimizer: torch.optim.Optimizer, model: nn.Module, masks: Masks) -> Tensor:
    """What Adam remembers of the pruned weights, in one row."""
    weights = named_weights(model)
    moments = [(optimizer.state[weights[n]][key], masks[n]) for n in masks for key in ("exp_avg", "exp_avg_sq")]
    return torch.cat([moment[~mask] for moment, mask in moments])


def test_adam_state_loaded_under_a_hold_moves_nothing_that_is_pruned(autoencoder: nn.Module, half) -> None:
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.1)
    train(autoencoder, optimizer, 20)
    saved, masks = copy.deepcopy(optimizer.state_dict()), half(autoencoder)
    with masks.hold(autoencoder, optimizer), watched(autoencoder, masks):
        optimizer.load_state_dict(copy.deepcopy(saved))  # torch keeps the tensors that it is given
        assert not pruned_momentum(optimizer, autoencoder, masks).any()
        assert optimizer.state[autoencoder.encoder[0].weight]["exp_avg"].any()
    optimizer.load_state_dict(saved)  # not held any more
    assert pruned_momentum(optimizer, autoencoder, masks).any()


def test_momentum_of_pruned_weights_never_decays_into_denormal_numbers(half) -> None:
    """With them Adam's step takes twice as long; here nothing has a gradient any more from the second step on."""
    model = nn.Linear(40, 40)
    masks = half(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    tiny = torch.finfo(torch.float32).tiny
    with masks.hold(model, optimizer) as hold:
        for step in range(1200):
            optimizer.zero_grad()
            (model(torch.ones(1, 40)).sum() * float(step == 0)).backward()
            optimizer.step()
            if step % 100 == 99:  # as `train` does at its reports
                hold.drop_momentum()
        moments = torch.cat([optimizer.state[model.weight][key].abs() for key in ("exp_avg", "exp_avg_sq")])
        live = torch.cat([masks["weight"], masks["weight"]])
        assert not pruned_momentum(optimizer, model, masks).any()
        assert ((moments > 0) & (moments < tiny))[live].any()  # as they would be


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_that_overflow_leave_pruned_weights_at_zero(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 2, bias=False).to(dtype)
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Masks({"weight": mask}).hold(model, optimizer) as hold:
        live = model.weight.detach()[mask].clone()
        bad = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0, -1.0], dtype=dtype)
        model.weight.grad = torch.zeros_like(model.weight)
        model.weight.grad[~mask] = bad
        optimizer.step()
        assert torch.equal(model.weight.detach()[mask], live)
        model.weight.grad[~mask] = bad
        hold.mask_gradients()
        assert not model.weight.grad[~mask].any()


def test_clipping_sees_the_sub_network_only(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    with masks.hold(autoencoder) as hold:
        autoencoder(torch.randn(4, 10)).square().sum().backward()
        expected = 0.0
        for name, parameter in autoencoder.named_parameters():
            mask = masks[name] if name in masks else torch.ones_like(parameter, dtype=torch.bool)
            for g, m in zip(parameter.grad.flatten().tolist(), mask.flatten().tolist(), strict=True):
                expected += g * g if m else 0.0
        dense = nn.utils.get_total_norm([p.grad for p in autoencoder.parameters()])
        hold.mask_gradients()
        norm = nn.utils.clip_grad_norm_(autoencoder.parameters(), 1e-3)
        assert norm.item() == pytest.approx(expected**0.5, rel=1e-5)
        assert norm < dense
        assert named_weights(autoencoder)["encoder.0.bias"].grad.any()


def test_mask_gradients_where_some_are_none(gan: nn.Module, half) -> None:
    with half(gan).hold(gan) as hold:
        hold.mask_gradients()
        gan.discriminator(torch.randn(2, 1, 8, 8)).sum().backward()
        hold.mask_gradients()
        assert gan.generator[0].weight.grad is None


def test_averaged_copies(autoencoder: nn.Module, half) -> None:
    ema = AveragedModel(autoencoder, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.1)
    masks = half(autoencoder)
    for m in (masks, masks & half(autoencoder, seed=5)):
        with pytest.raises(MaskError):
            m.audit(ema)
        with m.hold(autoencoder, optimizer, copies=[ema]) as hold:
            hold.audit()
            for _ in range(3):
                train(autoencoder, optimizer, 1)
                ema.update_parameters(autoencoder)
                hold.audit()
        m.audit(ema)
    with (
        pytest.raises(MaskError, match=r"averaged copy.*'decoder\.0\.weight'"),
        m.hold(autoencoder, copies=[ema]),
    ):
        ema.module.decoder[0].weight.data.fill_(1.0)


def sigma_by_svd(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.double(), 2))


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_sees_the_masked_weight(norm: Callable[[nn.Module], nn.Module], half) -> None:
    model = nn.Sequential(norm(nn.Linear(10, 12)), nn.ReLU(), norm(nn.Linear(12, 1)))
    masks = half(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.05, betas=(0.5, 0.9))
    weights = named_weights(model)
    with masks.hold(model, optimizer), watched(model, masks):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(4, 10)).square().sum().backward()
            optimizer.step()
        for _ in range(100):  # power iterations
            model(torch.randn(2, 10))
        for name, layer in zip(masks, (model[0], model[2]), strict=True):
            raw = weights[name].detach()
            assert not raw[~masks[name]].any()
            expected = raw / sigma_by_svd(raw)
            torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-4, atol=1e-6)


def test_grad_scaler_skips_and_steps(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with masks.hold(autoencoder, optimizer) as hold, watched(autoencoder, masks):
        for step in range(4):
            optimizer.zero_grad()
            loss = autoencoder(torch.randn(4, 10)).square().mean()
            scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()
            scaler.unscale_(optimizer)
            if step == 2:
                hold.mask_gradients()
            scaler.step(optimizer)
            scaler.update()
        assert int(optimizer.state[autoencoder.encoder[0].weight]["step"]) == 3


def test_fabric(make_autoencoder, half) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    raw = make_autoencoder()
    masks = half(raw)
    model = fabric.setup_module(raw)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), 0.1))
    with masks.hold(model, optimizer), watched(raw, masks) as passes:
        for _ in range(3):
            optimizer.zero_grad()
            fabric.backward(model(torch.randn(4, 10)).square().mean())
            optimizer.step()
        model.load_state_dict({n: torch.ones_like(t) for n, t in raw.state_dict().items()})
        model(torch.randn(4, 10))
    assert passes[0]
    fresh = make_autoencoder()
    model, optimizer = fabric.setup(fresh, torch.optim.SGD(fresh.parameters(), 0.1, weight_decay=0.1))
    with masks.hold(model, optimizer), watched(fresh, masks):
        for _ in range(3):
            fabric.backward(model(torch.randn(4, 10)).square().mean())
            optimizer.step()


def test_schedulers_and_closures(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    optimizer = torch.optim.SGD(autoencoder.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = autoencoder(torch.ones(2, 10)).square().mean()
        loss.backward()
        return loss

    with masks.hold(autoencoder, optimizer), watched(autoencoder, masks):
        for _ in range(3):
            optimizer.step(closure)
            schedule.step()


# -- two optimisers ----------------------------------------------------------------------------------------


def test_a_fake_batch_made_before_ds_step_still_serves_g(gan: nn.Module, half) -> None:
    masks = half(gan)
    opt_g = torch.optim.Adam(gan.generator.parameters(), 0.01)
    opt_d = torch.optim.Adam(gan.discriminator.parameters(), 0.01)
    with masks.hold(gan, opt_g, opt_d), watched(gan, masks):
        for _ in range(3):
            fake = gan.generator(torch.randn(4, 5, 1, 1))
            opt_d.zero_grad()
            (gan.discriminator(fake.detach()).mean() - gan.discriminator(torch.randn(4, 1, 8, 8)).mean()).backward()
            opt_d.step()
            opt_g.zero_grad()
            (-gan.discriminator(fake).mean()).backward()  # the graph of `fake` needs G's weights unchanged
            opt_g.step()


def test_one_optimiser_over_both_touches_only_what_has_gradients(gan: nn.Module, half) -> None:
    masks = half(gan)
    optimizer = torch.optim.Adam(gan.parameters(), 0.01)
    with masks.hold(gan, optimizer):
        fake = gan.generator(torch.randn(4, 5, 1, 1))
        versions = [p._version for p in gan.generator.parameters()]
        gan.discriminator(fake.detach()).mean().backward()
        optimizer.step()
        assert versions == [p._version for p in gan.generator.parameters()]
        optimizer.zero_grad()
        gan.discriminator(fake).mean().backward()
        optimizer.step()


def test_the_hold_masks_in_view_of_autograd(autoencoder: nn.Module, half) -> None:
    """A graph that needs a weight from before the step is refused, not silently wrong, also by a fused optimiser."""
    optimizer = torch.optim.SGD(autoencoder.parameters(), 0.1, fused=True)
    with half(autoencoder).hold(autoencoder, optimizer):
        loss = autoencoder(torch.ones(1, 10)).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_weight_that_was_given_another_shape_is_refused_and_not_masked_by_what_lies_beyond(half) -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(8, 4)})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with suppress(MaskError), half(model).hold(model, optimizer):  # which finds it on leaving
        weight = model["encoder"].weight
        weight.data, weight.grad = torch.ones(40, 80), torch.ones(40, 80)
        with pytest.raises(RuntimeError, match="size"):
            optimizer.step()


def test_param_groups_added_later(gan: nn.Module, half) -> None:
    masks = half(gan)
    optimizer = torch.optim.AdamW(gan.generator.parameters(), 0.1, weight_decay=0.5)
    with masks.hold(gan, optimizer), watched(gan, masks):
        optimizer.add_param_group({"params": list(gan.discriminator.parameters())})
        for _ in range(3):
            gan.discriminator(gan.generator(torch.randn(2, 5, 1, 1))).mean().backward()
            optimizer.step()
        gan.discriminator(gan.generator(torch.randn(2, 5, 1, 1)))


# -- loading, copying, converting --------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_loading_weights_keeps_a_held_model_sparse(assign: bool, make_autoencoder, half) -> None:
    model, donor = make_autoencoder(), make_autoencoder()
    masks = half(model)
    with masks.hold(model) as hold:
        model.load_state_dict(copy.deepcopy(donor.state_dict()), assign=assign)
        hold.audit()
        model.decoder.load_state_dict(copy.deepcopy(donor.decoder.state_dict()), assign=assign)
        hold.audit()
        model.encoder[0].load_state_dict(copy.deepcopy(donor.encoder[0].state_dict()), assign=assign)
        hold.audit()
        model(torch.randn(2, 10)).sum().backward()
        hold.mask_gradients()
        late = torch.optim.Adam(model.parameters(), 0.1)
        with masks.hold(model, late), watched(model, masks):
            train(model, late)
    expected = masks.apply_(copy.deepcopy(donor)).decoder[0].weight
    assert torch.equal(expected == 0, model.decoder[0].weight == 0)
    model.load_state_dict(donor.state_dict())  # not held any more
    assert torch.equal(model.decoder[0].weight, donor.decoder[0].weight)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.spectral_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        parametrizations.weight_norm,
    ],
)
def test_loading_under_a_norm(norm: Callable[[nn.Module], nn.Module], make_gan, half) -> None:
    model, donor = make_gan(norm), make_gan(norm)
    masks = half(model)
    with masks.hold(model) as hold:
        model.load_state_dict(donor.state_dict())
        hold.audit()
        model.discriminator.load_state_dict(donor.discriminator.state_dict())
        hold.audit()


def test_loading_an_optimiser_brings_no_weight_back(autoencoder: nn.Module, half) -> None:
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.1)
    train(autoencoder, optimizer, 5)
    saved = copy.deepcopy(optimizer.state_dict())
    masks = half(autoencoder)
    with masks.hold(autoencoder, optimizer), watched(autoencoder, masks):
        optimizer.load_state_dict(saved)
        train(autoencoder, optimizer, 5)


def twins(model: nn.Module) -> dict[str, nn.Module]:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return {"deepcopy": copy.deepcopy(model), "file": torch.load(file, weights_only=False)}


def test_copies_of_a_held_model_are_not_held(make_autoencoder, half) -> None:
    model = make_autoencoder()
    masks = half(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    with masks.hold(model, optimizer):
        train(model, optimizer)
        made = twins(model)
        for twin in made.values():
            masks.audit(twin)
            assert torch.equal(twin(torch.ones(1, 10)), model(torch.ones(1, 10)))
            twin.load_state_dict({n: torch.ones_like(t) for n, t in model.state_dict().items()})
            assert (twin.encoder[0].weight == 1).all()
            masks.audit(model)
            again = copy.deepcopy(twin)
            assert (again.encoder[0].weight == 1).all()
        train(model, copy.deepcopy(optimizer), 0)
    for twin in made.values():
        late = torch.optim.SGD(twin.parameters(), 0.1)
        with (~masks).hold(twin, late), watched(twin, ~masks):
            train(twin, late)


def test_converting_the_model_while_it_is_held(autoencoder: nn.Module, half) -> None:
    masks = half(autoencoder)
    optimizer = torch.optim.SGD(autoencoder.parameters(), 0.1, weight_decay=0.1)
    with masks.hold(autoencoder, optimizer) as hold, watched(autoencoder, masks):
        train(autoencoder, optimizer, 2)
        autoencoder.double()
        for _ in range(2):
            optimizer.zero_grad()
            autoencoder(torch.randn(4, 10, dtype=torch.float64)).square().mean().backward()
            hold.mask_gradients()
            optimizer.step()
        hold.audit()
        autoencoder.to(torch.bfloat16)
        autoencoder(torch.ones(1, 10, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        moved = autoencoder.decoder[0].weight
        moved.data = moved.data.clone()  # of the same type, in other memory
        autoencoder(torch.ones(1, 10, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()


def test_channels_last(gan: nn.Module, half) -> None:
    gan = gan.to(memory_format=torch.channels_last)
    masks = half(gan)
    optimizer = torch.optim.AdamW(gan.parameters(), 0.1, fused=True)
    with masks.hold(gan, optimizer) as hold, watched(gan, masks):
        for _ in range(3):
            gan.discriminator(gan.generator(torch.randn(2, 5, 1, 1))).mean().backward()
            hold.mask_gradients()
            optimizer.step()
        hold.audit()


# -- the end, and refusals ---------------------------------------------------------------------------------


def test_an_error_inside_is_not_hidden_by_the_audit(autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.SGD(autoencoder.parameters(), 0.1)
    with pytest.raises(ZeroDivisionError), masks.hold(autoencoder, optimizer):
        _ = autoencoder.decoder[2].weight.data.fill_(1.0)[0] / (1 // 0)
    assert not optimizer._optimizer_step_post_hooks


def test_after_the_hold_nothing_is_held(autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.SGD(autoencoder.parameters(), 0.1)
    with masks.hold(autoencoder, optimizer):
        train(autoencoder, optimizer)
    assert not optimizer._optimizer_step_post_hooks
    assert not any(m._load_state_dict_post_hooks for m in autoencoder.modules())
    train(autoencoder, optimizer)
    with pytest.raises(MaskError):
        masks.audit(autoencoder)


def test_a_hold_can_be_entered_again_but_not_twice_at_once(autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.SGD(autoencoder.parameters(), 0.1)
    hold = masks.hold(autoencoder, optimizer)
    for _ in range(2):
        with hold, watched(autoencoder, masks):
            train(autoencoder, optimizer)
            with pytest.raises(MaskError, match="entered already"):
                hold.__enter__()
            train(autoencoder, optimizer)
        train(autoencoder, optimizer)


def test_nested_holds_of_parts(gan: nn.Module, half) -> None:
    masks = half(gan)
    g, d = masks.select("generator"), masks.select("discriminator")
    optimizer = torch.optim.AdamW(gan.parameters(), 0.1)
    with g.hold(gan, optimizer), watched(gan, g):
        with d.hold(gan, optimizer), watched(gan, d):
            for _ in range(3):
                gan.discriminator(gan.generator(torch.randn(2, 5, 1, 1))).mean().backward()
                optimizer.step()
        gan.discriminator(gan.generator(torch.randn(2, 5, 1, 1))).mean().backward()
        optimizer.step()
        gan.generator(torch.randn(2, 5, 1, 1))


def test_an_optimiser_of_two_models_is_to_be_given_to_both_holds(make_autoencoder, half) -> None:
    one, other = make_autoencoder(), make_autoencoder()
    optimizer = torch.optim.SGD([*one.parameters(), *other.parameters()], 0.1)
    (one(X) + other(X)).square().mean().backward()
    with half(other).hold(other, optimizer):
        with half(one).hold(one), pytest.raises(MaskError, match=r"SGD is about to step 'encoder\.0\.weight'"):
            optimizer.step()
        with half(one).hold(one, optimizer) as inner:
            optimizer.step()
            inner.audit()


def test_an_optimiser_may_be_given_to_the_inner_hold_alone_where_that_masks_all(autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.SGD(autoencoder.parameters(), 0.1)
    fewer = masks & Masks({name: torch.rand(mask.shape) < 0.5 for name, mask in masks.items()})
    autoencoder(X).square().mean().backward()
    with masks.hold(autoencoder) as outer, fewer.hold(autoencoder, optimizer):
        optimizer.step()
        outer.audit()
    with fewer.hold(autoencoder), masks.hold(autoencoder, optimizer), pytest.raises(MaskError, match="about to step"):
        optimizer.step()


def test_refusals_leave_everything_alone(autoencoder: nn.Module, gan: nn.Module, half) -> None:
    masks = half(autoencoder)
    before = copy.deepcopy(autoencoder.state_dict())
    optimizer = torch.optim.SGD(autoencoder.parameters(), 0.1)
    for arguments, copies, message in [
        ((autoencoder, torch.optim.LBFGS(autoencoder.parameters())), (), "LBFGS"),
        ((autoencoder, optimizer, autoencoder), (), "Autoencoder.*no torch.optim.Optimizer"),
        ((autoencoder, optimizer), [gan], "no weight"),
        ((gan, optimizer), (), "no weight"),
    ]:
        with pytest.raises(MaskError, match=message):
            masks.hold(*arguments, copies=copies).__enter__()
    assert not optimizer._optimizer_step_post_hooks
    assert all(torch.equal(before[n], t) for n, t in autoencoder.state_dict().items())


def test_rounds_of_pruning_never_revive(make_autoencoder) -> None:
    """Levels of train and prune, as in a search: what is dead stays dead through all of them."""
    model = make_autoencoder()
    masks = Masks.dense(model)
    for level in range(4):
        smaller = prune(random_scores(model, level), fraction=0.2, within=masks)
        assert smaller <= masks
        masks = smaller
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        with masks.hold(model, optimizer), watched(model, masks):
            train(model, optimizer, 10, seed=level)
    expected = masks.total
    for _ in range(4):
        expected -= expected // 5
    assert masks.alive == expected
    assert [p for p in itertools.chain(model.parameters()) if p.isnan().any()] == []


def test_the_average_that_asgd_keeps_is_sparse(autoencoder: nn.Module, half) -> None:
    masks, optimizer = half(autoencoder), torch.optim.ASGD(autoencoder.parameters(), 0.1, t0=0)
    weights = named_weights(autoencoder)
    with masks.hold(autoencoder, optimizer):
        for _ in range(3):
            train(autoencoder, optimizer, 1)
            assert not any(optimizer.state[weights[name]]["ax"][~mask].any() for name, mask in masks.items())
    assert all(optimizer.state[weights[name]]["ax"].any() for name in masks)


@pytest.mark.parametrize("kind", EACH_BY_ITSELF)
def test_no_optimiser_that_is_taken_to_keep_no_weights_keeps_any(kind) -> None:
    weight = nn.Parameter(torch.full((3, 5), 1e4))
    optimizer = kind([weight], lr=0.1)
    for _ in range(3):
        weight.grad = torch.rand(3, 5)
        if kind is torch.optim.SparseAdam:
            weight.grad = weight.grad.to_sparse()
        optimizer.step()
    assert not any((value.abs() > 1e3).any() for _, value in tensors_of_state(optimizer.state[weight]))


@pytest.mark.parametrize("copies", [None, 3])
def test_copies_that_are_none_are_refused_with_the_mend(copies):
    net = nn.Linear(4, 3)
    with pytest.raises(MaskError, match=f"copies={copies}: .*\\(\\) where there is none"):
        prune(random_scores(net, 0), to_sparsity=0.5).hold(net, copies=copies)


class Shampoo(torch.optim.Optimizer):
    """Statistics over both sides (Gupta et al. 2018), and a momentum, as in SOAP."""

    def __init__(self, params, lr: float = 0.05, power: float = 0.25) -> None:
        super().__init__(params, {"lr": lr, "power": power})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["sides"] = [1e-2 * torch.eye(side) for side in p.shape]
                    state["momentum"] = torch.zeros_like(p)
                left, right = state["sides"]
                left += p.grad @ p.grad.T
                right += p.grad.T @ p.grad
                state["momentum"].mul_(0.9).add_(self._root(left) @ p.grad @ self._root(right))
                p -= group["lr"] * state["momentum"]

    @staticmethod
    def _root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.clamp(min=1e-12) ** -0.25) @ vectors.T


class Untried(Shampoo):
    """One of which no other can be made: it wants to know more."""

    def __init__(self, params, model: nn.Module) -> None:
        super().__init__(params)
        self.model = model


def _stepped(net: nn.Sequential, optimizer: torch.optim.Optimizer, masks: Masks, steps: int = 40) -> None:
    generator = torch.Generator().manual_seed(1)
    with masks.hold(net, optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            net(torch.randn(32, 8, generator=generator)).square().mean().backward()
            optimizer.step()


@pytest.mark.parametrize("oblong", [False, True])
def test_statistics_over_a_side_of_a_square_weight_are_no_numbers_of_its_weights(oblong, recwarn) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 5 if oblong else 8, bias=False))
    masks = prune(random_scores(net, 0), fraction=0.7)
    optimizer = Shampoo(net.parameters())
    _stepped(net, optimizer, masks)
    state = optimizer.state[net[0].weight]
    for matrix in state["sides"]:
        assert torch.equal(matrix, matrix.T)
        assert torch.linalg.eigvalsh(matrix).min() > 0
    assert not state["momentum"][~masks["0.weight"]].any()
    assert not recwarn.list


def test_a_state_that_cannot_be_told_is_left_and_said() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8, bias=False))
    masks = prune(random_scores(net, 0), fraction=0.7)
    optimizer = Untried(net.parameters(), net)
    with pytest.warns(UserWarning, match=r"Untried keeps 'sides\.0' of square weights"):
        _stepped(net, optimizer, masks, 1)
    left, _ = optimizer.state[net[0].weight]["sides"]
    assert torch.equal(left, left.T)


def test_the_number_of_steps_of_a_weight_of_one_number_is_none_of_its_own() -> None:
    layer = nn.Module()
    layer.gain = nn.Parameter(torch.tensor(1.0))
    adam = torch.optim.Adam(layer.parameters())
    with Masks({"gain": torch.tensor(False)}).hold(layer, adam) as hold:
        for _ in range(3):
            layer.gain.grad = torch.tensor(1.0)
            adam.step()
        hold.drop_momentum()
    assert adam.state[layer.gain]["step"] == 3
    assert adam.state[layer.gain]["exp_avg"] == 0


def test_the_moments_of_any_optimiser_of_square_weights_alone_are_dropped() -> None:
    class Other(torch.optim.Adam):
        pass

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    masks = prune(random_scores(net, 0), fraction=0.7)
    optimizer = Other(net.parameters())
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    with masks.hold(net, optimizer):
        assert not optimizer.state[net[0].weight]["exp_avg"][~masks["0.weight"]].any()

"""Masks that move while training: exact counts, nothing dead alive, nothing stale left, and resumed to the bit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from gentickets import models
from gentickets.errors import Diverged, MaskError, PruneError
from gentickets.masks.names import clone, named_state, named_weights
from gentickets.masks.value import Masks
from gentickets.objectives import Adversarial, Autoencoding
from gentickets.pruning.prune import prune, random_like
from gentickets.pruning.scores import magnitude
from gentickets.search.gradual import Gradual
from gentickets.search.rigl import DropAndGrow
from gentickets.training import Checkpoint, Hook, Settings, train

IMAGES = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
SETTINGS = Settings(steps=20, batch_size=8, ema=0.9, schedule="cosine", lr=3e-3)
few = examples(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Source:
    """Batches by step."""

    def at(self, step):
        return IMAGES[torch.randint(0, 64, (8,), generator=torch.Generator().manual_seed(step))]


def family(name):
    torch.manual_seed(1)
    if name == "ae":
        return models.linear_autoencoder(8, 1, width=8, latent=2), Autoencoding()
    return models.sngan(8, 1, width=4, latent=3), Adversarial(3, loss="hinge")


def sparse(model, sparsity=0.7):
    return prune(magnitude(model), to_sparsity=sparsity, scope="layer")


def assert_same_bits(found, expected):
    for key, tensor in named_state(expected).items():
        assert torch.equal(named_state(found)[key], tensor), key


class Keeps(Hook):
    """Keeps the masks after each step, and sees to it that model and averages have no dead weight alive."""

    def __init__(self):
        self.masks = []

    def after_step(self, state):
        state.masks.audit(state.model)
        averaged = [name for name, _ in state.averaged.named_children()]
        if averaged:
            state.masks.select(averaged).audit(state.averaged)
        self.masks.append(state.masks)
        return False


class MovesTo(Hook):
    """Moves the masks once."""

    moves_masks = True

    def __init__(self, step, masks, gradients=False):
        self.step, self.masks, self.needs_gradients, self.seen = step, masks, gradients, None

    def after_step(self, state):
        if state.step == self.step:
            self.seen = state.gradients
            state.move_to(self.masks)
        return False


# -- a hold that moves --------------------------------------------------------------------------------------------


OPTIMIZERS = {
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01),
    "amsgrad": lambda ps: torch.optim.Adam(ps, lr=0.01, amsgrad=True),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01),
}


def steps_of(model, optimizer, count):
    for number in range(count):
        optimizer.zero_grad()
        batch = Source().at(number)
        ((model.decoder(model.encoder(batch)) - batch) ** 2).mean().backward()
        optimizer.step()


def test_weights_that_lie_as_no_kernel_takes_them_are_moved_too():
    model, _ = family("ae")
    weight = model.encoder[1].weight
    weight.data = weight.data.t().contiguous().t()
    masks = sparse(model)
    with masks.hold(model) as hold:
        hold.mask()
        hold.move_to(~masks)
        assert not weight.any()
        with torch.no_grad():
            weight.fill_(1.0)
        hold.mask()
        assert torch.equal(weight != 0, ~masks["encoder.1.weight"])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_dies_and_what_is_born_is_zero_and_has_no_past(kind):
    model, _ = family("ae")
    optimizer, average = OPTIMIZERS[kind](model.parameters()), clone(model)
    masks = sparse(model, 0.4)
    others = random_like(masks, seed=3)
    with masks.hold(model, optimizer, copies=average) as hold:
        steps_of(model, optimizer, 5)
        before = {name: weight.detach().clone() for name, weight in named_weights(model).items()}
        state = {name: dict(optimizer.state[weight]) for name, weight in named_weights(model).items()}
        state = {n: {k: v.clone() for k, v in of.items() if isinstance(v, torch.Tensor)} for n, of in state.items()}
        hold.move_to(others)
        assert hold.masks is others
        for name, weight in named_weights(model).items():
            stay = (masks & others)[name] if name in masks else torch.ones_like(weight, dtype=torch.bool)
            assert torch.equal(weight, before[name] * stay)
            for key, tensor in state[name].items():
                expected = tensor * stay if tensor.shape == weight.shape else tensor
                assert torch.equal(optimizer.state[weight][key], expected), (name, key)
        others.audit(average)
        steps_of(model, optimizer, 1)
        others.audit(model)
        born = (others & ~masks)["encoder.1.weight"]
        assert (model.encoder[1].weight[born] != 0).any()
        hold.audit()


def test_whoever_writes_is_masked_by_the_masks_of_now():
    model, _ = family("ae")
    optimizer = torch.optim.Adam(model.parameters())
    masks = sparse(model)
    weight = model.encoder[1].weight
    with masks.hold(model, optimizer) as hold:
        hold.move_to(others := ~masks)
        with torch.no_grad():
            weight.add_(1.0)
        with pytest.warns(UserWarning, match="pruned weights that were not 0.0 before a pass"):
            model.encoder(Source().at(0))
        assert torch.equal(weight != 0, others["encoder.1.weight"])
        model.load_state_dict({name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()})
        assert torch.equal(weight != 0, others["encoder.1.weight"])


def test_writes_past_autograd_to_what_has_died_are_seen_before_the_next_pass():
    model, _ = family("ae")
    masks = sparse(model)
    with masks.hold(model) as hold:
        model.encoder(Source().at(0))
        hold.move_to(~masks)
        model.encoder(Source().at(0))
        model.encoder[1].weight.data[masks["encoder.1.weight"]] = 1.0
        with pytest.warns(UserWarning, match="pruned weights that were not 0.0 before a pass"):
            model.encoder(Source().at(0))
        assert not model.encoder[1].weight.any()


def test_moves_that_cannot_be_made_change_nothing():
    class Net(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.net = nn.Sequential(norm(nn.Linear(6, 4)))

    for norm, name in ((spectral_norm, "original"), (weight_norm, "original1")):
        model = Net(norm)
        masks = Masks.dense(model).replace(
            {f"net.0.parametrizations.weight.{name}": torch.arange(24).view(4, 6) % 2 == 0}
        )
        before = clone(model)
        with masks.hold(model) as hold:
            with pytest.raises(MaskError, match=r"cannot be moved so far.*0/0"):
                hold.move_to(~masks)
            assert hold.masks is masks
            masks.apply_(before)
            assert_same_bits(model, before)

    model, _ = family("ae")
    masks = sparse(model)
    with (hold := masks.hold(model)):
        pass
    with pytest.raises(MaskError, match="not entered"):
        hold.move_to(masks)
    with masks.hold(model, torch.optim.Rprop(model.parameters())) as hold, pytest.raises(MaskError, match="Rprop"):
        hold.move_to(~masks)
    with masks.hold(model) as hold, pytest.raises(MaskError, match="one set and not in the other"):
        hold.move_to(masks.select("encoder"))


# -- a training whose masks move ----------------------------------------------------------------------------------


def test_a_moved_mask_is_held_told_and_found_in_the_averages():
    model, objective = family("gan")
    masks = sparse(model)
    others, keeps = random_like(masks, seed=1, model=model), Keeps()
    done = train(model, objective, Source(), SETTINGS, masks=masks, hooks=[MovesTo(9, others), keeps])
    assert done.masks == others
    assert keeps.masks == [masks] * 8 + [others] * 12
    assert not done.choices
    others.audit(model)
    assert train(clone(model), objective, Source(), SETTINGS, masks=others).masks == others


def test_averages_have_the_singular_vectors_of_their_moved_weights():
    class Norms(Hook):
        every = 10

        def __init__(self):
            self.seen = []

        def after_step(self, state):
            with torch.no_grad():
                self.seen.append(float(torch.linalg.matrix_norm(state.averaged.decoder.eval().module[0].weight, 2)))
            return False

    model, objective = family("ae")
    model.decoder[0] = spectral_norm(model.decoder[0])
    masks, before, after = sparse(model, 0.3), Norms(), Norms()
    hooks = [before, MovesTo(10, random_like(masks, seed=1, model=model)), after]
    train(model, objective, Source(), SETTINGS, masks=masks, hooks=hooks)
    assert before.seen + after.seen == pytest.approx([1.0] * 4, abs=1e-5)


def test_without_masks_they_move_from_dense_ones():
    model, objective = family("ae")
    masks = sparse(model)
    assert train(model, objective, Source(), SETTINGS, hooks=[MovesTo(9, masks)]).masks == masks
    masks.audit(model)
    assert train(model, objective, Source(), SETTINGS).masks is None


def test_a_hook_that_did_not_say_so_moves_nothing():
    class Sly(MovesTo):
        moves_masks = False

    model, objective = family("ae")
    masks = sparse(model)
    with pytest.raises(MaskError, match="moves_masks = True"):
        train(model, objective, Source(), SETTINGS, masks=masks, hooks=[Sly(3, ~masks)])


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_gradients_are_those_of_the_step_neither_masked_nor_clipped(clip_norm):
    model, objective = family("ae")
    masks = sparse(model)
    twin = clone(model)
    plain = replace(SETTINGS, clip_norm=clip_norm, execution="dense")
    train(twin, objective, Source(), plain, masks=masks, end_step=8)
    hook = MovesTo(9, masks, gradients=True)
    train(model, objective, Source(), plain, masks=masks, hooks=[hook], end_step=9)
    twin.zero_grad()
    ((_, loss),) = objective.losses(twin, Source().at(8), torch.Generator())
    loss.backward()
    assert list(hook.seen) == [name for name in named_weights(twin) if name in masks]
    for name, gradient in hook.seen.items():
        assert torch.equal(gradient, named_weights(twin)[name].grad)
    assert any((gradient[~masks[name]] != 0).any() for name, gradient in hook.seen.items())


def test_gradients_of_half_precision_are_unscaled_and_absent_where_they_overflow(monkeypatch):
    model, objective = family("ae")
    masks, half = sparse(model), replace(SETTINGS, precision="16-mixed", clip_norm=1.0)
    seen = {}
    for precision in ("32-true", "16-mixed"):
        hook = MovesTo(1, masks, gradients=True)
        train(
            clone(model), objective, Source(), replace(half, precision=precision), masks=masks, hooks=[hook], end_step=1
        )
        seen[precision] = hook.seen
    for name, gradient in seen["32-true"].items():
        torch.testing.assert_close(seen["16-mixed"][name], gradient, rtol=0.05, atol=1e-3)
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **options: scaler(*args, **options, init_scale=1e38))
    hooks = [DropAndGrow(every=1), MovesTo(1, masks, gradients=True)]
    done = train(model, objective, Source(), half, masks=masks, hooks=hooks, end_step=1)
    assert hooks[1].seen == {}
    assert done.masks == masks


def test_masks_of_weights_that_are_no_numbers_are_not_moved():
    class Breaks(Hook):
        every = 3

        def after_step(self, state):
            with torch.no_grad():
                state.model.encoder[1].weight[0, 0] = math.nan
            return False

    model, objective = family("ae")
    hooks = [Breaks(), DropAndGrow(every=3, grow="random")]
    with pytest.raises(Diverged, match="step 3: weights are no longer finite"):
        train(model, objective, Source(), SETTINGS, masks=sparse(model), hooks=hooks)


def interrupted_after(steps, folder, model, objective, settings, **options):
    checkpoint = Checkpoint(folder / "c.pt", "key", every=1e9)
    checkpoint.path.unlink(missing_ok=True)  # of an example before
    asked = iter([False] * (steps - 1) + [True])
    with pytest.raises(KeyboardInterrupt):
        train(model, objective, Source(), settings, checkpoint=checkpoint, stop=lambda: next(asked), **options)
    return checkpoint


@pytest.mark.parametrize("name", ["ae", "gan"])
@few
@given(
    cut=st.integers(1, 20),
    every=st.integers(2, 7),
    hook=st.sampled_from(["rigl", "set", "gradual"]),
    clip_norm=st.sampled_from([None, 0.1]),
    report_every=st.sampled_from([3, 20]),
)
def test_a_resumed_training_whose_masks_move_is_the_uninterrupted_one(
    name, cut, every, hook, clip_norm, report_every, tmp_path
):
    model, objective = family(name)
    masks = Masks.dense(model) if hook == "gradual" else sparse(model)
    moving = {
        "rigl": DropAndGrow(every=every, until=0.9),
        "set": DropAndGrow(every=every, until=0.9, grow="random"),
        "gradual": Gradual(every=every, begin=0.1, end=0.9),
    }[hook]
    settings = replace(SETTINGS, clip_norm=clip_norm)
    options = {"masks": masks, "hooks": [moving], "report_every": report_every}
    whole, cut_off, again = clone(model), clone(model), clone(model)
    expected = train(whole, objective, Source(), settings, **options)
    checkpoint = interrupted_after(cut, tmp_path, cut_off, objective, settings, **options)
    torch.manual_seed(999)  # whatever happened in between
    found = train(again, objective, Source(), settings, checkpoint=checkpoint, **options)
    assert found.masks == expected.masks != masks
    assert_same_bits(again, whole)
    assert_same_bits(found.averaged, expected.averaged)


# -- drop and grow ------------------------------------------------------------------------------------------------


@few
@given(
    name=st.sampled_from(["ae", "gan"]),
    sparsity=st.floats(0.1, 0.98),
    fraction=st.floats(0.05, 0.95),
    every=st.integers(1, 6),
    grow=st.sampled_from(["gradient", "random"]),
)
def test_layers_keep_their_counts_and_so_many_of_their_weights(name, sparsity, fraction, every, grow):
    model, objective = family(name)
    masks, keeps = sparse(model, round(sparsity, 3)), Keeps()
    hook = DropAndGrow(fraction=round(fraction, 3), every=every, until=0.8, grow=grow)
    train(model, objective, Source(), SETTINGS, masks=masks, hooks=[hook, keeps])
    for step, (before, after) in enumerate(zip([masks, *keeps.masks], keeps.masks, strict=False), 1):
        assert after.counts() == masks.counts()
        share = hook.fraction / 2 * (1 + math.cos(math.pi * step / 16)) if step % every == 0 and step < 16 else 0
        stayed = (before & after).counts()
        for layer, count in masks.counts().items():
            assert stayed[layer] >= count - math.floor(count * share)  # or more: what is dropped may be grown back


def test_one_update_is_the_one_of_the_authors_code():
    """`get_update_op` of google-research/rigl, in NumPy: of dense arrays, by two sorts."""
    model, objective = family("gan")
    masks, settings = sparse(model, 0.5), replace(SETTINGS, ema=None)
    hook = DropAndGrow(fraction=0.8, every=10, until=0.9)
    spy = MovesTo(10, masks, gradients=True)
    trained, moved = clone(model), clone(model)
    train(trained, objective, Source(), settings, masks=masks, hooks=[spy], end_step=10)
    done = train(moved, objective, Source(), settings, masks=masks, hooks=[hook], end_step=10)
    share, returned = 0.4 * (1 + np.cos(np.pi * 10 / 18)), 0
    for name, mask in masks.items():
        weight = named_weights(trained)[name].detach().numpy().ravel()
        old, gradient = mask.numpy().ravel(), np.abs(spy.seen[name].numpy().ravel())
        drop = int(old.sum() * share)
        order = np.argsort(-np.abs(weight * old), kind="stable")
        kept = np.zeros_like(old)
        kept[order[: old.sum() - drop]] = True
        lifted = np.where(kept, gradient.min() - 1, gradient)
        grown = np.zeros_like(old)
        grown[np.argsort(-lifted, kind="stable")[:drop]] = True
        assert np.array_equal(done.masks[name].numpy().ravel(), kept | grown), name
        returned += (old & grown).sum()
        new = np.where((kept | grown) & old, weight, 0.0)  # what is born is 0.0, what returns is what it was
        assert np.array_equal(named_weights(moved)[name].detach().numpy().ravel(), new), name
    assert returned  # what was dropped has been grown back, here and there


def test_a_layer_under_weight_norm_keeps_a_weight_in_each_filter():
    model, objective = family("ae")
    model.encoder[1] = weight_norm(model.encoder[1])
    masks, keeps = sparse(model, 0.95), Keeps()
    name = "encoder.1.parametrizations.weight.original1"
    hooks = [DropAndGrow(fraction=0.9, every=2), keeps]
    with pytest.warns(UserWarning, match="would be 0, which weight norm divides by"):
        done = train(model, objective, Source(), SETTINGS, masks=masks, hooks=hooks)
    assert done.masks.counts() == masks.counts()
    assert all(bool(found[name].any(1).all()) for found in keeps.masks)


def test_equal_seeds_grow_the_same_and_others_do_not():
    found = []
    for seed in (0, 0, 1):
        model, objective = family("ae")
        hook = DropAndGrow(every=5, grow="random", seed=seed)
        found.append(train(model, objective, Source(), SETTINGS, masks=sparse(model), hooks=[hook]).masks)
    assert found[0] == found[1] != found[2]


# -- gradual pruning ----------------------------------------------------------------------------------------------


@few
@given(
    sparsity=st.floats(0.1, 0.98),
    every=st.integers(1, 5),
    scope=st.sampled_from(["global", "component", "layer"]),
    name=st.sampled_from(["ae", "gan"]),
)
def test_gradual_pruning_follows_the_cubic_schedule_and_revives_nothing(sparsity, every, scope, name):
    model, objective = family(name)
    hook, keeps = Gradual(round(sparsity, 3), begin=0.2, end=0.8, every=every, scope=scope), Keeps()
    train(model, objective, Source(), SETTINGS, hooks=[hook, keeps])
    first, last = -(-4 // every) * every, 16 // every * every
    for before, after in zip(keeps.masks, keeps.masks[1:], strict=False):
        assert after <= before
    for step, masks in enumerate(keeps.masks, 1):
        at = min(step // every * every, last)
        wanted = hook.sparsity * (1 - (1 - (at - first) / (last - first)) ** 3) if at > first else 0.0
        if scope == "global":
            assert masks.alive == masks.total - math.floor(wanted * masks.total + 1e-9)
        else:
            assert abs(masks.sparsity - wanted) <= len(masks) / masks.total
    assert keeps.masks[-1] == keeps.masks[last - 1]


def test_what_is_sparser_already_is_left_until_its_turn_comes():
    model, objective = family("ae")
    masks, keeps = sparse(model, 0.5), Keeps()
    train(model, objective, Source(), SETTINGS, masks=masks, hooks=[Gradual(0.8, begin=0.1, every=1), keeps])
    assert keeps.masks[2] == masks
    assert keeps.masks[-1].alive == masks.total - math.floor(0.8 * masks.total)


def test_no_step_to_prune_after_is_refused():
    with pytest.raises(PruneError, match=r"every=100: no step .* between begin=0\.25 and end=0\.75 of 120 steps"):
        Gradual().span(120)
    assert Gradual().span(134) == (100, 100)
    assert Gradual(begin=0, every=3).span(10) == (3, 6)
    assert Gradual(begin=0.29, end=0.58, every=1).span(100) == (29, 58)
    assert Gradual(0.9).sparsity_at(100, 134) == 0.9

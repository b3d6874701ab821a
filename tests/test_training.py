"""The training loop: what it holds to, what it catches, and that a resumed run is the uninterrupted one."""

import contextlib
import errno
import io
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gentickets import models
from gentickets.compiled import missing
from gentickets.errors import Diverged, GenticketsError, MaskError
from gentickets.lab.run.threads import threads_for
from gentickets.masks.names import clone, named_state
from gentickets.masks.value import Masks
from gentickets.objectives import ELBO, Adversarial, Autoencoding
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import magnitude
from gentickets.sparse import execution
from gentickets.training import progress
from gentickets.training.averaging import with_averages
from gentickets.training.hooks import Hook
from gentickets.training.loop import Settings, train
from gentickets.training.progress import Checkpoint, Curve
from gentickets.training.seeds import derived_seed
from two_ranks import every_layer

IMAGES = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


class Source:
    """Batches by step, as `data.Batches` gives them."""

    def at(self, step):
        rows = torch.randint(0, 64, (8,), generator=torch.Generator().manual_seed(step))
        return IMAGES[rows]


def family(name):
    torch.manual_seed(1)
    if name == "ae":
        return models.linear_autoencoder(8, 1, width=8, latent=2), Autoencoding()
    if name == "vae":
        return models.conv_vae(8, 1, width=4, latent=3), ELBO(3, warmup_steps=5)
    return models.dcgan(8, 1, width=4, latent=3), Adversarial(3)


def sparse(model):
    return prune(magnitude(model), fraction=0.5)


def interrupted_after(steps, folder, model, objective, settings, **options):
    """The checkpoint of a training that was stopped after so many steps."""
    checkpoint = Checkpoint(folder / "c.pt", "key", every=1e9)
    asked = iter([False] * (steps - 1) + [True])
    with pytest.raises(KeyboardInterrupt):
        train(model, objective, Source(), settings, checkpoint=checkpoint, stop=lambda: next(asked), **options)
    return checkpoint


def assert_same_bits(found, expected):
    """All tensors of two models are equal to the bit."""
    for key, tensor in named_state(expected).items():
        assert torch.equal(named_state(found)[key], tensor), key


SETTINGS = Settings(
    steps=24, batch_size=8, ema=0.9, schedule="cosine", warmup_steps=3, clip_norm=1.0, weight_decay=0.01
)


@pytest.mark.parametrize("name", ["ae", "vae", "gan"])
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(name, tmp_path):
    model, objective = family(name)
    masks = sparse(model)
    whole, cut = clone(model), clone(model)
    expected = train(whole, objective, Source(), SETTINGS, masks=masks).averaged

    checkpoint = interrupted_after(11, tmp_path, cut, objective, SETTINGS, masks=masks)
    assert checkpoint.load()["step"] == 11
    torch.manual_seed(999)  # whatever happened in between
    again = clone(model)
    found = train(again, objective, Source(), SETTINGS, masks=masks, checkpoint=checkpoint).averaged
    assert_same_bits(again, whole)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("name", ["ae", "gan"])
def test_half_precision_trains_as_single_does_and_resumes_exactly(name, tmp_path):
    half = replace(SETTINGS, precision="16-mixed")
    model, objective = family(name)
    masks = sparse(model)
    single, whole, cut = clone(model), clone(model), clone(model)
    train(single, objective, Source(), SETTINGS, masks=masks)
    train(whole, objective, Source(), half, masks=masks)
    for name, weight in named_state(single).items():
        torch.testing.assert_close(named_state(whole)[name], weight, atol=0.05, rtol=0.05)
    assert not all(torch.equal(named_state(whole)[name], weight) for name, weight in named_state(single).items())

    checkpoint = interrupted_after(7, tmp_path, cut, objective, half, masks=masks)
    assert checkpoint.load()["scaler"]["scale"] == 2.0**16
    train(cut, objective, Source(), half, masks=masks, checkpoint=checkpoint)
    assert_same_bits(cut, whole)


def test_a_step_whose_gradients_overflow_in_half_precision_is_left_out_for_every_component(monkeypatch):
    model, objective = family("ae")
    before = clone(model)
    half = replace(SETTINGS, precision="16-mixed", clip_norm=None)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=1e38))
    train(model, objective, Source(), half, end_step=1)
    assert_same_bits(model, before)


def test_dropout_is_resumed_too(tmp_path):
    def build():
        torch.manual_seed(0)
        model = models.linear_autoencoder(8, 1, width=8, latent=2)
        model.encoder.append(nn.Dropout(0.5))
        return model

    settings = Settings(steps=10, batch_size=8)
    whole, again = build(), build()
    train(whole, Autoencoding(), Source(), settings)
    checkpoint = interrupted_after(5, tmp_path, build(), Autoencoding(), settings)
    torch.manual_seed(999)  # whatever happened in between
    train(again, Autoencoding(), Source(), settings, checkpoint=checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


class Counting(nn.Module):
    """What it gives follows from a number, from a buffer that is not persistent, and from a state of its own."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen, self.own = nn.Linear(64, 64), 0, {"passes": [0], "mean": torch.zeros(())}
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.count += 0.5
            self.own = {"passes": [self.own["passes"][0] + 1], "mean": self.own["mean"] * 0.9 + x.mean()}
        scale = min(1.0, self.seen / 20) + self.count / 10 + self.own["passes"][0] / 30 + self.own["mean"]
        return self.layer(x) * scale

    def get_extra_state(self):
        return self.own

    def set_extra_state(self, state):
        self.own = state


def test_what_is_no_weight_is_resumed_too(tmp_path):
    torch.manual_seed(1)
    decoder = nn.Sequential(nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8)))
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.Flatten(), Counting()), "decoder": decoder})
    whole, cut = clone(model), clone(model)
    expected = train(whole, Autoencoding(), Source(), SETTINGS).averaged
    checkpoint = interrupted_after(11, tmp_path, cut, Autoencoding(), SETTINGS)
    for _ in range(2):  # resumed twice: what the first resumption put back goes into the next checkpoint
        again = clone(model)
        asked = iter([False] * 3 + [True])
        with contextlib.suppress(KeyboardInterrupt):
            train(again, Autoencoding(), Source(), SETTINGS, checkpoint=checkpoint, stop=asked.__next__)
    again = clone(model)
    found = train(again, Autoencoding(), Source(), SETTINGS, checkpoint=checkpoint).averaged
    assert_same_bits(again, whole)
    assert_same_bits(found, expected)
    assert again.encoder[1].seen == whole.encoder[1].seen == SETTINGS.steps
    assert torch.equal(again.encoder[1].count, whole.encoder[1].count)
    assert torch.equal(found.encoder.network[1].count, expected.encoder.network[1].count)
    assert again.encoder[1].own["passes"] == whole.encoder[1].own["passes"]


def test_a_checkpoint_of_before_there_was_more_than_weights_in_it_is_resumed(tmp_path):
    model, objective = family("ae")
    whole, cut = clone(model), clone(model)
    train(whole, objective, Source(), SETTINGS)
    checkpoint = interrupted_after(11, tmp_path, cut, objective, SETTINGS)
    state = checkpoint.load()
    assert not any(state.pop("rest"))  # of a model that has no such thing there is nothing in it
    checkpoint.save(state)
    train(model, objective, Source(), SETTINGS, checkpoint=checkpoint)
    assert_same_bits(model, whole)


def test_a_stop_after_the_last_step_loses_nothing(tmp_path):
    model, objective = family("ae")
    whole = clone(model)
    expected = train(whole, objective, Source(), SETTINGS).averaged
    checkpoint = interrupted_after(24, tmp_path, clone(model), objective, SETTINGS)
    assert checkpoint.load()["step"] == 24

    class Nothing(Source):
        def at(self, step):
            raise AssertionError("every step was taken")

    again = clone(model)
    found = train(again, objective, Nothing(), SETTINGS, checkpoint=checkpoint).averaged
    assert_same_bits(again, whole)
    assert_same_bits(found, expected)


def test_a_full_disk_under_a_checkpoint_is_told_as_such(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() + len(data) > 20_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

        def writelines(self, lines):
            for data in lines:
                self.write(data)

    monkeypatch.setattr(progress, "writing", lambda path: contextlib.nullcontext(Full()))
    with pytest.raises(OSError, match="No space"):
        Checkpoint(tmp_path / "c.pt", "key").save({"weights": torch.zeros(100_000)})


def test_a_checkpoint_of_another_training_is_not_resumed_from(tmp_path):
    Checkpoint(tmp_path / "c.pt", "mine").save({"step": 3})
    assert Checkpoint(tmp_path / "c.pt", "other").load() is None
    assert Checkpoint(tmp_path / "c.pt", "mine").load() == {"step": 3}


@pytest.mark.parametrize("name", ["ae", "vae", "gan"])
def test_weights_and_averages_stay_exactly_sparse(name):
    model, objective = family(name)
    masks = sparse(model)
    averaged = train(model, objective, Source(), SETTINGS, masks=masks).averaged
    masks.audit(model)
    names = [n for n, _ in averaged.named_children()]
    assert names == list(objective.averaged)
    masks.select(names).audit(averaged)


def test_a_breach_is_caught_in_training():
    model, _objective = family("ae")
    masks = sparse(model)

    class Meddler(Source):
        def at(self, step):
            if step == 19:  # one place of each, through `.data`: nothing but an audit sees it
                for name, mask in masks.items():
                    for place in (~mask).nonzero()[3:4]:
                        dict(model.named_parameters())[name].data[tuple(place)] = 1.0
            return super().at(step)

    class DecoderOnly(Autoencoding):
        """The encoder is never stepped, so no step of it mends what was done to its weights."""

        def losses(self, model, batch, rng):
            for _, loss in super().losses(model, batch, rng):
                yield "decoder", loss

    with pytest.raises(MaskError, match="no longer sparse: 'encoder"):
        train(model, DecoderOnly(), Meddler(), Settings(steps=20, batch_size=8), masks=masks)


def test_each_component_has_its_rate():
    model, objective = family("ae")
    before = clone(model)
    train(model, objective, Source(), Settings(steps=5, lr={"encoder": 0.0, "decoder": 1e-2}))
    assert all(torch.equal(a, b) for a, b in zip(before.encoder.parameters(), model.encoder.parameters(), strict=True))
    assert not torch.equal(before.decoder[0].weight, model.decoder[0].weight)


def test_the_generators_loss_leaves_no_gradient_in_the_discriminator():
    model, _objective = family("gan")
    seen = []

    class Spy(Adversarial):
        def losses(self, model, batch, rng):
            inner = super().losses(model, batch, rng)
            yield next(inner)
            after_d = [p.grad.clone() for p in model.discriminator.parameters()]
            yield next(inner)
            same = all(torch.equal(a, p.grad) for a, p in zip(after_d, model.discriminator.parameters(), strict=True))
            seen.append(same)

    train(model, Spy(3), Source(), Settings(steps=3))
    assert seen == [True, True, True]


def test_schedules_are_functions_of_the_step():
    settings = replace(SETTINGS, steps=100, warmup_steps=10)
    assert settings.lr_factor(0) == pytest.approx(0.1)
    assert settings.lr_factor(10) == pytest.approx(1.0)
    assert settings.lr_factor(55) == pytest.approx(0.5)
    assert replace(settings, schedule="linear").lr_factor(55) == 0.5
    assert settings.lr_factor(500) == settings.lr_factor(99) > 0
    assert replace(settings, schedule="constant").lr_factor(99) == 1.0


def test_a_loss_that_is_not_finite_stops_before_its_step():
    model, objective = family("ae")

    class Poison(Source):
        def at(self, step):
            return super().at(step) * (float("nan") if step == 7 else 1.0)

    with pytest.raises(Diverged, match=r"step 7: the loss of encoder\+decoder is nan"):
        train(model, objective, Poison(), Settings(steps=20))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("yielded", "said"),
    [
        (lambda names, loss: (names, loss.detach()), "loss 0 of Yielding has no gradient: was it detached"),
        (lambda names, loss: (names, loss.expand(3)), r"is of the shape \(3,\): give a tensor of one number"),
        (lambda names, loss: (names, 0.5), "loss 0 of Yielding is a float: give a tensor of one number"),
        (lambda names, loss: ("critic", loss), "trains 'critic', which is not among its components encoder, decoder"),
        (lambda names, loss: ((), loss), "loss 0 of Yielding names no component"),
        (lambda names, loss: loss, r"loss 0 of Yielding is a Tensor: yield \(components, loss\)"),
    ],
)
def test_what_is_no_loss_is_said_and_nothing_is_stepped(yielded, said):
    class Yielding(Autoencoding):
        def losses(self, model, batch, rng):
            for names, loss in super().losses(model, batch, rng):
                yield yielded(names, loss)

    model, _ = family("ae")
    before = clone(model)
    with pytest.raises(GenticketsError, match=said) as caught:
        train(model, Yielding(), Source(), Settings(steps=3))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))


def test_losses_that_are_a_list_and_components_without_a_weight_are_said():
    class Listed(Autoencoding):
        def losses(self, model, batch, rng):
            return list(super().losses(model, batch, rng))

    model, objective = family("ae")
    with pytest.raises(GenticketsError, match=r"Listed\.losses gives a list: yield each loss"):
        train(model, Listed(), Source(), Settings(steps=3))
    model.encoder = nn.Flatten()
    with pytest.raises(GenticketsError, match="component 'encoder' has no weight, and the objective trains it"):
        train(model, objective, Source(), Settings(steps=3))


def test_a_collapsed_generator_stops():
    model, objective = family("gan")
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.zero_()
    with pytest.raises(Diverged, match="collapsed"):
        train(model, objective, Source(), Settings(steps=240, lr=1e-12))


def test_the_average_is_the_naive_one():
    model, _objective = family("ae")
    copies = []

    class Remembers(Autoencoding):
        def losses(self, model, batch, rng):
            yield from super().losses(model, batch, rng)
            copies.append(model.encoder[1].weight.detach().clone())

    averaged = train(model, Remembers(), Source(), Settings(steps=6, ema=0.3)).averaged
    naive = copies[0]
    for kept, weight in zip([2 / 11, 3 / 12, 4 / 13, 0.3, 0.3], copies[1:], strict=True):  # warmed up, to 0.3
        naive = kept * naive + (1 - kept) * weight
    assert isinstance(averaged.encoder, AveragedModel)
    judged = with_averages(model, averaged)
    torch.testing.assert_close(judged.encoder[1].weight, naive)
    assert judged.encoder[1].weight is not averaged.encoder.module[1].weight


def test_the_curve_forgets_what_a_resumption_repeats(tmp_path):
    path = tmp_path / "curve.jsonl"
    path.write_text('{"step": 20, "losses": {}}\n{"step": 40, "losses": {}}\n{"step": 60, "lo')
    model, objective = family("ae")
    train(model, objective, Source(), Settings(steps=40), start_step=20, curve=Curve(path))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [20, 40]


def test_short_steps_get_one_thread():
    assert threads_for(70e6, cores=8) == 1
    assert threads_for(440e6, cores=8) == 8
    assert threads_for(440e6, cores=0) == 1  # more trainings side by side than cores
    assert derived_seed(1, 2) != derived_seed(2, 1)


def test_masks_of_another_model_are_refused():
    model, objective = family("ae")
    with pytest.raises(MaskError, match="no weight"):
        train(
            model,
            objective,
            Source(),
            Settings(steps=2),
            masks=Masks({"nothing": torch.ones(2, dtype=torch.bool)}),
        )


class EndAt(Hook):
    """A hook that remembers every step it saw, and ends the training at one."""

    def __init__(self, last):
        self.last, self.seen = last, []

    def after_step(self, state):
        self.seen.append(state.step)
        return state.step == self.last

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


def test_a_hook_sees_every_step_and_ends_the_training():
    model, objective = family("gan")
    first, second = EndAt(10), EndAt(99)
    done = train(model, objective, Source(), SETTINGS, hooks=[first, second])
    assert done.step == 10
    assert first.seen == second.seen == list(range(1, 11))
    assert done.images == 10 * 8


@pytest.mark.parametrize("interrupted", [4, 10])
def test_a_hook_goes_on_where_its_checkpoint_was(interrupted, tmp_path):
    model, objective = family("ae")
    whole, cut = clone(model), clone(model)
    train(whole, objective, Source(), SETTINGS, hooks=[EndAt(10)])
    checkpoint = interrupted_after(interrupted, tmp_path, cut, objective, SETTINGS, hooks=[EndAt(10)])
    again, hook = clone(model), EndAt(10)
    done = train(again, objective, Source(), SETTINGS, hooks=[hook], checkpoint=checkpoint)
    assert done.step == 10
    assert hook.seen == list(range(1, 11))
    assert_same_bits(again, whole)


def test_a_training_handed_on_with_its_optimisers_is_the_uninterrupted_one():
    model, objective = family("gan")
    plain = Settings(steps=24, batch_size=8, schedule="cosine")
    whole, parts = clone(model), clone(model)
    train(whole, objective, Source(), plain)
    first = train(parts, objective, Source(), plain, end_step=9)

    def carry(optimizers):
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(first.optimizers[name].state_dict())

    train(parts, objective, Source(), plain, start_step=9, prepare=carry)
    assert_same_bits(parts, whole)


@pytest.fixture
def every_layer_on_live_weights(monkeypatch):
    if missing() is not None:
        pytest.skip("no kernels were compiled")
    monkeypatch.setattr(execution, "faster", every_layer)


@pytest.mark.parametrize("name", ["ae", "vae", "gan"])
def test_live_weights_alone_train_as_the_masked_model_does(name, every_layer_on_live_weights):
    model, objective = family(name)
    masks = prune(magnitude(model), to_sparsity=0.8, scope="layer")
    dense, fast = clone(model), clone(model)
    wanted = train(dense, objective, Source(), replace(SETTINGS, execution="dense"), masks=masks)
    found = train(fast, objective, Source(), SETTINGS, masks=masks)
    assert not wanted.choices
    assert all(choice.sparse for choice in found.choices)
    masks.audit(fast)
    for one, other in ((fast, dense), (found.averaged, wanted.averaged)):
        assert list(named_state(one)) == list(named_state(other))
        for key, tensor in named_state(other).items():
            torch.testing.assert_close(named_state(one)[key], tensor, rtol=1e-2, atol=3e-3, msg=key)


@pytest.mark.parametrize("name", ["ae", "vae", "gan"])
def test_live_weights_alone_are_resumed_bit_for_bit(name, every_layer_on_live_weights, tmp_path):
    model, objective = family(name)
    masks = prune(magnitude(model), to_sparsity=0.8, scope="layer")
    whole, cut = clone(model), clone(model)
    expected = train(whole, objective, Source(), SETTINGS, masks=masks).averaged
    checkpoint = interrupted_after(11, tmp_path, cut, objective, SETTINGS, masks=masks)
    assert list(named_state(cut)) == list(named_state(model))  # dense again, whatever happened
    masks.audit(cut)
    again = clone(model)
    found = train(again, objective, Source(), SETTINGS, masks=masks, checkpoint=checkpoint).averaged
    assert_same_bits(again, whole)
    assert_same_bits(found, expected)
    # Where layers run in another form, the checkpoint does not fit: this training begins anew.
    fresh, plain = clone(model), replace(SETTINGS, execution="dense")
    train(fresh, objective, Source(), plain, masks=masks, checkpoint=checkpoint)
    straight = clone(model)
    train(straight, objective, Source(), plain, masks=masks)
    assert_same_bits(fresh, straight)


def test_a_divergence_leaves_a_dense_model(every_layer_on_live_weights):
    model, objective = family("ae")
    masks = prune(magnitude(model), to_sparsity=0.8, scope="layer")
    names = list(named_state(model))
    with pytest.raises(Diverged):
        train(model, objective, Source(), replace(SETTINGS, lr=1e30, clip_norm=None), masks=masks)
    assert list(named_state(model)) == names

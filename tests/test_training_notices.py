"""What no comparison of two trainings would show: noise, modes, audits at reports, what a resumption keeps."""

from dataclasses import replace

import pytest
import torch

from gentickets.errors import Diverged, GenticketsError, MaskError
from gentickets.masks.names import clone, named_state
from gentickets.objectives import Adversarial, Autoencoding
from gentickets.training.hooks import Hook
from gentickets.training.loop import Settings, train
from gentickets.training.progress import Checkpoint
from test_training import Source, family, interrupted_after, sparse

PLAIN = Settings(steps=40, batch_size=8, execution="dense")


class Spied(Autoencoding):
    """Autoencoding that calls back with (model, rng) before a step's loss and, once it is stepped, with the model."""

    def __init__(self, before=None, after=None):
        super().__init__()
        object.__setattr__(self, "before", before)
        object.__setattr__(self, "after", after)

    def losses(self, model, batch, rng):
        if self.before is not None:
            self.before(model, rng)
        yield from super().losses(model, batch, rng)
        if self.after is not None:
            self.after(model)


def test_noise_is_drawn_anew_at_each_step_and_follows_from_seed_and_step():
    def drawn(seed, start_step=0):
        found = []
        spy = Spied(before=lambda model, rng: found.append(float(torch.rand((), generator=rng))))
        train(family("ae")[0], spy, Source(), replace(PLAIN, steps=6, seed=seed), start_step=start_step)
        return found

    one = drawn(1)
    assert len(set(one)) == 6
    assert drawn(1) == one
    assert drawn(1, start_step=4) == one[4:]
    assert not set(one) & set(drawn(2))


def test_every_batch_is_that_of_its_step():
    asked = []

    class Asked(Source):
        def at(self, step):
            asked.append(step)
            return super().at(step)

    train(family("ae")[0], Autoencoding(), Asked(), PLAIN, start_step=3, end_step=9)
    assert asked == [3, 4, 5, 6, 7, 8]


def test_looking_for_a_collapse_leaves_the_model_in_training_mode():
    model, modes = family("ae")[0].eval(), []
    spy = Spied(before=lambda model, rng: modes.append({layer.training for layer in model.modules()}))
    train(model, spy, Source(), replace(PLAIN, steps=245))
    assert modes == [{True}] * 245


class Looked(Adversarial):
    """Notes in which mode it is asked for a collapse, and finds none."""

    def collapsed(self, model, batch, rng):
        self.looks.append(any(layer.training for layer in model.modules()))


@pytest.mark.parametrize(
    ("steps", "end_step", "looks"),
    [
        (240, 240, [220, 240]),  # not in the first 200 steps
        (1200, 340, [320, 340]),  # nor in the first quarter
        (2000, 240, []),
    ],
)
def test_a_collapse_is_looked_for_once_a_model_should_be_past_its_first_steps(steps, end_step, looks):
    objective, reported, found = Looked(3), [], []
    object.__setattr__(objective, "looks", found)
    settings = replace(PLAIN, steps=steps)
    train(
        family("gan")[0],
        objective,
        Source(),
        settings,
        end_step=end_step,
        on_progress=lambda progress: reported.append((progress.step, len(found))),
    )
    counts = dict(reported)
    assert [step for step in counts if counts[step] > counts.get(step - 20, 0)] == looks
    assert found == [False] * len(looks)  # in evaluation mode


def test_a_generator_that_is_dead_from_the_start_is_left_time():
    model, objective = family("gan")
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.zero_()
    early, late = clone(model), clone(model)
    assert train(early, objective, Source(), replace(PLAIN, steps=2000, lr=1e-12), end_step=240).step == 240
    with pytest.raises(Diverged, match=r"step 220: .*collapsed"):
        train(late, objective, Source(), replace(PLAIN, steps=300, lr=1e-12))


def test_a_breach_is_found_at_the_next_report():
    model, _ = family("ae")
    masks, taken = sparse(model), []

    def meddle(model):
        taken.append(1)
        if len(taken) == 20:
            with torch.no_grad():
                named_state(model)["encoder.1.weight"][~masks["encoder.1.weight"]] = 1.0

    with pytest.raises(MaskError, match=r"no longer sparse: 'encoder\.1\.weight'"):
        train(model, Spied(after=meddle), Source(), PLAIN, masks=masks)
    assert len(taken) == 20


class At(Hook):
    """A hook that does something to the averages after one step."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def after_step(self, state):
        if state.step == self.step:
            with torch.no_grad():
                self.act(named_state(state.averaged))
        return False


def test_a_stray_weight_in_an_average_is_found_at_the_next_report():
    model, objective = family("ae")
    masks, reported = sparse(model), []

    def meddle(state):
        state["decoder.0.weight"][~masks["decoder.0.weight"]] = 1.0

    with pytest.raises(MaskError, match=r"moving average.*'decoder\.0\.weight'"):
        train(
            model,
            objective,
            Source(),
            replace(PLAIN, ema=0.5),
            masks=masks,
            hooks=[At(20, meddle)],
            on_progress=lambda progress: reported.append(progress.step),
        )
    assert reported == []


def test_weights_that_are_no_longer_finite_end_a_training_at_the_next_report():
    model, _ = family("ae")
    steps = []

    def break_it(model):
        steps.append(1)
        if len(steps) == 20:
            with torch.no_grad():
                model.encoder[1].weight[0, 0] = float("inf")

    with pytest.raises(Diverged, match="step 20: weights are no longer finite"):
        train(model, Spied(after=break_it), Source(), PLAIN)


def test_the_momentum_of_pruned_weights_is_dropped_at_reports():
    model, objective = family("ae")
    masks = sparse(model)
    done = train(model, objective, Source(), replace(PLAIN, steps=20), masks=masks)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = 0
    for optimizer in done.optimizers.values():
        for parameter, state in optimizer.state.items():
            if (name := names[id(parameter)]) in masks:
                seen += 1
                assert not state["exp_avg"][~masks[name]].any()
                assert state["exp_avg"][masks[name]].any()
    assert seen == len(masks)


def test_a_bound_that_no_gradient_reaches_changes_nothing_in_half_precision():
    model, objective = family("ae")
    half = replace(PLAIN, steps=6, precision="16-mixed")
    free, bound = clone(model), clone(model)
    train(free, objective, Source(), half)
    train(bound, objective, Source(), replace(half, clip_norm=1e3))
    assert all(torch.equal(a, b) for a, b in zip(free.parameters(), bound.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_the_gradient_of_each_component_is_bound_by_itself(precision):
    model, _ = family("ae")
    norms = {}

    def note(model):
        for name in ("encoder", "decoder"):
            grads = [parameter.grad.flatten() for parameter in getattr(model, name).parameters()]
            norms[name] = float(torch.cat(grads).norm())

    train(model, Spied(after=note), Source(), replace(PLAIN, steps=1, clip_norm=1e-3, precision=precision))
    assert norms == {"encoder": pytest.approx(1e-3, rel=1e-2), "decoder": pytest.approx(1e-3, rel=1e-2)}


def test_only_the_gradients_of_live_weights_count_in_the_bound():
    model, _ = family("ae")
    masks, found = sparse(model), []

    def note(model):
        live = [
            p.grad[masks[n]] if n in masks else p.grad.flatten() for n, p in model.encoder.named_parameters("encoder")
        ]
        found.append(float(torch.cat(live).norm()))

    train(model, Spied(after=note), Source(), replace(PLAIN, steps=1, clip_norm=1e-3), masks=masks)
    assert found == [pytest.approx(1e-3, rel=1e-3)]


def test_a_resumed_training_counts_all_its_images_and_seconds(tmp_path):
    model, objective = family("ae")
    settings = replace(PLAIN, steps=10)
    checkpoint = interrupted_after(5, tmp_path, clone(model), objective, settings)
    state = checkpoint.load()
    assert (state["step"], state["images"]) == (5, 40)
    assert 0 < state["seconds"] < 3600
    checkpoint.save({**state, "seconds": state["seconds"] + 5000.0})
    done = train(model, objective, Source(), settings, checkpoint=checkpoint)
    assert done.images == 80
    assert 5000 < done.seconds < 8600


def test_the_rates_of_the_optimisers_are_those_of_the_last_step():
    settings = replace(PLAIN, schedule="linear", warmup_steps=4, lr={"encoder": 1e-3, "decoder": 1e-2})
    for end_step, factor in ((2, 0.5), (4, 1.0), (5, 1.0), (14, 1 - 9 / 36)):
        done = train(family("ae")[0], Autoencoding(), Source(), settings, end_step=end_step)
        rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in done.optimizers.items()}
        assert rates == {"encoder": pytest.approx(1e-3 * factor), "decoder": pytest.approx(1e-2 * factor)}


def test_reports_come_at_their_steps_and_at_the_end():
    reported = []
    train(
        family("ae")[0], Autoencoding(), Source(), replace(PLAIN, steps=47), start_step=5, on_progress=reported.append
    )
    assert [progress.step for progress in reported] == [20, 40, 47]
    assert all(set(progress.losses) == {"encoder+decoder"} for progress in reported)
    assert all(progress.images_per_second > 0 for progress in reported)


def test_prepared_optimisers_are_not_prepared_again_where_a_training_goes_on(tmp_path):
    model, objective = family("ae")
    settings, prepared = replace(PLAIN, steps=10), []
    checkpoint = interrupted_after(5, tmp_path, clone(model), objective, settings, prepare=prepared.append)
    assert [set(optimizers) for optimizers in prepared] == [{"encoder", "decoder"}]
    train(model, objective, Source(), settings, checkpoint=checkpoint, prepare=prepared.append)
    assert len(prepared) == 1


def test_a_component_without_a_rate_is_named():
    with pytest.raises(GenticketsError, match="no rate for component 'decoder': it names encoder"):
        train(family("ae")[0], Autoencoding(), Source(), replace(PLAIN, lr={"encoder": 1e-3}))


def test_what_dropout_draws_follows_from_the_seed_and_the_first_step():
    def drawn(seed, start_step):
        found = []
        spy = Spied(before=lambda model, rng: found.append(float(torch.rand(()))))
        train(family("ae")[0], spy, Source(), replace(PLAIN, seed=seed), start_step=start_step, end_step=start_step + 2)
        return tuple(found)

    assert drawn(1, 0) == drawn(1, 0)
    assert len({drawn(1, 0), drawn(2, 0), drawn(1, 5)}) == 3


def test_the_scale_of_half_precision_is_resumed(tmp_path):
    model, objective = family("ae")
    half = replace(PLAIN, precision="16-mixed")
    checkpoint = interrupted_after(3, tmp_path, clone(model), objective, half)
    state = checkpoint.load()
    state["scaler"]["scale"] = 1024.0
    checkpoint.save(state)
    with pytest.raises(KeyboardInterrupt):
        train(model, objective, Source(), half, checkpoint=checkpoint, stop=lambda: True)
    state = checkpoint.load()
    assert (state["step"], state["scaler"]["scale"]) == (4, 1024.0)


def test_a_training_that_a_hook_ends_is_checked_and_reported_there(tmp_path):
    class Ends(At):
        def after_step(self, state):
            return state.step == self.step

    model, objective = family("ae")
    reported = []
    checkpoint = Checkpoint(tmp_path / "c.pt", "key", every=0.0)
    train(
        model,
        objective,
        Source(),
        PLAIN,
        hooks=[Ends(7, None)],
        on_progress=lambda progress: reported.append(progress.step),
        checkpoint=checkpoint,
    )
    assert reported == [7]
    assert checkpoint.load()["step"] == 6  # what has ended is not saved once more

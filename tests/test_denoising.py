"""The denoiser: noise and back against closed forms, sampling where the truth is known, the U-Net in every tool."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gentickets as gt
from gentickets import models
from gentickets.data import Batches, ImageSet, Labelled, load
from gentickets.errors import DataError, GenticketsError, PruneError
from gentickets.lab.judging import SAMPLING_SEED, Judge, spread
from gentickets.lab.recipe import EvaluationPart
from gentickets.masks.names import clone, named_state, named_weights
from gentickets.metrics.cost import training_flops
from gentickets.objectives import Denoising, Distilled
from gentickets.objectives.denoising import signal
from gentickets.training.averaging import with_averages
from gentickets.training.loop import Settings, train

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_unet(seed: int = 0, **options) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.unet(8, 1, **{"width": 4, "groups": 2, "zero_output": False} | options)


class Told(nn.Module):
    """A denoiser that is a function of noisy images and times."""

    def __init__(self, function, shape=(1, 8, 8)):
        super().__init__()
        self.denoiser = Calls(function)
        self.denoiser.image_shape = shape


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.times = function, []

    def forward(self, images: Tensor, times: Tensor, *labels: Tensor) -> Tensor:
        self.times.append(times)
        return self.function(images, times, *labels)


# -- noise and back -------------------------------------------------------------------------------------------------


def betas_by_hand(schedule: str, steps: int) -> list[float]:
    """One after the other, in plain floats."""
    if schedule == "linear":
        return [(1e-4 + (0.02 - 1e-4) * step / (steps - 1)) * 1000 / steps for step in range(steps)]

    def kept(time: float) -> float:
        return math.cos((time / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(0.999, 1 - kept(step + 1) / kept(step)) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [50, 1000])
def test_what_is_left_of_an_image_is_what_the_steps_leave_one_by_one(schedule, steps) -> None:
    """Mean and variance of q(x_t | x_0), step by step: x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) e."""
    mean, variance = 1.0, 0.0
    objective = Denoising(schedule=schedule, timesteps=steps, sampling_steps=10)
    for time, beta in enumerate(betas_by_hand(schedule, steps)):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert float(signal(schedule, steps)[time].sqrt()) == pytest.approx(mean, rel=1e-9)
        if time % 49 == 0:
            at = torch.tensor([time])
            ones, zeros = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
            assert float(objective.noisy(ones, at, zeros)) == pytest.approx(mean, rel=1e-5)
            assert float(objective.noisy(zeros, at, ones)) == pytest.approx(math.sqrt(variance), rel=1e-5)
    assert mean < 0.01


def test_schedules_end_where_their_papers_say() -> None:
    assert float(signal("linear", 1000)[-1]) == pytest.approx(4.036e-5, rel=1e-3)
    half = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert float(signal("cosine", 1000)[499]) == pytest.approx(half, rel=1e-9)


@given(st.integers(0, 949), st.sampled_from(["linear", "cosine"]), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_noise_velocity_and_image_tell_each_other(time, schedule, seed) -> None:
    image, noise = torch.randn(2, 3, 1, 4, 4, generator=rng(seed)).unbind(0)
    times = torch.full((3,), time)
    by_noise, by_velocity = Denoising("epsilon", schedule), Denoising("v", schedule)
    noisy, velocity = by_noise.noisy(image, times, noise), by_noise.velocity(image, times, noise)
    kept = float(signal(schedule, 1000)[time])
    torch.testing.assert_close(velocity, math.sqrt(kept) * noise - math.sqrt(1 - kept) * image)
    close = {"rtol": 1e-3, "atol": 1e-5 / math.sqrt(kept)}
    torch.testing.assert_close(by_noise.clean(noisy, times, noise), image, **close)
    torch.testing.assert_close(by_velocity.clean(noisy, times, velocity), image, **close)
    back = math.sqrt(1 - kept) * noisy + math.sqrt(kept) * velocity
    torch.testing.assert_close(back, noise, rtol=1e-3, atol=1e-4)
    if kept < 0.99:
        torch.testing.assert_close(by_noise.noise(noisy, times, image), noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_by_hand(prediction) -> None:
    model = a_unet()
    [(component, loss)] = Denoising(prediction).losses(model, IMAGES, rng(5))
    drawn = rng(5)
    times = torch.randint(1000, (6,), generator=drawn)
    noise = torch.randn(IMAGES.shape, generator=drawn)
    kept = torch.tensor([np.prod(1 - np.array(betas_by_hand("cosine", 1000)[: t + 1])) for t in times.tolist()])
    a, b = (part.float()[:, None, None, None] for part in (kept.sqrt(), (1 - kept).sqrt()))
    wanted = noise if prediction == "epsilon" else a * noise - b * IMAGES
    assert component == "denoiser"
    torch.testing.assert_close(loss, ((model(a * IMAGES + b * noise, times) - wanted) ** 2).mean())
    assert times.dtype == torch.int64


# -- new images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 20, 1000])
def test_where_all_data_are_one_point_samples_are_that_point(prediction, schedule, steps) -> None:
    point = IMAGES[0]
    objective = Denoising(prediction, schedule, sampling_steps=steps)

    def truth(noisy: Tensor, times: Tensor) -> Tensor:
        kept = signal(schedule, 1000)[times][:, None, None, None].float()
        noise = (noisy - kept.sqrt() * point) / (1 - kept).sqrt()
        return noise if prediction == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * point

    model = Told(truth)
    samples = objective.sample(model, 3, rng())
    torch.testing.assert_close(samples, point.expand(3, 1, 8, 8), rtol=1e-2, atol=2e-3)
    times = torch.stack(model.denoiser.times)
    assert times.shape == (steps, 3)
    assert (times.diff(dim=0) < 0).all()


def test_where_data_are_normal_samples_have_their_mean_and_spread() -> None:
    """The mean of the noise given x_t is known for N(0.2, 0.15²): sqrt(1-a) (x_t - sqrt(a) m) / (a s² + 1 - a)."""
    mean, deviation = 0.2, 0.15
    objective = Denoising(sampling_steps=200)

    def truth(noisy: Tensor, times: Tensor) -> Tensor:
        kept = signal("cosine", 1000)[times][:, None, None, None].float()
        return (1 - kept).sqrt() * (noisy - kept.sqrt() * mean) / (kept * deviation**2 + 1 - kept)

    samples = objective.sample(Told(truth), 200, rng())
    assert float(samples.mean()) == pytest.approx(mean, abs=0.01)
    assert float(samples.std()) == pytest.approx(deviation, rel=0.05)


def test_samples_start_in_the_middle_of_the_last_part() -> None:
    assert Denoising().times_of_sampling() == list(range(975, 0, -50))
    assert Denoising(sampling_steps=1000).times_of_sampling() == list(range(999, -1, -1))
    assert Denoising(timesteps=7, sampling_steps=3).times_of_sampling() == [5, 3, 1]


def test_what_cannot_be_is_refused_in_a_line() -> None:
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=rf"^sampling_steps={steps}: 1 to timesteps=1000$"):
            Denoising(sampling_steps=steps)
    silent = Told(lambda images, times: images, shape=None)
    with pytest.raises(GenticketsError, match=r"^the denoiser does not say .*: give image_shape=\["):
        Denoising().sample(silent, 2, rng())
    assert Denoising(image_shape=[3, 4, 5]).sample(silent, 2, rng()).shape == (2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"^depth=5: an image of side 8 cannot be halved 4 times"):
        models.unet(8, 1, depth=5)
    with pytest.raises(ValueError, match=r"^width=3: an even number is needed"):
        models.unet(8, 1, width=3)
    with pytest.raises(DataError, match=r"^conditional=True: batches need labels"):
        next(Denoising(conditional=True).losses(a_unet(classes=3), IMAGES, rng()))


# -- judged by its held-out loss ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return load("digits", size=8), load("digits", size=8, split="test")


def test_the_held_out_loss_is_of_the_same_draws_for_every_model(digits) -> None:
    part = EvaluationPart(features="none")
    judge = Judge(Denoising(), *digits, part)
    assert (judge.keys, judge.primary) == (["denoising_loss"], "denoising_loss")
    nothing, copies = Told(lambda images, times: 0 * images), Told(lambda images, times: images)
    (loss,), (other,) = judge.measure(nothing), judge.measure(copies)
    assert (loss.samples, loss.lower_is_better) == (4000, True)
    assert loss.label == "denoising loss, held-out images"
    assert loss.value == pytest.approx(1, abs=0.01)  # of noise itself
    assert 0 < other.value < 1
    seen = [torch.cat(model.denoiser.times) for model in (nothing, copies)]
    assert torch.equal(*seen)
    assert len(seen[0]) == 4000
    drawn, total = rng(SAMPLING_SEED), 0.0
    rows = spread(len(digits[1]), 4000)
    for start in range(0, 4000, 256):
        images = digits[1].images(rows[start : start + 256])
        torch.randint(1000, (len(images),), generator=drawn)
        total += float(torch.randn(images.shape, generator=drawn).square().mean((1, 2, 3)).sum())
    assert loss.value == pytest.approx(total / 4000, rel=1e-6)
    assert Judge(Distilled(Denoising("v"), nothing), *digits, part).keys == ["denoising_loss"]


def test_a_training_lowers_the_held_out_loss_and_the_average_is_judged(digits, tmp_path) -> None:
    model, objective = a_unet(width=8, zero_output=True), Denoising(sampling_steps=5)
    judge = Judge(objective, *digits, EvaluationPart(features="none"))
    (before,) = judge.measure(clone(model))
    assert before.value == pytest.approx(1, abs=0.01)
    training = Settings(steps=60, batch_size=32, lr=5e-3, ema=0.9, clip_norm=1.0)
    trained = train(model, objective, Batches(digits[0], 32, seed=0), training)
    assert [name for name, _ in trained.averaged.named_children()] == ["denoiser"]
    averaged = with_averages(model, trained.averaged)
    (after,) = judge.measure(averaged)
    assert after.value < 0.5
    assert judge.glance(averaged) == pytest.approx(after.value, abs=0.1)
    judge.picture(averaged, tmp_path)
    assert (tmp_path / "samples.png").is_file()


# -- the U-Net in every tool ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"depth": 1}, {"depth": 3, "blocks": 2}, {"width": 6, "groups": 4}, {"classes": 3}], ids=str
)
def test_a_unet_gives_what_was_added_image_by_image(options) -> None:
    net, labels = a_unet(**options).denoiser, torch.tensor([0, 1, 2, 0, 1, 2])
    beside = (labels,) if "classes" in options else ()
    times = torch.tensor([0, 1, 10, 100, 500, 999])
    given = net(IMAGES, times, *beside)
    assert given.shape == IMAGES.shape
    alone = torch.cat([net(IMAGES[[i]], times[[i]], *(one[[i]] for one in beside)) for i in range(6)])
    torch.testing.assert_close(given, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(given, net(IMAGES, times.flip(0), *beside), atol=1e-4)
    if beside:
        assert not torch.allclose(given, net(IMAGES, times, labels.flip(0)), atol=1e-4)


def test_a_unet_begins_with_no_noise_at_all_unless_told_otherwise() -> None:
    times = torch.arange(6)
    assert not models.unet(8, 1, width=4).denoiser(IMAGES, times).any()
    assert models.unet(8, 1, width=4, zero_output=False).denoiser(IMAGES, times).any()


def test_labels_are_for_a_unet_that_was_made_with_classes() -> None:
    times, labels = torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
    for model, arguments in ((a_unet(), (IMAGES, times, labels)), (a_unet(classes=2), (IMAGES, times))):
        with pytest.raises(ValueError, match=r"^a U-Net takes labels where it was made with classes="):
            model(*arguments)


def test_its_cost_is_that_of_its_products() -> None:
    """Counted by hand from the layers: 2 · places · weights of each convolution, two a number of each norm."""
    model, objective = a_unet(), Denoising()
    inputs = objective.example_inputs(model, IMAGES)
    assert inputs["denoiser"][1].dtype == torch.int64
    gave = {}
    for layer in model.modules():
        layer.register_forward_hook(lambda layer, _, output: gave.update({layer: output[0]}))
    model(*inputs["denoiser"])
    flops = 2 * 2 * 16 * 16 * 8  # 16 places look at 16, 8 wide, twice
    for layer, output in gave.items():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            flops += 2 * layer.weight.numel() * (output[0].numel() if output.dim() > 1 else 1)
        elif isinstance(layer, nn.GroupNorm):
            flops += 2 * output.numel()
    assert gt.cost(model, inputs).flops_dense == flops
    assert training_flops(model, objective, IMAGES).dense > 2 * flops


def test_criteria_on_a_unet_are_right_or_refused() -> None:
    """SNIP against gradients taken by hand; what a last layer of zeros hides is refused."""
    model, objective = a_unet(), Denoising()
    scores = gt.snip(model, objective, [IMAGES], seed=4)
    copy = clone(model).train()
    [(_, loss)] = objective.losses(copy, IMAGES, rng(4))
    loss.backward()
    for name, score in scores.items():
        weight = named_weights(copy)[name]
        torch.testing.assert_close(score, (weight * weight.grad).abs().detach(), rtol=1e-3, atol=1e-7)
    inputs = objective.example_inputs(model, IMAGES)
    masks = gt.synflow_masks(model, inputs, 0.6, iterations=5)
    assert masks.sparsity == pytest.approx(0.6, abs=1e-3)
    gt.check_connected(model, masks, inputs)
    assert all(bool(score.isfinite().all()) and score.any() for score in gt.grasp(model, objective, [IMAGES]).values())

    begins_at_zero = a_unet(zero_output=True)
    for refused in (
        lambda: gt.snip(begins_at_zero, objective, [IMAGES]),
        lambda: gt.synflow_masks(begins_at_zero, inputs, 0.6, iterations=5),
    ):
        with pytest.raises(PruneError, match=r"every weight scores 0, which is nothing to choose by") as caught:
            refused()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [None, 10])
def test_a_masked_unet_trains_the_same_sparse_or_dense_and_shrinks_to_the_same(classes, digits) -> None:
    objective = Denoising(conditional=classes is not None)
    model, batches = a_unet(classes=classes), Batches(digits[0], 8, seed=0, labelled=classes is not None)
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.9, scope="layer")
    outcomes = []
    for execution in ("dense", "auto"):
        copy = clone(model)
        train(
            copy, objective, batches, Settings(steps=3, batch_size=8, execution=execution, clip_norm=1.0), masks=masks
        )
        masks.audit(copy)
        outcomes.append(copy)
    for name, tensor in named_state(outcomes[0]).items():
        torch.testing.assert_close(tensor, named_state(outcomes[1])[name], rtol=1e-3, atol=1e-4)
    inputs = objective.example_inputs(copy, batches.at(1))
    gt.check_connected(copy, masks, inputs)
    small = gt.shrink(copy, masks, inputs)
    assert sum(w.numel() for w in small.parameters()) < sum(w.numel() for w in copy.parameters())
    torch.testing.assert_close(small(*inputs["denoiser"]), copy(*inputs["denoiser"]), rtol=1e-3, atol=1e-4)
    labels = (torch.arange(2),) if classes else ()
    assert objective.sample(small, 2, rng(), *labels).shape == (2, 1, 8, 8)
    assert len(gt.channel_groups(model, inputs)) > 0


def test_a_denoiser_learns_what_its_teacher_says(digits) -> None:
    """One noisy image for both: the distance is that of their answers."""
    student, teacher = a_unet(1), a_unet(2)
    [(_, loss)] = Distilled(Denoising(), teacher, 3.0).losses(student, IMAGES, rng(7))
    [(_, plain)] = Denoising().losses(student, IMAGES, rng(7))
    drawn = rng(7)
    times = torch.randint(1000, (6,), generator=drawn)
    noisy = Denoising().noisy(IMAGES, times, torch.randn(IMAGES.shape, generator=drawn))
    torch.testing.assert_close(loss, plain + 3 * (student(noisy, times) - teacher(noisy, times)).square().mean())


def test_labels_come_to_the_denoiser_as_its_third_argument() -> None:
    seen = []
    model = Told(lambda images, times, labels: seen.append(labels) or images)
    objective, labels = Denoising(conditional=True, sampling_steps=2), torch.tensor([2, 0, 1, 2, 0, 1])
    next(objective.losses(model, Labelled(IMAGES, labels), rng()))
    objective.sample(model, 6, rng(), labels.flip(0))
    assert [one.tolist() for one in seen] == [labels.tolist(), *[labels.flip(0).tolist()] * 2]


@pytest.mark.parametrize("times", [[0], [0, 5, 10], "09", [0.5, 3], [0, True], {}, [5, 5], [-1, 5], [0, 11]])
def test_times_that_are_no_region_are_refused(times):
    with pytest.raises(ValueError, match="the first and the one after the last, of 0 to 10"):
        gt.Denoising(timesteps=10, sampling_steps=2, times=times)

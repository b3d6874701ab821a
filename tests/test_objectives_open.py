"""Objectives that own all about themselves: objectives around objectives, measures, metrics of one's own, labels."""

from __future__ import annotations

import ast
import inspect
import math
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gentickets as gt
from gentickets import models, objectives
from gentickets.data import Batches, ImageSet, Labelled, load
from gentickets.errors import DataError, GenticketsError, RecipeError
from gentickets.lab.judging import SAMPLING_SEED, Judge, spread
from gentickets.lab.recipe import EvaluationPart, Recipe, make_recipe
from gentickets.lab.run.checks import check_buildable
from gentickets.masks.names import clone, named_state
from gentickets.metrics.cost import training_flops
from gentickets.objectives import ELBO, Adversarial, Around, Autoencoding, Distilled, GainPenalty, Measure, Objective
from gentickets.training.loop import Settings, train

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(build, seed: int = 0, **options) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(8, 1, **options)


def an_autoencoder(seed: int = 0) -> nn.Module:
    return drawn(models.linear_autoencoder, seed, width=8, latent=3)


def a_vae(seed: int = 0, classes: int | None = None) -> nn.Module:
    return drawn(models.conv_vae, seed, width=4, latent=3, classes=classes)


def a_gan(seed: int = 0, classes: int | None = None) -> nn.Module:
    return drawn(models.dcgan, seed, width=4, latent=3, critic_norm=False, classes=classes)


# -- options that their owner owns --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Autoencoding, ELBO, Adversarial, GainPenalty, Distilled, Around])
def test_every_option_has_a_sentence_below_it(kind) -> None:
    (tree,) = ast.parse(inspect.getsource(kind)).body
    told = {
        before.target.id
        for before, after in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and after.value.value.endswith(".")
    }
    assert told >= {field.name for field in fields(kind)} - ({"objective"} if kind is not Around else set())


# -- objectives around objectives -----------------------------------------------------------------------------------


def test_one_around_another_is_the_other_in_all_that_it_does_not_change() -> None:
    gan, vae = a_gan(), a_vae()
    for inner, model in ((Adversarial(3, n_critic=2), gan), (ELBO(3, beta=4.0, warmup_steps=4), vae)):
        outer = Around(Around(inner))
        for key in ("components", "averaged", "batches_per_step", "wants_labels", "can_sample", "can_reconstruct"):
            assert getattr(outer, key) == getattr(inner, key), key
        assert outer.at(0) == Around(Around(inner.at(0)))
        assert list(outer.measures()) == list(inner.measures())
        assert torch.equal(outer.sample(model, 4, rng()), inner.sample(model, 4, rng()))
        assert outer.example_inputs(model, IMAGES).keys() == inner.example_inputs(model, IMAGES).keys()
        pairs = zip(outer.losses(model, IMAGES, rng()), inner.losses(model, IMAGES, rng()), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    assert Around(Autoencoding()).at(3) == Around(Autoencoding())
    assert torch.equal(Around(ELBO(3)).reconstruct(vae.eval(), IMAGES), ELBO(3).reconstruct(vae, IMAGES))
    assert not Around(Autoencoding()).can_sample


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_distillation_by_hand(mode: bool) -> None:
    """The squared error to what the teacher makes of the same image and the same noise, beside the inner loss."""
    strength = 0.7
    student, teacher = an_autoencoder(1).train(mode), an_autoencoder(2)
    [(names, loss)] = Distilled(Autoencoding(), teacher, strength).losses(student, IMAGES, rng())
    given, wanted = student(IMAGES), teacher(IMAGES)
    assert names == ("encoder", "decoder")
    torch.testing.assert_close(loss, ((given - IMAGES) ** 2).mean() + strength * ((given - wanted) ** 2).mean())

    student, teacher = a_vae(1).eval(), a_vae(2).train(mode)
    [(_, loss)] = Distilled(ELBO(3), teacher, strength).losses(student, IMAGES, rng())
    noise = torch.randn(6, 3, generator=rng())
    images = []
    for model in (student, teacher.eval()):
        mean, log_variance = model.encoder(IMAGES)
        images.append(model.decoder(mean + noise * (log_variance / 2).exp()))
    [(_, plain)] = ELBO(3).losses(student, IMAGES, rng())
    torch.testing.assert_close(loss, plain + strength * ((images[0] - images[1]) ** 2).mean())

    student, teacher = a_gan(1).eval(), a_gan(2)
    objective = Adversarial(3, n_critic=2)
    found = list(Distilled(objective, teacher, strength).losses(student, IMAGES, rng()))
    plain = list(objective.losses(student, IMAGES, rng()))
    assert [name for name, _ in found] == [name for name, _ in plain] == ["discriminator"] * 2 + ["generator"]
    z = torch.randn(3, 3, generator=rng())
    gap = ((student.generator(z) - teacher.eval().generator(z)) ** 2).mean()
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found[:2], plain[:2], strict=True))
    torch.testing.assert_close(found[2][1], plain[2][1] + strength * gap)


def test_a_teacher_is_left_as_it_was_and_gets_no_gradient() -> None:
    student, teacher = a_vae(1), a_vae(2).train()
    before, state = {k: v.clone() for k, v in named_state(teacher).items()}, torch.get_rng_state()
    [(_, loss)] = Distilled(ELBO(3), teacher).losses(student, IMAGES, rng())
    loss.backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in named_state(teacher).items())
    assert all(module.training for module in teacher.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in teacher.parameters())
    assert all(weight.grad is not None for weight in student.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_a_distilled_student_comes_closer_to_its_teacher_and_holds_none_of_it() -> None:
    teacher, batches = an_autoencoder(2), Batches(load("digits", size=8), 16, seed=0)
    gaps = []
    for objective in (Autoencoding(), Distilled(Autoencoding(), teacher, 10.0)):
        student = an_autoencoder(1)
        masks = gt.prune(gt.magnitude(student), fraction=0.5)
        train(student, objective, batches, Settings(steps=60, batch_size=16, lr=1e-2), masks=masks)
        gaps.append(float((student(batches.at(0)) - teacher(batches.at(0))).detach().square().mean()))
        assert student.state_dict().keys() == an_autoencoder().state_dict().keys()
    assert gaps[1] < 0.5 * gaps[0]


def test_a_teacher_that_is_the_student_or_has_nothing_to_teach_is_refused_in_a_line() -> None:
    model = an_autoencoder()
    with pytest.raises(GenticketsError, match=r"^the teacher is the model that is trained: give a copy"):
        next(Distilled(Autoencoding(), model).losses(model, IMAGES, rng()))

    class Silent(Autoencoding):
        outputs = Objective.outputs

    with pytest.raises(GenticketsError, match=r"^nothing to distil: Silent does not say what its components give"):
        next(Distilled(Silent(), an_autoencoder(1)).losses(model, IMAGES, rng()))


def test_a_teachers_forward_pass_is_part_of_the_price() -> None:
    model, teacher = an_autoencoder(1), an_autoencoder(2)
    plain = training_flops(model, Autoencoding(), IMAGES).dense
    forward = gt.cost(teacher, Autoencoding().example_inputs(teacher, IMAGES)).flops_dense
    with_teacher = training_flops(model, Distilled(Autoencoding(), teacher), IMAGES).dense
    assert with_teacher == pytest.approx(2 * plain + forward, rel=0.01)  # the student's once more, with its gradients


# -- a judge that asks and does not look ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Brightness(Objective):
    """A stranger's: one component, measures of its own, and nothing else."""

    components = ("net",)

    def losses(self, model, batch, rng) -> Iterator[tuple[str, Tensor]]:
        yield "net", (model.net(batch).flatten(1).mean(1) - batch.flatten(1).mean(1)).square().mean()

    def measures(self) -> dict[str, Measure]:
        return {
            "light": Measure("mean light", lambda model, batch, rng: model.net(batch).flatten(1).mean(1), False),
            "chance": Measure("chance", lambda model, batch, rng: torch.rand(len(batch), generator=rng), draws=1000),
            "aside": Measure("aside", lambda model, batch, rng: torch.zeros(len(batch)), decides=False),
        }


class Same(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Identity()


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return load("digits", size=8), load("digits", size=8, split="test")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path))


def test_a_strangers_measures_are_measured_told_and_glanced_at(digits, tmp_path) -> None:
    train_set, held_out = digits
    judge = Judge(Brightness(), train_set, held_out, EvaluationPart())
    assert (judge.keys, judge.primary) == (["light", "chance", "aside"], "light")
    light, chance, aside = judge.measure(Same())
    assert light.value == pytest.approx(float(held_out.images().mean()), rel=1e-5)
    assert (light.label, light.samples, light.lower_is_better) == ("mean light", len(held_out), False)
    rng = torch.Generator().manual_seed(SAMPLING_SEED)
    assert chance.value == pytest.approx(float(torch.rand(1000, generator=rng).mean()), rel=1e-5)
    assert (chance.samples, aside.value) == (1000, 0.0)
    assert judge.glance(Same()) == pytest.approx(-float(train_set.images(slice(0, 1000)).mean()), rel=1e-5)
    judge.picture(Same(), tmp_path)
    assert not (tmp_path / "samples.png").exists()
    assert Judge(Around(Brightness()), *digits, EvaluationPart(primary="chance")).primary == "chance"
    with pytest.raises(RecipeError, match=r"evaluation\.primary='aside' is none of light, chance"):
        Judge(Brightness(), *digits, EvaluationPart(primary="aside"))


def test_the_images_of_draws_are_spread_evenly_over_all() -> None:
    assert spread(3, 7).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert spread(7, 3).tolist() == [0, 2, 4]
    for available, count in ((359, 4000), (4000, 359), (5, 5)):
        times = np.bincount(spread(available, count), minlength=available)
        assert times.sum() == count
        assert times.max() - times.min() <= 1


def test_nothing_in_the_lab_asks_an_objective_for_its_type() -> None:
    lab = Path(objectives.__file__).parents[1] / "lab"
    assert not [file.name for file in lab.rglob("*.py") if re.search(r"isinstance\([^)]*objective", file.read_text())]


def darkness(samples: Tensor, images: Tensor) -> float:
    """How much darker samples are than images."""
    return float(images.mean() - samples.mean())


def test_a_metric_of_ones_own_gets_samples_and_held_out_images(digits) -> None:
    seen = {}

    def share(samples: Tensor, images: Tensor) -> Tensor:
        seen["samples"], seen["images"] = samples, images
        return samples.mean() / images.mean()

    share.lower_is_better = False
    part = EvaluationPart(samples=300, features="none", metrics=["share", "darkness"])
    judge = Judge(Adversarial(3), *digits, part, metrics={"darkness": darkness, "share": share})
    assert (judge.keys, judge.primary) == (["share", "darkness"], "share")
    model = a_gan()
    dark, light = judge.measure(model)
    fakes = torch.cat([Adversarial(3).sample(model, n, g) for g in [rng(SAMPLING_SEED)] for n in (256, 44)]).detach()
    assert torch.equal(seen["samples"], fakes)
    assert torch.equal(seen["images"], digits[1].images())
    assert dark.value == pytest.approx(float(digits[1].images().mean() - fakes.mean()))
    assert (dark.label, dark.samples, dark.lower_is_better) == ("How much darker samples are than images", 300, True)
    assert (light.label, light.lower_is_better) == ("share", False)
    assert judge.glance(model) < 0  # a share is better higher, a glance lower
    nn.init.constant_(next(model.generator.parameters()), math.nan)
    assert all(math.isnan(one.value) for one in judge.measure(model))


@pytest.mark.parametrize(
    ("name", "metric", "line"),
    [
        (
            "mine",
            lambda samples, images: samples,
            r"^evaluation\.metrics: metric mine of 128 samples and 359 images is",
        ),
        ("mine", lambda samples, images: 1 / 0, r"^evaluation\.metrics: metric mine of .*: ZeroDivisionError"),
        ("mine", lambda samples, images: math.nan, r"^evaluation\.metrics: mine is nan of real images"),
        ("kid", darkness, r"^evaluation\.metrics: 'kid' is built in: give yours another name"),
    ],
)
def test_a_metric_that_gives_no_number_is_refused_before_anything_is_trained(digits, name, metric, line) -> None:
    part = EvaluationPart(samples=128, features="none", metrics=[name])
    with pytest.raises(RecipeError, match=line) as caught:
        Judge(Adversarial(3), *digits, part, metrics={name: metric})
    assert "\n" not in str(caught.value)


def test_the_objective_of_the_docs_trains_and_is_judged(digits) -> None:
    page = Path(__file__).parents[1] / "docs" / "objectives.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 40
    given: dict = {"__name__": "inpainting"}
    with pytest.MonkeyPatch.context() as patch:
        module = types.ModuleType("inpainting")
        patch.setitem(sys.modules, "inpainting", module)
        exec(code, given)
    objective, model = given["Inpainting"](hidden=0.25), an_autoencoder()
    judge = Judge(objective, *digits, EvaluationPart(features="none"))
    assert (judge.keys, judge.primary) == (["inpainting"], "inpainting")
    (before,) = judge.measure(model)
    train(model, objective, Batches(digits[0], 16, seed=0), Settings(steps=50, batch_size=16, lr=1e-2))
    (after,) = judge.measure(model)
    assert after.value < 0.6 * before.value
    gt.check_connected(model, gt.Masks.dense(model), objective.example_inputs(model, IMAGES))


# -- labels -----------------------------------------------------------------------------------------------------


def test_batches_carry_the_labels_of_their_images(digits) -> None:
    plain, told = (Batches(digits[0], 7, seed=3, flip=True, labelled=labelled) for labelled in (False, True))
    for step in (0, 5, 400):
        batch = told.at(step)
        assert torch.equal(batch.images, plain.at(step))
        assert batch.labels.tolist() == digits[0].labels[plain.indices(step)].tolist()
    assert len(batch) == 7
    assert torch.equal(batch[2:4].labels, batch.labels[2:4])
    assert [len(part) for part in batch.chunk(3)] == [3, 3, 1]
    assert torch.equal(torch.cat([part.labels for part in batch.chunk(3)]), batch.labels)
    unlabelled = ImageSet.from_arrays("faces", digits[0].pixels)
    with pytest.raises(DataError, match=r"^'faces' \(train\) has no labels: train it with conditional=false$"):
        Batches(unlabelled, 7, seed=0, labelled=True)
    with pytest.raises(DataError, match=r"'faces' .* has no labels"):
        Judge(ELBO(3, conditional=True), unlabelled, unlabelled, EvaluationPart(features="none"))


CONDITIONAL = [
    pytest.param(ELBO(3, conditional=True), a_vae, id="vae"),
    pytest.param(Adversarial(3, conditional=True, n_critic=2, gradient_penalty=1.0), a_gan, id="gan"),
]


@pytest.mark.parametrize(("objective", "make"), CONDITIONAL)
def test_a_conditional_model_is_told_the_label_of_each_image(objective, make) -> None:
    """Its loss changes with the labels, and is the one of a model without any where no class differs from another."""
    model, batch = make(classes=3).eval(), Labelled(IMAGES, LABELS)
    assert objective.wants_labels

    def value(labels: Tensor) -> Tensor:
        return torch.stack([loss.detach() for _, loss in objective.losses(model, Labelled(IMAGES, labels), rng())])

    assert not torch.allclose(value(LABELS), value(LABELS.flip(0)))
    one, two = (objective.sample(model, 3, rng(), LABELS[:3] * 0 + label) for label in (0, 1))
    assert not torch.allclose(one, two)
    for table in model.modules():
        if isinstance(table, nn.Embedding):
            nn.init.zeros_(table.weight)
    assert torch.equal(value(LABELS), value(LABELS.flip(0)))
    for inputs in (objective.example_inputs(model, IMAGES), objective.example_inputs(model, batch)):
        assert gt.cost(model, inputs).flops_dense > 0
    for images in (IMAGES, Labelled(IMAGES, LABELS)):
        plain = ELBO(3) if isinstance(objective, ELBO) else Adversarial(3)
        assert all(bool(loss.isfinite()) for _, loss in plain.losses(make(), images, rng()))
    with pytest.raises(DataError, match=r"^conditional=True: batches need labels"):
        next(objective.losses(model, IMAGES, rng()))
    with pytest.raises(DataError, match=r"^conditional=True: samples are of labels"):
        objective.sample(model, 3, rng())


@pytest.mark.parametrize(("objective", "make"), CONDITIONAL)
def test_conditional_models_are_scored_trained_sparse_judged_and_cut(objective, make, digits, tmp_path) -> None:
    model, train_set = make(classes=10), digits[0]
    batches = Batches(train_set, 8 * objective.batches_per_step, seed=0, labelled=True)
    for criterion in (gt.snip, gt.grasp):
        scores = criterion(model, objective, [batches.at(0)])
        assert all(bool(score.isfinite().all()) for score in scores.values())
    masks = gt.prune(gt.magnitude(model), fraction=0.6)
    outcomes = []
    for execution in ("dense", "auto"):
        copy = clone(model)
        trained = train(copy, objective, batches, Settings(steps=3, batch_size=8, execution=execution), masks=masks)
        assert trained.images == 3 * 8 * objective.batches_per_step
        masks.audit(copy)
        outcomes.append(copy)
    for name, tensor in named_state(outcomes[0]).items():
        torch.testing.assert_close(tensor, named_state(outcomes[1])[name], rtol=1e-3, atol=1e-4)
    part = EvaluationPart(samples=300, features="none", metrics=["mine"])
    judge = Judge(objective, *digits, part, metrics={"mine": darkness})
    assert [one.key for one in judge.measure(outcomes[0])] == ["mine"]
    judge.picture(outcomes[0], tmp_path)
    whole = Judge(objective, *digits, EvaluationPart(samples=128, classifiers=1))
    assert [one.key for one in whole.measure(outcomes[0])] == whole.keys
    assert all(math.isfinite(one.value) for one in whole.measure(outcomes[0]))
    inputs = objective.example_inputs(model.eval(), batches.at(0)[:4])
    gt.check_connected(outcomes[0], masks, inputs)
    assert set(gt.shrink(outcomes[0], masks, inputs).state_dict()) == set(model.state_dict())


def test_a_judge_samples_classes_as_the_held_out_images_have_them(digits) -> None:
    asked = []

    class Notes(Adversarial):
        def sample(self, model, count, rng, labels=None):
            asked.append(labels)
            return super().sample(model, count, rng, labels)

    part = EvaluationPart(samples=718, features="none", metrics=["mine"])
    Judge(Notes(3, conditional=True), *digits, part, metrics={"mine": darkness}).measure(a_gan(classes=10))
    counts = torch.bincount(torch.cat(asked), minlength=10)
    assert counts.tolist() == (2 * np.bincount(digits[1].labels, minlength=10)).tolist()


def a_recipe(model: dict, **objective) -> Recipe:
    return make_recipe({"name": "x", "model": model, "objective": objective, "data": {"size": 8}})


@pytest.mark.parametrize(
    ("model", "objective", "line"),
    [
        ({"name": "conv-vae"}, {"name": "elbo", "conditional": True}, r"^model\.classes=null .*; model\.classes=10$"),
        (
            {"name": "unet", "classes": 9},
            {"name": "denoising", "conditional": True},
            r"^model\.classes=9 with .*: the images have labels up to 9; model\.classes=10$",
        ),
        (
            {"name": "dcgan", "classes": 10},
            {"name": "adversarial"},
            r"^model\.classes=10: the objective tells no",
        ),
        ({"name": "paper-vae"}, {"name": "elbo", "conditional": True}, r"model\.name=paper-vae takes no labels$"),
    ],
)
def test_a_recipe_whose_model_and_objective_differ_on_labels_is_refused(digits, model, objective, line) -> None:
    with pytest.raises(RecipeError, match=line):
        check_buildable(a_recipe(model, **objective), digits[0])


def test_a_recipe_that_agrees_on_labels_can_be_built(digits) -> None:
    check_buildable(a_recipe({"name": "conv-vae", "classes": 10}, name="elbo", conditional=True), digits[0])
    check_buildable(a_recipe({"name": "unet", "width": 4}, name="denoising"), digits[0])

"""What a model is judged by: which metrics, by which networks, and that the numbers are the model's."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gentickets import ELBO, Adversarial, Autoencoding, DataError, RecipeError
from gentickets.data import ImageSet, load
from gentickets.lab import judging as evaluation
from gentickets.lab.judging import Judge, grid
from gentickets.lab.recipe import EvaluationPart, make_recipe
from gentickets.metrics import FeatureExtractor
from gentickets.metrics import classifier as classifier_module
from gentickets.objectives import Measure

SAMPLED = ["frechet", "kid", "frechet_train", "inception_score", "precision", "recall", "density", "coverage"]
ELBO_KEYS = ["bits_per_dimension", *SAMPLED, "reconstruction_mse", "downstream_accuracy"]
GAN_KEYS = [*SAMPLED, "discriminator_loss"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return load("digits", size=8), load("digits", size=8, split="test")


def without_labels(images: ImageSet) -> ImageSet:
    return ImageSet.from_arrays("faces", images.pixels, split=images.split)


class Flat(nn.Module):
    """From and to images of 8 x 8 through 64 numbers; nothing is lost."""

    def __init__(self, gaussian: bool = False):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), *([Halves()] if gaussian else []))
        self.decoder = nn.Unflatten(1, (1, 8, 8))


class Halves(nn.Module):
    """Mean, and a log variance far below any image's."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.full_like(x, -30.0)


class TinyGan(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
        self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


def judge(objective, images, **part) -> Judge:
    return Judge(objective, *images, EvaluationPart(**{"samples": 128, "classifiers": 1} | part))


@pytest.mark.parametrize(
    ("objective", "labelled", "unlabelled"),
    [
        (Autoencoding(), ["reconstruction_mse", "downstream_accuracy"], ["reconstruction_mse"]),
        (
            ELBO(latent_size=64),
            ELBO_KEYS,
            [key for key in ELBO_KEYS if key not in ("inception_score", "downstream_accuracy")],
        ),
        (Adversarial(latent_size=8), GAN_KEYS, [key for key in GAN_KEYS if key != "inception_score"]),
    ],
    ids=["autoencoding", "elbo", "adversarial"],
)
def test_all_that_objective_and_labels_allow_is_measured(digits, objective, labelled, unlabelled) -> None:
    model = TinyGan() if isinstance(objective, Adversarial) else Flat(gaussian=isinstance(objective, ELBO))
    for images, keys in ((digits, labelled), (tuple(map(without_labels, digits)), unlabelled)):
        found = judge(objective, images)
        assert found.keys == keys
        assert found.primary == keys[0]
        first = found.measure(model)
        assert [one.key for one in first] == keys
        assert all(math.isfinite(one.value) for one in first)
        assert found.measure(model) == first


def test_an_autoencoder_that_loses_nothing_is_as_readable_as_the_originals(digits) -> None:
    found = judge(Autoencoding(), digits)
    assert found.extractors == found.classifiers
    error, accuracy = found.measure(Flat())
    assert error.value == 0
    assert accuracy.value == pytest.approx(found.classifiers[0].accuracy)
    assert accuracy.value > 0.97


def test_held_out_and_training_images_are_never_mixed(digits) -> None:
    """A model that gives back training images is at distance 0 of them, and not of the held-out ones."""
    train, held_out = digits

    class Copies(Adversarial):
        def sample(self, model, count, rng):
            self.given.append(count)
            start = sum(self.given[:-1])
            return train.images(slice(start, start + count))

    objective = Copies(latent_size=8)
    object.__setattr__(objective, "given", [])
    found = judge(objective, (train, held_out), samples=len(train), metrics=["frechet", "frechet_train"])
    there, own = found.measure(TinyGan())
    assert own.value == pytest.approx(0, abs=1e-6)
    assert there.value > 0.01
    assert [one.count for one in found.train] == [len(train)]
    assert [one.count for one in found.real] == [len(held_out)]


def test_training_statistics_are_of_a_stated_number_of_images(digits, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "MOST_TRAIN", 100)
    assert judge(Adversarial(latent_size=8), digits).train[0].count == 100


def test_a_recipe_narrows_what_is_measured_and_nothing_else_is_computed(digits, monkeypatch) -> None:
    for name in ("classifier_features", "inception_features"):
        monkeypatch.setattr(evaluation, name, None)  # would fail: no network is needed
    found = judge(ELBO(latent_size=64), digits, metrics=["reconstruction_mse", "bits_per_dimension"])
    assert found.extractors == ()
    assert found.primary == "reconstruction_mse"
    measured = {one.key for one in found.measure(Flat(gaussian=True))}
    assert measured == {"reconstruction_mse", "bits_per_dimension"}
    assert judge(Autoencoding(), digits, features="none").keys == ["reconstruction_mse"]
    monkeypatch.undo()

    found = judge(Adversarial(latent_size=8), digits, metrics=["kid", "discriminator_loss", "kid"], primary="kid")
    assert found.train == []
    assert [one.key for one in found.measure(TinyGan())] == ["kid", "discriminator_loss"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"metrics": ["fid"]}, r"evaluation\.metrics: 'fid' is none of frechet, kid"),
        ({"metrics": ["frechet"], "primary": "kid"}, r"evaluation\.primary='kid' is none of frechet"),
        ({"primary": "discriminator_loss"}, r"evaluation\.primary='discriminator_loss' is none of frechet"),
        ({"metrics": ["discriminator_loss"]}, r"leave nothing to judge this objective by"),
        ({"features": "none"}, r"evaluation\.features=none and .* leave nothing to judge"),
        ({"metrics": ["downstream_accuracy"]}, r"'downstream_accuracy' is none of"),
    ],
)
def test_metrics_that_cannot_be_are_refused_in_one_line(digits, part, message) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        judge(Adversarial(latent_size=8), digits, **part)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [[], "most", 3])
def test_recipes_say_all_or_name_some(bad) -> None:
    raw = {"name": "x", "model": {"name": "dcgan"}, "objective": {"name": "adversarial"}}
    assert make_recipe(raw).evaluation.metrics == "all"
    assert make_recipe({**raw, "evaluation": {"metrics": ["kid"]}}).evaluation.metrics == ["kid"]
    with pytest.raises(RecipeError, match=r"evaluation\.metrics"):
        make_recipe({**raw, "evaluation": {"metrics": bad}})


class Features(FeatureExtractor):
    def __init__(self, head: nn.Module | None):
        super().__init__("stand-in features", "stand_in", 64, nn.Flatten(), head=head)


def test_inception_judges_samples_and_the_classifier_reconstructions(digits, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "inception_features", lambda weights: Features(nn.Linear(64, 5)))
    found = judge(ELBO(latent_size=64), digits, features="inception")
    assert isinstance(found.extractors[0], Features)
    assert found.classifiers[0].network == "digits-classifier"
    measured = {one.key: one for one in found.measure(Flat(gaussian=True))}
    assert list(measured) == ELBO_KEYS
    assert "stand-in" in measured["inception_score"].label
    assert measured["downstream_accuracy"].value == pytest.approx(found.classifiers[0].accuracy)
    assert isinstance(judge(Adversarial(latent_size=8), digits, features="inception").extractors[0], Features)
    assert judge(Adversarial(latent_size=8), digits, features="inception").classifiers == ()


def test_an_inception_without_a_head_gives_no_score(digits, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "inception_features", lambda weights: Features(None))
    found = judge(Adversarial(latent_size=8), digits, features="inception")
    assert found.keys == [one.key for one in found.measure(TinyGan())]
    assert found.keys == [key for key in GAN_KEYS if key != "inception_score"]
    for part in ({"metrics": ["inception_score"]}, {"primary": "inception_score"}):
        with pytest.raises(RecipeError, match=r"x\.pt gives features alone"):
            judge(Adversarial(latent_size=8), digits, features="inception", inception_weights="x.pt", **part)


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({}, lambda real, fake: (1 + (-real).exp()).log().mean() + (1 + fake.exp()).log().mean()),
        ({"loss": "hinge"}, lambda real, fake: (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()),
        ({"loss": "wasserstein", "clip": 0.01}, lambda real, fake: fake.mean() - real.mean()),
        ({"loss": "wasserstein", "gradient_penalty": 10.0, "n_critic": 5}, lambda r, f: f.mean() - r.mean()),
    ],
    ids=["nonsaturating", "hinge", "clipped", "penalised"],
)
def test_the_discriminators_loss_by_hand(digits, options, by_hand) -> None:
    """Over all held-out images and as many samples; the model is left as it was."""
    objective = Adversarial(latent_size=8, **options)
    model = TinyGan()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = judge(objective, digits, metrics=["frechet", "discriminator_loss"])
    (loss,) = [one for one in found.measure(model) if one.key == "discriminator_loss"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    rng = torch.Generator().manual_seed(evaluation.SAMPLING_SEED)
    with torch.no_grad():
        on_fake = torch.cat([model.discriminator(objective.sample(model, n, rng)) for n in (256, 103)])
        on_real = model.discriminator(digits[1].images())
    assert loss.value == pytest.approx(float(by_hand(on_real, on_fake)), rel=1e-5)
    assert (loss.samples, loss.lower_is_better) == (359, False)


def test_a_better_discriminator_has_the_lower_loss_and_equal_distributions_the_highest(digits) -> None:
    found = judge(Adversarial(latent_size=8), digits, metrics=["frechet", "discriminator_loss"])
    model = TinyGan()
    blind = nn.init.zeros_(model.discriminator[1].weight), nn.init.zeros_(model.discriminator[1].bias)
    assert blind
    assert found.measure(model)[-1].value == pytest.approx(2 * math.log(2))
    step = torch.optim.SGD(model.discriminator.parameters(), lr=0.01)
    for _ in range(5):
        _, loss = next(Adversarial(latent_size=8).losses(model, digits[0].images(), torch.Generator().manual_seed(1)))
        step.zero_grad()
        loss.backward()
        step.step()
    assert found.measure(model)[-1].value < 2 * math.log(2) - 0.01


def test_what_networks_measure_is_the_mean_over_them_with_each_beside_it(digits) -> None:
    """Three networks of other seeds, here random ones: three judges of one, by hand."""
    images = tuple(map(without_labels, digits))
    together, model = judge(Adversarial(latent_size=8), images, classifiers=3), TinyGan()
    assert together.features["networks"] == 3
    assert len({one.weights_hash for one in together.extractors}) == 3
    assert len({one.key for one in together.extractors}) == 3
    measured = {one.key: one for one in together.measure(model)}
    alone = [_with(together, index).measure(model) for index in range(3)]
    assert list(measured) == [key for key in GAN_KEYS if key != "inception_score"]
    for key in measured.keys() - {"discriminator_loss"}:
        values = tuple(next(one.value for one in found if one.key == key) for found in alone)
        assert measured[key].by_network == values
        assert measured[key].value == pytest.approx(sum(values) / 3)
    assert len(set(measured["frechet"].by_network)) == 3
    assert measured["frechet"].label.endswith("(n = 128 against 359) (mean of 3 networks)")
    assert measured["discriminator_loss"].by_network is None
    assert _with(together, 0).measure(model) == judge(Adversarial(latent_size=8), images).measure(model)


def _with(found: Judge, index: int) -> Judge:
    """The same judge with one of its networks."""
    one = copy.copy(found)
    one.extractors, one.real, one.train = (found.extractors[index],), [found.real[index]], [found.train[index]]
    return one


def test_reconstructions_are_read_by_every_classifier(digits, monkeypatch) -> None:
    monkeypatch.setattr(classifier_module, "effort", lambda *_: (5, 16))
    found = judge(Autoencoding(), digits, classifiers=2)
    accuracy = found.measure(Flat())[1]
    assert accuracy.by_network == tuple(one.accuracy for one in found.classifiers)
    assert accuracy.value == pytest.approx(sum(accuracy.by_network) / 2)


@pytest.mark.parametrize(
    ("objective", "part", "few", "line"),
    [
        (Adversarial(8), {"samples": 127}, 359, r"take 128 or more, or evaluation\.metrics=\[kid\]$"),
        (ELBO(64), {"samples": 16}, 359, r"^evaluation\.samples=16: .*, or evaluation\.features=none$"),
        (ELBO(64), {"samples": 16, "primary": "frechet"}, 359, r"metrics=\[kid\] and evaluation\.primary=kid$"),
        (Adversarial(8), {}, 127, r"^data: 127 held-out images: fewer than the 128 random-convolution features"),
        (Adversarial(8), {"metrics": ["frechet_train"], "samples": 16}, 9, r"^evaluation\.samples=16: fewer than"),
    ],
)  # fmt: skip
def test_distances_of_fewer_images_than_features_are_refused(digits, objective, part, few, line) -> None:
    train, held_out = map(without_labels, digits)
    with pytest.raises(RecipeError, match=line) as caught:
        judge(objective, (train, held_out.subset(few, seed=0)), **part)
    assert "\n" not in str(caught.value)


def test_as_many_images_as_features_are_enough_and_other_metrics_need_fewer(digits) -> None:
    with pytest.raises(RecipeError, match="fewer than the 64 digits-classifier features, which a Fréchet"):
        judge(Adversarial(latent_size=8), digits, samples=63)
    train, held_out = map(without_labels, digits)
    few = held_out.subset(128, seed=0)
    assert "frechet" in judge(Adversarial(latent_size=8), (train, few), samples=128).keys
    few = held_out.subset(16, seed=0)
    for part in ({"metrics": ["kid"]}, {"metrics": ["kid"], "primary": "kid"}):
        assert judge(Adversarial(latent_size=8), (train, few), samples=16, **part).primary == "kid"
    nothing = judge(ELBO(latent_size=64), (train, few), samples=16, features="none")
    assert nothing.keys == ["bits_per_dimension", "reconstruction_mse"]
    with pytest.raises(RecipeError, match=r"127 training images: .* without evaluation\.every"):
        judge(Adversarial(latent_size=8), (train.subset(127, seed=0), few), metrics=["kid"], every=5)


def test_a_broken_model_has_no_value_and_no_picture_fails(digits, tmp_path) -> None:
    model = TinyGan()
    nn.init.constant_(model.generator[0].weight, math.nan)
    found = judge(Adversarial(latent_size=8), digits)
    measured = found.measure(model)
    assert [one.key for one in measured] == GAN_KEYS
    assert all(math.isnan(one.value) for one in measured)
    found.picture(model, tmp_path)
    assert (tmp_path / "samples.png").is_file()


# -- how many images, which images, and in which mode ---------------------------------------------------------


class Counts(Adversarial):
    """Samples are training images in order; notes how many were asked for at once."""

    def sample(self, model, count, rng):
        self.asked.append(count)
        return torch.rand(count, 1, 8, 8, generator=rng) * 2 - 1


def test_as_many_samples_are_judged_as_the_recipe_says(digits) -> None:
    objective = Counts(latent_size=8)
    object.__setattr__(objective, "asked", [])
    found = judge(objective, digits, samples=600, metrics=["frechet"])
    (measured,) = found.measure(TinyGan())
    assert objective.asked == [256, 256, 88]
    assert measured.samples == 600


def test_a_model_is_measured_and_looked_at_in_evaluation_mode(digits, tmp_path) -> None:
    modes = []

    class Looks(Flat):
        def __init__(self):
            super().__init__()
            self.encoder.register_forward_hook(lambda layer, *_: modes.append(layer.training))

    found = judge(Autoencoding(), digits, features="none")
    for look in (found.measure, found.glance, lambda model: found.picture(model, tmp_path)):
        modes.clear()
        look(Looks().train())
        assert modes
        assert not any(modes)


def test_a_glance_looks_at_training_images_and_a_measurement_at_held_out_ones(digits) -> None:
    """A model that gives back white: its errors are those of the images of either set against white."""

    class White(Flat):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), Whiten())

    class Whiten(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    train, held_out = digits
    found = judge(Autoencoding(), digits, features="none")
    assert found.glance(White()) == pytest.approx(float((1 - train.images(slice(0, 1000))).square().mean()))
    (error,) = found.measure(White())
    assert error.value == pytest.approx(float((1 - held_out.images()).square().mean()), rel=1e-5)
    assert error.samples == len(held_out)


def test_bits_per_dimension_are_the_mean_over_all_held_out_images(digits) -> None:
    found = judge(ELBO(latent_size=64, likelihood="bernoulli"), digits, features="none")
    measured = {one.key: one for one in found.measure(Flat(gaussian=True))}["bits_per_dimension"]
    assert measured.samples == len(digits[1])
    assert "Bernoulli" in measured.label
    objective, rng = ELBO(latent_size=64, likelihood="bernoulli"), torch.Generator().manual_seed(0)
    expected = objective.bits_per_dimension(Flat(gaussian=True), digits[1].images(), rng).mean()
    # The noise of so narrow a posterior is nothing.
    assert measured.value == pytest.approx(float(expected), rel=1e-4)


class Scored(Autoencoding):
    """Judged by a measure that a function makes of the errors of the images."""

    def __init__(self, made):
        super().__init__()
        object.__setattr__(self, "made", made)

    def measures(self):
        return {"mine": Measure("mine", lambda model, batch, rng: self.made(self.errors(model, batch)))}

    def errors(self, model, batch):
        return (self.reconstruct(model, batch) - 0.9 * batch).square().flatten(1).mean(1)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda errors: errors.mean(), r"a tensor \(\): one number for each of {count} images"),
        (lambda errors: errors[:, None], r"a tensor \({count}, 1\): one number for each"),
        (lambda errors: errors[1:], "one number for each of {count} images"),
        (lambda errors: errors.numpy(), "a ndarray: one number for each"),
        (lambda errors: float(errors.mean()), "a float: one number for each"),
        (lambda errors: errors + 0j, "of complex numbers: one number for each"),
    ],
)
def test_a_measure_that_is_not_one_number_an_image_is_refused_by_measurement_and_glance_alike(digits, made, said):
    found = judge(Scored(made), digits, features="none")
    for look, count in ((found.measure, 256), (found.glance, 1000)):
        with pytest.raises(DataError, match="measure 'mine' is .*" + said.replace("{count}", str(count))):
            look(Flat())


@pytest.mark.parametrize("made", [lambda errors: errors, lambda errors: errors > 0.004, lambda errors: errors.half()])
def test_a_measure_is_the_mean_over_the_images_in_measurement_and_glance_alike(digits, made):
    train, held_out = digits
    objective = Scored(made)
    found = judge(objective, (train.subset(1000, seed=0), held_out), features="none")
    for value, images in (
        (found.measure(Flat())[0].value, held_out),
        (found.glance(Flat()), found._seen),
    ):
        expected = made(objective.errors(Flat(), images.images())).double().mean()
        assert value == pytest.approx(float(expected), rel=1e-3)


def test_reconstructions_and_samples_of_another_shape_are_refused_at_a_glance_too(digits):
    class Wide(Autoencoding):
        def reconstruct(self, model, images):
            return super().reconstruct(model, images).expand(-1, 3, -1, -1)

    class Few(Adversarial):
        def sample(self, model, count, rng, labels=None):
            return super().sample(model, count - 1, rng)

    found = judge(Wide(), digits, features="none")
    for look in (found.glance, lambda model: found.measure(model, only="reconstruction_mse")):
        with pytest.raises(DataError, match=r"images is \(\d+, 3, 8, 8\): same shape"):
            look(Flat())
    found = Judge(Few(latent_size=8), *digits, EvaluationPart(samples=64, metrics=["kid"], classifiers=1))
    with pytest.raises(DataError, match=r"samples are \(63, 1, 8, 8\), and \(64, 1, 8, 8\) were asked for"):
        found.measure(TinyGan())


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda samples, images: samples.flatten(1).mean(1), r"is a Tensor of the shape \(64,\): give one number"),
        (lambda samples, images: samples.flatten(1).mean(1).numpy(), r"is a ndarray of the shape \(64,\): give one"),
        (lambda samples, images: "0.5", "is a str: give one number"),
        (lambda samples, images: None, "is a NoneType: give one number"),
        (lambda samples, images: torch.rand(1), "metric mine drew from the global generator of torch: draw from"),
        (lambda samples, images: np.random.rand(), "metric mine drew from the global generator of numpy"),  # noqa: NPY002
        (lambda samples, images: np.random.default_rng().random(), "of the same ones: draw what it draws from a gen"),
    ],
)
def test_a_metric_that_is_no_number_or_another_each_time_is_refused_before_training(digits, metric, said):
    part = EvaluationPart(samples=64, metrics="all", features="none")
    with pytest.raises(RecipeError, match=f"evaluation.metrics: .*{said}"):
        Judge(Adversarial(latent_size=8), *digits, part, metrics={"mine": metric})


def test_a_metric_may_seed_what_it_draws_from_and_write_into_its_images(digits):
    def written(samples, images):
        return float(samples.mul_(2).mean() + images.mul_(2).mean())

    def seeded(samples, images):
        torch.manual_seed(0)
        return (samples.mean() - images.mean()) * torch.rand(1, requires_grad=True)

    part = EvaluationPart(samples=64, metrics="all", features="none")
    metrics = {"one": written, "seeded": seeded, "two": written}
    found = Judge(Adversarial(latent_size=8), *digits, part, metrics=metrics)
    model = TinyGan()
    values = {one.key: one.value for one in found.measure(model)}
    assert values["one"] == values["two"]
    assert values == {one.key: one.value for one in found.measure(model)}


@pytest.mark.parametrize(("count", "possible"), [(5, False), (6, True)])
def test_precision_and_its_kin_need_more_images_than_neighbours(digits, count, possible) -> None:
    train, held_out = map(without_labels, digits)
    few = held_out.subset(count, seed=0)
    of_neighbours = ["precision", "recall", "density", "coverage"]
    assert judge(Adversarial(latent_size=8), (train, few), metrics=["kid"]).keys == ["kid"]
    for key in of_neighbours:
        if possible:
            assert judge(Adversarial(latent_size=8), (train, few), metrics=[key]).keys == [key]
        else:
            with pytest.raises(RecipeError, match=f"{key!r} is none of"):
                judge(Adversarial(latent_size=8), (train, few), metrics=[key])


def test_a_picture_has_originals_beside_their_reconstructions(digits, tmp_path) -> None:
    class Negative(Flat):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), Minus())

    class Minus(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -x

    judge(Autoencoding(), digits, features="none").picture(Negative(), tmp_path)
    originals, samples = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("originals", "samples"))
    assert np.array_equal(originals, np.asarray(grid(digits[1].images(range(36)))))
    assert np.array_equal(samples, np.asarray(grid(-digits[1].images(range(36)))))


def test_a_grid_goes_row_by_row_six_a_row_a_pixel_apart() -> None:
    values = torch.linspace(-1, 1, 8)
    picture = np.asarray(grid(values.reshape(8, 1, 1, 1).expand(8, 1, 48, 48)))
    assert picture.shape == (2 * 49 - 1, 6 * 49 - 1)
    grey = ((values + 1) * 127.5).round().int().tolist()
    assert [int(picture[0, 49 * column]) for column in range(6)] == grey[:6]
    assert [int(picture[49, 49 * column]) for column in range(2)] == grey[6:]
    assert (picture[48] == 128).all()
    assert (picture[:, 48] == 128).all()
    assert np.asarray(grid(torch.zeros(3, 3, 8, 8))).shape == (8 * 6, (6 * 9 - 1) * 6, 3)

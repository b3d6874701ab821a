"""What is one's own is tried before anything is trained: refused in one line where training could not rest on it."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch

import gentickets as gt
from gentickets.errors import RecipeError, Unmet
from gentickets.lab.recipe import read_recipe
from gentickets.lab.run.checks import check_buildable
from gentickets.masks.left_alone import asked_twice

MINE = '''
import random
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

import gentickets as gt
from gentickets.objectives import Around, Autoencoding, Measure

CALLS = []


class Own(Autoencoding):
    """The squared error, and what a subclass makes of it."""

    def error(self, model, batch):
        return (model.decoder(model.encoder(batch)) - batch).square().flatten(1).mean(1)

    def losses(self, model, batch, rng):
        yield self.components, self.changed(self.error(model, batch).mean(), batch)

    def changed(self, loss, batch):
        return loss

    def measures(self):
        return {"error": Measure("the error", self.measured)}

    def measured(self, model, batch, rng):
        return self.error(model, batch)


class ByNumpy(Own):
    def changed(self, loss, batch): return loss * np.random.uniform(1, 2)


class Seldom(Own):
    """Draws, though it shows in no loss that is tried."""
    def changed(self, loss, batch): return loss * (2 if random.random() < 1e-9 else 1)


class Counting(Own):
    def changed(self, loss, batch):
        CALLS.append(1)
        return loss * len(CALLS)


class Detached(Own):
    def changed(self, loss, batch): return loss.detach()


class Alone(Own):
    def losses(self, model, batch, rng): yield self.error(model, batch).mean()


class Listed(Own):
    def losses(self, model, batch, rng): return [(self.components, self.error(model, batch).mean())]


class Foreign(Own):
    def losses(self, model, batch, rng): yield ("encoder", "critic"), self.error(model, batch).mean()


class Nameless(Own):
    def losses(self, model, batch, rng): yield (), self.error(model, batch).mean()


class Untrained(Own):
    def losses(self, model, batch, rng): yield "encoder", self.error(model, batch).mean()


class Unreached(Own):
    def losses(self, model, batch, rng):
        yield self.components, (model.decoder(model.encoder(batch).detach()) - batch).square().mean()


class OneGraph(Own):
    def losses(self, model, batch, rng):
        loss = self.error(model, batch).mean()
        yield "encoder", loss
        yield "decoder", loss


class BatchMean(Own):
    def measured(self, model, batch, rng): return self.error(model, batch).mean()


class Pairs(Own):
    def measured(self, model, batch, rng): return self.error(model, batch)[:, None].expand(-1, 2)


class Numbers(Own):
    def measured(self, model, batch, rng): return self.error(model, batch).tolist()


class Broken(Own):
    def measured(self, model, batch, rng): return self.error(model, batch)[[3, 4]]


class Restless(Own):
    def measured(self, model, batch, rng): return self.error(model, batch) + torch.rand(len(batch))


class Writing(Own):
    def measured(self, model, batch, rng):
        model.decoder[0].bias.add_(1)
        return self.error(model, batch)


class Tipsy(Own):
    def reconstruct(self, model, images): return super().reconstruct(model, images) + torch.rand(1)


class OfOne(Own):
    def reconstruct(self, model, images): return super().reconstruct(model, images)[:1]


# -- sound ones


@dataclass(frozen=True)
class InTurn(Own):
    """Trains one component in each step, the decoder from step 3 on alone."""
    step: int = 0

    def at(self, step): return replace(self, step=step)

    def losses(self, model, batch, rng):
        yield "decoder" if self.step >= 3 else "encoder", self.error(model, batch).mean()


class Briefly(InTurn):
    """Trains the decoder in so few steps that none of them is looked at."""
    def losses(self, model, batch, rng):
        yield "decoder" if 501 <= self.step < 503 else "encoder", self.error(model, batch).mean()


class Zero(Own):
    def changed(self, loss, batch): return loss * 0


class OfOneNumber(Own):
    def changed(self, loss, batch): return loss[None]


class Seeded(Own):
    """Seeds what it draws from, and writes into the batch."""
    def losses(self, model, batch, rng):
        np.random.seed(1)
        batch.add_(float(np.random.uniform(1, 2)))
        yield from super().losses(model, batch, rng)


class ByRng(Own):
    def losses(self, model, batch, rng):
        yield self.components, self.error(model, batch + torch.randn(batch.shape, generator=rng)).mean()

    def measured(self, model, batch, rng): return self.error(model, batch) < torch.rand(1, generator=rng)


# -- models


def nets(size, channels, *between):
    first = nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, 8), *between)
    last = nn.Sequential(nn.Linear(8, channels * size * size), nn.Unflatten(1, (channels, size, size)))
    return {"encoder": first, "decoder": last}


def dropping(size: int, channels: int): return nets(size, channels, nn.Dropout(), nn.BatchNorm1d(8))


def frozen(size: int, channels: int):
    made = nets(size, channels)
    made["encoder"].requires_grad_(False)
    return made


class Cut(nn.Module):
    def forward(self, x): return x.detach()


class Noise(nn.Module):
    def forward(self, x): return x + torch.rand(1) if not self.training else x


class NumpyNoise(nn.Module):
    def forward(self, x): return x * float(np.random.rand())


def cut(size: int, channels: int): return nets(size, channels, Cut())
def noisy(size: int, channels: int): return nets(size, channels, Noise())
def numpy_noisy(size: int, channels: int): return nets(size, channels, NumpyNoise())
def weightless(size: int, channels: int):
    return {"encoder": nn.Flatten(), "decoder": nn.Sequential(nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8)))}


# -- criteria and what is around


def by_size(model, masks):
    return {name: score for name, score in gt.magnitude(model, include=tuple(masks)).items()}


def writing(model, masks):
    found = by_size(model, masks)
    for weight in model.parameters():
        weight.data.mul_(0.1)
    return found


def by_chance(model, masks): return {name: score * torch.rand(1) for name, score in by_size(model, masks).items()}
def by_time(model, masks):
    CALLS.append(1)
    return {name: score * len(CALLS) for name, score in by_size(model, masks).items()}
def in_training(model, masks):
    """Leaves gradients, modes and statistics otherwise, which is no matter: it is given a copy."""
    model.train()
    sum(model.encoder(torch.ones(3, 1, 8, 8)).sum() for _ in range(2)).backward()
    return by_size(model, masks)


@dataclass(frozen=True)
class Twice(Around):
    teacher: nn.Module = field(repr=False)

    def losses(self, model, batch, rng):
        for names, loss in self.objective.losses(model, batch, rng):
            yield names, self.times(loss)

    def times(self, loss): return 2 * loss


class Chancy(Twice):
    def times(self, loss): return loss * random.random()


class EncoderAlone(Twice):
    def losses(self, model, batch, rng):
        for _, loss in self.objective.losses(model, batch, rng):
            yield "encoder", loss


def nothing(objective, teacher): return objective.components
'''


def try_out(tmp_path, monkeypatch, *said, steps=6):
    """Makes a recipe of what is said, and tries it on noise."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "own.yaml").write_text(
        "name: own\nmodel: {name: linear-autoencoder, width: 8, latent: 4}\ndata: {source: digits, size: 8}\n"
        f"objective: autoencoding\ntraining: {{steps: {steps}, batch_size: 4}}\nsearch: {{rounds: 1, fraction: 0.5}}\n"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    recipe = read_recipe("own.yaml", [words.replace("=", "=mine.py:", 1) for words in said], allow_code=True)
    check_buildable(recipe, gt.ImageSet.from_arrays("noise", pixels))


REFUSED = {
    "objective.name=ByNumpy": r"ByNumpy\.losses drew from the global generator of numpy: draw from `rng`",
    "objective.name=Seldom": r"Seldom\.losses drew from the global generator of random: draw from `rng`",
    "objective.name=Counting": r"other losses for the same seed: .* let `at\(step\)` tell what changes with the step",
    "objective.name=Detached": "loss 0 of Detached has no gradient: was it detached",
    "objective.name=Alone": r"loss 0 of Alone is a Tensor: yield \(components, loss\)",
    "objective.name=Listed": r"Listed\.losses gives a list: yield each loss",
    "objective.name=Foreign": "loss 0 of Foreign trains 'critic', which is not among its components encoder, decoder",
    "objective.name=Nameless": "loss 0 of Nameless names no component",
    "objective.name=Untrained": "no loss trains 'decoder', which is one of its components: yield one",
    "objective.name=Unreached": "no loss trains 'encoder', which is one of its components: yield one",
    "objective.name=OneGraph": "loss 1 of OneGraph cannot be differentiated: .* backward through the graph a second",
    "objective.name=BatchMean": r"measure 'the error' is a tensor \(\): one number for each of 3 images is needed",
    "objective.name=Pairs": r"measure 'the error' is a tensor \(3, 2\): one number for each of 3 images",
    "objective.name=Numbers": "measure 'the error' is a list: one number for each of 3 images",
    "objective.name=Broken": r"mine\.py, line \d+: IndexError",
    "objective.name=Restless": "measure 'error' of Restless drew from the global generator of torch: draw from `rng`",
    "objective.name=Writing": r"measure 'error' of Writing changed 'decoder\.0\.bias' of the model",
    "objective.name=Tipsy": r"Tipsy\.reconstruct drew from the global generator of torch",
    "objective.name=OfOne": r"OfOne\.reconstruct gives a tensor \(1, 1, 8, 8\), where images are \(3, 1, 8, 8\)",
    "model=cut": "no loss trains 'encoder', which is one of its components",
    "model=noisy": r"Autoencoding\.reconstruct drew from the global generator of torch",
    "model=numpy_noisy": r"Autoencoding\.losses drew from the global generator of numpy",
    "model=weightless": "loss 0 of Autoencoding trains 'encoder', which has no weight to be trained",
    "search.criterion=writing": r"it changed 'encoder\.1\.weight' of the model: it may read weights, and not write",
    "search.criterion=by_chance": "it drew from the global generator of torch: draw from a generator of your own, of a",
    "search.criterion=by_time": r"it scored '.*' otherwise the second time: scores follow from the model and a seed",
    "search.around=Chancy": r"Chancy\.losses drew from the global generator of random: draw from `rng`",
    "search.around=nothing": "it makes a .*, which is no Objective",
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_training_could_not_rest_on_is_refused_by_its_key_in_one_line(tmp_path, monkeypatch, said):
    key, _, name = said.partition("=")
    with pytest.raises(RecipeError, match=REFUSED[said]) as caught:
        try_out(tmp_path, monkeypatch, said)
    where = f"{key}.name=mine.py:{name}" if key == "model" else f"{key}=mine.py:{name}"
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        ("objective.name=Own",),
        ("model=frozen",),
        ("objective.name=InTurn",),
        ("objective.name=Zero",),
        ("objective.name=OfOneNumber",),
        ("objective.name=Seeded",),
        ("objective.name=ByRng",),
        ("model=dropping",),
        ("objective.name=ByRng", "model=dropping"),
        ("search.criterion=by_size",),
        ("search.criterion=in_training",),
        ("search.around=Twice",),
        ("search.around=EncoderAlone",),
    ],
)
def test_what_is_sound_is_taken_without_a_word(tmp_path, monkeypatch, said):
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try_out(tmp_path, monkeypatch, *said)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_component_that_may_yet_be_trained_in_some_step_is_told_and_not_refused(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match=r"no loss trains 'decoder', .* in \d+ of 2000 steps that were looked at"):
        try_out(tmp_path, monkeypatch, "objective.name=Briefly", steps=2_000)


def draws_once(kept=[]):  # noqa: B006
    if not kept:
        kept.append(np.random.rand())  # noqa: NPY002
    return kept[0]


@pytest.mark.parametrize(
    ("ask", "drew"),
    [
        (lambda: torch.rand(1), "torch"),
        (lambda: np.random.rand(), "numpy"),  # noqa: NPY002
        (lambda: random.random(), "random"),
        (draws_once, "numpy"),
        (lambda: torch.manual_seed(3) and torch.rand(1), None),
        (lambda: np.random.default_rng(0).random(), None),
    ],
)
def test_who_draws_from_a_global_generator_that_is_not_seeded_is_caught(ask, drew):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    if drew is None:
        one, other = asked_twice("it", ask)
        assert one == other
    else:
        with pytest.raises(Unmet, match=f"it drew from the global generator of {drew}: draw from"):
            asked_twice("it", ask)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]

"""`gentickets.testing`: everything of the catalogue passes, and what is broken is caught, each by its own sentence."""

import itertools
import math
import random
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets import testing
from gentickets.catalogue import CATALOGUE
from gentickets.data import Batches, Labelled
from gentickets.masks.names import named_weights
from gentickets.models import CATALOGUE as MODELS
from gentickets.objectives import (
    ELBO,
    Adversarial,
    Autoencoding,
    Denoising,
    Distilled,
    GainPenalty,
    KLAutoencoding,
    Measure,
)
from gentickets.pruning import prune as pruning_prune
from gentickets.search.at_init import AtInit
from gentickets.search.imp import Imp
from gentickets.search.levels import Level
from gentickets.search.one_shot import OneShot
from gentickets.testing import criteria

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(6) % 3


# -- all of the catalogue -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CATALOGUE["criterion"])
def test_every_criterion_of_the_catalogue(name):
    testing.check_criterion(name)


METHODS = {
    "imp": {"rewind_step": 2},
    "one-shot": {"rewind_step": 2, "others": "trained"},
    "at-init": {"criterion": "synflow", "iterations": 3},
    "early-bird": {"interval": 1, "window": 2, "tolerance": 0.9},
    "smaller": {"begin": 2},
    "born-small": {"begin": 2},
    "few-images": {"rewind_step": 2},
    "rigl": {"every": 2},
    "set": {"every": 2},
    "gradual": {"every": 2},
    "block-rates": {"rewind_step": 2, "least": 0.1},
    "transferred": {"source": "anywhere", "carry": {"encoder": "encoder"}},
}


# What by-time puts together others have trained: tests/test_by_time.py.
@pytest.mark.parametrize("name", [name for name in CATALOGUE["method"] if name != "by-time"])
def test_every_method_of_the_catalogue(name):
    options = {"name": name, "rounds": 2, **METHODS[name]}
    if name != "transferred":
        options["fraction"] = 0.3
    of_channels = name in ("smaller", "born-small")
    testing.check_method(options, steps=8, counts=name != "transferred" and not of_channels)


@pytest.mark.filterwarnings("ignore:.*layer:UserWarning")
def test_an_early_bird_of_channels():
    bird = {"name": "early-bird", "rounds": 1, "granularity": "channel", "interval": 1, "tolerance": 0.9, "window": 2}
    testing.check_method({**bird, "fraction": 0.3}, steps=8, counts=False)


def parts(name):
    """Options of a model of the catalogue in small, and an objective for it."""
    if name == "unet":
        return {"width": 8}, Denoising(sampling_steps=2)
    if name == "kl-autoencoder":
        return {"width": 8, "code": 2}, KLAutoencoding()
    small = {"width": 8, "latent": 4}
    if "vae" in name:
        return small, ELBO(latent_size=4)
    return small, Adversarial(latent_size=4) if "gan" in name else Autoencoding()


@pytest.mark.parametrize("name", CATALOGUE["model"])
def test_every_model_and_objective_of_the_catalogue(name):
    options, objective = parts(name)
    made = MODELS[name](size=8, channels=1, **options)
    inputs = objective.example_inputs(made.eval(), IMAGES)
    testing.check_model({"name": name, **options}, inputs, size=8, channels=1)
    testing.check_objective(objective, made, IMAGES)


def test_every_objective_of_the_catalogue_is_among_these():
    seen = {f"{type(objective).__module__}:{type(objective).__name__}" for _, objective in map(parts, MODELS)}
    assert seen == set(CATALOGUE["objective"].values())


@pytest.mark.parametrize("loss", ["l1", "bce"])
def test_objectives_with_options_and_around_others(loss):
    model = MODELS["linear-autoencoder"](8, 1, width=8)
    testing.check_objective({"name": "autoencoding", "loss": loss}, model, IMAGES)
    testing.check_objective("distilled", model, IMAGES, objective=Autoencoding(loss), teacher=model)
    gan = MODELS["dcgan"](8, 1, width=8)
    testing.check_objective(GainPenalty(Adversarial(latent_size=100), 0.1), gan, IMAGES)


def test_objectives_that_want_labels():
    batch = Labelled(IMAGES, LABELS)
    for objective, model in (
        (ELBO(conditional=True, latent_size=4), MODELS["conv-vae"](8, 1, width=4, latent=4, classes=3)),
        (Adversarial(conditional=True, latent_size=4), MODELS["dcgan"](8, 1, width=4, latent=4, classes=3)),
        (Denoising(conditional=True, sampling_steps=2), MODELS["unet"](8, 1, width=8, classes=3)),
    ):
        testing.check_objective(objective, model, batch)
        with pytest.raises(AssertionError, match="wants labels"):
            testing.check_objective(objective, model, IMAGES)


def test_what_is_brought_is_named_as_in_a_recipe(tmp_path):
    (tmp_path / "my.py").write_text(
        "import gentickets as gt\n"
        "def by_size(model, masks, power: float = 1.0):\n"
        "    return {n: s ** power for n, s in gt.magnitude(model, include=list(masks)).items()}\n"
        "def flat(model, masks):\n"
        "    return {n: s[0] for n, s in gt.magnitude(model, include=list(masks)).items()}\n"
    )
    testing.check_criterion(f"{tmp_path}/my.py:by_size")
    testing.check_criterion({"name": f"{tmp_path}/my.py:by_size", "power": 2.0})
    with pytest.raises(AssertionError, match=r"my\.py:flat scored 'encoder"):
        testing.check_criterion(f"{tmp_path}/my.py:flat")


def test_criteria_and_methods_are_worked_on_a_model_of_ones_own():
    make, objective = (lambda: MODELS["dcgan"](8, 1, width=4, latent=4)), Adversarial(latent_size=4)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    images = gt.ImageSet.from_arrays("noise", pixels)
    given = {"make_model": make, "objective": objective}
    testing.check_criterion("snip", batches=Batches(images, 4, seed=0), **given)
    testing.check_method(Imp(rounds=1, rewind_step=1), steps=3, images=images, **given)
    with pytest.raises(AssertionError, match=r"snip asks for objective and batches: .* give check_criterion those too"):
        testing.check_criterion("snip", make_model=make)


# -- broken criteria ----------------------------------------------------------------------------------------


def sizes(model):
    return {name: weight.detach().abs() for name, weight in named_weights(model).items() if name.endswith("weight")}


def changing(change):
    """A criterion that scores magnitudes, and does something beside."""

    def criterion(model, masks):
        change(model)
        return sizes(model)

    return criterion


def saying(say):
    return lambda model, masks: say(sizes(model))


count = itertools.count()


def all_nan_hidden(model, masks):
    return {name: score.nan_to_num(1.0) for name, score in sizes(model).items()}


CRITERIA = {
    "writes": (changing(lambda m: m.encoder[1].weight.data.mul_(2)), "changed 'encoder.1.weight' of the model"),
    "leaves gradients": (
        changing(lambda m: sum(w.square().sum() for w in m.parameters()).backward()),
        "left a gradient on",
    ),
    "leaves a mode": (changing(lambda m: m.eval()), "left 'the model' in another mode"),
    "leaves it frozen": (changing(lambda m: m.requires_grad_(False)), "in another mode"),
    "draws": (changing(lambda m: torch.rand(1)), "global generator of torch"),
    "draws by numpy": (changing(lambda m: np.random.rand()), "global generator of numpy"),  # noqa: NPY002
    "draws by random": (changing(lambda m: random.random()), "global generator of random"),
    "lacks one": (saying(lambda s: dict(list(s.items())[1:])), "no score for 'encoder.1.weight'"),
    "of another shape": (saying(lambda s: {n: w.flatten() for n, w in s.items()}), "by a tensor"),
    "complex": (saying(lambda s: {n: w + 0j for n, w in s.items()}), "complex numbers"),
    "infinite": (saying(lambda s: {n: w / 0 for n, w in s.items()}), "not finite"),
    "another each time": (saying(lambda s: {n: w + next(count) for n, w in s.items()}), "otherwise the second time"),
    "nothing of the like": (lambda model, masks: [1.0], "the criterion gave list: a dict is needed"),
    "infinite where others are dead": (
        saying(lambda s: {n: w / w.min() for n, w in s.items()}),
        "in round 2, gave a live weight of 'encoder.1.weight' a score that is not finite",
    ),
    "hides a NaN": (all_nan_hidden, "gave scores without a NaN"),
}


@pytest.mark.parametrize("what", CRITERIA)
def test_a_broken_criterion_is_caught(what):
    criterion, said = CRITERIA[what]
    with pytest.raises(AssertionError, match=said) as caught:
        testing.check_criterion(criterion)
    assert "\n" not in str(caught.value)
    testing.check_criterion(saying(dict))  # and nothing of it was due to the bench


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        (lambda scores, fraction, within: within, "kept 456 of 456 weights, and not 320"),
        (
            lambda scores, fraction, within: (
                gt.Masks.full(within.shapes) if within.sparsity else pruning_prune(scores, fraction, within=within)
            ),
            "round 2",
        ),
    ],
)
def test_counts_and_revived_weights_are_looked_at(prune, said, monkeypatch):
    monkeypatch.setattr(criteria, "prune", prune)
    with pytest.raises(AssertionError, match=said):
        testing.check_criterion("magnitude")


# -- broken objectives --------------------------------------------------------------------------------------


def model():
    torch.manual_seed(0)
    return MODELS["linear-autoencoder"](8, 1, width=8)


@dataclass(frozen=True)
class Yields(Autoencoding):
    """What a function makes of the losses of autoencoding."""

    change: object = None

    def losses(self, model, batch, rng):
        return self.change(super().losses(model, batch, rng), model, batch, rng)


def each(change):
    """An objective each of whose losses goes through a function."""

    def go_through(losses, model, batch, rng):
        for parts, loss in losses:
            yield parts, change(loss, model, batch)

    return Yields(change=go_through)


def beside(act):
    def change(loss, model, batch):
        act(model, batch)
        return loss

    return each(change)


class Written(Autoencoding):
    def measures(self):
        return {"error": Measure("error", self.of)}

    def of(self, model, images, rng):
        return (self.reconstruct(model, images) - images).square().flatten(1).mean(1)


class OneNumber(Written):
    def of(self, model, images, rng):
        return super().of(model, images, rng).mean()


class Restless(Written):
    def of(self, model, images, rng):
        return super().of(model, images, rng) + next(count)


class InfiniteMeasure(Written):
    def of(self, model, images, rng):
        return super().of(model, images, rng) / 0


class Half(Autoencoding):
    def reconstruct(self, model, images):
        return super().reconstruct(model, images)[:, :, :4]

    def losses(self, model, batch, rng):
        yield self.components, super().reconstruct(model, batch).square().mean()


class Tipsy(Autoencoding):
    def reconstruct(self, model, images):
        return super().reconstruct(model, images) + next(count)

    def losses(self, model, batch, rng):
        yield self.components, super().reconstruct(model, batch).square().mean()


class NoExample(Autoencoding):
    def example_inputs(self, model, images):
        return {"encoder": images, "decoder": images}


class Strange(Autoencoding):
    components: ClassVar = ("encoder", "head")


class StrangeAverage(Autoencoding):
    averaged: ClassVar = ("ema",)


class Nothing(Autoencoding):
    components: ClassVar = ()


OBJECTIVES = {
    "of another model": (Strange(), "components names 'head'"),
    "averages what is not there": (StrangeAverage(), "averaged names 'ema'"),
    "trains nothing": (Nothing(), "says no components"),
    "no objective": (nn.MSELoss(), "is no Objective"),
    "a list": (Yields(change=lambda losses, *_: list(losses)), "gives a list: yield each loss"),
    "a loss alone": (Yields(change=lambda losses, *_: (loss for _, loss in losses)), r"yield \(components, loss\)"),
    "an unknown part": (Yields(change=lambda losses, *_: (("head", x) for _, x in losses)), "trains 'head'"),
    "not a scalar": (each(lambda loss, *_: loss[None]), r"is a tensor \(1,\): take a mean"),
    "of each image": (each(lambda loss, *_: loss * torch.ones(6)), r"of the shape \(6,\): give a tensor of one number"),
    "a number": (each(lambda loss, *_: float(loss.detach())), "is a float: give a tensor of one number"),
    "infinite": (each(lambda loss, *_: loss / 0), "is inf for a sound model"),
    "detached": (each(lambda loss, *_: loss.detach()), "no gradient"),
    "of the decoder alone": (
        each(lambda loss, m, b: m.decoder(m.encoder(b).detach()).square().mean()),
        "does not depend on 'encoder'",
    ),
    "one part left out": (
        Yields(change=lambda losses, *_: (("decoder", loss) for _, loss in losses)),
        "no loss of Yields trains 'encoder'",
    ),
    "another each time": (each(lambda loss, *_: loss + next(count)), "other losses for the same seed"),
    "draws": (beside(lambda m, b: torch.rand(1)), "global generator of torch"),
    "writes the batch": (beside(lambda m, b: b.add_(1)), "changed the batch"),
    "writes weights": (beside(lambda m, b: m.encoder[1].bias.data.add_(1)), "changed 'encoder.1.bias'"),
    "steps backward": (
        each(lambda loss, m, b: (loss.backward(retain_graph=True), loss)[1]),
        "left a gradient on",
    ),
    "hides a NaN": (each(lambda loss, *_: loss.nan_to_num(1.0)), "finite for a model of NaN"),
    "another example": (NoExample(), r"example_inputs\['decoder'\] is not what 'decoder' takes"),
    "one number for all": (OneNumber(), r"one number for each of 6 images"),
    "a restless measure": (Restless(), "is another for the same seed"),
    "an infinite measure": (InfiniteMeasure(), "measure 'error' of InfiniteMeasure is not finite"),
    "half images": (Half(), r"reconstruct gives a tensor \(6, 1, 4, 8\), where images are \(6, 1, 8, 8\)"),
    "restless images": (Tipsy(), "other images for the same seed"),
}


@pytest.mark.parametrize("what", OBJECTIVES)
def test_a_broken_objective_is_caught(what):
    objective, said = OBJECTIVES[what]
    with pytest.raises(AssertionError, match=said) as caught:
        testing.check_objective(objective, model(), IMAGES.clone())
    assert "\n" not in str(caught.value)


def test_sound_objectives_of_the_same_making_pass_and_the_model_is_left_alone():
    mine = model().train()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    for objective in (Yields(change=lambda losses, *_: losses), each(lambda loss, *_: 2 * loss), Written(), Written):
        testing.check_objective(objective, mine, IMAGES)
    assert mine.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())
    assert all(weight.grad is None for weight in mine.parameters())
    with pytest.raises(AssertionError, match="two images or more"):
        testing.check_objective(Written(), mine, IMAGES[:1])


# -- broken methods -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Changed(Imp):
    """Iterative pruning whose levels, or whose work, a function changes."""

    change: object = field(default=None, repr=False)
    rounds: int = 2
    fraction: float = 0.3
    rewind_step: int = 1

    def levels(self, work, last):
        return self.change(lambda w=work, at=last: Imp.levels(self, w, at), work, last)


def each_level(change):
    return Changed(change=lambda levels, work, last: (change(level, work, last) for level in levels()))


def with_work(change):
    return Changed(change=lambda levels, work, last: levels(change(work)))


@dataclass
class Thawed(gt.Method):
    rounds: int = 1

    def levels(self, work, last):
        return iter(())


class Undecorated(Imp):
    share: float = 0.5


def rootless(level):
    """What a ticket says of itself, but for the rounds before it, which are of other masks."""
    return {key: value for key, value in level.ticket.origin.items() if key != "lineage"}


def other_masks(level, work, last):
    level.ticket = gt.Ticket(~level.masks if level.index else level.masks, level.ticket.weights, rootless(level))
    return level


def random_instead(level, work, last):
    """Masks of the right sparsity that are not inside those before."""
    if not level.index:
        return level
    masks = gt.prune(gt.random_scores(level.model, level.index), to_sparsity=level.masks.sparsity)
    ticket = gt.Ticket(masks, level.ticket.weights, rootless(level))
    return Level(level.index, masks, masks.apply_(level.model), ticket)


def half_as_much(levels, work, last):
    return Imp(rounds=2, fraction=0.1).levels(work, last)


def once_more(levels, work, last):
    yield from levels()
    yield from Imp(rounds=1).levels(work, 0)


def touched(levels, work, last):
    before = None
    for level in levels():
        if before is not None:
            before.model.decoder[0].bias.data.add_(1)
        yield level
        before = level


def touched_ticket(levels, work, last):
    for before, level in itertools.pairwise(itertools.chain([None], levels())):
        if before is not None:
            before.ticket.weights["decoder.0.bias"].add_(1)
        yield level


def moved_by_resuming(level, work, last):
    level.model.decoder[0].bias.data.add_(max(last, 0))
    return level


def of_one_layer(level, work, last):
    masks = level.masks if level.index < 2 else level.masks.select("decoder")
    return Level(level.index, masks, level.model, gt.Ticket(masks, level.ticket.weights, rootless(level)))


def stray(level, work, last):
    dead = ~level.masks["decoder.0.weight"]
    level.model.decoder[0].weight.data[dead] = 1.0
    return level


def drifting(level, work, last):
    origin = {**level.ticket.origin, "at": next(count)}
    level.ticket = gt.Ticket(level.ticket.masks, level.ticket.weights, origin)
    return level


def begins_anew(levels, work, last):
    """A resumed search that goes on from the dense model, wherever it was."""
    found = Imp(rounds=2, fraction=0.3, rewind_step=1).levels(work, min(last, 0))
    return found if last <= 0 else (replace_index(level, last) for level in itertools.islice(found, 2 - last))


def replace_index(level, by):
    level.index += by
    return level


class SameMask(Changed):
    def control(self, arm, level, work, seed):
        return super().control("redrawn_weights" if arm == "random_mask" else arm, level, work, seed)


class SameWeights(Changed):
    def control(self, arm, level, work, seed):
        if arm == "random_mask":
            return super().control(arm, level, work, seed)
        return Level(level.index, level.masks, level.ticket.install(level.model), level.ticket)


class OtherMask(Changed):
    def control(self, arm, level, work, seed):
        return super().control("random_mask", level, work, seed)


class Denser(Changed):
    def control(self, arm, level, work, seed):
        if arm != "random_mask":
            return super().control(arm, level, work, seed)
        masks = gt.prune(gt.random_scores(level.model, seed), to_sparsity=level.masks.sparsity, scope="layer")
        ticket = gt.Ticket(masks, level.ticket.weights)
        return Level(level.index, masks, ticket.install(level.model), ticket)


class NotHeld(Changed):
    def control(self, arm, level, work, seed):
        control = super().control(arm, level, work, seed)
        control.model.encoder[1].weight.data.fill_(1)
        return control


class Forgiving(Imp):
    """Takes any scores, and NaN for 0."""

    def levels(self, work, last):
        def criterion(said):
            return lambda model, masks: gt.random_scores(model, 1, include=list(masks))

        forgiving = replace(work)
        object.__setattr__(forgiving, "criterion", criterion)
        return super().levels(forgiving, last)


def plain(levels, work, last):
    return levels()


METHODS_BROKEN = {
    "no method": (gt.imp, "is no Method"),
    "not frozen": (Thawed(), "no frozen dataclass"),
    "not decorated": (Undecorated(rounds=1), "Undecorated.share is no field"),
    "no round": (Imp(rounds=0), "rounds=0"),
    "a level too many": (
        Changed(change=once_more),
        r"gave levels \[0, 1, 2, 1\] for rounds=2",
    ),
    "a pruned dense model": (
        Changed(
            change=lambda levels, w, last: (
                OneShot(rounds=3, fraction=0.3).levels(w, last) if last >= 0 else dense_pruned(levels)
            )
        ),
        "level 0 of Changed is pruned",
    ),
    "another ticket": (each_level(other_masks), "has other masks than the level"),
    "no origin": (with_work(lambda work: replace(work, origin={})), "does not say where it comes from"),
    "no training": (with_work(lambda work: replace(work, train=lambda *args, **more: None)), "was not trained"),
    "not held": (
        each_level(stray),
        "is not what its ticket says",
    ),
    "revives": (each_level(random_instead), "revived weights"),
    "too little": (Changed(change=half_as_much), "has 9.87% pruned, and not 30.00%, as sparsity_at says"),
    "touches what it gave": (
        Changed(change=touched),
        "'decoder.0.bias' of the model of level 0 of Changed was changed",
    ),
    "touches a ticket": (Changed(change=touched_ticket), "ticket of level 0 of Changed was changed by a later level"),
    "masks of other weights": (each_level(of_one_layer), "has masks of other weights than level 1"),
    "trains otherwise when resumed": (each_level(moved_by_resuming), "after level 1, trained level 2 otherwise"),
    "a re-drawn control of another mask": (OtherMask(change=plain), "has another mask than the ticket"),
    "another each time": (each_level(drifting), "another ticket at level 0 the second time"),
    "resumes elsewhere": (Changed(change=begins_anew), "resumed after level 1, gave another ticket at level 2"),
    "resumes nowhere": (
        Changed(change=lambda levels, work, last: iter(()) if last > 0 else levels()),
        r"resumed after level 1, gave levels \[\]",
    ),
    "a control that is the ticket's mask": (SameMask(change=plain), "is the ticket's own mask"),
    "a control that is the ticket": (SameWeights(change=plain), "nothing was drawn anew"),
    "a control of other counts": (Denser(change=plain), "other numbers of live weights"),
    "a control that is not held": (NotHeld(change=plain), "control of level 1 of NotHeld is not held"),
    "takes NaN": (Forgiving(rounds=1), "made level .1. with a criterion that gives NaN"),
}


def dense_pruned(levels):
    for level in levels():
        if not level.index:
            masks = gt.prune(gt.magnitude(level.model), fraction=0.1)
            level = Level(0, masks, masks.apply_(level.model), gt.Ticket(masks, level.ticket.weights, rootless(level)))
        yield level


@pytest.mark.parametrize("what", METHODS_BROKEN)
def test_a_broken_method_is_caught(what):
    method, said = METHODS_BROKEN[what]
    with pytest.raises(AssertionError, match=said) as caught:
        testing.check_method(method, steps=3)
    assert "\n" not in str(caught.value)


def test_sound_methods_of_the_same_making_pass():
    testing.check_method(Changed(change=plain), steps=3)
    testing.check_method(AtInit(rounds=1, criterion="magnitude"), steps=3)


# -- broken models ------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, middle=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), middle or nn.ReLU(), nn.Linear(6, 3))


class Act(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        return self.act(x)


def seeded():
    torch.manual_seed(1)
    return Net()


def own_draw():
    made = Net()
    with torch.no_grad():
        made.body[0].weight.copy_(torch.rand(6, 4, generator=torch.Generator().manual_seed(next(count))))
    return made


def constant():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        return Net()


def with_weight(value):
    def make():
        made = Net()
        made.body[0].weight.data[0] = value
        return made

    return make


class Aliased(nn.Module):
    """A buffer that lies in a weight."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.register_buffer("seen", self.body.weight.data)


class OfFunctions(nn.Module):
    """A layer that is called by a function that closes over it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.steps = [lambda x: self.body(x)]


def of_any_width():
    return {"body": nn.Linear(4, int(torch.randint(3, 1000, ())))}


ONE = Net()
INPUT = {"body": torch.zeros(2, 4)}
MODELS_BROKEN = {
    "no model": (lambda: 3, "makes no model"),
    "seeds": (seeded, "seeds torch's generator"),
    "the same each time": (lambda: ONE, "gives the model that it had given before"),
    "equal each time": (constant, "draws the same weights at every call"),
    "by a generator of its own": (own_draw, "otherwise from the same seed"),
    "a buffer that lies in a weight": (Aliased, "does not bring 'seen' back"),
    "of functions": (OfFunctions, "is not to be copied: 'steps' uses the model itself"),
    "of any width": (of_any_width, "does not fit the next model"),
    "gives nothing": (lambda: Net(Act(lambda x: print(end=""))), "does not take its example input: TypeError"),
    "says nothing": (lambda: {"body": nn.Sequential(nn.Linear(4, 3), Act(lambda x: "x"))}, "gives no tensor"),
    "no weight": (nn.Identity, "without a weight"),
    "nothing to prune": (lambda: {"norm": nn.Sequential(nn.Embedding(3, 3))}, "cannot be pruned"),
    "NaN": (with_weight(math.nan), "'body.0.weight' is not finite"),
    "other layers": (
        lambda: Net(nn.Linear(6, 6) if next(count) % 2 else nn.ReLU()),
        "other layers from call to call",
    ),
    "draws when it runs": (lambda: Net(Act(lambda x: x + torch.rand(1))), "global generator of torch"),
    "restless": (lambda: Net(Act(lambda x: x + next(count))), "something else each time"),
    "infinite": (lambda: Net(Act(lambda x: (x + 1) / 0)), "not finite"),
    "cut": (lambda: Net(Act(lambda x: x * 0)), "no path from its input"),
    "of other inputs": (lambda: {"body": nn.Linear(3, 3)}, "does not take its example input: RuntimeError"),
    "of more components": (lambda: {"body": nn.Linear(4, 3), "head": nn.Linear(3, 3)}, "component 'head'"),
    "of other components": (lambda: {"head": nn.Linear(3, 3)}, "example inputs do not fit"),
}


@pytest.mark.parametrize("what", MODELS_BROKEN)
def test_a_broken_model_is_caught(what):
    make, said = MODELS_BROKEN[what]
    with pytest.raises(AssertionError, match=said) as caught:
        testing.check_model(make, INPUT)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_held_is_told(monkeypatch):
    def refuse(*given):
        raise gt.MaskError("why")

    monkeypatch.setattr(gt.Masks, "hold", refuse)
    with pytest.raises(AssertionError, match="cannot be held to masks: why"):
        testing.check_model(Net)


def test_sound_models_pass_and_the_generator_goes_on():
    state = torch.get_rng_state()
    testing.check_model(Net, INPUT)
    testing.check_model(lambda: {"body": nn.Linear(4, 3)}, INPUT)
    testing.check_model(lambda: nn.Linear(4, 3), torch.zeros(2, 4))
    testing.check_model(Net)
    assert torch.equal(torch.get_rng_state(), state)


def test_distilled_is_checked_as_an_object_too():
    mine = model()
    testing.check_objective(Distilled(Autoencoding(), teacher=mine), mine, IMAGES)

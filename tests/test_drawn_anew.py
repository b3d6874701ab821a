"""Controls that control: what a factory gives is really drawn anew, whatever way it takes to give the same again."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import gentickets as gt


def make() -> nn.Module:
    return nn.ModuleDict({"g": nn.Linear(6, 6), "d": nn.Linear(6, 6)})


def train(model: nn.Module, masks: gt.Masks, start: int, end: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with masks.hold(model, optimizer):
        for _ in range(start, end):
            optimizer.zero_grad()
            sum(model[name](torch.ones(2, 6)).square().sum() for name in "gd").backward()
            optimizer.step()


def search(factory, **options) -> list[gt.Level]:
    return list(gt.imp(factory, train, steps=3, rounds=1, fraction=0.5, rewind_step=1, **options))


def seeded_numpy() -> nn.Module:
    rng, model = np.random.default_rng(0), make()
    for parameter in model.parameters():
        parameter.data = torch.from_numpy(rng.standard_normal(parameter.shape)).float()
    return model


def seeded_random() -> nn.Module:
    rng, model = random.Random(0), make()
    for parameter in model.parameters():
        parameter.data = torch.tensor([rng.random() for _ in range(parameter.numel())]).view_as(parameter)
    return model


def forked() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make()


def everything_seeded() -> dict[str, nn.Module]:
    random.seed(0)
    torch.manual_seed(0)
    return dict(make().items())


def copies_of_one() -> object:
    prototype = make()
    return lambda: copy.deepcopy(prototype)


@pytest.mark.parametrize("factory", [seeded_numpy, seeded_random, forked, everything_seeded, copies_of_one()])
def test_a_factory_that_gives_the_same_again_is_refused(factory) -> None:
    with pytest.raises(gt.PruneError, match=r"the re-drawn control: make_model\(\) drew the very weights"):
        gt.redrawn_weights_control(search(factory)[-1], factory)


def test_a_factory_that_gives_one_model_over_and_over_is_refused() -> None:
    model = make()
    level = search(lambda: model)[-1]
    with pytest.raises(gt.PruneError, match="gave a model that it had given before"):
        gt.redrawn_weights_control(level, lambda: model)
    parts = dict(make().items())
    with pytest.raises(gt.PruneError, match=r"others=fresh: .* gave a model that it had given before"):
        search(lambda: parts, components="g", others="fresh")


def test_a_frozen_part_that_all_models_share_is_no_objection() -> None:
    shared = nn.Linear(6, 6)
    level = search(lambda: {"g": nn.Linear(6, 6), "d": shared}, components="g")[-1]
    control = gt.redrawn_weights_control(level, lambda: {"g": nn.Linear(6, 6), "d": shared})
    assert not torch.equal(control.weights["g.weight"], level.ticket.weights["g.weight"])


@pytest.mark.parametrize("of", [lambda level: level.model, lambda level: level.ticket.install(make())])
def test_weights_of_the_ticket_or_trained_from_it_are_not_drawn_anew(of) -> None:
    level = search(make)[-1]
    with pytest.raises(gt.PruneError, match="the very weights that the search has already"):
        gt.redrawn_weights_control(level, lambda: copy.deepcopy(of(level)))


def test_a_factory_of_other_shapes_is_refused_by_name() -> None:
    with pytest.raises(gt.TicketError, match=r"'g.weight' is \(3, 6\) in the weights and \(6, 6\) in the masks"):
        gt.redrawn_weights_control(search(make)[-1], lambda: {"g": nn.Linear(6, 3), "d": nn.Linear(6, 6)})


@pytest.mark.parametrize("factory", [make(), None, {"g": nn.Linear(2, 2)}])
def test_a_model_is_no_factory(factory) -> None:
    with pytest.raises(gt.PruneError, match=r"make_model is a function that makes a model, as lambda: GAN\(\); not"):
        search(factory)


def test_training_is_a_function() -> None:
    with pytest.raises(gt.PruneError, match="train=None is no function"):
        gt.imp(make, None, steps=2, rounds=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fraction": "0.5"},
        {"tolerance": "0.1"},
        {"tolerance": float("nan")},
        {"window": 2.5},
        {"scope": "everywhere"},
        {"granularity": "row"},
    ],
)
def test_an_early_bird_says_which_argument_is_wrong(wrong) -> None:
    with pytest.raises(gt.PruneError, match=next(iter(wrong))):
        gt.EarlyBird(**{"fraction": 0.5, **wrong})


def test_an_early_bird_says_how_far_it_is() -> None:
    bird = gt.EarlyBird(0.5)
    bird.observe(make())
    assert repr(bird) == "EarlyBird(fraction=0.5, weight, 1 observations, not settled)"

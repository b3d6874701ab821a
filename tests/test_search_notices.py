"""The searches resumed level by level: numbers, sparsities, lineage and bits are those of the whole search."""

import pytest
import torch

import gentickets as gt
from gentickets.masks.names import named_state
from test_search import Recorder

SPARSITIES = [0.3, 0.5, 0.8]


@pytest.fixture
def make(make_autoencoder):
    """The same weights however often they are drawn."""

    def draw():
        torch.manual_seed(3)
        return make_autoencoder()

    return draw


@pytest.fixture
def tickets(make):
    """Three tickets of the encoder alone, from elsewhere."""
    model = make()
    scores = gt.magnitude(model, components=["encoder"])
    return [
        gt.Ticket(gt.prune(scores, to_sparsity=sparsity), model, {"level": n}) for n, sparsity in enumerate(SPARSITIES)
    ]


def same(found, expected):
    assert [level.index for level in found] == [level.index for level in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.masks == other.masks
        assert one.ticket.to_bytes() == other.ticket.to_bytes()
        for name, tensor in named_state(other.model).items():
            assert torch.equal(named_state(one.model)[name], tensor), name


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_resumed_one_shot_goes_on_at_the_level_that_follows(make, done):
    arguments = {"steps": 4, "rewind_step": 1, "sparsities": SPARSITIES}
    whole = list(gt.one_shot(make, Recorder(), **arguments))
    assert [level.index for level in whole] == [0, 1, 2, 3]
    assert [round(level.masks.sparsity, 2) for level in whole[1:]] == SPARSITIES
    train = Recorder()
    rest = list(gt.one_shot(make, train, dense=whole[0], done=done, **arguments))
    same(rest, whole[done + 1 :])
    assert [call[:2] for call in train.calls] == [(1, 4)] * (3 - done)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_resumed_transfer_goes_on_at_the_level_that_follows(make, tickets, done):
    arguments = {"steps": 4, "rewind_step": 1, "carry": {"encoder": "encoder"}}
    whole = list(gt.transferred(make, Recorder(), tickets=tickets, **arguments))
    assert [level.index for level in whole] == [0, 1, 2, 3]
    train = Recorder()
    rest = list(gt.transferred(make, train, tickets=tickets[done:], dense=whole[0], done=done, **arguments))
    same(rest, whole[done + 1 :])
    assert [level.ticket.origin["from"]["level"] for level in rest] == [0, 1, 2][done:]
    for level in rest:
        [dense, carried, own] = level.ticket.origin["lineage"]
        assert (dense["level"], carried["transfer"], own["level"]) == (0, {"encoder": "encoder"}, level.index)


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_resumed_imp_goes_on_at_the_level_that_follows(make, last):
    whole = list(gt.imp(make, Recorder(), steps=4, rewind_step=1, rounds=3))
    rest = list(gt.imp(make, Recorder(), steps=4, rewind_step=1, rounds=3, after=whole[last]))
    same(rest, whole[last + 1 :])


def test_a_search_that_is_done_has_no_levels_left(make):
    whole = list(gt.imp(make, Recorder(), steps=4, rounds=2))
    assert list(gt.imp(make, Recorder(), steps=4, rounds=2, after=whole[-1])) == []


def test_no_rounds_are_the_dense_model_alone(make):
    train = Recorder()
    (level,) = gt.imp(make, train, steps=4, rounds=0)
    assert (level.index, level.masks.sparsity) == (0, 0.0)
    assert [call[:2] for call in train.calls] == [(0, 4)]


def test_levels_are_trained_one_by_one_as_they_are_asked_for(make):
    train = Recorder()
    levels = gt.imp(make, train, steps=4, rounds=3)
    assert train.calls == []
    for index in range(3):
        assert next(levels).index == index
        assert len(train.calls) == index + 1


def test_a_criterion_of_ones_own_decides_what_goes(make):
    """The negative magnitude: the largest weights go, of every tensor that competes."""

    def smallest(model):
        return {name: -score for name, score in gt.magnitude(model).items()}

    dense, level = gt.imp(make, Recorder(), steps=4, rounds=1, fraction=0.3, criterion=smallest)
    weights = torch.cat([named_state(dense.model)[name].detach().abs().flatten() for name in level.masks])
    alive = torch.cat([mask.flatten() for _, mask in level.masks.items()])
    assert float(weights[alive].max()) < float(weights[~alive].min())
    one, other = list(gt.one_shot(make, Recorder(), steps=4, sparsities=[0.3], criterion=smallest))
    assert other.masks == level.masks
    assert one.index == 0


def test_what_is_included_alone_is_pruned(make):
    (_, level) = gt.imp(make, Recorder(), steps=4, rounds=1, include=["encoder.*weight"], exclude=["encoder.0.*"])
    assert list(level.masks) == ["encoder.2.weight"]


def test_origins_say_where_a_ticket_comes_from(make):
    levels = list(gt.imp(make, Recorder(), steps=6, rewind_step=2, rounds=2, origin={"recipe": "r"}))
    for level in levels:
        origin = level.ticket.origin
        assert (origin["recipe"], origin["rewind_step"], origin["retrain"]) == ("r", 2, "rewind")
        assert [entry["level"] for entry in origin["lineage"]] == list(range(level.index + 1))
        assert origin["lineage"][-1]["sparsity"] == level.masks.sparsity
        assert origin["lineage"][-1]["masks"] == level.masks.fingerprint


def test_controls_say_what_they_are(make, make_autoencoder):
    [*_, level] = gt.imp(make, Recorder(), steps=6, rewind_step=2, rounds=2, retrain="learning-rate")
    shuffled, redrawn = gt.random_mask_control(level, seed=5), gt.redrawn_weights_control(level, make_autoencoder)
    assert (shuffled.origin["control"], shuffled.origin["control_seed"]) == ("random_mask", 5)
    assert (shuffled.origin["rewind_step"], shuffled.origin["retrain"]) == (2, "learning-rate")
    assert redrawn.origin["control"] == "redrawn_weights"
    assert (redrawn.origin["rewind_step"], redrawn.origin["retrain"]) == (0, "rewind")
    assert gt.random_mask_control(level, seed=5).masks == shuffled.masks
    assert gt.random_mask_control(level, seed=6).masks != shuffled.masks

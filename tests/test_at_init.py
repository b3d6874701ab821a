"""Pruning before training: which weights are scored, which are trained, from where, and resuming."""

from __future__ import annotations

import pytest
import torch

import gentickets as gt
from gentickets.masks.names import named_state

IMAGES = torch.rand(40, 10, generator=torch.Generator().manual_seed(2))
INPUTS = {"encoder": IMAGES[:1], "decoder": torch.zeros(1, 3)}


class Recorder:
    """A train function as a user would write it; notes each call and the weights it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, masks, start_step, end_step):
        state = {name: tensor.detach().clone() for name, tensor in named_state(model).items()}
        self.calls.append((start_step, end_step, masks, state))
        adam = torch.optim.Adam(model.parameters(), lr=1e-2)
        with masks.hold(model, adam):
            for step in range(start_step, end_step):
                batch = IMAGES[step % 5 :: 5]
                loss = (model(batch) - batch).square().mean()
                adam.zero_grad()
                loss.backward()
                adam.step()


def snip(model, masks):
    return gt.snip(model, gt.Autoencoding(), [IMAGES[:20], IMAGES[20:]], include=tuple(masks))


def grasp(model, masks):
    return gt.grasp(model, gt.Autoencoding(), [IMAGES[:20], IMAGES[20:]], include=tuple(masks))


def magnitude(model, masks):
    return gt.magnitude(model, include=tuple(masks))


def random_scores(model, masks):
    return gt.random_scores(model, 7, include=tuple(masks))


@pytest.mark.parametrize("score", [snip, grasp, magnitude, random_scores])
@pytest.mark.parametrize("scope", ["global", "component", "layer", "erk"])
def test_every_level_is_the_criterion_on_the_initial_weights_trained_from_step_0(make_autoencoder, score, scope):
    torch.manual_seed(5)
    train = Recorder()
    levels = list(gt.at_init(make_autoencoder, train, steps=6, sparsities=[0.3, 0.5], score=score, scope=scope))
    torch.manual_seed(5)
    model = make_autoencoder()
    initial, everything = named_state(model), gt.Masks.dense(model)
    assert [level.index for level in levels] == [0, 1, 2]
    assert [call[:2] for call in train.calls] == [(0, 6)] * 3
    for level, sparsity, (_, _, masks, state) in zip(levels, (0.0, 0.3, 0.5), train.calls, strict=True):
        expected = gt.prune(score(model, everything), to_sparsity=sparsity, scope=scope)
        assert level.masks == masks == expected
        for name, tensor in state.items():
            alive = masks[name] if name in masks else torch.ones_like(tensor, dtype=torch.bool)
            assert torch.equal(tensor, initial[name] * alive), name
        level.masks.audit(level.model)
        assert all(torch.equal(tensor, initial[name]) for name, tensor in level.ticket.weights.items())
    assert [entry["level"] for entry in levels[2].ticket.origin["lineage"]] == [0, 2]


def test_synflow_goes_by_its_schedule(make_autoencoder):
    torch.manual_seed(5)
    arguments = {"steps": 2, "sparsities": [0.5, 0.9], "score": gt.synflow_score(INPUTS), "iterations": 20}
    levels = list(gt.at_init(make_autoencoder, Recorder(), example_inputs=INPUTS, **arguments))
    torch.manual_seed(5)
    model = make_autoencoder()
    for level, sparsity in zip(levels[1:], (0.5, 0.9), strict=True):
        assert level.masks == gt.synflow_masks(model, INPUTS, sparsity, iterations=20)
    assert levels[2].masks != gt.prune(gt.synflow(model, INPUTS), to_sparsity=0.9)


def test_one_component_alone(make_autoencoder):
    for score, iterations in ((snip, 1), (gt.synflow_score(INPUTS), 5)):
        levels = list(
            gt.at_init(
                make_autoencoder,
                Recorder(),
                steps=2,
                sparsities=[0.6],
                score=score,
                iterations=iterations,
                components=["decoder"],
                origin={"recipe": "r"},
            )
        )
        assert levels[1].masks.components == ("decoder",)
        assert levels[1].masks.alive == levels[0].masks.total - int(0.6 * levels[0].masks.total)
        assert levels[1].ticket.origin["recipe"] == "r"


def test_a_resumed_search_gives_the_same_levels(make_autoencoder):
    arguments = {"steps": 5, "sparsities": [0.3, 0.5, 0.8], "score": snip}
    whole = list(gt.at_init(make_autoencoder, Recorder(), **arguments))
    # `make_autoencoder` now draws other weights: those of the dense level's ticket are what counts.
    rest = list(gt.at_init(make_autoencoder, Recorder(), dense=whole[0], done=1, **arguments))
    assert [level.index for level in rest] == [2, 3]
    for one, other in zip(whole[2:], rest, strict=True):
        assert one.ticket.to_bytes() == other.ticket.to_bytes()
        assert all(torch.equal(t, named_state(other.model)[n]) for n, t in named_state(one.model).items())


def test_without_the_dense_model_nothing_dense_is_trained(make_autoencoder):
    def make():
        torch.manual_seed(3)
        return make_autoencoder()

    train = Recorder()
    arguments = {"steps": 5, "sparsities": [0.3, 0.8], "score": snip}
    levels = list(gt.at_init(make, train, with_dense=False, **arguments))
    assert [level.index for level in levels] == [1, 2]
    assert len(train.calls) == 2
    [_, *others] = gt.at_init(make, Recorder(), **arguments)
    for level, other in zip(levels, others, strict=True):
        assert level.masks == other.masks
        assert all(torch.equal(t, named_state(other.model)[n]) for n, t in named_state(level.model).items())
    assert [entry["level"] for entry in levels[1].ticket.origin["lineage"]] == [2]


def test_a_cut_component_is_refused_before_training(make_autoencoder):
    train = Recorder()
    search = gt.at_init(make_autoencoder, train, steps=3, sparsities=[0.99], score=magnitude, example_inputs=INPUTS)
    with pytest.raises(gt.Disconnected) as caught:
        list(search)
    assert caught.value.ticket.masks.sparsity == pytest.approx(0.99, abs=0.01)
    assert len(train.calls) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sparsities": [0.5, 1.0]}, r"sparsities=1\.0"),
        ({"iterations": 0}, "iterations=0"),
        ({"steps": 0}, "steps=0"),
        ({"components": ["head"]}, "no component 'head': the model has encoder, decoder"),
    ],
)
def test_wrong_arguments_are_refused_at_once(make_autoencoder, wrong, message):
    arguments = {"steps": 5, "sparsities": [0.5], "score": snip, **wrong}
    with pytest.raises(gt.GenticketsError, match=message):
        gt.at_init(make_autoencoder, Recorder(), **arguments)

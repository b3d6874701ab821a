"""Early-bird levels of a run: found, shrunk, trained on, resumed anywhere, priced."""

import json
import math

import pytest
import torch

import gentickets as gt
from gentickets.channels.shrinking import Shrinking
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run import folder as disk
from gentickets.lab.run.level import measure_level
from gentickets.lab.run.seed import SeedRun
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.lab.task import build_model
from gentickets.masks.names import named_state
from gentickets.metrics.cost import training_flops
from gentickets.search import early_level as early

TINY = {
    "name": "bird",
    "model": {"name": "conv-vae", "width": 8, "latent": 4},
    "data": {"source": "digits", "size": 16},
    "objective": {"name": "elbo"},
    "training": {"steps": 40, "batch_size": 8, "lr": 0.002, "checkpoint_seconds": 1e9, "ema": 0.9},
    "search": {
        "method": "early-bird", "granularity": "channel", "scope": "component", "rounds": 1, "fraction": 0.5,
        "window": 3, "tolerance": 0.99, "interval": 4,
    },
    "controls": {"levels": [1]},
    "evaluation": {"features": "none"},
}  # fmt: skip


def recipe_with(controls=None, **search):
    return make_recipe({**TINY, "controls": controls or TINY["controls"], "search": {**TINY["search"], **search}})


@pytest.fixture(scope="module")
def stage():
    recipe = recipe_with()
    train, held_out = load_data(recipe.data)
    return train, make_judge(recipe, train, held_out)


def seed_run(recipe, folder, stage, stop=lambda: False):
    return SeedRun(recipe, folder, 0, *stage, stop=stop)


@pytest.fixture(scope="module")
def whole(stage, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    seed_run(recipe_with(), folder, stage).run()
    return folder / "seed-0"


def metrics(folder, level="level-01"):
    return json.loads((folder / level / "metrics.json").read_text())


def test_the_level_is_the_smaller_network_and_both_its_prices_are_kept(whole):
    history = json.loads((whole / "level-01" / "early-bird.json").read_text())
    # Tolerance 0.99: three masks are needed, and enough. At step 4 Adam has moved every gain.
    assert (history["steps"], history["settled"]) == ([4, 8, 12], True)
    assert len(history["matrix"]) == len(history["matrix"][0]) == len(history["chance_matrix"]) == 3
    assert history["rule"] == "chance"
    for distances, chances in zip(history["distances"], history["chances"], strict=True):
        assert {name: len(found) for name, found in distances.items()} == {n: len(c) for n, c in chances.items()}
        assert all(0 < chance <= 0.5 for found in chances.values() for chance in found)
    found = metrics(whole)
    assert (found["start_step"], found["end_step"], found["status"]) == (12, 40, "complete")
    dense = metrics(whole, "level-00")
    assert found["cost"]["parameters"] < 0.6 * dense["cost"]["parameters"]
    per_step = dense["cost"]["train_flops"] / 40
    assert found["cost"]["find_flops"] == pytest.approx(12 * per_step)
    assert found["cost"]["train_flops"] < 0.6 * 28 * per_step
    timing = json.loads((whole / "level-01" / "timing.json").read_text())
    assert timing["find_seconds"] > 0
    assert timing["train_seconds"] > 0
    assert timing["images"] == 40 * 8


def test_the_first_part_is_the_dense_training(whole, stage, tmp_path):
    """The ticket's weights are those that an untouched dense training has at that step."""
    recipe = recipe_with()
    ticket = gt.Ticket.load(whole / "level-01" / "ticket.safetensors")
    model = build_model(recipe, stage[0], 0)
    trainer = seed_run(recipe, tmp_path, stage).trainer
    trainer.enter("x", tmp_path)
    trainer.train(model, gt.Masks.dense(model), 0, 12)
    for name, tensor in named_state(model).items():
        assert torch.equal(tensor, ticket.weights[name]), name


def test_a_level_read_back_is_the_network_that_was_trained(whole, stage):
    run = seed_run(recipe_with(), whole.parent, stage)
    level = run.load_level(1)
    stored = disk.load_weights(whole / "level-01" / "trained.safetensors")
    state = named_state(level.model)
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in stored.items()}
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    again = measure_level(whole / "level-01", level.model, stage[1])
    assert {m.key: m.value for m in again} == {k: v["value"] for k, v in metrics(whole)["metrics"].items()}


@pytest.mark.parametrize("steps", [45, 52, 53, 60, 79, 90, 130])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(steps, whole, stage, tmp_path):
    """Stopped while the mask is searched, at the step where it settles, in the small network, in both controls."""
    asked = iter([False] * (steps - 1) + [True])
    with pytest.raises(KeyboardInterrupt):
        seed_run(recipe_with(), tmp_path, stage, stop=lambda: next(asked)).run()
    seed_run(recipe_with(), tmp_path, stage).run()
    for level in ("level-00", "level-01", "level-01-random_mask", "level-01-redrawn_weights"):
        for name in ("metrics.json", "ticket.safetensors", "trained.safetensors", "averaged.safetensors"):
            mine, expected = ((f / level / name).read_bytes() for f in (tmp_path / "seed-0", whole))
            assert mine == expected, f"{level}/{name}"


def test_the_controls_keep_as_many_channels_and_start_where_they_must(whole, stage):
    recipe, ticket = recipe_with(), gt.Ticket.load(whole / "level-01" / "ticket.safetensors")
    random = gt.Ticket.load(whole / "level-01-random_mask" / "ticket.safetensors")
    redrawn = gt.Ticket.load(whole / "level-01-redrawn_weights" / "ticket.safetensors")
    model = build_model(recipe, stage[0], 0)
    inputs = recipe.build_objective().example_inputs(model, stage[1].held_out.images(range(2)))
    removed = [Shrinking(model, t.masks, inputs).removed for t in (ticket, random)]
    assert removed[0] == removed[1]
    costs = [metrics(whole, level)["cost"] for level in ("level-01", "level-01-random_mask")]
    for key in ("parameters", "alive_parameters", "flops_dense", "train_flops", "find_flops"):
        assert costs[0][key] == costs[1][key], key
    assert random.masks != ticket.masks
    assert all(torch.equal(random.weights[name], ticket.weights[name]) for name in ticket.weights)
    assert redrawn.masks == ticket.masks
    assert metrics(whole, "level-01-random_mask")["start_step"] == 12
    assert metrics(whole, "level-01-redrawn_weights")["start_step"] == 0


def test_weights_instead_of_channels_keep_the_network_whole(stage, tmp_path):
    seed_run(recipe_with(granularity="weight"), tmp_path, stage).run()
    found, dense = metrics(tmp_path / "seed-0"), metrics(tmp_path / "seed-0", "level-00")
    assert found["sparsity"] == 0.5
    assert found["cost"]["parameters"] == dense["cost"]["parameters"]
    assert metrics(tmp_path / "seed-0", "level-01-random_mask")["sparsity"] == 0.5


def test_a_mask_that_never_settles_is_taken_and_flagged(stage, tmp_path):
    seed_run(recipe_with(tolerance=1e-9, settle_by=0.4, granularity="weight", fraction=0.2), tmp_path, stage).run()
    ticket = gt.Ticket.load(tmp_path / "seed-0" / "level-01" / "ticket.safetensors")
    assert ticket.origin["early_bird"]["settled"] is False
    assert ticket.origin["rewind_step"] == 16
    assert metrics(tmp_path / "seed-0")["start_step"] == 16


def test_a_mask_that_never_settles_stops_the_run_where_that_is_asked(stage, tmp_path):
    recipe = recipe_with(tolerance=1e-9, settle_by=0.4, granularity="weight", fraction=0.2, unsettled="stop")
    with pytest.raises(
        gt.GenticketsError, match=r"had not settled by step 16 .*, by chance 0\..*search\.tolerance=1e-09"
    ):
        seed_run(recipe, tmp_path, stage).run()
    assert (tmp_path / "seed-0" / "level-00" / "metrics.json").exists()


def test_a_search_without_an_observation_says_so(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(early.EarlyBird, "observe", lambda self, model: False)
    with pytest.raises(gt.GenticketsError, match="saw no mask in 20 steps"):
        seed_run(recipe_with(), tmp_path, stage).run()


def test_a_penalty_on_the_gains_makes_them_smaller(stage, tmp_path):
    gains = []
    for strength in (0.0, 1.0):
        folder = tmp_path / str(strength)
        seed_run(recipe_with(controls={"levels": []}, gain_penalty=strength), folder, stage).run()
        weights = gt.Ticket.load(folder / "seed-0" / "level-01" / "ticket.safetensors").weights
        gains.append(sum(float(t.abs().sum()) for n, t in weights.items() if n.endswith("layers.1.weight")))
    assert gains[1] < gains[0]


def test_training_flops_follow_the_shapes_of_the_smaller_network(whole, stage):
    run = seed_run(recipe_with(), whole.parent, stage)
    level = run.load_level(1)
    each = training_flops(level.model, run.trainer.objective, run.trainer.batches.at(0)[:2])
    found = metrics(whole)["cost"]["train_flops"]
    assert math.isclose(found, each.dense * 28 * 8, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        ({"rewind_step": 5}, "search.rewind_step: early-bird takes"),
        ({"method": "imp"}, "search.granularity: imp takes .*; it is a key of early-bird"),
        ({"include": ["generator.*"]}, "search.include: early-bird takes .*components"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"components": ["generator"]}, "no component 'generator'"),
    ],
)
def test_what_does_not_go_together_is_refused(search, complaint):
    with pytest.raises(gt.RecipeError, match=complaint):
        recipe_with(**search)

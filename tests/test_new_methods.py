"""The methods beside the paper: LAMP, RigL, SET, gradual pruning, few images, distillation; each resumed anywhere."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gentickets as gt
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.seed import SeedRun, steps_of_seed
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.masks.names import named_state
from gentickets.pruning.lamp import lamp
from gentickets.training import train

TINY = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 12, "depth": 1, "latent": 3},
    "data": {"source": "digits", "size": 8, "limit": 100},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 24, "batch_size": 8, "lr": 0.003, "ema": 0.9, "checkpoint_seconds": 1e9},
    "controls": {"levels": [2]},
    "evaluation": {"features": "none"},
}
SEARCHES = {
    "rigl": {"method": "rigl", "every": 4},
    "set": {"method": "set", "every": 4},
    "gradual": {"method": "gradual", "every": 3},
    "few-images": {"method": "few-images", "rewind_step": 4, "image_share": 0.25},
    "distilled": {"method": "imp", "rewind_step": 4, "around": {"name": "distilled", "strength": 0.5}},
    "lamp": {"method": "imp", "rewind_step": 4, "criterion": "lamp"},
}


def recipe_with(search):
    return make_recipe({**TINY, "search": {"rounds": 2, "fraction": 0.4, **search}})


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipe = recipe_with(SEARCHES["rigl"])
        images, held_out = load_data(recipe.data)
        yield images, make_judge(recipe, images, held_out)


def run(recipe, folder, stage, stop=lambda: False):
    SeedRun(recipe, folder, 0, *stage, stop=stop).run()
    return folder / "seed-0"


def states(folder):
    """All that a seed's levels hold, but for how long they took."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.glob("level-*/*"))
        if path.suffix in (".safetensors", ".jsonl", ".png") and path.name != "curve.jsonl"
    }


@pytest.mark.parametrize("name", SEARCHES)
def test_a_run_that_is_stopped_in_the_middle_of_a_level_ends_as_one_that_is_not(name, stage, tmp_path):
    recipe = recipe_with(SEARCHES[name])
    whole = run(recipe, tmp_path / "whole", stage)
    for pause in (23 + 9, steps_of_seed(recipe) // 2):
        asked, folder = itertools.count(1), tmp_path / f"stopped-{pause}"
        with pytest.raises(KeyboardInterrupt):
            run(recipe, folder, stage, stop=lambda asked=asked, pause=pause: next(asked) == pause)
        assert states(run(recipe, folder, stage)) == states(whole)


def test_what_finding_took_is_counted_once_by_a_run_that_is_stopped_behind_it(stage, tmp_path):
    recipe = recipe_with(SEARCHES["few-images"])
    asked, folder = itertools.count(1), tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):  # level 2: its masks are found, and it trains from them
        run(recipe, folder, stage, stop=lambda: next(asked) == 24 + (5 + 20) + 5 + 10)
    (halfway,) = folder.glob("seed-0/.level-02*/found.json")
    assert halfway.exists()
    run(recipe, folder, stage)
    whole = run(recipe, tmp_path / "whole", stage)
    for level in ("level-01", "level-02"):
        one, other = (json.loads((at / level / "metrics.json").read_text()) for at in (folder / "seed-0", whole))
        assert one["cost"] == other["cost"]


@pytest.mark.parametrize("name", SEARCHES)
def test_every_level_is_as_sparse_as_its_ticket_says_and_has_its_controls(name, stage, tmp_path):
    recipe = recipe_with(SEARCHES[name])
    folder = run(recipe, tmp_path, stage)
    for level, sparsity in ((1, 0.4), (2, 0.64)):
        ticket = gt.Ticket.load(folder / f"level-0{level}" / "ticket.safetensors")
        assert ticket.masks.sparsity == pytest.approx(sparsity, abs=0.01)
        seed_run = SeedRun(recipe, tmp_path, 0, *stage)
        ticket.masks.audit(seed_run.load_level(level).model)
        found = json.loads((folder / f"level-0{level}" / "metrics.json").read_text())
        assert found["status"] == "complete"
        assert (found["cost"]["find_flops"] > 0) is (name not in ("rigl", "set", "gradual"))
    assert (folder / "level-02-random_mask" / "metrics.json").exists()
    assert (folder / "level-02-redrawn_weights" / "metrics.json").exists()


def test_masks_that_move_end_elsewhere_than_they_began(stage, tmp_path):
    """The same random mask to begin with; RigL and SET move it, each its own way, with the count of every layer."""
    ends = {}
    for name in ("rigl", "set"):
        folder = run(recipe_with(SEARCHES[name]), tmp_path / name, stage)
        ends[name] = gt.Ticket.load(folder / "level-01" / "ticket.safetensors").masks
    assert ends["rigl"] != ends["set"]
    assert ends["rigl"].counts() == ends["set"].counts()


def test_few_images_by_hand(stage, tmp_path):
    """The masks of level 1: the dense ticket, trained on a quarter of the images for a quarter of the steps, pruned."""
    recipe = recipe_with(SEARCHES["few-images"])
    folder = run(recipe, tmp_path, stage)
    seed_run = SeedRun(recipe, tmp_path, 0, *stage)
    few = seed_run.trainer.few(0.25)
    assert len(few.images) == 25
    dense = gt.Ticket.load(folder / "level-00" / "ticket.safetensors")
    model = dense.install(seed_run.load_level(0).model)
    settings = recipe.training.settings(0)
    train(model, gt.Autoencoding(), few, replace(settings), masks=dense.masks, start_step=4, end_step=9)
    found = gt.Ticket.load(folder / "level-01" / "ticket.safetensors")
    assert found.masks == gt.prune(gt.magnitude(model), fraction=0.4, within=dense.masks)
    start = {
        name: tensor * found.masks[name] if name in found.masks else tensor for name, tensor in dense.weights.items()
    }
    installed = named_state(found.install(seed_run.load_level(0).model))
    assert all(torch.equal(installed[name], tensor) for name, tensor in start.items())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=4), st.integers(0, 10**6), st.floats(0, 0.9))
def test_lamp_is_that_of_the_paper(sides, seed, sparsity):
    """Against Eq. 3 as it is written, weight by weight."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in itertools.pairwise(sides)))
    model = torch.nn.ModuleDict({"net": net})
    masks = gt.prune(gt.magnitude(model), to_sparsity=sparsity)
    masks.apply_(model)
    found = lamp(model, masks)
    for name, scores in found.items():
        weights = named_state(model)[name].detach().double().numpy().ravel()
        order = np.argsort(weights**2, kind="stable")
        expected = np.zeros(len(weights))
        for place, index in enumerate(order):
            rest = sum(weights[later] ** 2 for later in order[place:])
            expected[index] = weights[index] ** 2 / rest if rest else 0.0
        assert scores.numpy().ravel() == pytest.approx(expected, rel=1e-9)
        assert float(scores.max()) == pytest.approx(1.0) or not weights.any()


def test_weights_of_one_size_go_by_lot_and_lamp_says_so():
    """A clipped critic: where its weights stand decides nothing, and no layer goes as a whole."""
    torch.manual_seed(0)
    clipped = torch.nn.Linear(40, 40, bias=False)
    clipped.weight.data = 0.01 * clipped.weight.data.sign()
    model = torch.nn.ModuleDict({"clipped": clipped, "other": torch.nn.Linear(40, 40, bias=False)})
    with pytest.warns(UserWarning, match=r"1,600 of 1,600 weights of 'clipped\.weight' are exactly 0\.01 from 0"):
        scores = lamp(model, gt.Masks.dense(model))
    assert scores["clipped.weight"].flatten().sort(descending=True).values.numpy() == pytest.approx(
        1 / np.arange(1, 1601)
    )
    kept = gt.prune(scores, fraction=0.9)
    half = gt.prune({"clipped.weight": scores["clipped.weight"]}, fraction=0.5)["clipped.weight"]
    assert kept.counts()["clipped.weight"] > 0
    for axis in (0, 1):
        assert int(half.sum(axis).min()) >= 4
        assert int(half.sum(axis).max()) <= 36


def test_lamp_says_nothing_of_weights_that_differ(recwarn):
    torch.manual_seed(0)
    model = torch.nn.Linear(200, 200)
    lamp(model, gt.Masks.dense(model))
    assert not recwarn.list

"""One seed of a run: its levels' spans, prices and draws, what a resumption counts, and what ends the chain."""

import json
import shutil

import pytest
import torch

import gentickets as gt
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.seed import SeedRun, steps_of_seed
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.lab.task import build_model
from gentickets.masks.names import named_state
from gentickets.metrics.cost import training_flops
from gentickets.training.seeds import derived_seed

TINY = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 12, "depth": 1, "latent": 3},
    "data": {"source": "digits", "size": 8, "limit": 100},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 12, "batch_size": 8, "lr": 0.003, "execution": "dense", "checkpoint_seconds": 1e9},
    "search": {"rounds": 2, "fraction": 0.4, "rewind_step": 3},
    "controls": {"levels": [2]},
    "evaluation": {"features": "none"},
}
LEVELS = ["level-00", "level-01", "level-02", "level-02-random_mask", "level-02-redrawn_weights"]


def recipe_with(**parts):
    return make_recipe({key: {**value, **parts.pop(key, {})} if isinstance(value, dict) else value
                        for key, value in TINY.items()} | parts)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def stage(cache):
    recipe = recipe_with()
    train, held_out = load_data(recipe.data)
    return train, make_judge(recipe, train, held_out)


def seed_run(recipe, folder, stage, seed=0, **options):
    return SeedRun(recipe, folder, seed, *stage, **options)


@pytest.fixture(scope="module")
def whole(stage, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    seed_run(recipe_with(), folder, stage).run()
    return folder / "seed-0"


def found(folder, level, file="metrics"):
    return json.loads((folder / level / f"{file}.json").read_text())


def ticket(folder, level):
    return gt.Ticket.load(folder / level / "ticket.safetensors")


def test_every_level_has_its_span_and_its_images(whole):
    spans = {level: (found(whole, level)["start_step"], found(whole, level)["end_step"]) for level in LEVELS}
    assert spans == dict(zip(LEVELS, [(0, 12), (3, 12), (3, 12), (3, 12), (0, 12)], strict=True))
    images = [found(whole, level, "timing")["images"] for level in LEVELS]
    assert images == [12 * 8, 9 * 8, 9 * 8, 9 * 8, 12 * 8]


def test_a_level_is_charged_for_all_that_was_trained_for_its_masks(whole, stage):
    """By hand: a level's masks cost what the levels before it cost, and a control's those of its level."""
    flops = {level: found(whole, level)["cost"] for level in LEVELS}
    model = build_model(recipe_with(), stage[0], 0)
    images = stage[0].images(slice(0, 2))
    for level, steps in zip(LEVELS, (12, 9, 9, 9, 12), strict=True):
        each = training_flops(model, gt.Autoencoding(), images, ticket(whole, level).masks)
        assert flops[level]["train_flops"] == pytest.approx(each.dense * steps * 8)
        assert flops[level]["train_live_flops"] == pytest.approx(each.live * steps * 8)
    assert flops["level-01"]["train_live_flops"] < flops["level-01"]["train_flops"]
    for key in ("flops", "live_flops"):
        trained = [flops[level][f"train_{key}"] for level in LEVELS]
        expected = [0, trained[0], trained[0] + trained[1], trained[0] + trained[1], trained[0] + trained[1]]
        assert [flops[level][f"find_{key}"] for level in LEVELS] == pytest.approx(expected)
    clocks = [found(whole, level, "timing") for level in LEVELS]
    # Its own scoring, and that of the level before.
    assert clocks[2]["find_seconds"] > clocks[1]["find_seconds"] + clocks[1]["train_seconds"]
    assert clocks[1]["find_seconds"] > clocks[0]["train_seconds"]
    assert clocks[3]["find_seconds"] == clocks[4]["find_seconds"] == clocks[2]["find_seconds"]


def test_one_shot_and_pruning_before_training_are_charged_for_what_they_need(stage, tmp_path):
    one_shot = recipe_with(search={"method": "one-shot"}, controls={"levels": []})
    seed_run(one_shot, tmp_path / "a", stage).run()
    folder = tmp_path / "a" / "seed-0"
    dense = found(folder, "level-00")["cost"]["train_flops"]
    assert [found(folder, f"level-0{n}")["cost"]["find_flops"] for n in (1, 2)] == [dense, dense]
    snip = recipe_with(controls={"levels": []})
    snip = make_recipe({**snip.dump(), "search": {"method": "snip", "rounds": 2, "score_batches": 3}})
    seed_run(snip, tmp_path / "b", stage).run()
    prices = [found(tmp_path / "b" / "seed-0", f"level-0{n}")["cost"]["find_flops"] for n in (1, 2)]
    assert 0 < prices[0] == prices[1] < dense


def test_each_control_changes_what_it_should(whole, stage):
    recipe = recipe_with()
    level, shuffled, redrawn = (ticket(whole, name) for name in LEVELS[2:])
    initial = ticket(whole, "level-00").weights
    assert shuffled.masks.counts() == level.masks.counts()
    assert shuffled.masks != level.masks
    assert shuffled.origin["control_seed"] == derived_seed(0, 1, 2)
    assert all(torch.equal(shuffled.weights[name], tensor) for name, tensor in level.weights.items())
    assert redrawn.masks == level.masks
    other = named_state(build_model(recipe, stage[0], 0, draw=1002))
    assert all(torch.equal(tensor, other[name]) for name, tensor in redrawn.weights.items())
    assert not any(torch.equal(tensor, initial[name]) for name, tensor in redrawn.weights.items())


def test_a_model_follows_from_seed_and_draw_and_leaves_the_generator_alone(stage):
    recipe, state = recipe_with(), torch.get_rng_state()
    one, again, other, later = (
        named_state(build_model(recipe, stage[0], *which)) for which in ((0,), (0, 0), (1,), (0, 1))
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in one.items():
        assert torch.equal(again[name], tensor)
        assert not torch.equal(other[name], tensor)
        assert not torch.equal(later[name], tensor)


def test_steps_are_counted_to_the_total_whole_or_resumed(whole, stage, tmp_path):
    recipe = recipe_with()
    assert steps_of_seed(recipe) == 12 + 2 * 9 + 9 + 12
    assert steps_of_seed(recipe_with(controls={"levels": [2], "random_mask": False})) == 12 + 2 * 9 + 12
    assert steps_of_seed(recipe_with(controls={"levels": [2], "redrawn_weights": False})) == 12 + 2 * 9 + 9
    events = []
    seed_run(recipe, tmp_path, stage, tell=events.append).run()
    assert (events[-1].done, events[-1].total, events[-1].stage) == (51, 51, LEVELS[-1])
    assert [event.done for event in events] == sorted(event.done for event in events)
    for gone, done in ((LEVELS[1:], 12), (LEVELS[2:], 21), (LEVELS[3:], 30), (LEVELS[4:], 39), ([], 51)):
        folder = tmp_path / str(done)
        shutil.copytree(whole, folder / "seed-0")
        for level in gone:
            shutil.rmtree(folder / "seed-0" / level)
        events = []
        again = seed_run(recipe, folder, stage, tell=events.append)
        again.run()
        assert [event.done for event in events[-1:]] == ([51] if gone else [])
        assert all(event.done > done for event in events)
        for level in LEVELS:
            mine, theirs = found(folder / "seed-0", level), found(whole, level)
            assert mine == theirs


def same_levels(folder, whole):
    """Whether all levels are those of the undisturbed run, to the byte."""
    files = ("ticket.safetensors", "trained.safetensors", "metrics.json")
    return all((folder / level / file).read_bytes() == (whole / level / file).read_bytes()
               for level in LEVELS for file in files)  # fmt: skip


@pytest.mark.parametrize("gone", ["level-00", "level-01", "level-02", "level-02-random_mask"])
def test_a_level_that_is_gone_is_made_again_under_those_that_follow(whole, stage, tmp_path, gone):
    shutil.copytree(whole, tmp_path / "seed-0")
    shutil.rmtree(tmp_path / "seed-0" / gone)
    seed_run(recipe_with(), tmp_path, stage).run()
    assert same_levels(tmp_path / "seed-0", whole)


@pytest.mark.parametrize(("file", "damage"), [
    ("level-00/trained.safetensors", "flip"),
    ("level-01/trained.safetensors", "flip"),
    ("level-01/ticket.safetensors", "cut"),
    ("level-02/trained.safetensors", "empty"),
    ("level-02/metrics.json", "cut"),
    ("level-02-redrawn_weights/trained.safetensors", "zeros"),
])  # fmt: skip
def test_what_is_damaged_is_said_and_made_again(whole, stage, tmp_path, file, damage):
    shutil.copytree(whole, tmp_path / "seed-0")
    path = tmp_path / "seed-0" / file
    path.write_bytes(damaged(path.read_bytes(), damage))
    with pytest.warns(UserWarning, match="dropped, and made again"):
        seed_run(recipe_with(), tmp_path, stage).run()
    assert same_levels(tmp_path / "seed-0", whole)


def test_a_damaged_rewind_point_is_trained_again(whole, stage, tmp_path):
    shutil.copytree(whole, tmp_path / "seed-0")
    level = tmp_path / "seed-0" / "level-00"
    partial = publishing.partial_of(level)  # as after a kill between the rewind point and the end of the dense training
    partial.mkdir()
    shutil.move(level / "curve.jsonl", partial)
    shutil.rmtree(level)
    path = tmp_path / "seed-0" / "rewind.safetensors"
    path.write_bytes(damaged(path.read_bytes(), "flip"))
    with pytest.warns(UserWarning, match=r"rewind.safetensors is damaged .*: dropped, and trained again"):
        seed_run(recipe_with(), tmp_path, stage).run()
    assert same_levels(tmp_path / "seed-0", whole)


def damaged(content, how):
    if how == "flip":
        middle = len(content) * 3 // 4
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"cut": content[: len(content) // 2], "empty": b"", "zeros": bytes(len(content))}[how]


@pytest.mark.parametrize(("on_failure", "levels"), [("continue", 3), ("stop", 1)])
def test_after_a_divergence_the_chain_goes_on_or_ends_when_resumed_too(stage, tmp_path, on_failure, levels):
    recipe = recipe_with(training={"lr": 1e30}, controls={"levels": []}, on_failure=on_failure)
    for _ in range(2):
        seed_run(recipe, tmp_path, stage).run()
        places = sorted((tmp_path / "seed-0").glob("level-*"))
        assert len(places) == levels
    first = found(tmp_path / "seed-0", "level-00")
    assert (first["status"], first["metrics"]) == ("diverged", {})
    # What is kept of a model that broke is what its training started from.
    weights = disk.load_weights(tmp_path / "seed-0" / "level-00" / "trained.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


@pytest.mark.parametrize(
    ("retrain", "span"), [("rewind", (3, 12)), ("learning-rate", (3, 12)), ("fine-tune", (12, 21))]
)
def test_a_ticket_by_itself_is_trained_as_its_level_was(stage, tmp_path, retrain, span):
    recipe = recipe_with(search={"retrain": retrain, "rounds": 1}, controls={"levels": []})
    seed_run(recipe, tmp_path / "run", stage).run()
    level = tmp_path / "run" / "seed-0" / "level-01"
    metrics = seed_run(recipe, tmp_path / "one", stage).run_one(gt.Ticket.load(level / "ticket.safetensors"))
    assert (metrics["start_step"], metrics["end_step"]) == span
    mine = disk.load_weights(tmp_path / "one" / "seed-0" / "trained" / "trained.safetensors")
    theirs = disk.load_weights(level / "trained.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert metrics["metrics"] == found(level.parent, "level-01")["metrics"]


def test_a_ticket_that_rewinds_beyond_the_training_is_refused(whole, stage, tmp_path):
    late = ticket(whole, "level-01")
    late.origin["rewind_step"] = 12
    with pytest.raises(gt.GenticketsError, match=r"rewinds to step 12, .* training\.steps=12"):
        seed_run(recipe_with(), tmp_path, stage).run_one(gt.Ticket(late.masks, late.weights, late.origin))


def test_a_level_read_back_is_the_model_that_was_trained(whole, stage):
    level = seed_run(recipe_with(), whole.parent, stage).load_level(2, "random_mask")
    stored = disk.load_weights(whole / "level-02-random_mask" / "trained.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in named_state(level.model).items())
    assert level.masks == ticket(whole, "level-02-random_mask").masks
    assert level.index == 2


def test_a_control_is_not_trained_where_it_was_not_asked_for(stage, tmp_path):
    recipe = recipe_with(controls={"levels": [1], "random_mask": False})
    seed_run(recipe, tmp_path, stage).run()
    names = sorted(path.name for path in (tmp_path / "seed-0").glob("level-*"))
    assert names == ["level-00", "level-01", "level-01-redrawn_weights", "level-02"]

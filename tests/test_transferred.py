"""Tickets carried from one family into another, as a search of its own."""

import json

import pytest
import torch

import gentickets as gt
from gentickets import models
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.seed import SeedRun
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.masks.names import named_state
from tests.made_runs import begin

TRAINING = {"steps": 20, "batch_size": 8, "lr": 0.002}
VAE = {
    "name": "vae",
    "model": {"name": "conv-vae", "width": 4, "latent": 4},
    "data": {"source": "digits", "size": 8},
    "objective": {"name": "elbo"},
    "training": TRAINING,
    "search": {"rounds": 2, "fraction": 0.5, "rewind_step": 5},
    "evaluation": {"features": "none"},
}
OTHER = {
    **VAE,
    "name": "other",
    "search": {
        "method": "transferred", "source": "vae", "carry": {"decoder": "decoder"}, "rounds": 2, "rewind_step": 5,
    },
    "objective": {"name": "elbo", "beta": 4},
    "controls": {"levels": [1]},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for raw in (VAE, {**VAE, "name": "wide", "model": {**VAE["model"], "width": 8}}):
        run(make_recipe(raw), folder)
    return folder


def run(recipe, runs):
    train, held_out = load_data(recipe.data)
    folder = runs / recipe.name
    begin(folder, recipe)
    SeedRun(recipe, folder, 0, train, make_judge(recipe, train, held_out)).run()
    return folder / "seed-0"


def ticket(folder, level):
    return gt.Ticket.load(folder / level / "ticket.safetensors")


def test_a_run_takes_the_masks_of_another_level_by_level(runs):
    found = run(make_recipe(OTHER), runs)
    for level in ("level-01", "level-02"):
        mine, theirs = ticket(found, level), ticket(runs / "vae" / "seed-0", level)
        assert mine.masks.components == ("decoder",)
        assert all(torch.equal(mine.masks[name], theirs.masks[name]) for name in mine.masks)
        rewind = ticket(found, "level-00")
        assert all(torch.equal(mine.weights[name], rewind.weights[name]) for name in mine.weights)
        assert mine.origin["transfer"]["with_weights"] is False
        assert mine.origin["from"]["recipe"] == "vae"
        assert mine.origin["rewind_step"] == 5
    theirs = json.loads((runs / "vae" / "seed-0" / "level-02" / "timing.json").read_text())
    mine = json.loads((found / "level-02" / "timing.json").read_text())
    assert mine["find_seconds"] == theirs["find_seconds"] > 0
    assert (found / "level-01-random_mask" / "metrics.json").exists()


def test_the_weights_come_along_where_asked(runs):
    recipe = make_recipe({**OTHER, "name": "with", "search": {**OTHER["search"], "with_weights": True}})
    found = ticket(run(recipe, runs), "level-02")
    theirs = ticket(runs / "vae" / "seed-0", "level-02")
    for name, tensor in found.weights.items():
        if name.startswith("decoder."):
            assert torch.equal(tensor, theirs.weights[name]), name


def test_a_recipe_says_what_stays_behind(runs):
    carry = {"encoder": "encoder", "decoder": "decoder"}
    asked = {**OTHER["search"], "carry": carry}
    whole = ticket(run(make_recipe({**OTHER, "name": "whole", "search": asked}), runs), "level-02")
    assert whole.masks == ticket(runs / "vae" / "seed-0", "level-02").masks
    less = make_recipe({**OTHER, "name": "less", "search": {**asked, "exclude": ["*.head.*"]}})
    left = ticket(run(less, runs), "level-02")
    head = [name for name in left.masks if ".head." in name]
    assert left.origin["transfer"]["left"] == head == ["encoder.head.weight"]
    assert bool(left.masks[head[0]].all())
    assert not bool(whole.masks[head[0]].all())


def test_resuming_goes_on_with_the_next_ticket():
    make = lambda: models.conv_vae(8, 1, width=4, latent=4)  # noqa: E731
    vae = make()
    found = [gt.Ticket(gt.prune(gt.magnitude(vae), fraction=share), vae) for share in (0.3, 0.6)]
    ask = {"steps": 4, "carry": {"decoder": "decoder"}}
    whole = list(gt.transferred(make, lambda *_: None, tickets=found, **ask))
    rest = list(gt.transferred(make, lambda *_: None, tickets=found[1:], dense=whole[0], done=1, **ask))
    assert [level.index for level in rest] == [2]
    assert rest[0].masks == whole[2].masks != whole[1].masks


def test_a_vae_decoder_becomes_a_generator_and_the_discriminator_stays_dense():
    vae, gan = models.conv_vae(8, 1, width=4, latent=4), models.dcgan(8, 1, width=4, latent=4)
    found = gt.prune(gt.magnitude(vae), fraction=0.5)
    seen = []

    def train(model, masks, start, end):
        seen.append((masks.components, start, end, masks.sparsity))

    levels = list(
        gt.transferred(lambda: gan, train, steps=9, tickets=[gt.Ticket(found, vae)], carry={"decoder": "generator"})
    )
    assert [level.index for level in levels] == [0, 1]
    last = levels[1]
    assert all(torch.equal(last.masks[name], found[name.replace("generator", "decoder")]) for name in last.masks)
    assert seen[-1][:3] == (("generator",), 0, 9)
    state = named_state(last.model)
    assert all(bool(state[name][~last.masks[name]].eq(0).all()) for name in last.masks)


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        ({"source": "nowhere"}, "search.source='nowhere' is no run"),
        ({"rounds": 3}, "has no complete level-03.*search.rounds=2"),
        (
            {"source": "wide"},
            r"'decoder.layers.0.weight' is \(4, 8, 4, 4\) in the ticket.*is \(4, 4, 4, 4\) in the model",
        ),
    ],
)
def test_a_source_that_will_not_do_is_said_in_one_line(search, complaint, runs):
    recipe = make_recipe({**OTHER, "name": f"bad-{len(complaint)}", "search": {**OTHER["search"], **search}})
    with pytest.raises(gt.GenticketsError, match=complaint):
        run(recipe, runs)


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        ({"carry": None}, "search.carry is missing"),
        ({"method": "imp"}, "search.source: imp takes .*; it is a key of transferred"),
        ({"carry": {"decoder": "generator"}}, "no component 'generator'"),
    ],
)
def test_what_does_not_go_together_is_refused(search, complaint):
    with pytest.raises(gt.RecipeError, match=complaint):
        make_recipe({**OTHER, "search": {**OTHER["search"], **search}})

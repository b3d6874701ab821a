"""`gentickets train` into a folder that is there: it goes on with its own, and says what differs of another's."""

from __future__ import annotations

import json
import shutil

import pytest

from gentickets.errors import RecipeError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.prepare import prepared
from gentickets.lab.run.single import train_one
from gentickets.lab.run.work import run_all

RAW = {
    "name": "x", "model": {"name": "linear-autoencoder", "width": 8, "depth": 1, "latent": 2},
    "data": {"source": "digits", "size": 16}, "objective": {"name": "autoencoding"},
    "training": {"steps": 4, "batch_size": 8, "threads": 1}, "search": {"rounds": 1, "fraction": 0.5},
    "controls": {"levels": []}, "evaluation": {"samples": 16},
}  # fmt: skip


def trained(folder, raw=RAW, seed=0, ticket=None):
    return train_one(make_recipe(raw), folder, seed, ticket, lambda event: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of one round, and what was trained dense, by folder."""
    place = tmp_path_factory.mktemp("made")
    run_all([prepared(make_recipe(RAW), place / "run")], lambda event: None)
    trained(place / "one")
    return place


@pytest.fixture
def one(made, tmp_path):
    return shutil.copytree(made / "one", tmp_path / "one")


def edited(folder, **changes):
    """The folder, with other values in its origin.json; a key of None goes."""
    origin = json.loads((folder / "origin.json").read_text()) | changes
    kept = {key: value for key, value in origin.items() if key not in changes or value is not None}
    (folder / "origin.json").write_text(json.dumps(kept))
    return folder


def test_the_same_again_is_read_and_another_seed_trained_beside(one):
    before = (one / "seed-0/trained/metrics.json").read_bytes()
    assert trained(one)["metrics"] == json.loads(before)["metrics"]
    assert trained(one, seed=1)["metrics"] != json.loads(before)["metrics"]
    assert (one / "seed-0/trained/metrics.json").read_bytes() == before


def test_a_default_that_is_said_and_a_key_younger_than_the_folder_are_no_other_recipe(one):
    asked = json.loads((one / "origin.json").read_text())["asked"]
    del asked["evaluation"]["margin"]
    edited(one, asked=asked)
    trained(one, {**RAW, "evaluation": {"samples": 16, "margin": 0.05}})


def test_what_differs_is_named(made, one):
    ticket, deeper = (made / f"run/seed-0/level-0{level}/ticket.safetensors" for level in (0, 1))
    with pytest.raises(RecipeError, match=r"training\.lr \(0\.001 there, 0\.01 here\); take another --name"):
        trained(one, {**RAW, "training": {**RAW["training"], "lr": 0.01}})
    with pytest.raises(RecipeError, match="was trained without a ticket"):
        trained(one, ticket=ticket)
    trained(one.parent / "two", ticket=ticket)
    with pytest.raises(RecipeError, match="was trained from another ticket"):
        trained(one.parent / "two", ticket=deeper)
    with pytest.raises(RecipeError, match="was trained from a ticket"):
        trained(one.parent / "two")
    with pytest.raises(RecipeError, match="the images are others than when it was made"):
        trained(edited(one, data=["0", "1"]))


@pytest.mark.parametrize("changes", [
    {"asked": None}, {"asked": []}, {"data": {"fingerprint": "0"}}, {"threads": "many"}, {"threads": 0}
])  # fmt: skip
def test_an_origin_of_another_kind_is_not_gone_on_with(one, changes):
    with pytest.raises(RecipeError, match="holds what `gentickets train` did not make"):
        trained(edited(one, **changes))


def test_the_folder_of_a_search_is_not_trained_into(made):
    with pytest.raises(RecipeError, match="holds what `gentickets train` did not make"):
        trained(made / "run")


def test_what_other_versions_began_is_read_and_not_gone_on_with(one):
    edited(one, versions={"torch": "1.0", "gentickets": "0.0"})
    trained(one)
    with pytest.raises(RecipeError, match="began with gentickets"):
        trained(one, seed=1)
    trained(edited(one, versions="none"), seed=1)

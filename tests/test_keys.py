"""The keys of a recipe: all are listed, with what they take; docs/keys.md is what the types say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gentickets.lab.recipe import make_recipe, read_recipe
from gentickets.lab.recipe.keys import keys, keys_page

ROOT = Path(__file__).parent.parent
ALL = list(keys())
KEYS = {key.name: key for key in reversed(ALL)}  # the first of those that several things have, each its own way


def dotted(data, prefix=""):
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_of_a_resolved_recipe_is_listed_in_its_order_and_explained():
    recipe = read_recipe("quickstart/gan", ["training.lr=0.1"])
    assert set(dotted(recipe.dump())) - {"search.criterion.name"} <= set(KEYS)
    assert [key for key in KEYS.values() if len(key.meaning) < 10 or not key.meaning.endswith(".")] == []


def test_the_page_is_what_the_types_say():
    assert (ROOT / "docs" / "keys.md").read_text() == keys_page(), "make keys"


@pytest.mark.parametrize(
    ("name", "takes", "default"),
    [
        ("name", "text", "(must be said)"),
        ("training.steps", "whole number (at least 2)", "2000"),
        ("training.lr", "number (above 0) or for each name: number (above 0)", "0.001"),
        ("search.fraction", "number (above 0, below 1)", "0.2"),
        ("search.scope", "global, component, layer, erk", "global"),
        ("controls.levels", "list of: whole number (at least 1) or auto, all", "auto"),
        ("data.flip", "true or false", "false"),
        ("seeds", "list of: whole number (at least 0) (at least 1 of them)", "[0]"),
    ],
)
def test_what_a_key_takes_is_said_with_its_bounds(name, takes, default):
    assert KEYS[name][1:3] == (takes, default)


def test_a_default_is_what_is_taken_where_nothing_is_said():
    said = {"name": "x", "model": {"name": "dcgan"}, "objective": {"name": "adversarial"}}
    dumped = make_recipe(said).dump()
    for key in KEYS.values():
        part, _, below = key.name.partition(".")
        if (below and below not in dumped[part]) or key.default == "(must be said)" or key.name == "search.criterion":
            continue
        value = json.dumps(dumped[part][below] if below else dumped[part]).replace('"', "")
        ways = [one.default for one in ALL if one.name == key.name]
        assert any(value == way or f"{value} (" in way for way in ways)

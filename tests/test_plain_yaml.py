"""A recipe means what it says: plain numbers, no key twice, every mistake at once."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentickets.errors import RecipeError
from gentickets.lab.recipe import make_recipe, read_recipe
from gentickets.lab.recipe.plain_yaml import read_value, read_yaml, write_yaml

GOOD = {
    "name": "x",
    "model": {"name": "linear-autoencoder"},
    "objective": {"name": "autoencoding"},
    "search": {"rounds": 2},
}
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_what_is_written_is_read_back(data):
    assert read_yaml(write_yaml(data), "here") == data


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "1e5", "0100", "1:30", "2026-11-26", "null", "~", "true"])
def test_text_that_looks_like_something_else_stays_text(text):
    assert read_yaml(write_yaml({"name": text}), "here") == {"name": text}


@pytest.mark.parametrize(("text", "meant"), [
    ("1e-4", 1e-4), ("1E3", 1000.0), ("-.5", -0.5), ("+3", 3), ("0", 0), ("007", "007"), ("0o17", "0o17"),
    ("0x10", "0x10"), ("1_000", "1_000"), ("yes", "yes"), ("1:30", "1:30"), ("2026-11-26", "2026-11-26"),
    ("true", True),
    ("~", None), ("", None), (".inf", math.inf), ("[1, 2.5]", [1, 2.5]), ("{a: {b: 1}}", {"a": {"b": 1}}),
    ("\ufeffa: 1", {"a": 1}),
])  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text, meant):
    assert read_yaml(text.encode(), "here") == meant


@pytest.mark.parametrize(("typed", "meant"), [
    ("photos #2", "photos #2"), ("#2", "#2"), ("'photos #2'", "photos #2"), ("a\nb", "a\nb"), ("|", "|"),
    ("---", "---"),
    (" x ", "x"), ("*.head", "*.head"), ("@home", "@home"), ("a: b: c", "a: b: c"),
    ("&a", "&a"), ("C#", "C#"), ("1 # one", "1 # one"), ("500", 500),
    (" 1e-4 ", 1e-4), ("", None), ("null", None), ("true", True), ("[1, 'a #b']", [1, "a #b"]), ("{a: 1}", {"a": 1}),
])  # fmt: skip
def test_of_what_is_typed_nothing_is_left_out(typed, meant):
    assert read_value(typed, "here") == meant


@pytest.mark.parametrize("typed", ["[0, 1] # two", "'a' # b", "{a: 1} #", "a: 1 # b", "run: #2"])
def test_a_comment_behind_a_list_is_refused(typed):
    with pytest.raises(RecipeError, match=r"^here has a comment, which YAML leaves out: quote"):
        read_value(typed, "here")


@given(st.text(st.characters(codec="utf-8")))
def test_text_that_is_typed_is_that_text(typed):
    try:
        value = read_value(typed, "here")
    except RecipeError:
        return
    if isinstance(value, str) and typed.strip()[:1] not in ("'", '"'):
        assert value == typed.strip()


@pytest.mark.parametrize(("text", "reason"), [
    (b"a: 1\na: 2", r"the key 'a' stands twice \(line 2\)"),
    (b"a: {b: 1, b: 2}", "'b' stands twice"),
    (b"1: a\n1: b", "the key 1 is no name"),
    (b"[1, 2]: a", "is no name"),
    (b"a: &x [1]\nb: *x", "an alias"),
    (b"a: !!python/object/apply:os.system [x]", "the tag"),
    (b"a: !!timestamp 2001-13-45", "the tag"),
    (b"a: !!binary x", "the tag"),
    (b"a: !!int x", "invalid literal"),
    (b"a: !!float x", "could not convert"),
    (b"a: " + b"9" * 5000, "4300 digits"),
    (b"[" * 3000, "nested too deep"),
    (b"\xff\xfe", "decode"),
    (b"a: [1,", "expected"),
    (b"a: \x00", "special characters"),
])  # fmt: skip
def test_what_is_no_plain_data_is_refused_in_one_line(text, reason):
    with pytest.raises(RecipeError, match=reason) as caught:
        read_yaml(text, "here")
    assert str(caught.value).startswith("here is no YAML: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "key", "value"), [
    ("training", "lr", "yes"), ("training", "lr", True), ("training", "lr", math.inf), ("training", "lr", math.nan),
    ("training", "steps", "0100"), ("training", "steps", "1:30"), ("training", "steps", 10**20),
    ("training", "steps", 2.0), ("training", "weight_decay", math.inf), ("training", "clip_norm", math.inf),
    ("training", "checkpoint_seconds", math.nan), ("search", "rewind_step", True), ("search", "fraction", "0.2"),
    ("search", "rounds", 10**9),
    ("data", "flip", "yes"), ("data", "size", True), ("evaluation", "samples", 1e3), ("controls", "random_mask", 1),
])  # fmt: skip
def test_a_number_is_a_number(part, key, value):
    with pytest.raises(RecipeError, match=rf"{part}\.{key}="):
        make_recipe({**GOOD, part: {**GOOD.get(part, {}), key: value}})


@pytest.mark.parametrize("beta", [-5, math.nan, math.inf, "1"])
def test_a_weight_of_a_loss_is_none_below_zero(beta):
    with pytest.raises(RecipeError, match=r"objective\.beta="):
        make_recipe({**GOOD, "model": {"name": "conv-vae"}, "objective": {"name": "elbo", "beta": beta}})


@pytest.mark.parametrize("seeds", [["yes", "no"], [True, False], [-1], [0.0], []])
def test_seeds_are_whole_numbers(seeds):
    with pytest.raises(RecipeError, match="seeds"):
        make_recipe({**GOOD, "seeds": seeds})


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(
        write_yaml({**GOOD, "training": {"lr": "fast", "stesp": 3}, "seeds": 1, "search": {"fraction": 2}})
    )
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    said = str(caught.value)
    assert "\n" not in said
    for part in ("training.lr='fast'", "unknown key training.stesp", "seeds=1", "search.fraction=2"):
        assert said.count(part) == 1


@pytest.mark.parametrize(("override", "reason"), [
    ("controls.levels=[1,9]", r"controls.levels=\[1, 9\]: there is no level 9 with search.rounds=2; take .*=\[1\]"),
    ("training.warmup_steps=9999999", "training.warmup_steps=9999999 is not before training.steps=2000"),
])  # fmt: skip
def test_what_would_not_be_what_was_asked_for_is_refused(tmp_path, override, reason):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(write_yaml(GOOD))
    with pytest.raises(RecipeError, match=reason):
        read_recipe(path, [override])


def test_a_recipe_is_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    path = tmp_path / "recipe.yaml"
    path.write_bytes(write_yaml({**GOOD, "title": "Schlüssel – ü"}))
    assert read_recipe(path).title == "Schlüssel – ü"

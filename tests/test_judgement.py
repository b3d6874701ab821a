"""Scores of one's own are judged as a run's are, whatever form they come in; in words, as a table and as a page."""

import json
import math
from dataclasses import fields
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gentickets as gt
from gentickets.lab.results.verdict import Verdict, judge
from gentickets.lab.results.verdict_words import headline, sentences
from made_runs import SPARSITIES, make_run

TICKET = {0: (4.7, 4.8, 4.6, 4.75), 1: (4.6, 4.7, 4.5, 4.7), 2: (4.9, 4.9, 4.7, 4.9), 3: (8.0, 9.0, math.nan, 8.5)}
CONTROLS = {"random_mask": {2: (6.9, 7.1, 6.8, 7.0)}, "redrawn_weights": {2: (7.2, 7.0, 7.1, 7.3)}}


def nested(ticket=TICKET, controls=CONTROLS, key=lambda level: SPARSITIES[level]):
    """The scores as nested dicts, levels written as `key` does."""
    found = {"dense": dict(enumerate(ticket[0])), "ticket": {}}
    for arm, levels in {"ticket": ticket, **controls}.items():
        found[arm] = {key(level): dict(enumerate(values)) for level, values in levels.items() if level}
    return found


def rows(scores):
    for arm, cells in scores.items():
        for level, cell in ({0: cells} if arm == "dense" else cells).items():
            for seed, value in cell.items():
                yield arm, level, seed, value


class Balanced(HTMLParser):
    """Whether every tag is closed, in order."""

    VOID = {"meta", "br", "img", "link", "hr", "input"}  # noqa: RUF012

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def same(one, other):
    """Whether two verdicts say the same, but for the name of the metric."""
    beside = {"key", "label", "cells", "run"}
    return all(getattr(one, f.name) == getattr(other, f.name) for f in fields(Verdict) if f.name not in beside)


values = st.floats(0.1, 10).map(lambda value: round(value, 3)) | st.just(math.nan)
cell = st.lists(values, min_size=3, max_size=3).map(tuple)


@settings(max_examples=15)
@given(ticket=st.dictionaries(st.integers(0, 4), cell, min_size=1), controls=st.dictionaries(st.integers(1, 4), cell))
def test_it_is_the_verdict_that_a_run_of_these_results_gets(ticket, controls):
    ticket.setdefault(0, (1.0, 1.1, 0.9))
    # Numbered levels, since those that nobody reached would else not be counted.
    scores = nested(ticket, {"random_mask": controls, "redrawn_weights": controls}, key=int)
    words = [tuple("diverged" if math.isnan(v) else v for v in cell) for cell in controls.values()]
    controls = dict(zip(controls, words, strict=True))
    ticket = {level: tuple("diverged" if math.isnan(v) else v for v in cell) for level, cell in ticket.items()}
    run = make_run(ticket, seeds=3, random_mask=controls, redrawn_weights=controls)
    found, expected = gt.judge(scores, sparsities=dict(enumerate(SPARSITIES))), judge(run)
    assert same(found, expected)
    assert found.headline == headline(expected)
    assert found.sentences == sentences(expected, run)


def test_every_form_says_the_same():
    scores = nested()
    expected = gt.judge(scores)
    assert expected.answer == "shown"
    assert expected.judged.sparsity == SPARSITIES[2]
    as_rows = list(rows(scores))
    dicts = [{"arm": a, "sparsity": s, "seed": seed, "value": v} for a, s, seed, v in as_rows]
    numbers = [{**row, "level": SPARSITIES.index(row["sparsity"])} for row in dicts]
    lists = {"dense": list(TICKET[0])} | {
        arm: {SPARSITIES[level]: list(values) for level, values in levels.items() if level}
        for arm, levels in {"ticket": TICKET, **CONTROLS}.items()
    }
    level_0 = {**scores, "ticket": {0: scores["dense"], **scores["ticket"]}}
    del level_0["dense"]
    for form in (
        as_rows,
        iter(as_rows),
        dicts,
        numbers,
        lists,
        level_0,
        json.loads(json.dumps(scores)),
        [("ticket" if arm == "dense" else arm, level, seed, value) for arm, level, seed, value in as_rows],
        [(arm, level, np.int64(seed), torch.tensor(value)) for arm, level, seed, value in as_rows],
    ):
        found = gt.judge(form)
        if isinstance(form, list) and isinstance(form[0], tuple) and isinstance(form[0][3], torch.Tensor):
            assert found.headline == expected.headline  # float32
        else:
            assert same(found, expected)
    assert same(gt.judge(nested(key=str), sparsities=dict(enumerate(SPARSITIES))), expected)


def test_margin_and_direction_are_taken_at_their_word():
    near = {"dense": [1.0, 1.02, 0.99], "ticket": {0.5: [1.07, 1.09, 1.06]}, "random_mask": {0.5: [3.0, 3.1, 2.9]}}
    assert gt.judge(near, margin=0.2).answer == "shown"
    assert gt.judge(near, margin=0.01).answer == "refuted"
    assert gt.judge(near, margin=0.2, lower_is_better=False).answer == "refuted"


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"ticket": {0.5: [1.0, 1.0]}}, "the dense model is missing"),
        ({"dense": [math.nan, 1.0], "ticket": {0.5: [1.0, 1.0]}}, "diverged on 1 of 2 seeds"),
        ({"dense": [math.inf, -math.inf]}, "diverged on 2 of 2 seeds"),
        ({"dense": [1.0, None, 1.0], "ticket": {0.5: [1.0, 1.0, 1.0]}}, "is missing on 1 of 3 seeds"),
        ({"dense": [1.0, 1.1]}, "only the dense model"),
        ({"dense": [1.0, 1.1], "ticket": {0.5: [1.0, 1.1]}}, "no control was trained"),
        ({"dense": [1.0], "ticket": {0.5: [1.0]}, "random_mask": {0.5: [2.0]}}, "one seed tells nothing of chance"),
        (
            {"dense": [1.0, 1.1], "ticket": {0.5: [1.0, None]}, "random_mask": {0.5: [2.0, 2.1]}},
            "not every seed has a result",
        ),
    ],
)
def test_what_does_not_decide_is_said_by_the_verdict_itself(scores, said):
    verdict = gt.judge(scores)
    assert verdict.answer in (None, "undecided")
    assert said in verdict.headline


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({}, "there is no score"),
        ({"dense": [None]}, "there is no score"),
        (3, "not a int"),
        ("dense", "not a str"),
        ({"tickt": {}}, "did you mean 'ticket'"),
        ({"random mask": {}}, "did you mean 'random_mask'"),
        ({"dense": 1.0}, r"scores\['dense'\] is \{seed: value\}; not 1.0"),
        ({"ticket": [1.0]}, r"\{level: \{seed: value\}\}"),
        ({"ticket": {0.5: 1.0}}, r"\{level: \{seed: value\}\}"),
        ({"dense": ["x"]}, "score of the dense model, seed 0 is 'x'"),
        ({"dense": [True]}, "is True: a number"),
        ({"dense": [torch.ones(2)]}, "a number"),
        ({"dense": {0.5: 1.0}}, "seed 0.5: a whole number"),
        ({"ticket": {1.0: [1.0]}}, "level 1.0 of 'ticket'"),
        ({"ticket": {-1: [1.0]}}, "level -1 of 'ticket'"),
        ({"ticket": {math.nan: [1.0]}}, "level nan of 'ticket'"),
        ({"ticket": {True: [1.0]}}, "level True of 'ticket'"),
        ({"random_mask": {0: [1.0]}}, "the dense model, which has no controls"),
        ({"ticket": {1: [1.0]}}, r"how sparse level 1 is: sparsities=\{1: 0.36"),
        ({"ticket": {1: [1.0], 0.5: [1.0]}}, "by number .1. and by sparsity .0.5."),
        ({"ticket": {0.64: [1.0]}, "random_mask": {0.6399: [1.0]}}, "nearly equal"),
        ([("ticket", 0.5, 0, 1.0), ("ticket", "0.5", 0, 2.0)], "two scores of 'ticket' at level 0.5, seed 0"),
        ({"dense": [1.0], "ticket": {0: [1.0]}}, "two scores of the dense model, seed 0"),
        ([("ticket", 0.5)], r"row 0 .* is \(arm, level, seed, value\)"),
        ([{"arm": "ticket", "seed": 0}], "row 0 of the scores has no 'value'"),
        ([{"arm": "ticket", "seed": 0, "value": 1.0}], "neither 'level' nor 'sparsity'"),
        ([3], "row 0"),
    ],
)
def test_scores_of_another_form_are_refused_in_a_line(scores, said):
    with pytest.raises(gt.ScoreError, match=said) as caught:
        gt.judge(scores)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("margin", [0, -1, math.nan, math.inf, "0.05", True])
def test_a_margin_is_a_share(margin):
    with pytest.raises(gt.ScoreError, match="margin="):
        gt.judge(nested(), margin=margin)


def test_levels_are_numbered_by_their_sparsity():
    with pytest.raises(
        gt.ScoreError, match=r"level 1 is 90.0% sparse, and level 2 30.0%: number the levels from the de"
    ):
        gt.judge({"dense": [1.0, 1.1], "ticket": {1: [1.0, 1.1], 2: [1.0, 1.2]}}, sparsities={1: 0.9, 2: 0.3})


def test_seeds_of_unlike_sparsities_in_one_level_are_told():
    rows = [("dense", 0, seed, 1.0 + 0.1 * seed) for seed in range(2)]
    told = [
        {"arm": "ticket", "level": 1, "seed": seed, "value": 1.0 + 0.11 * seed, "sparsity": sparsity}
        for seed, sparsity in enumerate((0.6, 0.97))
    ]
    said = str(gt.judge([*rows, *told]))
    assert "Level 1, told as 78.5%, is 60.0% to 97.0% sparse from seed to seed." in said


@pytest.mark.parametrize("sparsities", [{1: 36}, {"a": 0.3}, {1: None}])
def test_sparsities_are_shares_by_number(sparsities):
    with pytest.raises(gt.ScoreError, match="sparsities"):
        gt.judge(nested(key=int), sparsities=sparsities)


def test_it_shows_itself_in_a_line_a_table_and_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nothing that lies here is read
    (tmp_path / "curve.jsonl").write_text("no such thing")
    (tmp_path / "early-bird.json").write_text("no such thing")
    verdict = gt.judge(nested(), metric="distance <i>", title="My <b> & you")
    assert repr(verdict) == f"Judgement({verdict.headline})"
    assert len(repr(verdict)) < 200
    assert str(verdict).splitlines() == [verdict.headline, *verdict.sentences]
    table = Balanced(verdict._repr_html_())
    assert table.found.count("tr") == 1 + len(verdict.summary)
    assert "distance <i> (lower is better)" in table.text
    assert verdict.save("page.html") == verdict.save(tmp_path / "again.html").relative_to(tmp_path).with_name(
        "page.html"
    )
    page = (tmp_path / "page.html").read_text()
    assert page == (tmp_path / "again.html").read_text()
    shown = Balanced(page)
    assert {"My <b> & you", verdict.headline, *verdict.sentences} <= {text.strip() for text in shown.text}
    assert shown.found.count("svg") == 1
    assert "figures/" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.html",
        "curve.jsonl",
        "early-bird.json",
        "page.html",
    ]


def test_a_page_without_a_number_is_a_page(tmp_path):
    Balanced(gt.judge({"dense": [math.nan]}).save(tmp_path / "a.html").read_text())


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    verdict = gt.judge({"dense": [1.0]})
    with pytest.raises(gt.GenticketsError, match=r"ends in \.html"):
        verdict.save(tmp_path / "page.txt")
    (tmp_path / "file").touch()
    with pytest.raises(gt.GenticketsError, match="cannot write"):
        verdict.save(tmp_path / "file" / "page.html")

"""What the campaign keeps of a run, and what its tables make of it."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign import __main__ as campaign
from campaign import keeping, paper, tables
from gentickets.lab.results.tables import to_csv, write_csv
from gentickets.lab.results.verdict import judge
from made_runs import make_run, with_weights

ROOT = Path(__file__).parent.parent
VALUE = st.floats(0.5, 2.0)


def claim(level=1, **changes):
    controls = {"random mask": f"random_mask/{level}", "re-drawn weights": f"redrawn_weights/{level}"}
    cells = {"ticket": f"ticket/{level}", "dense": "ticket/0", "beside": controls}
    return replace(paper.Claim(claim="a ticket", run="made", metric="score"), **cells | changes)


def kept(run, folder, monkeypatch):
    """A made run as the campaign keeps it."""
    run = replace(run, folder=folder / "run")
    run.folder.mkdir(exist_ok=True)
    write_csv(run)
    monkeypatch.setattr(keeping, "read_run", lambda folder: run)
    keeping.keep(run.folder, folder, "made")
    return run


def found(folder, run, **changes):
    with pytest.MonkeyPatch.context() as patch:
        kept(run, folder, patch)
    return paper.outcome(claim(**changes), folder)


@given(st.lists(st.tuples(VALUE, VALUE, VALUE, VALUE), min_size=2, max_size=5))
def test_an_outcome_is_the_runs_own_verdict(tmp_path_factory, rows):
    dense, ticket, shuffled, drawn = zip(*rows, strict=True)
    controls = {"random_mask": {1: shuffled}, "redrawn_weights": {1: drawn}}
    run = make_run({0: dense, 1: ticket}, seeds=len(rows), **controls)
    ours, level = found(tmp_path_factory.mktemp("made"), run), judge(run).levels[0]
    assert ours.to_dense == level.to_dense
    assert list(ours.beside.values()) == [beside.estimate for beside in level.ahead]
    words = {"shown": "**shown**", "refuted": "**refuted**: ", "undecided": "undecided: "}
    assert ours.verdict.startswith(words[level.answer])


def test_a_mean_over_networks_keeps_what_each_found(tmp_path, monkeypatch):
    run = make_run({0: (1.0, 1.1, 1.2), 1: (1.0, 1.12, 1.19)}, seeds=3)
    spread = {level: [0.9 + 0.2 * level, 1.1 - 0.2 * level] for level in (0, 1)}
    levels = [
        replace(r, metrics={"score": replace(r.metrics["score"], by_network=tuple(spread[r.level]))})
        for r in run.levels
    ]
    run = kept(replace(run, levels=levels), tmp_path, monkeypatch)
    with (tmp_path / "made-networks.csv").open(newline="") as file:
        first, *_ = rows = list(csv.DictReader(file))
    assert first == {"seed": "0", "level": "0", "arm": "ticket", "metric": "score", "network": "0", "value": "0.9"}
    assert len(rows) == 12
    ours = paper.outcome(claim(beside={}), tmp_path)
    assert ours.to_dense == judge(run).levels[0].to_dense
    assert "2 networks" in ours.to_dense.method


@pytest.mark.parametrize(
    ("ticket", "shuffled", "said"),
    [
        ((1.0, 1.01, 1.0), (2.0, 2.1, 2.0), "**shown**"),
        ((1.5, 1.51, 1.5), (2.0, 2.1, 2.0), "**refuted**: worse than dense"),
        ((1.0, 1.01, 1.0), (1.0, 1.01, 1.0), "**refuted**: not ahead of random mask"),
        ((1.0, "diverged", 1.0), (2.0, 2.1, 2.0), "**refuted**: 1 of 3 seeds failed"),
        ((1.0, 1.2, 0.9), (2.0, 2.1, 2.0), "undecided: as good ("),
    ],
)
def test_a_verdict_says_what_decides_it(tmp_path, ticket, shuffled, said):
    run = make_run({0: (1.0, 1.0, 1.01), 1: ticket}, seeds=3, random_mask={1: shuffled})
    assert found(tmp_path, run, beside={"random mask": "random_mask/1"}).verdict.startswith(said)


def test_without_controls_nothing_is_a_winning_ticket(tmp_path):
    run = make_run({0: (1.0, 1.0, 1.01), 1: (1.0, 1.01, 1.0)}, seeds=3)
    assert found(tmp_path, run, beside={}).verdict == "as good: **shown**; no controls"


@pytest.mark.parametrize("fate", ["diverged", "missing"])
def test_a_dense_model_that_lacks_a_seed_leaves_it_open_as_in_a_run(tmp_path, fate):
    run = make_run({0: (1.0, 1.001, 1.002, fate), 1: (1.0, 1.002, 1.001, 1.0)}, seeds=4)
    assert judge(run).not_worse["ticket", 1] == "undecided"
    assert found(tmp_path, run, beside={}).verdict.startswith("undecided: as good")


@pytest.mark.parametrize("arm", ["disconnected", "diverged"])
def test_a_chain_that_ended_at_an_earlier_level_refutes_the_deeper_one(tmp_path, arm):
    gone = (1.0, 1.01, "missing", "missing")
    run = make_run({0: (1.0, 1.0, 1.01, 1.0), 1: (1.0, 1.0, arm, arm), 2: gone}, seeds=4)
    ours = found(tmp_path, run, level=2, beside={})
    assert (ours.seeds, ours.failed, ours.missing) == (4, 2, 0)
    assert ours.verdict == "**refuted**: 2 of 4 seeds failed"


def test_a_seed_without_a_result_leaves_it_open(tmp_path):
    run = make_run({0: (1.0, 1.0, 1.01), 1: (1.0, 1.0, 1.0), 2: (1.0, 1.01, "missing")}, seeds=3)
    ours = found(tmp_path, run, level=2, beside={})
    assert (ours.seeds, ours.failed, ours.missing, ours.verdict) == (3, 0, 1, "undecided: 1 seed still to come")


def test_a_distance_by_one_classifier_is_said_to_be_one(tmp_path):
    run = make_run({0: (1.0, 1.0, 1.01), 1: (1.0, 1.01, 1.0)}, seeds=3, random_mask={1: (2.0, 2.1, 2.0)})
    levels = [replace(r, primary="frechet", metrics={"frechet": r.metrics["score"]}) for r in run.levels]
    told = {"metric": "frechet", "beside": {"random mask": "random_mask/1"}}
    assert found(tmp_path, replace(run, levels=levels), **told).verdict == "shown by one classifier only"


def test_averages_that_lag_are_judged_by_no_claim(tmp_path):
    run = with_weights(make_run({0: (1.4, 1.42, 1.41), 1: (1.0, 1.01, 1.0)}, seeds=3), (1.0, 1.1, 1.05))
    said = "no verdict: the dense average lags (1.41, its weights 1.05)"
    assert found(tmp_path, run, beside={}).verdict == said


@pytest.mark.parametrize(("longer", "said"), [((0.2, 0.21, 0.2), "no verdict: "), ((0.97, 1.0, 1.0), "as good: ")])
def test_a_dense_model_far_from_what_longer_training_makes_of_it_is_none_to_compare_with(tmp_path, longer, said):
    with pytest.MonkeyPatch.context() as patch:
        kept(make_run({0: longer}, seeds=3), tmp_path, patch)
    (tmp_path / "made.csv").rename(tmp_path / "made-longer.csv")
    run = make_run({0: (1.0, 1.0, 1.01), 1: (1.0, 1.01, 1.0)}, seeds=3)
    told = found(tmp_path, run, beside={}, longer="made-longer").verdict
    assert told.startswith(said)
    assert ("the dense model is not trained far enough (1.00, where its reference is 0.203" in told) == (
        longer[0] < 0.5
    )


def test_a_control_that_lacks_a_seed_leaves_it_open_and_one_that_failed_is_beaten(tmp_path):
    dense, ticket = (1.0, 1.0, 1.01, 1.0), (1.0, 1.01, 1.0, 1.0)
    for control, said in (
        ((2.0, 2.1, "missing", "missing"), "undecided: ahead of random mask"),
        (("diverged",) * 4, "**shown**"),
    ):
        run = make_run({0: dense, 1: ticket}, seeds=4, random_mask={1: control})
        assert found(tmp_path, run, beside={"random mask": "random_mask/1"}).verdict == said


def test_a_claim_is_judged_at_the_level_with_controls_that_is_nearest():
    named = paper._named({"run": "table1-wgan-desk", "nearest": 0.737})
    assert (named["ticket"], named["beside"]["random mask"]) == ("ticket/3", "random_mask/3")
    assert paper._named({"run": "table1-wgan-desk", "nearest": 0.8})["ticket"] == "ticket/5"


def test_a_cell_that_is_not_there_is_named(tmp_path):
    run = make_run({0: (1.0, 1.0), 1: (1.0, 1.01)})
    with pytest.raises(KeyError, match="no random_mask/1, of ticket/0, ticket/1"):
        found(tmp_path, run)


def test_the_price_is_all_trainings_and_their_judging(tmp_path):
    run = make_run({0: (1.0, 1.0), 1: (1.0, 1.01)})
    with pytest.MonkeyPatch.context() as patch:
        kept(run, tmp_path, patch)
    rows = [{"train_seconds": 3000.0, "evaluate_seconds": 600.0}, {"train_seconds": 1800.0, "evaluate_seconds": None}]
    (tmp_path / "made-timings.csv").write_bytes(to_csv(["train_seconds", "evaluate_seconds"], rows))
    assert paper.outcome(claim(beside={}), tmp_path).price == "1.5 core hours"


@pytest.mark.parametrize("page", paper.PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_the_results_say(page):
    """`python -m campaign.paper --write` renews them."""
    text = page.read_text(encoding="utf-8")
    assert "<!-- campaign.paper: " in text
    assert paper.renewed(text) == text


def test_intervals_told_elsewhere_are_those_of_the_table():
    interval = re.compile(r"\d\.\d+ \[\d\.\d+, \d\.\d+\]")
    known = "\n".join(paper.table((one, paper.outcome(one)) for one in paper.claims()))
    told = interval.findall((ROOT / "docs" / "paper.md").read_text(encoding="utf-8"))
    assert len(told) > 5
    assert [one for one in told if one not in known] == []


def test_two_rewind_steps_stand_beside_their_own_dense_models_and_each_other(tmp_path):
    for name, scale in (("early", 1.0), ("late", 2.0)):
        with pytest.MonkeyPatch.context() as patch:
            kept(make_run({0: (scale, scale, scale), 1: (3 * scale, 3 * scale, 3 * scale)}, seeds=3), tmp_path, patch)
        (tmp_path / "made.csv").rename(tmp_path / f"{name}.csv")
    _, _, dense, first = (
        [cell.split() for cell in line.split("|")] for line in tables.rewinds("early", "late", "score", tmp_path)
    )
    assert [cell[0] for cell in dense if cell] == ["dense", "2.00"]
    assert [cell[0] for cell in first[2:] if cell] == ["3.00", "3.00", "2.00"]


@pytest.mark.parametrize(("other", "said"), [((2.0, 2.1), "**shown**"), ((0.5, 0.55), "**refuted**: not ahead of it")])
def test_a_claim_without_a_dense_model_is_of_what_stands_beside_it_alone(tmp_path, other, said):
    run = make_run({0: (0.5, 0.6), 1: (1.0, 1.1)}, random_mask={1: other})  # far worse than dense
    ours = found(tmp_path, run, dense="", beside={"it": "random_mask/1"})
    assert ours.to_dense is None
    assert ours.verdict == said
    assert "| – | it " in paper.table([(ours.claim, ours)])[-1]


@pytest.mark.parametrize(("parameters", "told"), [(100, "50.0 %"), (300, "20.0 %")])
def test_a_study_tells_a_dense_model_that_arms_share_once(tmp_path, parameters, told):
    values = {
        "one/dense/0": 2.0, "one/ticket/1": 3.0, "one/random_mask/1": 5.0,
        "two/dense/0": 2.0, "two/ticket/1": 4.0,
        "three/dense/0": 1.0, "three/ticket/1": 4.0,
        "small/small_dense/0": 8.0,
    }  # fmt: skip
    rows = [
        dict(zip(("arm", "kind", "level"), cell.split("/"), strict=True))
        | {"sparsity": 0.5, "seed": seed, "status": "complete", "score": value * (1 + seed)}
        | {"parameters": parameters if cell.startswith("three") else 100}
        | {"alive_parameters": 100 if cell.endswith("0") else 80 if cell.startswith("two") else 50}
        for cell, value in values.items()
        for seed in (0, 1)
    ]
    for row in rows:
        if parameters == 100:  # all arms prune one part of one network
            row["alive_parameters"] = 50 if row["kind"] != "dense" else 100
    (tmp_path / "made.csv").write_bytes(to_csv(list(rows[0]), rows))
    head, _, *lines = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in tables.study("made", "score", tmp_path)
    )
    assert head[1] == ("sparsity" if parameters == 100 else "sparsity of the network")
    three = "50.0 %" if parameters == 100 else "83.3 %"
    assert [line[:2] for line in lines] == [
        ["one", "dense"], ["one", "50.0 %"], ["two", told], ["three", "dense"], ["three", three],
        ["small", "50.0 %"],
    ]  # fmt: skip
    assert [line[2].split()[0] for line in lines] == ["3.000", "4.500", "6.000", "1.500", "6.000", "12.00"]
    assert [line[3].split()[0] for line in lines if line[1] != "dense"] == ["1.50", "2.00", "4.00", "4.00"]
    assert lines[1][4].startswith("7.500")


def test_what_an_arm_costs_is_finding_and_training_of_its_deepest_ticket(tmp_path):
    rows = [
        {"arm": arm, "kind": kind, "level": level, "seed": seed,
         "sparsity": 0.25 * level, "alive_parameters": 10 - level, "find_flops": find,
         "train_flops": train, "find_seconds": find / 10 * (1 + seed), "train_seconds": train / 10}
        for arm, kind, level, find, train in (
            ("one", "dense", 0, 0, 100), ("one", "ticket", 1, 100, 80), ("one", "ticket", 2, 180, 60),
            ("one", "random_mask", 2, 0, 60), ("two", "dense", 0, 0, 200), ("two", "ticket", 1, 10, 40),
            ("small", "small_dense", 0, 0, 20),
        )
        for seed in (0, 1)
    ]  # fmt: skip
    (tmp_path / "made.csv").write_bytes(to_csv(list(rows[0]), rows))
    _, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in tables.costs("made", tmp_path))
    assert lines == [
        ["one", "dense", "10", "0", "1e+02", "1.00", "0", "10", "1.00"],
        ["one", "50.0 %", "8", "1.8e+02", "60", "2.40", "27", "6", "3.30"],
        ["two", "25.0 %", "9", "10", "40", "0.25", "2", "4", "0.28"],
        ["small", "0.0 %", "10", "0", "20", "0.20", "0", "2", "0.20"],
    ]


def test_dense_models_are_beside_one_another_by_their_spread(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        kept(make_run({0: (0.9, 1.0, 1.1), 1: (5.0, 6.0, 7.0)}, seeds=3), tmp_path, patch)
    line = tables.dense("score", "made", results=tmp_path)[-1]
    assert line == "| made | 0.9, 1, 1.1 | 1 | 10 % | 1.22 |"


def test_what_stands_between_marks_alone_is_renewed():
    page = "a\n<!-- campaign.paper: {} -->\nold\n<!-- campaign.paper ends -->\nb\n"
    first, second = page.format("table"), page.format("ladder quickstart-vae bits_per_dimension")
    once = paper.renewed(first + second)
    assert paper.renewed(once) == once
    assert [line for line in once.splitlines() if "|" not in line and line] == [
        line for line in (first + second).splitlines() if line != "old"
    ]
    assert "| 40.0 % | 4.955 ± 0.007 |" in once


def test_whoever_does_not_work_there_cannot_be_paused(tmp_path):
    (tmp_path / campaign.PROCESS).write_text(json.dumps({"group": 1, "since": "0"}))
    told = subprocess.run(
        [sys.executable, "-m", "campaign", "pause", "--runs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (2, f"no campaign works in {tmp_path}\n")

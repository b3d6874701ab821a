"""Of what a sparsity is: where a run prunes a part of its network, its words say so, and a study puts its arms on one
scale."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gentickets.lab.listings import run_table
from gentickets.lab.report import verdict_table, write_study
from gentickets.lab.results.part import Part, part_of
from gentickets.lab.results.reading import Cost, Count, Run
from gentickets.lab.results.verdict import judge
from gentickets.lab.results.verdict_words import headline, sentences
from gentickets.lab.study.comparison import read_comparison
from gentickets.lab.study.study import read_study, run_study
from made_runs import make_run
from tests.disturbed import TINY

STUDY = {
    **TINY,
    "training": {**TINY["training"], "steps": 6},
    "search": {"rounds": 2, "fraction": 0.5, "rewind_step": 2},
    "controls": {"levels": []},
    "study": {
        "small_dense": False,
        "arms": {
            "both": {"title": "both", "search.method": "imp"},
            "encoder": {"title": "encoder only", "search": {"method": "imp", "components": ["encoder"]}},
        },
    },
}


def of_part(masked: int, parameters: int, components: tuple[str, ...]) -> Run:
    """A run of two seeds with a winning ticket, whose masks are over so many of the network's parameters."""
    made = make_run(
        {0: (10.0, 10.1), 1: (9.0, 9.1), 2: (9.0, 9.1)},
        random_mask={2: (20.0, 20.1)},
        redrawn_weights={2: (20.0, 20.1)},
    )
    cost, names = Cost(parameters, parameters, 1, 1, 1, 1), {name: Count(1, 1) for name in components}
    return replace(made, levels=[replace(one, total=masked, cost=cost, components=names) for one in made.levels])


@pytest.mark.parametrize(("components", "words"), [
    (("encoder",), "sparsity of the encoder"), (("decoder", "encoder"), "sparsity of the decoder and encoder"),
    (("",), "sparsity of what is masked"), ((), "sparsity of what is masked"),
])  # fmt: skip
def test_a_verdict_on_a_part_says_of_what_its_sparsity_is(components, words):
    run = of_part(400, 1000, components)
    verdict = judge(run)
    assert headline(verdict).startswith(f"A winning ticket at 36.0% {words}: ")
    assert any(
        said.startswith("Sparsity is of the 400 weights") and said.endswith("36.0% of these is 14.4% of all.")
        for said in sentences(verdict, run)
    )


def test_of_a_whole_network_nothing_is_said():
    run = of_part(970, 1000, ("encoder",))
    assert headline(judge(run)).startswith("A winning ticket at 36.0% sparsity: ")
    assert not any("Sparsity is of" in said for said in sentences(judge(run), run))
    assert part_of(make_run({0: (1.0, 1.1), 1: (1.0, 1.1)})) is None  # scores of one's own say no costs


@given(st.integers(1, 10**9), st.integers(0, 10**9), st.floats(0, 1))
def test_a_part_has_never_more_than_all(masked, rest, sparsity):
    part = Part(masked, masked + rest, ())
    assert 0 <= part.of_network(sparsity) <= sparsity


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("part")
    recipe = place / "s.yaml"
    recipe.write_text(yaml.safe_dump(STUDY))
    run_study(read_study(recipe, ()), place / "s", lambda stage: lambda event: None)
    return place / "s"


def test_arms_that_prune_unlike_parts_stand_on_one_scale(study):
    comparison = read_comparison(study)
    assert comparison.of_network
    for arm in ("both", "encoder"):
        for row in comparison.of(arm):
            dense = comparison.dense.parameters
            masked, alive = row.results[0].total, row.results[0].alive
            assert row.sparsity == row.point.sparsity == pytest.approx((masked - alive) / dense)
    page = write_study(comparison).read_text(encoding="utf-8")
    assert "Arms prune unlike parts of the network" in page
    assert "sparsity of the whole network" in page
    with (study / "study.csv").open() as file:  # each arm's own, as its run has it
        own = {(row["arm"], row["level"]): float(row["sparsity"]) for row in csv.DictReader(file)}
    assert own["encoder", "2"] == pytest.approx(0.75, abs=0.02) == own["both", "2"]


def test_an_arms_own_page_and_the_terminal_say_it(study):
    table = verdict_table([study / "encoder"])
    assert "sparsity of the encoder" in str(next(iter(table.columns[0].cells)))
    assert run_table(study / "encoder").title == "tiny-encoder, sparsity of the encoder"
    assert run_table(study / "both").title == "tiny-both"

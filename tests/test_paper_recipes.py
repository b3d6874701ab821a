"""The paper's recipes: every one is valid in every budget, and its smoke budget runs from end to end."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gentickets.data import ImageSet
from gentickets.lab.recipe import is_study, read_recipe
from gentickets.lab.report import write_report, write_study
from gentickets.lab.results.reading import read_run
from gentickets.lab.run import folder as disk
from gentickets.lab.run import plan
from gentickets.lab.run.checks import check_buildable
from gentickets.lab.run.prepare import prepared
from gentickets.lab.run.work import run_all
from gentickets.lab.study.comparison import read_comparison
from gentickets.lab.study.study import read_study, run_study

FOLDER = Path(__file__).parent.parent / "recipes" / "paper"
RECIPES = sorted(FOLDER.glob("*.yaml"))
STUDIES = [path for path in RECIPES if is_study(path)]
RUNS = [path for path in RECIPES if path not in STUDIES]
BUDGETS = ("smoke", "desk", "full")


def named(path):
    return path.stem


@pytest.fixture(autouse=True)
def _quick(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path_factory.getbasetemp() / "paper-cache"))
    monkeypatch.setattr(plan, "CLOCK_SECONDS", 0.01)
    monkeypatch.setattr(plan, "WARM_STEPS", 1)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def images_for(recipe):
    """Black images of the shape that the recipe's data would have."""
    shape = (4, recipe.data.channels or 1, recipe.data.size, recipe.data.size)
    return ImageSet.from_arrays("black", np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_run_of_every_recipe_goes_on_by_the_same_command(path, tmp_path):
    arms = [arm.recipe for arm in read_study(path).arms] if path in STUDIES else []
    for recipe in arms or [read_recipe(path)]:
        folder = tmp_path / recipe.name
        folder.mkdir()
        disk.write_recipe(folder, recipe)
        origin = {"asked": recipe.dump(), "threads": 1, "gave_up": [], "data": {"fingerprint": "of none"}}
        disk.write_json(folder / "origin.json", origin)
        found, _, _ = disk.opened(folder, recipe)
        disk.write_recipe(folder, found)  # as whoever goes on does
        assert disk.opened(folder, recipe)[0].dump() == found.dump()


def often(paths, *names):
    """All of them; those that are not of these names in `make soak`, as each takes seconds."""
    assert {path.stem for path in paths} >= set(names)
    soak = pytest.mark.soak
    return [pytest.param(path, id=named(path), marks=() if path.stem in names else soak) for path in paths]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_every_budget_is_a_recipe_whose_model_can_be_built(path, budget):
    recipes = [arm.recipe for arm in read_study(path, budget=budget).arms] if path in STUDIES else []
    for recipe in recipes or [read_recipe(path, budget=budget)]:
        check_buildable(recipe, images_for(recipe))
        levels = recipe.controls.levels
        assert isinstance(levels, str) or max(levels, default=0) <= recipe.search.rounds


CLAIMED = {
    "linear-ae": 0.892, "conv-ae": 0.956, "vae": 0.79, "beta-vae": 0.865, "resnet-vae": 0.931, "sngan": 0.892,
    "dcgan": 0.832, "resnet-dcgan": 0.79, "wgan": 0.737,
}  # fmt: skip
"""The sparsity that the paper's Table 1 claims for each."""


@pytest.mark.parametrize("budget", ["night", "full"])
@pytest.mark.parametrize("name", CLAIMED)
def test_a_claim_has_its_controls_where_it_is_made(name, budget):
    """At a level whose density is within a sixth of that which the paper claims."""
    recipe = read_recipe(FOLDER / f"table1-{name}.yaml", budget=budget)
    check_buildable(recipe, images_for(recipe))
    controlled = [
        1 - recipe.build_method().sparsity_at(level) for level in recipe.controls.chosen(recipe.search.rounds)
    ]
    assert any(abs(density / (1 - CLAIMED[name]) - 1) < 1 / 6 for density in controlled), controlled


def test_the_campaigns_list_names_recipes_that_are_there():
    for entry in yaml.safe_load((FOLDER.parent.parent / "campaign" / "list.yaml").read_text()):
        path, changes = FOLDER.parent.parent / entry["recipe"], entry.get("changes", ())
        budget = entry.get("budget", "night")
        assert read_study(path, changes, budget=budget) if path in STUDIES else read_recipe(path, changes, budget)


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_each_recipe_says_how_it_is_run_and_its_budgets_stand_side_by_side(path):
    text = path.read_text()
    assert f"gentickets find recipes/paper/{path.name} --budget desk" in text
    names = {yaml.safe_load(text)["name"]} | {
        (read_study(path, budget=b) if path in STUDIES else read_recipe(path, budget=b)).name for b in BUDGETS
    }
    assert len(names) == len(BUDGETS)


def test_every_table_and_figure_has_its_line_in_the_docs():
    text = (FOLDER.parent.parent / "docs" / "paper.md").read_text()
    for path in RECIPES:
        assert f"recipes/paper/{path.name}" in text, path.name


@pytest.mark.parametrize("path", often(RUNS, "table1-linear-ae", "table1-sngan", "early-bird-88"))
def test_the_smoke_budget_of_a_run_ends_with_a_verdict(path, tmp_path):
    recipe = read_recipe(path, budget="smoke")
    run_all([prepared(recipe, tmp_path)], lambda event: None)
    run = read_run(tmp_path)
    assert {(r.level, r.arm) for r in run.levels} >= {(0, "ticket"), (1, "ticket")}
    assert write_report([tmp_path]).exists()


@pytest.mark.parametrize("path", often(STUDIES, "table2"))
def test_the_smoke_budget_of_a_study_ends_with_its_page(path, tmp_path):
    study = read_study(path, budget="smoke")
    left_out = run_study(study, tmp_path / "study", lambda stage: lambda event: None)
    comparison = read_comparison(tmp_path / "study")
    assert set(comparison.runs) | set(left_out) == {arm.label for arm in study.arms}
    assert write_study(comparison).exists()

"""Whatever happens to a run, it ends as the undisturbed one to the byte, or is refused in one line; never with other
numbers. `make soak` tries 200 cases."""

from __future__ import annotations

import os

import pytest

from tests.disturbed import RECIPES, case_of, outcome, undisturbed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each recipe's undisturbed run, made once it is asked for: its files, and the seconds that it takes."""
    place, made = tmp_path_factory.mktemp("whole"), {}
    os.environ["GENTICKETS_CACHE"] = str(place / "cache")

    def of(recipe):
        if recipe not in made:
            undisturbed(place / f"cold {len(made)}", recipe)  # what is computed once for all runs
            made[recipe] = undisturbed(place / str(len(made)), recipe)
        return made[recipe]

    return of


@pytest.mark.parametrize("number", range(14))
def test_a_disturbed_run_ends_as_the_undisturbed_one(tmp_path, whole, number):
    case = case_of(number)
    assert outcome(case, tmp_path / "place", *whole(case.recipe)) in ("same", "refused")


@pytest.mark.soak
@pytest.mark.parametrize("number", range(1000, 1200))
def test_so_do_two_hundred(tmp_path, whole, number):
    case = case_of(number)
    print(f"{case}: {outcome(case, tmp_path / 'place', *whole(case.recipe))}", flush=True)


def test_every_recipe_is_disturbed_in_the_ordinary_suite():
    assert {case_of(number).recipe for number in range(14)} == set(RECIPES)

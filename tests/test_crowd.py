"""Whatever happens to several commands on one run, what they leave is the undisturbed run to the byte; nothing is
published twice, and nothing is left behind. `make soak` tries 200 cases."""

from __future__ import annotations

import os

import pytest

from tests.crowd import RECIPES, WAYS, case_of, outcome, undisturbed

CASES = (0, 3, 4, 5, 11)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each recipe's undisturbed run, made once it is asked for: its files, and the seconds that it takes."""
    place, made = tmp_path_factory.mktemp("whole"), {}
    os.environ["GENTICKETS_CACHE"] = str(place / "cache")

    def of(recipe):
        if recipe not in made:
            made[recipe] = undisturbed(place / str(len(made)), recipe)
        return made[recipe]

    return of


@pytest.mark.parametrize("number", CASES)
def test_a_disturbed_crowd_leaves_the_undisturbed_run(tmp_path, whole, number):
    case = case_of(number)
    try:
        outcome(case, tmp_path / "place", *whole(case.recipe))
    except NotImplementedError as reason:
        pytest.skip(str(reason))


@pytest.mark.soak
@pytest.mark.parametrize("number", range(1000, 1200))
def test_so_do_two_hundred(tmp_path, whole, number):
    case = case_of(number)
    try:
        print(f"{case}: {outcome(case, tmp_path / 'place', *whole(case.recipe))}", flush=True)
    except NotImplementedError as reason:
        pytest.skip(str(reason))


def test_the_ordinary_suite_has_all_that_needs_no_disk_of_its_own():
    cases = [case_of(number) for number in CASES]
    assert {case.recipe for case in cases} == set(RECIPES)
    assert {case.way for case in cases} >= set(WAYS) - {"terminated", "the clock jumps", "read-only"}
    assert {case.apart for case in cases} == {False, True}

"""A short hunt of each kind: every input is taken, or refused in one line."""

from __future__ import annotations

import pytest

from tests.fuzz import recipes, runs, small_nets, tickets
from tests.fuzz.hunt import hunt


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "inputs"), [(tickets, 300), (recipes, 80), (small_nets, 150), (runs, 10)])
def test_every_input_is_taken_or_refused_in_one_line(kind, inputs):
    found = hunt(kind.prepare(), range(inputs), seconds=30)
    assert not found.failures, found.failures
    assert found.outcomes.total() == inputs

"""A few of the inputs of `python -m tests.fuzz.images` and `python -m tests.fuzz.sets`."""

from __future__ import annotations

import pytest

from tests.fuzz import images, sets
from tests.fuzz.hunt import hunt


@pytest.mark.parametrize(("prepare", "inputs"), [(images.prepare, 300), (sets.prepare, 300)], ids=["images", "sets"])
def test_damaged_and_hostile_inputs_are_read_or_refused(prepare, inputs):
    found = hunt(prepare(), range(inputs), seed=3, seconds=30)
    assert not found.failures
    assert found.outcomes["taken"] > 30
    assert found.outcomes["DataError"] > 30

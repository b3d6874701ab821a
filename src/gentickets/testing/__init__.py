"""Checks for what somebody brings: a criterion, an objective, a method, a model. For one's own tests.

Each takes what a recipe would name (an object, a name of the catalogue, `my.py:name`), works it on something tiny, and
raises `AssertionError` with one sentence that says what is broken; where nothing is, it returns nothing.

    def test_my_criterion_keeps_the_rules():
        gentickets.testing.check_criterion("my.py:by_something")
"""

from gentickets.testing.criteria import check_criterion
from gentickets.testing.methods import check_method
from gentickets.testing.models import check_model
from gentickets.testing.objectives import check_objective

__all__ = ["check_criterion", "check_method", "check_model", "check_objective"]

"""Everything that decides a run, in YAML: read and refused without torch."""

from gentickets.lab.recipe.file import (
    check_keys,
    differing_keys,
    is_study,
    kept_recipe,
    read_keys,
    read_recipe,
    read_training,
    with_keys,
)
from gentickets.lab.recipe.recipe import NAME, ControlsPart, DataPart, EvaluationPart, Recipe, make_recipe, parsed

__all__ = [
    "NAME",
    "ControlsPart",
    "DataPart",
    "EvaluationPart",
    "Recipe",
    "check_keys",
    "differing_keys",
    "is_study",
    "kept_recipe",
    "make_recipe",
    "parsed",
    "read_keys",
    "read_recipe",
    "read_training",
    "with_keys",
]

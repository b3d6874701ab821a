"""What all pieces of a run are made on: its images, and its judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gentickets.catalogue import is_code
from gentickets.data import ImageSet, load_splits
from gentickets.errors import RecipeError
from gentickets.lab.judging import Judge
from gentickets.lab.recipe import DataPart, Recipe
from gentickets.lab.run.hardware import make_fabric
from gentickets.lab.task import image_source
from gentickets.training.devices import on_threads


def load_data(part: DataPart) -> tuple[ImageSet, ImageSet]:
    """The training and the held-out images of a recipe, and with both what was read, as `told`."""
    train, test = load_splits(image_source(part), **part.model_dump(exclude={"source", "flip"}))
    told = dict(train.told)
    if "size" not in part.model_fields_set and "made" in told:
        told["made"] += f" (data.size is not given: {part.size})"
    return replace(train, told=told), replace(test, told=told)


def make_judge(recipe: Recipe, train: ImageSet, held_out: ImageSet) -> Judge:
    """The recipe's judge, on the recipe's device.

    Made on one thread, however many a training takes: what it computes once (classifier, statistics of the real
    images) is cached for all runs.
    """
    with on_threads(1):
        own = {name: metric.build() for name, metric in recipe.evaluation.own_metrics.items()}
        return Judge(recipe.build_objective(), train, held_out, recipe.evaluation, make_fabric(recipe).device, own)


def check_same_data(folder: Path, origin: Mapping[str, Any], train: ImageSet, held_out: ImageSet) -> None:
    """Raises `RecipeError` where the images are not those that the run began with."""
    data = origin["data"]
    kept = data["fingerprint"], data.get("test_fingerprint", held_out.fingerprint)
    if kept != (train.fingerprint, held_out.fingerprint):
        mend = "draw them by a fixed seed" if is_code(train.name) else "put it back, or use find --fresh"
        raise RecipeError(f"{folder}: the data of {train.name!r} has changed since; {mend}")

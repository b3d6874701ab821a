"""What all pieces of a run are made on: its images, and its judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gentickets.catalogue import is_code
from gentickets.data import ImageSet, load_splits
from gentickets.errors import DataError, RecipeError
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


def load_data_of(folder: Path, recipe: Recipe, origin: Mapping[str, Any]) -> tuple[ImageSet, ImageSet]:
    """The images that a run began with. Raises `RecipeError` where they are others by now, and `DataError` where there
    are none."""
    with telling_of_moves(folder, recipe.data):
        train, held_out = load_data(recipe.data)
    check_same_data(folder, origin, train, held_out)
    return train, held_out


@contextmanager
def telling_of_moves(folder: Path, part: DataPart) -> Iterator[None]:
    """Has a `DataError` say how a run is told that its images lie elsewhere, where they are not where they were."""
    try:
        yield
    except DataError as error:
        key = next((key for key in ("source", "test") if _is_gone(getattr(part, key))), None)
        if key is None:
            raise
        place = folder.resolve()
        raise DataError(
            f"{error}; where they lie elsewhere by now: `gentickets find {place / 'recipe.yaml'} --runs {place.parent} "
            f"name={place.name} data.{key}=…`"
        ) from None


def _is_gone(said: str | None) -> bool:
    return said is not None and not is_code(said) and not Path(said).exists()


def is_same_data(origin: Mapping[str, Any], train: ImageSet, held_out: ImageSet) -> bool:
    """Whether both splits are known to be those that the run began with, wherever they lie."""
    data = origin["data"]
    return (data["fingerprint"], data.get("test_fingerprint")) == (train.fingerprint, held_out.fingerprint)


def check_same_data(folder: Path, origin: Mapping[str, Any], train: ImageSet, held_out: ImageSet) -> None:
    """Raises `RecipeError` where the images are not those that the run began with."""
    # The oldest runs do not say what was held out.
    data = {"test_fingerprint": held_out.fingerprint, **origin["data"]}
    if not is_same_data({"data": data}, train, held_out):
        mend = "draw them by a fixed seed" if is_code(train.name) else "put it back, or use find --fresh"
        raise RecipeError(f"{folder}: the data of {train.name!r} has changed since; {mend}")

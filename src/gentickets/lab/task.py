"""What a recipe names, built for the images at hand."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from gentickets.catalogue import Named, is_code, running
from gentickets.data import ImageSet, given
from gentickets.data.sources import Source
from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.recipe import DataPart, Recipe
from gentickets.masks.names import as_model
from gentickets.training.loop import derived_seed


def image_source(part: DataPart) -> str | Source:
    """Where a recipe's images come from: the name of a source, or what code of one's own gives.

    It is called with what it has arguments for of `size`, `channels`, `limit` and `split`; one with `split` is called
    for train and for test. Raises `RecipeError` where it fails, and `DataError` where it gives no images.
    """
    function = part.own_code()
    if function is None:
        return part.source
    takes = inspect.signature(function).parameters
    told = {key: value for key in ("size", "channels", "limit") if key in takes and (value := getattr(part, key))}
    needed = (key for key, one in takes.items() if one.default is one.empty and one.kind not in (2, 4))
    if missing := next((key for key in needed if key not in (*told, "split")), None):
        raise RecipeError(
            f"data.source={part.source} needs {missing!r}, which nothing tells it: give it a default; it is told what "
            f"it takes of size, channels, limit and split"
        )
    with running(part.source):
        if "split" in takes:
            return given(part.source, {split: function(**told, split=split) for split in ("train", "test")})
        return given(part.source, function(**told))


def build_model(recipe: Recipe, images: ImageSet, seed: int, draw: int = 0) -> nn.Module:
    """The recipe's model with weights drawn from (seed, draw); torch's global generator is left as it was.

    Raises `GenticketsError` where it cannot be built for these images.
    """
    channels, height, _ = images.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, draw))
        return made_model(recipe.model.named, height, channels)


def without_values(named: Named) -> AbstractContextManager[Any]:
    """Where a model that is only looked at is made: on the device meta, which takes no memory, if it is of the
    catalogue. Somebody's own may read its weights while it is made, and is made as ever."""
    return nullcontext() if is_code(named.name) else torch.device("meta")


def made_model(named: Named, size: int, channels: int) -> nn.Module:
    """A model for images of a side and so many channels, its weights drawn by torch's global generator.

    Raises `GenticketsError` where it cannot be built for these, and where what is named makes no model.
    """
    make = named.load()
    takes = inspect.signature(make).parameters
    told = {key: value for key, value in (("size", size), ("channels", channels)) if key in takes}
    with running(named.name):
        try:
            made = make(**told, **named.options)
        except (ValueError, TypeError) as error:
            if is_code(named.name):
                raise
            raise GenticketsError(f"model {named.name}, images {size}x{size}: {error}") from None
    try:
        return as_model(made)
    except GenticketsError as error:
        raise RecipeError(f"model={named.name} makes no model: {error}") from None

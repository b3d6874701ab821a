"""What a recipe names, built for the images at hand."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from gentickets.data import ImageSet
from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.recipe import Recipe
from gentickets.masks.names import as_model
from gentickets.training.loop import derived_seed


def build_model(recipe: Recipe, images: ImageSet, seed: int, draw: int = 0) -> nn.Module:
    """The recipe's model with weights drawn from (seed, draw); torch's global generator is left as it was.

    Raises `GenticketsError` where it cannot be built for these images.
    """
    channels, height, _ = images.shape
    named = recipe.model.named
    make = named.load()
    given = {"size": height, "channels": channels}
    takes = inspect.signature(make).parameters
    given = {key: value for key, value in given.items() if key in takes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, draw))
        try:
            made = make(**given, **named.options)
        except (ValueError, TypeError) as error:
            raise GenticketsError(f"model {named.name}, images {height}x{height}: {error}") from None
    try:
        return as_model(made)
    except GenticketsError as error:
        raise RecipeError(f"model={named.name} makes no model: {error}") from None

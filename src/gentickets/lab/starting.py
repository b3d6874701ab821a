"""A recipe to start from, for images and a model: what can be looked up is looked up, what is guessed is told so."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gentickets.catalogue import CATALOGUE, Named, load
from gentickets.data import Labelled, looked_at
from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.recipe import make_recipe, parsed
from gentickets.lab.recipe.file import with_overrides
from gentickets.lab.recipe.keys import keys
from gentickets.lab.recipe.named import named_of
from gentickets.lab.recipe.owned import owner
from gentickets.lab.recipe.plain_yaml import read_yaml
from gentickets.lab.recipe.recipe import code_in
from gentickets.lab.results.words import count
from gentickets.lab.task import check_step, image_source, made_model
from gentickets.masks.names import components_of
from gentickets.objectives import Objective

_SIDES = (64, 48, 32, 28, 16, 8, 4)
"""What images are scaled to where they are larger, or the model does not take them as they are."""
_EPOCHS = 10
_FEWEST_STEPS, _MOST_STEPS = 200, 20_000
_FEATURES = 128
"""So many images a Fréchet distance by the default features may need."""


@dataclass(frozen=True)
class Starter:
    """A recipe's text, every key with what it means; and `told`: what was looked up and what guessed, in lines."""

    text: str
    told: tuple[str, ...]
    names_code: bool


def starter(source: str, model: str, objective: str | None = None, overrides: Iterable[str] = ()) -> Starter:
    """A recipe for the images of `source` and a model that runs as it stands.

    `model` and `objective`: names of the catalogue or code, which is run; without `objective` it is guessed by the
    components of the model, and tried. `overrides`: keys that are said, as key=value. Raises `GenticketsError` where
    nothing fits.
    """
    said = with_overrides({"model": {"name": model}, "data": {"source": source}}, overrides)
    for key, name in (("model", "name"), ("objective", "name"), ("search", "method")):
        if isinstance(said.get(key), str):
            said[key] = {name: said[key]}
    if objective is not None:
        said["objective"] = {**said.get("objective", {}), "name": objective}
    data = parsed({"name": "x", "objective": "autoencoding", **said}).data  # whatever is said is sound
    named = named_of("model", said["model"])
    survey, (least, largest) = looked_at(image_source(data), data.crop, data.test)
    sides = [data.size] if "size" in said["data"] else _sides(least)
    colours = [data.channels] if data.channels else [survey.channels, 4 - survey.channels]
    shapes = [(channels, size, size) for channels in colours for size in sides]
    found = _fitting(named, shapes, said.get("objective"))
    trained_on = min(survey.trained_on, data.limit or survey.trained_on)
    raw = _filled(said, named, found, trained_on, survey.held)
    steps, (channels, size, _) = raw["training"]["steps"], found.shape
    make_recipe(raw)
    seen = f"{least}" if least == largest else f"{least} to {largest}"
    epochs = steps * raw["training"]["batch_size"] * found.objective.batches_per_step / trained_on
    guessed = "" if objective is not None else f"guessed from the components {', '.join(found.objective.components)}"
    notes = {
        "data.size": f"the first images have {seen}",
        "data.channels": "as the images are" if channels == survey.channels else "as the model takes them",
        "objective.name": guessed,
        "objective.latent_size": found.latent_words,
        "training.steps": f"{epochs:,.3g} times through {count(trained_on, 'training image')}",
        "search.rewind_step": f"of {steps:,} steps",
    }
    told = (
        f"images: {trained_on:,} to train on and {survey.held:,} held out, of side {seen}: data.size={size}, "
        f"data.channels={channels}",
        f"objective: {found.named.name}{f', {guessed}' if guessed else ''}",
        f"training: {steps:,} steps, {notes['training.steps']}",
    )
    text = _text(raw, notes, f"# Winning tickets of {model} on {source}: a recipe to start from.")
    return Starter(text, told, bool(code_in(raw)))


# -- what goes together ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A shape of images, and an objective that the model takes a step of with them."""

    shape: tuple[int, int, int]
    named: Named
    objective: Objective
    latent_words: str


def _sides(least: int) -> list[int]:
    whole = [least] if 4 <= least <= _SIDES[0] else []
    return [*whole, *(side for side in _SIDES if side < least or (side == least and not whole))]


def _fitting(model: Named, shapes: Iterable[tuple[int, int, int]], said: Any) -> _Found:
    """The first shape, and the first objective, with which a step can be taken. Raises `RecipeError` where none is."""
    failed: dict[str, str] = {}
    for shape in shapes:
        channels, size, _ = shape
        at = f"data.size={size}, data.channels={channels}"
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                net = made_model(model, size, channels)
        except GenticketsError as error:
            failed.setdefault(at, str(error))
            continue
        for candidate in _candidates(model.name, net, said):
            found = _tried(model, net, candidate, shape)
            if isinstance(found, _Found):
                return found
            failed.setdefault(f"objective.name={candidate.name}, {at}", found)
    shown = [f"{what}: {why}" for what, why in failed.items()]
    more = f"; and {len(shown) - 2} more trials" if len(shown) > 2 else ""
    raise RecipeError(f"model={model.name} takes no step: {'; '.join(shown[:2])}{more}")


def _candidates(model: str, net: nn.Module, said: Any) -> list[Named]:
    has, needs = components_of(net), {}
    if said is not None:
        named = named_of("objective", said)
        if missing := [name for name in getattr(named.load(), "components", ()) if name not in has]:
            raise RecipeError(
                f"objective.name={named.name} needs {', '.join(missing)}; model.name={model} has {', '.join(has)}"
            )
        return [named]
    for name in reversed(
        tuple(CATALOGUE["objective"])
    ):  # what asks more comes before what asks less of the same components
        needs[name] = load("objective", name).components  # type: ignore[attr-defined]
    if fitting := [Named("objective", name) for name, components in needs.items() if set(components) <= set(has)]:
        return fitting
    there = ", ".join(f"{name} ({' and '.join(components)})" for name, components in needs.items())
    raise RecipeError(
        f"model={model} has the components {', '.join(has)}, and no objective is for these: {there}; rename them, or "
        f"say --objective my.py:name"
    )


def _tried(model: Named, net: nn.Module, named: Named, shape: tuple[int, int, int]) -> _Found | str:
    """What is found, or in words why the model takes no step of this objective."""
    latent, words = _latent(model, net, named)
    try:
        objective = Named("objective", named.name, {**named.options, **latent}).build()
        images = (
            torch.rand((3 * objective.batches_per_step, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
        )
        labelled = Labelled(images, torch.zeros(len(images), dtype=torch.int64)) if objective.wants_labels else images
        check_step(model.name, net, objective, labelled)
    except GenticketsError as error:
        return str(error).removeprefix(f"model={model.name}: ")
    return _Found(shape, Named("objective", named.name, {**named.options, **latent}), objective, words)


def _latent(model: Named, net: nn.Module, named: Named) -> tuple[dict[str, int], str]:
    """The size of a code that the objective needs and is not told, and how it is known where no option says it."""
    asked = owner("objective", named.name).options
    if "latent_size" not in asked or named.options.get("latent_size") is not None:
        return {}, ""
    options = {**{key: one.default for key, one in owner("model", model.name).options.items()}, **model.options}
    for key in ("latent_size", "latent"):
        if isinstance(options.get(key), int):
            return {"latent_size": options[key]}, ""
    maker = next((getattr(net, name) for name in ("generator", "decoder") if hasattr(net, name)), net)
    sizes = (getattr(layer, key, None) for layer in maker.modules() for key in ("in_features", "in_channels"))
    first = next((size for size in sizes if isinstance(size, int)), None)
    return ({}, "") if first is None else ({"latent_size": first}, "guessed from the first layer that takes it")


# -- what is written ------------------------------------------------------------------------------------------


def _filled(said: Mapping[str, Any], model: Named, found: _Found, trained_on: int, held: int) -> dict[str, Any]:
    """The recipe: what is said, and of the rest what a beginner will want to see and change."""
    objective = found.objective
    batch = min(64, max(2, 2 ** int(math.log2(max(2, trained_on / 4)))))
    epoch = trained_on / (batch * objective.batches_per_step)
    steps = min(_MOST_STEPS, max(_FEWEST_STEPS, round(_EPOCHS * epoch)))
    steps = said.get("training", {}).get("steps", steps)
    adversarial = {"lr": 0.0002, "betas": [0.5, 0.999]} if "discriminator" in objective.components else {"lr": 0.001}
    few = held < _FEATURES
    judged = {} if not few else {"metrics": ["kid"]} if not _judged_without(objective) else {"features": "none"}
    sampled = objective.can_sample and "features" not in judged
    told = {"latent_size": found.named.options["latent_size"]} if found.latent_words else {}
    latent_told = any(key in owner("model", model.name).options for key in ("latent", "latent_size"))
    options = {k: v for k, v in found.named.options.items() if not (k == "latent_size" and latent_told)}
    method = (said.get("search") or {}).get("method", "imp")
    takes = owner("method", method).options
    search = {"criterion": "magnitude", "rounds": 5, "fraction": 0.4, "rewind_step": steps // 20}
    filled: dict[str, Any] = {
        "name": _slug(f"{Path(said['data']['source']).stem}-{model.name.rpartition(':')[2]}"),
        "model": {"name": model.name, **model.options},
        "data": {"source": "", "size": found.shape[1], "channels": found.shape[0]},
        "objective": {"name": found.named.name, **options, **told},
        "training": {"steps": steps, "batch_size": batch, **adversarial},
        "search": {"method": method, **{key: value for key, value in search.items() if key in takes}},
        "evaluation": {**({"samples": 1000} if sampled else {}), **judged},
        "seeds": [0, 1, 2],
    }
    for key, value in said.items():
        filled[key] = {**filled.get(key, {}), **value} if isinstance(value, Mapping) else value
    return {key: value for key, value in filled.items() if value != {}}


def _judged_without(objective: Objective) -> bool:
    """Whether it can be judged without comparing samples."""
    return objective.can_reconstruct or any(measure.decides for measure in objective.measures().values())


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:60] or "tickets"


def _text(raw: Mapping[str, Any], notes: Mapping[str, str], head: str) -> str:
    """The recipe as YAML, each key with what it means."""
    meanings = {key.name: key.meaning for key in keys()}
    lines = [head, "# `gentickets list keys` shows all keys; docs/keys.md too."]
    for key, value in raw.items():
        if not isinstance(value, Mapping):
            lines.append(_line(key, value, meanings[key], notes.get(key, "")))
            continue
        lines.append(f"{key}:")
        for below, inner in value.items():
            if inner is not None:
                dotted = f"{key}.{below}"
                meaning = _own_meaning(raw, key, below) or meanings[dotted]
                lines.append("  " + _line(below, inner, meaning, notes.get(dotted, "")))
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any, meaning: str, note: str) -> str:
    return f"{key}: {_written(value)}  # {meaning}{f' Here: {note}.' if note else ''}"


def _written(value: Any) -> str:
    """A value in a line of YAML."""
    if isinstance(value, str) and re.fullmatch(r"[\w./:-]+", value) and read_yaml(f"k: {value}", "it") == {"k": value}:
        return value
    return json.dumps(value, ensure_ascii=False)


def _own_meaning(raw: Mapping[str, Any], part: str, option: str) -> str:
    """What an option of the model, the objective or the method means; nothing for other keys."""
    kind, name = {"model": ("model", "name"), "objective": ("objective", "name"), "search": ("method", "method")}.get(
        part, ("", option)
    )
    if option == name:
        return ""
    return owner(kind, raw[part][name]).options[option].meaning or f"An option of {raw[part][name]}."

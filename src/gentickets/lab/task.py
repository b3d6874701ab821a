"""What a recipe names, built for the images at hand."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.catalogue import Named, is_code, own_fault, running, taken
from gentickets.data import Batch, Batches, ImageSet, Labelled, given
from gentickets.data.sources import Source
from gentickets.errors import GenticketsError, MaskError, RecipeError
from gentickets.lab.recipe import DataPart, Recipe
from gentickets.masks.examples import examples_of
from gentickets.masks.names import as_model, clone, components_of
from gentickets.objectives import Objective
from gentickets.objectives.base import losses_of, unfrozen
from gentickets.training.seeds import derived_seed


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


def made_model(named: Named, size: int, channels: int) -> nn.Module:
    """A model for images of a side and so many channels, its weights drawn by torch's global generator.

    Raises `GenticketsError` where it cannot be built for these, and where what is named makes no model.
    """
    make = named.load()
    told = taken(make, size=size, channels=channels)
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


def build_batches(
    recipe: Recipe, images: ImageSet, seed: int, device: str | torch.device = "cpu", share: float = 1.0
) -> Batches:
    """The batches of a training of `seed`: of all images, or of a share of them that is the same for all."""
    objective = recipe.build_objective()
    if share < 1:
        images = images.subset(max(1, round(share * len(images))), seed=0)
    return Batches(
        images,
        recipe.training.batch_size * objective.batches_per_step,
        seed=seed,
        flip=recipe.data.flip,
        device=device,
        labelled=objective.wants_labels,
    )


# -- whether they go together ---------------------------------------------------------------------------------


def check_step(name: str, model: nn.Module, objective: Objective, batch: Batch) -> None:
    """Takes one step of an objective, without training, and everything else that a run asks of the two.

    `name` is the model's. Raises `RecipeError` that names the component which does not take what it is given, argument
    by argument, and where what comes out is no loss or no such images.
    """
    images = batch.images if isinstance(batch, Labelled) else batch
    rng, made, shape = torch.Generator().manual_seed(0), {}, images.shape[1:]
    with torch.random.fork_rng(devices=[]), _naming_components(name, model):
        for names, _ in losses_of(objective, model.train(), batch, rng):
            _check_trains(name, model, names)
        with torch.no_grad():
            _check_examples(model.eval(), objective, batch)
            if objective.can_sample:
                labels = (batch.labels[:2],) if isinstance(batch, Labelled) else ()
                made["samples"] = objective.sample(model, 2, rng, *labels)
            if objective.can_reconstruct:
                made["reconstructions"] = objective.reconstruct(model, batch)
    for what, output in made.items():
        if output.shape[1:] != shape:
            sides, wanted = ("x".join(map(str, side)) for side in (output.shape[1:], shape))
            raise RecipeError(
                f"model={name}: {what} are {sides}, and the images {wanted}: change the model, or data.size and "
                f"data.channels"
            )
    try:
        clone(model)  # with what these passes have left in it
    except MaskError as error:
        raise RecipeError(f"model={name}: {error}") from None


def _check_trains(name: str, model: nn.Module, components: Sequence[str]) -> None:
    """Raises `RecipeError` where a loss of these components has no parameter to train."""
    try:
        unfrozen({component: list(getattr(model, component).parameters()) for component in components}, components)
    except GenticketsError as error:
        raise RecipeError(f"model={name}: {error}") from None


def _check_examples(model: nn.Module, objective: Objective, batch: Batch) -> None:
    """Calls each component with its example input, where the objective tells one."""
    try:
        examples = objective.example_inputs(model, batch)
    except NotImplementedError:
        return
    for component, example in examples_of(model, examples).items():
        example(getattr(model, component))


@contextmanager
def _naming_components(name: str, model: nn.Module) -> Iterator[None]:
    """Any error within as a `RecipeError`, with the component in which it arose and what that was given."""
    inside: list[str] = []

    def enter(component: str, net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inside.append(f"component {component!r} does not take what it is given ({_arguments(net, args, kwargs)})")

    hooks = []
    for component in components_of(model):
        net = getattr(model, component)
        entering = partial(enter, component)
        hooks.append(net.register_forward_pre_hook(entering, with_kwargs=True))
        hooks.append(net.register_forward_hook(lambda *given: inside.pop() and None))
    try:
        yield
    except GenticketsError:
        raise
    except Exception as error:  # whatever a model or an objective says
        where = inside[-1] if inside else "it takes no step"
        said = own_fault(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise RecipeError(f"model={name}: {where}: {said}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _arguments(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What a component is given, by the names of its arguments where they can be told."""
    try:
        bound: Mapping[str, Any] = inspect.signature(net.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # too many, or too few
        bound = {**{f"argument {place}": given for place, given in enumerate(args, 1)}, **kwargs}
    return ", ".join(f"{name}: {_kind(given)}" for name, given in bound.items()) or "nothing"


def _kind(given: Any) -> str:
    if isinstance(given, Tensor):
        return f"{str(given.dtype).removeprefix('torch.')} {'x'.join(map(str, given.shape))}"
    return type(given).__name__

"""Before a model is trained: do the parts of a recipe go together, and does what is one's own work?"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import numpy as np
import torch
from torch import nn

from gentickets.catalogue import is_code, own_fault, running
from gentickets.data import Batches, ImageSet, batch_of, check_room
from gentickets.data.batches import Batch
from gentickets.errors import GenticketsError, MaskError, RecipeError, demand
from gentickets.lab.recipe import Recipe
from gentickets.lab.run.hardware import make_fabric
from gentickets.lab.run.plan import check_fits
from gentickets.lab.task import build_model, check_step
from gentickets.masks.effect import check_effect
from gentickets.masks.names import (
    changed_rest,
    clone,
    component_of,
    components_of,
    named_rest,
    named_state,
    named_weights,
)
from gentickets.objectives.base import Objective
from gentickets.objectives.trial import Trial
from gentickets.pruning.prune import prune
from gentickets.pruning.trial import scored_twice


def check_buildable(recipe: Recipe, images: ImageSet) -> None:
    """Raises `RecipeError` where model, objective and images do not go together, before anything is computed."""
    model, objective = recipe.model.named, recipe.objective.named
    own = is_code(model.name) or is_code(objective.name)
    beside = [key for key in ("criterion", "around") if is_code(_named(recipe, key))]
    with nullcontext() if own or beside else torch.device("meta"):
        net = build_model(recipe, images, seed=0)
    check_fits(recipe, net, images.shape)
    if is_code(model.name):
        _check_drawn_by_seed(recipe, net, images)
    has, needs = components_of(net), recipe.build_objective().components
    if missing := [name for name in needs if name not in has]:
        raise RecipeError(
            f"objective.name={recipe.objective.name} needs {', '.join(missing)}; "
            f"model.name={recipe.model.name} has {', '.join(has)}"
        )
    _check_classes(recipe, images)
    trained_for = recipe.build_objective()
    if own:
        batch = _few(images, trained_for)
        with _said_of(f"objective.name={objective.name} with model.name={model.name}"):
            check_step(model.name, net, trained_for, batch)
        _tell_of_the_rest(recipe, net, trained_for, batch)
        _check_effect(recipe, net, trained_for, batch)
        _check_objective(recipe, net, trained_for, batch)
    if "criterion" in beside:
        _check_criterion(recipe, net, images)
    if "around" in beside:
        _check_around(recipe, net, trained_for, _few(images, trained_for))
    make_fabric(recipe)


def _named(recipe: Recipe, key: str) -> str | None:
    """The name that a key of `search` says, if any."""
    return getattr(recipe.search.named.options.get(key), "name", None)


def _few(images: ImageSet, objective: Objective) -> Batch:
    """The first images, as many as a step needs to be one."""
    rows = np.arange(3 * objective.batches_per_step) % len(images)
    return batch_of(images, rows, "cpu", objective.wants_labels)


@contextmanager
def _said_of(what: str) -> Iterator[None]:
    """Whatever is refused within, or arises in code of one's own, as a `RecipeError` that says of what."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        said = str(error) if isinstance(error, GenticketsError) else own_fault(error)
        if said is None:
            raise
        raise RecipeError(f"{what}: {said}") from error


def _check_objective(recipe: Recipe, model: nn.Module, objective: Objective, batch: Batch) -> None:
    """Raises `RecipeError` for what training and judging could not rest on: chance that no seed decides, losses that
    leave a component untrained, measures and images of another shape or another each time."""
    steps = recipe.training.steps
    what = f"objective.name={recipe.objective.name} with model.name={recipe.model.name}"
    with _said_of(what):
        trial = Trial(type(objective).__name__, objective, model, batch)
        trial.check_chance()
        untrained, looked = trial.left_untrained(steps)
        trial.measured()
        trial.pictures()
    if untrained:
        said = f"no loss trains {untrained[0]!r}, which is one of its components"
        if looked == 1:
            raise RecipeError(f"{what}: {said}: yield one that does, or leave it out of `components`")
        warnings.warn(f"{what}: {said}, in {looked} of {steps} steps that were looked at", stacklevel=3)


def _check_around(recipe: Recipe, model: nn.Module, objective: Objective, batch: Batch) -> None:
    """As `_check_objective`, of what a retraining is wrapped in, which may well leave a component as it is."""
    around = recipe.search.named.options["around"]
    with _said_of(f"search.around={around.name}"):
        with running(around.name):
            wrapped = around.build(objective=objective, teacher=clone(model))
        demand(isinstance(wrapped, Objective), f"it makes a {type(wrapped).__name__}, which is no Objective")
        trial = Trial(type(wrapped).__name__, wrapped, model, batch)
        trial.check_chance()
        for _ in trial.step():
            pass


def _tell_of_the_rest(recipe: Recipe, model: nn.Module, objective: Objective, batch: Batch) -> None:
    """Warns of what a step of training changes and no file holds."""
    once = named_rest(model)
    check_step(recipe.model.name, model, objective, batch)
    if names := changed_rest(once, named_rest(model)):
        warnings.warn(
            f"model={recipe.model.name}: {min(names)!r} changes from step to step and is neither a parameter nor a "
            f"persistent buffer: no ticket and no level of a run holds it, and what is read back begins with it "
            f"anew; make it a buffer (register_buffer)",
            stacklevel=3,
        )


def _check_effect(recipe: Recipe, model: nn.Module, objective: Objective, batch: Batch) -> None:
    """Raises `RecipeError` for a weight that would be pruned and of which a zero would not be one in effect."""
    with warnings.catch_warnings(), suppress(NotImplementedError):
        warnings.simplefilter("ignore")  # what is left dense is said when it is
        masks = recipe.build_method().covered(model)
        try:
            check_effect(model, masks, objective.example_inputs(model.eval(), batch))
        except MaskError as error:
            raise RecipeError(f"model.name={recipe.model.name}: {error} (in a recipe: search.exclude=)") from None


def _check_drawn_by_seed(recipe: Recipe, model: nn.Module, images: ImageSet) -> None:
    """Raises `RecipeError` where another draw of the same seed is another model than `model`, or is this very one."""
    again = named_state(build_model(recipe, images, seed=0))
    trained = {id(weight) for weight in model.parameters() if weight.requires_grad}
    if same := [name for name, tensor in again.items() if id(tensor) in trained]:
        raise RecipeError(
            f"model={recipe.model.name}: {same[0]!r} is the same parameter in each model that it makes, with whatever "
            f"training has made of it: make a new one each time (without functools.cache, or a module from outside)"
        )
    if differing := changed_rest(named_state(model), again):
        raise RecipeError(
            f"model={recipe.model.name}: {next(iter(differing))!r} is drawn otherwise from the same seed: draw from "
            f"torch's global generator (torch.randn, nn.init), not from that of numpy or random"
        )


def check_searchable(recipe: Recipe, images: ImageSet) -> None:
    """Raises `RecipeError` where a search would prune what is never trained, or has a control that is none, because of
    how a model of one's own is made: before anything is computed."""
    if not is_code(recipe.model.name) or not recipe.rounds:
        return
    model = build_model(recipe, images, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left dense is said when it is
        pruned = set(recipe.build_method().covered(model))
    weights = named_weights(model)
    if frozen := [name for name in weights if name in pruned and not weights[name].requires_grad]:
        raise RecipeError(
            f"model={recipe.model.name}: {frozen[0]!r} is frozen (requires_grad=False) and would be pruned, though "
            f"nothing trains it: {_without(recipe, pruned, frozen)}"
        )
    _check_drawn_anew(recipe, model, pruned, images)


def _without(recipe: Recipe, pruned: Collection[str], names: Sequence[str]) -> str:
    """How a search leaves these of the weights that it prunes as they are, in words."""
    stays = {component_of(name) for name in names}
    rest = sorted({component_of(name) for name in pruned} - stays)
    options, excluded = recipe.search.options, recipe.search.told("exclude", None)
    if "components" in options and rest and all(name in names for name in pruned if component_of(name) in stays):
        return f"leave it out, search.components=[{', '.join(rest)}]"
    return "unfreeze it" if excluded is None else f"leave it out, search.exclude=[{', '.join([*excluded, *names])}]"


def _check_drawn_anew(recipe: Recipe, model: nn.Module, pruned: Collection[str], images: ImageSet) -> None:
    """Raises `RecipeError` where a model of another seed has the same weights, and the recipe wants others."""
    controls, others = recipe.controls, recipe.search.told("others", None)
    state, again = named_state(model), named_state(build_model(recipe, images, seed=1))
    covered = {component_of(name) for name in pruned}
    wanted = {}
    if controls.redrawn_weights and controls.chosen(recipe.rounds):
        wanted["controls.redrawn_weights=true", "controls.redrawn_weights=false"] = pruned
    if others == "fresh":
        fresh = {name for name in state if component_of(name) not in covered}
        wanted["search.others=fresh", "search.others=rewind"] = fresh
    for (key, mend), names in wanted.items():
        drawn = {name: tensor for name, tensor in state.items() if name in names and tensor.unique().numel() > 1}
        if drawn and all(torch.equal(tensor, again[name]) for name, tensor in drawn.items()):
            raise RecipeError(
                f"model={recipe.model.name}: {min(drawn)!r} and all others are the same whatever the seed, and "
                f"{key} draws them anew: {mend}, or let the model draw from torch's generator"
            )


def _check_criterion(recipe: Recipe, model: nn.Module, images: ImageSet) -> None:
    """Prunes once by a criterion of one's own: what is wrong with it is said before a model is trained for it."""
    criterion, objective = recipe.search.named.options["criterion"], recipe.build_objective()
    count = recipe.training.batch_size * objective.batches_per_step
    batches = Batches(images, count, seed=0, labelled=objective.wants_labels)
    example_inputs = objective.example_inputs(
        model.eval(), batch_of(images, slice(0, 2), "cpu", objective.wants_labels)
    )
    masks = recipe.build_method().covered(model)
    given = {"objective": objective, "batches": batches, "seed": 0, "example_inputs": example_inputs}
    with _said_of(f"search.criterion={criterion.name}"):
        with running(criterion.name):
            scores = scored_twice("it", criterion.build(**given), model, masks)
        prune(scores, fraction=0.5, within=masks)


def _check_classes(recipe: Recipe, images: ImageSet) -> None:
    """Raises `RecipeError` where the model takes other labels than the objective tells and the images have."""
    tells, name = recipe.build_objective().wants_labels, recipe.model.name
    if "classes" not in recipe.model.options:
        if tells and not is_code(name):
            raise RecipeError(f"objective.conditional=true: model.name={name} takes no labels")
        return
    classes = recipe.model.options["classes"]
    if not tells and classes is not None:
        raise RecipeError(f"model.classes={classes}: the objective tells no labels; objective.conditional=true does")
    needed = 0 if images.labels is None else int(images.labels.max()) + 1
    if tells and (classes is None or classes < needed):
        raise RecipeError(
            f"model.classes={'null' if classes is None else classes} with objective.conditional=true: the images have "
            f"labels up to {needed - 1}; model.classes={needed}"
        )


def check_room_of_a_step(recipe: Recipe, channels: int) -> None:
    """Raises `DataError` where not even the images of one step fit into memory."""
    count = recipe.training.batch_size * recipe.build_objective().batches_per_step
    size = recipe.data.size
    what = f"data.size={size} with training.batch_size={recipe.training.batch_size}"
    check_room(what, count, (channels, size, size), 4, "take a smaller one of them")

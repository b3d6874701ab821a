"""Is it a criterion?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.data.batches import Batches
from gentickets.errors import GenticketsError, PruneError, demand
from gentickets.masks.left_alone import changed, left_alone
from gentickets.masks.names import named_weights
from gentickets.masks.value import Masks
from gentickets.objectives.autoencoding import Autoencoding
from gentickets.pruning.prune import TiesBroken, prune
from gentickets.pruning.scores import told_by
from gentickets.pruning.trial import scored_twice
from gentickets.search.levels import MakeModel
from gentickets.testing.bench import drawn, tiny_images, tiny_model
from gentickets.testing.naming import built, needed, titled

_FRACTION = 0.3
_GIVEN = ("objective", "batches", "seed", "example_inputs")
"""What a recipe's criterion is given by the name of its argument."""


def check_criterion(criterion: Any, *, make_model: MakeModel = tiny_model, **given: Any) -> None:
    """Demands of a criterion what pruning needs of it; raises `AssertionError` in one sentence where that is broken.

    `criterion`: a function `(model, masks)` or `(model)`, a name, `my.py:name`, or `{name: …}` with options. Arguments
    that it has of the names `objective`, `batches`, `seed` and `example_inputs` it is given, as in a recipe; `given`
    are others, or other ones. `make_model` makes what it scores, by default an autoencoder of two linear components;
    where that is given, whatever the criterion asks of these four is to be given too.

    - a score for every weight that may go, of its shape, real, and finite for those that are alive;
    - equal scores for an equal model;
    - the model, its gradients and modes, and the global generators are left alone;
    - masks drawn by it prune exactly what is asked, and revive nothing in a second round;
    - a weight that is NaN is refused, or scored NaN (which `prune` refuses): never hidden.
    """
    name = titled(criterion)
    batches = Batches(tiny_images(), 4, seed=1)
    model = drawn(make_model, 0)
    told: dict[str, Any] = {"seed": 1, **given}
    if make_model is tiny_model:
        inputs = Autoencoding().example_inputs(model, tiny_images().images(range(4)))
        told = {"objective": Autoencoding(), "batches": batches, "example_inputs": inputs, **told}
    lacking = [key for key in needed("criterion", criterion) if key in _GIVEN and key not in told]
    demand(
        not lacking,
        f"{name} asks for {' and '.join(lacking)}: with a make_model of your own, give check_criterion those too",
    )
    score = built("criterion", criterion, **told)
    masks = Masks.dense(model)

    with left_alone(name, model):
        try:
            first = _scores(score, model, masks)
        except PruneError as error:
            raise AssertionError(f"{name}: {error}") from None
    _check_scores(name, first, masks)
    scored_twice(name, score, model, masks)
    before = masks
    for number in (1, 2):
        scores = _scores(score, masks.apply_(model), masks)
        _check_scores(f"{name}, in round {number},", scores, masks)
        masks = _pruned(name, number, scores, masks)
        demand(masks <= before, f"{name}: round {number} revived a weight that was pruned before")
        before = masks
    _check_notices_nan(name, score, drawn(make_model, 0), first, drawn(make_model, 1))


def _scores(score: Callable[..., Mapping[str, Tensor]], model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    return dict(told_by(score, model, masks))


def _check_scores(name: str, scores: Mapping[str, Tensor], masks: Masks) -> None:
    for weight, shape in masks.shapes.items():
        demand(weight in scores, f"{name} gave no score for {weight!r}: every weight that may go needs one")
        found = scores[weight]
        demand(tuple(found.shape) == shape, f"{name} scored {weight!r} by a tensor {tuple(found.shape)}; it is {shape}")
        demand(not found.is_complex(), f"{name} scored {weight!r} by complex numbers, which have no order")
        alive = found[masks[weight].to(found.device)]
        finite = bool(alive.isfinite().all())
        demand(finite, f"{name} gave a live weight of {weight!r} a score that is not finite: it cannot be compared")


def _pruned(name: str, number: int, scores: Mapping[str, Tensor], masks: Masks) -> Masks:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TiesBroken)
        found = prune(scores, fraction=_FRACTION, within=masks)
    kept = masks.alive - math.floor(_FRACTION * masks.alive)
    demand(
        found.alive == kept, f"{name}: round {number} kept {found.alive:,} of {masks.alive:,} weights, and not {kept:,}"
    )
    return found


def _check_notices_nan(
    name: str, score: Callable[..., Any], broken: nn.Module, sound: Mapping[str, Tensor], other: nn.Module
) -> None:
    """A criterion that never looks at the weights, as chance does not, has no NaN to see."""
    masks = Masks.dense(broken)
    weight = next(iter(masks))
    if changed(sound, _scores(score, other, masks)) is None:
        return
    with torch.no_grad():
        named_weights(broken)[weight].view(-1)[0] = math.nan
    try:
        found = _scores(score, broken, masks)
    except GenticketsError:
        return
    demand(
        any(bool(one.isnan().any()) for one in found.values()),
        f"{name} gave scores without a NaN to a model with one in {weight!r}: it would prune what has diverged",
    )

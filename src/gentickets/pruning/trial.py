"""A criterion tried on a model, before that is trained for it."""

from __future__ import annotations

from torch import nn

from gentickets.errors import demand
from gentickets.masks.left_alone import asked_twice, changed
from gentickets.masks.names import clone, named_weights
from gentickets.masks.value import Masks
from gentickets.pruning.scores import Criterion, Scores, told_by


def scored_twice(name: str, criterion: Criterion, model: nn.Module, masks: Masks) -> Scores:
    """What a criterion, which sentences call `name`, says of a model that is held to `masks`.

    Raises `Unmet` where it writes weights, draws from a global generator, or says something else of an equal model, and
    `PruneError` for what are no scores.
    """

    def ask() -> tuple[Scores, str | None]:
        given = clone(model)
        scores = told_by(criterion, given, masks)
        return scores, changed(named_weights(model), named_weights(given))

    (scores, written), (again, _) = asked_twice(name, ask)
    demand(written is None, f"{name} changed {written!r} of the model: it may read weights, and not write them")
    other = changed(scores, again)
    demand(other is None, f"{name} scored {other!r} otherwise the second time: scores follow from the model and a seed")
    return scores

"""One-shot pruning: every sparsity straight from the dense model (the comparison of Kalibhat et al. 2021, Fig. 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from gentickets.masks.value import Masks
from gentickets.pruning.prune import Scope, prune
from gentickets.pruning.scores import Criterion, magnitude
from gentickets.search.levels import Level, MakeModel, Others, Retrain, Rounds, Train, check_sparsities


def one_shot(
    make_model: MakeModel,
    train: Train,
    *,
    steps: int,
    sparsities: Sequence[float],
    rewind_step: int = 0,
    scope: Scope = "global",
    components: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    criterion: Criterion | None = None,
    others: Others = "rewind",
    retrain: Retrain = "rewind",
    example_inputs: Mapping[str, Tensor] | None = None,
    origin: Mapping[str, Any] | None = None,
    dense: Level | None = None,
    done: int = 0,
) -> Iterator[Level]:
    """Yields the dense model as level 0, then one level for each of `sparsities`, each pruned once from the dense one.

    Arguments as in `gentickets.imp`. To resume, give the trained `dense` level (it is then not yielded again) and
    how many of the sparsities are `done`.
    """
    check_sparsities(sparsities)
    shared = Rounds(make_model, train, steps, rewind_step, others, example_inputs, origin, retrain)
    everything = Masks.dense(shared.initial, components, include, exclude)
    score = criterion or (lambda model: magnitude(model, include=tuple(everything)))
    return _levels(shared, everything, score, sparsities, scope, dense, done)


def _levels(
    shared: Rounds,
    everything: Masks,
    score: Criterion,
    sparsities: Sequence[float],
    scope: Scope,
    dense: Level | None,
    done: int,
) -> Iterator[Level]:
    if dense is None:
        dense = shared.dense(everything)
        yield dense
    for index, sparsity in enumerate(sparsities[done:], start=done + 1):
        masks = prune(score(dense.model), to_sparsity=sparsity, within=everything, scope=scope)
        yield shared.retrain(index, masks, dense)

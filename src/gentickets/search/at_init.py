"""Pruning at initialisation: masks from the untrained weights, then one training (SNIP, GraSP, SynFlow, magnitude,
random; compared for generative models by Kalibhat et al. 2021, Table 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Unpack

from gentickets.arguments import check_arguments
from gentickets.catalogue import Named
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.options import Count, Scope
from gentickets.pruning.gradual import prune_gradually
from gentickets.pruning.scores import Criterion
from gentickets.search.arguments import AtInitArguments
from gentickets.search.levels import (
    Level,
    MakeModel,
    Rounds,
    Train,
    check_begun,
    check_count,
    check_sparsities,
    covered,
)
from gentickets.search.method import Chosen, Work


def at_init(
    make_model: MakeModel,
    train: Train,
    *,
    steps: int,
    sparsities: Sequence[float],
    score: Criterion,
    iterations: int = 1,
    dense: Level | None = None,
    done: int = 0,
    **more: Unpack[AtInitArguments],
) -> Iterator[Level]:
    """Yields the dense model as level 0, then one level for each of `sparsities`, pruned before its first step.

    Every level, the dense one too, trains the same initial weights from step 0 to `steps`. `score(model, masks)`
    scores the initial weights, with the masked ones at 0.0, and leaves the model as it was; it is asked
    `iterations` times for each sparsity, on an exponential schedule (see `prune_gradually`):

    - SNIP, and GraSP likewise: `lambda model, masks: gt.snip(model, objective, batches, include=tuple(masks))`
    - SynFlow: `gt.synflow_score(example_inputs)` with `iterations=100`
    - magnitude: `lambda model, masks: gt.magnitude(model, include=tuple(masks))`

    The other arguments as in `gentickets.imp`. To resume, give the trained `dense` level (it is then not yielded
    again) and how many of the sparsities are `done`. `with_dense=False` trains no dense model: the first level
    yielded is level 1 (and `make_model` must draw the same weights again where a search is resumed without `dense`).

    Raises `PruneError` for an argument out of range, `MaskError` for an unknown component (both at once), and
    `Disconnected` at a level whose masks cut a component in two, before it is trained.
    """
    check_sparsities(sparsities)
    check_count("iterations", iterations, 1)
    check_begun("dense", dense)
    check_count("done", done)
    check_arguments(at_init, more, AtInitArguments)
    shared = Rounds.of(make_model, train, steps, 0, more)
    everything, with_dense = covered(shared.initial, more), more.get("with_dense", True)
    if more.get("progress"):
        shared.tell(len(sparsities), done if dense is not None or not with_dense else None)
    if dense is None and not with_dense:
        dense = Level(0, everything, shared.initial, Ticket(everything, shared.initial, shared.origin))  # untrained
    scope = more.get("scope", "global")
    return _levels(shared, everything, score, iterations, sparsities, scope, dense, done)


def _levels(
    shared: Rounds,
    everything: Masks,
    score: Criterion,
    iterations: int,
    sparsities: Sequence[float],
    scope: Scope,
    dense: Level | None,
    done: int,
) -> Iterator[Level]:
    if dense is None:
        dense = shared.dense(everything)
        yield dense
    # From the ticket, not from `shared.initial`: a resumed search must score the weights that it will train.
    initial = dense.restarted()
    for index, sparsity in enumerate(sparsities[done:], start=done + 1):
        masks = prune_gradually(initial, score, sparsity, iterations=iterations, within=everything, scope=scope)
        yield shared.retrain(index, masks, dense)


@dataclass(frozen=True)
class AtInit(Chosen):
    """Pruning before training: masks from the untrained weights, then one training."""

    iterations: Count | None = None
    """In how many steps a sparsity is reached; null: in one, by synflow in 100."""

    builds_on: ClassVar[Literal["nothing"]] = "nothing"

    def levels(self, work: Work, last: int) -> Iterator[Level]:
        criterion = Named.of("criterion", self.criterion)
        return at_init(
            work.make_model,
            work.retraining(self.around),
            sparsities=self.sparsities,
            score=work.criterion(criterion),
            iterations=self.iterations or int(getattr(criterion.load(), "iterations", 1)),
            dense=work.load(0) if last >= 0 else None,
            done=max(last, 0),
            **self.chosen(work),
        )

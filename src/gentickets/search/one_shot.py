"""One-shot pruning: every sparsity straight from the dense model (the comparison of Kalibhat et al. 2021, Fig. 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

from gentickets.arguments import check_arguments
from gentickets.masks.value import Masks
from gentickets.pruning.criteria import by_magnitude
from gentickets.pruning.prune import Scope, prune
from gentickets.pruning.scores import Criterion, scored
from gentickets.search.arguments import Pruning
from gentickets.search.levels import (
    Level,
    MakeModel,
    Rounds,
    Train,
    apart,
    check_begun,
    check_count,
    check_sparsities,
    covered,
)
from gentickets.search.method import Rewound, Work


def one_shot(
    make_model: MakeModel,
    train: Train,
    *,
    steps: int,
    sparsities: Sequence[float],
    rewind_step: int = 0,
    dense: Level | None = None,
    done: int = 0,
    **more: Unpack[Pruning],
) -> Iterator[Level]:
    """Yields the dense model as level 0, then one level for each of `sparsities`, each pruned once from the dense one.

    Arguments as in `gentickets.imp`. To resume, give the trained `dense` level (it is then not yielded again) and
    how many of the sparsities are `done`.
    """
    check_sparsities(sparsities)
    check_begun("dense", dense)
    check_count("done", done)
    check_arguments(one_shot, more, Pruning)
    shared = Rounds.of(make_model, train, steps, rewind_step, more)
    everything = covered(shared.initial, more)
    if more.get("progress"):
        shared.tell(len(sparsities), None if dense is None else done)
    criterion = more.get("criterion") or by_magnitude
    return _levels(shared, everything, criterion, sparsities, more.get("scope", "global"), dense, done)


def _levels(
    shared: Rounds,
    everything: Masks,
    criterion: Criterion,
    sparsities: Sequence[float],
    scope: Scope,
    dense: Level | None,
    done: int,
) -> Iterator[Level]:
    begun = shared.dense(everything) if dense is None else apart(dense)
    if dense is None:
        yield apart(begun)
    for index, sparsity in enumerate(sparsities[done:], start=done + 1):
        masks = prune(scored(criterion, begun.model, everything), to_sparsity=sparsity, within=everything, scope=scope)
        yield shared.retrain(index, masks, begun)


@dataclass(frozen=True)
class OneShot(Rewound):
    """Every sparsity at once from the dense model, with rewinding."""

    def levels(self, work: Work, last: int) -> Iterator[Level]:
        return one_shot(
            work.make_model,
            work.retraining(self.around),
            sparsities=self.sparsities,
            criterion=work.criterion(self.criterion),
            dense=work.load(0) if last >= 0 else None,
            done=max(last, 0),
            **self.rewound(),
            **self.chosen(work),
        )

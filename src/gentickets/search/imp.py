"""Iterative magnitude pruning with rewinding (Frankle & Carbin 2019; Frankle et al. 2020, "Linear mode
connectivity"; for generative models Kalibhat et al. 2021, Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Unpack

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
    check_share,
    covered,
)
from gentickets.search.method import Rewound, Work


def imp(
    make_model: MakeModel,
    train: Train,
    *,
    steps: int,
    rounds: int,
    fraction: float = 0.2,
    rewind_step: int = 0,
    after: Level | None = None,
    **more: Unpack[Pruning],
) -> Iterator[Level]:
    """Yields the dense model as level 0, then one level a round: prune, rewind, train again.

    `make_model()` draws a model; `train(model, masks, start_step, end_step)` trains it in place, with fresh
    optimisers, and holds it to the masks (`masks.hold`). The dense training runs from 0 to `steps`, in two calls
    where `rewind_step` is above 0; every round runs from `rewind_step` to `steps`. Each round prunes `fraction`
    of what is alive, by `criterion` (default: magnitude; see `gentickets.pruning.Criterion`), compared within `scope`
    (see `gentickets.prune`).

    The other keywords are those of `gentickets.search.arguments`: `components`, `include` and `exclude` choose what is
    pruned (default: convolutions and linear layers of all components); `others` is what the unpruned components start
    each round from; `retrain` chooses learning-rate rewinding or fine-tuning instead of rewinding the weights.
    `example_inputs` (component → an input) lets each mask be checked for a live path before it is trained; without it,
    only a layer of which nothing is left would show.
    `origin` goes into every ticket. `after` resumes: the rounds that follow this level. `progress` tells of each
    training on stderr: which round, how sparse, and how long the rest will take.

    What is done to a level that was yielded is not done to the search: `level.model` is a copy, and the next round is
    of the model that `train` left, which the search keeps (one model more in memory). Each round is given its model in
    the modes, and with the frozen weights, of the rewind point.

    Where the weights to judge are moving averages, `train` returns them: a model of them, or a dict of the components
    that have one (as `gentickets.training.train` does). They are in `level.averaged`, and `level.judged` is the model
    with them in place. Masks are drawn from the raw weights all the same, and a round starts from raw ones. Averages
    are those of one call: where `rewind_step` is above 0 they begin anew there, in the dense training too.

    Raises `PruneError` for an argument out of range, `MaskError` for an unknown component (both at once, before
    anything is trained), and for averages that are of nothing in the model; and `Disconnected` at a round whose masks
    cut a component in two.
    """
    check_count("rounds", rounds)
    check_share("fraction", fraction)
    check_begun("after", after)
    check_arguments(imp, more, Pruning)
    shared = Rounds.of(make_model, train, steps, rewind_step, more)
    dense = covered(shared.initial, more)
    if more.get("progress"):
        shared.tell(rounds, None if after is None else after.index)
    criterion = more.get("criterion") or by_magnitude
    return _levels(shared, dense, criterion, rounds, fraction, more.get("scope", "global"), after)


def _levels(
    shared: Rounds,
    dense: Masks,
    criterion: Criterion,
    rounds: int,
    fraction: float,
    scope: Scope,
    after: Level | None,
) -> Iterator[Level]:
    level = shared.dense(dense) if after is None else apart(after)
    if after is None:
        yield apart(level)
    while level.index < rounds:
        masks = prune(scored(criterion, level.model, level.masks), fraction=fraction, within=level.masks, scope=scope)
        level = shared.retrain(level.index + 1, masks, level)
        yield apart(level)


@dataclass(frozen=True)
class Imp(Rewound):
    """Iterative pruning with rewinding: train, prune a share, go back, train again."""

    builds_on: ClassVar[Literal["before"]] = "before"

    def levels(self, work: Work, last: int) -> Iterator[Level]:
        return imp(
            work.make_model,
            work.retraining(self.around),
            rounds=self.rounds,
            fraction=self.fraction,
            criterion=work.criterion(self.criterion),
            after=work.load(last) if last >= 0 else None,
            **self.rewound(),
            **self.chosen(work),
        )

"""From what a recipe's `search` says to the generator of levels that does it. A new method is one entry here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gentickets.data import Batches
from gentickets.lab.recipe.recipe import AT_INIT, SearchPart
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.objectives import Objective
from gentickets.pruning.saliency import MaskedCriterion, grasp, snip, synflow_score
from gentickets.pruning.scores import magnitude, random_scores
from gentickets.search import Level, at_init, imp, one_shot, transferred
from gentickets.search.levels import MakeModel, Rounds, Train

SYNFLOW_ITERATIONS = 100


@dataclass(frozen=True)
class Means:
    """What a search works with: how a model is made and trained, and what scores may look at."""

    make_model: MakeModel
    train: Train
    steps: int
    objective: Objective
    batches: Batches
    example_inputs: Mapping[str, Tensor]
    origin: Mapping[str, Any]
    seed: int
    account: Callable[[float, float], None]
    """Is told the seconds and FLOPs of every scoring."""
    source: Callable[[int], Ticket]
    """The ticket of a level of the run that tickets are carried over from."""


def levels(search: SearchPart, means: Means, last: int, load: Callable[[int], Level]) -> Iterator[Level]:
    """The levels of the recipe's method that follow level `last` (-1: all); `load` reads a complete one back."""
    common: dict[str, Any] = {
        "steps": means.steps,
        "scope": search.scope,
        "components": search.components,
        "include": search.include,
        "exclude": search.exclude,
        "example_inputs": means.example_inputs,
        "origin": means.origin,
    }
    rounds: dict[str, Any] = {"rewind_step": search.rewind_step, "others": search.others, "retrain": search.retrain}
    if search.method == "imp":
        after = load(last) if last >= 0 else None
        return imp(
            means.make_model,
            means.train,
            rounds=search.rounds,
            fraction=search.fraction,
            after=after,
            **rounds,
            **common,
        )
    if search.method == "early-bird":
        return _dense_alone(means, last)  # its levels are trained in two parts, by `lab.early`
    resumed: dict[str, Any] = {"dense": load(0), "done": last} if last >= 0 else {}
    if search.method == "transferred":
        return transferred(
            means.make_model,
            means.train,
            steps=means.steps,
            tickets=(means.source(level) for level in range(max(last, 0) + 1, search.rounds + 1)),
            carry=search.carry or {},
            with_weights=search.with_weights,
            exclude=search.exclude,
            example_inputs=means.example_inputs,
            origin=means.origin,
            **rounds,
            **resumed,
        )
    common |= resumed
    common["sparsities"] = [search.sparsity_at(level) for level in range(1, search.rounds + 1)]
    if search.method == "one-shot":
        return one_shot(means.make_model, means.train, **rounds, **common)
    assert search.method in AT_INIT
    iterations = SYNFLOW_ITERATIONS if search.method == "synflow" else 1
    score = _accounted(_criterion(search, means), means.account)
    return at_init(means.make_model, means.train, score=score, iterations=iterations, **common)


def _dense_alone(means: Means, last: int) -> Iterator[Level]:
    """Level 0 and no more: what early birds are compared with."""
    if last < 0:
        shared = Rounds(means.make_model, means.train, means.steps, 0, origin=means.origin)
        yield shared.dense(Masks.dense(shared.initial))


def _accounted(score: MaskedCriterion, account: Callable[[float, float], None]) -> MaskedCriterion:
    """A criterion whose every call is told to `account`; its FLOPs are counted once, each call costs the same."""
    known: list[float] = []

    def scored(model: nn.Module, masks: Masks) -> Mapping[str, Tensor]:
        begun = time.perf_counter()
        if known:
            scores = score(model, masks)
        else:
            with FlopCounterMode(display=False) as counter:
                scores = score(model, masks)
            known.append(float(counter.get_total_flops()))
        account(time.perf_counter() - begun, known[0])
        return scores

    return scored


def _criterion(search: SearchPart, means: Means) -> MaskedCriterion:
    """How a method of pruning at initialisation scores the untrained weights."""
    if search.method == "synflow":
        return synflow_score(means.example_inputs)
    seen = [means.batches.at(step).cpu() for step in range(search.score_batches)]

    def score(model: nn.Module, masks: Masks) -> Mapping[str, Tensor]:
        names = tuple(masks)
        if search.method == "snip":
            return snip(model, means.objective, seen, seed=means.seed, include=names)
        if search.method == "grasp":
            return grasp(model, means.objective, seen, seed=means.seed, include=names)
        if search.method == "random-at-init":
            return random_scores(model, means.seed, include=names)
        return magnitude(model, include=names)

    return score

"""A metric over the seeds of a run, and what each of them is asked for: a seed that ended early, or is still to come,
is counted as such."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import ValidationError

from gentickets.errors import RecipeError
from gentickets.lab.recipe.recipe import ControlsPart
from gentickets.lab.results.reading import ARMS, Arm, LevelResult, Run, came_through


@dataclass(frozen=True)
class Summary:
    """One metric of one arm at one level, over the seeds.

    `mean` and `deviation` are over the `n` seeds that have a finite value; `deviation` is the sample standard
    deviation, None for fewer than two. The seeds without a value are counted by what happened to them: `ended` are
    those whose chain ended at an earlier level, `missing` those that are asked for and still to come.
    """

    arm: Arm
    level: int
    sparsity: float
    mean: float | None
    deviation: float | None
    n: int
    diverged: int = 0
    disconnected: int = 0
    missing: int = 0
    ended: int = 0

    @property
    def failed(self) -> int:
        """How many seeds were trained and came to nothing, here or before."""
        return self.diverged + self.disconnected + self.ended

    @property
    def complete(self) -> bool:
        """True where every seed has a value."""
        return self.n > 0 and not self.failed and not self.missing


def summarise(run: Run, key: str) -> dict[tuple[Arm, int], Summary]:
    """(arm, level) → the metric `key` over all seeds, for every arm and level that any seed has, and the controls
    that are still to come beside a ticket."""
    asked = {seed: asked_of(run, seed) for seed in run.seeds}
    there = {(result.arm, result.level) for result in run.levels}
    levels = {level for arm, level in there if arm == "ticket"}
    there |= {(arm, level) for of in asked.values() for arm, level in of if arm != "ticket" and level in levels}
    found: dict[tuple[Arm, int], Summary] = {}
    for arm, level in sorted(there, key=lambda place: (ARMS.index(place[0]), place[1])):
        results = run.of(arm, level)
        to_come = {seed for seed in run.seeds if (arm, level) in asked[seed]} - {r.seed for r in results}
        ended = len(run.seeds) - len({r.seed for r in results}) - len(to_come) if arm == "ticket" else 0
        one = _summarise(arm, level, results, key)
        sparsity = one.sparsity if results else found["ticket", level].sparsity
        found[arm, level] = replace(one, sparsity=sparsity, missing=one.missing + len(to_come), ended=ended)
    return found


def _summarise(arm: Arm, level: int, results: list[LevelResult], key: str) -> Summary:
    """`results`: one arm at one level. A complete level whose value is none of a model that came through diverged."""
    values = [metric.value for result in results if (metric := came_through(result, key)) is not None]
    measured = [result for result in results if result.status == "complete" and key in result.metrics]
    failed = {status: sum(r.status == status for r in results) for status in ("diverged", "disconnected")}
    return Summary(
        arm=arm,
        level=level,
        sparsity=statistics.fmean(result.sparsity for result in results) if results else math.nan,
        mean=statistics.fmean(values) if values else None,
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        n=len(values),
        diverged=failed["diverged"] + len(measured) - len(values),
        disconnected=failed["disconnected"],
        missing=len(results) - len(measured) - sum(failed.values()),
    )


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there; None without one."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def asked_of(run: Run, seed: int) -> frozenset[tuple[Arm, int]]:
    """(arm, level) of all that a seed of a run comes to have, as its recipe says and its chain allows.

    Where the recipe says nothing of controls they are those that any seed has. Raises `RecipeError` for controls that
    are none.
    """
    search = run.recipe.get("search")
    rounds = search.get("rounds") if isinstance(search, dict) else None
    chain = [result for result in run.of("ticket") if result.seed == seed]
    goes_on = run.recipe.get("on_failure", "stop") == "continue"
    last = max(run.depth, rounds if isinstance(rounds, int) else 0)
    if chain and (chain[-1].status == "disconnected" or (chain[-1].status == "diverged" and not goes_on)):
        last = chain[-1].level
    part = _controls(run)
    found: set[tuple[Arm, int]] = {("ticket", level) for level in range(last + 1)}
    if part is None:
        found |= {(result.arm, result.level) for result in run.levels if result.level <= last}
    else:
        found |= {(arm, level) for arm in part.arms for level in part.chosen(last)}
    return frozenset(place for place in found if (seed, *place) not in run.left_out)


def control_levels(run: Run) -> list[int]:
    """The levels of a run at which some seed has controls, or is to have them."""
    return sorted({level for seed in run.seeds for arm, level in asked_of(run, seed) if arm != "ticket"})


def _controls(run: Run) -> ControlsPart | None:
    said = run.recipe.get("controls")
    if not isinstance(said, dict):
        return None
    try:
        return ControlsPart.model_validate({key: said[key] for key in ControlsPart.model_fields if key in said})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(key) for key in ("controls", *first["loc"]))
        raise RecipeError(f"{run.folder / 'recipe.yaml'}: {place}: {first['msg']}") from None

"""The verdict on a run: is the ticket as good as the dense model, and is it the ticket that does it?

Two questions at each level, each with one of three answers (shown, refuted, undecided; `estimation`):

- **Not worse.** Is the ticket worse than the dense model by less than a margin (`evaluation.margin`, a share of the
  dense model's value, 5 %)? Seeds are compared one by one; the spread of the dense model is no allowance.
- **Ahead.** Is it better than each of its controls?

Both together make a winning ticket at that level. Looking at many levels is accounted for: "up to" a sparsity is told
level by level, and ends with the first that is not shown (a fixed sequence needs no correction); the levels that have
controls are judged by p values after Holm. A seed that failed refutes its ticket, there and at every deeper level; one
that is missing leaves all open, and so does a control that the recipe asks for and that was not trained yet. One seed
shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from gentickets.errors import RecipeError
from gentickets.lab.results import paper_rule
from gentickets.lab.results.baseline import Lag, Reference, falls_short, lag_of, reference_of
from gentickets.lab.results.estimation import CONFIDENCE, Answer, Cells, Estimate, holm
from gentickets.lab.results.part import Part, part_of
from gentickets.lab.results.reading import Arm, Run, came_through
from gentickets.lab.results.summary import Summary, summarise
from gentickets.options import CONTROLS

ARM_NAMES: dict[Arm, str] = {
    "ticket": "ticket",
    "random_mask": "random mask",
    "redrawn_weights": "re-drawn weights",
}
MARGIN = 0.05
"""Of runs whose recipe says none: those of before there was one."""

NoVerdict = Literal["dense", "baseline", "levels", "controls"]

_ALPHA = (1 - CONFIDENCE) / 2
DENSE: tuple[Arm, int] = ("ticket", 0)


@dataclass(frozen=True)
class Beside:
    """The ticket beside one control at one level. `estimate`: the ticket's value to the control's, None without shared
    seeds. `why`: what decides where no estimate does, `failed`, `control failed` or `unfinished`; else None."""

    control: Arm
    other: Summary
    estimate: Estimate | None
    answer: Answer
    p: float
    why: str | None = None


@dataclass(frozen=True)
class Level:
    """One level of the ticket. `to_dense`: its value to the dense model's. `not_worse`: the first question; `ahead`:
    the second, a control each; `p`: that both hold, one-sided, before Holm (1 without controls)."""

    level: int
    sparsity: float
    ticket: Summary
    to_dense: Estimate | None
    not_worse: Answer
    ahead: tuple[Beside, ...]
    p: float

    @property
    def answer(self) -> Answer:
        """Both questions together, by this level alone."""
        answers = {self.not_worse, *(beside.answer for beside in self.ahead)}
        return "refuted" if "refuted" in answers else "undecided" if "undecided" in answers else "shown"

    @property
    def unfinished(self) -> bool:
        """Whether something of it is still to be trained."""
        return bool(self.ticket.missing) or any(beside.why == "unfinished" for beside in self.ahead)

    @property
    def if_networks_agreed(self) -> Level:
        """The level with estimates that are so (`Estimate.if_networks_agreed`)."""
        ahead = [replace(one, estimate=one.estimate and one.estimate.if_networks_agreed) for one in self.ahead]
        return replace(self, to_dense=self.to_dense and self.to_dense.if_networks_agreed, ahead=tuple(ahead))

    def more_seeds(self, margin: float, levels: int) -> float | None:
        """How many more seeds would probably decide both questions, beside so many `levels` that are looked at.

        None where nothing tells; infinite for more than anybody trains.
        """
        if self.unfinished:
            return None
        needed = [self.to_dense.seeds_for_not_worse(margin, levels) if self.to_dense else None]
        needed += [
            beside.estimate.seeds_for_ahead(margin, levels) if beside.estimate else None
            for beside in self.ahead
            if beside.why is None
        ]
        known = [seeds for seeds in needed if seeds is not None]
        return max(known) if len(known) == len(needed) else None


@dataclass(frozen=True)
class Verdict:
    """What one run shows. Sparsities are shares, 0 to 1, and None where no level qualifies.

    `answer`: whether there is a winning ticket at a level that has controls; None where there is nothing to judge
    (`no_verdict` says why). `reference`: that of the dense model, if one is known. `lag`: how far its average is behind
    its weights, where it is. `judged`: the level that the
    answer is of, the deepest that is shown, else the one that is nearest to be decided. `deepest`: the last level of
    those that are shown to be not worse without a gap. `not_worse`: the answer for every arm and level by itself.
    `more_seeds`: how many would probably decide what `judged` leaves open, None for unknown, infinite for too many.
    `part`: what of the network sparsities are of, where that is known.
    """

    key: str
    label: str
    lower_is_better: bool
    seeds: int
    margin: float
    summary: Mapping[tuple[Arm, int], Summary]
    levels: tuple[Level, ...]
    answer: Answer | None
    no_verdict: NoVerdict | None
    reference: Reference | None
    lag: Lag | None
    deepest: Level | None
    judged: Level | None
    not_worse: Mapping[tuple[Arm, int], Answer]
    more_seeds: float | None
    cells: Cells
    part: Part | None

    @property
    def matches_up_to(self) -> float | None:
        """The sparsity up to which the ticket is shown to be not worse than the dense model."""
        return self.deepest.sparsity if self.deepest else None

    @property
    def within_spread_up_to(self) -> float | None:
        """The same by the field's rule for means (`paper_rule`)."""
        return paper_rule.matches_up_to(self.summary, paper_rule.spread_of, self.lower_is_better)

    @property
    def of_part(self) -> str:
        """What follows the word sparsity: ` of the encoder`; nothing for a whole network."""
        return self.part.words if self.part else ""

    @property
    def dense(self) -> Summary | None:
        """The dense model: level 0 of the ticket chain."""
        return self.summary.get(DENSE)

    def at(self, arm: Arm, level: int | None) -> Summary | None:
        """The summary of an arm at a level, None where there is none."""
        return None if level is None else self.summary.get((arm, level))


def judge(run: Run, cells: Cells | None = None) -> Verdict:
    """The verdict on a run, by its primary metric.

    `cells`: those of the run, (arm, level) → seed → value, with others beside that tell of its spread; by default its
    own alone. Raises `RecipeError` where its recipe says a margin or controls that are none.
    """
    metric = run.metrics().get(run.primary)
    lower = metric.lower_is_better if metric else True
    check_one_ruler(run)
    summary, margin = summarise(run, run.primary), margin_of(run)
    cells = cells or Cells(values_of(run, run.primary), lower, by_network_of(run, run.primary))
    levels = tuple(
        _level(level, summary, cells, margin) for level in range(1, run.depth + 1) if ("ticket", level) in summary
    )
    reference = reference_of(run)
    lag = lag_of(cells.values.get(DENSE, {}), values_of(run, f"{run.primary}_raw").get(DENSE, {}), lower)
    no_verdict = _no_verdict(summary.get(DENSE), levels, reference, lag)
    answer, judged, more = (None, None, None) if no_verdict else _answer(levels, margin)
    return Verdict(
        key=run.primary,
        label=metric.label if metric else run.primary,
        lower_is_better=lower,
        seeds=len(run.seeds),
        margin=margin,
        summary=summary,
        levels=levels,
        answer=answer,
        no_verdict=no_verdict,
        reference=reference,
        lag=lag,
        deepest=None if no_verdict in ("dense", "baseline") else _deepest(levels),
        judged=judged,
        not_worse={
            place: "undecided" if no_verdict == "baseline" else _not_worse(place, summary, cells, margin)[0]
            for place in summary
            if place[1]
        },
        more_seeds=more,
        cells=cells,
        part=part_of(run),
    )


def margin_of(run: Run) -> float:
    """The margin that a run's recipe says, `MARGIN` where it says none. Raises `RecipeError` for one that is none."""
    evaluation = run.recipe.get("evaluation")
    margin = evaluation.get("margin") if isinstance(evaluation, dict) else None
    if margin is None:
        return MARGIN
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 < margin < math.inf:
        where = run.folder / "recipe.yaml"
        raise RecipeError(f"{where}: evaluation.margin={margin!r}: a share of the dense value, above 0, such as 0.05")
    return float(margin)


def check_one_ruler(run: Run) -> None:
    """Raises `RecipeError` where levels were measured by two rulers: their numbers cannot be compared."""
    ruler: str | None = None
    for result in run.levels:
        label = result.metrics[result.primary].label if result.primary in result.metrics else ruler
        ruler = ruler or label
        if label != ruler:
            raise RecipeError(
                f"{result.folder / 'metrics.json'}: {result.primary!r} is {label!r}, and {ruler!r} in other levels: "
                f"measure them all alike (gentickets evaluate {run.folder})"
            )


def values_of(run: Run, key: str) -> dict[tuple[str, int], dict[int, float]]:
    """(arm, level) → seed → the metric, of every level that came through with a finite value."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    for result in run.levels:
        if (metric := came_through(result, key)) is not None:
            found.setdefault((result.arm, result.level), {})[result.seed] = metric.value
    return found


def by_network_of(run: Run, key: str) -> dict[tuple[str, int], dict[int, tuple[float, ...]]]:
    """The same with what each network found, of every level that was measured by several."""
    found: dict[tuple[str, int], dict[int, tuple[float, ...]]] = {}
    for result in run.levels:
        metric = came_through(result, key)
        if metric is not None and metric.spread is not None and metric.by_network:
            found.setdefault((result.arm, result.level), {})[result.seed] = metric.by_network
    return found


def _level(level: int, summary: Mapping[tuple[Arm, int], Summary], cells: Cells, margin: float) -> Level:
    ticket = summary["ticket", level]
    answer, to_dense = _not_worse(("ticket", level), summary, cells, margin)
    ahead = tuple(_beside(ticket, summary[c, level], cells, margin) for c in CONTROLS if (c, level) in summary)
    first = to_dense.p_worse_by(margin) if to_dense and ticket.complete else 1.0
    p = max([first, *(beside.p for beside in ahead)]) if ahead else 1.0
    return Level(level, ticket.sparsity, ticket, to_dense, answer, ahead, p)


def _not_worse(
    place: tuple[Arm, int], summary: Mapping[tuple[Arm, int], Summary], cells: Cells, margin: float
) -> tuple[Answer, Estimate | None]:
    """Whether an arm at a level is not worse than the dense model, and by what estimate."""
    estimate = cells.compare(place, DENSE)
    return not_worse(summary[place], summary.get(DENSE), estimate, margin), estimate


def not_worse(found: Summary, dense: Summary | None, estimate: Estimate | None, margin: float) -> Answer:
    """The answer to the first question, of any arm: a seed that failed refutes it, a missing one leaves it open."""
    if found.failed:
        return "refuted"
    if estimate is None or found.missing or dense is None or not dense.complete:
        return "undecided"
    return estimate.not_worse_by(margin)


def _beside(ticket: Summary, other: Summary, cells: Cells, margin: float) -> Beside:
    estimate = cells.compare(("ticket", ticket.level), (other.arm, other.level))
    if ticket.failed:
        return Beside(other.arm, other, estimate, "refuted", 1.0, "failed")
    if ticket.missing or other.missing:
        return Beside(other.arm, other, estimate, "undecided", 1.0, "unfinished")
    if estimate is None:
        enough = ticket.n > 1
        return Beside(
            other.arm, other, None, "shown" if enough else "undecided", 0.0 if enough else 1.0, "control failed"
        )
    return Beside(other.arm, other, estimate, estimate.ahead(margin), estimate.p_worse_by(0.0))


def _no_verdict(
    dense: Summary | None, levels: tuple[Level, ...], reference: Reference | None, lag: Lag | None
) -> NoVerdict | None:
    """Why there is nothing to judge: what is not there, or that the dense model is not one to compare with."""
    if dense is None or not dense.complete:
        return "dense"
    if lag is not None or (reference is not None and falls_short(dense, reference)):
        return "baseline"
    if not levels:
        return "levels"
    return None if any(level.ahead for level in levels) else "controls"


def _deepest(levels: tuple[Level, ...]) -> Level | None:
    """The last level before the first that is not shown."""
    deepest = None
    for number, level in enumerate(levels, 1):
        if level.level != number or level.not_worse != "shown":
            break
        deepest = level
    return deepest


def _answer(levels: tuple[Level, ...], margin: float) -> tuple[Answer, Level, float | None]:
    """Whether there is a winning ticket at any level that has controls, at which, and how many more seeds may tell."""
    controlled = [level for level in levels if level.ahead]
    adjusted = holm([level.p for level in controlled])
    shown = [level for level, p in zip(controlled, adjusted, strict=True) if p <= _ALPHA]
    if shown:
        return "shown", shown[-1], None
    open_ones = [level for level in controlled if level.answer != "refuted"]
    if not open_ones:
        return "refuted", controlled[-1], None
    needed = [level.more_seeds(margin, len(controlled)) for level in open_ones]
    nearest = min(range(len(needed)), key=lambda place: (_few(needed[place]), open_ones[place].p))
    return "undecided", open_ones[nearest], needed[nearest]


def _few(seeds: float | None) -> float:
    return math.inf if seeds is None else seeds

"""A study read back: every place of every arm over the seeds, beside the dense model, and `study.csv`."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gentickets.errors import RecipeError
from gentickets.files import replace_file
from gentickets.lab.results.estimation import Answer, Cells, Estimate, mean_interval
from gentickets.lab.results.paper_rule import spread_of, within
from gentickets.lab.results.part import Part, are_unlike
from gentickets.lab.results.reading import ARMS, Arm, LevelResult, Metric, Run, read_run
from gentickets.lab.results.summary import Summary, control_levels, mean_known, summarise
from gentickets.lab.results.tables import to_csv
from gentickets.lab.results.verdict import DENSE, Verdict, by_network_of, judge, margin_of, not_worse, values_of
from gentickets.lab.results.words import share
from gentickets.lab.study.small_dense import PREFIX
from gentickets.lab.study.study import Record, read_record

Kind = Literal["dense", Arm, "small_dense"]
KINDS: dict[Kind, str] = {
    "dense": "dense model",
    "ticket": "ticket",
    "random_mask": "random mask",
    "redrawn_weights": "re-drawn weights",
    "small_dense": "small dense net",
}


@dataclass(frozen=True)
class Cost:
    """What one level of one seed took, None where it was not recorded: seconds of wall clock, FLOPs of training.

    `shared_from`: the run that trained it, where this one only took it over.
    """

    find_seconds: float | None
    train_seconds: float | None
    find_flops: float | None
    train_flops: float | None
    shared_from: str | None


@dataclass(frozen=True)
class Row:
    """One kind of one arm at one level, over the seeds.

    `point`: the primary metric; `further`: the others. `interval`: the 95 % confidence interval of its mean.
    `to_dense`: its ratio to the arm's dense model, seed by seed, and `not_worse` whether that is shown to be less than
    the margin worse (None for the dense model itself, and beside one that may not judge). `within_spread`: the same by
    the papers' rule for means, None for one seed. Costs and sizes are means over the seeds.
    """

    arm: str
    title: str
    kind: Kind
    level: int
    sparsity: float
    point: Summary
    further: dict[str, Summary]
    interval: tuple[float, float] | None
    to_dense: Estimate | None
    not_worse: Answer | None
    within_spread: bool | None
    parameters: float | None
    alive: float | None
    cost: Cost
    results: tuple[LevelResult, ...]


@dataclass(frozen=True)
class Comparison:
    """A study as it stands. `runs` and `verdicts` by arm; `unread`: arms of which nothing is complete yet.

    `of_network`: whether the rows' sparsities are of all parameters, as arms prune unlike parts of one network.
    """

    record: Record
    runs: dict[str, Run]
    verdicts: dict[str, Verdict]
    small: dict[str, Run]
    rows: list[Row]
    key: str
    metrics: dict[str, Metric]
    seeds: int
    unread: tuple[str, ...]
    of_network: bool

    @property
    def of_what(self) -> str:
        """What follows the word sparsity of the rows: ` of the whole network`, or nothing."""
        return " of the whole network" if self.of_network else ""

    @property
    def parts(self) -> list[Path]:
        """The folders of the runs that arms are made of, and of which something is complete."""
        return [self.record.folder / label for label in self.record.parts if _is_begun(self.record.folder / label)]

    @property
    def metric(self) -> Metric:
        """The primary metric's words."""
        return self.metrics.get(self.key) or Metric(self.key, math.nan, None, True)

    @property
    def margin(self) -> float:
        """What the arms' recipes allow a ticket to be worse by."""
        return margin_of(next(iter(self.runs.values())))

    @property
    def features(self) -> str | None:
        """The name of the features that distances are measured with, None where there are none."""
        features = next(iter(self.runs.values())).origin.get("features")
        return str(features["name"]) if features else None

    @property
    def rulers(self) -> dict[str, list[str]]:
        """What the primary metric is called → the arms that it is of: more than one, and arms cannot be compared."""
        found: dict[str, list[str]] = {}
        for arm, verdict in self.verdicts.items():
            found.setdefault(verdict.label, []).append(arm)
        return found

    @property
    def dense(self) -> Row:
        """The first arm's dense model."""
        return self.rows[0]

    def of(self, arm: str, kind: Kind = "ticket") -> list[Row]:
        """The rows of one arm and kind, by level."""
        return [row for row in self.rows if (row.arm, row.kind) == (arm, kind)]

    def at_controls(self, arm: str) -> list[Row]:
        """The tickets of an arm at the levels that have controls; its deepest where none has."""
        tickets = self.of(arm)
        levels = control_levels(self.runs[arm])
        return [row for row in tickets if row.level in levels] or tickets[-1:]

    def trained_seconds(self) -> float:
        """Wall clock of all trainings that were done, over arms and seeds; what was taken over is counted once."""
        results = (result for row in self.rows for result in row.results)
        costs = (_cost(result) for result in results)
        return sum(cost.train_seconds or 0.0 for cost in costs if cost.shared_from is None)


def read_comparison(folder: Path | str) -> Comparison:
    """The study in `folder`, from what is complete.

    Raises `RecipeError` where nothing is, and where arms are judged by unequal metrics or margins.
    """
    folder = Path(folder)
    record = read_record(folder)
    runs, unread = {}, []
    for label in record.arms:
        if _is_begun(folder / label):
            runs[label] = read_run(folder / label)
        else:
            unread.append(label)
    if not runs:
        raise RecipeError(f"{folder}: no level of any arm is complete yet")
    first = next(iter(runs.values()))
    small = _small(folder)
    metrics: dict[str, Metric] = {}
    for run in (*runs.values(), *small.values()):
        if run.primary != first.primary:
            raise RecipeError(f"{run.folder}: judged by {run.primary!r}, the first arm by {first.primary!r}")
        for key, metric in run.metrics().items():
            metrics.setdefault(key, metric)
    if len({margin_of(run) for run in runs.values()}) > 1:
        said = ", ".join(f"{label}: {share(margin_of(run))}" for label, run in runs.items())
        raise RecipeError(f"{folder}: arms are judged by unequal margins ({said}): say one evaluation.margin for all")
    rows, verdicts = list[Row](), dict[str, Verdict]()
    for label, run in runs.items():
        verdicts[label] = judge(run, _cells(label, run, {**runs, **small} if run is first else runs))
        rows += _rows(record.arms[label], label, run, verdicts[label])
    parts = {label: verdict.part for label, verdict in verdicts.items() if verdict.part}
    if of_network := are_unlike(parts.values()):
        rows = [_of_network(row, parts.get(row.arm)) for row in rows]
    rows += _small_rows(rows, next(iter(verdicts.values())), small)
    seeds = max(len(run.seeds) for run in runs.values())
    return Comparison(record, runs, verdicts, small, rows, first.primary, metrics, seeds, tuple(unread), of_network)


def _of_network(row: Row, part: Part | None) -> Row:
    """The row at the sparsity of the whole network; without a part, nothing of which is pruned yet, as it is."""
    if part is None:
        return row
    sparsity = part.of_network(row.sparsity)
    return replace(row, sparsity=sparsity, point=replace(row.point, sparsity=sparsity))


def _is_begun(run: Path) -> bool:
    return any(run.glob("seed-*/level-*/metrics.json"))


def _small(folder: Path) -> dict[str, Run]:
    """The small dense nets that are there, the largest first."""
    found = [place for place in folder.glob(f"{PREFIX}*") if _is_begun(place)]
    found.sort(key=lambda place: -int(place.name.removeprefix(PREFIX)))
    return {place.name: read_run(place) for place in found}


def _cells(label: str, run: Run, runs: Mapping[str, Run]) -> Cells:
    """The cells of an arm, (arm, level), and beside them, as (label, arm, level), those of the others whose dense model
    is the same: they tell how such trainings scatter."""
    own = values_of(run, run.primary)
    values: dict[Hashable, dict[int, float]] = dict(own.items())
    networks: dict[Hashable, dict[int, tuple[float, ...]]] = dict(by_network_of(run, run.primary).items())
    for other, its_run in runs.items():
        theirs = values_of(its_run, run.primary)
        if other != label and (other.startswith(PREFIX) or theirs.get(DENSE) == own.get(DENSE)):
            values |= {(other, *place): found for place, found in theirs.items()}
            networks |= {(other, *place): found for place, found in by_network_of(its_run, run.primary).items()}
    return Cells(values, _lower_is_better(run), networks)


def _rows(title: str, label: str, run: Run, verdict: Verdict, own: bool = True) -> Iterator[Row]:
    """Every row of a run, level by level, the dense model first; compared with the dense model of `verdict`, which is
    its own, or else that of another run."""
    places = sorted({(result.level, ARMS.index(result.arm)) for result in run.levels})
    summaries = {key: summarise(run, key) for key in run.metrics()}
    primary = summarise(run, run.primary)
    dense, cells = verdict.dense, verdict.cells
    for level, index in places:
        arm: Arm = ARMS[index]
        kind: Kind = "dense" if level == 0 else arm
        results = tuple(run.of(arm, level))
        point = primary[arm, level]
        cell = (arm, level) if own else (label, arm, level)
        compared = kind != "dense" or not own
        estimate = cells.compare(cell, DENSE) if compared else None
        judged = compared and verdict.no_verdict != "baseline"
        spread = spread_of(dense)
        yield Row(
            arm=label,
            title=title,
            kind=kind,
            level=level,
            sparsity=point.sparsity,
            point=point,
            further={key: found[arm, level] for key, found in summaries.items() if key != run.primary},
            interval=mean_interval(list(cells.values.get(cell, {}).values())),
            to_dense=estimate,
            not_worse=not_worse(point, dense, estimate, verdict.margin) if judged else None,
            within_spread=within(point, dense, spread, verdict.lower_is_better)
            if compared and len(run.seeds) > 1
            else None,
            parameters=mean_known(result.cost.parameters if result.cost else None for result in results),
            alive=mean_known(result.cost.alive_parameters if result.cost else None for result in results),
            cost=_mean_cost([_cost(result) for result in results]),
            results=results,
        )


def _small_rows(rows: list[Row], first: Verdict, small: dict[str, Run]) -> Iterator[Row]:
    """The small dense nets, each at the sparsity of the ticket whose size is closest, beside the first arm's dense."""
    tickets = [row for row in rows if row.kind == "ticket" and row.alive is not None]
    for label, run in small.items():
        for row in _rows(run.title, label, run, first, own=False):
            size = row.parameters or 0.0
            twin = min(tickets, key=lambda ticket: abs((ticket.alive or 0.0) - size), default=None)
            sparsity = twin.sparsity if twin else 0.0
            yield replace(row, kind="small_dense", sparsity=sparsity)


def _lower_is_better(run: Run) -> bool:
    metric = run.metrics().get(run.primary)
    return metric.lower_is_better if metric else True


def _cost(result: LevelResult) -> Cost:
    """The dense model has no masks to find: that costs nothing."""
    timing, cost, found = result.timing, result.cost, result.level > 0
    return Cost(
        find_seconds=(timing.find_seconds if timing else None) if found else 0.0,
        train_seconds=timing.train_seconds if timing else None,
        find_flops=(cost.find_flops if cost else None) if found else 0.0,
        train_flops=cost.train_flops if cost else None,
        shared_from=timing.shared_from if timing else None,
    )


def _mean_cost(costs: list[Cost]) -> Cost:
    shared = {cost.shared_from for cost in costs}
    return Cost(
        find_seconds=mean_known(cost.find_seconds for cost in costs),
        train_seconds=mean_known(cost.train_seconds for cost in costs),
        find_flops=mean_known(cost.find_flops for cost in costs),
        train_flops=mean_known(cost.train_flops for cost in costs),
        shared_from=shared.pop() if len(shared) == 1 else None,
    )


def write_study_csv(comparison: Comparison) -> Path:
    """Writes `study.csv`: one row a seed of each kind of each arm at each level. Returns its path."""
    heads = ["arm", "kind", "level", "sparsity", "seed", "status"]
    costs = ["parameters", "alive_parameters", "train_flops", "find_flops", "find_seconds", "train_seconds"]
    costs.append("shared_from")
    keys = list(comparison.metrics)
    watched = any(result.validation for row in comparison.rows for result in row.results)
    heads += ["early_stopping_step"] if watched else []
    rows = []
    for row in comparison.rows:
        for result in row.results:
            cells: dict[str, Any] = {"arm": row.arm, "kind": row.kind, "level": row.level, "sparsity": row.sparsity}
            if row.kind != "small_dense":
                cells["sparsity"] = result.sparsity
            cells |= {"seed": result.seed, "status": result.status} | vars(_cost(result))
            cells |= {key: metric.value for key, metric in result.metrics.items()}
            if result.cost:
                cells |= {name: getattr(result.cost, name) for name in ("parameters", "alive_parameters")}
            if result.validation:
                cells["early_stopping_step"] = result.validation.early_stopping_step
            rows.append(cells)
    path = comparison.record.folder / "study.csv"
    replace_file(path, to_csv([*heads, *keys, *costs], rows))
    return path

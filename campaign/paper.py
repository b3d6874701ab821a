"""What the paper claims, what came out, how sure and at what price: the tables of docs/results.md and the README.

    python -m campaign.paper           # those of the claims, as Markdown
    python -m campaign.paper --write   # all, into the pages, between their marks

Everything is computed from the csv files in docs/results, by the rules of docs/verdict.md: paired ratios, margin 5 %. A
claim names its level beforehand, so nothing is corrected for looking at several.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from campaign import error_rates
from campaign.__main__ import CHECKOUT, entries
from gentickets.lab.results.estimation import MOST_SEEDS, Answer, Cells, Estimate
from gentickets.lab.results.reading import ARMS
from gentickets.lab.results.verdict import MARGIN
from gentickets.lab.results.verdict_words import ratio
from gentickets.lab.results.words import count, join
from gentickets.lab.study.comparison import KINDS

RESULTS = CHECKOUT / "docs" / "results"
PAGES = (CHECKOUT / "docs" / "results.md", CHECKOUT / "docs" / "verdict.md", CHECKOUT / "README.md")
LIST = Path(__file__).with_name("paper.yaml")
OVER_FEATURES = ("frechet", "kid")
"""Metrics over the features of classifiers: one of these sees the ratio some 5 % otherwise than another."""
_MARKED = re.compile(r"(<!-- campaign\.paper: (.+?) -->)\n.*?(<!-- campaign\.paper ends -->)", re.DOTALL)


@dataclass(frozen=True)
class Claim:
    """One line of `paper.yaml`. Cells are named `ARM/LEVEL` in a run's csv, `ARM/KIND/LEVEL` in a study's."""

    claim: str
    run: str | None = None
    metric: str = ""
    ticket: str = ""
    dense: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)
    told: str = ""
    price: str = ""
    short: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Outcome:
    """A claim beside what came out.

    `seeds`: all of the ticket's run; of these `failed` at this level or an earlier one, and `missing` have no row here;
    `beside_missing`: the same of what it is compared with. An estimate of None: that came through on no seed.
    `one_network`: the metric is over the features of a single network, whose seed moves it by as much as the margin.
    """

    claim: Claim
    sparsity: float
    seeds: int
    failed: int
    missing: int
    beside_missing: Mapping[str, int]
    one_network: bool
    to_dense: Estimate | None
    beside: Mapping[str, Estimate | None]
    price: str

    def _ahead(self, name: str) -> Answer:
        """As a run's verdict says it: a control that came through on no seed is beaten."""
        if self.beside_missing[name] > 0:
            return "undecided"
        estimate = self.beside[name]
        return estimate.ahead(MARGIN) if estimate else "shown" if self.seeds > 1 else "undecided"

    @property
    def verdict(self) -> str:
        """Shown, refuted or undecided, with what decides it."""
        if self.failed:
            return f"**refuted**: {self.failed} of {count(self.seeds, 'seed')} failed"
        if self.missing:
            return f"undecided: {count(self.missing, 'seed')} still to come"
        whole = self.to_dense is not None and self.to_dense.seeds == self.seeds  # else the dense model lacks some
        first = self.to_dense.not_worse_by(MARGIN) if self.to_dense and whole else "undecided"
        ahead = {name: self._ahead(name) for name in self.beside}
        against = ["worse than " + (self.claim.told.removeprefix("of ") or "dense")] if first == "refuted" else []
        against += [f"not ahead of {name}" for name, answer in ahead.items() if answer == "refuted"]
        if against:
            return f"**refuted**: {join(against)}"
        needed = (
            {"as good": _more(self.to_dense, "seeds_for_not_worse") if whole else ""} if first == "undecided" else {}
        )
        for name, answer in ahead.items():
            if answer == "undecided":
                complete = not self.beside_missing[name]
                needed[f"ahead of {name}"] = _more(self.beside[name], "seeds_for_ahead") if complete else ""
        unknown = [what + more for what, more in needed.items()]
        if unknown:
            return f"undecided: {join(unknown)}"
        if self.one_network:
            return "shown by one classifier only" if self.beside else "as good by one classifier only; no controls"
        return "**shown**" if self.beside or self.claim.told else "as good: **shown**; no controls"


def claims(path: Path = LIST) -> list[Claim]:
    """The list. `nearest: S` stands for the four cells of a run at its level with controls that is nearest to it."""
    return [Claim(**_named(dict(item))) for item in yaml.safe_load(path.read_text(encoding="utf-8"))]


def outcome(claim: Claim, results: Path = RESULTS) -> Outcome | None:
    """What the csv of a claim's run says of it; None without one. Raises `KeyError` for a cell that is not there."""
    if claim.run is None:
        return None
    cells = _cells_of(results, claim.run, claim.metric)
    rows = _read(results / f"{claim.run}.csv")
    there = Counter(_cell(row) for row in rows)
    for cell in (claim.ticket, claim.dense, *claim.beside.values()):
        if cell not in there:
            raise KeyError(f"{claim.run}.csv: no {cell}, of {', '.join(there)}")
    through = cells.values.get(claim.ticket, {})
    ours = [row for row in rows if _cell(row) == claim.ticket]
    chain = [row for row in rows if _is_above(row, ours[0])]
    seeds, here = {row["seed"] for row in chain}, {row["seed"] for row in ours}
    failed = {row["seed"] for row in chain if row["status"] != "complete"}
    return Outcome(
        claim=claim,
        sparsity=sum(float(row["sparsity"]) for row in ours) / len(ours),
        seeds=len(seeds),
        failed=len((failed | here) - {seed for seed in here if int(seed) in through}),
        missing=len(seeds - here - failed),
        beside_missing={name: len(here) - there[cell] for name, cell in claim.beside.items()},
        one_network=claim.metric in OVER_FEATURES
        and claim.ticket not in _networks_of(results, claim.run, claim.metric),
        to_dense=cells.compare(claim.ticket, claim.dense),
        beside={name: cells.compare(claim.ticket, cell) for name, cell in claim.beside.items()},
        price=claim.price or _price(results / f"{claim.run}-timings.csv"),
    )


def table(found: Iterable[tuple[Claim, Outcome | None]]) -> list[str]:
    """The table of docs/results.md."""
    lines = [
        "| claim | ours, at | of dense | of its controls | seeds | price | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim, ours in found:
        if ours is None:
            lines.append(f"| {claim.claim} | – | – | – | – | – | not run |")
            continue
        beside = "; ".join(f"{name} {ratio(estimate)}" for name, estimate in ours.beside.items()) or "–"
        at = f"[{_percent(ours.sparsity)}](results/{claim.run}.csv)"
        of_dense = " ".join([ratio(ours.to_dense), claim.told]).strip()
        cells = (claim.claim, at, of_dense, beside, str(ours.seeds), ours.price or "not kept", ours.verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def short_table(found: Iterable[tuple[Claim, Outcome | None]]) -> list[str]:
    """The README's: the claims that have a short name."""
    lines = ["| | the paper | ours | of dense | verdict |", "|---|---|---|---|---|"]
    for claim, ours in found:
        if claim.short and ours is None:
            lines.append(f"| {claim.short} | {claim.paper} | – | – | not run |")
        elif claim.short and ours is not None:
            at, seeds = _percent(ours.sparsity), count(ours.seeds, "seed")
            lines.append(f"| {claim.short} | {claim.paper} | {at}, {seeds} | {ratio(ours.to_dense)} | {ours.verdict} |")
    return lines


def ladder(run: str, metric: str, results: Path = RESULTS) -> list[str]:
    """Every level of a run: mean and standard deviation over its seeds, and the ticket's ratio to the dense model."""
    cells = _cells_of(results, run, metric)
    lines = ["| sparsity | ticket | of dense | random mask | re-drawn weights |", "|---|---|---|---|---|"]
    for level, name in _levels(results, run):
        means = [_mean(cells.values.get(f"{arm}/{level}", {})) for arm in ARMS]
        of_dense = ratio(cells.compare(f"ticket/{level}", "ticket/0")) if level else ""
        lines.append(f"| {' | '.join([name, means[0], of_dense, *means[1:]])} |")
    return lines


def study(run: str, metric: str, results: Path = RESULTS) -> list[str]:
    """Every level of every arm of a study, and its ratio to the dense model of its arm, which is told once where arms
    share it. Small dense nets are arms of their own, beside the first dense model."""
    cells, rows = _cells_of(results, run, metric), _read(results / f"{run}.csv")
    heads = ["arm", "sparsity", "ticket", "of dense", KINDS["random_mask"], KINDS["redrawn_weights"]]
    lines, told = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], list[Mapping[int, float]]()
    for row in {_cell(row): row for row in rows}.values():
        arm, kind, level = row["arm"], row["kind"], row["level"]
        values = cells.values.get(_cell(row), {})
        if kind == "dense" and values not in told:
            told.append(values)
            lines.append(f"| {arm} | dense | {_mean(values)} |  |  |  |")
        if kind in ("ticket", "small_dense"):
            sparsity = statistics.fmean(float(other["sparsity"]) for other in rows if _cell(other) == _cell(row))
            of_dense = ratio(cells.compare(_cell(row), f"{arm if kind == 'ticket' else rows[0]['arm']}/dense/0"))
            controls = [_mean(cells.values.get(f"{arm}/{control}/{level}", {})) for control in ARMS[1:]]
            lines.append(f"| {' | '.join([arm, _percent(sparsity), _mean(values), of_dense, *controls])} |")
    return lines


def rewinds(early: str, late: str, metric: str, results: Path = RESULTS) -> list[str]:
    """Two runs that differ in how late they rewind: their tickets beside their own dense models and each other."""
    runs = {name: _cells_of(results, name, metric) for name in (early, late)}
    both = Cells({f"{name}/{cell}": of for name, run in runs.items() for cell, of in run.values.items()}, True)
    lines = ["| sparsity | rewound early: of dense | late: of dense | late beside early |", "|---|---|---|---|"]
    for level, name in _levels(results, late):
        cell = f"ticket/{level}"
        told = [ratio(runs[run].compare(cell, "ticket/0")) if level else "" for run in (early, late)]
        beside = ratio(both.compare(f"{late}/{cell}", f"{early}/{cell}"))
        lines.append(f"| {' | '.join([name, *told, beside])} |")
    return lines


def dense(metric: str, *runs: str, results: Path = RESULTS) -> list[str]:
    """How far the dense models of a run's seeds are from one another: whether so many seeds can tell a difference."""
    lines = ["| run | its seeds | mean | deviation | largest to smallest |", "|---|---|---|---|---|"]
    for run in runs:
        found = _cells_of(results, run, metric).values["ticket/0"]
        values = [found[seed] for seed in sorted(found)]
        mean, each = statistics.fmean(values), ", ".join(f"{value:.3g}" for value in values)
        spread = f"{statistics.stdev(values) / mean * 100:.0f} %"
        lines.append(f"| {run} | {each} | {mean:.3g} | {spread} | {max(values) / min(values):.2f} |")
    return lines


def ranks(run: str, other: str, metric: str, results: Path = RESULTS) -> list[str]:
    """How alike two judges order the networks of one run: Spearman's rank correlation, of all and of the tickets."""
    one, two = (
        {
            (row["seed"], row["arm"], row["level"]): float(row[metric])
            for row in _read(results / f"{name}.csv")
            if row[metric]
        }
        for name in (run, other)
    )
    both = sorted(one.keys() & two.keys())
    lines = ["| networks | how many | rank correlation |", "|---|---|---|"]
    for name, of in (("all", both), ("dense and tickets alone", [place for place in both if place[1] == "ticket"])):
        found = stats.spearmanr([one[place] for place in of], [two[place] for place in of]).statistic
        lines.append(f"| {name} | {len(of)} | {found:.2f} |")
    return lines


def wrong(results: Path = RESULTS) -> list[str]:
    """How often the rules are wrong: of the simulated rows those of 2, 4 and 10 seeds with noise of 3 and 10 %."""
    rows = json.loads((results / "error-rates.json").read_text(encoding="utf-8"))["rows"]
    return error_rates.table([row for row in rows if row["seeds"] in (2, 4, 10) and row["noise"] > 0.01]).splitlines()


def progress(results: Path = RESULTS) -> list[str]:
    """What the campaign's list asks for, in its order, and what of it is done: what has a csv."""
    lines = ["| run | recipe, budget and changes | done |", "|---|---|---|"]
    for entry in entries():
        asked = " ".join([f"`{Path(entry.recipe).stem}`, {entry.budget}", *(f"`{change}`" for change in entry.changes)])
        done = f"[csv](results/{entry.name}.csv)" if (results / f"{entry.name}.csv").exists() else "not yet"
        lines.append(f"| {entry.name} | {asked} | {done} |")
    return lines


def renewed(page: str) -> str:
    """A page with what stands between marks written again: `table`, `short table`, `progress`, `ladder RUN
    METRIC`, `study RUN METRIC`, `rewinds EARLY LATE METRIC`, `dense METRIC RUN…`, `ranks RUN OTHER METRIC`, `wrong`."""
    return _MARKED.sub(lambda found: "\n".join([found[1], "", *_lines(found[2]), "", found[3]]), page)


def _lines(what: str) -> list[str]:
    name, *said = what.split()
    of_runs: dict[str, Callable[..., list[str]]]
    of_runs = {
        "ladder": ladder,
        "rewinds": rewinds,
        "study": study,
        "dense": dense,
        "ranks": ranks,
        "wrong": wrong,
        "progress": progress,
    }
    if name in of_runs:
        return of_runs[name](*said)
    return {"table": table, "short table": short_table}[what]((one, outcome(one)) for one in claims())


def _levels(results: Path, run: str) -> list[tuple[int, str]]:
    """The levels of a run's tickets in order, and what a table calls each: its sparsity, or `dense`."""
    tickets = (row for row in _read(results / f"{run}.csv") if row["arm"] == "ticket")
    found = {int(row["level"]): float(row["sparsity"]) for row in tickets}
    return [(level, _percent(sparsity) if level else "dense") for level, sparsity in sorted(found.items())]


def _percent(share: float) -> str:
    """`89.3 %`, as the pages write it."""
    return f"{share * 100:.1f} %"


def _mean(values: Mapping[int, float]) -> str:
    """`0.1451 ± 0.0003`: four digits, and the deviation to as many places."""
    found = list(values.values())
    if not found:
        return ""
    mean = f"{statistics.fmean(found):#.4g}".rstrip(".")
    places = len(mean.partition(".")[2])
    if len(found) < 2:
        return mean
    deviation = statistics.stdev(found)
    return f"{mean} ± {deviation:.{places}f}" if deviation >= 0.5 * 10**-places else f"{mean} ± {deviation:.1g}"


def _named(item: dict[str, Any], results: Path = RESULTS) -> dict[str, Any]:
    nearest = item.pop("nearest", None)
    if nearest is None:
        return item
    tickets = [row for row in _read(results / f"{item['run']}.csv") if row["arm"] == "ticket"]
    controlled = {row["level"] for row in _read(results / f"{item['run']}.csv") if row["arm"] != "ticket"}
    away = {row["level"]: abs(float(row["sparsity"]) - nearest) for row in tickets if row["level"] in controlled}
    level = min(away, key=away.__getitem__)
    controls = {"random mask": f"random_mask/{level}", "re-drawn weights": f"redrawn_weights/{level}"}
    return {"ticket": f"ticket/{level}", "dense": "ticket/0", "beside": controls, **item}


def _cell(row: Mapping[str, str]) -> str:
    return "/".join(row[key] for key in ("arm", "kind", "level") if key in row)


def _more(estimate: Estimate | None, question: str) -> str:
    """How many more seeds would probably tell, as the end of a phrase."""
    more = getattr(estimate, question)(MARGIN) if estimate else None
    if more is None:
        return ""
    return f" (some {count(int(more), 'more seed')})" if math.isfinite(more) else f" (not even {MOST_SEEDS} seeds)"


def _cells_of(results: Path, run: str, metric: str) -> Cells:
    """The cells of a metric of which less is better, with what each of several networks found where it was kept."""
    values: dict[str, dict[int, float]] = {}
    for row in _read(results / f"{run}.csv"):
        if row["status"] == "complete" and row[metric] and math.isfinite(float(row[metric])):
            values.setdefault(_cell(row), {})[int(row["seed"])] = float(row[metric])
    return Cells(values, lower_is_better=True, by_network=_networks_of(results, run, metric))


def _networks_of(results: Path, run: str, metric: str) -> dict[str, dict[int, list[float]]]:
    """Cell → seed → what each of several networks found; empty where that was not kept."""
    path, found = results / f"{run}-networks.csv", dict[str, dict[int, list[float]]]()
    for row in _read(path) if path.exists() else []:
        if row["metric"] == metric:
            found.setdefault(_cell(row), {}).setdefault(int(row["seed"]), []).append(float(row["value"]))
    return found


def _is_above(row: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    """Whether a row is of the chain of tickets that `ours` is of, at its level or before."""
    kind = row.get("kind") in (None, "dense", ours.get("kind"))
    return row["arm"] == ours["arm"] and kind and int(row["level"]) <= int(ours["level"])


def _price(path: Path) -> str:
    """The hours of one core that all trainings and their judging took."""
    if not path.exists():
        return ""
    rows = _read(path)
    seconds = sum(float(row["train_seconds"] or 0) + float(row["evaluate_seconds"] or 0) for row in rows)
    return f"{seconds / 3600:.1f} core hours"


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m campaign.paper", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into the pages, in place of printing")
    if parser.parse_args().write:
        for page in PAGES:
            page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n".join([*_lines("table"), "", *_lines("short table")]))


if __name__ == "__main__":
    main()

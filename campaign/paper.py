"""What the paper claims, what came out, how sure and at what price: the tables of docs/results.md and the README.

    python -m campaign.paper           # those of the claims, as Markdown
    python -m campaign.paper --write   # all, into the pages, between their marks

Everything is computed from the csv files in docs/results, by the rules of docs/verdict.md: paired ratios, margin 5 %. A
claim names its level beforehand, so nothing is corrected for looking at several.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from campaign.__main__ import CHECKOUT
from campaign.tables import OF_RUNS, RESULTS, cell_of, cells_of, networks_of, percent, read
from gentickets.lab.results.baseline import Lag, Point, Reference, falls_short, lag_of, told
from gentickets.lab.results.estimation import MOST_SEEDS, Answer, Estimate
from gentickets.lab.results.summary import Summary
from gentickets.lab.results.verdict import MARGIN
from gentickets.lab.results.verdict_words import ratio
from gentickets.lab.results.words import count, join, number

PAGES = (CHECKOUT / "docs" / "results.md", CHECKOUT / "docs" / "verdict.md", CHECKOUT / "README.md")
LIST = Path(__file__).with_name("paper.yaml")
OVER_FEATURES = ("frechet", "kid")
"""Metrics over the features of classifiers: one of these sees the ratio some 5 % otherwise than another."""
_MARKED = re.compile(r"(<!-- campaign\.paper: (.+?) -->)\n.*?(<!-- campaign\.paper ends -->)", re.DOTALL)


@dataclass(frozen=True)
class Claim:
    """One line of `paper.yaml`. Cells are named `ARM/LEVEL` in a run's csv, `ARM/KIND/LEVEL` in a study's. Without
    `dense` the claim is of what stands `beside` it alone. `longer` names the run whose dense model, the same network
    on the same images, was trained longer: the claim's own reference."""

    claim: str
    run: str | None = None
    metric: str = ""
    ticket: str = ""
    dense: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)
    longer: str = ""
    told: str = ""
    price: str = ""
    short: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Outcome:
    """A claim beside what came out.

    `seeds`: all of the ticket's run; of these `failed` at this level or an earlier one, and `missing` have no row here;
    `beside_missing`: the same of what it is compared with. An estimate of None: that came through on no seed.
    `lag`: of the dense model's average behind its weights; `undertrained`: how far the dense model is from what a
    longer training makes of it, where that is too far to compare with, else nothing. `one_network`: the metric is over
    the features of a single network, whose seed moves it by as much as the margin.
    `to_dense` of a claim without `dense` is None, and no question.
    """

    claim: Claim
    sparsity: float
    seeds: int
    failed: int
    missing: int
    beside_missing: Mapping[str, int]
    one_network: bool
    lag: Lag | None
    undertrained: str
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
        if self.lag:
            return (
                f"no verdict: the dense average lags ({number(self.lag.averaged)}, its weights {number(self.lag.raw)})"
            )
        if self.undertrained:
            return f"no verdict: the dense model is not trained far enough ({self.undertrained})"
        if self.failed:
            return f"**refuted**: {self.failed} of {count(self.seeds, 'seed')} failed"
        if self.missing:
            return f"undecided: {count(self.missing, 'seed')} still to come"
        whole = self.to_dense is not None and self.to_dense.seeds == self.seeds  # else the dense model lacks some
        first: Answer = self.to_dense.not_worse_by(MARGIN) if self.to_dense and whole else "undecided"
        if not self.claim.dense:
            first = "shown"
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
    cells = cells_of(results, claim.run, claim.metric)
    rows = read(results / f"{claim.run}.csv")
    there = Counter(cell_of(row) for row in rows)
    for cell in (claim.ticket, claim.dense, *claim.beside.values()):
        if cell and cell not in there:
            raise KeyError(f"{claim.run}.csv: no {cell}, of {', '.join(there)}")
    by_weights = f"{claim.metric}_raw"
    raw = cells_of(results, claim.run, by_weights).values if by_weights in rows[0] else {}
    through = cells.values.get(claim.ticket, {})
    ours = [row for row in rows if cell_of(row) == claim.ticket]
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
        one_network=claim.metric in OVER_FEATURES and claim.ticket not in networks_of(results, claim.run, claim.metric),
        lag=lag_of(cells.values.get(claim.dense, {}), raw.get(claim.dense, {})),
        undertrained=_undertrained(claim, cells.values[claim.dense], results) if claim.longer else "",
        to_dense=cells.compare(claim.ticket, claim.dense) if claim.dense else None,
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
        at = f"[{percent(ours.sparsity)}](results/{claim.run}.csv)"
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
            at, seeds = percent(ours.sparsity), count(ours.seeds, "seed")
            lines.append(f"| {claim.short} | {claim.paper} | {at}, {seeds} | {ratio(ours.to_dense)} | {ours.verdict} |")
    return lines


def renewed(page: str) -> str:
    """A page with what stands between marks written again: `table`, `short table`, and the tables of `OF_RUNS` with
    what they are of, such as `ladder RUN METRIC`."""
    return _MARKED.sub(lambda found: "\n".join([found[1], "", *_lines(found[2]), "", found[3]]), page)


def _lines(what: str) -> list[str]:
    name, *said = what.split()
    if name in OF_RUNS:
        return OF_RUNS[name](*said)
    return {"table": table, "short table": short_table}[what]((one, outcome(one)) for one in claims())


def _named(item: dict[str, Any], results: Path = RESULTS) -> dict[str, Any]:
    nearest = item.pop("nearest", None)
    if nearest is None:
        return item
    tickets = [row for row in read(results / f"{item['run']}.csv") if row["arm"] == "ticket"]
    controlled = {row["level"] for row in read(results / f"{item['run']}.csv") if row["arm"] != "ticket"}
    away = {row["level"]: abs(float(row["sparsity"]) - nearest) for row in tickets if row["level"] in controlled}
    level = min(away, key=away.__getitem__)
    controls = {"random mask": f"random_mask/{level}", "re-drawn weights": f"redrawn_weights/{level}"}
    return {"ticket": f"ticket/{level}", "dense": "ticket/0", "beside": controls, **item}


def _more(estimate: Estimate | None, question: str) -> str:
    """How many more seeds would probably tell, as the end of a phrase."""
    more = getattr(estimate, question)(MARGIN) if estimate else None
    if estimate is None or more is None:
        return ""
    if math.isfinite(more):
        return f" (some {count(int(more), 'more seed')})"
    differ = math.isfinite(getattr(estimate.if_networks_agreed, question)(MARGIN))
    return " (first by more classifiers)" if differ else f" (not even {MOST_SEEDS} seeds)"


def _is_above(row: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    """Whether a row is of the chain of tickets that `ours` is of, at its level or before."""
    kind = row.get("kind") in (None, "dense", ours.get("kind"))
    return row["arm"] == ours["arm"] and kind and int(row["level"]) <= int(ours["level"])


def _undertrained(claim: Claim, dense: Mapping[int, float], results: Path) -> str:
    """How far a claim's dense model is from that of the run that trained it longer, where that is too far."""
    longer = list(cells_of(results, claim.longer, claim.metric).values["ticket/0"].values())
    steps = max(int(row["end_step"]) for row in read(results / f"{claim.longer}.csv"))
    best = Point(steps, statistics.fmean(longer), statistics.stdev(longer), len(longer))
    reference = Reference("", (best,))
    ours = Summary("ticket", 0, 0.0, statistics.fmean(dense.values()), None, len(dense))
    return told(ours, reference) if falls_short(ours, reference) else ""


def _price(path: Path) -> str:
    """The hours of one core that all trainings and their judging took."""
    if not path.exists():
        return ""
    rows = read(path)
    seconds = sum(float(row["train_seconds"] or 0) + float(row["evaluate_seconds"] or 0) for row in rows)
    return f"{seconds / 3600:.1f} core hours"


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

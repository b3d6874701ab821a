"""The tables of docs/results.md, each computed from the csv files that it is of."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from scipy import stats

from campaign import error_rates
from campaign.__main__ import CHECKOUT, entries
from gentickets.lab.results.estimation import Cells
from gentickets.lab.results.part import Part, are_unlike
from gentickets.lab.results.reading import ARMS
from gentickets.lab.results.verdict_words import ratio
from gentickets.lab.study.comparison import KINDS
from gentickets.options import CONTROLS

RESULTS = CHECKOUT / "docs" / "results"


def ladder(run: str, metric: str, results: Path = RESULTS) -> list[str]:
    """Every level of a run: mean and standard deviation over its seeds, and the ticket's ratio to the dense model."""
    cells = cells_of(results, run, metric)
    lines = ["| sparsity | ticket | of dense | random mask | re-drawn weights |", "|---|---|---|---|---|"]
    for level, name in _levels(results, run):
        means = [_mean(cells.values.get(f"{arm}/{level}", {})) for arm in ARMS]
        of_dense = ratio(cells.compare(f"ticket/{level}", "ticket/0")) if level else ""
        lines.append(f"| {' | '.join([name, means[0], of_dense, *means[1:]])} |")
    return lines


def study(run: str, metric: str, results: Path = RESULTS) -> list[str]:
    """Every level of every arm of a study, and its ratio to the dense model of its arm, which is told once where arms
    share it. Small dense nets are arms of their own, beside the first dense model. Where arms prune unlike parts of one
    network, sparsity is of the whole network, as on the study's own page."""
    cells, rows = cells_of(results, run, metric), read(results / f"{run}.csv")
    parts = _parts(rows)
    heads = [
        "arm",
        "sparsity of the network" if parts else "sparsity",
        "ticket",
        "of dense",
        KINDS["random_mask"],
        KINDS["redrawn_weights"],
    ]
    lines, told = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], list[Mapping[int, float]]()
    for row in {cell_of(row): row for row in rows}.values():
        arm, kind, level = row["arm"], row["kind"], row["level"]
        values = cells.values.get(cell_of(row), {})
        if kind == "dense" and values not in told:
            told.append(values)
            lines.append(f"| {arm} | dense | {_mean(values)} |  |  |  |")
        if kind in ("ticket", "small_dense"):
            sparsity = statistics.fmean(float(other["sparsity"]) for other in rows if cell_of(other) == cell_of(row))
            sparsity = parts[arm].of_network(sparsity) if arm in parts else sparsity
            of_dense = ratio(cells.compare(cell_of(row), f"{arm if kind == 'ticket' else rows[0]['arm']}/dense/0"))
            controls = [_mean(cells.values.get(f"{arm}/{control}/{level}", {})) for control in CONTROLS]
            lines.append(f"| {' | '.join([arm, percent(sparsity), _mean(values), of_dense, *controls])} |")
    return lines


def _parts(rows: list[dict[str, str]]) -> dict[str, Part]:
    """Arm → what it masks, where arms mask unlike parts of one network; else empty."""
    size = {row["arm"]: int(row["parameters"]) for row in rows if row["kind"] == "dense"}
    found = {
        row["arm"]: Part(
            round((size[row["arm"]] - int(row["alive_parameters"])) / float(row["sparsity"])), size[row["arm"]], ()
        )
        for row in rows
        if row["kind"] == "ticket" and int(row["parameters"]) == size.get(row["arm"])
    }
    return found if are_unlike(found.values()) else {}


def costs(run: str, results: Path = RESULTS) -> list[str]:
    """What the deepest ticket of each arm of a study cost, and a small dense net, beside the arm's dense model: means
    over the seeds; `of dense` is finding and training together, seed by seed."""
    rows, found = read(results / f"{run}.csv"), dict[tuple[str, str], dict[str, dict[str, str]]]()
    for row in rows:  # the deepest level comes last
        found.setdefault((row["arm"], row["kind"]), {})[row["seed"]] = row
    heads = ["arm", "sparsity", "live weights", "FLOPs to find", "to train", "of dense"]
    lines = [f"| {' | '.join([*heads, 'seconds to find', 'to train', 'of dense'])} |", "|---" * 9 + "|"]
    for (arm, kind), ours in found.items():
        dense = found[arm if (arm, "dense") in found else rows[0]["arm"], "dense"]
        if kind not in ("ticket", "small_dense") and (arm, kind) != (rows[0]["arm"], "dense"):
            continue
        told = []
        for unit, words in (("flops", "{:.2g}"), ("seconds", "{:.0f}")):
            each = {seed: _both(row, unit) for seed, row in ours.items()}
            of_dense = statistics.fmean(sum(each[seed]) / sum(_both(dense[seed], unit)) for seed in each)
            told += [words.format(statistics.fmean(of)) for of in zip(*each.values(), strict=True)] + [
                f"{of_dense:.2f}"
            ]
        sparsity = percent(statistics.fmean(float(row["sparsity"]) for row in ours.values()))
        alive = f"{statistics.fmean(float(row['alive_parameters']) for row in ours.values()):,.0f}"
        lines.append(f"| {' | '.join([arm, 'dense' if kind == 'dense' else sparsity, alive, *told])} |")
    return lines


def _both(row: Mapping[str, str], unit: str) -> tuple[float, float]:
    return float(row[f"find_{unit}"] or 0), float(row[f"train_{unit}"])


def rewinds(early: str, late: str, metric: str, results: Path = RESULTS) -> list[str]:
    """Two runs that differ in how late they rewind: their tickets beside their own dense models and each other."""
    runs = {name: cells_of(results, name, metric) for name in (early, late)}
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
        found = cells_of(results, run, metric).values["ticket/0"]
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
            for row in read(results / f"{name}.csv")
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


def _levels(results: Path, run: str) -> list[tuple[int, str]]:
    """The levels of a run's tickets in order, and what a table calls each: its sparsity, or `dense`."""
    tickets = (row for row in read(results / f"{run}.csv") if row["arm"] == "ticket")
    found = {int(row["level"]): float(row["sparsity"]) for row in tickets}
    return [(level, percent(sparsity) if level else "dense") for level, sparsity in sorted(found.items())]


def percent(share: float) -> str:
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


def cell_of(row: Mapping[str, str]) -> str:
    return "/".join(row[key] for key in ("arm", "kind", "level") if key in row)


def cells_of(results: Path, run: str, metric: str) -> Cells:
    """The cells of a metric of which less is better, with what each of several networks found where it was kept."""
    values: dict[str, dict[int, float]] = {}
    for row in read(results / f"{run}.csv"):
        if row["status"] == "complete" and row[metric] and math.isfinite(float(row[metric])):
            values.setdefault(cell_of(row), {})[int(row["seed"])] = float(row[metric])
    return Cells(values, lower_is_better=True, by_network=networks_of(results, run, metric))


def networks_of(results: Path, run: str, metric: str) -> dict[str, dict[int, list[float]]]:
    """Cell → seed → what each of several networks found; empty where that was not kept."""
    path, found = results / f"{run}-networks.csv", dict[str, dict[int, list[float]]]()
    for row in read(path) if path.exists() else []:
        if row["metric"] == metric:
            found.setdefault(cell_of(row), {}).setdefault(int(row["seed"]), []).append(float(row["value"]))
    return found


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


OF_RUNS: Mapping[str, Callable[..., list[str]]] = {
    "ladder": ladder,
    "study": study,
    "costs": costs,
    "rewinds": rewinds,
    "dense": dense,
    "ranks": ranks,
    "wrong": wrong,
    "progress": progress,
}
"""The word between a page's marks → its table; more words are the table's arguments."""

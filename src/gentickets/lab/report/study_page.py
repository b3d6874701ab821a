"""The page on a study and its tables in the terminal: every arm beside the dense model, and what was published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gentickets.files import replace_file
from gentickets.lab.report.rendering import environment, inlined, seconds, short
from gentickets.lab.report.side_by_side import SideBySide, side_by_side
from gentickets.lab.report.study_figure import write_study_figure
from gentickets.lab.report.transfers import TRANSFER_WORDS, transfer_matrix
from gentickets.lab.results.estimation import CONFIDENCE, Answer
from gentickets.lab.results.verdict_words import headline as headline_of
from gentickets.lab.results.verdict_words import ratio
from gentickets.lab.results.verdict_words import sentences as sentences_of
from gentickets.lab.results.words import count, join, number, percent, plus_minus, share
from gentickets.lab.study.comparison import KINDS, Comparison, Row, read_comparison, write_study_csv
from gentickets.lab.study.study import DENSE, PublishedRow

_SAID: dict[Answer | bool | None, str] = {
    True: "yes",
    False: "no",
    None: "–",
    "shown": "yes",
    "refuted": "no",
    "undecided": "undecided",
}


def write_study(study: Path | Comparison) -> Path:
    """Writes `study.csv`, the figure and `study.html` into a study's folder; returns the page's path.

    Raises `RecipeError` as `read_comparison` does.
    """
    comparison = study if isinstance(study, Comparison) else read_comparison(study)
    write_study_csv(comparison)
    drawing = write_study_figure(comparison)
    page = (
        environment()
        .get_template("study.html")
        .render(
            comparison=comparison,
            record=comparison.record,
            metric=comparison.metric,
            headline=headline(comparison),
            sentences=sentences(comparison),
            figure=inlined(drawing, "s") if drawing else None,
            arms=[_arm_cells(comparison, arm) for arm in comparison.runs],
            beside=_side_by_side(comparison),
            transfers=transfer_matrix(comparison),
            transfer_words=TRANSFER_WORDS,
            published=published_rows(comparison),
            published_words=published_words(comparison),
            heads=_heads(comparison),
            rows=[_cells(comparison, row) for row in comparison.rows],
            failures=[
                (row, result) for row in comparison.rows for result in row.results if result.status != "complete"
            ],
            kinds=KINDS,
            confidence=f"{CONFIDENCE:.0%}",
            margin=share(comparison.margin),
        )
    )
    path = comparison.record.folder / "study.html"
    replace_file(path, page.encode())
    return path


def _side_by_side(comparison: Comparison) -> SideBySide | None:
    """The dense model of the first seed, each arm's deepest ticket with controls, and the small dense nets."""
    rows = [(comparison.dense, "dense model")]
    rows += [
        (comparison.at_controls(arm)[-1], title)
        for arm, title in comparison.record.arms.items()
        if _has(arm, comparison)
    ]
    rows += [(row, row.title) for row in comparison.rows if row.kind == "small_dense"]
    first = next(iter(comparison.runs.values()))
    seed = first.seeds[0]
    shown = [(title, one) for row, title in rows for one in row.results if one.seed == seed]
    return side_by_side(first, comparison.key, shown)


def _has(arm: str, comparison: Comparison) -> bool:
    return arm in comparison.runs and bool(comparison.at_controls(arm))


# -- in words -----------------------------------------------------------------------------------------------


def headline(comparison: Comparison) -> str:
    """Which arm's tickets are shown to stay near the dense model furthest."""
    does = f"within {share(comparison.margin)} of the dense model"
    if comparison.seeds == 1:
        return f"One seed: what stays {does} may be chance, and is shown of no arm."
    over = count(comparison.seeds, "seed")
    reach = {arm: _reached(comparison, arm) for arm in comparison.verdicts}
    deepest = max((sparsity for sparsity in reach.values() if sparsity is not None), default=None)
    if deepest is None:
        return f"No arm's tickets are shown to stay {does} from the first level on ({over})."
    titles = comparison.record.arms
    furthest = join(titles[arm] for arm, sparsity in reach.items() if sparsity and abs(sparsity - deepest) < 5e-4)
    return f"Shown furthest to stay {does}: {furthest}, up to {percent(deepest)} sparsity{comparison.of_what} ({over})."


def unjudged(comparison: Comparison) -> list[str]:
    """Of which arms the dense model is none to compare with, and why: those that share one share what is said of it."""
    arms: dict[str, list[str]] = {}
    for arm, verdict in comparison.verdicts.items():
        if verdict.no_verdict == "baseline":
            arms.setdefault(headline_of(verdict), []).append(comparison.record.arms[arm])
    return [f"{join(titles)}: {words}" for words, titles in arms.items()]


def _reached(comparison: Comparison, arm: str) -> float | None:
    """The sparsity, as the rows have it, up to which an arm is shown to be not worse than its dense model."""
    deepest = comparison.verdicts[arm].deepest
    return next((row.sparsity for row in comparison.of(arm) if deepest and row.level == deepest.level), None)


def sentences(comparison: Comparison) -> list[str]:
    """What must be known to read the tables right."""
    said = []
    titles = comparison.record.arms
    if comparison.unread:
        said.append(f"Nothing is complete yet of {join(titles[arm] for arm in comparison.unread)}.")
    if len(comparison.rulers) > 1:
        by = "; ".join(f"{join(titles[arm] for arm in arms)} by {label}" for label, arms in comparison.rulers.items())
        said.append(f"Arms are measured by unlike rulers, each beside its own dense model alone: {by}.")
    if comparison.of_network:
        known = ((titles[arm], verdict.part) for arm, verdict in comparison.verdicts.items() if verdict.part)
        pruned = "; ".join(f"{title}: {part.masked:,} of {part.parameters:,}" for title, part in known)
        said.append(
            f"Arms prune unlike parts of the network, so sparsity is of all its parameters here, and on an arm's own "
            f"page of what it prunes ({pruned})."
        )
    said += unjudged(comparison)
    for arm, verdict in comparison.verdicts.items():
        said += [
            f"{titles[arm]}: {sentence}"
            for sentence in sentences_of(verdict, comparison.runs[arm])
            if sentence.startswith("The run is not")
        ]
    failed = [row for row in comparison.rows if row.point.failed]
    if failed:
        places = join(f"{row.title}, {KINDS[row.kind]} at {percent(row.sparsity)}" for row in failed)
        said.append(f"Failed on some seed: {places}.")
    if comparison.seeds == 1:
        said.append("With one seed nothing is measured against a spread: better and worse may be chance.")
    else:
        methods = sorted(
            {row.to_dense.method for row in comparison.rows if row.to_dense and row.to_dense.low is not None}
        )
        said.append(f"Ratios to the dense model seed by seed, 95 % intervals ({join(methods)}); each row by itself.")
        said.append(
            "How trainings scatter is told by all arms with the same dense model; an arm's own page knows its own."
        )
    shared = sorted({row.arm for row in comparison.rows if row.kind == "dense" and row.cost.shared_from})
    if shared:
        said.append(f"The dense training was done once and shared with {join(titles[arm] for arm in shared)}.")
    if comparison.record.parts:
        parts = join(comparison.record.parts.values())
        said.append(f"Made of runs that are not compared, each with a page of its own: {parts}.")
    if any(row.kind == "small_dense" for row in comparison.rows):
        said.append(
            "A small dense net is as narrow as it takes to have the ticket's live parameters, trained from scratch."
        )
    said.append(f"All trainings together took {seconds(comparison.trained_seconds())} of one process's time.")
    return said


# -- the tables ---------------------------------------------------------------------------------------------


def _heads(comparison: Comparison) -> list[str]:
    return [
        "kind",
        "sparsity",
        comparison.metric.label,
        f"{CONFIDENCE:.0%} confidence interval",
        "n",
        "of dense",
        f"within {share(comparison.margin)}",
        "within 1 sd",
        *(metric.label for key, metric in comparison.metrics.items() if key != comparison.key),
        "live parameters",
        "cost to find",
        "cost to train",
        "FLOPs to find",
        "FLOPs to train",
    ]


def _cells(comparison: Comparison, row: Row) -> dict[str, Any]:
    alive = row.parameters if row.kind == "small_dense" else row.alive
    further = [row.further.get(key) for key in comparison.metrics if key != comparison.key]
    cells = [
        KINDS[row.kind],
        percent(row.sparsity) if row.kind != "small_dense" else f"as {percent(row.sparsity)}",
        plus_minus(row.point),
        _interval(row),
        f"{row.point.n}" + (f", {row.point.failed} failed" if row.point.failed else ""),
        ratio(row.to_dense),
        _SAID[row.not_worse],
        _SAID[row.within_spread],
        *(plus_minus(summary) for summary in further),
        "–" if alive is None else f"{alive:,.0f}",
        _find(row),
        _train(row),
        short(row.cost.find_flops) if row.level else "–",
        short(row.cost.train_flops),
    ]
    return {"arm": row.title, "cells": cells}


def _find(row: Row) -> str:
    return seconds(row.cost.find_seconds) if row.level else "–"


def _train(row: Row) -> str:
    return seconds(row.cost.train_seconds) + (f" (by {row.cost.shared_from})" if row.cost.shared_from else "")


def _interval(row: Row) -> str:
    return "–" if row.interval is None else f"{number(row.interval[0])} to {number(row.interval[1])}"


def _arm_cells(comparison: Comparison, arm: str) -> dict[str, Any]:
    """The line of an arm: how far its tickets match, and whether they beat their own controls."""
    verdict = comparison.verdicts[arm]
    reached = (verdict.matches_up_to, verdict.within_spread_up_to)
    told = ["none" if sparsity is None else percent(sparsity) + verdict.of_part for sparsity in reached]
    matches, within_spread = ["one seed"] * 2 if comparison.seeds == 1 else told
    return {
        "label": arm,
        "page": (comparison.record.folder / arm / "report.html").is_file(),
        "title": comparison.record.arms[arm],
        "matches": matches,
        "within_spread": within_spread,
        "answer": _SAID[verdict.answer],
        "words": headline_of(verdict),
    }


def study_table(comparison: Comparison) -> Table:
    """The dense model, each arm's tickets at its control levels, and the small dense nets, for the terminal."""
    table = Table(
        box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, title=comparison.metric.label, title_style="dim"
    )
    table.add_column("arm", overflow="fold", min_width=11)
    for head in ("sparsity", "mean ± sd", "n", "of dense", f"within {share(comparison.margin)}", "to find", "to train"):
        table.add_column(head, justify="right", no_wrap=head not in ("mean ± sd", "of dense"))
    rows = [comparison.dense]
    for arm in comparison.runs:
        own = [row for row in comparison.of(arm, "dense")[:1] if row is not rows[0] and not row.cost.shared_from]
        rows += [*own, *comparison.at_controls(arm)]
    rows += [row for row in comparison.rows if row.kind == "small_dense"]
    for row in rows:
        title = row.title if row.kind != "dense" else KINDS["dense"] + (f", {row.title}" if row is not rows[0] else "")
        n = f"{row.point.n}" + (f"-{row.point.failed}" if row.point.failed else "")
        sparsity = percent(row.sparsity) if row.kind != "small_dense" else f"~{percent(row.sparsity)}"
        beside = ratio(row.to_dense).replace(" [", "\n[")
        said = [sparsity, plus_minus(row.point), n, beside, _SAID[row.not_worse]]
        costs = [_find(row), seconds(row.cost.train_seconds)]
        table.add_row(*(Text(cell) for cell in (title, *said, *costs)))
    return table


# -- beside what was published ------------------------------------------------------------------------------


_MEASURES = ("metric", "weights", "flops", "seconds")


def published_rows(comparison: Comparison) -> list[list[str]]:
    """Two lines a technique: as published, and ours; each number with its ratio to the dense model beside it."""
    published = comparison.record.published
    if published is None:
        return []
    ours = [_beside(comparison, row) for row in published.rows]
    reference = next((i for i, row in enumerate(published.rows) if row.arm == DENSE), 0)
    their_dense, our_dense = _theirs(published.rows[reference]), _ours(comparison.dense)
    lines = []
    for row, found in zip(published.rows, ours, strict=True):
        lines.append([row.technique, "published", *_with_ratios(_theirs(row), their_dense), "–", "–"])
        where = f"ours, {percent(found.sparsity)}" if found else "ours"
        numbers = _with_ratios(_ours(found), our_dense)
        lines.append(["", where, *numbers, *_found_at(found)])
    return lines


def _found_at(row: Row | None) -> list[str]:
    """What it cost to find, in time and FLOPs."""
    flops = row.cost.find_flops if row and row.level else None
    return [_find(row) if row else "–", "–" if flops is None else f"{flops:.2e}"]


def _beside(comparison: Comparison, row: PublishedRow) -> Row | None:
    """Our row that stands beside a published one: of the arm it names, at its level or the deepest there is."""
    if row.arm == DENSE:
        return comparison.dense
    rows = [found for found in comparison.rows if found.arm == row.arm and found.kind in ("dense", "ticket")]
    if row.level is not None:
        rows = [found for found in rows if found.level == row.level]
    return rows[-1] if rows and (rows[-1].level or row.level == 0) else None


def _theirs(row: PublishedRow) -> list[float | None]:
    return [row.metric, row.weights, row.flops, row.seconds]


def _ours(row: Row | None) -> list[float | None]:
    if row is None:
        return [None] * len(_MEASURES)
    return [row.point.mean, row.alive, row.cost.train_flops, row.cost.train_seconds]


def _with_ratios(values: Sequence[float | None], dense: Sequence[float | None]) -> list[str]:
    return [_with_ratio(measure, *pair) for measure, *pair in zip(_MEASURES, values, dense, strict=True)]


def _with_ratio(measure: str, value: float | None, dense: float | None) -> str:
    if value is None:
        return "–"
    text = number(value, 4)  # as many digits as papers print
    if measure == "seconds":
        text = seconds(value)
    elif measure == "flops":
        text = f"{value:.2e}"
    return f"{text} ({value / dense:.2f}×)" if dense else text


def published_words(comparison: Comparison) -> list[str]:
    """What the two metrics are, and what can be compared."""
    published = comparison.record.published
    if published is None:
        return []
    samples = f", {comparison.metric.samples:,} samples" if comparison.metric.samples else ""
    named = comparison.features is None or comparison.features in comparison.metric.label
    features = "" if named else f"; features: {comparison.features}"
    said = [
        f"Published: {published.source}; metric: {published.metric}.",
        f"Ours: {comparison.metric.label}{samples}{features}.",
        "× is the ratio to the dense model of the same table: numbers of two metrics, machines or counts of FLOPs "
        "cannot be compared as they stand, their ratios can, with care. Time and FLOPs are those of the training "
        "alone; finding the ticket comes on top.",
    ]
    return [*said, published.note] if published.note else said


def published_table(comparison: Comparison) -> Table | None:
    """What was published, and ours beside it, for the terminal, which has no room for the FLOPs of finding."""
    lines = published_rows(comparison)
    if not lines:
        return None
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for head in ("technique", "", "metric", "weights", "FLOPs", "time", "to find"):
        table.add_column(head, justify="left" if head in ("technique", "") else "right", overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell, style="dim" if line[1] == "published" else "") for cell in line[:-1]))
    return table

"""The report page: one HTML file that needs nothing beside it, and the verdict table for the terminal.

This module gathers what the page says; `page.html` says how it looks. Everything is escaped by the template,
and the SVG alone is let through as it is, because it is drawn here.
"""

from __future__ import annotations

import base64
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from rich import box
from rich.table import Table
from rich.text import Text

from gentickets.durations import duration
from gentickets.errors import GenticketsError, RecipeError
from gentickets.files import replace_file
from gentickets.lab.report.figures import stopping_steps, write_figures
from gentickets.lab.report.rates import rates_of_blocks
from gentickets.lab.report.rendering import environment, inlined
from gentickets.lab.report.settling import settling_sentences
from gentickets.lab.report.side_by_side import SideBySide, opened, side_by_side
from gentickets.lab.results.estimation import Answer
from gentickets.lab.results.reading import ARMS, LevelResult, Run, read_run
from gentickets.lab.results.summary import mean_known, summarise
from gentickets.lab.results.verdict import ARM_NAMES, DENSE, Verdict, judge
from gentickets.lab.results.verdict_words import PILLS, headline, ratio, sentences
from gentickets.lab.results.words import number, percent, plus_minus, share
from gentickets.lab.run.status import Watch
from gentickets.lab.run.validation import MARGIN

# A picture narrower than this is enlarged on the page, and should then show its pixels.
_DISPLAY_WIDTH = 300
_SAID: dict[Answer | None, str] = {"shown": "yes", "refuted": "no", "undecided": "undecided", None: "–"}
_COLOURS: dict[Answer | None, str] = {"shown": "yes", "refuted": "no"}


def write_report(runs: Sequence[Path | str | Run], out: Path | str | None = None) -> Path:
    """Writes the page on one run, or on several with a table of verdicts on top, and returns its path.

    Where `out` is not given it is `report.html` in the run's folder, or beside the first of several. The
    figures are written into each run's own `figures/` too, where that can be written. Raises `RecipeError` as
    `read_run` does, and `GenticketsError` where the page cannot be written.
    """
    if not runs:
        raise RecipeError("a report needs at least one run folder")
    read = [run if isinstance(run, Run) else read_run(run) for run in runs]
    place = read[0].folder if len(read) == 1 else read[0].folder.resolve().parent
    out = place / "report.html" if out is None else Path(out)
    sections = [_section(run, index) for index, run in enumerate(read)]
    words = {"heads": verdict_heads(), "arm_names": ARM_NAMES, "margin": share(MARGIN)}
    page = environment().get_template("page.html").render(sections=sections, **words)
    try:
        replace_file(out, page.encode())
    except OSError as error:
        raise GenticketsError(f"cannot write {out} ({error.strerror}): --out PAGE.html writes it elsewhere") from None
    return out


def verdict_table(runs: Sequence[Path | str | Run]) -> Table:
    """One row a run, for a terminal of 80 columns: means without their spread, which the page has."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run", overflow="fold", min_width=14)
    for head in (
        "dense",
        "shown\nup to",
        "1 sd\nup to",
        "judged\nat",
        "ticket",
        "random\nmask",
        "re-drawn\nweights",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("winning\nticket", min_width=9)
    for run in runs:
        read = run if isinstance(run, Run) else read_run(run)
        verdict = judge(read)
        means = [cell.partition(" ± ")[0] for cell in verdict_cells(read, verdict)[2:-1]]
        name = Text(read.title).append(f"\n{_judged_by(verdict)}", style="dim")
        table.add_row(name, *(Text(mean) for mean in means), Text(_SAID[verdict.answer]))
    return table


def verdict_heads() -> list[str]:
    """The columns of the verdict table, on the page and in the terminal."""
    arms = [ARM_NAMES[arm] for arm in ARMS]
    return [
        "run",
        "metric",
        "dense",
        "shown up to",
        "within 1 sd up to",
        "judged at",
        *arms,
        "winning ticket",
    ]


def verdict_cells(run: Run, verdict: Verdict) -> list[str]:
    """The row of a run. The arms are those of the level that was judged, else of the deepest that is shown."""
    found = verdict.judged or verdict.deepest
    level = found.level if found else None
    one_seed = verdict.seeds == 1
    none = "–" if verdict.no_verdict in ("dense", "baseline", "levels") else "none"
    return [
        run.title,
        _judged_by(verdict),
        plus_minus(verdict.dense),
        *("one seed" if one_seed else percent(reached, none=none) for reached in _reached(verdict)),
        percent(found.sparsity) if found else "–",
        *(plus_minus(verdict.at(arm, level)) for arm in ARMS),
        _SAID[verdict.answer],
    ]


def _judged_by(verdict: Verdict) -> str:
    """The metric, and what sparsities are of where that is not the whole network."""
    return verdict.label + (f"; sparsity{verdict.of_part}" if verdict.of_part else "")


def _reached(verdict: Verdict) -> tuple[float | None, float | None]:
    return verdict.matches_up_to, verdict.within_spread_up_to


# -- one run ------------------------------------------------------------------------------------------------


def _section(run: Run, index: int) -> dict[str, Any]:
    """Everything that the template says of one run."""
    verdict = judge(run)
    drawings = write_figures(run)
    figures = [inlined(drawing, f"r{index}f{place}") for place, drawing in enumerate(drawings)]
    metrics = [figure for figure in figures if figure.drawing.name.startswith("metric-")]
    named = {figure.drawing.name: figure for figure in figures}
    main = f"metric-{verdict.key}"
    return {
        "id": f"run-{index}",
        "run": run,
        "verdict": verdict,
        "headline": headline(verdict),
        "sentences": sentences(verdict, run),
        "pill": (_COLOURS.get(verdict.answer, ""), PILLS[verdict.answer]),
        "cells": verdict_cells(run, verdict),
        "standing": _standing(run),
        "facts": [*_facts(verdict), *_images(run)],
        "main": next((figure for figure in metrics if figure.drawing.name == main), None),
        "further": [figure for figure in metrics if figure.drawing.name != main],
        "stopping": named.get("early-stopping"),
        "birds": [figure for figure in figures if figure.drawing.name.startswith("early-bird-")],
        "settled": settling_sentences(run),
        "rates": rates_of_blocks(run),
        "layers": named.get("layers"),
        "curves": named.get("curves"),
        "pictures": _pictures(run, verdict),
        "beside": _side_by_side(run, verdict),
        "costs": _costs(run),
        "timings": _timings(run),
        "numbers": _numbers(run, verdict),
        "failures": [result for result in run.levels if result.status != "complete"],
        "recipe_text": yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True),
        "made": _made(run),
    }


def _facts(verdict: Verdict) -> list[tuple[str, str]]:
    """The few numbers that stand beside the verdict: what, and its value."""
    found = verdict.judged or verdict.deepest
    facts = [("dense model", plus_minus(verdict.dense))]
    if found:
        facts = [
            (
                ("sparsity that is judged" if verdict.judged else "sparsity up to which it is shown") + verdict.of_part,
                percent(found.sparsity),
            ),
            (
                "fewer weights in the layers pruned",
                f"{1 / (1 - found.sparsity):,.1f}×" if found.sparsity < 1 else "–",
            ),
            ("ticket at that sparsity", plus_minus(found.ticket)),
            ("ratio to the dense model, 95 % interval", ratio(found.to_dense)),
            *facts,
        ]
    return facts


def _images(run: Run) -> list[tuple[str, str]]:
    """How many images of which kind the run was trained on, where its origin tells."""
    try:
        data = run.origin["data"]
        channels, height, width = data["shape"]
        return [("images trained on", f"{data['train']:,} of {width}x{height}, {'grey' if channels == 1 else 'RGB'}")]
    except (LookupError, TypeError, ValueError):
        return []


# -- where it stands ----------------------------------------------------------------------------------------

_MOST_PIECES = 20


def _standing(run: Run) -> dict[str, Any] | None:
    """What of a run was done, running, waiting and failed when the page was written; None where it is complete, and
    where its folder does not say. Where something runs is the machine's own business."""
    try:
        status = Watch(run.folder).look()
    except (GenticketsError, OSError):  # whatever can be read of it is shown all the same
        return None
    if status.is_complete:
        return None
    told = [piece for piece in status.pieces if piece.state in ("running", "stopped", "failed")]
    return {
        "counts": ", ".join(f"{count:,} {state}" for state, count in status.counts().items()),
        "left": None if status.seconds_left is None else duration(status.seconds_left),
        "pieces": told[:_MOST_PIECES],
        "more": max(0, len(told) - _MOST_PIECES),
    }


# -- pictures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """`source`: a data URI, None where there is nothing to show. `column`: its place in the grid, from 1."""

    column: int
    heading: str
    caption: str
    alt: str
    source: str | None = None
    pixelated: bool = False


def _pictures(run: Run, verdict: Verdict) -> dict[str, Any]:
    """A grid of the first seed: a column a level, a row for the ticket and for each control."""
    seed = run.seeds[0]
    of_seed = [result for result in run.levels if result.seed == seed]
    originals = next((result.originals for result in of_seed if result.originals), None)
    first = 2 if originals else 1
    strips = []
    for arm in ARMS:
        results = [result for result in of_seed if result.arm == arm]
        if any(result.samples for result in results):
            strips.append((ARM_NAMES[arm], [_level_picture(r, first + r.level, verdict) for r in results]))
    if originals and strips:
        held_out = _picture(1, originals, "originals", "held-out inputs", "The held-out inputs")
        strips[0] = (strips[0][0], [held_out, *strips[0][1]])
    what = "Reconstructions" if originals else "Samples"
    return {"what": what, "seed": seed, "strips": strips, "columns": run.depth + first}


def _side_by_side(run: Run, verdict: Verdict) -> SideBySide | None:
    """The dense model of the first seed, and one level's ticket and controls: the one that is judged, or else the
    deepest with most of them."""
    of_seed = {(result.arm, result.level): result for result in run.levels if result.seed == run.seeds[0]}
    found = verdict.judged or verdict.deepest
    arms = {level: [arm for arm in ARMS if (arm, level) in of_seed] for level in range(1, run.depth + 1)}
    deepest = max(arms, key=lambda level: (len(arms[level]), level), default=0)
    level = found.level if found is not None and found.level else deepest
    shown = [("dense model", of_seed["ticket", 0])] if ("ticket", 0) in of_seed else []
    shown += [(ARM_NAMES[arm], of_seed[arm, level]) for arm in arms.get(level, ())]
    return side_by_side(run, verdict.key, shown)


def _level_picture(result: LevelResult, column: int, verdict: Verdict) -> _Picture:
    metric = result.metrics.get(verdict.key)
    heading = "dense model" if result.level == 0 and result.arm == "ticket" else percent(result.sparsity)
    caption = number(metric.value) if metric and result.status == "complete" else result.status
    alt = f"Images from the {ARM_NAMES[result.arm]} at {percent(result.sparsity)} sparsity"
    if result.samples is None:
        return _Picture(column, heading, caption, alt)
    return _picture(column, result.samples, heading, caption, alt)


def _picture(column: int, path: Path, heading: str, caption: str, alt: str) -> _Picture:
    try:
        image = opened(path)
    except (OSError, ValueError, Image.DecompressionBombError):
        return _Picture(column, heading, "cannot be read", alt)
    if image is None:
        return _Picture(column, heading, "too large", alt)
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return _Picture(column, heading, caption, alt, source, image.width < _DISPLAY_WIDTH)


# -- tables -------------------------------------------------------------------------------------------------


def _costs(run: Run) -> list[dict[str, Any]]:
    """A row a level of the ticket: its sparsity, and the mean of each cost over the seeds."""
    rows = []
    for level in range(run.depth + 1):
        results = run.of("ticket", level)
        costs = [result.cost for result in results if result.cost]
        if costs:
            row: dict[str, Any] = {
                key: statistics.fmean(getattr(cost, key) for cost in costs)
                for key in (
                    "parameters",
                    "alive_parameters",
                    "flops_dense",
                    "flops_sparse",
                    "bytes_dense",
                    "bytes_sparse",
                )
            }
            row["sparsity"] = statistics.fmean(result.sparsity for result in results)
            row["file"] = mean_known(_size(result.folder / "ticket.safetensors") for result in results)
            rows.append(row)
    return rows


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _timings(run: Run) -> list[dict[str, Any]]:
    """A row a level of the ticket: seconds and FLOPs that finding it took, and that training it took."""
    rows: list[dict[str, Any]] = []
    for level in range(run.depth + 1):
        timings = [result.timing for result in run.of("ticket", level) if result.timing]
        costs = [result.cost for result in run.of("ticket", level) if result.cost]
        clocks: dict[str, Any] = {
            "find": [timing.find_seconds for timing in timings],
            "train": [timing.train_seconds for timing in timings],
            "find_flops": [cost.find_flops for cost in costs],
            "train_flops": [cost.train_flops for cost in costs],
            "evaluate": [timing.evaluate_seconds for timing in timings],
            "images": [timing.images for timing in timings],
        }
        row: dict[str, Any] = {clock: mean_known(values) for clock, values in clocks.items()}
        row["sparsity"] = mean_known(result.sparsity for result in run.of("ticket", level))
        row["sparse_layers"] = mean_known(len(result.sparse_layers) for result in run.of("ticket", level))
        rows.append(row)
    return rows if any(row["train"] is not None for row in rows) else []


def _numbers(run: Run, verdict: Verdict) -> dict[str, Any]:
    """The table of all numbers: its metrics, whether it has early-stopping steps, and a row an arm and level."""
    metrics = run.metrics()
    summaries = {key: summarise(run, key) for key in metrics}
    stopping = stopping_steps(run)
    rows = []
    for (arm, level), primary in sorted(verdict.summary.items(), key=lambda item: (item[0][1], ARMS.index(item[0][0]))):
        rows.append(
            {
                "level": level,
                "arm": "dense model" if level == 0 and arm == "ticket" else ARM_NAMES[arm],
                "point": primary,
                "ratio": ratio(verdict.cells.compare((arm, level), DENSE)) if level else "–",
                "not_worse": _SAID[verdict.not_worse.get((arm, level))],
                "cells": [summaries[key][arm, level] for key in metrics],
                "stopping": stopping.get((arm, level)),
            }
        )
    return {"metrics": list(metrics.values()), "stopping": bool(stopping), "rows": rows}


# -- how it was made ----------------------------------------------------------------------------------------


def _made(run: Run) -> list[tuple[str, str]]:
    """What the run rests on: (what, words), whatever of it `origin.json` tells."""
    data = run.origin.get("data")
    told = data.get("told") if isinstance(data, dict) else None
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key != "told"}
    counts = {metric.label: f"{metric.samples:,} samples" for metric in run.metrics().values() if metric.samples}
    rows = {
        "command": run.origin.get("command"),
        "started": run.origin.get("started"),
        "data": data,
        "images": told,
        "features": run.origin.get("features"),
        "measured on": counts,
        "seeds": list(run.seeds),
        "versions": run.origin.get("versions"),
        "machine": run.origin.get("machine"),
    }
    return [(what, _told(value)) for what, value in rows.items() if value]


def _told(value: Any) -> str:
    """Plain data as one line: `cpu …; cores 2`, `1, 8, 8`."""
    if isinstance(value, dict):
        return "; ".join(f"{key.replace('_', ' ')}: {_told(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, list):
        return ", ".join(_told(part) for part in value)
    return f"{value:,}" if isinstance(value, int) else str(value)

"""The figures of a run, as one would print them in a paper: each as SVG and as PDF, equal for equal runs."""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gentickets.lab.report.drawing import (
    INK,
    PALETTE,
    WIDE,
    Drawing,
    draw_cells,
    draw_dense,
    draw_line,
    finish,
    set_log_y,
    set_sparsity_axis,
    set_y,
    style,
    thin,
    write,
)
from gentickets.lab.report.drawing import MARKERS as SHAPES
from gentickets.lab.report.settling import draw_history, read_histories
from gentickets.lab.results.reading import ARMS, Arm, Metric, Run
from gentickets.lab.results.summary import Summary, summarise
from gentickets.lab.results.verdict import ARM_NAMES
from gentickets.lab.results.words import number, percent

COLOURS: dict[Arm, str] = dict(zip(ARMS, PALETTE, strict=False))
MARKERS: dict[Arm, str] = dict(zip(ARMS, SHAPES, strict=False))
DASHES: dict[Arm, str] = {"ticket": "-", "random_mask": "--", "redrawn_weights": ":"}


def draw(run: Run) -> list[Drawing]:
    """The figures that the run has data for: each metric (the primary one first), where training could have stopped,
    where its early birds settled, layers, training curves.

    Raises `RecipeError` where a file of the run does not say what it must.
    """
    with style():
        drawn = [_draw_metric(run, key, metric) for key, metric in run.metrics().items()]
        birds = [draw_history(history) for history in read_histories(run, run.seeds[0])]
        further = (_draw_stopping(run), *birds, _draw_layers(run), _draw_curves(run))
        return [found for found in (*drawn, *further) if found]


def write_figures(run: Run) -> list[Drawing]:
    """Draws the run and writes each figure into `figures/` of its folder, as `NAME.svg` and `NAME.pdf`."""
    drawings = draw(run)
    try:
        for drawn in drawings:
            write(drawn, run.folder)
    except OSError as error:  # somebody else's folder, or a full disk: the page has them all
        warnings.warn(f"{run.folder / 'figures'} cannot be written ({error.strerror}): left as it was", stacklevel=2)
    return drawings


# -- a metric against sparsity ------------------------------------------------------------------------------


def _draw_metric(run: Run, key: str, metric: Metric) -> Drawing | None:
    main = key == run.primary
    better = "lower" if metric.lower_is_better else "higher"
    label = "\n".join([*textwrap.wrap(metric.label, 40), f"({better} is better)"])
    chart = _chart(summarise(run, key), label, (7.0, 3.9) if main else (5.2, 3.5), columns=5 if main else 3)
    if chart is None:
        return None
    figure, lines = chart
    caption = f"{metric.label} against sparsity. {_spread(run)}."
    return finish(figure, f"metric-{key}", caption, f"Line chart of {metric.label} by sparsity. {_said(lines)}.")


def _chart(
    summary: Mapping[tuple[Arm, int], Summary], label: str, size: tuple[float, float], columns: int
) -> tuple[Figure, dict[Arm, list[Summary]]] | None:
    """A line an arm against sparsity beside the dense model, and the lines; None where no arm has a mean."""
    lines: dict[Arm, list[Summary]] = {
        arm: [s for (of, _), s in summary.items() if of == arm and s.sparsity < 1] for arm in ARMS
    }
    if not any(s.mean is not None for line in lines.values() for s in line):
        return None
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    dense = summary.get(("ticket", 0))
    if dense and dense.mean is not None:
        draw_dense(axes, dense)
    _draw_arms(axes, lines)
    _draw_failures(axes, lines)
    axes.set_ylabel(label)
    axes.grid(axis="y")
    _legend_above(figure, axes, columns)
    return figure, lines


def _draw_arms(axes: Axes, lines: dict[Arm, list[Summary]]) -> None:
    """A line an arm, on axes that fit them all; some arm has a mean."""
    for arm in ARMS:
        draw_line(
            axes,
            lines[arm],
            ARM_NAMES[arm],
            COLOURS[arm],
            MARKERS[arm],
            DASHES[arm],
            zorder=3 + (arm == "ticket"),
        )
    set_y(axes, [s for arm in ARMS for s in lines[arm] if s.mean is not None])
    set_sparsity_axis(axes, next(line for line in lines.values() if line))


def _spread(run: Run) -> str:
    seeds = len(run.seeds)
    return f"Mean of {seeds} seeds ± one sample standard deviation" if seeds > 1 else "One seed"


def _said(lines: dict[Arm, list[Summary]]) -> str:
    return ". ".join(f"{ARM_NAMES[arm]}: {_points(lines[arm])}" for arm in ARMS if lines[arm])


def _points(line: Sequence[Summary]) -> str:
    return ", ".join(f"{number(s.mean)} at {percent(s.sparsity)}" for s in line if s.mean is not None) or "none"


def _draw_failures(axes: Axes, lines: dict[Arm, list[Summary]]) -> None:
    """A cross at the top edge for each level at which a seed failed, one row an arm."""
    label: str | None = "a seed failed"
    for arm, height in zip(ARMS, (0.97, 0.92, 0.87), strict=True):
        failed = [1 - s.sparsity for s in lines[arm] if s.failed]
        if failed:
            place = axes.get_xaxis_transform()
            style: dict[str, Any] = {
                "marker": "x",
                "linestyle": "none",
                "markersize": 6.5,
                "markeredgewidth": 1.8,
            }
            axes.plot(failed, [height] * len(failed), transform=place, color=COLOURS[arm], clip_on=False, **style)
            if label:
                axes.plot([], [], color=INK, label=label, **style)
                label = None


def _legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    """The arms first, then the dense model, then the cross. Room is left for a page whose face runs wider."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [*(ARM_NAMES[arm] for arm in ARMS), "dense model", "a seed failed"]
    labels = [label for label in order if label in entries]
    figure.legend(
        [entries[label] for label in labels],
        labels,
        loc="outside upper left",
        ncols=columns,
        handlelength=2.2,
        columnspacing=1.6,
    )


# -- where training could have stopped ----------------------------------------------------------------------


def stopping_steps(run: Run) -> dict[tuple[Arm, int], Summary]:
    """(arm, level) → its early-stopping step over the seeds, where a training was judged while it went on.

    A seed that never came to a finite value has none, and counts as missing.
    """
    found = {}
    for arm, level in dict.fromkeys((result.arm, result.level) for result in run.levels):
        results = run.of(arm, level)
        steps = [r.validation.early_stopping_step for r in results if r.validation]
        known = [float(step) for step in steps if step is not None]
        if steps:
            found[arm, level] = Summary(
                arm=arm,
                level=level,
                sparsity=statistics.fmean(result.sparsity for result in results),
                mean=statistics.fmean(known) if known else None,
                deviation=statistics.stdev(known) if len(known) > 1 else None,
                n=len(known),
                missing=len(run.seeds) - len(known),
            )
    return found


def _draw_stopping(run: Run) -> Drawing | None:
    """Early-stopping step against sparsity, a line an arm (Kalibhat et al. 2021, Fig. 2)."""
    chart = _chart(stopping_steps(run), "early-stopping step", (7.0, 3.3), columns=5)
    if chart is None:
        return None
    figure, lines = chart
    caption = f"Early-stopping step against sparsity. {_spread(run)}."
    return finish(figure, "early-stopping", caption, f"Line chart of the early-stopping step. {_said(lines)}.")


# -- layers -------------------------------------------------------------------------------------------------


def _draw_layers(run: Run) -> Drawing | None:
    """A heat map: a row a layer, a column a level of the ticket, the mean over the seeds."""
    names = list(dict.fromkeys(name for result in run.of("ticket") for name in result.layers))
    levels = [level for level in range(run.depth + 1) if any(r.layers for r in run.of("ticket", level))]
    if not names or not levels:
        return None
    cells = [[_layer_sparsity(run, name, level) for level in levels] for name in names]
    overall = [statistics.fmean(r.sparsity for r in run.of("ticket", level)) for level in levels]
    figure = Figure(figsize=(max(4.5, 2.6 + 0.52 * len(levels)), 1.0 + 0.235 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    numbered = len(levels) <= 14
    mesh = draw_cells(axes, cells, 1, (lambda share: percent(share)[:-1].removesuffix(".0")) if numbered else None)
    step = thin(len(levels), 14)
    middles = [column + 0.5 for column in range(len(levels))]
    axes.set_xticks(middles[::step], [percent(share) for share in overall][::step])
    axes.set_yticks([row + 0.5 for row in range(len(names))], [name.removesuffix(".weight") for name in names])
    axes.set_xlabel("sparsity of the whole ticket")
    if not numbered:
        figure.colorbar(mesh, ax=axes, label="sparsity of the layer", aspect=30, pad=0.02)
    at_end = ", ".join(f"{name} {percent(row[-1])}" for name, row in zip(names, cells, strict=True))
    alt = f"Heat map of the sparsity of each layer at each level. At the deepest: {at_end}."
    return finish(figure, "layers", "Sparsity of each layer in %, at each level of the ticket; mean of the seeds.", alt)


def _layer_sparsity(run: Run, name: str, level: int) -> float:
    found = [r.layers[name].sparsity for r in run.of("ticket", level) if name in r.layers]
    return statistics.fmean(found) if found else math.nan


# -- training curves ----------------------------------------------------------------------------------------


def _draw_curves(run: Run, points: int = 120) -> Drawing | None:
    """Each loss of the ticket against the step, one panel a loss, one shade a level; the first seed."""
    seed = run.seeds[0]
    tickets = [result for result in run.of("ticket") if result.seed == seed]
    curves = {result.level: _losses(result.curve()) for result in tickets}
    losses = list(dict.fromkeys(name for curve in curves.values() for name in curve))
    if not losses:
        return None
    columns = min(2, len(losses))
    rows = math.ceil(len(losses) / columns)
    figure = Figure(figsize=(7.6, 2.9 * rows + 0.2), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    shade = matplotlib.colormaps["viridis"]
    for name, axes in itertools.zip_longest(losses, panels):
        if name is None:
            axes.set_visible(False)
            continue
        drawn: list[float] = []
        for result in tickets:
            steps, values = _thinned(curves[result.level].get(name, []), points)
            drawn += values
            colour = shade(0.08 + 0.78 * result.level / max(1, run.depth))
            axes.plot(steps, values, color=colour, linewidth=1.1, label=percent(result.sparsity))
        _set_loss_axis(axes, name, drawn)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    step = thin(len(handles), 14)
    figure.legend(handles[::step], labels[::step], loc="outside right center", title="sparsity", title_fontsize=9)
    caption = f"Training losses of the ticket by level, seed {seed}, averaged over neighbouring steps."
    alt = f"Line charts of the losses {', '.join(losses)} against the training step, a line a level."
    return finish(figure, "curves", caption, alt)


def _losses(lines: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Name of the loss → its (step, value) pairs, what is not finite left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in (line.get("losses") or {}).items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(str(name), []).append((float(line["step"]), float(value)))
    return found


def _thinned(pairs: Sequence[tuple[float, float]], points: int) -> tuple[list[float], list[float]]:
    """Means of neighbours, so that no more than `points` are left."""
    size = max(1, math.ceil(len(pairs) / points))
    chunks = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    steps = [statistics.fmean(step for step, _ in chunk) for chunk in chunks]
    return steps, [statistics.fmean(value for _, value in chunk) for chunk in chunks]


def _set_loss_axis(axes: Axes, name: str, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) / min(values) > WIDE:
        set_log_y(axes)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"{name} loss")
    axes.grid(axis="y")

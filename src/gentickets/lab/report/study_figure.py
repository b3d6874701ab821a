"""The figure of a study: one metric of all arms against sparsity."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gentickets.lab.report.drawing import (
    DASHES,
    INK,
    MARKERS,
    PALETTE,
    Drawing,
    draw_dense,
    draw_line,
    finish,
    set_sparsity_axis,
    set_y,
    style,
    write,
)
from gentickets.lab.results.words import number, percent
from gentickets.lab.study.comparison import KINDS, Comparison, Row

_LABEL = 0.09
"""The share of the axis that a label takes: of two levels that are nearer than that, one is labelled."""


def write_study_figure(comparison: Comparison) -> Drawing | None:
    """Draws the primary metric, writes it into the study's `figures/`; None where no arm has a ticket with a value."""
    tickets = {arm: comparison.of(arm) for arm in comparison.runs}
    shown = [row for rows in tickets.values() for row in rows if row.point.mean is not None and row.sparsity < 1]
    if not shown:
        return None
    with style():
        drawing = _draw(comparison, tickets, shown)
    write(drawing, comparison.record.folder)
    return drawing


def _draw(comparison: Comparison, tickets: dict[str, list[Row]], shown: list[Row]) -> Drawing:
    metric, titles = comparison.metric, comparison.record.arms
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    if comparison.dense.kind == "dense" and comparison.dense.point.mean is not None:
        draw_dense(axes, comparison.dense.point)
    for index, (arm, rows) in enumerate(tickets.items()):
        points = [row.point for row in rows if row.sparsity < 1]
        colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        draw_line(axes, points, titles[arm], colour, marker, DASHES[index % len(DASHES)], zorder=4 - index / 100)
        failed = [1 - point.sparsity for point in points if point.failed]
        place, height = axes.get_xaxis_transform(), 0.97 - 0.035 * index
        cross: dict[str, Any] = {"marker": "x", "linestyle": "none", "markersize": 6.0, "markeredgewidth": 1.6}
        if failed:  # a line of nothing lies in the figure's corner, and takes its room there
            axes.plot(failed, [height] * len(failed), transform=place, color=colour, clip_on=False, **cross)
    small = [row for row in comparison.rows if row.kind == "small_dense" and row.point.mean is not None]
    if small:
        # Each at the sparsity of the ticket that it stands beside.
        beside = [replace(row.point, sparsity=row.sparsity) for row in small]
        draw_line(axes, beside, KINDS["small_dense"], INK, "_", "none", zorder=3)
    set_y(axes, [row.point for row in (*shown, *small)])
    failed_too = [row for rows in tickets.values() for row in rows if row.point.failed and row.sparsity < 1]
    _set_ticks(axes, [*shown, *failed_too])
    of_what = comparison.of_what
    if of_what:
        axes.set_xlabel(f"sparsity{of_what} (weights that remain, on a log scale)")
    better = "lower" if metric.lower_is_better else "higher"
    axes.set_ylabel("\n".join([*textwrap.wrap(metric.label, 44), f"({better} is better)"]))
    axes.grid(axis="y")
    _legend_above(figure)
    spread = "one seed" if comparison.seeds == 1 else f"mean of {comparison.seeds} seeds ± one sample deviation"
    tickets_of = f"{metric.label} against sparsity{of_what}, every arm's tickets"
    caption = f"{tickets_of}: {spread}. A cross at the top: a seed failed there."
    said = [f"{titles[arm]}: {_said(rows)}" for arm, rows in tickets.items()]
    return finish(figure, "study", caption, f"Line chart of {metric.label} by sparsity{of_what}. {'. '.join(said)}.")


def _legend_above(figure: Figure) -> None:
    """In as many columns, four at most, as long titles leave room for."""
    for columns in (4, 3, 2, 1):
        legend = figure.legend(loc="outside upper left", ncols=columns, handlelength=2.4, columnspacing=1.5)
        figure.draw_without_rendering()
        if legend.get_window_extent().width <= 0.97 * figure.bbox.width or columns == 1:
            return
        legend.remove()


def _set_ticks(axes: Axes, shown: list[Row]) -> None:
    """A tick at each sparsity that some arm has, those too near for their labels left out."""
    points = sorted((row.point for row in shown), key=lambda point: point.sparsity)
    near = min(0.93, ((1 - points[-1].sparsity) / (1 - points[0].sparsity)) ** _LABEL)
    kept = points[:1]
    for point in points[1:]:
        if 1 - point.sparsity < near * (1 - kept[-1].sparsity):
            kept.append(point)
    set_sparsity_axis(axes, kept)
    left, right = axes.get_xlim()
    axes.set_xlim(left, min(right, (1 - points[-1].sparsity) / 1.02))


def _said(rows: list[Row]) -> str:
    return ", ".join(f"{number(row.point.mean)} at {percent(row.sparsity)}" for row in rows) or "none"

"""What all figures share: their look, their axes, and how they become files that are equal when drawn again."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gentickets.files import replace_file
from gentickets.lab.results.summary import Summary
from gentickets.lab.results.words import percent

INK, FAINT = "#24292f", "#d0d7de"

# Okabe and Ito's palette, its yellow left out: on white it is hardly there. Markers and dashes tell apart in grey.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a6a53")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", "-.", ":")
_SHADES = LinearSegmentedColormap.from_list("shades", ["#edf3f8", "#9cc3de", "#3b82b5", "#0b3c66"])

WIDE = 20.0
"""A y axis is logarithmic where its values span more than this factor."""

_STYLE: Any = {
    "font.size": 9,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    # Text stays text: it can be read aloud, searched, and set in the page's own face.
    "svg.fonttype": "none",
    "svg.hashsalt": "gentickets",
    "pdf.fonttype": 42,
    # A dollar in the name of a layer or a metric is a dollar.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Drawing:
    """A figure on its way to a file and to a page. `alt`: what it shows, for who cannot see it."""

    name: str
    caption: str
    alt: str
    svg: str
    pdf: bytes


@contextmanager
def style() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def finish(figure: Figure, name: str, caption: str, alt: str) -> Drawing:
    """Renders without dates or versions, so that equal figures are equal files."""
    svg, pdf = io.StringIO(), io.BytesIO()
    FigureCanvasSVG(figure).print_svg(svg, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return Drawing(_file_name(name), caption, alt, svg.getvalue(), pdf.getvalue())


def write(drawing: Drawing, folder: Path) -> None:
    """Writes a figure into `figures/` of a run's or a study's folder, as `NAME.svg` and `NAME.pdf`."""
    replace_file(folder / "figures" / f"{drawing.name}.svg", drawing.svg.encode())
    replace_file(folder / "figures" / f"{drawing.name}.pdf", drawing.pdf)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


def draw_dense(axes: Axes, dense: Summary) -> None:
    mean = dense.mean or 0.0
    axes.axhline(mean, color=INK, linewidth=1.0, alpha=0.7, label="dense model", zorder=1)
    if dense.deviation:
        low, high = mean - dense.deviation, mean + dense.deviation
        axes.axhspan(low, high, color=INK, alpha=0.10, linewidth=0, zorder=0)


def draw_line(
    axes: Axes, line: Sequence[Summary], label: str, colour: str, marker: str, dashes: str, zorder: float
) -> None:
    """Means against the weights that remain, with their standard deviations; places without a mean are left out."""
    there = [s for s in line if s.mean is not None]
    if not there:
        return
    spread = [s.deviation or 0.0 for s in there]
    axes.errorbar(
        [1 - s.sparsity for s in there],
        [s.mean or 0.0 for s in there],
        yerr=spread if any(spread) else None,
        color=colour,
        marker=marker,
        linestyle=dashes,
        elinewidth=1.0,
        capsize=2.5,
        label=label,
        zorder=zorder,
    )


def set_y(axes: Axes, points: Sequence[Summary]) -> None:
    """Limits that hold every mean and spread, logarithmic where the means are far apart."""
    means = [s.mean or 0.0 for s in points]
    highest = max((s.mean or 0.0) + (s.deviation or 0.0) for s in points)
    lowest = min((s.mean or 0.0) - (s.deviation or 0.0) for s in points)
    if min(means) > 0 and max(means) / min(means) > WIDE:
        set_log_y(axes)
        # A spread that reaches below zero has no place on a logarithmic axis: the means set its foot.
        foot = lowest if lowest > min(means) / 3 else min(means) / 1.5
        axes.set_ylim(foot / 1.15, highest * (highest / foot) ** 0.12)
        return
    room = (highest - lowest) or abs(highest) or 1.0
    axes.set_ylim(lowest - 0.08 * room, highest + 0.14 * room)


def set_log_y(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers, never powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def set_sparsity_axis(axes: Axes, line: Sequence[Summary]) -> None:
    """Weights that remain, on a logarithmic scale that runs down; the ticks say each level's sparsity."""
    densities = [1 - s.sparsity for s in line]
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(densities[:: thin(len(line))], [percent(s.sparsity) for s in line[:: thin(len(line))]])
    low, high = min(densities), max(densities)
    margin = (high / low) ** 0.04 if high > low else 1.1
    axes.set_xlim(high * margin, low / margin)
    axes.set_xlabel("sparsity (weights that remain, on a log scale)")


def draw_cells(
    axes: Axes, cells: Sequence[Sequence[float]], highest: float, write: Callable[[float], str] | None
) -> QuadMesh:
    """A heat map of values from 0 to `highest`, the first row on top; `write` puts each into its cell (not a NaN)."""
    mesh = axes.pcolormesh(cells, cmap=_SHADES, vmin=0, vmax=highest, edgecolors="white", linewidth=0.8)
    for row, column in itertools.product(range(len(cells)), range(len(cells[0]) if write else 0)):
        if write and not math.isnan(value := cells[row][column]):
            shade = "#fdfdfd" if value > 0.55 * highest else "#101418"
            axes.text(column + 0.5, row + 0.5, write(value), ha="center", va="center", fontsize=8, color=shade)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh


def thin(ticks: int, room: int = 10) -> int:
    """Every how many ticks one is labelled."""
    return max(1, math.ceil(ticks / room))

"""`python -m benchmarks.scaling`: what a step costs as model, sparsity, batch and IMP ladder grow; a figure of it."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

import gentickets as gt
from benchmarks import report
from benchmarks.contest import Contender, Contest
from benchmarks.pairs import Timing, measure
from benchmarks.steps import BATCH, Net, Step, as_in_train, build, magnitude_masks
from gentickets import models
from gentickets.files import replace_file
from gentickets.lab.report.drawing import INK, PALETTE, Drawing, finish, set_log_y, style

Rows = list[dict[str, Any]]
"""Measured points: where each lies, the `way` it went, and its `ratio` and `ms`."""
Pace = Callable[[Contest], dict[str, Timing]]

IMAGE = 32 * 32 * 3
SPARSITY = 0.95
"""Of the curves that sparsity is not the axis of."""
EACH_ROUND = 0.2
"""Of the weights that are left, the share that a round of the ladder prunes."""
DENSE, MASKED, ACCELERATED = "dense", "masked dense", "accelerated"


@dataclass(frozen=True)
class Extent:
    """How far the curves go, and what they are curves of."""

    weights: Sequence[float] = (1e6, 3e6, 1e7, 3e7, 1e8)
    sparsities: Sequence[float] = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    nets: Sequence[str] = ("linear-ae", "deep-ae", "dcgan")
    batches: Sequence[int] = (16, 32, 64, 128, 256, 512)
    batch_net: str = "deep-ae"
    rounds: int = 20
    ladder_net: str = "linear-ae"


QUICK = Extent((1e5, 3e5), (0.0, 0.9), ("tiny-ae",), (16, 32), "tiny-ae", 3, "tiny-ae")


# -- what is measured --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A step that is timed: `way` it goes, and `at`, the coordinates of its point."""

    way: str
    at: Mapping[str, Any]
    step: Step
    fast: gt.Accelerated | None = None


def by_size(extent: Extent, pace: Pace) -> Rows:
    """A step of ever larger autoencoders, and what weights, gradients and Adam's moments take."""
    rows: Rows = []
    for weights in extent.weights:
        with ExitStack() as closing:
            masks = magnitude_masks(_autoencoder(weights), SPARSITY)
            at = {"weights": masks.total}
            points = [
                Point(DENSE, at, Step(_autoencoder(weights), as_in_train)),
                _masked(_autoencoder(weights), masks, at, closing),
                _accelerated(_autoencoder(weights), masks, at, closing),
            ]
            timed = _timed(points, pace)
            rows += [row | _memory(point) for row, point in zip(timed, points, strict=True)]
    return rows


def by_sparsity(extent: Extent, pace: Pace) -> Rows:
    """A step of each net on its live weights: all sparsities side by side, with one dense net."""
    rows: Rows = []
    for net in extent.nets:
        with ExitStack() as closing:
            points = [Point(DENSE, {"net": net, "sparsity": 0.0}, Step(build(net), as_in_train))]
            for sparsity in extent.sparsities:
                masks = magnitude_masks(build(net), sparsity)
                points.append(_accelerated(build(net), masks, {"net": net, "sparsity": sparsity}, closing))
            rows += _timed(points, pace)
    return rows


def by_batch(extent: Extent, pace: Pace) -> Rows:
    """A step on ever larger batches, `ms` an image; ratios to a dense image in a batch of 64, or of the smallest."""
    masks = magnitude_masks(build(extent.batch_net), SPARSITY)
    with ExitStack() as closing:
        points = []
        for size in sorted(extent.batches, key=lambda size: size != BATCH):
            at = {"net": extent.batch_net, "batch": size}
            points.append(Point(DENSE, at, Step(_of_batch(build(extent.batch_net), size), as_in_train)))
            points.append(_accelerated(_of_batch(build(extent.batch_net), size), masks, at, closing))
        rows = _timed(points, pace, per_image=True)
    return sorted(rows, key=lambda row: row["batch"])


def by_rounds(extent: Extent, pace: Pace) -> Rows:
    """A step at the sparsity of each round of IMP, and `ladder`: all trainings up to this one, in dense ones.

    It is computed from the steps: every training has as many, so the ladder takes the mean of their ratios.
    """
    with ExitStack() as closing:
        points = [
            Point(
                DENSE,
                {"net": extent.ladder_net, "round": 0, "sparsity": 0.0},
                Step(build(extent.ladder_net), as_in_train),
            )
        ]
        for number in range(extent.rounds + 1):
            sparsity = round(1 - (1 - EACH_ROUND) ** number, 6)
            masks = magnitude_masks(build(extent.ladder_net), sparsity)
            at = {"net": extent.ladder_net, "round": number, "sparsity": sparsity}
            points.append(_masked(build(extent.ladder_net), masks, at, closing))
            points.append(_accelerated(build(extent.ladder_net), masks, at, closing))
        rows = _timed(points, pace)
    for way in (MASKED, ACCELERATED):
        own = [row for row in rows if row["way"] == way]
        for row, ladder in zip(own, running_means([row["ratio"]["median"] for row in own]), strict=True):
            row["ladder"] = ladder
    return rows


PANELS: Mapping[str, Callable[[Extent, Pace], Rows]] = {
    "size": by_size,
    "sparsity": by_sparsity,
    "batch": by_batch,
    "rounds": by_rounds,
}


def running_means(values: Sequence[float]) -> list[float]:
    """The mean of the first, of the first two, and so on."""
    return [math.fsum(values[: count + 1]) / (count + 1) for count in range(len(values))]


def _autoencoder(weights: float) -> Net:
    """3072-h-h-h-3072, with the h that gives so many weights."""
    width = round(math.sqrt((IMAGE / 2) ** 2 + weights / 2) - IMAGE / 2)
    torch.manual_seed(0)
    model = models.linear_autoencoder(32, 3, hidden=[width], latent=width)
    return _of_batch(Net(model, gt.Autoencoding(), torch.empty(0, 3, 32, 32)), BATCH)


def _of_batch(net: Net, size: int) -> Net:
    return replace(net, batch=torch.rand(size, *net.batch.shape[1:]) * 2 - 1)


def _masked(net: Net, masks: gt.Masks, at: Mapping[str, Any], closing: ExitStack) -> Point:
    step = Step(net, as_in_train)
    closing.enter_context(masks.hold(net.model, *step.optimizers.values()))
    return Point(MASKED, at, step)


def _accelerated(net: Net, masks: gt.Masks, at: Mapping[str, Any], closing: ExitStack) -> Point:
    """As `train` does it: layers that are faster dense are held to their masks."""
    fast = gt.accelerate(net.model, masks, net.objective.example_inputs(net.model, net.batch))
    closing.enter_context(fast)
    step = Step(replace(net, batch=fast.laid_out(net.batch)), as_in_train)
    closing.enter_context(fast.masks.hold(net.model, *step.optimizers.values()))
    return Point(ACCELERATED, at, step, fast)


def _timed(points: Sequence[Point], pace: Pace, per_image: bool = False) -> Rows:
    """A row a point; ratios are to the first of them."""
    contenders = {
        str(number): Contender(point.step, per=len(point.step.net.batch) if per_image else 1)
        for number, point in enumerate(points)
    }
    timings = pace(Contest("0", contenders))
    return [{**point.at, "way": point.way, **asdict(timings[str(n)])} for n, point in enumerate(points)]


def _memory(point: Point) -> dict[str, int]:
    """Bytes of weights, gradients and Adam's state, and of what says where live weights are."""
    return {"bytes": point.step.nbytes, "index_bytes": point.fast.index_bytes if point.fast else 0}


# -- the figure --------------------------------------------------------------------------------------------------------

_LINES: Mapping[str, dict[str, Any]] = {
    DENSE: {"color": INK, "marker": "o", "linestyle": "-"},
    MASKED: {"color": PALETTE[1], "marker": "s", "linestyle": "--"},
    ACCELERATED: {"color": PALETTE[0], "marker": "^", "linestyle": "-"},
}
_NETS = {"linear-ae": "linear AE, 1.1M weights", "deep-ae": "deep AE, 6.9M weights", "dcgan": "DCGAN, 1.7M weights"}


def draw(document: Mapping[str, Any]) -> Drawing:
    """The figure of a document that `main` wrote."""
    panels: Mapping[str, Rows] = document["panels"]
    with style():
        figure = Figure(figsize=(10.2, 6.6), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        grid = figure.add_gridspec(2, 6)
        _draw_size(figure.add_subplot(grid[0, 0:2]), panels["size"])
        _draw_memory(figure.add_subplot(grid[0, 2:4]), panels["size"])
        _draw_batch(figure.add_subplot(grid[0, 4:6]), panels["batch"])
        _draw_sparsity(figure.add_subplot(grid[1, 0:3]), panels["sparsity"])
        _draw_rounds(figure.add_subplot(grid[1, 3:6]), panels["rounds"])
        caption = "Cost of training as model, batch, sparsity and the number of rounds of iterative pruning grow."
        return finish(figure, "scaling", caption, f"Five line charts. {_said(panels)}")


def _draw_size(axes: Axes, rows: Rows) -> None:
    for way in (DENSE, MASKED, ACCELERATED):
        own = [row for row in rows if row["way"] == way]
        _draw_spread(axes, own, "weights", "ms", way, **_LINES[way])
    for row in own:
        times, place = f"{1 / row['ratio']['median']:.1f}×", (row["weights"], row["ms"]["median"])
        axes.annotate(times, place, (0, -13), textcoords="offset points", ha="center", fontsize=8, color=PALETTE[0])
    _set_weights_axis(axes, rows)
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.8, high)  # room for what is written below the curve
    axes.margins(x=0.1)
    _finish_panel(axes, f"Model size ({SPARSITY:.0%} sparse)", "ms a step, batch 64")


def _draw_memory(axes: Axes, rows: Rows) -> None:
    dense, fast = ([row for row in rows if row["way"] == way] for way in (DENSE, ACCELERATED))
    for own, label, look in (
        (dense, "dense", _LINES[DENSE]),
        (fast, "accelerated, with its indices", _LINES[ACCELERATED] | {"linestyle": ":", "marker": "v"}),
    ):
        total = [(row["bytes"] + row["index_bytes"]) / 1e6 for row in own]
        axes.plot([row["weights"] for row in own], total, label=label, **look)
    axes.plot([r["weights"] for r in fast], [r["bytes"] / 1e6 for r in fast], label=ACCELERATED, **_LINES[ACCELERATED])
    _set_weights_axis(axes, rows)
    _finish_panel(axes, "Weights, gradients and Adam's moments", "MB")


def _draw_batch(axes: Axes, rows: Rows) -> None:
    for way in (DENSE, ACCELERATED):
        _draw_spread(axes, [row for row in rows if row["way"] == way], "batch", "ms", way, **_LINES[way])
    axes.set_xscale("log", base=2)
    _set_ticks(axes, sorted({row["batch"] for row in rows}), str)
    set_log_y(axes)
    axes.set_xlabel("batch")
    _finish_panel(axes, f"Batch ({_short(rows)}, {SPARSITY:.0%} sparse)", "ms an image")


def _draw_sparsity(axes: Axes, rows: Rows) -> None:
    fast = [{**row, "density": 1 - row["sparsity"]} for row in rows if row["way"] == ACCELERATED]
    for number, net in enumerate(dict.fromkeys(row["net"] for row in fast)):
        look = {"color": PALETTE[number], "marker": "^sD"[number % 3]}
        own = [row for row in fast if row["net"] == net]
        _draw_spread(axes, own, "density", "ratio", _NETS.get(net, net), **look)
    axes.axhline(1.0, color=INK, linewidth=1.0, label=DENSE)
    axes.set_xscale("log")
    axes.invert_xaxis()
    densities = sorted({row["density"] for row in fast}, reverse=True)
    _set_ticks(axes, densities, lambda density: f"{1 - density:.0%}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sparsity (weights that remain, on a log scale)")
    _finish_panel(axes, "Sparsity, accelerated", "time of a step, dense = 1")


def _draw_rounds(axes: Axes, rows: Rows) -> None:
    for way in (MASKED, ACCELERATED):
        own = [row for row in rows if row["way"] == way and row["round"] > 0]
        axes.plot([row["round"] for row in own], [row["ladder"] for row in own], label=way, **_LINES[way])
    axes.axhline(1.0, color=INK, linewidth=1.0, label=DENSE)
    last = max(row["round"] for row in rows)
    axes.set_xticks([number for number in range(1, last + 1) if number == 1 or number % 2 == 0 or last < 10])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"rounds of IMP, {EACH_ROUND:.0%} of the weights left a round")
    _finish_panel(axes, f"Whole ladder ({_short(rows)}), from measured steps", "time of all trainings, dense = 1")


def _draw_spread(axes: Axes, rows: Rows, x: str, y: str, label: str, **look: Any) -> None:
    """Medians, and the middle half of the rounds as a shade."""
    places = [row[x] for row in rows]
    axes.plot(places, [row[y]["median"] for row in rows], label=label, **look)
    low, high = ([row[y][edge] for row in rows] for edge in ("q25", "q75"))
    axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _set_weights_axis(axes: Axes, rows: Rows) -> None:
    axes.set_xscale("log")
    _set_ticks(axes, sorted({row["weights"] for row in rows}), lambda weights: f"{float(f'{weights / 1e6:.1g}'):g}M")
    set_log_y(axes)
    axes.set_xlabel("weights")


def _set_ticks(axes: Axes, places: Sequence[float], write: Callable[[Any], str]) -> None:
    axes.minorticks_off()
    axes.set_xticks(places, [write(place) for place in places])


def _finish_panel(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5)
    axes.set_ylabel(label)
    axes.grid(axis="y")
    axes.legend(fontsize=8)


def _short(rows: Rows) -> str:
    """The net of a panel that is of one."""
    net: str = rows[0]["net"]
    return _NETS.get(net, net).partition(",")[0]


def _said(panels: Mapping[str, Rows]) -> str:
    """The ends of the accelerated curves, in words."""
    size, rounds = ([row for row in panels[name] if row["way"] == ACCELERATED][-1] for name in ("size", "rounds"))
    return (
        f"At {size['weights'] / 1e6:.3g} million weights and {SPARSITY:.0%} sparsity an accelerated step takes "
        f"{size['ratio']['median']:.2f} of a dense one; a ladder of {rounds['round']} rounds takes "
        f"{rounds['ladder']:.2f} of as many dense trainings."
    )


# -- the command -------------------------------------------------------------------------------------------------------


def main(arguments: Iterable[str] | None = None) -> int:
    asked = _parser().parse_args(None if arguments is None else list(arguments))
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    extent = QUICK if asked.quick else Extent()
    rounds, shortest, longest = (3, 0.001, 5.0) if asked.quick else (15, 0.04, 45.0)

    def pace(contest: Contest) -> dict[str, Timing]:
        return measure(contest, rounds, shortest, longest)

    document: dict[str, Any] = {
        "machine": report.machine(),
        "settings": {"rounds": rounds, "seconds": longest, "quick": asked.quick},
        "panels": {},
    }
    for name, curve in PANELS.items():
        print(name, file=sys.stderr, flush=True)
        document["panels"][name] = curve(extent, pace)
        if asked.out is not None:  # after each, so that one that fails does not take the others with it
            replace_file(asked.out, (json.dumps(document, indent=1) + "\n").encode())
    if asked.figure is not None:
        replace_file(asked.figure, draw(document).svg.encode())
    _print(document["panels"])
    return 0


def _print(panels: Mapping[str, Rows]) -> None:
    for name, rows in panels.items():
        for row in rows:
            figures = {key: value for key, value in row.items() if not isinstance(value, Mapping) and key != "way"}
            where = ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
            ratio, ms = row["ratio"], row["ms"]["median"]
            spread = f"{ratio['median']:.3f} ({ratio['q25']:.3f} to {ratio['q75']:.3f})"
            print(f"{name:<9} {row['way']:<13} {spread:<26} {ms:9.3f} ms  {where}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--threads", type=int, help="threads of torch (default: as many as torch takes)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the points there too")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw them there")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, few rounds: does it run at all?")
    return parser


if __name__ == "__main__":
    sys.exit(main())

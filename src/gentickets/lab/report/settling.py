"""When the masks of early-bird levels settled: in a sentence a level, and as curve and matrix of distances
(You et al. 2020, Fig. 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gentickets.errors import RecipeError
from gentickets.lab.report.drawing import DASHES, INK, MARKERS, PALETTE, Drawing, draw_cells, finish, thin
from gentickets.lab.results import LevelResult, Run, parse
from gentickets.lab.words import join, number, percent

_NUMBERED = 9
"""Up to so many masks, each distance stands in its cell of the matrix."""


@dataclass(frozen=True)
class _Watched:
    """What `early-bird.json` holds: one entry of each list a mask that was drawn (see `search.EarlyBird`)."""

    steps: list[int]
    settled: bool
    tolerance: float
    window: int
    distances: list[dict[str, list[float]]]
    matrix: list[list[float]]


@dataclass(frozen=True)
class History:
    """The masks that one level of one seed drew while it trained dense, and the level itself."""

    level: LevelResult
    watched: _Watched

    def farthest(self, component: str) -> tuple[list[int], list[float]]:
        """The largest distance of each mask to those before it in the window, and its step, from the second mask."""
        found = zip(self.watched.steps, self.watched.distances, strict=True)
        pairs = [(step, max(to[component])) for step, to in found if to.get(component)]
        return [step for step, _ in pairs], [distance for _, distance in pairs]

    @property
    def words(self) -> str:
        last = f"step {self.watched.steps[-1]:,}"
        return f"settled at {last}" if self.watched.settled else f"had not settled by {last}"


def read_histories(run: Run, seed: int | None = None) -> list[History]:
    """Of every early-bird level (of one seed), in order; of other runs none.

    Raises `RecipeError` that names the file that is not what an early-bird level writes.
    """
    found = []
    for result in run.of("ticket"):
        path = result.folder / "early-bird.json"
        if not path.is_file() or seed not in (None, result.seed):
            continue
        watched: _Watched = parse(path, _Watched)
        masks = len(watched.steps)
        if not masks or {masks} != {len(watched.distances), len(watched.matrix), *map(len, watched.matrix)}:
            raise RecipeError(f"{path}: steps, distances and matrix are not of the same number of masks")
        found.append(History(result, watched))
    return found


def settling_sentences(run: Run) -> list[str]:
    """One sentence a level: on which seed its mask had settled at which step, or had not."""
    histories = read_histories(run)
    said = []
    for level in sorted({history.level.level for history in histories}):
        of_level = [history for history in histories if history.level.level == level]
        watched = of_level[0].watched
        seeds = join(f"{history.words} (seed {history.level.seed})" for history in of_level)
        unsettled = sum(not history.watched.settled for history in of_level)
        newest = "; there the newest mask was taken" if unsettled else ""
        said.append(
            f"Level {level}, {percent(run.summary(run.primary)['ticket', level].sparsity)}: the mask {seeds}{newest}. "
            f"Settled: {watched.window} masks in a row, in every component less than {number(watched.tolerance)} apart."
        )
    return said


def draw_history(history: History) -> Drawing:
    """The distance curve and the distance matrix of one level, side by side. Drawn in `drawing.style`."""
    level, watched = history.level, history.watched
    figure = Figure(figsize=(7.8, 3.7), layout="constrained")
    curve, matrix = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_curve(curve, history)
    _draw_matrix(figure, matrix, watched)
    figure.legend(*curve.get_legend_handles_labels(), loc="outside upper left", ncols=4, columnspacing=1.5)
    caption = (
        f"Level {level.level}, {percent(level.sparsity)}, seed {level.seed}. Left: the largest distance of each mask "
        f"to those before it among the last {watched.window}; open marks: that many were not drawn yet. Right: the "
        f"distance between any two masks, over all components. A distance is the share of what can be pruned, weights "
        f"or channels, in which two masks differ."
    )
    said = []
    for component in watched.distances[-1]:
        steps, farthest = history.farthest(component)
        points = ", ".join(f"{number(value)} at {step:,}" for step, value in zip(steps, farthest, strict=True))
        said.append(f"{component}: {points or 'a single mask'}")
    alt = (
        f"Line chart of the largest distance between masks by step, tolerance {number(watched.tolerance)}: "
        f"{'; '.join(said)}. The mask {history.words}. Beside it a heat map of the distances between all masks."
    )
    return finish(figure, f"early-bird-level-{level.level:02d}", caption, alt)


def _draw_curve(axes: Axes, history: History) -> None:
    watched = history.watched
    highest = watched.tolerance
    for index, component in enumerate(watched.distances[-1]):
        steps, farthest = history.farthest(component)
        colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        dashes = DASHES[index % len(DASHES)]
        few = watched.window - 2  # the first mask has nothing before it, and these not yet a window full
        axes.plot(steps, farthest, color=colour, linestyle=dashes, marker=marker, label=component)
        axes.plot(steps[:few], farthest[:few], color=colour, linestyle="none", marker=marker, markerfacecolor="#ffffff")
        highest = max([highest, *farthest])
    axes.axhline(watched.tolerance, color=INK, linewidth=1.0, alpha=0.7, linestyle=":", label="tolerance")
    if watched.settled:
        axes.axvline(watched.steps[-1], color=INK, linewidth=1.0, alpha=0.7, label="settled")
    axes.set_ylim(-0.03 * highest, 1.12 * highest)
    axes.set_xlabel("training step")
    axes.set_ylabel("largest distance within the window")
    axes.grid(axis="y")


def _draw_matrix(figure: Figure, axes: Axes, watched: _Watched) -> None:
    masks = len(watched.steps)
    highest = max(max(row) for row in watched.matrix) or watched.tolerance
    numbered = masks <= _NUMBERED
    mesh = draw_cells(axes, watched.matrix, highest, (lambda value: number(value, 2)) if numbered else None)
    step = thin(masks, _NUMBERED)
    middles = [place + 0.5 for place in range(masks)]
    labels = [f"{at:,}" for at in watched.steps]
    axes.set_xticks(middles[::step], labels[::step], rotation=45 if masks > 5 else 0)
    axes.set_yticks(middles[::step], labels[::step])
    axes.set_xlabel("training step of a mask")
    axes.set_aspect("equal")
    if not numbered:
        figure.colorbar(mesh, ax=axes, label="distance", aspect=30, pad=0.02)

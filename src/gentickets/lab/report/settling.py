"""When the masks of early-bird levels settled, and whether their controls have as much work: in a sentence a level, and
as curve and matrix of distances (You et al. 2020, Fig. 2 and 3), each beside that of independent masks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gentickets.errors import RecipeError
from gentickets.lab.report.drawing import DASHES, INK, MARKERS, PALETTE, Drawing, draw_cells, finish, thin
from gentickets.lab.results.reading import LevelResult, Run, parse
from gentickets.lab.results.summary import summarise
from gentickets.lab.results.words import join, number, percent

_NUMBERED = 9
"""Up to so many masks, each distance stands in its cell of the matrix."""


_EVEN = 0.02
"""By so much of its ticket's weights or FLOPs a control may be off and still count as equal to it."""


@dataclass(frozen=True)
class _Watched:
    """What `early-bird.json` holds: one entry of each list a mask that was drawn (see `search.EarlyBird`)."""

    steps: list[int]
    settled: bool
    tolerance: float
    window: int
    distances: list[dict[str, list[float]]]
    matrix: list[list[float]]
    rule: str = "hamming"
    chances: list[dict[str, list[float]]] = field(default_factory=list)
    chance_matrix: list[list[float]] = field(default_factory=list)

    @property
    def lists(self) -> list[Sequence[object]]:
        """All that has one entry a mask; files of before chance was known have nothing on it."""
        on_chance: list[Sequence[object]] = (
            [self.chances, self.chance_matrix, *self.chance_matrix] if self.chances else []
        )
        return [self.steps, self.distances, self.matrix, *self.matrix, *on_chance]


@dataclass(frozen=True)
class History:
    """The masks that one level of one seed drew while it trained dense, and the level itself."""

    level: LevelResult
    watched: _Watched

    @property
    def relative(self) -> bool:
        """Whether distances are shares of those of independent masks; otherwise of what can be pruned."""
        return self.watched.rule == "chance"

    def farthest(self, component: str) -> tuple[list[int], list[float], list[float]]:
        """From the second mask: its step, its largest distance to those before it in the window, by the level's rule,
        and what that would be of independent masks (nothing where it was not kept)."""
        steps, distances, chances = [], [], []
        for index, (step, to) in enumerate(zip(self.watched.steps, self.watched.distances, strict=True)):
            if found := to.get(component):
                by_chance = self.watched.chances[index][component] if self.watched.chances else []
                if self.relative:
                    found = [_share(one, of) for one, of in zip(found, by_chance, strict=True)]
                    by_chance = [1.0]
                steps.append(step)
                distances.append(max(found))
                chances.append(min(by_chance, default=math.nan))
        return steps, distances, chances

    @property
    def matrix(self) -> list[list[float]]:
        """The distance between any two masks, by the level's rule."""
        if not self.relative:
            return self.watched.matrix
        return [
            [_share(one, of) for one, of in zip(*rows, strict=True)]
            for rows in zip(self.watched.matrix, self.watched.chance_matrix, strict=True)
        ]

    @property
    def chance_words(self) -> str:
        """How far apart independent masks would be."""
        if len(self.watched.chance_matrix) < 2:
            return "How far apart independent masks would be was not kept."
        apart = [of for index, row in enumerate(self.watched.chance_matrix) for of in row[:index]]
        low, high = number(min(apart)), number(max(apart))
        between = low if low == high else f"{low} to {high}"
        return f"Independent masks of the same layer densities would differ on {between} of it all."

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
        if not watched.steps or len({len(one) for one in watched.lists}) != 1:
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
        sparsity = summarise(run, run.primary)["ticket", level].sparsity
        newest = "; there the newest mask was taken" if unsettled else ""
        said.append(
            f"Level {level}, {percent(sparsity)}: the mask {seeds}{newest}. "
            f"Settled: {watched.window} masks in a row, in every component less than {number(watched.tolerance)} apart"
            + (", of what independent masks would be." if of_level[0].relative else ".")
            + f" {of_level[0].chance_words}"
        )
        said += _control_sentences(run, level)
    return said


def _control_sentences(run: Run, level: int) -> list[str]:
    """What the random control of a level has of its ticket's weights and FLOPs, which should be the same."""
    shares: dict[str, list[float]] = {"weights": [], "FLOPs of training": []}
    tickets = {result.seed: result.cost for result in run.of("ticket", level)}
    for result in run.of("random_mask", level):
        mine, other = result.cost, tickets.get(result.seed)
        if mine and other:
            shares["weights"].append(_share(mine.alive_parameters, other.alive_parameters))
            if mine.train_flops is not None and other.train_flops is not None:
                shares["FLOPs of training"].append(_share(mine.train_flops, other.train_flops))
    told = [f"{number(statistics.fmean(found))} of the {what}" for what, found in shares.items() if found]
    if not told:
        return []
    uneven = any(abs(share - 1) > _EVEN for found in shares.values() for share in found)
    judged = ": not as much work, so that the two do not compare" if uneven else ""
    return [f"The random control of level {level} has {join(told)} of its ticket, on average{judged}."]


def _share(one: float, of: float) -> float:
    """`one / of`; 0 of 0 is 0: where no other mask was possible, none differs."""
    return one / of if of else float(one)


def draw_history(history: History) -> Drawing:
    """The distance curve and the distance matrix of one level, side by side. Drawn in `drawing.style`."""
    level, watched = history.level, history.watched
    figure = Figure(figsize=(7.8, 3.7), layout="constrained")
    curve, matrix = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_curve(curve, history)
    _draw_matrix(figure, matrix, history)
    figure.legend(*curve.get_legend_handles_labels(), loc="outside upper left", ncols=4, columnspacing=1.5)
    caption = (
        f"Level {level.level}, {percent(level.sparsity)}, seed {level.seed}. Left: the largest distance of each mask "
        f"to those before it among the last {watched.window}; open marks: that many were not drawn yet. Right: the "
        f"distance between any two masks, over all components. A distance is the share of what can be pruned, weights "
        f"or channels, in which two masks differ"
        + (", divided by that of independent masks. " if history.relative else ". ")
        + history.chance_words
    )
    said = []
    for component in watched.distances[-1]:
        steps, farthest, _ = history.farthest(component)
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
        steps, farthest, chances = history.farthest(component)
        colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        dashes = DASHES[index % len(DASHES)]
        few = watched.window - 2  # the first mask has nothing before it, and these not yet a window full
        axes.plot(steps, farthest, color=colour, linestyle=dashes, marker=marker, label=component)
        axes.plot(steps[:few], farthest[:few], color=colour, linestyle="none", marker=marker, markerfacecolor="#ffffff")
        highest = max([highest, *farthest])
        known = [(step, chance) for step, chance in zip(steps, chances, strict=True) if not math.isnan(chance)]
        if known and not (history.relative and index):  # there it is 1 for all
            label = "independent masks" if index == 0 else None
            axes.plot(*zip(*known, strict=True), color=colour, linewidth=0.8, alpha=0.5, label=label)
            highest = max([highest, *(chance for _, chance in known)])
    axes.axhline(watched.tolerance, color=INK, linewidth=1.0, alpha=0.7, linestyle=":", label="tolerance")
    if watched.settled:
        axes.axvline(watched.steps[-1], color=INK, linewidth=1.0, alpha=0.7, label="settled")
    axes.set_ylim(-0.03 * highest, 1.12 * highest)
    axes.set_xlabel("training step")
    axes.set_ylabel("largest distance within the window" + (", of chance" if history.relative else ""))
    axes.grid(axis="y")


def _draw_matrix(figure: Figure, axes: Axes, history: History) -> None:
    watched, cells = history.watched, history.matrix
    masks = len(watched.steps)
    highest = max(max(row) for row in cells) or watched.tolerance
    numbered = masks <= _NUMBERED
    mesh = draw_cells(axes, cells, highest, (lambda value: number(value, 2)) if numbered else None)
    step = thin(masks, _NUMBERED)
    middles = [place + 0.5 for place in range(masks)]
    labels = [f"{at:,}" for at in watched.steps]
    axes.set_xticks(middles[::step], labels[::step], rotation=45 if masks > 5 else 0)
    axes.set_yticks(middles[::step], labels[::step])
    axes.set_xlabel("training step of a mask")
    axes.set_aspect("equal")
    if not numbered:
        figure.colorbar(mesh, ax=axes, label="distance", aspect=30, pad=0.02)

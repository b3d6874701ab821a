"""Where a run stands, piece by piece: done, running and where, waiting for what, failed and why; and what is left."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.recipe import Recipe
from gentickets.lab.recipe.recipe import code_in
from gentickets.lab.results.reading import read_timing
from gentickets.lab.run import folder as disk
from gentickets.lab.run.claims import Beat, Claims, Held, is_gone
from gentickets.lab.run.pieces import Board, Piece, Standing, pieces_of
from gentickets.lab.run.schedule import Load, simulate
from gentickets.lab.run.seed import steps_by_piece

State = Literal["done", "running", "stopped", "failed", "ready", "waiting", "left out"]

_MOST_LEVELS = 10**5
"""A folder may be a stranger's, and ask for any number."""


@dataclass(frozen=True)
class PieceStatus:
    """How one piece is. `where`: who works on it; `why`: what it waits for, or what it failed of."""

    piece: Piece
    state: State
    where: str = ""
    why: str = ""
    beat: Beat = field(default_factory=Beat)


@dataclass(frozen=True)
class Status:
    """How a run is. `seconds_left`: at the pace so far, by the workers that are at it or by one; None where nothing
    has been timed yet."""

    folder: Path
    pieces: tuple[PieceStatus, ...]
    seconds_left: float | None

    def counts(self) -> dict[State, int]:
        """State → how many pieces, in the order of `State`."""
        order: tuple[State, ...] = ("done", "running", "stopped", "failed", "ready", "waiting", "left out")
        states = [piece.state for piece in self.pieces]
        return {state: states.count(state) for state in order if state in states}

    @property
    def is_complete(self) -> bool:
        return all(piece.state in ("done", "left out") for piece in self.pieces)


class Watch:
    """Looks at a run again and again: over time it learns which workers of other machines are silent."""

    def __init__(self, folder: Path):
        self.folder, self._claims = folder, Claims(folder)

    def look(self) -> Status:
        """How the run is now. Raises `RecipeError` where the folder is no run, or one of more pieces than are told."""
        recipe = disk.read_run_recipe(self.folder)
        others = [seed for seed in disk.seeds_in(self.folder) if seed not in recipe.seeds]
        recipe = recipe.model_copy(update={"seeds": [*recipe.seeds, *others]})
        if len(recipe.seeds) * (recipe.rounds + 1) > _MOST_LEVELS:
            raise RecipeError(f"{self.folder}: more than {_MOST_LEVELS:,} levels are not told one by one")
        board = Board(self.folder, recipe)
        found = {seed: board.standing(seed) for seed in recipe.seeds}
        pieces = tuple(self._status(board, found[piece.seed], piece) for piece in pieces_of(recipe))
        return Status(self.folder, pieces, _seconds_left(self.folder, recipe, pieces))

    def _status(self, board: Board, found: Standing, piece: Piece) -> PieceStatus:
        if board.is_complete(piece):
            return PieceStatus(piece, "done")
        if not board.is_to_come(piece, found):
            return PieceStatus(piece, "left out", why=board.why_left_out(piece))
        newest = self._claims.newest(piece.name)
        if newest is not None:
            return self._claimed(piece, newest)
        if (needed := board.needs(piece, found)) is not None:
            return PieceStatus(piece, "waiting", why=needed)
        return PieceStatus(piece, "ready")

    def _claimed(self, piece: Piece, newest: Held) -> PieceStatus:
        if newest.failure is not None:
            return PieceStatus(piece, "failed", why=newest.failure)
        where = str(newest.owner or "")
        if self._claims.is_live(piece.name):
            return PieceStatus(piece, "running", where, beat=newest.beat)
        how = "" if newest.over else f"; {where} {'is gone' if _is_gone(newest) else 'has been silent for a lease'}"
        return PieceStatus(piece, "stopped", why=f"goes on with the next worker{how}")


def _is_gone(held: Held) -> bool:
    return held.owner is not None and is_gone(held.owner)


def statuses(folder: Path, watches: dict[Path, Watch]) -> list[Status]:
    """How a run is, or every run of a study. `watches`: kept from one look to the next."""
    runs = [folder] if (folder / "recipe.yaml").is_file() else _arms(folder)
    return [watches.setdefault(run, Watch(run)).look() for run in runs]


def _arms(folder: Path) -> list[Path]:
    arms = sorted(entry for entry in folder.iterdir() if (entry / "recipe.yaml").is_file()) if folder.is_dir() else []
    if not arms:
        raise GenticketsError(f"{folder} is no run, and no study: there is no recipe.yaml in it")
    return arms


def _seconds_left(folder: Path, recipe: Recipe, pieces: tuple[PieceStatus, ...]) -> float | None:
    """What is left, played through at the pace of what is done; None where that would run code that a folder names."""
    if code_in(recipe.dump()):
        return None
    done = [piece.piece for piece in pieces if piece.state in ("done", "left out")]
    pace = _pace(folder, recipe, [piece.piece for piece in pieces if piece.state == "done"])
    if pace is None:
        return None
    per_step, beside = pace
    steps_of = steps_by_piece(recipe)
    running = {piece.piece: piece.beat for piece in pieces if piece.state == "running"}

    def seconds(piece: Piece) -> float:
        whole = steps_of(piece) * per_step + beside
        return max(whole - running[piece].seconds, beside) if piece in running else whole

    return simulate([Load(recipe, seconds)], max(1, len(running)), [(0, piece) for piece in done]).seconds


def _pace(folder: Path, recipe: Recipe, done: list[Piece]) -> tuple[float, float] | None:
    """Seconds a step, and beside the steps of a piece, of those that were trained here."""
    steps_of = steps_by_piece(recipe)
    steps, trained, evaluated, count = 0, 0.0, 0.0, 0
    for piece in done:
        timing = read_timing(folder / piece.name)
        if timing is None or timing.shared_from is not None or not timing.train_seconds or not steps_of(piece):
            continue
        steps += steps_of(piece)
        trained, evaluated, count = trained + timing.train_seconds, evaluated + timing.evaluate_seconds, count + 1
    return (trained / steps, evaluated / count) if count and steps else None

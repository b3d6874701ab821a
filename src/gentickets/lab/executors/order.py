"""What of some runs is still to be made, and in which order; asked of the runs' own boards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gentickets.lab.recipe import Recipe
from gentickets.lab.run.pieces import Board, Piece, builds_on, pieces_of
from gentickets.lab.run.prepare import Prepared
from gentickets.lab.run.sharing import Donors


@dataclass(frozen=True)
class _Site:
    """One of the runs, with its board."""

    ready: Prepared
    board: Board

    def to_come(self) -> list[Piece]:
        """What is not there and is expected: a chain that has ended early has controls that nobody could foresee."""
        foreseen = [piece for piece in pieces_of(self.ready.recipe) if self.board.is_to_come(piece)]
        return [*foreseen, *(piece for piece in self.board.ready() if piece not in foreseen)]


class ToDo:
    """What is to be made of some runs.

    A piece is called as by `gentickets work`: by its place below `root`, the run, or the study whose arms they are.
    """

    def __init__(self, runs: Sequence[Prepared]):
        self.root = (runs[0].folder if len(runs) == 1 else runs[0].folder.parent).resolve()
        self._boards = {ready.folder: Board(ready.folder, ready.recipe) for ready in runs}
        self._sites = [_Site(ready, self._boards[ready.folder]) for ready in runs]
        # Whoever commanded this has let the code run that a recipe names.
        self.allowed = ("--allow-code",) if any(ready.recipe.code() for ready in runs) else ()

    def words(self, name: str | None = None) -> tuple[str, ...]:
        """The command that makes a piece; without a name, piece after piece until none is left."""
        return ("work", str(self.root), *(("--piece", name) if name is not None else ()), *self.allowed)

    def left(self) -> dict[str, tuple[str, ...]]:
        """What is not there, and will be unless its chain ends before it: name → what must be complete before it, and
        is not."""
        found = {}
        for site in self._sites:
            for piece in site.to_come():
                found[self._called(site.ready.folder, piece)] = self._before(site.ready, piece)
        return {name: tuple(one for one in before if one in found) for name, before in found.items()}

    def ready(self) -> list[str]:
        """What can be made now: the chains before the controls."""
        found = []
        for site in self._sites:
            donors = Donors(site.ready, self._boards)
            found += [(piece, site) for piece in site.board.ready() if not donors.awaited(piece)]
        found.sort(key=lambda entry: entry[0].arm != "ticket")
        return [self._called(site.ready.folder, piece) for piece, site in found]

    def is_anything_left(self) -> bool:
        return any(site.board.ready() for site in self._sites)

    def settle(self, name: str) -> bool:
        """Notes that a piece's command ended well: a control that is not there is one that its level cannot have.

        Whether nothing more is expected of it.
        """
        for site in self._sites:
            for piece in site.to_come():
                if self._called(site.ready.folder, piece) == name:
                    if piece.arm == "ticket":
                        return False
                    site.board.leave_out(piece)
        return True

    def _called(self, run: Path, piece: Piece) -> str:
        return str((run.resolve() / piece.name).relative_to(self.root))

    def _before(self, ready: Prepared, piece: Piece) -> list[str]:
        """What must be complete before a piece is sure to be ready: of its run, and of runs that it takes over from."""
        found = [self._called(ready.folder, one) for one in comes_after(ready.recipe, piece)]
        return found + [self._called(run, one) for run, one in Donors(ready, self._boards).before(piece)]


def comes_after(recipe: Recipe, piece: Piece) -> list[Piece]:
    """What of its run must be complete before a piece is ready for sure, or is known not to come."""
    below = builds_on(piece)
    if below is None:
        return []
    # Controls of levels that depend on where the chain ends wait until it has.
    ends = range(piece.level, recipe.rounds + 1)
    sure = piece.arm == "ticket" or all(piece.level in recipe.controls.chosen(last) for last in ends)
    return [below] if sure else [below, Piece(piece.seed, recipe.rounds)]

"""What a run consists of: pieces, each a level or a control of one seed, made once and wherever; and what is ready.

A level is built on the one before it, for the chain of a seed may end at any level; a control on its level. A piece's
name is its place in the run's folder, and it is done when that is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gentickets.errors import RecipeError
from gentickets.lab.recipe import Recipe
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.options import CONTROLS

_NAME = re.compile(r"seed-(\d{1,18})/level-(\d{2,5})(?:-(\w+))?")


@dataclass(frozen=True, order=True)
class Piece:
    """One level of one seed, or a control of it."""

    seed: int
    level: int
    arm: str = "ticket"

    @property
    def name(self) -> str:
        """Where it lies in the run's folder: `seed-0/level-03`, `seed-0/level-03-random_mask`."""
        return f"seed-{self.seed}/{publishing.level_name(self.level, self.arm)}"

    @classmethod
    def at(cls, place: Path) -> Piece | None:
        """The piece whose folder this is by its names; None for any other, such as somebody's copy of one."""
        try:
            return cls.of(f"{place.parent.name}/{place.name}")
        except RecipeError:
            return None

    @classmethod
    def of(cls, name: str) -> Piece:
        """The piece of a name. Raises `RecipeError` where it is none."""
        match = _NAME.fullmatch(name)
        if match is None or match[3] not in (None, *CONTROLS):
            raise RecipeError(f"{name[:80]!r} is no piece of a run: seed-0/level-03, or seed-0/level-03-random_mask")
        return cls(int(match[1]), int(match[2]), match[3] or "ticket")


def pieces_of(recipe: Recipe) -> list[Piece]:
    """Every piece of a run in which no chain ends early: seed by seed, the chain and then its controls."""
    found = []
    for seed in recipe.seeds:
        found += [Piece(seed, level) for level in range(recipe.rounds + 1)]
        found += controls_of(recipe, seed, recipe.controls.chosen(recipe.rounds))
    return found


def pieces_in(folder: Path) -> list[Piece]:
    """The pieces that are there, in their order. What is a link, as in a stranger's run, is none."""
    places = (place for seed in folder.glob("seed-*") if not seed.is_symlink() for place in seed.glob("level-*"))
    found = (Piece.at(place) for place in places if place.is_dir() and not place.is_symlink())
    return sorted(piece for piece in found if piece is not None)


def is_mark(name: str) -> bool:
    """Whether a file in a seed's folder says by its name that a level cannot have a control."""
    return re.fullmatch(r"\.level-\d{2,5}-\w+\.none", name) is not None


def controls_of(recipe: Recipe, seed: int, levels: Sequence[int]) -> list[Piece]:
    """The controls that a recipe wants at these levels of a seed."""
    return [Piece(seed, level, arm) for level in levels for arm in recipe.controls.arms]


def builds_on(piece: Piece) -> Piece | None:
    """What must be complete before a piece can be made; None for a dense model."""
    if piece.arm != "ticket":
        return Piece(piece.seed, piece.level)
    return Piece(piece.seed, piece.level - 1) if piece.level else None


@dataclass
class Standing:
    """How far one seed is. `chain`: levels that are complete in a row; `ended`: there are no more to make; `ready`:
    what can be made now, the chain first. Nothing ready: nothing is left."""

    seed: int
    chain: int
    ended: bool
    ready: list[Piece] = field(default_factory=list)


def standing(
    recipe: Recipe, seed: int, is_there: Callable[[Piece], bool], ends: Callable[[Piece], bool] = lambda piece: False
) -> Standing:
    """How far a seed is, by what of it `is_there`, and whether the chain `ends` at a level that is."""
    rounds, chain, ended = recipe.rounds, 0, False
    while not ended and chain <= rounds and is_there(Piece(seed, chain)):
        ended = ends(Piece(seed, chain))
        chain += 1
    ended = ended or chain > rounds
    ready = [] if ended else [Piece(seed, chain)]
    # A control is wanted where it will be, wherever the chain may still end.
    last = range(chain - 1, chain) if ended else range(chain, rounds + 1)
    sure = set.intersection(*(set(recipe.controls.chosen(level)) for level in last))
    controls = controls_of(recipe, seed, sorted(level for level in sure if level < chain))
    return Standing(seed, chain, ended, [*ready, *(piece for piece in controls if not is_there(piece))])


def source_of(source: Board, piece: Piece) -> Piece:
    """The level of another run from which a ticket is carried over: of the same seed; of the first one where the run
    has none of that seed, or its chain ended before."""
    own = Piece(piece.seed, piece.level, piece.arm)
    if source.is_complete(own) or source.is_to_come(own):
        return own
    return Piece(source.recipe.seeds[0], piece.level, piece.arm)


Site = TypeVar("Site")


def in_order(ready: Sequence[tuple[Site, Piece]], last: tuple[Site, int] | None) -> Iterator[tuple[Site, Piece]]:
    """What a worker tries first of what is ready, given site by site and seed by seed: whatever goes on where it was
    `last`; then the first site's chains, and its controls."""
    sites = list(dict.fromkeys(site for site, _ in ready))

    def rank(entry: tuple[Site, Piece]) -> tuple[bool, int, bool]:
        site, piece = entry
        return (site, piece.seed) != last, sites.index(site), piece.arm != "ticket"

    yield from sorted(ready, key=rank)


class Board:
    """What of a run is complete, and what can be made now, as its folder says each time that it is asked."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder, self.recipe = folder, recipe
        self._ends: dict[Piece, bool] = {}

    def is_complete(self, piece: Piece) -> bool:
        return (self.folder / piece.name).is_dir()

    def leave_out(self, piece: Piece) -> None:
        """A control that its level cannot have: nothing is made of it, and nobody waits for it, here or elsewhere."""
        self._mark(piece).touch()

    def standing(self, seed: int) -> Standing:
        return standing(self.recipe, seed, self._is_settled, self._ends_at)

    def ready(self) -> list[Piece]:
        """What can be made now, seed by seed; nothing where nothing is left."""
        return [piece for seed in self.recipe.seeds for piece in self.standing(seed).ready]

    def is_to_come(self, piece: Piece, found: Standing | None = None) -> bool:
        """Whether a piece is not there, and will be made unless its chain ends before it. `found`: how far its seed
        is, where that is known."""
        if piece.seed not in self.recipe.seeds or self._is_settled(piece):
            return False
        found = found or self.standing(piece.seed)
        if piece in found.ready:
            return True
        return not found.ended and self._is_wanted(piece)

    def _is_wanted(self, piece: Piece) -> bool:
        """Whether it is made where its chain goes to its end."""
        if piece.arm == "ticket":
            return piece.level <= self.recipe.rounds
        controls = self.recipe.controls
        return piece.arm in controls.arms and piece.level in controls.chosen(self.recipe.rounds)

    def needs(self, piece: Piece, found: Standing | None = None) -> str | None:
        """What a piece that is to come waits for, in words; None where it can be made now."""
        found = found or self.standing(piece.seed)
        if piece in found.ready:
            return None
        below = builds_on(piece)
        if below is not None and not self.is_complete(below):
            return below.name
        return f"where the chain of seed {piece.seed} ends"

    def why_left_out(self, piece: Piece) -> str:
        """Why a piece that is not there is not to come, in words."""
        return "its level has no such control" if self._mark(piece).exists() else "its chain ended before it"

    def _is_settled(self, piece: Piece) -> bool:
        return self.is_complete(piece) or (piece.arm != "ticket" and self._mark(piece).exists())

    def _mark(self, piece: Piece) -> Path:
        place = self.folder / piece.name
        return place.with_name(f".{place.name}.none")

    def _ends_at(self, piece: Piece) -> bool:
        """Whether the chain goes no further than a complete level."""
        if piece not in self._ends:
            status = disk.read_metrics(self.folder / piece.name)["status"]
            self._ends[piece] = status == "disconnected" or (status == "diverged" and self.recipe.on_failure == "stop")
        return self._ends[piece]

"""What runs would train the same is trained once: a dense model, or a whole chain of tickets, found by its content."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from gentickets.errors import GenticketsError
from gentickets.files import link_or_copy
from gentickets.lab.recipe import Recipe
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.keeping import WEIGHTS
from gentickets.lab.run.level import check_whole_level, level_facts, measured_files
from gentickets.lab.run.pieces import Board, Piece, pieces_of, source_of
from gentickets.lab.run.prepare import Prepared
from gentickets.lab.run.seed import source_run
from gentickets.lab.run.stage import load_data
from gentickets.lab.task import build_model
from gentickets.masks.lineage import begun
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks

_REWRITTEN = ("ticket.safetensors", "metrics.json", "timing.json")


class Donors:
    """The runs whose trainings one run takes over, where they are its own to the bit.

    A run of the same search on the same data gives each of its levels and controls. Any run of the same model, data,
    objective, training and evaluation gives its dense level, where this run's method starts from that training with
    the same rewind step; its ticket is then written anew, with this run's coverage. Files are linked, and
    `timing.json` says under `shared_from` who trained them. Runs that are worked on beside it (`ready.donors`) come
    first, and are waited for; `boards`: what is made of them there, by folder, where that is not what they say.
    """

    def __init__(self, ready: Prepared, boards: Mapping[Path, Board] | None = None):
        self.ready, self._boards = ready, {} if boards is None else boards
        self._gives: dict[tuple[Path, bool], bool] = {}

    def awaited(self, piece: Piece) -> bool:
        """Whether there is something `before` a piece."""
        return bool(self.before(piece))

    def before(self, piece: Piece) -> list[tuple[Path, Piece]]:
        """What runs that are worked on beside this one will make and a piece waits for: the same, where this run would
        only take it over, and the ticket that is `carried` over."""
        given = [(donor, piece) for donor in self.ready.donors if self._may_give(donor, piece)]
        return [(run, one) for run, one in given if self.will_make(run, one)] + self.carried(piece)

    def carried(self, piece: Piece) -> list[tuple[Path, Piece]]:
        """What of other runs a piece is made of, where that will be made yet: the ticket that it is to carry over."""
        sources = self.ready.recipe.build_method().sources(piece.arm) if piece.level else ()
        return [one for source in sources for one in self._carried(source, piece)]

    def _carried(self, source: str, piece: Piece) -> list[tuple[Path, Piece]]:
        run = source_run(self.ready.folder, source)
        if not (run / "recipe.yaml").exists():
            return []
        theirs = source_of(Board(run, disk.read_run_recipe(run)), piece)
        return [(donor, theirs) for donor in self.ready.donors if _is_same(donor, run) and self.will_make(run, theirs)]

    def will_make(self, run: Path, piece: Piece) -> bool:
        """Whether a piece is not there, and a run that is worked on before this one will make it."""
        donor = next((donor for donor in self.ready.donors if _is_same(donor, run)), None)
        if donor is None:
            return False
        board = self._boards.get(donor) or Board(donor, disk.read_run_recipe(donor))
        return board.is_to_come(piece)

    def expected(self, taking: Mapping[Path, Mapping[int, str]]) -> dict[int, str]:
        """Seed → the run from which its dense model will come, where that is not trained here.

        `taking`: the same of the runs that are worked on beside this one, which then have none of their own to give.
        """
        found = {}
        for seed in self.ready.recipe.seeds:
            dense = Piece(seed, 0)
            if (self.ready.folder / dense.name).exists():
                continue
            giving = [donor for donor in self.ready.donors if self._is_twin(donor)]
            giving += [d for d in self.ready.donors if self._has_same_dense(d) and seed not in taking.get(d, ())]
            giving += [donor for donor in self.ready.beside if self._can_give(donor, dense)]
            if giving:
                found[seed] = _called(self.ready, giving[0])
        return found

    def take(self, piece: Piece, fence: int) -> bool:
        """Takes a piece over from a run that has it; whether one had. Raises `Published` as making it does."""
        donors = [*self.ready.donors, *self.ready.beside]
        donor = next(
            (donor for donor in donors if self._can_give(donor, piece) and _is_sound(donor / piece.name)), None
        )
        if donor is None:
            return False
        place = self.ready.folder / piece.name
        shutil.rmtree(publishing.partial_of(place, fence), ignore_errors=True)
        if self._is_twin(donor):
            _take_as_it_is(donor, piece, place, fence, _called(self.ready, donor))
        else:
            _take_dense(self.ready.recipe, piece, donor, place, fence, _called(self.ready, donor))
        return True

    def _may_give(self, donor: Path, piece: Piece) -> bool:
        return self._is_twin(donor) or (piece == Piece(piece.seed, 0) and self._has_same_dense(donor))

    def _can_give(self, donor: Path, piece: Piece) -> bool:
        """Whether a run has a piece that it trained, or had from its twin, for this run to take."""
        place = donor / piece.name
        if not place.exists() or not self._may_give(donor, piece):
            return False
        if self._is_twin(donor):
            return True
        complete = disk.read_metrics(place)["status"] == "complete"
        return complete and "shared_from" not in disk.read_json(place / "timing.json")

    def _is_twin(self, donor: Path) -> bool:
        return self._asked(donor, True, lambda theirs: _chain_keys(theirs) == _chain_keys(self.ready.recipe))

    def _has_same_dense(self, donor: Path) -> bool:
        return self._asked(donor, False, lambda theirs: _same(self.ready.recipe, theirs))

    def _asked(self, donor: Path, whole: bool, same: Callable[[Recipe], bool]) -> bool:
        """What two recipes say of each other, read once."""
        if (donor, whole) not in self._gives:
            theirs = _on_same_ground(self.ready, donor)
            self._gives[donor, whole] = theirs is not None and same(theirs)
        return self._gives[donor, whole]


def _is_sound(place: Path) -> bool:
    """Whether a level that could be taken over is as it was written; what is not is told, and made here."""
    try:
        check_whole_level(place)
    except GenticketsError as error:
        warnings.warn(f"not taken over, but made anew: {error}", stacklevel=2)
        return False
    return True


def _is_same(one: Path, other: Path) -> bool:
    return one == other or one.resolve() == other.resolve()


def taken_over(recipes: Sequence[Recipe]) -> list[dict[Piece, int]]:
    """What runs of these recipes, worked on together on one ground, take from which: piece → the run's number, for
    each."""
    found: list[dict[Piece, int]] = []
    for recipe in recipes:
        taken: dict[Piece, int] = {}
        for number, donor in enumerate(recipes[: len(found)]):
            twin = _chain_keys(donor) == _chain_keys(recipe)
            given = set(pieces_of(donor)) if twin else {Piece(seed, 0) for seed in donor.seeds if _same(recipe, donor)}
            own = given if twin else given - set(found[number])
            taken = {piece: number for piece in pieces_of(recipe) if piece in own} | taken
        found.append(taken)
    return found


def neighbours(folder: Path) -> list[Path]:
    """The runs beside a study's folder, and the arms of the studies there."""
    beside = sorted(entry for entry in folder.parent.iterdir() if entry.is_dir() and entry != folder)
    inside = [arm for entry in beside if (entry / "study.yaml").is_file() for arm in sorted(entry.iterdir())]
    return [place for place in (*beside, *inside) if (place / "recipe.yaml").is_file()]


def _called(ready: Prepared, donor: Path) -> str:
    """A run's name as it is told: with its study's, where that is another."""
    if donor.parent in (ready.folder.parent, ready.folder.parent.parent):
        return donor.name
    return f"{donor.parent.name}/{donor.name}"


# -- a whole chain ----------------------------------------------------------------------------------------------


def _on_same_ground(ready: Prepared, donor: Path) -> Recipe | None:
    """The recipe of a run by which equal keys would give equal bits: on the same images, with the same code, torch and
    threads; None of any other, and of a folder that is none that could be gone on with."""
    try:
        mine, (recipe, theirs) = disk.read_run_origin(ready.folder), disk.read_begun(donor)
    except GenticketsError:
        return None
    same = mine["threads"] == theirs["threads"] and disk.ground_of(mine) == disk.ground_of(theirs)
    return recipe if same else None


def _chain_keys(recipe: Recipe) -> dict[str, Any]:
    search = dict(recipe.dump()["search"])
    search.pop("rounds", None)
    return {**_dense_keys(recipe), "search": search}


def _take_as_it_is(donor: Path, piece: Piece, place: Path, fence: int, called: str) -> None:
    """Links a level or a control, and with a dense level the rewind point."""
    source = donor / piece.name
    with publishing.building(place, fence) as partial:
        for file in source.iterdir():
            if file.name != "timing.json":
                with suppress(*([FileNotFoundError] if file.name in WEIGHTS else [])):  # let go of a moment ago
                    link_or_copy(file, partial / file.name)
        timing = disk.read_json(source / "timing.json")
        disk.write_json(partial / "timing.json", {"shared_from": called, **timing})
        if not piece.level:
            _take_rewind_point(source.parent, place.parent)


def _take_rewind_point(source: Path, target: Path) -> None:
    for name in ("rewind.safetensors", "rewind.json"):
        if (source / name).exists() and not (target / name).exists():
            link_or_copy(source / name, target / name)


# -- the dense level alone --------------------------------------------------------------------------------------


def _same(recipe: Recipe, donor: Recipe) -> bool:
    """Whether the donor's dense level may stand for the one that `recipe` would train."""
    if _dense_keys(recipe) != _dense_keys(donor):
        return False
    # To a method without a rewind point the dense model's result is a reference alone.
    mine = recipe.search.told("rewind_step", None)
    return mine is None or mine == donor.search.told("rewind_step", 0)


def _rewind_step(recipe: Recipe) -> int:
    return int(recipe.search.told("rewind_step", 0))


def _dense_keys(recipe: Recipe) -> dict[str, Any]:
    whole = recipe.dump()
    keys = {part: whole[part] for part in ("model", "data", "objective", "training", "evaluation")}
    del keys["training"]["checkpoint_seconds"], keys["evaluation"]["margin"]
    return keys


def _take_dense(recipe: Recipe, piece: Piece, donor: Path, place: Path, fence: int, called: str) -> None:
    source = donor / f"seed-{piece.seed}"
    model = build_model(recipe, load_data(recipe.data)[0], piece.seed)
    masks = recipe.build_method().covered(model)
    with publishing.building(place, fence) as partial:
        for file in (source / place.name).iterdir():
            if file.name not in _REWRITTEN:
                link_or_copy(file, partial / file.name)
        same_start = _rewind_step(recipe) == _rewind_step(disk.read_run_recipe(donor))
        _ticket(recipe, masks, model, Ticket.load(source / place.name / _REWRITTEN[0]), same_start).save(
            partial / _REWRITTEN[0]
        )
        metrics = disk.read_metrics(source / place.name) | level_facts(piece.seed, 0, "ticket", masks)
        # Stored sparse, a weight that masks cover takes one bit more.
        bits = sum(-(-layer["total"] // 8) for layer in metrics["layers"].values())
        metrics["cost"]["bytes_sparse"] = metrics["cost"]["bytes_dense"] + bits
        metrics["digests"] = measured_files(partial)
        disk.write_json(partial / "metrics.json", metrics)
        timing = disk.read_json(source / place.name / "timing.json")
        disk.write_json(partial / "timing.json", timing | {"shared_from": called})
        if same_start:
            _take_rewind_point(source, place.parent)


def _ticket(recipe: Recipe, masks: Masks, initial: nn.Module, donor: Ticket, same_start: bool) -> Ticket:
    """The dense ticket as this run would have written it: its masks, over the weights at its own rewind step."""
    retrain = recipe.search.told("retrain", "rewind")
    origin = {**donor.origin, "recipe": recipe.name, "rewind_step": _rewind_step(recipe), "retrain": retrain}
    origin["lineage"] = begun(0, masks, origin)
    return Ticket(masks, donor.weights if same_start else initial, origin)

"""Working on runs: take a piece that is ready, make it, publish it, until nothing is left; in any number of processes.

Nobody hands out work. Every worker reads from the folders what is ready, and claims it; so it is the same whether the
others are children of one command, commands in other terminals, or jobs on other machines.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from gentickets.catalogue import own_faults
from gentickets.data import ImageSet
from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.judging import Judge
from gentickets.lab.results.reading import read_run
from gentickets.lab.results.tables import write_csv
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.claims import Claim, Claims, sweep
from gentickets.lab.run.keeping import let_go
from gentickets.lab.run.level import DamagedLevel
from gentickets.lab.run.pieces import Board, Piece, in_order, pieces_of
from gentickets.lab.run.prepare import Prepared
from gentickets.lab.run.processes import interrupt, side_by_side, stopping
from gentickets.lab.run.seed import SeedRun, drop_if_damaged, drop_what_rested
from gentickets.lab.run.sharing import Donors
from gentickets.lab.run.stage import load_data_of, make_judge
from gentickets.lab.run.trainer import Event, Tell

LOOK_SECONDS = 0.1
"""How soon a worker that waits for others looks whether they are done: then ever more seldom, after a tenth of the time
that it has waited, but several times a lease."""

Stop = Callable[[], bool]


def run_all(runs: Sequence[Prepared], tell: Tell) -> None:
    """Makes all that is not there yet of some runs, several pieces at once in processes of their own, and writes the
    results.

    Returns when everything is complete, by whomever. On Ctrl-C and its like each training saves its state; the same
    command goes on from there. Raises `RecipeError` where a run that is not complete began with other versions.
    """
    for ready in runs:
        if Board(ready.folder, ready.recipe).ready():
            disk.check_same_versions(ready.folder, disk.read_run_origin(ready.folder))
    workers = max(ready.workers for ready in runs)
    if workers == 1:
        with stopping(urgent=interrupt) as stop:
            work(runs, tell, stop)
    else:
        side_by_side(workers, partial(work, runs), tell)
    for ready in runs:
        write_results(ready.folder)


def make_piece(ready: Prepared, name: str, tell: Tell) -> str:
    """Makes one piece of a run; what came of it, in words. Raises `RecipeError` where the run has no such piece, and
    `GenticketsError` where it waits for another."""
    piece = Piece.of(name)
    if piece not in pieces_of(ready.recipe):
        raise RecipeError(f"{ready.folder} has no piece {name}: `gentickets status {ready.folder} --all` shows all")
    drop_if_damaged(ready.folder / name)
    board = Board(ready.folder, ready.recipe)
    if board.is_to_come(piece):
        disk.check_same_versions(ready.folder, disk.read_run_origin(ready.folder))
    with stopping(urgent=interrupt) as stop:
        made = Worker([ready], tell, stop).make(piece)
    return f"{ready.folder / name}: {'complete' if made else f'not made: {board.why_left_out(piece)}'}"


def write_results(folder: Path) -> None:
    """Writes a run's tables. One command at a time, and each by what is complete then: the last one knows it all."""
    with disk.one_line_errors(folder), disk.locked(folder, wait=True):
        run = read_run(folder)
        write_csv(run)
        # Whoever made a level may have been killed before it could do the rest of this.
        for seed in {level.seed for level in run.levels}:
            let_go(folder / f"seed-{seed}", str(run.recipe.get("keep") or "all"))
        for level in run.levels:
            publishing.sweep(level.folder)
        sweep(folder)
        publishing.remove_halves(folder)


def work(runs: Sequence[Prepared], tell: Tell, stop: Stop) -> None:
    """Makes piece after piece in this process until none is left; waits while others make what is missing."""
    worker, waited = Worker(runs, tell, stop), 0.0
    while worker.is_anything_left():
        if stop():
            raise KeyboardInterrupt
        waited = 0.0 if worker.make_one() else waited + _pause(waited, worker.lease_seconds, stop)


def _pause(waited: float, lease: float, stop: Stop) -> float:
    """Waits before the next look at what others do; how long that was meant to be."""
    pause = min(max(LOOK_SECONDS, waited / 10), lease / 8)
    until = time.monotonic() + pause
    while (left := until - time.monotonic()) > 0 and not stop():
        time.sleep(min(left, 1.0))
    return pause


class Worker:
    """One process at work on some runs, in their order."""

    def __init__(self, runs: Sequence[Prepared], tell: Tell, stop: Stop):
        self._tell, self._stop = tell, stop
        boards = {ready.folder: Board(ready.folder, ready.recipe) for ready in runs}
        self._sites = [_Site(ready, boards) for ready in runs]
        self._last: tuple[_Site, int] | None = None
        self._seed_run: SeedRun | None = None
        self._claim: Claim | None = None

    @property
    def lease_seconds(self) -> float:
        return self._sites[0].claims.lease_seconds

    def is_anything_left(self) -> bool:
        return any(site.board.ready() for site in self._sites)

    def make_one(self) -> bool:
        """Makes the first piece that is ready and nobody else's; whether anything came of it."""
        for site, piece in self._ready():
            if site.donors.awaited(piece):
                continue
            claim = site.take(piece)
            if claim is not None:
                return self._make(site, piece, claim)
        return False

    def make(self, piece: Piece) -> bool:
        """Makes one piece of the first run, or waits while another makes it; whether it is there in the end.

        Raises `GenticketsError` where it is not ready.
        """
        site, waited = self._sites[0], 0.0
        while site.board.is_to_come(piece):
            if self._stop():
                raise KeyboardInterrupt
            if (needed := site.board.needs(piece)) is not None:
                raise GenticketsError(f"{site.folder / piece.name} is not ready: it needs {needed}")
            for run, one in site.donors.carried(piece):
                raise GenticketsError(f"{site.folder / piece.name} is not ready: it needs {run / one.name}")
            claim = site.take(piece)
            if claim is None or not self._make(site, piece, claim):
                waited += _pause(waited, self.lease_seconds, self._stop)
        return site.board.is_complete(piece)

    def _ready(self) -> Iterator[tuple[_Site, Piece]]:
        return in_order([(site, piece) for site in self._sites for piece in site.board.ready()], self._last)

    def _make(self, site: _Site, piece: Piece, claim: Claim) -> bool:
        """Makes a claimed piece, and gives the claim back, whatever comes of it; False where what it rests on is
        damaged, which is dropped, to be made first."""
        self._claim = claim
        place = site.folder / piece.name
        try:
            with disk.one_line_errors(site.folder), own_faults():
                if not (site.board.is_complete(piece) or self._made(site, piece, claim)):
                    site.board.leave_out(piece)
        except KeyboardInterrupt:
            lost = claim.look()
            claim.give_back()
            if not lost or self._stop():
                raise
            self._drop(place, claim)
        except Exception as error:
            # Another has it since, and may have taken files from under this one.
            lost = claim.look() or site.board.is_complete(piece) or isinstance(error, publishing.Published)
            damaged = None if lost else _damaged(error, place.parent)
            claim.give_back(failure=None if lost or damaged else str(error) or type(error).__name__)
            if damaged is not None:
                self._seed_run = self._last = None
                drop_if_damaged(damaged)
                drop_what_rested(place.parent, site.ready.recipe)
                return False
            if not lost:
                raise
            self._drop(place, claim)
            if site.board.is_complete(piece):
                site.claims.forget(piece.name)
        else:
            claim.complete(site.claims, piece.name)
        finally:
            self._claim = None
        return True

    def _made(self, site: _Site, piece: Piece, claim: Claim) -> bool:
        if site.donors.take(piece, claim.number):
            return True
        publishing.go_on_from(site.folder / piece.name, claim.number, claim.ended)
        torch.set_num_threads(site.ready.threads)
        return self._seed_run_of(site, piece.seed).make(piece, claim.number)

    def _drop(self, place: Path, claim: Claim) -> None:
        """Removes what this process built of a piece that it lost."""
        self._seed_run = self._last = None
        shutil.rmtree(publishing.partial_of(place, claim.number), ignore_errors=True)

    def _seed_run_of(self, site: _Site, seed: int) -> SeedRun:
        """The seed that this worker was at, or another: its images and judge are loaded once a run."""
        if self._seed_run is None or self._last != (site, seed):
            recipe, images, judge = site.ready.recipe, *site.stage()
            told, awaited = self._told(site), site.donors.will_make
            self._seed_run = SeedRun(recipe, site.folder, seed, images, judge, told, self._must_stop, awaited)
            self._last = site, seed
            for other in self._sites:
                if other is not site:
                    other.leave()
        return self._seed_run

    def _told(self, site: _Site) -> Tell:
        def tell(event: Event) -> None:
            progress = event.progress
            if self._claim is not None and progress is not None:
                self._claim.tell(progress.step, site.ready.recipe.training.steps, progress.images_per_second)
            self._tell(replace(event, run=site.folder.name))

        return tell

    def _must_stop(self) -> bool:
        return self._stop() or (self._claim is not None and self._claim.lost)


class _Site:
    """A run as one worker sees it."""

    def __init__(self, ready: Prepared, boards: Mapping[Path, Board]):
        self.ready, self.folder = ready, ready.folder
        self.board, self.claims = boards[ready.folder], Claims(ready.folder)
        self.donors = Donors(ready, boards)
        self._stage: tuple[ImageSet, Judge] | None = None

    def take(self, piece: Piece) -> Claim | None:
        """A claim on a piece; None where it is somebody else's."""
        with disk.one_line_errors(self.folder):
            claim = self.claims.take(piece.name, above=publishing.newest_fence(self.folder / piece.name))
            try:
                disk.check_same_run(self.folder, self.ready.id)
            except GenticketsError:
                if claim is not None:
                    claim.give_back()
                raise
        return claim

    def stage(self) -> tuple[ImageSet, Judge]:
        """The training images, and the judge."""
        if self._stage is None:
            recipe = self.ready.recipe
            train, held_out = load_data_of(self.folder, recipe, disk.read_run_origin(self.folder))
            self._stage = train, make_judge(recipe, train, held_out)
        return self._stage

    def leave(self) -> None:
        """Lets images and judge go, while another run is worked on."""
        self._stage = None


def _damaged(error: Exception, seed_folder: Path) -> Path | None:
    """The level of a seed that an error says is not as it was written; None where it says none."""
    found = error.place if isinstance(error, DamagedLevel) else None
    return found if found is not None and found.parent == seed_folder else None

"""The other processes of trainings on several devices: started, handed each training, and ended.

The process that makes a level is the first rank of its trainings: it searches, prunes, judges and writes. The others
know of no run and write nothing; each is handed what is trained and takes part in `train`. They stay from one training
to the next, as a process has one world of torch.distributed. They never hear a signal, and end with the process that
started them, however that ended; those that torchrun started wait for whoever calls next, and end with its command.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from gentickets.catalogue import load
from gentickets.data import ImageSet
from gentickets.errors import DataError, Diverged, GenticketsError
from gentickets.interruptions import POLITE
from gentickets.lab.recipe import Recipe
from gentickets.lab.recipe.recipe import code_in
from gentickets.lab.run.hardware import launched
from gentickets.lab.run.parcels import unpacked
from gentickets.lab.run.stage import load_data
from gentickets.lab.task import build_batches
from gentickets.training.devices import several_devices
from gentickets.training.loop import train
from gentickets.training.ranks import Ranks, Together

_WORD = 2.0
"""Seconds that another rank gives the first one to say what ended a training, before it says so itself."""

_CALLS, _CALL, _END = "gentickets/calls", "gentickets/call", "gentickets/end"


@dataclass(frozen=True)
class Job:
    """A training as another rank is handed it: of which recipe, on which images, with how many threads.

    `data`: the fingerprint of the training images, `share`: how large a part of them; or `own`: other batches, packed.
    `network`: model, objective and masks, packed.
    """

    recipe: Recipe
    seed: int
    data: str
    share: float
    own: bytes | None
    network: bytes
    start_step: int
    end_step: int
    threads: int


@contextmanager
def handed_over(job: Job, accelerator: str) -> Iterator[Fabric]:
    """A Fabric of all devices of the job's recipe, whose other processes take part in the `train` called within.

    Raises `GenticketsError` where one of them cannot, or is gone.
    """
    crew = _Crew.of(job.recipe, accelerator)
    try:
        crew.hand(job)
        yield crew.fabric
    except Diverged:  # on all of them
        raise
    except BaseException as error:
        lost = isinstance(error, RuntimeError) and not isinstance(error, GenticketsError) and crew.is_broken()
        crew.end(at_once=True)
        if lost:
            raise GenticketsError(
                f"one of the {job.recipe.training.devices} processes of a training was killed from outside (too little "
                f"memory?): the same command goes on"
            ) from error
        raise


# -- the first rank ----------------------------------------------------------------------------------------------------


@dataclass
class _Crew:
    """The other ranks of this process, and what reaches them."""

    size: int
    accelerator: str
    precision: str
    fabric: Fabric = field(init=False)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _open: ExitStack = field(default_factory=ExitStack)

    @staticmethod
    def of(recipe: Recipe, accelerator: str) -> _Crew:
        """Those that there are, where they fit; else new ones."""
        global _crew
        wanted = recipe.training.devices, accelerator, recipe.training.precision
        if _crew is not None and (_crew.size, _crew.accelerator, _crew.precision) != wanted:
            _crew.end()
        if _crew is None:
            begun = _Crew(*wanted)
            try:
                begun.start()
            except BaseException:
                begun.end(at_once=True)
                raise
            _crew = begun
        return _crew

    def start(self) -> None:
        if launched() is not None:
            store = _agents_store()
            number = store.add(_CALLS, 1)
            store.set(f"{_CALL}/{number}", f"{self.accelerator} {self.precision}")
            self._join(dist.PrefixStore(f"{_CALL}s/{number}", store))
            return
        place = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="gentickets-ranks-")))
        self._processes = [self._started(rank, place / "meeting") for rank in range(1, self.size)]
        while not all((place / f"here-{rank}").exists() for rank in range(1, self.size)):
            if any(process.poll() is not None for process in self._processes):
                raise GenticketsError(
                    f"training.devices={self.size}: a process of the training ended as it was started"
                )
            time.sleep(0.05)
        self._join(place / "meeting")

    def _join(self, meeting: Path | dist.Store) -> None:
        several = several_devices(self.accelerator, self.precision, 0, self.size, meeting)
        self.fabric = self._open.enter_context(several)

    def _started(self, rank: int, meeting: Path) -> subprocess.Popen[bytes]:
        told = [str(meeting), str(rank), str(self.size), self.accelerator, self.precision]
        program = "from gentickets.lab.run.ranks import main; main()"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, POLITE)  # a process inherits what it never hears
        try:
            return subprocess.Popen(
                [sys.executable, "-c", program, *told], stdin=subprocess.PIPE, stdout=sys.stderr, env=environment
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def hand(self, job: Job) -> None:
        ranks = Ranks.of(self.fabric)
        assert isinstance(ranks, Together)
        ranks.told(pickle.dumps(job))
        problems = [said for said in ranks.all(None) if said is not None]
        if problems:
            raise GenticketsError(problems[0])

    def is_broken(self) -> bool:
        """Whether one of them is gone."""
        time.sleep(0.5)  # the system may take a moment to say so
        return launched() is not None or any(process.poll() is not None for process in self._processes)

    def end(self, at_once: bool = False) -> None:
        """Lets them go; `at_once` where they are in the midst of something that this process has left."""
        global _crew
        _crew = None
        with suppress(RuntimeError):  # they are gone already
            if not at_once:
                Ranks.of(self.fabric).told(None)
        for process in self._processes:
            if at_once:
                process.kill()
            assert process.stdin is not None
            process.stdin.close()
        self._open.close()
        for process in self._processes:
            process.wait()


_crew: _Crew | None = None


@atexit.register
def dismiss() -> None:
    """Lets the other processes of this one go, and ends their talk."""
    if _crew is not None:
        _crew.end(at_once=True)


# -- the others --------------------------------------------------------------------------------------------------------


def main() -> None:
    """A rank that another process started, until that one ends it or is gone."""
    meeting, rank, size, accelerator, precision = sys.argv[1:]
    _end_with_starter()
    Path(meeting).with_name(f"here-{rank}").touch()
    try:
        _take_part(accelerator, precision, int(rank), int(size), Path(meeting))
    except Exception as error:  # as a rule the first one's too, which says it, and ends this process meanwhile
        time.sleep(_WORD)
        sys.exit(_words(rank, error))


def _end_with_starter() -> None:
    """Ends this process with the one that started it, even where that was killed."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _take_part(accelerator: str, precision: str, rank: int, size: int, meeting: Path | dist.Store) -> None:
    """Takes part in trainings, one after another, until the first rank wants no more.

    What ends a training otherwise than by its end or a divergence, which are those of all ranks, goes through.
    """
    warnings.simplefilter("ignore")  # the first one says them
    images: dict[str, ImageSet] = {}
    with several_devices(accelerator, precision, rank, size, meeting) as fabric:
        ranks = Ranks.of(fabric)
        assert isinstance(ranks, Together)
        while (parcel := ranks.told()) is not None:
            with suppress(Diverged):
                _train(pickle.loads(parcel), fabric, ranks, images)


def _words(rank: object, error: Exception) -> str:
    return f"gentickets: process {rank} of a training: {type(error).__name__}: {' '.join(str(error).split())}"


def _train(job: Job, fabric: Fabric, ranks: Together, images: dict[str, ImageSet]) -> None:
    problem = None
    try:
        model, objective, masks, batches = _ready(job, fabric, images)
    except Exception as error:  # whatever reading the images, or code of one's own, says
        problem = str(error) if isinstance(error, GenticketsError) else f"{type(error).__name__}: {error}"
    if any(said is not None for said in ranks.all(problem)):
        return
    torch.set_num_threads(job.threads)
    settings, start, end = job.recipe.training.settings(job.seed), job.start_step, job.end_step
    with suppress(KeyboardInterrupt):  # the first one's
        train(model, objective, batches, settings, masks=masks, start_step=start, end_step=end, fabric=fabric)


def _ready(job: Job, fabric: Fabric, images: dict[str, ImageSet]) -> tuple[Any, Any, Any, Any]:
    """Model, objective, masks and batches of a job."""
    for name in code_in(job.recipe.dump()):
        load("model", name)  # by what a pickle calls it there is then a module
    model, objective, masks = unpacked(job.network)
    if job.own is not None:
        return model, objective, masks, unpacked(job.own)
    if job.data not in images:
        images.clear()
        images[job.data] = load_data(job.recipe.data)[0]
    if images[job.data].fingerprint != job.data:
        raise DataError(f"the images of {job.recipe.data.source!r} are read otherwise by another process of a training")
    batches = build_batches(job.recipe, images[job.data], job.seed, fabric.device, job.share)
    return model, objective, masks, batches


# -- those that torchrun started ---------------------------------------------------------------------------------------


def serve_launched() -> None:
    """All but the first: takes part in that one's trainings, until its command has ended."""
    for which in POLITE:  # the first one hears it, saves and ends
        signal.signal(which, signal.SIG_IGN)
    store, number = _agents_store(), 1
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    while not store.check([_END]):
        if not store.check([f"{_CALL}/{number}"]):
            time.sleep(0.2)
            continue
        accelerator, precision = store.get(f"{_CALL}/{number}").decode().split()
        try:
            _take_part(accelerator, precision, rank, size, dist.PrefixStore(f"{_CALL}s/{number}", store))
        except Exception as error:  # as in `main`
            time.sleep(_WORD)
            if not store.check([_END]):
                print(_words(rank, error), file=sys.stderr)
        number += 1


def end_launched() -> None:
    """The first: its command has ended. Processes that it started itself say nothing."""
    if launched() is not None and os.environ["GENTICKETS_FIRST"] == str(os.getpid()):
        _agents_store().set(_END, b"")


def _agents_store() -> Any:
    """What torchrun keeps for its processes, by which they find each other."""
    return next(dist.rendezvous("env://", int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))[0]


os.environ.setdefault("GENTICKETS_FIRST", str(os.getpid()))

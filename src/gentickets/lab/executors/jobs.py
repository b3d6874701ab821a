"""What is handed to another machine: where a run lies, and what is to be done there; never a model.

Loaded without torch, by whoever only waits for a job.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentickets.errors import GenticketsError
from gentickets.files import read_file
from gentickets.interruptions import STOPPED

FOLDER = ".executor"
"""Inside of a run's or a study's folder: its token, and the jobs' logs."""

SEEN_SECONDS = 20.0
"""How long a file that was just written may take to be seen by another machine."""


@dataclass(frozen=True)
class Job:
    """A command of gentickets on a run.

    `run`: an absolute path; `words`: the command; `token`: what stands in the run's folder, by which a machine knows
    that it sees another folder of that name; `folder`: where relative paths in the recipe begin.
    """

    run: str
    words: tuple[str, ...]
    token: str
    folder: str

    def check_seen(self) -> None:
        """Raises `GenticketsError` where this machine does not see the run's folder, or sees another by its name."""
        deadline = time.monotonic() + SEEN_SECONDS
        while (found := _token(Path(self.run))) != self.token:
            if time.monotonic() > deadline:
                what = "has no such folder" if found is None else "has another folder by that name"
                raise GenticketsError(
                    f"{self.run}: machine {platform.node()} {what}: every machine must see the one run; take --runs on "
                    f"a file system that they share"
                )
            time.sleep(0.5)

    def enter(self) -> None:
        """Goes to where relative paths begin, where that is here."""
        if os.path.isdir(self.folder):
            os.chdir(self.folder)


def token_of(run: Path) -> str:
    """The token of a run's folder, which is made once."""
    place = run / FOLDER / "token"
    place.parent.mkdir(exist_ok=True)
    made = place.with_name(f".token.{uuid.uuid4().hex}")
    made.write_text(uuid.uuid4().hex)
    try:
        os.link(made, place)
    except FileExistsError:
        pass
    finally:
        made.unlink()
    found = _token(run)
    if found is None:
        raise GenticketsError(f"{place} cannot be read: remove it")
    return found


def _token(run: Path) -> str | None:
    try:
        return read_file(run / FOLDER / "token", 100).decode(errors="replace").strip()
    except OSError:
        return None


class InSlurm:
    """A job as SLURM runs it, through submitit: in a process of its own, which saves its state when the time is up.

    Nothing waits for the child without end: submitit's handler runs in the middle of whatever waits here.
    """

    def __init__(self, job: Job):
        self.job = job
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = False

    def __call__(self) -> None:
        """Ends with the command's exit code, where that is not 0."""
        try:
            self.job.check_seen()
        except GenticketsError as error:
            print(f"gentickets: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        self.job.enter()
        # Where the one who preempts sends no other, this is all the notice that there is.
        signal.signal(signal.SIGTERM, lambda number, frame: self._ask())
        self._child = subprocess.Popen([sys.executable, "-m", "gentickets", *self.job.words], start_new_session=True)
        code = self._ended()
        if code == STOPPED:  # by whoever will end this job too, or begin it again
            time.sleep(600)
        if code:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> Any:
        """Called by submitit before the job's end: the same once more, in the same job, when it gets its turn."""
        from submitit.helpers import DelayedSubmission

        self._ask()
        self._ended()
        return DelayedSubmission(InSlurm(self.job))

    def _ask(self) -> None:
        if self._child is not None and not self._asked:
            self._asked = True
            self._child.terminate()

    def _ended(self) -> int | None:
        while self._child is not None and self._child.poll() is None:
            time.sleep(0.2)
        return self._child.returncode if self._child is not None else None


def in_ray(job: Job) -> None:
    """A job as Ray runs it: in the worker itself, which ends with its machine, or goes on where Ray alone is gone.

    Asked to stop, by the driver or with its machine, it saves its state and takes the worker with it: then Ray begins
    the piece again, unless it was the driver who asked.
    """
    import typer

    from gentickets.cli import app

    job.check_seen()
    job.enter()
    try:
        app(list(job.words), standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        os._exit(STOPPED)

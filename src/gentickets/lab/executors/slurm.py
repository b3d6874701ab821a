"""As jobs of a SLURM cluster, through submitit: a job a piece, each after those that it builds on; or some workers.

Which jobs there are is asked of SLURM's own queue, by a name that is the run's alone. So a command that goes on
submits nothing twice, whoever it was that submitted before and however that ended.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from gentickets.errors import GenticketsError
from gentickets.lab.executors import Detached
from gentickets.lab.executors.jobs import FOLDER, InSlurm, Job, token_of
from gentickets.lab.executors.options import SlurmOptions
from gentickets.lab.executors.order import ToDo
from gentickets.lab.run.prepare import Prepared
from gentickets.lab.run.work import write_results

SETTLED_SECONDS = 90.0
"""How long what a job wrote may take to be seen here, once SLURM says that the job is complete."""

_BADLY = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
"""How a job may have ended for good, without having done what it was for."""

REST = "rest"
"""The job that makes what nobody could foresee, and writes results and page, where nobody waits for the others."""


def run_on_slurm(runs: Sequence[Prepared], options: SlurmOptions, say: Callable[[str], None], detach: bool) -> None:
    """Hands the pieces of runs to SLURM, and waits until all are complete; see `Executor.execute`."""
    to_do = ToDo(runs)
    if to_do.left():
        queue = _Queue(to_do.root)
        submission = _Submission(to_do, queue, options, runs[0].threads)
        say(submission.submit(detach))
        if detach:
            raise Detached(f"nobody waits for them; {queue.how_to_end}")
        try:
            _wait(to_do, queue, submission, say)
        except KeyboardInterrupt:
            say(f"the jobs go on; {queue.how_to_end}")
            raise
    for ready in runs:
        write_results(ready.folder)


# -- submitting ---------------------------------------------------------------------------------------------


class _Submission:
    """What of some runs is with SLURM. `jobs`: piece, or worker → job."""

    def __init__(self, to_do: ToDo, queue: _Queue, options: SlurmOptions, threads: int):
        self._to_do, self._queue, self.options, self._threads = to_do, queue, options, threads
        self.jobs = queue.jobs()

    def submit(self, with_rest: bool = False) -> str:
        """Submits what is neither complete nor with SLURM; how many jobs, in words."""
        before, root, options = len(self.jobs), self._to_do.root, self.options
        wanted: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
        if options.workers:
            wanted = {f"worker-{number + 1}": (self._to_do.words(), ()) for number in range(options.workers)}
        else:
            wanted = {name: (self._to_do.words(name), after) for name, after in self._to_do.left().items()}
        if with_rest:
            wanted[REST] = self._to_do.words(), tuple(wanted)
        for name, (words, after) in wanted.items():
            if name not in self.jobs:
                job = Job(str(root), words, self._queue.token, os.getcwd())
                self.jobs[name] = self._submit_one(name, job, [self.jobs[one] for one in after if one in self.jobs])
        submitted = len(self.jobs) - before
        return f"{submitted} jobs submitted, {before} were in the queue; logs: {root / FOLDER}"

    def _submit_one(self, name: str, job: Job, after: list[str]) -> str:
        queue, asked = self._queue, self.options
        executor = submitit.SlurmExecutor(queue.root / FOLDER, max_num_timeout=1000)
        more: dict[str, Any] = {"requeue": True, **asked.sbatch}
        if after:
            more |= {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
        more |= {"mem": asked.memory} if asked.memory else {}
        executor.update_parameters(
            job_name=queue.name,
            comment=name,
            wckey=None,
            partition=asked.partition,
            account=asked.account,
            qos=asked.qos,
            constraint=asked.constraint,
            time=math.ceil(asked.time / 60),
            gpus_per_node=asked.gpus or None,
            cpus_per_task=asked.cpus or self._threads,
            signal_delay_s=math.ceil(asked.notice),
            additional_parameters=more,
        )
        try:
            return str(executor.submit(InSlurm(job)).job_id)
        except FailedJobError as error:
            lines = [line for line in str(error).splitlines() if line.startswith("sbatch:")] or [str(error)]
            raise GenticketsError(f"SLURM refused a job for {name}: {lines[-1]}") from None


# -- waiting ------------------------------------------------------------------------------------------------


def _wait(to_do: ToDo, queue: _Queue, submission: _Submission, say: Callable[[str], None]) -> None:
    """Returns when all is complete. Raises `GenticketsError` where the jobs have ended and something is not."""
    shown, gone_since = "", dict[str, float]()
    total = len(to_do.left())
    while left := to_do.left():
        submission.submit()
        jobs, states = submission.jobs, queue.states()
        total = max(total, len(left))
        words = f"{total - len(left)} of {total} pieces done; {_counted(states.values())}"
        if words != shown:
            say(words)
            shown = words
        names = [name for name in jobs if "/" not in name] if submission.options.workers else left
        gone_since = {n: gone_since.get(n, time.monotonic()) for n in names if jobs.get(n) not in states}
        failed = [
            name for name in gone_since if not _may_still_be(to_do, queue, jobs.get(name), name, gone_since[name])
        ]
        if failed and not states:
            raise GenticketsError(queue.why(failed, jobs))
        time.sleep(submission.options.look)


def _may_still_be(to_do: ToDo, queue: _Queue, job: str | None, name: str, since: float) -> bool:
    """Whether what a job has made, which is in the queue no more, may only not be seen here yet."""
    state = queue.field(job, "JobState") if job is not None else None
    if state in _BADLY:
        return False
    if time.monotonic() - since < SETTLED_SECONDS:
        return True
    return state == "COMPLETED" and "/" in name and to_do.settle(name)


def _counted(states: Iterable[str]) -> str:
    found = list(states)
    running = sum(state in ("RUNNING", "COMPLETING") for state in found)
    return f"{running} jobs running, {len(found) - running} waiting"


class _Queue:
    """SLURM's queue, as far as one run is concerned."""

    def __init__(self, root: Path):
        self.root, self.token = root, token_of(root)
        self.name = f"{root.name}-{self.token[:8]}"
        self.how_to_end = f"scancel --name={self.name} ends them, and the same command goes on"

    def jobs(self) -> dict[str, str]:
        """What is waiting or running: piece, or worker → job."""
        return {comment: number for number, _, comment in self._asked(patient=False)}

    def states(self) -> dict[str, str]:
        """What is waiting or running: job → state. A controller that does not answer is asked again."""
        return {number: state for number, state, _ in self._asked(patient=True)}

    def _asked(self, patient: bool) -> list[list[str]]:
        command = ["squeue", "-h", "-u", str(os.getuid()), "-n", self.name, "-o", "%A|%T|%k"]
        while (done := _said(command)).returncode != 0:
            if not patient:
                raise GenticketsError(f"SLURM cannot be reached: {_last(done.stderr)}")
            time.sleep(10)
        return [line.split("|", 2) for line in done.stdout.splitlines()]

    def field(self, job: str, name: str) -> str | None:
        """What SLURM says of a job; None where it does not know it any more."""
        found = re.search(rf"(?:^|\s){name}=(\S+)", _said(["scontrol", "show", "job", "-o", job]).stdout)
        return found[1] if found else None

    def why(self, names: Sequence[str], jobs: Mapping[str, str]) -> str:
        """Why pieces were not made, in a line."""
        first = min((name for name in names if name in jobs), key=lambda name: int(jobs[name]), default=None)
        if first is None:
            return f"{names[0]} was not made, and no job for it is in the queue: the same command submits it again"
        job = jobs[first]
        log = self.root / FOLDER / f"{job}_0_log.err"
        if log.exists():
            what = _told_in(log)
        else:
            what = f"it wrote no log {log}: does {self.field(job, 'NodeList') or 'its node'} see that folder?"
        others = f"; {len(names) - 1} others were not made either" if len(names) > 1 else ""
        state = self.field(job, "JobState") or "gone"
        return f"{first}: job {job} ended ({state}): {what}{others}; the same command goes on"


def _said(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def _last(text: str) -> str:
    return ([line for line in text.splitlines() if line.strip()] or ["it said nothing"])[-1]


def _told_in(log: Path) -> str:
    """What a job's log says last of its own accord."""
    lines = log.read_text(errors="replace").splitlines()
    own = [line.removeprefix("gentickets: ") for line in lines if line.startswith("gentickets: ")]
    return own[-1] if own else f"see {log}"

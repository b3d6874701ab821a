"""As tasks of Ray, on a cluster that the user has started, or on this machine: what is ready is handed out, until
nothing is left."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from gentickets.cores import cores
from gentickets.errors import GenticketsError
from gentickets.lab.executors.jobs import Job, in_ray, token_of
from gentickets.lab.executors.options import RayOptions
from gentickets.lab.executors.order import ToDo
from gentickets.lab.run.prepare import Prepared
from gentickets.lab.run.processes import GRACE_SECONDS, stopping
from gentickets.lab.run.work import write_results

LOOK_SECONDS = 1.0
"""How long the driver waits for a task before it looks again what is ready, by whomever it was made."""


def run_on_ray(runs: Sequence[Prepared], options: RayOptions, say: Callable[[str], None]) -> None:
    """Hands the pieces of runs to Ray as they become ready, until all are complete; see `Executor.execute`."""
    to_do = ToDo(runs)
    if to_do.is_anything_left():
        with _connected(options), stopping() as asked:
            tasks = _Tasks(to_do, options, runs[0].threads)
            try:
                while to_do.is_anything_left() and not asked():
                    tasks.begin()
                    if (words := tasks.collect(LOOK_SECONDS)) is not None:
                        say(words)
            finally:
                tasks.end()
        if asked():
            raise KeyboardInterrupt
    for ready in runs:
        write_results(ready.folder)


@contextmanager
def _connected(options: RayOptions) -> Iterator[None]:
    where = options.address or "local"
    _check_answers(where)
    how: dict[str, Any] = {"include_dashboard": False, "num_cpus": cores()} if where == "local" else {}
    try:
        ray.init(where, **how, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        what = "no cluster can be started here" if where == "local" else "no cluster can be reached there"
        raise GenticketsError(f"--ray address={where}: {what}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(where: str) -> None:
    """Ray itself tries an address at which nothing listens for minutes. Raises `GenticketsError`."""
    host, colon, port = where.rpartition(":")
    if not (colon and port.isdigit()) or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise GenticketsError(f"--ray address={where}: nothing answers there ({error})") from None


class _Tasks:
    """The tasks that are with Ray, and what came of them."""

    def __init__(self, to_do: ToDo, options: RayOptions, threads: int):
        self._to_do, self._token, self._folder = to_do, token_of(to_do.root), os.getcwd()
        cpus = threads if options.cpus is None else options.cpus
        self._remote = ray.remote(num_cpus=cpus, num_gpus=options.gpus, max_retries=options.retries)(in_ray)
        self._running: dict[Any, str] = {}

    def begin(self) -> None:
        """Hands out what is ready and not with Ray yet."""
        for name in self._to_do.ready():
            if name not in self._running.values():
                job = Job(str(self._to_do.root), self._to_do.words(name), self._token, self._folder)
                self._running[self._remote.options(name=name).remote(job)] = name

    def collect(self, seconds: float) -> str | None:
        """Waits for tasks to end; what came of those that did, in words. Raises `GenticketsError` where one failed."""
        if not self._running:  # the rest is others'
            time.sleep(seconds)
            return None
        ended, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds)
        names = [self._running.pop(task) for task in ended]
        for task, name in zip(ended, names, strict=True):
            self._take(task, name)
        return f"{', '.join(names)}: done; {len(self._running)} with Ray" if names else None

    def end(self) -> None:
        """Lets what still trains save its state."""
        for task in self._running:
            ray.cancel(task, force=False)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=GRACE_SECONDS)

    def _take(self, task: Any, name: str) -> None:
        try:
            ray.get(task)
            self._to_do.settle(name)
        except RayTaskError as error:
            if isinstance(error.cause, GenticketsError):
                raise error.cause from None
            raise
        except RayError as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise GenticketsError(
                f"{name}: Ray has lost its task for good ({first}): the same command goes on"
            ) from None

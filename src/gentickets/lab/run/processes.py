"""Workers side by side in processes of their own, and one way out for every signal.

Ctrl-C, a polite kill and a terminal that is closed all mean the same: trainings save their state and end; only then
does the command end, and say so. The parent alone hears signals, and passes on that a stop was asked for; its children
never do, whether a signal went to the parent or to the whole group of processes (a terminal, systemd, SLURM). A child
that does not end within a grace time, or that a third signal finds still there, is ended.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, reduction, resource_tracker
from typing import Any

from gentickets.errors import GenticketsError
from gentickets.interruptions import POLITE

GRACE_SECONDS = 60.0
"""How long trainings have to save their state once a stop was asked for."""

_URGENT = 3
"""So many signals mean: at once."""

Work = Callable[[Callable[[Any], None], Callable[[], bool]], None]
"""`work(tell, stop)`: does what there is to do; where `stop()` says so it saves its state and raises
KeyboardInterrupt."""


class Asked:
    """Whether a stop was asked for, and how many times."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> bool:
        return self.times > 0


@contextmanager
def stopping(urgent: Callable[[], None] | None = None) -> Iterator[Asked]:
    """While inside, a polite signal asks for a stop and does nothing else; the third calls `urgent`.

    So one key that reaches the command twice, through a wrapper that forwards signals, costs nothing.

    A signal that was ignored before (SIGHUP under nohup) stays ignored. Outside the main thread nothing is heard.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def hear(number: int, frame: object) -> None:
        asked.times += 1
        if asked.times >= _URGENT and urgent is not None:
            urgent()

    before = {which: signal.getsignal(which) for which in POLITE}
    heard = [which for which, handler in before.items() if which == signal.SIGINT or handler is not signal.SIG_IGN]
    for which in heard:
        signal.signal(which, hear)
    try:
        yield asked
    finally:
        for which in heard:
            signal.signal(which, before[which])


def interrupt() -> None:
    """What a third signal does to a training in the command's own process: it ends where it is."""
    raise KeyboardInterrupt


def side_by_side(workers: int, work: Work, tell: Callable[[Any], None]) -> None:
    """Does `work` so many times at once, each in a process of its own. `tell` hears what they tell.

    `work` and what it tells must be picklable. The first failure asks the others to stop, and is raised when all have
    ended; so is KeyboardInterrupt where a stop was asked for. However this is left, no process of it is left behind.
    """
    with (
        _unheard_by_children()
    ):  # multiprocessing's own helper is one; its start lets signals in again, so it comes first
        resource_tracker.ensure_running()
    crew = _Crew(multiprocessing.get_context("spawn"), work)
    # A thread of its own: a terminal that takes no more lines holds up neither trainings nor a stop.
    listener = threading.Thread(target=crew.listen, args=(tell,), daemon=True)
    listener.start()
    with stopping() as asked:
        try:
            crew.run(workers, asked)
        finally:
            crew.dismiss(asked)
            listener.join(timeout=5)
    for error in crew.failures:
        raise error
    if asked():
        raise KeyboardInterrupt


@contextmanager
def _unheard_by_children() -> Iterator[None]:
    """A process inherits which signals are blocked: one that is started in here never hears the polite ones."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, POLITE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class _Ended:
    """A process's last word: what came of it."""

    error: Exception | None


@dataclass
class _Crew:
    """The processes, and what became of them.

    Each has a pipe of its own, both ways, and shares nothing else: a process may be killed at any instant, and with a
    queue or an event of multiprocessing it would keep the lock that it held.
    """

    context: Any
    work: Work
    failures: list[Exception] = field(default_factory=list)
    _members: list[tuple[Any, Any]] = field(default_factory=list)
    _told: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    _dismissed: bool = False

    def run(self, workers: int, asked: Asked) -> None:
        """Returns when all have done their work, or a stop was asked for, or one has failed."""
        while len(self._members) < workers and not asked():
            self._members.append(self._hired())
        busy = {pipe for _, pipe in self._members}
        while busy and not (asked() or self.failures):
            for pipe in connection.wait(busy, timeout=0.2):
                if self._has_ended(pipe):
                    busy.discard(pipe)

    def dismiss(self, asked: Asked) -> None:
        """Lets every process end: those that train save their state first, within the grace time."""
        self._dismissed = True
        for _, pipe in self._members:
            with suppress(OSError):  # gone
                pipe.send(None)
        deadline = time.monotonic() + GRACE_SECONDS
        while living := [(process, pipe) for process, pipe in self._members if process.is_alive()]:
            for pipe in connection.wait([pipe for _, pipe in living], timeout=0.1):
                self._has_ended(pipe)
            if time.monotonic() > deadline or asked.times >= _URGENT:
                for process, _ in living:
                    process.kill()
        for process, pipe in self._members:
            process.join()
            pipe.close()
        self._told.put(None)

    def listen(self, tell: Callable[[Any], None]) -> None:
        """Passes on what the processes tell, until they are dismissed. That it cannot be told is a failure too."""
        try:
            while (event := self._told.get()) is not None:
                tell(event)
        except Exception as error:
            self.failures.append(error)

    def _hired(self) -> tuple[Any, Any]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_member, args=(theirs, self.work), daemon=True)
        with _unheard_by_children():
            process.start()
        theirs.close()
        return process, ours

    def _has_ended(self, pipe: Any) -> bool:
        """Takes the next word of a process, or that it is gone without one; whether it was the last."""
        try:
            word = pipe.recv()
        except (EOFError, OSError):
            process = next(process for process, own in self._members if own is pipe)
            process.join(timeout=5)
            if process.exitcode != 0 and not self._dismissed:
                self.failures.append(
                    GenticketsError(
                        "a training's process was killed from outside (too little memory?): the same command goes on"
                    )
                )
            return True
        if not isinstance(word, _Ended):
            self._told.put(word)
            return False
        if word.error is not None:
            self.failures.append(word.error)
        return True


# -- in a process of its own ------------------------------------------------------------------------------------------


def _member(pipe: Any, work: Work) -> None:
    """Does its work, and tells what came of it."""
    _end_with_parent()
    outcome: Exception | None = None
    try:
        work(pipe.send, _Sparingly(pipe.poll))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        outcome = _portable(error)
    pipe.send(_Ended(outcome))


def _portable(error: Exception) -> Exception:
    """The error as it can travel between processes, with where it arose where that is no mistake of the user's."""
    if not isinstance(error, GenticketsError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(error))
    except Exception:
        kind = type(error) if isinstance(error, GenticketsError) else RuntimeError
        return kind(str(error))
    return error


def _end_with_parent() -> None:
    """Ends this process with its parent, even one that was killed: nobody would hear what it tells."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Sparingly:
    """Asks a question of the system at most some twice a second, until the answer is yes."""

    def __init__(self, ask: Callable[[], bool]):
        self._ask, self._next, self._answer = ask, 0.0, False

    def __call__(self) -> bool:
        if not self._answer and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.5
            self._answer = self._ask()
        return self._answer

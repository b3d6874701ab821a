"""Being asked to stop before anything runs that knows how to save itself.

The program is asked by Ctrl-C, by a polite kill, by a terminal that is closed, by a batch system whose time is up. It
may be asked while torch is still being loaded, which takes a second or twenty. Of 50 moments there, one killed the
program where an exception passed through a package's C++, and two changed its exit code: so what is being loaded is
left without one. Elsewhere an exception may be swallowed (Python drops what arises in a weakref's callback), and is
raised again until somebody has ended what was going on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any

POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The last two are what batch systems are told to send before the time is up; left alone, they kill."""

STOPPED = 130
"""The exit code of what was stopped."""

AGAIN_SECONDS = 1.0


class Interruptions:
    """From `hear` to `deafen` a polite signal raises KeyboardInterrupt in the main thread, each second until `deafen`.

    Where somebody else listens by then, such as a training, they are sent the signal once, and left alone.
    """

    def __init__(self) -> None:
        self.came: int | None = None
        self._over = False

    def hear(self) -> None:
        """Begins to listen. A signal that is ignored, as SIGHUP is under nohup, stays ignored."""
        if self._over:
            self.came, self._over = None, False
        sys.unraisablehook = _unless_an_interruption
        for which in POLITE:
            if signal.getsignal(which) is not signal.SIG_IGN:
                signal.signal(which, self._heard)

    def deafen(self) -> None:
        """From here on there is nothing left to stop."""
        self._over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        for which in POLITE:
            signal.signal(which, signal.SIG_IGN)
        sys.unraisablehook = sys.__unraisablehook__

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            return
        if self.came is None:
            self.came = number
            # No thread, whose start takes a lock that may be held by what was interrupted.
            signal.signal(signal.SIGALRM, self._insist)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
        if _loads(frame):
            leave()
        raise KeyboardInterrupt

    def _insist(self, number: int, frame: FrameType | None) -> None:
        if self._over or self.came is None:
            return
        if signal.getsignal(self.came) == self._heard:
            self._heard(self.came, frame)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.raise_signal(self.came)


def leave() -> None:
    """Ends the process at once, as one that was stopped, and says so; what is whole on disk is whole."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(2, b"stopped; the same command goes on from here\n")
    os._exit(STOPPED)


def _loads(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _unless_an_interruption(what: Any) -> None:
    if what.exc_type is not KeyboardInterrupt:  # which is raised again
        sys.__unraisablehook__(what)


_the_programs = Interruptions()


def interruptions() -> Interruptions:
    """Those of this process: signals are its own, and whoever comes first begins to listen."""
    return _the_programs

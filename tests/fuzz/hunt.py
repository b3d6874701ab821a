"""One hunt: numbered inputs, each made from its number alone, a limit of time for each and of memory for all.

What is taken, and what is refused in one line by an error of ours, is counted. Anything else is found: another
exception, a message of several lines, an input that takes too long.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gentickets.errors import GenticketsError

Attempt = Callable[[random.Random], str | None]
"""Makes an input, and gives it to what is hunted in. Returns what came of it where that is neither taken nor raised."""

_SHOWN = 20


class TookTooLong(BaseException):
    """No `Exception`: nothing that is hunted in may catch it."""


@dataclass
class Found:
    """The outcomes by kind, and the first of each kind of failure: number → its traceback."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)

    def failed(self, kind: str, number: int, trace: str) -> None:
        self.outcomes[f"FAILED: {kind}"] += 1
        self.failures.setdefault(kind, (number, trace))


def hunt(attempt: Attempt, numbers: range, seed: int = 0, seconds: float = 5.0, until: float = math.inf) -> Found:
    """Tries the inputs of these numbers, as many as there is time for (`until`: by `time.monotonic`)."""
    found = Found()
    for number in numbers:
        if time.monotonic() > until:
            break
        try:
            with _limited(seconds), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = attempt(random.Random(f"{seed}/{number}")) or "taken"
            found.outcomes[outcome] += 1
        except GenticketsError as error:
            if "\n" in str(error) or not str(error):
                found.failed(f"{type(error).__name__} of several lines or none", number, repr(str(error)))
            else:
                found.outcomes[type(error).__name__] += 1
        except TookTooLong:
            found.failed(f"longer than {seconds:g} s", number, traceback.format_exc()[-1500:])
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {where.filename.rpartition('/')[2]}:{where.lineno}"
            found.failed(kind, number, traceback.format_exc()[-1500:])
    return found


_PATIENCE = 60.0
"""Seconds by the clock, for what waits without computing; those of a limit are of this process."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise TookTooLong

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, _PATIENCE))
    before = {heard: signal.signal(heard, end) for _, heard, _ in timers}
    for timer, _, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for timer, _, _ in timers:
            signal.setitimer(timer, 0)
        for heard, handler in before.items():
            signal.signal(heard, handler)


def main(what: str, prepare: Callable[[], Attempt]) -> None:
    """The command line of a hunt; exit code 1 where something was found."""
    parser = argparse.ArgumentParser(description=f"Hunts with {what} that are damaged or hostile.")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="then it ends, however many were tried")
    parser.add_argument("--only", type=int, help="try the input of this number alone")
    parser.add_argument("--seconds", type=float, default=5.0, help="the limit for one input")
    parser.add_argument("--memory", type=float, default=6.0, help="GiB of address space")
    asked = parser.parse_args()
    attempt = prepare()
    resource.setrlimit(resource.RLIMIT_AS, (int(asked.memory * 2**30),) * 2)
    numbers = range(asked.inputs) if asked.only is None else range(asked.only, asked.only + 1)
    begun = time.process_time()
    found = hunt(attempt, numbers, asked.seed, asked.seconds, time.monotonic() + 60 * asked.minutes)
    tried = found.outcomes.total()
    each = (time.process_time() - begun) / max(tried, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {tried:,} inputs of seed {asked.seed}, {1e3 * each:.2f} ms of CPU each, peak {peak:,.0f} MB")
    for outcome, count in found.outcomes.most_common():
        print(f"  {count:>9,} {outcome}")
    for kind, (number, trace) in list(found.failures.items())[:_SHOWN]:
        print(f"\n{kind}: --seed {asked.seed} --only {number}\n{trace}")
    sys.exit(1 if found.failures else 0)

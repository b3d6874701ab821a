"""How long runs take on how many workers: their pieces played through, by the rules that workers go by.

Nothing is trained: what a piece takes is measured or counted elsewhere (`lab.run.plan`), and workers are numbers here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gentickets.lab.recipe import Recipe
from gentickets.lab.run.pieces import Piece, in_order, standing

Entry = tuple[int, Piece]
"""A piece, and of which of the runs."""


@dataclass(frozen=True)
class Load:
    """A run that is to be played through. `seconds`: of each piece; `taken`: piece → the number of the run from which
    it is taken over, once that has it."""

    recipe: Recipe
    seconds: Callable[[Piece], float]
    taken: Mapping[Piece, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """A piece of a run on a worker, from when to when, in seconds. `since`: the piece that, when it was done, let it
    begin."""

    worker: int
    run: int
    piece: Piece
    start: float
    end: float
    since: Entry | None


@dataclass(frozen=True)
class Schedule:
    """What each of the workers does when. `starting`: seconds that each takes before its first piece."""

    workers: int
    spans: tuple[Span, ...]
    starting: float

    @property
    def seconds(self) -> float:
        """Until the last piece is done."""
        return max((span.end for span in self.spans), default=0.0)

    @property
    def busy(self) -> float:
        """Seconds of all workers together that go into pieces: what one worker would take, but for its start."""
        return sum(span.end - span.start for span in self.spans)

    @property
    def used(self) -> int:
        """How many of the workers ever get a piece."""
        return len({span.worker for span in self.spans})

    @property
    def idle(self) -> float:
        """The share of the used workers' time in which they wait, or start."""
        return 1.0 - self.busy / (self.used * self.seconds) if self.spans else 0.0

    def critical_path(self) -> list[Span]:
        """The pieces that end last, each begun when the one before it was done. With as many workers as there are
        pieces it is what bounds them all."""
        found = {(span.run, span.piece): span for span in self.spans}
        path: list[Span] = []
        at = max(self.spans, key=lambda span: span.end) if self.spans else None
        while at is not None:
            path.append(at)
            at = None if at.since is None else found.get(at.since)
        return path[::-1]


def simulate(loads: Sequence[Load], workers: int, complete: Iterable[Entry] = (), starting: float = 0.0) -> Schedule:
    """Plays runs through, from what is `complete`, where every chain goes to its end.

    `workers` start together, and each takes the first ready piece that nobody has, as `lab.run.work` does.
    """
    return _Play(loads, workers, set(complete), starting).played()


class _Play:
    def __init__(self, loads: Sequence[Load], workers: int, done: set[Entry], starting: float):
        self.loads, self.workers, self.done, self.now, self.starting = loads, workers, done, starting, starting
        self.taken = set[Entry]()
        self.since: dict[Entry, Entry | None] = {}
        self.last: dict[int, tuple[int, int] | None] = dict.fromkeys(range(workers))
        self.idle, self.spans = list(range(workers)), list[Span]()
        self.running: list[tuple[float, int, int, Piece]] = []
        self.ready = {
            (run, seed): self._ready_of(run, seed) for run, load in enumerate(loads) for seed in load.recipe.seeds
        }

    def played(self) -> Schedule:
        last: Entry | None = None
        while True:
            self._hand_out(last)
            if not self.running:
                return Schedule(self.workers, tuple(self.spans), self.starting)
            self.now, worker, run, piece = heapq.heappop(self.running)
            last = run, piece
            self.done.add(last)
            self.idle.append(worker)
            self.idle.sort()
            self.ready[run, piece.seed] = self._ready_of(run, piece.seed)

    def _ready_of(self, run: int, seed: int) -> list[Piece]:
        return standing(self.loads[run].recipe, seed, lambda piece: (run, piece) in self.done).ready

    def _open(self) -> list[Entry]:
        """What can be begun now, run by run and seed by seed."""
        found = []
        for (run, _), ready in self.ready.items():
            for piece in ready:
                donor = self.loads[run].taken.get(piece)
                if (run, piece) not in self.taken and (donor is None or (donor, piece) in self.done):
                    found.append((run, piece))
        return found

    def _hand_out(self, done: Entry | None) -> None:
        """Who was at a seed goes on there; whoever is free takes what is left."""
        entries = self._open()
        for entry in entries:
            self.since.setdefault(entry, done)
        while entries and self.idle:
            seeds = {(run, piece.seed) for run, piece in entries}
            worker = next((one for one in self.idle if self.last[one] in seeds), self.idle[0])
            run, piece = next(iter(in_order(entries, self.last[worker])))
            self.idle.remove(worker)
            entries.remove((run, piece))
            self.taken.add((run, piece))
            self.last[worker] = run, piece.seed
            end = self.now + self.loads[run].seconds(piece)
            self.spans.append(Span(worker, run, piece, self.now, end, self.since[run, piece]))
            heapq.heappush(self.running, (end, worker, run, piece))

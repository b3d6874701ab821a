"""How long a run takes on how many workers: its pieces played through, by the rules that workers go by.

Nothing is trained: what a piece takes is measured or counted elsewhere (`lab.run.plan`), and workers are numbers here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gentickets.lab.recipe import Recipe
from gentickets.lab.run.pieces import Piece, builds_on, in_order, standing


@dataclass(frozen=True)
class Span:
    """A piece on a worker, from when to when, in seconds."""

    worker: int
    piece: Piece
    start: float
    end: float


@dataclass(frozen=True)
class Schedule:
    """What each worker does when. `starting`: seconds that each takes before its first piece."""

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
        """The share of the workers' time in which they wait."""
        return 1.0 - self.busy / (self.workers * self.seconds) if self.spans else 0.0

    def critical_path(self) -> list[Span]:
        """The pieces, one built on the other, that end last: no number of workers makes a run shorter than these."""
        by_piece = {span.piece: span for span in self.spans}
        path: list[Span] = []
        piece: Piece | None = max(self.spans, key=lambda span: span.end).piece if self.spans else None
        while piece is not None and piece in by_piece:
            path.append(by_piece[piece])
            piece = builds_on(piece)
        return path[::-1]


def simulate(
    recipe: Recipe,
    seconds: Callable[[Piece], float],
    workers: int,
    complete: Iterable[Piece] = (),
    starting: float = 0.0,
) -> Schedule:
    """Plays a run through, from what is `complete`, where every chain goes to its end.

    `workers` start together, and each takes the first ready piece that nobody has, as `lab.run.work` does.
    """
    done, taken = set(complete), set[Piece]()
    standings = {seed: standing(recipe, seed, done.__contains__) for seed in recipe.seeds}
    last: dict[int, tuple[int, int] | None] = dict.fromkeys(range(workers))
    idle, spans = list(range(workers)), list[Span]()
    running: list[tuple[float, int, Piece]] = []
    now = starting
    while True:
        ready = [(0, piece) for seed in recipe.seeds for piece in standings[seed].ready if piece not in taken]
        # Who was at a seed goes on there; whoever is free takes what is left.
        while ready and idle:
            worker = next((one for one in idle if any(last[one] == (0, piece.seed) for _, piece in ready)), idle[0])
            idle.remove(worker)
            entry = next(iter(in_order(ready, last[worker])))
            ready.remove(entry)
            piece = entry[1]
            taken.add(piece)
            last[worker] = 0, piece.seed
            end = now + seconds(piece)
            spans.append(Span(worker, piece, now, end))
            heapq.heappush(running, (end, worker, piece))
        if not running:
            return Schedule(workers, tuple(spans), starting)
        now, worker, piece = heapq.heappop(running)
        done.add(piece)
        idle.append(worker)
        idle.sort()
        standings[piece.seed] = standing(recipe, piece.seed, done.__contains__)

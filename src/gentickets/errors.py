"""The errors that a user can mend. Each message is one line: what, which value, and the mend."""

from typing import Any


class GenticketsError(Exception):
    """The base of every error that gentickets raises on purpose. Its message is one line, whatever it quotes."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))


class MaskError(GenticketsError, ValueError):
    """A mask that does not fit (wrong name, shape or dtype), or a pruned weight that is not zero."""


class PruneError(GenticketsError, ValueError):
    """A pruning request that cannot be met: amount out of range, a weight that would be revived, NaN scores."""


class TicketError(GenticketsError):
    """A ticket file that is broken, tampered with, or made for another architecture."""


class DataError(GenticketsError):
    """A data set that is missing, unreadable, or of the wrong shape."""


class RecipeError(GenticketsError, ValueError):
    """A recipe, or a run folder, that does not say something possible."""


class ScoreError(GenticketsError, ValueError):
    """Scores from which nothing can be judged: no such arm or level, a seed twice, something that is no number."""


class Unmet(GenticketsError, AssertionError):
    """A rule that a thing of somebody's own breaks, in one sentence; an `AssertionError` to whoever tests it."""


class HardwareError(GenticketsError):
    """Something that this machine has no hardware for."""


class Disconnected(GenticketsError):
    """A mask that leaves a component without any live path from its input to its output.

    `ticket`: the `Ticket` that a search would have trained, where a search found it.
    """

    ticket: Any = None


class Diverged(GenticketsError):
    """Training that cannot go on: a loss that is not finite, or a generator that has collapsed."""


def demand(holds: object, sentence: str) -> None:
    """Raises `Unmet` with the sentence, unless it holds (an `assert` is gone under `python -O`)."""
    if not holds:
        raise Unmet(sentence)

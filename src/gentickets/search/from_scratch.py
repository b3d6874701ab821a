"""Methods whose every level is one training of the seed's own weights, by a hook that moves the masks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.search.levels import Level, Rounds
from gentickets.search.method import Ladder, Work, connected
from gentickets.training.hooks import Hook


@dataclass(frozen=True)
class FromScratch(Ladder):
    """The base of them. A level's ticket holds the masks at the end, over the weights of before the first step."""

    builds_on: ClassVar[Literal["nothing"]] = "nothing"

    @abstractmethod
    def begun(self, work: Work, index: int, model: nn.Module) -> tuple[Masks, Hook]:
        """The masks that a level begins with, and what moves them."""

    def covered(self, model: nn.Module) -> Masks:
        return Masks.dense(model, self.components)

    def levels(self, work: Work, last: int) -> Iterator[Level]:
        shared = Rounds(work.make_model, work.train, work.steps, 0, origin=work.origin) if last < 0 else None
        return self._levels(work, last, shared)

    def _levels(self, work: Work, last: int, shared: Rounds | None) -> Iterator[Level]:
        if shared is not None:
            yield shared.dense(self.covered(shared.initial))
        for index in range(max(last, 0) + 1, self.rounds + 1):
            yield self._level(work, index)

    def _level(self, work: Work, index: int) -> Level:
        model = work.initial()
        masks, hook = self.begun(work, index, model)
        start = Ticket(masks, model, work.origin)
        connected(start, model, work)
        start.install(model)
        trained = work.train(model, masks, 0, work.steps, hooks=[hook])
        if trained is not None and trained.masks is not None:
            masks = trained.masks
        masks.apply_(model)  # what diverged ended somewhere between two moves
        passed = {"level": index, "sparsity": masks.sparsity, "masks": masks.fingerprint}
        facts = {**work.origin, "rewind_step": 0, "retrain": "rewind", "moved": True, "lineage": [passed]}
        return Level(index, masks, model, Ticket(masks, work.initial(), facts), span=(0, work.steps))

"""Methods whose every level is one training of the seed's own weights, by a hook that moves the masks."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import nn

from gentickets.masks.lineage import begun
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.search.levels import Level
from gentickets.search.method import Separate, Work, connected
from gentickets.training.hooks import Hook


@dataclass(frozen=True)
class FromScratch(Separate):
    """The base of them. A level's ticket holds the masks at the end, over the weights of before the first step."""

    @abstractmethod
    def begun(self, work: Work, index: int, model: nn.Module) -> tuple[Masks, Hook]:
        """The masks that a level begins with, and what moves them."""

    def covered(self, model: nn.Module) -> Masks:
        return Masks.dense(model, self.components)

    def level(self, work: Work, index: int) -> Level:
        model = work.initial()
        masks, hook = self.begun(work, index, model)
        start = Ticket(masks, model, work.origin)
        connected(start, model, work)
        start.install(model)
        trained = work.train(model, masks, 0, work.steps, hooks=[hook])
        if trained is not None and trained.masks is not None:
            masks = trained.masks
        masks.apply_(model)  # what diverged ended somewhere between two moves
        facts = {**work.origin, "rewind_step": 0, "retrain": "rewind", "moved": True}
        facts["lineage"] = begun(index, masks, work.origin)
        return Level(index, masks, model, Ticket(masks, work.initial(), facts), span=(0, work.steps))

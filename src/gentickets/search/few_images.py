"""Tickets searched for on a share of the images, trained on all of them (Zhang et al. 2021, "Efficient lottery ticket
finding: less data is more", with images drawn at random in place of the critical ones)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from gentickets.errors import GenticketsError
from gentickets.files import read_file, replace_file
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.options import Share
from gentickets.pruning.prune import prune
from gentickets.sealed import sealed_json, unsealed_json
from gentickets.search.levels import Level, Rounds
from gentickets.search.method import Rewound, Work, connected

FOUND = "found.json"
"""What finding a level's ticket took, in the level's folder beside the ticket."""


@dataclass(frozen=True)
class FewImages(Rewound):
    """Iterative pruning that sees few images while it searches; each ticket is then trained on all.

    A level's masks are drawn from the network of the level before, trained again from its ticket on the few images, for
    as small a share of the steps. The held-out images are the same, and so is the dense model beside it.
    """

    image_share: Share = 0.1
    """The share of the training images, and of the steps after the rewind step, that the search takes."""

    builds_on: ClassVar[Literal["search"]] = "search"

    def search_steps(self, steps: int) -> int:
        return max(1, round(self.image_share * (steps - self.rewind_step)))

    def levels(self, work: Work, last: int) -> Iterator[Level]:
        return self._levels(work, last, self.shared(work))

    def _levels(self, work: Work, last: int, shared: Rounds) -> Iterator[Level]:
        if last < 0:
            yield shared.dense(self.covered(shared.initial))
        for index in range(max(last, 0) + 1, self.rounds + 1):
            before = work.load(index - 1)
            masks = self._found(work, before, index)
            yield shared.retrain(index, masks, before)

    def _found(self, work: Work, before: Level, index: int) -> Masks:
        """The level's masks: kept, or drawn from the level before, trained again on the few images."""
        steps = self.search_steps(work.steps)
        if (kept := _kept(work.folder())) is not None:
            work.recall(steps, kept[1])
            return kept[0]
        model, few = before.restarted(), work.few(self.image_share)
        end = self.rewind_step + steps
        work.train(model, before.masks, self.rewind_step, end, batches=few, finding=True)
        scores = work.criterion(self.criterion)(model, before.masks)
        masks = prune(scores, fraction=self.fraction, within=before.masks, scope=self.scope)
        ticket = Ticket(masks, before.ticket.weights, {**work.origin, "image_share": self.image_share, "level": index})
        connected(ticket, model, work)
        ticket.save(work.folder() / "searched.safetensors")
        replace_file(work.folder() / FOUND, sealed_json(work.so_far()))
        return masks


def _kept(folder: Path) -> tuple[Masks, dict[str, Any]] | None:
    """The masks that were found before, and what they took; what is damaged is found again, and said."""
    if not (folder / FOUND).exists():
        return None
    try:
        return Ticket.load(folder / "searched.safetensors").masks, unsealed_json(read_file(folder / FOUND))
    except (GenticketsError, OSError) as error:
        warnings.warn(f"{folder / FOUND}: {error}: dropped, and found again", stacklevel=2)
        (folder / FOUND).unlink()
        return None

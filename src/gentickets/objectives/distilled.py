"""Another objective with a teacher: knowledge distillation from the dense model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gentickets.data.batches import Batch
from gentickets.errors import GenticketsError
from gentickets.evaluating import evaluating
from gentickets.masks.names import as_names, unwrap
from gentickets.objectives.around import Around
from gentickets.objectives.base import Loss
from gentickets.options import NotNegative


@dataclass(frozen=True)
class Distilled(Around):
    """Another objective, with `strength` times the squared error to a teacher's images added (Hinton et al. 2015).

    Both models are asked the same in each step, end to end (see `Objective.outputs`): a decoder decodes its own code of
    the same image, a generator the same latents, a denoiser the same noisy image. The mean over all numbers of the
    squared difference is added to the first loss in a step that trains the component; no gradient reaches the teacher.

    The teacher is used as it stands, in evaluation mode, and left as it was, but for its device, which becomes that of
    the batch. It is no part of the model: it is not trained, not counted, and not in checkpoints.

    Raises `GenticketsError` where the teacher is the model that is trained, and where the objective within does not
    say what its components give.
    """

    teacher: nn.Module = field(repr=False)
    """The model whose images are matched, as a rule the dense one, trained."""
    strength: NotNegative = 1.0
    """The weight of the squared error to the teacher's images."""

    def losses(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Loss]:
        if unwrap(self.teacher) is unwrap(model):
            raise GenticketsError("the teacher is the model that is trained: give a copy of the dense one")
        asked = rng.get_state()
        wanted = self._targets(batch, rng)
        for components, loss in self.objective.losses(model, batch, rng):
            mine = [name for name in as_names(components) if name in wanted]
            if mine:
                given = self.objective.outputs(model, batch, _generator(rng, asked))
                loss = loss + self.strength * sum(_distance(given[name], wanted.pop(name)) for name in mine)
            yield components, loss

    def _targets(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """What the teacher gives in this step, by component."""
        self.teacher.to(batch.device)
        try:
            with evaluating(self.teacher):
                return self.objective.outputs(self.teacher, batch, _generator(rng, rng.get_state()))
        except NotImplementedError as error:
            raise GenticketsError(f"nothing to distil: {error}") from None


def _generator(like: torch.Generator, state: Tensor) -> torch.Generator:
    """A generator of its own in this state."""
    return torch.Generator(like.device).set_state(state)


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.float() - teacher.float()).square().mean()

"""An objective tried on a model, before that is trained for it: does it keep the rules of training and judging?"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gentickets.data.batches import Batch, Labelled
from gentickets.errors import Unmet, demand
from gentickets.masks.left_alone import asked_twice, changed, equal, left_alone
from gentickets.masks.names import clone, component_at
from gentickets.objectives.base import Measure, Objective, losses_of, unfrozen

_JUDGED_BY = "`rng`, and in evaluation mode from none within the model"
"""What chance may be drawn from where a model is judged."""


class Trial:
    """One objective at work on a copy of one model, and on one batch. `name` is what sentences call it.

    Each of its questions raises `Unmet`, in one sentence, where a rule is broken, and `GenticketsError` where something
    is yielded that is no loss.
    """

    def __init__(self, name: str, objective: Objective, model: nn.Module, batch: Batch):
        self.name, self.objective, self.model = name, objective, clone(model)
        self._batch = batch

    @property
    def batch(self) -> Batch:
        """A copy: batches are drawn for each step, and what one step does to its own is no matter to the next."""
        return copy.deepcopy(self._batch)

    def rng(self) -> torch.Generator:
        """A generator as a step is given it, of one seed."""
        return torch.Generator(device=self._batch.device).manual_seed(0)

    def check_chance(self) -> None:
        """Demands that equal seeds give equal losses; torch's global generator is seeded, as in training."""

        def ask() -> list[Tensor]:
            torch.manual_seed(0)
            model = clone(self.model).train()
            return [loss.detach() for _, loss in losses_of(self.objective, model, self.batch, self.rng())]

        one, other = asked_twice(f"{self.name}.losses", ask, "`rng`, or within the model from torch's")
        same = len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
        demand(
            same,
            f"{self.name}.losses gave other losses for the same seed: draw all chance from `rng`, and let `at(step)` "
            f"tell what changes with the step",
        )

    def step(self, number: int = 0) -> Iterator[tuple[tuple[str, ...], Tensor, set[str]]]:
        """The losses of a step, taken one after the other as training does: the components that each names, the loss,
        and those components of which a weight has a gradient by it, or which are frozen."""
        model = clone(self.model).train()
        with torch.random.fork_rng(devices=[]):
            for place, (names, loss) in enumerate(losses_of(self.objective.at(number), model, self.batch, self.rng())):
                yield names, loss, self._trained_by(f"loss {place} of {self.name}", model, names, loss)

    @staticmethod
    def _trained_by(what: str, model: nn.Module, names: tuple[str, ...], loss: Tensor) -> set[str]:
        parameters = {name: list(component_at(model, name).parameters()) for name in names}
        bare = next((name for name, each in parameters.items() if not each), None)
        demand(bare is None, f"{what} trains {bare!r}, which has no weight to be trained")
        own = unfrozen(parameters, names)
        weights = list({id(weight): weight for each in own.values() for weight in each}.values())
        try:
            found = torch.autograd.grad(loss, weights, allow_unused=True)  # and the graph is gone, as in training
        except RuntimeError as error:
            said = " ".join(str(error).split())[:150]
            raise Unmet(f"{what} cannot be differentiated: {said}") from None
        with torch.no_grad():
            for weight, gradient in zip(weights, found, strict=True):
                if gradient is not None:
                    weight.mul_(1)  # written, as by a step: a later loss may not go back through what it was
        reached = {id(weight) for weight, gradient in zip(weights, found, strict=True) if gradient is not None}
        frozen = parameters.keys() - own.keys()
        return {name for name, each in own.items() if not reached.isdisjoint(map(id, each))} | frozen

    def left_untrained(self, steps: int) -> tuple[list[str], int]:
        """The components that no loss trains, and in how many of so many steps of training that was looked at.

        Those are the first ones and some over all of the training; one, where the objective is the same at each.
        """
        left, seen, looked = list(self.objective.components), None, 0
        for number in sorted({*range(min(32, steps)), *(steps * part // 64 for part in range(64)), steps - 1}):
            if (at := self.objective.at(number)) is seen:
                continue
            seen, looked = at, looked + 1
            trained = {name for _, _, reached in self.step(number) for name in reached}
            left = [name for name in left if name not in trained]
            if not left:
                break
        return left, looked

    @torch.no_grad()
    def measured(self) -> dict[str, Tensor]:
        """What its measures are, each one number an image and the same for the same seed."""
        found, model = {}, self.model.eval()
        for key, measure in self.objective.measures().items():
            what = f"measure {key!r} of {self.name}"

            def ask(measure: Measure = measure) -> Tensor:
                return measure.numbers(model, self.batch, self.rng())

            with left_alone(what, model):
                found[key], again = asked_twice(what, ask, _JUDGED_BY)
            same = equal(found[key], again)
            demand(same, f"{what} is another for the same seed: draw all chance from `rng`")
        return found

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """Two samples, and the reconstructions of the batch, where it makes any.

        They are of the shape of images, and the same for the same seed.
        """
        found, model, batch = {}, self.model.eval(), self.batch
        images = batch.images if isinstance(batch, Labelled) else batch
        given = batch if self.objective.wants_labels else images
        labels = (batch.labels[:2],) if isinstance(batch, Labelled) and self.objective.wants_labels else ()
        makers = {}
        if self.objective.can_sample:
            makers["sample"] = 2, lambda: self.objective.sample(model, 2, self.rng(), *labels)
        if self.objective.can_reconstruct:
            makers["reconstruct"] = len(images), lambda: self.objective.reconstruct(model, copy.deepcopy(given))
        for of, (count, make) in makers.items():
            what, shape = f"{self.name}.{of}", (count, *images.shape[1:])
            with left_alone(what, model):
                made, again = asked_twice(what, make, _JUDGED_BY)
            demand(isinstance(made, Tensor), f"{what} gives a {type(made).__name__}: give a tensor of images")
            demand(tuple(made.shape) == shape, f"{what} gives a tensor {tuple(made.shape)}, where images are {shape}")
            demand(changed({"": made}, {"": again}) is None, f"{what} gives other images for the same seed")
            found[of] = made
        return found

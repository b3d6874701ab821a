"""Is it an objective?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.catalogue import CATALOGUE
from gentickets.data.batches import Batch, Labelled
from gentickets.errors import GenticketsError, Unmet, demand
from gentickets.masks.examples import examples_of
from gentickets.masks.left_alone import equal, left_alone
from gentickets.masks.names import Model, as_model, clone, component_of, components_of, named_weights
from gentickets.objectives.base import Objective, losses_of
from gentickets.objectives.trial import Trial
from gentickets.testing.naming import built, titled

_STEPS = 10_000
"""Over so many steps of training a component is looked for in some loss, for objectives that change with the step."""


def check_objective(objective: Any, model: Model, batch: Batch, /, **given: Any) -> None:
    """Demands of an objective what training and judging need of it; raises `AssertionError` in one sentence.

    `objective`: an `Objective`, a class of one, a name, `my.py:name`, or `{name: …}` with options; an objective around
    another is given that as `objective=`. `model`: one that it trains; it is left alone. `batch`: some images, float
    (batch, channels, height, width) in [-1, 1], or `Labelled` ones; two or more.

    - its components, and those that it averages, are the model's;
    - `losses` yields `(components, loss)`, each loss a finite scalar that trains the components it names, and all of
      them together every component of the objective;
    - all chance comes from the `rng` that it is given: equal seeds, equal losses; global generators, weights and
      gradients are left alone, and so is the batch;
    - a model of NaN has a loss that is not finite, or it is refused: training could not notice it else;
    - `example_inputs`, if there are any, are what the components take;
    - measures, samples and reconstructions, if there are any, are finite, of the right shape, and follow from the seed.
    """
    name, model = titled(objective), clone(as_model(model))
    found = built("around" if name in CATALOGUE["around"] else "objective", objective, **given)
    demand(isinstance(found, Objective), f"{name} is no Objective: derive a frozen dataclass from gentickets.Objective")
    demand(len(batch) >= 2, "the batch for check_objective needs two images or more")
    demand(
        isinstance(batch, Labelled) or not found.wants_labels,
        f"{name} wants labels: give check_objective a batch Labelled(images, labels)",
    )
    check = _Check(name, found, model, batch)
    with _in_a_sentence():
        check.components()
        check.losses()
        check.notices_nan()
        check.examples()
        check.measures()
        check.pictures()


class _Check:
    """One objective at work on one model and one batch."""

    def __init__(self, name: str, objective: Objective, model: nn.Module, batch: Batch):
        self.name, self.objective, self.model, self.batch = name, objective, model, batch
        self.images = batch.images if isinstance(batch, Labelled) else batch
        self.trial = Trial(name, objective, model, batch)

    def components(self) -> None:
        known = components_of(self.model)
        demand(self.objective.components, f"{self.name} says no components: components = ('encoder', 'decoder')")
        for what in ("components", "averaged"):
            missing = [part for part in getattr(self.objective, what) if part not in known]
            demand(
                not missing,
                f"{self.name}.{what} names {missing[0] if missing else None!r}, which the model has not: it has "
                f"{', '.join(known)}",
            )

    def losses(self) -> None:
        # In evaluation mode, where dropout of the model's own does not draw from the global generator.
        self.model.eval()
        images = self.images.clone()
        with left_alone(f"{self.name}.losses", self.model):
            self._values(self.model)
        demand(equal(images, self.images), f"{self.name}.losses changed the batch: work on a copy of the images")
        self.trial.check_chance()
        for number, (names, loss, reached) in enumerate(self.trial.step()):
            what, value = f"loss {number} of {self.name}", float(loss.detach())
            demand(math.isfinite(value), f"{what} is {value} for a sound model")
            demand(loss.dim() == 0, f"{what} is a tensor {tuple(loss.shape)}: take a mean over the batch")
            still = [name for name in names if name not in reached]
            demand(not still, f"{what} does not depend on {still[0] if still else None!r}")
        left, _ = self.trial.left_untrained(_STEPS)
        demand(not left, f"no loss of {self.name} trains {left[0] if left else None!r}, which is one of its components")

    def _values(self, model: nn.Module) -> list[Tensor]:
        given = losses_of(self.objective, model, self.batch, self.trial.rng())
        return [loss.detach() for _, loss in given]

    def notices_nan(self) -> None:
        broken = clone(self.model)
        with torch.no_grad():
            for name, weight in named_weights(broken).items():
                if component_of(name) in self.objective.components:
                    weight.fill_(math.nan)
        try:
            values = self._values(broken)
        except (GenticketsError, ValueError, RuntimeError):
            return  # refused
        demand(
            any(not bool(value.isfinite()) for value in values),
            f"every loss of {self.name} is finite for a model of NaN: training would not notice that it has diverged",
        )

    def examples(self) -> None:
        try:
            given = self.objective.example_inputs(self.model.eval(), self.batch)
        except NotImplementedError:
            return
        for part, example in examples_of(self.model, given).items():
            try:
                with torch.no_grad():
                    example(getattr(self.model, part))
            except Exception as error:
                said = " ".join(str(error).split())[:150]
                raise AssertionError(
                    f"{self.name}.example_inputs[{part!r}] is not what {part!r} takes: {type(error).__name__}: {said}"
                ) from None

    def measures(self) -> None:
        for key, found in self.trial.measured().items():
            demand(bool(found.isfinite().all()), f"measure {key!r} of {self.name} is not finite for a sound model")

    def pictures(self) -> None:
        for what, made in self.trial.pictures().items():
            finite = bool(made.isfinite().all())
            demand(finite, f"{self.name}.{what} gives numbers that are not finite for a sound model")


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    """What is refused in training, as what a check demands."""
    try:
        yield
    except GenticketsError as error:
        raise Unmet(error) from None

"""Is it an objective?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.catalogue import CATALOGUE
from gentickets.data.batches import Batch, Labelled
from gentickets.errors import GenticketsError
from gentickets.masks.examples import examples_of
from gentickets.masks.names import Model, as_model, clone, component_of, components_of, named_weights
from gentickets.objectives.base import Objective
from gentickets.testing.demands import built, changed, demand, equal, left_alone, titled


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

    def _rng(self, seed: int = 0) -> torch.Generator:
        return torch.Generator(device=self.images.device).manual_seed(seed)

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
            first = self._values()
        demand(equal(images, self.images), f"{self.name}.losses changed the batch: work on a copy of the images")
        demand(
            self._same(first, self._values()),
            f"{self.name}.losses gave other losses for the same seed: draw all chance from `rng`",
        )
        self.model.train()
        trained: set[str] = set()
        for number, (names, loss) in enumerate(self._yielded(self.model)):
            value = float(loss.detach())
            demand(math.isfinite(value), f"loss {number} of {self.name} is {value} for a sound model")
            trained |= self._trained_by(names, loss, number)
        left = [part for part in self.objective.components if part not in trained]
        demand(not left, f"no loss of {self.name} trains {left[0] if left else None!r}, which is one of its components")

    def _yielded(self, model: nn.Module) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """The components and the loss of whatever is yielded, one at a time."""
        given = self.objective.losses(model, self.batch, self._rng())
        demand(
            isinstance(given, Iterator),
            f"{self.name}.losses gives a {type(given).__name__}: yield each loss, which computes it when asked for",
        )
        for number, item in enumerate(given):
            pair = isinstance(item, tuple) and len(item) == 2
            demand(pair, f"{self.name}.losses yields {type(item).__name__}: yield (components, loss)")
            names, loss = (item[0],) if isinstance(item[0], str) else tuple(item[0]), item[1]
            unknown = [part for part in names if part not in self.objective.components]
            demand(
                not unknown,
                f"loss {number} of {self.name} trains {unknown[0] if unknown else None!r}, which is not among its "
                f"components {', '.join(self.objective.components)}",
            )
            scalar = isinstance(loss, Tensor) and loss.dim() == 0
            demand(scalar, f"loss {number} of {self.name} is no scalar tensor: take a mean over the batch")
            yield names, loss

    def _trained_by(self, names: Iterable[str], loss: Tensor, number: int) -> set[str]:
        """Those of the named components that the loss has a gradient for."""
        own = {name: w for name, w in named_weights(self.model).items() if component_of(name) in names}
        weights = {name: w for name, w in own.items() if w.requires_grad}  # what is frozen no loss trains
        demand(loss.requires_grad, f"loss {number} of {self.name} has no gradient: was it detached?")
        try:
            grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, retain_graph=True)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:150]
            raise AssertionError(f"loss {number} of {self.name} cannot be differentiated: {said}") from None
        reached = {component_of(name) for name, grad in zip(weights, grads, strict=True) if grad is not None}
        still = [name for name in names if name not in reached]
        demand(not still, f"loss {number} of {self.name} does not depend on {still[0] if still else None!r}")
        return reached

    def _values(self, model: nn.Module | None = None) -> list[Tensor]:
        return [loss.detach() for _, loss in self._yielded(model or self.model)]

    @staticmethod
    def _same(one: list[Tensor], other: list[Tensor]) -> bool:
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))

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
        self.model.eval()
        for key, measure in self.objective.measures().items():
            what = f"measure {key!r} of {self.name}"
            with left_alone(what, self.model), torch.no_grad():
                found = measure.of(self.model, self.batch, self._rng())
                again = measure.of(self.model, self.batch, self._rng())
            count = len(self.images)
            one_each = tuple(found.shape) == (count,)
            demand(
                one_each, f"{what} is a tensor {tuple(found.shape)}: one number for each of {count} images, ({count},)"
            )
            demand(bool(found.isfinite().all()), f"{what} is not finite for a sound model")
            demand(equal(found, again), f"{what} is another for the same seed: draw all chance from `rng`")

    def pictures(self) -> None:
        self.model.eval()
        labelled = isinstance(self.batch, Labelled) and self.objective.wants_labels
        labels = (self.batch.labels[:2],) if labelled else ()  # type: ignore[union-attr]
        if self.objective.can_sample:
            self._check_picture("sample", lambda: self.objective.sample(self.model, 2, self._rng(), *labels), 2)
        if self.objective.can_reconstruct:
            given = self.batch if self.objective.wants_labels else self.images
            self._check_picture("reconstruct", lambda: self.objective.reconstruct(self.model, given), len(self.images))

    def _check_picture(self, what: str, make: Any, count: int) -> None:
        what, shape = f"{self.name}.{what}", (count, *self.images.shape[1:])
        with left_alone(what, self.model), torch.no_grad():
            found, again = make(), make()
        demand(tuple(found.shape) == shape, f"{what} gives a tensor {tuple(found.shape)}, where images are {shape}")
        demand(bool(found.isfinite().all()), f"{what} gives numbers that are not finite for a sound model")
        demand(changed({"": found}, {"": again}) is None, f"{what} gives other images for the same seed")

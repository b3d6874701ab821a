"""Something tiny to work on: an autoencoder of 16 pixels, some noise to train it on, and one seed of a run by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gentickets.data.batches import Batches
from gentickets.data.images import ImageSet
from gentickets.masks.names import as_model, clone
from gentickets.masks.ticket import Ticket
from gentickets.models.autoencoder import linear_autoencoder
from gentickets.objectives.base import Objective
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import random_scores
from gentickets.search.levels import Level, MakeModel
from gentickets.search.method import Method, Taken, Work
from gentickets.training.loop import Trained, train
from gentickets.training.seeds import derived_seed
from gentickets.training.settings import Settings

SIDE = 4


def tiny_model() -> nn.Module:
    """An `encoder` of 16 pixels and a `decoder`, some 450 weights."""
    return linear_autoencoder(SIDE, 1, width=12, depth=1, latent=3)


def tiny_images() -> ImageSet:
    """24 images of noise, of two classes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 1, SIDE, SIDE), dtype=np.uint8)
    return ImageSet.from_arrays("noise", pixels, labels=np.arange(24) % 2)


def drawn(make_model: MakeModel, *seeds: int) -> nn.Module:
    """A model whose weights follow from the seeds; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(*seeds))
        return as_model(make_model())


class Bench:
    """One seed of a run, with its levels in memory: `Work` for a method, and the levels that it gave."""

    def __init__(self, folder: Path, make_model: MakeModel, objective: Objective, images: ImageSet, steps: int):
        self.folder, self.make_model, self.objective, self.steps = folder, make_model, objective, steps
        self.images, self.labelled = images, objective.wants_labels
        self.levels: dict[int, Level] = {}
        self._making, self._draw = 0, 0
        self._settings = Settings(steps=steps, batch_size=4, lr=0.01, execution="dense", seed=1)

    def run(self, method: Method, last: int = -1) -> Iterator[Level]:
        """The levels after `last`, each kept in `levels`, where those up to `last` are to be already."""
        self._making, self._draw = last + 1, 0
        levels = method.levels(self.work(), last)
        while True:
            self._draw = self._making
            self.place(self._making).mkdir(parents=True, exist_ok=True)
            level = next(levels, None)
            if level is None:
                return
            self.levels[self._making] = level
            yield level
            self._making += 1

    def drawing(self, draw: int) -> None:
        """From now on `make_model` makes this draw."""
        self._draw = draw

    def place(self, index: int) -> Path:
        return self.folder / f"level-{index:02d}"

    def work(self) -> Work:
        """What a method works with."""
        return Work(
            make_model=lambda: drawn(self.make_model, 1, self._draw),
            initial=self.initial,
            train=self.train,
            steps=self.steps,
            steps_per_epoch=max(1, self.steps // 4),
            objective=self.objective,
            batches=self._batches(self.images),
            few=lambda share: self._batches(self.images.subset(max(4, int(share * len(self.images))), seed=1)),
            example_inputs=self.example_inputs,
            origin={"recipe": "checked"},
            seed=1,
            account=lambda seconds, flops: None,
            folder=lambda: self.place(self._making),
            place=self.place,
            so_far=dict,
            recall=lambda steps, account: None,
            load=self.load,
            source=self.source,
            taken=self.taken,
        )

    def _batches(self, images: ImageSet) -> Batches:
        return Batches(images, 4, seed=1, labelled=self.labelled)

    def initial(self) -> nn.Module:
        return drawn(self.make_model, 1, 0)

    def example_inputs(self, model: nn.Module) -> Mapping[str, Any]:
        return self.objective.example_inputs(model.eval(), self._batches(self.images).at(0))

    def train(self, model: nn.Module, masks: Any, start_step: int, end_step: int, **more: Any) -> Trained:
        """One training, as a run does it but for checkpoints and prices."""
        more.pop("finding", None)
        objective = more.pop("objective", None) or self.objective
        batches = more.pop("batches", None) or self._batches(self.images)
        return train(
            model,
            objective,
            batches,
            self._settings,
            masks=masks,
            start_step=start_step,
            end_step=end_step,
            **more,
        )

    def load(self, index: int) -> Level:
        """A level as it is read back from files: nobody's but the reader's."""
        level = self.levels[index]
        ticket = Ticket(level.ticket.masks, level.ticket.weights, level.ticket.origin)
        return Level(index, ticket.masks, clone(level.model), ticket)

    def source(self, run: str, level: int) -> Path:
        """A level of another run, whatever it is called: a random ticket, the sparser the deeper."""
        place = self.folder / "source" / f"level-{level:02d}"
        if not place.exists():
            place.mkdir(parents=True)
            model = drawn(self.make_model, 2, 0)
            masks = prune(random_scores(model, level), to_sparsity=1 - 0.8**level)
            Ticket(masks, model, {"recipe": run}).save(place / "ticket.safetensors")
        return place

    def taken(self, run: str, level: int, arm: str) -> Taken:
        """A level or control of another run, whatever it is called: that of `source`, as if it had been trained."""
        ticket = Ticket.load(self.source(run, level) / "ticket.safetensors")
        model = ticket.install(drawn(self.make_model, 2, 1))
        return Taken(Level(level, ticket.masks, model, ticket, held=ticket.masks), self.objective)

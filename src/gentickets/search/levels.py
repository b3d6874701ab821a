"""What every search yields, and what each of its rounds does: install, check, train."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from gentickets.errors import Disconnected, PruneError
from gentickets.liveness import check_connected, empty_layers
from gentickets.masks import Masks
from gentickets.naming import clone, component_of, named_state
from gentickets.pruning import random_like
from gentickets.ticket import Ticket

MakeModel = Callable[[], nn.Module]
"""Makes the model with freshly drawn weights."""

Train = Callable[[nn.Module, Masks, int, int], object]
"""`train(model, masks, start_step, end_step)`: trains the model in place; what it returns is ignored."""

Others = Literal["rewind", "initial", "trained", "fresh"]
"""What a component that is not pruned starts each round from: its weights at the rewind step, its initial ones,
those it was trained to in the round before, or newly drawn ones."""


Retrain = Literal["rewind", "learning-rate", "fine-tune"]
"""What a pruned network is trained again from (Renda et al. 2020): its weights and its step go back to the rewind
step; its weights stay and the learning rate goes back; its weights stay and training goes on at the last rate."""


def retrain_span(retrain: Retrain, steps: int, rewind_step: int) -> tuple[int, int]:
    """The (start, end) steps of a retraining; all three kinds are equally long."""
    return (steps, 2 * steps - rewind_step) if retrain == "fine-tune" else (rewind_step, steps)


@dataclass
class Level:
    """One sparsity of a search: the ticket, and the model that was trained from it.

    `index` 0 is the dense model. The ticket holds the masks, and the weights that this level's training started from.
    """

    index: int
    masks: Masks
    model: nn.Module
    ticket: Ticket


class Rounds:
    """The part that all searches share: the dense training with its rewind point, and retraining from it."""

    def __init__(
        self,
        make_model: MakeModel,
        train: Train,
        steps: int,
        rewind_step: int,
        others: Others = "rewind",
        example_inputs: Mapping[str, Tensor] | None = None,
        origin: Mapping[str, Any] | None = None,
        retrain: Retrain = "rewind",
    ):
        if not 0 <= rewind_step < steps:
            raise PruneError(f"rewind_step={rewind_step} is out of range: from 0 to steps - 1 = {steps - 1}")
        if others not in get_args(Others):
            raise PruneError(f"others={others!r} is none of {', '.join(get_args(Others))}")
        if retrain not in get_args(Retrain):
            raise PruneError(f"retrain={retrain!r} is none of {', '.join(get_args(Retrain))}")
        if retrain != "rewind" and others == "rewind":
            others = "trained"  # nothing is rewound, so the unpruned components are not either
        self.make_model, self.train = make_model, train
        self.steps, self.rewind_step, self.others = steps, rewind_step, others
        self.retraining: Retrain = retrain
        self.kept_weights, self.span = retrain != "rewind", retrain_span(retrain, steps, rewind_step)
        self.example_inputs, self.origin = example_inputs, dict(origin or {})
        self.initial = make_model()
        self._initial_state = {name: tensor.detach().clone() for name, tensor in named_state(self.initial).items()}

    def dense(self, masks: Masks) -> Level:
        """Level 0: trained to the rewind step, remembered there, trained to the end."""
        model = self.initial
        if self.rewind_step:
            self.train(model, masks, 0, self.rewind_step)
        ticket = Ticket(masks, model, self._origin(0, masks, ()))
        self.train(model, masks, self.rewind_step, self.steps)
        return Level(0, masks, model, ticket)

    def retrain(self, index: int, masks: Masks, previous: Level) -> Level:
        """Level `index`: the masks with the weights to start from, checked for a live path, trained.

        Raises `Disconnected`, with the ticket as its `ticket`, before a step is trained.
        """
        lineage = previous.ticket.origin.get("lineage", ())
        weights = named_state(previous.model) if self.kept_weights else previous.ticket.weights
        weights = {**weights, **self._others_start(masks, previous)}
        ticket = Ticket(masks, weights, self._origin(index, masks, lineage))
        model = ticket.install(clone(previous.model))
        if self.example_inputs is not None:
            try:
                check_connected(model, masks, self.example_inputs)
            except Disconnected as error:
                error.ticket = ticket
                raise
        elif gone := empty_layers(masks):
            warnings.warn(f"level {index}: nothing is left of {', '.join(gone)}", stacklevel=3)
        self.train(model, masks, *self.span)
        return Level(index, masks, model, ticket)

    def _origin(self, index: int, masks: Masks, lineage: Any) -> dict[str, Any]:
        passed = {"level": index, "sparsity": masks.sparsity, "masks": masks.fingerprint}
        how = {"rewind_step": self.rewind_step, "retrain": self.retraining}
        return {**self.origin, **how, "lineage": [*lineage, passed]}

    def _others_start(self, masks: Masks, previous: Level) -> dict[str, Tensor]:
        """What the components without masks start from, where that is not what the ticket before held.

        It goes into the ticket: its controls, and whoever trains it again, start from the same.
        """
        if self.others == "rewind":
            return {}
        source: Mapping[str, Tensor]
        if self.others == "initial":
            source = self._initial_state
        else:
            source = named_state(previous.model if self.others == "trained" else self.make_model())
        return {name: tensor for name, tensor in source.items() if component_of(name) not in masks.components}


def check_sparsities(sparsities: Iterable[float]) -> None:
    """Raises `PruneError` for the first that is not above 0 and below 1."""
    for sparsity in sparsities:
        if not 0 < sparsity < 1:
            raise PruneError(f"sparsities: {sparsity} is out of range: above 0 and below 1")


def random_mask_control(level: Level, seed: int) -> Ticket:
    """The first control: the level's rewind weights under a random mask of the same sparsity in each layer.

    Trained as the level was, from the rewind step on.
    """
    masks = random_like(level.masks, seed)
    return Ticket(masks, level.ticket.weights, {**level.ticket.origin, "control": "random_mask", "control_seed": seed})


def redrawn_weights_control(level: Level, make_model: MakeModel) -> Ticket:
    """The second control: exactly the level's masks, over weights newly drawn by `make_model`.

    Trained from step 0: the weights have no steps behind them, so the whole of training is theirs.
    """
    origin = {**level.ticket.origin, "rewind_step": 0, "retrain": "rewind", "control": "redrawn_weights"}
    return Ticket(level.masks, make_model(), origin)

"""A smaller network out of a trained one, or born small: of one component, while others stay as they are.

Whoever has a latent space in use wants another decoder for it, not another latent space: the encoder is frozen, the
dense decoder is the teacher, and what is compared are its best channels, random ones, and the small dense decoder of
the same size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from gentickets.catalogue import Named
from gentickets.channels.groups import ChannelGroups, channel_groups
from gentickets.channels.shrinking import Shrinking
from gentickets.errors import PruneError
from gentickets.masks.lineage import begun
from gentickets.masks.names import Model, component_of, named_state
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.objectives.base import Objective
from gentickets.objectives.frozen import Frozen
from gentickets.options import Around, Scope, Steps
from gentickets.pruning.prune import prune
from gentickets.search.by_channel import ByChannel
from gentickets.search.early_bird import channel_scores, random_channels_control
from gentickets.search.levels import Level
from gentickets.search.method import Network, Separate, Work, connected


@dataclass(frozen=True)
class Smaller(ByChannel, Separate):
    """The best channels of the trained model, cut out at once and trained on."""

    begin: Steps = 0
    """The step of the schedule at which the smaller network's training begins; it ends as the dense one's does."""
    frozen: list[str] = field(default_factory=list)
    """Which components stay as the dense model has them, to the bit."""
    around: Around | None = None
    """What the objective of a retraining is wrapped in, such as distillation from the dense model; null: nothing."""

    builds_on: ClassVar[Literal["dense"]] = "dense"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frozen and self.components is None:
            raise ValueError(f"frozen={self.frozen}: say which components are pruned, such as components=[decoder]")
        if both := sorted({*self.frozen} & {*(self.components or ())}):
            raise ValueError(f"frozen: {both[0]!r} is pruned (components={self.components}): it is one or the other")

    def names(self) -> dict[str, Iterable[str]]:
        return {"components": self.components or (), "frozen": self.frozen}

    def check(self, steps: int) -> None:
        if self.begin >= steps:
            raise PruneError(f"search.begin={self.begin} is not before training.steps={steps}")

    def span(self, steps: int) -> tuple[int, int]:
        return self.begin, steps

    def covered(self, model: nn.Module) -> Masks:
        return Masks.dense(model, self.components)

    def level(self, work: Work, index: int) -> Level:
        dense = work.load(0).model
        groups = channel_groups(dense, self._pruned(work.example_inputs(dense)))
        masks = self._chosen(dense, groups, index)
        return self._trained(work, index, self._ticket(work, index, masks, dense), self.span(work.steps))

    def network(self, ticket: Ticket, model: nn.Module, example_inputs: Mapping[str, Any]) -> Network:
        shrinking = Shrinking(ticket.install(model), ticket.masks, self._pruned(example_inputs))
        return Network(shrinking.model, shrinking.masks, shrinking.removed)

    def control(self, arm: str, level: Level, work: Work, seed: int) -> Level:
        """Random channels, or the ticket's own with weights drawn anew, which are trained for the whole schedule."""
        dense = work.load(0).model
        if arm == "random_mask":
            groups = channel_groups(dense, self._pruned(work.example_inputs(dense)))
            return self._trained(
                work, level.index, random_channels_control(level.ticket, groups, seed), self.span(work.steps)
            )
        ticket = drawn_anew(level.ticket, work.make_model(), dense, self.frozen)
        return self._trained(work, level.index, ticket, (0, work.steps))

    def _pruned(self, example_inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of the components of which channels go."""
        return {name: one for name, one in example_inputs.items() if self.components is None or name in self.components}

    def _chosen(self, model: nn.Module, groups: ChannelGroups, index: int) -> Masks:
        scores = channel_scores(model, self.components, groups)
        how: Any = {"scope": self.scope, "granularity": "channel", "groups": groups, **self.amount(index)}
        return self.covered(model).replace(prune(scores, **how))

    def _ticket(self, work: Work, index: int, masks: Masks, dense: nn.Module) -> Ticket:
        """What a level starts from: here the dense model's weights, as trained."""
        how = {"rewind_step": self.begin, "retrain": "learning-rate", "lineage": begun(index, masks, work.origin)}
        return Ticket(masks, dense, {**work.origin, **how})

    def _trained(self, work: Work, index: int, ticket: Ticket, span: tuple[int, int]) -> Level:
        model = work.initial()
        connected(ticket, model, work)
        small, held, _ = self.network(ticket, model, work.example_inputs(model))
        work.train(small, held, *span, objective=self._objective(work))
        return Level(index, ticket.masks, small, ticket, held=held, span=span)

    def _objective(self, work: Work) -> Objective:
        objective = Frozen(work.objective, tuple(self.frozen)) if self.frozen else work.objective
        if self.around is None:
            return objective
        built: Objective = Named.of("around", self.around).build(objective=objective, teacher=work.load(0).model)
        return built


@dataclass(frozen=True)
class BornSmall(Smaller):
    """The small dense network of a size: all layers narrower alike, their weights drawn anew."""

    scope: Scope = "layer"
    """Among which weights scores are compared; by layer all widths fall alike."""

    def has_controls(self, work: Work, index: int) -> bool:
        return False  # whichever channels they were: their weights are drawn anew

    def _ticket(self, work: Work, index: int, masks: Masks, dense: nn.Module) -> Ticket:
        return drawn_anew(super()._ticket(work, index, masks, dense), work.make_model(), dense, self.frozen)


def drawn_anew(ticket: Ticket, drawn: Model, dense: nn.Module, frozen: Iterable[str]) -> Ticket:
    """A ticket over other weights: those of `drawn`, and of the components that are frozen the dense model's."""
    kept = {name: tensor for name, tensor in named_state(dense).items() if component_of(name) in frozen}
    origin = {**ticket.origin, "rewind_step": 0, "control": "redrawn_weights"}
    return Ticket(ticket.masks, {**named_state(drawn), **kept}, origin)

"""Early-bird tickets: the mask settles in the first epochs, long before the weights do (You et al. 2020, Sec. 3;
for generative models Kalibhat et al. 2021, Sec. 3.1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.errors import MaskError, PruneError
from gentickets.groups import ChannelGroups
from gentickets.masks import Masks
from gentickets.naming import as_names, component_of, components_of
from gentickets.pruning import Granularity, Scope, prune
from gentickets.scores import Criterion, Scores, batchnorm_scale, magnitude
from gentickets.ticket import Ticket


class EarlyBird:
    """Watches a dense training and says when its mask has settled.

    At each `observe` a mask is drawn that prunes `fraction` of the weights or channels (`granularity`), compared
    within `scope`. It has settled when its distance to each of the last `window - 1` masks is below `tolerance` in
    *every* component. `components` (default: all) are pruned; `criterion` scores them (default: magnitude for
    weights; for channels the norms' gains, and filter norms in components without norms).

    With `groups` (of `channel_groups`) the channels that live and die together are pruned together, with all that
    belongs to them: the ticket shrinks by every channel that it prunes. Distances are then shares of groups, not of
    the weights that the groups have: a wide filter counts no more than a narrow one.

    `history`: what is compared, the masks or, with groups, the decisions; `distances`: one entry an observation,
    component → distances to those before it, the newest last; `ticket`: the mask that settled, with the weights at
    that moment; before that, the newest one; `settled` tells which.
    """

    def __init__(
        self,
        fraction: float,
        granularity: Granularity = "weight",
        window: int = 5,
        tolerance: float = 0.1,
        scope: Scope = "component",
        components: Iterable[str] | None = None,
        criterion: Criterion | None = None,
        origin: Mapping[str, Any] | None = None,
        groups: ChannelGroups | None = None,
    ):
        if not 0 < fraction < 1:
            raise PruneError(f"fraction={fraction} is out of range: above 0 and below 1")
        if window < 2:
            raise PruneError(f"window={window}: 2 or more masks, or there is nothing to compare")
        if not 0 < tolerance <= 1:
            raise PruneError(f"tolerance={tolerance} is out of range: above 0, at most 1")
        if groups is not None and granularity != "channel":
            raise PruneError(f"groups are of channels: say granularity='channel', not {granularity!r}")
        self.groups = groups
        self.fraction, self.granularity, self.window, self.tolerance = fraction, granularity, window, tolerance
        self.scope, self.components, self.origin = scope, components, dict(origin or {})
        self.criterion = criterion or (self._channel_scores if granularity == "channel" else self._magnitude)
        self.settled = False
        self.distances: list[dict[str, list[float]]] = []
        self.history: list[Masks] = []
        self._recent: deque[Masks] = deque(maxlen=window - 1)
        self._masks: Masks | None = None
        self._ticket: Ticket | None = None

    def observe(self, model: nn.Module) -> bool:
        """Draws the mask of `model` as it stands; True once it has settled (and ever after).

        An observation of gains that are all equal, as before training, says nothing and is not counted.
        """
        if self.settled:
            return True
        scores = self.criterion(model)
        if _says_nothing(scores):
            return False
        masks = prune(
            scores, fraction=self.fraction, scope=self.scope, granularity=self.granularity, groups=self.groups
        )
        decisions = masks if self.groups is None else self.groups.decisions(masks)
        found = {name: [_distance(decisions, old, name) for old in self._recent] for name in decisions.components}
        self.distances.append(found)
        self.settled = len(self._recent) == self.window - 1 and all(
            distance < self.tolerance for distances in found.values() for distance in distances
        )
        self._recent.append(decisions)
        self.history.append(decisions)
        self._masks = masks
        self._ticket = Ticket(masks, model, {**self.origin, "early_bird": self.facts()})
        return self.settled

    @property
    def ticket(self) -> Ticket:
        """The newest mask with the weights it was drawn from. Raises `PruneError` before the first observation."""
        if self._ticket is None:
            raise PruneError("no ticket yet: EarlyBird.observe has seen no trained model")
        return self._ticket

    def distance_matrix(self) -> np.ndarray:
        """float (observations, observations): the distance between any two of the masks drawn."""
        return np.array([[one.distance(other) for other in self.history] for one in self.history])

    @property
    def masks(self) -> Masks:
        """The newest mask. Raises `PruneError` before the first observation."""
        if self._masks is None:
            raise PruneError("no mask yet: EarlyBird.observe has seen no trained model")
        return self._masks

    def state_dict(self) -> dict[str, Any]:
        """All but the ticket's weights, as tensors and plain values."""
        newest = [] if self._masks is None else [dict(self._masks)]
        history = [dict(decisions) for decisions in self.history]
        return {"settled": self.settled, "distances": self.distances, "history": history, "newest": newest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave; `ticket` is there again after the next observation."""
        self.settled, self.distances = state["settled"], list(state["distances"])
        self.history = [Masks(decisions) for decisions in state["history"]]
        self._masks = Masks(state["newest"][0]) if state["newest"] else None
        self._recent.clear()
        self._recent.extend(self.history)

    def facts(self) -> dict[str, Any]:
        """What a ticket's origin says of the search."""
        return {
            "observation": len(self.distances),
            "settled": self.settled,
            "fraction": self.fraction,
            "granularity": self.granularity,
            "window": self.window,
            "tolerance": self.tolerance,
        }

    def _magnitude(self, model: nn.Module) -> Scores:
        return magnitude(model, self.components)

    def _channel_scores(self, model: nn.Module) -> Scores:
        return channel_scores(model, self.components, self.groups)


def channel_scores(
    model: nn.Module, components: Iterable[str] | None = None, groups: ChannelGroups | None = None
) -> Scores:
    """One score a channel for each component: its norms' gains or, where it has none, its filters' magnitudes.

    Without norms the component's last layer is left out: its channels are the component's output. With `groups`
    whatever makes a group is scored, and a component whose norms lie outside all groups goes by its filters.
    """
    scores: dict[str, Tensor] = {}
    for component in components_of(model) if components is None else as_names(components):
        try:
            gains: dict[str, Tensor] = batchnorm_scale(model, [component])
        except MaskError:
            gains = {}
        if groups is None:
            scores |= gains or dict(list(magnitude(model, [component]).items())[:-1])
        else:
            scores |= groups.scored(gains) or groups.scored(magnitude(model, [component]))
    if not scores:
        if groups is None:
            raise MaskError("no component has a channel to prune: each is a single layer")
        raise MaskError(
            f"no channel is in a group that could be pruned: {len(groups.whole)} layers stay whole "
            f"({groups.reasons() or 'none was understood'}); see ChannelGroups.whole"
        )
    return Scores(scores, model)


def _distance(masks: Masks, other: Masks, component: str) -> float:
    return masks.select(component).distance(other.select(component))


def _says_nothing(scores: Mapping[str, Tensor]) -> bool:
    """Whether all scores of some component are the same number."""
    spread: dict[str, list[float]] = {}
    for name, score in scores.items():
        low, high = torch.aminmax(score)
        spread.setdefault(component_of(name), []).extend((float(low), float(high)))
    return any(min(values) == max(values) for values in spread.values())

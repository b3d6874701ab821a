"""Early-bird tickets: the mask settles in the first epochs, long before the weights do (You et al. 2020, Sec. 3;
for generative models Kalibhat et al. 2021, Sec. 3.1)."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict, Unpack, get_args

import numpy as np
import torch
from torch import Tensor, nn

from gentickets.arguments import check_arguments
from gentickets.channels.groups import ChannelGroups
from gentickets.errors import MaskError, PruneError
from gentickets.masks.chance import Overlap, overlap
from gentickets.masks.examples import WHOLE
from gentickets.masks.lineage import shuffled
from gentickets.masks.names import Model, as_model, as_names, check_components, component_of, components_of, unwrap
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.notebook import shown
from gentickets.options import TOLERANCES, Granularity, Rule, Scope, check_tolerance
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import Scores, batchnorm_scale, magnitude
from gentickets.pruning.widths import Asked
from gentickets.search.levels import check_count, check_share

_BY_LUCK = 0.01
"""Told is a component of which a whole window of independent masks would agree with a higher probability."""

_WIDTHS = ("at_least", "parameters", "flops")


class Watching(TypedDict, total=False):
    """`origin`: goes into the ticket. `groups`: the channels that go together. `rule`: what near is ("chance").
    `at_least`, `parameters`, `flops`: how wide layers stay, and a size in place of a fraction (see `prune`)."""

    origin: Mapping[str, Any] | None
    groups: ChannelGroups | None
    rule: Rule
    at_least: float | None
    parameters: int | None
    flops: int | None


class EarlyBird:
    """Watches a dense training and says when its mask has settled.

    At each `observe` a mask is drawn that prunes `fraction` of the weights or channels (`granularity`), compared
    within `scope`. It has settled when its distance to each of the last `window - 1` masks is below `tolerance` in
    *every* component. `components` (default: all; `""`: the model is one network) are pruned; `criterion` scores them
    (default: magnitude for weights; for channels the norms' gains, and filter norms in components without norms).

    `rule` says what a distance is. `"chance"`: the share of the distance that two *independent* masks of the same layer
    densities would be expected to have (see `overlap`); below 0.2 unless `tolerance` says otherwise, at every
    sparsity. `"hamming"`, the rule of You et al. 2020 and Kalibhat et al. 2021: the share of weights or channels
    on which they differ; below 0.1. Independent masks of density d differ by 2 d (1 - d), which is less than 0.1 from
    94.7 % on, and earlier where layers are uneven: there this rule calls any two masks settled, so a tolerance at or
    above chance is refused, for `fraction` at once and for the layers' densities at the first comparison. A component
    whose masks are whole or empty layer by layer has nothing to compare, and no say.

    With `groups` (of `channel_groups`) the channels that live and die together are pruned together, with all that
    belongs to them: the ticket shrinks by every channel that it prunes. Distances are then shares of groups, not of
    the weights that the groups have: a wide filter counts no more than a narrow one.

    `history`: what is compared, the masks or, with groups, the decisions. `distances`: one entry an observation,
    component → Hamming distances to those before it in the window, the newest last; `chances`: the same of independent
    masks. `ticket`: the mask that settled, with the weights at that moment; before that, the newest one; `settled`
    tells which.
    """

    def __init__(
        self,
        fraction: float | None = None,
        granularity: Granularity = "weight",
        window: int = 5,
        tolerance: float | None = None,
        scope: Scope = "component",
        components: Iterable[str] | None = None,
        criterion: Callable[[Model], Mapping[str, Tensor]] | None = None,
        **more: Unpack[Watching],
    ):
        check_arguments(EarlyBird, more, Watching)
        origin, groups, rule = more.get("origin"), more.get("groups"), more.get("rule", "chance")
        self.more = {key: more[key] for key in _WIDTHS if more.get(key) is not None}  # type: ignore[literal-required]
        if (fraction is not None) + len(self.more.keys() - {"at_least"}) != 1:
            raise PruneError("give one amount: fraction=, parameters= or flops=")
        if fraction is not None:
            check_share("fraction", fraction)
        Asked.of(groups, 1, more.get("at_least"), {"parameters": more.get("parameters"), "flops": more.get("flops")})
        check_count("window", window, 2)  # or there is nothing to compare
        if granularity not in get_args(Granularity):
            raise PruneError(f"granularity={granularity!r} is none of {', '.join(get_args(Granularity))}")
        if scope not in get_args(Scope):
            raise PruneError(f"scope={scope!r} is none of {', '.join(get_args(Scope))}")
        if rule not in get_args(Rule):
            raise PruneError(f"rule={rule!r} is none of {', '.join(get_args(Rule))}")
        if groups is not None and granularity != "channel":
            raise PruneError(f"groups are of channels: say granularity='channel', not {granularity!r}")
        self.tolerance = TOLERANCES[rule] if tolerance is None else tolerance
        check_tolerance(self.tolerance, rule, 0.5 if fraction is None else fraction)  # of a size, at the first mask
        self.groups, self.rule = groups, rule
        self.fraction, self.granularity, self.window = fraction, granularity, window
        self.scope, self.origin = scope, dict(origin or {})
        self.components = None if components is None else as_names(components)
        self.criterion = criterion or (self._channel_scores if granularity == "channel" else self._magnitude)
        self.settled = False
        self.distances: list[dict[str, list[float]]] = []
        self.chances: list[dict[str, list[float]]] = []
        self.history: list[Masks] = []
        self._recent: deque[Masks] = deque(maxlen=window - 1)
        self._parts: tuple[str, ...] | None = None
        self._told: set[str] = set()
        self._masks: Masks | None = None
        self._ticket: Ticket | None = None

    def __repr__(self) -> str:
        state = "settled" if self.settled else "not settled"
        return f"EarlyBird({self._asked()}, {self.granularity}, {len(self.history)} observations, {state})"

    def _asked(self) -> str:
        said = ({} if self.fraction is None else {"fraction": self.fraction}) | self.more
        return ", ".join(f"{key}={value}" for key, value in said.items())

    def _repr_html_(self) -> str:
        newest, chances = (of[-1] if of else {} for of in (self.distances, self.chances))
        rows = (
            (name or "the network", f"{max(found):.4f}", f"{max(chances[name]):.4f}")
            for name, found in newest.items()
            if found
        )
        return shown(self, ("component", "farthest in the window", "by chance"), rows)

    def observe(self, model: Model) -> bool:
        """Draws the mask of `model` as it stands; True once it has settled (and ever after: nothing moves any more).

        An observation of gains that are all equal, as before training, says nothing and is not counted. Raises
        `PruneError` where the layers' densities leave no distance that the rule could call far.
        """
        if self.settled:
            return True
        model = as_model(model)
        self._parts = parts_of(model, self.components, self.groups)
        scores = self.criterion(model)
        if _says_nothing(scores, self._parts):
            return False
        self._tell_of_whole(scores, model)
        scope: Scope = "global" if self._parts == (WHOLE,) and self.scope == "component" else self.scope
        how: Any = {"scope": scope, "granularity": self.granularity, "groups": self.groups, **self.more}
        masks = prune(scores, self.fraction, **how)
        decisions = masks if self.groups is None else self.groups.decisions(masks)
        found = self._compared(decisions)
        self._check_comparable(found)
        self.settled = len(self._recent) == self.window - 1 and all(
            self._near(one) for overlaps in found.values() for one in overlaps
        )
        self._remember(decisions, found)
        self._masks = masks
        self._ticket = Ticket(masks, model, {**self.origin, "early_bird": self.facts()})
        return self.settled

    @property
    def ticket(self) -> Ticket:
        """The newest mask with the weights it was drawn from. Raises `PruneError` before the first observation, and
        for one that has been loaded unsettled, before the next."""
        if self._ticket is None:
            raise PruneError("no ticket yet: EarlyBird.observe has seen no trained model (since it was loaded)")
        return self._ticket

    def distance_matrix(self) -> np.ndarray:
        """float (observations, observations): the Hamming distance between any two of the masks drawn."""
        return np.array([[one.distance(other) for other in self.history] for one in self.history])

    def chance_matrix(self) -> np.ndarray:
        """float (observations, observations): the same of independent masks of these layer densities."""
        return np.array([[overlap(one, other).chance_distance for other in self.history] for one in self.history])

    @property
    def masks(self) -> Masks:
        """The newest mask. Raises `PruneError` before the first observation."""
        if self._masks is None:
            raise PruneError("no mask yet: EarlyBird.observe has seen no trained model")
        return self._masks

    def state_dict(self) -> dict[str, Any]:
        """All that there is to go on with, as tensors and plain values; the ticket's weights once it has settled."""
        newest = [] if self._masks is None else [dict(self._masks)]
        history = [dict(decisions) for decisions in self.history]
        state = {"settled": self.settled, "history": history, "newest": newest, "facts": self.facts()}
        if self.settled and self._ticket is not None:
            state["ticket"] = {"weights": dict(self._ticket.weights), "origin": self._ticket.origin}
        return {**state, "parts": None if self._parts is None else list(self._parts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave, bit for bit; `ticket` of an unsettled one is there again after the next
        observation. Raises `PruneError` for a state that was kept under other settings."""
        kept = {"rule": "hamming", **state.get("facts", {})}  # of before there was another
        mine = self.facts()
        for key in ("rule", "tolerance", "window", "fraction", "granularity", *_WIDTHS):
            if kept.get(key, mine.get(key) if key in ("rule", *mine) else None) != mine.get(key):
                its, own = kept.get(key), mine.get(key)
                raise PruneError(f"the state was kept with {key}={its!r}, this EarlyBird has {key}={own!r}")
        self.settled = state["settled"]
        self.history, self.distances, self.chances = [], [], []
        self._recent.clear()
        self._parts = tuple(state["parts"]) if state.get("parts") is not None else None
        for drawn in state["history"]:
            decisions = Masks(drawn)
            self._remember(decisions, self._compared(decisions))
        self._masks = Masks(state["newest"][0]) if state["newest"] else None
        self._ticket = None
        if self._masks is not None and "ticket" in state:
            self._ticket = Ticket(self._masks, state["ticket"]["weights"], state["ticket"]["origin"])

    def facts(self) -> dict[str, Any]:
        """What a ticket's origin says of the search."""
        return {
            "observation": len(self.history),
            "settled": self.settled,
            "fraction": self.fraction,
            **self.more,
            "granularity": self.granularity,
            "window": self.window,
            "rule": self.rule,
            "tolerance": self.tolerance,
        }

    def _compared(self, decisions: Masks) -> dict[str, list[Overlap]]:
        """Component → the overlap with each of the masks before it in the window."""
        whole = self._parts == (WHOLE,)
        names = (WHOLE,) if whole else decisions.components
        return {
            name: [
                overlap(decisions, old) if whole else overlap(decisions.select(name), old.select(name))
                for old in self._recent
            ]
            for name in names
        }

    def _remember(self, decisions: Masks, found: Mapping[str, list[Overlap]]) -> None:
        self.distances.append({name: [one.distance for one in overlaps] for name, overlaps in found.items()})
        self.chances.append({name: [one.chance_distance for one in overlaps] for name, overlaps in found.items()})
        self._recent.append(decisions)
        self.history.append(decisions)

    def _near(self, one: Overlap) -> bool:
        if not one.chance_distance:
            return True  # no other mask was possible
        return (one.relative_distance if self.rule == "chance" else one.distance) < self.tolerance

    def _check_comparable(self, found: Mapping[str, list[Overlap]]) -> None:
        """Whether masks that have nothing to do with each other would be told apart. Raises `PruneError` if not; warns
        of a component that has no say, or might have settled by luck."""
        newest = {name: overlaps[-1] for name, overlaps in found.items() if overlaps}
        if newest and not any(one.chance_distance for one in newest.values()):
            raise PruneError(
                f"{self._asked()} leaves no two masks that could differ: every layer is whole or empty "
                f"({_densities(newest)}); take another amount or scope"
            )
        for name, one in newest.items():
            named = f"component {name!r}" if name else "the network"
            if not one.chance_distance:
                self._tell(f"{named} has no say in whether the mask has settled: its layers are whole or empty")
                continue
            if self.rule == "hamming" and self.tolerance >= one.chance_distance:
                raise PruneError(
                    f"tolerance={self.tolerance}: independent masks of {named} with the layer densities drawn "
                    f"({_densities({name: one})}) differ by {one.chance_distance:.3g}, so that any would settle: "
                    f"take rule='chance', or a tolerance well below"
                )
            limit = self.tolerance * (one.chance_distance if self.rule == "chance" else 1)
            luck = one.probability_below(limit) ** (self.window - 1)
            if self._counts_decisions and luck > _BY_LUCK:
                self._tell(
                    f"{named} may settle by luck: {self.window} independent masks of it agree with probability "
                    f"{luck:.2f}; take a longer window, or a lower tolerance"
                )

    def _tell_of_whole(self, scores: Mapping[str, Tensor], model: nn.Module) -> None:
        """Warns of a component with weights, and of layers beside others, of which nothing is scored or pruned."""
        scored = {component_of(name) for name in scores}
        for part in self._parts or ():
            if part not in (WHOLE, *scored) and _found(magnitude, model, [part]):
                self._tell(f"nothing of component {part!r} is scored: it stays whole, and has no say")
        if self.groups is not None:
            _, known = self.groups.scores(scores)
            parts = scored if self._parts != (WHOLE,) else {component_of(layer) for layer in self.groups.places}
            places = self.groups.places.items()
            unscored = [layer for layer, numbers in places if component_of(layer) in parts and not known[numbers].any()]
            if unscored:
                self._tell(
                    f"channels of {', '.join(unscored[:3])}{f' and {len(unscored) - 3} more' * (len(unscored) > 3)} "
                    f"have no score and stay: no norm of theirs has gains; the criterion 'magnitude' scores them all"
                )

    @property
    def _counts_decisions(self) -> bool:
        """Whether a mask has one bit for each thing that is decided; without groups a channel has many."""
        return self.granularity == "weight" or self.groups is not None

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, stacklevel=4)

    def _magnitude(self, model: nn.Module) -> Scores:
        parts = parts_of(model, self.components)
        return magnitude(model, None if parts == (WHOLE,) else parts)

    def _channel_scores(self, model: nn.Module) -> Scores:
        return channel_scores(model, self.components, self.groups)


def parts_of(
    model: Model, components: Iterable[str] | None = None, groups: ChannelGroups | None = None
) -> tuple[str, ...]:
    """What is pruned and compared, each by itself: `components`, by default all.

    It is `("",)`, the whole model, where `components` says so, for a single layer or a plain `nn.Sequential` of them,
    and where `groups` go across its children. Raises `MaskError` for a component that does not exist.
    """
    net, known = unwrap(model), components_of(model)
    if components is not None:
        wanted = as_names(components)
        if wanted != (WHOLE,):
            check_components(wanted, known)
        return wanted
    layers_alone = isinstance(net, nn.Sequential) and not any(len(list(child.children())) for child in net)
    return (WHOLE,) if not known or layers_alone or (groups is not None and _go_across(groups)) else known


def _go_across(groups: ChannelGroups) -> bool:
    """Whether there is a channel that lies in several children, which are then layers of one network."""
    first = (int(numbers[0]) for numbers in groups.places.values() if len(numbers))
    return any(len({component_of(part.name) for part in groups[number]}) > 1 for number in first)


def channel_scores(
    model: Model, components: Iterable[str] | None = None, groups: ChannelGroups | None = None
) -> Scores:
    """One score a channel for each component: its norms' gains or, where it has none, its filters' magnitudes.

    Without norms the component's last layer is left out: its channels are the component's output. With `groups`
    whatever makes a group is scored, and a component whose norms lie outside all groups goes by its filters.
    `components` as in `parts_of`. Raises `MaskError` where no component has a channel to prune, and says why.
    """
    model = as_model(model)
    scores: dict[str, Tensor] = {}
    parts = parts_of(model, components, groups)
    for part in parts:
        inside = None if part == WHOLE else [part]
        gains, filters = _found(batchnorm_scale, model, inside), _found(magnitude, model, inside)
        if groups is None:
            scores |= gains or dict(list(filters.items())[:-1])
        else:
            scores |= groups.scored(gains) or groups.scored(filters)
    if not scores:
        raise MaskError(_why_no_channel(parts, groups))
    return Scores(scores, model)


def _found(criterion: Any, model: nn.Module, components: list[str] | None) -> dict[str, Tensor]:
    """What a criterion scores; nothing where the components have no weight of its kind."""
    try:
        return dict(criterion(model, components))
    except MaskError:
        return {}


def _why_no_channel(parts: tuple[str, ...], groups: ChannelGroups | None) -> str:
    named = "the network" if parts == (WHOLE,) else f"component {', '.join(parts)}"
    if groups is None:
        return (
            f"no channel to prune: {named} has no norm with gains and at most one layer each, whose channels are its "
            f"output; if these are layers of one network, say components=''"
        )
    whole = {layer: why for layer, why in groups.whole.items() if parts == (WHOLE,) or component_of(layer) in parts}
    if whole:
        said = "; ".join(f"{layer}: {why}" for layer, why in list(whole.items())[:3])
        more = f"; and {len(whole) - 3} more" if len(whole) > 3 else ""
        return f"no channel of {named} can be pruned, as every layer stays whole ({said}{more}): prune weights instead"
    return f"the channel groups have none of {named}: make them with an example input for it"


def random_channels_control(ticket: Ticket, groups: ChannelGroups, seed: int) -> Ticket:
    """The control of a channel ticket: as many channels of every layer, at random, over the same weights.

    A channel changes places only with those that have slices of the same tensors, so that every layer has as many
    inputs and outputs as in the ticket: shrunk, the two are networks of the same shapes, of equal weights and FLOPs.

    Raises `PruneError` where the ticket prunes more than whole groups, and where no other choice is possible.
    """
    kept = groups.kept(ticket.masks)
    for name, mask in groups.masks(kept).items():
        if name in ticket.masks and not torch.equal(ticket.masks[name], mask):
            raise PruneError(f"{name!r} of the ticket is not pruned by whole groups: take random_mask_control")
    alike: dict[Any, list[int]] = {}
    for number, slices in enumerate(groups):
        alike.setdefault(tuple((part.name, part.axis, len(part.indices)) for part in slices), []).append(number)
    if not any(0 < kept[numbers].sum() < len(numbers) for numbers in alike.values()):
        raise PruneError(
            "no other choice of channels has as many in each layer as the ticket: there is no random control "
            "(controls.random_mask=false leaves it out)"
        )
    rng, drawn = np.random.default_rng(seed), kept.copy()
    for numbers in alike.values():
        drawn[numbers] = rng.permutation(kept[numbers])
    masks = Masks({**ticket.masks, **groups.masks(drawn)})
    return Ticket(masks, ticket.weights, shuffled(ticket.origin, masks, seed))


def _densities(overlaps: Mapping[str, Overlap]) -> str:
    """How many are alive of each layer, for a message; of many layers the first and last."""
    layers = [f"{name} {one}/{total}" for each in overlaps.values() for name, (total, one, _, _) in each.counts.items()]
    return ", ".join(layers if len(layers) <= 4 else [*layers[:2], "…", *layers[-1:]])


def _says_nothing(scores: Mapping[str, Tensor], parts: tuple[str, ...]) -> bool:
    """Whether all scores of some part are the same number."""
    spread: dict[str, list[float]] = {}
    for name, score in scores.items():
        if score.numel() and not score.is_meta:  # of which pruning says that it has no values
            low, high = torch.aminmax(score)
            part = WHOLE if parts == (WHOLE,) else component_of(name)
            spread.setdefault(part, []).extend((float(low), float(high)))
    return any(min(values) == max(values) for values in spread.values())

"""Channel groups: everything in a model's parameters that one channel owns.

To cut a channel out, its filter is not enough: the bias and the norm's gain go with it, the filters of every layer
whose output is added to it, and the columns of every layer that reads it. Such slices form a group that lives and dies
as one (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", Sec. 3). Where all of a group is zero, nothing of
the channel is left that could be seen: no constant behind a norm, no weight in a spectral norm.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from gentickets.channels.graph import ChannelGraph, layers_of
from gentickets.channels.labels import trace_all
from gentickets.channels.layers import Side, channel_axes, mixes_channels
from gentickets.channels.sizes import Sized, sized
from gentickets.channels.trace import Node
from gentickets.errors import MaskError, PruneError
from gentickets.masks.examples import examples_of
from gentickets.masks.layers import check_not_accelerated, weight_norm_lengths
from gentickets.masks.names import Model, joined
from gentickets.masks.value import Masks
from gentickets.notebook import short, shown


@dataclass(frozen=True)
class Slice:
    """Those `indices` along `axis` of the parameter `name` that belong to a group.

    `side` is "output" in the layers that make the channel (filters, biases, gains), "input" in those that read it.
    """

    name: str
    axis: int
    indices: tuple[int, ...]
    side: Side


@dataclass(frozen=True)
class _Tie:
    """One axis of one parameter: whose channels lie along it, and the group of each (-1: a channel that stays)."""

    name: str
    axis: int
    side: Side
    groups: np.ndarray
    masked: bool  # not so the filters under weight norm: their lengths are, for a filter of zeros has no direction


class ChannelGroups(Sequence[tuple[Slice, ...]]):
    """The channel groups of a model, numbered: `groups[3]` are the slices that live and die with channel 3.

    Channels of a component's input and output, and those that an operation needs all of, are in no group.

    `layers`: layer → the numbers of the groups that it makes; residual additions make several layers share them.
    `places`: the same with each group once, under the first layer that makes it. `always`: layer → how many of its
    channels stay in any case; `wide`: layer → how many of its channels each of its groups has, as in `layers`;
    `whole`: the operation that asks for them, or that the example does not reach the layer. `shapes`: parameter → its
    shape. `sizes`: component → what its size is made of. Made by `channel_groups`.
    """

    def __init__(
        self,
        ties: Sequence[_Tie],
        shapes: Mapping[str, tuple[int, ...]],
        whole: Mapping[str, str],
        sizes: Mapping[str, Sized],
    ):
        self.shapes, self.whole, self.sizes = dict(shapes), dict(whole), dict(sizes)
        self._ties = tuple(tie for tie in ties if (tie.groups >= 0).any())
        self._count = 1 + max((int(tie.groups.max()) for tie in self._ties), default=-1)
        self.layers: dict[str, np.ndarray] = {}
        self.places: dict[str, np.ndarray] = {}
        self.always: dict[str, int] = {}
        self.wide: dict[str, np.ndarray] = {}
        seen = np.zeros(self._count, dtype=bool)
        for tie in self._ties:
            layer = tie.name.partition(".parametrizations.")[0] if ".param" in tie.name else tie.name.rpartition(".")[0]
            if tie.side == "output" and layer not in self.layers:
                numbers, wide = np.unique(tie.groups[tie.groups >= 0], return_counts=True)
                self.layers[layer], self.wide[layer] = numbers, wide
                self.always[layer] = int((tie.groups < 0).sum())
                if len(new := numbers[~seen[numbers]]):
                    self.places[layer] = new
                    seen[new] = True

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> tuple[Slice, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Slice, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Slice, ...] | list[tuple[Slice, ...]]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number = range(len(self))[index]
        return tuple(
            Slice(tie.name, tie.axis, tuple(np.flatnonzero(tie.groups == number).tolist()), tie.side)
            for tie in self._ties
            if (tie.groups == number).any()
        )

    def __iter__(self) -> Iterator[tuple[Slice, ...]]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        whole = f", {len(self.whole)} layers whole" + (f" ({short(self.reasons(), 100)})" if self.whole else "")
        return f"ChannelGroups({len(self)} groups made by {len(self.layers)} layers{whole})"

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [
            (layer, len(numbers), self.always[layer], "") for layer, numbers in self.layers.items()
        ]
        rows += [(layer, 0, "all", reason) for layer, reason in self.whole.items() if layer not in self.layers]
        return shown(repr(self), ("layer", "channels that may go", "that stay", "why"), rows)

    def reasons(self) -> str:
        """What keeps layers whole, the most frequent first: "12 for GroupNorm, 1 for the output"."""
        kinds = Counter(reason.rpartition("(")[2].rstrip(")") or reason for reason in self.whole.values())
        return ", ".join(f"{count} for {kind}" for kind, count in kinds.most_common())

    # -- how large it is ----------------------------------------------------------------------------------

    def parameters(self, kept: np.ndarray | None = None) -> int:
        """How many parameters the components have with the groups `kept` alone (default: all), as `shrink` leaves
        them."""
        return sum(size.parameters(self._all(kept)) for size in self.sizes.values())

    def flops(self, kept: np.ndarray | None = None) -> int:
        """FLOPs of one example forward likewise, as `gentickets.cost` counts them; of a product of activations with
        channels on several sides at most so many. Warns where it is a guess how many examples the input was."""
        for doubt in (size.doubt for size in self.sizes.values() if size.doubt):
            warnings.warn(doubt, stacklevel=2)
        return sum(size.flops(self._all(kept)) for size in self.sizes.values())

    def _all(self, kept: np.ndarray | None) -> np.ndarray:
        return np.ones(len(self), dtype=bool) if kept is None else kept

    # -- scores, masks and back ---------------------------------------------------------------------------

    def scores(self, scores: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """(float64 score, bool whether it has one) of each group, from scores of weights.

        The score of a channel in a tensor is the mean over its weights (|gamma| of a gain, the mean |w| of a filter),
        that of a group the plain mean over the scored tensors that make it. Who reads the channel has no say.
        Raises `PruneError` for scores of another shape than the parameter's.
        """
        total, count = np.zeros(len(self)), np.zeros(len(self))
        for tie in self._ties:
            if tie.side == "input" or tie.name not in scores:
                continue
            score = scores[tie.name].detach().cpu().double()
            if tuple(score.shape) != self.shapes[tie.name]:
                raise PruneError(
                    f"scores of {tie.name!r} have shape {tuple(score.shape)}, the groups' model {self.shapes[tie.name]}"
                )
            per_channel = score.movedim(tie.axis, 0).reshape(score.shape[tie.axis], -1).mean(1).numpy()
            offered = tie.groups >= 0
            members = np.bincount(tie.groups[offered], minlength=len(self))
            sums = np.bincount(tie.groups[offered], per_channel[offered], minlength=len(self))
            total += np.divide(sums, members, out=np.zeros(len(self)), where=members > 0)
            count += members > 0
        return np.divide(total, count, out=np.zeros(len(self)), where=count > 0), count > 0

    def scored(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of `scores` that say something about a group: of tensors that make one."""
        makers = {tie.name for tie in self._ties if tie.side == "output"}
        return {name: score for name, score in scores.items() if name in makers}

    def masks(self, kept: np.ndarray) -> Masks:
        """Masks over every parameter that has a slice of a group; dead are all slices of the groups not `kept`."""
        alive = torch.from_numpy(np.append(kept, True))  # the last one is what -1 finds
        masks: dict[str, Tensor] = {}
        for tie in self._ties:
            if tie.masked:
                shape = self.shapes[tie.name]
                along = alive[torch.from_numpy(tie.groups)].reshape(
                    [-1 if a == tie.axis else 1 for a in range(len(shape))]
                )
                masks[tie.name] = masks.get(tie.name, torch.ones(shape, dtype=torch.bool)) & along
        return Masks(masks)

    def shapes_left(self, kept: np.ndarray) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter that has a slice of a group, without the groups that are not `kept`."""
        alive = np.append(kept, True)  # the last one is what -1 finds
        shapes = {tie.name: list(self.shapes[tie.name]) for tie in self._ties}
        for tie in self._ties:
            shapes[tie.name][tie.axis] = int(alive[tie.groups].sum())
        return {name: tuple(shape) for name, shape in shapes.items()}

    def kept(self, masks: Masks) -> np.ndarray:
        """bool: which groups are alive under `masks`. Dead is a group whose makers' slices are all dead.

        A slice that `masks` does not cover is alive where none of the group's is covered, and has no say otherwise.
        Raises `MaskError` for a mask of another shape than the parameter's.
        """
        covered, alive = np.zeros(len(self), dtype=bool), np.zeros(len(self), dtype=bool)
        for tie in self._ties:
            if tie.side == "input" or not tie.masked or tie.name not in masks:
                continue
            if masks.shapes[tie.name] != self.shapes[tie.name]:
                ours = self.shapes[tie.name]
                raise MaskError(
                    f"{tie.name!r} is {ours} in the groups' model and {masks.shapes[tie.name]} in the masks"
                )
            mask = masks[tie.name].movedim(tie.axis, 0)
            rows = mask.reshape(mask.shape[0], -1).any(1).numpy()
            offered = tie.groups >= 0
            covered[tie.groups[offered]] = True
            alive[tie.groups[offered & rows]] = True
        return alive | ~covered

    def decisions(self, masks: Masks) -> Masks:
        """`kept` as masks: one bool a group, under the name of its place. Their distance is that of You et al. 2020:
        the share of channels on which two tickets differ."""
        kept = torch.from_numpy(self.kept(masks))
        return Masks({place: kept[torch.from_numpy(numbers)] for place, numbers in self.places.items()})


def channel_groups(model: Model, example_inputs: Any) -> ChannelGroups:
    """The channel groups of the components that `example_inputs` has an input for (a batch of 2 or more).

    `example_inputs`: component → its input, a tensor, a tuple of arguments or a dict of keywords; or, of a model that
    is one network, its bare input. The structure alone counts, not the weights: groups are found once and serve for all
    of a training. Raises `MaskError` for a component that does not exist or a model that is accelerated, and
    `Untraceable` where a component's code cannot be followed.
    """
    ties: list[_Tie] = []
    shapes: dict[str, tuple[int, ...]] = {}
    whole: dict[str, str] = {}
    numbers: dict[tuple[str, int], int] = {}
    sizes: dict[str, Sized] = {}
    examples = examples_of(model, example_inputs)
    check_not_accelerated(model)
    for component, graph in trace_all(model, example_inputs).items():
        fixed, layers = graph.fixed, layers_of(model, graph)

        def number(group: int, component: str = component, fixed: Mapping[int, str] = fixed) -> int:
            return -1 if group in fixed else numbers.setdefault((component, group), len(numbers))

        before = len(ties)
        for node, name in _layers(graph):
            layer = layers[name]
            sides: dict[Side, np.ndarray] = {"output": graph.groups(graph.makes[node])}
            sides["input"] = graph.groups(graph.reads[node])
            reason = next((fixed[int(group)] for group in sides["output"] if int(group) in fixed), None)
            if mixes_channels(graph.layer_of(node)) and reason is not None:
                whole[name] = reason
            found = {side: np.array([number(int(group)) for group in of_side]) for side, of_side in sides.items()}
            parameters, lengths = dict(layer.named_parameters()), weight_norm_lengths(layer)
            for tensor, axes in channel_axes(layer).items():
                if tensor in parameters:
                    full = joined(name, tensor)
                    shapes[full] = tuple(parameters[tensor].shape)
                    _, normed = lengths.get(tensor, ("", None))
                    ties += [_Tie(full, axis, side, found[side], masked=axis != normed) for axis, side in axes.items()]
        whole |= dict.fromkeys(graph.uncalled, "what the example does not reach")
        for node in graph.raw:
            if node in graph.axes:
                axis, owner = graph.axes[node], graph.net.get_submodule(node.parameter.rpartition(".")[0])
                full = joined(joined(component, graph.names[id(owner)]), node.parameter.rpartition(".")[2])
                shapes[full] = tuple(node.value.shape)
                along = np.array([number(int(group)) for group in graph.groups(graph.along(node, axis))])
                ties.append(_Tie(full, axis, "output", along, masked=True))
        along_axes: dict[str, dict[int, np.ndarray]] = {}
        for tie in ties[before:]:
            along_axes.setdefault(tie.name, {})[tie.axis] = tie.groups
        known = {group: place for (name, group), place in numbers.items() if name == component}
        sizes[component] = sized(graph, along_axes, known, examples[component])
    return ChannelGroups(ties, shapes, whole, sizes)


def _layers(graph: ChannelGraph) -> Iterator[tuple[Node, str]]:
    """The layers whose tensors have channels, each once, with their names: by the node that they make first."""
    seen: set[str] = set()
    for node in graph.makes:
        if (name := graph.name_of(node)) not in seen:
            seen.add(name)
            yield node, name

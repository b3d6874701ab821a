"""Criteria: pure functions from a model to scores of the same shape as its weights. Higher means: keep.

A criterion reads a model and leaves it as it was. What becomes of the scores (how many go, compared with
which others, within what is still alive) is `gentickets.pruning.prune`'s to decide.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from gentickets.cores import memory
from gentickets.durations import size
from gentickets.errors import MaskError, PruneError
from gentickets.masks.layers import norms_of, prunable_weights
from gentickets.masks.names import (
    CHANNELWISE_NORMS,
    TRANSPOSED,
    WEIGHT_PLACES,
    Model,
    as_model,
    as_names,
    check_components,
    clone,
    component_of,
    components_of,
    joined,
    named_layers,
)
from gentickets.masks.value import Masks
from gentickets.notebook import shown


class Scores(dict[str, Tensor]):
    """Parameter name → float scores of the parameter's shape, on the parameter's device.

    For pruning whole channels it also knows along which axis each parameter has its layer's output channels (0
    where nothing is said, as in a plain dictionary), and which other parameters of the layer (`tied`: the bias)
    go with a channel. `blocks`: the number of groups of a grouped transposed convolution, whose channels lie in as many
    blocks along axis 0, and within a block along axis 1. `norms`: what norms ask of a weight; `lengths`: under weight
    norm, the parameter of its lengths and their axis.
    """

    def __init__(self, scores: Mapping[str, Tensor], model: nn.Module):
        super().__init__(scores)
        layers = dict(named_layers(model))
        self.channel_axis: dict[str, int] = {}
        self.blocks: dict[str, int] = {}
        self.tied: dict[str, tuple[str, ...]] = {}
        self.norms = norms_of(model, scores)
        self.lengths = {
            name: (norm.length, norm.axis)
            for name, norm in self.norms.items()
            if norm.length is not None and norm.axis is not None
        }
        for name in scores:
            inside = f".{name}".partition(".parametrizations.")
            owner = inside[0][1:] if inside[1] else name.rpartition(".")[0]
            layer = layers[owner]
            own = name.removeprefix(f"{owner}.")
            self.channel_axis[name], channels = 0, len(scores[name]) if scores[name].dim() else 1
            if isinstance(layer, TRANSPOSED) and own in WEIGHT_PLACES:
                self.channel_axis[name], self.blocks[name], channels = 1, layer.groups, layer.out_channels
            elif own == "weight" and _is_input_first(layer, scores[name]):
                self.channel_axis[name], channels = 1, scores[name].shape[1]
            bias = layer._parameters.get("bias")
            tied = own in WEIGHT_PLACES and isinstance(bias, Tensor) and len(bias) == channels
            self.tied[name] = (joined(owner, "bias"),) if tied else ()

    def __repr__(self) -> str:
        return f"Scores({len(self)} tensors, {sum(score.numel() for score in self.values()):,} weights)"

    def _repr_html_(self) -> str:
        rows = ((name, score.numel(), *_range(score)) for name, score in self.items())
        return shown(repr(self), ("weight", "scores", "lowest", "highest"), rows)


def _range(score: Tensor) -> tuple[str, str]:
    if not score.numel() or score.is_complex():
        return "–", "–"
    low, high = torch.aminmax(score.detach())
    return f"{low.item():.4g}", f"{high.item():.4g}"


def _is_input_first(layer: nn.Module, weight: Tensor) -> bool:
    """Whether a layer is Hugging Face's `Conv1D` (GPT-2): a linear layer whose weight has its outputs along axis 1."""
    return type(layer).__name__ == "Conv1D" and weight.dim() == 2 and getattr(layer, "nf", None) == weight.shape[1]


Criterion = Callable[[nn.Module, Masks], Mapping[str, Tensor]] | Callable[[nn.Module], Mapping[str, Tensor]]
"""`criterion(model, masks)`: a score for each weight that may go. What the masks prune is 0.0 in the model. One that
takes no masks is called with the model alone, as `gentickets.magnitude` is."""


def scored(criterion: Criterion, model: nn.Module, masks: Masks) -> Scores:
    """What a criterion says of a model that is held to `masks`, as `prune` takes it.

    It is given a copy: no training that goes on from the model begins with what it writes.

    Raises `PruneError` for scores that are no mapping of names to tensors.
    """
    try:
        given = clone(model)
    except MaskError:  # what training left in it has no copy: better scored as it is than lost
        given = as_model(model)
    return told_by(criterion, given, masks)


def told_by(criterion: Criterion, model: nn.Module, masks: Masks) -> Scores:
    """As `scored`, of the model itself."""
    if not callable(criterion):
        raise PruneError(f"criterion={criterion!r} is no function: criterion(model, masks), such as gt.magnitude")
    found = criterion(model, masks) if _takes_masks(criterion) else criterion(model)  # type: ignore[call-arg]
    if not isinstance(found, Mapping):
        gave = type(found).__name__
        raise PruneError(f"the criterion gave {gave}: a dict is needed, weight's name → tensor of scores")
    if other := [name for name, score in found.items() if not isinstance(score, Tensor)]:
        gave = type(found[other[0]]).__name__
        raise PruneError(f"the criterion gave {gave} for {other[0]!r}: a tensor of the weight's shape is needed")
    return found if isinstance(found, Scores) else Scores(found, model)


def _takes_masks(criterion: Criterion) -> bool:
    try:
        takes = list(inspect.signature(criterion).parameters.values())
    except (TypeError, ValueError):
        return True
    bare = [
        one
        for one in takes
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) and one.default is one.empty
    ]
    return any(one.name == "masks" for one in takes) or len(bare) >= 2


@torch.no_grad()
def magnitude(
    model: Model,
    components: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> Scores:
    """The absolute value of each prunable weight (Han et al. 2015; the criterion of Kalibhat et al. 2021).

    `components`, `include` and `exclude` choose the weights as in `prunable_weights`.
    """
    model = as_model(model)
    chosen = prunable_weights(model, components, include, exclude)
    return Scores({name: _size(weight.detach()) for name, weight in chosen.items()}, model)


def _size(weight: Tensor) -> Tensor:
    """The absolute value; of whole numbers in float64, since -128 has none in int8."""
    return weight.abs() if weight.is_floating_point() or weight.is_complex() else weight.double().abs()


@torch.no_grad()
def batchnorm_scale(model: Model, components: Iterable[str] | None = None) -> Scores:
    """The absolute gain of each channel of the batch and instance norms (Liu et al. 2017, "Network slimming").

    Names are those of the gains, 1-D; prune them with `granularity="channel"`, and the bias goes with the gain.
    Raises `MaskError` where there is no such norm: then channels can be pruned by `magnitude`.
    """
    wanted = None if components is None else as_names(components)
    if wanted is not None:
        check_components(wanted, components_of(model))
    gains = {
        f"{name}.weight": layer.weight.detach().abs()
        for name, layer in named_layers(model)
        if isinstance(layer, CHANNELWISE_NORMS)
        and isinstance(layer.weight, Tensor)
        and (wanted is None or component_of(name) in wanted)
    }
    if not gains:
        where = "the model" if wanted is None else f"component {', '.join(wanted)}"
        raise MaskError(f"{where} has no batch norm with gains: prune its channels by magnitude instead")
    return Scores(gains, as_model(model))


@torch.no_grad()
def random_scores(
    model: Model,
    seed: int,
    components: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> Scores:
    """Independent uniform scores in [0, 1): the criterion that knows nothing. Equal seeds, equal scores.

    Float64, so that two equal scores are as good as impossible; drawn on the CPU, so that the device does
    not change them. Raises `PruneError` where they do not fit into memory.
    """
    model, generator = as_model(model), torch.Generator().manual_seed(seed)
    chosen = prunable_weights(model, components, include, exclude)
    if (needed := 8 * sum(weight.numel() for weight in chosen.values())) > memory():
        raise PruneError(f"random scores take {size(needed)}, and there are {size(memory())} of memory: choose fewer")
    drawn = {
        name: torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
        for name, weight in chosen.items()
    }
    return Scores(drawn, model)

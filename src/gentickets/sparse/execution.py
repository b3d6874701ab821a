"""Running a masked model on its live weights alone, layer by layer, where that is faster and gives the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gentickets.errors import MaskError
from gentickets.evaluating import evaluating
from gentickets.kernels import missing
from gentickets.masks import Masks
from gentickets.naming import (
    WEIGHT_PLACES,
    check_components,
    components_of,
    named_layers,
    named_weights,
    unwrap,
)
from gentickets.sparse.beside import STAND_INS, StandIn
from gentickets.sparse.chain import SparseSequential
from gentickets.sparse.costs import Cost, Work, faster
from gentickets.sparse.layers import (
    SparseConv2d,
    SparseConvTranspose2d,
    SparseLayer,
    SparseLinear,
    is_hooked,
    sparse_form,
)


@dataclass(frozen=True)
class Choice:
    """How one masked layer is run: `sparse` or not, and `why`.

    `weight`: the name of its mask; `density`: the share of its weights that is alive.
    """

    layer: str
    weight: str
    density: float
    sparse: bool
    why: str


class Accelerated:
    """What `accelerate` did to `model`. As a context it undoes that on leaving.

    `masks` are those of the layers that stayed dense: hold the model to them. `choices` says how each masked layer is
    run.
    """

    def __init__(self, model: nn.Module, masks: Masks, choices: tuple[Choice, ...]):
        self.model, self.choices = model, choices
        sparse = {choice.weight for choice in choices if choice.sparse}
        self.masks = Masks({name: mask for name, mask in masks.items() if name not in sparse})
        convolutions = (SparseConv2d, SparseConvTranspose2d)
        self._on_lanes = any(isinstance(layer, convolutions) for layer in model.modules())

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore(self.model)

    def __bool__(self) -> bool:
        """Whether any layer is run on its live weights alone."""
        return any(choice.sparse for choice in self.choices)

    def laid_out(self, batch: Tensor) -> Tensor:
        """The same batch of images, in memory as the sparse layers take it: with convolutions batch innermost."""
        return lanes(batch) if self._on_lanes else batch

    @property
    def index_bytes(self) -> int:
        """Bytes that say where the live weights are, in all sparse layers."""
        return sum(layer.nbytes for layer in self.model.modules() if isinstance(layer, SparseLayer))


def accelerate(model: nn.Module, masks: Masks, example_inputs: Mapping[str, Tensor]) -> Accelerated:
    """Swaps each masked layer of `model`, in place, for one of its live weights alone, where that is faster.

    The swapped layers compute what the masked ones do, to rounding, and have gradients, optimiser state and memory
    for live weights only: make the optimiser after this call, from `model.parameters()`. Leaving the context, or
    `restore(model)`, puts the dense layers back, with the trained weights and 0.0 in the pruned places.

    `example_inputs`: component → a batch of the size that is trained on, or run. By their shapes the work of each layer
    is known, and by a table of measured rates which form is faster; so the choice is the same on every machine. A
    layer stays dense where its weights are shared, hooked, or derived by other than a spectral norm, on a GPU, in half
    precision, with a padding other than zeros, or where the package was installed without a C compiler; all do where
    the model's code cannot run the examples with them, or gives something else. `choices` says why. What sparse layers
    give is strided batch innermost: `reshape` it, where `view` would have joined the batch with another axis. Images
    that go in by way of `laid_out` spare the first layer a transposition.

    Raises `MaskError` where the masks do not fit, or for a component that does not exist.
    """
    masks.check_fits(model)
    check_components(example_inputs, components_of(model))
    if any(isinstance(layer, SparseLayer) for layer in model.modules()):
        raise MaskError("the model is accelerated already: restore(model) first")
    masks.apply_(model)  # before anything passes through it
    with _counted(model) as work:
        expected = _outputs(model, example_inputs)
    choices = _choose(model, masks, work)
    try:
        _swap_in(model, masks, choices)
        reason = _differs(model, example_inputs, expected) if any(choice.sparse for choice in choices) else None
    except BaseException:
        restore(model)
        raise
    if reason is not None:
        restore(model)
        choices = tuple(replace(choice, sparse=False, why=reason) if choice.sparse else choice for choice in choices)
    return Accelerated(model, masks, choices)


def restore(model: nn.Module) -> nn.Module:
    """Puts dense layers back in the place of all sparse ones, in place; for copies and averages of a model too.

    Returns the model: another module only where `model` is itself a layer or a sequence that was swapped.
    """
    for kind in (StandIn, SparseLayer):  # first what holds the others
        _swap(model, {id(one): one.dense() for one in model.modules() if isinstance(one, kind)})
    return model.dense() if isinstance(model, StandIn | SparseLayer) else model


def lanes(images: Tensor) -> Tensor:
    """The same batch, laid out in memory as sparse layers keep it (batch innermost): spares them a transposition."""
    order = (*range(1, images.dim()), 0)
    return images.permute(order).contiguous().permute(images.dim() - 1, *range(images.dim() - 1))


# -- choosing ----------------------------------------------------------------------------------------------------------


def _choose(model: nn.Module, masks: Masks, work: Mapping[int, Work]) -> tuple[Choice, ...]:
    """How each masked layer is best run; `work`: what each was seen to do, by id."""
    counts, shared = masks.counts(), _shared(model)
    costs: dict[int, Cost] = {}
    found: list[tuple[int, Choice]] = []
    for name, layer, weight, parameter in _masked_layers(model, masks):
        density = counts[weight] / max(1, parameter.numel())
        why = _cannot(layer, parameter, shared)
        if why is None and id(layer) not in work:
            why = "not called as a layer on the example inputs"
        if why is None:
            costs[id(layer)] = Cost(work[id(layer)], parameter.numel(), density)
            why = f"dense is faster at density {density:.2f} and this size"
        found.append((id(layer), Choice(name, weight, density, False, why)))
    chosen = faster(model, work, costs)
    return tuple(
        replace(choice, sparse=True, why="fewer multiplications") if layer in chosen else choice
        for layer, choice in found
    )


def _masked_layers(model: nn.Module, masks: Masks) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Each layer whose weight, as it is or under a norm, has a mask: both names, and what they name."""
    weights = named_weights(model)
    for name, layer in named_layers(model):
        for place in WEIGHT_PLACES:
            if (weight := f"{name}.{place}" if name else place) in masks:
                yield name, layer, weight, weights[weight]


def _cannot(layer: nn.Module, weight: Any, shared: set[int]) -> str | None:
    """Why a layer has no sparse form, None where it has one."""
    if sparse_form(layer) is None:
        return f"{type(layer).__name__} has no sparse form"
    if (reason := missing()) is not None:
        return reason
    if weight.device.type != "cpu":
        return f"on {weight.device.type}"
    if weight.dtype not in (torch.float32, torch.float64):
        return f"in {str(weight.dtype).removeprefix('torch.')}"
    if id(weight) in shared:
        return "its weight is shared with another layer"
    if is_hooked(layer) or weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return "it has hooks"
    if weight.numel() >= 2**31:
        return "it has too many weights"
    if getattr(layer, "padding_mode", "zeros") != "zeros" or isinstance(getattr(layer, "padding", 0), str):
        return "its padding is not by numbers of zeros"
    return None


def _shared(model: nn.Module) -> set[int]:
    """The ids of parameters that lie in more than one place."""
    seen: set[int] = set()
    twice: set[int] = set()
    for _, layer in named_layers(model):
        for parameter in layer._parameters.values():
            (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice


@contextmanager
def _counted(model: nn.Module) -> Iterator[dict[int, Work]]:
    """The work of each layer, by id, as batches pass through them meanwhile."""
    found: dict[int, Work] = defaultdict(Work)

    def count(layer: Any, given: tuple[Any, ...], output: Tensor) -> None:
        side = given[0] if isinstance(layer, nn.ConvTranspose2d) and given else output
        places = output.numel() / layer.out_features if isinstance(layer, nn.Linear) else len(side) * _area(side)
        found[id(layer)].multiply_adds += places * layer.weight.numel()
        found[id(layer)].inputs += given[0].numel() if given else 0
        found[id(layer)].flat &= isinstance(layer, nn.Linear) and output.dim() == 2

    with ExitStack() as stack:
        for layer in model.modules():
            if sparse_form(layer) is not None:
                stack.callback(layer.register_forward_hook(count).remove)
        yield found


def _area(images: Tensor) -> int:
    return images.shape[2:].numel()


# -- trying ------------------------------------------------------------------------------------------------------------


def _outputs(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """All tensors that the components give for their examples, in evaluation mode, with chance as it always falls."""
    found: list[Tensor] = []
    with evaluating(model), torch.enable_grad():
        torch.manual_seed(0)
        for component, example in example_inputs.items():
            leaves = tree_leaves(getattr(unwrap(model), component)(example))
            found += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return found


def _differs(model: nn.Module, example_inputs: Mapping[str, Tensor], expected: list[Tensor]) -> str | None:
    """Why the model with its sparse layers is not what it was, in words: it fails, or gives something else."""
    try:
        found = _outputs(model, example_inputs)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        total = sum(leaf.float().sum() for leaf in found if leaf.requires_grad)
        if weights and isinstance(total, Tensor):
            torch.autograd.grad(total, weights, allow_unused=True)
    except Exception as error:  # whatever the model's own code makes of layers that are not what it thinks
        first = next(iter(str(error).splitlines()), "")
        return f"the model does not run with sparse layers: {type(error).__name__}: {first}"
    if len(found) != len(expected) or any(map(_strays, found, expected)):
        return "the model gives something else with sparse layers"
    return None


def _strays(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are not the same but for rounding, which may turn a comparison in the model: floats alone."""
    if one.shape != other.shape:
        return True
    if not one.numel() or not (one.is_floating_point() and other.is_floating_point()):
        return False
    return float((one - other).detach().abs().max()) > 1e-3 * float(other.detach().abs().max())


# -- swapping ----------------------------------------------------------------------------------------------------------


def _swap_in(model: nn.Module, masks: Masks, choices: tuple[Choice, ...]) -> None:
    """Puts sparse layers in the place of the chosen ones, and beside them what works better there."""
    chosen = {choice.weight for choice in choices if choice.sparse}
    if not chosen:
        return
    with torch.no_grad():
        _swap(model, {
            id(layer): form(layer, masks[weight]) for _, layer, weight, _ in _masked_layers(model, masks)
            if weight in chosen and (form := sparse_form(layer)) is not None
        })  # fmt: skip
    for one in model.modules():
        if isinstance(one, SparseLayer):
            one.release()
    _swap(model, {id(one): twin for one in model.modules() if (twin := _twin(one)) is not None})


def _twin(module: nn.Module) -> nn.Module | None:
    """What works better beside sparse layers, with all that `module` has; None where nothing does."""
    if type(module) is nn.Sequential and any(isinstance(layer, SparseLinear) for layer in module):
        return SparseSequential(module)
    stand_in = STAND_INS.get(type(module))
    return None if stand_in is None else stand_in(module)


def _swap(model: nn.Module, by: Mapping[int, nn.Module]) -> None:
    """Puts `by[id(child)]` in the place of each child, wherever it stands."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in by:
                parent._modules[name] = by[id(child)]

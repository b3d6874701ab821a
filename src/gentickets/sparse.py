"""Running a masked model on its live weights alone, layer by layer, where that is faster and gives the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gentickets.errors import MaskError
from gentickets.evaluating import evaluating
from gentickets.masks import Masks
from gentickets.naming import check_components, components_of, named_layers, unwrap
from gentickets.sparse_chain import SparseSequential, runs
from gentickets.sparse_kernels import missing, threads
from gentickets.sparse_layers import SPARSE, LanesNorm, SparseLayer, SparseLinear, StandIn, is_hooked

# Multiply-adds a microsecond, microseconds a call, and microseconds to update a weight, of one thread, forward and
# backward together: rounded from what `python -m benchmarks sparse-training` measured (docs/performance.md). Only their
# ratios matter.
_DENSE_RATE, _DENSE_CALL = 45_000.0, 40.0
_SPARSE_RATE, _SPARSE_CALL, _LINK_CALL = 20_000.0, 60.0, 30.0  # a link: of a chain of linear layers
_UPDATE = 0.0012  # gradient, Adam and mask
_WORTH = 0.72  # of the dense time: what lies around a sparse layer (pooling, sums, dense layers) has its layout changed
_WORTH_CHAIN = 0.9  # around a chain of linear layers that is its input and its output


@dataclass(frozen=True)
class Choice:
    """How one masked layer is run: `sparse` or not, and `why`. `density`: the share of its weights that is alive."""

    layer: str
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
        sparse = {f"{choice.layer}.weight" for choice in choices if choice.sparse}
        self.masks = Masks({name: mask for name, mask in masks.items() if name not in sparse})

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore(self.model)

    def __bool__(self) -> bool:
        """Whether any layer is run on its live weights alone."""
        return any(choice.sparse for choice in self.choices)

    @property
    def index_bytes(self) -> int:
        """Bytes that say where the live weights are, in all sparse layers."""
        return sum(layer.pattern.nbytes for layer in self.model.modules() if isinstance(layer, SparseLayer))


def accelerate(model: nn.Module, masks: Masks, example_inputs: Mapping[str, Tensor]) -> Accelerated:
    """Swaps each masked layer of `model`, in place, for one of its live weights alone, where that is faster.

    The swapped layers compute what the masked ones do, to rounding, and have gradients, optimiser state and memory
    for live weights only: make the optimiser after this call, from `model.parameters()`. Leaving the context, or
    `restore(model)`, puts the dense layers back, with the trained weights and 0.0 in the pruned places.

    `example_inputs`: component → a batch of the size that is trained on, or run. By their shapes the work of each layer
    is known, and by a table of measured rates which form is faster; so the choice is the same on every machine. A
    layer stays dense where its weights are shared, parametrised or hooked, on a GPU, in half precision, with a
    padding other than zeros, or where the package was installed without a C compiler; all do where the model's code
    cannot run the examples with them, or gives something else. `choices` says why. What sparse layers give is
    strided batch innermost: `reshape` it, where `view` would have joined the batch with another axis.

    Raises `MaskError` where the masks do not fit, or for a component that does not exist.
    """
    masks.check_fits(model)
    check_components(example_inputs, components_of(model))
    if any(isinstance(layer, SparseLayer) for layer in model.modules()):
        raise MaskError("the model is accelerated already: restore(model) first")
    masks.apply_(model)  # before anything passes through it
    work: dict[int, float] = {}
    flat: set[int] = set()
    with _counted(model, work, flat):
        expected = _outputs(model, example_inputs)
    choices = _choose(model, masks, work, flat)
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


def _choose(model: nn.Module, masks: Masks, work: Mapping[int, float], flat: set[int]) -> tuple[Choice, ...]:
    """How each masked layer is best run; `work` and `flat` as `_counted` found them."""
    counts, shared = masks.counts(), _shared(model)
    able: dict[int, _Cost] = {}
    found: list[tuple[int, Choice]] = []
    for name, layer in named_layers(model):
        weight = f"{name}.weight" if name else "weight"
        if weight not in counts:
            continue
        size = layer.weight.numel()  # type: ignore[operator]
        density = counts[weight] / max(1, size)
        why = _cannot(layer, shared)
        if why is None and id(layer) not in work:
            why = "not called as a layer on the example inputs"
        if why is None:
            able[id(layer)] = _Cost(work[id(layer)], size, density)
            why = f"dense is faster at density {density:.2f} and this size"
        found.append((id(layer), Choice(name, density, False, why)))
    faster = _faster(able, _chains(model, able, flat))
    return tuple(
        replace(choice, sparse=True, why="fewer multiplications") if layer in faster else choice
        for layer, choice in found
    )


@dataclass(frozen=True)
class _Cost:
    """A step of training a layer of so many weights, and multiply-adds forward, in microseconds of some machine."""

    work: float
    weights: int
    density: float

    @property
    def dense(self) -> float:
        return _DENSE_CALL + 3 * self.work / _DENSE_RATE + self.weights * _UPDATE

    def sparse(self, call: float) -> float:
        rate = _SPARSE_RATE * threads() / torch.get_num_threads()
        return call + self.density * (3 * self.work / rate + self.weights * _UPDATE)


def _chains(model: nn.Module, able: Mapping[int, _Cost], flat: set[int]) -> Iterator[list[int]]:
    """The linear layers, by id, that would be one step of autograd together: each worth it as a link of a chain."""
    links = {number for number in flat if number in able and able[number].sparse(_LINK_CALL) < able[number].dense}
    for module in model.modules():
        if type(module) is nn.Sequential:
            for run in runs(module, links):
                yield [id(layer) for layer in run]


def _faster(able: Mapping[int, _Cost], chains: Iterable[list[int]]) -> set[int]:
    """The layers that are run faster on their live weights, one by one or as a chain, whose links share a call."""
    faster = {number for number, cost in able.items() if cost.sparse(_SPARSE_CALL) < _WORTH * cost.dense}
    for chain in chains:
        dense = sum(able[number].dense for number in chain)
        sparse = _SPARSE_CALL + sum(able[number].sparse(_LINK_CALL) for number in chain)
        if sparse < _WORTH_CHAIN * dense:
            faster.update(chain)
    return faster


def _cannot(layer: nn.Module, shared: set[int]) -> str | None:
    """Why a layer has no sparse form, None where it has one."""
    weight: Any = getattr(layer, "weight", None)
    if type(layer) not in SPARSE:
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
def _counted(model: nn.Module, work: dict[int, float], flat: set[int]) -> Iterator[None]:
    """Adds to `work`, by layer id, the multiply-adds of what passes through the layers meanwhile.

    Into `flat` come the linear layers, by id, whose outputs were (batch, outputs): those that can be links.
    """

    def count(layer: Any, given: tuple[Any, ...], output: Tensor) -> None:
        side = given[0] if isinstance(layer, nn.ConvTranspose2d) and given else output
        places = output.numel() / layer.out_features if isinstance(layer, nn.Linear) else len(side) * _area(side)
        work[id(layer)] = work.get(id(layer), 0.0) + places * layer.weight.numel()
        if isinstance(layer, nn.Linear) and output.dim() == 2:
            flat.add(id(layer))

    with ExitStack() as stack:
        for layer in model.modules():
            if type(layer) in SPARSE:
                stack.callback(layer.register_forward_hook(count).remove)
        yield


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
    for one, other in zip(found, expected, strict=True):
        scale = float(other.detach().abs().max()) if other.numel() else 0.0
        if one.shape != other.shape or float((one - other).detach().abs().max() if one.numel() else 0.0) > 1e-3 * scale:
            return "the model gives something else with sparse layers"
    return None


# -- swapping ----------------------------------------------------------------------------------------------------------


def _swap_in(model: nn.Module, masks: Masks, choices: tuple[Choice, ...]) -> None:
    """Puts sparse layers in the place of the chosen ones, and beside them what works better there."""
    layers = dict(named_layers(model))
    chosen = {choice.layer: layers[choice.layer] for choice in choices if choice.sparse}
    if not chosen:
        return
    with torch.no_grad():
        _swap(model, {id(layer): SPARSE[type(layer)](layer, masks[f"{name}.weight"]) for name, layer in chosen.items()})
    for one in model.modules():
        if isinstance(one, SparseLayer):
            one.release()
    _swap(model, {id(one): twin for one in model.modules() if (twin := _twin(one)) is not None})


def _twin(module: nn.Module) -> nn.Module | None:
    """What works better beside sparse layers, with all that `module` has; None where nothing does."""
    if type(module) is nn.Sequential and any(isinstance(layer, SparseLinear) for layer in module):
        return SparseSequential(module)
    return LanesNorm(module) if type(module) is nn.BatchNorm2d else None


def _swap(model: nn.Module, by: Mapping[int, nn.Module]) -> None:
    """Puts `by[id(child)]` in the place of each child, wherever it stands; training mode is kept."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in by:
                by[id(child)].train(child.training)
                parent._modules[name] = by[id(child)]

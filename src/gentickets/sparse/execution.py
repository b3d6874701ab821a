"""Running a masked model on its live weights alone, layer by layer, where that is faster and gives the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gentickets.compiled import missing
from gentickets.data.batches import Batch
from gentickets.errors import GenticketsError, MaskError
from gentickets.evaluating import evaluating
from gentickets.masks.effect import check_effect
from gentickets.masks.examples import Example, ExampleInputs, compare, examples_of, named_tensors
from gentickets.masks.names import (
    TRANSPOSED,
    WEIGHT_PLACES,
    Model,
    as_model,
    component_at,
    named_layers,
    named_weights,
)
from gentickets.masks.value import Masks
from gentickets.sparse.beside import STAND_INS, StandIn
from gentickets.sparse.chain import SparseSequential
from gentickets.sparse.costs import Cost, Way, Work, faster
from gentickets.sparse.layers import (
    Connections,
    SparseConv2d,
    SparseConvTranspose2d,
    SparseLayer,
    is_hooked,
    lanes_form,
    wide_form,
)

Choose = Callable[[nn.Module, Mapping[int, Work], Mapping[int, Cost]], Mapping[int, Way]]
"""(model, work of all layers by id, costs of those that can be sparse by id) → those that become so, by id, and in
which of their ways."""


@dataclass(frozen=True)
class Choice:
    """How one masked layer is run: `sparse` or not, and `why`.

    `weight`: the name of its mask; `density`: the share of its weights that is alive; `way`: "lanes" where what passes
    through it lies batch innermost, "wide" where it lies as torch lays it out.
    """

    layer: str
    weight: str
    density: float
    sparse: bool
    why: str
    way: Way | None = None


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

    def __repr__(self) -> str:
        reasons = Counter(choice.why for choice in self.choices if not choice.sparse)
        sparse = len(self.choices) - reasons.total()
        said = f"{sparse} of {len(self.choices)} layers on their live weights"
        if not sparse and reasons:
            said += f": {reasons.most_common(1)[0][0]}"
        return f"Accelerated({type(self.model).__name__}, {said})"

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore(self.model)

    def __bool__(self) -> bool:
        """Whether any layer is run on its live weights alone."""
        return any(choice.sparse for choice in self.choices)

    def laid_out(self, batch: Batch) -> Batch:
        """The same batch of images, in memory as the sparse layers take it: with convolutions batch innermost."""
        if not self._on_lanes:
            return batch
        return lanes(batch) if isinstance(batch, Tensor) else replace(batch, images=lanes(batch.images))

    @property
    def index_bytes(self) -> int:
        """Bytes that say where the live weights are, in all sparse layers."""
        return sum(layer.nbytes for layer in self.model.modules() if isinstance(layer, SparseLayer))


def accelerate(
    model: Model, masks: Masks, example_inputs: ExampleInputs, *, choose: Choose | None = None
) -> Accelerated:
    """Swaps each masked layer of `model`, in place, for one of its live weights alone, where that is faster.

    The swapped layers compute what the masked ones do, to rounding, and have gradients, optimiser state and memory
    for live weights only: make the optimiser after this call, from `model.parameters()`. Leaving the context, or
    `restore(model)`, puts the dense layers back, with the trained weights and 0.0 in the pruned places.

    A sparse layer has its live weights as `values`, one axis long, and no `weight`: to ask for it raises. What decides
    by numbers of axes or by names (an optimiser's groups, a penalty) has to be told which these are: `{layer}.values`
    for each sparse layer in `choices`. `train` sees to it by itself.

    Gradients that the weights have stay where they are: a look in the middle of an accumulated step loses nothing, and
    what is added meanwhile is there afterwards, of live weights.

    `example_inputs`: component → its input (see `examples`) in a batch of the size that is trained on, or run; of a
    model that is one network, the bare input. By their shapes the work of each layer is known, and by a table of
    measured rates which form is faster: in training, or under `torch.no_grad()` and `torch.inference_mode()` forward
    alone. So the choice is the same on every machine; `choose` makes another. It is made for that batch: a model that
    went sparse for a large one may be slower than dense at a much smaller one, as lanes are filled with the batch.

    There are two ways. Batch innermost ("lanes") a convolution, or a linear layer on (batch, inputs), is fastest for
    full batches; what such layers give is strided so: `reshape` it, where `view` would have joined the batch with
    another axis. Images that go in by way of `laid_out` spare the first layer a transposition. On what torch lays out
    ("wide") work convolutions of images and sounds of any batch, and linear layers over tokens of any rank: all where a
    component has group or layer norms or attention between them, which want images as they are.

    A layer stays dense where its weights are shared, hooked, or derived by other than a spectral or weight norm along
    the first axis, on a GPU, in half precision, with a padding other than zeros, or where the package was installed
    without a C compiler; all do where the model's code cannot run the examples with them, gives something else, or
    gives no real numbers by which to tell. `choices` says why. A network that is given bare stays the same module, and
    so do the networks of a dict; their layers are swapped, but a lone layer is not.

    Raises `MaskError` where the masks do not fit, for a component that does not exist, and for a pruned weight of which
    some module makes another one, in which zeros end.
    """
    fixed = {id(model), *(map(id, model.values()) if isinstance(model, Mapping) else ())}  # in the caller's own hands
    model = as_model(model)
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    masks.check_fits(model)
    examples = examples_of(model, example_inputs)
    if any(isinstance(layer, SparseLayer) for layer in model.modules()):
        raise MaskError("the model is accelerated already: restore(model) first")
    gradients = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):  # what is made here outlasts the mode
        masks.apply_(model)  # before anything passes through it
        expected, work = _watched(model, examples, gradients)
        others = [weight for _, layer, weight, _ in _masked_layers(model, masks) if id(layer) not in work]
        check_effect(model, [name for name in others if not masks[name].all()], example_inputs)
        choices = _choose(model, masks, work, fixed, gradients, choose or faster)
        try:
            _swap_in(model, masks, choices)
            reason = _differs(model, examples, expected, gradients) if any(c.sparse for c in choices) else None
        except BaseException:
            restore(model)
            raise
        if reason is not None:
            restore(model)
            choices = tuple(replace(c, sparse=False, why=reason) if c.sparse else c for c in choices)
    return Accelerated(model, masks, choices)


def restore(model: Model) -> nn.Module:
    """Puts dense layers back in the place of all sparse ones, in place; for copies and averages of a model too.

    Returns the model: another module only where `model` is itself a layer or a sequence that was swapped.
    """
    model = as_model(model)
    with torch.inference_mode(False):
        for kind in (StandIn, SparseLayer):  # first what holds the others
            _swap(model, {id(one): one.dense() for one in model.modules() if isinstance(one, kind)})
        return model.dense() if isinstance(model, StandIn | SparseLayer) else model


def lanes(images: Tensor) -> Tensor:
    """The same batch, laid out in memory as sparse layers keep it (batch innermost): spares them a transposition."""
    order = (*range(1, images.dim()), 0)
    return images.permute(order).contiguous().permute(images.dim() - 1, *range(images.dim() - 1))


# -- choosing ----------------------------------------------------------------------------------------------------------


def _choose(
    model: nn.Module, masks: Masks, work: Mapping[int, Work], fixed: set[int], gradients: bool, choose: Choose
) -> tuple[Choice, ...]:
    """How each masked layer is best run; `work`: what each was seen to do, by id; `fixed`: who is not to be swapped."""
    counts, shared = masks.counts(), _shared(model)
    costs: dict[int, Cost] = {}
    found: list[tuple[int, Choice]] = []
    for name, layer, weight, parameter in _masked_layers(model, masks):
        density = counts[weight] / max(1, parameter.numel())
        why = _cannot(layer, parameter, shared)
        if why is None and id(layer) in fixed:
            why = "it is the network itself, which is not swapped in place"
        if why is None and id(layer) not in work:
            why = "not called as a layer on the example inputs"
        if why is None:
            done = work[id(layer)]
            ways, normed = _ways(layer, done), weight.rpartition(".")[2] != "weight"
            costs[id(layer)] = Cost(done, parameter.numel(), density, gradients, ways, normed)
            batch, purpose = done.batch, "in training" if gradients else "without gradients"
            why = f"dense is faster at density {density:.2f} and a batch of {batch}, {purpose}"
        found.append((id(layer), Choice(name, weight, density, False, why)))
    chosen = choose(model, work, costs)
    if not isinstance(chosen, Mapping):
        raise GenticketsError(f"choose gave a {type(chosen).__name__}: give {{id(layer): 'lanes' or 'wide'}}")
    return tuple(
        replace(choice, sparse=True, why="fewer multiplications", way=chosen[layer]) if layer in chosen else choice
        for layer, choice in found
    )


def _masked_layers(model: nn.Module, masks: Masks) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Each layer whose weight, as it is or under a norm, has a mask: both names, and what they name."""
    weights = named_weights(model)
    for name, layer in named_layers(model):
        for place in WEIGHT_PLACES:
            if (weight := f"{name}.{place}" if name else place) in masks:
                yield name, layer, weight, weights[weight]


def _ways(layer: nn.Module, work: Work) -> tuple[Way, ...]:
    """In which ways a layer can be run on its live weights: batch innermost a linear one on (batch, inputs) alone, and
    a convolution in components where nothing between them wants images otherwise."""
    form = lanes_form(layer)
    if form is not None and issubclass(form, Connections):
        return ("lanes",) if work.flat else ("wide",)
    return ("wide",) if work.as_torch_lays_out or form is None else ("lanes", "wide")


def _cannot(layer: nn.Module, weight: Any, shared: set[int]) -> str | None:
    """Why a layer has no sparse form, None where it has one."""
    if wide_form(layer) is None:
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


def _watched(
    model: nn.Module, examples: Mapping[str, Example], gradients: bool
) -> tuple[dict[str, dict[str, Tensor]], dict[int, Work]]:
    """What the components give for their examples, and the work of their layers, by id."""
    expected: dict[str, dict[str, Tensor]] = {}
    with _counted(model) as work:
        for name, example in examples.items():
            with _TorchsOwn() as watch:
                expected |= _outputs(model, {name: example}, gradients)
            for layer in component_at(model, name).modules() if watch.seen else ():
                if id(layer) in work:
                    work[id(layer)].as_torch_lays_out = True
    return expected, work


@contextmanager
def _counted(model: nn.Module) -> Iterator[dict[int, Work]]:
    """The work of each layer, by id, as batches pass through them meanwhile."""
    found: dict[int, Work] = defaultdict(Work)

    def count(noted: Any, layer: Any, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        noted(found[id(layer)], layer, given[0] if given else next(iter(named.values())), output)

    with ExitStack() as stack:
        for layer in model.modules():
            if (form := wide_form(layer)) is not None:
                noting = partial(count, _count_tokens if issubclass(form, Connections) else _count_images)
                stack.callback(layer.register_forward_hook(noting, with_kwargs=True).remove)
        yield found


def _count_tokens(work: Work, layer: Any, given: Tensor, output: Tensor) -> None:
    batch = output.numel() // max(1, output.shape[-1])
    work.add(batch * layer.weight.numel(), batch, output.dtype)
    work.inputs += given.numel()
    if output.dim() != 2:
        work.flat = False
        work.add_wide(batch * layer.weight.numel(), batch, output.dtype)
        work.turned += given.numel() + output.numel()


def _count_images(work: Work, layer: Any, given: Tensor, output: Tensor) -> None:
    small, big = (given, output) if isinstance(layer, TRANSPOSED) else (output, given)
    multiply_adds = len(small) * small.shape[2:].numel() * layer.weight.numel()
    work.flat = False
    work.add(multiply_adds, len(small), output.dtype)
    work.inputs += given.numel()
    alone = layer.weight.shape[2:].numel() == max(layer.stride) == 1 and not any(layer.padding)
    work.add_wide(multiply_adds, small.shape[2:].numel() if alone else small.shape[-1], output.dtype)
    # Zeros are put around it, and its columns are sorted by their phase in a stride; all is read and written anyhow.
    moved = small.numel() + big.numel() * (1 if layer.stride[-1] == 1 else 3)
    work.moved += moved // 2 if alone else moved


class _TorchsOwn(TorchFunctionMode):
    """Notes operations of torch's own that are slow, or lay their result out anew, where batches are innermost."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or func in _AS_TORCH_LAYS_OUT
        return func(*args, **(kwargs or {}))


_AS_TORCH_LAYS_OUT = frozenset({
    F.group_norm, F.layer_norm, F.instance_norm, F.rms_norm, F.scaled_dot_product_attention,
    F.multi_head_attention_forward, torch.bmm, torch.matmul, torch.Tensor.matmul, torch.einsum,
})  # fmt: skip


# -- trying ------------------------------------------------------------------------------------------------------------


def _outputs(model: nn.Module, examples: Mapping[str, Example], gradients: bool) -> dict[str, dict[str, Tensor]]:
    """All tensors that each component gives for its example, in evaluation mode, with chance as it always falls."""
    found = {}
    with evaluating(model), torch.set_grad_enabled(gradients):
        for name, example in examples.items():
            torch.random.default_generator.manual_seed(0)
            found[name] = dict(named_tensors(example(component_at(model, name)), name))
    return found


def _differs(
    model: nn.Module, examples: Mapping[str, Example], expected: Mapping[str, Mapping[str, Tensor]], gradients: bool
) -> str | None:
    """Why the model with its sparse layers is not what it was, in words: it fails, or gives something else, or nothing
    by which to tell."""
    try:
        found = _outputs(model, examples, gradients)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        leaves = [leaf for given in found.values() for leaf in given.values() if leaf.requires_grad]
        total = sum(leaf.abs().float().sum() for leaf in leaves)
        if weights and isinstance(total, Tensor):
            torch.autograd.grad(total, weights, allow_unused=True)
    except Exception as error:  # whatever the model's own code makes of layers that are not what it thinks
        first = next(iter(str(error).splitlines()), "")
        return f"the model does not run with sparse layers: {type(error).__name__}: {first}"
    for name, given in expected.items():
        alike = compare(*_scaled(given, found[name]), allowed=lambda _: 1e-3)
        if not alike.numbers and alike.worst <= 1:
            part = f"component {name!r}" if name else "the model"
            return f"{part} gives no real numbers for its example, by which to tell whether it stays the same"
        if not alike.equal:
            return "the model gives something else with sparse layers"
    return None


def _scaled(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both, each tensor by the largest number that was expected of it, so that small ones are compared as closely."""
    scales = {}
    for path, tensor in expected.items():
        finite = tensor.detach()[torch.isfinite(tensor)].abs() if tensor.is_floating_point() else tensor.new_empty(0)
        scales[path] = float(finite.max()) or 1.0 if finite.numel() else None

    def by(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scaled = ((path, tensor, scales.get(path)) for path, tensor in tensors.items())
        return {path: tensor if scale is None else tensor.detach() / scale for path, tensor, scale in scaled}

    return by(expected), by(found)


# -- swapping ----------------------------------------------------------------------------------------------------------


def _swap_in(model: nn.Module, masks: Masks, choices: tuple[Choice, ...]) -> None:
    """Puts sparse layers in the place of the chosen ones, and beside them what works better there."""
    chosen = {choice.weight: choice.way for choice in choices if choice.sparse}
    if not chosen:
        return
    forms = {"lanes": lanes_form, "wide": wide_form}
    with torch.no_grad():
        _swap(model, {
            id(layer): form(layer, masks[weight]) for _, layer, weight, _ in _masked_layers(model, masks)
            if (way := chosen.get(weight)) is not None and (form := forms[way](layer)) is not None
        })  # fmt: skip
    for one in model.modules():
        if isinstance(one, SparseLayer):
            one.release()
    _swap(model, {id(one): twin for one in model.modules() if (twin := _twin(one)) is not None})


def _twin(module: nn.Module) -> nn.Module | None:
    """What works better beside sparse layers, with all that `module` has; None where nothing does."""
    if type(module) is nn.Sequential and any(isinstance(layer, Connections) for layer in module):
        return SparseSequential(module)
    stand_in = STAND_INS.get(type(module))
    return None if stand_in is None else stand_in(module)


def _swap(model: nn.Module, by: Mapping[int, nn.Module]) -> None:
    """Puts `by[id(child)]` in the place of each child, wherever it stands."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in by:
                parent._modules[name] = by[id(child)]

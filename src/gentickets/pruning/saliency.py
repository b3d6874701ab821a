"""Criteria that ask derivatives, for pruning before training: SNIP, GraSP and SynFlow. Higher means: keep.

All three leave the model as it was, with its gradients, statistics and mode, and the global random state: they
work on copies. SNIP and GraSP copy it anew for every batch, so that the scores of several batches are of the
weights as given, whatever an objective does to a model between its losses (a Wasserstein critic is clipped: the
later losses of the same batch see it clipped, as they do in training). The copies are in training mode, with the
statistics of the batch in batch norm, as in the originals.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from gentickets.data.batches import Batch, Labelled
from gentickets.errors import MaskError, PruneError
from gentickets.masks.examples import WHOLE, Example, ExampleInputs, examples_of, named_tensors
from gentickets.masks.flow import Linear, running, titled
from gentickets.masks.layers import prunable_weights
from gentickets.masks.liveness import strip_weight_norms
from gentickets.masks.modes import functions_as_written
from gentickets.masks.names import (
    PRUNABLE,
    WEIGHT_PLACES,
    Model,
    as_model,
    as_names,
    check_components,
    clone,
    component_at,
    component_of,
    components_of,
    is_in,
    joined,
    named_layers,
    named_weights,
    unwrap,
)
from gentickets.masks.value import Masks
from gentickets.objectives.base import Objective
from gentickets.pruning.gradual import NOTHING_TO_CHOOSE_BY, prune_gradually
from gentickets.pruning.prune import Scope
from gentickets.pruning.scores import Scores

Derivative = Callable[[Tensor, Mapping[str, Tensor]], Sequence[Tensor]]
"""From a loss and the weights that it trains, by name, to one tensor for each of them."""


# -- gradients of an objective ----------------------------------------------------------------------------------


def snip(
    model: Model,
    objective: Objective,
    batches: Iterable[Batch],
    *,
    seed: int = 0,
    components: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> Scores:
    """Connection sensitivity |w · dL/dw|: how fast the loss changes with a factor on w (Lee et al. 2019, Sec. 4.1).

    L is, for each weight, the sum of those losses that train its component, over all batches: the gradients are
    summed first, then comes the absolute value. A weight that no loss reaches scores 0, and a whole tensor of such is
    warned of. The scores of all
    components stand as they are, not scaled to each other: where the losses differ in size, a scope of "component"
    compares like with like.

    `batches`: images as one training step takes them (`objective.batches_per_step` batches in one tensor; `Labelled`
    where the objective wants labels). The
    objective is taken as it stands: give `objective.at(0)` for one that warms up. `seed` draws its noise, and
    dropout's. `components`, `include` and `exclude` choose the weights as in `prunable_weights`.

    Raises `PruneError` without a batch, and where every weight scores 0, as behind a last layer of zeros; `MaskError`
    for a component that the model does not have.
    """
    model = as_model(model)
    chosen = prunable_weights(model, components, include, exclude)
    total = _over_losses(_gradient, model, objective, batches, chosen, seed)
    scores = {name: (weight.detach() * total[name]).abs() for name, weight in chosen.items()}
    if not any(score.any() for score in scores.values()):
        raise PruneError(f"snip: {NOTHING_TO_CHOOSE_BY}")
    if silent := [name for name, gradient in total.items() if not gradient.any()]:
        more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
        warnings.warn(
            f"snip: no loss has a gradient by {silent[0]!r}{more}: all of it scores 0 and goes first (unused, behind a "
            f"quantiser, or before weights that start from 0); exclude= leaves it out",
            stacklevel=2,
        )
    return Scores(scores, model)


def grasp(
    model: Model,
    objective: Objective,
    batches: Iterable[Batch],
    *,
    seed: int = 0,
    components: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> Scores:
    """What the gradient's norm would lose without the weight: w · (H g) (Wang et al. 2020, Sec. 4).

    The paper scores S(-w) = -w · (H g), to first order half of what g · g gains when w goes, and removes the
    *highest*. The score here is -S, so that higher means keep, as everywhere; it has both signs.

    g is the gradient of the scored weights, summed over the losses that train them and over all batches; H is the
    Hessian of each loss within the weights that it trains, also summed. The temperature of the paper's classifiers
    is left out. Arguments and errors as in `snip`. The batches are gone through twice, first for g; one batch is gone
    through once where no two of its losses train the same weight, so that each loss has all of its g in itself.
    """
    model = as_model(model)
    batches = batches if isinstance(batches, Tensor) else list(batches)
    chosen = prunable_weights(model, components, include, exclude)
    product: Mapping[str, Tensor] | None = None
    if isinstance(batches, list) and len(batches) == 1:
        with suppress(_SharedWeight):
            product = _over_losses(_OwnHessianTimesGradient(), model, objective, batches, chosen, seed)
    if product is None:
        gradient = _over_losses(_gradient, model, objective, batches, chosen, seed)
        product = _over_losses(partial(_hessian_times, gradient), model, objective, batches, chosen, seed)
    return Scores({name: weight.detach() * product[name] for name, weight in chosen.items()}, model)


def _gradient(loss: Tensor, own: Mapping[str, Tensor]) -> Sequence[Tensor]:
    return torch.autograd.grad(loss, list(own.values()), materialize_grads=True)


class _SharedWeight(Exception):
    """Two losses train one weight: its gradient is a sum over losses, to be had by a pass of its own."""


class _OwnHessianTimesGradient:
    """H g of losses that share no weight. Raises `_SharedWeight` at the first that does."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, loss: Tensor, own: Mapping[str, Tensor]) -> Sequence[Tensor]:
        if not self.seen.isdisjoint(own):
            raise _SharedWeight
        self.seen.update(own)
        return _hessian_times(None, loss, own)


def _hessian_times(vector: Mapping[str, Tensor] | None, loss: Tensor, own: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """H v, the Hessian taken within `own`; v is the gradient of this loss where none is given."""
    weights = list(own.values())
    slopes = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    vectors = [slope.detach() for slope in slopes] if vector is None else [vector[name] for name in own]
    along = torch.stack([(slope * other).sum() for slope, other in zip(slopes, vectors, strict=True)]).sum()
    if not along.requires_grad:  # a loss that is linear in all of them
        return [torch.zeros_like(weight) for weight in weights]
    return torch.autograd.grad(along, weights, materialize_grads=True)


def _over_losses(
    derivative: Derivative,
    model: nn.Module,
    objective: Objective,
    batches: Iterable[Batch],
    chosen: Mapping[str, Tensor],
    seed: int,
) -> dict[str, Tensor]:
    """Name → the sum of `derivative` over all losses of all batches, each only into the components it trains."""
    if not (hasattr(objective, "components") and hasattr(objective, "losses")):
        raise PruneError(f"objective= is a {type(objective).__name__}: give an Objective, with components and losses")
    check_components(objective.components, components_of(model))
    if isinstance(batches, Tensor):
        raise PruneError("batches= is one tensor: give a list of batches, such as [images]")
    total = {name: torch.zeros_like(weight) for name, weight in chosen.items()}
    device = next(iter(chosen.values())).device
    batch: Batch | None = None
    # Attention written out: the fused kernels have no second derivative.
    with _random_state(device, seed), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        rng = torch.Generator(device).manual_seed(seed)
        for batch in batches:
            if not isinstance(batch, Tensor | Labelled):
                raise PruneError(f"batches= holds a {type(batch).__name__}: each is one tensor of images")
            copy = _mended(clone(model).train())
            weights = named_weights(copy)
            scored = {name: weights[name].requires_grad_() for name in chosen}
            # As in training each loss is done with before the next is asked for, but nothing is stepped.
            for trained, loss in objective.losses(copy, batch.to(device), rng):
                own = _trained_by(trained, copy, scored)
                if own and loss.requires_grad:
                    for name, part in zip(own, derivative(loss, own), strict=True):
                        total[name] += part
    if batch is None:
        raise PruneError("batches= holds no batch: this criterion needs the gradient of at least one")
    return total


def _mended(model: nn.Module) -> nn.Module:
    """Weight norm written out: the second derivative of torch's fused one is wrong (2.13: fails gradgradcheck)."""

    def written_out(magnitude: Tensor, direction: Tensor, dim: int) -> Tensor:
        return direction * (magnitude / torch.norm_except_dim(direction, 2, dim))

    for layer in model.modules():
        if isinstance(layer, _WeightNorm):
            layer.forward = partial(written_out, dim=layer.dim)  # type: ignore[method-assign]
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                under = (getattr(layer, f"{hook.name}_g"), getattr(layer, f"{hook.name}_v"))
                hook.compute_weight = lambda _, under=under, dim=hook.dim: written_out(*under, dim)  # type: ignore
    return model


def _trained_by(trained: str | tuple[str, ...], model: nn.Module, scored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the scored weights that lie in these components: by identity, since components may share weights."""
    mine = {id(weight) for name in as_names(trained) for weight in getattr(unwrap(model), name).parameters()}
    return {name: weight for name, weight in scored.items() if id(weight) in mine}


@contextmanager
def _random_state(device: torch.device, seed: int) -> Iterator[None]:
    """The global random state of the CPU and of `device` as from `seed`, and afterwards as it was."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.random.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


# -- synaptic flow ----------------------------------------------------------------------------------------------


def synflow(
    model: Model,
    example_inputs: ExampleInputs,
    *,
    relative: bool = False,
    components: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> Scores:
    """Synaptic flow |w · dR/dw|: the weight's part in all paths from input to output (Tanaka et al. 2020, Sec. 6).

    R is the sum of a component's outputs for an input of ones, with |w| for every weight: it needs no data and no
    loss. Computed for each component by itself, in float64 on the CPU, on a copy that is made linear and positive, so
    that no two paths cancel: activations pass their input on, what is subtracted is added, biases are 0 (the authors'
    code keeps them; here a path begins at the input), a norm is left with its gain alone, |gain| times its input, and
    attention is q · kᵀ · v with rows of sum 1 (see `flow.Linear`). Weights under spectral norm count as they are,
    before it. No score is negative.

    R differs between components by orders of magnitude. `relative=True` divides each component's scores by its R,
    so that a layer's scores sum to about 1 in all of them and a global comparison across components makes sense.

    One pass is not yet the method: `synflow_masks` has the schedule that keeps layers from collapsing.

    `example_inputs`: component → what it takes, a tensor, a tuple or a dict of keywords (one of the batch is used; of
    real numbers the values do not matter, whole numbers are taken as they are); for a model that is one network, the
    bare input. `components` (default: those of `example_inputs`), `include` and `exclude` as in `prunable_weights`.

    Raises `MaskError` for an unknown component; `PruneError` for one that is scored and has no input, where R is not
    finite, for an operation that has no form without a sign, and for a layer that runs and that no flow passes though
    its weights are not 0: behind a quantiser or a step, say, it cannot be scored so.
    """
    examples = examples_of(model, example_inputs)
    model = as_model(model)
    if components is None and WHOLE not in examples:
        components = tuple(examples)
    chosen = prunable_weights(model, components, include, exclude)
    return _synflow(model, examples, chosen, relative)


def synflow_masks(
    model: Model,
    example_inputs: ExampleInputs,
    to_sparsity: float,
    *,
    iterations: int = 100,
    within: Masks | None = None,
    scope: Scope = "global",
) -> Masks:
    """SynFlow as published: pruned in 100 exponential steps, scored anew at each (Tanaka et al. 2020, Algorithm 1).

    Components are compared by their relative flow (see `synflow`). `within`, `scope` and the exact count as in
    `prune`; without `within`, all prunable weights of the components in `example_inputs`.
    """
    examples = examples_of(model, example_inputs)
    model = as_model(model)
    within = Masks.dense(model, None if WHOLE in examples else tuple(examples)) if within is None else within
    score = synflow_score(example_inputs)
    return prune_gradually(model, score, to_sparsity, iterations=iterations, within=within, scope=scope)


def synflow_score(example_inputs: ExampleInputs) -> Callable[[nn.Module, Masks], Scores]:
    """Relative synaptic flow of the masked weights as a criterion, for `prune_gradually` and `at_init`."""

    def score(model: nn.Module, masks: Masks) -> Scores:
        weights = named_weights(model)
        if strange := [name for name in masks if name not in weights]:
            raise MaskError(f"no parameter {strange[0]!r} in the model that the masks are for")
        chosen = {name: weights[name] for name in masks}
        return _synflow(model, examples_of(model, example_inputs), chosen, relative=True)

    return score


def _synflow(model: nn.Module, examples: Mapping[str, Example], chosen: Mapping[str, Tensor], relative: bool) -> Scores:
    """The scores of the weights chosen."""
    scores: dict[str, Tensor] = {}
    whole = WHOLE in examples
    for component in dict.fromkeys(WHOLE if whole else component_of(name) for name in chosen):
        if component not in examples:
            raise PruneError(f"example_inputs= has no input for component {component!r}; leave it out of components=")
        names = [name for name in chosen if is_in(component, name)]
        net, example = component_at(model, component), examples[component]
        with running(net, example, component, PruneError, "cannot be scored by synflow"):
            scores |= _flow_through(net, component, example, names, relative)
    return Scores({name: scores[name].to(weight.device) for name, weight in chosen.items()}, model)


def _flow_through(
    net: nn.Module, component: str, example: Example, names: Sequence[str], relative: bool
) -> dict[str, Tensor]:
    """The scores of one component's weights of these names, in float64 on the CPU."""
    copy, weights, biases = _positive_copy(net, component)
    leaves = [weights[name] for name in names]
    flow, slopes, ran = _slopes_of_flow(copy, component, example, leaves)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (flow, *slopes)):
        raise PruneError(f"the synaptic flow of {titled(component)} is not finite: its weights are too large")
    unit = float(flow) if relative and flow != 0 else 1.0
    scores = {name: leaf.detach() * slope / unit for name, leaf, slope in zip(names, leaves, slopes, strict=True)}
    for name, score in scores.items():
        # Rounding may leave a trace of what cancels exactly.
        if bool((score < -1e-9 * score.abs().max()).any()):
            raise PruneError(
                f"synflow cannot score {name!r}: part of the flow through it is negative, by something that subtracts "
                f"and is not known here; leave it out with exclude=, or score by magnitude, snip or grasp"
            )
    silent = [name for name, leaf in zip(names, leaves, strict=True) if not scores[name].any() and leaf.any()]
    if silent := [name for name in silent if id(weights[name]) in ran]:
        # Dead weights before it or behind it may be why. With those alive, what is silent still cannot be scored.
        with torch.no_grad():
            for weight in {id(weight): weight for weight in weights.values() if id(weight) not in biases}.values():
                weight.masked_fill_(weight == 0, float(weight.max()) or 1.0)
        _, slopes, _ = _slopes_of_flow(copy, component, example, [weights[name] for name in silent])
        for name, slope in zip(silent, slopes, strict=True):
            if not slope.any():
                raise PruneError(
                    f"synflow cannot score {name!r}: its layer runs and its weights are not 0, but nothing of it flows "
                    f"to the output (a quantiser, a step or a detached tensor in between, or unused); leave it out "
                    f"with exclude=, or score by magnitude or snip"
                )
    return {name: score.clamp_(min=0.0) for name, score in scores.items()}


def _slopes_of_flow(
    copy: nn.Module, component: str, example: Example, leaves: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor], set[int]]:
    """R, its derivative by each of the leaves, and the identities of the parameters of layers that ran."""
    ran: set[int] = set()

    def note(layer: nn.Module, *_: object) -> None:
        ran.update(id(weight) for weight in layer._parameters.values() if weight is not None)

    layers = [layer for layer in copy.modules() if not isinstance(layer, torch.jit.ScriptModule)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]

    def ones(tensor: Tensor) -> Tensor:
        return torch.ones_like(tensor).requires_grad_().clone() if tensor.is_floating_point() else tensor

    def run(example: Example) -> list[Tensor]:
        torch.random.default_generator.manual_seed(0)
        inputs = example.to("cpu", torch.float64).map(ones)
        with functions_as_written(), Linear(component):
            return [tensor for _, tensor in named_tensors(inputs(copy)) if tensor.is_floating_point()]

    with _random_state(torch.device("cpu"), 0), torch.enable_grad():
        try:
            given = run(example.first(1))
        except RuntimeError:  # the first axis is no batch: of a vector by itself, say
            if example.batch == 1:
                raise
            given = run(example)
        if not given:
            raise PruneError(f"{titled(component)} gives no tensor of real numbers: synflow has nothing to follow")
        flow = torch.stack([tensor.sum() for tensor in given]).sum()
        slopes: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in leaves]
        if flow.requires_grad and torch.isfinite(flow):
            slopes = torch.autograd.grad(flow, leaves, materialize_grads=True)
    for hook in hooks:
        hook.remove()
    return flow.detach(), slopes, ran


@torch.no_grad()
def _positive_copy(net: nn.Module, component: str) -> tuple[nn.Module, dict[str, Tensor], set[int]]:
    """A float64 copy of a component with |w| for w, its weights by the names that they have in `net`, and which of
    them are biases that are 0."""
    copy = clone(unwrap(net)).cpu().double().eval()
    weights: dict[str, Tensor] = {joined(component, name): weight for name, weight in named_weights(copy).items()}
    biases: set[int] = set()
    for name, layer in list(named_layers(copy, component)):
        if isinstance(layer, PRUNABLE):
            place = next((place for place in WEIGHT_PLACES if joined(name, place) in weights), "weight")
            if place != "weight":  # take the norm off, and put what lay under it in its place
                under = weights[joined(name, place)]
                strip_weight_norms(layer)
                weights[joined(name, place)] = layer.weight
                layer.weight.copy_(under)
            if layer.bias is not None:
                layer.bias.zero_()
                biases.add(id(layer.bias))
        for key, child in list(layer._modules.items()):
            if child is not None and unwrap(child) is not child:
                setattr(layer, key, unwrap(child))  # no compiled code: it is followed operation by operation
    for weight in copy.parameters():
        weight.abs_()
    for leaf in weights.values():
        leaf.requires_grad_()
    return copy, weights, biases

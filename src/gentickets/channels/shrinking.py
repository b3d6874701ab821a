"""A masked network → a physically smaller one that computes the same.

The masks decide which channels go (see `removal`), not the values of weights: what is not pruned stays, whatever it
holds (a branch that starts from zero is not a dead one). The result is compared with the masked network before it is
handed out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.channels.cutting import cut
from gentickets.channels.graph import ChannelGraph, layers_of
from gentickets.channels.labels import trace
from gentickets.channels.layers import Slices, sliced
from gentickets.channels.removal import Read, Reads, Removal
from gentickets.channels.trial import goes_along
from gentickets.errors import GenticketsError
from gentickets.masks.examples import Call, Comparison, Example, compare, examples_of, nothing_to_compare, outputs
from gentickets.masks.names import (
    Model,
    clone,
    component_at,
    is_in,
    joined,
    named_layers,
    named_weights,
    unwrap,
)
from gentickets.masks.state import goes_with_weights, is_doubtful, tensors_of_state
from gentickets.masks.value import Masks


class Shrinking:
    """What `shrink` does, with all that one may need of it.

    `model` is the smaller network, on the device that the larger one is on, `masks` are the masks that are left to
    hold it to, `removed` counts the channels that went, by component, `slices` says which part of each old tensor
    the new one is, where it is not all of it, `compared` how many numbers were compared, by component, `mended` what
    code reads off its modules and had to follow: "blocks.0.attention.num_heads" → (before, now), and `folded` how many
    numbers of a bias took up what pruned channels hold whatever the input.
    """

    def __init__(self, model: Model, masks: Masks, example_inputs: Any):
        model = unwrap(model)
        masks = masks if isinstance(masks, Masks) else Masks(masks)
        device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        # Which channels go is worked out on the CPU: it is bookkeeping, and the comparison is exact to rounding there.
        masked = _moved(masks.apply_(clone(model)), "cpu")
        examples = {name: example.to("cpu") for name, example in examples_of(model, example_inputs).items()}
        filled, zeros = _filled(masked, masks, examples)
        small = clone(filled) if filled is not None else None
        self.model, self.masks = clone(masked), masks
        self.slices: dict[str, Slices] = {}
        self.removed: dict[str, int] = {}
        self.folded: dict[str, int] = {}
        self.mended: dict[str, tuple[int, int]] = {}
        calls: dict[str, list[Call]] = {}
        again: list[str] = []
        for component, example in examples.items():
            graph = trace(masked, component, example)
            reads = Reads(graph, example, component_at(filled, component) if component in zeros else None)  # type: ignore[arg-type]
            plan = _plan(graph, masks, reads, example)
            self.removed[component] = len(plan.gone)
            _tell_uncalled(graph, plan)
            _tell_what_folds_hang_on(graph, plan)
            slices, folded = _cut(self.model, graph, plan, reads.masked)
            self.slices |= slices
            self.folded |= {name: many for name, constant in folded.items() if (many := int(constant.count_nonzero()))}
            self.mended |= _mended(masked, self.model, graph)
            self._revive(folded)
            calls[component] = [Call("", example), *reads.calls]
            if reads.once_filled is not None:
                _cut(small, graph, plan, reads.filled)  # type: ignore[arg-type]
                again.append(component)
        self.masks = Masks({name: sliced(mask, self.slices.get(name, {})) for name, mask in self.masks.items()})
        self.compared = {name: _check_equal(masked, self.model, name, calls[name]) for name in examples}
        for name in again:  # behind zeros any two networks are equal
            _check_equal(filled, small, name, calls[name][:2], f" once {zeros[name]} is no longer zero")  # type: ignore[arg-type]
        _moved(self.model, device)

    def _revive(self, folded: Mapping[str, Tensor]) -> None:
        """A pruned bias that a constant was folded into is alive: it holds what pruned weights did not lead to."""
        for name, constant in folded.items():
            if name in self.masks:
                self.masks = self.masks.replace({name: self.masks[name] | constant.ne(0)})

    def carry_state(self, old: torch.optim.Optimizer, new: torch.optim.Optimizer, old_model: Model) -> None:
        """Gives `new`, an optimiser over the smaller network, the state that `old` has for the larger one.

        State tensors of a weight's shape are sliced as the weight was; single numbers are copied. Raises
        `GenticketsError` where the state of a weight that was cut has another shape than the weight (Adafactor's
        row and column means), and where that of a square one has its shape without being a number for each weight, or
        nothing tells whether it is (Shampoo's sums over rows): there is no saying which part of it belongs to what is
        left.
        """
        names = {id(weight): name for name, weight in named_weights(old_model).items()}
        targets = named_weights(self.model)
        held = {id(p): p for group in new.param_groups for p in group["params"]}
        for weight, entry in old.state.items():
            name = names.get(id(weight))
            if name in targets and id(targets[name]) in held:
                slices = self.slices.get(name, {})
                for key, value in entry.items():
                    if slices and not _follows(value, weight):
                        raise GenticketsError(
                            f"{type(old).__name__} keeps {key!r} of {name!r} in another shape than that of the weight, "
                            f"which was cut: leave carry_state out and let the smaller network's optimiser start anew"
                        )
                    doubtful = slices and is_doubtful(weight)
                    kept = [place for place, of in tensors_of_state(value, (key,)) if of.shape == weight.shape]
                    if doubtful and not all(goes_with_weights(old, place, weight) for place in kept):
                        raise GenticketsError(
                            f"{type(old).__name__} keeps {key!r} of {name!r}, which was cut, in the shape of that "
                            f"square weight, but may not keep a number for each weight in it: leave carry_state out "
                            f"and let the smaller network's optimiser start anew"
                        )
                new.state[targets[name]] = {key: _carried(value, weight, slices) for key, value in entry.items()}
        if any(weight.device != target.device for weight in old.state for target in held.values()):
            new.load_state_dict(new.state_dict())  # torch moves each part of it to where this optimiser wants it


def _mended(before: nn.Module, now: nn.Module, graph: ChannelGraph) -> dict[str, tuple[int, int]]:
    """What code was found to read off the modules of a component, where it is another now."""
    found = {}
    for mend in graph.mends:
        modules = (component_at(net, graph.component).get_submodule(mend.module) for net in (before, now))
        was, is_now = (getattr(module, mend.attribute) for module in modules)
        if was != is_now:
            found[joined(joined(graph.component, mend.module), mend.attribute)] = (was, is_now)
    return found


def _filled(masked: nn.Module, masks: Masks, components: Iterable[str]) -> tuple[nn.Module | None, dict[str, str]]:
    """A copy with random numbers in the parameters of some components that are all zero, as far as they are not pruned,
    and one of their names by component; None where there are none."""
    filled, generator = clone(masked), torch.Generator().manual_seed(1)
    names: dict[str, str] = {}
    with torch.no_grad():
        for name, weight in named_weights(filled).items():
            component = next((one for one in components if is_in(one, name)), None)
            real = weight.is_floating_point() and weight.numel() > 0
            if component is None or not real or bool(weight.any()) or (name in masks and not masks[name].any()):
                continue
            scale = max(1.0, weight.numel() / len(weight) if weight.dim() else 1.0) ** -0.5
            numbers = scale * torch.randn(weight.shape, generator=generator)
            weight.copy_(numbers * masks[name] if name in masks else numbers)
            names[component] = name
    return (filled, names) if names else (None, names)


def _plan(graph: ChannelGraph, masks: Masks, reads: Reads, example: Example) -> Removal:
    """Which channels go. Those that the code turns out not to do without stay, which is told."""
    plan = wanted = Removal(graph, masks, reads)
    while not goes_along(graph, example, plan.gone):
        plan = Removal(graph, masks, reads)
    if stay := len(wanted.gone) - len(plan.gone):
        why = next((why for group, why in graph.fixed.items() if group in wanted.gone), "its code")
        warnings.warn(
            f"component {graph.component!r}: {stay} channels that the masks prune stay: its code does something else "
            f"without them, at {why}",
            stacklevel=4,
        )
    return plan


def _tell_what_folds_hang_on(graph: ChannelGraph, plan: Removal) -> None:
    """What the comparison cannot show: a constant is one as long as the numbers are that code reads off its modules."""
    if names := plan.hangs_on():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warnings.warn(
            f"component {graph.component!r}: what pruned channels hold was folded into biases with "
            f"{', '.join(names[:3])}{more} as they are now: shrink again where they change",
            stacklevel=4,
        )


def _tell_uncalled(graph: ChannelGraph, plan: Removal) -> None:
    """What the comparison cannot show: layers that the example did not reach may read what goes."""
    if plan.gone and (names := graph.uncalled):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warnings.warn(
            f"component {graph.component!r}: layers that the example does not reach stay as they are: "
            f"{', '.join(names[:3])}{more}. Other inputs or methods that call them may no longer run; give an example "
            f"that does",
            stacklevel=4,
        )


def _follows(value: Any, weight: Tensor) -> bool:
    """Whether a state is cut as its weight is, or is a single number."""
    if isinstance(value, Tensor):
        return value.shape == weight.shape or value.numel() <= 1
    return not isinstance(value, Mapping | list | tuple)


def _carried(value: Any, weight: Tensor, slices: Slices) -> Any:
    if not isinstance(value, Tensor):
        return value
    return (sliced(value, slices) if value.shape == weight.shape else value).clone()


def shrink(model: Model, masks: Masks, example_inputs: Any) -> nn.Module:
    """The smaller network that computes in evaluation mode what `model` computes under `masks`.

    `example_inputs`: component → an input (batch of 2 or more): a tensor, a tuple of arguments or a dict of keywords;
    or, of a model that is one network, its bare input. Components without one stay as they are, and so do layers that
    it does not reach, with a warning. `model` is left as it is, and the smaller network is in its modes. What `masks`
    do not cover is alive, and so is a weight that happens to be 0: to cut by value, say so with masks of what is not 0.
    Where every channel of a place would go, its first one stays, with a warning.

    Raises `Untraceable` where a component's code cannot be followed, `MaskError` where the masks do not fit, and
    `GenticketsError` where the smaller network does not compute the same to rounding, on the example and on random
    numbers, and where nothing can be compared.
    """
    return Shrinking(model, masks, example_inputs).model


def _moved(model: nn.Module, device: str | torch.device) -> nn.Module:
    """`model` itself, all of it on a device."""
    for _, layer in named_layers(model):
        for key, value in vars(layer).items():
            if isinstance(value, Tensor):  # what an old-style norm derived: no parameter, no buffer
                vars(layer)[key] = value.detach().to(device)
    return model.to(device)


# -- cutting ------------------------------------------------------------------------------------------------


@torch.no_grad()
def _cut(
    model: nn.Module, graph: ChannelGraph, plan: Removal, reads: Sequence[Read]
) -> tuple[dict[str, Slices], dict[str, Tensor]]:
    """Cuts one component of `model` in place, whose layers read what `reads` says. Returns the slices of the tensors
    that lost something, by name, and what was folded into biases, by theirs."""
    constants: dict[str, Tensor] = {}
    layers = layers_of(model, graph)
    for node in plan.alive:
        name = graph.name_of(node)
        if (folded := plan.folded(node, reads)) is not None and joined(name, "bias") not in constants:
            constants[joined(name, "bias")] = folded
            _add_to_bias(layers[name], folded)
    slices = cut(component_at(model, graph.component), graph, plan.gone)
    return {joined(graph.component, name): kept for name, kept in slices.items()}, constants


def _add_to_bias(layer: nn.Module, folded: Tensor) -> None:
    if not bool(folded.ne(0).any()):
        return
    like = next(layer.parameters())
    addition = folded.to(like.device, like.dtype)
    if isinstance(layer.bias, Tensor):
        layer.bias += addition
    else:
        layer.bias = nn.Parameter(addition)


# -- the comparison -----------------------------------------------------------------------------------------


def _check_equal(masked: nn.Module, small: nn.Module, component: str, calls: Sequence[Call], once: str = "") -> int:
    """How many numbers were compared of what both networks give, in evaluation mode and with the same chance.

    Raises `GenticketsError` where they differ, and where there is no number to compare.
    """
    nets = [clone(component_at(net, component)) for net in (masked, small)]  # they may keep something of other calls
    compared = 0
    for call in calls:
        expected = outputs(nets[0], call.example, seed=call.seed)
        within = f", with {call.what}" if call.what else ""
        found = _compare(component, nets, call, expected)
        if found.numbers and not found.equal and not _is_rounding(nets, call, expected):
            raise GenticketsError(
                f"component {component!r}: the shrunk network differs from the masked one by {found.difference:.2g} "
                f"in {found.place}{within}{once}; keep the masked one, and please report the model"
            )
        real = [tensor for tensor in expected.values() if tensor.is_floating_point() or tensor.is_complex()]
        compared += sum(int(tensor.isfinite().sum()) for tensor in real)
        if not compared:
            raise nothing_to_compare(component)
    return compared


_OF_ITS_OWN = 1e-3
"""The largest share of an output that rounding explains where what it is the rest of is larger than itself."""


def _compare(component: str, nets: list[nn.Module], call: Call, expected: Mapping[str, Tensor]) -> Comparison:
    try:
        found = outputs(nets[1], call.example, seed=call.seed)
    except Exception as error:  # of code that counts its channels
        reason = " ".join(str(error).split())[:200]
        within = f" with {call.what}" if call.what else ""
        raise GenticketsError(
            f"component {component!r}: the shrunk network does not run{within} ({type(error).__name__}: {reason}); "
            f"keep the masked one, and please report the model"
        ) from error
    return compare(expected, found, least=_NOTHING)


_NOTHING = 1e-30


def _is_rounding(nets: list[nn.Module], call: Call, expected: Mapping[str, Tensor]) -> bool:
    """Whether two networks that differ by more than rounding of their outputs do so by that of what they are made of:
    it adds up over many layers, and an output may be small against them. By what they give in wider numbers."""
    whole = compare(expected, outputs(nets[1], call.example, seed=call.seed))
    try:
        wide = [clone(net).double() for net in nets]
        given = call.example.to("cpu", torch.float64)
        one, other = (outputs(net, given, seed=call.seed) for net in wide)
    except Exception:  # code that says the dtype of its numbers
        return whole.equal
    return compare(one, other).equal and compare(one, other, lambda _: _OF_ITS_OWN, 1e-9).equal

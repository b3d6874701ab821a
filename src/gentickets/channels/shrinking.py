"""A masked network → a physically smaller one that computes the same.

The masks decide which channels go (see `removal`), not the values of weights: what is not pruned stays, whatever it
holds (a branch that starts from zero is not a dead one). The result is compared with the masked network before it is
handed out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.channels.cutting import cut
from gentickets.channels.graph import ChannelGraph, layers_of
from gentickets.channels.labels import trace
from gentickets.channels.layers import Slices, sliced
from gentickets.channels.removal import Removal
from gentickets.errors import GenticketsError
from gentickets.masks.examples import Comparison, Example, compare, examples_of, nothing_to_compare, outputs
from gentickets.masks.names import (
    Model,
    clone,
    component_at,
    joined,
    named_layers,
    named_weights,
    unwrap,
)
from gentickets.masks.value import Masks


class Shrinking:
    """What `shrink` does, with all that one may need of it.

    `model` is the smaller network, on the device that the larger one is on, `masks` are the masks that are left to
    hold it to, `removed` counts the channels that went, by component, `slices` says which part of each old tensor
    the new one is, where it is not all of it, `compared` how many numbers were compared, by component, and `mended`
    what code reads off its modules and had to follow: "blocks.0.attention.num_heads" → (before, now).
    """

    def __init__(self, model: Model, masks: Masks, example_inputs: Any):
        model = unwrap(model)
        masks = masks if isinstance(masks, Masks) else Masks(masks)
        device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        # Which channels go is worked out on the CPU: it is bookkeeping, and the comparison is exact to rounding there.
        masked = _moved(masks.apply_(clone(model)), "cpu")
        examples = {name: example.to("cpu") for name, example in examples_of(model, example_inputs).items()}
        self.model = clone(masked)
        self.masks = masks
        self.slices: dict[str, Slices] = {}
        self.removed: dict[str, int] = {}
        self.mended: dict[str, tuple[int, int]] = {}
        for component, example in examples.items():
            graph = trace(masked, component, example)
            plan = Removal(graph, masks)
            self.removed[component] = len(plan.gone)
            _tell_uncalled(graph, plan)
            slices, folded = _cut(self.model, graph, plan)
            self.slices |= slices
            self.mended |= _mended(masked, self.model, graph)
            self._revive(folded)
        self.masks = Masks({name: sliced(mask, self.slices.get(name, {})) for name, mask in self.masks.items()})
        self.compared = {name: _check_equal(masked, self.model, name, example) for name, example in examples.items()}
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
        row and column means): there is no saying which part of it belongs to what is left.
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
def _cut(model: nn.Module, graph: ChannelGraph, plan: Removal) -> tuple[dict[str, Slices], dict[str, Tensor]]:
    """Cuts one component of `model` in place. Returns the slices of the tensors that lost something, by name, and what
    was folded into biases, by theirs."""
    constants: dict[str, Tensor] = {}
    layers = layers_of(model, graph)
    for node in plan.alive:
        name = graph.name_of(node)
        if (folded := plan.folded(node)) is not None and joined(name, "bias") not in constants:
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


def _check_equal(masked: nn.Module, small: nn.Module, component: str, example: Example) -> int:
    """How many numbers were compared of what both networks give, in evaluation mode and with the same chance.

    Raises `GenticketsError` where they differ, and where there is no number to compare.
    """
    nets = [component_at(net, component) for net in (masked, small)]
    compared = 0
    for given in (example, _drawn_like(example)):
        try:
            expected = outputs(nets[0], given)
        except Exception:
            if given is example:
                raise
            continue  # random numbers are no input for it
        found = _compare(component, nets, given, expected)
        if not found.equal and found.numbers and _is_half(expected):  # rounding adds up over many layers
            wide = [clone(net).float() for net in nets]
            given = given.to("cpu", torch.float32)
            found = _compare(component, wide, given, outputs(wide[0], given))
        if found.numbers and not found.equal:
            raise GenticketsError(
                f"component {component!r}: the shrunk network differs from the masked one by {found.difference:.2g} "
                f"in {found.place}; keep the masked one, and please report the model"
            )
        real = [tensor for tensor in expected.values() if tensor.is_floating_point() or tensor.is_complex()]
        compared += sum(int(tensor.isfinite().sum()) for tensor in real)
        if not compared:
            raise nothing_to_compare(component)
    return compared


def _compare(component: str, nets: list[nn.Module], given: Example, expected: Mapping[str, Tensor]) -> Comparison:
    try:
        found = outputs(nets[1], given)
    except Exception as error:  # of code that counts its channels
        reason = " ".join(str(error).split())[:200]
        raise GenticketsError(
            f"component {component!r}: the shrunk network does not run ({type(error).__name__}: {reason}); keep the "
            f"masked one, and please report the model"
        ) from error
    return compare(expected, found)


def _is_half(expected: Mapping[str, Tensor]) -> bool:
    return any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in expected.values())


def _drawn_like(example: Example) -> Example:
    """An example of other, random numbers: what is equal on one of zeros alone is not the same."""
    generator = torch.Generator().manual_seed(0)
    return example.map(
        lambda tensor: (
            torch.randn(tensor.shape, generator=generator).to(tensor.dtype) if tensor.is_floating_point() else tensor
        )
    )

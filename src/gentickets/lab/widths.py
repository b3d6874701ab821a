"""How narrow a model can be made, before anything is pruned: which channels could go, and what pins the rest.

Its components are run on example inputs: those that a function gives, or such as are found by trying. A guess is told.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from rich.table import Column, Table
from torch import nn

from gentickets.catalogue import CATALOGUE, load, running, taken
from gentickets.channels.groups import ChannelGroups, channel_groups
from gentickets.errors import GenticketsError
from gentickets.lab.results.words import percent
from gentickets.masks.examples import WHOLE, Example, examples_of, outputs
from gentickets.masks.names import component_at, components_of, has_forward, is_in, named_layers, named_weights

_BATCH, _LENGTH, _SIDE = 2, 16, 8
"""How many examples are guessed; how long those are that are no images, and of which side maps of channels."""


def width_words(model: nn.Module, size: int, channels: int, example: str | None = None) -> Iterator[str | Table]:
    """What of a model's channels could go and what stays whole, layer by layer, and what would be left at half of them.

    `example`: what names the function that gives the example inputs, as `my.py:name`; it is run, and called with what
    it has arguments for of `model`, `size` and `channels`. Without, inputs are guessed for images of that size.
    """
    model = model.eval()
    if example is not None:
        inputs, told = _given(example, model, size, channels), f"example inputs: those that {example} gives"
    else:
        inputs, told = guessed_inputs(model, size, channels)
    yield told
    if not inputs:
        return
    try:
        groups = channel_groups(model, inputs)
    except GenticketsError as error:
        yield f"no channel can go: {error}"
        return
    names = list(examples_of(model, inputs))
    sizes = {name: weight.numel() for name, weight in named_weights(model).items()}
    sizes = {name: size for name, size in sizes.items() if any(is_in(component, name) for component in names)}
    if len(groups):
        yield _going(groups, sizes)
    if groups.whole:
        yield _staying(groups, model, sizes)
    half = _left(groups, _halved(groups), sizes)
    of = sum(sizes.values())
    where = "" if names == [WHOLE] else f" of {', '.join(names)}"
    share = percent(half / max(of, 1))
    yield f"at half of the channels of every layer {half:,} of {of:,} parameters{where} remain: {share}"


# -- the tables -----------------------------------------------------------------------------------------------


def _going(groups: ChannelGroups, sizes: Mapping[str, int]) -> Table:
    """What would go: each channel under the first layer that makes it, with the layers that make it too."""
    table = Table(Column("channels of"), "may go", "of", "parameters that they own", "made together with")
    makers: dict[int, list[str]] = {}
    for layer, numbers in groups.layers.items():
        for number in numbers.tolist():
            makers.setdefault(number, []).append(layer)
    of = sum(sizes.values())
    for layer, numbers in groups.places.items():
        kept = np.ones(len(groups), dtype=bool)
        kept[numbers] = False
        others = dict.fromkeys(other for number in numbers.tolist() for other in makers[number] if other != layer)
        by = _channels_of(groups, layer, int(numbers[0]))
        may = len(groups.layers[layer]) * by
        own = of - _left(groups, kept, sizes)
        words = f"{may:,}{f', by {by:,}' if by > 1 else ''}"
        table.add_row(layer, words, f"{may + groups.always[layer]:,}", f"{own:,}", _few(list(others)))
    return table


def _channels_of(groups: ChannelGroups, layer: str, number: int) -> int:
    """How many channels of a layer are in a group: those of a norm's group, or of a head, go together."""
    slices = (one for one in groups[number] if one.side == "output" and one.name.startswith(f"{layer}."))
    return max((len(one.indices) for one in slices), default=1)


def _staying(groups: ChannelGroups, model: nn.Module, sizes: Mapping[str, int]) -> Table:
    """What stays whole: each layer with the operation that needs all of its channels, those of one together."""
    table = Table("stay whole", "for", "parameters")
    layers, found = dict(named_layers(model)), dict[str, list[str]]()
    for layer, reason in groups.whole.items():
        if layer not in groups.layers:
            found.setdefault(reason, []).append(layer)
    for reason, names in found.items():
        own = sum(sizes.get(f"{name}.{key}", 0) for name in names for key, _ in layers[name].named_parameters())
        table.add_row(", ".join(names), reason, f"{own:,}")
    return table


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _halved(groups: ChannelGroups) -> np.ndarray:
    """Which groups are left where half of each layer's go; as in pruning, one more stays of an odd number."""
    kept = np.ones(len(groups), dtype=bool)
    for numbers in groups.places.values():
        kept[numbers[: len(numbers) // 2]] = False
    return kept


def _left(groups: ChannelGroups, kept: np.ndarray, sizes: Mapping[str, int]) -> int:
    """How many parameters are left with those groups alone."""
    left = groups.shapes_left(kept)
    return sum(math.prod(left[name]) if name in left else size for name, size in sizes.items())


# -- example inputs -------------------------------------------------------------------------------------------


def _given(name: str, model: nn.Module, size: int, channels: int) -> Any:
    function = load("source", name)
    with running(name):
        inputs = function(**taken(function, model=model, size=size, channels=channels))
    examples_of(model, inputs)
    return inputs


def guessed_inputs(model: nn.Module, size: int, channels: int) -> tuple[dict[str, Any] | Example, str]:
    """Inputs with which the components of a model run, or a single network does; and what was guessed, in a line.

    Tried are images, vectors, sequences and tokens of the width of the first layer, an image with times, and what the
    component before gives. The dict is empty where none runs.
    """
    found: dict[str, Example] = {}
    last: list[Example] = []
    names = components_of(model) if _is_of_components(model) else (WHOLE,)
    for name in names:
        net = component_at(model, name)
        for example in [*_candidates(net, size, channels), *last]:
            if (given := _run(net, example := _by_keyword(net, example))) is not None:
                found[name], last = example, given
                break
    if not found:
        takes = "; ".join(_signature(component_at(model, name), name) for name in names)
        return (
            {},
            f"no input was found with which it runs: --example my.py:name names a function that gives it ({takes})",
        )
    told = "; ".join(f"{name or 'the network'} {_words(example)}" for name, example in found.items())
    without = [name for name in names if name not in found]
    lacking = f"; none was found for {', '.join(without)}" if without else ""
    told = f"example inputs, guessed: {told}{lacking}; --example my.py:name names a function that gives others"
    return found.get(WHOLE, found), told


def _is_of_components(model: nn.Module) -> bool:
    """Whether a model is run by its components, and not as one network: where it has no forward, or an objective is
    for all of them."""
    known = {name for objective in CATALOGUE["objective"] for name in load("objective", objective).components}  # type: ignore[attr-defined]
    return not has_forward(model) or set(components_of(model)) <= known


def _signature(net: nn.Module, name: str) -> str:
    """What the code of a component says that it takes."""
    signature = inspect.signature(net.forward)
    plain = [argument.replace(annotation=argument.empty) for argument in signature.parameters.values()]
    return f"{name or 'the network'} takes {inspect.Signature(plain)}"


def _words(example: Example) -> str:
    kinds = {True: "", False: " of whole numbers"}
    return " and ".join(
        "x".join(map(str, tensor.shape)) + kinds[tensor.is_floating_point()] for tensor in example.tensors
    )


def _by_keyword(net: nn.Module, example: Example) -> Example:
    """The same arguments by their names, where a forward takes those that it needs by keyword alone."""
    arguments = inspect.signature(net.forward).parameters.values()
    keys = [argument.name for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY]
    positional = any(argument.kind is not inspect.Parameter.KEYWORD_ONLY for argument in arguments)
    return (
        example
        if positional or len(keys) < len(example.args)
        else Example((), dict(zip(keys, example.args, strict=False)))
    )


def _run(net: nn.Module, example: Example) -> list[Example] | None:
    """What a component gives for an example, as examples for another; None where it does not run, or gives nothing."""
    try:
        made = [t for t in outputs(net, example).values() if t.is_floating_point() and t.dim() and t.isfinite().all()]
    except Exception:  # of code that wants something else
        return None
    return [Example((tensor,)) for tensor in made if len(tensor) == _BATCH] if made else None


def _candidates(net: nn.Module, size: int, channels: int) -> Iterator[Example]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn((_BATCH, *shape), generator=generator)

    times = torch.arange(1, _BATCH + 1)
    sides = {channels: size}
    first = nn.Embedding | nn.Linear | nn.modules.conv._ConvNd
    layer = next((one for _, one in named_layers(net) if isinstance(one, first)), None)
    width: Any = getattr(layer, "in_channels", getattr(layer, "in_features", None))
    if isinstance(layer, nn.Linear):
        yield Example((drawn(width),))
        yield Example((drawn(_LENGTH, width),))
    if isinstance(layer, nn.Embedding):
        yield Example((torch.randint(layer.num_embeddings, (_BATCH, _LENGTH), generator=generator),))
    if isinstance(layer, nn.modules.conv._ConvNd):
        axes = len(layer.kernel_size)
        if axes == 2:
            sides.setdefault(width, _SIDE)
        else:
            yield Example((drawn(width, *[_LENGTH] * axes),))
            yield Example((drawn(width, *[_LENGTH] * axes), times))
    for deep, side in sides.items():
        yield Example((drawn(deep, side, side),))
        yield Example((drawn(deep, side, side), times))
    if isinstance(layer, nn.modules.conv._ConvNd):  # of a generator, that reshapes a vector first
        yield Example((drawn(width),))

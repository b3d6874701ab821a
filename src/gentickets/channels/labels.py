"""Which channels live and die together.

A component is run on an example (see `trace`). Along the way every number of every tensor gets a label: that of the
channel that it belongs to. Where an operation forces two channels to be kept or removed together (a residual addition,
a feature map made of several features of a linear layer, the channels of one group of a norm, those of one head of an
attention), their labels are joined. What comes in from outside and what goes out keeps all its channels, and so does
whatever meets an operation that is not understood: such channels are *fixed*. The result is a `ChannelGraph`.

Only layers that weigh channels are known by their class. Whatever else an operation is called, it is understood by what
it does when it is done again on other numbers (see `probe`); and in the end a network without some of its channels is
made and run, and whatever does not do to fewer channels what it does to all of them keeps them (see `trial`).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gentickets.channels.graph import ChannelGraph, layers_of, settle
from gentickets.channels.labelling import Labeller
from gentickets.channels.layers import (
    weighs_channels,
)
from gentickets.channels.trace import Recorder, Run, Untraceable, difference, in_one_line, line_of
from gentickets.channels.trial import try_cuts
from gentickets.masks.examples import Example, compare, examples_of, outputs
from gentickets.masks.modes import in_sight
from gentickets.masks.names import Model, clone, component_at, named_layers, unwrap


@in_sight()
def trace(model: Model, component: str, example_input: Any) -> ChannelGraph:
    """The channel graph of one component (of the whole model, for the empty name), run in eval mode on an example.

    Raises `Untraceable` that names the operation where the component's code cannot be followed: where it fails, where
    it does something else on other numbers, and where it does not give the same again. What the code does in training
    binds channels too, where it can be followed there; layers that it calls in training alone stay whole, with all that
    they read.
    """
    example = Example.of(example_input, component)
    if any(is_lazy(weight) for weight in component_at(model, component).parameters()):
        raise _untraceable(component, "as long as lazy layers have no weights (call it once before)")
    if any(tensor.is_meta for tensor in (*component_at(model, component).parameters(), *example.tensors)):
        raise _untraceable(component, "on the meta device, which has no values (to_empty and load it before)")
    if any(isinstance(module, torch.jit.ScriptModule) for module in component_at(model, component).modules()):
        raise _untraceable(component, "where it is scripted (give the module that torch.jit.script was given)")
    net = clone(unwrap(component_at(model, component))).eval()
    run = _recorded(net, component, example)
    graph = ChannelGraph(component, net, run, {id(layer): name for name, layer in named_layers(net)})
    labeller = Labeller(graph)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labeller.label(run)
        training = _in_training(net, example)
        if training is not None and difference(run, training) is not None:
            labeller.label_training(training)
        else:
            training = None
        _fix_shared_weights(unwrap(model), graph)
        settle(graph)
        try_cuts(graph, example, training)
    return graph


def trace_all(model: Model, example_inputs: Any) -> dict[str, ChannelGraph]:
    """The channel graph of each component that `example_inputs` has an input for (see `examples.examples_of`)."""
    return {name: trace(model, name, example) for name, example in examples_of(model, example_inputs).items()}


def _recorded(net: nn.Module, component: str, example: Example) -> Run:
    """What a component does, in evaluation, with an example, and with any other numbers too."""
    recorder = Recorder(net)
    try:
        run = recorder.record(example)
        expected = outputs(net, example)
    except Exception as error:  # whatever is met in code that is not ours
        where = f"at operation {recorder.at}" if recorder.at else line_of(error)
        raise _untraceable(component, f"{where} ({type(error).__name__}: {in_one_line(error)})") from error
    compared = compare(expected, run.outputs)
    if not compared.equal and (compared.numbers or expected.keys() != run.outputs.keys()):
        raise _untraceable(
            component, "as it is written (it gives something else each time, although chance falls as from one seed)"
        )
    spare = clone(net)  # what it keeps of a run is not to stay
    for other in _others(example):
        try:
            again = Recorder(spare).record(other)
        except Exception:  # these numbers are no input for it
            continue
        if (at := difference(run, again)) is not None:
            raise _untraceable(component, f"at {at.line} (other numbers as its input make it do something else)")
    return run


def _others(example: Example) -> list[Example]:
    """The same call with other numbers: with those of the other examples of the batch, of the other sign; and drawn."""
    generator = torch.Generator().manual_seed(0)

    def other(tensor: Tensor) -> Tensor:
        return (
            -tensor.roll(1, 0) if tensor.dim() and _is_real(tensor) else tensor.roll(1, 0) if tensor.dim() else tensor
        )

    def drawn(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype) if _is_real(tensor) else tensor

    return [example.map(other), example.map(drawn)]


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _in_training(net: nn.Module, example: Example) -> Run | None:
    """What a component does in training, with its layers as in evaluation; None where that cannot be followed."""
    try:
        run = Recorder(clone(net), training=True).record(example)
    except Exception:  # its code may ask for what the example, which is for evaluation, does not hold
        return None
    for operation in run.operations:
        if operation.layer is not None:
            operation.call = net.get_submodule(operation.layer)
    return run


def _untraceable(component: str, where: str) -> Untraceable:
    return Untraceable(
        f"component {component!r} cannot be traced {where}: its masks still hold (masks.hold), but it cannot be shrunk "
        f"or pruned by groups; leave it out of the example inputs"
    )


def _fix_shared_weights(model: nn.Module, graph: ChannelGraph) -> None:
    """A weight that two layers or two components share, or that code reads by itself, has channels that one trace
    does not see: they stay."""
    components = model.named_children() if graph.component else [("", model)]
    owners: dict[int, set[tuple[int, str]]] = {}
    for component, net in components:
        for layer in net.modules():
            for parameter in layer._parameters.values():
                owners.setdefault(id(parameter), set()).add((id(layer), component))
    layers = layers_of(model, graph)
    parameters = dict(graph.net.named_parameters())
    nodes = [node for operation in graph.operations for node in operation.made]
    read = {id(parameters[part.parameter]) for op in graph.operations for part in op.sources if part.parameter}
    for node in nodes:
        here = graph.layer_of(node)
        if here is not None and weighs_channels(here):
            shared = any(len(owners[id(parameter)]) > 1 for parameter in layers[graph.name_of(node)].parameters())
            if shared or any(id(tensor) in read for tensor in here.parameters()):
                for at in (node, *node.operation.sources):  # type: ignore[union-attr]
                    graph.fix(graph.labels[at], f"{node.operation.layer} (its weight is shared)")  # type: ignore[union-attr]

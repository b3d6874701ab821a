"""A component without some of its channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gentickets.channels.graph import ChannelGraph
from gentickets.channels.layers import (
    Slices,
    cut_layer,
    is_channelwise,
    is_group_norm,
    is_unflatten,
    silence_layer,
    slice_tensors,
)
from gentickets.masks.names import joined, named_layers


@torch.no_grad()
def cut(net: nn.Module, graph: ChannelGraph, gone: set[int]) -> dict[str, Slices]:
    """Takes groups of channels out of a copy of a graph's component, in place.

    What its layers say of their sizes follows, and so does what its code was found to read off its modules. Returns
    the slices of the tensors that lost something, by their names in the component.
    """
    slices: dict[str, Slices] = {}
    layers, done = dict(named_layers(net)), set()
    for node, makes in graph.makes.items():
        name = graph.names[id(graph.layer_of(node))]
        if name in done:
            continue
        done.add(name)
        layer, outputs = layers[name], _left(graph, makes, gone)
        apart = is_channelwise(layer) or is_group_norm(layer)
        found = cut_layer(layer, outputs, None if apart else _left(graph, graph.reads[node], gone))
        slices |= {joined(name, key): value for key, value in found.items()}
    for operation in graph.operations:
        if operation.layer is not None and is_unflatten(operation.call) and graph.kept(operation.made[0], gone):  # type: ignore[arg-type]
            layer = layers[graph.names[id(operation.call)]]
            axis, kept = graph.kept(operation.made[0], gone)  # type: ignore[misc]
            if axis == 1:
                layer.unflattened_size = (len(kept), *list(layer.unflattened_size)[1:])  # type: ignore[assignment, arg-type]
    for node in graph.raw:
        if (left := graph.kept(node, gone)) is not None:
            owner, _, key = node.parameter.rpartition(".")
            found = slice_tensors(net.get_submodule(owner), {key: {left[0]: left[1]}})
            where = graph.names[id(graph.net.get_submodule(owner))]
            slices |= {joined(where, name): value for name, value in found.items()}
    for mend in graph.mends:
        left = graph.kept(mend.node, gone)
        if left is not None:
            setattr(net.get_submodule(mend.module), mend.attribute, len(left[1]))
    return slices


@torch.no_grad()
def silence(net: nn.Module, graph: ChannelGraph, gone: set[int]) -> None:
    """Makes groups of channels 0 in a copy of a graph's component, in place: what masks over them do."""
    layers = dict(named_layers(net))
    for node, makes in graph.makes.items():
        lost = np.setdiff1d(np.arange(len(makes)), _left(graph, makes, gone))
        silence_layer(layers[graph.names[id(graph.layer_of(node))]], lost)
    for node in graph.raw:
        if (left := graph.kept(node, gone)) is not None:
            lost = np.setdiff1d(np.arange(node.value.shape[left[0]]), left[1])
            owner, _, key = node.parameter.rpartition(".")
            tensor = getattr(net.get_submodule(owner), key)
            tensor.index_fill_(left[0], torch.from_numpy(lost).to(tensor.device), 0)


def _left(graph: ChannelGraph, labels: np.ndarray, gone: set[int]) -> np.ndarray:
    """The indices of the channels that stay."""
    return np.flatnonzero([group not in gone for group in graph.groups(labels).tolist()])

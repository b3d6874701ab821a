"""What a component does with its example, as a graph of operations (torch.fx), and what each of them made.

Steps into everything but torch's own layers. A subclass of such a layer is one of them as long as it computes what its
parent does; where it has a forward of its own, its operations are recorded instead.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gentickets.errors import GenticketsError
from gentickets.masks.examples import Example, named_tensors
from gentickets.masks.names import CHANNELWISE_NORMS, CONVOLUTIONS, PRUNABLE, TRANSPOSED

# What of a layer's class decides what it computes. A subclass with one of its own is not its parent.
_COMPUTING = ("forward", "__call__", "_call_impl", "__getattr__", "_conv_forward", "_output_padding", "weight", "bias")


class Untraceable(GenticketsError):
    """A component whose graph cannot be followed: its masks can be held, but its channels have no known groups."""


# -- which layers are known ---------------------------------------------------------------------------------


def is_plain(layer: nn.Module | None) -> bool:
    """Whether a layer computes what its class in torch does, under spectral or weight norm at most.

    Not so with a forward of its own, with hooks that may change what it gives, or under any other parametrisation.
    """
    if layer is None or "forward" in vars(layer):
        return False
    kind = type_before_parametrizations(layer)
    known = next((base for base in kind.__mro__ if base.__module__.startswith("torch.nn.modules.")), nn.Module)
    if any(getattr(kind, name, None) is not getattr(known, name, None) for name in _COMPUTING):
        return False
    derived = layer._modules.get("parametrizations")
    for name, steps in derived._modules.items() if derived is not None else ():
        if name != "weight" or not isinstance(steps, nn.ModuleList) or len(steps) != 1:
            return False
        if not isinstance(steps[0], _SpectralNorm | _WeightNorm):
            return False
    return all(
        isinstance(hook, SpectralNorm | WeightNorm) or _is_ours(hook)
        for hook in (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
    )


def _is_ours(hook: Any) -> bool:
    """Whether a hook is one by which this package holds a model to its masks."""
    return (getattr(hook, "__module__", None) or type(hook).__module__).startswith("gentickets.")


def mixes_channels(layer: nn.Module | None) -> bool:
    """Whether each output channel of a layer is a weighted sum over its input channels."""
    if not is_plain(layer):
        return False
    if isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        return layer.groups == 1
    return isinstance(layer, nn.Linear)


def is_depthwise(layer: nn.Module | None) -> bool:
    """Whether a layer filters each channel by itself."""
    return (
        isinstance(layer, CONVOLUTIONS)
        and is_plain(layer)
        and layer.groups == layer.in_channels == layer.out_channels > 1
    )


def is_channelwise_norm(layer: nn.Module | None) -> bool:
    """Whether a layer normalises each channel by itself."""
    return isinstance(layer, CHANNELWISE_NORMS) and is_plain(layer)


def is_unflatten(layer: nn.Module | None) -> bool:
    """Whether a layer splits axis 1 into several: its own size says into how many channels."""
    return isinstance(layer, nn.Unflatten) and is_plain(layer) and layer.dim == 1


# -- recording ----------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Records what a component does with its example: each tensor in it is an input, everything else is a constant.

    Steps into everything but torch's own layers, and those of their subclasses that compute what their parents do.
    """

    def __init__(self, example: Example):
        super().__init__()
        self.example = example

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (*PRUNABLE, *CHANNELWISE_NORMS)) and is_plain(m)
        return known or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        inputs: list[Any] = []

        def as_input(_: Tensor) -> Any:
            inputs.append(self.create_proxy("placeholder", f"input_{len(inputs)}", (), {}))
            return inputs[-1]

        called = self.example.map(as_input)
        root, call = self.root, nn.Module.__call__  # as it is before tracing replaces it: the root's hooks count too

        def run(*_: Any) -> Any:
            return call(root, *called.args, **called.kwargs)

        return run, inputs


class Run:
    """One run of a component as a graph of operations, and what each of them made."""

    def __init__(self, net: nn.Module, component: str):
        self.net, self.component = net, component
        self.at = ""
        """The operation at work; nothing while the code is followed."""
        self.values: dict[fx.Node, Any] = {}
        self.overwritten: dict[fx.Node, fx.Node] = {}
        """A node that something reads after another one has written into what it made, and that other one."""
        self.outputs: dict[str, Tensor] = {}

    def record(self, example: Example, training: bool = False) -> None:
        """Follows the code, in evaluation or in training mode, and runs what it does in evaluation mode."""
        tracer = _Tracer(example)
        graph = tracer.trace(self.net.train(training))
        self.net.eval()
        self.module = fx.GraphModule(tracer.root, graph)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            result = _Recorder(self).run(*example.map(torch.clone).tensors)
        self.outputs = {path: tensor.detach() for path, tensor in named_tensors(result)}


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps account in its `Run`."""

    def __init__(self, run: Run):
        super().__init__(run.module)
        self.kept = run
        self._order = {node: place for place, node in enumerate(run.module.graph.nodes)}
        self._versions: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.kept.at = operation(self.kept.net, n)
        result = super().run_node(n)
        for node, version in self._versions.items():
            if self.env.get(node) is not None and self.env[node]._version != version:
                self._versions[node] = self.env[node]._version
                if any(self._order[user] > self._order[n] for user in node.users):
                    self.kept.overwritten.setdefault(node, n)
        if isinstance(result, Tensor):
            self._versions[n] = result._version
        own = isinstance(result, Tensor) and n.op != "get_attr"
        self.kept.values[n] = result.detach().clone() if own else result
        return result


def operation(module: nn.Module, node: fx.Node) -> str:
    """What a node does, in words for a user."""
    if node.op != "call_module":
        return node.name
    return f"{node.target} ({type_before_parametrizations(module.get_submodule(str(node.target))).__name__})"


def line_of(error: BaseException) -> str:
    """The line of the user's code at which an error arose, as far as the traceback tells."""
    here = Path(__file__).parent
    not_theirs = (Path(torch.__file__).parent, here, here.with_name("masks"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.exists() and not any(path.is_relative_to(place) for place in not_theirs):
            return f"at `{frame.line}` in {path.name}, line {frame.lineno}"
    return "as it is written"


def in_one_line(error: BaseException) -> str:
    return " ".join(str(error).partition("While executing")[0].split())[:300]

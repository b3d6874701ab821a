"""What a component does with its example: a real run, recorded as operations on tensors.

The component's own code is run on real tensors, and every function of torch that it calls with a tensor that comes
from its inputs or its parameters is written down, with what it made. Torch's own layers are one operation each;
everything else is stepped into. So code may ask for shapes, count, assert and reshape as it likes. What it decides by
*values* is noticed: other numbers must make it do the same operations.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode

from gentickets.channels.layers import is_leaf
from gentickets.errors import GenticketsError
from gentickets.masks.examples import Example, named_tensors
from gentickets.masks.modes import in_sight, name_of, under

_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
"""Where chance takes single numbers or whole channels, each by itself: no channel depends on another."""

_TELLING = (
    "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__complex__", "__array__",
    "__contains__", "equal", "allclose", "is_nonzero",
)  # fmt: skip
"""Functions by which code learns a tensor's numbers, and not only its shape."""


class Untraceable(GenticketsError):
    """A component whose graph cannot be followed: its masks can be held, but its channels have no known groups."""


class OtherWay(Exception):
    """A run did something else than the one that it is compared with, at some operation."""


@dataclass(eq=False, repr=False)
class Node:
    """A tensor of a run, with its numbers when it was made: an input, a parameter that code reads by itself (with its
    name), what an operation made, or a constant that a layer reads."""

    value: Tensor
    operation: Operation | None = None
    parameter: str = ""


@dataclass(eq=False, repr=False)
class Operation:
    """One call of a function or of a layer, its tensors as nodes.

    `call` is None for what wrote into a tensor by way of another one. `within` are the modules whose code was at
    work, the innermost last; `line` is where in it. `overwrites`: it wrote into what it does not give back; `tells`:
    it gives numbers to the code.
    """

    call: Callable[..., Any] | None
    layer: str | None
    args: Any
    kwargs: Any
    within: tuple[str, ...] = ()
    line: str = ""
    result: Any = None
    made: list[Node] = field(default_factory=list)
    overwrites: bool = False
    tells: bool = False

    @property
    def sources(self) -> list[Node]:
        """The nodes that it reads, in the order of its arguments, each once."""
        return list(dict.fromkeys(part for part in parts((self.args, self.kwargs)) if isinstance(part, Node)))

    @property
    def name(self) -> str:
        """What it is called, in words for a user: "3.conv (Conv2d)" for a layer, "view" for a function."""
        if self.layer is not None:
            return f"{self.layer} ({type_before_parametrizations(self.call).__name__})"  # type: ignore[arg-type]
        if self.call is None:
            return "a write (it writes over what is read later)"
        name = name_of(self.call) or type(self.call).__name__
        if name == "__get__":  # of a property, as in x.T
            name = getattr(getattr(self.call, "__self__", None), "__name__", name)
        return name.strip("_")


@dataclass(eq=False, repr=False)
class Run:
    """One run of a component: its operations in order, its inputs, and every tensor that it gives.

    `constants` are what layers read and no operation made that was seen: they hang on nothing, or it is hidden on what.
    """

    operations: list[Operation] = field(default_factory=list)
    inputs: list[Node] = field(default_factory=list)
    parameters: list[Node] = field(default_factory=list)
    constants: list[Node] = field(default_factory=list)
    given: list[Node | Tensor] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nodes(self) -> Iterator[Node]:
        """Every node, in the order in which they came to be."""
        yield from self.inputs
        yield from self.parameters
        yield from self.constants
        for operation in self.operations:
            yield from operation.made


def is_telling(operation: Operation) -> bool:
    """Whether code learns a tensor's numbers by it, and not only its shape."""
    return name_of(operation.call) in _TELLING


def parts(value: Any) -> Iterator[Any]:
    """Everything in nested arguments that is no container."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from parts(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from parts(part)
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    else:
        yield value


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested arguments with everything changed that is no container."""
    if isinstance(value, tuple | list):
        changed = [mapped(part, change) for part in value]
        if type(value) in (tuple, list, torch.Size):
            return tuple(changed) if isinstance(value, tuple) else changed
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
    if isinstance(value, Mapping):
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(part, change) for part in (value.start, value.stop, value.step)))
    return change(value)


class Recorder(TorchFunctionMode):
    """Runs a component and writes down what it does.

    In training mode the component's code does what it does in training, and its layers what they do in evaluation;
    nothing is dropped by chance then.
    """

    def __init__(self, net: nn.Module, training: bool = False):
        super().__init__()
        self.net, self.training = net, training
        self.run = Run()
        self.under_way: list[str] = []
        """The modules whose code is at work, the innermost last."""
        self.failed_in: tuple[str, ...] | None = None
        self.at = ""
        """The operation at work; nothing while the code is."""
        self._names = {id(module): name for name, module in net.named_modules()}
        self._parameters = {id(tensor): name for name, tensor in net.named_parameters()}
        self._leaves = {id(module) for module in net.modules() if is_leaf(module)}
        self._inside = False
        self._nodes: dict[int, Node] = {}
        self._kept: list[Any] = []  # as long as they live, their ids are theirs alone
        self._versions: dict[int, int | None] = {}
        self._writers: dict[int, Operation] = {}

    def record(self, example: Example, seed: int = 0) -> Run:
        """The run, chance falling as from `seed`. Raises whatever the component's code does."""
        given = example.map(torch.clone)
        self.net.train(self.training)
        for module in self.net.modules():
            if id(module) in self._leaves:
                module.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), in_sight(), self._calls():
                torch.random.default_generator.manual_seed(seed)
                for tensor in given.tensors:
                    self.run.inputs.append(self._make(None, tensor))
                with self:
                    result = self.net(*given.args, **given.kwargs)
            for path, tensor in named_tensors(result):
                self.run.outputs[path] = tensor.detach()
                self.run.given.append(self._node_of(tensor) or tensor)
        finally:
            self.net.eval()
        return self.run

    @contextmanager
    def _calls(self) -> Iterator[None]:
        """Every call of a module passes by here, as in torch.fx."""
        original = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = self._names.get(id(module))
            if self._inside or name is None:
                return original(module, *args, **kwargs)
            if name and id(module) in self._leaves:
                return self._observe(module, name, args, kwargs, original)
            self.under_way.append(name)
            try:
                return original(module, *args, **kwargs)
            except BaseException:
                if self.failed_in is None:
                    self.failed_in = tuple(self.under_way)
                raise
            finally:
                self.under_way.pop()

        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._inside:
            return func(*args, **(kwargs or {}))
        if self.training and name_of(func) in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if self.training and kwargs and kwargs.get("dropout_p"):  # of attention
            kwargs = {**kwargs, "dropout_p": 0.0}
        return self._observe(func, None, args, kwargs or {})

    # -- one operation ------------------------------------------------------------------------------------

    def _observe(self, call: Any, layer: str | None, args: Any, kwargs: Any, way: Any = None) -> Any:
        """Does one operation, and writes it down if it reads a node, or is a layer's."""
        self._inside = True
        try:
            tensors = [part for part in parts((args, kwargs)) if isinstance(part, Tensor)]
            known = {id(tensor): node for tensor in tensors if (node := self._node_of(under(tensor))) is not None}
            if any(under(tensor) is not tensor for tensor in tensors) and (known or layer is not None):
                raise RuntimeError(
                    "what torch.vmap, or another transform of torch.func, makes of its numbers is hidden"
                )
            if not known and layer is not None:
                known = {id(tensor): self._constant(tensor) for tensor in tensors}

            def do() -> Any:
                return call(*args, **kwargs) if way is None else way(call, *args, **kwargs)

            if not known:
                return do()
            writes = _may_write(call)

            def as_node(part: Any) -> Any:
                if isinstance(part, Tensor) and id(part) not in known and writes:
                    return part.detach().clone()  # as it was before
                return known.get(id(part), part) if isinstance(part, Tensor) else part

            operation = Operation(
                call, layer, mapped(args, as_node), mapped(kwargs, as_node), tuple(self.under_way), _line()
            )
            return self._perform(operation, tensors, do)
        finally:
            self._inside = False

    def _perform(self, operation: Operation, tensors: Sequence[Tensor], do: Callable[[], Any]) -> Any:
        before = [_version(tensor) for tensor in tensors]
        self.at = operation.name
        result = do()
        self.at = ""
        written = [tensor for tensor, version in zip(tensors, before, strict=True) if _version(tensor) != version]
        self._write_down(operation, result, written)
        return result

    def _write_down(self, operation: Operation, result: Any, written: Sequence[Tensor]) -> None:
        """An operation that was done, and the nodes that it made."""

        def made(part: Any) -> Any:
            return self._make(operation, part) if isinstance(part, Tensor) else part

        operation.result = mapped(result, made)
        for tensor in written:
            if all(tensor is not part for part in parts(result)):
                operation.overwrites = True
                self._make(operation, tensor)
            self._writers[_storage(tensor)] = operation
        operation.tells = not operation.made and is_telling(operation)
        if operation.made or operation.tells:
            self.run.operations.append(operation)

    def _make(self, operation: Operation | None, tensor: Tensor, parameter: str = "") -> Node:
        node = Node(tensor.detach().clone(), operation, parameter)
        self._nodes[id(tensor)] = node
        self._versions[id(tensor)] = _version(tensor)
        self._kept.append(tensor)
        if operation is not None:
            operation.made.append(node)
        return node

    def _constant(self, tensor: Tensor) -> Node:
        node = self._make(None, tensor)
        self.run.constants.append(node)
        return node

    def _node_of(self, tensor: Tensor) -> Node | None:
        """The node of a tensor; None for a constant. One that was written by way of another is a node of its own."""
        node = self._nodes.get(id(tensor))
        if node is not None and self._versions[id(tensor)] == _version(tensor):
            return node
        if node is None and (name := self._parameters.get(id(tensor))) is not None:
            node = self._make(None, tensor, name)
            self.run.parameters.append(node)
            return node
        writer = self._writers.get(_storage(tensor)) if self._writers else None
        if writer is None:
            return node
        read = tuple(dict.fromkeys([*([node] if node is not None else []), *writer.sources, *writer.made]))
        written = Operation(None, None, read, {}, tuple(self.under_way), writer.line)
        self.run.operations.append(written)
        return self._make(written, tensor)


def _may_write(call: Any) -> bool:
    """Whether a function writes into what it is given, by its name."""
    name = name_of(call)
    return name.endswith("_") and (not name.endswith("__") or name.startswith(("__set", "__i")))


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written into; None where that is not counted."""
    return None if tensor.is_inference() else tensor._version


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


_NOT_THEIRS = tuple(map(str, (Path(torch.__file__).parent, Path(__file__).parent, Path(__file__).parents[1] / "masks")))


def _line() -> str:
    """The line of the user's code that is at work."""
    frame = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename.startswith(_NOT_THEIRS) or "<" in frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "in code of torch"
    path, number = frame.f_code.co_filename, frame.f_lineno
    return f"`{linecache.getline(path, number).strip()}` in {Path(path).name}, line {number}"


# -- the same again? ----------------------------------------------------------------------------------------


def difference(one: Run, other: Run) -> Operation | None:
    """The first operation at which a run on other numbers does something else, or reads a number that is another;
    None where there is none. Where code was told values, it may read other numbers."""
    told = any(operation.tells for operation in (*one.operations, *other.operations))
    constants = set(one.constants)
    places = [_places(run) for run in (one, other)]

    def same(left: Any, right: Any) -> bool:
        if isinstance(left, Node) or isinstance(right, Node):
            if places[0].get(left) != places[1].get(right):
                return False
            return left not in constants or same(left.value, right.value)
        if type(left) is not type(right):
            return False
        if isinstance(left, Tensor):
            if left.shape != right.shape or left.dtype != right.dtype:
                return False
            return told or left is right or torch.equal(left, right) or _all_the_same(left, right)
        if isinstance(left, int | float | str) and not (told and isinstance(left, int | float)):
            return left == right or left != left
        return True

    for left, right in zip(one.operations, other.operations, strict=False):
        mine, its = list(parts((left.args, left.kwargs))), list(parts((right.args, right.kwargs)))
        if left.layer != right.layer or (left.layer is None and left.call != right.call) or len(mine) != len(its):
            return left
        if not all(same(a, b) for a, b in zip(mine, its, strict=True)):
            return left
    if len(one.operations) != len(other.operations):
        longer = max(one, other, key=lambda run: len(run.operations))
        return longer.operations[min(len(one.operations), len(other.operations))]
    return None


def _places(run: Run) -> dict[Node, int | str]:
    """What each node of a run is there: a parameter by its name, whenever it was looked at first."""
    made = (node for node in run.nodes if not node.parameter)
    return {node: node.parameter for node in run.parameters} | {node: place for place, node in enumerate(made)}


def _all_the_same(left: Tensor, right: Tensor) -> bool:
    return bool(((left == right) | ((left != left) & (right != right))).all())


def line_of(error: BaseException) -> str:
    """The line of the user's code at which an error arose, as far as the traceback tells."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).exists() and not frame.filename.startswith(_NOT_THEIRS):
            return f"at `{frame.line}` in {Path(frame.filename).name}, line {frame.lineno}"
    return "as it is written"


def in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]

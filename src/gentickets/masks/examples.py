"""What a component takes and what it gives: a tensor, several, keywords; results of any nesting.

An *example input* is what a component is called with: a tensor, a tuple or list of positional arguments, or a mapping
of keywords, of which any may be tensors of any dtype, numbers, or None. What comes back may be tensors in tuples,
lists, mappings, dataclasses and plain objects. Whoever runs components on examples does it by way of this module.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.errors import GenticketsError, MaskError
from gentickets.evaluating import evaluating
from gentickets.masks.names import Model, check_components, components_of, has_forward, unwrap

ExampleInput = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""One tensor, several positional arguments, or keywords: what one component is called with."""

ExampleInputs = ExampleInput | Mapping[str, ExampleInput]
"""Component → its example input; of a model that is a single network, the bare example input."""

WHOLE = ""
"""Stands for the name of a component where the model is taken as one network."""


@dataclass(frozen=True)
class Example:
    """One call of a component, with its positional and keyword arguments."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, given: Any, component: str) -> Example:
        """From what a user gave. Raises `MaskError` where that holds no tensor."""
        if isinstance(given, Example):
            return given
        if isinstance(given, Mapping):
            example = cls((), dict(given))
        else:
            example = cls(tuple(given) if isinstance(given, tuple | list) else (given,))
        if not example.tensors:
            raise MaskError(
                f"the example input of component {component!r} holds no tensor ({type(given).__name__}): give a "
                f"tensor, a tuple of arguments, or a dict of keywords"
            )
        if not example.batch:
            raise MaskError(
                f"the example input of component {component!r} is a batch of none: give one example or more"
            )
        return example

    def __call__(self, component: nn.Module) -> Any:
        """What the component gives for it, in whatever mode it is in; it may write into what it gets, a copy."""
        given = self.map(torch.clone)
        return component(*given.args, **given.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return [tensor for _, tensor in named_tensors((self.args, dict(self.kwargs)))]

    @property
    def batch(self) -> int:
        """How many examples are in the batch, as far as shapes tell: the length of the first tensor that has an axis
        and more than one along it; else 1."""
        return next(iter(self.lengths), 1)

    @property
    def lengths(self) -> list[int]:
        """What the batch may be: the lengths of the tensors along their first axis, but 1, which goes with any."""
        return list(dict.fromkeys(len(tensor) for tensor in self.tensors if tensor.dim() and len(tensor) != 1))

    def map(self, change: Callable[[Tensor], Tensor]) -> Example:
        """The same call with every tensor changed."""
        return Example(_mapped(self.args, change), _mapped(dict(self.kwargs), change))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Example:
        """On a device; its real floating-point tensors in `dtype`, where one is given."""
        return self.map(
            lambda tensor: tensor.to(device, dtype if dtype is not None and tensor.is_floating_point() else None)
        )

    def first(self, count: int = 1, batch: int | None = None) -> Example:
        """The first `count` of the batch (default: as shapes tell): of every tensor that is as long as the batch."""
        batch = self.batch if batch is None else batch
        return self.map(lambda tensor: tensor[:count] if tensor.dim() and len(tensor) == batch else tensor)


def examples_of(model: Model, example_inputs: Any) -> dict[str, Example]:
    """Component → example, from what a user gave for `model`; see `component_at` for the name of all of it.

    A mapping whose keys are components of the model is component → input. Anything else is the bare input of a model
    that is one network: a mapping whose keys are all arguments of its forward, the keywords of a call. Raises
    `MaskError` for a component that does not exist, for no tensor, and for a batch of none.
    """
    kind, known = type(unwrap(model)), components_of(model)
    if isinstance(example_inputs, Mapping):
        keywords = _keywords(unwrap(model)) if has_forward(model) else []
        if not example_inputs or set(example_inputs) & set(known) or not set(example_inputs) <= set(keywords):
            _check_components(example_inputs, known, keywords)
            return {name: Example.of(given, name) for name, given in example_inputs.items()}
    if known and not has_forward(model):
        raise MaskError(f"{kind.__name__} has no forward of its own: name the component, as in {{{known[0]!r}: input}}")
    return {WHOLE: Example.of(example_inputs, kind.__name__)}


def _keywords(net: nn.Module) -> list[str]:
    """The arguments of a network's forward that have a name."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, argument in inspect.signature(net.forward).parameters.items() if argument.kind in named]


def _check_components(wanted: Mapping[Any, Any], known: tuple[str, ...], keywords: list[str]) -> None:
    """As `check_components`, with a word on keywords where the model is a network that takes some."""
    try:
        check_components(wanted, known)
    except MaskError as error:
        free = ", ".join(name for name in keywords if name not in known)
        hint = f"; as keywords of the network itself, all must be of {free}" if free else ""
        raise MaskError(f"{error}{hint}") from None


def named_tensors(result: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a result, with the way to it: through mappings, sequences, dataclasses and plain objects."""
    yield from _walk(result, path, set())


def _walk(value: Any, path: str, above: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path or "output", value
    elif id(value) not in above:
        for key, part in _parts(value):
            yield from _walk(part, f"{path}{key}" if path else key.removeprefix("."), above | {id(value)})


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of; nothing for numbers, text, types, modules and functions."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, type | nn.Module | torch.Generator | torch.device | torch.dtype) or callable(value):
        return
    elif dataclasses.is_dataclass(value):
        yield from ((f".{field.name}", getattr(value, field.name, None)) for field in dataclasses.fields(value))
    elif type(value).__module__ != "builtins":  # distributions, namespaces: whatever keeps its parts as attributes
        yield from ((f".{key}", part) for key, part in getattr(value, "__dict__", {}).items())


def _mapped(value: Any, change: Callable[[Any], Any], kind: type | tuple[type, ...] = Tensor) -> Any:
    """Nested arguments with everything of a kind changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        changed = {key: _mapped(part, change, kind) for key, part in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return changed
        same = copy.copy(value)  # of its class, whose parts may be read by attribute
        same.update(changed)
        return same
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(part, change, kind) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, change, kind) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            field.name: _mapped(getattr(value, field.name), change, kind)
            for field in dataclasses.fields(value)
            if field.init
        }
        return dataclasses.replace(value, **changed)
    return value


# -- the same call in other ways ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call of a component, and the seed from which chance falls in it; `what` says in words how it differs from its
    example."""

    what: str
    example: Example
    seed: int = 0


def other_calls(example: Example) -> list[list[Call]]:
    """Calls that differ from an example in what belongs to the example alone: its numbers and the draw of chance, the
    size of the batch, that of images and of sequences, Python's numbers among the arguments. Of each, ways to try until
    one runs."""
    found = [
        [Call("other numbers", _drawn(example), 1), Call("another draw of chance", example, 1)],
        [Call("another size of the batch", _longer(example))],
        _other_sizes(example, "another size of the images", _images(example)),
        _other_sizes(example, "another length", _sequences(example)),
        [Call("other numbers among the arguments", other) for other in _other_numbers(example)],
    ]
    return [ways for ways in found if ways]


def _drawn(example: Example) -> Example:
    generator = torch.Generator().manual_seed(0)
    return example.map(
        lambda tensor: (
            torch.randn(tensor.shape, generator=generator).to(tensor.dtype) if tensor.is_floating_point() else tensor
        )
    )


def _longer(example: Example) -> Example:
    batch = example.batch
    return example.map(
        lambda tensor: torch.cat([tensor, tensor[:1]]) if tensor.dim() and len(tensor) == batch else tensor
    )


_Axes = Callable[[Tensor], range]
"""Along which axes of a tensor its size is changed."""


def _images(example: Example) -> list[_Axes]:
    """Where heights and widths may lie: behind the channels, in all that has any, or before them."""
    if not any(tensor.dim() > 3 for tensor in example.tensors):
        return []
    return [
        lambda tensor: range(2, tensor.dim() if tensor.dim() > 3 else 2),
        lambda tensor: range(2, tensor.dim()),
        lambda tensor: range(1, tensor.dim() - 1 if tensor.dim() > 3 else 1),
    ]


def _sequences(example: Example) -> list[_Axes]:
    """Where lengths may lie: on axis 1 of what has three, and of all as long; of whole numbers, where nothing has; or
    on axis 2."""
    three = [tensor for tensor in example.tensors if tensor.dim() == 3]
    first = next(iter(three or [t for t in example.tensors if t.dim() == 2 and not t.is_floating_point()]), None)
    if first is None:
        return []
    length = first.shape[1]
    along: list[_Axes] = [lambda t: range(1, 2 if t.dim() in (2, 3) and t.shape[1] == length else 1)]
    return along + ([lambda t: range(2, 3 if t.dim() == 3 else 2)] if three else [])


def _other_sizes(example: Example, what: str, along: list[_Axes]) -> list[Call]:
    """Half the size first, which costs less."""
    found = []
    for axes in along:
        for half in (True, False):
            other = example.map(lambda tensor, axes=axes, half=half: _resized(tensor, axes(tensor), half))  # type: ignore[misc]
            if [tensor.shape for tensor in other.tensors] != [tensor.shape for tensor in example.tensors]:
                found.append(Call(what, other))
    return found


def _resized(tensor: Tensor, axes: range, half: bool) -> Tensor:
    for axis in axes:
        size = tensor.shape[axis]
        tensor = tensor.narrow(axis, 0, max(1, size // 2)) if half else torch.cat([tensor, tensor], axis)
    return tensor


def _other_numbers(example: Example) -> list[Example]:
    """With all of Python's numbers changed, or one kind of them; a bool is a choice, and no number."""
    changes: dict[type, Callable[[Any], Any]] = {
        float: lambda number: 0.75 * number + 0.1,
        int: lambda number: number - 1 if number > 1 else number + 1,
    }
    found: list[Example] = []
    for kinds in ((float, int), (float,), (int,)):
        met: list[float] = []

        def other(number: Any, kinds: tuple[type, ...] = kinds, met: list[float] = met) -> Any:
            if type(number) not in kinds:
                return number
            met.append(number)
            return changes[type(number)](number)

        changed = Example(*(_mapped(given, other, (int, float)) for given in (example.args, dict(example.kwargs))))
        if met:
            found.append(changed)
    return found


# -- the same from two networks? -----------------------------------------------------------------------------------


def outputs(net: nn.Module, example: Example, *, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor that a component gives for an example, by the way to it, in evaluation mode without gradients.

    Chance falls as from `seed`, so that two networks that draw the same numbers can be compared; modes and the global
    generator are left as they were.
    """
    with evaluating(net):
        torch.random.default_generator.manual_seed(seed)
        return {path: tensor.detach() for path, tensor in named_tensors(example(net))}


def tolerance(dtype: torch.dtype, floor: float = 1e-5) -> float:
    """The largest relative difference that rounding explains: `floor`, or four steps of a coarser dtype."""
    return max(floor, 4 * torch.finfo(dtype).eps) if dtype.is_floating_point or dtype.is_complex else floor


@dataclass(frozen=True)
class Comparison:
    """How two sets of outputs compare: `numbers` compared, the `worst` difference and the `place` of it.

    `worst` is relative to the largest number of its tensor (or to 1, or the `least` that was said, if that is larger)
    and in units of what is allowed there: up to 1 the two are equal to rounding; infinite where a tensor is missing, of
    another shape or dtype, or not finite where the other is.
    """

    numbers: int
    worst: float
    place: str
    difference: float

    @property
    def equal(self) -> bool:
        """Whether the two are equal to rounding. False where nothing was compared."""
        return self.numbers > 0 and self.worst <= 1


def compare(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    allowed: Callable[[torch.dtype], float] = tolerance,
    least: float = 1.0,
) -> Comparison:
    """Compares outputs (see `outputs`) number by number. Whole numbers and booleans are compared by shape alone:
    rounding may turn a comparison in the model. NaN equals NaN, infinity itself. `least`: what a tensor's largest
    number is taken for where it is smaller."""
    numbers, worst, place, difference = 0, 0.0, "", 0.0
    for path in dict.fromkeys((*expected, *found)):
        one, other = expected.get(path), found.get(path)
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            return Comparison(numbers, float("inf"), path, float("inf"))
        if not (one.is_floating_point() or one.is_complex()) or not one.numel():
            continue
        numbers += one.numel()
        gap, scale = _largest_gap(one, other, least)
        if not (relative := gap / scale / allowed(one.dtype)) <= worst:
            worst, place, difference = relative, path, gap
    return Comparison(numbers, worst, place, difference)


def _largest_gap(one: Tensor, other: Tensor, least: float) -> tuple[float, float]:
    """(largest difference, largest number of `one` or `least`), over what is finite; infinite where only one is."""
    wide = torch.complex128 if one.is_complex() else torch.float64
    one, other = one.detach().cpu().to(wide), other.detach().cpu().to(wide)
    finite = torch.isfinite(one)
    # What is not finite has to be the same: NaN with NaN, infinity with infinity of its sign.
    same = (one == other) | (torch.isnan(one) & torch.isnan(other))
    if not bool((finite == torch.isfinite(other)).all()) or not bool(same[~finite].all()):
        return float("inf"), 1.0
    if not bool(finite.any()):
        return 0.0, 1.0
    return float((one - other)[finite].abs().max()), max(least, float(one[finite].abs().max()))


def nothing_to_compare(component: str) -> GenticketsError:
    """The refusal of a check that would have compared no number."""
    return GenticketsError(
        f"component {component!r} gives no tensor of real numbers for its example input, so that nothing can be "
        f"compared: let its forward return tensors"
    )

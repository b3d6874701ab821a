"""A component → a program that runs without this package: `torch.export`, or ONNX.

What is written is in evaluation mode, takes any number of examples at once, and has no norm left that can go: spectral
and weight norm are folded into plain weights, and so is batch norm where it follows a convolution in a sequence and
nobody else reads what lies between them. It is read back and compared with the component before its file appears.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from gentickets.channels.layers import is_plain
from gentickets.channels.trace import in_one_line, line_of
from gentickets.errors import GenticketsError
from gentickets.files import replace_file
from gentickets.masks.examples import Example, ExampleInput, named_tensors, nothing_to_compare, tolerance
from gentickets.masks.layers import check_not_pruned
from gentickets.masks.names import CONVOLUTIONS, TRANSPOSED, clone, unwrap

Format = Literal["torch", "onnx"]

SUFFIXES: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx"}
"""Format → how its files are called by custom."""

TOLERANCE = 1e-4
"""The largest difference, relative to the largest output, between the component and what was exported."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Program = Callable[[Example], list[Tensor]]


@dataclass(frozen=True)
class Exported:
    """A file that was written: its size in bytes, and how far its outputs are from the component's.

    `difference` is the largest one found, relative to the component's largest output, among `compared` numbers. `most`:
    the largest batch that the program takes, where the component's code does something else with larger ones.
    """

    path: Path
    bytes: int
    difference: float
    compared: int
    most: int | None = None


def export(
    component: nn.Module, example: ExampleInput | Example, path: str | Path, format: Format | None = None
) -> Exported:
    """Writes one component as a program: `torch` for a `.pt2` file of `torch.export`, `onnx` for an ONNX file.

    Without `format`, the end of the file's name says it: `.pt2` or `.onnx`. `example` is a batch of 2 or more inputs: a
    tensor, a tuple of arguments or a dict of keywords. The program takes batches of any size, by the same arguments;
    those that are no tensors are as they were. Several outputs (a VAE's mean and log variance) stay several, in their
    order. The component is left as it was. The program is run on the example and on a batch of one (of some of
    the example, where the component cannot do with one alone), and compared with the component; a file appears only
    where they agree to 1e-4.

    Raises `GenticketsError` for another format, or one that the name of the file contradicts, where the packages that
    ONNX needs are missing, where the code of the component cannot be exported, where the program computes something
    else or nothing can be compared, where the component itself gives what is not finite, and where the file cannot be
    written.
    """
    path = Path(path)
    format = format_of(path, format)
    if format == "onnx":
        _check_onnx()
    example = Example.of(example, type(component).__name__).to("cpu").map(Tensor.detach)
    expected = clone(unwrap(component)).cpu().eval()
    plain = _with_plain_weights(component)
    with torch.no_grad(), _quiet():
        batches = _batches(expected, example)
        fused = _without_batch_norms(clone(plain))
        try:
            net = fused if all(_is_close(expected, fused, batch) for batch in batches) else plain
            content, program, most = (_to_torch if format == "torch" else _to_onnx)(net, example)
            found = [_difference(expected, program, batch) for batch in batches]
        except Exception as error:  # whatever the exporters meet in code that is not ours
            raise GenticketsError(f"cannot be exported as {format}: {_reason(error)}") from error
    difference, compared = max(worst for worst, _ in found), sum(numbers for _, numbers in found)
    if not compared and difference == 0:
        raise nothing_to_compare(type(component).__name__)
    if not difference <= _allowed(expected):
        raise GenticketsError(
            f"the exported program differs from the component by {difference:.2g} of its largest output: not written"
        )
    try:
        replace_file(path, content)
    except OSError as error:
        raise GenticketsError(f"cannot write {path}: {error.strerror or error}") from error
    return Exported(path, len(content), difference, compared, most)


def as_format(name: str) -> Format:
    """The format of that name. Raises `GenticketsError` that lists those there are."""
    for format in SUFFIXES:
        if format == name:
            return format
    raise GenticketsError(f"format {name!r}: one of {', '.join(SUFFIXES)}")


def format_of(path: Path, format: str | None) -> Format:
    """The format asked for, or else the one that a file's name says.

    Raises `GenticketsError` where the two differ, and where neither says one.
    """
    said = next((known for known, suffix in SUFFIXES.items() if path.suffix.lower() == suffix), None)
    if format is None and path.suffix.lower() == ".safetensors":
        raise GenticketsError(
            f"{path} would hold weights alone, and export writes a program (*.pt2 or *.onnx): the weights of a smaller "
            f"network are written by save_small(small, path, make_model=…), those of a level by `gentickets shrink`"
        )
    if format is None and said is None:
        raise GenticketsError(
            f"{path} ends in none of .pt2 (a program of torch.export), .onnx (ONNX) and .safetensors (the weights of a "
            f"smaller network, which save_small and `gentickets shrink` write)"
        )
    if format is None:
        return said  # type: ignore[return-value]
    if said not in (None, chosen := as_format(format)):
        raise GenticketsError(
            f"{path} is to hold a program of format {chosen}, but ends as one of {said}: leave the format out, or name "
            f"the file *{SUFFIXES[chosen]}"
        )
    return chosen


def folded(component: nn.Module) -> nn.Module:
    """A copy on the CPU, in evaluation mode, whose spectral, weight and batch norms are folded into plain weights.

    A batch norm behind a convolution in a sequence is taken for its only reader.
    """
    return _without_batch_norms(_with_plain_weights(component))


def _with_plain_weights(component: nn.Module) -> nn.Module:
    check_not_pruned(component)
    plain = clone(unwrap(component)).cpu().eval()  # eval first: under spectral norm, reading a weight would train it
    for layer in list(plain.modules()):
        if is_parametrized(layer):
            _fold(layer)
        if "weight_orig" in layer._parameters:
            remove_spectral_norm(layer)
        if {"weight_g", "weight_v"} <= set(layer._parameters):
            remove_weight_norm(layer)
    return plain


def _without_batch_norms(plain: nn.Module) -> nn.Module:
    """The network itself, its batch norms folded into the convolutions before them in a sequence."""
    shared = _in_several_places(plain)
    for sequence in list(plain.modules()):
        if isinstance(sequence, nn.Sequential):
            for layer_name, norm_name in itertools.pairwise(list(sequence._modules)):
                layer, norm = sequence._modules[layer_name], sequence._modules[norm_name]
                if _can_fuse(layer, norm) and not {id(layer), id(norm)} & shared:
                    one = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, TRANSPOSED))  # type: ignore[type-var, arg-type]
                    sequence._modules[layer_name], sequence._modules[norm_name] = one, nn.Identity()
    return plain


def _in_several_places(net: nn.Module) -> set[int]:
    """The ids of modules that have more than one parent, or more than one place in one."""
    seen: set[int] = set()
    twice: set[int] = set()
    for parent in net.modules():
        for child in parent.children() if not isinstance(parent, nn.Sequential) else parent:
            (twice if id(child) in seen else seen).add(id(child))
    return twice


def _can_fuse(layer: Any, norm: Any) -> bool:
    """Whether `norm` in evaluation mode is a scale and a shift of each output channel of `layer`."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None or norm.weight is None:
        return False
    if any(module._forward_hooks or module._forward_pre_hooks or not is_plain(module) for module in (layer, norm)):
        return False
    if isinstance(layer, TRANSPOSED):
        return layer.groups == 1
    return isinstance(layer, CONVOLUTIONS)


def _fold(layer: nn.Module) -> None:
    """Puts plain weights in place of parametrized ones.

    Not by `remove_parametrizations`: that takes the weight's property from a class which a layer shares with its
    copies, and so breaks the layer that was copied.
    """
    values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # type: ignore[union-attr]
    del layer._modules["parametrizations"]
    layer.__class__ = type_before_parametrizations(layer)
    layer._parameters.update({name: nn.Parameter(value) for name, value in values.items()})


def _to_torch(net: nn.Module, example: Example, most: int | None = None) -> tuple[bytes, Program, int | None]:
    axes = _any_batch(net, example, most)
    try:
        exported = torch.export.export(net, example.args, dict(example.kwargs), dynamic_shapes=axes)
    except Exception as error:  # of what class, changes from release to release
        bound = re.search(r"Dim\('batch', max=(\d+)\)", str(error))
        if most is not None or bound is None:
            raise
        return _to_torch(net, example, int(bound[1]))
    file = io.BytesIO()
    torch.export.save(exported, file)
    content = file.getvalue()
    module = torch.export.load(io.BytesIO(content)).module()
    return content, lambda batch: _tensors(batch(module)), most


def _to_onnx(net: nn.Module, example: Example) -> tuple[bytes, Program, int | None]:
    onnxruntime = importlib.import_module("onnxruntime")  # an extra: not there for whoever reads the types
    exported = torch.onnx.export(
        net,
        example.args,
        kwargs=dict(example.kwargs),
        dynamo=True,
        dynamic_shapes=_any_batch(net, example),
        verbose=False,
    )
    assert exported is not None
    content = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    takes = [node.name for node in session.get_inputs()]

    def run(batch: Example) -> list[Tensor]:
        given = dict(zip(takes, (tensor.numpy() for tensor in batch.tensors), strict=True))
        return [torch.from_numpy(found) for found in session.run(None, given)]

    return content, run, None


def _any_batch(net: nn.Module, example: Example, most: int | None = None) -> dict[str, Any]:
    """Argument → which of its axes may have any length, up to `most`: the first of every tensor that is as long as the
    batch."""
    batch = torch.export.Dim("batch", min=1, max=most)

    def axes(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {0: batch} if value.dim() and len(value) == example.batch else None
        if isinstance(value, Mapping):
            return {key: axes(part) for key, part in value.items()}
        return type(value)(axes(part) for part in value) if isinstance(value, list | tuple) else None

    bound = inspect.signature(net.forward).bind(*example.args, **example.kwargs)
    return {name: axes(value) for name, value in bound.arguments.items()}


def _tensors(result: Any) -> list[Tensor]:
    return [tensor for _, tensor in named_tensors(result)]


def _difference(component: nn.Module, program: Program, batch: Example) -> tuple[float, int]:
    """(the largest difference of any output, relative to the largest value of that output, how many numbers were
    compared); infinite for another shape, or what is not finite: a comparison with NaN says nothing."""
    worst, compared = 0.0, 0
    with torch.random.fork_rng(devices=[]):  # what draws noise draws the same
        torch.manual_seed(0)
        expected = _tensors(batch(component))
        torch.manual_seed(0)
        found = program(batch)
    if len(expected) != len(found):
        return float("inf"), compared
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape or not torch.isfinite(other).all():
            return float("inf"), compared
        one, other = one.double(), other.double()
        compared += one.numel()
        if one.numel():
            worst = max(worst, float((one - other).abs().max()) / (float(one.abs().max()) or 1.0))
    return worst, compared


def _allowed(component: nn.Module) -> float:
    """The largest difference from a component that rounding explains."""
    return max([TOLERANCE, *(tolerance(weight.dtype) for weight in component.parameters())])


def _is_close(component: nn.Module, other: nn.Module, batch: Example) -> bool:
    """Whether a network with other layers gives the same: code may read what lies between them, or the layers."""
    try:
        return _difference(component, lambda given: _tensors(given(other)), batch)[0] <= _allowed(component)
    except Exception:  # of code that is not ours
        return False


def _batches(component: nn.Module, example: Example) -> tuple[Example, Example]:
    """On what a program is compared: the example, and a batch of another size, for which the component runs and gives
    finite numbers. Raises `GenticketsError` where there is none."""
    name = type(component).__name__

    def finite(batch: Example) -> bool:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return all(bool(tensor.isfinite().all()) for tensor in _tensors(batch(component)))

    try:
        fine = finite(example)
    except Exception as error:  # of code that is not ours
        raise GenticketsError(f"{name} does not run on the example: {in_one_line(error)}") from error
    if not fine:
        raise GenticketsError(f"{name} gives what is not finite for the example: not written")
    failed = ""
    for count in (1, example.batch // 2, example.batch - 1):
        try:
            if count and finite(batch := example.first(count)):
                return example, batch
        except Exception as error:  # of code that is not ours
            failed = in_one_line(error)
    if failed:
        raise GenticketsError(
            f"{name} runs on no batch but one of {example.batch}, as the example is, and a program takes any ({failed})"
        )
    raise GenticketsError(
        f"{name} gives what is not finite for a batch of one, as a deviation over the batch is: give an example of "
        f"3 or more"
    )


def _check_onnx() -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise GenticketsError(f"format onnx needs {', '.join(missing)}: pip install {' '.join(_ONNX_PACKAGES)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of packages that are not there, and of their own future."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """What an exporter could not do, in a line, with the mend where one is known."""
    while error.__cause__ is not None:  # ONNX's first line says that a step failed, and not why
        error = error.__cause__
    if fixed := re.search(r"specialized it to be a constant \((\d+)\)", str(error)):
        return f"its code takes the size of the batch as a fixed number ({fixed[1]}), as len(x) does: write x.shape[0]"
    if "Got invalid dimensions for input" in str(error):
        return "its code takes the size of the batch as a fixed number, as len(x) does: write x.shape[0]"
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "data-dependent" in line:
        return f"its code decides by values {line_of(error)}, and a program has one way alone ({line})"
    return f"{line} (torch wrote what onnxruntime cannot read: *.pt2 may do)" if "ONNXRuntimeError" in line else line

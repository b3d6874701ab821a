"""A smaller network of one's own class as a file: its tensors, and in what it differs from what makes the whole one.

The file is plain safetensors, under the names of `state_dict`: whoever has no gentickets reads the weights out of it.
In its metadata is what a module without those weights would not know: the sizes that its layers and its code say (see
`Shrinking.mended`), which names share one tensor, and of which class each module is. Nothing in it is run, and a digest
is over every bit. What makes the whole network is given by whoever opens it, and made smaller by the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gentickets.errors import GenticketsError, TicketError
from gentickets.files import read_file, replace_file
from gentickets.masks.examples import compare, examples_of, outputs
from gentickets.masks.names import PRUNABLE, Model, as_model, clone, component_at, joined, named_layers, unwrap
from gentickets.sealed import DIGEST, Damaged, tensor_pieces, unsealed_tensors

FORMAT = "gentickets.small/1"

Size = int | list[int]


@dataclass(frozen=True)
class Difference:
    """In what a smaller network differs from the whole one that its class makes, its tensors apart.

    `kinds`: module → the name of its class. `sizes`: module → what it says of itself that is smaller. `shared`: the
    name of a tensor → the name under which it is kept. `said`: what the whole one's modules say of themselves, by which
    another of the same class is told from it.
    """

    kinds: Mapping[str, str]
    sizes: Mapping[str, Mapping[str, Size]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    said: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def save_small(
    small: Model, path: str | os.PathLike[str], make_model: Callable[[], Model], example_inputs: Any = None
) -> None:
    """Writes a smaller network of one's own class to a file that `load_small(path, make_model)` reads.

    `small`: what `shrink` made, trained on or not. `make_model`: what makes the whole network, without any argument: a
    class, or a function such as `lambda: UNet(width=64)`. The file is plain safetensors of the state dictionary (a
    tensor that several names share is in it once), with what else is smaller in its metadata. It is made into a network
    again before it is written, and that is compared with `small`: its classes, its tensors and its numbers; with
    `example_inputs`, as for `shrink`, what it computes too.

    Raises `TicketError` where `make_model` makes another network, and where the file cannot be written.
    """
    small = unwrap(small)
    whole = made_by(make_model)
    difference = _difference(whole, small)
    tensors = _kept(whole, small, difference.shared)
    if "digest" in tensors:
        raise TicketError("a tensor of the network itself is called 'digest', as that of the file is: rename it")
    again = filled(whole, tensors, difference)
    _check_same(again, small)
    for component, example in examples_of(small, example_inputs).items() if example_inputs is not None else ():
        nets = (component_at(net, component) for net in (small, again))
        expected, found = (outputs(clone(net).cpu(), example.to("cpu")) for net in nets)
        if not (compared := compare(expected, found)).equal:
            raise TicketError(
                f"make_model makes another network: component {component!r} differs by {compared.difference:.2g} in "
                f"{compared.place or 'all that it gives'}"
            )
    try:
        replace_file(Path(path), tensor_pieces(tensors, {"format": FORMAT, "cuts": json.dumps(vars(difference))}))
    except OSError as error:
        raise TicketError(f"cannot write {path}: {error.strerror or error}") from error


def is_kept(path: str | os.PathLike[str]) -> bool:
    """Whether a file says of itself that `save_small` wrote it."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return f'"format":"{FORMAT}"'.encode() in file.read(min(size, os.path.getsize(path)))


def read_kept(path: str | os.PathLike[str], make_model: Callable[[], Model] | None) -> nn.Module:
    """The network in a file of `save_small`, in evaluation mode, on the CPU. Raises `TicketError`."""
    try:
        raw = read_file(Path(path))
        if len(DIGEST.findall(raw[: 8 + int.from_bytes(raw[:8], "little")])) != 1:
            raise Damaged("it has no digest")
        tensors, metadata = unsealed_tensors(raw)
    except OSError as error:
        raise TicketError(f"cannot read {path}: {error.strerror or error}") from None
    except Damaged as error:
        raise TicketError(f"{path} is damaged or was changed: {error}") from None
    try:
        difference = Difference(**json.loads(metadata["cuts"]))
        kind = str(difference.kinds[""])
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise TicketError(f"{path} is no small network: it does not say how to build one") from None
    if make_model is None:
        raise TicketError(
            f"{path} is of {kind[:80]}, a class that no file brings along: "
            f"gentickets.load_small(path, make_model={kind[:80]})"
        )
    try:
        return filled(made_by(make_model), tensors, difference).eval()
    except (TicketError, LookupError, AttributeError, ValueError, TypeError) as error:
        raise TicketError(f"{path}: {' '.join(str(error).split())[:300]}") from None


def made_by(make_model: Callable[[], Model]) -> nn.Module:
    """The whole network; torch's global generator is left as it was. Raises `TicketError` for what makes none."""
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TicketError(
            f"make_model is a {type(make_model).__name__}: give what makes the whole network, such as lambda: Net(64)"
        )
    with torch.random.fork_rng(devices=[]):
        try:
            made = make_model()
        except TypeError as error:
            reason = " ".join(str(error).split())[:200]
            raise TicketError(
                f"make_model is called without arguments ({reason}): give it them, as in lambda: Net(64)"
            ) from None
    try:
        return unwrap(as_model(made)).cpu()
    except GenticketsError as error:
        raise TicketError(f"make_model: {error}") from None


# -- two networks side by side --------------------------------------------------------------------------------


def _difference(whole: nn.Module, small: nn.Module) -> Difference:
    """In what the smaller network differs. Raises `TicketError` where it is no smaller one of the same class."""
    kinds = {name: _kind(layer) for name, layer in named_layers(small)}
    check_kinds(whole, kinds)
    layers = dict(named_layers(whole))
    sizes = {}
    for name, layer in named_layers(small):
        was = sizes_of(layers[name])
        now = {key: value for key, value in sizes_of(layer).items() if key in was and value != was[key]}
        if now := {key: value for key, value in now.items() if _is_smaller(value, was[key])}:
            sizes[name] = now
    first: dict[int, str] = {}
    places = [(name, tensor) for name, _, tensor in _places(small)]
    shared = {name: kept for name, tensor in places if (kept := first.setdefault(id(tensor), name)) != name}
    return Difference(kinds, sizes, shared, _said(whole))


def _said(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What modules keep for their code: numbers, names of functions, words. Of modules that are not torch's own, whose
    words may name a place or a machine, a word is a digest, and one that looks like that is left out."""
    found = {}
    for name, layer in named_layers(model):
        own = not type_before_parametrizations(layer).__module__.startswith("torch.nn")
        kept = {key: value for key, value in vars(layer).items() if key not in _OF_EVERY_MODULE}
        told = {key: _told(value, own) for key, value in kept.items() if not _is_of_a_version(layer, key, value)}
        found[name] = {key: value for key, value in told.items() if value is not _UNTOLD}
    return {name: said for name, said in found.items() if said}


def _is_of_a_version(layer: nn.Module, key: str, value: object) -> bool:
    """Whether something may be another in the next version of a package, or where its folder lies elsewhere: what it
    keeps in containers, under private names or by names of paths."""
    if set(key.split("_")) & {"path", "file", "dir", "folder", "host", "device"} and not _is_number(value):
        return True
    holds_more = isinstance(value, tuple | list | Mapping) and not _is_number(value)
    place = type_before_parametrizations(layer).__module__
    if place.startswith("torch.nn"):
        return key[:1] == "_"
    module = sys.modules.get(place)
    installed = {"site-packages", "dist-packages"} & {*Path(getattr(module, "__file__", None) or "").parts}
    return (holds_more or key[:1] == "_") if installed else (holds_more and key[:1] == "_")


_OF_EVERY_MODULE = {*vars(nn.Module())}

_UNTOLD = object()
"""Stands for what cannot be written down."""

_MAY_BE_A_PLACE = re.compile(r"[/\\]|^(cpu|cuda|mps|xpu|meta)(:\d+)?$")


def _told(value: Any, own: bool) -> Any:
    """What a file says of a value that a module keeps: numbers as they are, the name of a function, of other things the
    digest of all that is in them."""
    if isinstance(value, _PLAIN) and not isinstance(value, str):
        return value
    if not own and _is_plain(value):
        return _as_list(value)
    if isinstance(value, tuple | list) and all(map(_is_number, value)):
        return _as_list(value)
    parts = _parts_of(value)
    if parts is _UNTOLD or callable(value):
        return parts
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _parts_of(value: Any) -> Any:
    """A value in what JSON has, functions and classes by their names."""
    if isinstance(value, str):
        return _UNTOLD if _MAY_BE_A_PLACE.search(value) else value
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Enum | torch.dtype):
        return str(value)
    if isinstance(value, partial):
        return _all_told(["partial", value.func, *value.args, dict(value.keywords)])
    if isinstance(value, tuple | list):
        return _all_told(value)
    if isinstance(value, Mapping):  # what a package keeps for itself may be of its version
        told = {str(key): _parts_of(each) for key, each in value.items() if str(key)[:1] != "_"}
        return _UNTOLD if any(each is _UNTOLD for each in told.values()) else told
    if isinstance(value, FunctionType | MethodType | type):
        code = getattr(value, "__code__", None)
        inside = f" of {', '.join(code.co_names)}" if value.__name__ == "<lambda>" and code is not None else ""
        return f"{value.__qualname__} ({value.__name__}){inside}"  # torch gives some of its own one of them alone
    return value.__name__ if isinstance(value, BuiltinFunctionType) else _UNTOLD


def _all_told(values: Iterable[Any]) -> Any:
    told = [_parts_of(each) for each in values]
    return _UNTOLD if any(each is _UNTOLD for each in told) else told


def _is_number(value: object) -> bool:
    return all(map(_is_number, value)) if isinstance(value, tuple | list) else isinstance(value, int | float)


def _check_said(whole: nn.Module, said: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises `TicketError` where a module says something else of itself; what only one of them says may be of another
    version of its package."""
    layers = dict(named_layers(whole))
    for name, now in _said(whole).items():
        before = said.get(name, {})
        for key in sorted(now.keys() & before.keys()):
            if now[key] != before[key]:
                value, was = vars(layers[name])[key], str(before[key])
                raise TicketError(
                    f"make_model makes another network: {joined(name, key)} is "
                    f"{str(now[key] if callable(value) else value)[:40]} there, and was "
                    f"{'another' if _DIGEST.fullmatch(was) else was[:40]} in what was made smaller"
                )


_DIGEST = re.compile("[0-9a-f]{16}")


def _kind(layer: nn.Module) -> str:
    return type_before_parametrizations(layer).__name__


def check_kinds(whole: nn.Module, kinds: Mapping[str, str]) -> None:
    """Raises `TicketError` where a network's modules are not those, by name and class."""
    there = {name: _kind(layer) for name, layer in named_layers(whole)}
    for name in dict.fromkeys((*kinds, *there)):
        if kinds.get(name) != there.get(name):
            what = f"{name!r} is" if name else "the network is"
            raise TicketError(
                f"make_model makes another network: {what} {_a(there.get(name))} there, and "
                f"{_a(kinds.get(name))} in the smaller one"
            )


def _a(kind: object) -> str:
    return f"a {str(kind)[:80]}" if kind else "absent"


def sizes_of(layer: nn.Module) -> dict[str, Size]:
    """Whole numbers, and sequences of them, that a module keeps for its code (`channels`, `num_heads` …)."""
    found: dict[str, Size] = {}
    for key, value in vars(layer).items():
        if type(value) is int:
            found[key] = value
        elif isinstance(value, tuple | list) and value and all(type(each) is int for each in value):
            found[key] = [int(each) for each in value]
    return found


def _is_smaller(now: object, was: Size) -> bool:
    """Whether a size is one that cutting may have left."""
    ours, most = (value if isinstance(value, list) else [value] for value in (now, was))
    if isinstance(now, list) != isinstance(was, list) or len(ours) != len(most):
        return False
    return all(type(one) is int and min(1, top) <= one <= top for one, top in zip(ours, most, strict=True))


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every place of a tensor: its name, the module that has it, and the tensor, which others may share."""
    for name, layer in named_layers(model):
        for key, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None:
                yield joined(name, key), layer, tensor


def _kept(whole: nn.Module, small: nn.Module, shared: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors that the file has to hold; of buffers that no state dictionary has, those that are another now."""
    before = {name: tensor for name, _, tensor in _places(whole)}
    tensors = {}
    for name, layer, tensor in _places(small):
        passing = name.rpartition(".")[2] in layer._non_persistent_buffers_set
        if name not in shared and not (passing and name in before and _equal(tensor, before[name])):
            tensors[name] = tensor.detach()
    return tensors


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())


_PLAIN = (int, float, bool, str, type(None))


def _check_same(again: nn.Module, small: nn.Module) -> None:
    """Raises `TicketError` where two networks of equal classes differ in a number, a word or a tensor."""
    layers = dict(named_layers(again))
    for name, layer in named_layers(small):
        ours, theirs = vars(layer), vars(layers[name])
        derived = {
            hook.name for hook in layer._forward_pre_hooks.values() if isinstance(hook, SpectralNorm | WeightNorm)
        }
        for key in sorted((set(ours) | set(theirs)) - derived - {"training"}):
            here, there = ours.get(key), theirs.get(key)
            if isinstance(here, Tensor) and isinstance(there, Tensor):
                same = _equal(here, there)
            else:
                same = key.startswith("_") or not (key in ours and key in theirs) or _is_alike(here, there)
            if not same:
                said = "" if isinstance(here, Tensor) else f" is {str(there)[:40]} there and {str(here)[:40]} here"
                mend = ", a tensor that is no buffer and is another there: register_buffer" if not said else ""
                raise TicketError(f"make_model makes another network: {joined(name, key)}{said}{mend}")
    mine = {name: tensor for name, _, tensor in _places(again)}
    for name, _, tensor in _places(small):
        if name not in mine or not _equal(tensor, mine[name]):
            raise TicketError(f"make_model makes another network: {name} is not what the smaller one has")


def _is_alike(here: Any, there: Any) -> bool:
    """Whether two modules keep the same for their code, as far as that can be said."""
    if _is_plain(here) and _is_plain(there):
        return bool(_as_list(here) == _as_list(there))
    lists = all(isinstance(each, tuple | list) for each in (here, there))
    one, other = _parts_of(here), _parts_of(there)
    compared = lists or callable(here) or callable(there)
    return not compared or one is _UNTOLD or other is _UNTOLD or bool(one == other)


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


def _as_list(value: Any) -> Any:
    return [_as_list(each) for each in value] if isinstance(value, tuple | list) else value


# -- made smaller ---------------------------------------------------------------------------------------------


@torch.no_grad()
def filled(whole: nn.Module, tensors: Mapping[str, Tensor], difference: Difference) -> nn.Module:
    """The whole network itself, with the sizes and the tensors of the smaller one, in evaluation mode.

    Raises `TicketError` that names the first module or tensor that has no place in it, or is not in the file.
    """
    check_kinds(whole, difference.kinds)
    _check_said(whole, difference.said)
    layers = dict(named_layers(whole))
    for name, sizes in difference.sizes.items():
        known = sizes_of(layers[name]) if name in layers else {}
        for key, value in sizes.items():
            if key not in known or not _is_smaller(value, known[key]):
                raise TicketError(f"another network: {name or 'it'} cannot have {key}={str(value)[:40]}")
            setattr(layers[name], key, value if isinstance(value, int) else type(vars(layers[name])[key])(value))
    before = {name: (layer, tensor) for name, layer, tensor in _places(whole)}
    needed = {
        name for name, (layer, _) in before.items() if name.rpartition(".")[2] not in layer._non_persistent_buffers_set
    }
    if missing := sorted(needed - set(tensors) - set(difference.shared)):
        raise TicketError(f"another network: the file lacks {', '.join(missing[:3])}")
    put: dict[str, Tensor] = {}
    for name in (*tensors, *difference.shared):
        kept = difference.shared.get(name, name)
        put[kept] = _put(layers, before, name, put[kept] if kept in put else tensors[kept])
    for _, layer in named_layers(whole):
        _derive(layer)
    return whole.eval()


def _put(
    layers: Mapping[str, nn.Module], before: Mapping[str, tuple[nn.Module, Tensor]], name: str, tensor: Tensor
) -> Tensor:
    """Puts a tensor in its place, of no larger size; into a layer without a bias too, which gets one by folding."""
    owner, _, key = name.rpartition(".")
    layer = layers.get(owner)
    if name in before and _fits(tensor, was := before[name][1]):
        layer = before[name][0]
        if key in layer._buffers:
            layer._buffers[key] = tensor.clone()
            return layer._buffers[key]  # type: ignore[return-value]
        layer._parameters[key] = (
            tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.clone(), was.requires_grad)
        )
    elif key == "bias" and isinstance(layer, PRUNABLE) and layer._parameters.get("bias") is None and tensor.dim() == 1:
        layer._parameters["bias"] = nn.Parameter(tensor.clone())
    else:
        is_there = f"is {tuple(before[name][1].shape)} in what make_model makes" if name in before else "has no place"
        raise TicketError(f"another network: {name}, {tuple(tensor.shape)} in the smaller one, {is_there}")
    return layer._parameters[key]  # type: ignore[return-value]


def _fits(tensor: Tensor, was: Tensor) -> bool:
    same_kind = tensor.is_floating_point() == was.is_floating_point() and tensor.is_complex() == was.is_complex()
    return (
        same_kind
        and tensor.dim() == was.dim()
        and all(now <= most for now, most in zip(tensor.shape, was.shape, strict=True))
    )


def _derive(layer: nn.Module) -> None:
    """Old-style norms keep the weight that they derive as a plain attribute until the next forward pass."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            setattr(layer, hook.name, hook.compute_weight(layer))
        elif isinstance(hook, SpectralNorm):
            setattr(layer, hook.name, hook.compute_weight(layer, do_power_iteration=False))

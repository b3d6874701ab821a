"""A smaller network is a file: a ticket for an architecture of which some channels are gone.

The file is a ticket's (see `ticket`: safetensors, a digest over every bit, safe to open from a stranger). Its weights
are those of the small network, its masks those that are left to hold it to, and its origin says under `network` how
to build it: the model's name, the images it is for, its options, and the sizes of the layers that were cut. Where that
is code of one's own, it says the digest of that too, and no more: whoever opens the file gives what makes the model.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.catalogue import CATALOGUE, digests, is_code, load, taken
from gentickets.channels.kept import is_kept, read_kept
from gentickets.channels.pretrained import read_folder
from gentickets.errors import TicketError
from gentickets.masks.names import PRUNABLE, as_model, named_layers, named_state
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks

# What a layer says of its own size, and shrinking changes.
_SIZES = (
    "in_features", "out_features", "in_channels", "out_channels", "groups", "num_features", "num_groups",
    "num_channels", "num_parameters", "nx", "nf", "unflattened_size",
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A model, for square images of side `size` with `channels`: of the catalogue, or what `make` makes."""

    model: str
    size: int
    channels: int
    options: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[..., Any] | None = None

    def build(self) -> nn.Module:
        """The whole network, freshly drawn. Raises `ValueError` where the catalogue has none such; runs no code that
        its name says."""
        if self.make is None and self.model not in CATALOGUE["model"]:
            raise ValueError(f"model {self.model!r} is none of {', '.join(CATALOGUE['model'])}")
        make = self.make or load("model", self.model)
        takes = inspect.signature(make).parameters
        told = taken(make, size=self.size, channels=self.channels)
        every = self.make is None or any(one.kind is one.VAR_KEYWORD for one in takes.values())
        options = {key: value for key, value in self.options.items() if every or key in takes}
        return as_model(make(**told, **options))

    def skeleton(self) -> nn.Module:
        """The whole network without any values: its tensors are on the meta device and take no memory."""
        with torch.device("meta"):
            return self.build()


def small_ticket(
    model: nn.Module, masks: Masks, architecture: Architecture, origin: Mapping[str, Any] | None = None
) -> Ticket:
    """The file of a smaller network, to be saved: `small_ticket(…).save("small.safetensors")`.

    `model`: what `shrink` made of a model of `architecture`; `masks`: those left to hold it to (`Shrinking.masks`);
    `origin`: anything that JSON can hold. Raises `TicketError` where the model is of another architecture.
    """
    network = {
        "model": architecture.model,
        "size": architecture.size,
        "channels": architecture.channels,
        "options": dict(architecture.options),
        "sizes": _changed_sizes(_to_be_filled(architecture), model),
    }
    own = is_code(architecture.model)
    if own:
        network["code"] = digests([architecture.model])[architecture.model]
    ticket = Ticket(masks, model, {**(origin or {}), "network": network})
    rebuilt(ticket, architecture.make if own else None)  # what cannot be read back is not written
    return ticket


def load_small(path: str | os.PathLike[str], make_model: Callable[..., Any] | None = None) -> nn.Module:
    """The network in a file of `save_small`, `gentickets shrink` or `small_ticket`, in evaluation mode, on the CPU.

    Nothing in the file is run. Where its model is code of one's own, `make_model` makes it: a function that gives the
    whole network, as a module or a dict of components. For a file of `save_small` it is called without arguments, for
    one of a recipe's model with what it has arguments for of `size`, `channels` and the model's options. Raises
    `TicketError`, in one line, for a file that is missing, cut off, changed by as little as one bit, none of a small
    network, or one of another network than `make_model` makes: another class, size or number in it.

    `path` may be a folder of `save_pretrained` with its cuts beside the config; `make_model` is then the class.
    """
    if Path(path).is_dir():
        return read_folder(Path(path), make_model)
    if is_kept(path):
        return read_kept(path, make_model)
    ticket = Ticket.load(path)
    network = ticket.origin.get("network")
    if make_model is None and isinstance(network, dict) and is_code(network.get("model")):
        raise TicketError(
            f"{path} is of {network['model']}, code that no file runs by itself: "
            f"gentickets.load_small(path, make_model={str(network['model']).rpartition(':')[2]})"
        )
    try:
        return rebuilt(ticket, make_model)
    except TicketError as error:
        raise TicketError(f"{path}: {error}") from None


def rebuilt(ticket: Ticket, make_model: Callable[..., Any] | None = None) -> nn.Module:
    """The network that a `small_ticket` holds, in evaluation mode. Raises `TicketError` where it is none."""
    try:
        network = dict(ticket.origin["network"])
        sizes = network.pop("sizes")
        network.pop("code", None)
        _check_bounds(network, len(ticket.weights), own=make_model is not None)
        model = _to_be_filled(Architecture(**network, make=make_model))
        _set_sizes(model, sizes)
        for name, tensor in ticket.weights.items():
            _put(model, name, tensor.clone())
    except (LookupError, AttributeError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        reason = "its origin does not say how to build one" if "network" not in ticket.origin else error
        raise TicketError(f"no small network: {' '.join(str(reason).split())[:300]}") from None
    if missing := [name for name in named_state(model) if name not in ticket.weights]:
        raise TicketError(f"no small network: it lacks {', '.join(missing[:3])}")
    return model.eval()


def _to_be_filled(architecture: Architecture) -> nn.Module:
    """The whole network, whose weights are still to come; torch's global generator is left as it was."""
    if architecture.make is None or architecture.model in CATALOGUE["model"]:
        return architecture.skeleton()
    with torch.random.fork_rng(devices=[]):
        return architecture.build()  # it may compute what it does not save


_WIDEST = 2**16
"""More than any side of a network, or of its images, that a file may ask for."""

_WIDTHS = ("width", "latent")
"""Options that say how wide layers are, and not how many there are."""


def _check_bounds(network: Mapping[str, Any], tensors: int, own: bool = False) -> None:
    """Raises `ValueError` for what would take more to build than the file can fill: it may be a stranger's.

    Widths cost nothing, as the skeleton has no values. Of layers there can be no more than the file has tensors. Of a
    model of one's `own`, nothing tells widths from layers, and options may be words and fractions too.
    """
    model, options = network["model"], network["options"]
    if set(network) != {"model", "size", "channels", "options"} or not isinstance(model, str):
        raise ValueError(f"it says {', '.join(sorted(map(str, network)))[:100]} of the network")
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise ValueError("its options are no keys and values")
    for key, value in {"size": network["size"], "channels": network["channels"], **options}.items():
        each = value if isinstance(value, list) else [value]
        wide = own or key in ("size", "channels", *_WIDTHS) or isinstance(value, list)
        most = _WIDEST if wide else tensors
        if len(each) > tensors or not all(_is_plain(one, most) or (own and _is_said(one)) for one in each):
            raise ValueError(f"it cannot have {key}={str(value)[:40]}")


def _is_said(value: object) -> bool:
    """Whether an option of one's own model may be so, beside what any may be."""
    if isinstance(value, str):
        return len(value) <= 1000
    return type(value) in (int, float) and -_WIDEST <= value <= _WIDEST  # type: ignore[operator]


def _is_plain(value: object, most: int) -> bool:
    return value is None or isinstance(value, bool) or (type(value) is int and 1 <= value <= most)


def _changed_sizes(full: nn.Module, small: nn.Module) -> dict[str, dict[str, int | list[int]]]:
    """Layer → the sizes in which it differs between the two networks."""
    before, after = dict(named_layers(full)), dict(named_layers(small))
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise TicketError(f"the model is of another architecture: it differs in {odd!r}")
    changed = {}
    for name, layer in after.items():
        now, was = _sizes(layer) | _counts(layer), _sizes(before[name]) | _counts(before[name])
        if differing := {key: value for key, value in now.items() if value != was.get(key)}:
            changed[name] = differing
    return changed


def _sizes(layer: nn.Module) -> dict[str, int | list[int]]:
    found = {key: getattr(layer, key) for key in _SIZES if hasattr(layer, key)}
    return {key: value if isinstance(value, int) else [int(side) for side in value] for key, value in found.items()}


def _counts(layer: nn.Module) -> dict[str, int | list[int]]:
    """Whole numbers that a module of one's own keeps for its code (`channels`, `num_heads` …)."""
    if type(layer).__module__.startswith("torch."):
        return {}
    return {key: value for key, value in vars(layer).items() if type(value) is int and not key.startswith("_")}


def _set_sizes(model: nn.Module, sizes: Mapping[str, Mapping[str, int | list[int]]]) -> None:
    layers = dict(named_layers(model))
    for name, changed in sizes.items():
        known = _sizes(layers[name]) | _counts(layers[name])
        for key, value in changed.items():
            whole, most = ([each] if isinstance(each, int) else list(each) for each in (value, known.get(key, [])))
            if len(whole) != len(most) or not all(
                type(s) is int and 1 <= s <= m for s, m in zip(whole, most, strict=True)
            ):
                raise ValueError(f"{name} cannot have {key}={value!r}")
            setattr(layers[name], key, value if isinstance(value, int) else tuple(value))


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor in its place, of whatever size; into a layer without a bias too, which gets one by folding."""
    owner_name, _, key = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    before = owner._buffers.get(key, owner._parameters.get(key))
    added = key == "bias" and before is None and isinstance(owner, PRUNABLE)
    if not added and (before is None or before.dim() != tensor.dim() or before.dtype != tensor.dtype):
        raise ValueError(f"{name} has no place in the model")
    if key in owner._buffers:
        owner._buffers[key] = tensor
    else:
        owner._parameters[key] = nn.Parameter(tensor)

"""A smaller network of a package that builds its models from a config (diffusers, transformers): a folder of theirs.

Whether the config can say the new widths is found by trial: numbers of the config that are widths of the whole network
are replaced by what these have become, the class is built from it, and every shape is compared. Where all fit, and the
outputs too, the folder is one that `from_pretrained` reads without gentickets. Where some number cannot be said, the
config of the whole network is written with what was cut beside it, and that number is told.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gentickets.channels.kept import made_by, read_kept, save_small, sizes_of
from gentickets.errors import GenticketsError, TicketError
from gentickets.masks.examples import Example, compare, examples_of, outputs
from gentickets.masks.names import clone, component_at, joined, named_layers, named_state, unwrap

CUTS = "gentickets_cuts.safetensors"
"""The file beside a config that cannot say what was cut."""

Way = tuple[str | int, ...]
"""The way to an entry of a config, through its dictionaries and sequences."""

Change = tuple[Way, Any]

_TRIALS = 400
"""So many configs are tried at most: each builds the class once, without values."""

_RATIOS, _WIDTHS = 3, 6
"""How many ratios of widths are tried on numbers, and how many widths where the config says none."""


@dataclass(frozen=True)
class Pretrained:
    """What was written: the folder, the config's entries that changed (before, now), and the line that loads it.

    `unsaid`: the number that no config could say; empty where `from_pretrained` reads the folder.
    """

    folder: Path
    changed: Mapping[str, tuple[Any, Any]]
    unsaid: str
    load: str


def save_pretrained(small: nn.Module, folder: str | os.PathLike[str], example_inputs: Any) -> Pretrained:
    """Writes a smaller network as its own package does, with a config that says the new widths where one can.

    `small`: what `shrink` made of a model of diffusers or transformers, whose `config` is still that of the whole one;
    `example_inputs`: as for `shrink`. Where the config can say every width, the class is built from it, compared with
    `small`, saved by `save_pretrained`, read again by `from_pretrained` and compared again. Where it cannot, the folder
    holds the config of the whole network and `gentickets_cuts.safetensors`, and `load_small(folder, make_model=Class)`
    reads it.

    Raises `TicketError` for a model without such a config, and for a folder that is not empty.
    """
    folder = Path(folder)
    small = unwrap(small)
    config, build = _configured(type(small), getattr(small, "config", None))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TicketError(f"{folder} is there and not empty: name a new folder")
    examples = examples_of(small, example_inputs)
    kind = type(small).__name__
    with _quiet():
        made, changes, unsaid = _said(small, config, build, examples)
        folder.mkdir(parents=True, exist_ok=True)
        if made is not None:
            _save(small, made, folder, examples)
        else:
            _write_config(small, folder)
            save_small(small, folder / CUTS, lambda: build(config), example_inputs)
    if made is not None:
        changed = {_written(way): (_at(config, way), value) for way, value in changes.items()}
        return Pretrained(folder, changed, "", f"{kind}.from_pretrained({str(folder)!r})")
    return Pretrained(folder, {}, unsaid, f"gentickets.load_small({str(folder)!r}, make_model={kind})")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the packages say of configs that are tried."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def read_folder(folder: Path, make_model: Any) -> nn.Module:
    """The network in a folder of `save_pretrained` with its cuts beside the config. Raises `TicketError`."""
    if not (folder / CUTS).is_file():
        raise TicketError(f"{folder} holds no {CUTS}: from_pretrained reads a folder without one")
    if isinstance(make_model, type) and hasattr(make_model, "from_config") and hasattr(make_model, "load_config"):
        return read_kept(folder / CUTS, lambda: make_model.from_config(make_model.load_config(folder)))
    kind: Any = getattr(make_model, "config_class", None)
    if isinstance(make_model, type) and isinstance(kind, type):
        return read_kept(folder / CUTS, lambda: make_model(kind.from_pretrained(folder)))  # type: ignore[attr-defined]
    return read_kept(folder / CUTS, make_model)


# -- configs --------------------------------------------------------------------------------------------------


def _configured(kind: type, config: Any) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], nn.Module]]:
    """A model's config as plain data, and what builds its class from such."""
    if isinstance(config, Mapping) and hasattr(kind, "from_config"):
        return copy.deepcopy(dict(config)), lambda said: kind.from_config(copy.deepcopy(dict(said)))
    if hasattr(config, "to_dict") and hasattr(type(config), "from_dict") and hasattr(kind, "from_pretrained"):
        return config.to_dict(), lambda said: kind(type(config).from_dict(copy.deepcopy(dict(said))))
    raise TicketError(
        f"a {kind.__name__} has no config from which its class is built, as models of diffusers and transformers have: "
        f"save_small writes it with make_model"
    )


def _write_config(small: Any, folder: Path) -> None:
    if isinstance(small.config, Mapping):
        small.save_config(folder)
    else:
        small.config.save_pretrained(folder)


def _entries(value: Any, way: Way = ()) -> Iterator[Change]:
    """Every number of a config, and every None, with the way to it; not what the package itself keeps there."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if not str(key).startswith("_"):
                yield from _entries(part, (*way, key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _entries(part, (*way, index))
    elif value is None or (type(value) in (int, float) and value > 0):
        yield way, value


def _at(config: Any, way: Way) -> Any:
    for step in way:
        config = config[step]
    return config


def _with(config: Any, changes: Mapping[Way, Any], way: Way = ()) -> Any:
    """A config with some of its entries changed."""
    if way in changes:
        return changes[way]
    if isinstance(config, Mapping):
        return {key: _with(part, changes, (*way, key)) for key, part in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_with(part, changes, (*way, index)) for index, part in enumerate(config))
    return config


def _written(way: Way) -> str:
    """The way to an entry as one writes it: block_out_channels[0]."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in way).removeprefix(".")


# -- which config says it -------------------------------------------------------------------------------------

Sizes = dict[str, int]
"""What of a network is so long: an axis of a tensor, or what a module says of itself."""


class _Search:
    """Numbers of a config, tried as widths, until the class built from it has every size of the smaller network.

    A change is kept where more sizes fit with it than without. `best` is the config, `changes` what in it is another.
    """

    def __init__(
        self,
        small: nn.Module,
        config: Mapping[str, Any],
        build: Callable[[Mapping[str, Any]], nn.Module],
        without: Way | None = None,
    ):
        self.config, self.build, self.trials = config, build, 0
        self.changes: dict[Way, Any] = {}
        self.wanted = _sizes(small)
        whole = self._made({})
        assert whole is not None
        # Of code of their own, what was not changed may be what nothing reads.
        layers = dict(named_layers(small))
        self.free = {key for key, size in self.wanted.items() if whole.get(key) == size and _is_of_code(layers, key)}
        self.fits = self._misfits(whole)
        pairs = Counter((size, self.wanted[key]) for key, size in whole.items() if self.wanted.get(key, size) != size)
        self.candidates = [change for change in self._candidates(pairs) if change[0] != without]
        self._descend()

    @property
    def best(self) -> dict[str, Any]:
        return _with(self.config, self.changes)

    def unsaid(self) -> str:
        """The first size that the best config cannot say, in words; empty where there is none."""
        made = self._made(self.changes, always=True) or {}
        key = next((key for key in self.wanted if key not in self.free and made.get(key) != self.wanted[key]), None)
        if key is None:
            return ""
        said = ", ".join(f"{_written(way)}={value}" for way, value in self.changes.items())
        return (
            f"no config says {key}={self.wanted[key]}: it is {made.get(key, 'absent')} by "
            f"{f'the nearest one, with {said}' if said else 'that of the whole network'}"
        )

    def _candidates(self, pairs: Counter[tuple[int, int]]) -> Iterator[Change]:
        ratios = list(dict.fromkeys(now / was for (was, now), _ in pairs.most_common() if was))[:_RATIOS]
        widths = list(dict.fromkeys(now for (_, now), _ in pairs.most_common()))[:_WIDTHS]
        for way, value in _entries(self.config):
            if value is None:
                found: list[Any] = list(widths)
            elif type(value) is float:
                found = [value * ratio for ratio in ratios]
            else:
                scaled = [round(value * ratio) for ratio in ratios if (value * ratio).is_integer()]
                found = [*(now for (was, now) in pairs if was == value), *scaled]
            yield from ((way, new) for new in dict.fromkeys(found) if new and new != value)

    def _descend(self) -> None:
        failed: list[Change] = []
        again = True
        while again and self.fits:
            again = False
            tried = [(self._tried(change), change) for change in self.candidates]
            failed = [change for fits, change in tried if fits is None]
            better = sorted(
                (fits, place) for place, (fits, _) in enumerate(tried) if fits is not None and fits < self.fits
            )
            for _, place in better:
                again |= self._keep(tried[place][1])
            if not again:  # some numbers are to be changed together
                again = any(self._keep(one, other) for one in failed for other in self.candidates if one[0] != other[0])
            self.candidates = [tried[place][1] for _, place in better] + failed

    def _keep(self, *changes: Change) -> bool:
        """Keeps changes where more fits with them."""
        fits = self._tried(*changes)
        if fits is None or fits >= self.fits:
            return False
        self.changes |= dict(changes)
        self.fits = fits
        return True

    def _tried(self, *changes: Change) -> int | None:
        """How many sizes do not fit with some changes; None where no class can be built so."""
        made = self._made({**self.changes, **dict(changes)})
        return None if made is None else self._misfits(made)

    def _misfits(self, made: Sizes) -> int:
        return sum(made.get(key) != size for key, size in self.wanted.items() if key not in self.free) + sum(
            key not in self.wanted for key in made
        )

    def _made(self, changes: Mapping[Way, Any], always: bool = False) -> Sizes | None:
        if self.trials >= _TRIALS and not always:
            return None
        self.trials += 1
        config = _with(self.config, changes)
        for device in ("meta", "cpu") if not changes else ("meta",):
            try:
                with torch.random.fork_rng(devices=[]), torch.device(device):
                    return _sizes(self.build(config))
            except Exception:  # whatever their code says to numbers that do not go together
                continue
        return None


def _sizes(net: nn.Module) -> Sizes:
    found: Sizes = {}
    for name, tensor in named_state(net).items():
        found |= {f"{name} (axis {axis})": size for axis, size in enumerate(tensor.shape)}
    for name, layer in named_layers(net):
        for key, value in sizes_of(layer).items():
            if isinstance(value, int) and not key.startswith("_"):
                found[joined(name, key)] = value
    return found


def _is_of_code(layers: Mapping[str, nn.Module], key: str) -> bool:
    """Whether a size is one that a module that is not torch's own says of itself."""
    layer = layers.get(key.rpartition(".")[0]) if not key.endswith(")") else None
    return layer is not None and not type(layer).__module__.startswith("torch.")


# -- written, and read again ----------------------------------------------------------------------------------


def _said(
    small: nn.Module, config: Mapping[str, Any], build: Callable[..., Any], examples: Mapping[str, Example]
) -> tuple[Any, Mapping[Way, Any], str]:
    """The class built from a config that says what `small` is, with its weights, and the changes to the config; or None
    and what none says. Equal shapes may come about in several ways: each change is done without, in turn."""
    first = _Search(small, config, build)
    if unsaid := first.unsaid():
        return None, {}, unsaid
    for without in (None, *first.changes):
        found = first if without is None else _Search(small, config, build, without)
        if found.unsaid():
            continue
        made, unlike = _filled(small, build, found.best, examples)
        if made is not None:
            return made, found.changes, ""
        unsaid = unsaid or unlike
    return None, {}, unsaid


def _filled(
    small: nn.Module, build: Callable[..., Any], config: Mapping[str, Any], examples: Mapping[str, Example]
) -> tuple[Any, str]:
    """What a config builds, with the weights of `small`, where it computes the same; else None, and why it does not."""
    made: Any = made_by(lambda: build(config)).to(_dtype(small)).eval()
    try:
        made.load_state_dict(small.state_dict())
    except RuntimeError as error:
        return None, f"the class that its config builds takes other tensors ({' '.join(str(error).split())[:200]})"
    unlike = _unlike(small, made, examples)
    return (None, f"the class that its config builds {unlike}") if unlike else (made, "")


def _dtype(net: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in net.parameters() if weight.is_floating_point()), torch.float32)


def _save(small: Any, made: Any, folder: Path, examples: Mapping[str, Example]) -> None:
    """Writes the folder by the package's own means, and compares what it reads of it."""
    made.save_pretrained(folder)
    dtype = _dtype(small)
    again = type(small).from_pretrained(folder, **({} if dtype == torch.float32 else {"torch_dtype": dtype}))
    if unlike := _unlike(small, again, examples):
        raise GenticketsError(f"{folder}: what from_pretrained reads {unlike}")


def _unlike(small: nn.Module, made: nn.Module, examples: Mapping[str, Example]) -> str:
    """How two networks differ, in words; empty where they compute the same."""
    for component, example in examples.items():
        nets = (component_at(net, component) for net in (clone(small).cpu(), made))
        try:
            expected, found = (outputs(net, example.to("cpu")) for net in nets)
        except Exception as error:  # of their code
            return f"does not run ({' '.join(str(error).split())[:200]})"
        if not (compared := compare(expected, found)).equal:
            return f"computes something else: it differs by {compared.difference:.2g} in {compared.place or 'all'}"
    return ""

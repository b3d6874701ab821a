"""A network as bytes, for another process of the same run: what pickle does, and what it refuses to.

Nothing is read here but what a process of this run wrote a moment ago: a pickle runs code.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gentickets.errors import GenticketsError


def packed(what: Any) -> bytes:
    """Models, objectives and plain values as bytes. Raises `GenticketsError` for what holds something of this process
    alone, such as a function without a name."""
    file = io.BytesIO()
    try:
        _Packer(file).dump(what)
    except Exception as error:  # pickle says whatever it likes
        said = " ".join(str(error).split())
        raise GenticketsError(
            f"training.devices above 1: model or objective cannot be handed to another process ({said}); give its "
            f"functions names, or train on one device"
        ) from error
    return file.getvalue()


def unpacked(content: bytes) -> Any:
    """What `packed` was given, in this process."""
    return pickle.loads(content)


class _Packer(pickle.Pickler):
    """Layers with parametrisations too, whose class torch makes as it goes, and weights that norms derived."""

    def reducer_override(self, given: Any) -> Any:
        if isinstance(given, nn.Module) and parametrize.is_parametrized(given):
            kept = {**vars(given), "_modules": dict(given._modules)}
            chains = kept["_modules"].pop("parametrizations")
            kept["_load_state_dict_pre_hooks"] = OrderedDict()  # torch's, for files of old-style norms: local functions
            return _parametrised, (parametrize.type_before_parametrizations(given), kept, dict(chains.items()))
        if isinstance(given, Tensor) and not given.is_leaf:
            return torch.Tensor.detach, (given.detach(),)
        return NotImplemented


def _parametrised(kind: type[nn.Module], state: dict[str, Any], chains: dict[str, nn.Module]) -> nn.Module:
    """A layer with these parametrisations: registered anew, and then put in the place of the new ones."""
    layer: Any = kind.__new__(kind)
    vars(layer).update(state)
    for name, chain in chains.items():
        layer.register_parameter(name, nn.Parameter(torch.zeros(())))
        parametrize.register_parametrization(layer, name, nn.Identity(), unsafe=True)
        layer.parametrizations[name] = chain
    return layer

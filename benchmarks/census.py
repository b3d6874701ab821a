"""Which networks of other people's packages shrink, how far, and what stops the others: `python -m benchmarks.census`.

Small networks with random weights, each with an example input; a package that is not installed is left out. Half of
the channels of every layer go by magnitude, wherever they may. `shrink` compares what is left with the masked network
before it hands it out, so a share of parameters in the table is a proven one. Then a step of gradient descent is done.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from torch import Tensor, nn

import gentickets as gt
from benchmarks.census_models import MODELS, PACKAGES
from gentickets.masks.examples import Example, named_tensors
from gentickets.masks.names import clone, component_at


@dataclass(frozen=True)
class Found:
    """What became of one network: the share of parameters that is left, or why there is none."""

    name: str
    left: float | None
    groups: int
    stays: str
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.census", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of the models to take; all without any")
    parser.add_argument("--json", help="a file for the table")
    asked = parser.parse_args(arguments)
    rows = []
    print(machine())
    print("| model | parameters left | groups | stays whole, or why it is refused | seconds |\n|---|---|---|---|---|")
    for name, make in MODELS.items():
        if asked.names and not any(part in name for part in asked.names):
            continue
        try:
            torch.manual_seed(0)
            net, inputs = make()
        except ModuleNotFoundError as missing:
            print(f"| {name} | not installed ({missing.name}) | | | |")
            continue
        rows.append(found := shrunk(name, net.eval(), inputs))
        left = "refused" if found.left is None else f"{found.left:.3f}"
        print(f"| {name} | {left} | {found.groups} | {found.stays} | {found.seconds:.1f} |", flush=True)
    whole = [found for found in rows if found.left is not None and found.left <= 0.9]
    print(f"\n{len(whole)} of {len(rows)} keep at most 90 % of their parameters.")
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump({"machine": machine(), "models": [vars(found) for found in rows]}, file, indent=1)
    return 0


def shrunk(name: str, net: nn.Module, inputs: Any) -> Found:
    """Half of the channels of each layer pruned, the rest made a network of its own, and trained for a step."""
    begin = time.perf_counter()
    groups: Any = ()

    def found(left: float | None, stays: str) -> Found:
        return Found(name, left, len(groups), " ".join(stays.split())[:300], time.perf_counter() - begin)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            groups = gt.channel_groups(net, inputs)
            if not len(groups):
                return found(None, groups.reasons() or "it has no layer that is known")
            scores = gt.magnitude(net, include=_weights(net))
            masks = gt.prune(scores, fraction=0.5, scope="layer", granularity="channel", groups=groups)
            small = gt.shrink(net, masks, inputs)
            if _trains(clone(net), inputs):
                _train(small, inputs)
        except gt.GenticketsError as error:
            return found(None, str(error))
        except Exception as error:  # of whatever kind: the census goes on, and tells of it
            return found(None, f"FAULT {type(error).__name__}: {error}")
    parts = [name for name, _ in _calls(net, inputs)]
    return found(_size(small, parts) / _size(net, parts), groups.reasons())


def _weights(net: nn.Module) -> list[str]:
    """The weights of matrices and filters: of linear layers that are not torch's own, too."""
    theirs = [name for name, layer in net.named_modules() if type(layer).__name__ == "Conv1D"]
    return [*gt.Masks.dense(net)] if not theirs else [f"{name}.weight" for name in theirs]


def _trains(net: nn.Module, inputs: Any) -> bool:
    """Whether a network can be trained at all as it is."""
    try:
        _train(net, inputs)
    except RuntimeError:
        return False
    return True


def _train(net: nn.Module, inputs: Any) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for component, given in _calls(net, inputs):
        result = Example.of(given, component)(component_at(net, component))
        loss = sum(t.square().mean() for _, t in named_tensors(result) if t.is_floating_point() and t.grad_fn)
        if isinstance(loss, Tensor):
            loss.backward()
    optimizer.step()


def _calls(net: nn.Module, inputs: Any) -> Iterator[tuple[str, Any]]:
    names = [name for name, _ in net.named_children()]
    if isinstance(inputs, dict) and set(inputs) <= set(names):
        yield from inputs.items()
    else:
        yield "", inputs


def _size(net: nn.Module, parts: list[str]) -> int:
    return sum(weight.numel() for name in parts for weight in component_at(net, name).parameters())


def machine() -> str:
    """Versions, machine and date."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{', '.join(versions)}; {platform.machine()}, {datetime.now():%Y-%m-%d}"


if __name__ == "__main__":
    sys.exit(main())

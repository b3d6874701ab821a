"""What training costs once a channel ticket is shrunk, against the dense net and one that was born narrow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import gentickets as gt
from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.steps import Net, Step, build

WIDTH = 64
SHARES = (0.5, 0.3, 0.12)
"""Of the channels of each layer, how many are kept."""
AT_MOST: Mapping[str, Mapping[float, float]] = {
    "dcgan": {0.5: 0.36, 0.3: 0.21, 0.12: 0.11},
    "vae": {0.5: 0.32, 0.3: 0.19, 0.12: 0.09},
}


@benchmark({"net": ("dcgan", "vae"), "kept": SHARES}, {"net": ("vae",), "kept": (0.5,), "width": (8,)})
def channels(net: str, kept: float, width: int = WIDTH) -> Contest:
    """Both components shrunk."""
    target = {"ratio": AT_MOST[net][kept]}
    return _contest(
        {
            "dense": build(net, width=width),
            "shrunk ticket": shrunk(net, kept, width),
            "shrunk ticket, multiples of 8": shrunk(net, kept, width, multiple=8),
            "born narrow": build(net, width=math.ceil(width * kept)),
        },
        {"shrunk ticket": target, "shrunk ticket, multiples of 8": target},
    )


@benchmark({"kept": SHARES}, {"kept": (0.5,), "width": (8,)})
def generator_channels(kept: float, width: int = WIDTH) -> Contest:
    """Only the DCGAN's generator shrunk: the discriminator stays as dear as it was."""
    return _contest(
        {
            "dense": build("dcgan", width=width),
            "shrunk generator": shrunk("dcgan", kept, width, components=("generator",)),
        }
    )


def _contest(nets: Mapping[str, Net], targets: Mapping[str, Mapping[str, float]] | None = None) -> Contest:
    return Contest(
        "dense",
        {
            name: Contender(Step(net), figures={"weights": _weights(net)}, at_most=(targets or {}).get(name, {}))
            for name, net in nets.items()
        },
    )


def _weights(net: Net) -> int:
    return sum(weight.numel() for weight in net.model.parameters())


def shrunk(name: str, kept: float, width: int, components: Iterable[str] = (), multiple: int = 1) -> Net:
    """The network after a channel ticket that keeps that share of each layer's channels."""
    net = build(name, width=width)
    chosen = tuple(components) or net.objective.components
    inputs = net.objective.example_inputs(net.model, net.batch[:2])
    inputs = {component: inputs[component] for component in chosen}
    masks = gt.prune(
        gt.magnitude(net.model, chosen),
        fraction=round(1 - kept, 9),
        scope="layer",
        granularity="channel",
        groups=gt.channel_groups(net.model, inputs),
        multiple=multiple,
    )
    return replace(net, model=gt.shrink(net.model, masks, inputs))

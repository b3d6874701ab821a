"""Small networks that ask for what a file cannot fill: `python -m tests.fuzz.small_nets`."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import torch

import gentickets as gt
from gentickets.channels.shrinking import Shrinking
from gentickets.channels.small import Architecture, small_ticket
from gentickets.masks.value import Masks
from gentickets.models import CATALOGUE
from tests.fuzz.hunt import Attempt, main
from tests.fuzz.mutations import any_of, hostile, mutated
from tests.fuzz.tickets import header_of, hostile_ticket, with_header

ARCHITECTURES = (
    (Architecture("linear-autoencoder", 8, 1, {"width": 6, "depth": 1, "latent": 2}), gt.Autoencoding()),
    (Architecture("conv-vae", 8, 1, {"width": 2, "latent": 2}), gt.ELBO(latent_size=2)),
    (Architecture("dcgan", 8, 1, {"width": 2, "latent": 2}), gt.Adversarial(latent_size=2)),
)
OPTIONS = ("width", "depth", "latent", "hidden", "critic_norm", "size", "x")
NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    64,
    1000,
    2**16,
    2**17,
    2**31,
    2**40,
    2**64,
    -1,
    True,
    None,
    1.5,
    "8",
    [3],
    [1] * 400,
)


def bases() -> list[bytes]:
    """Whole files of small networks."""
    torch.manual_seed(0)
    found = []
    for architecture, objective in ARCHITECTURES:
        model = architecture.build().eval()
        inputs = objective.example_inputs(model, torch.zeros(2, 1, 8, 8))
        masks = gt.prune(gt.magnitude(model), to_sparsity=0.5)
        shrinking = Shrinking(model, masks, inputs)
        found += [small_ticket(model, Masks.dense(model), architecture).to_bytes()]
        found += [small_ticket(shrinking.model, shrinking.masks, architecture, {"level": 1}).to_bytes()]
    return found


def hostile_small_net(rng: random.Random, whole: list[bytes]) -> bytes:
    """A file that is almost a small network's, its digest mended."""
    if rng.random() < 0.15:
        return hostile_ticket(rng, whole)
    raw = rng.choice(whole)
    header = header_of(raw)
    origin = json.loads(header["__metadata__"]["origin"])
    network = origin["network"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.3:
            network["options"][rng.choice(OPTIONS)] = any_of(rng, rng.choice(NUMBERS), hostile(rng))
        elif kind < 0.45:
            network[any_of(rng, "size", "channels")] = any_of(rng, rng.choice(NUMBERS), hostile(rng))
        elif kind < 0.55:
            network["model"] = any_of(rng, *CATALOGUE, hostile(rng))
        elif kind < 0.75 and network["sizes"]:
            sizes = network["sizes"][rng.choice(list(network["sizes"]))]
            sizes[any_of(rng, *sizes, "groups", "in_features", "x")] = any_of(rng, rng.choice(NUMBERS), hostile(rng))
        else:
            origin = mutated(rng, origin, 1)
            network = origin.get("network") if isinstance(origin, dict) else None
            if not isinstance(network, dict) or not all(isinstance(network.get(k), dict) for k in ("options", "sizes")):
                break
            if not all(isinstance(sizes, dict) and sizes for sizes in network["sizes"].values()):
                break
    try:
        header["__metadata__"]["origin"] = json.dumps(origin)
    except (ValueError, RecursionError):
        header["__metadata__"]["origin"] = "[" * 3000
    if rng.random() < 0.2:
        tensors = [key for key in header if key != "__metadata__"]
        header[rng.choice(tensors)] = mutated(rng, header.pop(rng.choice(tensors)), 1)
    try:
        return with_header(header, raw)
    except (ValueError, RecursionError):
        return raw[:-1]


def prepare() -> Attempt:
    whole = bases()
    file = Path(tempfile.mkdtemp()) / "small.safetensors"

    def attempt(rng: random.Random) -> None:
        file.write_bytes(hostile_small_net(rng, whole))
        gt.load_small(file)

    return attempt


if __name__ == "__main__":
    main("small networks", prepare)

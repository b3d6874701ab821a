"""Saving and loading a ticket of a model of ten million weights, against masks as float tensors in a pickle."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

import gentickets as gt
from benchmarks.contest import Contender, Contest, benchmark
from gentickets import models

HEADER = 4096
"""Bytes that names, shapes and the digest may take."""


@benchmark({"hidden": (1600,)}, {"hidden": (16,)})
def saving_tickets(hidden: int) -> Contest:
    """Masks alone, and masks with the weights to start from. gentickets waits until the file is on the disk."""
    closing = ExitStack()
    model, masks, folder = _ticketed(hidden, closing)
    light, whole = gt.Ticket(masks), gt.Ticket(masks, model)
    ways = {
        "torch.save of float masks": lambda: torch.save(_floats(masks), folder / "floats"),
        "gentickets, masks": lambda: light.save(folder / "masks"),
        "torch.save of float masks and weights": lambda: torch.save((_floats(masks), whole.weights), folder / "both"),
        "gentickets, masks and weights": lambda: whole.save(folder / "whole"),
    }
    packed = {"ms": 100.0, "bytes": masks.total / 8 + HEADER}
    at_most = {"gentickets, masks": packed, "gentickets, masks and weights": {"ms": 100.0}}
    contenders = {}
    for (name, run), file in zip(ways.items(), ("floats", "masks", "both", "whole"), strict=True):
        run()
        figures = {"bytes": (folder / file).stat().st_size}
        contenders[name] = Contender(run, figures=figures, at_most=at_most.get(name, {}))
    return Contest("torch.save of float masks", contenders, closing)


@benchmark({"hidden": (1600,)}, {"hidden": (16,)})
def loading_tickets(hidden: int) -> Contest:
    """gentickets checks every bit on the way; torch's reader is the one that runs no code."""
    closing = ExitStack()
    model, masks, folder = _ticketed(hidden, closing)
    torch.save(_floats(masks), folder / "floats")
    torch.save((_floats(masks), model.state_dict()), folder / "both")
    gt.Ticket(masks).save(folder / "masks")
    gt.Ticket(masks, model).save(folder / "whole")
    ways = {
        "torch.load of float masks": lambda: torch.load(folder / "floats"),
        "gentickets, masks": lambda: gt.Ticket.load(folder / "masks"),
        "torch.load of float masks and weights": lambda: torch.load(folder / "both"),
        "gentickets, masks and weights": lambda: gt.Ticket.load(folder / "whole"),
    }
    return Contest("torch.load of float masks", {name: Contender(run) for name, run in ways.items()}, closing)


def _ticketed(hidden: int, closing: ExitStack) -> tuple[torch.nn.Module, gt.Masks, Path]:
    """A model (1600 hidden units: 10 million weights), its masks at 90 %, and a folder for the files."""
    torch.manual_seed(0)
    model = models.linear_autoencoder(32, 3, hidden=[hidden], latent=64)
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.9)
    return model, masks, Path(closing.enter_context(tempfile.TemporaryDirectory()))


def _floats(masks: gt.Masks) -> dict[str, torch.Tensor]:
    return {name: mask.float() for name, mask in masks.items()}

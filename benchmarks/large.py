"""`python -m benchmarks.large`: masks, thresholds and tickets of a large model, by the memory that they take.

One process does one thing after the other, as a search would; each line is the most that the process held during a
thing, all that it held before included, and its seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gentickets as gt
from benchmarks import report
from gentickets import models
from gentickets.cores import forget_peak, give_back, held_memory, peak_memory
from gentickets.files import replace_file
from gentickets.lab.run.folder import load_weights, save_weights
from gentickets.masks.names import named_state

IMAGE = 64 * 64 * 3
GIB = 2**30


@dataclass(frozen=True)
class Row:
    what: str
    seconds: float
    peak_bytes: int
    held_bytes: int


@dataclass
class Account:
    """What each thing took. `do` gives back what it makes."""

    rows: list[Row] = field(default_factory=list)

    def do(self, what: str, make: Callable[[], Any]) -> Any:
        give_back()
        forget_peak()
        begun = time.perf_counter()
        made = make()
        row = Row(what, time.perf_counter() - begun, peak_memory(), held_memory())
        self.rows.append(row)
        print(f"{what:55} {row.seconds:7.2f} s  peak {row.peak_bytes / GIB:6.2f} GiB", flush=True)
        return made


def autoencoder(weights: float) -> nn.Module:
    """A linear autoencoder of about so many weights: three hidden layers to each side of a code of 64."""
    width = (math.sqrt(IMAGE**2 + 4 * weights) - IMAGE) / 4  # of 2 (IMAGE w + 2 w²) weights
    return models.linear_autoencoder(64, 3, hidden=[max(8, round(width))] * 3, latent=64)


def measure(weights: float, folder: Path) -> Account:
    account = Account()
    do = account.do
    model = do("the model itself", lambda: autoencoder(weights))
    dense = do("masks: all alive (Masks.dense)", lambda: gt.Masks.dense(model))
    early = do("ticket: a copy of the weights", lambda: gt.Ticket(dense, model))
    masks = do("magnitude and a global threshold, to 90 %", lambda: gt.prune(gt.magnitude(model), to_sparsity=0.9))
    other = do("the same within it, one more round of 20 %", lambda: _again(model, masks))
    do("a threshold a layer", lambda: gt.prune(gt.magnitude(model), to_sparsity=0.9, scope="layer"))
    do("random scores (float64) and a global threshold", lambda: gt.prune(gt.random_scores(model, 0), to_sparsity=0.9))
    do("distance and overlap with other masks", lambda: (masks.distance(other), gt.overlap(masks, other).jaccard))
    do("algebra, counts, fingerprint", lambda: ((masks & other).alive, (~masks).sparsity, masks.fingerprint))
    ticket = do("ticket: later masks over early weights", lambda: gt.Ticket(masks, early))
    do("ticket: saved", lambda: ticket.save(folder / "t"))
    do("ticket: its fingerprint", lambda: ticket.fingerprint)
    do("ticket: installed, masks applied", lambda: ticket.install(model))
    _of_files(do, model, folder)
    do("held for two steps of Adam at batch 16", lambda: _held(model, masks))
    return account


def _of_files(do: Callable[[str, Callable[[], Any]], Any], model: nn.Module, folder: Path) -> None:
    loaded = do("ticket: loaded, every bit checked", lambda: gt.Ticket.load(folder / "t"))
    do("two tickets compared", lambda: gt.difference(loaded, loaded))
    do("trained weights: saved", lambda: save_weights(folder / "w", named_state(model)))
    do("trained weights: loaded", lambda: load_weights(folder / "w"))


def _again(model: nn.Module, masks: gt.Masks) -> gt.Masks:
    return gt.prune(gt.magnitude(model), fraction=0.2, within=masks)


def _held(model: nn.Module, masks: gt.Masks) -> None:
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.rand(16, 3, 64, 64)
    with masks.hold(model, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            (model.decoder(model.encoder(images)) - images).square().mean().backward()
            optimizer.step()
    model.zero_grad()


def main(arguments: list[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    torch.manual_seed(0)
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        account = measure(asked.millions * 1e6, Path(folder))
    most = max(row.peak_bytes for row in account.rows)
    print(f"{asked.millions:g} million weights: {most / GIB:.1f} GiB at most")
    if asked.out is not None:
        document = {
            "machine": report.machine(),
            "millions": asked.millions,
            "rows": [asdict(row) for row in account.rows],
        }
        replace_file(asked.out, (json.dumps(document, indent=1) + "\n").encode())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large", description="Masks and tickets of a large model."
    )
    parser.add_argument("--millions", type=float, default=500.0, help="millions of weights (default: 500)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as many as torch takes)")
    parser.add_argument("--folder", type=Path, help="where files are written meanwhile (default: the system's)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the result there too")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""What a smaller decoder costs and gives, of a run of recipes/showcase/small-decoder.yaml: one row a network, as CSV.

    python -m benchmarks.small_decoder runs/small-decoder-desk > docs/results/small-decoder-desk.csv

Parameters and FLOPs are those of the decoder, of one image decoded. `decode`: the time of a decode, as a share of that
of the same seed's dense decoder: the median of interleaved pairs, batches of 16, one thread, read here and now.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gentickets.lab.results.reading import LevelResult, read_run
from gentickets.lab.shipping import Shipment, of_level, time_ratio
from gentickets.lab.study.study import read_record
from gentickets.masks.examples import Example
from gentickets.metrics.cost import cost

BATCH, PAIRS = 16, 15
COLUMNS = (
    "arm", "kind", "level", "seed", "steps", "parameters", "flops", "reconstruction_mse", "psnr",
    "frechet_reconstructed", "decode", "train_seconds",
)  # fmt: skip


def rows(study: Path) -> Iterator[dict[str, Any]]:
    """Every network of a study: the dense ones once, those of the first arm."""
    first, *others = read_record(study).arms
    for arm in (first, *others):
        for result in read_run(study / arm).levels:
            if result.status == "complete" and (result.level or arm == first):
                yield row(study / first, arm if result.level else "dense", result)


def row(first: Path, arm: str, result: LevelResult) -> dict[str, Any]:
    """One network beside the dense one of its seed."""
    dense, small = of_level(first / f"seed-{result.seed}" / "level-00"), of_level(result.folder)
    code = small.examples["decoder"]
    found = cost(decoder_of(small), code)
    batch = Example.of(code.repeat(BATCH // len(code), 1, 1, 1), "decoder")
    measured = {key: metric.value for key, metric in result.metrics.items() if key in COLUMNS}
    return {
        "arm": arm,
        "kind": result.arm,
        "level": result.level,
        "seed": result.seed,
        "steps": result.end_step - result.start_step,
        "parameters": found.parameters,
        "flops": found.flops_dense,
        **{key: f"{value:.6g}" for key, value in measured.items()},
        "decode": f"{time_ratio(decoder_of(dense), decoder_of(small), batch, PAIRS):.3f}",
        "train_seconds": f"{result.timing.train_seconds:.1f}" if result.timing else "",
    }


def decoder_of(shipment: Shipment) -> nn.Module:
    return shipment.model.get_submodule("decoder")


def main() -> None:
    torch.set_num_threads(1)
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in rows(Path(sys.argv[1])):
        writer.writerow(one)


if __name__ == "__main__":
    main()

"""What a process holds is told as the system has it, a plan beside what was used, and what fits nowhere is a line."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import gentickets as gt
from gentickets import MaskError, Masks, PruneError, TicketError
from gentickets.cores import forget_peak, give_back, held_memory, peak_memory
from gentickets.lab.results.reading import read_run
from gentickets.lab.run.folder import write_json
from gentickets.lab.run.plan import Plan, used_memory
from test_results import build_run

MB = 2**20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="as Linux tells it")


@LINUX
def test_a_peak_is_that_of_this_process_and_of_what_followed():
    give_back()
    forget_peak()
    before = held_memory()
    taken = np.ones(64 * MB, dtype=np.uint8)
    assert 60 * MB < peak_memory() - before < 90 * MB
    del taken
    give_back()
    assert peak_memory() - before > 60 * MB
    forget_peak()
    assert peak_memory() - before < 30 * MB


@LINUX
def test_a_small_process_does_not_begin_with_the_peak_of_a_large_one():
    """As `getrusage` would have it."""
    taken = np.ones(200 * MB, dtype=np.uint8)
    code = "from gentickets.cores import peak_memory; print(peak_memory())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(said.stdout) < 100 * MB
    assert taken.any()


def test_used_is_the_largest_training_for_each_at_once_beside_this_process(tmp_path):
    folder = build_run(tmp_path / "run", seeds=(0, 1), levels=2)
    assert used_memory(read_run(folder), 2) is None
    peaks = {"seed-0/level-00": 7 * 10**12, "seed-0/level-01": 9 * 10**12, "seed-1/level-00": 8 * 10**12}
    timing = {"train_seconds": 1.0, "evaluate_seconds": 1.0, "images": 1}
    for place, peak in peaks.items():
        write_json(folder / place / "timing.json", {**timing, "peak_bytes": peak})
    shared = {**timing, "peak_bytes": 10**15, "shared_from": "elsewhere"}
    write_json(folder / "seed-1/level-01/timing.json", shared)
    run = read_run(folder)
    assert used_memory(run, 1) == 9 * 10**12
    assert 0 < used_memory(run, 2) - 18 * 10**12 < 10**11


def test_a_plan_tells_memory_beside_what_was_used():
    plan = Plan(0.01, 1.0, 1, 1, 22.0, 2 * 10**9, 1)
    assert plan.against(68.0, 1_500_000_000) == (
        "planned 22 s, took 68 s; planned 2.0 GB of memory, used 1.5 GB"
    )  # fmt: skip


def meta(side: int) -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(side, side), nn.ReLU(), nn.Linear(side, 5))


def test_masks_of_a_model_without_values_are_masks():
    masks = Masks.dense(meta(10))
    assert (masks.total, masks.alive) == (150, 150)
    assert gt.random_like(masks, 0).alive == 150


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Masks.dense(meta(10**8)), MaskError, r"masks of 10,000,000,500,000,000 weights take .* TB at one bit"),
        (lambda: Masks.full({"w": (10**9, 10**9)}), MaskError, "at one bit a weight, and there are"),
        (lambda: Masks.full({"w": (3, -1)}), MaskError, r"mask 'w' of shape \(3, -1\)"),
        (lambda: gt.random_scores(meta(10**8), 0), PruneError, "random scores take .* of memory"),
        (lambda: gt.prune(gt.magnitude(meta(10**8)), fraction=0.5), PruneError, r"'0\.weight' are on the meta device"),
        (lambda: gt.Ticket(Masks({}), meta(10**8)), TicketError, r"weights\['0\.weight'\] is on the meta device"),
        (lambda: gt.EarlyBird(fraction=0.5).observe(meta(10)), PruneError, "are on the meta device"),
        (
            lambda: next(gt.imp(lambda: meta(10), lambda *_: None, steps=2, rounds=1)),
            PruneError,
            r"make_model\(\) gave a model on the meta device",
        ),
    ],
)
def test_what_no_memory_holds_or_has_no_values_is_a_line_before_anything_is_allocated(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert re.search("\n", str(caught.value)) is None

"""From scores to masks: the threshold that leaves one weight in ten, over all layers at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

import gentickets as gt
from benchmarks.contest import Contender, Contest, benchmark
from benchmarks.memory import peak_bytes

LAYERS = 10
SPARSITY = 0.9
PRUNE_AT_MOST = {50.0: 0.1}


@benchmark({"millions": (1.7, 10.0, 50.0)}, {"millions": (0.1,)})
def thresholds(millions: float) -> Contest:
    """Bool masks of all layers. gentickets also packs them, and breaks ties: its counts are exact."""
    count = round(millions * 1e6) // LAYERS
    torch.manual_seed(0)
    scores = {f"layer{i}": torch.randn(count).abs() for i in range(LAYERS)}
    drop = int(SPARSITY * count * LAYERS)
    by_threshold: dict[str, Callable[[], float]] = {
        "torch.kthvalue": lambda: float(torch.cat(list(scores.values())).kthvalue(drop).values),
        "torch.sort": lambda: float(torch.cat(list(scores.values())).sort().values[drop - 1]),
        "np.sort": lambda: float(np.sort(_flat(scores))[drop - 1]),
        "np.partition": lambda: float(np.partition(_flat(scores), drop - 1)[drop - 1]),
    }
    ways: dict[str, Callable[[], Mapping[str, Tensor]]] = {
        name: partial(_above, scores, threshold) for name, threshold in by_threshold.items()
    }
    ways["gentickets prune"] = lambda: gt.prune(scores, to_sparsity=SPARSITY)
    targets = {"gentickets prune": {"ratio": PRUNE_AT_MOST[millions]}} if millions in PRUNE_AT_MOST else {}
    contenders = {}
    for name, run in ways.items():
        found = run()
        pruned = sum(int((~mask).sum()) for mask in found.values())
        del found
        peak = peak_bytes(run)
        figures = {"miscounted": abs(drop - pruned)} | ({} if peak is None else {"peak MB": round(peak / 1e6)})
        at_most = {**targets.get(name, {}), **({"miscounted": 0} if name == "gentickets prune" else {})}
        contenders[name] = Contender(run, figures=figures, at_most=at_most)
    return Contest("torch.kthvalue", contenders)


def _flat(scores: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([score.numpy() for score in scores.values()])


def _above(scores: Mapping[str, Tensor], find_threshold: Callable[[], float]) -> dict[str, Tensor]:
    threshold = find_threshold()
    return {name: score > threshold for name, score in scores.items()}

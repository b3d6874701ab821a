"""How often each rule is wrong, by simulation: `python -m campaign.error_rates`.

A run of ten levels with controls at four of them, on a metric whose logarithm is normal: each seed has a share that
all its trainings have in common, and each training noise of its own. The ticket is as good as the dense model, 5 %
worse (the margin, where "shown" is an error) or 10 % worse, at every level. The noise is the same everywhere, or three
times as large: at the deepest level as at the first, growing; of the dense model; of the ticket that is looked at; or
all tickets of a seed share a deviation of their own, as large as the rest together.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gentickets.lab.results.estimation import Cells, Estimate, holm

LEVELS, CONTROLLED, MARGIN = 10, (3, 5, 7, 10), 0.05
DENSE = ("ticket", 0)
TOLD = 50
"""Of those that are told of as many more seeds at most it is looked whether these decide."""


@dataclass(frozen=True)
class Noise:
    """By what each noise is multiplied, and that of the deepest level by, where it grows; `chain`: what the tickets of
    a seed have in common."""

    growth: float = 1.0
    dense: float = 1.0
    ticket: float = 1.0
    chain: float = 0.0


KINDS = {
    "": Noise(),
    "growing": Noise(growth=3.0),
    "dense ×3": Noise(dense=3.0),
    "one ticket ×3": Noise(ticket=3.0),
    "tickets alike": Noise(chain=1.0),
}


def values(
    rng: np.random.Generator, seeds: int, noise: float, ratio: float, controls: float, kind: Noise, at: int
) -> dict[tuple[str, int], dict[int, float]]:
    """The cells of one run. `noise`: standard deviation of a training's logarithm; a seed's own share has the same.
    `at`: the level that is looked at."""
    own, chain = rng.normal(0, noise, seeds), rng.normal(0, 1, seeds) * noise * kind.chain

    def cell(of: float, level: int, times: float = 1.0, shared: float = 0.0) -> dict[int, float]:
        here = noise * times * (1 + (kind.growth - 1) * level / LEVELS)
        return dict(enumerate(of * np.exp(own + shared * chain + rng.normal(0, here, seeds))))

    found = {DENSE: cell(1.0, 0, kind.dense)}
    for level in range(1, LEVELS + 1):
        found["ticket", level] = cell(ratio, level, kind.ticket if level == at else 1.0, 1.0)
        if level in CONTROLLED:
            found |= {(arm, level): cell(ratio * controls, level) for arm in ("random_mask", "redrawn_weights")}
    return found


def matches(found: dict[tuple[str, int], dict[int, float]], level: int, estimate: Estimate) -> dict[str, bool]:
    """What each rule says of one level, ours by its `estimate`: is the ticket as good as dense?"""
    ours, dense = (np.array(list(found[place].values())) for place in (("ticket", level), DENSE))
    return {
        "ours": estimate.not_worse_by(MARGIN) == "shown",
        "one deviation": bool(ours.mean() <= dense.mean() + dense.std(ddof=1)),
        "5 % of the mean": bool(ours.mean() <= dense.mean() * (1 + MARGIN)),
    }


def wins(found: dict[tuple[str, int], dict[int, float]]) -> dict[str, bool]:
    """Whether each rule finds the ticket ahead of both controls at any of the levels that have them."""
    cells = Cells(found, True)
    p_values, old = [], []
    for level in CONTROLLED:
        pairs = [(("ticket", level), (arm, level)) for arm in ("random_mask", "redrawn_weights")]
        compared = [cells.compare(*pair) for pair in pairs]
        p_values.append(max(estimate.p_worse_by(0.0) for estimate in compared if estimate is not None))
        arrays = [[np.array(list(found[place].values())) for place in pair] for pair in pairs]
        old.append(all(b.mean() - a.mean() > a.std(ddof=1) + b.std(ddof=1) for a, b in arrays))
    return {"ours": min(holm(p_values)) <= 0.025, "sum of deviations": any(old)}


def simulate(runs: int) -> list[dict[str, Any]]:
    """A row a number of seeds, noise and kind of noise: the share of runs in which each rule says yes."""
    rows = []
    for number, (kind, noisy) in enumerate(KINDS.items()):
        for seeds in (2, 3, 4, 5, 10):
            for noise in (0.01, 0.03, 0.1):
                rng = np.random.default_rng([seeds, round(1000 * noise), number])
                row: dict[str, Any] = {"seeds": seeds, "noise": noise, "kind": kind, "covers": []}
                for ratio in (1.0, 1.05, 1.1):
                    answers = []
                    for _ in range(runs):
                        level = int(rng.integers(1, LEVELS + 1))
                        found = values(rng, seeds, noise, ratio, 1.0, noisy, level)
                        estimate = Cells(found, True).compare(("ticket", level), DENSE)
                        assert estimate is not None
                        answers.append(matches(found, level, estimate))
                        assert estimate.low is not None
                        assert estimate.high is not None
                        row["covers"].append(estimate.low <= ratio <= estimate.high)
                    row[f"match at {ratio}"] = _shares(answers)
                for ahead in (1.0, 1.2):
                    answers = [wins(values(rng, seeds, noise, 1.0, ahead, noisy, 5)) for _ in range(runs)]
                    row[f"win at {ahead}"] = _shares(answers)
                row["covers"] = float(np.mean(row["covers"]))
                row["told"], row["decided"] = _told(rng, runs, seeds, noise, noisy)
                rows.append(row)
    return rows


def _told(rng: np.random.Generator, runs: int, seeds: int, noise: float, kind: Noise) -> tuple[float, float | None]:
    """Of the undecided runs whose ticket is as good as dense: which share is told of at most `TOLD` more seeds; and for
    which share of these as many do decide."""
    told, decided, undecided = 0, 0, 0
    for _ in range(runs):
        level = int(rng.integers(1, LEVELS + 1))
        found = values(rng, seeds + TOLD, noise, 1.0, 1.0, kind, level)
        estimate = _of_first(found, seeds).compare(("ticket", level), DENSE)
        if estimate is None or estimate.not_worse_by(MARGIN) != "undecided":
            continue
        undecided += 1
        more = estimate.seeds_for_not_worse(MARGIN)
        if more is not None and more <= TOLD:
            told += 1
            later = _of_first(found, seeds + int(more)).compare(("ticket", level), DENSE)
            decided += later is not None and later.not_worse_by(MARGIN) != "undecided"
    return told / undecided if undecided else 0.0, decided / told if told else None


def _of_first(found: dict[tuple[str, int], dict[int, float]], seeds: int) -> Cells:
    return Cells({cell: {seed: of[seed] for seed in range(seeds)} for cell, of in found.items()}, True)


def _shares(answers: list[dict[str, bool]]) -> dict[str, float]:
    return {rule: float(np.mean([answer[rule] for answer in answers])) for rule in answers[0]}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, in percent."""
    heads = [
        "seeds",
        "noise",
        "interval covers",
        "as good: shown",
        "one sd",
        "5 % worse: shown",
        "one sd",
        "10 % worse: shown",
    ]
    heads += ["one sd", "no lead: win shown", "sum of sds", "20 % ahead: win shown", "sum of sds"]
    heads += [f"undecided: told of {TOLD} more at most", "and these decide"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [f"{row['seeds']}", f"{row['noise']:.0%}" + (f", {row['kind']}" if row["kind"] else "")]
        cells.append(f"{row['covers']:.0%}")
        for ratio in ("1.0", "1.05", "1.1"):
            cells += [f"{row[f'match at {ratio}'][rule]:.0%}" for rule in ("ours", "one deviation")]
        for ahead in ("1.0", "1.2"):
            cells += [f"{row[f'win at {ahead}'][rule]:.0%}" for rule in ("ours", "sum of deviations")]
        cells += [f"{row['told']:.0%}", "–" if row["decided"] is None else f"{row['decided']:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m campaign.error_rates")
    parser.add_argument("--runs", type=int, default=300, help="simulated runs a cell of the table")
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    rows = simulate(told.runs)
    error = 100 * math.sqrt(0.25 / told.runs)
    print(table(rows), f"\n\nStandard error of a share: at most {error:.1f} points.")
    if told.out:
        told.out.write_text(json.dumps({"runs": told.runs, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

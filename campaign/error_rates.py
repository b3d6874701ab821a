"""How often each rule is wrong, by simulation: `python -m campaign.error_rates`.

A run of ten levels with controls at four of them, on a metric whose logarithm is normal: each seed has a share that
all its trainings have in common, and each training noise of its own. The ticket is as good as the dense model, 5 %
worse (the margin, where "shown" is an error) or 10 % worse, at every level. Two kinds of noise: the same at every
level, and three times as large at the deepest as at the first.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from gentickets.lab.results.estimation import Cells, holm

LEVELS, CONTROLLED, MARGIN = 10, (3, 5, 7, 10), 0.05
DENSE = ("ticket", 0)


def values(
    rng: np.random.Generator, seeds: int, noise: float, ratio: float, controls: float, growth: float
) -> dict[tuple[str, int], dict[int, float]]:
    """The cells of one run. `noise`: standard deviation of a training's logarithm; a seed's own share has the same."""
    own = rng.normal(0, noise, seeds)

    def cell(of: float, level: int) -> dict[int, float]:
        here = noise * (1 + (growth - 1) * level / LEVELS)
        return dict(enumerate(of * np.exp(own + rng.normal(0, here, seeds))))

    found = {DENSE: cell(1.0, 0)}
    for level in range(1, LEVELS + 1):
        found["ticket", level] = cell(ratio, level)
        if level in CONTROLLED:
            found |= {(arm, level): cell(ratio * controls, level) for arm in ("random_mask", "redrawn_weights")}
    return found


def matches(found: dict[tuple[str, int], dict[int, float]], level: int) -> dict[str, bool]:
    """What each rule says of one level: is the ticket as good as dense?"""
    ours, dense = (np.array(list(found[place].values())) for place in (("ticket", level), DENSE))
    estimate = Cells(found, True).compare(("ticket", level), DENSE)
    assert estimate is not None
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
    for growth in (1.0, 3.0):
        for seeds in (2, 3, 4, 5, 10):
            for noise in (0.01, 0.03, 0.1):
                rng = np.random.default_rng([seeds, round(1000 * noise), round(growth)])
                row: dict[str, Any] = {"seeds": seeds, "noise": noise, "growth": growth, "covers": []}
                for ratio in (1.0, 1.05, 1.1):
                    answers = []
                    for _ in range(runs):
                        found = values(rng, seeds, noise, ratio, 1.0, growth)
                        level = int(rng.integers(1, LEVELS + 1))
                        answers.append(matches(found, level))
                        estimate = Cells(found, True).compare(("ticket", level), DENSE)
                        assert estimate is not None
                        assert estimate.low is not None
                        assert estimate.high is not None
                        row["covers"].append(estimate.low <= ratio <= estimate.high)
                    row[f"match at {ratio}"] = _shares(answers)
                for ahead in (1.0, 1.2):
                    answers = [wins(values(rng, seeds, noise, 1.0, ahead, growth)) for _ in range(runs)]
                    row[f"win at {ahead}"] = _shares(answers)
                row["covers"] = float(np.mean(row["covers"]))
                rows.append(row)
    return rows


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
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [f"{row['seeds']}", f"{row['noise']:.0%}" + (", growing" if row["growth"] > 1 else "")]
        cells.append(f"{row['covers']:.0%}")
        for ratio in ("1.0", "1.05", "1.1"):
            cells += [f"{row[f'match at {ratio}'][rule]:.0%}" for rule in ("ours", "one deviation")]
        for ahead in ("1.0", "1.2"):
            cells += [f"{row[f'win at {ahead}'][rule]:.0%}" for rule in ("ours", "sum of deviations")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m campaign.error_rates")
    parser.add_argument("--runs", type=int, default=400, help="simulated runs a cell of the table")
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    rows = simulate(told.runs)
    error = 100 * math.sqrt(0.25 / told.runs)
    print(table(rows), f"\n\nStandard error of a share: at most {error:.1f} points.")
    if told.out:
        told.out.write_text(json.dumps({"runs": told.runs, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

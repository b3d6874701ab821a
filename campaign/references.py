"""Makes `references.yaml`: the dense model of each preset after a quarter, half and all of its steps.

    python -m campaign.references --runs DIR [--change data.source=FILE] [--no-longer] [RECIPE[:BUDGET] …]

Without recipes those of `recipes/quickstart`. The curve ends with the preset's own number of steps, which runs are
compared with; what twice as many would give stands beside it as `longer`, to tell how far from its end the preset is.
Where DIR has a run of the preset itself, as that of the campaign has, its dense models are not trained again; `longer`
is left out with `--no-longer`, where it would take hours.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from campaign.__main__ import CHECKOUT
from gentickets.lab.recipe import read_recipe
from gentickets.lab.results.baseline import identity
from gentickets.lab.results.reading import Run, read_run

PLACE = CHECKOUT / "src" / "gentickets" / "lab" / "results" / "references.yaml"
SEEDS = (0, 1, 2, 3)
SHARES = (0.25, 0.5, 1)
LONGER = 2


def dense_run(recipe: str, budget: str, steps: int, runs: Path, changes: list[str]) -> Run:
    """The dense model alone, trained for so many steps over `SEEDS`."""
    name = f"reference-{Path(recipe).stem}-{budget}-{steps}"
    keys = [f"name={name}", f"training.steps={steps}", "search.rounds=0", "search.rewind_step=1", "controls.levels=[]"]
    command = [sys.executable, "-m", "gentickets", "find", recipe, "--budget", budget, "--runs", str(runs)]
    subprocess.run([*command, *keys, f"seeds={list(SEEDS)}", *changes], cwd=CHECKOUT, check=True)
    return read_run(runs / name)


def point(run: Run, steps: int) -> dict[str, Any]:
    """One point of a curve."""
    values = [result.metrics[run.primary].value for result in run.of("ticket", 0)]
    return {
        "steps": steps,
        "mean": float(f"{statistics.fmean(values):.5g}"),
        "deviation": float(f"{statistics.stdev(values):.2g}"),
        "seeds": len(values),
    }


def reference(recipe: str, budget: str, runs: Path, changes: list[str], longer: bool) -> dict[str, Any]:
    """The entry of one preset."""
    preset = read_recipe(CHECKOUT / recipe, changes, budget)
    full, there = preset.training.steps, runs / preset.name
    found = {
        share: read_run(there)
        if share == 1 and there.exists()
        else dense_run(recipe, budget, int(full * share), runs, changes)
        for share in SHARES
    }
    # What is said of a model may differ in runs of other versions: it is that of one that was made now.
    curve = [point(run, int(full * share)) for share, run in found.items()]
    entry = {"preset": f"{recipe}:{budget}", "of": identity(found[0.5]), "curve": curve}
    if longer:
        entry["longer"] = point(dense_run(recipe, budget, LONGER * full, runs, changes), LONGER * full)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m campaign.references")
    parser.add_argument(
        "recipes", nargs="*", default=[f"recipes/quickstart/{n}.yaml" for n in ("autoencoder", "vae", "gan")]
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--change", action="append", default=[], help="key=value for every recipe, such as data.source")
    parser.add_argument("--longer", action=argparse.BooleanOptionalAction, default=True, help="twice as many steps too")
    said = parser.parse_args()
    there = {entry["preset"]: entry for entry in yaml.safe_load(PLACE.read_text())}
    for word in said.recipes:
        recipe, _, budget = word.partition(":")
        entry = reference(recipe, budget or "full", said.runs.resolve(), said.change, said.longer)
        there[entry["preset"]] = entry
    PLACE.write_text(yaml.safe_dump(list(there.values()), sort_keys=False, width=120))


if __name__ == "__main__":
    main()

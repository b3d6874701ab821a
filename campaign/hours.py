"""What the `full` budgets take: `python -m campaign.hours`, as a table for docs/paper.md.

FLOPs of one step of dense training are counted on a real step (`gentickets.metrics.cost`), times the steps of all
trainings of all seeds: the dense model, every level, its controls. Masked networks are counted as dense ones, as on a
GPU. Hours are at a rate that is *assumed*: 10 and 30 TFLOP/s of float32 on a GPU, 30 GFLOP/s on a core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from campaign.__main__ import CHECKOUT
from gentickets.data import ImageSet
from gentickets.data.images import normalised
from gentickets.lab.recipe import Recipe, is_study, read_recipe
from gentickets.lab.run.seed import steps_of_seed
from gentickets.lab.study.study import read_study
from gentickets.lab.task import build_model
from gentickets.metrics.cost import training_flops

GPU, CORE = (10e12, 30e12), 30e9


def recipes(path: Path) -> Iterator[Recipe]:
    """The run of a recipe, or those of a study's arms."""
    if is_study(path):
        yield from (arm.recipe for arm in read_study(path, budget="full").arms)
    else:
        yield read_recipe(path, budget="full")


def flops_of_a_step(recipe: Recipe) -> float:
    """Of one step of the dense model, all of its losses."""
    channels, size = recipe.data.channels or 3, recipe.data.size
    pixels = np.zeros((2, channels, size, size), dtype=np.uint8)
    model = build_model(recipe, ImageSet.from_arrays("black", pixels), seed=0)
    one = normalised(torch.zeros(2, channels, size, size, dtype=torch.uint8))
    objective = recipe.build_objective()
    return training_flops(model, objective, one).dense * recipe.training.batch_size * objective.batches_per_step


def steps(recipe: Recipe) -> int:
    """Of all trainings of all seeds."""
    return steps_of_seed(recipe) * len(recipe.seeds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m campaign.hours")
    parser.add_argument("recipes", nargs="*", type=Path)
    paths = parser.parse_args().recipes or sorted((CHECKOUT / "recipes" / "paper").glob("*.yaml"))
    print("| recipe, `full` | steps, all seeds | FLOPs | GPU hours at 10 / 30 TFLOP/s | core hours at 30 GFLOP/s |")
    print("|---|---|---|---|---|")
    for path in paths:
        found = [(steps(recipe), flops_of_a_step(recipe)) for recipe in recipes(path)]
        total = sum(count * flops for count, flops in found)
        hours = " / ".join(f"{total / rate / 3600:,.0f}" for rate in GPU)
        taken = f"{sum(count for count, _ in found) / 1e6:,.1f} million"
        print(f"| {path.stem} | {taken} | {total:.1e} | {hours} | {total / CORE / 3600:,.0f} |")


if __name__ == "__main__":
    main()

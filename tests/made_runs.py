"""Runs made of values, for the tests of what reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gentickets.lab.recipe import Recipe
from gentickets.lab.results.reading import LevelResult, Metric, Run
from gentickets.lab.run import folder as disk

SPARSITIES = (0.0, 0.2, 0.36, 0.488, 0.59)


def begin(folder: Path, recipe: Recipe, shape: tuple[int, int, int] = (1, 8, 8)) -> None:
    """What a run's folder holds when the run has begun, without its images being looked at."""
    folder.mkdir(exist_ok=True)
    disk.write_recipe(folder, recipe)
    data = {"fingerprint": "0", "shape": list(shape)}
    facts = {"asked": recipe.dump(), "threads": 1, "gave_up": [], "data": data, "code": recipe.code()}
    disk.write_json(folder / "origin.json", facts)


def make_run(
    ticket: dict[int, tuple[float | str, ...]],
    lower_is_better: bool = True,
    seeds: int = 2,
    rounds: int | None = None,
    **controls: dict[int, tuple[float | str, ...]],
) -> Run:
    """A run from values: level → a value a seed; a word in place of a value is a status, or "missing"."""
    levels = []
    for arm, values_at in {"ticket": ticket, **controls}.items():
        for level, values in values_at.items():
            for seed, value in enumerate(values):
                if value != "missing":
                    levels.append(make_level(seed, level, arm, value, lower_is_better))
    order = {"ticket": 0, "random_mask": 1, "redrawn_weights": 2}
    levels.sort(key=lambda r: (r.seed, r.level, order[r.arm]))
    recipe = {"seeds": list(range(seeds)), "search": {"method": "imp", "rounds": rounds}}
    return Run(Path("runs/made"), "made", recipe, {}, levels)


def with_weights(run: Run, values: tuple[float, ...]) -> Run:
    """The run, its values being those of averages; `values`: of the dense model's weights themselves, a seed each."""
    levels = []
    for one in run.levels:
        metrics = dict(one.metrics)
        if (one.arm, one.level) == ("ticket", 0):
            metrics["score_raw"] = replace(metrics["score"], value=values[one.seed])
        levels.append(replace(one, metrics=metrics))
    return replace(run, levels=levels)


def make_level(seed: int, level: int, arm: str, value: float | str, lower_is_better: bool) -> LevelResult:
    failed = isinstance(value, str)
    metrics = {} if failed else {"score": Metric("score", float(value), 100, lower_is_better)}
    return LevelResult(
        seed=seed,
        level=level,
        arm=arm,  # type: ignore[arg-type]
        status=value if failed else "complete",  # type: ignore[arg-type]
        sparsity=SPARSITIES[level],
        alive=100,
        total=100,
        primary="score",
        start_step=0,
        end_step=1,
        metrics=metrics,
    )

"""One dense training for all arms of a study that would train the same: done once, taken over by the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gentickets.lab.recipe import Recipe
from gentickets.lab.run import folder as disk
from gentickets.lab.run.level import level_facts
from gentickets.lab.run.prepare import Prepared, load_data
from gentickets.lab.task import build_model
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks

_REWRITTEN = ("ticket.safetensors", "metrics.json", "timing.json")


def share_dense(ready: Prepared, donors: Sequence[Path]) -> dict[int, str]:
    """Puts a dense level that another run trained into each seed of a run that lacks its own.

    `donors`: run folders, looked through in order. Taken over is a complete level of the same seed, from a run of the
    same model, data, objective, training and evaluation, and, where the run's method starts from that training, of
    the same rewind step. Its files are linked; the ticket is written anew, with this run's coverage and its own
    weights to start from, and `timing.json` says under `shared_from` who trained it. Returns seed → that run's name.
    """
    shared = {}
    for seed in ready.recipe.seeds:
        place = ready.folder / f"seed-{seed}" / disk.level_name(0)
        donor = None if place.exists() else _donor(ready.recipe, seed, donors)
        if donor is not None:
            _take_over(ready.recipe, seed, donor, place)
            shared[seed] = donor.name
    return shared


def _donor(recipe: Recipe, seed: int, donors: Sequence[Path]) -> Path | None:
    for folder in donors:
        place = folder / f"seed-{seed}" / disk.level_name(0)
        if not place.exists() or disk.read_metrics(place)["status"] != "complete":
            continue
        if "shared_from" not in disk.read_json(place / "timing.json") and _same(recipe, disk.read_run_recipe(folder)):
            return folder
    return None


def _same(recipe: Recipe, donor: Recipe) -> bool:
    """Whether the donor's dense level may stand for the one that `recipe` would train."""
    if _dense_keys(recipe) != _dense_keys(donor):
        return False
    # To a method without a rewind point the dense model's result is a reference alone.
    mine = recipe.search.told("rewind_step", None)
    return mine is None or mine == donor.search.told("rewind_step", 0)


def _rewind_step(recipe: Recipe) -> int:
    return int(recipe.search.told("rewind_step", 0))


def _dense_keys(recipe: Recipe) -> dict[str, Any]:
    keys = recipe.model_dump(include={"model", "data", "objective", "training", "evaluation"})
    del keys["training"]["checkpoint_seconds"]
    return keys


def _take_over(recipe: Recipe, seed: int, donor: Path, place: Path) -> None:
    source = donor / f"seed-{seed}"
    shutil.rmtree(disk.partial_of(place), ignore_errors=True)
    model = build_model(recipe, load_data(recipe.data)[0], seed)
    masks = recipe.build_method().covered(model)
    with disk.building(place) as partial:
        for file in (source / place.name).iterdir():
            if file.name not in _REWRITTEN:
                _link(file, partial / file.name)
        same_start = _rewind_step(recipe) == _rewind_step(disk.read_run_recipe(donor))
        _ticket(recipe, masks, model, Ticket.load(source / place.name / _REWRITTEN[0]), same_start).save(
            partial / _REWRITTEN[0]
        )
        metrics = disk.read_metrics(source / place.name) | level_facts(seed, 0, "ticket", masks)
        # Stored sparse, a weight that masks cover takes one bit more.
        bits = sum(-(-layer["total"] // 8) for layer in metrics["layers"].values())
        metrics["cost"]["bytes_sparse"] = metrics["cost"]["bytes_dense"] + bits
        disk.write_json(partial / "metrics.json", metrics)
        timing = disk.read_json(source / place.name / "timing.json")
        disk.write_json(partial / "timing.json", timing | {"shared_from": donor.name})
        if same_start and (source / "rewind.safetensors").exists():
            _link(source / "rewind.safetensors", place.parent / "rewind.safetensors")


def _ticket(recipe: Recipe, masks: Masks, initial: nn.Module, donor: Ticket, same_start: bool) -> Ticket:
    """The dense ticket as this run would have written it: its masks, over the weights at its own rewind step."""
    passed = {"level": 0, "sparsity": masks.sparsity, "masks": masks.fingerprint}
    retrain = recipe.search.told("retrain", "rewind")
    how = {"recipe": recipe.name, "rewind_step": _rewind_step(recipe), "retrain": retrain}
    return Ticket(masks, donor.weights if same_start else initial, {**donor.origin, **how, "lineage": [passed]})


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no such thing."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

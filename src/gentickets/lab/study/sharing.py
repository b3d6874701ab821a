"""What runs would train the same is trained once: a dense model, or a whole chain of tickets, found by its content."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gentickets.errors import GenticketsError
from gentickets.lab.recipe import Recipe
from gentickets.lab.run import folder as disk
from gentickets.lab.run.level import level_facts
from gentickets.lab.run.prepare import Prepared, load_data
from gentickets.lab.task import build_model
from gentickets.masks.lineage import begun
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.search.method import ARMS

_REWRITTEN = ("ticket.safetensors", "metrics.json", "timing.json")


def share(ready: Prepared, donors: Sequence[Path]) -> dict[int, str]:
    """Puts what another run trained, and this one would train the same, into each seed of a run that lacks its own.

    `donors`: run folders, looked through in order. A run of the same search on the same data gives its chain of levels,
    as far as it goes, with the controls that this run wants. Any run of the same model, data, objective, training and
    evaluation gives its dense level, where this run's method starts from that training with the same rewind step; its
    ticket is then written anew, with this run's coverage. Files are linked, and `timing.json` says under `shared_from`
    who trained them. Returns seed → that run's name.
    """
    shared = {}
    for seed in ready.recipe.seeds:
        twin = next((donor for donor in donors if _is_twin(ready, donor)), None)
        if twin is not None and _take_chain(ready, seed, twin):
            shared[seed] = _called(ready, twin)
            continue
        place = ready.folder / f"seed-{seed}" / disk.level_name(0)
        donor = None if place.exists() else _donor(ready, seed, donors)
        if donor is not None:
            _take_over(ready.recipe, seed, donor, place, _called(ready, donor))
            shared[seed] = _called(ready, donor)
    return shared


def neighbours(folder: Path) -> list[Path]:
    """The runs beside a study's folder, and the arms of the studies there."""
    beside = sorted(entry for entry in folder.parent.iterdir() if entry.is_dir() and entry != folder)
    inside = [arm for entry in beside if (entry / "study.yaml").is_file() for arm in sorted(entry.iterdir())]
    return [place for place in (*beside, *inside) if (place / "recipe.yaml").is_file()]


def _called(ready: Prepared, donor: Path) -> str:
    """A run's name as it is told: with its study's, where that is another."""
    if donor.parent in (ready.folder.parent, ready.folder.parent.parent):
        return donor.name
    return f"{donor.parent.name}/{donor.name}"


# -- a whole chain ----------------------------------------------------------------------------------------------


def _is_twin(ready: Prepared, donor: Path) -> bool:
    """Whether a run searches as this one would."""
    return _on_same_ground(ready, donor) and _chain_keys(disk.read_run_recipe(donor)) == _chain_keys(ready.recipe)


def _on_same_ground(ready: Prepared, donor: Path) -> bool:
    """Whether equal recipes would give equal bits: on the same images, with the same code, torch and threads."""
    try:
        mine, theirs = disk.read_run_origin(ready.folder), disk.read_run_origin(donor)
        disk.read_run_recipe(donor)
    except GenticketsError:
        return False
    same = ("data", "fingerprint"), ("data", "test_fingerprint"), ("versions", "torch")
    return (
        mine["threads"] == theirs["threads"]
        and (mine.get("code") or {}) == (theirs.get("code") or {})
        and all(mine.get(part, {}).get(key) == theirs.get(part, {}).get(key) for part, key in same)
    )


def _chain_keys(recipe: Recipe) -> dict[str, Any]:
    search = dict(recipe.dump()["search"])
    search.pop("rounds", None)
    return {**_dense_keys(recipe), "search": search}


def _take_chain(ready: Prepared, seed: int, donor: Path) -> bool:
    """Links the levels and controls that the donor has and this seed lacks; whether there was any."""
    source, target = donor / f"seed-{seed}", ready.folder / f"seed-{seed}"
    controls, rounds = ready.recipe.controls, ready.recipe.rounds
    wanted = [disk.level_name(index) for index in range(rounds + 1)]
    wanted += [disk.level_name(at, arm) for at in controls.chosen(rounds) for arm in ARMS if getattr(controls, arm)]
    found = [name for name in wanted if (source / name).exists() and not (target / name).exists()]
    for name in found:
        shutil.rmtree(disk.partial_of(target / name), ignore_errors=True)
        with disk.building(target / name) as partial:
            for file in (source / name).iterdir():
                if file.name != "timing.json":
                    _link(file, partial / file.name)
            timing = disk.read_json(source / name / "timing.json")
            disk.write_json(partial / "timing.json", {"shared_from": _called(ready, donor), **timing})
    for name in ("rewind.safetensors", "rewind.json"):
        if found and (source / name).exists() and not (target / name).exists():
            _link(source / name, target / name)
    return bool(found)


# -- the dense level alone --------------------------------------------------------------------------------------


def _donor(ready: Prepared, seed: int, donors: Sequence[Path]) -> Path | None:
    for folder in donors:
        place = folder / f"seed-{seed}" / disk.level_name(0)
        if not place.exists() or not _on_same_ground(ready, folder):
            continue
        complete = disk.read_metrics(place)["status"] == "complete"
        own = "shared_from" not in disk.read_json(place / "timing.json")
        if complete and own and _same(ready.recipe, disk.read_run_recipe(folder)):
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
    whole = recipe.dump()
    keys = {part: whole[part] for part in ("model", "data", "objective", "training", "evaluation")}
    del keys["training"]["checkpoint_seconds"], keys["evaluation"]["margin"]
    return keys


def _take_over(recipe: Recipe, seed: int, donor: Path, place: Path, called: str) -> None:
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
        disk.write_json(partial / "timing.json", timing | {"shared_from": called})
        if same_start and (source / "rewind.safetensors").exists():
            _link(source / "rewind.safetensors", place.parent / "rewind.safetensors")


def _ticket(recipe: Recipe, masks: Masks, initial: nn.Module, donor: Ticket, same_start: bool) -> Ticket:
    """The dense ticket as this run would have written it: its masks, over the weights at its own rewind step."""
    retrain = recipe.search.told("retrain", "rewind")
    origin = {**donor.origin, "recipe": recipe.name, "rewind_step": _rewind_step(recipe), "retrain": retrain}
    origin["lineage"] = begun(0, masks, origin)
    return Ticket(masks, donor.weights if same_start else initial, origin)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no such thing."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

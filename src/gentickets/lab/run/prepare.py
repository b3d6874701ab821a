"""A run's folder, opened for a recipe: new and planned, or gone on with, or joined while others work on it."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from gentickets.cores import cores, held_memory
from gentickets.data import ImageSet, line
from gentickets.lab.judging import Judge
from gentickets.lab.recipe import Recipe, parsed
from gentickets.lab.recipe.begun import fitted_keys, of_another_recipe
from gentickets.lab.recipe.plain_yaml import write_yaml
from gentickets.lab.replacing import finish, replace_together
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.checks import check_buildable, check_room_of_a_step, check_searchable
from gentickets.lab.run.claims import Claims, check_at_rest
from gentickets.lab.run.plan import Plan, fit, fit_disk, measure
from gentickets.lab.run.seed import drop_damaged
from gentickets.lab.run.stage import (
    check_same_data,
    is_same_data,
    load_data,
    load_data_of,
    make_judge,
    telling_of_moves,
)
from gentickets.lab.run.threads import threads_of
from gentickets.sealed import sealed_json


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to be worked on: what was asked made definite, for the seeds that were asked.

    `plan`: None where the run is gone on with; `data`: what was read of the images, in a line. `id`: tells it from one
    that is begun anew in its folder, or judged anew. `donors`, `beside`: runs that are worked on with it, and others,
    whose trainings it takes over where they are its own to the bit.
    """

    folder: Path
    recipe: Recipe
    threads: int
    workers: int
    plan: Plan | None
    gave_up: tuple[str, ...]
    data: str
    id: str | None
    donors: tuple[Path, ...] = ()
    beside: tuple[Path, ...] = ()


def prepared(
    asked: Recipe,
    folder: Path,
    *,
    seconds: float | None = None,
    fresh: bool = False,
    dry: bool = False,
    command: str = "",
    loading_seconds: float = 0.0,
    disk_bytes: float | None = None,
) -> Prepared:
    """Opens a run folder for a recipe, new or to be gone on with; others may be at work in it.

    With `fresh`, what is there is removed, once all that was asked is known to be possible; with `dry`, nothing is
    removed or written.

    A new run is measured first: how long, how much memory, how much disk; with `seconds`, its rounds and steps
    are fitted into that time; with `disk_bytes`, what it keeps is fitted into these. `loading_seconds`: what loading
    the program took, which says what starting processes will. Raises `RecipeError` for a folder of another recipe, or
    whose run began with other versions or data.
    """
    # One command at a time, and the others wait: they are to find the same plan, and the same number of threads.
    with disk.one_line_errors(folder), disk.locked(folder, wait=True):
        if not fresh and not dry:
            finish(folder)
        there = None if fresh else disk.opened(folder, asked)
        if fresh and not dry:
            check_at_rest(folder)
        check_room_of_a_step(asked, asked.data.channels or 1)
        held = held_memory()
        with nullcontext() if there is None else telling_of_moves(folder, asked.data):
            train, held_out = load_data(asked.data)
        if there is not None:
            _check_images(folder, *there[1:], train, held_out)
        check_buildable(asked, train)
        check_searchable(asked, train)
        if there is not None:
            return _gone_on_with(folder, asked, *there, train, held_out, dry)
        judge = make_judge(asked, train, held_out)
        workers = min(len(asked.seeds), max(1, cores() // asked.training.devices))
        threads = threads_of(asked, train, workers)
        plan = measure(asked, train, judge, threads, workers, loading_seconds, held)
        recipe, plan, gave_up = fit(asked, plan, seconds, workers) if seconds is not None else (asked, plan, ())
        if disk_bytes is not None:
            recipe, plan = fit_disk(recipe, plan, disk_bytes, workers)
        plan.check_possible(folder)
        origin = _origin(asked, recipe, command, train, held_out, judge, threads, workers, gave_up)
        if not dry:
            claims = Claims(folder)
            with claims.alone() if fresh else nullcontext():
                if fresh:
                    disk.remove_run(folder)
                    claims.clear()
                disk.write_recipe(folder, recipe)
                disk.write_json(folder / "origin.json", origin)
                _mark_seeds(folder, recipe)
        return Prepared(folder, recipe, threads, workers, plan, gave_up, line(train.told), origin["id"])


def _gone_on_with(
    folder: Path,
    asked: Recipe,
    recipe: Recipe,
    origin: dict[str, Any],
    moved: list[str],
    train: ImageSet,
    held_out: ImageSet,
    dry: bool,
) -> Prepared:
    """A run that is there: with what may grow taken from what is asked now, and the seeds that others asked for
    kept; and with the places of what was `moved`."""
    _tell_of_another_machine(folder, origin)
    recipe = _grown(recipe, asked, fitted=bool(origin["gave_up"]))
    origin = {**origin, "asked": asked.dump()}
    if moved:
        warnings.warn(f"{folder}: the same images, and gone on with: {'; '.join(moved)}", stacklevel=3)
        origin["data"] = {**origin["data"], "name": train.name, "told": dict(train.told)}
    if not dry:
        others = [seed for seed in disk.seeds_in(folder) if seed not in asked.seeds]
        kept = parsed({**recipe.dump(), "seeds": [*recipe.seeds, *others]})
        if moved:  # neither file may be the only one that says so
            files = {"recipe.yaml": write_yaml(kept.dump()), "origin.json": sealed_json(origin)}
            replace_together(folder, files)
        else:
            disk.write_recipe(folder, kept)
            disk.write_json(folder / "origin.json", origin)
        _mark_seeds(folder, recipe)
        for seed in recipe.seeds:
            drop_damaged(folder / f"seed-{seed}", recipe)
    # Equal bits need an equal number of threads.
    workers = min(len(recipe.seeds), max(1, cores() // recipe.training.devices))
    threads = origin["threads"]
    gave_up = tuple(origin["gave_up"])
    return Prepared(folder, recipe, threads, workers, None, gave_up, line(train.told), origin.get("id"))


def _check_images(
    folder: Path, origin: Mapping[str, Any], moved: list[str], train: ImageSet, held_out: ImageSet
) -> None:
    """Raises `RecipeError` where a run cannot be gone on with on these images, wherever they lie."""
    if moved and not is_same_data(origin, train, held_out):
        raise of_another_recipe(folder, moved)
    check_same_data(folder, origin, train, held_out)


def joined(folder: Path, allow_code: bool = False) -> Prepared:
    """A run that is there, to be worked on as it was asked, by its own recipe. Raises `RecipeError` as `prepared`
    does."""
    disk.settle(folder)
    recipe, origin = disk.read_begun(folder, allow_code)
    recipe.check()
    disk.check_same_code(folder, origin, recipe)
    train, _ = load_data_of(folder, recipe, origin)
    _tell_of_another_machine(folder, origin)
    gave_up = tuple(origin["gave_up"])
    return Prepared(folder, recipe, origin["threads"], 1, None, gave_up, line(train.told), origin.get("id"))


def mended(ready: Prepared) -> Prepared:
    """The run, of which what is damaged was dropped, aloud, to be made again.

    That is for whoever makes all of it: who makes one piece comes upon what is damaged of what that rests on.
    """
    with disk.one_line_errors(ready.folder), disk.locked(ready.folder, wait=True):
        for seed in ready.recipe.seeds:
            drop_damaged(ready.folder / f"seed-{seed}", ready.recipe)
    return ready


def _tell_of_another_machine(folder: Path, origin: Mapping[str, Any]) -> None:
    """Processors of two kinds add in other orders: equal recipes then differ in last bits, and what is grown of
    them."""
    began, here = (of.get("gpu") or of.get("cpu") for of in (origin.get("machine") or {}, machine()))
    if began is not None and began != here:
        warnings.warn(
            f"{folder} began on {began}, and here is {here}: what is made here is as good, though not what one "
            f"machine would make, to the bit",
            stacklevel=2,
        )


def _mark_seeds(folder: Path, recipe: Recipe) -> None:
    """A seed's folder says that it was asked for, also to a command that asks for others."""
    for seed in recipe.seeds:
        (folder / f"seed-{seed}").mkdir(exist_ok=True)
    publishing.sync_names(folder)


def _grown(recipe: Recipe, asked: Recipe, fitted: bool) -> Recipe:
    """The run's recipe with what may grow (seeds, rounds, controls), and where things lie, taken from what is asked
    now."""
    new = recipe.dump()
    now = asked.dump()
    for key in ("name", "title", "seeds", "controls", "on_failure"):
        new[key] = now[key]
    new["data"] |= {key: now["data"][key] for key in ("source", "test")}
    new["keep"] = "ends" if "ends" in (recipe.keep, asked.keep) else "all"
    new["training"]["checkpoint_seconds"] = now["training"]["checkpoint_seconds"]
    new["evaluation"]["margin"] = now["evaluation"]["margin"]
    if not fitted:
        new["search"]["rounds"] = now["search"]["rounds"]
    return parsed(new)


def _origin(
    asked: Recipe,
    recipe: Recipe,
    command: str,
    train: ImageSet,
    held_out: ImageSet,
    judge: Judge,
    threads: int,
    workers: int,
    gave_up: tuple[str, ...],
) -> dict[str, Any]:
    return {
        "id": disk.new_id(),
        "asked": asked.dump(),
        "command": command,
        "started": date.today().isoformat(),
        "versions": disk.versions(),
        "machine": machine(),
        "data": {
            "name": train.name,
            "fingerprint": train.fingerprint,
            "test_fingerprint": held_out.fingerprint,
            "train": len(train),
            "test": len(held_out),
            "shape": list(train.shape),
            "told": dict(train.told),
        },
        "features": judge.features,
        "threads": threads,
        "workers": workers,
        "gave_up": list(gave_up),
        **({"fitted": fitted_keys(recipe)} if gave_up else {}),
        "code": asked.code(),
    }


def machine() -> dict[str, Any]:
    """What computes here, in words that mean something to another reader; no names or paths of the machine."""
    cpu = platform.processor() or platform.machine()
    memory = 0.0
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": cores(), "memory_gib": round(memory), "gpu": gpu}


def keep_time(folder: Path, plan: Plan, seconds: float, used: int | None = None) -> None:
    """Writes into a run's origin what was planned, and what it took in one go; `used`: bytes of memory."""
    with disk.one_line_errors(folder), disk.locked(folder, wait=True):
        kept = {"planned_seconds": round(plan.seconds, 1), "took_seconds": round(seconds, 1)}
        kept |= {"planned_bytes": plan.memory_bytes} | ({} if used is None else {"used_bytes": used})
        disk.write_json(folder / "origin.json", {**disk.read_origin(folder), **kept})

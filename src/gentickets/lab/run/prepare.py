"""The main job: a recipe's seeds side by side, each resumed where it stands, and the results gathered."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gentickets import __version__
from gentickets.catalogue import is_code, own_faults, running
from gentickets.cores import cores, held_memory
from gentickets.data import Batches, ImageSet, batch_of, check_room, line, load_splits
from gentickets.errors import PruneError, RecipeError
from gentickets.lab.judging import Judge
from gentickets.lab.recipe import DataPart, Recipe, parsed
from gentickets.lab.results.reading import read_run, write_csv
from gentickets.lab.run import folder as disk
from gentickets.lab.run.keeping import check_all_kept
from gentickets.lab.run.level import measure_level, metrics_json
from gentickets.lab.run.plan import Plan, check_fits, fit, fit_disk, measure
from gentickets.lab.run.processes import interrupt, side_by_side, stopping
from gentickets.lab.run.seed import SeedRun
from gentickets.lab.run.threads import threads_of
from gentickets.lab.run.trainer import Event, make_fabric
from gentickets.lab.task import build_model, check_step, image_source
from gentickets.masks.names import components_of
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import scored
from gentickets.training.loop import on_threads

Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to go: what was asked made definite. `plan`: None where the run is resumed; `lock`:
    the number of the open file that holds the folder's lock; `data`: what was read of the images, in a line."""

    folder: Path
    recipe: Recipe
    threads: int
    workers: int
    plan: Plan | None
    gave_up: tuple[str, ...]
    lock: int
    data: str


def load_data(part: DataPart) -> tuple[ImageSet, ImageSet]:
    """The training and the held-out images of a recipe, and with both what was read, as `told`."""
    train, test = load_splits(image_source(part), **part.model_dump(exclude={"source", "flip"}))
    told = dict(train.told)
    if "size" not in part.model_fields_set and "made" in told:
        told["made"] += f" (data.size is not given: {part.size})"
    return replace(train, told=told), replace(test, told=told)


@contextmanager
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
) -> Iterator[Prepared]:
    """Opens a run folder for a recipe, new or to be resumed, and holds its lock.

    With `fresh`, what is there is removed, once all that was asked is known to be possible; with `dry`, nothing is
    removed or written.

    A new run is measured first: how long, how much memory, how much disk; with `seconds`, its rounds and steps
    are fitted into that time; with `disk_bytes`, what it keeps is fitted into these. `loading_seconds`: what loading
    the program took, which says what starting processes will. Raises `RecipeError` for a folder of another recipe.
    """
    with disk.one_line_errors(folder), disk.locked(folder) as lock:
        there = None if fresh else disk.opened(folder, asked)
        _check_step(asked, asked.data.channels or 1)
        held = held_memory()
        train, held_out = load_data(asked.data)
        check_buildable(asked, train)
        judge = make_judge(asked, train, held_out)
        if there is None:
            workers = min(len(asked.seeds), cores())
            threads = threads_of(asked, train, workers)
            plan = measure(asked, train, judge, threads, workers, loading_seconds, held)
            recipe, plan, gave_up = fit(asked, plan, seconds, workers) if seconds is not None else (asked, plan, ())
            if disk_bytes is not None:
                recipe, plan = fit_disk(recipe, plan, disk_bytes, workers)
            plan.check_possible(folder)
            origin = _origin(asked, command, train, held_out, judge, threads, workers, gave_up)
            if not dry:
                if fresh:
                    disk.remove_run(folder)
                disk.write_recipe(folder, recipe)
                disk.write_json(folder / "origin.json", origin)
            yield Prepared(folder, recipe, threads, workers, plan, gave_up, lock, line(train.told))
        else:
            recipe, origin = there
            recipe = _grown(recipe, asked, fitted=bool(origin["gave_up"]))
            _check_same_data(folder, origin, train, held_out)
            if not dry:
                disk.write_recipe(folder, recipe)
                disk.write_json(folder / "origin.json", {**origin, "asked": asked.dump()})
            # Equal bits need an equal number of threads.
            threads, workers = origin["threads"], min(len(recipe.seeds), cores())
            yield Prepared(folder, recipe, threads, workers, None, tuple(origin["gave_up"]), lock, line(train.told))


def _grown(recipe: Recipe, asked: Recipe, fitted: bool) -> Recipe:
    """The run's recipe with what may grow (seeds, rounds, controls) taken from what is asked now."""
    new = recipe.dump()
    now = asked.dump()
    for key in ("title", "seeds", "controls", "on_failure"):
        new[key] = now[key]
    new["keep"] = "ends" if "ends" in (recipe.keep, asked.keep) else "all"
    new["training"]["checkpoint_seconds"] = now["training"]["checkpoint_seconds"]
    new["evaluation"]["margin"] = now["evaluation"]["margin"]
    if not fitted:
        new["search"]["rounds"] = now["search"]["rounds"]
    return parsed(new)


def check_buildable(recipe: Recipe, images: ImageSet) -> None:
    """Raises `RecipeError` where model, objective and images do not go together, before anything is computed."""
    model, objective = recipe.model.named, recipe.objective.named
    own = is_code(model.name) or is_code(objective.name)
    with nullcontext() if own else torch.device("meta"):
        net = build_model(recipe, images, seed=0)
    check_fits(recipe, net, images.shape)
    has, needs = components_of(net), recipe.build_objective().components
    if missing := [name for name in needs if name not in has]:
        raise RecipeError(
            f"objective.name={recipe.objective.name} needs {', '.join(missing)}; "
            f"model.name={recipe.model.name} has {', '.join(has)}"
        )
    _check_classes(recipe, images)
    if own:
        trained_for = recipe.build_objective()
        rows = np.arange(3 * trained_for.batches_per_step) % len(images)
        check_step(model.name, net, trained_for, batch_of(images, rows, "cpu", trained_for.wants_labels))
    _try_criterion(recipe, net, images)
    make_fabric(recipe)


def _try_criterion(recipe: Recipe, model: nn.Module, images: ImageSet) -> None:
    """Prunes once by a criterion of one's own: what is wrong with it is said before a model is trained for it."""
    criterion = recipe.search.named.options.get("criterion")
    if criterion is None or not is_code(criterion.name):
        return
    objective, method = recipe.build_objective(), recipe.build_method()
    if any(weight.is_meta for weight in model.parameters()):
        model = build_model(recipe, images, seed=0)
    count = recipe.training.batch_size * objective.batches_per_step
    batches = Batches(images, count, seed=0, labelled=objective.wants_labels)
    example_inputs = objective.example_inputs(
        model.eval(), batch_of(images, slice(0, 2), "cpu", objective.wants_labels)
    )
    masks = method.covered(model)
    given = {"objective": objective, "batches": batches, "seed": 0, "example_inputs": example_inputs}
    try:
        with running(criterion.name):
            scores = scored(criterion.build(**given), model, masks)
        prune(scores, fraction=0.5, within=masks)
    except PruneError as error:
        raise RecipeError(f"search.criterion={criterion.name}: {error}") from None


def _check_classes(recipe: Recipe, images: ImageSet) -> None:
    """Raises `RecipeError` where the model takes other labels than the objective tells and the images have."""
    tells, name = recipe.build_objective().wants_labels, recipe.model.name
    if "classes" not in recipe.model.options:
        if tells and not is_code(name):
            raise RecipeError(f"objective.conditional=true: model.name={name} takes no labels")
        return
    classes = recipe.model.options["classes"]
    if not tells and classes is not None:
        raise RecipeError(f"model.classes={classes}: the objective tells no labels; objective.conditional=true does")
    needed = 0 if images.labels is None else int(images.labels.max()) + 1
    if tells and (classes is None or classes < needed):
        raise RecipeError(
            f"model.classes={'null' if classes is None else classes} with objective.conditional=true: the images have "
            f"labels up to {needed - 1}; model.classes={needed}"
        )


def _check_step(recipe: Recipe, channels: int) -> None:
    """Raises `DataError` where not even the images of one step fit into memory."""
    count = recipe.training.batch_size * recipe.build_objective().batches_per_step
    size = recipe.data.size
    what = f"data.size={size} with training.batch_size={recipe.training.batch_size}"
    check_room(what, count, (channels, size, size), 4, "take a smaller one of them")


def make_judge(recipe: Recipe, train: ImageSet, held_out: ImageSet) -> Judge:
    """The recipe's judge, on the recipe's device.

    Made on one thread, however many a training takes: what it computes once (classifier, statistics of the real
    images) is cached for all runs.
    """
    with on_threads(1):
        own = {name: metric.build() for name, metric in recipe.evaluation.own_metrics.items()}
        return Judge(recipe.build_objective(), train, held_out, recipe.evaluation, make_fabric(recipe).device, own)


def _origin(
    asked: Recipe,
    command: str,
    train: ImageSet,
    held_out: ImageSet,
    judge: Judge,
    threads: int,
    workers: int,
    gave_up: tuple[str, ...],
) -> dict[str, Any]:
    return {
        "asked": asked.dump(),
        "command": command,
        "started": date.today().isoformat(),
        "versions": {
            "gentickets": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
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


# -- the seeds side by side ---------------------------------------------------------------------------------


def run_seeds(ready: Prepared, tell: Tell) -> None:
    """Runs every seed to its end, several at once in processes of their own, and writes the results.

    On Ctrl-C and its like each training saves its state; the same command goes on from there.
    """
    seeds = ready.recipe.seeds
    work = partial(_run_seed, ready.folder, ready.recipe, ready.threads)
    with disk.one_line_errors(ready.folder):
        if ready.workers == 1:
            with stopping(urgent=interrupt) as stop:
                for seed in seeds:
                    work(seed, tell, stop)
        else:
            side_by_side(seeds, ready.workers, work, tell, ready.lock)
        write_csv(read_run(ready.folder))


def _run_seed(folder: Path, recipe: Recipe, threads: int, seed: int, tell: Tell, stop: Callable[[], bool]) -> None:
    with disk.one_line_errors(folder), own_faults():
        torch.set_num_threads(threads)
        train, held_out = load_data(recipe.data)
        _check_same_data(folder, disk.read_origin(folder), train, held_out)
        judge = make_judge(recipe, train, held_out)
        SeedRun(recipe, folder, seed, train, judge, tell, stop).run()


def keep_time(folder: Path, plan: Plan, seconds: float, used: int | None = None) -> None:
    """Writes into a run's origin what was planned, and what it took in one go; `used`: bytes of memory."""
    with disk.one_line_errors(folder), disk.locked(folder):
        kept = {"planned_seconds": round(plan.seconds, 1), "took_seconds": round(seconds, 1)}
        kept |= {"planned_bytes": plan.memory_bytes} | ({} if used is None else {"used_bytes": used})
        disk.write_json(folder / "origin.json", {**disk.read_origin(folder), **kept})


# -- judging again ------------------------------------------------------------------------------------------


def evaluate_again(
    folder: Path,
    samples: int | None,
    features: str | None,
    weights: str | None,
    tell: Tell,
    allow_code: bool = False,
) -> None:
    """Measures every complete level of a run anew, with other samples or features, and writes its results.

    All is measured before anything is written: where it ends early the run is as it was. Raises `RecipeError` for a
    folder that is no run, or where the data are not those that the run was trained and judged on.
    """
    recipe = disk.read_run_recipe(folder)
    changes = {"samples": samples, "features": features, "inception_weights": weights}
    raw = recipe.dump()
    raw["evaluation"] |= {key: value for key, value in changes.items() if value is not None}
    recipe = parsed(raw, str(folder), allow_code)
    origin = disk.read_run_origin(folder)
    recipe.check()
    disk.check_same_code(folder, origin, recipe)
    with disk.one_line_errors(folder), disk.locked(folder):
        check_all_kept(folder)
        torch.set_num_threads(origin["threads"])
        train, held_out = load_data(recipe.data)
        _check_same_data(folder, origin, train, held_out)
        judge = make_judge(recipe, train, held_out)
        levels = [(level.seed, level.level, level.arm) for level in read_run(folder).levels]
        found: dict[Path, dict[str, Any]] = {}
        for done, (seed, index, arm) in enumerate(levels, start=1):
            seed_run = SeedRun(recipe, folder, seed, train, judge)
            place = seed_run.folder / disk.level_name(index, arm)
            metrics = disk.read_metrics(place)
            if metrics["status"] == "complete":
                measured = measure_level(place, seed_run.load_level(index, arm).model, judge)
                found[place] = {**metrics, "metrics": metrics_json(measured), "primary": judge.primary}
            tell(Event(seed, place.name, done, len(levels)))
        for place, metrics in found.items():
            disk.write_json(place / "metrics.json", metrics)
        origin["asked"]["evaluation"] = raw["evaluation"]
        disk.write_json(folder / "origin.json", origin)
        disk.write_recipe(folder, recipe)
        write_csv(read_run(folder))


def _check_same_data(folder: Path, origin: Mapping[str, Any], train: ImageSet, held_out: ImageSet) -> None:
    """Raises `RecipeError` where the images are not those that the run began with."""
    data = origin["data"]
    kept = data["fingerprint"], data.get("test_fingerprint", held_out.fingerprint)
    if kept != (train.fingerprint, held_out.fingerprint):
        mend = "draw them by a fixed seed" if is_code(train.name) else "put it back, or use find --fresh"
        raise RecipeError(f"{folder}: the data of {train.name!r} has changed since; {mend}")

"""Judging again: every complete level of a run, by other samples, features or more classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.recipe import parsed
from gentickets.lab.recipe.plain_yaml import write_yaml
from gentickets.lab.replacing import replace_together
from gentickets.lab.results.reading import read_run
from gentickets.lab.results.tables import write_csv
from gentickets.lab.run import folder as disk
from gentickets.lab.run.claims import Claims
from gentickets.lab.run.keeping import check_all_kept
from gentickets.lab.run.level import check_level, measure_level, metrics_json
from gentickets.lab.run.pieces import pieces_in
from gentickets.lab.run.seed import SeedRun
from gentickets.lab.run.stage import load_data_of, make_judge
from gentickets.lab.run.trainer import Event, Tell
from gentickets.sealed import sealed_json


def evaluate_again(folder: Path, changes: Mapping[str, Any], tell: Tell, allow_code: bool = False) -> None:
    """Measures every complete level of a run anew, by other keys of its `evaluation`, and writes its results.

    All is measured before anything is written, and is written together: where it ends early the run is as it was, or
    is read by nobody until the next command that works on it has written the rest. Raises `RecipeError` for a
    folder that is no run, or where the data are not those that the run was trained and judged on.
    """
    disk.settle(folder)
    recipe, origin = disk.read_begun(folder)
    raw = recipe.dump()
    raw["evaluation"] |= changes
    recipe = parsed(raw, str(folder), allow_code)
    if "inception_weights" in changes and recipe.evaluation.features != "inception":
        raise RecipeError("--inception-weights would not be read: add --features inception, or leave it out")
    recipe.check()
    disk.check_same_code(folder, origin, recipe)
    with disk.one_line_errors(folder), disk.locked(folder), Claims(folder).alone() as claim:
        disk.check_same_run(folder, origin.get("id"))
        check_all_kept(folder)
        torch.set_num_threads(origin["threads"])
        train, held_out = load_data_of(folder, recipe, origin)
        judge = make_judge(recipe, train, held_out)
        if not (pieces := pieces_in(folder)):
            raise RecipeError(f"{folder}: no level is complete yet")
        for piece in pieces:  # before hours go into judging the others
            check_level(folder / piece.name)
        found: dict[str, dict[str, Any]] = {}
        for done, piece in enumerate(pieces, start=1):
            place = folder / piece.name
            metrics = disk.read_metrics(place)
            if metrics["status"] == "complete":
                level = SeedRun(recipe, folder, piece.seed, train, judge).load_level(piece.level, piece.arm)
                measured = measure_level(place, level.model, judge)
                found[piece.name] = {**metrics, "metrics": metrics_json(measured), "primary": judge.primary}
            tell(Event(piece.seed, place.name, done, len(pieces)))
        if claim.look():
            raise GenticketsError(f"{folder} was worked on meanwhile, as this was stopped for long: run it again")
        origin["asked"]["evaluation"], origin["id"] = raw["evaluation"], disk.new_id()
        files = {f"{name}/metrics.json": sealed_json(metrics) for name, metrics in found.items()}
        files |= {"origin.json": sealed_json(origin), "recipe.yaml": write_yaml(recipe.dump())}
        replace_together(folder, files)
        write_csv(read_run(folder))

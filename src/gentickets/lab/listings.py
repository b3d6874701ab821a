"""What there is: tables of models, objectives, data sources, recipes and runs; what is in a ticket or a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType

from rich.table import Table

from gentickets.errors import GenticketsError
from gentickets.lab.recipe import read_recipe
from gentickets.lab.results import read_run
from gentickets.models import CATALOGUE, options_of
from gentickets.objectives import OBJECTIVES
from gentickets.ticket import Ticket


def ticket_words(path: Path) -> Iterator[str | Table]:
    """What is in a ticket file, whose digest is checked on the way: words and a table. Raises `TicketError`."""
    ticket = Ticket.load(path)
    yield f"{path}: {ticket.masks!r}"
    table = Table("weight", "shape", "alive", "of", "sparsity")
    for name, alive in ticket.masks.counts().items():
        shape = ticket.masks.shapes[name]
        total = ticket.masks[name].numel()
        table.add_row(name, "x".join(map(str, shape)), f"{alive:,}", f"{total:,}", f"{1 - alive / max(total, 1):.2%}")
    yield table
    lineage = ticket.origin.pop("lineage", [])
    yield f"origin: {json.dumps(ticket.origin)}"
    yield f"lineage: {', '.join(_sparsities(lineage))}"
    yield "digest: fits; every tensor and all metadata are as they were written"


def _sparsities(lineage: object) -> Iterator[str]:
    """The sparsities of the rounds before, as far as a stranger's file says any."""
    for entry in lineage if isinstance(lineage, list) else ():
        sparsity = entry.get("sparsity") if isinstance(entry, dict) else None
        yield f"{sparsity:.1%}" if isinstance(sparsity, int | float) and 0 <= sparsity <= 1 else "?"


def run_table(folder: Path) -> Table:
    """Where a run stands: its levels, one a row."""
    run = read_run(folder)
    table = Table("seed", "level", "arm", "sparsity", "status", "metric", title=run.name)
    for level in run.levels:
        metric = level.metrics.get(level.primary)
        shown = f"{metric.value:.5g}" if metric else level.reason or ""
        table.add_row(str(level.seed), str(level.level), level.arm, f"{level.sparsity:.2%}", level.status, shown)
    return table


def _models(runs: Path) -> Table:
    table = Table("model", "options", "what")
    for name, build in CATALOGUE.items():
        options = ", ".join(f"{key}={value}" for key, value in options_of(name).items())
        table.add_row(name, options, (build.__doc__ or "").strip().splitlines()[0])
    return table


def _objectives(runs: Path) -> Table:
    table = Table("objective", "options", "what")
    for name, kind in OBJECTIVES.items():
        options = ", ".join(field.name for field in fields(kind) if field.name != "latent_size")
        table.add_row(name, options, (kind.__doc__ or "").strip().splitlines()[0])
    return table


def _data(runs: Path) -> Table:
    table = Table("data.source", "what")
    table.add_row("digits", "1,797 handwritten digits that come with scikit-learn; no network")
    table.add_row("mnist, fashion-mnist, cifar10, celeba", "from the hub; needs the package datasets")
    table.add_row("owner/name", "any image data set of the hub; needs the package datasets")
    table.add_row("path/to/train.parquet", "a parquet file with an image column; test.parquet beside it is held out")
    table.add_row("path/to/folder", "a folder of images; train/ and test/ are understood, so is CelebA's layout")
    return table


def _recipes(runs: Path) -> Table:
    table = Table("recipe", "model", "data", "rounds", "seeds")
    for path in sorted(Path("recipes").rglob("*.yaml")):
        found = read_recipe(path)
        table.add_row(str(path), found.model.name, found.data.source, str(found.search.rounds), str(len(found.seeds)))
    return table


def _runs(runs: Path) -> Table:
    table = Table("run", "levels complete", "seeds")
    for folder in sorted(runs.iterdir()) if runs.is_dir() else []:
        if (folder / "recipe.yaml").exists():
            try:
                levels = read_run(folder).levels
            except GenticketsError:
                levels = []
            table.add_row(str(folder), str(len(levels)), str(len({level.seed for level in levels})))
    return table


LISTINGS: Mapping[str, Callable[[Path], Table]] = MappingProxyType(
    {"models": _models, "objectives": _objectives, "data": _data, "recipes": _recipes, "runs": _runs}
)
"""What can be listed → its table; the path is that of the folder of runs."""

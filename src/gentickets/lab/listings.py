"""What there is: tables of models, objectives, data sources, recipes, keys and runs; what is in a ticket, level or run.

What does not need torch is shown without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from rich.table import Table

from gentickets.catalogue import CATALOGUE
from gentickets.errors import GenticketsError, MaskError
from gentickets.lab.recipe import Recipe, parsed, read_keys, shipped
from gentickets.lab.recipe.file import with_overrides
from gentickets.lab.recipe.keys import keys_table
from gentickets.lab.recipe.named import named_of
from gentickets.lab.recipe.owned import REQUIRED, owner

if TYPE_CHECKING:
    from torch import nn

    from gentickets.lab.run.plan import Plan
    from gentickets.lab.run.scaling import Scaled
    from gentickets.lab.run.schedule import Span
    from gentickets.lab.run.status import Status


def what_is_in(path: Path) -> Iterator[str | Table]:
    """What is in a ticket file, a level's folder, a run's or a study's: words and tables. Raises `GenticketsError`."""
    if not path.is_dir():
        yield from ticket_words(path)
    elif (path / "metrics.json").is_file():
        from gentickets.lab.run.level import check_level

        check_level(path)
        yield _level_table(path)
        yield from ticket_words(path / "ticket.safetensors")
    elif (path / "study.yaml").is_file():
        for folder in sorted(path.iterdir()):
            if (folder / "recipe.yaml").is_file() and not folder.is_symlink():
                yield run_table(folder)
    else:
        yield run_table(path)


def _level_table(place: Path) -> Table:
    """How a level went, and what was measured of it."""
    from gentickets.lab.results.reading import LevelResult, parse

    level: LevelResult = parse(place / "metrics.json", LevelResult)
    how = f"{level.status}: {level.reason}" if level.reason else level.status
    title = f"{place}: seed {level.seed}, level {level.level}, {level.arm}, {level.sparsity:.2%} sparse, {how}"
    table = Table("metric", "value", "images", title=title)
    for metric in level.metrics.values():
        table.add_row(metric.label, f"{metric.value:.5g}", f"{metric.samples:,}")
    return table


def ticket_words(path: Path) -> Iterator[str | Table]:
    """What is in a ticket file, whose digest is checked on the way: words and a table. Raises `TicketError`."""
    from gentickets.lab.run.publishing import check_listed
    from gentickets.lab.tickets import lineage_words, signature_words
    from gentickets.masks.ticket import Ticket

    check_listed(path)
    ticket = Ticket.load(path)
    yield f"{path}: {ticket.masks!r}"
    table = Table("weight", "shape", "alive", "of", "sparsity")
    for name, alive in ticket.masks.counts().items():
        shape = ticket.masks.shapes[name]
        total = ticket.masks[name].numel()
        table.add_row(name, "x".join(map(str, shape)), f"{alive:,}", f"{total:,}", f"{1 - alive / max(total, 1):.2%}")
    yield table
    yield f"origin: {json.dumps({key: value for key, value in ticket.origin.items() if key != 'lineage'})}"
    yield lineage_words(ticket)
    yield "digest: fits; every tensor and all metadata are as they were written"
    yield signature_words(ticket)


def model_words(
    name: str, said: Iterable[str], size: int, channels: int, example: str | None = None
) -> Iterator[str | Table]:
    """What of a model can be pruned, and what cannot and why, before anything is: words and tables.

    `said`: its options as key=value; `example`: see `width_words`. Code that is named is run. Raises `GenticketsError`.
    """
    import torch

    from gentickets.lab.results.words import count
    from gentickets.lab.task import made_model
    from gentickets.lab.widths import width_words

    keyed = (one if "." in one.partition("=")[0] else f"model.{one}" for one in said)
    options = with_overrides({"model": {"name": name}}, keyed)
    if strange := [key for key in options if key != "model"]:
        raise GenticketsError(f"{strange[0]}: with --model, key=value are the model's own")
    named = named_of("model", options["model"])
    with torch.random.fork_rng(devices=[]):
        model = made_model(named, size, channels)
    told = ", ".join(f"{key}={json.dumps(value, default=str)}" for key, value in named.options.items())
    yield f"{name}{f' ({told})' if told else ''} for images of {size}x{size}, {count(channels, 'channel')}"
    yield from _what_is_prunable(model)
    yield from width_words(model, size, channels, example)


def _what_is_prunable(model: nn.Module) -> Iterator[str | Table]:
    from torch.nn.parameter import is_lazy

    from gentickets.masks.layers import check_zeros, left_out
    from gentickets.masks.names import component_of, components_of, named_weights

    weights, reasons = named_weights(model), left_out(model)
    if lazy := [name for name, weight in weights.items() if is_lazy(weight)]:
        raise GenticketsError(f"{lazy[0]!r} has no shape yet (a lazy layer): say the layer's sizes")
    sizes = {name: weight.numel() for name, weight in weights.items()}
    table = Table("component", "parameters", "prunable weights", "share", "in layers")
    for component in (*components_of(model), None):
        inside = {name: n for name, n in sizes.items() if component in (None, component_of(name))}
        chosen = {name: n for name, n in inside.items() if name not in reasons}
        every, of = sum(inside.values()), sum(chosen.values())
        table.add_row(component or "all", f"{every:,}", f"{of:,}", f"{of / max(every, 1):.1%}", f"{len(chosen):,}")
    yield table
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault((component_of(name), why), []).append(name)
    if groups:
        table = Table("not pruned in", "because it is", "numbers", "tensors", "such as")
        for (component, why), names in groups.items():
            table.add_row(component, why, f"{sum(sizes[name] for name in names):,}", f"{len(names):,}", names[0])
        yield table
    if len(reasons) == len(weights):
        yield "nothing is pruned by default: only convolutions and linear layers are"
    try:
        check_zeros(model, [name for name in weights if name not in reasons])
    except MaskError as error:
        yield f"refused by every search as it is: {error}"


def status_words(status: Status, every: bool = False) -> Iterator[str | Table]:
    """Where a run stands: what is neither done nor merely waits, piece by piece; with `every`, all of them."""
    from gentickets.durations import duration

    counts = ", ".join(f"{count:,} {state}" for state, count in status.counts().items())
    left = "" if status.seconds_left is None or status.is_complete else f"; about {duration(status.seconds_left)} left"
    yield f"{status.folder}: {counts}{left}"
    shown = [one for one in status.pieces if every or one.state in ("running", "stopped", "failed")]
    if not shown:
        return
    table = Table("piece", "state", "where", "for", "step", "images/s", "why")
    for one in shown:
        beat, running = one.beat, one.state == "running"
        step = f"{beat.done:,.0f} of {beat.total:,.0f}" if running and beat.total else ""
        rate = f"{beat.rate:,.0f}" if running and beat.rate else ""
        why = f"for {one.why}" if one.state == "waiting" else one.why
        table.add_row(one.piece.name, one.state, one.where, duration(beat.seconds) if running else "", step, rate, why)
    yield table


def scaling_words(found: Sequence[Scaled], path: Sequence[Span], plans: Sequence[Plan]) -> Iterator[str | Table]:
    """What more workers are worth: a table, and the chain that bounds it all."""
    from gentickets.durations import duration
    from gentickets.lab.results.words import count

    steps, trainings = sum(plan.steps for plan in plans), sum(plan.trainings for plan in plans)
    each = ", ".join(f"{plan.step_seconds * 1000:.3g}" for plan in plans[:6])
    threads = count(max(plan.threads for plan in plans), "thread")
    yield (
        f"{trainings:,} trainings, {steps:,} steps; measured here: {each}{' …' if len(plans) > 6 else ''} ms a step, "
        f"{threads} a training"
    )
    table = Table("workers", "with work", "wall clock", "speed-up", "waiting", "worker-hours")
    for one in found:
        made = one.schedule
        table.add_row(
            f"{one.workers:,}", f"{made.used:,}", duration(made.seconds), f"{one.speedup:.2f}", f"{made.idle:.0%}",
            f"{one.worker_hours:,.2f}",
        )  # fmt: skip
    yield table
    alone = sum(span.end - span.start for span in path)
    yield (
        f"one after the other, whatever the workers: {count(len(path), 'piece')} of seed {path[-1].piece.seed}, "
        f"{duration(alone)}"
    )


def run_table(folder: Path) -> Table:
    """Where a run stands: its levels, one a row."""
    from gentickets.lab.results.part import part_of
    from gentickets.lab.results.reading import read_run

    run = read_run(folder)
    part = part_of(run)
    of_part = f", sparsity{part.words}" if part and part.words else ""
    table = Table("seed", "level", "arm", "sparsity", "status", "metric", title=f"{run.name}{of_part}")
    for level in run.levels:
        metric = level.metrics.get(level.primary)
        shown = f"{metric.value:.5g}" if metric else level.reason or ""
        table.add_row(str(level.seed), str(level.level), level.arm, f"{level.sparsity:.2%}", level.status, shown)
    return table


def _things(kind: str) -> Callable[[Path], Table]:
    """What there is of a kind, with its options and what it is."""

    def table(runs: Path) -> Table:
        table = Table(kind, "options", "what")
        for name in CATALOGUE[kind]:
            words, options = owner(kind, name)
            said = ((key, one.default) for key, one in options.items())
            told = (key if default is REQUIRED else f"{key}={json.dumps(default)}" for key, default in said)
            table.add_row(name, ", ".join(told).replace('"', ""), words)
        return table

    return table


def _data(runs: Path) -> Table:
    table = Table("data.source", "what")
    table.add_row("digits", "1,797 handwritten digits that come with scikit-learn; no network")
    table.add_row("mnist, fashion-mnist, cifar10, celeba", "from the hub; needs the package datasets")
    table.add_row("owner/name", "any image data set of the hub; needs the package datasets")
    table.add_row("path/to/train.parquet", "a parquet file with an image column; test.parquet beside it is held out")
    table.add_row("path/to/folder", "a folder of images; train/ and test/ are understood, so is CelebA's layout")
    table.add_row(
        "my.py:name", "what a function of yours gives: images (n, height, width[, channels]), with labels or not"
    )
    return table


def _as_written(path: Path) -> Recipe:
    """A recipe file's keys, of which nothing is loaded."""
    raw = read_keys(path)
    raw.pop("study", None)
    return parsed(raw, str(path))


def _recipes(runs: Path) -> Table:
    table = Table("recipe", "model", "data", "rounds", "seeds", title="gentickets find NAME, in any folder")
    known = {path.resolve() for path in shipped.recipes().values()}
    own = {str(path): path for path in sorted(Path("recipes").rglob("*.yaml")) if path.resolve() not in known}
    for name, path in {**shipped.recipes(), **own}.items():
        try:
            found = _as_written(path)
        except GenticketsError as error:  # one of the reader's own, and no reason to show none
            table.add_row(name, str(error))
        else:
            table.add_row(name, found.model.name, found.data.source, str(found.rounds), str(len(found.seeds)))
    return table


def _keys(runs: Path) -> Table:
    return keys_table()


def _runs(runs: Path) -> Table:
    from gentickets.lab.results.reading import read_run

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
    {
        "models": _things("model"),
        "objectives": _things("objective"),
        "methods": _things("method"),
        "criteria": _things("criterion"),
        "arounds": _things("around"),
        "data": _data,
        "recipes": _recipes,
        "keys": _keys,
        "runs": _runs,
    }
)
"""What can be listed → its table; the path is that of the folder of runs."""

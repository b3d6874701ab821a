"""Handing a level out of a run: its network made physically smaller, or a component of it as a program."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table
from torch import Tensor, nn

from gentickets.catalogue import changed_code, digests, is_code, running
from gentickets.channels.export import Format, export, format_of
from gentickets.channels.kept import save_small
from gentickets.channels.shrinking import Shrinking
from gentickets.channels.small import Architecture, small_ticket
from gentickets.errors import GenticketsError, RecipeError, TicketError
from gentickets.lab.recipe import Recipe
from gentickets.lab.recipe.file import kept_recipe, read_recipe
from gentickets.lab.results.words import count, percent
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.keeping import trained_weights
from gentickets.lab.run.level import ALONE, TICKET, check_level, with_stored_averages
from gentickets.lab.run.stage import load_data
from gentickets.masks.examples import Example
from gentickets.masks.names import check_components
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.metrics.cost import Cost, cost

_BATCH = 16
_PAIRS = 15
_BOUND = "every channel still lies on a live path from input to output, or is bound to one that does"


@dataclass(frozen=True)
class Shipment:
    """A network as it is to be handed out, and the masks that it is held to; already cut where channels were pruned.

    `removed`: the channels that went before it was trained, by component. `sparsity` is the ticket's.
    """

    architecture: Architecture
    model: nn.Module
    masks: Masks
    examples: Mapping[str, Any]
    sparsity: float
    removed: Mapping[str, int]
    origin: Mapping[str, Any]


# -- what is handed out ---------------------------------------------------------------------------------------


def of_level(place: Path, allow_code: bool = False) -> Shipment:
    """A complete level, with the weights that it is judged by: the averages, where it has some.

    Reads only the run's folder; of `seed-0/trained`, as `gentickets train` makes it, the data set for its shape.
    Raises `GenticketsError` where the level is not complete, or has no weights that are worth anything.
    """
    _check_complete(place)
    metrics = disk.read_metrics(place)
    if metrics["status"] != "complete":
        raise GenticketsError(f"{place} is {metrics['status']} ({metrics['reason']}): it has no weights to hand out")
    check_level(place)
    recipe, (channels, size, _) = _recipe_of(place.resolve().parents[1], allow_code)
    ticket = Ticket.load(place / TICKET)
    as_trained = metrics["level"] > 0 and place.resolve().name != ALONE
    if as_trained and not (method := recipe.build_method()).trains:
        parts = ", ".join(method.sources(metrics["arm"]))
        raise GenticketsError(f"{place} was put together, not trained: hand out the same level of each of {parts}")
    whole = _shipment(recipe, channels, size, ticket, as_trained)
    Ticket(whole.masks, trained_weights(place)).install(whole.model)
    whole.masks.audit(whole.model)
    origin = {**whole.origin, "level": metrics["level"], "arm": metrics["arm"], "seed": metrics["seed"]}
    return replace(whole, model=with_stored_averages(whole.model, place).eval(), origin=origin)


def of_ticket(file: Path, recipe_file: Path, overrides: Iterable[str] = (), allow_code: bool = False) -> Shipment:
    """A ticket's masks and rewind weights, in the model of a recipe. Raises `TicketError` where they do not fit."""
    recipe = read_recipe(recipe_file, overrides, allow_code=allow_code)
    publishing.check_listed(file)
    ticket = Ticket.load(file)
    if not ticket.weights:
        raise TicketError(f"{file} holds masks without weights: there is no network to hand out")
    channels, size, _ = load_data(recipe.data)[0].shape
    return _shipment(recipe, channels, size, ticket, as_trained=False)


def _check_complete(place: Path) -> None:
    if (place / "metrics.json").is_file() and not place.name.endswith(".partial"):
        return
    if place.name.endswith(".partial") or publishing.partial_of(place).is_dir():
        raise GenticketsError(
            f"{place} is not complete: run the same `gentickets find` again, which goes on from there"
        )
    levels = sorted(str(found.parent) for found in place.glob("**/metrics.json") if ".partial" not in str(found))
    hint = f"take one in it, such as {levels[-1]}" if levels else "it looks like runs/quickstart-gan/seed-0/level-03"
    raise GenticketsError(f"{place} is no level's folder: {hint}")


def _recipe_of(run: Path, allow_code: bool) -> tuple[Recipe, tuple[int, int, int]]:
    """The recipe of a run's folder, and (channels, height, width) of its images."""
    if (run / "recipe.yaml").exists():
        recipe, origin = disk.read_begun(run, allow_code)
        try:
            channels, height, width = origin["data"]["shape"]
        except (LookupError, TypeError, ValueError):
            raise RecipeError(f"{run / 'origin.json'} does not say the shape of the images") from None
        return _as_it_was(recipe, run, origin), (channels, height, width)
    origin = disk.read_origin(run)
    if not isinstance(origin.get("asked"), dict):
        raise RecipeError(f"{run / 'origin.json'} does not say what was asked")
    recipe = kept_recipe(origin["asked"], str(run / "origin.json"), allow_code)  # of `gentickets train`
    return _as_it_was(recipe, run, origin), load_data(recipe.data)[0].shape


def _as_it_was(recipe: Recipe, run: Path, origin: Mapping[str, Any]) -> Recipe:
    """The recipe, where the code of its model is that of the run. Raises `RecipeError` where it may not run."""
    named = recipe.model.named
    if changed := changed_code(origin.get("code") or {}, digests([named.name])):
        raise RecipeError(f"{run}: the code of {', '.join(changed)} has changed since the run began: put it back")
    return recipe


def _shipment(recipe: Recipe, channels: int, size: int, ticket: Ticket, as_trained: bool) -> Shipment:
    """The ticket installed, `as_trained` in the network that its level trained, which may be smaller."""
    named = recipe.model.named
    architecture = Architecture(named.name, size, channels, named.options, named.load())
    model = _built(architecture)
    images = torch.rand((2, channels, size, size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        examples = recipe.build_objective().example_inputs(model.eval(), images)
    origin = {"recipe": recipe.name, "ticket": ticket.masks.fingerprint, "sparsity": ticket.masks.sparsity}
    masks, removed = ticket.masks, dict.fromkeys(examples, 0)
    if as_trained:
        model, masks, gone = recipe.build_method().network(ticket, model, examples)
        removed |= gone
    else:
        ticket.install(model)
    return Shipment(architecture, model.eval(), masks, examples, ticket.masks.sparsity, removed, origin)


def _built(architecture: Architecture) -> nn.Module:
    """The whole network, with some weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]), running(architecture.model):
        try:
            return architecture.build()
        except ValueError as error:
            raise RecipeError(f"model {architecture.model}: {error}") from None


# -- smaller --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shrunk:
    """What shrinking came to: the file, the channels that went and the costs before and after.

    `before` is the whole network of the recipe. `time`: component → small forward time / whole one, as read here.
    """

    ticket: Ticket
    bytes: int
    removed: Mapping[str, int]
    before: Cost
    after: Cost
    time: Mapping[str, float]
    words: tuple[str, ...]


def shrink_to(shipment: Shipment, file: Path) -> Shrunk:
    """Writes the physically smaller network of a shipment (see `small`), and says what it saves.

    Raises what `shrink` raises, and `TicketError` where the file cannot be written.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        shrinking = Shrinking(shipment.model, shipment.masks, shipment.examples)
    removed = {name: gone + shrinking.removed[name] for name, gone in shipment.removed.items()}
    origin = {**shipment.origin, "removed": removed}
    ticket = small_ticket(shrinking.model, shrinking.masks, shipment.architecture, origin)
    ticket.save(file)
    whole = _built(shipment.architecture).eval()
    small = shrinking.model.eval()
    batch = {name: _of_size(Example.of(example, name), _BATCH) for name, example in shipment.examples.items()}
    return Shrunk(
        ticket,
        file.stat().st_size,
        removed,
        cost(whole, shipment.examples),
        cost(small, shipment.examples),
        {
            name: time_ratio(getattr(whole, name), getattr(small, name), batch[name], _PAIRS)
            for name, n in removed.items()
            if n
        },
        (*_words(shipment, shrinking), *(str(warning.message) for warning in caught)),
    )


def _words(shipment: Shipment, shrinking: Shrinking) -> Iterable[str]:
    """What the table does not say by itself."""
    before, now = sum(shipment.removed.values()), sum(shrinking.removed.values())
    if before:
        yield f"{count(before, 'channel')} had gone before the level was trained: its ticket prunes whole channels."
    if not shrinking.masks.alive < shrinking.masks.total and not before and not now:
        yield "No channel could go: nothing is pruned at this level, which is the dense network."
    elif not before and not now:
        yield (
            f"No channel could go. The ticket is {percent(shipment.sparsity)} sparse in single weights, and {_BOUND}; "
            "the network stays as large as it was. Masks of single weights empty whole channels only at high "
            "sparsities: for a smaller network, take a later level, or prune channels "
            "(search.method=early-bird search.granularity=channel)."
        )
    for name, gone in shrinking.removed.items():
        if not gone and not shipment.removed[name] and (before or now):
            yield f"{name}: no channel could go; {_BOUND}."
    if folded := list(shrinking.folded):
        more = f" and {len(folded) - 3} more" if len(folded) > 3 else ""
        yield f"What pruned channels hold whatever the input was folded into {', '.join(folded[:3])}{more}."
    if left := shrinking.masks.total - shrinking.masks.alive:
        yield f"{count(left, 'weight')} of what is left are zero; their masks are in the file."


def _of_size(example: Example, size: int) -> Example:
    """The batch of an example over and over, up to so many."""
    batch = example.batch

    def longer(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != batch:
            return tensor
        return tensor.repeat(-(-size // batch), *[1] * (tensor.dim() - 1))[:size]

    return example.map(longer)


@torch.no_grad()
def time_ratio(whole: nn.Module, small: nn.Module, batch: Example, pairs: int) -> float:
    """Forward time of `small` / that of `whole`: the median of interleaved pairs, after one pair unmeasured."""
    ratios = []
    for _ in range(pairs + 1):
        begun = time.perf_counter()
        batch(whole)
        between = time.perf_counter()
        batch(small)
        ratios.append((time.perf_counter() - between) / (between - begun))
    return statistics.median(ratios[1:])


def shrunk_table(shrunk: Shrunk) -> Table:
    """Before → after, by component."""
    table = Table(
        Column("component", no_wrap=True), "channels removed", "parameters", "FLOPs, forward", "bytes", "forward time"
    )
    for name, before in shrunk.before.components.items():
        ratio = f"x {shrunk.time[name]:.2f}" if name in shrunk.time else "–"
        table.add_row(name, f"{shrunk.removed.get(name, 0):,}", *_change(before, shrunk.after.components[name]), ratio)
    table.add_row("all", f"{sum(shrunk.removed.values()):,}", *_change(shrunk.before, shrunk.after), "")
    return table


def reader_words(shrunk: Shrunk, file: Path) -> str:
    """What reads the file."""
    model = str(shrunk.ticket.origin["network"]["model"])
    return (
        f"gentickets.load_small({str(file)!r}, make_model={model.rpartition(':')[2]})"
        if is_code(model)
        else ("gentickets.load_small")
    )


def _change(before: Cost, after: Cost) -> list[str]:
    keys = ("parameters", "flops_dense", "bytes_dense")
    return [f"{getattr(before, key):,} → {getattr(after, key):,}" for key in keys]


def reading_words() -> str:
    """How forward time was read."""
    threads = count(torch.get_num_threads(), "thread")
    return (
        f"Forward time, after / before: median of {_PAIRS} interleaved pairs, batches of {_BATCH}, {threads}; "
        "a reading on this machine, not a property of the network."
    )


# -- one component --------------------------------------------------------------------------------------------

_WEIGHTS = ".safetensors"


def format_asked(file: Path, format: str | None = None) -> Format | None:
    """The format of the program that a file is to hold; None where its name is that of a smaller network's weights.

    Raises `GenticketsError` for a name that says neither.
    """
    return None if format is None and file.suffix.lower() == _WEIGHTS else format_of(file, format)


def one_component(shipment: Shipment, component: str | None) -> str:
    """The component asked for; without, the only one. Raises `GenticketsError` that lists those there are."""
    if component is None and len(shipment.examples) == 1:
        return next(iter(shipment.examples))
    if component is None:
        raise GenticketsError(f"a program is one component: add --component, one of {', '.join(shipment.examples)}")
    check_components([component], shipment.examples)
    return component


def export_component(
    shipment: Shipment, component: str, file: Path, format: Format | None, smaller: bool = True
) -> Iterable[str]:
    """Writes one component, with `smaller` after shrinking: as a program (see `export`), or without a format its
    weights (see `save_small`). What to tell of it, in lines.

    Raises `MaskError` that lists the components there are, and what `shrink`, `export` and `save_small` raise.
    """
    example, model = shipment.examples[one_component(shipment, component)], shipment.model
    if smaller:
        model = Shrinking(model, shipment.masks, {component: example}).model
    net = getattr(model, component)
    if format is None:
        save_small(net, file, lambda: getattr(_built(shipment.architecture), component), example)
        yield (
            f"results: {file} ({file.stat().st_size:,} bytes), the {component} of "
            f"{shipment.architecture.model}: gentickets.load_small({str(file)!r}, make_model=…) reads it"
        )
        return
    made = export(net, example, file, format)
    yield (
        f"run on examples and compared: {made.compared:,} numbers, whose largest difference is {made.difference:.1e} "
        "of the largest output"
    )
    if made.most is not None:
        yield f"it takes batches of up to {made.most:,}: with larger ones the code of the component does something else"
    yield f"results: {made.path} ({made.bytes:,} bytes)"

"""What a level's folder says of it: its files, written in one place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.cores import peak_memory
from gentickets.errors import GenticketsError, RecipeError
from gentickets.lab.judging import Judge
from gentickets.lab.results.reading import LevelResult, parse, read_timing
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.keeping import AVERAGED, TRAINED, WEIGHTS, has_weights
from gentickets.lab.run.pieces import Piece
from gentickets.lab.run.trainer import Outcome, Price
from gentickets.lab.run.validation import BEST, Validation
from gentickets.masks.names import clone, named_state
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.metrics import Cost, Measurement, cost
from gentickets.sealed import Damaged
from gentickets.training.averaging import settle

TICKET = "ticket.safetensors"

ALONE = "trained"
"""The folder of one training by itself, which is that of a level under another name."""


@dataclass(frozen=True)
class Made:
    """A trained level: whose it is, the ticket, the model as trained, and the masks that the model is held to.

    The model is smaller than the ticket's where channels were pruned, and so are its masks.
    """

    seed: int
    level: int
    arm: str
    ticket: Ticket
    model: nn.Module
    masks: Masks
    span: tuple[int, int]


class DamagedLevel(Damaged):
    """A complete level in `place` of which others rest on a file that is not as it was written; `found` says which."""

    def __init__(self, place: Path, found: str):
        again = f"`gentickets work {place.resolve().parents[1]}` makes it again"
        super().__init__(f"{found}: {f'remove {place}, and train it again' if place.name == ALONE else again}")
        self.place, self.found = place, found

    def __reduce__(self) -> tuple[type[DamagedLevel], tuple[Path, str]]:
        return DamagedLevel, (self.place, self.found)


def check_level(place: Path) -> list[str]:
    """Whoever goes on from a complete level, hands it out or judges it asks this first.

    Returns the files that are not as they were written though nothing is computed from them: a curve, a picture. Raises
    `DamagedLevel` where one is that others rest on, is missing, or is that of another level.
    """
    try:
        result: LevelResult = parse(place / "metrics.json", LevelResult)
        changed, listed = publishing.changed_files(place), publishing.digests_of(place)
        if listed is None:
            _check_unlisted(place)
    except GenticketsError as error:
        raise DamagedLevel(place, str(error)) from None
    if broken := [name for name in changed if Path(name).suffix in (".safetensors", ".pt", ".json")]:
        raise DamagedLevel(place, publishing.words_of_damage(place / broken[0]))
    piece = Piece(result.seed, result.level, result.arm)
    if Piece.at(place.resolve()) not in (piece, None):
        raise DamagedLevel(place, f"{place / 'metrics.json'} is of {piece.name}, which is not where it lies")
    for name, digest in result.digests.items():
        if listed is not None and listed.get(name, digest) != digest:
            raise DamagedLevel(place, f"{place / 'metrics.json'} is of another {name} than the one beside it")
    return changed


def check_whole_level(place: Path) -> None:
    """Raises `DamagedLevel` as `check_level` does; where a curve or a picture was changed, a `RecipeError` that is the
    user's to mend: no training is thrown away for them."""
    if changed := check_level(place):
        raise RecipeError(
            f"{place / changed[0]} is not as it was written, though nothing is computed from it: put it back, "
            f"or remove {place} to have that made again"
        )


def _check_unlisted(place: Path) -> None:
    """What a level of before there were lists of digests says of itself. Raises `GenticketsError`."""
    Ticket.load(place / TICKET)
    for name in WEIGHTS:
        if (place / name).exists():
            disk.load_weights(place / name)


def measured_files(place: Path) -> dict[str, str]:
    """The digests of what metrics.json is measured of, for it to keep: no other level's stands in its place then."""
    found = {name: publishing.digest_of(place / name) for name in (TICKET, *WEIGHTS)}
    return {name: digest for name, digest in found.items() if digest is not None}


def write_level(
    folder: Path,
    made: Made,
    outcome: Outcome,
    validation: Validation | None,
    judge: Judge,
    example_inputs: Mapping[str, Tensor],
) -> None:
    """Judges a trained level and writes its files. Raises `MaskError` where the model is not as sparse as its masks."""
    made.masks.audit(made.model)
    if not (folder / TICKET).exists():
        made.ticket.save(folder / TICKET)
    disk.save_weights(folder / TRAINED, named_state(made.model))
    if dict(outcome.averaged.named_children()):
        disk.save_weights(folder / AVERAGED, named_state(outcome.averaged.cpu()))
    begun = time.perf_counter()
    measured = []
    if outcome.status == "complete":
        measured = measure_level(folder, made.model, judge)
        judge.picture(with_stored_averages(made.model, folder), folder)
    price = cost(made.model.cpu(), example_inputs, made.masks)
    disk.write_json(
        folder / "metrics.json",
        {
            **level_facts(made.seed, made.level, made.arm, made.ticket.masks),
            "digests": measured_files(folder),
            "status": outcome.status,
            "reason": outcome.reason,
            "primary": judge.primary,
            "metrics": metrics_json(measured),
            "sparse_layers": list(outcome.sparse_layers),
            "cost": {**_cost_json(price), **_flops("find", outcome.found), **_flops("train", outcome.train)},
            "start_step": made.span[0],
            "end_step": made.span[1],
            "validation": validation.summary() if validation is not None else None,
        },
    )
    seconds = {
        "find_seconds": outcome.found.seconds,
        "train_seconds": outcome.train.seconds,
        "evaluate_seconds": time.perf_counter() - begun,
    }
    disk.write_json(folder / "timing.json", {**seconds, "images": outcome.images, "peak_bytes": peak_memory()})


def measure_level(folder: Path, model: nn.Module, judge: Judge) -> list[Measurement]:
    """Every metric of a level whose weights are in `folder`, `model` being as trained.

    Judged are the averages where there are some; of the raw weights beside them, and of the best ones that training
    came by, the primary metric, as `…_raw` and `…_best`.
    """
    found = judge.measure(with_stored_averages(model, folder))
    if has_weights(folder, AVERAGED):
        (raw,) = judge.measure(clone(model), judge.primary)
        found.append(replace(raw, key=f"{raw.key}_raw", label=f"{raw.label}, without averaging"))
    if has_weights(folder, BEST):
        (best,) = judge.measure(_with_weights(model, folder / BEST), judge.primary)
        label = f"{best.label}, at the best evaluation on training images"
        found.append(replace(best, key=f"{best.key}_best", label=label))
    return found


def write_untrained(
    folder: Path, seed: int, level: int, arm: str, ticket: Ticket, primary: str, reason: str, find: Price
) -> None:
    """A level whose masks cut a component in two: its ticket, and why it was not trained."""
    ticket.save(folder / TICKET)
    disk.write_json(
        folder / "metrics.json",
        {
            **level_facts(seed, level, arm, ticket.masks),
            "digests": measured_files(folder),
            "status": "disconnected",
            "reason": reason,
            "primary": primary,
            "metrics": {},
            "cost": None,
            "start_step": 0,
            "end_step": 0,
        },
    )
    seconds = {"find_seconds": find.seconds, "train_seconds": 0.0, "evaluate_seconds": 0.0}
    disk.write_json(folder / "timing.json", {**seconds, "images": 0})


def read_price(folder: Path, which: str) -> Price:
    """What finding or training (`which`: "find", "train") a complete level took; nothing where it does not say."""
    seconds, flops = read_timing(folder), disk.read_metrics(folder)["cost"] or {}
    return Price(
        getattr(seconds, f"{which}_seconds", None) or 0.0,
        flops.get(f"{which}_flops") or 0.0,
        flops.get(f"{which}_live_flops") or 0.0,
    )


def metrics_json(measured: list[Any]) -> dict[str, Any]:
    """By key; `by_network` only where there are several networks."""
    left_out = {"key"}, {"key", "by_network"}
    return {m.key: {k: v for k, v in asdict(m).items() if k not in left_out[m.by_network is None]} for m in measured}


def with_stored_averages(model: nn.Module, folder: Path) -> nn.Module:
    """A level's model as it is judged: with its averages where the level has some."""
    # Settled, for the sake of folders that older versions wrote: they averaged the vectors of spectral norms too.
    return settle(_with_weights(model, folder / AVERAGED)) if has_weights(folder, AVERAGED) else clone(model)


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    """A copy of `model` with the tensors of a file in the place of its own."""
    copy = clone(model).cpu()
    state = named_state(copy)
    with torch.no_grad():
        for name, tensor in disk.load_weights(path).items():
            state[name].copy_(tensor)
    return copy


def level_facts(seed: int, index: int, arm: str, masks: Masks) -> dict[str, Any]:
    """What a level's masks say of themselves."""
    counts = masks.counts()
    layers = {
        name: {"alive": counts[name], "total": masks[name].numel(), "shape": list(shape)}
        for name, shape in masks.shapes.items()
    }
    components = {name: masks.select(name) for name in masks.components}
    return {
        "seed": seed,
        "level": index,
        "arm": arm,
        "sparsity": masks.sparsity,
        "alive": masks.alive,
        "total": masks.total,
        "components": {name: {"alive": part.alive, "total": part.total} for name, part in components.items()},
        "layers": layers,
    }


def _cost_json(price: Cost) -> dict[str, Any]:
    names = ("parameters", "alive_parameters", "flops_dense", "flops_sparse", "bytes_dense", "bytes_sparse")
    return {name: getattr(price, name) for name in names}


def _flops(which: str, price: Price) -> dict[str, float]:
    return {f"{which}_flops": price.flops, f"{which}_live_flops": price.live_flops}

"""What the commands say of tickets: who signed one, how its rounds hang together, and how two differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from gentickets.errors import GenticketsError, TicketError
from gentickets.lab.run.outputs import check_output
from gentickets.masks.difference import Difference, difference
from gentickets.masks.lineage import is_linked, rounds_of
from gentickets.masks.ticket import Ticket

FILE = "ticket.safetensors"


def ticket_file(path: Path) -> Path:
    """The file itself; of a level's folder, its ticket."""
    return path / FILE if path.is_dir() else path


def sign(what: Path, key: Path, output: Path | None) -> tuple[Path, Ticket]:
    """Signs a ticket into `output`, or in its place; returns where it lies. Raises `GenticketsError`."""
    file = ticket_file(what)
    place = file if output is None else output
    check_output(place)
    ticket = Ticket.load(file).sign(key)
    ticket.save(place)
    return place, ticket


def verify(what: Path, by: str) -> Ticket:
    """A ticket that was signed by this key. Raises `TicketError`, which names the file, where it was not."""
    file = ticket_file(what)
    ticket = Ticket.load(file)
    try:
        ticket.verify(by)
    except TicketError as error:
        raise TicketError(f"{file}: {error}") from None
    return ticket


def signature_words(ticket: Ticket) -> str:
    """Who signed it, and what that says. Raises `TicketError` where the signature does not fit."""
    if ticket.signature is None:
        return "signature: none; nobody says that it is theirs"
    words = f"signature: by the key {ticket.signature.signer}"
    try:
        ticket.check_signature()
    except TicketError:
        raise
    except GenticketsError as error:
        return f"{words}, not checked ({error})"
    return f"{words}, which fits; that says nothing of who holds the key: gentickets verify --by THEIR-KEY.pub does"


def lineage_words(ticket: Ticket) -> str:
    """The sparsities of the rounds that it came from, as far as a stranger's file says any."""
    rounds = rounds_of(ticket.origin)
    linked = (
        "; each linked to the one before"
        if is_linked(rounds)
        else "; not linked, as older versions wrote it: an edit would not show"
    )
    return f"lineage: {', '.join(_sparsities(rounds))}{linked if rounds else ''}"


def _sparsities(lineage: list[Any]) -> Iterator[str]:
    for entry in lineage:
        sparsity = entry.get("sparsity") if isinstance(entry, dict) else None
        known = isinstance(sparsity, int | float) and 0 <= sparsity <= 1
        yield ("carried over, " if known and "transfer" in entry else "") + (f"{sparsity:.1%}" if known else "?")


# -- two of them ----------------------------------------------------------------------------------------------


def difference_words(one: Path, other: Path) -> Iterator[str | Table]:
    """How two tickets differ, files or levels' folders: words and tables. Raises `TicketError`."""
    names = [str(ticket_file(path)) for path in (one, other)]
    tickets = [Ticket.load(name) for name in names]
    found = difference(*tickets)
    for label, name, ticket in zip("AB", names, tickets, strict=True):
        yield f"{label}: {name}: {ticket.masks!r}"
    yield _layers(found)
    yield from _left_over(found)
    yield _mask_words(found)
    yield _weight_words(found)
    if found.origins:
        table = Table("origin", "A", "B")
        for key, values in found.origins.items():
            table.add_row(key, *("" if value is None else json.dumps(value) for value in values))
        yield table
    else:
        yield "origin: both say the same"
    yield f"lineage: {_KINSHIP[found.kinship].format(found.shared_rounds)}"


_KINSHIP = {
    "equal": "the same {} rounds",
    "ancestor": "A is an ancestor of B: B came from it by further rounds",
    "descendant": "B is an ancestor of A: A came from it by further rounds",
    "common": "both came from a third: their first {} rounds are the same",
    "none": "no round in common",
    "unknown": "unknown: at least one is not linked, as older versions wrote it",
}


def _layers(found: Difference) -> Table:
    table = Table("weight", "distance", "by chance", "Jaccard", "by chance", "equal signs", "by chance")
    for row in found.rows():
        table.add_row(*row)
    return table


def _left_over(found: Difference) -> Iterator[str]:
    for label, names in (("A", found.only_one), ("B", found.only_other)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"only in {label}, or of another shape there, and not compared: {names[0]}{more}"


def _mask_words(found: Difference) -> str:
    both = found.overlap
    words = f"masks: they differ on {both.distance:.2%} of the weights, independent ones would on "
    words += f"{both.chance_distance:.2%}"
    if not math.isnan(both.jaccard):
        words += (
            f"; {both.jaccard:.2%} of what is alive in either is alive in both, by chance {both.chance_jaccard:.2%}"
        )
    return words


def _weight_words(found: Difference) -> str:
    equal, of = found.equal_weights
    if not of:
        return "weights: at least one ticket has none"
    words = f"weights: equal bit for bit in {equal:,} of {of:,} tensors"
    if found.signs.total:
        words += f"; {found.signs.equal:.2%} of the {found.signs.total:,} that are alive in both have one sign, "
        words += f"by chance {found.signs.by_chance:.2%}"
    return words

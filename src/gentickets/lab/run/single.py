"""One training by itself: a dense model, or one from a ticket file. Its folder is that of a level."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gentickets.data import line
from gentickets.errors import RecipeError, TicketError
from gentickets.lab.recipe import Recipe
from gentickets.lab.recipe.begun import read_alike
from gentickets.lab.recipe.file import differing_keys
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.checks import check_buildable
from gentickets.lab.run.processes import interrupt, stopping
from gentickets.lab.run.seed import SeedRun
from gentickets.lab.run.stage import load_data, make_judge
from gentickets.lab.run.threads import threads_of
from gentickets.lab.run.trainer import Event
from gentickets.lab.task import build_model
from gentickets.masks.ticket import Ticket

_DEEPEST = 10**4
"""The deepest level that a recipe may have, and so a ticket be of."""


def train_one(
    recipe: Recipe,
    folder: Path,
    seed: int,
    ticket_file: Path | None,
    tell: Callable[[Event], None],
    say: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """Trains one model and returns its metrics, as in metrics.json; goes on where its folder holds a checkpoint.

    What was read of the images is said by `say`, in a line.
    With a ticket, training runs from the ticket's rewind step to the end; without, from 0. Raises `RecipeError`
    where the folder is of another recipe, `TicketError` where the ticket does not fit the model.
    """
    ticket = _of_a_level(ticket_file) if ticket_file is not None else None
    with disk.one_line_errors(folder), disk.locked(folder):
        train, held_out = load_data(recipe.data)
        say(f"data: {line(train.told)}")
        check_buildable(recipe, train)
        # The whole ticket: two controls of a level may share its masks.
        digest = hashlib.sha256(ticket.to_bytes()).hexdigest() if ticket is not None else None
        origin = {"asked": recipe.dump(), "ticket": digest, "data": [train.fingerprint, held_out.fingerprint]}
        code = recipe.code()
        there = disk.read_origin(folder) if (folder / "origin.json").exists() else None
        if there is not None:
            _check_same(folder, there, origin)
            disk.check_same_code(folder, there, recipe)
            if not (folder / f"seed-{seed}" / "trained").exists():
                disk.check_same_versions(folder, there)
        # Equal bits need an equal number of threads.
        threads = (there or {}).get("threads") or threads_of(recipe, train, workers=1)
        began = (there or {}).get("versions") or disk.versions()
        found = {"threads": threads, "told": dict(train.told), "versions": began}
        disk.write_json(folder / "origin.json", {**origin, **({"code": code} if code else {}), **found})
        torch.set_num_threads(threads)
        judge = make_judge(recipe, train, held_out)
        with stopping(urgent=interrupt) as stop:
            return SeedRun(recipe, folder, seed, train, judge, tell, stop).run_one(ticket)


def _check_same(folder: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `RecipeError` that says what differs, where a folder holds something else than is asked for now."""
    asked = there.get("asked")
    threads = there.get("threads", 1)  # the oldest do not say it
    if (
        not isinstance(asked, dict)
        or not isinstance(there.get("data"), list)
        or type(threads) is not int
        or threads < 1
    ):
        raise RecipeError(f"{folder} holds what `gentickets train` did not make: take another --name")
    if differing := differing_keys(*read_alike(folder, asked, now["asked"])):
        raise RecipeError(f"{folder} was made by another recipe: {'; '.join(differing)}; take another --name")
    if (kept := there.get("ticket")) != now["ticket"]:
        came = "without a ticket" if kept is None else "from another ticket" if now["ticket"] else "from a ticket"
        raise RecipeError(f"{folder} was trained {came}: take another --name")
    if there["data"] != now["data"]:
        raise RecipeError(
            f"{folder}: the images are others than when it was made: put them back, or take another --name"
        )


def _of_a_level(file: Path) -> Ticket:
    """The ticket in a file. Raises `TicketError` where it says of its level what is none, before it is trained."""
    publishing.check_listed(file)
    ticket = Ticket.load(file)
    level = ticket.origin.get("level", 0)
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= _DEEPEST:
        raise TicketError(f"{file} says that it is of level {str(level)[:40]!r}: a whole number from 0 is needed")
    return ticket


def transferred(
    ticket_file: Path,
    recipe: Recipe,
    components: Mapping[str, str],
    with_weights: bool,
    seed: int,
    exclude: Sequence[str] = (),
) -> Ticket:
    """The components of a ticket, carried into the recipe's model with the weights of `seed` (`Ticket.transfer`).

    Raises `TicketError` where they do not fit.
    """
    if not components:
        raise RecipeError("no component to carry: name them as from=to, such as decoder=generator")
    publishing.check_listed(ticket_file)
    train, _ = load_data(recipe.data)
    check_buildable(recipe, train)
    return Ticket.load(ticket_file).transfer(build_model(recipe, train, seed), components, with_weights, exclude)

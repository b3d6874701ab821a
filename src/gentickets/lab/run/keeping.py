"""Which trained weights stay on disk, by a recipe's `keep`: a rule that is applied whenever a level is complete.

Tickets, figures and pictures always stay. Trained weights of every level are half of what a run writes, and what reads
them is the search, for the level that follows, and whoever measures or ships that level later. With keep=ends they go
once a later ticket was trained, and those of controls at once; the dense model's and the last ticket's stay, so that a
run can grow by rounds, controls and seeds. Nothing that was computed changes by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from gentickets.errors import GenticketsError
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.validation import BEST
from gentickets.sealed import Damaged

TRAINED, AVERAGED = "trained.safetensors", "averaged.safetensors"
WEIGHTS = (TRAINED, AVERAGED, BEST)


class NotKept(GenticketsError):
    """A level whose trained weights were let go of, by the rule."""


def let_go(seed_folder: Path, keep: str) -> None:
    """Removes, of one seed, the trained weights that the rule does not keep and nothing of the run reads any more."""
    if keep == "all":
        return
    places = list(_complete(seed_folder))
    there = {index for index, arm, _ in places if not arm}
    last = max((index for index, arm, place in places if not arm and (place / TRAINED).exists()), default=0)
    for index, arm, place in places:
        if arm or (0 < index < last and index + 1 in there):  # one in the middle may be made again
            _remove_weights(place)


def _complete(seed_folder: Path) -> Iterator[tuple[int, str, Path]]:
    """The levels and controls that are complete: number, arm ("" of a ticket), folder."""
    for place in sorted(seed_folder.glob("level-*")):
        if found := re.fullmatch(r"level-(\d+)(?:-(\w+))?", place.name):
            yield int(found[1]), found[2] or "", place


def _remove_weights(place: Path) -> None:
    """First from the list of digests, so that whoever looks finds the level whole, wherever this ends.

    A level of before there was such a list stays as it is: nothing would tell what was let go of from what was lost.
    """
    if (listed := _listed(place)) is None:
        return
    kept = {name: digest for name, digest in listed.items() if name not in WEIGHTS}
    if len(kept) < len(listed):
        publishing.list_digests(place, kept)
    for name in WEIGHTS:
        (place / name).unlink(missing_ok=True)


def _listed(place: Path) -> dict[str, str] | None:
    """A level's list of digests; None without one that can be read, which `check_level` tells apart."""
    try:
        return publishing.digests_of(place)
    except Damaged:
        return None


def has_weights(place: Path, name: str) -> bool:
    """Whether a level has the weights of this name: of a complete one as its list says, for what lies beside that was
    let go of, or is none of its own."""
    listed = _listed(place)
    return (place / name).exists() if listed is None else name in listed


def _was_let_go_of(place: Path) -> bool:
    """Whether a complete level was trained and has its weights no more, by the rule and not by an accident."""
    if (listed := _listed(place)) is None or TRAINED in listed:
        return False
    return bool(disk.read_metrics(place)["status"] != "disconnected")


def trained_weights(place: Path) -> dict[str, Tensor]:
    """The weights of a complete level as trained.

    Raises `NotKept`, which says how they are had again, where the rule let them go; `Damaged` where they are damaged.
    """
    if not _was_let_go_of(place):
        try:
            return disk.load_weights(place / TRAINED)
        except Damaged:
            if not _was_let_go_of(place):  # asked again: another worker may let them go while they are read
                raise
    seed = place.parent.name.rpartition("-")[2]
    raise NotKept(
        f"{place} has no trained weights: of its run the dense model's and the last ticket's alone are kept "
        f"(keep=ends). Its ticket trains them again: gentickets train {place.parents[1] / 'recipe.yaml'} "
        f"--ticket {place / 'ticket.safetensors'} --seed {seed}"
    )


def check_all_kept(folder: Path) -> None:
    """Raises `NotKept` where a run has let go of trained weights that measuring it again would need."""
    places = [place for seed in sorted(folder.glob("seed-*")) for _, _, place in _complete(seed)]
    if gone := [place for place in places if _was_let_go_of(place)]:
        raise NotKept(
            f"{folder} cannot be measured again: the trained weights of {len(gone):,} of its {len(places):,} levels, "
            f"such as {gone[0]}, were let go of (keep=ends); with keep=all a run keeps them"
        )


def to_be_made_again(seed_folder: Path, rounds: int) -> list[Path]:
    """Where each level of a chain rests on the one before: those whose trained weights one that is missing needs, and
    that were let go of; from the last to the first. One is missing where it was damaged."""
    found: list[Path] = []
    missing = True
    for index in range(rounds, 0, -1):
        place = seed_folder / publishing.level_name(index)
        if place.exists() and index < rounds and missing and _was_let_go_of(place):
            found.append(place)
        else:
            missing = not place.exists()
    # What is missing may have been published meanwhile, and only then did the level before let its weights go.
    published = [after for place in found if (after := _after(place)) not in found and after.exists()]
    return [] if published else found


def _after(place: Path) -> Path:
    return place.with_name(publishing.level_name(int(place.name.rpartition("-")[2]) + 1))

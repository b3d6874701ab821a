"""The rounds that a ticket came from, each linked to the one before.

A lineage is a list in a ticket's origin, one entry a round: its level, the sparsity and the fingerprint of its masks,
and `link`, a SHA-256 over the link before and all that the entry says. So an entry that was edited, dropped or moved is
found when the ticket is made or read; the last entry is that of the ticket's own masks. Links are no secret: whoever
makes up a whole lineage can link it too, and only a signature says whose it is. Lineages of before there were links are
taken as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gentickets.errors import TicketError
from gentickets.masks.value import Masks

_WHOSE = ("recipe", "seed", "data")
"""What of an origin the first entry is bound to: equal masks of two seeds are two beginnings."""


def rounds_of(origin: Mapping[str, Any]) -> list[Any]:
    """The entries of an origin's lineage; none where it has something else there, as a stranger's may."""
    return list(found) if isinstance(found := origin.get("lineage"), list) else []


def begun(level: int, masks: Masks, origin: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lineage of a ticket that rests on none before."""
    whose = {key: origin[key] for key in _WHOSE if key in origin}
    return continued((), masks, level=level, of=_digest(whose))


def continued(lineage: Iterable[Any], masks: Masks, **facts: Any) -> list[dict[str, Any]]:
    """A lineage with an entry more, for these masks; `facts` are what JSON can hold, such as the level."""
    before = list(lineage)
    entry = {**facts, "sparsity": masks.sparsity, "masks": masks.fingerprint}
    last = expected_links(before)[-1] if before else ""
    return [*before, {**entry, "link": _digest([last, entry])}]


def shuffled(origin: Mapping[str, Any], masks: Masks, seed: int) -> dict[str, Any]:
    """The origin of a ticket's control by random masks: as the ticket's, with an entry more where it has a lineage."""
    facts = {**origin, "control": "random_mask", "control_seed": seed}
    if is_linked(lineage := rounds_of(origin)):
        facts["lineage"] = continued(
            lineage, masks, level=lineage[-1].get("level"), control="random_mask", control_seed=seed
        )
    return facts


def expected_links(lineage: Sequence[Any]) -> list[str]:
    """The link that each entry should have, by what it and those before it say."""
    links = [""]
    for entry in lineage:
        links.append(_digest([links[-1], _told(entry)]))
    return links[1:]


def is_linked(lineage: Sequence[Any]) -> bool:
    """Whether the last entry has a link, and with it every one since the first that has."""
    return bool(lineage) and _link_of(lineage[-1]) is not None


def check_lineage(lineage: Sequence[Any], masks: Masks) -> None:
    """Raises `TicketError` where a lineage does not hold together, or its last entry is not one of these masks.

    A lineage without links says nothing that could be checked.
    """
    linked = False
    for number, (entry, expected) in enumerate(zip(lineage, expected_links(lineage), strict=True), start=1):
        found = _link_of(entry)
        if found != (expected if linked or found is not None else None):
            raise TicketError(
                f"its lineage does not hold together at entry {number} of {len(lineage)}: an entry was edited, dropped "
                "or moved"
            )
        linked = found is not None
    if linked and lineage[-1].get("masks") != masks.fingerprint:
        raise TicketError(
            "its lineage ends at other masks than the ticket has: an entry was dropped, or the masks are others "
            "(of masks of your own, leave `lineage` out of the origin)"
        )


def _link_of(entry: Any) -> Any:
    return entry.get("link") if isinstance(entry, dict) else None


def _told(entry: Any) -> Any:
    return {key: value for key, value in entry.items() if key != "link"} if isinstance(entry, dict) else entry


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

"""The transfer matrix of a study: tickets of one model trained in another, beside that one's own ticket and its dense
model (Kalibhat et al. 2021, Fig. 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gentickets.lab.results.reading import Run
from gentickets.lab.results.words import percent, plus_minus
from gentickets.lab.study.comparison import Comparison, Row

TRANSFERRED = "transferred"
TRANSFER_WORDS = (
    "Row: where the ticket comes from. Column: what is trained with it, at the deepest level that its tickets share. "
    "“× own”: ratio of the means to that model's own ticket at the same level; “× dense”: to its dense model."
)


@dataclass(frozen=True)
class Entry:
    """One ticket in one model. `ticket`: at the column's level, None where it came to nothing. The ratios are of means:
    to the model's own ticket at that level, and to the arm's dense model; None where either is not there."""

    arm: str
    what: str
    ticket: Row | None
    to_own: float | None
    to_dense: float | None

    @property
    def lines(self) -> list[str]:
        """What it is; its value; its ratios."""
        if self.ticket is None:
            return [self.what, "–"]
        failed = f", {self.ticket.point.failed} failed" if self.ticket.point.failed else ""
        ratios = f"{_times(self.to_own)} own, {_times(self.to_dense)} dense"
        return [f"{self.what}, {percent(self.ticket.sparsity)}", plus_minus(self.ticket.point) + failed, ratios]


@dataclass(frozen=True)
class Target:
    """What was trained: a model with its objective and data. `level`: the deepest that all its tickets have, if any;
    `entries`: source (an arm's label, or a run outside the study) → the tickets from there."""

    title: str
    level: int | None
    own: str | None
    entries: Mapping[str, Sequence[Entry]]

    @property
    def head(self) -> str:
        return f"{self.title}, " + ("no level in common" if self.level is None else f"level {self.level}")


@dataclass(frozen=True)
class TransferMatrix:
    """`sources`: its rows, label → title; those of the columns' own tickets first, so that they make the diagonal."""

    sources: Mapping[str, str]
    targets: Sequence[Target]

    def rows(self) -> list[tuple[str, list[list[list[str]]]]]:
        """The title of each source, and for each target the lines of its entries."""
        return [
            (title, [[entry.lines for entry in target.entries.get(source, ())] for target in self.targets])
            for source, title in self.sources.items()
        ]


def transfer_matrix(comparison: Comparison) -> TransferMatrix | None:
    """Every transferred ticket of a study by where it comes from and what it was trained in; None without one.

    Columns are what the transferred arms trained, then what their sources in the study did.
    """
    moved = [arm for arm, run in comparison.runs.items() if _search(run).get("method") == TRANSFERRED]
    if not moved:
        return None
    origins = dict.fromkeys(_source(comparison, arm) for arm in moved)
    inside = [arm for arm in origins if arm in comparison.runs]
    columns: dict[str, list[str]] = {}
    for arm in (*moved, *inside):
        columns.setdefault(_trained(comparison.runs[arm]), []).extend([arm] if arm in moved else [])
    targets = [_target(comparison, trained, arms, inside) for trained, arms in columns.items()]
    owners = (target.own for target in targets if target.own)
    sources = {arm: comparison.record.arms.get(arm, arm) for arm in dict.fromkeys((*owners, *origins))}
    return TransferMatrix(sources, [_told_apart(comparison, target, targets) for target in targets])


def _target(comparison: Comparison, trained: str, arms: Sequence[str], sources: Sequence[str]) -> Target:
    """A column: `arms` are the transferred ones that trained it; a source of theirs may be its own ticket."""
    own = _own(comparison, trained, arms, sources)
    shown = [own, *arms] if own else list(arms)
    with_value = {arm: {row.level for row in comparison.of(arm) if row.point.mean is not None} for arm in shown}
    common = set.intersection(*([levels for levels in with_value.values() if levels] or [set()])) - {0}
    level = max(common, default=None)
    entries: dict[str, list[Entry]] = {}
    for arm in shown:
        entries.setdefault(arm if arm == own else _source(comparison, arm), []).append(
            _entry(comparison, arm, own, level)
        )
    model = comparison.runs[shown[0]].recipe.get("model") or {}
    return Target(str(model.get("name")), level, own, entries)


def _own(comparison: Comparison, trained: str, arms: Sequence[str], sources: Sequence[str]) -> str | None:
    """The arm with a ticket found in that model itself: one that prunes what was carried, then one handed on."""
    carried = {component for arm in arms for component in (_search(comparison.runs[arm]).get("carry") or {}).values()}
    found = [
        arm
        for arm, run in comparison.runs.items()
        if _trained(run) == trained and _search(run).get("method") != TRANSFERRED
    ]

    def rank(arm: str) -> tuple[bool, bool]:
        return set(_search(comparison.runs[arm]).get("components") or ()) != carried, arm not in sources

    return min(found, key=rank, default=None)


def _entry(comparison: Comparison, arm: str, own: str | None, level: int | None) -> Entry:
    ticket, dense = _at(comparison, arm, level), _at(comparison, arm, 0)
    search = _search(comparison.runs[arm])
    what = "own ticket"
    if arm != own:
        carry = ", ".join(f"{one} → {other}" for one, other in (search.get("carry") or {}).items())
        what = f"{carry}, {'mask and weights' if search.get('with_weights') else 'mask alone'}"
    own_ticket = _at(comparison, own, level) if own else None
    return Entry(arm, what, ticket, _ratio(ticket, own_ticket), _ratio(ticket, dense))


def _at(comparison: Comparison, arm: str, level: int | None) -> Row | None:
    rows = comparison.of(arm, "dense" if level == 0 else "ticket")
    return next((row for row in rows if row.level == level), None)


def _ratio(row: Row | None, to: Row | None) -> float | None:
    if row is None or to is None or row.point.mean is None or not to.point.mean:
        return None
    return row.point.mean / to.point.mean


def _told_apart(comparison: Comparison, target: Target, targets: Sequence[Target]) -> Target:
    """A model that is trained in two ways has the title of an arm beside its name."""
    if sum(other.title == target.title for other in targets) == 1:
        return target
    arm = target.own or next(entry.arm for entries in target.entries.values() for entry in entries)
    return Target(f"{target.title} ({comparison.record.arms[arm]})", target.level, target.own, target.entries)


def _search(run: Run) -> Mapping[str, Any]:
    return run.recipe.get("search") or {}


def _source(comparison: Comparison, arm: str) -> str:
    return str(_search(comparison.runs[arm]).get("source"))


def _trained(run: Run) -> str:
    """Equal for arms that train the same model with the same objective on the same data."""
    return repr([run.recipe.get(part) for part in ("model", "objective", "data")])


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def transfer_table(comparison: Comparison) -> Table | None:
    """The transfer matrix, for the terminal; None where nothing was transferred."""
    matrix = transfer_matrix(comparison)
    if matrix is None:
        return None
    title = f"{comparison.metric.label}, tickets carried over"
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_style="dim")
    table.add_column("ticket from", overflow="fold", min_width=9)
    for target in matrix.targets:
        table.add_column(Text(target.head), overflow="fold", justify="right")
    for source, cells in matrix.rows():
        told = ["\n".join("\n".join(lines) for lines in cell) or "–" for cell in cells]
        table.add_row(*(Text(words) for words in (source, *told)))
    return table

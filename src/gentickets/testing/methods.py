"""Is it a way of finding tickets?"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentickets.data.images import ImageSet
from gentickets.errors import Disconnected, GenticketsError, MaskError, demand
from gentickets.masks.left_alone import changed, copies
from gentickets.masks.names import named_state
from gentickets.masks.value import Masks
from gentickets.objectives.autoencoding import Autoencoding
from gentickets.objectives.base import Objective
from gentickets.options import CONTROLS
from gentickets.pruning.prune import TiesBroken
from gentickets.search.levels import Level, MakeModel
from gentickets.search.method import Method
from gentickets.testing.bench import Bench, tiny_images, tiny_model
from gentickets.testing.naming import built, titled


def check_method(
    method: Any,
    *,
    steps: int = 12,
    counts: bool = True,
    make_model: MakeModel = tiny_model,
    objective: Objective | None = None,
    images: ImageSet | None = None,
) -> None:
    """Demands of a method what a run needs of it; raises `AssertionError` in one sentence where that is broken.

    `method`: a `Method`, a class of one, a name, `my.py:name`, or `{name: …}` with options; with a few rounds, as every
    level is trained many times over, `steps` steps each, on four images at a time. `make_model` and `objective` are
    what it is worked on, by default an autoencoder of two linear components.

    - it is a frozen dataclass, and its fields are its options;
    - it gives level 0, the dense model, and then one level a round, each trained and held to its masks, as its ticket
      has them; a level that was given is left alone afterwards;
    - a level prunes what `sparsity_at` says, up to what rounding leaves in each layer (`counts=False`: that is not
      asked, as of methods that prune channels, or whose sparsities are another run's); masks that build on the level
      before revive nothing;
    - the same seed gives the same tickets again, bit for bit;
    - resumed after any level it gives the tickets that it would have given without a break;
    - each control that it has is trained, with as many weights in each layer as the ticket: a random mask is another
      mask, weights drawn anew are others;
    - where it has a `criterion`, one that gives NaN is refused, and no ticket comes of it.
    """
    name = titled(method)
    found = built("method", method)
    demand(isinstance(found, Method), f"{name} is no Method: derive a frozen dataclass from gentickets.Method")
    _check_fields(name, found)
    demand(found.rounds >= 1, f"{name} has rounds={found.rounds}: check it with one or more")
    check = _Check(name, found, make_model, objective or Autoencoding(), images or tiny_images(), steps)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", TiesBroken)
        check.all(Path(folder), counts)


def _check_fields(name: str, method: Method) -> None:
    kind: Any = type(method)
    frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
    demand(frozen, f"{name} is no frozen dataclass: its fields are its options, @dataclass(frozen=True)")
    known = {field.name for field in dataclasses.fields(kind)}
    own = [key for key, of in inspect.get_annotations(kind).items() if "ClassVar" not in str(of)]
    lost = [key for key in own if key not in known]
    demand(not lost, f"{name}.{lost[0] if lost else None} is no field: the class lacks its own @dataclass(frozen=True)")


@dataclass
class _Kept:
    """A level as it was when it was given."""

    level: Level
    ticket: bytes
    model: dict[str, Tensor]

    @classmethod
    def of(cls, level: Level) -> _Kept:
        return cls(level, level.ticket.to_bytes(), copies(named_state(level.model)))


class _Check:
    """One method at work, over and over."""

    def __init__(
        self, name: str, method: Method, make_model: MakeModel, objective: Objective, images: ImageSet, steps: int
    ):
        self.name, self.method = name, method
        self._parts = (make_model, objective, images, steps)
        self._folders = itertools.count()

    def all(self, folder: Path, counts: bool) -> None:
        bench = self._bench(folder)
        whole = self._run(bench)
        self._check_levels(bench, whole)
        if counts:
            self._check_counts(whole)
        for kept in whole:
            where = f"level {kept.level.index} of {self.name}"
            demand(kept.ticket == kept.level.ticket.to_bytes(), f"the ticket of {where} was changed by a later level")
            name = changed(kept.model, named_state(kept.level.model))
            demand(name is None, f"{name!r} of the model of {where} was changed by a later level: train a copy")
        for mine, again in zip(whole, self._run(self._bench(folder)), strict=True):
            demand(
                mine.ticket == again.ticket,
                f"{self.name} gave another ticket at level {mine.level.index} the second time: all chance is to follow "
                f"from work.seed",
            )
        for last in range(self.method.rounds):
            self._check_resumed(folder, whole, last)
        for kept in whole[1:]:
            self._check_controls(bench, kept.level)
        if getattr(self.method, "criterion", None) is not None:
            self._check_refuses_nan(folder)

    def _bench(self, folder: Path) -> Bench:
        return Bench(folder / str(next(self._folders)), *self._parts)

    def _run(self, bench: Bench, last: int = -1) -> list[_Kept]:
        return [_Kept.of(level) for level in bench.run(self.method, last)]

    def _check_levels(self, bench: Bench, whole: list[_Kept]) -> None:
        numbers, expected = [kept.level.index for kept in whole], list(range(self.method.rounds + 1))
        demand(
            numbers == expected,
            f"{self.name} gave levels {numbers} for rounds={self.method.rounds}: the dense model, 0, and one a round",
        )
        dense = whole[0].level.masks
        demand(dense.alive == dense.total, f"level 0 of {self.name} is pruned: it is the dense model")
        for kept, before in zip(whole, [None, *whole], strict=False):
            self._check_level(bench, kept.level, before.level if before else None)

    def _check_level(self, bench: Bench, level: Level, before: Level | None) -> None:
        where = f"level {level.index} of {self.name}"
        demand(level.ticket.masks == level.masks, f"the ticket of {where} has other masks than the level")
        told = level.ticket.origin.get("recipe")
        demand(told == "checked", f"the ticket of {where} does not say where it comes from: work.origin goes into it")
        held = level.masks if level.held is None else level.held
        try:
            held.audit(level.model)
            level.ticket.install(bench.initial())
        except GenticketsError as error:
            raise AssertionError(f"{where} is not what its ticket says: {error}") from None
        start = level.ticket.weights
        own = named_state(level.model)
        moved = [n for n, weight in own.items() if n in start and start[n].shape == weight.shape]
        trained = any(not torch.equal(start[n] * _mask(level.masks, n, start[n]), own[n].cpu()) for n in moved)
        demand(trained or not moved, f"{where} was not trained: its model is its ticket as it was installed")
        if before is not None:
            try:
                revived = self.method.builds_on == "before" and not level.masks <= before.masks
            except MaskError as error:
                raise AssertionError(f"{where} has masks of other weights than level {before.index}: {error}") from None
            demand(not revived, f"{where} revived weights that level {before.index} had pruned")

    def _check_counts(self, whole: list[_Kept]) -> None:
        for kept in whole[1:]:
            masks, wanted = kept.level.masks, self.method.sparsity_at(kept.level.index)
            slack = kept.level.index * len(masks)  # a weight for each layer and round
            demand(
                abs(masks.sparsity - wanted) * masks.total <= slack,
                f"level {kept.level.index} of {self.name} has {masks.sparsity:.2%} pruned, and not {wanted:.2%}, as "
                f"sparsity_at says: define sparsity_at(level) as it is meant to be, or say counts=False",
            )

    def _check_resumed(self, folder: Path, whole: list[_Kept], last: int) -> None:
        bench = self._bench(folder)
        bench.levels = {kept.level.index: kept.level for kept in whole[: last + 1]}
        rest, expected = self._run(bench, last), whole[last + 1 :]
        numbers = [kept.level.index for kept in rest]
        demand(
            len(rest) == len(expected) and numbers == [kept.level.index for kept in expected],
            f"{self.name}, resumed after level {last}, gave levels {numbers}",
        )
        for mine, kept in zip(rest, expected, strict=True):
            demand(
                mine.ticket == kept.ticket,
                f"{self.name}, resumed after level {last}, gave another ticket at level {kept.level.index} than "
                f"without a break: what levels(work, {last}) begins from is to be read by work.load",
            )
            name = changed(kept.model, named_state(mine.level.model))
            demand(name is None, f"{self.name}, resumed after level {last}, trained level {kept.level.index} otherwise")

    def _check_controls(self, bench: Bench, level: Level) -> None:
        work = bench.work()
        if not self.method.has_controls(work, level.index):
            return
        for arm in CONTROLS:
            where = f"the {arm} control of level {level.index} of {self.name}"
            bench.drawing(1000 + level.index)
            try:
                control = self.method.control(arm, bench.load(level.index), work, 3)
            except Disconnected:  # which a random mask may be
                continue
            ticket = control.ticket
            held = control.masks if control.held is None else control.held
            try:
                held.audit(control.model)
            except MaskError as error:
                raise AssertionError(f"{where} is not held to its masks: {error}") from None
            if arm == "random_mask":
                alike = ticket.masks.counts() == level.masks.counts()
                demand(alike, f"{where} has other numbers of live weights in its layers than the ticket")
                free = any(0 < n < level.masks[name].numel() for name, n in level.masks.counts().items())
                demand(not free or ticket.masks != level.masks, f"{where} is the ticket's own mask")
            else:
                demand(ticket.masks == level.masks, f"{where} has another mask than the ticket")
                drawn, own = ticket.weights, level.ticket.weights
                same = all(name in drawn and torch.equal(drawn[name], own[name]) for name in level.masks if name in own)
                demand(not same, f"{where} has the ticket's own weights: nothing was drawn anew")

    def _check_refuses_nan(self, folder: Path) -> None:
        method: Any = dataclasses.replace(self.method, criterion=f"{__name__}:not_a_number")  # type: ignore[type-var]
        bench = self._bench(folder)
        try:
            given = [level.index for level in bench.run(method) if level.masks.alive < level.masks.total]
        except GenticketsError:
            return
        demand(
            not given,
            f"{self.name} made level {given[:1]} with a criterion that gives NaN: refuse it, as gt.prune does; what "
            "has no criterion is derived from Ladder, which has no such key",
        )


def not_a_number(model: nn.Module, masks: Masks) -> Mapping[str, Tensor]:
    """A criterion that has nothing to say."""
    return {name: torch.full(shape, torch.nan) for name, shape in masks.shapes.items()}


def _mask(masks: Masks, name: str, weight: Tensor) -> Tensor:
    return masks[name] if name in masks else torch.ones_like(weight, dtype=torch.bool)

"""The pieces of one seed: the levels of its chain, and their controls, each made from what is complete in its
folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gentickets.data import ImageSet
from gentickets.errors import Disconnected, GenticketsError, RecipeError
from gentickets.lab.judging import Judge
from gentickets.lab.recipe import Recipe
from gentickets.lab.recipe.recipe import code_in
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.claims import Claims
from gentickets.lab.run.keeping import NotKept, let_go, to_be_made_again, trained_weights
from gentickets.lab.run.level import (
    ALONE,
    TICKET,
    DamagedLevel,
    Made,
    check_level,
    check_whole_level,
    read_price,
    with_stored_averages,
    write_level,
    write_untrained,
)
from gentickets.lab.run.pieces import Board, Piece, pieces_in, pieces_of, source_of
from gentickets.lab.run.trainer import Event, Price, Trainer
from gentickets.lab.task import build_model
from gentickets.masks.liveness import check_connected
from gentickets.masks.names import named_state
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.options import Retrain
from gentickets.sealed import Damaged
from gentickets.search.levels import Level, retrain_span
from gentickets.search.method import Taken, Work
from gentickets.training.loop import Trained
from gentickets.training.seeds import derived_seed


class SeedRun:
    """Makes the pieces of one seed of a recipe inside a run folder.

    `tell` is called with an `Event` now and then; `stop` is asked after every training step and, where it says
    so, the state is saved and `KeyboardInterrupt` raised. `is_awaited`: whether a level of another run that is not
    there is being made beside this one, and waited for.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        seed: int,
        images: ImageSet,
        judge: Judge,
        tell: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
        is_awaited: Callable[[Path, Piece], bool] = lambda run, piece: False,
    ):
        self.recipe, self.seed, self.images, self.judge = recipe, seed, images, judge
        self._is_awaited = is_awaited
        self.folder = folder / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.method, self.steps = recipe.build_method(), recipe.training.steps
        self.trainer = Trainer(recipe, seed, images, steps_of_seed(recipe), tell, stop, judge.glance)
        self.span = self.method.span(self.steps)
        self._draw = 0
        self._levels: Iterator[Level] | None = None
        self._next_index = 0

    # -- one training by itself ---------------------------------------------------------------------------

    def run_one(self, ticket: Ticket | None) -> dict[str, Any]:
        """Trains the dense model, or from a ticket as its level was trained, into `trained/`; returns its metrics."""
        place = self.folder / ALONE
        if not place.exists():
            model = build_model(self.recipe, self.images, self.seed)
            start = ticket.origin.get("rewind_step", 0) if ticket is not None else 0
            if not isinstance(start, int) or not 0 <= start < self.steps:
                raise GenticketsError(
                    f"the ticket rewinds to step {start}, which is not before training.steps={self.steps}"
                )
            ticket = ticket or Ticket(Masks.dense(model), model, {"recipe": self.recipe.name, "seed": self.seed})
            ticket.install(model)
            check_connected(model, ticket.masks, self._example_inputs(model))
            with publishing.building(place) as partial:
                self._enter(place.name, partial, draw=0)
                retrain: Retrain = "fine-tune" if ticket.origin.get("retrain") == "fine-tune" else "rewind"
                span = retrain_span(retrain, self.steps, start)
                self.trainer.total = span[1] - span[0]
                self._train(model, ticket.masks, *span)
                level = int(ticket.origin.get("level", 0))
                self._finish(Made(self.seed, level, "ticket", ticket, model, ticket.masks, span))
        return disk.read_metrics(place)

    # -- pieces -------------------------------------------------------------------------------------------

    def make(self, piece: Piece, fence: int = 0) -> bool:
        """Makes a level or a control, whose `builds_on` is complete; False for a control that its level cannot have.

        `fence`: the number of the claim by which it is made. Raises `Published` where somebody else was faster.
        """
        self.trainer.done = self._steps_done()
        made = True
        if piece.arm == "ticket":
            self._level(piece.level, fence)
        else:
            made = self._control(piece.level, piece.arm, fence)
        let_go(self.folder, self.recipe.keep)
        return made

    def run(self) -> None:
        """Everything of this seed that is not complete yet, made here and now."""
        drop_damaged(self.folder, self.recipe)
        board = Board(self.folder.parent, self.recipe)
        while ready := board.standing(self.seed).ready:
            if not self.make(ready[0]):
                board.leave_out(ready[0])

    def _steps_done(self) -> int:
        steps_of = steps_by_piece(self.recipe)
        return sum(steps_of(piece) for piece in pieces_of(self.recipe) if self._is_there(piece))

    def _is_there(self, piece: Piece) -> bool:
        return piece.seed == self.seed and self._place(piece.level, piece.arm).exists()

    # -- the chain ----------------------------------------------------------------------------------------

    def _level(self, index: int, fence: int) -> None:
        """A level of the chain, by the recipe's search: the one at hand, where that comes to this level next."""
        if self._levels is None or self._next_index != index:
            self._levels = self._search(index - 1)
        levels, self._levels = self._levels, None  # whatever ends this, the search is then somewhere in the middle
        if not index:
            publishing.remove_halves(self.folder)
        with publishing.building(self._place(index), fence) as partial:
            self._enter(self._place(index).name, partial, index)
            self.trainer.outcome.before = self._found_before(index)
            try:
                level = self._next(index, levels)
            except Disconnected as error:
                self._finish_untrained(index, "ticket", error.ticket, str(error))
            else:
                self._finish_level("ticket", level)
        self._levels, self._next_index = levels, index + 1

    def _next(self, index: int, levels: Iterator[Level]) -> Level:
        """The level that comes next. Raises `RecipeError` where a method gives something else."""
        name = f"search.method={self.recipe.search.method}"
        if not isinstance(levels, Iterator):
            raise RecipeError(f"{name}: levels() gave {type(levels).__name__}: let it yield a Level for each")
        level = next(levels, None)
        if level is None:
            raise RecipeError(f"{name}: levels() ended before level {index} of {self.method.rounds}")
        if not isinstance(level, Level):
            raise RecipeError(f"{name}: levels() yielded {type(level).__name__} for level {index}: yield a Level")
        return level

    def _found_before(self, index: int) -> Price:
        """What was trained for the sake of a level's masks before it was begun."""
        builds_on = self.method.builds_on if index else "nothing"
        if builds_on == "source":
            found = (read_price(self._source(one, index), "find") for one in self.method.sources("ticket"))
            return sum(found, Price())
        if builds_on == "dense":
            return read_price(self._place(0), "train")
        if builds_on == "search":
            return read_price(self._place(index - 1), "find")
        if builds_on == "before":
            before = self._place(index - 1)
            return read_price(before, "find") + read_price(before, "train")
        return Price()

    def _search(self, last: int) -> Iterator[Level]:
        """The recipe's search, to go on after level `last` (-1: from the start)."""
        self._draw = 0  # a search begins from the seed's own model, wherever it goes on
        return self.method.levels(self._work(), last)

    def _work(self) -> Work:
        trainer = self.trainer
        return Work(
            make_model=self._make_model,
            initial=lambda: build_model(self.recipe, self.images, self.seed),
            train=self._train,
            steps=self.steps,
            steps_per_epoch=trainer.steps_per_epoch,
            objective=trainer.objective,
            batches=trainer.batches,
            few=trainer.few,
            example_inputs=self._example_inputs,
            origin=self._origin,
            seed=self.seed,
            account=self._account_scoring,
            folder=lambda: trainer.folder,
            place=self._sound_place,
            so_far=trainer.account,
            recall=trainer.recall,
            load=self.load_level,
            source=self._source,
            taken=self._taken,
        )

    def _source(self, source: str, index: int, arm: str = "ticket") -> Path:
        """A level, or a control of it, of the same seed of the run that tickets are carried over from; or of its first
        seed. Raises `DamagedLevel` where it is not as it was written."""
        place = self._source_place(source, index, arm)
        if place.exists():  # else it is awaited
            check_level(place)
        return place

    def _source_place(self, source: str, index: int, arm: str) -> Path:
        run = source_run(self.folder.parent, source)
        if not (run / "recipe.yaml").exists():
            beside = self.folder.parent.parent / source
            raise RecipeError(f"search.source={source!r} is no run: neither {beside} nor {run}")
        piece = source_of(Board(run, disk.read_run_recipe(run)), Piece(self.seed, index, arm))
        if not (run / piece.name / TICKET).exists() and not self._is_awaited(run, piece):
            without = f"search.rounds={index - 1}" if arm == "ticket" else f"controls.{arm}=false"
            raise RecipeError(
                f"search.source={source!r} has no complete {publishing.level_name(index, arm)} of seed {piece.seed}: "
                f"run it first, or take {without}"
            )
        return run / piece.name

    def _taken(self, source: str, index: int, arm: str) -> Taken:
        """A level or control of another run as it is judged there. Its price is this level's: a control's search is
        its level's. Raises `RecipeError` for a run of another model or other images, or that came to nothing there."""
        place = self._source_place(source, index, arm)
        recipe = disk.read_run_recipe(place.parent.parent)
        mine, theirs = self.recipe.dump(), recipe.dump()
        if set(code_in(theirs)) <= set(code_in(mine)):  # which may run: it does here
            recipe = disk.read_run_recipe(place.parent.parent, allow_code=True)
        for part in ("model", "data"):
            if mine[part] != theirs[part]:
                raise RecipeError(f"search.source={source!r} has another {part} than this run: they must be the same")
        if (status := disk.read_metrics(place)["status"]) != "complete":
            raise RecipeError(f"search.source={source!r}: {place.name} of {place.parent.name} is {status}")
        seed = int(place.parent.name.removeprefix("seed-"))
        there = SeedRun(recipe, place.parent.parent, seed, self.images, self.judge)
        level = there.load_level(index, arm)
        level.model = with_stored_averages(level.model, place)
        outcome = self.trainer.outcome
        outcome.train += read_price(place, "train")
        if arm == "ticket":
            outcome.find += read_price(place, "find")
        return Taken(level, there.trainer.objective)

    def _account_scoring(self, seconds: float, flops: float) -> None:
        self.trainer.outcome.find += Price(seconds, flops, flops)

    @property
    def _origin(self) -> dict[str, Any]:
        return {"recipe": self.recipe.name, "seed": self.seed, "data": self.images.fingerprint}

    def _make_model(self) -> nn.Module:
        """Draw 0 is the seed's own model; a component that starts fresh at a level takes that level's draw."""
        return build_model(self.recipe, self.images, self.seed, self._draw)

    def load_level(self, index: int, arm: str = "ticket") -> Level:
        """A complete level, read back: its ticket, and its model as trained.

        Raises `DamagedLevel` where a file of it is not as it was written, and `NotKept` as `trained_weights` does.
        """
        place = self._place(index, arm)
        check_level(place)
        ticket = Ticket.load(place / TICKET)
        model, masks = self._network(ticket, index)
        Ticket(masks, trained_weights(place)).install(model)
        return Level(index, ticket.masks, model, ticket, held=masks)

    def _to_control(self, index: int) -> Level:
        """A complete level as its controls need it: where its trained weights were not kept, as it starts."""
        try:
            return self.load_level(index)
        except NotKept:
            ticket = Ticket.load(self._place(index) / TICKET)
            return Level(index, ticket.masks, self._network(ticket, index)[0], ticket)

    def judged(self, index: int, arm: str) -> nn.Module:
        """The model of a complete level as it is judged."""
        return with_stored_averages(self.load_level(index, arm).model, self._place(index, arm))

    def _network(self, ticket: Ticket, index: int) -> tuple[nn.Module, Masks]:
        """The network that a level trains from its ticket, and the masks that it is held to."""
        model = build_model(self.recipe, self.images, self.seed)
        if not index:
            return model, ticket.masks
        model, masks, _ = self.method.network(ticket, model, self._example_inputs(model))
        return model, masks

    def _place(self, index: int, arm: str = "ticket") -> Path:
        return self.folder / publishing.level_name(index, arm)

    def _sound_place(self, index: int) -> Path:
        """Where a complete level lies. Raises `DamagedLevel`."""
        place = self._place(index)
        check_level(place)
        return place

    # -- training -----------------------------------------------------------------------------------------

    def _enter(self, stage: str, partial: Path, draw: int) -> None:
        self._draw = draw
        self.trainer.enter(stage, partial)

    def _train(self, model: nn.Module, masks: Masks, start_step: int, end_step: int, **more: Any) -> Trained | None:
        """The `train` that the searches call, with the rewind point kept on disk."""
        rewind = self.folder / "rewind.safetensors"
        to_rewind = end_step == self.method.rewind_step
        if to_rewind and self._recalled(rewind, model, masks, end_step - start_step):
            return None
        trained = self.trainer.train(model, masks, start_step, end_step, **more)
        # Not after a divergence: a resumed run must come upon it, and record it, again.
        if to_rewind and trained is not None and self.trainer.outcome.status == "complete":
            disk.write_json(self.folder / "rewind.json", self.trainer.account())
            disk.save_weights(rewind, named_state(model))
        return trained

    def _recalled(self, rewind: Path, model: nn.Module, masks: Masks, steps: int) -> bool:
        """Whether the rewind point is there, and whole: then the model is put there, at its price then."""
        # Without the curve of what led there the level was dropped, and is to be made from its beginning.
        if not rewind.exists() or not (self.trainer.folder / "curve.jsonl").exists():
            return False
        try:
            weights, account = disk.load_weights(rewind), disk.read_json(rewind.with_suffix(".json"))
            self.trainer.recall(steps, account)
        except Damaged as error:
            warnings.warn(f"{error}: dropped, and trained again", stacklevel=2)
            rewind.unlink()
            # What was trained on from there goes too: its best weights so far may be among what was lost.
            (self.trainer.folder / publishing.CHECKPOINT).unlink(missing_ok=True)
            return False
        Ticket(masks, weights).install(model)
        return True

    # -- controls -----------------------------------------------------------------------------------------

    def _control(self, index: int, arm: str, fence: int) -> bool:
        place, work = self._place(index, arm), self._work()
        status = disk.read_metrics(self._place(index))["status"]
        if status == "disconnected" or not self.method.has_controls(work, index):
            return False
        with publishing.building(place, fence) as partial:
            self._enter(place.name, partial, draw=1000 + index)
            self.trainer.outcome.before = read_price(self._place(index), "find")
            seed = derived_seed(self.seed, 1, index)
            try:
                control = self.method.control(arm, self._to_control(index), work, seed)
            except Disconnected as error:
                self._finish_untrained(index, arm, error.ticket, str(error))
            else:
                self._finish_level(arm, control)
        return True

    # -- what is written ----------------------------------------------------------------------------------

    def _finish_level(self, arm: str, level: Level) -> None:
        held = level.masks if level.held is None else level.held
        span = self.span if level.span is None else level.span
        self._finish(Made(self.seed, level.index, arm, level.ticket, level.model, held, span))

    def _finish(self, made: Made) -> None:
        trainer = self.trainer
        inputs = self._example_inputs(made.model)
        write_level(trainer.folder, made, trainer.outcome, trainer.validation, self.judge, inputs)

    def _finish_untrained(self, index: int, arm: str, ticket: Ticket | None, reason: str) -> None:
        assert ticket is not None
        found = self.trainer.outcome.found
        write_untrained(self.trainer.folder, self.seed, index, arm, ticket, self.judge.primary, reason, found)

    def _example_inputs(self, model: nn.Module) -> Mapping[str, Any]:
        return self.trainer.objective.example_inputs(model.eval(), self.judge.held_out.images(range(2)))


def source_run(folder: Path, source: str) -> Path:
    """The run that `search.source` of the run in `folder` names: one beside it, or a path."""
    beside = folder.parent / source
    return beside if (beside / "recipe.yaml").exists() else Path(source)


def steps_by_piece(recipe: Recipe) -> Callable[[Piece], int]:
    """How many training steps each piece takes, with those that find its masks."""
    steps, method = recipe.training.steps, recipe.build_method()
    (start, end), searched = method.span(steps), method.search_steps(steps)

    def steps_of(piece: Piece) -> int:
        if piece.level == 0 or piece.arm == "redrawn_weights":
            return steps if method.trains or piece.level == 0 else 0
        return end - start + (searched if piece.arm == "ticket" else 0) if method.trains else 0

    return steps_of


def drop_damaged(folder: Path, recipe: Recipe) -> None:
    """Removes, with a warning, what of a seed is there and is not as it was written, so that it is made again; and what
    that rests on, where it was not kept."""
    for piece in pieces_in(folder.parent):
        if folder.name == f"seed-{piece.seed}":
            drop_if_damaged(folder.parent / piece.name)
    drop_what_rested(folder, recipe)


def drop_what_rested(folder: Path, recipe: Recipe) -> None:
    """Removes, of a seed, what rested on a level that is gone, where its trained weights were not kept."""
    method = recipe.build_method()
    if method.builds_on in ("before", "search"):
        for place in to_be_made_again(folder, method.rounds):
            _drop(place, lambda place: f"{place}: made again, as its trained weights were not kept (keep=ends)")


def drop_if_damaged(place: Path) -> None:
    """The same of one level, where it is there. Raises `RecipeError` for a changed curve or picture."""
    if place.is_dir() and _damage(place) is not None:
        _drop(place, _damage)


def _damage(place: Path) -> str | None:
    try:
        check_whole_level(place)
    except DamagedLevel as error:
        return f"{error.found}: dropped, and made again"
    return None


def _drop(place: Path, why: Callable[[Path], str | None]) -> None:
    """Removes a level, under its claim and where there still is a reason; nothing where somebody else has the claim."""
    claims, name = Claims(place.parents[1]), f"{place.parent.name}/{place.name}"
    claim = claims.take(name, above=publishing.newest_fence(place))
    if claim is None:
        return
    try:
        if place.is_dir() and (words := why(place)) is not None:
            warnings.warn(words, stacklevel=4)
            publishing.drop(place)
    finally:
        claim.complete(claims, name)


def steps_of_seed(recipe: Recipe) -> int:
    """How many training steps one seed takes: the dense model, each round, each control."""
    steps_of = steps_by_piece(recipe)
    return sum(steps_of(piece) for piece in pieces_of(recipe) if piece.seed == recipe.seeds[0])

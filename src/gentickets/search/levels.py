"""What every search yields, and what each of its rounds does: install, check, train."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, get_args
from weakref import WeakSet

import torch
from torch import Tensor, nn

from gentickets.errors import Disconnected, MaskError, PruneError
from gentickets.masks.effect import check_effect
from gentickets.masks.lineage import begun, continued, shuffled
from gentickets.masks.liveness import check_connected, empty_layers
from gentickets.masks.names import (
    Model,
    as_model,
    changed_rest,
    clone,
    component_of,
    named_rest,
    named_state,
    named_weights,
)
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.memory import bytes_of
from gentickets.notebook import short, shown
from gentickets.options import Others, Retrain
from gentickets.pruning.prune import random_like
from gentickets.search.averages import averages_in, is_whole
from gentickets.search.progress import Told
from gentickets.training.averaging import with_averages

DENSE = "dense model"

MakeModel = Callable[[], Model]
"""Makes the model with freshly drawn weights: a module, or a dict of the modules that are its components."""

Train = Callable[[nn.Module, Masks, int, int], object]
"""`train(model, masks, start_step, end_step)`: trains the model in place.

It may return moving averages: a model of them (or its state dictionary, or what has `shadow_params`), a dict of the
components that have one, or what `gentickets.training.train` returned; with losses beside them if need be. They become
the level's `averaged`. Weights that are of nothing in the model are refused (see `gentickets.search.averages`). It is
given no gradients of its call before.
"""


def retrain_span(retrain: Retrain, steps: int, rewind_step: int) -> tuple[int, int]:
    """The (start, end) steps of a retraining; all three kinds are equally long."""
    return (steps, 2 * steps - rewind_step) if retrain == "fine-tune" else (rewind_step, steps)


@dataclass(repr=False)
class Level:
    """One sparsity of a search: the ticket, and the model that was trained from it.

    `index` 0 is the dense model. The ticket holds the masks, and the weights that this level's training started from.
    `drawn` are digests of the weights that the search began with, before any training; None where nobody knows them.
    `held`: the masks that the model is held to, where it is smaller than the ticket's; `span`: the (start, end) steps
    of the training, where the search says. `averaged`: where the training gave averages, a module whose children are
    those of components, or one of the whole; masks are drawn from the raw weights of `model`, and never from these.
    `begun`: the model as it was at the step that the ticket goes back to, where the search knows; nobody trains it.
    """

    index: int
    masks: Masks
    model: nn.Module
    ticket: Ticket
    drawn: Mapping[str, str] | None = None
    held: Masks | None = None
    span: tuple[int, int] | None = None
    averaged: nn.Module | None = None
    begun: nn.Module | None = None

    def restarted(self) -> nn.Module:
        """A new model from the ticket, which has the rest (counters, buffers that are not persistent) as it was when
        training was at the step of the ticket's weights; as it is in `model`, where nobody knows that."""
        return self.ticket.install(clone(self.model if self.begun is None else self.begun))

    @property
    def judged(self) -> nn.Module:
        """The model to judge: where there are averages, a copy of `model` with these in their components' places."""
        if self.averaged is None:
            return self.model
        return self.averaged if is_whole(self.averaged, self.model) else with_averages(self.model, self.averaged)

    def __repr__(self) -> str:
        return f"Level({self.index}, {self.masks!r}, {short(type(self.model).__name__)})"

    def _repr_html_(self) -> str:
        span = "" if self.span is None else f", trained from step {self.span[0]:,} to {self.span[1]:,}"
        averaged = "" if self.averaged is None else ", with averages"
        return f"{shown(f'Level {self.index}{span}{averaged}')}{self.masks._repr_html_()}"


class Rounds:
    """The part that all searches share: the dense training with its rewind point, and retraining from it."""

    def __init__(
        self,
        make_model: MakeModel,
        train: Train,
        steps: int,
        rewind_step: int,
        others: Others = "rewind",
        example_inputs: Mapping[str, Tensor] | None = None,
        origin: Mapping[str, Any] | None = None,
        retrain: Retrain = "rewind",
    ):
        check_count("steps", steps, 1)
        check_count("rewind_step", rewind_step)
        if rewind_step >= steps:
            raise PruneError(f"rewind_step={rewind_step} is out of range: from 0 to steps - 1 = {steps - 1}")
        if others not in get_args(Others):
            raise PruneError(f"others={others!r} is none of {', '.join(get_args(Others))}")
        if retrain not in get_args(Retrain):
            raise PruneError(f"retrain={retrain!r} is none of {', '.join(get_args(Retrain))}")
        if retrain != "rewind" and others == "rewind":
            others = "trained"  # nothing is rewound, so the unpruned components are not either
        if not callable(train):
            raise PruneError(f"train={train!r} is no function: train(model, masks, start_step, end_step)")
        self.make_model, self._train = make_model, train
        self.steps, self.rewind_step, self.others = steps, rewind_step, others
        self.retraining: Retrain = retrain
        self.kept_weights, self.span = retrain != "rewind", retrain_span(retrain, steps, rewind_step)
        self.example_inputs, self.origin = example_inputs, dict(origin or {})
        self.initial = draw(make_model)
        _warn_of_hooks_on_weights(self.initial)
        self._begun = clone(self.initial)
        self._drawn = _digests(named_state(self._begun))
        self._initial_state = named_state(self._begun) if others == "initial" else {}
        self._told: Told | None = None
        self._rounds: int | None = None

    @classmethod
    def of(cls, make_model: MakeModel, train: Train, steps: int, rewind_step: int, more: Mapping[str, Any]) -> Rounds:
        """With those of a search's other arguments that concern it (see `gentickets.search.arguments`)."""
        mine = ("others", "example_inputs", "origin", "retrain")
        return cls(make_model, train, steps, rewind_step, **{key: more[key] for key in mine if key in more})

    def tell(self, rounds: int | None, done: int | None) -> None:
        """From now on tells of each training on stderr: of so many rounds (None: nobody knows), `done` of them
        already (None: not even the dense model is)."""
        dense, each = 0 if done is not None else self.steps, self.span[1] - self.span[0]
        self._rounds, self._told = rounds, Told(None if rounds is None else dense + each * (rounds - (done or 0)))

    def _telling(self, stage: str, masks: Masks, steps: int) -> AbstractContextManager[None]:
        if self._told is None:
            return nullcontext()
        of = f" of {self._rounds}" if stage != DENSE and self._rounds is not None else ""
        pruned = f", {masks.sparsity:.1%} pruned" if masks.alive < masks.total else ""
        return self._told.training(f"{stage}{of}{pruned}", steps)

    def dense(self, masks: Masks) -> Level:
        """Level 0: trained to the rewind step, remembered there, trained to the end."""
        model, drawn = self.initial, named_rest(self._begun)
        with self._telling(DENSE, masks, self.steps):
            if self.rewind_step:
                self.train(model, masks, 0, self.rewind_step)
                self._begun = clone(model)
            ticket = Ticket(masks, model, self._origin(0, masks, ()))
            averaged = self.train(model, masks, self.rewind_step, self.steps)
        if self.rewind_step and not self.kept_weights:
            self._warn_of_the_rest(drawn, named_rest(model))
        span = (0, self.steps)
        return Level(0, masks, model, ticket, self._drawn, span=span, averaged=averaged, begun=self._begun)

    def _warn_of_the_rest(self, drawn: Mapping[str, Any], ended: Mapping[str, Any]) -> None:
        """Tells of what had changed by the rewind step and went on to change, and no ticket holds."""
        rewound = named_rest(self._begun)
        if names := changed_rest(drawn, rewound).keys() & changed_rest(rewound, ended).keys():
            name = min(names)
            warnings.warn(
                f"{name!r} changes in training and is neither a parameter nor a persistent buffer: rounds begin with "
                f"it as it was at step {self.rewind_step}, but whoever loads a ticket does not; make it a buffer "
                f"(register_buffer)",
                stacklevel=4,
            )

    def train(self, model: nn.Module, masks: Masks, start_step: int, end_step: int) -> nn.Module | None:
        """The caller's training, as `trained`."""
        return trained(self._train, model, masks, start_step, end_step)

    def retrain(self, index: int, masks: Masks, previous: Level) -> Level:
        """Level `index`: the masks with the weights to start from, checked for a live path, trained.

        Raises `Disconnected`, with the ticket as its `ticket`, before a step is trained.
        """
        lineage = previous.ticket.origin.get("lineage", ())
        weights = named_state(previous.model) if self.kept_weights else previous.ticket.weights
        weights = {**weights, **self._others_start(masks, previous)}
        ticket = Ticket(masks, weights, self._origin(index, masks, lineage))
        if self.example_inputs is not None:
            try:
                check_connected(previous.model, masks, self.example_inputs)
            except Disconnected as error:
                error.ticket = ticket
                raise
        elif gone := empty_layers(masks):
            warnings.warn(f"level {index}: nothing is left of {', '.join(gone)}", stacklevel=3)
        begun = self._begun_from(previous)
        model = ticket.install(clone(begun))
        with self._telling(f"round {index}", masks, self.span[1] - self.span[0]):
            averaged = self.train(model, masks, *self.span)
        drawn = previous.drawn or self._drawn
        return Level(index, masks, model, ticket, drawn, span=self.span, averaged=averaged, begun=begun)

    def _begun_from(self, previous: Level) -> nn.Module:
        """What a round begins as, but for what its ticket holds. Its modes, and which of its weights are trained, are
        those of the rewind point: a level that was looked at, or read back, may be in evaluation mode."""
        if previous.begun is not None and not self.kept_weights:
            return previous.begun
        return _in_modes_of(self._begun if previous.begun is None else previous.begun, previous.model)

    def _origin(self, index: int, masks: Masks, lineage: Any) -> dict[str, Any]:
        how = {"rewind_step": self.rewind_step, "retrain": self.retraining}
        rounds = continued(lineage, masks, level=index) if lineage else begun(index, masks, self.origin)
        return {**self.origin, **how, "lineage": rounds}

    def _others_start(self, masks: Masks, previous: Level) -> dict[str, Tensor]:
        """What the components without masks start from, where that is not what the ticket before held.

        It goes into the ticket: its controls, and whoever trains it again, start from the same.
        """
        if self.others == "rewind":
            return {}
        source: Mapping[str, Tensor]
        if self.others == "initial":
            source = self._initial_state
        else:
            fresh = self.others == "fresh"
            source = named_state(draw_anew(self.make_model, "others=fresh") if fresh else previous.model)
        found = {name: tensor for name, tensor in source.items() if component_of(name) not in masks.components}
        if self.others == "fresh":
            _check_drawn_anew(found, self._drawn, "others=fresh")
        return found


def trained(train: Train, model: nn.Module, masks: Masks, start_step: int, end_step: int) -> nn.Module | None:
    """Calls a training, and gives the averages that it returned, a child each component, or a whole; None for none.

    Raises `MaskError` where it leaves a pruned weight alive, of the model or of an average: it held nothing.
    """
    _drop_gradients(model)
    averaged = averages_in(train(model, masks, start_step, end_step), model)
    _drop_gradients(model)
    call = f"train(model, masks, {start_step}, {end_step})"
    try:
        masks.audit(model)
    except MaskError as error:
        raise MaskError(
            f"{call} left weights alive that are pruned ({error}): "
            f"hold the model inside it, with masks.hold(model, *optimizers): ..."
        ) from None
    try:
        if averaged is not None:
            masks.audit(averaged if is_whole(averaged, model) else with_averages(model, averaged), "the average")
    except MaskError as error:
        raise MaskError(
            f"{call} gave averages with weights alive that are pruned ({error}): "
            f"begin them as a copy of the model that train is given, which is sparse already"
        ) from None
    return averaged


def _drop_gradients(model: nn.Module) -> None:
    """Those that a training leaves half accumulated: the dense one, in two calls, would begin its second with them,
    and no copy, which rounds and controls are, has any."""
    for weight in model.parameters():
        weight.grad = None


def apart(level: Level) -> Level:
    """The level with a model of its own: what is done to the one (evaluation mode, averages in its place, a pass that
    moves statistics) is not done to the other. A search goes on from the one, and yields the other."""
    try:
        return replace(level, model=clone(level.model))
    except MaskError:  # what training has left in it cannot be copied: the level is not lost for that
        return level


def _in_modes_of(other: nn.Module, model: nn.Module) -> nn.Module:
    """`model`, where it is in training or evaluation mode layer by layer as `other` is, and has the same weights
    frozen; else a copy that is."""
    if _modes(other) == _modes(model):
        return model
    (modes, trained), model = _modes(other), clone(model)
    for name, layer in model.named_modules():
        layer.training = modes.get(name, layer.training)
    for name, weight in named_weights(model).items():
        weight.requires_grad_(trained.get(name, weight.requires_grad))
    return model


def _modes(model: nn.Module) -> tuple[dict[str, bool], dict[str, bool]]:
    """Layer → whether it is in training mode; weight → whether it is trained."""
    layers = {name: layer.training for name, layer in model.named_modules()}
    return layers, {name: weight.requires_grad for name, weight in named_weights(model).items()}


def covered(model: nn.Module, more: Mapping[str, Any]) -> Masks:
    """The masks of what a search's arguments choose, all of it alive.

    Raises `MaskError`, where there are example inputs, for a weight of which a zero would not be one in effect.
    """
    masks = Masks.dense(model, more.get("components"), more.get("include"), more.get("exclude", ()))
    if more.get("example_inputs") is not None:
        check_effect(model, masks, more["example_inputs"])
    return masks


def check_sparsities(sparsities: Iterable[float]) -> None:
    """Raises `PruneError` for the first that is not above 0 and below 1."""
    for sparsity in sparsities:
        check_share("sparsities", sparsity)


def check_share(name: str, share: object) -> None:
    """Raises `PruneError` for what is no number above 0 and below 1."""
    if not isinstance(share, Real) or not 0 < float(share) < 1:  # a NaN is neither
        raise PruneError(f"{name}={share!r} is out of range: a number above 0 and below 1")


def check_count(name: str, count: object, least: int = 0) -> None:
    """Raises `PruneError` for what is no whole number of at least so many."""
    if not isinstance(count, Integral) or count < least:
        raise PruneError(f"{name}={count!r}: a whole number, {least} or more")


def check_begun(name: str, level: object) -> None:
    """Raises `PruneError` for what a search cannot go on from: it is a `Level`, or None."""
    if not isinstance(level, Level | None):
        raise PruneError(
            f"{name}={short(repr(level))}: a level of a search (gentickets.Level), or None for all of them"
        )


def random_mask_control(level: Level, seed: int) -> Ticket:
    """The first control: the level's rewind weights under a random mask of the same sparsity in each layer.

    Trained as the level was, from the rewind step on; `gentickets.search_controls` does that, for a saved ticket too.
    Of a ticket that prunes whole channels: `gentickets.random_channels_control`.
    """
    masks = random_like(level.masks, seed, level.model)
    return Ticket(masks, level.ticket.weights, shuffled(level.ticket.origin, masks, seed))


def redrawn_weights_control(level: Level, make_model: MakeModel) -> Ticket:
    """The second control: exactly the level's masks, over weights newly drawn by `make_model`.

    Trained from step 0: the weights have no steps behind them, so the whole of training is theirs.

    Raises `PruneError` where nothing is re-drawn: where `make_model` seeds itself, or gives a model that there is
    already, and with it the weights with which the search began, those of the ticket, or those that were trained from
    it. Give it another seed then: `lambda: make_gan(seed=1)`.
    """
    return redrawn_weights(level, make_model)[0]


def redrawn_weights(level: Level, make_model: MakeModel) -> tuple[Ticket, nn.Module]:
    """`redrawn_weights_control`, and the model that its weights are of, to be trained."""
    origin = {**level.ticket.origin, "rewind_step": 0, "retrain": "rewind", "control": "redrawn_weights"}
    model = draw_anew(make_model, "the re-drawn control")
    found = {name: tensor for name, tensor in named_state(model).items() if name in level.masks}
    _check_drawn_anew(found, level.drawn or {}, "the re-drawn control")
    for weights in (level.ticket.weights, named_state(level.model)):
        _check_drawn_anew(_living(found, level.masks), _digests(_living(weights, level.masks)), "the re-drawn control")
    return Ticket(level.masks, model, origin), model


def draw(make_model: MakeModel) -> nn.Module:
    """A new model. Where `make_model` seeds torch's generator for itself, the caller's goes on as if it did not."""
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise PruneError(
            f"make_model is a function that makes a model, as lambda: GAN(); not {type(make_model).__name__}"
        )
    before, seed = torch.get_rng_state(), torch.initial_seed()
    made = make_model()
    model = as_model(made)
    _made.update(_nets(made))
    if empty := [name for name, tensor in named_state(model).items() if tensor.is_meta]:
        raise PruneError(
            f"make_model() gave a model on the meta device, whose {empty[0]!r} has no values: give one that has"
        )
    if torch.initial_seed() != seed:
        torch.set_rng_state(before)
    return model


_made: WeakSet[nn.Module] = WeakSet()
"""The models, or components, that a search has been given."""


def _nets(made: Model) -> list[nn.Module]:
    return [made] if isinstance(made, nn.Module) else list(made.values())


def draw_anew(make_model: MakeModel, what: str) -> nn.Module:
    """As `draw`. Raises `PruneError` for a model that has been given before, and trained perhaps."""
    before = set(_made)

    def make() -> Model:
        made = make_model()
        if isinstance(made, nn.Module | Mapping) and made and before.issuperset(_nets(made)):
            raise PruneError(
                f"{what}: make_model() gave a model that it had given before, with whatever training has made of it; "
                f"it is to make a new one each time, as lambda: GAN()"
            )
        return made

    return draw(make)


def _warn_of_hooks_on_weights(model: nn.Module) -> None:
    """Copies of a parameter have none of its hooks, by torch's own rule: the rounds would be trained without them."""
    for name, weight in named_weights(model).items():
        if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
            warnings.warn(
                f"{name!r} has a hook on its gradient, which copies of a parameter do not keep: the rounds of a search "
                f"are trained without it; do that in forward, or register it in train",
                stacklevel=5,
            )
            return


def _digests(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name → a digest of what is in it, of every floating tensor that is not one value throughout."""
    return {
        name: hashlib.sha256(bytes_of(tensor)).hexdigest()
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.numel() and bool((tensor != tensor.flatten()[0]).any())
    }


def _living(weights: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    fitting = {n: weights[n].detach().cpu() for n, s in masks.shapes.items() if n in weights and weights[n].shape == s}
    return {name: weight[masks[name]] for name, weight in fitting.items()}


def _check_drawn_anew(weights: Mapping[str, Tensor], known: Mapping[str, str], what: str) -> None:
    """Raises `PruneError` where every weight is one that is there already; warns where some are (a pretrained part)."""
    found = {name: digest for name, digest in _digests(weights).items() if name in known}
    same = [name for name, digest in found.items() if digest == known[name]]
    if same and len(same) == len(found):
        raise PruneError(
            f"{what}: make_model() drew the very weights that the search has already ({same[0]!r} and all others): "
            f"it seeds itself; give one that draws others, such as lambda: make_model(seed=1), or seed outside of it"
        )
    if same:
        warnings.warn(
            f"{what}: {len(same)} of {len(found)} weights are not drawn anew, {same[0]!r} first", stacklevel=3
        )

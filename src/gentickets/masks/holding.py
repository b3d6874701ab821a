"""Holding a model to its masks, whoever steps or writes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.utils import parametrize
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gentickets.errors import MaskError
from gentickets.masks.held import HeldWeight, mask_gradients, zero_dead
from gentickets.masks.layers import divided_by_zero
from gentickets.masks.names import (
    Model,
    as_copy,
    as_model,
    check_components,
    components_of,
    named_layers,
    named_weights,
)
from gentickets.masks.passes import AfterLoad, AfterOwnPass, AfterPass, BeforeCompiled, BeforePass
from gentickets.masks.state import Place, goes_with_weights, is_doubtful, tensors_of_state
from gentickets.masks.steppers import EACH_BY_ITSELF, check_can_be_held, parameters_of, underlying
from gentickets.notebook import short, shown

if TYPE_CHECKING:
    from gentickets.masks.value import Masks  # a type only: masks are made without this module, and call it


class Hold:
    """`Masks.hold` at work. Use it as a context; see there."""

    def __init__(
        self,
        masks: Masks,
        model: Model,
        optimizers: tuple[torch.optim.Optimizer, ...],
        copies: tuple[Any, ...],
    ):
        self._was_entered = True  # until it is made: one that is refused has told so
        self.masks, self._model = masks, model
        self.copies = copies
        self._given = optimizers
        self.optimizers, self._may_write_unseen = underlying(optimizers)
        masks.check_fits(self.model)
        for net in copies:
            check_components(net if isinstance(net, Mapping) else (), components_of(self.model))
        for net, covering in self._over_copies(masks):
            covering.check_fits(net)
        for optimizer in self.optimizers:
            check_can_be_held(optimizer, self.model)
        self._held: dict[str, HeldWeight] = {}
        self._by_id: dict[int, HeldWeight] = {}
        self._by_place: dict[tuple[int, str], HeldWeight] = {}  # by the layer's id and the name in it
        self._moved: dict[str, HeldWeight] = {}  # in whose place something else was put, since the last step
        self._ours: set[int] = set()
        self._stepping: set[int] = set()
        self._told: set[tuple[int, Place]] = set()
        self.strangers = 0  # steps of optimisers that were not given: after each of them every weight is looked at
        self.passing: nn.Module | None = None  # what is being passed through: its parts need not look again
        self._handles: list[Any] = []
        self._parts: list[tuple[Mapping[str, nn.Module | None], str, nn.Module]] = []  # (children, name, layer)
        self._watching: list[Any] = []  # the handles of what lies in the model: of its layers as they are now
        self._warned = self._closely = self._was_entered = False

    def __repr__(self) -> str:
        state = "entered" if self._handles else "not entered"
        names = short(", ".join(type(optimizer).__name__ for optimizer in self.optimizers)) or "no optimiser"
        return f"Hold({self.masks!r}, {short(type(self.model).__name__)}, {names}, {state})"

    def _repr_html_(self) -> str:
        return shown(self) + self.masks._repr_html_()

    @property
    def model(self) -> nn.Module:
        """The model as it is now: the components of a mapping are those that are in it now."""
        return as_model(self._model)

    def __enter__(self) -> Hold:
        if self._handles:
            raise MaskError("this hold is entered already: make another with masks.hold(...)")
        self._was_entered, self._warned, self._closely, self.passing = True, False, False, None
        self.masks.apply_(self.model)
        for net, covering in self._over_copies(self.masks):
            covering.apply_(net)
        try:
            self._find_weights()
            self._watch()
            for optimizer in self.optimizers:
                self._attach(optimizer)
            _entered.append(self)
            self._handles.append(register_module_parameter_registration_hook(self._note_heir))
            self._handles.append(register_optimizer_step_pre_hook(self._before_any_step))
            self._handles.append(register_optimizer_step_post_hook(self._after_any_step))
        except BaseException:  # a warning that is an error, Ctrl-C: nobody will leave what was not entered
            self._let_go()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if not self._handles:
            return
        self._let_go()
        try:
            if kind is None:
                self._settle()
                self.audit()
            else:
                self._leave_sparse()
        finally:
            for known in (self._held, self._by_id, self._by_place, self._moved):
                known.clear()

    def _let_go(self) -> None:
        """Takes every hook out again."""
        for handle in (*self._handles, *self._watching):
            handle.remove()
        self._handles.clear()
        self._watching.clear()
        if self in _entered:
            _entered.remove(self)
        self._ours.clear()
        self._stepping.clear()

    def __del__(self) -> None:
        if not getattr(self, "_was_entered", True):
            warnings.warn(
                "a hold that was never entered held nothing: with masks.hold(model, *optimizers): ...", stacklevel=2
            )

    @property
    def must_look(self) -> bool:
        """Whether weights may be written now and nothing would show it."""
        return bool(self._stepping) or self._may_write_unseen

    def audit(self) -> None:
        """Raises `MaskError` where the model, or a copy, has a pruned weight that is not exactly 0.0."""
        self.masks.audit(self.model)
        for net, covering in self._over_copies(self.masks):
            covering.audit(net, "an averaged copy of the model")

    def _over_copies(self, masks: Masks) -> Iterator[tuple[nn.Module, Masks]]:
        """Each copy as it is now, and those of `masks` that it has the weights of."""
        for given in self.copies:
            net, names = as_copy(given, self.model)
            yield net, masks.only(names)

    @torch.no_grad()
    def mask(self) -> None:
        """Sets the pruned weights of the model to 0.0, now: for a loop that writes weights by hand."""
        self._check_entered()
        self._follow_all()
        self._clear(self._held.values())

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Sets the gradients of pruned weights to 0.0.

        Not needed for sparsity. Call it between `backward` and gradient clipping, so that the norm is that of
        the sparse network and not of weights that do not exist.
        """
        self._check_entered()
        mask_gradients((held.now(), held) for held in self._held.values())

    @torch.no_grad()
    def drop_momentum(self) -> None:
        """Sets what the optimisers remember of pruned weights to 0.0.

        No weight depends on it. Where a gradient has become exactly zero, as below a unit that never fires, a moment
        shrinks from step to step, into denormal numbers, with which Adam's step takes twice as long.
        """
        self._check_entered()
        for optimizer in self.optimizers:
            self._drop_momentum(optimizer)

    @torch.no_grad()
    def move_to(self, masks: Masks) -> None:
        """Holds other masks of the same weights from here on, between two steps; `masks` is what is held to now.

        A weight that dies becomes 0.0. One that is born begins at 0.0, and with nothing in the optimisers' state that
        is kept for it (Adam's moments; not the number of steps, which counts for the whole tensor): whatever its
        gradients did while it was dead is forgotten. A weight that stays alive, and its state, stay as they are.
        Copies follow.

        Raises `MaskError`, before it changes anything, for masks of other weights; where nothing that stays alive is
        left of what a norm divides by; for a model that was accelerated; and with Rprop, whose step sizes a born
        weight could not have.
        """
        self._check_entered()
        self.masks.check_same(masks)
        stay = self.masks & masks
        if (reason := divided_by_zero(self.model, stay)) is not None:
            raise MaskError(f"masks cannot be moved so far: of what is alive before and after, {reason}")
        if any(isinstance(optimizer, torch.optim.Rprop) for optimizer in self.optimizers):
            raise MaskError("Rprop keeps a step size for each weight, and a born one has none: take another optimiser")
        for held in self._follow_all():
            self.look(held)
        weights = list(self._held.values())
        for net, covering in self._over_copies(stay):
            covering.apply_(net)
        for held in weights:
            held.move_to(stay)
        zero_dead([(parameter, held) for held in weights for parameter in held.parameters])
        for optimizer in self.optimizers:
            self._drop_momentum(optimizer)
        for held in weights:
            held.move_to(masks)
            held.known_clean(self.strangers)
        self.masks = masks
        parametrize._cache.clear()  # inside `parametrize.cached()` derived weights would be those of before

    def _check_entered(self) -> None:
        if not self._handles:
            raise MaskError(
                "this hold is not entered and holds nothing: with masks.hold(model, *optimizers) as hold: ..."
            )

    # -- around the steps of optimisers -------------------------------------------------------------------

    def _attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Holds what this optimiser steps, from here on; first of all that hooks into it."""
        self._drop_momentum(optimizer)
        self._ours.add(id(optimizer))
        self._handles.append(optimizer.register_load_state_dict_post_hook(self._drop_momentum))
        self._handles.append(optimizer.register_step_pre_hook(self._before_step))
        self._handles.append(after := optimizer.register_step_post_hook(self._after_step))
        # An average that was hooked in before is to be made of masked weights.
        optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)  # type: ignore[attr-defined]

    def _before_any_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Refuses, before it changes anything, an optimiser of held weights that the hold was not given."""
        for held in self._follow_all():
            self._look_back(held, optimizer)
        if id(optimizer) in self._ours:
            return
        of_ours = self._stepping or any(
            optimizer is inner or optimizer.param_groups is inner.param_groups for inner in underlying(self._given)[0]
        )
        if of_ours:  # inside the step of a held one, or made for one after the hold was
            self.optimizers = (*self.optimizers, optimizer)
            self._attach(optimizer)
            return
        for parameter, held in self._held_of(optimizer):
            if held.dead and not self._is_masked_by_another(optimizer, parameter, held):
                raise MaskError(
                    f"{type(optimizer).__name__} is about to step {held.name!r}, which is held to its mask, and is not "
                    f"known to the hold: masks.hold(model, *optimizers) takes every optimiser of the model"
                )

    def _is_masked_by_another(self, optimizer: torch.optim.Optimizer, parameter: Tensor, held: HeldWeight) -> bool:
        """Whether a hold inside or around this one masks all that is dead in a weight after this optimiser's steps."""
        return any(
            id(optimizer) in other._ours and (theirs := other._by_id.get(id(parameter))) is not None
            and theirs.covers(held)
            for other in _entered if other is not self
        )  # fmt: skip

    def _after_any_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """What an optimiser of other things did may be copied into held weights next (float32 masters)."""
        self.passing = None  # a step inside of a pass (a training step as a `forward`): the next part looks again
        if id(optimizer) not in self._ours:
            self.strangers += 1

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Looks back at what is to be stepped, and so masked, and after each call of its closure again.

        Of an optimiser that may couple weights: their gradients are masked, and its closure sees masked weights.
        """
        coupled = type(optimizer) not in EACH_BY_ITSELF
        self._stepping.discard(id(optimizer))  # of a step that an error ended
        if not self._stepping:  # else inside the step of another, where weights move as they should
            self._look_back_at_all(optimizer)
        if coupled:
            self._stepping.add(id(optimizer))
            self._mask_gradients_of(optimizer)

        def watched(closure: Callable[..., Any]) -> Callable[..., Any]:
            def evaluate(*given: Any, **named: Any) -> Any:
                if coupled:
                    self.mask()
                loss = closure(*given, **named)
                self._look_back_at_all(optimizer)
                if coupled:
                    self._mask_gradients_of(optimizer)
                return loss

            return evaluate

        if len(args) > 1 and callable(args[1]):  # the first is the optimiser itself
            args = (args[0], watched(args[1]), *args[2:])
        elif callable(kwargs.get("closure")):
            kwargs = {**kwargs, "closure": watched(kwargs["closure"])}
        return args, kwargs

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        stepped = self._stepped_by(optimizer)
        if type(optimizer) in EACH_BY_ITSELF:
            zero_dead(stepped)
            for _parameter, held in stepped:
                held.stepped()
            return
        self._stepping.discard(id(optimizer))
        for _parameter, held in stepped:
            held.stepped()
        self._clear(held for _, held in stepped)
        self._drop_momentum(optimizer)  # or what looks like it, and is a weight: of the schedule-free, of Lookahead

    def _stepped_by(self, optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, HeldWeight]]:
        """The held weights that a step of this optimiser moves."""
        mine = self._held_of(optimizer)
        if type(optimizer) not in EACH_BY_ITSELF:
            return mine
        return [(parameter, held) for parameter, held in mine if parameter.grad is not None]

    def _look_back_at_all(self, optimizer: torch.optim.Optimizer) -> None:
        """Before a step masks what it moves: were weights written inside a pass, which no look before a pass sees?"""
        for parameter, held in self._stepped_by(optimizer):
            if parameter is held.parameters[0] and held.is_suspect_before_step():
                self._look_back(held, optimizer)

    @torch.no_grad()
    def _look_back(self, held: HeldWeight, optimizer: torch.optim.Optimizer) -> None:
        """Before a step, at a weight that somebody may have written since its last pass began: masks it.

        Where that changes it, the pass may have seen it. That is told once, and from then on each layer is looked at
        when its own pass ends, and tells for certain.
        """
        strays = held.strays()
        self._clear((held,))
        if strays and not self._closely:
            self._closely = True
            self._watch()
            warnings.warn(
                f"{held.name!r} had {strays:,} pruned weights that were not 0.0 before a step of "
                f"{type(optimizer).__name__}, and a pass may have seen them: set to 0.0; a layer or a hook that writes "
                f"weights inside a pass must leave them 0.0 where they are pruned, and whoever writes them by hand "
                f"calls hold.mask()",
                stacklevel=6,
            )

    def _held_of(self, optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, HeldWeight]]:
        return [(p, held) for p in parameters_of(optimizer) if (held := self._by_id.get(id(p))) is not None]

    @torch.no_grad()
    def _mask_gradients_of(self, optimizer: torch.optim.Optimizer) -> None:
        mask_gradients(self._held_of(optimizer))

    @torch.no_grad()
    def _drop_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        zero_dead([
            (value, held) for parameter, state in optimizer.state.items() if (held := self._by_id.get(id(parameter)))
            for place, value in tensors_of_state(state)
            if value.shape == parameter.shape and self._is_kept_for_each_weight(optimizer, place, parameter)
        ])  # fmt: skip

    def _is_kept_for_each_weight(self, optimizer: torch.optim.Optimizer, place: Place, parameter: Tensor) -> bool:
        """Whether a state of a weight's shape is a number for each of its weights, and no matrix over one of its sides.

        Where nothing tells, it is left as it is, and that is told.
        """
        if not is_doubtful(parameter) or (parameter.dim() and type(optimizer) in EACH_BY_ITSELF):
            return True
        known = goes_with_weights(optimizer, place, parameter)
        if known is None and (id(optimizer), place) not in self._told:
            self._told.add((id(optimizer), place))
            warnings.warn(
                f"{type(optimizer).__name__} keeps {'.'.join(map(str, place))!r} of square weights in their shape, and "
                f"it could not be tried whether that is a number for each weight: it is left as it is where pruned",
                stacklevel=5,
            )
        return bool(known)

    # -- around loads and passes --------------------------------------------------------------------------

    def _find_weights(self) -> None:
        """The held weights where they lie now; those that an optimiser still steps stay known beside them."""
        model = self.model
        places = _places(model)
        self._by_place.clear()
        for name, weight in named_weights(model).items():
            if name in self.masks:
                held = self._held.get(name) or HeldWeight(self.masks, name)
                held.layer, held.key = places[id(weight)]
                self._held[name] = self._by_place[id(held.layer), held.key] = held
                self._follow(held, weight)

    def _follow(self, held: HeldWeight, weight: nn.Parameter) -> None:
        """From here on `held` is this parameter. It is kept, so that no other tensor can come to have its id."""
        stepped = {id(p) for optimizer in self.optimizers for p in parameters_of(optimizer)}
        before = held.parameters
        held.parameters = [weight, *(p for p in before if p is not weight and id(p) in stepped)]
        held.heir = None
        for parameter in before:
            self._by_id.pop(id(parameter), None)
        self._by_id |= {id(parameter): held for parameter in held.parameters}
        held.known_clean(self.strangers)

    def _note_heir(self, layer: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        """A parameter that a layer is given by a name is its own. What else stands there during a pass, as
        `functional_call` puts it, may be the caller's: of another model, that nobody is to mask."""
        if (held := self._by_place.get((id(layer), name))) is not None:
            held.heir = parameter
            self._moved[held.name] = held

    def _watch(self) -> None:
        """Hooks into the layers as they are now."""
        for handle in self._watching:
            handle.remove()
        self._watching.clear()
        self._watch_loads()
        self._watch_passes()

    def _watch_loads(self) -> None:
        owned: dict[int, tuple[nn.Module, list[HeldWeight]]] = {}
        for held in self._held.values():
            owned.setdefault(id(held.layer), (held.layer, []))[1].append(held)
        for layer, weights in owned.values():
            self._watching.append(layer.register_load_state_dict_post_hook(AfterLoad(self, weights)))

    def _watch_passes(self) -> None:
        """A look before every pass of whatever has held weights below it: any part may be called by itself."""
        below: dict[int, dict[str, HeldWeight]] = {}
        own: dict[int, dict[str, HeldWeight]] = {}
        self._parts.clear()
        for held in self._held.values():
            own.setdefault(id(held.layer), {})[held.name] = held

        def gather(module: nn.Module) -> dict[str, HeldWeight]:
            if id(module) not in below:
                found = below[id(module)] = dict(own.get(id(module), {}))
                parts = {}
                for name, child in module._modules.items():
                    if child is not None and (inside := gather(child)):
                        found |= inside
                        parts[name] = child
                self._parts += [(module._modules, name, part) for name, part in parts.items()]
                if found:
                    hook = BeforePass(self, list(found.values()), module, parts)
                    # First of all, so that an old-style spectral norm sees masked weights.
                    self._watching.append(module.register_forward_pre_hook(hook, prepend=True))
                    if hook.has_parts:
                        after = module.register_forward_hook(AfterPass(self), always_call=True)
                        self._watching.append(after)
                    if self._closely and hook.own:
                        # First of all here too: hooks that write after the pass has used them do no harm.
                        self._watching.append(module.register_forward_hook(AfterOwnPass(hook.own), prepend=True))
                    if getattr(module, "_compiled_call_impl", None) is not None:
                        self._watching.append(BeforeCompiled(module, hook))
            return below[id(module)]

        gather(self.model)
        if isinstance(self._model, Mapping):
            self._parts += [(self._model, name, net) for name, net in self._model.items()]

    def follow_layers(self) -> Iterable[HeldWeight]:
        """Where a layer was replaced: holds what bears the names of the masks now, and gives all, to be looked at."""
        if all(children.get(name) is part for children, name, part in self._parts):
            return ()
        self.masks.check_fits(self.model)
        self._find_weights()
        self._watch()
        return self._held.values()

    def _follow_all(self) -> Iterable[HeldWeight]:
        """Between passes: holds what was put in a held weight's place, by whatever way, and gives what is to be looked
        at. What still stands there was not there for one call."""
        found = self.follow_layers()
        if not self._moved:
            return found
        moved, self._moved = self._moved, {}
        late = []
        for held in moved.values():
            now = held.now()
            if now is not held.parameters[0] and isinstance(now, nn.Parameter):
                self._follow(held, now)
                late.append(held)
        return (*found, *late)

    @torch.no_grad()
    def look(self, held: HeldWeight) -> None:
        """Before a pass, at a weight that somebody may have written: masks it, and says so where that changed it."""
        now = held.now()
        if now is not held.parameters[0]:
            if now is None:
                raise MaskError(
                    f"{held.name!r} is no longer a parameter of its layer: leave the hold before a parametrisation is "
                    f"registered or a parameter taken away, then mask and hold what is there"
                )
            if now is not held.heir or held.heir is None:
                self._moved[held.name] = held
                return  # in its place for this one call (`torch.func.functional_call`): the caller's own
            self._follow(held, held.heir)
        weight = held.parameters[0]
        if weight.shape != held.shape:
            return  # emptied, as `accelerate` does: no pass can use it
        # Inside the step of a held optimiser weights move as they should. On a GPU a look would stall it.
        strays = 0 if self._stepping or weight.device.type != "cpu" else held.strays()
        self._clear((held,))
        if strays and not self._warned:
            self._warned = True
            warnings.warn(
                f"{held.name!r} had {strays:,} pruned weights that were not 0.0 before a pass, written by no held "
                f"optimiser: set to 0.0, as are others from here on; call hold.mask() after writing weights by hand",
                stacklevel=5,
            )

    def loaded(self, weights: Iterable[HeldWeight]) -> None:
        """After weights were loaded into a layer: masks them again, also those that were put in the place of others."""
        self._find_weights()  # `load_state_dict(..., assign=True)` puts new tensors there
        zero_dead([(weight, held) for held in weights if (weight := held.now()) is not None])
        self._clear(weights)

    def _clear(self, weights: Iterable[HeldWeight]) -> None:
        """Sets pruned places to 0.0 out of autograd's sight: a graph that saw them masked stays valid."""
        weights = [held for held in weights if held.parameters[0].shape == held.shape]
        zero_dead([(held.parameters[0].data, held) for held in weights])
        for held in weights:
            held.known_clean(self.strangers)

    def _settle(self) -> None:
        """On leaving: what was written since the last pass began is set to 0.0, with a warning."""
        late = {}
        for held in self._held.values():
            if held.layer._parameters.get(held.key) is held.parameters[0] and held.written_late(self.strangers):
                late[held.name] = held.strays()
                if late[held.name]:
                    self._clear((held,))
        if any(late.values()):
            name, strays = next((name, count) for name, count in late.items() if count)
            warnings.warn(
                f"{name!r} had {strays:,} pruned weights that were not 0.0 on leaving the hold, written after its last "
                f"pass began: set to 0.0",
                stacklevel=4,
            )

    def _leave_sparse(self) -> None:
        """On leaving by an exception, which is what is to be heard: all is set to 0.0, and nothing is raised.

        A step that was interrupted leaves weights unmasked, and so may whoever writes by hand. Told is what a pass may
        have seen.
        """
        seen: dict[str, int] = {}
        for held in self._held.values():
            with suppress(Exception):
                if (strays := held.strays()) and not held.written_late(self.strangers):
                    seen[held.name] = strays
                self._clear((held,))
        for optimizer in self.optimizers:
            if type(optimizer) not in EACH_BY_ITSELF:
                with suppress(Exception):
                    self._drop_momentum(optimizer)
        with suppress(Exception):
            self.masks.apply_(self.model)  # of layers that were replaced since the last pass too
        with suppress(Exception):
            for net, covering in self._over_copies(self.masks):
                covering.apply_(net)
        if seen:
            name, strays = next(iter(seen.items()))
            with suppress(Exception):  # where warnings are errors
                warnings.warn(
                    f"{name!r} had {strays:,} pruned weights that were not 0.0 on leaving the hold by an exception, "
                    f"and a pass may have seen them: set to 0.0",
                    stacklevel=3,
                )


_entered: list[Hold] = []
"""The holds that are at work now."""


def _places(model: nn.Module) -> dict[int, tuple[nn.Module, str]]:
    """Of each parameter, by its id: the layer that it lies in, and its name there."""
    found: dict[int, tuple[nn.Module, str]] = {}
    for _, layer in named_layers(model):
        for key, parameter in layer._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (layer, key))
    return found

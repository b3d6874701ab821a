"""Holding a model to its masks, whoever steps or writes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gentickets.adam import FusedAdamW
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
from gentickets.masks.state import Place, goes_with_weights, is_doubtful, tensors_of_state
from gentickets.notebook import short, shown

if TYPE_CHECKING:
    from gentickets.masks.value import Masks  # a type only: masks are made without this module, and call it

_EACH_BY_ITSELF = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Rprop,
    torch.optim.ASGD,
    torch.optim.SparseAdam,
    FusedAdamW,
)
"""Optimisers of exactly these types move each weight by its own gradient and keep no other weights: to mask what they
stepped is enough. Any other may let the gradient of one weight move another (Muon, Adafactor), keep weights in its
state (schedule-free, Lookahead), or look at the model inside its step (SAM)."""

_TRANSPARENT = ("Fabric", "Lightning", "Accelerated")
"""Wrappers of optimisers that write no weight themselves, by how their class's name begins."""


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
        self.masks, self.model = masks, as_model(model)
        self.copies = copies
        self._given = optimizers
        self.optimizers, self._may_write_unseen = _underlying(optimizers)
        masks.check_fits(self.model)
        for net in copies:
            check_components(net if isinstance(net, Mapping) else (), components_of(self.model))
        for net, covering in self._over_copies(masks):
            covering.check_fits(net)
        for optimizer in self.optimizers:
            _check_can_be_held(optimizer, self.model)
        self._held: dict[str, HeldWeight] = {}
        self._by_id: dict[int, HeldWeight] = {}
        self._ours: set[int] = set()
        self._stepping: set[int] = set()
        self._told: set[tuple[int, Place]] = set()
        self.strangers = 0  # steps of optimisers that were not given: after each of them every weight is looked at
        self.passing: nn.Module | None = None  # what is being passed through: its parts need not look again
        self._handles: list[Any] = []
        self._parts: list[tuple[Mapping[str, nn.Module | None], str, nn.Module]] = []  # (children, name, layer)
        self._watching: list[Any] = []  # the handles of what lies in the model: of its layers as they are now
        self._warned = self._was_entered = False

    def __repr__(self) -> str:
        state = "entered" if self._handles else "not entered"
        names = short(", ".join(type(optimizer).__name__ for optimizer in self.optimizers)) or "no optimiser"
        return f"Hold({self.masks!r}, {short(type(self.model).__name__)}, {names}, {state})"

    def _repr_html_(self) -> str:
        return shown(self) + self.masks._repr_html_()

    def __enter__(self) -> Hold:
        if self._handles:
            raise MaskError("this hold is entered already: make another with masks.hold(...)")
        self._was_entered, self._warned, self.passing = True, False, None
        self.masks.apply_(self.model)
        for net, covering in self._over_copies(self.masks):
            covering.apply_(net)
        self._find_weights()
        self._watch_loads()
        self._watch_passes()
        for optimizer in self.optimizers:
            self._attach(optimizer)
        _entered.append(self)
        self._handles.append(register_optimizer_step_pre_hook(self._before_any_step))
        self._handles.append(register_optimizer_step_post_hook(self._after_any_step))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if not self._handles:
            return
        for handle in (*self._handles, *self._watching):
            handle.remove()
        self._handles.clear()
        self._watching.clear()
        _entered.remove(self)
        self._ours.clear()
        self._stepping.clear()
        if kind is None:
            self._settle()
            self.audit()
        self._held.clear()
        self._by_id.clear()

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
        self.follow_layers()
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
        self._handles.append(after := optimizer.register_step_post_hook(self._after_step))
        # An average that was hooked in before is to be made of masked weights.
        optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)  # type: ignore[attr-defined]
        if type(optimizer) not in _EACH_BY_ITSELF:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))

    def _before_any_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Refuses, before it changes anything, an optimiser of held weights that the hold was not given."""
        self.follow_layers()
        if id(optimizer) in self._ours:
            return
        of_ours = self._stepping or any(
            optimizer is inner or optimizer.param_groups is inner.param_groups for inner in _underlying(self._given)[0]
        )
        if of_ours:  # inside the step of a held one, or made for one after the hold was
            self.optimizers = (*self.optimizers, optimizer)
            self._attach(optimizer)
            return
        if any(id(optimizer) in other._ours for other in _entered):
            return  # held by a hold inside this one
        for parameter in _parameters(optimizer):
            held = self._by_id.get(id(parameter))
            if held is not None and held.dead:
                raise MaskError(
                    f"{type(optimizer).__name__} is about to step {held.name!r}, which is held to its mask, and is not "
                    f"known to the hold: masks.hold(model, *optimizers) takes every optimiser of the model"
                )

    def _after_any_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """What an optimiser of other things did may be copied into held weights next (float32 masters)."""
        self.passing = None  # a step inside of a pass (a training step as a `forward`): the next part looks again
        if id(optimizer) not in self._ours:
            self.strangers += 1

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Of an optimiser that may couple weights: their gradients are masked, and its closure sees masked weights."""
        self._stepping.add(id(optimizer))
        self._mask_gradients_of(optimizer)

        def masked(closure: Callable[..., Any]) -> Callable[..., Any]:
            def evaluate(*given: Any, **named: Any) -> Any:
                self.mask()
                loss = closure(*given, **named)
                self._mask_gradients_of(optimizer)
                return loss

            return evaluate

        if len(args) > 1 and callable(args[1]):  # the first is the optimiser itself
            args = (args[0], masked(args[1]), *args[2:])
        elif callable(kwargs.get("closure")):
            kwargs = {**kwargs, "closure": masked(kwargs["closure"])}
        return args, kwargs

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if type(optimizer) in _EACH_BY_ITSELF:
            stepped = [
                (parameter, held) for group in optimizer.param_groups for parameter in group["params"]
                if (held := self._by_id.get(id(parameter))) is not None and parameter.grad is not None
            ]  # fmt: skip
            zero_dead(stepped)
            for _parameter, held in stepped:
                held.stepped()
            return
        self._stepping.discard(id(optimizer))
        for _parameter, held in (mine := self._held_of(optimizer)):
            held.stepped()
        self._clear(held for _, held in mine)
        self._drop_momentum(optimizer)  # or what looks like it, and is a weight: of the schedule-free, of Lookahead

    def _held_of(self, optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, HeldWeight]]:
        return [(p, held) for p in _parameters(optimizer) if (held := self._by_id.get(id(p))) is not None]

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
        if not is_doubtful(parameter) or (parameter.dim() and type(optimizer) in _EACH_BY_ITSELF):
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
        places = _places(self.model)
        for name, weight in named_weights(self.model).items():
            if name in self.masks:
                held = self._held.get(name) or HeldWeight(self.masks, name)
                held.layer, held.key = places[id(weight)]
                self._held[name] = held
                self._follow(held, weight)

    def _follow(self, held: HeldWeight, weight: nn.Parameter) -> None:
        """From here on `held` is this parameter. It is kept, so that no other tensor can come to have its id."""
        stepped = {id(p) for optimizer in self.optimizers for p in _parameters(optimizer)}
        before = held.parameters
        held.parameters = [weight, *(p for p in before if p is not weight and id(p) in stepped)]
        for parameter in before:
            self._by_id.pop(id(parameter), None)
        self._by_id |= {id(parameter): held for parameter in held.parameters}
        held.known_clean(self.strangers)

    def _watch_loads(self) -> None:
        owned: dict[int, tuple[nn.Module, list[HeldWeight]]] = {}
        for held in self._held.values():
            owned.setdefault(id(held.layer), (held.layer, []))[1].append(held)
        for layer, weights in owned.values():
            self._watching.append(layer.register_load_state_dict_post_hook(_AfterLoad(self, weights)))

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
                    hook = _BeforePass(self, list(found.values()), module, parts)
                    # First of all, so that an old-style spectral norm sees masked weights.
                    self._watching.append(module.register_forward_pre_hook(hook, prepend=True))
                    if hook.has_parts:
                        after = module.register_forward_hook(_AfterPass(self), always_call=True)
                        self._watching.append(after)
                    if getattr(module, "_compiled_call_impl", None) is not None:
                        self._watching.append(_BeforeCompiled(module, hook))
            return below[id(module)]

        gather(self.model)

    def follow_layers(self) -> None:
        """Where a layer was replaced: holds what bears the names of the masks now."""
        if all(children.get(name) is part for children, name, part in self._parts):
            return
        self.masks.check_fits(self.model)
        for handle in self._watching:
            handle.remove()
        self._watching.clear()
        self._find_weights()
        self._watch_loads()
        self._watch_passes()
        for held in self._held.values():
            self.look(held)

    @torch.no_grad()
    def look(self, held: HeldWeight) -> None:
        """Before a pass, at a weight that somebody may have written: masks it, and says so where that changed it."""
        weight = held.now()
        if weight is not held.parameters[0]:
            if weight is None:
                raise MaskError(
                    f"{held.name!r} is no longer a parameter of its layer: leave the hold before a parametrisation is "
                    f"registered or a parameter taken away, then mask and hold what is there"
                )
            if not isinstance(weight, nn.Parameter):
                return  # in its place for this one call (`torch.func.functional_call`): the caller's own
            self._follow(held, weight)
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

    def _clear(self, weights: Iterable[HeldWeight]) -> None:
        """Sets pruned places to 0.0 out of autograd's sight: a graph that saw them masked stays valid."""
        weights = [held for held in weights if held.parameters[0].shape == held.shape]
        zero_dead([(held.parameters[0].data, held) for held in weights])
        for held in weights:
            held.known_clean(self.strangers)

    def _settle(self) -> None:
        """On leaving: what was written after the last pass has hurt nobody; it is set to 0.0, with a warning."""
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
                f"pass: set to 0.0",
                stacklevel=4,
            )


_entered: list[Hold] = []
"""The holds that are at work now."""


class _Inert:
    """A hook that does nothing in a copy of the model, made in memory or through a file: a copy is not held."""

    def __deepcopy__(self, memo: object) -> Any:
        return _nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert_hook, ()


class _AfterLoad(_Inert):
    """Masks the weights of a held layer again when weights are loaded into it, alone or with the whole model."""

    def __init__(self, hold: Hold, weights: Sequence[HeldWeight]):
        self.hold, self.weights = hold, weights

    @torch.no_grad()
    def __call__(self, layer: nn.Module, incompatible_keys: object) -> None:
        self.hold._find_weights()  # `load_state_dict(..., assign=True)` puts new tensors in their place
        zero_dead([(weight, held) for held in self.weights if (weight := held.now()) is not None])
        self.hold._clear(self.weights)


class _BeforePass(_Inert):
    """Looks, before a pass of a module, at the held weights in and below it.

    What is cheap is looked at always: a version counter, an address, a few pruned places. It tells of every write
    that autograd can see and of every one that is dense. What is left (single places written through `.data`) is looked
    at every so often, and where the module has changed between training and evaluation.
    """

    def __init__(self, hold: Hold, weights: Sequence[HeldWeight], module: nn.Module, parts: Mapping[str, nn.Module]):
        self.hold, self.weights, self.training = hold, weights, module.training
        self.children, self.parts = module._modules, tuple(parts.items())
        self.own = [held for held in weights if held.layer is module]
        self.has_parts = len(self.own) < len(weights)

    def __call__(self, module: nn.Module, args: object) -> None:
        if torch.compiler.is_compiling():
            return  # no Python runs in a compiled pass
        if any(self.children.get(name) is not part for name, part in self.parts):
            self.hold.follow_layers()
        hold, look = self.hold, module.training is not self.training
        self.training = module.training
        if hold.passing is not None and hold.passing is not module and not look and not hold.must_look:
            for held in self.own:  # looked at before the pass that this is a part of; unless written since
                if held.is_written():
                    hold.look(held)
            return
        look |= hold.must_look
        strangers = hold.strangers
        for held in self.weights:
            if look or held.is_suspect(strangers):
                hold.look(held)
            else:
                held.unlooked += 1
            held.steps = 0
        if self.has_parts:
            hold.passing = module


class _AfterPass(_Inert):
    """The end of a pass whose parts need not look again."""

    def __init__(self, hold: Hold):
        self.hold = hold

    def __call__(self, module: nn.Module, args: object, result: object) -> None:
        if not torch.compiler.is_compiling() and self.hold.passing is module:
            self.hold.passing = None


class _BeforeCompiled:
    """A hook before the passes of a module that was compiled in place (`module.compile()`), which runs no hooks."""

    def __init__(self, module: nn.Module, hook: _BeforePass):
        compiled: Any = module._compiled_call_impl

        def call(*args: Any, **kwargs: Any) -> Any:
            hook(module, args)
            try:
                return compiled(*args, **kwargs)
            finally:
                hook.hold.passing = None

        self._module, self._compiled, self._call = module, compiled, call
        module._compiled_call_impl = call

    def remove(self) -> None:
        if self._module._compiled_call_impl is self._call:
            self._module._compiled_call_impl = self._compiled


def _inert_hook() -> Any:
    return _nothing


def _nothing(*_: object) -> None:
    return None


def _places(model: nn.Module) -> dict[int, tuple[nn.Module, str]]:
    """Of each parameter, by its id: the layer that it lies in, and its name there."""
    found: dict[int, tuple[nn.Module, str]] = {}
    for _, layer in named_layers(model):
        for key, parameter in layer._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (layer, key))
    return found


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _check_can_be_held(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raises `MaskError` for an optimiser to which a hold on `model` would mean nothing."""
    kind, parameters = type(optimizer).__name__, list(_parameters(optimizer))
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MaskError("LBFGS evaluates the model inside its step, between two maskings: use another")
    if any(getattr(parameter, "is_emptied", False) for parameter in parameters):
        raise MaskError("an optimiser has a weight that `accelerate` emptied: make it after accelerate(...)")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for parameter in parameters):
        raise MaskError(
            f"{kind} has no parameter of this model, but perhaps of a copy of it: make it of the model's own, as "
            f"{kind}(model.parameters()), or leave it out of the hold"
        )


def _underlying(optimizers: Iterable[Any]) -> tuple[tuple[torch.optim.Optimizer, ...], bool]:
    """The torch optimisers that these are or drive, whose hooks fire; and whether one may write weights unseen.

    Hooks belong on the ones that really step: those inside Fabric's, Lightning's or accelerate's wrappers, or inside
    one that builds on another (SAM, Lookahead). Raises `MaskError` for one in which there is none.
    """
    found: dict[int, torch.optim.Optimizer] = {}
    hidden = False
    for given in optimizers:
        ahead, inner, seen = [given], 0, set()
        while ahead:
            one = ahead.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, torch.optim.Optimizer):
                if "_optimizer_step_post_hooks" in vars(one):
                    found[id(one)] = one
                    inner += 1
                else:
                    hidden |= not type(one).__name__.startswith(_TRANSPARENT)
            ahead.extend(
                part for part in getattr(one, "__dict__", {}).values() if isinstance(part, torch.optim.Optimizer)
            )
        if not inner:
            raise MaskError(
                f"cannot hold through {type(given).__name__}: it is no torch.optim.Optimizer "
                "(several are given one by one: masks.hold(model, opt_g, opt_d))"
            )
    return tuple(found.values()), hidden

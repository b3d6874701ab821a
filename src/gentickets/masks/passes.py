"""What a hold puts into the layers of a model: looks before and after their passes, and after weights were loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from gentickets.errors import MaskError
from gentickets.masks.held import HeldWeight


class Watching(Protocol):
    """The hold behind these: `passing` is the module whose pass goes on, whose parts need not look again; `must_look`:
    weights may be written now and nothing would show it; `strangers`: steps of optimisers that it does not know."""

    passing: nn.Module | None
    strangers: int

    @property
    def must_look(self) -> bool: ...
    def follow_layers(self) -> Iterable[HeldWeight]: ...
    def look(self, held: HeldWeight) -> None: ...
    def loaded(self, weights: Iterable[HeldWeight]) -> None: ...


class _Inert:
    """A hook that does nothing in a copy of the model, made in memory or through a file: a copy is not held."""

    def __deepcopy__(self, memo: object) -> Any:
        return _nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert_hook, ()


class AfterLoad(_Inert):
    """Masks the weights of a held layer again when weights are loaded into it, alone or with the whole model."""

    def __init__(self, hold: Watching, weights: Sequence[HeldWeight]):
        self.hold, self.weights = hold, weights

    @torch.no_grad()
    def __call__(self, layer: nn.Module, incompatible_keys: object) -> None:
        self.hold.loaded(self.weights)


class BeforePass(_Inert):
    """Looks, before a pass of a module, at the held weights in and below it.

    What is cheap is looked at always: a version counter, an address, a few pruned places. It tells of every write
    that autograd can see and of every one that is dense. What is left (single places written through `.data`) is looked
    at every so often, and where the module has changed between training and evaluation.
    """

    def __init__(
        self, hold: Watching, weights: Sequence[HeldWeight], module: nn.Module, parts: Mapping[str, nn.Module]
    ):
        self.hold, self.weights, self.training = hold, weights, module.training
        self.children, self.parts = module._modules, tuple(parts.items())
        self.own = [held for held in weights if held.layer is module]
        self.has_parts = len(self.own) < len(weights)

    def __call__(self, module: nn.Module, args: object) -> None:
        if torch.compiler.is_compiling():
            return  # no Python runs in a compiled pass
        if any(self.children.get(name) is not part for name, part in self.parts):
            for held in self.hold.follow_layers():
                self.hold.look(held)
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


class AfterPass(_Inert):
    """The end of a pass whose parts need not look again."""

    def __init__(self, hold: Watching):
        self.hold = hold

    def __call__(self, module: nn.Module, args: object, result: object) -> None:
        if not torch.compiler.is_compiling() and self.hold.passing is module:
            self.hold.passing = None


class AfterOwnPass(_Inert):
    """Refuses a pass that has written the weights of its own layer where they are pruned."""

    def __init__(self, weights: Sequence[HeldWeight]):
        self.weights = weights

    def __call__(self, module: nn.Module, args: object, result: object) -> None:
        if torch.compiler.is_compiling():
            return
        for held in self.weights:
            if held.looks_written() and (strays := held.strays()):
                raise MaskError(
                    f"{held.name!r} had {strays:,} pruned weights that were not 0.0 at the end of a pass of "
                    f"{type(module).__name__}, and none when it began: it, or a hook on it, writes the weight inside "
                    f"the pass, where no mask can follow; have it left 0.0 where it is pruned, or leave it out of the "
                    f"masks with exclude=({held.name!r},)"
                )


class BeforeCompiled:
    """A hook before the passes of a module that was compiled in place (`module.compile()`), which runs no hooks."""

    def __init__(self, module: nn.Module, hook: BeforePass):
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

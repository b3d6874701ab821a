"""Is it a model that tickets can be found in?"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gentickets.catalogue import Named
from gentickets.errors import GenticketsError, demand
from gentickets.masks.examples import ExampleInputs, examples_of, named_tensors
from gentickets.masks.left_alone import changed, copies, equal, left_alone
from gentickets.masks.liveness import check_connected
from gentickets.masks.names import as_model, clone, component_at, components_of, named_state, named_weights
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import magnitude
from gentickets.testing.naming import is_named, titled


def check_model(make_model: Any, example_inputs: ExampleInputs | None = None, **given: Any) -> None:
    """Demands of a function that makes a model what searches need of it; raises `AssertionError` in one sentence.

    `make_model`: a function that makes a module, or a dict of the modules that are its components; a name of the
    catalogue, `my.py:name`, or `{name: …}` with options. `given` are its arguments, such as `size=8, channels=1`.
    `example_inputs`: component → what it takes; without it the components are not run.

    - every call makes a new model, with weights drawn from torch's global generator: others at each call, the same
      from the same seed, and the generator is not seeded;
    - it has weights that can be pruned, all finite; it can be copied; a ticket of it is whole after it was written and
      read, and fits another model that it makes;
    - held to masks it stays sparse, whatever an optimiser does;
    - components run on their examples, give finite numbers, the same each time in evaluation mode, leave weights and
      global generators alone, and have a path from input to output.
    """
    name = titled(make_model)
    make = _maker(make_model, given)
    state = torch.get_rng_state()
    try:
        _check_draws(name, make)
        model = _made(name, make, 0)
        masks = _check_pruned(name, model)
        _check_ticket(name, Ticket(masks, model, {"model": name}), _made(name, make, 1))
        _check_held(name, _copied(name, model), masks)
        if example_inputs is not None:
            _check_runs(name, model, example_inputs)
            _copied(name, model)  # with what passes leave in it
    finally:
        torch.set_rng_state(state)


def _maker(said: Any, given: Mapping[str, Any]) -> Callable[[], Any]:
    """What makes the model, told its arguments; of a size and channels it is told what it has an argument for."""
    named = Named.of("model", said) if is_named(said) else None
    make = said if named is None else named.load()
    demand(callable(make), f"make_model is a function that makes a model, as lambda: GAN(); not {type(make).__name__}")
    takes = inspect.signature(make).parameters
    told = {key: value for key, value in given.items() if key in takes or key not in ("size", "channels")}
    return functools.partial(make, **told, **(named.options if named is not None else {}))


def _made(name: str, make: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return _as_model(name, make())


def _as_model(name: str, made: Any) -> nn.Module:
    try:
        return as_model(made)
    except GenticketsError as error:
        raise AssertionError(f"{name} makes no model: {error}") from None


def _check_draws(name: str, make: Any) -> None:
    torch.manual_seed(0)
    one, between = make(), torch.initial_seed()
    other = make()
    first, second = (copies(named_weights(_as_model(name, made))) for made in (one, other))
    demand(between == 0 == torch.initial_seed(), f"{name} seeds torch's generator: who calls it does that")
    demand(one is not other, f"{name} gives the model that it had given before: make a new one at each call")
    demand(first, f"{name} makes a model without a weight")
    demand(first.keys() == second.keys(), f"{name} makes models of other layers from call to call")
    demand(
        changed(first, second) is not None,
        f"{name} draws the same weights at every call: it seeds itself, and a re-drawn control would be the ticket",
    )
    again = changed(first, copies(named_weights(_made(name, make, 0))))
    demand(again is None, f"{name} drew {again!r} otherwise from the same seed: draw from torch's global generator")
    bad = next((weight for weight, tensor in first.items() if not bool(tensor.isfinite().all())), None)
    demand(bad is None, f"{name} makes a model in which {bad!r} is not finite")


def _check_pruned(name: str, model: nn.Module) -> Masks:
    try:
        dense = Masks.dense(model)
        return prune(magnitude(model), fraction=0.5, within=dense)
    except GenticketsError as error:
        raise AssertionError(f"{name} makes a model that cannot be pruned: {error}") from None


def _check_ticket(name: str, ticket: Ticket, other: nn.Module) -> None:
    try:
        ticket.install(other)
    except GenticketsError as error:
        raise AssertionError(f"a ticket of {name} does not fit the next model that it makes: {error}") from None
    expected = {n: w * ticket.masks[n] if n in ticket.masks else w for n, w in ticket.weights.items()}
    found = {n: t for n, t in copies(named_state(other)).items() if n in expected}
    wrong = changed(expected, found)
    demand(wrong is None, f"a ticket of {name} does not bring {wrong!r} back: is it computed from something else?")


def _copied(name: str, model: nn.Module) -> nn.Module:
    try:
        return clone(model)
    except GenticketsError as error:
        raise AssertionError(f"{name} makes a model that is not to be copied: {error}") from None


def _check_held(name: str, model: nn.Module, masks: Masks) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with masks.hold(model, optimizer):
            for weight in named_weights(model).values():
                weight.grad = torch.ones_like(weight)
            optimizer.step()
    except GenticketsError as error:
        raise AssertionError(f"{name} makes a model that cannot be held to masks: {error}") from None


def _check_runs(name: str, model: nn.Module, example_inputs: ExampleInputs) -> None:
    try:
        examples = examples_of(model, example_inputs)
    except GenticketsError as error:
        raise AssertionError(f"the example inputs do not fit {name}: {error}") from None
    left = [part for part in components_of(model) if part not in examples] if "" not in examples else []
    demand(not left, f"there is no example input for component {left[0] if left else None!r} of {name}")
    model.eval()
    for part, example in examples.items():
        where = f"component {part!r} of {name}" if part else name
        try:
            with left_alone(where, model), torch.no_grad():
                first, again = (dict(named_tensors(example(component_at(model, part)))) for _ in range(2))
        except (GenticketsError, RuntimeError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())[:150]
            raise AssertionError(f"{where} does not take its example input: {type(error).__name__}: {said}") from None
        demand(first, f"{where} gives no tensor")
        for key, tensor in first.items():
            demand(bool(tensor.isfinite().all()), f"{where} gives numbers that are not finite")
            same = key in again and equal(tensor, again[key])
            demand(same, f"{where} gives something else each time in evaluation mode: draw chance outside of it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            check_connected(model, Masks.dense(model), example_inputs)
    except (GenticketsError, UserWarning) as error:
        raise AssertionError(
            f"{name} has no path from its input to its output that could be checked: {error}"
        ) from None

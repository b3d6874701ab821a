"""The third control: a dense net with as many parameters as the ticket has alive, trained from scratch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gentickets.catalogue import Named, is_code, running
from gentickets.channels.small import Architecture
from gentickets.errors import GenticketsError
from gentickets.lab.recipe import Recipe, parsed
from gentickets.lab.recipe.owned import REQUIRED, owner
from gentickets.lab.results.reading import Run
from gentickets.lab.results.summary import control_levels

PREFIX = "small-dense-"

NEAR = 0.05
"""One small dense net serves all tickets whose live parameters are within this share of each other."""


def small_dense_recipes(base: Recipe, runs: Sequence[Run]) -> dict[str, Recipe]:
    """Folder name → the recipe of a small dense net, for each size of ticket at the runs' control levels.

    Each is `base` with its model made narrower, and nothing pruned. A model that has no width to change has none.
    """
    recipes = {}
    for alive in sizes(runs):
        found = same_size(base.model.named, tuple(runs[0].origin["data"]["shape"]), alive)
        if found is not None:
            model, parameters = found
            label = f"{PREFIX}{parameters}"
            recipes[label] = _recipe(base, label, model, f"small dense net, {parameters:,} parameters")
    return recipes


def _recipe(base: Recipe, label: str, model: Named, title: str) -> Recipe:
    raw = base.dump()
    raw |= {"name": label, "title": title, "model": {"name": model.name, **model.options}}
    raw["search"] = {"method": "imp", "rounds": 0}
    return parsed(raw, code_may_run=base.model.code_may_run)


def sizes(runs: Iterable[Run]) -> list[int]:
    """Live parameters of the tickets at the control levels, largest first, those that are near each other once."""
    found: list[int] = []
    for alive in sorted({alive for run in runs for alive in _control_sizes(run)}, reverse=True):
        if not found or alive < (1 - NEAR) * found[-1]:
            found.append(alive)
    return found


def _control_sizes(run: Run) -> Iterator[int]:
    """At each control level, the first seed's count of live parameters."""
    for level in control_levels(run):
        costs = [result.cost for result in run.of("ticket", level) if result.cost]
        if costs:
            yield costs[0].alive_parameters


def same_size(model: Named, shape: tuple[int, ...], parameters: int) -> tuple[Named, int] | None:
    """The narrower model whose parameter count is closest to `parameters`, and its count; None without a width.

    What is narrowed is `hidden` in proportion where it is given, else `width`; found by bisection, the count growing
    with it. `shape`: (channels, height, width) of the images. A tie goes to the smaller.
    """
    if hidden := model.options.get("hidden"):
        full = max(hidden)
        made = [[max(1, round(side * width / full)) for side in hidden] for width in range(1, full + 1)]
        candidates: list[dict[str, Any]] = [{"hidden": sides} for sides in made]
    elif isinstance(full := _width(model), int):
        candidates = [{"width": width} for width in range(1, full + 1)]
    else:
        return None
    tried = [Named(model.kind, model.name, {**model.options, **candidate}) for candidate in candidates]
    counts: dict[int, int | None] = {}

    def count(index: int) -> int | None:
        if index not in counts:
            counts[index] = parameters_of(tried[index], shape)
        return counts[index]

    around = _around(count, len(tried), parameters)
    best = min(around, key=lambda index: (abs((count(index) or 0) - parameters), index), default=None)
    return None if best is None else (tried[best], count(best) or 0)


def _around(count: Callable[[int], int | None], candidates: int, target: int) -> list[int]:
    """The last candidate below the target and the first that is not; those that cannot be built (None) are passed."""

    def built(index: int, step: int) -> int | None:
        while 0 <= index < candidates:
            if count(index) is not None:
                return index
            index += step
        return None

    low, high = 0, candidates  # the first that reaches the target is in [low, high]
    while low < high:
        middle = (low + high) // 2
        at = built(middle, 1)
        if at is None or (count(at) or 0) >= target:
            high = middle
        else:
            low = at + 1
    found = (built(low - 1, -1), built(low, 1))
    return [index for index in found if index is not None]


def _width(model: Named) -> Any:
    """The model's option `width`; None where it has none, or none is said of one that needs it."""
    if "width" in model.options:
        return model.options["width"]
    option = owner(model.kind, model.name).options.get("width")
    return None if option is None or option.default is REQUIRED else option.default


def parameters_of(model: Named, shape: tuple[int, ...]) -> int | None:
    """How many parameters the model has for images of this shape; None where it cannot be built."""
    channels, height, _ = shape
    make = model.load() if is_code(model.name) else None
    try:
        with running(model.name):
            made = Architecture(model.name, height, channels, model.options, make).skeleton()
    except (ValueError, GenticketsError):
        return None
    return sum(parameter.numel() for parameter in made.parameters())

"""Whether a training runs on live weights alone: where layers are faster so, and its losses ask for nothing more.

`accelerate` sees to it that components give the same with sparse layers. An objective may ask more of a model than what
its components give: a penalty over the weights of linear layers, or over what has two axes, or is called `weight`; a
bound on them. The live weights of sparse layers have one axis and another name, so that the training would fail, or go
on without the penalty and without a word. So what the losses of a step ask of the weights is computed
with dense layers and with sparse ones, before the first step, on copies, and compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from gentickets.data.batches import Batch
from gentickets.errors import MaskError
from gentickets.evaluating import evaluating
from gentickets.masks.copying import copied
from gentickets.masks.names import unwrap
from gentickets.masks.value import Masks
from gentickets.objectives.base import Objective
from gentickets.sparse import Accelerated, accelerate, restore
from gentickets.training.asked import asked, unlike
from gentickets.training.ranks import Ranks
from gentickets.training.seeds import derived_seed

_told: set[str] = set()
"""What was said in this process: a search trains many times."""


@contextmanager
def on_live_weights(
    model: nn.Module,
    objective: Objective,
    batch_at: Callable[[int], Batch],
    steps: range,
    seed: int,
    masks: Masks | None,
    fabric: Fabric,
    ranks: Ranks,
) -> Iterator[Accelerated | None]:
    """The model accelerated while this lasts; None where it stays as it is, on all ranks or none.

    It stays so, with a warning, where the objective asks something else of the weights of sparse layers. That follows
    from what the training was begun with, so that one that is resumed runs as it did before.
    """
    wrapped = any(unwrap(module) is not module for module in model.modules())
    plain = fabric.device.type == "cpu" and isinstance(fabric.autocast(), nullcontext)
    able = masks and plain and not wrapped
    mine = ranks.share(batch_at(steps.start), objective.batches_per_step) if able else None
    examples = None if mine is None else _examples(model, objective, mine)
    if masks is None or mine is None or examples is None:
        yield None
        return
    with accelerate(model, masks, examples) as fast:
        agreed = ranks.alike([choice.sparse for choice in fast.choices])
        if agreed and fast:
            reason = _differs(fast, masks, objective, mine, steps, seed)
            (differs,) = ranks.any(reason is not None)
            agreed = not differs
            reason = "on another device" if differs and reason is None else reason
            if reason and (said := _said(objective, reason)) not in _told:
                _told.add(said)
                warnings.warn(said, stacklevel=4)
        if agreed:
            yield fast
    if not agreed:
        yield None


def _said(objective: Objective, reason: str) -> str:
    return (
        f"{type(objective).__name__} asks something else of sparse layers than of dense ones ({reason}): "
        f"it is trained with dense ones; training.execution=dense (Settings(execution='dense')) asks for no others"
    )


def _examples(model: nn.Module, objective: Objective, batch: Batch) -> dict[str, Any] | None:
    """Inputs for the components, a whole batch each; None where the objective does not say what they take."""
    try:
        with evaluating(model):
            return objective.example_inputs(model, batch[: len(batch) // objective.batches_per_step])
    except NotImplementedError:
        return None


def _differs(
    fast: Accelerated, masks: Masks, objective: Objective, batch: Batch, steps: range, seed: int
) -> str | None:
    """How what the losses ask is another with sparse layers, in words: no word where they fail with dense ones too, as
    the first step will tell. At the first step, and at the last one of an objective that is another there."""
    first, last = steps.start, max(steps.start, steps.stop - 1)
    for step in (first,) if objective.at(first) is objective.at(last) else (first, last):
        try:
            dense, sparse = _copies(fast.model, objective), _copies(fast.model, objective)
        except MaskError as error:
            return f"it cannot be tried: {error}"
        restore(dense[0])
        try:
            expected = asked(*dense, batch, step, derived_seed(seed, step), fast.choices, masks)
        except Exception:  # whatever an objective raises
            return ""
        try:
            found = asked(*sparse, fast.laid_out(batch), step, derived_seed(seed, step), fast.choices, masks)
        except MaskError as error:  # without its mend, which is one for loops of one's own
            return f"it fails: {str(error).partition(': ')[0]}"
        except Exception as error:
            return f"it fails: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if (reason := unlike(expected, found)) is not None:
            return reason
    return None


def _copies(model: nn.Module, objective: Objective) -> tuple[nn.Module, Objective]:
    """Both, copied together: what a loss leaves in either is not to stay, and what an objective has of the model it has
    of the copy."""
    both: Any = nn.Module()
    both.model, both.objective = model, objective
    made: Any = copied(both)
    return made.model, made.objective

"""Whether an objective computes on several ranks what it does in one process: tried, on few images, and compared.

Nothing is asked of objectives and models but that one process can train them. So this is no rule that they may break
unnoticed: whatever looks across the images of a batch (statistics, distances, sums where a mean belongs, a permutation)
gives other gradients or other running statistics here, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentickets.data.batches import Batch
from gentickets.errors import GenticketsError
from gentickets.masks.names import as_names
from gentickets.objectives.base import Objective, unfrozen
from gentickets.training.ranks import Together, joined
from gentickets.training.whole_batch import Draw, WholeDraws, whole_batch

_FEW = 2
"""Images of each rank and each batch of a step; where these differ, all are tried: few may lie on a kink by chance."""

_NEAR, _FLOOR = 1e-2, 1e-4
"""How far a gradient may be off, of its own size and of that of the largest: rounding is far below both."""


@dataclass
class _Computed:
    """What one way of computing the losses gave: gradients by loss and component, and the model's buffers after it."""

    gradients: list[tuple[str, list[Tensor]]]
    buffers: dict[str, Tensor]


def check_tried(
    ranks: Together,
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    parameters: Mapping[str, Sequence[nn.Parameter]],
    seed: int,
    made: Sequence[Draw],
) -> None:
    """Computes the losses of a step by one process and by all ranks, without stepping, and leaves the model as it was.

    `batch`: the whole one; `made`: the draws that this rank made in that step. Raises `GenticketsError`, on every rank,
    where the two differ, or the draws were shared out by another axis than the one along which the batch lies.
    """
    parts, each = objective.batches_per_step, len(batch) // objective.batches_per_step // ranks.size
    reason = None
    for count in dict.fromkeys((min(_FEW, each), each)):
        few = joined([part[: count * ranks.size] for part in batch.chunk(parts)])
        reason = _differs(ranks, model, objective, few, parameters, seed, made)
        (differs,) = ranks.any(reason is not None)
        if not differs:
            return
    found = [said for said in ranks.all(reason) if said is not None]
    raise GenticketsError(
        f"{type(objective).__name__} on {ranks.size} devices computes something else than on one: {found[0]}; "
        f"a loss is to be a mean over images, each drawn for by itself, or else trained on one device"
    )


def _differs(
    ranks: Together,
    model: nn.Module,
    objective: Objective,
    few: Batch,
    parameters: Mapping[str, Sequence[nn.Parameter]],
    seed: int,
    made: Sequence[Draw],
) -> str | None:
    drawn: list[Draw] = []
    with WholeDraws(lambda *_: None, 0, 1, drawn):
        one = _computed(model, objective, few, parameters, seed)
    axes, noted = _Axes(drawn, ranks.size), list[Draw]()
    mine = ranks.share(few, objective.batches_per_step)
    with whole_batch(ranks, axes, noted):
        found = _computed(model, objective, mine, parameters, seed)
    for _, grads in found.gradients:
        for grad in grads:
            ranks.sum_(grad).div_(ranks.size)
    return axes.odd or _unlike_draws(made, noted, len(drawn)) or _unlike(one, found)


class _Axes:
    """Which axis of each draw grows with the batch, by the shapes that one process drew. `odd`: one that has none."""

    def __init__(self, whole: Sequence[Draw], size: int):
        self._whole, self._size = whole, size
        self.odd: str | None = None

    def __call__(self, number: int, operation: str, shape: tuple[int, ...]) -> int | None:
        wanted = self._whole[number].shape if number < len(self._whole) else ()
        grown = [place for place, (mine, all_) in enumerate(zip(shape, wanted, strict=False)) if mine != all_]
        if len(shape) == len(wanted) and not grown:
            return None
        if len(shape) == len(wanted) and len(grown) == 1 and wanted[grown[0]] == shape[grown[0]] * self._size:
            return grown[0]
        self.odd = self.odd or f"it draws {operation} of the shape {shape}, and one process draws {wanted}"
        return None


def _unlike_draws(made: Sequence[Draw], tried: Sequence[Draw], count: int) -> str | None:
    """Whether a step's draws were shared out by another axis than those that were tried."""
    if not len(made) == len(tried) == count:
        return f"{len(made)} draws in a step, {len(tried)} where it was tried, {count} in one process"
    for mine, other in zip(made, tried, strict=True):
        if mine.axis != other.axis or mine.operation != other.operation:
            return (
                f"it cannot be told which side of a draw of the shape {mine.shape} is the batch "
                f"(take another training batch_size)"
            )
    return None


def _unlike(one: _Computed, found: _Computed) -> str | None:
    """How what all ranks computed differs from what one process did, in words."""
    if [name for name, _ in one.gradients] != [name for name, _ in found.gradients]:
        return "other losses are computed"
    for (name, expected), (_, got) in zip(one.gradients, found.gradients, strict=True):
        largest = max((_size(grad) for grad in expected), default=0.0)
        for wanted, grad in zip(expected, got, strict=True):
            off = _size(grad - wanted)
            if off > _NEAR * _size(wanted) + _FLOOR * largest:
                return f"a gradient of {name} differs by {off / max(_size(wanted), 1e-30):.1%}"
    for name, wanted in one.buffers.items():
        got_ = found.buffers[name]
        if _size(got_.double() - wanted.double()) > _NEAR * _size(wanted) + 1e-6:
            return f"the running statistics {name} differ"
    return None


def _size(tensor: Tensor) -> float:
    """The root of the mean square of the numbers that are finite."""
    finite = tensor.double().nan_to_num(0, 0, 0)
    return float(finite.square().mean().sqrt()) if finite.numel() else 0.0


def _computed(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    parameters: Mapping[str, Sequence[nn.Parameter]],
    seed: int,
) -> _Computed:
    gradients = []
    with _left_as_it_was(model):
        torch.manual_seed(seed)
        rng = torch.Generator(batch.device).manual_seed(seed)
        for components, loss in objective.losses(model, batch, rng):
            names = as_names(components)
            trained = [parameter for of in unfrozen(parameters, names).values() for parameter in of]
            grads = torch.autograd.grad(loss, trained, allow_unused=True)
            kept = [torch.zeros_like(p) if g is None else g.clone() for p, g in zip(trained, grads, strict=True)]
            gradients.append(("+".join(names), kept))
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return _Computed(gradients, buffers)


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Weights, buffers and torch's generators are as before on leaving."""
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    devices = {tensor.device.index for tensor in tensors if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield
    with torch.no_grad():
        for tensor, kept in zip(tensors, before, strict=True):
            if not torch.equal(tensor, kept):
                tensor.copy_(kept)

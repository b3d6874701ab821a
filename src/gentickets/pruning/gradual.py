"""Pruning in steps without training, for criteria that mislead once much is gone."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real

import torch

from gentickets.errors import PruneError
from gentickets.masks.names import Model, as_model, clone, component_of
from gentickets.masks.value import Masks
from gentickets.options import Scope
from gentickets.pruning.prune import prune
from gentickets.pruning.scores import Criterion, scored

NOTHING_TO_CHOOSE_BY = (
    "every weight scores 0, which is nothing to choose by: does a component end in a layer of zeros? let it begin with "
    "others (unet: zero_output=False), or score by magnitude"
)


def prune_gradually(
    model: Model,
    criterion: Criterion,
    to_sparsity: float,
    *,
    iterations: int,
    within: Masks | None = None,
    scope: Scope = "global",
) -> Masks:
    """Prunes in steps without training: score the masked model, prune some, and so on. The model stays as it was.

    The density falls exponentially: after step k of n it is d^(k/n), d being the last one (Tanaka et al. 2020,
    Algorithm 1), or from the density of `within` (of its sparsest competing group) to d. Nothing is revived; what is
    left is exactly as many as `prune(to_sparsity=...)` leaves. One step is `prune` itself.

    Raises `PruneError` for fewer than one step, where every weight scores 0 at the first, and as `prune` does.
    """
    if not isinstance(iterations, int) or iterations < 1:
        raise PruneError(f"iterations={iterations!r}: a whole number, 1 or more")
    if isinstance(to_sparsity, bool) or not isinstance(to_sparsity, Real):
        raise PruneError(f"to_sparsity={to_sparsity!r} is no number: a share from 0 to 1")
    to_sparsity = float(to_sparsity)
    model = as_model(model)
    masks = Masks.dense(model) if within is None else within
    start: float | None = None
    copy = clone(model)  # one for all steps: what is dead stays dead
    for step in range(1, iterations + 1):
        scores = scored(criterion, masks.apply_(copy), masks)
        if step == 1 and not any(bool(scores[name].any()) for name in scores):
            raise PruneError(NOTHING_TO_CHOOSE_BY)
        start = _sparsest(masks, scores, scope) if start is None else start
        amount = to_sparsity
        if step < iterations and start < to_sparsity < 1:
            density = (1 - start) ** (1 - step / iterations) * (1 - to_sparsity) ** (step / iterations)
            amount = 1 - density
        masks = prune(scores, to_sparsity=amount, within=masks, scope=scope)
    return masks


def _sparsest(masks: Masks, scored: Iterable[str], scope: Scope) -> float:
    """The sparsity of the sparsest group of weights that `scope` compares."""
    counts, groups = masks.counts(), dict[str, list[str]]()
    for name in (name for name in scored if name in masks):
        group = component_of(name) if scope == "component" else name if scope == "layer" else ""
        groups.setdefault(group, []).append(name)
    shares = [0.0]
    for names in groups.values():
        total = sum(torch.Size(masks.shapes[name]).numel() for name in names)
        shares.append((total - sum(counts[name] for name in names)) / max(1, total))
    return max(shares)

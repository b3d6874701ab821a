"""Criteria: pure functions from a model to scores of the same shape as its weights. Higher means: keep.

A criterion reads a model and leaves it as it was. What becomes of the scores (how many go, compared with
which others, within what is still alive) is `gentickets.pruning`'s to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from gentickets.naming import prunable_weights

Scores = dict[str, Tensor]
"""Parameter name → float scores of the parameter's shape, on the parameter's device."""

Criterion = Callable[[nn.Module], Scores]


@torch.no_grad()
def magnitude(
    model: nn.Module,
    components: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> Scores:
    """The absolute value of each prunable weight (Han et al. 2015; the criterion of Kalibhat et al. 2021).

    `components`, `include` and `exclude` choose the weights as in `prunable_weights`.
    """
    chosen = prunable_weights(model, components, include, exclude)
    return {name: weight.detach().abs() for name, weight in chosen.items()}


@torch.no_grad()
def random_scores(
    model: nn.Module,
    seed: int,
    components: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> Scores:
    """Independent uniform scores in [0, 1): the criterion that knows nothing. Equal seeds, equal scores.

    Float64, so that two equal scores are as good as impossible; drawn on the CPU, so that the device does
    not change them.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = prunable_weights(model, components, include, exclude)
    return {
        name: torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
        for name, weight in chosen.items()
    }

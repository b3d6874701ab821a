"""The arguments that searches share, said once: each takes those of one of these types as keywords."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from gentickets.masks.examples import ExampleInputs
from gentickets.options import Others, Retrain, Scope
from gentickets.pruning.scores import Criterion


class Shared(TypedDict, total=False):
    """`example_inputs`: component → an input, by which each mask is checked for a live path before it is trained.
    `origin`: goes into every ticket. `progress`: tells of each training on stderr."""

    example_inputs: ExampleInputs | None
    origin: Mapping[str, Any] | None
    progress: bool


class Choosing(Shared, total=False):
    """`scope`: among which weights scores are compared ("global"). `components`, `include`, `exclude`: what is pruned,
    by default convolutions and linear layers of all components."""

    scope: Scope
    components: Iterable[str] | None
    include: Iterable[str] | None
    exclude: Iterable[str]


class Rewinding(Shared, total=False):
    """`others`: what the components that are not pruned start each round from ("rewind"). `retrain`: whether weights,
    the learning rate, or nothing goes back ("rewind")."""

    others: Others
    retrain: Retrain


class Pruning(Choosing, Rewinding, total=False):
    """`criterion`: by what weights are compared (magnitude)."""

    criterion: Criterion | None


class AtInitArguments(Choosing, total=False):
    """`with_dense`: whether the dense model is trained too (True)."""

    with_dense: bool


class Carrying(Rewinding, total=False):
    """`with_weights`: whether weights travel, or masks alone (False). `exclude`: whose masks stay behind."""

    with_weights: bool
    exclude: Iterable[str]

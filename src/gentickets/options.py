"""The types of options, in calls and in recipes: a number with its bounds, a name of several; known without torch.

A recipe's keys are the fields or arguments of what it names, and these types are what they may be: what is written here
is what is refused, listed and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Le, Len, Lt

from gentickets.errors import PruneError

MOST = 10**12
"""The largest whole number that is taken, in a recipe or by a command."""

Share = Annotated[float, Gt(0), Lt(1)]
"""A share of something, neither nothing nor all of it."""
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(1)]
Steps = Annotated[int, Ge(0)]
Tickets = Annotated[int, Ge(0), Le(10**4)]

Control = Literal["random_mask", "redrawn_weights"]
"""What a ticket is compared with: its mask shuffled within each layer, and its mask kept over weights drawn anew."""
CONTROLS: tuple[Control, ...] = get_args(Control)


@dataclass(frozen=True)
class Means:
    """In a type: what an option of it means, where nothing is written below the option."""

    words: str


@dataclass(frozen=True)
class Names:
    """In a type: that the option names something of the catalogue, of this kind, with options of its own."""

    kind: str


AtLeast = Annotated[int, Ge(1), Le(10**7)] | Share
"""Of each layer so many channels, or a share of them."""
Sizes = Count | list[Count]
"""The most that a network may have: of one, or of several."""

Width = Annotated[
    int, Ge(1), Le(10**7), Means("Units or channels of the first layers, which later ones are multiples of.")
]
Depth = Annotated[int, Ge(1), Le(1000), Means("How many layers or stages.")]
Latent = Annotated[int, Ge(1), Le(10**9), Means("Numbers in the code of an image.")]
Hidden = Annotated[
    list[Annotated[int, Ge(1), Le(10**7)]],
    Len(0, 1000),
    Means("Units of each hidden layer of a linear autoencoder's encoder, in place of width and depth."),
]
ScoreBatches = Annotated[int, Ge(1), Le(10**6), Means("On how many batches it scores.")]
Blocks = Annotated[int, Ge(1), Le(1000), Means("Residual blocks a stage.")]
Groups = Annotated[int, Ge(1), Le(10**6), Means("In how many groups channels are normed, at most.")]
ZeroOutput = Annotated[
    bool, Means("Whether the last layer begins at 0, which criteria that ask gradients before training cannot bear.")
]
CodeChannels = Annotated[int, Ge(1), Le(10**4), Means("Channels of the map that is the code of an image.")]
Classes = Annotated[int, Ge(2), Le(10**6), Means("How many classes it is told by; null: it is told none.")]
CriticNorm = Annotated[bool, Means("Whether the discriminator has norms; a gradient penalty wants none.")]

Criterion = Annotated[str | dict[str, Any], Names("criterion")]
"""What scores are: a criterion's name, or `{name: …}` with its options."""
Around = Annotated[str | dict[str, Any], Names("around")]
"""An objective around another: its name, or `{name: …}` with its options."""

Scope = Literal["global", "component", "layer", "erk"]
"""Among which weights pruning compares: all, those of a component, those of a layer; `erk` gives each layer a share
of its own, by its sides."""

Granularity = Literal["weight", "channel"]
"""What is pruned: single weights, or whole channels."""

Schedule = Literal["constant", "cosine", "linear"]
"""How the learning rate goes on after its warm-up."""

Execution = Literal["auto", "dense"]
"""How masked layers are trained: on their live weights alone where that is faster, or dense."""

Others = Literal["rewind", "initial", "trained", "fresh"]
"""What a component that is not pruned starts each round from: its weights at the rewind step, its initial ones,
those it was trained to in the round before, or newly drawn ones."""

Retrain = Literal["rewind", "learning-rate", "fine-tune"]
"""What a pruned network is trained again from (Renda et al. 2020): its weights and its step go back to the rewind
step; its weights stay and the learning rate goes back; its weights stay and training goes on at the last rate."""

Rule = Literal["chance", "hamming"]
"""How the distance of two masks is measured: as a share of that of independent masks of the same layer densities, or
as the share of all weights or channels on which they differ (the paper's)."""

TOLERANCES: Mapping[Rule, float] = MappingProxyType({"chance": 0.2, "hamming": 0.1})
"""Rule → the tolerance where none is said. At half of the channels, where chance is 0.5, the two are the same."""


def check_tolerance(tolerance: float, rule: Rule, sparsity: float) -> None:
    """Raises `PruneError` for a tolerance that is no distance, or that independent masks of `sparsity` would meet."""
    number: object = tolerance  # whatever a caller makes of it
    if not isinstance(number, Real) or not 0 < float(number) <= 1:
        raise PruneError(f"tolerance={tolerance!r} is out of range: above 0, at most 1")
    if rule == "chance" and tolerance == 1:
        raise PruneError("tolerance=1: by rule=chance independent masks are 1 apart; take one well below")
    chance = 2 * sparsity * (1 - sparsity)
    if rule == "hamming" and tolerance >= chance:
        raise PruneError(
            f"tolerance={tolerance}: by rule=hamming any two masks would settle, as independent ones of sparsity "
            f"{sparsity:.4g} differ by {chance:.3g}; take rule=chance, or a tolerance well below"
        )

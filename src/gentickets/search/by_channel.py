"""How far methods that take out whole channels go: a share of them, or a network of at most so many parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gentickets.options import AtLeast, Sizes
from gentickets.search.method import Ladder


@dataclass(frozen=True)
class ByChannel(Ladder):
    """Methods that may take out whole channels. `amount` is what `prune` is asked for."""

    at_least: AtLeast | None = None
    """The channels that every layer keeps, or the share of its own; null: one."""
    parameters: Sizes | None = None
    """In place of fraction: the most parameters that the components may have of which channels are pruned, for each
    round."""
    flops: Sizes | None = None
    """In place of fraction: the most FLOPs of one example forward likewise, for each round."""

    def __post_init__(self) -> None:
        if self.parameters is not None and self.flops is not None:
            raise ValueError("parameters and flops are both said: take one of them")
        for key in ("parameters", "flops"):
            said = getattr(self, key)
            if said is not None and len(_each(said)) < self.rounds:
                raise ValueError(f"{key}={said} is for {len(_each(said))} of rounds={self.rounds}: say one for each")

    @property
    def by_size(self) -> bool:
        """Whether a size is asked for, rather than a share."""
        return self.parameters is not None or self.flops is not None

    def amount(self, level: int) -> dict[str, Any]:
        """What `prune` is asked for at a level."""
        bound = {} if self.at_least is None else {"at_least": self.at_least}
        if self.parameters is not None:
            return {"parameters": _each(self.parameters)[level - 1], **bound}
        if self.flops is not None:
            return {"flops": _each(self.flops)[level - 1], **bound}
        return {"fraction": self.sparsity_at(level), **bound}


def _each(said: Sizes) -> list[int]:
    return [said] if isinstance(said, int) else list(said)

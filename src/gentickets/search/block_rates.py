"""Blocks pruned at rates of their own: by how far two tickets of one network agree there, beside chance (after Jiang
et al. 2023, "Successfully applying lottery ticket hypothesis to diffusion model"; none is published there: the rule is
ours)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from gentickets.data.batches import Batch
from gentickets.errors import GenticketsError, PruneError
from gentickets.files import read_file, replace_file
from gentickets.masks.chance import overlap
from gentickets.masks.names import as_model
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks
from gentickets.objectives.around import Around
from gentickets.objectives.base import Loss
from gentickets.pruning.prune import Scope, prune
from gentickets.pruning.scores import Scores, scored
from gentickets.sealed import sealed_json, unsealed_json
from gentickets.search.levels import Level, Rounds
from gentickets.search.method import Rewound, Work

RATES = "block-rates.json"
"""Block → its rate and what that rests on, in a level's folder."""

SECOND, FOUND = "second.safetensors", "found.json"
"""The second network as trained, and what that took, in the folder of level 1."""


@dataclass(frozen=True)
class BlockRate:
    """A block of a network and two tickets of it. `density`: the mean share that is alive in the two; `jaccard`: the
    share of what is alive in either that is in both, `chance`: the same of independent tickets of these layer
    densities; `kept`: the share that the block is to keep."""

    weights: int
    density: float
    jaccard: float
    chance: float
    kept: float

    @property
    def ratio(self) -> float:
        """How much more than chance the two agree; 1 where nothing is alive, or everything is, and they must."""
        return self.jaccard / self.chance if self.chance else 1.0

    def asked(self, strength: float) -> float:
        """What it is to keep, up to a factor for all: at least a weight; of no overlap too there is a power."""
        least = 1 / self.weights
        return max(least, self.density * max(self.ratio, least) ** strength)


def block_of(name: str) -> str:
    """The block that a weight is in: its name up to the first number in it, or else to its component's child.

    `denoiser.down.0.blocks.0.conv1.weight` is in `denoiser.down.0`, `denoiser.stem.weight` in `denoiser.stem`.
    """
    parts = name.split(".")[:-1]
    numbered = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[: 2 if numbered is None else numbered + 1])


def block_rates(one: Masks, other: Masks, sparsity: float, strength: float = 1.0) -> dict[str, BlockRate]:
    """Block → what of it is kept, so that `sparsity` of all is pruned: in proportion to its density in the two tickets
    times the ratio of their overlap to chance to the power of `strength`, and nowhere more than all.

    Above 0 blocks keep more where the tickets agree, below 0 less; 0: the densities alone. Raises `PruneError` for a
    sparsity out of range, `MaskError` for masks of other weights.
    """
    if not 0 < sparsity < 1:
        raise PruneError(f"sparsity={sparsity} is out of range: between 0 and 1")
    one.check_same(other)
    blocks: dict[str, list[str]] = {}
    for name in one:
        blocks.setdefault(block_of(name), []).append(name)
    found = {block: _agreement(one, other, names) for block, names in blocks.items()}
    asked = {block: rate.asked(strength) for block, rate in found.items()}
    kept = _within_budget(asked, {block: rate.weights for block, rate in found.items()}, 1 - sparsity)
    return {block: BlockRate(**{**asdict(rate), "kept": kept[block]}) for block, rate in found.items()}


def _agreement(one: Masks, other: Masks, names: list[str]) -> BlockRate:
    mine, theirs = (Masks({name: masks[name] for name in names}) for masks in (one, other))
    both = overlap(mine, theirs)
    agree = (both.jaccard, both.chance_jaccard) if mine.alive + theirs.alive else (0.0, 0.0)
    return BlockRate(mine.total, (mine.density + theirs.density) / 2, *agree, kept=0.0)


def _within_budget(asked: Mapping[str, float], weights: Mapping[str, int], density: float) -> dict[str, float]:
    """Shares in proportion to what is asked, none above 1, that keep `density` of all weights."""
    budget, open_, kept = density * sum(weights.values()), dict(asked), dict[str, float]()
    while open_:
        scale = max(0.0, budget) / sum(weights[block] * share for block, share in open_.items())
        full = [block for block, share in open_.items() if share * scale >= 1]
        if not full:
            return kept | {block: share * scale for block, share in open_.items()}
        for block in full:
            kept[block] = 1.0
            budget -= weights[block]
            del open_[block]
    return kept


@dataclass(frozen=True)
class BlockRates(Rewound):
    """One-shot pruning of each block at a rate of its own, by the overlap of two tickets beside chance.

    The second ticket is that of a network trained as long as the dense one, from the same weights on other draws of
    images and noise, or from other weights. Its training is counted as a search for masks. Where the two overlap no
    more than chance would, there is no rate in it: that is told, and what then is the key `no_signal`.
    """

    second: Literal["order", "weights"] = "order"
    """Whether the second network differs in the order of images and its noise alone, or in its first weights too."""
    strength: Annotated[float, Ge(-10), Le(10)] = 1.0
    """The power of the ratio to chance: above 0 blocks keep more where tickets agree, below 0 less; 0: densities."""
    least: Annotated[float, Gt(0), Le(10)] = 1.1
    """The ratio to chance that the overlap of the whole must have to count as a signal."""
    no_signal: Literal["density", "stop"] = "density"
    """Where there is none: prune by the mean densities of the blocks alone and say so, or stop."""

    def search_steps(self, steps: int) -> int:
        return steps

    def levels(self, work: Work, last: int) -> Iterator[Level]:
        return self._levels(work, last, self.shared(work))

    def _levels(self, work: Work, last: int, shared: Rounds) -> Iterator[Level]:
        everything = self.covered(shared.initial)
        if last < 0:
            yield shared.dense(everything)
        for index in range(max(last, 0) + 1, self.rounds + 1):
            dense = work.load(0)
            criterion = work.criterion(self.criterion)
            mine = scored(criterion, dense.model, everything)
            theirs = scored(criterion, self._second(work, index), everything)
            rates, facts = self._rates(mine, theirs, everything, index)
            masks = pruned_by_block(mine, rates, everything, dense.model, self.scope)
            level = shared.retrain(index, masks, dense)
            level.ticket = Ticket(masks, level.ticket.weights, {**level.ticket.origin, "block_rates": facts})
            replace_file(work.folder() / RATES, sealed_json(facts))
            yield level

    def _rates(
        self, mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], everything: Masks, index: int
    ) -> tuple[dict[str, BlockRate], dict[str, Any]]:
        """The rates of a level, and what its ticket tells of them. Raises `GenticketsError` where there is no signal,
        and the recipe says to stop then."""
        sparsity = self.sparsity_at(index)
        one, other = (prune(each, to_sparsity=sparsity, within=everything, scope=self.scope) for each in (mine, theirs))
        both = overlap(one, other)
        ratio = both.jaccard / both.chance_jaccard if both.chance_jaccard else 1.0
        rates = block_rates(one, other, sparsity, self.strength)
        signal = ratio >= self.least
        if not signal:
            ratios = [rate.ratio for rate in rates.values()]
            said = (
                f"level {index}: the two tickets overlap {ratio:.2f} times as much as independent ones of their layer "
                f"densities would (blocks: {min(ratios):.2f} to {max(ratios):.2f}), which search.least={self.least} "
                f"does not count as a signal"
            )
            if self.no_signal == "stop":
                raise GenticketsError(f"{said}: take search.no_signal=density, or another search.second")
            warnings.warn(f"{said}: blocks are pruned by their mean densities alone", stacklevel=2)
            rates = block_rates(one, other, sparsity, 0.0)
        told = {block: {**asdict(rate), "ratio": rate.ratio} for block, rate in rates.items()}
        return rates, {"signal": signal, "ratio": ratio, "second": self.second, "blocks": told}

    # -- the second network -----------------------------------------------------------------------------------

    def _second(self, work: Work, index: int) -> nn.Module:
        """The second network as trained: kept with level 1, or trained now."""
        there = work.folder() if index == 1 else work.place(1)
        if (kept := _kept(there)) is not None:
            work.recall(work.steps, kept[1])
            model = work.initial()
            kept[0].install(model)
            return model
        model = work.initial() if self.second == "order" else as_model(work.make_model())
        masks = self.covered(model)
        before = work.so_far()
        objective, batches = _OtherChance(work.objective), _OtherOrder(work.batches, work.steps)
        work.train(model, masks, 0, work.steps, objective=objective, batches=batches, finding=True)
        if index == 1:
            Ticket(masks, model, dict(work.origin)).save(there / SECOND)
            replace_file(there / FOUND, sealed_json(_since(before, work.so_far())))
        return model


def pruned_by_block(
    scores: Mapping[str, torch.Tensor],
    rates: Mapping[str, BlockRate],
    within: Masks,
    model: nn.Module,
    scope: Scope = "global",
) -> Masks:
    """Each block pruned by itself to what it is to keep, its weights compared within `scope` inside it."""
    masks = within
    for block, rate in rates.items():
        own = Scores({name: score for name, score in scores.items() if block_of(name) == block}, model)
        inside = Masks({name: within[name] for name in own})
        masks = masks.replace(prune(own, to_sparsity=max(0.0, 1 - rate.kept), within=inside, scope=scope))
    return masks


@dataclass(frozen=True)
class _OtherOrder:
    """The batches of the steps after the last: the same images in an order of their own."""

    batches: Any
    steps: int

    def at(self, step: int) -> Batch:
        return self.batches.at(self.steps + step)


@dataclass(frozen=True)
class _OtherChance(Around):
    """The objective with other noise in each step."""

    def losses(self, model: nn.Module, batch: Any, rng: torch.Generator) -> Iterator[Loss]:
        seed = int(torch.randint(2**62, (1,), generator=rng, device=rng.device))
        yield from self.objective.losses(model, batch, torch.Generator(rng.device).manual_seed(seed))


def _since(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What was accounted for between two accounts of one level, as an account that can be recalled in another."""
    prices = {
        kind: {key: value - before[kind][key] for key, value in after[kind].items()}
        for kind in ("find", "train")
        if kind in after
    }
    return {**prices, "validation": None}


def _kept(folder: Path) -> tuple[Ticket, dict[str, Any]] | None:
    """The second network and what it took; what is damaged is trained again, and said."""
    if not (folder / FOUND).exists():
        return None
    try:
        return Ticket.load(folder / SECOND), unsealed_json(read_file(folder / FOUND))
    except (GenticketsError, OSError) as error:
        warnings.warn(f"{folder / FOUND}: {error}: dropped, and trained again", stacklevel=2)
        return None

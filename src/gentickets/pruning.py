"""From scores to masks: how many weights go, and among which others they are compared.

The rounding, everywhere: an amount is read as the decimal number that it prints as, and the number of weights
pruned is rounded down. `prune(scores, fraction=0.2)` of `n` alive weights leaves exactly `n - floor(0.2 n)`
of each group that is compared within (all weights, a component's, a layer's). An amount that is the nearest
float to a ratio k/n prunes k of n: `to_sparsity=other.sparsity` leaves as many as `other` has. Among equal
scores the weight that comes first (in the alphabet of names, then in the flattened tensor) goes first. The one
exception is weight norm, where a filter of zeros is 0 / 0: there a filter keeps its best weight, with a warning.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gentickets.errors import PruneError
from gentickets.groups import ChannelGroups
from gentickets.masks import Masks
from gentickets.naming import component_of
from gentickets.selection import Scored, keep_best

Scope = Literal["global", "component", "layer", "erk"]
Granularity = Literal["weight", "channel"]


def prune(
    scores: Mapping[str, Tensor],
    fraction: float | None = None,
    to_sparsity: float | None = None,
    within: Masks | None = None,
    scope: Scope = "global",
    granularity: Granularity = "weight",
    groups: ChannelGroups | None = None,
    multiple: int = 1,
) -> Masks:
    """Prunes the weights, or the channels, of lowest score.

    Give one amount: `fraction` of the weights still alive (0.2 is a round of the lottery ticket literature),
    or `to_sparsity`, the share of all scored weights that shall be dead afterwards. `within` says what is
    still alive: a weight dead there stays dead, a weight without a score keeps its mask, and a score for a
    weight that `within` does not cover is ignored. Without it everything scored is alive.

    `scope` says which weights compete:

    - `"global"`: all of them;
    - `"component"`: those of a component (first part of the name), the amount being met in each;
    - `"layer"`: those of a tensor, the amount being met in each;
    - `"erk"`: those of a tensor, the amount being met over all: the density of a layer is proportional to
      (sum of the sides) / (product of the sides) of its weight, at most 1 (Erdős–Rényi kernel; Evci et al.
      2020, "Rigging the Lottery", Sec. 3).

    With `granularity="channel"` it is whole output channels that compete and are counted: the score of one is the
    mean over its weights, and all of them go, with its bias or its norm's. A tensor keeps its best channel, with a
    warning, where all would go. Scores from a criterion know where the channels of a weight lie; in a plain
    dictionary they are those of axis 0; of a grouped transposed convolution those of both its axes.

    With `groups` (see `channel_groups`) it is groups of channels that compete and are counted, and every slice of a
    group goes: filters, biases, gains, and the columns of the layers that read the channel, so that `shrink` can take
    the whole group out. A group's score is the plain mean of its makers' channel scores; a group without a score, and
    a score that no group has, play no part. A layer keeps its best group where all would go, and with `multiple=8` as
    many more of its best as make its number of channels divisible by 8, if it has them. `scope="layer"` compares the
    groups of `ChannelGroups.places`.

    Raises `PruneError` for an amount out of range, a sparsity below the present one, or a score that is NaN.
    """
    if groups is not None and granularity != "channel":
        raise PruneError(f"groups are of channels: say granularity='channel', not {granularity!r}")
    if multiple < 1 or (multiple > 1 and groups is None):
        raise PruneError(f"multiple={multiple}: 1 or more, and with groups= (gt.channel_groups) only")
    if granularity == "channel":
        if groups is not None:
            return _prune_groups(scores, groups, fraction, to_sparsity, within, scope, multiple)
        return _prune_channels(scores, fraction, to_sparsity, within, scope)
    if scope not in get_args(Scope):
        raise PruneError(f"scope={scope!r} is none of {', '.join(get_args(Scope))}")
    start = Masks.full({name: score.shape for name, score in scores.items()}) if within is None else within
    scored = _scored(scores, start)

    kept: dict[str, np.ndarray] = {}
    for group in _groups(scored, scope):
        keep = _how_many(group, fraction, to_sparsity)
        if scope == "erk":
            shares = _erk_counts(keep, group)
            for part in group:
                kept |= keep_best([part], shares[part.name])
        else:
            kept |= keep_best(group, keep)
    masks = Masks.from_packed(kept, {name: start.shapes[name] for name in kept})
    return start.merge(_with_directions(masks, scores, start))


def _with_directions(masks: Masks, scores: Mapping[str, Tensor], start: Masks) -> Masks:
    """`masks`, with the best weight back of every slice that weight norm would divide by 0."""
    lengths: Mapping[str, tuple[str, int]] = getattr(scores, "lengths", {})
    for name in [name for name in masks if name in lengths]:
        mask, before, axis = masks[name], start[name], lengths[name][1]
        lost = (_along(before, axis).any(1) & ~_along(mask, axis).any(1)).nonzero().flatten()
        if len(lost):
            best = _along(scores[name].detach().cpu().double().masked_fill(~before, -torch.inf), axis).argmax(1)
            rows = mask.movedim(axis, 0).reshape(mask.shape[axis], -1).clone()
            rows[lost, best[lost]] = True
            shape = mask.movedim(axis, 0).shape
            masks = masks.merge({name: rows.reshape(shape).movedim(0, axis)})
            warnings.warn(
                f"{len(lost)} filters of {name!r} would be 0, which weight norm divides by: each keeps its best weight",
                stacklevel=3,
            )
    return masks


def _prune_groups(
    scores: Mapping[str, Tensor],
    groups: ChannelGroups,
    fraction: float | None,
    to_sparsity: float | None,
    within: Masks | None,
    scope: Scope,
    multiple: int,
) -> Masks:
    """`prune` with one score a group of channels, spread over all its slices."""
    if scope == "erk":
        raise PruneError("scope=erk is of single weights: for channels take global, component or layer")
    score, scored = groups.scores(scores)
    alive = np.ones(len(groups), dtype=bool) if within is None else groups.kept(within)
    places = {place: own for place, numbers in groups.places.items() if len(own := numbers[scored[numbers]])}
    if not places:
        why = (
            f" ({len(groups.whole)} layers stay whole: {groups.reasons()})" if not len(groups) and groups.whole else ""
        )
        raise PruneError(f"no score belongs to a channel of the groups: nothing to prune{why}")
    chosen = prune(
        {place: torch.from_numpy(score[numbers]) for place, numbers in places.items()},
        fraction,
        to_sparsity,
        Masks({place: torch.from_numpy(alive[numbers]) for place, numbers in places.items()}),
        scope,
    )
    kept = alive.copy()
    for place, numbers in places.items():
        kept[numbers] = chosen[place].numpy()
    _keep_one_a_layer(kept, groups, alive, score)
    _round_up(kept, groups, alive, score, multiple)
    masks = groups.masks(kept)
    if within is None:
        return masks
    return within.merge({name: mask & within[name] if name in within else mask for name, mask in masks.items()})


def _keep_one_a_layer(kept: np.ndarray, groups: ChannelGroups, alive: np.ndarray, score: np.ndarray) -> None:
    """Puts back, in `kept`, the best group of each layer that would have none."""
    for layer, numbers in groups.layers.items():
        living = numbers[alive[numbers]]
        if not groups.always[layer] and len(living) and not kept[numbers].any():
            warnings.warn(f"every channel of {layer!r} would go: its best one is kept", stacklevel=4)
            kept[living[score[living].argmax()]] = True


def _round_up(kept: np.ndarray, groups: ChannelGroups, alive: np.ndarray, score: np.ndarray, multiple: int) -> None:
    """Puts back, in `kept`, the best groups of each layer up to the next multiple of channels, as far as it has them.

    Layers that share groups shift each other's counts: again until nothing moves, which only ever adds.
    """
    before = -1
    while before != (before := int(kept.sum())):
        for layer, numbers in groups.layers.items():
            dropped = numbers[alive[numbers] & ~kept[numbers]]
            missing = -(groups.always[layer] + int(kept[numbers].sum())) % multiple
            kept[dropped[np.argsort(-score[dropped], kind="stable")[:missing]]] = True


def _prune_channels(
    scores: Mapping[str, Tensor],
    fraction: float | None,
    to_sparsity: float | None,
    within: Masks | None,
    scope: Scope,
) -> Masks:
    """`prune` with one score a channel, spread again over the weights and what is tied to them."""
    if scope == "erk":
        raise PruneError("scope=erk is of single weights: for channels take global, component or layer")
    axes: Mapping[str, int] = getattr(scores, "channel_axis", {})
    blocks: Mapping[str, int] = getattr(scores, "blocks", {})
    tied: Mapping[str, tuple[str, ...]] = getattr(scores, "tied", {})
    normed: Mapping[str, tuple[str, int]] = getattr(scores, "lengths", {})
    names = [name for name in scores if within is None or name in within]
    if single := [name for name in names if not scores[name].dim()]:
        raise PruneError(f"{single[0]!r} is a single number and has no channels: leave it out of the scores")
    where = {name: (axes.get(name, 0), blocks.get(name, 1)) for name in names}
    per_channel = {name: _along(scores[name].cpu().double(), *where[name]).mean(1) for name in names}
    alive = {}
    for name in names:
        mask = torch.ones(scores[name].shape, dtype=torch.bool) if within is None else within[name]
        if within is not None and name in normed and normed[name][0] in within:
            mask = mask & within[normed[name][0]]
        alive[name] = _along(mask, *where[name]).any(1)
    kept = prune(per_channel, fraction, to_sparsity, Masks(alive), scope)
    spread = {}
    for name in names:
        channels = _never_none(name, kept[name], alive[name], per_channel[name])
        whole = _across(channels, scores[name].shape, *where[name])
        if name in normed:  # a slice of zeros has no direction: it goes by its length
            length, axis = normed[name]
            rows = _along(whole, axis).any(1)
            if where[name] == (axis, 1) or not rows.all():
                spread[length] = rows.reshape([-1 if a == axis else 1 for a in range(whole.dim())])
                whole = whole | ~_across(rows, whole.shape, axis)
        spread[name] = whole & within[name] if within is not None else whole
        spread |= dict.fromkeys(tied.get(name, ()), channels)
    return within.merge(spread) if within is not None else Masks(spread)


def _along(tensor: Tensor, axis: int, blocks: int = 1) -> Tensor:
    """(channels, everything else); of channels in several blocks along axis 0 too, block after block."""
    if blocks == 1:
        return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)
    apart = tensor.reshape(blocks, tensor.shape[0] // blocks, *tensor.shape[1:])
    return apart.movedim(1 + axis, 1).reshape(blocks * tensor.shape[axis], -1)


def _across(channels: Tensor, shape: torch.Size, axis: int, blocks: int = 1) -> Tensor:
    """One value a channel, as a tensor of that shape: what `_along` takes apart."""
    sides = [blocks, shape[0] // blocks, *shape[1:]] if blocks > 1 else list(shape)
    along = [1] * len(sides)
    if blocks > 1:
        along[0], along[1 + axis] = blocks, shape[axis]
    else:
        along[axis] = shape[axis]
    return channels.reshape(along).expand(sides).reshape(shape)


def _never_none(name: str, channels: Tensor, alive: Tensor, scores: Tensor) -> Tensor:
    """`channels`, with the best of those that were alive kept where all would go."""
    if bool(alive.any()) and not bool(channels.any()):
        warnings.warn(f"every channel of {name!r} would go: its best one is kept", stacklevel=4)
        channels = channels.clone()
        channels[int(torch.where(alive, scores.cpu(), -torch.inf).argmax())] = True
    return channels


def random_like(masks: Masks, seed: int) -> Masks:
    """Masks with as many weights alive in each layer as `masks` has, at random places.

    The control for "is it the mask, or only how much each layer keeps?". Equal seeds, equal masks.
    """
    rng = np.random.default_rng(seed)
    shuffled = masks
    for name in sorted(masks):  # equal sets, equal outcome, whatever their order
        mask = masks[name].numpy()
        rng.shuffle(mask.reshape(-1))
        shuffled = shuffled.merge({name: torch.from_numpy(mask)})
    return shuffled


def _scored(scores: Mapping[str, Tensor], start: Masks) -> list[Scored]:
    """What has both a score and a mask, in the alphabetical order of names."""
    counts, found = start.counts(), []
    for name in sorted(name for name in start if name in scores):
        score, shape = scores[name].detach(), start.shapes[name]
        if tuple(score.shape) != shape:
            raise PruneError(f"scores of {name!r} have shape {tuple(score.shape)}, its mask {shape}")
        found.append(Scored(name, shape, score.cpu(), start.packed[name], counts[name]))
    if not found:
        raise PruneError("no score belongs to a weight that the masks cover: nothing to prune")
    return found


def _groups(scored: list[Scored], scope: Scope) -> list[list[Scored]]:
    if scope in ("global", "erk"):
        return [scored]
    groups: dict[str, list[Scored]] = {}
    for part in scored:
        groups.setdefault(part.name if scope == "layer" else component_of(part.name), []).append(part)
    return list(groups.values())


def _how_many(
    group: list[Scored],
    fraction: float | None,
    to_sparsity: float | None,
) -> int:
    """How many weights of a group are kept."""
    now = sum(part.alive for part in group)
    if (fraction is None) == (to_sparsity is None):
        raise PruneError("give one amount: fraction= (of what is alive) or to_sparsity= (of everything)")
    if fraction is not None:
        return now - _floor_of(fraction, now, "fraction")
    assert to_sparsity is not None
    total = sum(part.total for part in group)
    keep = total - _floor_of(to_sparsity, total, "to_sparsity")
    if keep > now:
        raise PruneError(
            f"to_sparsity={to_sparsity} would revive weights: "
            f"{repr(group[0].name) + ' is' if len(group) == 1 else f'{len(group)} tensors are'} "
            f"already at sparsity {(total - now) / total:.4f}"
        )
    return keep


def _floor_of(amount: float, count: int, key: str) -> int:
    """floor(amount * count), the amount taken as the decimal it prints as (0.29 of 100 is 29, not 28)."""
    if not 0.0 <= amount <= 1.0:  # NaN fails too
        raise PruneError(f"{key}={amount} is out of range: a share from 0 to 1")
    amount = float(amount)
    nearest = round(amount * count)
    if count and nearest / count == amount:
        return nearest
    return math.floor(Decimal(repr(amount)) * count)


def _erk_counts(keep: int, group: list[Scored]) -> dict[str, int]:
    """How many weights each layer keeps, `keep` in all, none more than it has alive."""
    shapes = {part.name: part.shape for part in group}
    limit = {part.name: part.alive for part in group}
    # A layer of n weights asks for a count proportional to density * n = sum of the sides of its weight.
    asked = {name: float(sum(shape)) or 1.0 for name, shape in shapes.items()}  # a scalar has no sides
    share: dict[str, float] = {}
    open_, left = list(shapes), float(keep)
    while open_:
        scale = left / sum(asked[name] for name in open_)
        full = [name for name in open_ if asked[name] * scale >= limit[name]]
        if not full:
            share |= {name: asked[name] * scale for name in open_}
            break
        share |= {name: float(limit[name]) for name in full}
        left -= sum(limit[name] for name in full)
        open_ = [name for name in open_ if name not in full]
    # Largest remainders, so that the whole is met exactly.
    counts = {name: math.floor(value + 1e-9) for name, value in share.items()}
    by_remainder = sorted(shapes, key=lambda name: counts[name] - share[name])
    while (missing := keep - sum(counts.values())) > 0:
        for name in [n for n in by_remainder if counts[n] < limit[n]][:missing]:
            counts[name] += 1
    return counts

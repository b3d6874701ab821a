"""From scores to masks: how many weights go, and among which others they are compared.

The rounding, everywhere: an amount is read as the decimal number that it prints as, and the number of weights
pruned is rounded down. `prune(scores, fraction=0.2)` of `n` alive weights leaves exactly `n - floor(0.2 n)`
of each group that is compared within (all weights, a component's, a layer's). An amount that is the nearest
float to a ratio k/n prunes k of n: `to_sparsity=other.sparsity` leaves as many as `other` has. The one exception
is weight norm, where a filter of zeros is 0 / 0: there a filter keeps its best weight, with a warning.

Where the cut falls among weights of equal score, as in a critic that is clipped, where most weights are exactly
at the clip, every tensor of the group loses the same share of its tied weights, at places drawn by a hash: equal
scores give equal masks, whatever the order of names, the machine or the number of threads. Where many are tied the
scores decide little, and a `TiesBroken` warning says how many were.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from decimal import Decimal
from numbers import Integral, Real
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from gentickets.channels.groups import ChannelGroups
from gentickets.errors import PruneError
from gentickets.masks.layers import norms_of
from gentickets.masks.names import Model, component_of
from gentickets.masks.parametrised import Norm
from gentickets.masks.value import Masks
from gentickets.options import Granularity, Scope
from gentickets.pruning.selection import Scored, Ties, keep_best
from gentickets.pruning.widths import Asked, Candidates, keep_one_a_layer, round_up

_MANY_TIES = 0.01
"""The share of a group's weights that may be tied where it is cut without a word."""


class TiesBroken(UserWarning):
    """More than 1 % of the scores of a group are the same number, and some of these had to go, and others to stay.

    `groups`: for each such group (a component, a tensor, or `"all"`) its `Ties`: the `score`, how many are `tied` at
    it of so many `alive`, and how many of these were `pruned`. The message names the group with the largest share.
    """

    def __init__(self, groups: Mapping[str, Ties]):
        super().__init__(groups)  # as it is, so that the warning can be pickled
        self.groups = dict(groups)

    def __str__(self) -> str:
        name, worst = max(self.groups.items(), key=lambda item: item[1].tied / item[1].alive)
        more = f"; groups likewise: {len(self.groups) - 1} more" if len(self.groups) > 1 else ""
        return (
            f"{worst.tied:,} of {worst.alive:,} scores {'in all' if name == 'all' else f'of {name!r}'} are exactly "
            f"{worst.score:.6g}; {worst.pruned:,} of these had to go, spread evenly over places and tensors{more}"
        )


def prune(
    scores: Mapping[str, Tensor],
    fraction: float | None = None,
    to_sparsity: float | None = None,
    within: Masks | None = None,
    scope: Scope = "global",
    granularity: Granularity = "weight",
    groups: ChannelGroups | None = None,
    multiple: int = 1,
    at_least: float | None = None,
    parameters: int | None = None,
    flops: int | None = None,
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

    Two more things can be asked of groups. `at_least=8` keeps 8 channels in each layer, `at_least=0.25` a quarter of
    them: its best ones, in the place of worse ones elsewhere, so that the amount is met all the same. And instead of a
    share, a size: `parameters=1_000_000`, or `flops=` of one example forward as `cost` counts them, of the components
    that have scores. What comes out is the largest network of at most so many: from the best group down, each that
    still fits stays, and so none that goes would have fitted. `groups.parameters(groups.kept(masks))` is what it has.
    With a scope other than "global" each layer, or component, gives of its own in turn, and it ends at the first that
    would not fit: widths fall alike.

    Warns (`TiesBroken`) where more than 1 % of a group's weights score what the last to go scores, and others of them
    stay; and, of `flops=`, where it is a guess how many examples the input of the groups was. Raises `PruneError` for
    an amount out of range, a sparsity below the present one, a bound or a size that cannot be met (with what can), or a
    score that is NaN or no real number.
    """
    _check_scores(scores)
    fraction, to_sparsity = _share(fraction, "fraction"), _share(to_sparsity, "to_sparsity")
    if granularity not in get_args(Granularity):
        raise PruneError(f"granularity={granularity!r} is none of {', '.join(get_args(Granularity))}")
    if groups is not None and granularity != "channel":
        raise PruneError(f"groups are of channels: say granularity='channel', not {granularity!r}")
    asked = Asked.of(groups, multiple, at_least, {"parameters": parameters, "flops": flops})
    if asked.size is not None and (fraction is not None or to_sparsity is not None):
        raise PruneError(f"give one amount: {asked.size[1]}=, fraction= or to_sparsity=")
    if granularity == "channel":
        if groups is not None:
            return _prune_groups(scores, groups, fraction, to_sparsity, within, scope, asked)
        return _prune_channels(scores, fraction, to_sparsity, within, scope)
    if scope not in get_args(Scope):
        raise PruneError(f"scope={scope!r} is none of {', '.join(get_args(Scope))}")
    start = Masks.full({name: score.shape for name, score in scores.items()}) if within is None else within
    scored = _scored(scores, start)

    kept: dict[str, np.ndarray] = {}
    broken: dict[str, Ties] = {}
    for where, group in _groups(scored, scope).items():
        keep = _how_many(group, fraction, to_sparsity)
        shares = _erk_counts(keep, group) if scope == "erk" else {}
        for name, part, count in [(p.name, [p], shares[p.name]) for p in group] if shares else [(where, group, keep)]:
            best = keep_best(part, count)
            kept |= best.kept
            if best.ties is not None and best.ties.tied > _MANY_TIES * best.ties.alive:
                broken[name] = best.ties
    if broken:
        warnings.warn(TiesBroken(broken), stacklevel=2)
    masks = Masks.from_packed(kept, {name: start.shapes[name] for name in kept})
    return start.replace(_with_directions(masks, scores, start))


def _check_scores(scores: object) -> None:
    """Raises `PruneError` for what is no mapping from names to tensors of real numbers."""
    if not isinstance(scores, Mapping):
        raise PruneError(
            f"scores= is a {type(scores).__name__}: give what a criterion returns, such as gt.magnitude(model)"
        )
    for name, score in scores.items():
        if not isinstance(score, Tensor):
            raise PruneError(f"scores of {name!r} are a {type(score).__name__}: give a tensor of its weight's shape")
        if score.is_complex():
            raise PruneError(f"scores of {name!r} are complex, and these have no order: give their abs()")
        if score.is_meta or score.layout != torch.strided:
            kind = "on the meta device, without values" if score.is_meta else "sparse: give their to_dense()"
            raise PruneError(f"scores of {name!r} are {kind}")


def _share(amount: object, key: str) -> float | None:
    """An amount as the float that it prints as. Raises `PruneError` for what is no number."""
    if isinstance(amount, Tensor) and amount.numel() == 1:
        amount = amount.item()
    if amount is None or (isinstance(amount, Real) and not isinstance(amount, bool)):
        return float(str(amount)) if isinstance(amount, np.floating) else amount  # type: ignore[return-value]
    raise PruneError(f"{key}={amount!r} is no number: a share from 0 to 1")


def _with_directions(masks: Masks, scores: Mapping[str, Tensor], start: Masks) -> Masks:
    """`masks`, with the best weight back wherever a norm would divide by 0; what is dead in `start` stays so.

    In every slice of a weight under weight norm, and in a weight as a whole under spectral norm.
    """
    norms: Mapping[str, Norm] = getattr(scores, "norms", {})
    for name in [name for name in masks if name in norms and name in start]:
        mask, norm = masks[name], norms[name]
        before, rows = norm.slices(start[name]), norm.slices(mask).clone()
        lost = (before.any(1) & ~rows.any(1)).nonzero().flatten()
        if len(lost):
            score = norm.slices(scores[name].detach().cpu().double()).masked_fill(~before, -torch.inf)
            rows[lost, score.argmax(1)[lost]] = True
            masks = masks.replace({name: norm.whole(rows, mask)})
            what = f"all of {name!r}" if norm.axis is None else f"{len(lost)} filters of {name!r}"
            kept = "its best weight is kept" if norm.axis is None else "each keeps its best weight"
            warnings.warn(f"{what} would be 0, which {norm.kind} divides by: {kept}", stacklevel=3)
    return masks


def _prune_groups(
    scores: Mapping[str, Tensor],
    groups: ChannelGroups,
    fraction: float | None,
    to_sparsity: float | None,
    within: Masks | None,
    scope: Scope,
    asked: Asked,
) -> Masks:
    """`prune` with one score a group of channels, spread over all its slices."""
    if scope == "erk":
        raise PruneError("scope=erk is of single weights: for channels take global, component or layer")
    score, scored = groups.scores(scores)
    alive = np.ones(len(groups), dtype=bool) if within is None else groups.kept(within)
    among = Candidates(groups, score, scored, alive, scope)
    if not among.places:
        why = (
            f" ({len(groups.whole)} layers stay whole: {groups.reasons()})" if not len(groups) and groups.whole else ""
        )
        raise PruneError(f"no score belongs to a channel of the groups: nothing to prune{why}")
    if asked.size is not None:
        kept = among.largest(*asked.size, asked.at_least)
    else:
        kept = _best_groups(among, fraction, to_sparsity)
        if asked.at_least is not None:
            amount = f"fraction={fraction}" if to_sparsity is None else f"to_sparsity={to_sparsity}"
            kept = among.exchanged(kept, asked.at_least, amount)
        keep_one_a_layer(kept, groups, alive, score)
        round_up(kept, groups, alive, score, asked.multiple)
    masks = groups.masks(kept)
    if within is None:
        return masks
    return within.replace({name: mask & within[name] if name in within else mask for name, mask in masks.items()})


def _best_groups(among: Candidates, fraction: float | None, to_sparsity: float | None) -> np.ndarray:
    """bool: the groups that an amount leaves, by their scores alone."""
    chosen = prune(
        {place: torch.from_numpy(among.score[numbers]) for place, numbers in among.places.items()},
        fraction,
        to_sparsity,
        Masks({place: torch.from_numpy(among.alive[numbers]) for place, numbers in among.places.items()}),
        among.scope,
    )
    kept = among.alive.copy()
    for place, numbers in among.places.items():
        kept[numbers] = chosen[place].numpy()
    return kept


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
    # A channel that stays may have had its live weights in slices of which nothing else stays.
    start = Masks.full({name: scores[name].shape for name in names}) if within is None else within
    return _with_directions(within.replace(spread) if within is not None else Masks(spread), scores, start)


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


def random_like(masks: Masks, seed: int, model: Model | None = None) -> Masks:
    """Masks with as many weights alive in each layer as `masks` has, at random places.

    The control for "is it the mask, or only how much each layer keeps?". Equal seeds, equal masks. `model`: whose
    masks they are; where it has weight norm, each slice with a length of its own keeps a weight, as after `prune`.
    """
    if not isinstance(seed, Integral) or seed < 0:
        raise PruneError(f"seed={seed!r}: a whole number, 0 or more")
    norms = {} if model is None else norms_of(model, masks)
    rng = np.random.default_rng(seed)
    shuffled = masks
    for name in sorted(masks):  # equal sets, equal outcome, whatever their order
        mask = masks[name].numpy()
        rng.shuffle(mask.reshape(-1))
        drawn = torch.from_numpy(mask)
        if name in norms:
            drawn = norms[name].whole(_none_empty(norms[name].slices(drawn).clone(), rng), drawn)
        shuffled = shuffled.replace({name: drawn})
    return shuffled


def _none_empty(slices: Tensor, rng: np.random.Generator) -> Tensor:
    """`slices`, with a live weight of a fuller one moved into each that has none, as far as there are such."""
    for empty in (~slices.any(1)).nonzero().flatten():
        spare = (slices & (slices.sum(1, keepdim=True) > 1)).nonzero()
        if not len(spare):
            break
        slices[tuple(spare[rng.integers(len(spare))])] = False
        slices[empty, rng.integers(slices.shape[1])] = True
    return slices


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


def _groups(scored: list[Scored], scope: Scope) -> dict[str, list[Scored]]:
    if scope in ("global", "erk"):
        return {"all": scored}
    groups: dict[str, list[Scored]] = {}
    for part in scored:
        groups.setdefault(part.name if scope == "layer" else component_of(part.name), []).append(part)
    return groups


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

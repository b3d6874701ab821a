"""From scores to masks, each scope against a second, naive implementation on Python lists."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gentickets import Masks, PruneError, TiesBroken, prune, random_like
from gentickets.pruning import selection

pytestmark = pytest.mark.filterwarnings("ignore::gentickets.TiesBroken")  # most scores here tie

NAMES = ("g.0.weight", "g.1.weight", "d.0.weight", "d.1.weight")
SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=4)


# -- the naive implementation --------------------------------------------------------------------------------


def floor_of(amount: float, count: int) -> int:
    return math.floor(Fraction(Decimal(str(amount))) * count)


def assert_best(
    masks: Masks,
    scores: dict[str, Tensor],
    within: Masks,
    scope: str,
    fraction: float | None = None,
    to_sparsity: float | None = None,
) -> None:
    """Of every group exactly as many are left as shall be, the best; and of those that tie where it was cut, each
    tensor has lost its share, to less than one weight."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in scores:
        groups[{"global": "", "component": name.split(".")[0], "layer": name}[scope]].append(name)
    for names in groups.values():
        alive = sum(within.counts()[name] for name in names)
        if fraction is not None:
            keep = alive - floor_of(fraction, alive)
        else:
            assert to_sparsity is not None
            total = sum(math.prod(within.shapes[name]) for name in names)
            keep = total - floor_of(to_sparsity, total)
        assert_best_of_group(masks, {name: scores[name] for name in names}, within, keep)


def assert_best_of_group(masks: Masks, scores: Mapping[str, Tensor], within: Masks, keep: int) -> None:
    assert sum(masks.counts()[name] for name in scores) == keep
    kept, lost = defaultdict(Counter), defaultdict(Counter)  # score → name → how many
    for name, score in scores.items():
        for value, before, now in zip(
            score.flatten().tolist(), within[name].flatten().tolist(), masks[name].flatten().tolist(), strict=True
        ):
            assert before or not now
            if before:
                (kept if now else lost)[value][name] += 1
    if kept and lost:
        assert max(lost) <= min(kept)
    if kept and lost and (cut := max(lost)) == min(kept):
        tied = kept[cut] + lost[cut]
        for name, count in tied.items():
            assert abs(lost[cut][name] - Fraction(lost[cut].total() * count, tied.total())) < 1


def naive_erk(keep: int, shapes: dict[str, tuple[int, ...]], limit: dict[str, int]) -> dict[str, Fraction]:
    """The exact share of each layer, in fractions: layers that would be over their limit are filled, one by
    one, the fullest first, until none is."""
    open_, left, share = dict(shapes), Fraction(keep), {}
    while open_:
        asked = {n: Fraction(sum(s) or 1) for n, s in open_.items()}
        scale = left / sum(asked.values())
        worst = max(open_, key=lambda n: (asked[n] * scale / limit[n]) if limit[n] else Fraction(10**9))
        if asked[worst] * scale < limit[worst]:
            return share | {n: asked[n] * scale for n in open_}
        share[worst] = Fraction(limit[worst])
        left -= limit[worst]
        del open_[worst]
    return share


def make(shapes: list[tuple[int, ...]], seed: int, levels: int = 0) -> tuple[dict[str, Tensor], Masks]:
    """Scores (whole numbers below `levels`, for many ties, if it is given) and what is alive."""
    generator = torch.Generator().manual_seed(seed)
    scores, alive = {}, {}
    for name, shape in zip(NAMES, shapes, strict=False):
        drawn = torch.rand(shape, generator=generator)
        scores[name] = (drawn * levels).floor() if levels else drawn
        alive[name] = torch.rand(shape, generator=generator) < 0.7
    return scores, Masks(alive)


AMOUNTS = st.one_of(
    st.sampled_from([0, 1, 0.0, 0.1, 0.2, 0.29, 0.5, 0.999, 1.0]), st.floats(0, 1).map(lambda x: round(x, 3))
)


@given(
    SHAPES, st.integers(0, 10**6), st.sampled_from([0, 1, 2, 5]), AMOUNTS,
    st.sampled_from(["global", "component", "layer"]),
)  # fmt: skip
def test_fraction(shapes: list[tuple[int, ...]], seed: int, levels: int, amount: float, scope: str) -> None:
    scores, within = make(shapes, seed, levels)
    masks = prune(scores, fraction=amount, within=within, scope=scope)  # type: ignore[arg-type]
    assert_best(masks, scores, within, scope, fraction=amount)
    assert masks <= within
    assert list(masks) == list(within)
    if scope == "global":
        assert masks.alive == within.alive - floor_of(amount, within.alive)


@given(
    SHAPES, st.integers(0, 10**6), st.sampled_from([0, 1, 2, 5]), AMOUNTS,
    st.sampled_from(["global", "component", "layer"]),
)  # fmt: skip
def test_to_sparsity(shapes: list[tuple[int, ...]], seed: int, levels: int, amount: float, scope: str) -> None:
    scores, _ = make(shapes, seed, levels)
    dense = Masks({n: torch.ones(s.shape, dtype=torch.bool) for n, s in scores.items()})
    masks = prune(scores, to_sparsity=amount, scope=scope)  # type: ignore[arg-type]
    assert_best(masks, scores, dense, scope, to_sparsity=amount)


@given(SHAPES, st.integers(0, 10**6), st.sampled_from([0, 1, 3]), AMOUNTS)
def test_erk(shapes: list[tuple[int, ...]], seed: int, levels: int, amount: float) -> None:
    scores, within = make(shapes, seed, levels)
    masks = prune(scores, fraction=amount, within=within, scope="erk")
    keep = within.alive - floor_of(amount, within.alive)
    assert masks.alive == keep
    assert masks <= within
    limit = within.counts()
    share = naive_erk(keep, dict(within.shapes), limit)
    for name, count in masks.counts().items():
        assert count <= limit[name]
        assert abs(count - share[name]) < 1
        assert_best_of_group(masks, {name: scores[name]}, within, count)


def test_erk_densities() -> None:
    shapes = {
        "a.weight": (64, 32, 3, 3),
        "b.weight": (128, 64, 3, 3),
        "c.weight": (200, 300),
        "d.weight": (4, 3),
    }
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    masks = prune(scores, to_sparsity=0.95, scope="erk")
    total = sum(math.prod(s) for s in shapes.values())
    assert masks.alive == total - floor_of(0.95, total)
    counts = masks.counts()
    assert counts["d.weight"] == 12  # capped: it asks for more than it has
    density = {n: counts[n] / math.prod(s) for n, s in shapes.items() if n != "d.weight"}
    ratio = {n: density[n] / (sum(shapes[n]) / math.prod(shapes[n])) for n in density}
    assert max(ratio.values()) == pytest.approx(min(ratio.values()), rel=0.01)


def test_erk_when_nothing_or_everything_is_kept() -> None:
    scores = {"a": torch.rand(3, 4), "b": torch.rand(()), "c": torch.rand(0), "d": torch.rand(5)}
    assert prune(scores, to_sparsity=1.0, scope="erk").alive == 0
    assert prune(scores, to_sparsity=0.0, scope="erk").alive == 18
    assert prune({"b": torch.rand(())}, fraction=0.0, scope="erk").alive == 1
    none = prune(scores, to_sparsity=1.0)
    assert prune(scores, fraction=0.5, within=none, scope="erk") == none


@pytest.mark.parametrize("scope", ["global", "component", "layer", "erk"])
def test_rounds(scope: str) -> None:
    """20 % of what is alive, twelve times over: exactly n - floor(0.2 n) each time, nothing comes back."""
    scores = {name: torch.rand(37, 11) for name in NAMES}
    masks = Masks({name: torch.ones(37, 11, dtype=torch.bool) for name in NAMES})
    for _ in range(12):
        fresh = {name: torch.rand(37, 11) for name in NAMES}
        smaller = prune(fresh, fraction=0.2, within=masks, scope=scope)  # type: ignore[arg-type]
        assert smaller <= masks
        groups = {"component": ("g", "d"), "layer": NAMES}.get(scope, ("",))
        for group in groups:
            n = sum(c for name, c in masks.counts().items() if name.startswith(group))
            left = sum(c for name, c in smaller.counts().items() if name.startswith(group))
            assert left == n - n // 5
        masks = smaller
    backwards = {name: scores[name].clone() for name in reversed(NAMES)}
    assert prune(backwards, fraction=0.2, within=masks, scope=scope) == prune(  # type: ignore[arg-type]
        scores,
        fraction=0.2,
        within=masks,
        scope=scope,  # type: ignore[arg-type]
    )


def test_amounts_are_read_as_decimals() -> None:
    for amount, count, dropped in [
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.58, 100, 58),
        (0.1, 30, 3),
        (0.7, 10, 7),
        (0.2, 9, 1),
        (0.2, 14, 2),
        (0.999, 1000, 999),
        (1e-9, 1000, 0),
        (1, 7, 7),
        (0, 7, 0),
    ]:
        for key in ("fraction", "to_sparsity"):
            masks = prune({"w": torch.rand(count)}, **{key: amount})
            assert masks.alive == count - dropped, (key, amount, count)


@given(st.integers(1, 5000), st.data())
def test_a_sparsity_that_was_measured_is_met(total: int, data: st.DataObject) -> None:
    """`to_sparsity=masks.sparsity` leaves as many as `masks` has, and is no revival."""
    dead = data.draw(st.integers(0, total))
    masks = Masks({"w": torch.arange(total) >= dead})
    assert prune({"w": torch.rand(total)}, to_sparsity=masks.sparsity).alive == masks.alive
    assert prune({"w": torch.rand(total)}, to_sparsity=masks.sparsity, within=masks) == masks


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.uint8, torch.bfloat16, torch.float16, torch.float64, torch.bool]
)
def test_scores_of_any_real_dtype(dtype: torch.dtype) -> None:
    drawn = (torch.rand(NAMES.__len__(), 6, 5) * 200).to(dtype)
    scores = dict(zip(NAMES, drawn, strict=True))
    within = Masks({n: torch.rand(6, 5) < 0.8 for n in NAMES})
    for scope in ("global", "component", "layer"):
        masks = prune(scores, fraction=0.37, within=within, scope=scope)  # type: ignore[arg-type]
        assert_best(masks, scores, within, scope, 0.37)


def test_small_differences_are_seen() -> None:
    fine = torch.tensor([1.0, 1.0 + 1e-15, 1.0 + 2e-15], dtype=torch.float64).flip(0)
    assert prune({"w": fine}, fraction=0.34)["w"].tolist() == [True, True, False]
    whole = torch.tensor([2**24 + 1, 2**24], dtype=torch.int64)
    assert prune({"w": whole}, fraction=0.5)["w"].tolist() == [True, False]
    mixed = {"a": torch.tensor([1.0]), "b": torch.tensor([1.0 - 1e-12], dtype=torch.float64)}
    assert prune(mixed, fraction=0.5).counts() == {"a": 1, "b": 0}


def test_infinities() -> None:
    inf = float("inf")
    masks = prune({"w": torch.tensor([inf, -inf, 0.0, inf, -inf])}, fraction=0.6)
    assert masks["w"].tolist() == [True, False, False, True, False]
    assert prune({"w": torch.full((4,), inf)}, fraction=0.5).alive == 2
    assert prune({"w": torch.full((4,), -inf)}, to_sparsity=1.0).alive == 0


def test_what_has_no_score_keeps_its_mask() -> None:
    within = Masks({n: torch.rand(4, 4) < 0.6 for n in NAMES})
    scores = {NAMES[0]: torch.rand(4, 4), "not.there": torch.rand(3)}
    masks = prune(scores, fraction=0.5, within=within)
    assert masks.replace(within.select("g")) == within
    n = within.counts()[NAMES[0]]
    assert masks.counts()[NAMES[0]] == n - n // 2
    assert masks.counts()[NAMES[1]] == within.counts()[NAMES[1]]


def test_scores_are_left_alone() -> None:
    scores = {"w": torch.rand(5, 5, requires_grad=True)}
    before = scores["w"].detach().clone()
    within = Masks({"w": torch.rand(5, 5) < 0.5})
    print_before = within.fingerprint
    prune(scores, fraction=0.5, within=within)
    assert torch.equal(scores["w"], before)
    assert within.fingerprint == print_before


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan"), float("inf"), -1e-12, 20])
@pytest.mark.parametrize("key", ["fraction", "to_sparsity"])
def test_amounts_out_of_range(amount: float, key: str) -> None:
    with pytest.raises(PruneError, match=f"{key}={amount} is out of range"):
        prune({"w": torch.rand(4)}, **{key: amount})


def test_other_refusals() -> None:
    scores = {"g.weight": torch.rand(4), "d.weight": torch.rand(4)}
    with pytest.raises(PruneError, match="one amount"):
        prune(scores)
    with pytest.raises(PruneError, match="one amount"):
        prune(scores, fraction=0.1, to_sparsity=0.2)
    with pytest.raises(PruneError, match="scope='blockwise' is none of global, component, layer, erk"):
        prune(scores, fraction=0.1, scope="blockwise")  # type: ignore[arg-type]
    with pytest.raises(PruneError, match="no score"):
        prune({}, fraction=0.1)
    with pytest.raises(PruneError, match="no score"):
        prune(scores, fraction=0.1, within=Masks({"x": torch.ones(3, dtype=torch.bool)}))
    with pytest.raises(PruneError, match=r"'g\.weight' have shape \(4,\), its mask \(2, 2\)"):
        prune(scores, fraction=0.1, within=Masks({"g.weight": torch.ones(2, 2, dtype=torch.bool)}))


@pytest.mark.parametrize("scope", ["global", "component", "layer", "erk"])
def test_nan_is_refused_where_it_counts(scope: str) -> None:
    scores = {"g.weight": torch.rand(4), "d.weight": torch.tensor([1.0, float("nan"), 2.0])}
    with pytest.raises(PruneError, match=r"'d\.weight' hold NaN"):
        prune(scores, fraction=0.5, scope=scope)  # type: ignore[arg-type]
    dead = Masks({"g.weight": torch.ones(4, dtype=torch.bool), "d.weight": torch.tensor([True, False, True])})
    assert prune(scores, fraction=0.5, within=dead, scope=scope).alive == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["global", "component", "layer", "erk"])
def test_reviving_is_refused(scope: str) -> None:
    scores = {"g.weight": torch.rand(10), "d.weight": torch.rand(10)}
    half = prune(scores, to_sparsity=0.5, scope=scope)  # type: ignore[arg-type]
    with pytest.raises(PruneError, match="would revive"):
        prune(scores, to_sparsity=0.4, within=half, scope=scope)  # type: ignore[arg-type]
    assert prune(scores, to_sparsity=0.5, within=half, scope=scope) == half  # type: ignore[arg-type]


DTYPES = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool]
)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3)), min_size=1, max_size=4),
    st.lists(DTYPES, min_size=4, max_size=4),
    st.sampled_from([1, 2, 5, 100, 10**6]), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.02, 0.4]),
    AMOUNTS, st.sampled_from(["global", "component", "layer", "erk"]), st.integers(0, 10**6),
    st.sampled_from([8, 16, 1 << 17]), st.sampled_from([0, 1, 30, 1 << 14]),
)  # fmt: skip
def test_the_threshold_is_found_as_by_sorting(
    shapes: list[tuple[int, int]], dtypes: list[torch.dtype], levels: int, density: float, infinite: float,
    amount: float, scope: str, seed: int, block: int, few: int,
) -> None:  # fmt: skip
    """Whatever the sample says (here of a handful of weights, so that it is often wrong), and wherever blocks end."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator)

    scores, alive = {}, {}
    for name, shape, dtype in zip(NAMES, shapes, dtypes, strict=False):
        score = ((draw(shape) - 0.5) * levels).round().to(dtype)  # -0.0 beside 0.0 too
        if dtype.is_floating_point:
            score = score.masked_fill(draw(shape) < infinite, float("inf")).masked_fill(
                draw(shape) < infinite, -float("inf")
            )
        alive[name] = draw(shape) < density
        if dtype.is_floating_point:
            score = score.masked_fill(~alive[name] & (draw(shape) < 0.5), float("nan"))  # of a dead weight: no matter
        scores[name] = score if seed % 2 else score.t().contiguous().t()
    within = Masks(alive)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_BLOCK", block)
        patch.setattr(selection, "_FEW", few)
        masks = prune(scores, fraction=amount, within=within, scope=scope)  # type: ignore[arg-type]
    assert masks == prune(scores, fraction=amount, within=within, scope=scope)  # type: ignore[arg-type]
    if scope == "erk":  # how many each layer keeps is tested above
        for name, count in masks.counts().items():
            assert_best_of_group(masks, {name: scores[name]}, within, count)
        assert masks.alive == within.alive - floor_of(amount, within.alive)
    else:
        assert_best(masks, scores, within, scope, fraction=amount)


@pytest.mark.parametrize("amount", [1e-6, 0.2, 0.5, 0.9, 0.999999])
def test_the_threshold_of_many_weights_is_found_as_by_sorting(amount: float) -> None:
    """Enough of them that a sample is drawn; float32 draws of 300,000 weights from 2**16 levels tie."""
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(300, 250, generator=generator).mul(2**16).round() for name in reversed(NAMES)}
    within = Masks({name: torch.rand(300, 250, generator=generator) < 0.9 for name in scores})
    assert_best(prune(scores, fraction=amount, within=within), scores, within, "global", amount)


def test_a_sample_that_misleads_costs_time_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, within = make([(50, 3), (40, 5), (7,), (300,)], 0)
    expected = [prune(scores, fraction=share / 10, within=within) for share in range(11)]
    for wrong in [(-2.0, -1.0), (2.0, 3.0), (0.5, 0.5), (float("inf"), float("inf")), (-float("inf"), -float("inf"))]:
        monkeypatch.setattr(selection, "_bracket", lambda *_, wrong=wrong: wrong)
        assert [prune(scores, fraction=share / 10, within=within) for share in range(11)] == expected


MEMORY = """
import resource, sys, torch, gentickets as gt
scores = {f"g.{i}.weight": torch.rand(2000, 1000) for i in range(10)}
gt.prune({"w": torch.rand(300_000)}, fraction=0.5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
masks = gt.prune(scores, fraction=0.5)
gt.prune(scores, fraction=0.5, within=masks, scope="erk")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_pruning_takes_less_than_a_byte_and_a_half_a_weight() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.5 * 20_000_000  # of scores that take 4


def test_more_weights_than_torch_quantile_takes() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(4250, 1000, generator=generator) for name in NAMES}  # 17 million
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(torch.cat([s.flatten() for s in scores.values()]), 0.2)
    masks = prune(scores, fraction=0.2)
    assert masks.alive == 17_000_000 - 3_400_000
    lowest_kept = min(float(scores[n][masks[n]].min()) for n in NAMES)
    assert all(float(scores[n][~masks[n]].max()) <= lowest_kept for n in NAMES)


# -- equal scores -------------------------------------------------------------------------------------------


def test_ties_are_spread_evenly_over_tensors() -> None:
    """A clipped critic: three layers at the clip, of which one used to lose all and one nothing."""
    scores = {f"critic.{i}.weight": torch.full((10, 10), 0.01) for i in range(3)}
    assert prune(scores, fraction=0.5).counts() == dict.fromkeys(scores, 50)
    scores["critic.1.weight"][:5] = 0.005  # half of one below the clip: these go first, then two fifths of each
    masks = prune(scores, fraction=0.5)
    assert masks.counts() == {"critic.0.weight": 60, "critic.1.weight": 30, "critic.2.weight": 60}
    assert not masks["critic.1.weight"][:5].any()


def test_ties_do_not_go_by_place() -> None:
    """No row, column, channel or corner of a tensor loses more than chance would take from it."""
    for shape in [(64, 64), (16, 16, 4, 4), (4096,), (2, 2048)]:
        kept = prune({"w": torch.zeros(shape)}, fraction=0.5)["w"]
        assert int(kept.sum()) == 2048
        for axis, side in enumerate(shape):
            each = kept.movedim(axis, 0).reshape(side, -1).sum(1).double()
            expected = 2048 / side
            assert float((each - expected).abs().max()) < 4.5 * math.sqrt(expected / 2)
        assert 0.45 < float((kept.flatten()[1:] == kept.flatten()[:-1]).double().mean()) < 0.55


def test_ties_of_two_tensors_are_drawn_apart() -> None:
    masks = prune({"a": torch.zeros(64, 64), "b": torch.zeros(64, 64)}, fraction=0.5)
    assert 0.45 < float((masks["a"] == masks["b"]).double().mean()) < 0.55


@given(st.integers(1, 4), st.integers(0, 400), st.sampled_from(["global", "component", "layer", "erk"]), st.data())
def test_equal_scores_give_equal_masks(levels: int, seed: int, scope: str, data: st.DataObject) -> None:
    """Whatever the order of the names, the layout in memory, and the size of the blocks that are looked at."""
    scores, within = make([(11, 7), (5,), (40, 3), (2, 2, 2)], seed, levels)
    masks = prune(scores, fraction=0.4, within=within, scope=scope)  # type: ignore[arg-type]
    order = data.draw(st.permutations(list(scores)))
    again = {name: scores[name].t().contiguous().t() if scores[name].dim() == 2 else scores[name] for name in order}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_BLOCK", data.draw(st.sampled_from([8, 16, 64])))
        others = prune(again, fraction=0.4, within=Masks({n: within[n] for n in order}), scope=scope)  # type: ignore[arg-type]
    assert others == masks


def test_ties_are_broken_alike_on_every_machine() -> None:
    """A hash that is written down, not one of numpy's or Python's generators, which may change."""
    masks = prune({"g.weight": torch.zeros(5, 8), "d.weight": torch.ones(300)}, fraction=0.5)
    assert masks["g.weight"].sum() == 0
    assert masks.counts()["d.weight"] == 170
    found = [at for at, alive in enumerate(prune({"w": torch.zeros(24)}, fraction=0.75)["w"].tolist()) if alive]
    assert found == [3, 4, 8, 10, 11, 19]


def test_the_lowest_lots_go_first() -> None:
    """Two rounds leave what one of the same size does."""
    scores = {"w": torch.zeros(1000)}
    once = prune(scores, to_sparsity=0.75)
    assert prune(scores, to_sparsity=0.75, within=prune(scores, to_sparsity=0.5)) == once


def test_ties_that_decide_are_told() -> None:
    scores = {"generator.weight": torch.rand(4, 4), "discriminator.weight": torch.full((80, 100), 0.01)}
    scores["discriminator.weight"][:40] = torch.rand(40, 100) * 0.009
    with pytest.warns(TiesBroken) as caught:
        prune(scores, fraction=0.75, scope="component")
    assert str(caught[0].message) == (
        "4,000 of 8,000 scores of 'discriminator' are exactly 0.01; 2,000 of these had to go, "
        "spread evenly over places and tensors"
    )
    ties = caught[0].message.groups["discriminator"]  # type: ignore[union-attr]
    assert (ties.tied, ties.pruned, ties.alive) == (4000, 2000, 8000)
    assert caught[0].filename == __file__
    assert str(pickle.loads(pickle.dumps(caught[0].message))) == str(caught[0].message)
    with pytest.warns(TiesBroken, match=r"^4,000 of 8,016 scores in all are exactly 0\.01; .* tensors$"):
        prune(scores, fraction=0.75)
    with pytest.warns(TiesBroken, match=r"'discriminator\.weight' .*; groups likewise: 1 more$"):
        prune(scores | {"generator.weight": torch.tensor([1.0, 1.0, 2.0, 2.0])}, fraction=0.75, scope="layer")


def test_ties_that_decide_nothing_are_not_told() -> None:
    scores = {"w": torch.cat([torch.zeros(500), torch.rand(500) + 1])}
    scores["w"][500:502] = 1.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prune(scores, fraction=0.5).counts() == {"w": 500}  # all that tie go
        assert prune(scores, fraction=0.0).counts() == {"w": 1000}
        below = int((scores["w"] < 1.5).sum())
        assert prune(scores, fraction=(below + 1) / 1000).counts() == {"w": 999 - below}  # one of two, of a thousand


# -- random masks --------------------------------------------------------------------------------------------


def test_random_like_keeps_the_counts_and_moves_the_weights() -> None:
    masks = Masks({n: torch.arange(120).reshape(10, 12) < 30 * (i + 1) for i, n in enumerate(NAMES)})
    drawn = random_like(masks, 0)
    assert drawn.counts() == masks.counts()
    assert list(drawn) == list(masks)
    assert dict(drawn.shapes) == dict(masks.shapes)
    for name in NAMES[:3]:
        assert drawn.merge({}).packed[name].tobytes() != masks.packed[name].tobytes()
    # as far from the original as two independent masks of these densities are
    expected = sum(2 * d * (1 - d) for d in (0.25, 0.5, 0.75, 1.0)) / 4
    assert drawn.distance(masks) == pytest.approx(expected, abs=0.1)
    assert random_like(masks, 0) == drawn
    assert random_like(masks, 1) != drawn
    backwards = Masks({n: masks[n] for n in reversed(list(masks))})
    assert random_like(backwards, 0) == drawn


@given(SHAPES, st.integers(0, 1000), st.integers(0, 2**31))
def test_random_like_keeps_any_counts(shapes: list[tuple[int, ...]], seed: int, other: int) -> None:
    _, masks = make(shapes, seed)
    assert random_like(masks, other).counts() == masks.counts()

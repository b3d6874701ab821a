"""How far two masks are apart, beside what chance alone gives."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gentickets as gt


def masks_of(*rows: str, **named: str) -> gt.Masks:
    named |= {f"net.{index}.weight": row for index, row in enumerate(rows)}
    return gt.Masks(
        {name: torch.tensor([bit == "1" for bit in bits], dtype=torch.bool) for name, bits in named.items()}
    )


def test_numbers_that_can_be_counted_on_the_fingers():
    one, other = masks_of("1100", "1111"), masks_of("1010", "1000")
    found = gt.overlap(one, other)
    assert found.distance == 5 / 8 == one.distance(other)
    # The first tensor: half and half, so half of the 4 differ; the second: whole and a quarter, so 3 of the 4 do.
    assert found.chance_distance == (2 + 3) / 8
    assert found.relative_distance == 1.0
    assert found.jaccard == 2 / 7
    assert found.chance_jaccard == (1 + 1) / (6 + 3 - 2)
    assert found.by_layer["net.0.weight"].chance_distance == 0.5
    assert found.by_layer["net.1.weight"].relative_distance == 1.0
    assert "by chance 0.6250" in repr(found)


def arrangements(alive: int, total: int) -> list[tuple[int, ...]]:
    return [tuple(int(i in chosen) for i in range(total)) for chosen in itertools.combinations(range(total), alive)]


sizes = st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n)))


@given(st.lists(sizes, min_size=1, max_size=2))
def test_chance_is_the_mean_over_every_pair_of_masks_of_these_densities(layers):
    every = [
        list(itertools.product(arrangements(one, n), arrangements(other, n))) for n, one, other in layers
    ]  # layer → all pairs
    differing, total = [], sum(n for n, _, _ in layers)
    for pairs in itertools.product(*every):
        differing.append(sum(a != b for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True)))
    first = [pairs[0] for pairs in every]
    one, other = (masks_of(*("".join(map(str, pair[side])) for pair in first)) for side in (0, 1))
    found = gt.overlap(one, other)
    assert found.chance_distance == pytest.approx(np.mean(differing) / total, abs=1e-12)
    assert (found.chance_distance == 0) == (max(differing) == 0)
    for limit in (1, total):  # below one weight: equal
        share = np.mean(np.array(differing) < limit)
        if limit == 1:
            assert found.probability_below(limit / total) >= share - 1e-9


def test_chance_is_what_masks_drawn_at_random_have():
    torch.manual_seed(0)
    dense = gt.Masks.full({"a.weight": (40, 50), "b.weight": (30, 20)})
    drawn = {name: torch.rand(shape) < (0.1 if name == "a.weight" else 0.6) for name, shape in dense.shapes.items()}
    start = gt.Masks(drawn)
    pairs = [(gt.random_like(start, 2 * seed), gt.random_like(start, 2 * seed + 1)) for seed in range(100)]
    distances = [one.distance(other) for one, other in pairs]
    expected = gt.overlap(*pairs[0])
    error = np.std(distances) / math.sqrt(len(distances))
    assert abs(np.mean(distances) - expected.chance_distance) < 4 * error
    even = 2 * start.density * (1 - start.density)
    assert expected.chance_distance < even - 10 * error  # uneven layers are nearer by chance than even ones
    jaccards = [gt.overlap(one, other).jaccard for one, other in pairs]
    assert np.mean(jaccards) == pytest.approx(expected.chance_jaccard, abs=0.01)
    # How often chance comes so near: by the normal distribution, against counting.
    below = np.quantile(distances, 0.3)
    assert expected.probability_below(float(below)) == pytest.approx(0.3, abs=0.15)
    assert expected.probability_below(0.2 * expected.chance_distance) < 1e-12


@pytest.mark.parametrize("rows", [("1111", "0000"), ("", "1"), ()])
def test_where_no_other_mask_is_possible_there_is_nothing_to_compare(rows):
    masks = masks_of(*rows)
    found = gt.overlap(masks, masks)
    assert (found.distance, found.chance_distance) == (0.0, 0.0)
    assert math.isnan(found.relative_distance)
    assert found.probability_below(0.1) == 1.0


def test_nothing_in_common_is_far_and_masks_of_other_weights_are_refused():
    assert gt.overlap(masks_of("11"), masks_of("00")).relative_distance == 1.0
    assert gt.overlap(masks_of("10"), masks_of("01")).relative_distance == 2.0
    assert math.isnan(gt.overlap(masks_of("00"), masks_of("00")).jaccard)
    with pytest.raises(gt.MaskError, match=r"net\.0\.weight"):
        gt.overlap(masks_of("11"), masks_of("110"))

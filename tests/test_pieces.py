"""What is ready of a run, when; and a run played through on any number of workers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentickets.errors import RecipeError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.pieces import Piece, builds_on, pieces_of, standing
from gentickets.lab.run.schedule import Load, simulate

CONTROLS = st.sampled_from(["auto", "all", []])


def recipe_with(rounds=3, seeds=1, levels="auto"):
    return make_recipe({
        "name": "tiny",
        "model": {"name": "linear-autoencoder", "width": 8, "depth": 1, "latent": 4},
        "data": {"source": "digits", "size": 8},
        "objective": {"name": "autoencoding"},
        "search": {"rounds": rounds},
        "controls": {"levels": levels},
        "seeds": list(range(seeds)),
    })  # fmt: skip


@given(st.integers(0, 10**6), st.integers(0, 9999), st.sampled_from(["ticket", "random_mask", "redrawn_weights"]))
def test_a_name_is_its_piece(seed, level, arm):
    piece = Piece(seed, level, arm)
    assert Piece.of(piece.name) == piece


@pytest.mark.parametrize("name", ["", "seed-0", "seed-0/level-1", "seed--1/level-01", "seed-0/level-01-luck", "../x"])
def test_what_is_no_piece_is_refused(name):
    with pytest.raises(RecipeError, match="is no piece of a run"):
        Piece.of(name)


@given(st.integers(0, 6), CONTROLS, st.integers(0, 7), st.data())
def test_one_after_the_other_everything_is_made_and_nothing_else(rounds, levels, end, data):
    """In whatever order the ready pieces are taken, the same are made as by hand: the chain to where it ends, and the
    controls of the levels that are chosen for that end."""
    recipe = recipe_with(rounds, 1, levels)
    done: set[Piece] = set()
    while ready := standing(recipe, 0, done.__contains__, lambda piece: piece.level == end).ready:
        piece = data.draw(st.sampled_from(ready))
        below = builds_on(piece)
        assert below is None or below in done
        assert piece not in done
        done.add(piece)
    reached = min(rounds, end)
    chain = {Piece(0, level) for level in range(reached + 1)}
    arms = ("random_mask", "redrawn_weights")
    assert done == chain | {Piece(0, level, arm) for level in recipe.controls.chosen(reached) for arm in arms}


@given(st.integers(0, 5), st.integers(1, 4), CONTROLS, st.integers(1, 9), st.floats(0.1, 5))
def test_a_schedule_keeps_to_what_builds_on_what(rounds, seeds, levels, workers, control_seconds):
    recipe = recipe_with(rounds, seeds, levels)
    took = {piece: 1.0 if piece.arm == "ticket" else control_seconds for piece in pieces_of(recipe)}
    found = simulate([Load(recipe, took.__getitem__)], workers, starting=2.0)
    assert sorted(span.piece for span in found.spans) == sorted(took)
    end = {span.piece: span.end for span in found.spans}
    for span in found.spans:
        below = builds_on(span.piece)
        assert span.start >= (2.0 if below is None else end[below])
    for worker in range(workers):
        own = sorted((span.start, span.end) for span in found.spans if span.worker == worker)
        assert all(before[1] <= after[0] for before, after in pairwise(own))
    assert found.busy == pytest.approx(sum(took.values()))
    path = found.critical_path()
    # Neither longer than one worker would take, nor shorter than its longest chain, or a fair share of it all.
    assert found.busy / workers - 1e-9 <= found.seconds - 2.0 <= found.busy + 1e-9
    assert found.seconds - 2.0 >= sum(span.end - span.start for span in path) - 1e-9
    if workers == 1:
        assert found.seconds - 2.0 == pytest.approx(found.busy)
        assert found.idle == pytest.approx(2.0 / found.seconds)


def second(piece):
    return 1.0


def test_a_schedule_by_hand():
    """Two seeds of a dense model and one ticket with two controls, a second each, on two workers and on ten."""
    recipe = recipe_with(rounds=1, seeds=2)
    assert [simulate([Load(recipe, second)], workers).seconds for workers in (1, 2, 4, 10)] == [8, 4, 3, 3]
    found = simulate([Load(recipe, second)], 10)
    assert found.used == 4
    assert [span.piece.level for span in found.critical_path()] == [0, 1, 1]


def test_what_is_taken_over_waits_for_its_run():
    """Two arms that share a dense model: the second one's is there with the first one's, for a tenth of a second."""
    recipe = recipe_with(rounds=1, seeds=1, levels=[])
    dense = Piece(0, 0)
    arm = Load(recipe, lambda piece: 0.1 if piece == dense else 1.0, {dense: 0})
    found = simulate([Load(recipe, second), arm], 2)
    start = {(span.run, span.piece): span.start for span in found.spans}
    assert (start[1, dense], found.seconds) == (1.0, pytest.approx(2.1))


def test_what_is_complete_is_not_played_again():
    recipe = recipe_with(rounds=2, seeds=1, levels=[])
    found = simulate([Load(recipe, second)], 3, complete=[(0, Piece(0, 0)), (0, Piece(0, 1))])
    assert [span.piece for span in found.spans] == [Piece(0, 2)]
    assert simulate([Load(recipe, second)], 3, complete=[(0, piece) for piece in pieces_of(recipe)]).seconds == 0

"""The verdict, against cases worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gentickets.lab.results import LevelResult, Metric, Run
from gentickets.lab.verdict import Verdict, judge
from gentickets.lab.words import join, number, percent, plus_minus, tell_apart

SPARSITIES = (0.0, 0.2, 0.36, 0.488, 0.59)


def make_run(
    ticket: dict[int, tuple[float | str, ...]],
    lower_is_better: bool = True,
    seeds: int = 2,
    rounds: int | None = None,
    **controls: dict[int, tuple[float | str, ...]],
) -> Run:
    """A run from values: level → a value a seed; a word in place of a value is a status, or "missing"."""
    levels = []
    for arm, values_at in {"ticket": ticket, **controls}.items():
        for level, values in values_at.items():
            for seed, value in enumerate(values):
                if value != "missing":
                    levels.append(make_level(seed, level, arm, value, lower_is_better))
    order = {"ticket": 0, "random_mask": 1, "redrawn_weights": 2}
    levels.sort(key=lambda r: (r.seed, r.level, order[r.arm]))
    recipe = {"seeds": list(range(seeds)), "search": {"method": "imp", "rounds": rounds}}
    return Run(Path("runs/made"), "made", recipe, {}, levels)


def make_level(seed: int, level: int, arm: str, value: float | str, lower_is_better: bool) -> LevelResult:
    failed = isinstance(value, str)
    metrics = {} if failed else {"score": Metric("score", float(value), 100, lower_is_better)}
    return LevelResult(
        seed=seed,
        level=level,
        arm=arm,  # type: ignore[arg-type]
        status=value if failed else "complete",  # type: ignore[arg-type]
        sparsity=SPARSITIES[level],
        alive=100,
        total=100,
        primary="score",
        start_step=0,
        end_step=1,
        metrics=metrics,
    )


def said(verdict: Verdict, words: str) -> bool:
    return any(words in sentence for sentence in verdict.sentences)


# Dense: 9 and 11, so mean 10 and sample standard deviation sqrt(2): the bar is 11.414, the relaxed one 10.5.
DENSE = (9.0, 11.0)


def test_it_matches_up_to_the_last_level_within_the_spread():
    verdict = judge(make_run({0: DENSE, 1: (9.0, 10.0), 2: (11.0, 11.8), 3: (11.0, 12.0), 4: (20.0, 21.0)}))
    assert verdict.matches_up_to == 0.36
    assert verdict.relaxed_up_to == 0.2
    assert verdict.deepest_level == 2
    assert verdict.headline == (
        "The ticket matches the dense model within its seed spread up to 36.0% sparsity (2 seeds)."
    )
    assert verdict.sentences[0] == "Within 5% of the dense mean (10.0 ± 1.4) it stays up to 20.0%."
    assert verdict.matching == {("ticket", 1), ("ticket", 2)}
    assert verdict.won is None
    assert said(verdict, "No control was trained")


@pytest.mark.parametrize(("over", "matches"), [(0.0, True), (1e-6, False), (-1e-6, True)])
def test_what_lies_exactly_on_the_line_matches(over, matches):
    line = 10 + math.sqrt(2) + over
    verdict = judge(make_run({0: DENSE, 1: (line - 0.5, line + 0.5)}))
    assert (verdict.matches_up_to == 0.2) is matches
    relaxed = judge(make_run({0: (0.2, 0.2), 1: (0.21 + over, 0.21 + over)}))
    assert (relaxed.relaxed_up_to == 0.2) is matches


def test_a_level_that_matches_after_a_gap_is_told_and_not_counted():
    verdict = judge(make_run({0: DENSE, 1: (9.0, 10.0), 2: (30.0, 31.0), 3: (9.0, 10.0), 4: (30.0, 31.0)}))
    assert verdict.matches_up_to == 0.2
    assert verdict.headline.endswith("(2 seeds). It does so again at 48.8%, after a gap.")


def test_nothing_matches():
    verdict = judge(make_run({0: DENSE, 1: (20.0, 22.0)}, random_mask={1: (30.0, 31.0)}))
    assert (verdict.matches_up_to, verdict.relaxed_up_to, verdict.won) == (None, None, False)
    assert verdict.headline == (
        "The ticket does not match the dense model within its seed spread: "
        "at 20.0% sparsity it is already worse, 21.0 against 10.0 (2 seeds)."
    )
    later = judge(make_run({0: DENSE, 1: (20.0, 22.0), 2: (9.0, 10.0)}))
    assert later.headline.endswith("It does at 36.0%, but not at every level before.")


def test_it_wins_where_it_beats_both_controls_by_more_than_both_spreads():
    verdict = judge(
        make_run(
            {0: (280.0, 300.0), 1: (289.0, 293.0)},
            random_mask={1: (390.0, 392.0)},
            redrawn_weights={1: (520.0, 538.0)},
        )
    )
    assert verdict.won is True
    assert [(win.level, win.sparsity, win.control, win.won) for win in verdict.wins] == [
        (1, 0.2, "random_mask", True),
        (1, 0.2, "redrawn_weights", True),
    ]
    assert verdict.sentences[1] == (
        "At 20.0% sparsity it beats the random mask (291 against 391) and the re-drawn weights (529)."
    )


def test_a_lead_within_the_spreads_is_no_win():
    # Both spreads are sqrt(2): a lead of 2.8 is under their sum of 2.83, one of 2.9 over it.
    within = judge(make_run({0: DENSE, 1: (8.0, 10.0)}, random_mask={1: (10.8, 12.8)}))
    assert (within.wins[0].won, within.won) == (False, False)
    assert said(within, "its lead over the random mask (9.00 against 11.8) is within the spread of the seeds")
    over = judge(make_run({0: DENSE, 1: (8.0, 10.0)}, random_mask={1: (10.9, 12.9)}))
    assert (over.wins[0].won, over.won) == (True, True)


def test_a_control_that_matches_too_is_said_to_be_no_evidence():
    verdict = judge(make_run({0: DENSE, 1: (9.0, 10.0)}, random_mask={1: (9.5, 10.5)}))
    assert verdict.won is False
    assert said(verdict, "The random mask matches the dense model too, up to 20.0%: no evidence that this ticket")
    assert ("random_mask", 1) in verdict.matching


def test_a_control_that_matches_only_where_pruning_is_mild():
    controls = {1: (9.0, 10.0), 2: (30.0, 31.0)}
    verdict = judge(make_run({0: DENSE, 1: (9.0, 10.0), 2: (9.0, 10.0)}, redrawn_weights=controls))
    assert verdict.won is True
    assert said(verdict, "The re-drawn weights match the dense model too, up to 20.0%; deeper, where both")


def test_a_control_that_matches_and_is_still_beaten():
    verdict = judge(make_run({0: DENSE, 1: (5.0, 5.1)}, random_mask={1: (10.0, 10.1)}))
    assert verdict.won is True
    assert said(verdict, "the ticket is the better one there, but it is not needed to match")


def test_a_control_that_matches_where_the_ticket_does_not():
    verdict = judge(make_run({0: DENSE, 1: (20.0, 21.0)}, random_mask={1: (10.0, 10.1)}))
    assert said(verdict, "The random mask matches the dense model too, up to 20.0%, where the ticket does not.")
    assert said(verdict, "it does not beat the random mask (20.5 against 10.1)")


def test_a_metric_that_is_better_when_higher_is_mirrored():
    verdict = judge(
        make_run({0: DENSE, 1: (8.5, 8.7), 2: (8.5, 8.6)}, lower_is_better=False, random_mask={1: (5.0, 5.1)})
    )
    # The bar is 10 - 1.414 = 8.586: 8.6 clears it and 8.55 does not.
    assert verdict.matches_up_to == 0.2
    assert verdict.relaxed_up_to is None
    assert verdict.wins[0].won is True
    better = judge(make_run({0: DENSE, 1: (50.0, 51.0)}, lower_is_better=False))
    assert better.matches_up_to == 0.2


def test_one_seed_has_no_spread_and_says_so():
    verdict = judge(make_run({0: (10.0,), 1: (10.5,), 2: (10.6,)}, seeds=1, random_mask={1: (10.51,)}))
    assert (verdict.matches_up_to, verdict.relaxed_up_to) == (None, 0.2)
    assert verdict.headline == (
        "The ticket stays within 5% of the dense model up to 20.0% sparsity (one seed, so no spread)."
    )
    assert verdict.wins[0].won is True
    assert said(verdict, "it beats the random mask (10.50 against 10.51)")
    assert said(verdict, "With one seed, better and worse may be chance")
    equal = judge(make_run({0: (10.0,), 1: (10.0,)}, seeds=1, random_mask={1: (10.0,)}))
    assert equal.wins[0].won is False


def test_a_seed_that_diverged_is_no_match():
    verdict = judge(make_run({0: DENSE, 1: (9.0, 10.0), 2: (9.0, "diverged")}, random_mask={2: (30.0, 31.0)}))
    assert verdict.matches_up_to == 0.2
    assert said(verdict, "At 36.0% sparsity the ticket diverged on 1 of 2 seeds.")
    assert verdict.wins[0].won is False
    first = judge(make_run({0: DENSE, 1: ("diverged", 10.0)}))
    assert "at level 1 it diverged on 1 of 2 seeds" in first.headline
    assert first.won is False


def test_a_control_that_failed():
    everywhere = judge(make_run({0: DENSE, 1: (9.0, 10.0)}, random_mask={1: ("disconnected", "diverged")}))
    assert everywhere.won is True
    assert said(everywhere, "it trains where the random mask did not")
    once = judge(make_run({0: DENSE, 1: (9.0, 10.0)}, random_mask={1: (30.0, "diverged")}))
    assert (once.wins[0].won, once.won) == (None, None)
    assert said(once, "on the one seed that came through")


def test_without_a_whole_dense_model_there_is_no_verdict():
    diverged = judge(make_run({0: (9.0, "diverged"), 1: (9.0, 10.0)}))
    assert diverged.headline == "No verdict: the dense model diverged on 1 of 2 seeds."
    assert (diverged.matches_up_to, diverged.relaxed_up_to, diverged.won) == (None, None, None)
    alone = judge(make_run({0: DENSE}))
    assert alone.headline == "No verdict yet: there is only the dense model."


def test_a_run_that_is_not_finished_says_so_and_matches_nothing_untested():
    verdict = judge(make_run({0: DENSE, 1: (9.0, "missing")}))
    assert (verdict.matches_up_to, verdict.won) == (None, None)
    assert said(verdict, "The run is not finished: 1 result of a seed")
    early = judge(make_run({0: DENSE, 1: (9.0, 10.0)}, rounds=3))
    assert said(early, "The run is not finished: 4 results of a seed")
    skipped = judge(make_run({0: DENSE, 1: (9.0, 10.0), 3: (9.0, 10.0)}))
    assert skipped.matches_up_to == 0.2


def test_a_chain_that_stopped_because_it_diverged_is_not_unfinished():
    verdict = judge(make_run({0: DENSE, 1: (9.0, "diverged"), 2: (9.0, "missing")}, rounds=2))
    assert not said(verdict, "not finished")


def test_the_controls_are_judged_at_the_deepest_level_that_matches():
    run = make_run(
        {0: DENSE, 1: (9.0, 10.0), 2: (9.0, 10.0), 3: (90.0, 91.0)},
        random_mask={1: (30.0, 31.0), 3: (40.0, 41.0)},
    )
    verdict = judge(run)
    assert (verdict.deepest_level, verdict.judged_level, verdict.won) == (2, 1, True)
    assert said(verdict, "Deeper than 20.0%, up to 36.0%, it matches too, but no control was trained there.")
    assert said(verdict, "The re-drawn weights control was not trained.")


def test_a_bar_that_says_little_is_called_one():
    assert said(judge(make_run({0: (5.0, 15.0), 1: (9.0, 10.0)})), "The dense model itself varies by 71%")
    assert said(judge(make_run({0: DENSE, 1: (9.0, 10.0)})), "how far the ticket would go was not reached")
    assert said(judge(make_run({0: DENSE, 1: (9.0, 10.0)})), "A spread over 2 seeds is a rough estimate.")


def test_unequal_numbers_of_samples_are_told():
    run = make_run({0: DENSE, 1: (9.0, 10.0)})
    run.levels[0].metrics["score"] = Metric("score", 9.0, 50, True)
    assert said(judge(run), "unequal numbers of samples (50 and 100)")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (291.3, "291"), (12345.6, "12,346"), (1.2e-6, "1.20e-06"),
     (-3.14159, "-3.14"), (math.nan, "–"), (None, "–")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_percent_never_rounds_to_all():
    assert [percent(share) for share in (0.0, 0.893, 0.99125, 0.99996, 1.0, None)] == [
        "0.0%", "89.3%", "99.12%", "99.996%", "100.0%", "–"
    ]  # fmt: skip


def test_pairs_and_lists():
    assert tell_apart(10.0, 10.0) == ("10.0", "10.0")
    assert tell_apart(10.001, 10.002) == ("10.001", "10.002")
    assert join(["a", "b", "c"]) == "a, b and c"
    assert plus_minus(judge(make_run({0: (0.0120, 0.0124)})).dense) == "0.0122 ± 0.0003"
    assert plus_minus(judge(make_run({0: (0.0122,)}, seeds=1)).dense) == "0.0122"


# -- metrics below zero, and what is not there ----------------------------------------------------------------


def test_the_relaxed_bar_of_a_metric_below_zero_is_above_it():
    """5 % of -10 is 0.5: -9.6 lies within it, -9.4 does not."""
    verdict = judge(make_run({0: (-10.0,), 1: (-9.6,), 2: (-9.4,)}, seeds=1))
    assert verdict.relaxed_up_to == 0.2
    higher = judge(make_run({0: (-10.0,), 1: (-10.4,), 2: (-10.6,)}, seeds=1, lower_is_better=False))
    assert higher.relaxed_up_to == 0.2


def test_a_noisy_bar_below_zero_is_called_one_too():
    assert said(judge(make_run({0: (-5.0, -15.0), 1: (-9.0, -10.0)})), "The dense model itself varies by 71%")


def test_a_bar_is_noisy_from_over_a_fifth_of_its_mean():
    # (10 - d, 10 + d) varies by d * sqrt(2): 14 % of 10 for d = 1, 25 % for d = 1.8.
    assert not said(judge(make_run({0: (9.0, 11.0), 1: (9.0, 10.0)})), "varies by")
    assert said(judge(make_run({0: (8.2, 11.8), 1: (9.0, 10.0)})), "The dense model itself varies by 25%")


def test_a_control_that_lacks_a_seed_is_not_beaten():
    """Two of three seeds give it a mean and a spread, and still it is not known."""
    verdict = judge(
        make_run({0: (9.0, 11.0, 10.0), 1: (9.0, 10.0, 9.5)}, seeds=3, random_mask={1: (30.0, 31.0, "missing")})
    )
    assert (verdict.wins[0].won, verdict.won) == (None, None)
    assert said(verdict, "it cannot be compared with the random mask: not every seed has a result")


def test_a_ticket_that_lacks_a_seed_beats_nothing():
    verdict = judge(make_run({0: DENSE, 1: (1.0, "missing")}, random_mask={1: (30.0, 31.0)}))
    assert (verdict.wins[0].won, verdict.won) == (None, None)


def test_a_first_level_that_failed_on_one_seed_and_misses_another_has_not_won():
    assert judge(make_run({0: DENSE, 1: ("diverged", "missing")})).won is False
    assert judge(make_run({0: DENSE, 1: ("disconnected", "missing")})).won is False


def test_only_the_ticket_does_is_said_only_where_it_does():
    run = make_run({0: DENSE, 1: (9.0, 10.0), 2: (90.0, 91.0)}, random_mask={1: (9.0, 10.0), 2: (95.0, 96.0)})
    assert not said(judge(run), "only the ticket does")
    assert said(judge(run), "no evidence that this ticket is special")


@pytest.mark.parametrize("status", ["diverged", "disconnected", "missing"])
def test_a_dense_model_that_is_not_whole_matches_nothing_and_beats_nothing(status):
    """One seed came through and the ticket is next to it: what the other would have given is not known."""
    verdict = judge(make_run({0: (9.0, status), 1: (9.0, 9.2)}, random_mask={1: (30.0, 31.0)}))
    assert (verdict.matches_up_to, verdict.relaxed_up_to, verdict.won) == (None, None, None)
    assert verdict.matching == frozenset()
    assert verdict.headline.startswith("No verdict: the dense model ")
    assert not said(verdict, "Within 5% of the dense mean")


def test_one_control_that_is_not_beaten_is_enough_to_not_have_won():
    controls = {"random_mask": {1: (30.0, 31.0)}, "redrawn_weights": {1: (9.0, 10.0)}}
    verdict = judge(make_run({0: DENSE, 1: (9.0, 10.0)}, **controls))
    assert ([win.won for win in verdict.wins], verdict.won) == ([True, False], False)
    unknown = {"random_mask": {1: (30.0, 31.0)}, "redrawn_weights": {1: (30.0, "missing")}}
    verdict = judge(make_run({0: DENSE, 1: (9.0, 10.0)}, **unknown))
    assert ([win.won for win in verdict.wins], verdict.won) == ([True, None], None)


def test_a_win_at_a_level_that_does_not_match_is_no_verdict():
    """The controls are judged where the ticket matches: a win deeper than that answers another question."""
    run = make_run({0: DENSE, 1: (9.0, 10.0), 2: (40.0, 41.0)}, random_mask={2: (90.0, 91.0)})
    verdict = judge(run)
    assert (verdict.judged_level, verdict.won) == (None, None)
    assert said(verdict, "No control was trained at a level where the ticket matches.")


def test_the_spread_of_many_seeds_is_no_rough_estimate():
    three = judge(make_run({0: (9.0, 11.0, 10.0), 1: (9.0, 10.0, 9.5)}, seeds=3))
    assert not said(three, "rough estimate")
    assert not said(three, "With one seed")

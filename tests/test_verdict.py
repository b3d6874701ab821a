"""The verdict, against cases whose answer is plain, and its words."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from gentickets.errors import RecipeError
from gentickets.lab.results import paper_rule
from gentickets.lab.results.reading import Metric, Run
from gentickets.lab.results.verdict import judge
from gentickets.lab.results.verdict_words import headline, sentences
from gentickets.lab.results.words import join, number, percent, plus_minus, tell_apart
from made_runs import make_level, make_run


def told(run: Run) -> str:
    """Headline and sentences as one text."""
    verdict = judge(run)
    return "\n".join([headline(verdict), *sentences(verdict, run)])


# Four seeds that differ by far more than their tickets do from them: what a comparison seed by seed is for.
DENSE = (9.0, 10.0, 11.0, 12.0)


def times(share: float, noise: float = 0.002, of: tuple[float, ...] = DENSE) -> tuple[float, ...]:
    """Each seed's dense value times `share`, up to a little noise that is the same each time."""
    return tuple(value * share * (1 + noise * shift) for value, shift in zip(of, (1, -1, 1.5, -1.5), strict=True))


GOOD, NOISY = times(1.0), times(1.0, noise=0.08)


def test_it_is_as_good_up_to_the_last_level_that_is_shown():
    run = make_run({0: DENSE, 1: times(0.97), 2: times(1.02), 3: times(1.2), 4: times(1.01)}, seeds=4)
    verdict = judge(run)
    assert [level.not_worse for level in verdict.levels] == ["shown", "shown", "refuted", "shown"]
    assert (verdict.matches_up_to, verdict.deepest.level) == (0.36, 2)
    assert (verdict.answer, verdict.no_verdict) == (None, "controls")
    assert verdict.not_worse["ticket", 4] == "shown"
    text = told(run)
    assert "The ticket is within 5% of the dense model up to 36.0% sparsity (4 seeds); no control was trained" in text
    assert "By themselves, not in an unbroken row, shown to be within 5% of the dense model: 59.0%" in text
    assert "Shown not to be within 5% of the dense model: 48.8% (1.20 [" in text


def test_the_spread_of_the_dense_model_is_no_allowance():
    """Each seed's ticket is 10 % worse than its dense model, and their means are within a standard deviation."""
    verdict = judge(make_run({0: DENSE, 1: times(1.1)}, seeds=4))
    assert verdict.levels[0].not_worse == "refuted"
    assert verdict.within_spread_up_to == 0.2


def test_two_dense_seeds_that_happen_to_agree_refuse_no_ticket():
    """Half a percent off is within the margin, whatever the dense seeds do; by the papers' rule it is refused."""
    run = make_run({0: (0.1413, 0.1404), 1: (0.1420, 0.1411), 2: (0.1421, 0.1410), 3: (0.1420, 0.1412)})
    verdict = judge(run)
    assert verdict.levels[0].not_worse == "shown"
    assert verdict.within_spread_up_to is None


def test_the_margin_is_the_recipes():
    run = make_run({0: DENSE, 1: times(1.08)}, seeds=4)
    assert judge(run).levels[0].not_worse == "refuted"
    run.recipe["evaluation"] = {"margin": 0.12}
    assert judge(run).levels[0].not_worse == "shown"
    assert "within 12% of the dense model" in told(run)


def test_a_winning_ticket_is_as_good_and_ahead_of_every_control():
    run = make_run({0: DENSE, 1: GOOD}, seeds=4, random_mask={1: times(1.3)}, redrawn_weights={1: times(1.5)})
    verdict = judge(run)
    assert (verdict.answer, verdict.judged.level) == ("shown", 1)
    assert [beside.answer for beside in verdict.judged.ahead] == ["shown", "shown"]
    assert verdict.judged.ahead[0].estimate.ratio == pytest.approx(1 / 1.3, rel=1e-6)
    text = told(run)
    assert "A winning ticket at 20.0% sparsity: within 5% of the dense model, and ahead of every control" in text
    assert "it is ahead of the random mask (0.769 [" in text
    assert "better in " in text


def test_the_deepest_level_that_is_shown_is_judged():
    controls = {1: times(1.3), 2: times(1.3), 3: times(1.6)}
    run = make_run({0: DENSE, 1: GOOD, 2: GOOD, 3: times(1.2)}, seeds=4, random_mask=controls)
    verdict = judge(run)
    assert (verdict.answer, verdict.judged.level) == ("shown", 2)
    assert "The re-drawn weights control was not trained." in told(run)


def test_a_control_that_is_as_good_makes_it_no_winning_ticket():
    run = make_run({0: DENSE, 1: GOOD}, seeds=4, random_mask={1: times(0.99)})
    assert judge(run).answer == "refuted"
    assert "No winning ticket at any sparsity that has controls: at 20.0% it is not ahead of the random mask" in told(
        run
    )
    assert "The random mask stays within 5% of the dense model too, up to 20.0%: a ticket is not needed" in told(run)


def test_a_ticket_that_is_worse_is_no_winning_ticket_however_far_ahead():
    run = make_run({0: DENSE, 1: times(1.3)}, seeds=4, random_mask={1: times(3)})
    assert judge(run).answer == "refuted"
    assert "at 20.0% it is already 1.30 [" in told(run)


def test_what_the_seeds_do_not_tell_is_undecided_and_how_many_more_would():
    run = make_run({0: DENSE, 1: NOISY, 2: NOISY}, seeds=4, random_mask={1: times(1.5), 2: times(1.5, 0.08)})
    verdict = judge(run)
    assert verdict.answer == "undecided"
    assert verdict.more_seeds >= 1
    assert f"some {verdict.more_seeds:.0f} more seed" in told(run)
    assert "Undecided whether within 5% of the dense model: 20.0%" in told(run)


def test_more_levels_looked_at_ask_for_more():
    """The same lead, by itself shown, is not where it is one of many that were looked for."""
    lead = (9.29, 10.4, 11.21, 12.63)
    one = make_run({0: DENSE, 1: GOOD}, seeds=4, random_mask={1: lead})
    several = {level: times(1.0, 0.002 + 0.001 * level) for level in (1, 2, 3, 4)}
    same = {level: times(1.0, 0.03) for level in (2, 3, 4)}
    many = make_run({0: DENSE, **several}, seeds=4, random_mask={1: lead, **same})
    assert judge(one).levels[0].answer == judge(many).levels[0].answer == "shown"
    assert judge(one).answer == "shown"
    assert judge(many).answer == "undecided"
    assert judge(many).levels[0].p * 4 > 0.025
    assert "by itself it is shown, but not as one of 4 levels that were looked at; some " in headline(judge(many))
    assert "judged at all levels with controls together (Holm)" in told(many)


def test_a_control_that_matches_only_where_pruning_is_mild():
    run = make_run({0: DENSE, 1: GOOD, 2: GOOD}, seeds=4, redrawn_weights={1: times(1.01), 2: times(2)})
    assert "The re-drawn weights stay within 5% of the dense model too, up to 20.0%; deeper, where both" in told(run)


def test_a_control_that_matches_where_the_ticket_does_not():
    run = make_run({0: DENSE, 1: times(2)}, seeds=4, random_mask={1: times(1.01)})
    assert "too, up to 20.0%, where the ticket is not shown to." in told(run)
    assert "it is not ahead of the random mask (1.98 [" in told(run)


@pytest.mark.parametrize("higher", [False, True])
def test_a_metric_that_is_better_when_higher_is_mirrored(higher):
    def to(share):
        return times(1 / share if higher else share)

    run = make_run(
        {0: DENSE, 1: to(1.02), 2: to(1.1)}, lower_is_better=not higher, seeds=4, random_mask={1: to(1.5), 2: to(2)}
    )
    verdict = judge(run)
    assert [level.not_worse for level in verdict.levels] == ["shown", "refuted"]
    assert (verdict.answer, verdict.judged.level) == ("shown", 1)


def test_a_metric_below_zero_has_its_margin_above():
    dense = tuple(-value for value in DENSE)
    run = make_run({0: dense, 1: times(0.98, of=dense), 2: times(0.9, of=dense)}, seeds=4)
    assert [level.not_worse for level in judge(run).levels] == ["shown", "refuted"]
    assert judge(make_run({0: (-10.0,), 1: (-9.6,)}, seeds=1)).within_spread_up_to is None


def test_one_seed_decides_nothing_and_says_so():
    run = make_run({0: (10.0,), 1: (10.0,)}, seeds=1, random_mask={1: (20.0,)})
    verdict = judge(run)
    assert (verdict.answer, verdict.matches_up_to, verdict.more_seeds) == ("undecided", None, None)
    assert "one seed tells nothing of chance" in told(run)
    assert "With one seed, better and worse may be chance" in told(run)


def test_a_seed_that_failed_refutes_its_ticket():
    run = make_run({0: DENSE, 1: GOOD, 2: (*GOOD[:3], "diverged")}, seeds=4, random_mask={2: times(3)})
    verdict = judge(run)
    assert verdict.levels[1].not_worse == "refuted"
    assert verdict.answer == "refuted"
    assert "At 36.0% sparsity the ticket diverged on 1 of 4 seeds." in told(run)


def test_a_control_that_failed():
    none = make_run({0: DENSE, 1: GOOD}, seeds=4, random_mask={1: ("disconnected",) * 3 + ("diverged",)})
    assert judge(none).answer == "shown"
    assert "it trains where the random mask did not" in told(none)
    once = make_run({0: DENSE, 1: GOOD}, seeds=4, random_mask={1: (*times(1.5)[:3], "diverged")})
    assert judge(once).answer == "shown"
    assert "which failed on 1 seed" in told(once)


@pytest.mark.parametrize("status", ["diverged", "disconnected", "missing"])
def test_without_a_whole_dense_model_there_is_no_verdict(status):
    run = make_run({0: (9.0, status), 1: (9.0, 9.2)}, random_mask={1: (30.0, 31.0)})
    verdict = judge(run)
    assert (verdict.answer, verdict.matches_up_to, verdict.no_verdict) == (None, None, "dense")
    assert set(verdict.not_worse.values()) == {"undecided"}
    assert headline(verdict).startswith("No verdict: the dense model ")
    assert headline(judge(make_run({0: (9.0, 11.0)}))) == "No verdict yet: there is only the dense model."


def test_a_run_that_is_not_finished_says_so_and_nothing_untested_is_shown():
    run = make_run({0: DENSE, 1: (*GOOD[:3], "missing")}, seeds=4, random_mask={1: times(2)})
    verdict = judge(run)
    assert (verdict.matches_up_to, verdict.answer, verdict.more_seeds) == (None, "undecided", None)
    assert "The run is not finished: 1 result of a seed" in told(run)
    assert "not every seed has a result" in headline(verdict)
    control = make_run({0: DENSE, 1: GOOD}, seeds=4, random_mask={1: (*times(2)[:3], "missing")})
    assert judge(control).answer == "undecided"
    early = make_run({0: (9.0, 11.0), 1: (9.0, 10.0)}, rounds=3)
    assert "The run is not finished: 4 results of a seed" in told(early)
    skipped = make_run({0: DENSE, 1: GOOD, 3: GOOD}, seeds=4)
    assert judge(skipped).matches_up_to == 0.2


def test_a_chain_that_stopped_because_it_diverged_is_not_unfinished():
    run = make_run({0: (9.0, 11.0), 1: (9.0, "diverged"), 2: (9.0, "missing")}, rounds=2)
    assert "not finished" not in told(run)


def test_what_was_not_tested_is_told():
    run = make_run({0: DENSE, 1: GOOD, 2: GOOD}, seeds=4, random_mask={1: times(2)})
    assert "Deeper than 20.0% no control was trained." in told(run)
    assert "how far the ticket would go was not reached" in told(run)


def test_unequal_numbers_of_samples_are_told():
    run = make_run({0: (9.0, 11.0), 1: (9.0, 10.0)})
    run.levels[0].metrics["score"] = Metric("score", 9.0, 50, True)
    assert "unequal numbers of samples (50 and 100)" in told(run)


@pytest.mark.parametrize("trained", [{}, {"random_mask": {2: times(1.5)}}])
@pytest.mark.parametrize("levels", [[2], "all", [1, 2]])
def test_a_control_that_is_still_to_be_trained_is_not_beaten(trained, levels):
    run = make_run({0: DENSE, 1: GOOD, 2: GOOD}, seeds=4, rounds=2, **trained)
    run.recipe["controls"] = {"levels": levels}
    verdict = judge(run)
    assert (verdict.answer, verdict.no_verdict) == ("undecided", None)
    at_two = verdict.levels[1].ahead
    assert [beside.why for beside in at_two] == [None if trained else "unfinished", "unfinished"]
    text = told(run)
    assert "not every seed has a result of every arm yet" in text
    assert "The run is not finished: " in text
    run.recipe["controls"] = {"levels": levels, "redrawn_weights": False, "random_mask": bool(trained)}
    assert judge(run).answer == ("shown" if trained else None)


def test_a_win_over_one_control_names_it():
    run = make_run({0: DENSE, 1: GOOD}, seeds=4, random_mask={1: times(1.5)})
    assert "and ahead of the random mask, the only control there (4 seeds)" in headline(judge(run))


@pytest.mark.parametrize("status", ["diverged", "disconnected"])
def test_a_seed_whose_chain_ended_earlier_refutes_every_deeper_ticket(status):
    short = (*GOOD[:3], "missing")
    run = make_run(
        {0: DENSE, 1: (*GOOD[:3], status), 2: short, 3: short}, seeds=4, random_mask={3: (*times(3)[:3], "missing")}
    )
    verdict = judge(run)
    assert [level.not_worse for level in verdict.levels] == ["refuted"] * 3
    assert (verdict.answer, verdict.levels[2].ticket.failed, verdict.levels[2].ticket.missing) == ("refuted", 1, 0)
    assert told(run).count("on 1 of 4 seeds.") == 1


def test_a_chain_that_ended_early_has_other_controls_and_none_is_waited_for():
    """Of nine rounds asked for, auto: at 3, 6 and 9; a chain that ended at 4 has them at 2, 3 and 4."""
    bad, ended = times(1.3), ("disconnected",) * 4
    controls = {level: times(1.3) for level in (2, 3)}
    run = make_run({0: DENSE, 1: GOOD, 2: bad, 3: GOOD, 4: ended}, seeds=4, rounds=9, random_mask=controls)
    run.recipe["controls"] = {"levels": "auto", "redrawn_weights": False}
    for seed in range(4):
        run.levels.append(make_level(seed, 4, "random_mask", "disconnected", True))
    assert judge(run).answer == "shown"
    text = told(run)
    assert "not finished" not in text
    assert "yet" not in text
    left_out = replace(run, levels=run.levels[:-1], left_out=frozenset({(3, "random_mask", 4)}))
    assert "not finished" not in told(left_out)
    waiting = replace(run, levels=run.levels[:-1])
    assert "not finished: 1 result" in told(waiting)


def test_what_is_refuted_by_a_failed_seed_is_not_told_by_the_others_ratio():
    run = make_run({0: DENSE, 1: (*GOOD[:3], "diverged"), 2: ("diverged", *GOOD[1:])}, seeds=4)
    text = told(run)
    assert "Shown not to be within" not in text
    assert "Refuted by a seed that failed: 20.0% to 36.0%." in text
    assert text.count("diverged on 1 of 4 seeds") == 2


def test_values_beyond_any_model_are_no_values():
    controls = {1: (*times(2)[:3], 1e150)}
    run = make_run({0: DENSE, 1: GOOD}, seeds=4, random_mask=controls)
    assert judge(run).answer == "shown"
    assert "which failed on 1 seed (0.500 [" in told(run)


def test_only_levels_in_a_row_are_told_as_a_range():
    shares = {1: 1.2, 2: 1.2, 3: 1.2, 4: 1.2}
    run = make_run({0: DENSE, **{level: times(share) for level, share in shares.items()}}, seeds=4)
    assert "20.0% (1.20 [1.19, 1.21]) to 59.0% (1.20 [1.19, 1.21]), 4 levels." in told(run)
    broken = make_run({0: DENSE, **{level: times(1.2) for level in (1, 2, 4)}, 3: GOOD}, seeds=4)
    assert re.search(r"to be within .*: 20\.0% \(\S+ \S+ \S+\), 36\.0% \(\S+ \S+ \S+\) and 59\.0%", told(broken))


@pytest.mark.parametrize(("margin", "text"), [(0.004, "0.4%"), (0.025, "2.5%"), (0.07, "7%"), (1, "100%")])
def test_a_margin_is_told_with_the_digits_it_has(margin, text):
    run = make_run({0: DENSE, 1: GOOD}, seeds=4)
    run.recipe["evaluation"] = {"margin": margin}
    assert f"within {text} of the dense model" in told(run)


@pytest.mark.parametrize("margin", [0, -0.1, "0.10", True, math.inf, math.nan, [0.1]])
def test_a_kept_margin_that_is_none_is_refused(margin):
    run = make_run({0: DENSE, 1: GOOD}, seeds=4)
    run.recipe["evaluation"] = {"margin": margin}
    with pytest.raises(RecipeError, match=r"recipe.yaml: evaluation.margin=.*: a share of the dense value, above 0"):
        judge(run)
    run.recipe.update({"evaluation": {}, "controls": {"levels": margin if isinstance(margin, str) else "none"}})
    with pytest.raises(RecipeError, match=r"recipe.yaml: controls.levels"):
        judge(run)


def test_a_level_that_is_sparser_on_one_seed_says_so():
    run = make_run({0: DENSE[:2], 1: GOOD[:2]})
    object.__setattr__(run.of("ticket", 1)[1], "sparsity", 0.6)
    assert "Level 1, told as 40.0%, is 20.0% to 60.0% sparse from seed to seed." in told(run)


def test_of_a_dense_value_about_zero_no_share_is_taken():
    run = make_run({0: (0.0, 0.0), 1: (0.01, 0.01)}, random_mask={1: (5.0, 6.0)})
    text = told(run)
    assert judge(run).answer == "undecided"
    assert "nothing tells how much chance there is in it (no share of a value that is about 0)" in text
    below = make_run({0: (-2.0, -2.01), 1: (-1.95, -1.97)})
    assert "(+2.24% [" in told(below)  # beside dense
    assert "differences are told, as shares of the mean that they are beside" in told(below)


# -- the papers' rule, beside it --------------------------------------------------------------------------------


@pytest.mark.parametrize(("over", "matches"), [(0.0, True), (1e-6, False), (-1e-6, True)])
def test_what_lies_exactly_on_the_line_is_within_the_spread(over, matches):
    """Dense: 9 and 11, so mean 10 and sample standard deviation sqrt(2): the bar is 11.414."""
    line = 10 + math.sqrt(2) + over
    verdict = judge(make_run({0: (9.0, 11.0), 1: (line - 0.5, line + 0.5)}))
    assert (verdict.within_spread_up_to == 0.2) is matches


def test_the_papers_rule_ends_at_its_first_gap():
    run = make_run({0: (9.0, 11.0), 1: (9.0, 10.0), 2: (30.0, 31.0), 3: (9.0, 10.0)})
    assert judge(run).within_spread_up_to == 0.2
    assert "(mean within one standard deviation of the dense mean) it matches up to 20.0%" in told(run)


def test_a_share_of_the_mean_allows_as_much_below_zero():
    """5 % of -10 is 0.5: -9.6 lies within it, -9.4 does not."""
    summary = judge(make_run({0: (-10.0,), 1: (-9.6,), 2: (-9.4,)}, seeds=1)).summary
    assert paper_rule.matches_up_to(summary, lambda dense: paper_rule.share_of(dense, 0.05), lower=True) == 0.2


# -- words ------------------------------------------------------------------------------------------------------


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

"""The verdict on a run, in words: does the ticket match the dense model, and is it the ticket that does it?

Two questions, and what counts as an answer:

- **Matches.** At a level, an arm matches where its mean over the seeds is no worse than the dense model's
  mean by more than the dense model's sample standard deviation. The relaxed form allows 5 % of the dense mean
  instead. Every seed must have come through. With one seed there is no spread: only the relaxed form is left.
- **Wins.** At a level, the ticket wins over a control where its mean is better by more than the sum of both
  standard deviations. With one seed: where it is better at all, and the words say so.

"Up to" a sparsity means that every level before it matches too. What cannot be told is None, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gentickets.lab.results import ARMS, Arm, Run, Summary
from gentickets.lab.words import count, join, percent, plus_minus, tell_apart

RELAXED = 0.05
"""The share of the dense mean that the relaxed form allows."""

NOISY = 0.2
"""A dense model whose standard deviation is over this share of its mean sets a bar that says little."""

SPREAD_RULE = "worse than the dense mean by no more than its standard deviation"
ONE_SEED_RULE = f"worse than the dense model by no more than {RELAXED:.0%}"

CONTROLS = ARMS[1:]
ARM_NAMES: dict[Arm, str] = {
    "ticket": "ticket",
    "random_mask": "random mask",
    "redrawn_weights": "re-drawn weights",
}


@dataclass(frozen=True)
class Win:
    """The ticket beside one control at one level. `won` is None where the runs do not tell."""

    level: int
    sparsity: float
    control: Arm
    won: bool | None
    ticket: Summary
    other: Summary
    why: str


@dataclass(frozen=True)
class Verdict:
    """What one run shows. Sparsities are shares, 0 to 1, and None where no level qualifies.

    `won`: True where, at the deepest matching level that has controls (`judged_level`), the ticket beats
    every control there; False where it does not match or does not beat one; None where the run does not tell.
    `matching`: every arm and level that matches by `rule`, gaps or not.
    """

    key: str
    label: str
    lower_is_better: bool
    seeds: int
    rule: str
    summary: dict[tuple[Arm, int], Summary]
    matches_up_to: float | None
    relaxed_up_to: float | None
    deepest_level: int | None
    judged_level: int | None
    matching: frozenset[tuple[Arm, int]]
    wins: list[Win]
    won: bool | None
    headline: str
    sentences: list[str]

    def at(self, arm: Arm, level: int | None) -> Summary | None:
        """The summary of an arm at a level, None where there is none."""
        return None if level is None else self.summary.get((arm, level))

    @property
    def dense(self) -> Summary | None:
        """The dense model: level 0 of the ticket chain."""
        return self.summary.get(("ticket", 0))


def within(arm: Summary | None, dense: Summary | None, allowance: float | None, lower_is_better: bool) -> bool:
    """Whether the mean of `arm` is worse than the dense one by no more than `allowance`; every seed must be there."""
    if arm is None or arm.mean is None or not arm.complete or allowance is None:
        return False
    if dense is None or dense.mean is None or not dense.complete:
        return False
    worse_by = arm.mean - dense.mean if lower_is_better else dense.mean - arm.mean
    return not _exceeds(worse_by, allowance, dense.mean)


def spread_of(dense: Summary | None) -> float | None:
    """What a match allows: the dense model's sample standard deviation, None for one seed."""
    return dense.deviation if dense else None


def share_of(dense: Summary | None) -> float | None:
    """What the relaxed form of a match allows: `RELAXED` of the dense mean."""
    return RELAXED * abs(dense.mean) if dense and dense.mean is not None else None


def judge(run: Run) -> Verdict:
    """The verdict on a run, by its primary metric."""
    return _Judge(run).verdict()


class _Judge:
    """Everything that one verdict is put together from: first what holds, then how it is said."""

    def __init__(self, run: Run):
        metric = run.metrics().get(run.primary)
        self.run = run
        self.label = metric.label if metric else run.primary
        self.lower_is_better = metric.lower_is_better if metric else True
        self.seeds = len(run.seeds)
        self.summary = run.summary(run.primary)
        self.dense = self.summary.get(("ticket", 0))
        self.levels = range(1, run.depth + 1)
        self.rule: Callable[[Summary | None], bool] = self.relaxed if self.seeds == 1 else self.within_spread

        self.matching = tuple(k for k in self.levels if self.rule(self.ticket(k)))
        self.deepest = self._up_to(self.rule)
        self.relaxed_deepest = self._up_to(self.relaxed)
        self.wins = [self._compare(level, control) for level in self.levels for control in self.controls(level)]
        self.judged = max((w.level for w in self.wins if self.deepest and w.level <= self.deepest), default=None)

    def verdict(self) -> Verdict:
        return Verdict(
            key=self.run.primary,
            label=self.label,
            lower_is_better=self.lower_is_better,
            seeds=self.seeds,
            rule=ONE_SEED_RULE if self.seeds == 1 else SPREAD_RULE,
            summary=self.summary,
            matches_up_to=None if self.seeds == 1 else self._sparsity(self.deepest),
            relaxed_up_to=self._sparsity(self.relaxed_deepest),
            deepest_level=self.deepest,
            judged_level=self.judged,
            matching=frozenset(place for place, found in self.summary.items() if place[1] and self.rule(found)),
            wins=self.wins,
            won=self._won(),
            headline=self._headline(),
            sentences=[
                *self._say_relaxed(),
                *self._say_wins(),
                *self._say_controls_that_match(),
                *self._say_what_was_not_tested(),
                *self._say_failures(),
                *self._say_caveats(),
            ],
        )

    # -- what holds ---------------------------------------------------------------------------------------

    def ticket(self, level: int) -> Summary | None:
        return self.summary.get(("ticket", level))

    def controls(self, level: int) -> list[Arm]:
        return [arm for arm in CONTROLS if (arm, level) in self.summary]

    def worse_by(self, one: float, other: float) -> float:
        """By how much `one` is worse than `other`; negative where it is better."""
        return one - other if self.lower_is_better else other - one

    def within_spread(self, arm: Summary | None) -> bool:
        return within(arm, self.dense, spread_of(self.dense), self.lower_is_better)

    def relaxed(self, arm: Summary | None) -> bool:
        return within(arm, self.dense, share_of(self.dense), self.lower_is_better)

    def _up_to(self, rule: Callable[[Summary | None], bool]) -> int | None:
        """The last level before the first that fails the rule."""
        deepest = None
        for level in self.levels:
            if not rule(self.ticket(level)):
                break
            deepest = level
        return deepest

    def _sparsity(self, level: int | None) -> float | None:
        found = self.ticket(level) if level is not None else None
        return found.sparsity if found else None

    def _compare(self, level: int, control: Arm) -> Win:
        other = self.summary[control, level]
        ticket = self.ticket(level) or Summary("ticket", level, other.sparsity, None, None, 0, missing=self.seeds)
        won, why = self._wins_over(ticket, other)
        return Win(level, ticket.sparsity, control, won, ticket, other, why)

    def _wins_over(self, ticket: Summary, other: Summary) -> tuple[bool | None, str]:
        """Whether the ticket wins, and why: `_say_wins` has the words for it."""
        if ticket.failed:
            return False, "failed"
        if ticket.missing or other.missing or ticket.mean is None:
            return None, "unfinished"
        if other.mean is None:
            return True, "control failed"
        lead = self.worse_by(other.mean, ticket.mean)
        if not _exceeds(lead, 0.0, ticket.mean):
            return False, "not better"
        if self.seeds == 1:
            return True, "better"
        if ticket.deviation is None or other.deviation is None:
            # Seeds of the control failed, and one is left: its spread is not known.
            return None, "no spread"
        clear = _exceeds(lead, ticket.deviation + other.deviation, ticket.mean)
        return (True, "better") if clear else (False, "within spread")

    def _won(self) -> bool | None:
        if self.dense is None or not self.dense.complete or not self.levels:
            return None
        if self.deepest is None:
            first = self.ticket(1)
            return None if first is None or (first.missing and not first.failed) else False
        judged = [win.won for win in self.wins if win.level == self.judged]
        if False in judged:
            return False
        return True if judged and None not in judged else None

    # -- how it is said -----------------------------------------------------------------------------------

    @property
    def over_seeds(self) -> str:
        return "one seed, so no spread" if self.seeds == 1 else count(self.seeds, "seed")

    def _headline(self) -> str:
        if self.dense is None or not self.dense.complete:
            return f"No verdict: the dense model {self._what_happened(self.dense)}."
        if not self.levels:
            return "No verdict yet: there is only the dense model."
        if self.seeds == 1:
            does, does_not, spread = (
                f"stays within {RELAXED:.0%} of",
                f"does not stay within {RELAXED:.0%} of",
                "",
            )
        else:
            does, does_not, spread = "matches", "does not match", " within its seed spread"
        later = [level for level in self.matching if level > (self.deepest or 0)]
        if self.deepest:
            up_to = f"up to {percent(self._sparsity(self.deepest))} sparsity"
            again = f" It does so again at {self._sparsities(later)}, after a gap." if later else ""
            return f"The ticket {does} the dense model{spread} {up_to} ({self.over_seeds}).{again}"
        again = f" It does at {self._sparsities(later)}, but not at every level before." if later else ""
        failure = f"{self._first_failure()} ({self.over_seeds})"
        return f"The ticket {does_not} the dense model{spread}: {failure}.{again}"

    def _first_failure(self) -> str:
        first = self.ticket(1)
        if first is None or not first.complete or first.mean is None or self.dense is None:
            return f"at level 1 it {self._what_happened(first)}"
        ours, bar = tell_apart(first.mean, self.dense.mean or 0.0)
        return f"at {percent(first.sparsity)} sparsity it is already worse, {ours} against {bar}"

    def _what_happened(self, arm: Summary | None) -> str:
        """A verb phrase: "diverged on 1 of 2 seeds"."""
        if arm is None:
            return "is missing"
        counts = (
            ("diverged", arm.diverged),
            ("lost every path through a component", arm.disconnected),
            ("is missing", arm.missing),
        )
        if self.seeds == 1:
            return " and ".join(verb for verb, n in counts if n)
        return " and ".join(f"{verb} on {n} of {count(self.seeds, 'seed')}" for verb, n in counts if n)

    def _sparsities(self, levels: Iterable[int]) -> str:
        return join(percent(self._sparsity(level)) for level in levels)

    def _say_relaxed(self) -> list[str]:
        if self.seeds == 1 or not self.levels or self.dense is None or not self.dense.complete:
            return []
        bar = f"Within {RELAXED:.0%} of the dense mean ({plus_minus(self.dense)})"
        if self.relaxed_deepest is None:
            return [f"{bar} it does not stay, even at the first level."]
        return [f"{bar} it stays up to {percent(self._sparsity(self.relaxed_deepest))}."]

    def _say_wins(self) -> list[str]:
        said = []
        for level in sorted({win.level for win in self.wins}):
            here = [win for win in self.wins if win.level == level]
            beaten = [win for win in here if win.why == "better"]
            clauses = [_say_beaten(beaten)] if beaten else []
            clauses += [self._say_other(win) for win in here if win.why != "better"]
            said.append(f"At {percent(here[0].sparsity)} sparsity {'; '.join(clauses)}.")
        return said

    def _say_other(self, win: Win) -> str:
        control = f"the {ARM_NAMES[win.control]}"
        if win.why == "failed":
            return f"it does not beat {control}: the ticket {self._what_happened(win.ticket)}"
        if win.why == "unfinished":
            return f"it cannot be compared with {control}: not every seed has a result"
        if win.why == "control failed" or win.ticket.mean is None or win.other.mean is None:
            return f"it trains where {control} did not: that {self._what_happened(win.other)}"
        ours, theirs = tell_apart(win.ticket.mean, win.other.mean)
        if win.why == "not better":
            return f"it does not beat {control} ({ours} against {theirs})"
        if win.why == "no spread":
            return f"it is better than {control} ({ours} against {theirs}), on the one seed that came through"
        return f"its lead over {control} ({ours} against {theirs}) is within the spread of the seeds"

    def _say_controls_that_match(self) -> list[str]:
        """The honest negative: a control that does as well as the dense model, where the ticket does too."""
        said = []
        for control in CONTROLS:
            tested = [win for win in self.wins if win.control == control]
            matching = [win for win in tested if self.rule(win.other)]
            if not matching:
                continue
            deepest = matching[-1]
            match = "matches" if control == "random_mask" else "match"
            start = f"The {ARM_NAMES[control]} {match} the dense model too, up to {percent(deepest.sparsity)}"
            if deepest.level not in self.matching:
                said.append(f"{start}, where the ticket does not.")
            elif any(win.level > deepest.level and win.level in self.matching for win in tested):
                said.append(f"{start}; deeper, where both were trained, only the ticket does.")
            elif deepest.won:
                said.append(f"{start}: the ticket is the better one there, but it is not needed to match.")
            else:
                said.append(f"{start}: no evidence that this ticket is special.")
        return said

    def _say_what_was_not_tested(self) -> list[str]:
        if not self.levels:
            return []
        trained = {win.control for win in self.wins}
        if not trained:
            return ["No control was trained, so the run does not tell whether another network as small would do."]
        said = [f"The {ARM_NAMES[c]} control was not trained." for c in CONTROLS if c not in trained]
        if self.deepest and self.judged is None:
            said.append("No control was trained at a level where the ticket matches.")
        elif self.deepest and self.judged and self.judged < self.deepest:
            at, deep = percent(self._sparsity(self.judged)), percent(self._sparsity(self.deepest))
            said.append(f"Deeper than {at}, up to {deep}, it matches too, but no control was trained there.")
        return said

    def _say_failures(self) -> list[str]:
        said = []
        for (arm, level), found in self.summary.items():
            if found.failed and level:
                happened = self._what_happened(found)
                said.append(f"At {percent(found.sparsity)} sparsity the {ARM_NAMES[arm]} {happened}.")
        return said

    def _missing(self) -> int:
        """How many results are still to come. A seed whose chain failed has none to come."""
        search = self.run.recipe.get("search")
        rounds = search.get("rounds") if isinstance(search, dict) else None
        depth = max(self.run.depth, rounds if isinstance(rounds, int) else 0)
        asked = {("ticket", level) for level in range(depth + 1)} | set(self.summary)
        missing = 0
        for seed in self.run.seeds:
            results = [result for result in self.run.levels if result.seed == seed]
            if not any(r.arm == "ticket" and r.status != "complete" for r in results):
                missing += len(asked - {(r.arm, r.level) for r in results})
        return missing

    def _say_caveats(self) -> list[str]:
        said = []
        if missing := self._missing():
            said.append(f"The run is not finished: {count(missing, 'result')} of a seed at a level still to come.")
        if self.deepest is not None and self.deepest == self.run.depth:
            said.append("The deepest level still matches: how far the ticket would go was not reached.")
        if self.seeds == 1:
            said.append("With one seed, better and worse may be chance: nothing here is measured against a spread.")
        elif self.seeds == 2:
            said.append("A spread over 2 seeds is a rough estimate.")
        if self.dense and self.dense.mean and self.dense.deviation is not None:
            share = self.dense.deviation / abs(self.dense.mean)
            if share > NOISY:
                said.append(f"The dense model itself varies by {share:.0%} between seeds, so to match it says little.")
        samples = {r.metrics[r.primary].samples for r in self.run.levels if r.primary in r.metrics}
        if len(samples) > 1:
            counts = join(f"{count:,}" for count in sorted(s for s in samples if s is not None))
            said.append(f"The levels were measured on unequal numbers of samples ({counts}): compare with care.")
        return said


def _say_beaten(wins: list[Win]) -> str:
    """`it beats the random mask (291 against 391) and the re-drawn weights (529)`."""
    said: list[str] = []
    for win in wins:
        ours, theirs = tell_apart(win.ticket.mean or 0.0, win.other.mean or 0.0)
        numbers = theirs if said else f"{ours} against {theirs}"
        said.append(f"the {ARM_NAMES[win.control]} ({numbers})")
    return f"it beats {join(said)}"


def _exceeds(value: float, allowance: float, scale: float) -> bool:
    """True where `value` is over `allowance` by more than rounding: what is on the line is not over it."""
    return value > allowance and not math.isclose(value, allowance, rel_tol=1e-9, abs_tol=1e-12 * abs(scale))

"""The verdict in words: a headline, and sentences that say what it rests on and what it leaves open."""

from __future__ import annotations

from collections.abc import Sequence

from gentickets.lab.results.baseline import still_falling, told
from gentickets.lab.results.estimation import MOST_SEEDS, Answer, Estimate
from gentickets.lab.results.reading import Run, Summary
from gentickets.lab.results.verdict import ARM_NAMES, CONTROLS, Beside, Level, Verdict
from gentickets.lab.results.words import count, join, number, percent

PILLS: dict[Answer | None, str] = {
    "shown": "A winning ticket",
    "refuted": "Not a winning ticket",
    "undecided": "Undecided",
    None: "No verdict",
}


def headline(verdict: Verdict) -> str:
    """One sentence: whether there is a winning ticket, at which sparsity, over how many seeds."""
    over = "one seed" if verdict.seeds == 1 else count(verdict.seeds, "seed")
    dense = f"within {verdict.margin:.0%} of the dense model"
    if verdict.no_verdict == "dense":
        return f"No verdict: the dense model {_what_happened(verdict.dense, verdict.seeds)}."
    if verdict.no_verdict == "baseline" and verdict.dense and verdict.reference:
        far = told(verdict.dense, verdict.reference)
        return f"No verdict: the dense model is not trained far enough to compare: {far} ({over})."
    if verdict.no_verdict == "levels":
        return "No verdict yet: there is only the dense model."
    if verdict.no_verdict == "controls" or verdict.judged is None:
        reached = f"The ticket is {dense} up to {percent(verdict.matches_up_to)} sparsity" if verdict.deepest else ""
        reached = reached or f"That the ticket stays {dense} is shown at no sparsity"
        return f"{reached} ({over}); no control was trained, so nothing says that it is the ticket that does it."
    at = percent(verdict.judged.sparsity)
    if verdict.answer == "shown":
        return f"A winning ticket at {at} sparsity: {dense}, and ahead of every control ({over})."
    if verdict.answer == "refuted":
        return f"No winning ticket at any sparsity that has controls: {_refuted(verdict)} ({over})."
    return f"Undecided whether there is a winning ticket at {at} sparsity ({over}): {_more(verdict)}."


def sentences(verdict: Verdict, run: Run) -> list[str]:
    """What was found level by level, and all that has to be known to read it right."""
    return [
        *_say_reach(verdict),
        *_say_controls(verdict),
        *_say_controls_that_match(verdict),
        *_say_what_was_not_tested(verdict),
        *_say_failures(verdict),
        *_say_caveats(verdict, run),
        *_say_rules(verdict),
    ]


def ratio(estimate: Estimate | None) -> str:
    """`1.02 [0.98, 1.06]`; the ratio alone for one seed."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return number(estimate.ratio)
    return f"{number(estimate.ratio)} [{number(estimate.low)}, {number(estimate.high)}]"


# -- the dense model ----------------------------------------------------------------------------------------


def _say_reach(verdict: Verdict) -> list[str]:
    """How the ticket stands to the dense model, from level to level."""
    if verdict.no_verdict in ("dense", "levels"):
        return []
    said, bound = [], f"within {verdict.margin:.0%} of the dense model"
    if verdict.deepest:
        found = f"{ratio(verdict.deepest.to_dense)} of dense there"
        said.append(f"Shown to be {bound} up to {percent(verdict.deepest.sparsity)} sparsity ({found}).")
    after = [level for level in verdict.levels if level.level > (verdict.deepest.level if verdict.deepest else 0)]
    for answer, words in (
        ("shown", f"By themselves, not in an unbroken row, shown to be {bound}"),
        ("undecided", f"Undecided whether {bound}"),
        ("refuted", f"Shown not to be {bound}"),
    ):
        here = [level for level in after if level.not_worse == answer and level.to_dense]
        if here:
            said.append(f"{words}: {_levels(here)}.")
    return said


def _levels(levels: Sequence[Level]) -> str:
    """`78.4% (1.03 [0.98, 1.08])`; of many the first and the last."""
    told = [f"{percent(level.sparsity)} ({ratio(level.to_dense)})" for level in levels]
    return join(told) if len(told) < 4 else f"{told[0]} to {told[-1]}, {len(told)} levels"


def _refuted(verdict: Verdict) -> str:
    controlled = [level for level in verdict.levels if level.ahead]
    worse = [level for level in controlled if level.not_worse == "refuted"]
    if len(worse) == len(controlled):
        at = worse[0]
        if at.ticket.failed:
            return f"at {percent(at.sparsity)} it {_what_happened(at.ticket, verdict.seeds)}"
        return f"at {percent(at.sparsity)} it is already {ratio(at.to_dense)} of the dense model"
    at = next(level for level in controlled if level.not_worse != "refuted")
    beaten = join(f"the {ARM_NAMES[b.control]}" for b in at.ahead if b.answer == "refuted")
    return f"at {percent(at.sparsity)} it is not ahead of {beaten}"


def _more(verdict: Verdict) -> str:
    if verdict.seeds == 1:
        return "one seed tells nothing of chance"
    assert verdict.judged is not None
    if verdict.judged.ticket.missing or any(beside.why == "unfinished" for beside in verdict.judged.ahead):
        return "not every seed has a result"
    if verdict.more_seeds is None:
        return f"not even {MOST_SEEDS} seeds would decide it as things stand"
    return f"some {count(verdict.more_seeds, 'more seed')} would decide it, if mean and spread stay as they are"


# -- the controls -------------------------------------------------------------------------------------------


def _say_controls(verdict: Verdict) -> list[str]:
    return [
        f"At {percent(level.sparsity)} sparsity {'; '.join(_say_beside(b, verdict.seeds) for b in level.ahead)}."
        for level in verdict.levels
        if level.ahead
    ]


def _say_beside(beside: Beside, seeds: int) -> str:
    control = f"the {ARM_NAMES[beside.control]}"
    if beside.why == "failed":
        return f"it is not ahead of {control}: it failed"
    if beside.why == "unfinished":
        return f"it cannot be compared with {control}: not every seed has a result"
    if beside.estimate is None:
        return f"it trains where {control} did not: that {_what_happened(beside.other, seeds)}"
    words = {
        "shown": f"it is ahead of {control}",
        "refuted": f"it is not ahead of {control}",
        "undecided": f"undecided whether it is ahead of {control}",
    }[beside.answer]
    failed = f", which failed on {count(beside.other.failed, 'seed')}" if beside.other.failed else ""
    return f"{words}{failed} ({ratio(beside.estimate)} of it; better in {beside.estimate.better:.0%} of pairs of seeds)"


def _say_controls_that_match(verdict: Verdict) -> list[str]:
    """The honest negative: a control that is shown to do as well as the dense model."""
    said = []
    for control in CONTROLS:
        tested = [level for level in verdict.levels if any(b.control == control for b in level.ahead)]
        matching = [level for level in tested if verdict.not_worse.get((control, level.level)) == "shown"]
        if not matching:
            continue
        deepest = matching[-1]
        stays = "stays" if control == "random_mask" else "stay"
        start = f"The {ARM_NAMES[control]} {stays} within {verdict.margin:.0%} of the dense model too"
        start += f", up to {percent(deepest.sparsity)}"
        if deepest.not_worse != "shown":
            said.append(f"{start}, where the ticket is not shown to.")
        elif any(level.level > deepest.level and level.not_worse == "shown" for level in tested):
            said.append(f"{start}; deeper, where both were trained, only the ticket does.")
        else:
            said.append(f"{start}: a ticket is not needed for that.")
    return said


def _say_what_was_not_tested(verdict: Verdict) -> list[str]:
    trained = {beside.control for level in verdict.levels for beside in level.ahead}
    if not verdict.levels or not trained:
        return []
    said = [f"The {ARM_NAMES[c]} control was not trained." for c in CONTROLS if c not in trained]
    controlled = [level.level for level in verdict.levels if level.ahead]
    if verdict.deepest and max(controlled) < verdict.deepest.level:
        said.append(f"Deeper than {_at(verdict, max(controlled))} no control was trained.")
    return said


def _at(verdict: Verdict, level: int) -> str:
    return percent(next(found.sparsity for found in verdict.levels if found.level == level))


# -- what went wrong, and what to know ----------------------------------------------------------------------


def _say_failures(verdict: Verdict) -> list[str]:
    return [
        f"At {percent(found.sparsity)} sparsity the {ARM_NAMES[arm]} {_what_happened(found, verdict.seeds)}."
        for (arm, level), found in verdict.summary.items()
        if found.failed and level
    ]


def _what_happened(arm: Summary | None, seeds: int) -> str:
    """A verb phrase: "diverged on 1 of 2 seeds"."""
    if arm is None:
        return "is missing"
    counts = (
        ("diverged", arm.diverged),
        ("lost every path through a component", arm.disconnected),
        ("is missing", arm.missing),
    )
    if seeds == 1:
        return " and ".join(verb for verb, n in counts if n)
    return " and ".join(f"{verb} on {n} of {count(seeds, 'seed')}" for verb, n in counts if n)


def _say_baseline(verdict: Verdict, run: Run) -> list[str]:
    """Whether the dense model is one to compare with."""
    if verdict.no_verdict in ("dense", "levels"):
        return []
    said = []
    if verdict.reference is None:
        said.append("No reference of this dense model is known: whether it was trained far enough was not judged.")
    elif verdict.dense and verdict.no_verdict != "baseline":
        said.append(f"The dense model is as good as its reference: {told(verdict.dense, verdict.reference)}.")
    fall = still_falling(run)
    if fall is not None and fall > verdict.margin:
        quarters = f"its training loss fell by {fall:.0%} from the third quarter to the last"
        said.append(f"The dense model was still learning: {quarters}.")
    return said


def _say_caveats(verdict: Verdict, run: Run) -> list[str]:
    said = _say_baseline(verdict, run)
    if missing := _missing(run, verdict):
        said.append(f"The run is not finished: {count(missing, 'result')} of a seed at a level still to come.")
    if verdict.deepest is not None and verdict.deepest.level == run.depth:
        said.append("The deepest level is shown too: how far the ticket would go was not reached.")
    samples = {r.metrics[r.primary].samples for r in run.levels if r.primary in r.metrics}
    if len(samples) > 1:
        counts = join(f"{count:,}" for count in sorted(s for s in samples if s is not None))
        said.append(f"The levels were measured on unequal numbers of samples ({counts}): compare with care.")
    return said


def _missing(run: Run, verdict: Verdict) -> int:
    """How many results are still to come. A seed whose chain failed has none to come."""
    search = run.recipe.get("search")
    rounds = search.get("rounds") if isinstance(search, dict) else None
    depth = max(run.depth, rounds if isinstance(rounds, int) else 0)
    asked = {("ticket", level) for level in range(depth + 1)} | set(verdict.summary)
    missing = 0
    for seed in run.seeds:
        results = [result for result in run.levels if result.seed == seed]
        if not any(r.arm == "ticket" and r.status != "complete" for r in results):
            missing += len(asked - {(r.arm, r.level) for r in results})
    return missing


def _say_rules(verdict: Verdict) -> list[str]:
    """What the intervals rest on; and what the field's rule says of the same numbers."""
    if verdict.no_verdict in ("dense", "levels"):
        return []
    if verdict.seeds == 1:
        return ["With one seed, better and worse may be chance: there is no interval, and nothing is shown."]
    methods = {level.to_dense.method for level in verdict.levels if level.to_dense}
    said = [f"Ratios are taken seed by seed; intervals are 95 % ({join(sorted(methods))})."] if methods else []
    reach = verdict.within_spread_up_to
    found = f"up to {percent(reach)}" if reach is not None else "at no level"
    said.append(f"By the papers' rule (mean within one standard deviation of the dense mean) it matches {found}.")
    return said

"""The verdict in words: a headline, and sentences that say what it rests on and what it leaves open."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gentickets.lab.results.baseline import ALLOWED, Reference, overfits, still_falling, told, worse_by
from gentickets.lab.results.estimation import MOST_SEEDS, Answer, Estimate
from gentickets.lab.results.reading import Run
from gentickets.lab.results.summary import Summary, asked_of
from gentickets.lab.results.verdict import ARM_NAMES, Beside, Level, Verdict
from gentickets.lab.results.words import count, join, number, percent, share
from gentickets.options import CONTROLS

_FALL = 0.05
"""By so much the training loss of a dense model falls in its last quarter that was still learning."""

_UNEQUAL = 0.01
"""Sparsities of one level that are further apart are told."""

PILLS: dict[Answer | None, str] = {
    "shown": "A winning ticket",
    "refuted": "Not a winning ticket",
    "undecided": "Undecided",
    None: "No verdict",
}


def headline(verdict: Verdict) -> str:
    """One sentence: whether there is a winning ticket, at which sparsity, over how many seeds."""
    over = "one seed" if verdict.seeds == 1 else count(verdict.seeds, "seed")
    dense, sparsity = f"within {share(verdict.margin)} of the dense model", f"sparsity{verdict.of_part}"
    if verdict.no_verdict == "dense":
        return f"No verdict: the dense model {_what_happened(verdict.dense, verdict.seeds)}."
    if verdict.no_verdict == "baseline" and verdict.lag:
        means = f"{number(verdict.lag.averaged)}, and the weights that it is of {number(verdict.lag.raw)}"
        return (
            f"No verdict: the average of the dense model's weights lags behind them: it is at {means} ({over}). Train "
            f"longer, or average over fewer steps (training.ema)."
        )
    if verdict.no_verdict == "baseline" and verdict.dense and verdict.reference:
        far = told(verdict.dense, verdict.reference)
        return f"No verdict: the dense model is not trained far enough to compare: {far} ({over})."
    if verdict.no_verdict == "levels":
        return "No verdict yet: there is only the dense model."
    if verdict.no_verdict == "controls" or verdict.judged is None:
        reached = f"The ticket is {dense} up to {percent(verdict.matches_up_to)} {sparsity}" if verdict.deepest else ""
        reached = reached or f"That the ticket stays {dense} is shown at no sparsity"
        return f"{reached} ({over}); no control was trained, so nothing says that it is the ticket that does it."
    at = percent(verdict.judged.sparsity)
    if verdict.answer == "shown":
        return f"A winning ticket at {at} {sparsity}: {dense}, and ahead of {_controls(verdict.judged)} ({over})."
    if verdict.answer == "refuted":
        return f"No winning ticket at any {sparsity} that has controls: {_refuted(verdict)} ({over})."
    return f"Undecided whether there is a winning ticket at {at} {sparsity} ({over}): {_open(verdict)}."


def sentences(verdict: Verdict, run: Run) -> list[str]:
    """What was found level by level, and all that has to be known to read it right."""
    return [
        *_say_part(verdict),
        *_say_reach(verdict),
        *_say_controls(verdict),
        *_say_controls_that_match(verdict),
        *_say_what_was_not_tested(verdict),
        *_say_failures(verdict),
        *_say_caveats(verdict, run),
        *_say_rulers(run),
        *_say_rules(verdict),
    ]


def ratio(estimate: Estimate | None) -> str:
    """`1.02 [0.98, 1.06]`, of differences `+2.1% [-1.9%, +6.0%]`; without ends where there is no interval."""
    if estimate is None or math.isnan(estimate.ratio):
        return "–"
    told = number if estimate.logarithms else _change
    mean, *ends = (told(of) for of in (estimate.ratio, estimate.low, estimate.high) if of is not None)
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def _of(estimate: Estimate | None, what: str) -> str:
    """`1.02 [0.98, 1.06] of dense`; of differences `+2.1% [-1.9%, +6.0%] beside dense`."""
    return f"{ratio(estimate)} {'of' if estimate is None or estimate.logarithms else 'beside'} {what}"


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.3g}%"


def _say_part(verdict: Verdict) -> list[str]:
    """What sparsities are of, where that is not the whole network."""
    part, level = verdict.part, verdict.judged or verdict.deepest or (verdict.levels[-1] if verdict.levels else None)
    if part is None or part.is_whole or level is None:
        return []
    where = f" in the {join(part.components)}" if all(part.components) else ""
    return [
        f"Sparsity is of the {part.masked:,} weights{where} that are masked, not of the network's {part.parameters:,} "
        f"parameters: {percent(level.sparsity)} of these is {percent(part.of_network(level.sparsity))} of all."
    ]


# -- the dense model ----------------------------------------------------------------------------------------


def _say_reach(verdict: Verdict) -> list[str]:
    """How the ticket stands to the dense model, from level to level."""
    if verdict.no_verdict in ("dense", "baseline", "levels"):
        return []
    said, bound = [], f"within {share(verdict.margin)} of the dense model"
    if verdict.deepest:
        found = f"{_of(verdict.deepest.to_dense, 'dense')} there"
        said.append(f"Shown to be {bound} up to {percent(verdict.deepest.sparsity)} sparsity ({found}).")
    after = [level for level in verdict.levels if level.level > (verdict.deepest.level if verdict.deepest else 0)]
    for answer, words in (
        ("shown", f"By themselves, not in an unbroken row, shown to be {bound}"),
        ("undecided", f"Undecided whether {bound}"),
        ("refuted", f"Shown not to be {bound}"),
    ):
        here = [level for level in after if level.not_worse == answer and level.to_dense and not level.ticket.failed]
        if here:
            said.append(f"{words}: {_levels(here)}.")
    if failed := [percent(level.sparsity) for level in verdict.levels if level.ticket.failed]:
        said.append(f"Refuted by a seed that failed: {failed[0]}{f' to {failed[-1]}' if failed[1:] else ''}.")
    return said


def _levels(levels: Sequence[Level]) -> str:
    """`78.4% (1.03 [0.98, 1.08])`; of many in a row the first and the last."""
    rows: list[list[str]] = []
    last = None
    for level in levels:
        if last is None or level.level != last + 1:
            rows.append([])
        rows[-1].append(f"{percent(level.sparsity)} ({ratio(level.to_dense)})")
        last = level.level
    return join(told for row in rows for told in ([f"{row[0]} to {row[-1]}, {len(row)} levels"] if row[3:] else row))


def _refuted(verdict: Verdict) -> str:
    controlled = [level for level in verdict.levels if level.ahead]
    worse = [level for level in controlled if level.not_worse == "refuted"]
    if len(worse) == len(controlled):
        at = worse[0]
        if at.ticket.failed:
            return f"at {percent(at.sparsity)} it {_what_happened(at.ticket, verdict.seeds)}"
        return f"at {percent(at.sparsity)} it is already {_of(at.to_dense, 'the dense model')}"
    at = next(level for level in controlled if level.not_worse != "refuted")
    beaten = join(f"the {ARM_NAMES[b.control]}" for b in at.ahead if b.answer == "refuted")
    return f"at {percent(at.sparsity)} it is not ahead of {beaten}"


def _open(verdict: Verdict) -> str:
    """What leaves it open, and how many seeds would probably close it."""
    judged = verdict.judged
    assert judged is not None
    if judged.unfinished:
        return "not every seed has a result of every arm yet"
    if verdict.seeds == 1:
        return "one seed tells nothing of chance"
    start, looked_at = "", sum(bool(level.ahead) for level in verdict.levels)
    if judged.answer == "shown":
        start = f"by itself it is shown, but not as one of {looked_at} levels that were looked at; "
    if verdict.more_seeds is None:
        open_ones = [judged.to_dense, *(beside.estimate for beside in judged.ahead if beside.why is None)]
        why = next((found.method for found in open_ones if found and found.low is None), "seeds that have a result")
        return f"{start}nothing tells how much chance there is in it ({why})"
    if math.isinf(verdict.more_seeds):
        agreed = judged.if_networks_agreed.more_seeds(verdict.margin, looked_at)
        differ = agreed is not None and math.isfinite(agreed)
        why = ": the networks that measure it differ by too much, and more of them would (evaluate --classifiers)"
        return f"{start}not even {MOST_SEEDS} seeds would decide it as things stand{why if differ else ''}"
    return f"{start}some {count(int(verdict.more_seeds), 'more seed')} would probably decide it"


# -- the controls -------------------------------------------------------------------------------------------


def _controls(level: Level) -> str:
    """The controls that a level was compared with, by name where these are not both."""
    names = [ARM_NAMES[beside.control] for beside in level.ahead]
    return "every control" if len(names) == len(CONTROLS) else f"the {join(names)}, the only control there"


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
        return f"it cannot be compared with {control} yet: not every seed has a result"
    if beside.estimate is None:
        return f"it trains where {control} did not: that {_what_happened(beside.other, seeds)}"
    words = {
        "shown": f"it is ahead of {control}",
        "refuted": f"it is not ahead of {control}",
        "undecided": f"undecided whether it is ahead of {control}",
    }[beside.answer]
    failed = f", which failed on {count(beside.other.failed, 'seed')}" if beside.other.failed else ""
    return f"{words}{failed} ({_of(beside.estimate, 'it')}; better in {beside.estimate.better:.0%} of pairs of seeds)"


def _say_controls_that_match(verdict: Verdict) -> list[str]:
    """The honest negative: a control that is shown to do as well as the dense model."""
    said: list[str] = []
    for control in CONTROLS if verdict.no_verdict != "baseline" else ():
        tested = [level for level in verdict.levels if any(b.control == control for b in level.ahead)]
        matching = [level for level in tested if verdict.not_worse.get((control, level.level)) == "shown"]
        if not matching:
            continue
        deepest = matching[-1]
        stays = "stays" if control == "random_mask" else "stay"
        start = f"The {ARM_NAMES[control]} {stays} within {share(verdict.margin)} of the dense model too"
        start += f", up to {percent(deepest.sparsity)}"
        if deepest.not_worse != "shown":
            said.append(f"{start}, where the ticket is not shown to.")
        elif any(level.level > deepest.level and level.not_worse == "shown" for level in tested):
            said.append(f"{start}; deeper, where both were trained, only the ticket does.")
        else:
            said.append(f"{start}: a ticket is not needed for that.")
    return said


def _say_what_was_not_tested(verdict: Verdict) -> list[str]:
    trained = {
        beside.control for level in verdict.levels for beside in level.ahead if beside.other.n + beside.other.failed
    }
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
        if (found.diverged or found.disconnected) and level
    ]


def _what_happened(arm: Summary | None, seeds: int) -> str:
    """A verb phrase: "diverged on 1 of 2 seeds"."""
    if arm is None:
        return "is missing"
    counts = (
        ("diverged", arm.diverged),
        ("lost every path through a component", arm.disconnected),
        ("had ended before", arm.ended),
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
        said += _say_reference(verdict.dense, verdict.reference, run)
    fall = still_falling(run)
    if fall is not None and fall > _FALL:
        quarters = f"its training loss fell by {fall:.0%} from the third quarter to the last"
        said.append(f"The dense model was still learning: {quarters}.")
    return said


def _say_reference(dense: Summary, reference: Reference, run: Run) -> list[str]:
    """How the dense model stands to its reference, and whether it goes on past its best."""
    away = worse_by(dense, reference)
    bound = f"not worse than its reference by more than {share(ALLOWED)}"
    if away > ALLOWED:
        bound = f"worse than its reference by {away:.0%}, which may be chance"
    said = [f"The dense model is {bound}: {told(dense, reference)}."]
    if overfits(run, reference):
        best, full = reference.best, reference.full
        ends = f"{number(best.mean)} after {best.steps:,} steps, {number(full.mean)} after {full.steps:,}"
        said.append(
            f"It overfits: dense models that stop earlier are better ({ends}), and none was judged beside these."
        )
    return said


def _say_caveats(verdict: Verdict, run: Run) -> list[str]:
    said = _say_baseline(verdict, run)
    if missing := _missing(run):
        said.append(f"The run is not finished: {count(missing, 'result')} of a seed at a level still to come.")
    if verdict.deepest is not None and verdict.deepest.level == run.depth:
        said.append("The deepest level is shown too: how far the ticket would go was not reached.")
    for level in verdict.levels:
        found = sorted(result.sparsity for result in run.of("ticket", level.level))
        if found[-1] - found[0] > _UNEQUAL:
            ends = f"{percent(found[0])} to {percent(found[-1])}"
            said.append(f"Level {level.level}, told as {percent(level.sparsity)}, is {ends} sparse from seed to seed.")
    return said


def _say_rulers(run: Run) -> list[str]:
    """What of the measuring itself has to be known."""
    said = []
    measured = [result.metrics[result.primary] for result in run.levels if result.primary in result.metrics]
    networks = {len(metric.by_network or ()) for metric in measured}
    if networks == {0} and run.origin.get("features") and "classifier" in measured[0].label:
        said.append(
            "Measured by one classifier: another would see the ratio some 5% otherwise, which no interval holds."
        )
    elif len(networks) > 1:
        said.append("Not all levels keep what each network found: of those the spread over networks is in no interval.")
    samples = {metric.samples for metric in measured}
    if len(samples) > 1:
        counts = join(f"{count:,}" for count in sorted(s for s in samples if s is not None))
        said.append(f"The levels were measured on unequal numbers of samples ({counts}): compare with care.")
    return said


def _missing(run: Run) -> int:
    """How many results are still to come."""
    there = {(result.seed, result.arm, result.level) for result in run.levels}
    return sum((seed, *place) not in there for seed in run.seeds for place in asked_of(run, seed))


def _say_rules(verdict: Verdict) -> list[str]:
    """What the intervals rest on; and what the field's rule says of the same numbers."""
    if verdict.no_verdict in ("dense", "levels"):
        return []
    if verdict.seeds == 1:
        return ["With one seed, better and worse may be chance: there is no interval, and nothing is shown."]
    estimates = [level.to_dense for level in verdict.levels if level.to_dense and level.to_dense.low is not None]
    methods = {estimate.method for estimate in estimates}
    said = [f"Ratios are taken seed by seed; intervals are 95 % ({join(sorted(methods))})."] if methods else []
    if not all(estimate.logarithms for estimate in estimates):
        said.append(
            "Of values that are not all above 0 differences are told, as shares of the mean that they are beside."
        )
    if sum(bool(level.ahead) for level in verdict.levels) > 1 and verdict.answer:
        said.append(
            "That a ticket wins is judged at all levels with controls together (Holm); each interval by itself."
        )
    reach = verdict.within_spread_up_to
    found = f"up to {percent(reach)}" if reach is not None else "at no level"
    said.append(f"By the papers' rule (mean within one standard deviation of the dense mean) it matches {found}.")
    return said

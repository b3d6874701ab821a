"""Scores as plain data, from whatever loop, read as the results of a run."""

from __future__ import annotations

import difflib
import itertools
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from gentickets.errors import ScoreError
from gentickets.lab.results.reading import ARMS, Arm, LevelResult, Metric, Run
from gentickets.lab.results.words import percent

DENSE = "dense"
_KNOWN = (DENSE, *ARMS)
_KEY = "score"
_NOWHERE = Path(os.devnull)
"""A folder in which there never is a file."""

_SAME = 0.005
"""Densities that differ by less than this share are one level that was written in two ways."""

_SHAPE = (
    'scores are {"dense": {seed: value}, "ticket": {level: {seed: value}}, "random_mask": …, "redrawn_weights": …}, '
    "or rows (arm, level, seed, value)"
)

Scores = Mapping[str, Any] | Iterable[Any]
Place = tuple[Arm, float | int, int]
"""Arm, level or sparsity, and seed."""


def run_of(
    scores: Scores,
    *,
    margin: float,
    lower_is_better: bool,
    metric: str,
    title: str,
    sparsities: Mapping[int, float] | None,
) -> Run:
    """Scores as a run without a folder, which is judged as any other. Raises `ScoreError`."""
    share = _number(margin) if not isinstance(margin, str) else None
    if share is None or not 0 < share < math.inf:
        raise ScoreError(f"margin={margin!r}: a share of the dense model's value, above 0, such as 0.05")
    found: dict[Place, float] = {}
    told: dict[int, dict[Place, float]] = {}
    for arm, level, seed, value, sparsity in _rows(scores):
        place = (*_arm_and_level(arm, level), _seed(seed))
        if place in found:
            raise ScoreError(f"two scores of {_said(*place)}: one value for each seed")
        if isinstance(sparsity, Real) and isinstance(place[1], int):
            if not 0 <= float(sparsity) < 1:
                raise ScoreError(f"sparsity {sparsity!r} of {_said(*place)}: a share from 0 to below 1")
            told.setdefault(place[1], {})[place] = float(sparsity)
        if value is not None:  # one that is to come
            found[place] = _value(value, place)
    if not found:
        raise ScoreError(f"there is no score: {_SHAPE}")
    numbered = _numbered({level for _, level, _ in found}, {**_typical(told), **_sparsities(sparsities or {})})
    seeds = sorted({seed for *_, seed in found})
    levels = []
    for (arm, level, seed), value in found.items():
        number, sparsity = numbered[level]
        own = told.get(number, {}).get((arm, level, seed), sparsity)
        levels.append(_result(arm, number, own, seed, value, Metric(metric, value, None, lower_is_better)))
    levels.sort(key=lambda result: (result.seed, result.level, ARMS.index(result.arm)))
    recipe = {"title": title, "seeds": seeds, "evaluation": {"margin": float(margin)}}
    return Run(_NOWHERE, metric, recipe, {}, levels)


def _result(arm: Arm, level: int, sparsity: float, seed: int, value: float, metric: Metric) -> LevelResult:
    came_through = math.isfinite(value)
    return LevelResult(
        seed=seed,
        level=level,
        arm=arm,
        status="complete" if came_through else "diverged",
        sparsity=sparsity,
        alive=0,
        total=0,
        primary=_KEY,
        start_step=0,
        end_step=0,
        metrics={_KEY: metric} if came_through else {},
        folder=_NOWHERE,
    )


# -- reading what was written -------------------------------------------------------------------------------


def _rows(scores: Scores) -> Iterator[tuple[Any, Any, Any, Any, Any]]:
    """(arm, level, seed, value, sparsity) of whatever form the scores have."""
    if isinstance(scores, Mapping):
        for arm, cells in scores.items():
            _check_arm(arm)
            for level, cell in {0: cells}.items() if arm == DENSE else _levels_of(arm, cells):
                for seed, value in _cell(cell, f"scores[{arm!r}]" + ("" if arm == DENSE else f"[{level!r}]")):
                    yield arm, level, seed, value, None
        return
    if isinstance(scores, str) or not isinstance(scores, Iterable):
        raise ScoreError(f"{_SHAPE}; not a {type(scores).__name__}")
    for number, row in enumerate(scores):
        yield _row(row, number)


def _levels_of(arm: str, cells: object) -> Iterable[tuple[Any, Any]]:
    if not isinstance(cells, Mapping) or not all(isinstance(cell, Mapping | Sequence) for cell in cells.values()):
        raise ScoreError(
            f"scores[{arm!r}] is {{level: {{seed: value}}}}, a level being its number or its sparsity; "
            f"not {_short(cells)}"
        )
    return cells.items()


def _cell(cell: object, where: str) -> Iterable[tuple[Any, Any]]:
    """(seed, value), the seeds being 0, 1, … where they are not said."""
    if isinstance(cell, Mapping):
        return cell.items()
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        return enumerate(cell)
    raise ScoreError(f"{where} is {{seed: value}}; not {_short(cell)}")


def _row(row: object, number: int) -> tuple[Any, Any, Any, Any, Any]:
    if isinstance(row, Mapping):
        for key in ("arm", "seed", "value"):
            if key not in row:
                raise ScoreError(f"row {number} of the scores has no {key!r}: it has {', '.join(map(str, row))}")
        level = row.get("sparsity") if row.get("level") is None else row["level"]
        if level is None and row["arm"] != DENSE:
            raise ScoreError(f"row {number} of the scores has neither 'level' nor 'sparsity'")
        return row["arm"], level or 0, row["seed"], row["value"], row.get("sparsity")
    if isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 4:
        return *row, None
    raise ScoreError(f"row {number} of the scores is (arm, level, seed, value), or a dict of these; not {_short(row)}")


def _check_arm(arm: object) -> None:
    if arm not in _KNOWN:
        near = difflib.get_close_matches(str(arm).replace(" ", "_"), _KNOWN, n=1, cutoff=0.4)
        raise ScoreError(f"arm {arm!r} is none of {', '.join(_KNOWN)}{f' (did you mean {near[0]!r}?)' if near else ''}")


def _arm_and_level(arm: Any, level: Any) -> tuple[Arm, float | int]:
    """The dense model is level 0 of the ticket, and written either way."""
    _check_arm(arm)
    if arm == DENSE:
        return "ticket", 0
    found = _number(level)
    whole = isinstance(found, int) and 0 <= found <= 10**4
    if not whole and not (isinstance(found, float) and 0 <= found < 1):
        raise ScoreError(
            f"level {level!r} of {arm!r}: its number, 1 or more, or its sparsity, above 0 and below 1 "
            f"(level.index, level.masks.sparsity)"
        )
    if not found and arm != "ticket":
        raise ScoreError(f"{arm!r} at level {level!r}: that is the dense model, which has no controls")
    kind = next(one for one in get_args(Arm) if one == arm)
    return kind, found or 0


def _number(said: Any) -> int | float | None:
    """A number as it was written, in text too, as in JSON's keys; None for what is none."""
    if isinstance(said, str):
        try:
            return int(said) if said.lstrip("-").isdigit() else float(said)
        except ValueError:
            return None
    if isinstance(said, bool | np.bool_) or not isinstance(said, Real):
        return None
    return int(said) if isinstance(said, Integral) else float(said)


def _seed(said: Any) -> int:
    found = _number(said)
    if not isinstance(found, int) or found < 0:
        raise ScoreError(f"seed {said!r}: a whole number, 0 or more")
    return found


def _value(said: Any, place: Place) -> float:
    number = said.item() if isinstance(said, Tensor | np.ndarray) and math.prod(said.shape) == 1 else said
    if isinstance(number, bool) or not isinstance(number, Real):
        raise ScoreError(f"the score of {_said(*place)} is {_short(said)}: a number, NaN where training diverged")
    return float(number)


def _said(arm: str, level: float | int, seed: int) -> str:
    return f"the dense model, seed {seed}" if not level else f"{arm!r} at level {level!r}, seed {seed}"


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- levels -------------------------------------------------------------------------------------------------


def _sparsities(given: Mapping[int, float]) -> dict[int, float]:
    found = {}
    for level, sparsity in given.items():
        number, share = _number(level), _number(sparsity)
        if not isinstance(number, int) or share is None or not 0 <= share < 1:
            raise ScoreError(f"sparsities[{level!r}]={sparsity!r}: of a level's number, a share from 0 to below 1")
        found[number] = float(share)
    return found


def _typical(told: Mapping[int, Mapping[Place, float]]) -> dict[int, float]:
    return {level: statistics.median(of.values()) for level, of in told.items()}


def _numbered(levels: Iterable[float | int], known: Mapping[int, float]) -> dict[float | int, tuple[int, float]]:
    """Level or sparsity → the level's number, and its sparsity. Levels that are sparsities are counted from 1."""
    levels = sorted(level for level in levels if level)
    numbers = [level for level in levels if isinstance(level, int)]
    if numbers and len(numbers) < len(levels):
        raise ScoreError(
            f"levels are told by number ({numbers[0]}) and by sparsity "
            f"({next(level for level in levels if level not in numbers)}): take one of them throughout"
        )
    if lacking := [level for level in numbers if level not in known]:
        raise ScoreError(
            f"nothing tells how sparse level {lacking[0]} is: sparsities={{{lacking[0]}: 0.36, …}}, or take the "
            f"sparsity in place of the number"
        )
    for before, after in itertools.pairwise(numbers):
        if not known[before] < known[after]:
            raise ScoreError(
                f"level {before} is {percent(known[before])} sparse, and level {after} {percent(known[after])}: number "
                f"the levels from the densest to the sparsest"
            )
    if numbers:
        return {0: (0, 0.0), **{level: (level, known[level]) for level in numbers}}
    for one, other in itertools.pairwise(levels):
        if (1 - one) / (1 - other) < 1 + _SAME:
            raise ScoreError(
                f"sparsities {one} and {other} are nearly equal: where they are one level, number the levels, and say "
                f"sparsities={{1: {one}, …}}"
            )
    return {0: (0, 0.0), **{sparsity: (number, sparsity) for number, sparsity in enumerate(levels, 1)}}

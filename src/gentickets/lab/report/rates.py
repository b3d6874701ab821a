"""What each block of a network keeps, and how far two tickets agree in it beside chance: of levels whose blocks were
pruned at rates of their own."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from gentickets.errors import RecipeError
from gentickets.lab.results.reading import Run, parse
from gentickets.lab.results.words import number, percent


@dataclass(frozen=True)
class _Block:
    """As `search.block_rates.BlockRate`, with its ratio."""

    weights: int
    density: float
    jaccard: float
    chance: float
    kept: float
    ratio: float


@dataclass(frozen=True)
class _Rates:
    """What `block-rates.json` holds."""

    signal: bool
    ratio: float
    second: str
    blocks: dict[str, _Block]


@dataclass(frozen=True)
class RatesOfLevel:
    """A level's rates, in words and as the rows of a table, means over its seeds."""

    sparsity: str
    words: str
    rows: list[list[str]]


def rates_of_blocks(run: Run) -> list[RatesOfLevel]:
    """Of every level that has rates; of other runs none.

    Raises `RecipeError` that names the file that is not what such a level writes.
    """
    found = []
    for level in range(1, run.depth + 1):
        results = [result for result in run.of("ticket", level) if (result.folder / "block-rates.json").is_file()]
        if not results:
            continue
        rates: list[_Rates] = [parse(result.folder / "block-rates.json", _Rates) for result in results]
        if any(rate.blocks.keys() != rates[0].blocks.keys() for rate in rates):
            raise RecipeError(f"{results[0].folder / 'block-rates.json'}: other blocks than those of another seed")
        sparsity = percent(statistics.fmean(result.sparsity for result in results))
        found.append(RatesOfLevel(sparsity, _words(rates), [_row(block, rates) for block in rates[0].blocks]))
    return found


def _words(rates: list[_Rates]) -> str:
    ratios = ", ".join(f"{rate.ratio:.2f}" for rate in rates)
    without = sum(not rate.signal for rate in rates)
    none = (
        f"; no signal on {without} of {len(rates)} seeds, where the mean densities alone were taken" if without else ""
    )
    return f"The two tickets overlap {ratios} times as much as independent ones of their layer densities would{none}."


def _row(block: str, rates: list[_Rates]) -> list[str]:
    of_block = [rate.blocks[block] for rate in rates]
    means = {key: statistics.fmean(getattr(one, key) for one in of_block) for key in ("density", "kept")}
    overlaps = {key: statistics.fmean(getattr(one, key) for one in of_block) for key in ("jaccard", "chance", "ratio")}
    return [
        block,
        f"{of_block[0].weights:,}",
        percent(means["density"]),
        *(number(overlaps[key]) for key in ("jaccard", "chance", "ratio")),
        percent(means["kept"]),
    ]

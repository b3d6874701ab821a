"""Rows of images below each other, one of each model: a column is made from equal noise, or is of one image.

Every model is judged with one seed of sampling, whatever it is, so that two of one objective are asked the same: what
differs in a column are the weights.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gentickets.lab.judging import first_in_a_row
from gentickets.lab.results.reading import LevelResult, Run
from gentickets.lab.results.words import number, percent

ACROSS = 12
"""How many images of each model are shown."""

_MOST_PIXELS, _MOST_BYTES = 2**24, 2**24
"""Of a picture that is shown: many times what a run makes. A folder may be a stranger's."""


@dataclass(frozen=True)
class ShownRow:
    """A model's images in a row. `source`: a data URI."""

    title: str
    caption: str
    source: str


@dataclass(frozen=True)
class SideBySide:
    """`heading`: what is the same for all; `seed`: whose models they are."""

    heading: str
    seed: int
    rows: tuple[ShownRow, ...]


def side_by_side(run: Run, key: str, results: Iterable[tuple[str, LevelResult]]) -> SideBySide | None:
    """Rows of (title, what was trained), as far as their pictures can be read; None for fewer than two.

    `run`: whose images they are of; `key`: the metric that stands beside each.
    """
    given = list(results)
    shape = _shape(run.origin)
    if shape is None:
        return None
    originals = next((one.originals for _, one in given if one.originals), None)
    rows = [_row(title, _caption(one, key), one.samples, shape) for title, one in given]
    if originals is not None:
        rows.insert(0, _row("originals", "held-out images", originals, shape))
    shown = tuple(row for row in rows if row is not None)
    if len(shown) < 2:
        return None
    heading = "Samples from equal noise" if originals is None else "The same images, reconstructed"
    return SideBySide(heading, given[0][1].seed, shown)


def opened(path: Path) -> Image.Image | None:
    """A picture; None where it is too large. Raises what Pillow does for one that cannot be read."""
    image = Image.open(path)
    fits = image.width * image.height <= _MOST_PIXELS and path.stat().st_size <= _MOST_BYTES
    return image if fits else None


def _shape(origin: Mapping[str, Any]) -> Sequence[int] | None:
    """Height and width of the images, where the run tells them."""
    try:
        _, height, width = origin["data"]["shape"]
        return int(height), int(width)
    except (LookupError, TypeError, ValueError):
        return None


def _row(title: str, caption: str, path: Path | None, shape: Sequence[int]) -> ShownRow | None:
    if path is None:
        return None
    try:
        sheet = opened(path)
        strip = None if sheet is None else first_in_a_row(sheet, shape[0], shape[1], ACROSS)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    if strip is None:
        return None
    kept = io.BytesIO()
    strip.save(kept, "png")
    return ShownRow(title, caption, f"data:image/png;base64,{base64.b64encode(kept.getvalue()).decode()}")


def _caption(result: LevelResult, key: str) -> str:
    metric = result.metrics.get(key)
    value = number(metric.value) if metric and result.status == "complete" else result.status
    alive = f"{result.cost.alive_parameters:,} live parameters" if result.cost else percent(result.sparsity)
    return f"{value}; {alive}"

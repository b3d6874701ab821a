"""What all pages share: the templates' environment, figures as parts of a page, and numbers with their units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gentickets.lab.report.drawing import FAINT, INK, Drawing
from gentickets.lab.report.figures import COLOURS
from gentickets.lab.results.reading import ARMS
from gentickets.lab.results.words import number, percent, plus_minus


def environment() -> Environment:
    """Where templates are found and how numbers are written in them. Everything is escaped but what is `Markup`."""
    made = Environment(
        loader=PackageLoader("gentickets.lab.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "percent": percent,
        "plus_minus": plus_minus,
        "whole": lambda value: "–" if value is None else f"{value:,.0f}",
        "short": short,
        "bytes": size_of,
        "seconds": seconds,
    }
    return made


@dataclass(frozen=True)
class Figure:
    """A drawing, and its SVG as a part of a page."""

    drawing: Drawing
    svg: Markup


def inlined(drawing: Drawing, prefix: str) -> Figure:
    """The SVG as a part of a page: its own names, the page's colours, and no word of any address."""
    svg = drawing.svg[drawing.svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]*)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", svg)
    svg = svg.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)").replace("#ffffff", "var(--page)")
    for arm in ARMS:
        svg = svg.replace(COLOURS[arm], f"var(--{arm.replace('_', '-')})")
    # The text that describes it is on the figure around it.
    return Figure(drawing, Markup(svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)))


def short(value: float | None) -> str:
    """`12.3 M`: a large count in thousands, millions, billions or trillions."""
    return _in_units(value, 1000, ("", " k", " M", " G", " T"))


def size_of(value: float | None) -> str:
    """`12.3 MiB`."""
    return _in_units(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _in_units(value: float | None, base: int, units: Sequence[str]) -> str:
    if value is None:
        return "–"
    for unit in units:
        if abs(value) < base or unit == units[-1]:
            break
        value /= base
    return f"{number(value)}{unit}"


def seconds(value: float | None) -> str:
    """`0.53 s`, `41 s`, `12 min 5 s`, `3 h 20 min`."""
    if value is None:
        return "–"
    if value < 100:
        return f"{number(value, 2)} s"
    minutes, left = divmod(round(value), 60)
    return f"{minutes} min {left} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"

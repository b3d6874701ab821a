"""Rows of images from equal noise: the first of each model, in one row, and nothing where they do not fit."""

import base64
import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from gentickets.lab.judging import first_in_a_row, grid
from gentickets.lab.report import write_report
from gentickets.lab.report.side_by_side import side_by_side
from gentickets.lab.results.reading import read_run
from test_results import build_run


def images(count, channels, height, width):
    """Each of one grey of its own, told by its place."""
    return torch.linspace(-1, 1, count)[:, None, None, None].expand(count, channels, height, width)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 16, 16), (1, 64, 64), (1, 5, 9)])
@pytest.mark.parametrize(("there", "asked"), [(36, 12), (36, 40), (6, 5), (12, 7)])
def test_the_first_images_of_a_grid_stand_in_a_row_as_they_are(channels, height, width, there, asked):
    sheet = grid(images(there, channels, height, width))
    row = first_in_a_row(sheet, height, width, asked)
    factor, shown = max(1, 48 // height), min(there, asked)
    assert row.mode == sheet.mode
    assert row.size == ((shown * (width + 1) - 1) * factor, height * factor)
    greys = ((torch.linspace(-1, 1, there) + 1) * 127.5).round().int().tolist()
    for place in range(shown):
        middle = ((place * (width + 1) + width // 2) * factor, height * factor // 2)
        assert row.getpixel(middle) == (greys[place] if channels == 1 else (greys[place],) * 3)


def test_what_is_no_such_grid_has_no_row():
    sheet = grid(images(36, 1, 8, 8))
    assert first_in_a_row(sheet, 9, 9, 12) is None
    assert first_in_a_row(sheet.crop((0, 0, sheet.width, sheet.height - 1)), 8, 8, 12) is None
    assert first_in_a_row(Image.new("L", (1, 1)), 8, 8, 12) is None


@pytest.fixture
def run(tmp_path):
    folder = build_run(tmp_path / "one")
    origin = json.loads((folder / "origin.json").read_text())
    (folder / "origin.json").write_text(json.dumps({**origin, "data": {**origin["data"], "shape": [1, 8, 8]}}))
    for place in folder.glob("seed-*/level-*"):
        (place / "originals.png").unlink(missing_ok=True)
        grid(torch.rand(36, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1).save(place / "samples.png")
    return folder


def test_dense_ticket_and_controls_have_a_row_each_on_the_page(run):
    page = write_report(run if isinstance(run, list) else [run]).read_text()
    section = page[page.index("Samples from equal noise") : page.index("Further metrics")]
    rows = [f"Images of: {title}" for title in ("dense model", "ticket", "random mask", "re-drawn weights")]
    assert [section.count(row) for row in rows] == [1, 1, 1, 1]
    assert sorted(rows, key=section.index) == rows
    source = section.split('src="data:image/png;base64,')[1].split('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(source))).width == (12 * 9 - 1) * 6


def test_one_row_alone_says_nothing_and_is_left_out(run):
    read = read_run(run)
    (dense,) = [level for level in read.levels if (level.seed, level.level, level.arm) == (read.seeds[0], 0, "ticket")]
    assert side_by_side(read, read.primary, [("dense model", dense)]) is None
    both = side_by_side(read, read.primary, [("dense model", dense), ("again", dense)])
    assert [row.title for row in both.rows] == ["dense model", "again"]
    unknown = replace(read, origin={})
    assert side_by_side(unknown, read.primary, [("dense model", dense), ("again", dense)]) is None

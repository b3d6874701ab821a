"""The report: whole, self-contained, escaped, and with its figures beside it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from gentickets.errors import RecipeError
from gentickets.lab.report import verdict_table, write_figures, write_report
from gentickets.lab.results import read_run
from gentickets.lab.verdict import judge
from gentickets.lab.words import percent
from test_results import build_run

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Reads a page; fails on a tag that is not closed, and keeps what a test asks about."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("report") / "runs" / "quick")


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    path = write_report([folder])
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_tells_everything(folder, html):
    page = Page(html)
    run = read_run(folder)
    verdict = judge(run)
    assert verdict.headline in page.text
    for sentence in verdict.sentences:
        assert sentence in page.text
    for result in run.levels:
        assert percent(result.sparsity) in page.text
    for metric in run.metrics().values():
        assert metric.label in page.text
    made = ("digits-classifier features", "ab12cd34", "2.13.0", "360 samples", "gentickets find quickstart")
    for words in (
        "random mask",
        "re-drawn weights",
        "the loss is not finite at step 120",
        "2026-11-24",
        *made,
    ):
        assert words in page.text
    assert "FID" not in page.text


def test_the_page_needs_nothing_beside_it(html):
    assert not re.search(r"https?://", html)
    for tag, attributes in Page(html).tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html


def test_the_page_can_be_read_without_seeing_it(html):
    tags = Page(html).tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert sum(tag == "img" for tag, _ in tags) == 6 + 4 + 1
    assert all(attributes.get("aria-label") for _, attributes in tags if attributes.get("role") == "img")
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
    assert sum(tag == "h1" for tag, _ in tags) == 1


def test_ids_on_the_page_are_unique_and_references_have_a_target(folder, tmp_path):
    other = build_run(tmp_path / "other", name="other")
    html = write_report([folder, other], tmp_path / "both.html").read_text(encoding="utf-8")
    ids = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_figures_are_written_and_equal_when_drawn_again(folder, html, tmp_path):
    names = ["metric-reconstruction_mse", "metric-accuracy", "layers", "curves"]
    for name in names:
        assert (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    before = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert len(before) == 2 * len(names)
    write_figures(read_run(folder))
    assert {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} == before
    assert write_report([folder], tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_what_a_recipe_says_is_never_markup(tmp_path):
    bad = '<script>alert("x")</script>'
    folder = build_run(tmp_path / "bad", name=bad)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"title": bad + "[red]"}))
    origin = json.loads((folder / "origin.json").read_text())
    (folder / "origin.json").write_text(json.dumps(origin | {"command": bad, "machine": {bad: bad}}))
    for path in folder.glob("seed-*/level-*/metrics.json"):
        found = json.loads(path.read_text())
        found["reason"] = bad
        for metric in found["metrics"].values():
            metric["label"] += bad + r" $\frac{$"
        found["layers"] = {f"{bad}.{name}": layer for name, layer in found["layers"].items()}
        path.write_text(json.dumps(found))
    for path in folder.glob("seed-*/level-*/curve.jsonl"):
        path.write_text(json.dumps({"step": 1, "losses": {bad: 1.0}}) + "\n")
    html = write_report([folder]).read_text(encoding="utf-8")
    assert "<script" not in html
    assert bad in Page(html).text
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(verdict_table([folder]))
    assert "[red]" in console.export_text()


def test_several_runs_make_one_page_with_a_table(folder, tmp_path):
    one = build_run(tmp_path / "runs" / "alone", name="alone", seeds=(3,))
    path = write_report([folder, read_run(one)], tmp_path / "page.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "Verdicts on 2 runs" in page.text
    assert ("a", {"href": "#run-1"}) in page.tags
    assert "one seed" in page.text
    assert write_report([one, folder]) == one.parent / "report.html"


def test_the_verdict_table_fits_a_terminal(folder):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(verdict_table([folder]))
    text = console.export_text()
    for words in ("quick", "0.0125", "74.1%", "59.8%", "0.0126", "0.0189", "0.0239", "yes"):
        assert words in text


def test_a_run_of_little_still_makes_a_page(tmp_path):
    folder = build_run(tmp_path / "little", seeds=(0,), levels=1)
    (folder / "origin.json").unlink()
    for control in folder.glob("seed-0/level-*-*"):
        for file in control.iterdir():
            file.unlink()
        control.rmdir()
    page = Page(write_report([folder]).read_text(encoding="utf-8"))
    assert "No verdict: the dense model diverged." in page.text


def test_a_picture_that_is_broken_is_said_to_be(tmp_path):
    folder = build_run(tmp_path / "broken")
    (folder / "seed-0" / "level-01" / "samples.png").write_bytes(b"no picture")
    assert "cannot be read" in Page(write_report([folder]).read_text(encoding="utf-8")).text


def test_a_report_on_nothing_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="at least one"):
        write_report([])
    with pytest.raises(RecipeError, match="no run"):
        write_report([tmp_path])

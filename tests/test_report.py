"""The report: whole, self-contained, escaped, and with its figures beside it."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from scipy import stats

from gentickets.errors import RecipeError
from gentickets.lab.comparison import read_comparison
from gentickets.lab.report import (
    published_table,
    published_words,
    study_table,
    verdict_table,
    write_figures,
    write_report,
    write_study,
)
from gentickets.lab.report.study_page import published_rows
from gentickets.lab.results import read_run
from gentickets.lab.verdict import judge
from gentickets.lab.words import percent
from test_results import build_run, metrics_of

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


# -- a study's page -----------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    """A study of two arms of two seeds, one of which diverged at its deepest level; an arm that is not begun."""
    folder = tmp_path / "study"
    for label in ("imp", "snip"):
        build_run(folder / label, name=f"study-{label}")
    build_run(folder / "small-dense-107", name="small dense net, 107 parameters", levels=1)
    for control in (folder / "small-dense-107").glob("seed-*/level-*-*"):
        shutil.rmtree(control)
    for path in (folder / "small-dense-107").glob("seed-1/level-00/metrics.json"):  # its one level diverged
        path.write_text(json.dumps(metrics_of(1, 0, "ticket")))
    rows = [{"technique": "<b>Dense</b>", "arm": "dense", "metric": 30.0, "seconds": 4000.0},
            {"technique": "Pruned", "arm": "snip", "level": 2, "metric": 60.0, "flops": 1e16}]  # fmt: skip
    record = {
        "name": "study",
        "title": "A <study>",
        "command": "gentickets compare <recipe>",
        "arms": {"imp": "IMP", "snip": "<i>SNIP</i>", "grasp": "GraSP"},
        "published": {"source": "A paper", "metric": "FID (Inception features)", "rows": rows},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    return folder


def test_a_studys_page_is_whole_escaped_and_needs_nothing_beside_it(study):
    page = write_study(study)
    html = page.read_text(encoding="utf-8")
    read = Page(html)
    assert not re.search(r"https?://", html)
    assert all(tag not in ("script", "link", "i", "b") for tag, _ in read.tags)
    assert all(attributes.get("scope") for tag, attributes in read.tags if tag == "th")
    assert sum(tag == "h1" for tag, _ in read.tags) == 1
    for words in ("A <study>", "<i>SNIP</i>", "gentickets compare <recipe>", "Nothing is complete yet of GraSP",
                  "<b>Dense</b>", "the loss is not finite at step 120", "1, 1 failed", "small dense net"):  # fmt: skip
        assert words in read.text, words
    assert (study / "figures" / "study.svg").exists()
    assert (study / "figures" / "study.pdf").read_bytes().startswith(b"%PDF")


def test_a_studys_numbers_are_those_of_its_seeds(study):
    comparison = read_comparison(study)
    ticket = comparison.of("snip")[1]
    dense = [result.metrics["reconstruction_mse"].value for result in comparison.dense.results]
    values = [result.metrics["reconstruction_mse"].value for result in ticket.results]
    assert (ticket.level, ticket.point.mean, ticket.point.deviation) == (2, statistics.fmean(values),
                                                                         statistics.stdev(values))  # fmt: skip
    expected = stats.ttest_ind(values, dense, equal_var=False, alternative="greater").pvalue
    assert ticket.p == pytest.approx(float(expected))
    half = stats.t.ppf(0.975, 1) * statistics.stdev(values) / 2**0.5
    assert ticket.interval == pytest.approx((ticket.point.mean - half, ticket.point.mean + half))
    verdict = comparison.verdicts["snip"]
    for row in comparison.rows:
        if row.arm == "snip" and row.kind != "dense":
            assert row.matches == ((row.kind, row.level) in verdict.matching)
    assert comparison.dense.p is None
    (small,) = [row for row in comparison.rows if row.kind == "small_dense"]
    assert small.p == pytest.approx(0.5)  # as good as the dense model, seed by seed


def test_what_was_published_stands_beside_ours_with_its_ratios(study):
    comparison = read_comparison(study)
    dense, ours, pruned, beside = published_rows(comparison)
    assert dense[:3] == ["<b>Dense</b>", "published", "30.00 (1.00×)"]
    assert pruned[2:5] == ["60.00 (2.00×)", "–", "1.00e+16"]
    ratio = comparison.of("snip")[1].point.mean / comparison.dense.point.mean
    assert ours[2] == "0.01250 (1.00×)"
    assert beside[1:3] == [f"ours, {percent(comparison.of('snip')[1].sparsity)}", f"0.01260 ({ratio:.2f}×)"]
    words = " ".join(published_words(comparison))
    assert "metric: FID (Inception features)" in words
    assert "Ours: reconstruction MSE, held-out images" in words
    assert "FID" not in words.partition("Ours:")[2]


def test_a_studys_tables_fit_a_terminal(study):
    comparison = read_comparison(study)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(study_table(comparison))
    console.print(published_table(comparison))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("to find", "to train", "p worse", "IMP", "<i>SNIP</i>", "12 s", "60.0"):
        assert words in text


def test_a_folder_that_is_no_study_is_refused(tmp_path, study):
    with pytest.raises(RecipeError, match="is no study"):
        write_study(tmp_path)
    for label in ("imp", "snip"):
        shutil.rmtree(study / label)
    with pytest.raises(RecipeError, match="no level of any arm"):
        write_study(study)

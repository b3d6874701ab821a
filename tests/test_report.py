"""The report: whole, self-contained, escaped, and with its figures beside it."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image
from rich.console import Console
from scipy import stats

from gentickets.errors import RecipeError
from gentickets.lab.report import (
    published_table,
    published_words,
    study_table,
    transfer_table,
    verdict_table,
    write_figures,
    write_report,
    write_study,
)
from gentickets.lab.report.study_page import published_rows
from gentickets.lab.report.transfers import transfer_matrix
from gentickets.lab.results.reading import read_run
from gentickets.lab.results.verdict import judge
from gentickets.lab.results.verdict_words import headline, sentences
from gentickets.lab.results.words import percent
from gentickets.lab.study.comparison import read_comparison
from test_results import build_run, metrics_of

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Reads a page; fails on a tag that is not closed, and keeps what a test asks about."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if dict(attrs).get("role") == "region":
            self.tables[dict(attrs).get("aria-label") or ""] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
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
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def rows(self) -> list[list[str]]:
        """The rows of the newest table."""
        return self.tables[list(self.tables)[-1]]

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
    assert headline(verdict) in page.text
    for sentence in sentences(verdict, run):
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


def test_a_strangers_pictures_are_not_links_and_of_bounded_size(tmp_path):
    folder = build_run(tmp_path / "run")
    secret, place = tmp_path / "secret.png", folder / "seed-0" / "level-01" / "samples.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(secret)
    place.unlink(missing_ok=True)
    place.symlink_to(secret)
    text = write_report([folder]).read_text(encoding="utf-8")
    assert base64.b64encode(secret.read_bytes()).decode() not in text
    place.unlink()
    Image.new("1", (5000, 5000)).save(place)
    assert "too large" in write_report([folder]).read_text(encoding="utf-8")


def test_a_level_that_is_a_link_is_not_read(tmp_path):
    folder = build_run(tmp_path / "run")
    level = folder / "seed-0" / "level-01"
    level.rename(tmp_path / "elsewhere")
    level.symlink_to(tmp_path / "elsewhere")
    assert not [result for result in read_run(folder).levels if (result.seed, result.level) == (0, 1)]


def test_a_picture_that_is_broken_is_said_to_be(tmp_path):
    folder = build_run(tmp_path / "broken")
    (folder / "seed-0" / "level-01" / "samples.png").write_bytes(b"no picture")
    assert "cannot be read" in Page(write_report([folder]).read_text(encoding="utf-8")).text


def test_a_report_on_nothing_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="at least one"):
        write_report([])
    with pytest.raises(RecipeError, match="no run"):
        write_report([tmp_path])


# -- early birds, early stopping, and what it took -----------------------------------------------------------


def write_history(level: Path, settled: bool = True, masks: int = 4) -> dict:
    """`early-bird.json` as a level leaves it: two components, the encoder's masks nearer and nearer, a window of 3."""
    steps = [100 * (index + 1) for index in range(masks)]
    distances = [
        {"encoder": [round(0.3 / index, 6)] * min(index, 2) if index else [], "decoder": [0.01, 0.02][: min(index, 2)]}
        for index in range(masks)
    ]
    matrix = [[round(abs(one - other) / (10 * masks), 6) for other in range(masks)] for one in range(masks)]
    history = {"steps": steps, "settled": settled, "tolerance": 0.11, "window": 3, "distances": distances,
               "matrix": matrix}  # fmt: skip
    (level / "early-bird.json").write_text(json.dumps(history))
    return history


@pytest.fixture
def watched(tmp_path):
    """A run of two seeds whose level 1 is an early bird, settled on the first seed alone, judged while it trained."""
    folder = build_run(tmp_path / "watched", levels=2)
    write_history(folder / "seed-0" / "level-01")
    write_history(folder / "seed-1" / "level-01", settled=False, masks=5)
    for path in folder.glob("seed-*/level-*/metrics.json"):
        found = json.loads(path.read_text())
        stop = 300 + 100 * found["seed"] + 1000 * (found["arm"] != "ticket")
        if found["status"] == "complete":
            found["cost"] |= {"find_flops": 3.25e9, "train_flops": 7.5e12}
            found["validation"] = {"steps": [stop, 2000], "values": [1.0, 0.99], "best_step": 2000,
                                   "early_stopping_step": stop}  # fmt: skip
        path.write_text(json.dumps(found))
    return folder


def test_an_early_bird_is_told_drawn_and_said_to_have_settled_or_not(watched):
    page = Page(write_report([watched]).read_text(encoding="utf-8"))
    assert "the mask settled at step 400 (seed 0) and had not settled by step 500 (seed 1); there" in page.text
    assert "3 masks in a row, in every component less than 0.110 apart" in page.text
    labels = [attributes.get("aria-label") or "" for _, attributes in page.tags]
    (alt,) = [label for label in labels if "distances between all" in label]
    assert "encoder: 0.300 at 200, 0.150 at 300, 0.100 at 400" in alt
    assert "decoder: 0.0100 at 200, 0.0200 at 300, 0.0200 at 400" in alt
    drawn = (watched / "figures" / "early-bird-level-01.svg").read_text(encoding="utf-8")
    assert "tolerance" in drawn
    assert ">settled<" in drawn
    assert ">0.075<" in drawn  # the farthest cell of the matrix
    assert len(list((watched / "figures").glob("early-bird-*.svg"))) == 1  # of the first seed alone


def test_distances_are_told_beside_those_of_independent_masks(watched):
    """By the rule of chance as shares of them; by the paper's as they are; and unknown where they were not kept."""
    assert "independent masks would be was not kept" in Page(write_report([watched]).read_text(encoding="utf-8")).text
    level = watched / "seed-0" / "level-01"
    history = write_history(level)
    chances = [{name: [0.5] * len(found) for name, found in entry.items()} for entry in history["distances"]]
    matrix = [[0.5 if one != other else 0.48 for other in range(4)] for one in range(4)]
    for rule, points, apart in (("chance", "0.600 at 200, 0.300 at 300", "apart, of what"), ("hamming", "0.300", ".")):
        known = {"rule": rule, "chances": chances, "chance_matrix": matrix}
        (level / "early-bird.json").write_text(json.dumps(history | known))
        page = Page(write_report([watched]).read_text(encoding="utf-8"))
        assert f"less than 0.110 {apart}" in page.text.replace("apart.", ".")
        assert "Independent masks of the same layer densities would differ on 0.500 of it all." in page.text
        labels = [attributes.get("aria-label") or "" for _, attributes in page.tags]
        assert any(f"encoder: {points}" in label for label in labels)
        drawn = (watched / "figures" / "early-bird-level-01.svg").read_text(encoding="utf-8")
        assert ">independent masks<" in drawn
        assert (">0.15<" in drawn) is (rule == "chance")  # the farthest cell: 0.075 of 0.5


def test_a_control_with_more_work_than_its_ticket_is_told(tmp_path):
    """Every ticket of a level beside the random control of its seed."""
    watched = build_run(tmp_path / "controlled", levels=4)

    def said(factor: float) -> str:
        for path in watched.glob("seed-*/level-02*/metrics.json"):
            found = json.loads(path.read_text())
            if found["arm"] in ("ticket", "random_mask") and found["cost"]:
                more = factor if found["arm"] == "random_mask" else 1
                found["cost"] |= {"alive_parameters": int(1000 * more), "train_flops": 2e9 * more}
            path.write_text(json.dumps(found))
            if found["arm"] == "ticket":
                write_history(path.parent)
        return Page(write_report([watched]).read_text(encoding="utf-8")).text

    assert "control of level 2 has 1.31 of the weights and 1.31 of the FLOPs of training of its ticket" in said(1.31)
    assert "not as much work" in said(1.31)
    assert "1.00 of the weights and 1.00 of the FLOPs of training of its ticket, on average." in said(1.0)
    assert "not as much work" not in said(1.0)


def test_a_mask_that_never_settled_has_no_line_where_it_did(watched):
    write_history(watched / "seed-0" / "level-01", settled=False, masks=30)
    write_report([watched])
    drawn = (watched / "figures" / "early-bird-level-01.svg").read_text(encoding="utf-8")
    assert ">settled<" not in drawn
    assert ">distance<" in drawn  # too many cells to number: a colour bar


@pytest.mark.parametrize("change", [{"steps": []}, {"steps": [1]}, {"matrix": [[0.0]] * 4}, {"settled": "soon"}, None])
def test_a_history_that_says_nothing_sound_is_named(watched, change):
    path = watched / "seed-0" / "level-01" / "early-bird.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change) if change else "{")
    with pytest.raises(RecipeError, match=r"level-01/early-bird\.json") as raised:
        write_report([watched])
    assert "\n" not in str(raised.value)


def test_the_early_stopping_step_stands_beside_the_metric_with_its_definition(watched):
    page = Page(write_report([watched]).read_text(encoding="utf-8"))
    head, *rows = page.tables["All numbers"]
    place = head.index("early-stopping step")
    assert head[place - 1].startswith("reconstruction MSE")
    cells = {(row[1], row[2]): row[place] for row in rows}
    assert cells["0", "dense model"] == "350 ± 71"  # of steps 300 and 400
    assert cells["1", "ticket"] == "300"  # the other seed diverged
    assert cells["2", "random mask"] == "1,350 ± 71"
    words = "at which the metric, smoothed over a tenth of all evaluations, is within 5% of"
    assert f"first evaluation, on training images, {words}" in page.text
    drawn = (watched / "figures" / "early-stopping.svg").read_text(encoding="utf-8")
    assert "early-stopping step" in drawn
    assert "re-drawn weights" in drawn


def test_what_it_took_to_find_stands_beside_what_it_took_to_train(watched):
    for path in watched.glob("seed-*/level-*/timing.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"find_seconds": 41.0}))
    page = Page(write_report([watched]).read_text(encoding="utf-8"))
    head, dense, ticket = page.tables["Cost to find and to train at each level"]
    assert head[1:5] == ["to find it", "to train it", "FLOPs to find it", "FLOPs to train it"]
    assert dense[1:5] == ["–", "12 s", "–", "7.50 T"]  # there is no mask to find
    assert ticket[1:5] == ["41 s", "12 s", "3.25 G", "7.50 T"]


def test_a_run_without_these_says_nothing_of_them(folder, html):
    for words in ("When the mask settled", "When training could have stopped", "early-stopping step"):
        assert words not in html
    assert not list((folder / "figures").glob("early-*"))


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
    logs = [math.log(value / bar) for value, bar in zip(values, dense, strict=True)]
    assert ticket.to_dense.ratio == pytest.approx(math.exp(statistics.fmean(logs)))
    half = stats.t.ppf(0.975, 1) * statistics.stdev(values) / 2**0.5
    assert ticket.interval == pytest.approx((ticket.point.mean - half, ticket.point.mean + half))
    verdict = comparison.verdicts["snip"]
    for row in comparison.rows:
        if row.arm == "snip" and row.kind != "dense":
            assert row.not_worse == verdict.not_worse[row.kind, row.level]
    assert (comparison.dense.to_dense, comparison.dense.not_worse) == (None, None)
    (small,) = [row for row in comparison.rows if row.kind == "small_dense"]
    assert small.to_dense.ratio == pytest.approx(1.0)  # as good as the dense model, seed by seed


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


def test_what_it_took_to_find_stands_beside_what_was_published_in_time_and_flops(study):
    for path in (study / "snip").glob("seed-*/level-02/*.json"):
        found = json.loads(path.read_text())
        if path.name == "metrics.json":
            found["cost"] |= {"find_flops": 2.5e9, "train_flops": 5e9}
        path.write_text(json.dumps(found | ({"find_seconds": 9.0} if path.name == "timing.json" else {})))
    dense, ours, _, beside = published_rows(read_comparison(study))
    assert (dense[-2:], ours[-2:], beside[-2:]) == (["–", "–"], ["–", "–"], ["9.0 s", "2.50e+09"])
    head, *_, last = Page(write_study(study).read_text(encoding="utf-8")).tables["Beside what was published"]
    assert head[-4:] == ["FLOPs of training", "time of training", "time to find", "FLOPs to find"]
    assert last[-4:] == ["5.00e+09", "10 s (0.84×)", "9.0 s", "2.50e+09"]


def test_a_studys_tables_fit_a_terminal(study):
    comparison = read_comparison(study)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(study_table(comparison))
    console.print(published_table(comparison))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("to find", "to train", "of dense", "IMP", "<i>SNIP</i>", "12 s", "60.0"):
        assert words in text


# -- tickets carried into other models ----------------------------------------------------------------------


def build_arm(folder: Path, model: str, value: float, levels: int = 3, **search: object) -> None:
    """A run of two seeds: the dense model and each level are worth `value`, plus a tenth of it a level."""
    build_run(folder, levels=levels)
    for control in folder.glob("seed-*/level-*-*"):
        shutil.rmtree(control)
    for path in folder.glob("seed-*/level-*/metrics.json"):
        found = metrics_of(int(path.parts[-3][-1]), int(path.parts[-2][-2:]), "ticket")
        found["metrics"]["reconstruction_mse"]["value"] = value * (1 + 0.1 * found["level"])
        path.write_text(json.dumps(found))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe |= {"model": {"name": model}, "search": {"method": "imp"} | search}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture
def carried(tmp_path):
    """Decoder tickets of a VAE in a GAN, by mask and by mask and weights, and back; each with its own, and a decoy."""
    folder = tmp_path / "carried"
    arms = {"vae": "VAE <own>", "all": "GAN, all of it", "gan": "GAN's own", "mask": "GAN, the VAE's mask",
            "weights": "GAN, the VAE's mask and weights", "back": "VAE, the GAN's mask"}  # fmt: skip
    there = {"method": "transferred", "source": "vae", "carry": {"decoder": "generator"}}
    build_arm(folder / "vae", "little-vae", 1.0, components=["decoder"])
    build_arm(folder / "all", "little-gan", 7.0)
    build_arm(folder / "gan", "little-gan", 2.0, levels=4, components=["generator"])
    build_arm(folder / "mask", "little-gan", 3.0, **there)
    build_arm(folder / "weights", "little-gan", 2.5, **there, with_weights=True)
    build_arm(folder / "back", "little-vae", 1.5, method="transferred", source="gan", carry={"generator": "decoder"})
    record = {"name": "carried", "title": "Carried", "command": "", "arms": arms, "published": None}
    (folder / "study.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    return folder


def cell(matrix, source: str, target: int) -> dict:
    return {entry.arm: entry for entry in matrix.targets[target].entries.get(source, ())}


def test_own_tickets_stand_on_the_diagonal_and_others_beside_them_with_their_ratios(carried):
    matrix = transfer_matrix(read_comparison(carried))
    assert list(matrix.sources) == ["gan", "vae"]
    assert [target.head for target in matrix.targets] == ["little-gan, level 2", "little-vae, level 2"]
    for place, own in enumerate(("gan", "vae")):
        (entry,) = cell(matrix, own, place).values()
        assert (entry.arm, entry.what, entry.to_own, entry.to_dense) == (own, "own ticket", 1.0, pytest.approx(1.2))
    there = cell(matrix, "vae", 0)
    assert list(there) == ["mask", "weights"]
    assert there["mask"].what == "decoder → generator, mask alone"
    assert there["weights"].what == "decoder → generator, mask and weights"
    assert (there["mask"].ticket.point.mean, there["mask"].to_own) == (pytest.approx(3.6), pytest.approx(3 / 2))
    assert there["weights"].to_own == pytest.approx(2.5 / 2)
    assert cell(matrix, "gan", 1)["back"].to_own == pytest.approx(1.5)


def test_the_transfer_matrix_is_on_the_page_and_in_the_terminal(carried):
    page = Page(write_study(carried).read_text(encoding="utf-8"))
    head, gan, vae = page.tables["Transfer matrix"]
    assert head == ["ticket from", "little-gan, level 2", "little-vae, level 2"]
    assert [gan[0], vae[0]] == ["GAN's own", "VAE <own>"]
    assert "1.00× own, 1.20× dense" in gan[1]
    assert "1.50× own, 1.20× dense" in vae[1]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(transfer_table(read_comparison(carried)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("little-vae", "own ticket", "1.50× own", "VAE <own>"):
        assert words in text


def test_a_ticket_from_elsewhere_and_one_that_failed_have_their_place(carried):
    recipe = yaml.safe_load((carried / "weights" / "recipe.yaml").read_text())
    recipe["search"]["source"] = "runs/another"
    (carried / "weights" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for path in (carried / "mask").glob("seed-*/level-0[12]/metrics.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "diverged", "metrics": {}}))
    shutil.rmtree(carried / "gan")  # its own ticket is then the one of the whole model
    matrix = transfer_matrix(read_comparison(carried))
    assert list(matrix.sources) == ["all", "vae", "runs/another", "gan"]
    assert cell(matrix, "runs/another", 0)["weights"].to_own == pytest.approx(2.5 / 7)
    failed = cell(matrix, "vae", 0)["mask"]
    assert (failed.to_own, failed.to_dense) == (None, None)
    assert failed.lines[1:] == ["–, 2 failed", "– own, – dense"]
    assert "2 failed" in Page(write_study(carried).read_text(encoding="utf-8")).text


def test_one_model_trained_in_two_ways_is_two_columns_that_are_told_apart(carried):
    for label in ("vae", "back"):
        recipe = yaml.safe_load((carried / label / "recipe.yaml").read_text())
        recipe |= {"model": {"name": "little-gan"}, "objective": {"name": "elbo"}}
        (carried / label / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    matrix = transfer_matrix(read_comparison(carried))
    assert [target.title for target in matrix.targets] == ["little-gan (GAN's own)", "little-gan (VAE <own>)"]


def test_a_study_that_carries_nothing_has_no_transfer_matrix(study):
    assert transfer_table(read_comparison(study)) is None
    assert "Tickets carried" not in write_study(study).read_text(encoding="utf-8")


def test_a_folder_that_is_no_study_is_refused(tmp_path, study):
    with pytest.raises(RecipeError, match="is no study"):
        write_study(tmp_path)
    for label in ("imp", "snip"):
        shutil.rmtree(study / label)
    with pytest.raises(RecipeError, match="no level of any arm"):
        write_study(study)

"""Every table of results in README and docs, recomputed from the csv that it names: a stale figure is a red test."""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from campaign import hours
from gentickets import models
from gentickets.lab.recipe import read_recipe

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
METRICS = (  # words of the paragraph before a table → the column of its csv
    ("reconstruction mse", "reconstruction_mse"),
    ("negative elbo", "bits_per_dimension"),
    ("fréchet distance", "frechet"),
)


class Table(NamedTuple):
    """A table of a page: its head, its rows, and all that the page says before it."""

    page: str
    head: list[str]
    rows: list[list[str]]
    before: str

    def __repr__(self) -> str:
        return f"{self.page}: {' | '.join(self.head)}"


def tables(page: str) -> Iterator[Table]:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        if lines[number].startswith("|") and re.fullmatch(r"[|\-: ]+", lines[number + 1]):
            end = next((n for n in range(number, len(lines)) if not lines[n].startswith("|")), len(lines))
            head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[number:end])
            yield Table(page, head, rows, "\n".join(lines[:number]))
            number = end
        number += 1


def read(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def values(rows, column: str, **where) -> list[float]:
    """The column's finite values in the rows that have these entries, by seed."""
    found = [row for row in rows if all(row[key] == str(value) for key, value in where.items())]
    return [float(row[column]) for row in sorted(found, key=lambda row: int(row["seed"])) if row[column]]


def mean_and_deviation(found: list[float]) -> list[float]:
    return [statistics.mean(found), statistics.stdev(found)]


def agree(cell: str, wanted: list[float]) -> bool:
    """Whether the numbers of a cell are these, rounded as they are printed."""
    shown = NUMBER.findall(cell.replace("−", "-"))
    return len(shown) == len(wanted) and all(is_rounded(text, value) for text, value in zip(shown, wanted, strict=True))


def is_rounded(text: str, value: float) -> bool:
    plain, _, exponent = text.replace(",", "").partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(plain.partition(".")[2]))
    return math.isfinite(value) and abs(float(text.replace(",", "")) - value) <= 0.5000001 * unit


PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))]
ALL = [table for page in PAGES for table in tables(page)]
WRITTEN = [table for table in ALL if re.search(r"<!-- campaign\.paper: [^\n]+ -->\s*\Z", table.before)]
"""By `campaign.paper`, between marks: test_campaign.py computes them again."""
LADDERS = [table for table in ALL if table.head[0] == "sparsity" and table not in WRITTEN]
ARMS = {"ticket": "ticket", "random mask": "random_mask", "re-drawn weights": "redrawn_weights"}


def test_the_tables_are_found():
    assert len(LADDERS) >= 12
    assert len(ALL) >= 25


@pytest.mark.parametrize("table", [t for t in LADDERS if "ticket" in t.head], ids=repr)
def test_a_ladder_is_what_its_csv_says(table):
    words = table.before[-3000:]
    name = re.findall(r"\]\(results/([\w.-]+\.csv)\)", words)[-1]
    paragraph = words[: words.rindex(f"(results/{name})")].rpartition("\n\n")[2]
    paragraph = " ".join(paragraph.lower().split())
    metric = next(column for said, column in METRICS if said in paragraph)
    rows = read(name)
    levels = sorted({int(row["level"]) for row in rows if row["arm"] == "ticket"})
    assert len(table.rows) == len(levels)
    for level, (sparsity, *cells) in zip(levels, table.rows, strict=True):
        told = 0.0 if sparsity == "dense" else float(sparsity.split()[0])
        assert abs(values(rows, "sparsity", level=level, arm="ticket")[0] * 100 - told) <= 0.0501
        for head, cell in zip(table.head[1:], cells, strict=True):
            found = values(rows, metric, level=level, arm=ARMS[head], status="complete")
            wanted = mean_and_deviation(found) if "±" in cell else found
            assert agree(cell, wanted), f"{sparsity}, {head}: {cell!r} is {wanted} in {name}"


@pytest.mark.parametrize("table", [t for t in LADDERS if "ticket" not in t.head], ids=repr)
def test_methods_side_by_side_are_what_their_csvs_say(table):
    wrong = []
    for column, head in enumerate(table.head[1:], start=1):
        rows = read(f"methods-autoencoder-{head}.csv")
        for level, row in enumerate(table.rows):
            cell = row[column]
            if not NUMBER.findall(cell):
                assert not values(rows, "seed", level=level, arm="ticket")
            elif "disconnected" in cell:
                assert agree(cell, [len(values(rows, "seed", level=level, arm="ticket", status="disconnected"))])
            else:
                wanted = mean_and_deviation(values(rows, "reconstruction_mse", level=level, arm="ticket"))
                if not agree(cell, wanted):
                    wrong.append(f"{row[0]}, {head}: {cell} is {wanted}")
    assert not wrong, "\n".join(wrong)


def test_the_demo_in_the_readme_is_what_its_csvs_say():
    (table,) = (t for t in ALL if t.page == "README.md" and "winning ticket?" in t.head)
    kinds = {
        "linear autoencoder": ("autoencoder", "reconstruction_mse"),
        "convolutional VAE": ("vae", "bits_per_dimension"),
        "DCGAN": ("gan", "frechet"),
    }
    for name, _, dense, _, *arms, wins in table.rows:
        recipe, metric = kinds[name]
        rows = read(f"quickstart-{recipe}.csv")
        assert agree(dense, [statistics.mean(values(rows, metric, level=0))])
        judged = float(re.search(r"at (\d+) %", wins)[1]) / 100
        level = min((row for row in rows), key=lambda row: abs(float(row["sparsity"]) - judged))["level"]
        for arm, cell in zip(ARMS.values(), arms, strict=True):
            found = statistics.mean(values(rows, metric, level=level, arm=arm))
            assert agree(cell, [found]), f"{name}, {arm}: {cell} is {found}"


PRICES = ("train_flops", "find_flops", "find_seconds", "train_seconds")
TABLE_2 = {
    "dense": ("imp", "dense"),
    "IMP, 79 %": ("imp", "ticket"),
    "EB channels, 77 %": ("early-bird", "ticket"),
    "EB + bfloat16, 78 %": ("early-bird-mixed", "ticket"),
    "SNIP, 79 %": ("snip", "ticket"),
    "GraSP, 79 %": ("grasp", "ticket"),
    "random mask of IMP's layer sparsities": ("imp", "random_mask"),
    "IMP's mask, weights re-drawn": ("imp", "redrawn_weights"),
    "EB: channels at random, 31 to 47 % more weights": ("early-bird", "random_mask"),
    "EB: its channels, weights re-drawn": ("early-bird", "redrawn_weights"),
    "small dense net of 30,694 parameters": ("small", "small_dense"),
}


def of_arm(rows, arm: str, kind: str) -> list[dict[str, str]]:
    """The rows of an arm at its deepest level, or of the small dense net nearest to 30,694 parameters."""
    mine = [row for row in rows if row["kind"] == kind and (kind == "small_dense" or row["arm"] == arm)]
    if kind == "small_dense":
        mine = [row for row in mine if row["parameters"] == "30694"]
    deepest = max((int(row["level"]) for row in mine), default=0)
    return [row for row in mine if int(row["level"]) == deepest]


def test_table_2_is_what_its_csv_says():
    (table,) = (t for t in ALL if t.head[0] == "technique")
    rows = read("table2-desk.csv")
    dense = statistics.mean(values(of_arm(rows, "imp", "dense"), "frechet"))
    assert {row[0] for row in table.rows} == set(TABLE_2)
    wrong = []
    whole = statistics.mean(values(of_arm(rows, "imp", "dense"), "train_seconds"))
    for technique, _, _, distance, ratio, alive, flops, find, train, both in table.rows:
        mine = of_arm(rows, *TABLE_2[technique])
        assert mine, technique
        found = values(mine, "frechet")
        price = {key: statistics.mean(values(mine, key) or [0.0]) for key in PRICES}
        seconds = price["find_seconds"] + price["train_seconds"]
        told = {
            distance: [*mean_and_deviation(found), *found],
            alive: [statistics.mean(values(mine, "alive_parameters"))],
            ratio: [statistics.mean(found) / dense],
            flops: [price["train_flops"], price["find_flops"]][: len(NUMBER.findall(flops))],
            find: [price["find_seconds"]],
            train: [price["train_seconds"]],
            both: [seconds / whole],
        }
        told = {cell: wanted for cell, wanted in told.items() if NUMBER.search(cell)}
        wrong += [f"{technique}: {cell} is {wanted}" for cell, wanted in told.items() if not agree(cell, wanted)]
    assert not wrong, "\n".join(wrong)


FIGURE_8 = {
    "dense": (("gan-own", "dense"), ("vae-own", "dense")),
    "VAE's decoder, masks": (("vae-to-gan", "ticket"), ("vae-own", "ticket")),
    "VAE's decoder, masks and weights": (("vae-to-gan-weights", "ticket"),),
    "DCGAN's generator, masks": (("gan-own", "ticket"), ("gan-to-vae", "ticket")),
}


def test_figure_8_is_what_its_csv_says():
    (table,) = (t for t in ALL if t.head[0] == "ticket from")
    rows = read("figure8-desk.csv")
    means = {arm: statistics.mean(values(of_arm(rows, *arm), "frechet")) for arm in set(sum(FIGURE_8.values(), ()))}
    for source, *cells in table.rows:
        for cell, arm, target in zip(cells, FIGURE_8[source], ("gan-own", "vae-own"), strict=False):
            wanted = mean_and_deviation(values(of_arm(rows, *arm), "frechet"))
            to_dense = means[arm] / means[target, "dense"]
            if "(own; " in cell:
                wanted.append(to_dense)
            elif "(" in cell and "own" not in cell:
                wanted += [means[arm] / means[target, "ticket"], to_dense]
            assert agree(cell, wanted), f"{source}: {cell} is {wanted}"


def test_early_birds_are_what_their_csvs_say():
    (table,) = (t for t in ALL if "find + train, of dense" in t.head)
    rows, seconds = read("early-bird-88-desk.csv"), read("early-bird-88-desk-timings.csv")
    dense, *birds = table.rows
    assert agree(dense[2], values(rows, "frechet", level=0, arm="ticket"))
    for _, seed, distance, _, _, _, find, train, _ in birds:
        assert agree(distance, values(rows, "frechet", level=1, arm="ticket", seed=seed))
        assert agree(find, values(seconds, "find_seconds", level=1, seed=seed))
        assert agree(train, values(seconds, "train_seconds", level=1, seed=seed))


def test_what_full_takes_is_what_its_recipes_ask_for():
    (table,) = (t for t in ALL if t.head[0] == "recipe, `full`")
    paths = {path.stem: path for path in (ROOT / "recipes" / "paper").glob("*.yaml")}
    assert {row[0] for row in table.rows} == set(paths)
    for name, count, flops, gpu, core in table.rows:
        found = list(hours.recipes(paths[name]))
        assert agree(count, [sum(map(hours.steps, found)) / 1e6])
        for told, rate in zip([*gpu.split(" / "), core], (*hours.GPU, hours.CORE), strict=True):
            # The FLOPs are told to two digits, the hours to whole ones.
            assert (
                abs(float(told.replace(",", "")) - float(flops) / rate / 3600)
                <= 0.5 + 0.05 * float(flops) / rate / 3600
            )
        if name == "table1-linear-ae":
            assert agree(flops, [hours.steps(found[0]) * hours.flops_of_a_step(found[0])])


def test_no_table_of_results_is_left_unchecked():
    """A new one in these pages needs a test above, or a line here that says why there is nothing to recompute."""
    recomputed = [
        t
        for t in ALL
        if t in LADDERS
        or t.head[0] in ("technique", "ticket from", "as it is", "stopped at step")
        or "winning ticket?" in t.head
    ]
    recomputed += [t for t in ALL if "find + train, of dense" in t.head or t.head[0] == "recipe, `full`"]
    recomputed += WRITTEN
    told_in_words = [t for t in ALL if t.page == "docs/paper.md" and t.head[0] == "in the paper"]
    speed = [t for t in ALL if t.page == "README.md" and any("6.9M" in row[0] for row in t.rows)]  # test_docs_speed.py
    pages = ("README.md", "docs/results.md", "docs/paper.md")
    assert [t for t in ALL if t.page in pages and t not in [*recomputed, *told_in_words, *speed]] == []


def parameters(name: str, side: int, channels: int) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in models.CATALOGUE[name](side, channels).parameters())


def test_the_counts_of_the_presets_are_those_of_the_networks():
    (table,) = (t for t in ALL if t.head[0] == "preset")
    for name, ours, _, _, large in table.rows:
        preset = name.split("`")[1]
        side, channels = (28, 1) if preset == "paper-linear-ae" else (32, 3)
        assert ours == f"{parameters(preset, side, channels):,}"
        assert large == f"{parameters(preset, 64, 3):,}"


def test_the_settings_of_the_paper_are_those_of_its_recipes():
    (table,) = (t for t in ALL if t.head[:2] == ["network", "objective"])
    checked = 0
    for network, _, adam, batch, steps, _ in table.rows:
        path = ROOT / "recipes" / "paper" / f"table1-{network.lower().replace(' ', '-')}.yaml"
        if not path.exists():  # another way of training a network of the table
            continue
        training = read_recipe(path).training
        rate, _, betas = adam.partition(", (")
        assert float(rate) == training.lr
        wanted = tuple(map(float, betas.rstrip(")").split(","))) if betas else (0.9, 0.999)
        assert (wanted, int(batch), int(steps.replace(",", ""))) == (
            training.betas,
            training.batch_size,
            training.steps,
        )
        checked += 1
    assert checked == 9


def test_workers_beside_their_plan_are_what_was_measured():
    (table,) = (t for t in ALL if t.page == "docs/scaling.md" and t.head[0] == "workers")
    rows = json.loads((RESULTS / "workers.json").read_text(encoding="utf-8"))["rows"]
    for workers, planned, took, ratio in table.rows:
        mine = [row for row in rows if row["workers"] == int(workers)]
        assert agree(planned, [row["planned"] for row in mine])
        assert agree(took, [row["took"] for row in mine])
        assert agree(ratio, [statistics.median(row["took"] / row["planned"] for row in mine)])


def test_beside_the_authors_code_stands_what_was_measured():
    (table,) = (t for t in ALL if t.page == "docs/results.md" and t.head[0] == "as it is")
    found: dict[tuple[str, float], list[float]] = {}
    for row in read("beside-authors.csv"):
        found.setdefault((row["variant"], float(row["sparsity"])), []).append(float(row["mse"]))
    sparsities = sorted({sparsity for _, sparsity in found})
    names = ("authors' code", "gentickets", "weight decay", "biases pruned", "masks after the step", "all three")
    for name, (_, dense, *cells) in zip(names, table.rows, strict=True):
        assert agree(dense, [statistics.mean(found[name, 0.0])])
        for cell, sparsity in zip(cells, sparsities[1:], strict=True):
            logs = [math.log(a / b) for a, b in zip(found[name, sparsity], found[name, 0.0], strict=True)]
            middle, far = statistics.mean(logs), 2.776445 * statistics.stdev(logs) / 5**0.5
            assert len(logs) == 5
            assert agree(cell, [math.exp(middle), math.exp(middle - far), math.exp(middle + far)]), (name, cell)


def test_what_was_stopped_early_stands_as_it_was_measured():
    (table,) = (t for t in ALL if t.page == "docs/results.md" and t.head[0] == "stopped at step")
    found: dict[tuple[str, str], list[float]] = {}
    for row in read("linear-ae-stopped-early.csv"):
        found.setdefault((row["network"].split()[0], f"{int(row['steps']):,}"), []).append(
            float(row["reconstruction_mse"])
        )
    for name, *cells in table.rows:
        for steps, cell in zip(table.head[1:], cells, strict=True):
            mine = found.pop((name.split(",")[0], steps), None)
            assert (mine is None) == (cell == "")
            assert mine is None or agree(cell, [statistics.mean(mine), statistics.stdev(mine)])
    assert not found
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    told = re.search(r"Each at its best, the ticket has (.*?\])", text)
    rows = {
        (row["network"].split()[0], row["seed"], row["steps"]): float(row["reconstruction_mse"])
        for row in read("linear-ae-stopped-early.csv")
    }
    logs = [math.log(rows["ticket", s, "23450"] / rows["dense", s, "11725"]) for s in "0123"]
    middle, far = statistics.mean(logs), 3.182446 * statistics.stdev(logs) / 2
    assert told is not None
    assert agree(told[1], [math.exp(middle), math.exp(middle - far), math.exp(middle + far)])


def test_the_plain_intervals_of_the_campaign_are_those_of_its_csv():
    text = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    told = re.search(r"nothing pooled, the three ratios at 89\.3 % are (.*?\])\.", text)
    rows = read("table1-linear-ae-night.csv")
    wanted = []
    for arm, level in (("ticket", 0), ("random_mask", 10), ("redrawn_weights", 10)):
        pair = (values(rows, "reconstruction_mse", arm=one, level=at) for one, at in (("ticket", 10), (arm, level)))
        logs = [math.log(a / b) for a, b in zip(*pair, strict=True)]
        middle, far = statistics.mean(logs), 2.776445 * statistics.stdev(logs) / 5**0.5
        wanted += [math.exp(middle), math.exp(middle - far), math.exp(middle + far)]
    assert agree(told[1], wanted)

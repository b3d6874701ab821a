"""The tables of docs/diffusion.md, recomputed from the csv that each names."""

import re
import statistics

import pytest

from test_docs_numbers import agree, read, tables

TABLES = list(tables("docs/diffusion.md"))
STUDIES = [table for table in TABLES if table.head[0] == "arm"]
BLOCKS = [table for table in TABLES if table.head[0] == "block"]
COLUMNS = {
    "denoising loss": "denoising_loss",
    "Fréchet distance": "frechet",
    "live parameters": "alive_parameters",
    "to find, s": "find_seconds",
    "to train, s": "train_seconds",
}
SEED_BY_SEED = ("denoising loss", "Fréchet distance")
KINDS = {"random mask": "random_mask", "re-drawn weights": "redrawn_weights", "dense model": "dense"}


def csv_of(table):
    return read(re.findall(r"\]\(results/([\w.-]+\.csv)\)", table.before)[-1])


def numbers(rows, column):
    return [float(row[column]) for row in rows if row[column]]


def of_dense(found, rows):
    """FLOPs to find and to train, of the dense training of the same seed."""
    dense = {row["seed"]: float(row["train_flops"]) for row in rows if row["kind"] == "dense"}
    return [(float(row["find_flops"] or 0) + float(row["train_flops"])) / dense[row["seed"]] for row in found]


def test_the_tables_are_found():
    assert len(STUDIES) >= 2
    assert len(BLOCKS) == 1


@pytest.mark.parametrize("table", STUDIES, ids=repr)
def test_a_table_of_arms_is_what_its_csv_says(table):
    rows, arm, told = csv_of(table), "", 0
    for first, *cells in table.rows:
        label = re.search(r"`([\w-]+)`", first)
        arm = label[1] if label else arm
        kind = next((kind for words, kind in KINDS.items() if words in first), "ticket")
        kind = "small_dense" if arm.startswith("small-dense") else kind
        found = sorted(
            (row for row in rows if (row["arm"], row["kind"]) == (arm, kind)), key=lambda row: int(row["seed"])
        )
        assert found, f"{first}: no {kind} of {arm}"
        for head, cell in zip(table.head[1:], cells, strict=True):
            values = of_dense(found, rows) if head == "FLOPs, of dense" else numbers(found, COLUMNS[head])
            wanted = values if head in SEED_BY_SEED else [statistics.mean(values)]
            assert cell == "–" or agree(cell, wanted), f"{first}, {head}: {cell!r} is {wanted}"
            told += cell != "–"
    assert told > 3 * len(table.rows)


def test_the_table_of_blocks_is_what_its_csv_says():
    (table,) = BLOCKS
    rows = csv_of(table)
    assert {row["block"] for row in rows} == {cells[0].strip("`") for cells in table.rows}
    for block, *cells in table.rows:
        found = [row for row in rows if row["block"] == block.strip("`")]
        for head, cell in zip(("weights", "density", "jaccard", "chance", "ratio", "kept"), cells, strict=True):
            values = [float(row[head]) * (100 if head in ("density", "kept") else 1) for row in found]
            assert agree(cell, [statistics.mean(values)]), f"{block}, {head}: {cell!r} is {values}"

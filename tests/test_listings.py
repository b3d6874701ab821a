"""Tables of what there is: every entry of a catalogue is a row, with its options and what it is."""

from pathlib import Path

import pytest

import gentickets as gt
from gentickets import models
from gentickets.lab.listings import LISTINGS, run_table, ticket_words
from gentickets.objectives import OBJECTIVES
from test_results import build_level, build_run

ROOT = Path(__file__).parent.parent


def rows(table):
    """The table's cells, as text, row by row."""
    return list(zip(*(map(str, column.cells) for column in table.columns), strict=True))


def test_every_model_is_a_row_with_its_defaults():
    found = rows(LISTINGS["models"](Path("runs")))
    assert [row[0] for row in found] == list(models.CATALOGUE)
    for name, options, what in found:
        assert options == ", ".join(f"{key}={value}" for key, value in models.options_of(name).items())
        assert len(what) > 10


def test_every_objective_is_a_row_without_what_the_model_decides():
    found = {row[0]: row[1] for row in rows(LISTINGS["objectives"](Path("runs")))}
    assert list(found) == list(OBJECTIVES)
    assert found["elbo"] == "beta, likelihood, scale, warmup_steps"


def test_every_source_of_data_is_a_row():
    found = [row[0] for row in rows(LISTINGS["data"](Path("runs")))]
    assert found[0] == "digits"
    assert any("parquet" in name for name in found)


def test_the_recipes_below_this_folder_are_rows(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = {row[0]: row for row in rows(LISTINGS["recipes"](Path("runs")))}
    assert set(found) == {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")}
    assert found["recipes/quickstart/autoencoder.yaml"][2] == "digits"


def test_runs_are_rows_with_what_is_complete(tmp_path):
    build_run(tmp_path / "one")
    build_run(tmp_path / "two", seeds=(3,), levels=5)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("name: begun\n")
    (tmp_path / "no-run").mkdir()
    found = rows(LISTINGS["runs"](tmp_path))
    assert found == [
        (str(tmp_path / "begun"), "0", "0"),
        (str(tmp_path / "one"), "20", "2"),
        (str(tmp_path / "two"), "9", "1"),
    ]
    assert rows(LISTINGS["runs"](tmp_path / "absent")) == []


def test_a_run_is_told_level_by_level(tmp_path):
    folder = build_run(tmp_path / "one", seeds=(0,), levels=3)
    build_level(folder, 0, 3, "ticket", "diverged")
    found = rows(run_table(folder))
    assert [row[:3] for row in found] == [
        ("0", "0", "ticket"),
        ("0", "1", "ticket"),
        ("0", "2", "ticket"),
        ("0", "2", "random_mask"),
        ("0", "2", "redrawn_weights"),
        ("0", "3", "ticket"),
        ("0", "4", "random_mask"),
        ("0", "4", "redrawn_weights"),
    ]
    assert found[0][4:] == ("complete", "0.012")
    assert found[5][4:] == ("diverged", "the loss is not finite at step 120")


def test_a_ticket_is_told_layer_by_layer(tmp_path, make_autoencoder):
    model = make_autoencoder()
    masks = gt.prune(gt.magnitude(model), to_sparsity=0.25, scope="layer")
    origin = {"recipe": "r", "lineage": [{"sparsity": 0.0}, {"sparsity": 0.25}]}
    gt.Ticket(masks, model, origin).save(tmp_path / "one.ticket")
    first, table, *last = ticket_words(tmp_path / "one.ticket")
    assert str(tmp_path / "one.ticket") in first
    assert rows(table)[0] == ("encoder.0.weight", "12x10", "90", "120", "25.00%")
    assert len(rows(table)) == len(masks)
    assert last[0] == 'origin: {"recipe": "r"}'
    assert last[1] == "lineage: 0.0%, 25.0%"
    with pytest.raises(gt.GenticketsError):
        list(ticket_words(tmp_path / "absent.ticket"))

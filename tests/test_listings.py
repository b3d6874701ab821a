"""Tables of what there is: every entry of a catalogue is a row, with its options and what it is."""

from pathlib import Path

import pytest

import gentickets as gt
from gentickets.catalogue import CATALOGUE
from gentickets.lab.listings import LISTINGS, run_table, ticket_words, what_is_in
from gentickets.lab.recipe import read_recipe
from test_results import build_level, build_run

ROOT = Path(__file__).parent.parent


def rows(table):
    """The table's cells, as text, row by row."""
    return list(zip(*(map(str, column.cells) for column in table.columns), strict=True))


def test_every_model_is_a_row_with_its_defaults():
    found = rows(LISTINGS["models"](Path("runs")))
    assert [row[0] for row in found] == list(CATALOGUE["model"])
    shown = {name: options for name, options, what in found if len(what) > 10}
    assert shown["dcgan"] == "width=64, latent=100, depth=null, critic_norm=true, classes=null"
    assert set(shown) == set(CATALOGUE["model"])


def test_every_objective_is_a_row_without_what_the_model_decides():
    found = {row[0]: row[1] for row in rows(LISTINGS["objectives"](Path("runs")))}
    assert list(found) == list(CATALOGUE["objective"])
    assert "latent_size, beta=1.0, likelihood=gaussian" in found["elbo"]


@pytest.mark.parametrize(("what", "kind"), [("methods", "method"), ("criteria", "criterion"), ("arounds", "around")])
def test_whatever_a_search_names_is_a_row(what, kind):
    assert [row[0] for row in rows(LISTINGS[what](Path("runs")))] == list(CATALOGUE[kind])


def test_every_source_of_data_is_a_row():
    found = [row[0] for row in rows(LISTINGS["data"](Path("runs")))]
    assert found[0] == "digits"
    assert any("parquet" in name for name in found)


def test_the_recipes_of_the_package_are_rows_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {row[0]: row for row in rows(LISTINGS["recipes"](Path("runs")))}
    there = ROOT / "recipes"
    assert set(found) == {path.relative_to(there).with_suffix("").as_posix() for path in there.rglob("*.yaml")}
    assert found["quickstart/autoencoder"][2] == "digits"


def test_ones_own_recipes_are_rows_too_and_a_broken_one_hides_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text((ROOT / "recipes" / "quickstart" / "vae.yaml").read_text())
    (tmp_path / "recipes" / "broken.yaml").write_text("name: [")
    found = {row[0]: row for row in rows(LISTINGS["recipes"](Path("runs")))}
    assert found["recipes/mine.yaml"][1] == "conv-vae"
    assert "no YAML" in found["recipes/broken.yaml"][1]
    assert "quickstart/gan" in found


@pytest.mark.parametrize("name", ["quickstart/gan", "quickstart/gan.yaml", "recipes/quickstart/gan.yaml"])
def test_a_recipe_is_found_by_its_name_from_any_folder_and_a_file_goes_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_recipe(name).name == "quickstart-gan"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text((ROOT / "recipes" / "quickstart" / "vae.yaml").read_text())
    assert read_recipe(name).name == "quickstart-vae"


def test_a_name_that_is_nearly_a_recipes_is_told():
    with pytest.raises(gt.RecipeError, match="did you mean quickstart/gan"):
        read_recipe("quickstart/gann")


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
    assert last[1] == "lineage: 0.0%, 25.0%; not linked, as older versions wrote it: an edit would not show"
    assert last[3] == "signature: none; nobody says that it is theirs"
    with pytest.raises(gt.GenticketsError):
        list(ticket_words(tmp_path / "absent.ticket"))


def test_a_level_is_told_with_what_was_measured_and_its_ticket(tmp_path, make_autoencoder):
    folder = build_run(tmp_path / "one", seeds=(0,), levels=2)
    place = folder / "seed-0" / "level-00"
    gt.Ticket(gt.Masks.dense(make_autoencoder()), None, {}).save(place / "ticket.safetensors")
    table, first, *_ = what_is_in(place)
    assert "seed 0, level 0, ticket, 0.00% sparse, complete" in table.title
    assert rows(table)[0][:2] == ("reconstruction MSE, held-out images", "0.012")
    assert "ticket.safetensors" in first
    assert [table.title for table in what_is_in(folder)] == [run_table(folder).title]

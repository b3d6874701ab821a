"""Sets of the hub as its package hands them out: image files, archives, several splits, labels of every kind."""

from __future__ import annotations

import io
import zipfile

import pytest
from PIL import Image

from gentickets import DataError
from gentickets.data import finding, load

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def encoded(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return file.getvalue()


def hub_gives(monkeypatch, tables) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda identity: tables)


def table(values, labels=None, label="label", column="image", features=None):
    columns = {column: [{"bytes": encoded(value), "path": None} for value in values]}
    kinds = {column: datasets.Image()}
    if labels is not None:
        columns[label] = labels
        kinds[label] = features or datasets.Value(
            {str: "string", bool: "bool", float: "float64"}.get(type(labels[0]), "int64")
        )
    return datasets.Dataset.from_dict(columns, datasets.Features(kinds))


def opened():
    return finding.find("someone/pictures", None).read()


def test_a_set_that_is_stored_as_image_files(tmp_path, monkeypatch):
    names = [f"{split}/{kind}/{n}.png" for split in ("train", "test") for kind in ("cat", "dog") for n in range(3)]
    for value, name in enumerate(names):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(encoded(value))
    hub_gives(monkeypatch, datasets.load_dataset(str(tmp_path / "files"), cache_dir=str(tmp_path / "hub")))
    train, test = (load("someone/pictures", size=8, split=split) for split in ("train", "test"))
    assert sorted(train.pixels[:, 0, 0, 0].tolist()) == list(range(6))
    assert sorted(test.pixels[:, 0, 0, 0].tolist()) == list(range(6, 12))
    assert train.labels.tolist() == [value // 3 for value in train.pixels[:, 0, 0, 0]]
    assert opened().classes == ("cat", "dog")


def test_a_set_that_is_stored_in_an_archive(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for value in range(4):
            archive.writestr(f"{value}.png", encoded(value))
    paths = [f"zip://{value}.png::{tmp_path / 'data.zip'}" for value in range(4)]
    stored = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": path} for path in paths]}, datasets.Features({"image": datasets.Image()})
    )
    hub_gives(monkeypatch, {"train": stored, "test": stored.select([1, 3])})
    assert load("someone/pictures", size=8).pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert load("someone/pictures", size=8, split="test").pixels[:, 0, 0, 0].tolist() == [1, 3]


@pytest.mark.parametrize(("held", "left"), [
    (("test", "validation"), "validation"),
    (("validation",), None),
    (("valid",), None),
    (("dev",), None),
])  # fmt: skip
def test_the_split_held_out_is_found_and_others_are_told(monkeypatch, held, left):
    hub_gives(monkeypatch, {"unsupervised": table([9]), "train": table([1, 2]), **{name: table([3]) for name in held}})
    found = opened()
    assert (found.train.count, found.test.count, found.held_out) == (2, 1, f"the split {held[0]}")
    told = {f"the split {name} (1 images)" for name in ("unsupervised", left) if name}
    assert set(found.left_out) == told


def test_splits_that_say_nothing(monkeypatch):
    hub_gives(monkeypatch, {"full": table([1, 2])})
    assert (opened().train.count, opened().test) == (2, None)
    hub_gives(monkeypatch, {"a": table([1]), "b": table([2])})
    with pytest.raises(DataError, match="has the splits a, b, and none is called train"):
        opened()


@pytest.mark.parametrize(("labels", "label", "numbers", "classes"), [
    (["b", "a", "b", "a"], "label", [1, 0, 1, 0], ("a", "b")),
    ([True, False, True, True], "class", [1, 0, 1, 1], ("false", "true")),
    ([1.0, 2.0, 2.0, 1.0], "coarse_label", [1, 2, 2, 1], None),
    ([0, 1, None, 1], "label", [0, 1, None, 1], None),
    ([0, 1, -1, 1], "label", [None] * 4, None),
])  # fmt: skip
def test_labels_of_the_hub(monkeypatch, labels, label, numbers, classes):
    hub_gives(monkeypatch, {"train": table([1, 2, 3, 4], labels, label)})
    assert [example.label for example in opened().train.examples()] == numbers
    assert opened().classes == classes


def test_splits_of_the_hub_are_matched_by_the_names_of_their_classes(monkeypatch):
    train = table([1, 2], [0, 1], features=datasets.ClassLabel(names=["cat", "dog"]))
    test = table([1, 2, 3], [0, 0, 1], features=datasets.ClassLabel(names=["dog", "cat"]))
    hub_gives(monkeypatch, {"train": train, "test": test})
    found = opened()
    assert [example.label for example in found.train.examples()] == [0, 1]
    assert [example.label for example in found.test.examples()] == [1, 1, 0]
    assert (found.classes, found.notes) == (
        ("cat", "dog"), ("classes matched by name, which not all files number alike",)
    )  # fmt: skip


def test_one_of_two_image_columns_of_the_hub_is_not_guessed(monkeypatch):
    two = table([1, 2], column="mask").add_column("scan", [{"bytes": encoded(5), "path": None}] * 2)
    hub_gives(monkeypatch, {"train": two.cast_column("scan", datasets.Image())})
    with pytest.raises(DataError, match=r"'mask' or 'scan': save it as parquet with the right column called image"):
        opened()
    named = two.rename_column("scan", "image").cast_column("image", datasets.Image())
    hub_gives(monkeypatch, {"train": named})
    assert opened().notes == ("image column 'image' (also there: 'mask')",)


def test_an_image_that_is_not_there_is_named(monkeypatch):
    empty = datasets.Dataset.from_dict({"image": [None]}, datasets.Features({"image": datasets.Image()}))
    hub_gives(monkeypatch, {"train": empty})
    with pytest.raises(DataError, match="row 0 of someone/pictures has no image in column 'image'"):
        list(opened().train.examples())

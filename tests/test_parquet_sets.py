"""Parquet as people have it: shards, splits by name, labels of every kind, several columns of images, damage."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gentickets import DataError
from gentickets.data import finding, load
from gentickets.data.sources import Opened


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path / "cache"))


def encoded(value: int, size: int = 8) -> bytes:
    """A PNG all of one grey."""
    file = io.BytesIO()
    Image.new("L", (size, size), value).save(file, "PNG")
    return file.getvalue()


def written(path: Path, values, labels=None, *, column: str = "image", label: str = "label", names=None) -> Path:
    """`names`: those that the hub's note in the file declares for the labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {column: pa.array([{"bytes": encoded(value), "path": None} for value in values])}
    if labels is not None:
        columns[label] = labels if isinstance(labels, pa.Array) else pa.array(labels)
    table = pa.table(columns)
    if names is not None:
        note = {"info": {"features": {label: {"_type": "ClassLabel", "names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    pq.write_table(table, path)
    return path


def opened(source, test=None) -> Opened:
    return finding.find(str(source), test).read()


def values(rows) -> list[int]:
    return [np.asarray(Image.open(io.BytesIO(example.content))).max().item() for example in rows.examples()]


def labels_of(source) -> list[int | None]:
    return [example.label for example in opened(source).train.examples()]


def shards(folder: Path, split: str, per_shard: list[list[int]], suffix: str = "") -> list[Path]:
    return [
        written(folder / f"{split}-{number:05}-of-{len(per_shard):05}{suffix}.parquet", shard, [0] * len(shard))
        for number, shard in enumerate(per_shard)
    ]


# -- shards and splits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "data", "default/deeper"])
@pytest.mark.parametrize("suffix", ["", "-0123456789abcdef"])
def test_a_folder_of_shards_is_one_set_in_order(tmp_path, below, suffix):
    shards(tmp_path / below, "train", [[1, 2], [3], [4, 5, 6]], suffix)
    shards(tmp_path / below, "test", [[7, 8]], suffix)
    shards(tmp_path / below, "validation", [[9]], suffix)
    found = opened(tmp_path)
    assert (values(found.train), values(found.test)) == ([1, 2, 3, 4, 5, 6], [7, 8])
    assert "test" in found.held_out
    assert found.left_out == ("the split validation (1 file)",)


def test_one_shard_named_means_all_of_its_set(tmp_path):
    train = shards(tmp_path, "train", [[1, 2], [3], [4]])
    shards(tmp_path, "test", [[7, 8]])
    for one in train:
        found = opened(one)
        assert (values(found.train), values(found.test)) == ([1, 2, 3, 4], [7, 8])
        assert found.notes[0] == f"3 files of train ({train[0].name} to {train[2].name}), 1 held out"


def test_a_pattern_names_its_shards_alone(tmp_path):
    shards(tmp_path, "train", [[1, 2], [3]])
    shards(tmp_path, "test", [[7, 8]])
    found = opened(tmp_path / "train-*.parquet")
    assert values(found.train) == [1, 2, 3]
    assert found.test is None
    both = opened(tmp_path / "*.parquet")
    assert (values(both.train), values(both.test)) == ([1, 2, 3], [7, 8])
    named = opened(tmp_path / "train-*.parquet", test=str(tmp_path / "test-*.parquet"))
    assert (values(named.train), values(named.test)) == ([1, 2, 3], [7, 8])
    with pytest.raises(DataError, match=r"fits no file"):
        opened(tmp_path / "trian-*.parquet")
    (tmp_path / "train-list.txt").write_text("x")
    with pytest.raises(DataError, match=r"train-list\.txt: a pattern is for \.parquet files"):
        opened(tmp_path / "train-*")


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_missing_shard_is_named(tmp_path, gone):
    files = shards(tmp_path, "train", [[1], [2], [3]])
    files[gone].unlink()
    for source in (tmp_path, files[(gone + 1) % 3]):
        with pytest.raises(DataError, match=rf"2 of the 3 shards of train, not {gone:05}-of-00003"):
            opened(source)


def test_a_missing_shard_of_the_held_out_split_is_named(tmp_path):
    shards(tmp_path, "train", [[1]])
    shards(tmp_path, "test", [[2], [3]])[1].unlink()
    with pytest.raises(DataError, match=r"1 of the 2 shards of test, not 00001-of-00002"):
        opened(tmp_path)


def test_shards_of_two_countings_are_refused(tmp_path):
    shards(tmp_path, "train", [[1], [2]])
    shards(tmp_path, "train", [[1, 2, 3]])
    with pytest.raises(DataError, match="of another number of shards"):
        opened(tmp_path)


def test_two_files_for_one_split_are_refused(tmp_path):
    written(tmp_path / "train.parquet", [1])
    written(tmp_path / "Training.parquet", [1])
    with pytest.raises(DataError, match=r"Training\.parquet and train\.parquet: keep one"):
        opened(tmp_path)


def test_shards_without_a_word_of_splits_hold_a_tenth_out(tmp_path):
    for number in range(12):
        written(tmp_path / f"part-{number}.parquet", [number])
    found = opened(tmp_path)
    assert values(found.train) == list(range(12))  # by number: 2 before 10
    assert found.test is None


def test_the_hubs_own_conversion(tmp_path):
    for split, value in (("train", 1), ("test", 2)):
        written(tmp_path / "default" / split / "0000.parquet", [value, value])
        written(tmp_path / "default" / split / "0001.parquet", [value])
    found = opened(tmp_path)
    assert (values(found.train), values(found.test)) == ([1, 1, 1], [2, 2, 2])


def test_two_sets_in_one_folder_are_refused(tmp_path):
    for name in ("small", "large"):
        written(tmp_path / name / "train.parquet", [1])
        written(tmp_path / name / "test.parquet", [2])
    with pytest.raises(DataError, match=r"2 sets \(large, small\): name one"):
        opened(tmp_path)


@pytest.mark.parametrize("held", ["test", "Test", "validation", "valid", "val", "dev", "testing", "eval"])
def test_the_held_out_file_beside_train(tmp_path, held):
    written(tmp_path / "train.parquet", [1, 2])
    written(tmp_path / f"{held}.parquet", [3])
    for source in (tmp_path / "train.parquet", tmp_path):
        found = opened(source)
        assert (values(found.train), values(found.test), found.held_out) == ([1, 2], [3], f"{held}.parquet")


def test_a_set_named_before_its_split(tmp_path):
    written(tmp_path / "faces-train.parquet", [1])
    written(tmp_path / "faces_test.parquet", [2])
    written(tmp_path / "cats-test.parquet", [3])
    found = opened(tmp_path / "faces-train.parquet")
    assert (values(found.train), values(found.test)) == ([1], [2])
    assert finding.find(str(tmp_path / "faces-train.parquet"), None).name == "faces"


@pytest.mark.parametrize(("file", "name"), [
    ("cifar10.parquet", "cifar10"), ("train.parquet", "set"), ("faces-train.parquet", "faces"),
    ("0000.parquet", "0000"), ("train-00000-of-00001.parquet", "set"),
    ("faces-00000-of-00001.parquet", "faces"), ("train2017.parquet", "set"),
])  # fmt: skip
def test_what_a_set_is_called(tmp_path, file, name):
    written(tmp_path / "set" / file, [1])
    assert finding.find(str(tmp_path / "set" / file), None).name == name


def test_a_folder_with_the_held_out_split_alone_is_refused(tmp_path):
    written(tmp_path / "test.parquet", [1])
    with pytest.raises(DataError, match="no train split"):
        opened(tmp_path)
    assert values(opened(tmp_path / "test.parquet").train) == [1]


def test_files_of_no_split_beside_a_split_are_told(tmp_path):
    written(tmp_path / "train.parquet", [1])
    written(tmp_path / "extra.parquet", [2])
    assert any("extra.parquet" in words for words in opened(tmp_path).left_out)


def test_what_lies_beside_a_file_is_told(tmp_path):
    written(tmp_path / "train.parquet", [1])
    written(tmp_path / "test.parquet", [2])
    for number in range(3):
        written(tmp_path / f"part-{number}.parquet", [3])
    told = {name: " ".join(opened(tmp_path / f"{name}.parquet").left_out) for name in ("train", "test", "part-0")}
    assert told == {
        "train": "other .parquet files beside it (part-0.parquet and 2 more)",
        "test": "other .parquet files beside it (part-0.parquet and 3 more)",
        "part-0": "other .parquet files beside it (part-1.parquet and 3 more)",
    }


def test_a_shard_written_anew_is_read_anew(tmp_path):
    files = shards(tmp_path, "train", [[1, 2], [3]])
    before = load(str(tmp_path), size=8).fingerprint
    written(files[1], [200], [0])
    assert load(str(tmp_path), size=8).fingerprint != before


def test_a_parquet_file_is_known_by_its_first_bytes(tmp_path):
    written(tmp_path / "a.parquet", [1, 2]).rename(tmp_path / "blob")
    assert values(opened(tmp_path / "blob").train) == [1, 2]


# -- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "numbers", "classes"), [
    (["dog", "cat", "cat", "dog"], [1, 0, 0, 1], ("cat", "dog")),
    (pa.array(["dog", "cat", "cat", "dog"], pa.large_string()), [1, 0, 0, 1], ("cat", "dog")),
    (pa.array(["dog", "cat", "cat", "dog"]).dictionary_encode(), [1, 0, 0, 1], ("cat", "dog")),
    (pa.array([7, 7, 9, 9]).dictionary_encode(), [7, 7, 9, 9], None),
    ([True, False, True, True], [1, 0, 1, 1], ("false", "true")),
    ([3.0, 0.0, 1.0, 1.0], [3, 0, 1, 1], None),
    (["10", "9", "9", "10"], [10, 9, 9, 10], None),
    ([2, None, 1, 1], [2, None, 1, 1], None),
    (pa.array([1, 2, 2, 1], pa.uint64()), [1, 2, 2, 1], None),
], ids=["strings", "large", "dictionary", "int_dictionary", "bool", "float", "digits", "null", "uint64"])  # fmt: skip
def test_labels_of_every_kind(tmp_path, labels, numbers, classes):
    path = written(tmp_path / "a.parquet", [1, 2, 3, 4], labels)
    assert labels_of(path) == numbers
    assert opened(path).classes == classes


@pytest.mark.parametrize(("labels", "why"), [
    ([0.5, 1.0, 2.0, 3.0], "float"),
    ([-1, 0, 1, 2], "from -1 to 2"),
    (pa.array([2**64 - 1, 0, 1, 2], pa.uint64()), "18446744073709551615"),
    (["a", "b", "c", "d"], "4 different texts in 4 rows"),
    ([[1], [2], [3], [4]], "list"),
    (pa.array([None] * 4, pa.int64()), "is empty"),
])  # fmt: skip
def test_labels_that_are_none_are_left_out_aloud(tmp_path, labels, why):
    path = written(tmp_path / "a.parquet", [1, 2, 3, 4], labels)
    assert labels_of(path) == [None] * 4
    assert why in opened(path).train.unlabelled


@pytest.mark.parametrize("name", ["class", "coarse_label", "fine_label", "target", "labels"])
def test_labels_by_the_names_that_columns_have(tmp_path, name):
    assert labels_of(written(tmp_path / "a.parquet", [1, 2], [4, 5], label=name)) == [4, 5]


def test_texts_are_numbered_over_both_splits(tmp_path):
    written(tmp_path / "train.parquet", [1, 2, 3, 4], ["b", "c", "b", "c"])
    written(tmp_path / "test.parquet", [1, 2, 3], ["c", "a", "a"])
    found = opened(tmp_path)
    assert found.classes == ("a", "b", "c")
    assert [example.label for example in found.train.examples()] == [1, 2, 1, 2]
    assert [example.label for example in found.test.examples()] == [2, 0, 0]


MATCHED = ("classes matched by name, which not all files number alike",)


@pytest.mark.parametrize(("held", "names", "expected", "classes", "note"), [
    ([1, 0, 0], ["cat", "dog"], [1, 0, 0], ("cat", "dog"), ()),
    ([1, 0, 0], ["dog", "cat"], [0, 1, 1], ("cat", "dog"), MATCHED),
    ([1.0, None, 0.0], ["dog", "cat"], [0, None, 1], ("cat", "dog"), MATCHED),
    ([2, 1, 0], ["ape", "cat", "dog"], [1, 0, 2], ("cat", "dog", "ape"), MATCHED),
    ([0, 0, 0], ["dog"], [1, 1, 1], ("cat", "dog"), MATCHED),
    ([1, 0, 0], None, [1, 0, 0], ("cat", "dog"), ("class names that some files alone declare, taken for all",)),
    (["dog", "cat", "cat"], ["dog", "cat"], None, None, ()),
], ids=["alike", "swapped", "floats", "more", "fewer", "none", "texts"])  # fmt: skip
def test_classes_of_files_that_declare_names_are_matched_by_name(tmp_path, held, names, expected, classes, note):
    written(tmp_path / "train.parquet", [1, 2], [0, 1], names=["cat", "dog"])
    written(tmp_path / "test.parquet", [1, 2, 3], held, names=names)
    found = opened(tmp_path)
    assert (found.classes, found.notes) == (classes, note)
    if expected is None:
        assert "holds int and str" in found.test.unlabelled
    else:
        assert [example.label for example in found.train.examples()] == [0, 1]
        assert [example.label for example in found.test.examples()] == expected


def test_each_shard_has_names_of_its_own(tmp_path):
    written(tmp_path / "train-00000-of-00002.parquet", [1, 2], [0, 1], names=["cat", "dog"])
    written(tmp_path / "train-00001-of-00002.parquet", [3, 4], [0, 1], names=["dog", "ape"])
    assert labels_of(tmp_path) == [0, 1, 1, 2]


@pytest.mark.parametrize(("held", "names"), [([0, 2], ["dog", "cat"]), ([0, -1], ["dog", "cat"]), ([0, 1], None)])
def test_a_number_without_a_name_cannot_be_matched(tmp_path, held, names):
    written(tmp_path / "train-00000-of-00002.parquet", [1, 2], [0, 1], names=["cat", "dog"])
    written(tmp_path / "train-00001-of-00002.parquet", [1, 2], [0, 1], names=["dog", "cat"])
    written(tmp_path / "test.parquet", [1, 2], held, names=names)
    found = opened(tmp_path)
    assert found.classes is None
    assert "in a file that declares no name for it, where others declare unlike ones" in found.test.unlabelled
    assert [example.label for example in found.test.examples()] == [None, None]


def test_a_split_without_the_column_has_no_labels_and_says_so(tmp_path):
    written(tmp_path / "train.parquet", [1, 2], [0, 1])
    written(tmp_path / "test.parquet", [1, 2])
    assert opened(tmp_path).train.unlabelled == "test.parquet has no column 'label'"


# -- columns of images ---------------------------------------------------------------------------------------------


def test_one_of_two_image_columns_is_not_guessed(tmp_path):
    photos, masks = ([{"bytes": encoded(value), "path": None} for value in of] for of in ([1, 2], [8, 9]))
    pq.write_table(pa.table({"mask": masks, "scan": photos}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"'mask' or 'scan': name the right column image"):
        opened(tmp_path / "a.parquet")
    for name in ("image", "photo"):
        pq.write_table(pa.table({"mask": masks, name: photos}), tmp_path / "b.parquet")
        found = opened(tmp_path / "b.parquet")
        assert values(found.train) == [1, 2]
        assert any("'mask'" in note for note in found.notes)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), "fixed"], ids=str)
def test_every_kind_of_bytes(tmp_path, kind):
    images = [encoded(value) for value in (1, 2, 3)]
    if kind == "fixed":
        longest = max(map(len, images))
        images, kind = [image.ljust(longest, b"\0") for image in images], pa.binary(longest)
    pq.write_table(pa.table({"image": pa.array(images, kind)}), tmp_path / "a.parquet")
    assert values(opened(tmp_path / "a.parquet").train) == [1, 2, 3]


def test_images_beside_the_file_by_their_path(tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "images" / "a.png").write_bytes(encoded(5))
    (tmp_path / "secret.png").write_bytes(encoded(6))
    path = tmp_path / "set" / "a.parquet"
    for rows in ([{"bytes": None, "path": "images/a.png"}], [{"path": "images/a.png"}], ["images/a.png"]):
        pq.write_table(pa.table({"image": rows}), path)
        (example,) = opened(path).train.examples()
        assert example.content == tmp_path / "set" / "images" / "a.png"
    for name, why in (
        ("../secret.png", "outside its folder"),
        (str(tmp_path / "secret.png"), "outside its folder"),
        ("images/b.png", "is not beside it"),
        ("a\0b", "names"),
    ):
        pq.write_table(pa.table({"image": [{"bytes": None, "path": name}]}), path)
        with pytest.raises(DataError, match=why):
            list(opened(path).train.examples())


# -- damage --------------------------------------------------------------------------------------------------------


def test_a_damaged_name_of_a_column_is_one_line(tmp_path):
    path = written(tmp_path / "a.parquet", [1, 2], [0, 1])
    path.write_bytes(path.read_bytes().replace(b"label", b"la\xff\xfel"))
    with pytest.raises(DataError, match=r"a\.parquet is no parquet file that can be read") as error:
        load(str(path), size=8)
    assert "\n" not in str(error.value)


def test_fewer_rows_than_told_are_one_line(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", range(40))
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, **options: list(real(self, **options))[:0])
    with pytest.raises(DataError, match=r"it tells of 40 rows, and has 0"):
        list(opened(path).train.examples())


def test_a_file_may_not_tell_of_more_than_it_can_hold(tmp_path):
    big = pa.array([b"x" * 80_000_000])
    pq.write_table(pa.table({"image": big}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"it tells of 80,000,.* bytes of content"):
        opened(tmp_path / "a.parquet")


def test_one_image_may_not_be_told_of_without_end(tmp_path):
    image = encoded(1) + bytes(1_000_000)
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([image]))
    pq.write_table(pa.table({"image": many}), tmp_path / "a.parquet", compression="zstd", store_schema=False)
    with pytest.raises(DataError, match="unpacks to far more than its size"):
        list(opened(tmp_path / "a.parquet").train.examples())


def test_damage_anywhere_is_read_or_a_data_error(tmp_path):
    whole = written(tmp_path / "whole.parquet", range(30), [n % 3 for n in range(30)]).read_bytes()
    path = tmp_path / "a.parquet"
    for seed in range(60):
        rng = random.Random(seed)
        raw = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.2 else raw)
        with contextlib.suppress(DataError):
            found = opened(path)
            assert len(list(found.train.examples())) == found.train.count

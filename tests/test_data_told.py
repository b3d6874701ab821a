"""What a source is taken for is right and told, or refused in one line: splits, classes, colour, links, limits."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path, PurePath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gentickets.cli import main
from gentickets.data import ImageSet, line, load, load_splits
from gentickets.data.arranging import arrange
from gentickets.data.folders import suffixes
from gentickets.data.sources import split_of
from gentickets.errors import DataError
from gentickets.lab.recipe import make_recipe
from gentickets.lab.run.stage import load_data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def write(path, seed=None, mode="RGB", size=(12, 10), **options):
    """An image of noise; without a seed, of noise that its path decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    rng = np.random.Generator(np.random.PCG64(list(str(path).encode()) if seed is None else seed))
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path, **options)
    return path


def fill(place, *folders, count=10, **options):
    for folder in folders:
        for number in range(count):
            write(place / folder / f"{number:03}.png", **options)
    return place


def both(place, **options):
    return load_splits(str(place), **{"size": 8, **options})


def refused(place, **options):
    with pytest.raises(DataError) as error:
        both(place, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "held"), [
    ("train", "test"), ("Train", "Test"), ("TRAIN", "TEST"), ("training", "testing"), ("training_set", "test_set"),
    ("train", "val"), ("train", "valid"), ("Train", "Validation"), ("train", "dev"), ("train2017", "val2017"),
    ("train-images", "evaluation"), ("trainA", "testA"), ("seg_train", "seg_test"),
    ("DIV2K_train_HR", "DIV2K_valid_HR"),
])  # fmt: skip
def test_split_folders_by_their_usual_names(place, train, held):
    fill(place, f"{train}/a", f"{train}/b")
    fill(place, f"{held}/a", f"{held}/b", count=4)
    ours, theirs = both(place)
    assert (len(ours), len(theirs)) == (20, 8)
    assert ours.labels.tolist() == [0] * 10 + [1] * 10
    assert theirs.labels.tolist() == [0] * 4 + [1] * 4
    assert ours.told["held out"] == f"the folder {held}"
    assert ours.told["labels"] == "2 classes (a, b)"


@pytest.mark.parametrize(
    ("train", "held"), [("train/train", "test/Test"), ("seg_train/seg_train", "seg_test/seg_test")]
)
def test_a_split_may_say_so_twice(place, train, held):
    fill(place, f"set/{train}/a", f"set/{train}/b", f"set/{held}/a", f"set/{held}/b", count=3)
    ours, theirs = both(place)
    assert (len(ours), len(theirs), ours.told["labels"]) == (6, 6, "2 classes (a, b)")


@pytest.mark.parametrize("name", ["trainer", "bullet train", "testimony", "contest", "evaluated", "validity", "device",
                                  "latest", "images", "cat", "", "train_test", "1", "ünder"])  # fmt: skip
def test_other_names_are_no_splits(name):
    assert split_of(name) is None


def test_a_test_split_comes_before_one_for_validation(place):
    fill(place, "train", "val", "test", count=5)
    ours, theirs = both(place)
    assert (len(ours), len(theirs), ours.told["held out"]) == (5, 5, "the folder test")
    assert ours.told["left out"] == "the folder val (5 images)"
    assert np.array_equal(theirs.pixels, load(str(place / "test"), size=8, test=str(place / "val")).pixels)


def test_what_lies_beside_the_training_folder_is_named(place):
    fill(place, "train", "extra", "", count=30)
    ours, theirs = both(place)
    assert (len(ours), len(theirs)) == (27, 3)
    assert ours.told["held out"] == "one image in ten, drawn by a fixed seed"
    assert ours.told["left out"] == (
        "the folder extra (30 images); 30 images beside the folder train (000.png and 29 more)"
    )


def test_a_split_knows_of_the_other_beside_it(place):
    fill(place, "train", "test", count=30)
    assert both(place / "train")[0].told["left out"] == "the folder test beside it"


def test_classes_without_a_training_folder_are_trained_on_and_the_test_folder_is_not(place):
    fill(place, "cat", "dog")
    fill(place, "test/cat", "test/dog", count=3)
    ours, theirs = both(place)
    assert (len(ours), len(theirs), ours.told["labels"]) == (20, 6, "2 classes (cat, dog)")


@pytest.mark.parametrize(("folders", "message"), [
    (["trainA", "trainB", "testA", "testB"], r"2 training folders \(trainA, trainB\)"),
    (["DIV2K_train", "other_valid"], "splits within its folders"),
    (["cat/train", "cat/test", "dog/train", "dog/test"], r"splits within its folders \(cat/test, cat/train\)"),
    (["train/train", "train/test"], "splits within its folders"),
    (["cat/train", "dog/train"], "splits within its folders"),
    (["train/bus", "train/train", "test/bus", "test/train"], "splits within its folders"),
    (["val/cat", "val/dog"], "held-out images alone, in val"),
])  # fmt: skip
def test_splits_that_cannot_be_told_are_refused(place, folders, message):
    with pytest.raises(DataError, match=message):
        both(fill(place, *folders, count=3))


def test_equal_splits_are_refused(place, tmp_path):
    fill(place, "train/a", "train/b", count=3)
    (place / "test").symlink_to(place / "train")
    assert "every one of the 6 held-out images" in refused(place)
    (place / "test").unlink()
    for file in (place / "train").rglob("*.png"):
        copy = place / "test" / file.relative_to(place / "train")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    assert "every one of the 6 held-out images (the folder test) is among the training images" in refused(place)
    assert "is the source itself" in refused(place / "train", test=str(place / "train"))
    assert "every one of the 3 held-out images" in refused(place / "train", test=str(place / "train" / "a"), limit=1)


def test_images_in_both_splits_are_counted(place):
    fill(place, "train", "test", count=8)
    for number in range(3):
        (place / "test" / f"copy{number}.png").write_bytes((place / "train" / f"00{number}.png").read_bytes())
    told = [both(place)[0].told["in both"] for _ in range(2)]
    assert told == ["3 of the 11 held-out images are among the training ones"] * 2
    assert "in both" not in both(place / "test", test=str(fill(place, "other", count=2) / "other"))[0].told


@pytest.mark.parametrize("made", ["folder", "limit", "test folder"])
def test_one_held_out_image_is_refused(place, made):
    if made == "test folder":
        fill(place, "train")
        fill(place, "test", count=1)
    else:
        fill(place, "", count=12)
    message = refused(place, **({"limit": 1} if made == "limit" else {}))
    assert "holds out 1 image" in message
    assert "data.test" in message


@pytest.mark.parametrize("limit", [2, 7, 1438, 5000])
def test_what_is_held_out_knows_no_limit(limit):
    train, held = load_splits("digits", size=8, limit=limit)
    assert len(train) == min(limit, 1438)
    assert held.fingerprint == load("digits", size=8, split="test").fingerprint
    assert ("limit" in train.told) == (limit < 1438)


def test_a_tenth_that_is_drawn_knows_no_limit(place):
    fill(place, "", count=40)
    assert {load_splits(str(place), size=8, limit=limit)[1].fingerprint for limit in (None, 2, 7, 40)} == {
        load(str(place), size=8, split="test").fingerprint
    }


# -- classes ----------------------------------------------------------------------------------------------------------


def test_classes_are_found_below_folders_that_hold_all(place):
    fill(place, "data/images/cat", "data/images/dog")
    assert both(place)[0].told["labels"] == "2 classes (cat, dog)"


@pytest.mark.parametrize(("also", "reason"), [
    ("x.png", "none, 1 image beside the class folders (x.png)"),
    (None, "2 classes (a, b)"),
])  # fmt: skip
def test_a_stray_image_takes_the_labels_and_that_is_told(place, also, reason):
    fill(place, "a", "b")
    if also:
        write(place / also)
    ours = both(place)[0]
    assert ours.told["labels"] == reason
    assert (ours.labels is None) == bool(also)


def test_flat_and_single_folders_have_no_classes(place):
    fill(place, "flat", "one/cat", count=20)
    assert both(place / "flat")[0].told["labels"] == "none, there are no class folders"
    fill(place, "two/train/cat", "two/test/dog/deep")
    assert "dog" in both(place / "two")[0].told["labels"]


def test_classes_of_two_sources_are_matched_by_name(place):
    fill(place, "one/b", "one/c", "two/a", "two/c", count=3)
    ours, theirs = both(place / "one", test=str(place / "two"))
    assert ours.labels.tolist() == [1] * 3 + [2] * 3
    assert theirs.labels.tolist() == [0] * 3 + [2] * 3
    assert ours.told["labels"] == "3 classes (a, b, c); among the held-out images alone: a"


def test_disjoint_classes_are_told_and_the_held_out_ones_dropped(place):
    fill(place, "train/a", "train/b", "test/c", "test/d", count=3)
    ours, theirs = both(place)
    assert ours.labels.tolist() == [0] * 3 + [1] * 3
    assert theirs.labels is None
    assert "their classes (c and 1 more) are none of the training images'" in ours.told["labels"]


PATHS = st.lists(
    st.lists(st.sampled_from(["train", "Test", "val", "a", "b", "images"]), max_size=3).map("/".join),
    min_size=1, max_size=6, unique=True,
)  # fmt: skip


@given(folders=PATHS)
def test_no_image_is_in_two_splits_and_no_test_folder_is_trained_on(folders):
    names = sorted(PurePath(folder, f"{number}.png") for folder in folders for number in range(2))
    try:
        found = arrange(names, "it")
    except DataError:
        return
    train, test = set(found.train.names), set(found.test.names if found.test else ())
    assert train
    assert not train & test
    assert train | test <= set(names)
    kinds = [[split_of(part) for part in name.parts[:-1]] for name in train]
    assert not (any("train" in kind for kind in kinds) and any({"test", "validation"} & set(kind) for kind in kinds))
    assert not any("train" in map(split_of, name.parts) for name in test)
    assert all(split_of(name) is None for name in found.classes or ())
    if train | test != set(names):
        assert found.left_out


# -- colour -----------------------------------------------------------------------------------------------------------


def test_colour_is_decided_over_all_images(place):
    fill(place, "a", count=600, mode="L", size=(4, 4))
    fill(place, "b", count=20, size=(4, 4))
    for options in ({}, {"limit": 300}, {"limit": 2}):
        ours, theirs = both(place, **options)
        assert (ours.shape, theirs.shape) == ((3, 8, 8), (3, 8, 8))
        assert ours.told["colour"] == "RGB (600 of 620 images are grey)"
    assert load(str(place), size=8, channels=1).shape == (1, 8, 8)


@pytest.mark.parametrize("grey", ["train", "test"])
def test_colour_is_decided_over_both_splits(place, grey):
    other = {"train": "test", "test": "train"}[grey]
    fill(place, grey, mode="L", count=3)
    fill(place, other, count=3)
    assert [part.shape for part in both(place)] == [(3, 8, 8)] * 2
    ours, theirs = both(place, channels=1)
    assert ours.shape == theirs.shape == (1, 8, 8)
    assert ours.told["colour"] == "grey, as data.channels says (3 of 6 images are grey)"


# -- what was read and what not ---------------------------------------------------------------------------------------


def test_all_that_was_done_is_told(place):
    fill(place, "", count=38)
    write(place / "big.png", size=(80, 60))
    Image.new("RGBA", (20, 20), (0, 255, 0, 0)).save(place / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    write(place / "turned.png", size=(30, 20), exif=exif)
    Image.fromarray(np.full((9, 9), 257, np.uint16)).save(place / "deep.png")
    frames = [Image.new("L", (9, 9), value) for value in (0, 255)]
    frames[0].save(place / "film.gif", save_all=True, append_images=frames[1:])
    (place / "notes.txt").write_text("no image")
    (place / "a.jxl").write_text("no image that is read")
    (place / "._000.png").write_text("what macOS leaves")
    first, again = (both(place)[0].told for _ in range(2))
    assert first == again  # of which the second is read from the cache
    assert first == {
        "read": f"39 training and 4 held-out images of {place}",
        "were": "9x9 to 80x60, RGB 40, RGBA 1, P 1, I;16 1",
        "held out": "one image in ten, drawn by a fixed seed",
        "labels": "none, there are no class folders",
        "colour": "RGB (1 of 43 images are grey)",
        "shown": "1 transparent, over white, 1 turned as their EXIF says, 1 of more than 8 bits, brought to 8, "
        "1 of several frames, the first taken",
        "made": "cropped to the centred square and brought to 8x8",
        "left out": "files by suffix (.jxl 1, .txt 1); hidden files (._000.png)",
    }
    assert line(first).startswith(f"39 training and 4 held-out images of {place}; were: 9x9 to 80x60, RGB 40")


def test_suffixes_that_are_read(place):
    for number, suffix in enumerate(
        [".png", ".jfif", ".jpe", ".JPG", ".tga", ".bmp", ".webp", ".tif", ".pgm", ".ppm"] * 2
    ):
        write(place / f"{number}{suffix}", mode="L")
    assert sum(map(len, both(place))) == 20


def test_links_are_followed_once(place, tmp_path):
    fill(place, "cat")
    fill(tmp_path, "elsewhere/dog")
    (place / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (place / "loop").symlink_to(place)
    (place / "cat" / "self").symlink_to(place / "cat" / "self")
    (place / "cat" / "again.png").symlink_to(place / "cat" / "001.png")
    (place / "cat" / "bad.png").symlink_to(place / "nothing")
    os.mkfifo(place / "cat" / "pipe.png")
    ours, theirs = both(place)
    assert len(ours) + len(theirs) == 20
    assert sorted([*ours.labels, *theirs.labels]) == [0] * 10 + [1] * 10
    assert ours.told["also"] == "links followed: 1"
    assert ours.told["left out"] == (
        "files by suffix (none 1); links to nothing (cat/bad.png); links to what is read already (loop and 1 more); "
        "what is no file (cat/pipe.png)"
    )


def test_splits_made_of_links(place):
    fill(place, "all", count=20)
    for number in range(20):
        link = place / ("train" if number < 15 else "test") / f"{number}.png"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(place / "all" / f"{number:03}.png")
    ours, theirs = both(place)
    assert (len(ours), len(theirs)) == (15, 5)
    assert (ours.told["left out"], ours.told["also"]) == ("the folder all (20 images)", "links followed: 20")


def test_a_link_to_nothing_and_what_is_no_path_are_one_line(tmp_path, place):
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert f"is a link to {tmp_path / 'nothing'}, which does not exist" in refused(tmp_path / "gone")
    assert "longer than a path can be" in refused("x" * 5000)
    assert "is no path" in refused("x\0y")
    (place / "a.png").symlink_to(place / "nothing")
    assert "links to nothing (a.png)" in refused(place)


def test_names_that_are_no_utf8(place):
    fill(place, "", count=20)
    (place / "000.png").rename(Path(os.fsdecode(os.fsencode(place) + b"/\xff.png")))
    os.symlink("nothing", os.fsencode(place) + b"/\xfe.png")
    told = both(place)[0].told
    assert told["left out"] == "links to nothing (\\udcfe.png)"
    json.dumps(told, ensure_ascii=False).encode()


def test_no_address_of_an_object_is_told(place):
    from gentickets.data.decoding import Example, decode

    with pytest.raises(DataError, match="row 3 is no image that can be read") as error:
        decode(Example("row 3", b"nonsense", None), 8, 1, None)
    assert "0x" not in str(error.value)


# -- the cache --------------------------------------------------------------------------------------------------------


def test_an_image_overwritten_in_place_is_read_again(place):
    fill(place, "", count=20)
    file = write(place / "000.png", seed=1)
    before, state = [part.fingerprint for part in both(place)], file.stat()
    length = len(file.read_bytes())
    for seed in range(2, 200):
        write(file, seed=seed)
        if len(file.read_bytes()) == length:
            break
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert [part.fingerprint for part in both(place)] != before


# -- arrays of one's own ----------------------------------------------------------------------------------------------


def test_an_image_set_does_not_share_the_callers_memory():
    pixels, labels = np.zeros((4, 1, 8, 8), np.uint8), np.arange(4)
    images = ImageSet.from_arrays("mine", pixels, labels)
    pixels[:], labels[:] = 255, 7
    assert images.pixels.max() == 0
    assert images.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("labels", [
    np.array([0.2, 0.5]), np.array([0.0, np.nan]), np.array(["a", "b"]), np.array([0, 2**64 - 1], np.uint64),
    np.array([True, False]), np.array([0, None]),
], ids=["fractions", "nan", "text", "beyond", "bool", "none"])  # fmt: skip
def test_labels_that_are_no_whole_numbers_are_refused(labels):
    with pytest.raises(DataError, match="labels of 'mine'") as error:
        ImageSet.from_arrays("mine", np.zeros((2, 1, 8, 8), np.uint8), labels)
    assert "\n" not in str(error.value)


def test_whole_numbers_of_any_width_are_labels():
    pixels = np.zeros((2, 1, 8, 8), np.uint8)
    for kind in (np.int8, np.uint8, np.int32, np.uint64):
        assert ImageSet.from_arrays("mine", pixels, np.array([3, 5], kind)).labels.tolist() == [3, 5]


# -- in a run ---------------------------------------------------------------------------------------------------------

RECIPE = {
    "name": "tiny",
    "model": {"name": "linear-autoencoder", "width": 4, "depth": 1, "latent": 2},
    "objective": {"name": "autoencoding"},
    "training": {"steps": 4, "batch_size": 4},
    "search": {"rounds": 0},
    "evaluation": {"features": "none"},
}


def test_a_size_that_nobody_gave_is_told(place):
    fill(place, "", count=30)
    said = load_data(make_recipe({**RECIPE, "data": {"source": str(place)}}).data)[0].told["made"]
    assert said == "cropped to the centred square and brought to 16x16 (data.size is not given: 16)"
    given_size = load_data(make_recipe({**RECIPE, "data": {"source": str(place), "size": 16}}).data)[0].told["made"]
    assert given_size == "cropped to the centred square and brought to 16x16"


def command(monkeypatch, capsys, *words):
    """(exit code, stderr) of the program."""
    monkeypatch.setattr(sys, "argv", ["gentickets", *map(str, words)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, capsys.readouterr().err


def test_a_run_tells_it_once_and_keeps_it(place, tmp_path, monkeypatch, capsys):
    fill(place, "train/a", "train/b", "val/a", "val/b", count=6)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps({**RECIPE, "data": {"source": str(place), "size": 8}}))
    for _ in range(2):
        code, told = command(monkeypatch, capsys, "find", recipe, "--runs", tmp_path)
        assert (code or 0, told.count("data: 12 training and 12 held-out images of ")) == (0, 1)
    facts = json.loads((tmp_path / "tiny" / "origin.json").read_text())["data"]["told"]
    assert (facts["held out"], facts["labels"]) == ("the folder val", "2 classes (a, b)")
    assert "held out: the folder val" in (tmp_path / "tiny" / "report.html").read_text()


def test_what_cannot_be_run_is_refused_at_the_plan(place, tmp_path, monkeypatch, capsys):
    fill(place, "", count=30)
    assert "GB of memory" in refused(place, size=10**7)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps({**RECIPE, "data": {"source": str(place)}}))

    def plan(*words):
        return command(monkeypatch, capsys, "find", recipe, *words, "--runs", tmp_path, "--plan")

    code, told = plan("data.size=1000000")
    assert code == 2
    assert told.startswith("gentickets: data.size=1000000 with training.batch_size=4: 4 images of 1x1000000x1000000 ")
    code, told = plan("data.limit=1", "data.size=8")
    assert code == 2
    assert "leaves 1 image to train on, and 2 or more are needed: raise data.limit" in told
    assert plan("data.limit=2", "data.size=8")[0] in (0, None)
    for number in range(12, 30):
        (place / f"{number:03}.png").unlink()
    code, told = plan()
    assert code == 2
    assert "holds out 1 image (a tenth of 12)" in told


def test_the_docs_name_every_suffix():
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    named = page.partition("Files with the suffix (in any case) ")[2].partition(", as far as")[0]
    assert set(named.replace(" or ", ", ").replace("\n", " ").replace("  ", " ").split(", ")) >= suffixes()

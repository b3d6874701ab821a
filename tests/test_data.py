"""Loading from every kind of source, the cache, and batches as a function of the step."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gentickets import DataError
from gentickets.data import Batches, ImageSet, load, loading
from gentickets.data import batches as batches_module

SHARED = Path(os.environ.get("GENTICKETS_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
CIFAR, MNIST = SHARED / "cifar10-jpeg" / "train.parquet", SHARED / "mnist-10k" / "train.parquet"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("GENTICKETS_CACHE", str(folder))
    return folder


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, images: list[bytes | None], labels: list[int] | None = None, column="img") -> Path:
    columns = {
        "id": pa.array(range(len(images))),
        column: pa.array([{"bytes": b, "path": None} for b in images]),
    }
    if labels is not None:
        columns["label"] = pa.array(labels)
    pq.write_table(pa.table(columns), path)
    return path


def write_image(path: Path, seed: int, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **options).save(path)
    return path


def one_line(error: pytest.ExceptionInfo[DataError]) -> bool:
    return "\n" not in str(error.value)


# -- digits --------------------------------------------------------------------------------------------------


def test_digits_are_split_by_class_and_scaled() -> None:
    train, test = load("digits", size=8), load("digits", size=8, split="test")
    assert len(train) + len(test) == 1797
    assert train.shape == test.shape == (1, 8, 8)
    assert (train.pixels.min(), train.pixels.max()) == (0, 255)
    assert np.bincount(test.labels).tolist() == [
        round(n / 5) for n in np.bincount(train.labels) + np.bincount(test.labels)
    ]
    assert not {image.tobytes() for image in train.pixels} & {image.tobytes() for image in test.pixels}
    # Pinned: what "digits" means may not change from one version to the next.
    assert train.fingerprint.startswith("86a5f21403852f02")


def test_digits_are_made_larger_and_coloured() -> None:
    colour = load("digits", size=16, channels=3, limit=5)
    assert colour.pixels.shape == (5, 3, 16, 16)
    assert (colour.pixels[:, 0] == colour.pixels[:, 2]).all()


# -- image sets ----------------------------------------------------------------------------------------------


def ramp(n: int = 256, side: int = 1) -> ImageSet:
    pixels = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1) * np.ones((1, 1, side, side), dtype=np.uint8)
    return ImageSet.from_arrays("ramp", pixels, np.arange(n))


def test_images_are_normalised_to_both_ends() -> None:
    images = ramp().images()
    assert images.dtype == torch.float32
    assert (images.min().item(), images.max().item()) == (-1.0, 1.0)
    assert torch.equal(((images + 1) * 127.5).round().flatten(), torch.arange(256.0))
    for rows in ([3, 1], np.array([3, 1]), torch.tensor([3, 1])):
        assert torch.equal(ramp().images(rows), images[[3, 1]])
    assert torch.equal(ramp().images(slice(3, 5)), images[3:5])


def test_an_image_set_is_read_only_and_checked() -> None:
    images = ramp()
    with pytest.raises(ValueError, match="read-only"):
        images.pixels[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        load("digits", size=8, limit=3).pixels[0] = 1
    with pytest.raises(DataError, match="float32"):
        ImageSet.from_arrays("mine", np.zeros((2, 1, 4, 4), dtype=np.float32))
    with pytest.raises(DataError, match="for 256 images"):
        ImageSet.from_arrays("mine", images.pixels, np.zeros(3, dtype=np.int64))
    for masked in (
        (np.ma.masked_equal(images.pixels, 255), None),
        (images.pixels, np.ma.masked_less(np.arange(256), 1)),
    ):
        with pytest.raises(DataError, match="'mine' has masked values"):
            ImageSet.from_arrays("mine", *masked)


def test_the_fingerprint_tells_pixels_labels_and_shape_apart() -> None:
    pixels, labels = np.zeros((4, 1, 2, 8), dtype=np.uint8), np.zeros(4, dtype=np.int64)
    other = pixels.copy()
    other[3, 0, 1, 7] = 1
    sets = [
        (pixels, labels),
        (other, labels),
        (pixels, labels + 1),
        (pixels, None),
        (pixels.reshape(4, 1, 4, 4), labels),
    ]
    prints = [ImageSet.from_arrays("any", *one).fingerprint for one in sets]
    assert len(set(prints)) == 5
    assert ImageSet.from_arrays("other name", pixels, labels).fingerprint == prints[0]


@given(n=st.integers(1, 50), seed=st.integers(0, 99))
def test_subsets_are_parts_that_repeat_and_nest(n: int, seed: int) -> None:
    images = ramp(50)
    part = images.subset(n, seed)
    assert len(set(part.labels)) == n
    assert (part.pixels[:, 0, 0, 0] == part.labels).all()
    assert part.fingerprint == images.subset(n, seed).fingerprint
    assert set(part.labels) <= set(images.subset(min(n + 5, 50), seed).labels)


def test_a_subset_larger_than_the_set_is_refused() -> None:
    with pytest.raises(DataError, match="51 images"):
        ramp(50).subset(51, 0)


# -- batches -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 60), seed=st.integers(0, 9), epochs=st.integers(1, 3))
def test_every_image_comes_once_an_epoch(n: int, batch_size: int, seed: int, epochs: int) -> None:
    batches = Batches(ramp(n), batch_size, seed)
    steps = -(-n * epochs // batch_size)
    stream = np.concatenate([batches.indices(step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert all(len(batches.at(step)) == batch_size for step in range(steps))


@settings(deadline=None)
@given(step=st.integers(0, 10**6), seed=st.integers(0, 2**63), flip=st.booleans())
def test_a_batch_is_a_function_of_seed_and_step(step: int, seed: int, flip: bool) -> None:
    used, fresh = (Batches(ramp(30, side=3), 7, seed, flip) for _ in range(2))
    for other in (0, step + 1, max(0, step - 9)):
        used.at(other)
    assert torch.equal(used.at(step), fresh.at(step))


def test_seeds_and_epochs_differ() -> None:
    batches = Batches(ramp(50), 50, seed=0)
    assert not np.array_equal(batches.indices(0), batches.indices(1))
    assert not np.array_equal(batches.indices(0), Batches(ramp(50), 50, seed=1).indices(0))


def test_flips_mirror_about_half_and_change_nothing_else() -> None:
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (400, 3, 4, 5), dtype=np.uint8)
    images = ImageSet.from_arrays("noise", pixels)
    plain, flipped = Batches(images, 400, 3).at(2), Batches(images, 400, 3, flip=True).at(2)
    as_is = (plain == flipped).flatten(1).all(dim=1)
    mirrored = (plain.flip(-1) == flipped).flatten(1).all(dim=1)
    assert (as_is ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_an_epoch_is_shuffled_once_and_a_batch_reads_its_own_images_alone(monkeypatch) -> None:
    """What a batch costs: no order is drawn again, and nothing is done to images that it does not hold."""
    drawn, touched = [], []
    generator, normalised = np.random.PCG64, batches_module.normalised
    monkeypatch.setattr(np.random, "PCG64", lambda seed: drawn.append(list(seed)) or generator(seed))
    monkeypatch.setattr(batches_module, "normalised", lambda pixels: touched.append(len(pixels)) or normalised(pixels))
    batches = Batches(ramp(100), 30, 7)
    for step in range(7):
        batches.at(step)
    assert drawn == [[7, 0], [7, 1], [7, 2]]
    assert touched == [30] * 7


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(DataError, match="batch_size: 0"):
        Batches(ramp(), 0, 0)
    with pytest.raises(DataError, match="seed: -1"):
        Batches(ramp(), 1, -1)
    with pytest.raises(DataError, match="step: -1"):
        Batches(ramp(), 1, 0).at(-1)


# -- parquet -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["img", "image", "picture"])
def test_a_parquet_file_gives_its_images_in_order(tmp_path, column) -> None:
    images = [picture(seed, (8, 8)) for seed in range(20)]
    path = write_parquet(tmp_path / "faces.parquet", list(map(encoded, images)), list(range(20)), column)
    train, test = load(str(path), size=8), load(str(path), size=8, split="test")
    assert (train.name, len(train), len(test)) == ("faces", 18, 2)
    assert sorted([*train.labels, *test.labels]) == list(range(20))
    for part in (train, test):
        for pixels, label in zip(part.pixels, part.labels, strict=True):
            assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(images[label]))


def test_a_test_file_is_the_one_named_or_the_one_beside(tmp_path) -> None:
    folder = tmp_path / "birds"
    folder.mkdir()
    pictures = [encoded(picture(seed)) for seed in range(12)]
    train = write_parquet(folder / "train.parquet", pictures[:6])
    write_parquet(folder / "test.parquet", pictures[6:9])
    other = write_parquet(tmp_path / "other.parquet", pictures[9:])
    assert len(load(str(train), size=8)) == 6
    beside = load(str(train), size=8, split="test")
    named = load(str(train), size=8, split="test", test=str(other))
    assert (len(beside), beside.name, beside.split, beside.labels) == (3, "birds", "test", None)
    assert len(named) == 3
    assert named.fingerprint != beside.fingerprint
    assert len(load(str(other), size=8, test=str(train))) == 3


def test_plain_binary_columns_are_images_too(tmp_path) -> None:
    path = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"image": [encoded(picture(s)) for s in range(10)], "labels": list(range(10))}), path)
    assert load(str(path), size=8).labels.max() > 0


def test_broken_parquets_say_what_is_wrong(tmp_path) -> None:
    good = [encoded(picture(seed)) for seed in range(9)]
    test = str(write_parquet(tmp_path / "test.parquet", good))
    torn = write_parquet(tmp_path / "torn.parquet", [*good, good[0][:40]])
    with pytest.raises(DataError, match=r"row 9 of .*torn\.parquet") as error:
        load(str(torn), size=8, test=test)
    assert one_line(error)
    empty = write_parquet(tmp_path / "empty.parquet", [good[0], None])
    with pytest.raises(DataError, match=r"row 1 of .*empty\.parquet has no image in column 'img'"):
        load(str(empty), size=8, test=test)
    (tmp_path / "text.parquet").write_text("not a parquet")
    with pytest.raises(DataError, match="no parquet file"):
        load(str(tmp_path / "text.parquet"), size=8)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="no image column among a"):
        load(str(tmp_path / "none.parquet"), size=8)
    with pytest.raises(DataError, match=r"'gone\.parquet' does not exist"):
        load("gone.parquet", size=8)
    with pytest.raises(DataError, match=r"test: gone\.parquet does not exist"):
        load(test, size=8, split="test", test="gone.parquet")


def test_a_file_damaged_inside_is_an_error(tmp_path) -> None:
    path = write_parquet(tmp_path / "hurt.parquet", [encoded(picture(seed, (64, 64))) for seed in range(40)])
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3 : len(raw) // 3 + 4000] = b"\xff" * 4000
    path.write_bytes(raw)
    with pytest.raises(DataError) as error:
        load(str(path), size=8)
    assert one_line(error)


# -- folders -------------------------------------------------------------------------------------------------


def test_a_flat_folder_holds_out_a_tenth(tmp_path) -> None:
    for seed in range(20):
        write_image(tmp_path / "cats" / f"{seed}.png", seed)
    (tmp_path / "cats" / "._0.png").write_text("what macOS leaves")
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    train, test = (load(str(tmp_path / "cats"), size=8, split=split) for split in ("train", "test"))
    assert (len(train), len(test), train.name, train.labels) == (18, 2, "cats", None)


@pytest.mark.parametrize("held", ["test", "val"])
def test_splits_and_classes_are_sub_folders(tmp_path, held) -> None:
    for number, name in enumerate(["a", "b", "c"]):
        write_image(tmp_path / "train" / name / f"{number}.png", number)
    write_image(tmp_path / held / "b" / "9.png", 9)
    write_image(tmp_path / held / "c" / "8.png", 8)
    assert load(str(tmp_path), size=8).labels.tolist() == [0, 1, 2]
    test = load(str(tmp_path), size=8, split="test")
    assert test.labels.tolist() == [1, 2]
    assert np.array_equal(test.pixels[0], load(str(tmp_path / held / "b"), size=8).pixels[0])


def test_a_test_set_of_the_other_kind(tmp_path) -> None:
    write_image(tmp_path / "dogs" / "0.png", 0)
    parquet = write_parquet(tmp_path / "more.parquet", [encoded(picture(seed)) for seed in range(3)])
    folder = str(tmp_path / "dogs")
    assert len(load(folder, size=8, split="test", test=str(parquet))) == 3
    assert len(load(str(parquet), size=8, split="test", test=folder)) == 1


@pytest.mark.parametrize("named", ["", "img_align_celeba"])
def test_celeba_as_its_authors_publish_it(tmp_path, named) -> None:
    for number in range(6):
        write_image(tmp_path / "img_align_celeba" / f"{number:06}.jpg", number, size=(178, 218))
    lines = [f"{number:06}.jpg {part}" for number, part in enumerate([0, 0, 0, 1, 2, 2])]
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    train, test = (load(str(tmp_path / named), size=148, split=split) for split in ("train", "test"))
    assert (train.name, len(train), len(test)) == ("celeba", 3, 2)
    with Image.open(tmp_path / "img_align_celeba" / "000004.jpg") as image:
        expected = np.asarray(image)[35:183, 15:163].transpose(2, 0, 1)
    assert np.array_equal(test.pixels[0], expected)
    assert not np.array_equal(load(str(tmp_path / named), size=148, crop=178).pixels[0], train.pixels[0])


def test_empty_folders_and_broken_images_say_so(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        load(str(tmp_path / "empty"), size=8)
    write_image(tmp_path / "bad" / "0.png", 0)
    (tmp_path / "bad" / "1.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"1\.png is no image that can be read") as error:
        load(str(tmp_path / "bad"), size=8)
    assert one_line(error)
    with pytest.raises(DataError, match="hub"):
        load("no such thing", size=8)


# -- decoding ------------------------------------------------------------------------------------------------


def folder_with(tmp_path: Path, image: Image.Image, name: str = "0.png", **options) -> str:
    folder = tmp_path / "one"
    folder.mkdir(exist_ok=True)
    image.save(folder / name, **options)
    return str(folder)


def test_images_are_cropped_to_a_centred_square_and_resized(tmp_path) -> None:
    image = picture(0, (30, 20))
    folder = folder_with(tmp_path, image)
    square = np.asarray(image)[:, 5:25]
    assert np.array_equal(load(folder, size=20).pixels[0], square.transpose(2, 0, 1))
    crop = np.asarray(image)[4:16, 9:21]
    assert np.array_equal(load(folder, size=12, crop=12).pixels[0], crop.transpose(2, 0, 1))
    smooth = load(folder, size=5).pixels[0].astype(float)
    # Antialiased: every source pixel weighs in, and noise comes out far calmer than it went in.
    assert smooth.std() < square.std() / 2
    with pytest.raises(DataError, match=r"crop: 25 is larger than .*30x20"):
        load(folder, size=8, crop=25)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("LA", 1), ("1", 1)])
def test_channels_are_those_of_the_source(tmp_path, mode, channels) -> None:
    assert load(folder_with(tmp_path, picture(0).convert(mode)), size=8).shape == (channels, 8, 8)


def test_one_colour_image_among_grey_ones_makes_the_set_colour(tmp_path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(4):
        picture(number, mode="RGB" if number == 3 else "L").save(folder / f"{number}.png")
    test = str(write_parquet(tmp_path / "any.parquet", [encoded(picture(0))]))
    assert load(str(folder), size=8, test=test).shape[0] == 3
    assert load(str(folder), size=8, test=test, channels=1).shape[0] == 1


def test_sixteen_bit_images_are_scaled_and_not_clipped(tmp_path) -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    pixels = load(folder_with(tmp_path, Image.fromarray(values)), size=8).pixels[0, 0]
    assert np.array_equal(pixels, (values // 257).astype(np.uint8))


def test_images_stand_as_their_camera_says(tmp_path) -> None:
    image = Image.new("RGB", (16, 16))
    image.paste((255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    pixels = load(folder_with(tmp_path, image, "0.jpg", exif=exif), size=16).pixels[0]
    assert pixels[:, :6].max() < 60
    assert pixels[:, 10:].min() > 200


# -- the cache -----------------------------------------------------------------------------------------------


def test_decoding_happens_once(monkeypatch) -> None:
    first = load("digits", size=8)
    monkeypatch.setattr(loading, "decode", None)
    again = load("digits", size=8)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.pixels, first.pixels)
    assert np.array_equal(again.labels, first.labels)


def test_whatever_decides_the_content_decides_the_entry(tmp_path) -> None:
    folder = folder_with(tmp_path, picture(0, (30, 20)))
    prints = {
        load(folder, size=8, **options).fingerprint
        for options in ({}, {"channels": 1}, {"crop": 10}, {"crop": 12, "channels": 1})
    }
    assert len(prints) == 4
    before = load(folder, size=8).fingerprint
    folder_with(tmp_path, picture(1, (30, 20)))
    assert load(folder, size=8).fingerprint != before


@pytest.mark.parametrize("suffix", [".json", ".labels.npy", ".npy"])
@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "gone"])
def test_a_damaged_entry_is_made_anew(cache, suffix, damage) -> None:
    whole = load("digits", size=8, limit=50).fingerprint
    (file,) = (f for f in cache.iterdir() if f.name.count(".") == suffix.count(".") and f.name.endswith(suffix))
    raw = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        raw[-3] ^= 1
        file.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "bit": raw}[damage])
    again = load("digits", size=8, limit=50)
    assert again.fingerprint == whole == ImageSet.from_arrays("x", again.pixels, again.labels).fingerprint


def test_a_failure_leaves_nothing_behind(tmp_path, cache) -> None:
    write_image(tmp_path / "bad" / "0.png", 0)
    (tmp_path / "bad" / "1.png").write_bytes(b"nonsense")
    with pytest.raises(DataError):
        load(str(tmp_path / "bad"), size=8)
    assert not [file for file in cache.iterdir() if file.name.endswith((".npy", ".partial"))]
    with pytest.raises(DataError):
        load(str(tmp_path / "bad"), size=8)


def test_a_cache_that_cannot_be_written_is_a_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .* GENTICKETS_CACHE") as error:
        load("digits", size=8, cache=tmp_path / "file")
    assert one_line(error)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_line(monkeypatch) -> None:
    def full(file, header) -> None:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(DataError, match="No space left on device"):
        load("digits", size=8)


def test_two_processes_may_decode_at_once(cache) -> None:
    code = "from gentickets.data import load; print(load('digits', size=8).fingerprint)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = {process.communicate()[0].strip() for process in both}
    assert found == {load("digits", size=8).fingerprint}
    assert not [file for file in cache.iterdir() if file.name.endswith(".partial")]


@given(limit=st.integers(1, 40))
@settings(max_examples=5, deadline=None)
def test_limits_nest(tmp_path_factory, limit: int) -> None:
    folder = tmp_path_factory.mktemp("cache")
    small, large = (load("digits", size=8, limit=n, cache=folder) for n in (limit, limit + 10))
    assert (len(small), len(large)) == (limit, limit + 10)
    assert {image.tobytes() for image in small.pixels} <= {image.tobytes() for image in large.pixels}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 3}, "size: 3"),
        ({"size": 8, "channels": 2}, "channels: 2"),
        ({"size": 8, "split": "valid"}, "split: 'valid'"),
        ({"size": 8, "crop": 0}, "crop: 0"),
        ({"size": 8, "limit": 0}, "limit: 0"),
        ({"size": 8, "test": "here.parquet"}, "leave test out"),
    ],
)
def test_impossible_wishes_are_refused(options, message) -> None:
    with pytest.raises(DataError, match=message):
        load("digits", **options)


# -- the hub -------------------------------------------------------------------------------------------------


def test_without_its_package_the_hub_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        load("mnist", size=8)


def hub_with(monkeypatch, **splits: int):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    tables = {
        name: datasets.Dataset.from_dict(
            {"picture": [picture(seed, mode="L") for seed in range(n)], "label": [s % 2 for s in range(n)]},
            features,
        )
        for name, n in splits.items()
    }
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda identity: (asked.append(identity), tables)[1])
    return asked


def test_a_set_of_the_hub_is_asked_for_once(monkeypatch) -> None:
    asked = hub_with(monkeypatch, train=6, test=4)
    test = load("fashion-mnist", size=8, split="test")
    assert (test.name, len(test), test.shape) == ("fashion-mnist", 4, (1, 8, 8))
    assert test.labels.tolist() == [0, 1, 0, 1]
    load("fashion-mnist", size=8, split="test")
    assert asked == ["zalando-datasets/fashion_mnist"]


def test_a_hub_set_without_a_test_split_holds_a_tenth_out(monkeypatch) -> None:
    hub_with(monkeypatch, train=20)
    train, test = (load("someone/pictures", size=8, split=split) for split in ("train", "test"))
    assert (train.name, len(train), len(test)) == ("pictures", 18, 2)


def test_a_hub_that_cannot_be_reached_is_a_line(monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(identity: str) -> None:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"ylecun/mnist \(no network\)") as error:
        load("mnist", size=8)
    assert one_line(error)


# -- real files ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CIFAR.exists(), reason="the CIFAR-10 parquet is not here")
def test_cifar_from_its_parquet() -> None:
    test = load(str(CIFAR), size=32, split="test", limit=2000)
    assert test.shape == (3, 32, 32)
    assert (np.bincount(test.labels, minlength=10) > 120).all()
    assert 90 < test.pixels.mean() < 150


@pytest.mark.skipif(not MNIST.exists(), reason="the MNIST parquet is not here")
def test_mnist_from_its_parquet() -> None:
    train, test = (load(str(MNIST), size=28, split=split) for split in ("train", "test"))
    assert (len(train), len(test), train.shape, train.name) == (9000, 1000, (1, 28, 28), "mnist-10k")
    # Digits are ink on an empty ground, in the middle.
    assert train.pixels[:, :, 8:20, 8:20].mean() > 4 * train.pixels[:, :, :6].mean()

"""Arrays, archives, CIFAR's batches, MNIST's idx files and CelebA: read right, or refused in one line."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gentickets import DataError
from gentickets.data import finding, load
from gentickets.data.sources import Opened

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENTICKETS_CACHE", str(tmp_path / "cache"))


def opened(source, test=None) -> Opened:
    return finding.find(str(source), test).read()


def pixels(rows) -> np.ndarray:
    return np.stack([example.content for example in rows.examples()])


def labels(rows) -> list[int | None]:
    return [example.label for example in rows.examples()]


def picture(seed: int, size=(12, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(seed: int, size=(12, 10)) -> bytes:
    file = io.BytesIO()
    picture(seed, size).save(file, "PNG")
    return file.getvalue()


# -- arrays ------------------------------------------------------------------------------------------------------

COLOUR = RNG.integers(0, 256, (30, 12, 10, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
CLASSES = RNG.integers(0, 5, 30)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keys", [
    ("x_train", "y_train", "x_test", "y_test"),
    ("X_train", "Y_train", "X_test", "Y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("train_x", "train_y", "val_x", "val_y"),
])  # fmt: skip
def test_npz_with_splits(tmp_path, save, keys):
    train, labels_key, test, test_labels = keys
    arrays = {train: COLOUR, labels_key: CLASSES, test: COLOUR[:4], test_labels: CLASSES[:4, None]}
    if not test.startswith("val"):
        arrays["val_images"] = COLOUR[:2]
    else:
        del arrays[test_labels]
    save(tmp_path / "a.npz", **arrays)
    found = opened(tmp_path / "a.npz")
    assert np.array_equal(pixels(found.train), COLOUR)
    assert np.array_equal(pixels(found.test), COLOUR[:4])
    assert found.held_out == test
    if test.startswith("val"):
        assert "val_x has no labels" in found.train.unlabelled
    else:
        assert labels(found.train) == CLASSES.tolist()
        assert labels(found.test) == CLASSES[:4].tolist()
        assert "the array val_images" in found.left_out


@pytest.mark.parametrize("array", [
    COLOUR,
    COLOUR.transpose(0, 3, 1, 2),
    np.asfortranarray(COLOUR),
    COLOUR.astype(np.int64),
    COLOUR.astype(">i2"),
    COLOUR.astype(np.float32),
    COLOUR.astype(np.float32) / 255,
    (COLOUR / 255).astype(np.float16),
    COLOUR / 127.5 - 1,
    (COLOUR.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).astype(np.float32),
], ids=["uint8", "nchw", "fortran", "int64", "big", "float", "unit", "half", "signed", "signed_nchw"])  # fmt: skip
def test_arrays_whose_scale_the_numbers_say(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", images=array, labels=CLASSES)
    for name in ("a.npy", "a.npz"):
        found = opened(tmp_path / name)
        assert np.array_equal(pixels(found.train), COLOUR)
        assert any(str(array.dtype) in note and "(n, " in note for note in found.notes)
    assert labels(found.train) == CLASSES.tolist()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32])
def test_two_values_are_black_and_white(tmp_path, dtype):
    np.savez(tmp_path / "sprites.npz", imgs=(GREY > 100).astype(dtype), latents_values=RNG.random((30, 6)))
    found = opened(tmp_path / "sprites.npz")
    assert np.array_equal(pixels(found.train), np.where(GREY > 100, 255, 0))
    assert found.left_out == ("the array latents_values",)


@pytest.mark.parametrize(("arrays", "message"), [
    ({"images": RNG.random((30, 8, 8, 3))}, r"float64 from 0\.\d+ to 0\.\d+, and nothing says which is black"),
    ({"images": RNG.normal(size=(30, 8, 8, 3))}, "nothing says which is black"),
    ({"images": np.full((9, 8, 8), np.nan)}, "NaN or infinity"),
    ({"images": GREY // 15}, "uint8 from 0 to 17, and nothing says"),
    ({"images": GREY.astype(np.uint16) * 257}, "uint16 from .* save it as uint8"),
    ({"images": -GREY.astype(np.int16)}, "nothing says which is black"),
    ({"images": GREY.reshape(30, -1)}, r"the shape 30 x 120, and nothing says which axis"),
    ({"images": COLOUR[0]}, "12 x 10 x 3, and nothing says which axis"),
    ({"images": RNG.integers(0, 256, (5, 3, 9, 3), dtype=np.uint8)}, "nothing says which axis"),
    ({"images": np.zeros((0, 8, 8), np.uint8)}, "is empty"),
    ({"images": GREY * 1j}, "is of complex128"),
    ({"images": np.array([{"a": 1}], dtype=object)}, "python objects, which are never opened"),
    ({"images": GREY, "labels": CLASSES[:7]}, "7 labels in labels for 30 images"),
    ({"a": GREY, "b": GREY}, r"keys a, b, and none says"),
    ({"x_test": GREY, "y_test": CLASSES}, "no images to train on"),
    ({"x_train": COLOUR, "x_test": COLOUR / 255}, "of 0 to 255 and x_test of 0 to 1"),
    ({"x": GREY, "X": GREY}, "differ by case alone"),
])  # fmt: skip
def test_arrays_that_could_be_this_or_that_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "a.npz")


def test_labels_of_arrays(tmp_path):
    names = np.array(["a", "b", "c", "d", "e"])
    for given in (np.eye(5)[CLASSES], names[CLASSES], CLASSES.astype(float), CLASSES[:, None]):
        np.savez(tmp_path / "a.npz", arr_0=GREY, arr_1=given)
        assert labels(opened(tmp_path / "a.npz").train) == CLASSES.tolist()
    np.savez(tmp_path / "a.npz", arr_0=GREY, arr_1=GREY)
    assert labels(opened(tmp_path / "a.npz").train) == [None] * 30


def test_arrays_that_are_not_asked_for_may_be_anything(tmp_path):
    np.savez(tmp_path / "a.npz", images=GREY, names=np.array([None, {}], dtype=object), empty=np.zeros(0))
    found = opened(tmp_path / "a.npz")
    assert np.array_equal(pixels(found.train), GREY)
    assert set(found.left_out) == {"the array names", "the array empty"}
    np.savez(tmp_path / "a.npz", images=GREY, labels=np.array([None] * 30, dtype=object))
    assert "no label for each image" in opened(tmp_path / "a.npz").train.unlabelled


def npy(shape: str, size: int) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(size)


@pytest.mark.parametrize(
    "shape", ["(1099511627776, 8, 8)", "(-1, 8, 8)", "(2, 8, 9999)", "(True, 8, 8)", "(1.0,)", "'ab'"]
)
def test_the_shape_in_a_header_is_not_believed(tmp_path, shape):
    (tmp_path / "a.npy").write_bytes(npy(shape, 128))
    with pytest.raises(DataError, match=r"a\.npy"):
        opened(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", npy(shape, 128))
    with pytest.raises(DataError, match=r"a\.npz"):
        opened(tmp_path / "a.npz")


def test_nothing_unpacks_without_bounds(tmp_path):
    """Some seventy thousand bytes that would be seventy million."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy("(70000, 32, 32)", 70_000 * 1024))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(70_000_000))
        archive.writestr("b.png", png(0))
    for name in ("a.npz", "a.zip"):
        with pytest.raises(DataError, match=r"of \d+,\d+: unpack it yourself"):
            [example.content() for example in opened(tmp_path / name).train.examples()]
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">HBBIII", 0, 8, 3, 2**31, 32, 32) + bytes(70_000_000))
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = 70_000_000
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    for name in ("train-images-idx3-ubyte.gz", "a.tar.gz"):
        with pytest.raises(DataError, match="unpacks to more than 67,108,864 bytes"):
            list(opened(tmp_path / name).train.examples())


def test_members_of_a_zip_that_share_their_bytes_are_refused(tmp_path):
    """One image, told of a thousand times."""
    path = packed(tmp_path / "a.zip", {"a.png": png(0)})
    raw = path.read_bytes()
    begin = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    entry = raw[begin:end]
    entries = b"".join(entry.replace(b"a.png", b"%05d" % n + b".png"[5:]) for n in range(1000))
    last = struct.pack("<HHIIH", 1000, 1000, len(entries), begin, 0)
    path.write_bytes(raw[:begin] + entries + raw[end : end + 8] + last)
    with pytest.raises(DataError, match=r"it tells of \d+,\d+ bytes in"):
        opened(path)


# -- archives ----------------------------------------------------------------------------------------------------

TREE = {
    f"pets/{split}/{kind}/{number}.png": seed
    for seed, (split, kind, number) in enumerate(
        (split, kind, number) for split in ("train", "test") for kind in ("cat", "dog") for number in range(6)
    )
}


def packed(path: Path, tree: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in tree.items():
                archive.writestr(name, content)
    else:
        kind = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix.lower(), "w")
        with tarfile.open(path, kind) as archive:
            for name, content in tree.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def test_a_tar_that_ends_too_early_is_not_a_shorter_one(tmp_path):
    whole = packed(tmp_path / "a.tar", {f"{seed}.png": png(seed) for seed in range(4)}).read_bytes()
    at = whole.index(b"2.png")
    for damaged in (
        whole[:at] + b"X" + whole[at + 1 :],  # a header whose sum is wrong
        whole[: at + 100],
        whole[:at],  # without a mark of its end
        whole + whole,
    ):
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.tar is no \.tar file that can be read"):
            opened(tmp_path / "a.tar")
        (tmp_path / "b.tar.gz").write_bytes(gzip.compress(damaged))
        with pytest.raises(DataError, match=r"b\.tar\.gz is no \.tar\.gz file that can be read"):
            opened(tmp_path / "b.tar.gz")


def test_files_beside_are_told(tmp_path):
    np.save(tmp_path / "x.npy", GREY)
    np.save(tmp_path / "y.npy", CLASSES)
    assert opened(tmp_path / "x.npy").left_out == ("files beside it (y.npy)",)
    packed(tmp_path / "train.zip", {"a.png": png(0)})
    packed(tmp_path / "test.zip", {"a.png": png(1)})
    assert opened(tmp_path / "train.zip").left_out == ("files beside it (test.zip)",)
    held = opened(tmp_path / "train.zip", test=str(tmp_path / "test.zip"))
    assert [example.content() for example in held.test.examples()] == [png(1)]


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "TAR.XZ"])
def test_an_archive_is_the_folder_that_it_would_unpack_to(tmp_path, suffix):
    tree = {name: png(seed) for name, seed in TREE.items()} | {"pets/notes.txt": b"x", "__MACOSX/pets/._0.png": b"x"}
    for name, content in tree.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    path = packed(tmp_path / f"a.{suffix}", tree)
    for split in ("train", "test"):
        ours, theirs = (load(str(of), size=8, split=split) for of in (path, tmp_path / "folder"))
        assert ours.fingerprint == theirs.fingerprint
        assert np.bincount(ours.labels).tolist() == [6, 6]
    found = opened(path)
    assert found.classes == ("cat", "dog")
    assert any(".txt 1" in words for words in found.left_out)


def test_names_and_links_in_an_archive_lead_nowhere(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(99))
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (
            ("link.png", tarfile.SYMTYPE, str(secret)),
            ("hard.png", tarfile.LNKTYPE, str(secret)),
            ("pipe.png", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        for name in ("../out.png", "/abs.png", "in/a.png", "in/b.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png(1))
            archive.addfile(member, io.BytesIO(png(1)))
    before = set(tmp_path.rglob("*"))
    found = opened(path)
    assert [example.content for example in found.train.examples()] == [png(1)] * 2
    assert {"2 links", "2 names that lead out of the archive"} <= set(found.left_out)
    assert set(tmp_path.rglob("*")) == before
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(secret))
        archive.writestr("..\\out.png", png(1))
        archive.writestr("in\\a.png", png(2))
    found = opened(tmp_path / "a.zip")
    assert [example.content() for example in found.train.examples()] == [png(2)]
    assert {"1 links", "1 names that lead out of the archive"} <= set(found.left_out)


def test_a_name_of_a_thousand_folders_is_left_out(tmp_path):
    path = packed(tmp_path / "a.zip", {"a/" * 30_000 + "x.png": png(0), "b/y.png": png(1)})
    assert opened(path).left_out == ("1 names of more than 64 folders",)


def test_a_pipe_among_celebas_images_is_none(tmp_path):
    for name, content in celeba("official").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "img_align_celeba" / "000001.jpg").unlink()
    os.mkfifo(tmp_path / "img_align_celeba" / "000001.jpg")
    found = opened(tmp_path)
    assert found.train.count == 2
    assert found.notes == ("1 images that the partition file names are not there",)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_control_characters_in_names_are_written_out(tmp_path, suffix):
    path = packed(tmp_path / f"a.{suffix}", {"a\x1b[31m\nb.png": b"no image", "c.png": png(1)})
    with pytest.raises(DataError) as error:
        load(str(path), size=8)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.zip", b"no zip", r"a\.zip is no \.zip file that can be read"),
    ("a.tar.gz", b"no tar", r"a\.tar\.gz is no \.tar\.gz file that can be read"),
    ("a.npz", b"no npz", r"a\.npz is no \.npz file that can be read"),
    ("a.npy", b"no npy", r"a\.npy is no \.npy file that can be read"),
    ("a.pt", b"torch", r"a\.pt is nothing that is read: name .*\.npz.*\.zip"),
    ("a.csv", b"1,2", r"a\.csv is nothing that is read"),
])  # fmt: skip
def test_files_that_are_none_say_what_is_taken(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / name)


def test_an_archive_without_images_says_what_it_has(tmp_path):
    path = packed(tmp_path / "a.zip", {"a.txt": b"x", "b.parquet": b"x"})
    with pytest.raises(DataError, match=r"has no images in it; left out: files by suffix \(\.txt 1, \.parquet 1\)"):
        opened(path)


# -- CIFAR -------------------------------------------------------------------------------------------------------


def batch(path: Path, rows: np.ndarray, protocol: int = 2, key: str = "labels", old: bool = True) -> list[int]:
    numbers = [int(row[0]) % 10 for row in rows]
    content = {"batch_label": "x", key: numbers, "data": rows, "filenames": ["a.png"] * len(rows)}
    held = {name.encode() if old else name: value for name, value in content.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(held, protocol))
    return numbers


def cifar10(folder: Path, n: int = 4) -> np.ndarray:
    rows = np.random.default_rng(1).integers(0, 256, (6, n, 3072), dtype=np.uint8)
    for number in range(5):
        batch(folder / f"data_batch_{number + 1}", rows[number], (0, 1, 2, 4, 5)[number], old=number % 2 == 0)
    batch(folder / "test_batch", rows[5])
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"c%d" % n for n in range(10)]}, 2))
    return rows


def as_images(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def test_cifars_batches_in_a_folder_and_in_their_archive(tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    rows = cifar10(folder)
    order = [
        "data_batch_4",
        "data_batch_1",
        "test_batch",
        "batches.meta",
        "data_batch_5",
        "data_batch_3",
        "data_batch_2",
    ]
    tree = {f"cifar-10-batches-py/{name}": (folder / name).read_bytes() for name in order}
    archive = packed(tmp_path / "cifar-10-python.tar.gz", tree)
    for source in (folder, folder.parent, archive):
        found = opened(source)
        assert np.array_equal(pixels(found.train), as_images(rows[:5]))
        assert np.array_equal(pixels(found.test), as_images(rows[5]))
        assert labels(found.train) == (rows[:5, :, 0].ravel() % 10).tolist()
        assert (found.held_out, found.classes[3]) == ("test_batch", "c3")
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3"):
        opened(folder)
    with pytest.raises(DataError, match="one batch of several: name the folder"):
        opened(folder / "data_batch_1")


def test_cifar_100(tmp_path):
    rows = np.random.default_rng(1).integers(0, 256, (2, 4, 3072), dtype=np.uint8)
    folder = tmp_path / "cifar-100-python"
    numbers = batch(folder / "train", rows[0], key="fine_labels")
    batch(folder / "test", rows[1], key="fine_labels")
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(n) for n in range(100)]}, 2))
    found = opened(folder)
    assert np.array_equal(pixels(found.train), as_images(rows[0]))
    assert (labels(found.train), found.test.count, len(found.classes)) == (numbers, 4, 100)


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("call", ["os.system", "builtins.eval", "pathlib.touch", "numpy.load"])
def test_a_batch_runs_nothing(tmp_path, protocol, call):
    victim = tmp_path / "victim"
    evil = {
        "os.system": Evil(os.system, f"touch {victim}"),
        "builtins.eval": Evil(eval, f"open({str(victim)!r}, 'w')"),
        "pathlib.touch": Evil(Path.touch, victim),
        "numpy.load": Evil(np.load, str(victim)),
    }[call]
    folder = tmp_path / "cifar-10-batches-py"
    cifar10(folder)
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": evil, b"labels": [1]}, protocol))
    with pytest.raises(DataError, match=r"it wants to call .*, which no batch of CIFAR does"):
        opened(folder)
    assert not victim.exists()


@pytest.mark.parametrize("content", [
    b"\x80\x02r\xff\xff\xff\x7f.",  # the value number 2**31 - 1 is to be remembered
    b"\x80\x02]r\xff\xff\xff\x7f.",
    b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.",  # bytes of 2**56
    b"\x80\x02" + b"(" * 100_000 + b".",
    b"\x80\x02" + b"]" + b"]a" * 0 + b"K\x01a.",
    pickle.dumps({b"data": np.zeros((2, 3072), np.int64), b"labels": [1, 2]}, 2),
    pickle.dumps({b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]}, 2),
    pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, 2),
    pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, -2]}, 2),
    pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": "ab"}, 2),
    pickle.dumps([1, 2], 2),
], ids=range(11))  # fmt: skip
def test_batches_that_are_none_are_one_line(tmp_path, content):
    folder = tmp_path / "cifar-10-batches-py"
    cifar10(folder)
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_1 is no batch of CIFAR that can be read"):
        opened(folder)


# -- idx ---------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist(folder: Path, name: str = "{}-{}-idx{}-ubyte", pack=lambda content: content) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        (folder / name.format(part, "images", 3)).write_bytes(pack(idx(GREY[rows])))
        (folder / name.format(part, "labels", 1)).write_bytes(pack(idx(CLASSES[rows].astype(np.uint8))))


@pytest.mark.parametrize(("below", "name", "pack"), [
    ("", "{}-{}-idx{}-ubyte", bytes),
    ("MNIST/raw", "{}-{}-idx{}-ubyte.gz", gzip.compress),
    ("", "{}-{}.idx{}-ubyte", bytes),
    ("", "emnist-letters-{}-{}-idx{}-ubyte.gz", gzip.compress),
])  # fmt: skip
def test_mnists_own_files(tmp_path, below, name, pack):
    mnist(tmp_path / "digits" / below, name, pack)
    for source in (tmp_path / "digits", tmp_path / "digits" / below / name.format("train", "images", 3)):
        found = opened(source)
        assert np.array_equal(pixels(found.train), GREY[:20])
        assert np.array_equal(pixels(found.test), GREY[20:])
        assert (labels(found.train), labels(found.test)) == (CLASSES[:20].tolist(), CLASSES[20:].tolist())
        assert ("on their side" in " ".join(found.notes)) == name.startswith("emnist")


def test_idx_files_that_lack_something(tmp_path):
    mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert "no file of labels" in opened(tmp_path).train.unlabelled
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    assert opened(tmp_path).test is None
    mnist(tmp_path, "other-{}-{}-idx{}-ubyte")
    with pytest.raises(DataError, match="2 sets"):
        opened(tmp_path)


def test_what_lies_beside_a_set_within_a_folder_is_told(tmp_path):
    cifar10(tmp_path / "cifar-10-batches-py")
    for name in ("cats", "notes.txt"):
        (tmp_path / name).mkdir()
    assert opened(tmp_path).left_out == ("what lies beside the folder cifar-10-batches-py (cats and 1 more)",)
    mnist(tmp_path / "data" / "MNIST" / "raw")
    (tmp_path / "data" / "more").mkdir()
    assert opened(tmp_path / "data").left_out == ("what lies beside the folder MNIST (more)",)
    for name, content in celeba("kaggle").items():
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).write_bytes(content)
    (tmp_path / "faces" / "others").mkdir()
    assert "what lies beside the folder img_align_celeba (others)" in opened(tmp_path / "faces").left_out


def test_an_image_of_more_pixels_than_a_thread_can_hold_is_refused(tmp_path):
    for mode, kind in (("1", "PNG"), ("L", "GIF")):
        (tmp_path / kind).mkdir()
        Image.new(mode, (8200, 8200)).save(tmp_path / kind / f"a.{kind.lower()}")
        with pytest.raises(DataError, match="is 8200x8200, over 67,108,864 pixels: make it smaller"):
            load(str(tmp_path / kind), size=8)


@pytest.mark.parametrize(("content", "why"), [
    (struct.pack(">HBBIII", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(99), "there are 99"),
    (idx(GREY)[:-1], "there are 3,599"),
    (idx(GREY) + b"x", "there are more"),
    (struct.pack(">HBBIII", 0, 13, 3, 1, 2, 2) + bytes(16), "type 0x0d"),
    (idx(CLASSES.astype(np.uint8)), "not 0000 08 03"),
    (b"", "ends too early"),
    (idx(np.zeros((0, 8, 8), np.uint8)), "empty"),
])  # fmt: skip
def test_idx_files_are_not_believed(tmp_path, content, why):
    mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=why):
        opened(tmp_path)


# -- CelebA ------------------------------------------------------------------------------------------------------

PARTS = (0, 0, 0, 1, 2, 2)


def bordered(number: int) -> bytes:
    """178x218, white where CelebA's crop of 148 does not reach, else black."""
    image = Image.new("RGB", (178, 218), "white")
    image.paste((number, 0, 0), (15, 35, 163, 183))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def celeba(kind: str, bom: bool = False) -> dict[str, bytes]:
    """File name → content, in the authors' layout or in Kaggle's."""
    within = "img_align_celeba/img_align_celeba" if kind == "kaggle" else "img_align_celeba"
    tree = {f"{within}/{number + 1:06}.jpg": bordered(number) for number in range(len(PARTS))}
    lines = [f"{n + 1:06}.jpg{',' if kind == 'kaggle' else ' '}{part}" for n, part in enumerate(PARTS)]
    if kind == "kaggle":
        tree["list_eval_partition.csv"] = "\r\n".join(["image_id,partition", *lines]).encode()
        tree["list_attr_celeba.csv"] = b"x"
    else:
        tree["Eval/list_eval_partition.txt" if kind == "authors" else "list_eval_partition.txt"] = "\n".join(
            lines
        ).encode()
    return {name: b"\xef\xbb\xbf" * (bom and "list_eval" in name) + content for name, content in tree.items()}


@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("kind", ["official", "authors", "kaggle"])
def test_celeba_has_its_split_and_its_crop(tmp_path, kind, bom):
    tree = celeba(kind, bom)
    for name, content in tree.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    sources = [tmp_path / "set", tmp_path / "set" / "img_align_celeba", packed(tmp_path / "archive.zip", tree)]
    sources.append(packed(tmp_path / "celeba.tar.gz", tree))
    for source in sources:
        train, test = (load(str(source), size=148, split=split) for split in ("train", "test"))
        assert train.name == "celeba"
        assert (train.pixels[:, 0, 0, 0].tolist(), test.pixels[:, 0, 0, 0].tolist()) == ([0, 1, 2], [4, 5])
        assert train.pixels[:, 1:].max() == 0  # no white of the border
        assert any("partition 1 (validation, 1 images)" in words for words in opened(source).left_out)


def test_celeba_without_its_partition_goes_by_the_published_numbers(tmp_path):
    folder = tmp_path / "img_align_celeba"
    folder.mkdir()
    for number in (1, 2, 162770, 162771, 182637, 182638, 202599):
        (folder / f"{number:06}.jpg").write_bytes(bordered(number % 256))
    found = opened(folder)
    names = [[example.content.name for example in rows.examples()] for rows in (found.train, found.test)]
    assert names == [["000001.jpg", "000002.jpg", "162770.jpg"], ["182638.jpg", "202599.jpg"]]
    assert "published image numbers" in found.notes[0]
    (folder / "202600.jpg").write_bytes(bordered(0))
    with pytest.raises(DataError, match=r"has no list_eval_partition\.txt or .* has an image '202600'"):
        opened(folder)
    (folder / "202600.jpg").unlink()
    for number in (182638, 202599):
        (folder / f"{number:06}.jpg").unlink()
    with pytest.raises(DataError, match=r"no image of CelebA's partition 2 \(test\)"):
        opened(folder)


def test_a_celeba_image_written_over_is_decoded_anew(tmp_path):
    for name, content in celeba("official").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    before = load(str(tmp_path), size=148).pixels[0, 0, 0, 0]
    with open(tmp_path / "img_align_celeba" / "000001.jpg", "r+b") as file:
        file.write(bordered(200))
    assert (before, load(str(tmp_path), size=148).pixels[0, 0, 0, 0]) == (0, 200)


def test_a_line_that_is_none_of_a_partition_file(tmp_path):
    for name, content in (celeba("official") | {"list_eval_partition.txt": b"000001.jpg 0 7\n"}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="no CelebA partition file beside it"):
        opened(tmp_path)

"""Image sets in one file or folder that were damaged, or made by somebody who knows the format: parquet, arrays,
archives, CIFAR's pickles, MNIST's idx files, CelebA's lists. `python -m tests.fuzz.sets --inputs 100000`."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import shutil
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gentickets.data import finding
from gentickets.data.decoding import decode, is_grey
from tests.fuzz.hunt import Attempt, main
from tests.fuzz.mutations import HOSTILE_NUMBERS, HOSTILE_TEXT, any_of, damaged, hostile

Files = Mapping[str, bytes]
"""What lies in the folder: name → content."""

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 12)
# What a batch of CIFAR has no use for: calls, counts beyond any size, nesting, names of values that are not there.
PICKLED = (
    b"cos\nsystem\n(S'true'\ntR.", b"c__builtin__\neval\n", b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR",
    b"c_codecs\nencode\n(X\x02\x00\x00\x00abX\x06\x00\x00\x00latin1tR",
    b"r\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"\x95" + b"\xff" * 8, b"p9999999999\n",
    b"(" * 3000, b"2" * 500, b"}" * 99, b"Q", b"P1\n", b"\x82\x01", b"b", b"o",
)  # fmt: skip


def png(row: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(file, "PNG")
    return file.getvalue()


PNGS = [png(row) for row in range(12)]


def text(value: object) -> str:
    try:
        return repr(value)
    except (RecursionError, ValueError):
        return "[" * 900


def several(rng: random.Random, raw: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        raw = damaged(rng, raw)
    return raw


# -- one kind each: from a generator of numbers to (the source, what lies there) -------------------------------------


def parquet(rng: random.Random) -> tuple[str, Files]:
    kind = rng.choice(("struct", "bytes", "paths"))
    images: object = [{"bytes": content, "path": None} for content in PNGS]
    if kind == "bytes":
        images = PNGS
    elif kind == "paths":
        images = [{"bytes": None, "path": rng.choice(HOSTILE_TEXT[:10]) or "a.png"} for _ in PNGS]
    labels = any_of(
        rng, LABELS, list("abcabcabcabc"), [any_of(rng, *HOSTILE_NUMBERS, *HOSTILE_TEXT)] * 12, LABELS.astype(float)
    )
    name = rng.choice(("image", "img", "photo", "label", "\u202e", "a.b"))
    try:
        table = pa.table({name: images, rng.choice(("label", "class", "labels")): labels})
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        table = pa.table({name: images})
    compression, rows = rng.choice(("snappy", "none", "zstd", "gzip")), rng.choice((3, 100))
    try:
        raw = as_parquet(table, compression, rows)
    except (pa.ArrowException, ValueError):  # some types are arrow's alone, some texts no UTF-8
        raw = as_parquet(table.select([0]), compression, rows)
    if rng.random() < 0.5:  # the footer, which says what all the rest is
        length = int.from_bytes(raw[-8:-4], "little") + 8
        footer = several(rng, raw[-length:-8])
        raw = raw[:-length] + footer + len(footer).to_bytes(4, "little") + raw[-4:]
    else:
        raw = several(rng, raw)
    if rng.random() < 0.3:
        return ".", {
            rng.choice(("train-00000-of-00002.parquet", "train.parquet")): raw,
            "train-00001-of-00002.parquet": raw,
        }
    return "train.parquet", {"train.parquet": raw, "test.parquet": raw} if rng.random() < 0.3 else {
        "train.parquet": raw
    }


def as_parquet(table: pa.Table, compression: str, rows: int) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression=compression, row_group_size=rows)
    return file.getvalue()


def npy(rng: random.Random) -> bytes:
    file = io.BytesIO()
    array = rng.choice((PIXELS, PIXELS.transpose(0, 3, 1, 2), PIXELS[..., 0], PIXELS / 255, LABELS))
    np.save(file, array)
    raw = file.getvalue()
    if rng.random() < 0.5:
        dtype, order = (
            rng.choice(("|u1", "<f8", "|O", "<U9999999", "|V8", ">i4", "|S0", "x", "[('a','u1')]")),
            rng.random() < 0.3,
        )
        shape = any_of(
            rng, array.shape, (2**40, 8, 8), (2**63, 2**63), (-1, 8), (rng.choice(HOSTILE_NUMBERS), 8, 8), ()
        )
        header_text = (
            f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {text(any_of(rng, shape, hostile(rng)))}, }}"
        )
        header = (header_text[:60_000] + " " * 64 + "\n").encode("utf-8", "replace")
        raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + raw[128:]
    return several(rng, raw) if rng.random() < 0.6 else raw


def arrays(rng: random.Random) -> tuple[str, Files]:
    if rng.random() < 0.4:
        return "a.npy", {"a.npy": npy(rng)}
    keys = rng.sample(
        ("x_train", "y_train", "x_test", "y_test", "images", "labels", "arr_0", "arr_1", "../x", "\x1b"), 3
    )
    return "a.npz", {"a.npz": zipped(rng, {f"{key}.npy": npy(rng) for key in keys})}


def zipped(rng: random.Random, tree: Files) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in tree.items():
            archive.writestr(name.encode("utf-8", "replace").decode() or "x", content)
    return several(rng, file.getvalue()) if rng.random() < 0.5 else file.getvalue()


def tarred(rng: random.Random, tree: Files) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as archive:
        for name, content in tree.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if rng.random() < 0.1:
                member.type = rng.choice(
                    (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"x", b"L")
                )
                member.linkname = "/etc/passwd"
            if rng.random() < 0.1:
                member.pax_headers = {
                    rng.choice(("size", "path", "GNU.sparse.size", "GNU.sparse.map")): text(hostile(rng))[:2000]
                }
            try:
                archive.addfile(member, io.BytesIO(content))
            except (ValueError, UnicodeError):
                continue
    raw = bytearray(file.getvalue())
    if rng.random() < 0.5 and raw:
        at = 512 * rng.randrange(len(raw) // 512)
        header = bytearray(several(rng, bytes(raw[at : at + 512]))[:512].ljust(512, b"\0"))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)  # the sum that it should have
        raw[at : at + 512] = header
    return bytes(raw) if rng.random() < 0.5 else several(rng, bytes(raw))


def archives(rng: random.Random) -> tuple[str, Files]:
    tree = {}
    celeba = rng.random() < 0.2
    for row, content in enumerate(PNGS):
        folder = (
            "img_align_celeba" if celeba else rng.choice(("train/a", "train/b", "test/a", "x", "..", "/x", "a\\b", "."))
        )
        name = rng.choice((f"{row:06}.png", f"{row:06}.png", f"{rng.choice(HOSTILE_TEXT)[:99]}.png"))
        tree[f"{folder}/{name}"] = several(rng, content) if rng.random() < 0.05 else content
    if celeba and rng.random() < 0.7:
        tree["list_eval_partition.txt"] = partition(rng)
    if rng.random() < 0.5:
        return "a.zip", {"a.zip": zipped(rng, tree)}
    raw = tarred(rng, tree)
    if rng.random() < 0.5:
        raw = gzip.compress(raw, 1)
        return "a.tar.gz", {"a.tar.gz": several(rng, raw) if rng.random() < 0.3 else raw}
    return "a.tar", {"a.tar": raw}


def partition(rng: random.Random) -> bytes:
    lines = "\n".join(f"{row:06}.png {rng.choice((0, 0, 1, 2))}" for row in range(12)).encode()
    return several(rng, lines) if rng.random() < 0.6 else lines


def celeba(rng: random.Random) -> tuple[str, Files]:
    tree = {f"img_align_celeba/{row:06}.png": content for row, content in enumerate(PNGS)}
    return ".", tree | {rng.choice(("list_eval_partition.txt", "list_eval_partition.csv")): partition(rng)}


def pickled(rng: random.Random) -> bytes:
    rows = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
    held: object = {
        b"data": any_of(rng, rows, rows, rows, hostile(rng)),
        b"labels": any_of(rng, [1, 2], [1, 2], [1, 2], hostile(rng)),
    }
    try:
        raw = pickle.dumps(held, rng.randrange(6))
    except (RecursionError, UnicodeError):
        raw = b"\x80\x02}."
    if rng.random() < 0.5:
        # Where the operations are: before the pixels, or after.
        at = rng.randrange(min(200, len(raw))) if rng.random() < 0.5 else len(raw) - rng.randrange(min(80, len(raw)))
        return raw[:at] + rng.choice(PICKLED) * rng.choice((1, 1, 1, 30)) + raw[at:]
    head, tail = damaged(rng, raw[:150]), raw[150:]
    return head + tail if rng.random() < 0.5 else several(rng, raw)


def cifar(rng: random.Random) -> tuple[str, Files]:
    good = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, 2)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
    files = dict.fromkeys(names, good) | {rng.choice(names): pickled(rng)}
    if rng.random() < 0.3:
        raw = tarred(rng, {f"cifar-10-batches-py/{name}": content for name, content in files.items()})
        return "cifar-10-python.tar.gz", {"cifar-10-python.tar.gz": gzip.compress(raw, 1)}
    return ".", files


def idx(rng: random.Random) -> tuple[str, Files]:
    def file(array: np.ndarray) -> bytes:
        raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        if rng.random() < 0.5:
            raw = damaged(rng, raw[:16]) + raw[16:] if rng.random() < 0.6 else several(rng, raw)
        return raw

    packs = rng.random() < 0.4
    files = {}
    for part in ("train", "t10k"):
        for what, array in (("images-idx3", PIXELS[..., 0].copy()), ("labels-idx1", LABELS.astype(np.uint8))):
            raw = file(array)
            if packs:
                raw = gzip.compress(raw, 1)
                raw = several(rng, raw) if rng.random() < 0.1 else raw
            files[f"{part}-{what}-ubyte{'.gz' if packs else ''}"] = raw
    return ".", files


KINDS: tuple[Callable[[random.Random], tuple[str, Files]], ...] = (parquet, arrays, archives, celeba, cifar, idx)


def prepare(kinds: tuple[Callable[[random.Random], tuple[str, Files]], ...] = KINDS) -> Attempt:
    folder = Path(tempfile.mkdtemp())
    pa.table({"first": [0]})  # arrow looks for pandas once, and takes its time

    def attempt(rng: random.Random) -> str | None:
        source, tree = rng.choice(kinds)(rng)
        place = folder / "set"
        shutil.rmtree(place, ignore_errors=True)
        for name, content in tree.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        opened = finding.find(str(place / source), None).read()
        for rows in (opened.train, opened.test):
            if rows is None:
                continue
            examples = list(rows.examples())
            assert len(examples) == rows.count, f"{len(examples)} images of {rows.count}"
            for example in examples[:3]:
                is_grey(example)
                decode(example, 8, 3, None)
        assert set(folder.iterdir()) == {place}, "something was written outside"
        assert sum(file.is_file() for file in place.rglob("*")) == len(tree), "something was unpacked"
        return None

    return attempt


if __name__ == "__main__":
    main("image sets", prepare)

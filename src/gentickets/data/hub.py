"""Image sets of the Hugging Face hub, through its own optional package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gentickets.data import labels
from gentickets.data.damage import line, shown
from gentickets.data.decoding import Example
from gentickets.data.sources import CELEBA_CROP, Opened, Rows, Source, split_of
from gentickets.errors import DataError

SHORT_NAMES = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "celeba": "flwrlabs/celeba",
}
"""What people type → the id on the hub."""

_IMAGE_COLUMNS = ("img", "image")


def find(source: str) -> Source:
    """The hub's set of this short name or id. The hub is asked only where the cache has nothing."""
    identity = SHORT_NAMES.get(source, source)
    name = source if source in SHORT_NAMES else source.rsplit("/", 1)[-1]
    crop = CELEBA_CROP if name.lower() == "celeba" else None
    return Source(name, {"hub": identity}, lambda: _open(source, identity), crop)


def _open(source: str, identity: str) -> Opened:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"source: {source!r} is a set of the hub: pip install datasets") from error
    try:
        tables = datasets.load_dataset(identity)
    except Exception as error:  # the package has no base class for what can go wrong on the way to the hub
        raise DataError(
            f"source: {source!r} cannot be had from the hub as {identity} ({line(error)}): check the "
            f"name and the network, or name a .parquet file or a folder of images"
        ) from error
    train, held = _splits(tables, source)
    notes: list[str] = []
    column = _image_column(datasets, tables[train], source, notes)
    parts = [tables[name] for name in (train, held) if name is not None]
    for part in parts:
        if column not in part.features:
            raise DataError(f"source: {source!r} has no image column {column!r} in all of its splits: name another set")
    of = _labels(parts)
    rows = [_rows(datasets, part, source, column, own, of.why_none) for part, own in zip(parts, of.labels, strict=True)]
    left_out = [
        f"the split {shown(name)} ({len(tables[name]):,} images)" for name in tables if name not in (train, held)
    ]
    return Opened(
        rows[0],
        rows[1] if held is not None else None,
        held_out=f"the split {shown(held)}" if held is not None else "",
        classes=of.classes,
        left_out=tuple(left_out),
        notes=(*notes, *of.notes),
    )


def _splits(tables: Mapping[str, Any], source: str) -> tuple[str, str | None]:
    """The names of the split to train on and of the one held out. A set with one split has nothing held out."""
    by_use: dict[str | None, str] = {}
    for name in tables:
        by_use.setdefault(split_of(str(name)), name)
    if "train" in by_use:
        return by_use["train"], by_use.get("test") or by_use.get("validation")
    if len(tables) == 1:
        return next(iter(tables)), None
    raise DataError(
        f"source: {source!r} has the splits {', '.join(map(shown, tables))}, and none is called train: name another set"
    )


def _image_column(datasets: Any, table: Any, source: str, notes: list[str]) -> str:
    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not images:
        names = ", ".join(map(shown, table.features))
        raise DataError(f"source: {source!r} has no image column among {names}: name another set")
    preferred = [name for name in _IMAGE_COLUMNS if name in images]
    if not preferred and len(images) > 1:
        raise DataError(
            f"source: {source!r} may have its images in {' or '.join(shown(repr(name)) for name in images)}: save it "
            f"as parquet with the right column called image, and name that file"
        )
    column = (preferred or images)[0]
    if others := [name for name in images if name != column]:
        notes.append(f"image column {shown(column)!r} (also there: {', '.join(shown(repr(name)) for name in others)})")
    return column


def _labels(parts: Sequence[Any]) -> labels.Numbered:
    """The labels of each split, by the names that each declares for them."""
    counts = [len(part) for part in parts]
    column = next((name for name in labels.COLUMNS if name in parts[0].features), None)
    if column is None:
        return labels.absent(counts, f"no column is called {', '.join(labels.COLUMNS[:4])} …")
    if any(column not in part.features for part in parts):
        return labels.absent(counts, f"the split held out has no column {column!r}")
    return labels.numbered_by_name(column, [[_declared(part, column)] for part in parts])


def _declared(part: Any, column: str) -> labels.Declared:
    names = getattr(part.features[column], "names", None)
    return labels.Declared(part[column][:], tuple(map(shown, names)) if names else None)


def _rows(
    datasets: Any, table: Any, source: str, column: str, of_labels: Sequence[int | None], unlabelled: str | None
) -> Rows:
    encoded = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def examples() -> Iterator[Example]:
        for row, (example, label) in enumerate(zip(encoded, of_labels, strict=True)):
            where = f"row {row} of {source}"
            yield Example(where, _content(example[column], where, column), label)

    return Rows(len(table), examples, unlabelled)


def _content(value: Mapping[str, Any] | None, where: str, column: str) -> bytes | Path:
    """The bytes, or the file where the hub's package has put it: a path, or a member of an archive (`zip://…::…`)."""
    content, path = (value or {}).get("bytes"), (value or {}).get("path")
    if isinstance(content, bytes):
        return content
    if not path:
        raise DataError(f"{where} has no image in column {column!r}")
    if "::" not in path:
        return Path(path)
    import fsspec  # type: ignore[import-untyped]

    try:
        with fsspec.open(path, "rb") as file:
            return bytes(file.read())
    except Exception as error:  # as many as there are kinds of archives
        raise DataError(f"{where} cannot be read from {shown(path)} ({line(error)}): get the set anew") from error

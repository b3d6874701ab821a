"""Image sets of the Hugging Face hub, through its own optional package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gentickets.data.decoding import Example
from gentickets.data.sources import CELEBA_CROP, IMAGE_COLUMNS, LABEL_COLUMNS, Opened, Rows, Source
from gentickets.errors import DataError

SHORT_NAMES = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "celeba": "flwrlabs/celeba",
}
"""What people type → the id on the hub."""

_TEST_SPLITS = ("test", "validation", "valid")


def find(source: str) -> Source:
    """The hub's set of this short name or id. The hub is asked only where the cache has nothing."""
    identity = SHORT_NAMES.get(source, source)
    name = source if source in SHORT_NAMES else source.rsplit("/", 1)[-1]
    crop = CELEBA_CROP if name.lower() == "celeba" else None
    return Source(name, {"hub": identity}, lambda: _read(source, identity), crop)


def _read(source: str, identity: str) -> Opened:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"source: {source!r} is a set of the hub: pip install datasets") from error
    try:
        splits = datasets.load_dataset(identity)
        train = splits["train"]
    except Exception as error:  # the package has no base class for what can go wrong on the way to the hub
        raise DataError(
            f"source: {source!r} cannot be had from the hub as {identity} ({_line(error)}): check the "
            f"name and the network, or name a .parquet file or a folder of images"
        ) from error
    held = next((name for name in _TEST_SPLITS if name in splits), None)
    if held is None:
        return Opened(_rows(datasets, train, source))
    return Opened(_rows(datasets, train, source), _rows(datasets, splits[held], source), f"the split {held}")


def _rows(datasets: Any, table: Any, source: str) -> Rows:
    column = _image_column(datasets, table, source)
    label = next((name for name in LABEL_COLUMNS if _is_integer(table.features.get(name))), None)
    table = table.cast_column(column, datasets.Image(decode=False))
    return Rows(len(table), lambda: _examples(table, source, column, label))


def _image_column(datasets: Any, table: Any, source: str) -> str:
    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise DataError(f"source: {source!r} has no image column among {', '.join(table.features)}: name another set")
    return next((name for name in IMAGE_COLUMNS if name in images), images[0])


def _examples(table: Any, source: str, column: str, label: str | None) -> Iterator[Example]:
    for row, example in enumerate(table.select_columns([column] + ([label] if label else []))):
        content = example[column]
        if content is None or content["bytes"] is None:
            raise DataError(f"row {row} of {source} has no image in column {column!r}")
        yield Example(f"row {row} of {source}", content["bytes"], example[label] if label else None)


def _is_integer(kind: Any) -> bool:
    return getattr(kind, "dtype", "").startswith(("int", "uint"))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__

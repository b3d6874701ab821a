"""Images in a parquet file, in the hub's layout: encoded bytes, and a label beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gentickets.data.decoding import Example
from gentickets.data.sources import IMAGE_COLUMNS, LABEL_COLUMNS, Opened, Rows, Source, file_identity
from gentickets.errors import DataError

WHAT = "a .parquet file"

# Rows held in memory at once. Encoded images are small; 512 of CelebA are 5 MB.
_ROWS_AT_ONCE = 512


def holds(path: Path) -> bool:
    return path.is_file()


def find(path: Path) -> Source:
    """The rows of `path`; the test file that lies beside a `train.parquet` is held out."""
    beside = path.with_name("test.parquet")
    if path.name != "train.parquet" or not beside.is_file():
        return whole(path)
    identity = {"file": file_identity(path), "test": file_identity(beside)}
    return Source(name_of(path), identity, lambda: Opened(_rows(path), _rows(beside), beside.name))


def whole(path: Path) -> Source:
    """All rows of one file, as they are."""
    return Source(name_of(path), {"file": file_identity(path)}, lambda: Opened(_rows(path)))


def name_of(path: Path) -> str:
    """What a set in this file is called. The hub calls every set's file train.parquet: there, as its folder."""
    return path.resolve().parent.name if path.stem in ("train", "test") else path.stem


def _rows(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"source: {path} is no parquet file that can be read ({_line(error)})") from error
    image, label = _image_column(file.schema_arrow, path), _label_column(file.schema_arrow)
    return Rows(file.metadata.num_rows, lambda: _examples(file, path, image, label))


def _examples(file: Any, path: Path, image: str, label: str | None) -> Iterator[Example]:
    import pyarrow as pa

    columns = [image] if label is None else [image, label]
    row = 0
    try:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = images.field("bytes")
            labels = [None] * len(batch) if label is None else batch.column(1).to_pylist()
            for content, of_image in zip(images.to_pylist(), labels, strict=True):
                if not isinstance(content, bytes):
                    raise DataError(f"row {row} of {path} has no image in column {image.split('.')[0]!r}")
                yield Example(f"row {row} of {path}", content, of_image)
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"source: {path} is damaged after row {row} ({_line(error)})") from error


def _image_column(schema: Any, path: Path) -> str:
    """The column of encoded images: `img`, `image`, or the first struct with a field `bytes`."""
    import pyarrow as pa

    def inside(field: Any) -> str | None:
        kind = field.type
        if pa.types.is_struct(kind):
            return f"{field.name}.bytes" if kind.get_field_index("bytes") >= 0 else None
        binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return field.name if binary and field.name in IMAGE_COLUMNS else None

    fields = sorted(schema, key=lambda field: field.name not in IMAGE_COLUMNS)
    for found in map(inside, fields):
        if found is not None:
            return found
    raise DataError(
        f"source: {path} has no image column among {', '.join(schema.names) or 'none'}: "
        f"name it img or image, encoded bytes or a struct with a field bytes"
    )


def _label_column(schema: Any) -> str | None:
    import pyarrow as pa

    for name in LABEL_COLUMNS:
        if name in schema.names and pa.types.is_integer(schema.field(name).type):
            return name
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Images in parquet, in the hub's layout: encoded bytes, and a label beside them, in one file or in many shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gentickets.data import labels, packed, shards
from gentickets.data.damage import line, shown, told
from gentickets.data.decoding import Example
from gentickets.data.sources import Opened, Rows, Source, few, file_identity
from gentickets.errors import DataError

WHAT = "a .parquet file, a folder or a pattern of them"

IMAGE_COLUMNS = ("img", "image", "images", "picture", "photo", "jpg", "jpeg", "png")
"""The names by which a column of images is preferred to others, the first two to all."""

# A batch of rows may hold so many bytes, even where the file has one image for all of them and only counts.
_AT_ONCE = 256 * 2**20


def holds(path: Path) -> bool:
    """A file of that suffix or with those first bytes, or a folder with such files, not beside images."""
    return path.suffix.lower() == shards.SUFFIX or _begins(path) if path.is_file() else bool(shards.below(path))


def find(path: Path) -> Source:
    """The shards of train in `path`, or of the set that the file `path` is of; those of test held out.

    A shard's name, `train-00000-of-00003.parquet`, means all of them. `train.parquet` has its test split beside it.
    """
    if path.is_dir():
        return of_files(shards.below(path), path)
    read = shards.set_of(path)
    unread = [file.name for file in shards.beside(path) if file not in read]
    left_out = [f"other .parquet files beside it ({few(map(shown, unread))})"] if unread else []
    return _source(read, path.parent, name_of(path), left_out, named=path)


def whole(path: Path) -> Source:
    """All rows of one file or of one set of shards."""
    return (
        whole_of_files(shards.below(path), path)
        if path.is_dir()
        else _whole(shards.shards_of(path), path.parent, name_of(path))
    )


def of_files(files: Sequence[Path], base: Path) -> Source:
    """The set in these files, sorted into splits by their names and their folders' below `base`."""
    return _source(sorted(files), base, base.resolve().name, [])


def whole_of_files(files: Sequence[Path], base: Path) -> Source:
    """All rows of these files. Raises `DataError` where they are of several splits."""
    if len({shards.named(file, base).split for file in files}) > 1:
        raise DataError(f"test: {shown(base)} has splits of its own: name one of its files")
    return _whole(files, base, base.resolve().name)


def _whole(files: Sequence[Path], base: Path, name: str) -> Source:
    ordered = shards.ordered(files, base)
    identity = {"parquet": [file_identity(file) for file in ordered]}
    return Source(name, identity, lambda: _open(ordered, [], "", [], []))


def _begins(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def name_of(path: Path) -> str:
    """What a set in this file is called. The hub calls every set's file train.parquet: there, as its folder."""
    if path.is_dir():
        return path.resolve().name
    name = shards.named(path, path.parent)
    if name.split is None and name.shards is None:
        return path.stem
    return "-".join(name.of_set) or path.resolve().parent.name


def _source(files: list[Path], base: Path, name: str, left_out: list[str], named: Path | None = None) -> Source:
    """The set in these files. Raises `DataError` where a shard is missing, or two sets lie together."""
    names = {file: shards.named(file, base) for file in files}
    splits = shards.by_split(names, base, named)
    train = shards.ordered(splits.pop("train"), base)
    held = next((split for split in ("test", "validation") if split in splits), None)
    test = shards.ordered(splits.pop(held), base) if held else []
    told = list(left_out)
    for split, others in splits.items():
        told.append(
            f"the split {names[others[0]].word} ({shards.count(others)})" if split else shards.of_no_split(others)
        )
    notes = []
    if len(train) > 1 or len(test) > 1:
        first_to_last = f" ({shown(train[0].name)} to {shown(train[-1].name)})" if len(train) > 1 else ""
        notes.append(f"{shards.count(train)} of train{first_to_last}" + (f", {len(test)} held out" if test else ""))
    held_out = ""
    if test:
        held_out = shown(test[0].name if len(test) == 1 else f"the {len(test)} shards of {names[test[0]].word}")
    states = {"train": [file_identity(file) for file in train], "test": [file_identity(file) for file in test]}
    identity = {"parquet": states, "told": [held_out, *told, *notes]}
    return Source(name, identity, lambda: _open(train, test, held_out, told, notes))


class _Columns(NamedTuple):
    image: str
    label: str | None
    label_kind: str
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]


class _Shard(NamedTuple):
    path: Path
    rows: int
    rows_at_once: int
    columns: _Columns


def _open(
    train: Sequence[Path], test: Sequence[Path], held_out: str, left_out: Sequence[str], notes: Sequence[str]
) -> Opened:
    of_path = {path: _shard(path) for path in (*train, *test)}
    columns = of_path[train[0]].columns
    for path, shard in of_path.items():
        if shard.columns.image != columns.image:
            raise DataError(
                f"source: {shown(path)} has its images in {shown(repr(shard.columns.image))}, and "
                f"{shown(train[0].name)} in {shown(repr(columns.image))}: give the column one name"
            )
    parts = [[of_path[path] for path in part] for part in (train, test)]
    of = _labels(parts)
    return Opened(
        _rows(parts[0], of.labels[0], of.why_none),
        _rows(parts[1], of.labels[1], of.why_none) if test else None,
        held_out=held_out,
        classes=of.classes,
        left_out=tuple(left_out),
        notes=(*notes, *columns.notes, *of.notes),
    )


def _labels(parts: Sequence[Sequence[_Shard]]) -> labels.Numbered:
    """The labels of all rows of each split, where every file has the same column of them."""
    everywhere = [shard for part in parts for shard in part]
    column, counts = everywhere[0].columns.label, [sum(shard.rows for shard in part) for part in parts]
    other = next((shard for shard in everywhere if shard.columns.label != column), None)
    if other is not None:
        without = other if other.columns.label is None or column is not None else everywhere[0]
        why = f"{shown(without.path.name)} has no column {shown(column or other.columns.label or '')!r}"
        return labels.absent(counts, why)
    if column is None:
        return labels.absent(counts, f"no column is called {', '.join(labels.COLUMNS[:4])} …")
    if any(shard.columns.label_kind == "lists" for shard in everywhere):
        return labels.absent(counts, f"the column {column!r} holds lists")
    return labels.numbered_by_name(
        column,
        [[labels.Declared(_values(shard, column), shard.columns.classes) for shard in part] for part in parts],
    )


def _shard(path: Path) -> _Shard:
    with told(path, "parquet file"), _file(path) as file:
        rows, size = file.metadata.num_rows, path.stat().st_size
        if not 0 <= rows <= size:
            raise ValueError(f"it tells of {rows:,} rows in {size:,} bytes")
        groups = [file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups)]
        if sum(groups) > packed.most_unpacked(size) or any(group < 0 for group in groups):
            raise ValueError(f"it tells of {sum(groups):,} bytes of content in {size:,}")
        rows_at_once = min(512, max(1, _AT_ONCE // max(1, *groups, 1)))
        return _Shard(path, rows, rows_at_once, _columns(file.schema_arrow, path))


def _file(path: Path, **options: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, buffer_size=2**20, **options)


def _values(shard: _Shard, column: str) -> list[Any]:
    """A column of labels. Texts are read once each, however often they come."""
    texts = [column] if shard.columns.label_kind in ("string", "large_string") else []
    with told(shard.path, "parquet file"), _file(shard.path, read_dictionary=texts) as file:
        values: list[Any] = []
        for batch in file.iter_batches(batch_size=65_536, columns=[column]):
            found = batch.column(column)
            if hasattr(found, "dictionary"):
                distinct = [*found.dictionary.to_pylist(), None]
                values += [distinct[-1 if at is None else at] for at in found.indices.to_pylist()]
            else:
                values += found.to_pylist()
            if len(values) > shard.rows:
                break
    if len(values) != shard.rows:
        raise DataError(
            f"source: {shown(shard.path)} is damaged: it tells of {shard.rows:,} rows, and has other labels"
        )
    return values


def _rows(part: Sequence[_Shard], of_labels: Sequence[int | None], unlabelled: str | None) -> Rows:
    def examples() -> Iterator[Example]:
        before = 0
        for shard in part:
            for row, content in enumerate(_images(shard)):
                yield Example(f"row {row} of {shown(shard.path)}", content, of_labels[before + row])
            before += shard.rows

    return Rows(sum(shard.rows for shard in part), examples, unlabelled)


def _images(shard: _Shard) -> Iterator[bytes | Path]:
    """Every image of a file, in order. Raises `DataError` where one is missing, or they are fewer than told."""
    path, column, row, left = shard.path, shard.columns.image, 0, packed.most_unpacked(shard.path.stat().st_size)
    try:
        with _file(path) as file:
            for batch in file.iter_batches(batch_size=shard.rows_at_once, columns=[column]):
                for value in batch.column(column).to_pylist():
                    content = _content(value, path, row, column)
                    left -= len(content) if isinstance(content, bytes) else 0
                    if left < 0:  # one image, kept once and told of again and again
                        raise ValueError("it unpacks to far more than its size")
                    yield content
                    row += 1
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"source: {shown(path)} is damaged after row {row} ({line(error)}): get it anew") from error
    if row != shard.rows:
        raise DataError(f"source: {shown(path)} is damaged: it tells of {shard.rows:,} rows, and has {row:,}")


def _content(value: Any, path: Path, row: int, column: str) -> bytes | Path:
    """Encoded bytes, or a file within the parquet file's own folder."""
    content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(content, str):
        content, name = None, content
    if isinstance(content, bytes):
        return content
    if not isinstance(name, str) or not name:
        raise DataError(f"row {row} of {shown(path)} has no image in column {shown(column)!r}")
    folder = path.parent.resolve()
    try:
        file = (folder / name).resolve()
        inside = file.is_relative_to(folder)
        there = inside and file.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"row {row} of {shown(path)} names {shown(name)!r} ({line(error)}): mend it") from error
    if not inside:
        raise DataError(
            f"row {row} of {shown(path)} names {shown(name)!r}, outside its folder: put the images beside it"
        )
    if not there:
        raise DataError(
            f"row {row} of {shown(path)} has no bytes, and {shown(name)!r} is not beside it: get the images"
        )
    return file


def _columns(schema: Any, path: Path) -> _Columns:
    """Which columns hold images and labels, and what else might have."""
    import pyarrow as pa

    images = _image_columns(schema)
    declared = [name for name in _features(schema, "Image") if name in images]
    preferred = [name for name in IMAGE_COLUMNS[:2] if name in images]
    likely = preferred or [name for name in IMAGE_COLUMNS[2:] if name in images]
    candidates = preferred[:1] or (declared if len(declared) == 1 else []) or (likely if len(likely) == 1 else images)
    if not candidates:
        names = ", ".join(shown(name) for name in schema.names[:12]) or "none"
        raise DataError(
            f"source: {shown(path)} has no image column among {names}: "
            f"name it img or image, encoded bytes or a struct with a field bytes"
        )
    if len(candidates) > 1:
        raise DataError(
            f"source: {shown(path)} may have its images in {' or '.join(shown(repr(name)) for name in candidates)}: "
            f"name the right column image"
        )
    notes = []
    if others := [name for name in images if name != candidates[0]]:
        words = ", ".join(shown(repr(name)) for name in others)
        notes.append(f"image column {shown(candidates[0])!r} (also there: {words})")
    of_labels = [name for name in labels.COLUMNS if name in schema.names and name not in images]
    if len(of_labels) > 1:
        notes.append(f"label column {of_labels[0]!r} (also there: {', '.join(map(repr, of_labels[1:]))})")
    if not of_labels:
        return _Columns(candidates[0], None, "", None, tuple(notes))
    kind = schema.field(of_labels[0]).type
    words = "lists" if pa.types.is_nested(kind) else str(kind)
    return _Columns(candidates[0], of_labels[0], words, _class_names(schema, of_labels[0]), tuple(notes))


def _image_columns(schema: Any) -> list[str]:
    """The columns that can hold encoded images, or the names of files."""
    import pyarrow as pa

    def fits(field: Any) -> bool:
        kind = field.type
        if isinstance(kind, pa.ExtensionType):
            kind = kind.storage_type
        if pa.types.is_struct(kind):
            inside = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
            encoded = inside.get("bytes")
            return (encoded is not None and _binary(encoded)) or _text(inside.get("path"))
        named = field.name in IMAGE_COLUMNS
        return _binary(kind) or (named and (_text(kind) or pa.types.is_null(kind)))

    return [field.name for field in schema if fits(field)]


def _binary(kind: Any) -> bool:
    import pyarrow as pa

    of = pa.types
    view = getattr(of, "is_binary_view", lambda kind: False)(kind)
    return bool(of.is_binary(kind) or of.is_large_binary(kind) or of.is_fixed_size_binary(kind) or view)


def _text(kind: Any) -> bool:
    import pyarrow as pa

    if kind is None:
        return False
    view = getattr(pa.types, "is_string_view", lambda kind: False)(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or view)


def _features(schema: Any, kind: str) -> dict[str, Any]:
    """The columns that the hub's own note in the file declares to be of this kind."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: of for name, of in features.items() if of.get("_type") == kind}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    names = _features(schema, "ClassLabel").get(label, {}).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(shown, names))

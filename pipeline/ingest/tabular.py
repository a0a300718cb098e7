"""Parquet files, row group by row group."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.ingest.rows import CHUNK_ROWS, RawRows, Reject, damage, printable
from pipeline.ingest.streams import COMPRESSIONS, open_bytes


def read_parquet(path: Path, *, text: list[str]) -> Iterator[RawRows]:
    """Yield the rows of a Parquet file; columns other than text keep their types.

    Args:
        path: the file; a .gz or .zst around it is unpacked to a temporary file first.
        text: the columns that must be strings.

    Raises:
        InputError: it is no Parquet file, has no rows, or a text column is not a string.
    """
    with ExitStack() as stack:
        source: Any = path
        if path.suffix.lower() in COMPRESSIONS:
            source = stack.enter_context(tempfile.TemporaryFile())
            copyfileobj(stack.enter_context(open_bytes(path)), source)
        try:
            file = stack.enter_context(pq.ParquetFile(source, pre_buffer=False))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: is not a Parquet file, or is cut off") from error
        _check_types(path, file.schema_arrow, text)
        if not file.metadata.num_rows:
            raise InputError(f"{path}: has no rows")
        start = 1
        try:
            for batch in file.iter_batches(CHUNK_ROWS, use_threads=False):
                yield _columns(str(path), batch, start)
                start += len(batch)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: is damaged after row {start - 1}: {str(error).splitlines()[0]}") from error


def _check_types(path: Path, schema: pa.Schema, text: list[str]) -> None:
    for name in text:
        if name not in schema.names:
            continue  # said for all formats alike, with the columns there are
        kind = schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_null(value)):
            raise InputError(f"{path}: text column {name!r} is {kind}, not text; name another with --text")


def _columns(source: str, batch: pa.RecordBatch, start: int) -> RawRows:
    columns = {name: _values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    types = {field.name: field.type for field in batch.schema}
    bad: dict[int, str] = {}
    for values in columns.values():
        if damage("".join(value for value in values if isinstance(value, str))):
            bad |= {n: reason for n, value in enumerate(values) if isinstance(value, str) and (reason := damage(value))}
    rejects = [
        Reject(source, start + n, reason, printable(" ".join(str(values[n]) for values in columns.values())))
        for n, reason in bad.items()
    ]
    whole = [n for n in range(len(batch)) if n not in bad]
    if bad:
        columns = {name: [values[n] for n in whole] for name, values in columns.items()}
    return RawRows(columns, [start + n for n in whole], rejects, types)


def _values(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # bytes that are no text, written by somebody who did not check
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        raw = plain.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]

"""Parquet files, row group by row group."""

import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.ingest.readers.base import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    RawRows,
    Reject,
    as_text,
    escape_invalid_text,
    invalid_text_reason,
)
from pipeline.ingest.readers.streams import COMPRESSIONS, open_bytes

LIST_TYPES = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def read_parquet(path: Path, *, text: list[str], scratch: Path | None = None) -> Generator[RawRows, None, None]:
    """Yield the rows of a Parquet file; its columns keep their types.

    Args:
        path: the file; a .gz or .zst around it is unpacked to a temporary file first.
        text: the columns that must be strings.
        scratch: folder for that temporary file.

    Raises:
        InputError: it is no Parquet file, has no rows, or a text column is not a string.
    """
    with open_parquet(path, scratch) as file:
        _check_schema(path, file.schema_arrow, text)
        start = 1
        try:
            for batch in file.iter_batches(_batch_rows(file.metadata), use_threads=False):
                yield _raw_rows(escape_invalid_text(str(path)), batch, start)
                start += len(batch)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: is damaged after row {start - 1}: {str(error).splitlines()[0]}") from error


@contextmanager
def open_parquet(path: Path, scratch: Path | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; a .gz or .zst around it is unpacked to a temporary file in `scratch` first.

    Raises:
        InputError: it cannot be opened, or is no Parquet file.
    """
    with ExitStack() as stack:
        source: Any = stack.enter_context(open_bytes(path))
        if path.suffix.lower() in COMPRESSIONS:
            packed, source = source, stack.enter_context(tempfile.TemporaryFile(dir=scratch))
            copyfileobj(packed, source)
        try:
            file = stack.enter_context(pq.ParquetFile(source, pre_buffer=False))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: is not a Parquet file, or is cut off") from error
        yield file


def is_list_column(path: Path, name: str, scratch: Path | None = None) -> bool:
    """Tell whether a column of a Parquet file holds lists."""
    with open_parquet(path, scratch) as file:
        schema = file.schema_arrow
        number = schema.get_field_index(name)  # -1 if it is not there, or twice
        return number >= 0 and any(test(_storage(schema.field(number).type)) for test in LIST_TYPES)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _batch_rows(metadata: pq.FileMetaData) -> int:
    total = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES * metadata.num_rows // max(total, 1)))


def _check_schema(path: Path, schema: pa.Schema, text: list[str]) -> None:
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: has two columns named {twice!r}; rename one")
    for name in set(text) & set(schema.names):  # a missing one is said for all formats alike
        kind = schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (is_string(value) or pa.types.is_null(value)):
            raise InputError(f"{path}: text column {name!r} is {kind}, not text; name another with --text")


def is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _raw_rows(source: str, batch: pa.RecordBatch, start: int) -> RawRows:
    columns = {name: _plain(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    bad: dict[int, str] = {}
    for column in columns.values():
        bad |= _damaged(column)
    if not bad:
        return RawRows(columns, list(range(start, start + len(batch))))
    rejects = [
        Reject(source, start + n, reason, "\t".join(_shown(column, n) for column in columns.values()))
        for n, reason in sorted(bad.items())
    ]
    whole = [n for n in range(len(batch)) if n not in bad]
    columns = {name: column.take(pa.array(whole, pa.int64())) for name, column in columns.items()}
    return RawRows(columns, [start + n for n in whole], rejects)


def _plain(column: pa.Array) -> pa.Array:
    """Return a column without dictionary and extension types, which differ from file to file, and as short strings."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string()) if is_string(column.type) else column


def _damaged(column: pa.Array) -> dict[int, str]:
    """Return which rows hold bytes that are no text, written by somebody who did not check, or NUL."""
    try:
        column.validate(full=True)  # UTF-8 in nested values too
    except pa.ArrowInvalid:
        return {n: reason for n in range(len(column)) if (reason := _damage_of(column, n))}
    if not is_string(column.type):
        return {}
    nul = pc.indices_nonzero(pc.fill_null(pc.match_substring(column, "\0"), False))
    return dict.fromkeys(nul.to_pylist(), "nul_byte")


def _damage_of(column: pa.Array, number: int) -> str:
    try:
        value = column[number].as_py()
    except UnicodeDecodeError:
        return "invalid_encoding"
    return invalid_text_reason(value) if isinstance(value, str) else ""


def _shown(column: pa.Array, number: int) -> str:
    try:
        return escape_invalid_text(as_text(column[number].as_py()))
    except UnicodeDecodeError:
        if not is_string(column.type):
            return "(damaged)"
        return as_text(column.slice(number, 1).cast(pa.binary())[0].as_py())
    except ValueError:  # nanoseconds, which Python's dates do not have
        return str(column[number].cast(pa.string()))

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
    ReadOptions,
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


def read_parquet(path: Path, options: ReadOptions) -> Generator[RawRows, None, None]:
    """Yield the rows of a Parquet file; its columns keep their types.

    Raises:
        InputError: the file is not Parquet, has two columns of one name, or a text column that is not a string.
    """
    with _open_parquet(path, options) as file:
        _check_schema(path, file.schema_arrow, options)
        metadata = file.metadata
        size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES * metadata.num_rows // max(size, 1)))
        start = 1
        try:
            for chunk in file.iter_batches(chunk_rows, use_threads=False):
                yield _raw_rows(escape_invalid_text(str(path)), chunk, start)
                start += len(chunk)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: is damaged after row {start - 1}: {str(error).splitlines()[0]}") from error


def parquet_has_lists(path: Path, name: str, options: ReadOptions) -> bool:
    """Tell whether a column of a Parquet file holds lists."""
    with _open_parquet(path, options) as file:
        schema = file.schema_arrow
        number = schema.get_field_index(name)  # -1 if it is missing, or repeated
        if number < 0:
            return False
        kind = schema.field(number).type
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        return any(is_list_type(kind) for is_list_type in LIST_TYPES)


@contextmanager
def _open_parquet(path: Path, options: ReadOptions) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; if it is compressed as a whole, it is unpacked to a temporary file first.

    Raises:
        InputError: the file cannot be opened, or is not Parquet.
    """
    with ExitStack() as stack:
        source: Any = stack.enter_context(open_bytes(path))
        if path.suffix.lower() in COMPRESSIONS:
            packed, source = source, stack.enter_context(tempfile.TemporaryFile(dir=options.scratch))
            copyfileobj(packed, source)
        try:
            file = stack.enter_context(pq.ParquetFile(source, pre_buffer=False))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: is not a Parquet file, or is cut off") from error
        yield file


def _check_schema(path: Path, schema: pa.Schema, options: ReadOptions) -> None:
    repeated = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"{path}: has two columns named {repeated!r}; rename one")
    for name in set(options.text) & set(schema.names):  # a missing column is reported for all formats alike
        kind = schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (is_string(value) or pa.types.is_null(value)):
            raise InputError(f"{path}: text column {name!r} is {kind}, not text; name another with --text")


def is_string(kind: pa.DataType) -> bool:
    """Tell whether a type is one of Arrow's string types."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _raw_rows(source: str, chunk: pa.RecordBatch, start: int) -> RawRows:
    columns = {name: _plain(column) for name, column in zip(chunk.schema.names, chunk.columns, strict=True)}
    reasons: dict[int, str] = {}
    for column in columns.values():
        reasons |= _invalid_rows(column)
    if not reasons:
        return RawRows(columns, list(range(start, start + len(chunk))))
    rejects = [
        Reject(source, start + row, reason, "\t".join(_raw_text(column, row) for column in columns.values()))
        for row, reason in sorted(reasons.items())
    ]
    valid = [row for row in range(len(chunk)) if row not in reasons]
    columns = {name: column.take(pa.array(valid, pa.int64())) for name, column in columns.items()}
    return RawRows(columns, [start + row for row in valid], rejects)


def _plain(column: pa.Array) -> pa.Array:
    """Resolve extension and dictionary types, which differ between files, and cast any string type to `string`."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string()) if is_string(column.type) else column


def _invalid_rows(column: pa.Array) -> dict[int, str]:
    """Return the rows with bytes that are not UTF-8 (not every writer checks them) or NUL, each with the reason."""
    try:
        column.validate(full=True)  # UTF-8 in nested values too
    except pa.ArrowInvalid:
        reasons = {}
        for row in range(len(column)):
            try:
                value = column[row].as_py()
                reasons[row] = invalid_text_reason(value) if isinstance(value, str) else ""
            except UnicodeDecodeError:
                reasons[row] = "invalid_encoding"
        return {row: reason for row, reason in reasons.items() if reason}
    if not is_string(column.type):
        return {}
    nul = pc.indices_nonzero(pc.fill_null(pc.match_substring(column, "\0"), False))
    return dict.fromkeys(nul.to_pylist(), "nul_byte")


def _raw_text(column: pa.Array, row: int) -> str:
    """Return a value of a rejected row as text, whatever its bytes."""
    try:
        return escape_invalid_text(as_text(column[row].as_py()))
    except UnicodeDecodeError:
        if not is_string(column.type):
            return "(damaged)"
        return as_text(column.slice(row, 1).cast(pa.binary())[0].as_py())
    except ValueError:  # nanoseconds, which Python's dates do not have
        return str(column[row].cast(pa.string()))

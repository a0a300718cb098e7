"""What a reader takes and yields: options, and raw rows with their row numbers."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

RejectReasons = dict[int, str]  # why a row of a chunk is rejected, by its index; the first reason counts

MISSING: Any = object()  # the value of a key that a JSON object does not have; null is a value
CHUNK_ROWS = 4096  # rows a reader yields at a time,
CHUNK_BYTES = 4 * 2**20  # or about as many bytes, whichever is less: long texts must not take more memory
ESCAPED_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")


@dataclass(frozen=True)
class ReadOptions:
    """How sources are read; each format uses the options that apply to it.

    Attributes:
        encoding: of text files.
        header: whether the first row of a CSV or TSV file names the columns.
        text: the columns that must be strings.
        max_text_bytes: length above which texts are rejected, so there is no need to read on.
        scratch: folder for temporary files.
    """

    encoding: str = "utf-8"
    header: bool = True
    text: Sequence[str] = ()
    max_text_bytes: int = 1_000_000
    scratch: Path | None = None


@dataclass(frozen=True)
class Reject:
    """A rejected row, as in its source."""

    source: str
    row: int
    reason: str
    raw_text: str


@dataclass
class RawRows:
    """Some rows of one source, as columns.

    Attributes:
        columns: the values of each column, all of one length: a list of strings or JSON values, or an Arrow array.
        rows: the line on which each row begins, or its row number in a Parquet file, from 1.
        rejects: the rows that cannot be read; they are not in `columns`.
        sources: the file of each row, if the rows come from several.
    """

    columns: dict[str, Any]
    rows: list[int]
    rejects: list[Reject] = field(default_factory=list)
    sources: list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)


def chunked(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield lists of `CHUNK_ROWS` items, or of about `CHUNK_BYTES` of them if that is fewer."""
    chunk: list[T] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size(item)
        if len(chunk) >= CHUNK_ROWS or total >= CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def all_strings(values: list[Any]) -> bool:
    """Tell whether all values of a column are strings, as in CSV files."""
    return set(map(type, values)) <= {str}


def as_text(value: Any) -> str:
    """Return a string unchanged, JSON values as JSON, and others (dates, decimals) as Python writes them."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return escape_invalid_text(value.decode("utf-8", "surrogateescape"))
    if value is None or isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=as_text)
    return str(value)


def escape_invalid_text(text: str) -> str:
    """Write undecodable bytes and NUL as backslash escapes, so that every Parquet reader accepts the text."""
    if not invalid_text_reason(text):
        return text
    escaped = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
    return ESCAPED_BYTE.sub(r"\\x\1", escaped)


def invalid_text_reason(text: str) -> str:
    """Return why a text cannot be stored ("nul_byte", "invalid_encoding"), or ""."""
    if "\0" in text:
        return "nul_byte"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "invalid_encoding"
    return ""

"""What a reader hands over: raw rows of one source, each with its place in it."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

RejectReasons = dict[int, str]  # why a row of a chunk is refused; the first reason found stands

MISSING: Any = object()  # stands for a key that a JSON object does not have; null is a value
CHUNK_ROWS = 4096  # rows a reader hands over at a time,
CHUNK_BYTES = 4 * 2**20  # or about as many bytes, whichever is less: memory must not depend on long texts
ESCAPED_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")


@dataclass(frozen=True)
class Reject:
    """A row that was refused, as it stood in its source."""

    source: str
    row: int
    reason: str
    raw_text: str


@dataclass
class RawRows:
    """Some rows of one source, as columns.

    Attributes:
        columns: for each column the values of the rows, all of one length: strings and plain JSON values,
            or an Arrow array, which keeps its type.
        rows: where each row begins in the source: the line, or the row of a Parquet file, from 1.
        rejects: rows that could not be read, not in `columns`.
        sources: the file of each row, where it is not the same for all.
    """

    columns: dict[str, Any]
    rows: list[int]
    rejects: list[Reject] = field(default_factory=list)
    sources: list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)


def chunked(items: Iterable[T], max_items: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield lists of at most `most` items, or of about `CHUNK_BYTES` of them if that is fewer."""
    chunk: list[T] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size(item)
        if len(chunk) >= max_items or total >= CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def all_strings(values: list[Any]) -> bool:
    """Tell whether a column can take the short way, as those of CSV files can."""
    return set(map(type, values)) <= {str}


def as_text(value: Any) -> str:
    """Return a string as it is, plain values as JSON writes them, and others (dates, decimals) as Python does."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return escape_invalid_text(value.decode("utf-8", "surrogateescape"))
    if value is None or isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=as_text)
    return str(value)


def escape_invalid_text(text: str) -> str:
    """Return text that any Parquet reader takes: bytes that were no text, and NUL, as backslash escapes."""
    if not invalid_text_reason(text):
        return text
    escaped = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
    return ESCAPED_BYTE.sub(r"\\x\1", escaped)


def invalid_text_reason(text: str) -> str:
    """Return why characters cannot be kept as text ("nul_byte", "invalid_encoding"), or nothing."""
    if "\0" in text:
        return "nul_byte"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "invalid_encoding"
    return ""

"""What a reader hands over: raw rows of one source, each with its place in it."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

MISSING: Any = object()  # stands for a key that a JSON object does not have; null is a value
CHUNK_ROWS = 4096  # rows a reader hands over at a time


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
        columns: for each column the values of the rows, all of one length.
        rows: where each row begins in the source: the line, or the row of a Parquet file, from 1.
        rejects: rows that could not be read, not in `columns`.
        types: Arrow types of the columns that have one; the others hold strings or plain JSON values.
        sources: the file of each row, where it is not the same for all.
    """

    columns: dict[str, list[Any]]
    rows: list[int]
    rejects: list[Reject] = field(default_factory=list)
    types: dict[str, pa.DataType] = field(default_factory=dict)
    sources: list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)


def printable(text: str) -> str:
    """Return text that any Parquet reader takes: bytes that were no text, and NUL, as backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def damage(text: str) -> str:
    """Return why characters cannot be kept as text ("nul_byte", "invalid_encoding"), or nothing."""
    if "\0" in text:
        return "nul_byte"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "invalid_encoding"
    return ""

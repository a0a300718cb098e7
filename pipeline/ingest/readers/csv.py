"""CSV and TSV, read so that a stray quote costs one row and never swallows the rows after it.

A block of lines is parsed at once, which is fast. If that does not give one row for each line (a quoted field spans
lines, or a quote is stray), the block is parsed row by row, and the lines after a malformed one are put back.
"""

import csv
import sys
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pipeline.errors import InputError
from pipeline.ingest.readers.base import (
    CHUNK_ROWS,
    RawRows,
    ReadOptions,
    Reject,
    escape_invalid_text,
    invalid_text_reason,
)
from pipeline.ingest.readers.streams import open_text

MAX_ROW_CHARACTERS = 16 * 2**20  # characters; a longer quoted field was never closed
BLOCK_CHARACTERS = 2**19  # read at once: a compromise between speed and memory


class _Row(NamedTuple):
    line: int  # on which it begins, from 1
    fields: list[str]
    raw: str
    reason: str = ""  # why it is rejected, or ""


@dataclass
class _Dialect:
    delimiter: str
    quoted: bool
    max_row_characters: int
    width: int = 0  # fields in a row; 0 until the first row is read

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        quoting: Any = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return csv.reader(lines, delimiter=self.delimiter, strict=self.quoted, quoting=quoting)


class _Lines:
    """Lines of a file that can be put back, with a record of the lines that the current row took."""

    def __init__(self, lines: TextIO, max_row_characters: int) -> None:
        self._lines = lines
        self._max_row_characters = max_row_characters
        self._put_back: deque[str] = deque()
        self._size = 0
        self.taken: list[str] = []
        self.number = 1  # of the line on which the current row begins

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._put_back.popleft() if self._put_back else next(self._lines)
        self._size += len(line)
        if self._size > self._max_row_characters and self.taken:
            self._put_back.appendleft(line)
            raise csv.Error("row too long")
        self.taken.append(line)
        return line

    def start_row(self) -> int:
        """Begin the next row; return the number of its first line."""
        self.number += len(self.taken)
        self.taken, self._size = [], 0
        return self.number

    def keep_first(self) -> str:
        """Put back all but the first line of the current row, and return that line."""
        self._put_back.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]
        return self.taken[0]

    def block(self) -> list[str]:
        """Take the next lines, at most `CHUNK_ROWS`."""
        self.start_row()
        if not self._put_back:
            self._put_back.extend(self._lines.readlines(BLOCK_CHARACTERS))
        self.taken = [self._put_back.popleft() for _ in range(min(CHUNK_ROWS, len(self._put_back)))]
        return self.taken

    def undo_block(self) -> None:
        """Put back all lines of the current block."""
        self._put_back.extendleft(reversed(self.taken))
        self.taken = []


def read_delimited(path: Path, options: ReadOptions, *, delimiter: str, quoted: bool) -> Generator[RawRows, None, None]:
    """Yield the rows of a CSV or TSV file; without a header the columns are named "1", "2" and so on.

    Args:
        path: the file, possibly compressed.
        options: only `encoding`, `header` and `max_text_bytes` apply.
        delimiter: one character.
        quoted: whether double quotes enclose fields; in TSV they are text.

    Raises:
        InputError: the file is empty, or its header cannot be read.
    """
    csv.field_size_limit(sys.maxsize)  # long texts are rejected by --max-text-bytes, one row each
    max_row_characters = max(MAX_ROW_CHARACTERS, 4 * options.max_text_bytes)
    dialect = _Dialect(delimiter, quoted, max_row_characters)
    names: list[str] = []
    with open_text(path, options.encoding) as text:
        for rows in _blocks(_Lines(text, max_row_characters), dialect):
            if not names and options.header:
                names = _header(path, rows.pop(0))
            elif not names:
                first = next((row for row in rows if not row.reason), rows[0])
                names = [str(number) for number in range(1, len(first.fields) + 1)]
            dialect.width = len(names)
            yield _raw_rows(escape_invalid_text(str(path)), rows, names)
        if not names:
            raise InputError(f"{path}: is empty")


def _blocks(lines: _Lines, dialect: _Dialect) -> Iterator[list[_Row]]:
    """Yield the rows of each block of lines, without the blank lines before the first row."""
    leading = True
    while block := lines.block():
        first, end = lines.number, lines.number + len(block)
        rows = _parse_at_once(block, first, dialect)
        if rows is None:
            lines.undo_block()
            rows = list(_parse_one_by_one(lines, end, dialect))
        while rows and leading and (rows[0].raw.isspace() or not rows[0].raw):
            rows.pop(0)
        if rows:
            leading = False
            yield rows


def _parse_at_once(block: list[str], first: int, dialect: _Dialect) -> list[_Row] | None:
    """Return one row for each line, or None if rows and lines do not correspond."""
    try:
        parsed = list(dialect.reader(iter(block)))
    except csv.Error:
        return None
    if len(parsed) != len(block):
        return None
    numbers = range(first, first + len(block))
    if invalid_text_reason("".join(block)):
        return list(map(_Row, numbers, parsed, block, map(invalid_text_reason, block)))
    return list(map(_Row, numbers, parsed, block))


def _parse_one_by_one(lines: _Lines, end: int, dialect: _Dialect) -> Iterator[_Row]:
    """Yield the rows that begin before line number `end`."""
    reader = dialect.reader(lines)
    while (number := lines.start_row()) < end:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = len(lines.taken) > 1 or "unexpected end" in str(error) or "too long" in str(error)
            yield _Row(number, [], lines.keep_first(), "unclosed_quote" if unclosed else "malformed_quotes")
            continue
        if _swallowed_rows(lines.taken, fields, dialect):
            yield _Row(number, [], lines.keep_first(), "unclosed_quote")
            continue
        raw = "".join(lines.taken)
        if not dialect.width and raw.strip():
            dialect.width = len(fields)
        yield _Row(number, fields, raw, invalid_text_reason(raw))


def _swallowed_rows(taken: list[str], fields: list[str], dialect: _Dialect) -> bool:
    """Tell whether a row of several lines is the result of two stray quotes, with whole rows between them.

    Such a row has too few or too many fields, and most of its lines have the delimiters of a whole row.
    """
    if len(taken) < 2 or not dialect.width or len(fields) == dialect.width:
        return False
    complete = sum(line.count(dialect.delimiter) >= dialect.width - 1 for line in taken[1:])
    return 2 * complete >= len(taken) - 1


def _header(path: Path, first: _Row) -> list[str]:
    """Return the column names; missing and repeated names are numbered."""
    if first.reason:
        raise InputError(f"{path}:{first.line}: the header cannot be read ({first.reason}); is the --encoding right?")
    names: list[str] = []
    for number, field in enumerate(first.fields, start=1):
        name = field.strip() or f"column_{number}"
        while name in names:
            name = f"{name}_{number}"
        names.append(name)
    return names


def _raw_rows(source: str, rows: list[_Row], names: list[str]) -> RawRows:
    """Return rows as columns; blank lines are no rows, and ragged rows are rejected."""
    valid = [row for row in rows if len(row.fields) == len(names) and not row.reason]
    invalid = [] if len(valid) == len(rows) else [row for row in rows if len(row.fields) != len(names) or row.reason]
    rejects = [
        Reject(source, row.line, row.reason or "ragged_row", escape_invalid_text(row.raw.rstrip("\r\n")))
        for row in invalid
        if row.reason or len(row.fields) > 1 or row.raw.strip()
    ]
    values = zip(*(row.fields for row in valid), strict=True) if valid else ([] for _ in names)
    columns = {name: list(column) for name, column in zip(names, values, strict=True)}
    return RawRows(columns, [row.line for row in valid], rejects)

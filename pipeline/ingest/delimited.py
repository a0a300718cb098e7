"""CSV and TSV, one physical line at a time, so that a stray quote costs one row and never swallows others."""

import csv
import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError
from pipeline.ingest.rows import CHUNK_ROWS, RawRows, Reject, damage, printable
from pipeline.ingest.streams import open_text

LONGEST_ROW = 16 * 2**20  # characters; a quoted field that goes on for longer was never closed


class _Lines:
    """Lines of a file that can be put back, and that remember what the current row took."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._put_back: deque[str] = deque()
        self.taken: list[str] = []
        self._line = 1
        self._size = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._put_back.popleft() if self._put_back else next(self._lines)
        self._size += len(line)
        if self._size > LONGEST_ROW and self.taken:
            self._put_back.appendleft(line)
            raise csv.Error("row too long")
        self.taken.append(line)
        return line

    def start_row(self) -> int:
        """Forget the row before; return the number of the line the next row begins on."""
        self._line += len(self.taken)
        self.taken, self._size = [], 0
        return self._line

    def keep_first(self) -> str:
        """Put all but the first line of the current row back, and return that one."""
        self._put_back.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]
        return self.taken[0]


def read_delimited(path: Path, *, delimiter: str, quoted: bool, header: bool, encoding: str) -> Iterator[RawRows]:
    """Yield the rows of a CSV or TSV file; without a header the columns are named "1", "2" and so on.

    Args:
        path: the file, possibly compressed.
        delimiter: one character.
        quoted: whether double quotes enclose fields; in TSV they are text.
        header: whether the first row names the columns.
        encoding: of the file.

    Raises:
        InputError: the file is empty, or its header cannot be read.
    """
    with open_text(path, encoding) as text:
        rows = _rows(_Lines(iter(text)), delimiter, quoted)
        first = next(rows, None)
        if first is None:
            raise InputError(f"{path}: is empty")
        if header:
            names = _header(path, first)
        else:
            names = [str(number) for number in range(1, len(first.fields) + 1)]
            rows = itertools.chain([first], rows)
        while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
            yield _columns(str(path), chunk, names)


class _Row(NamedTuple):
    line: int
    fields: list[str]
    reason: str  # why it is refused, or nothing
    raw: str


def _rows(lines: _Lines, delimiter: str, quoted: bool) -> Iterator[_Row]:
    csv.field_size_limit(2 * LONGEST_ROW)
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, strict=quoted, quoting=quoting)
    while True:
        line = lines.start_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = "unexpected end" in str(error) or "too long" in str(error)
            yield _Row(line, [], "unclosed_quote" if unclosed else "malformed_quotes", lines.keep_first())
            continue
        raw = lines.taken[0] if len(lines.taken) == 1 else "".join(lines.taken)
        if not raw.isspace():  # a blank line is no row
            yield _Row(line, fields, damage(raw), raw)


def _header(path: Path, first: _Row) -> list[str]:
    """Return one name for each column; unnamed and repeated ones are numbered."""
    if first.reason:
        raise InputError(f"{path}:{first.line}: the header cannot be read ({first.reason}); is the --encoding right?")
    names: list[str] = []
    for number, field in enumerate(first.fields, start=1):
        name = field.strip() or f"column_{number}"
        names.append(name if name not in names else f"{name}_{number}")
    return names


def _columns(source: str, chunk: list[_Row], names: list[str]) -> RawRows:
    rejects, whole = [], []
    for row in chunk:
        reason = row.reason or ("" if len(row.fields) == len(names) else "ragged_row")
        if reason:
            rejects.append(Reject(source, row.line, reason, printable(row.raw.rstrip("\r\n"))))
        else:
            whole.append(row)
    values = zip(*(row.fields for row in whole), strict=True) if whole else ([] for _ in names)
    columns = {name: list(column) for name, column in zip(names, values, strict=True)}
    return RawRows(columns, [row.line for row in whole], rejects)

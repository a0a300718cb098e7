"""Parquet parts of documents and rejects, flushed as they fill, so that memory stays flat."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import write_table
from pipeline.ingest.readers.base import Reject, as_text
from pipeline.schemas import DOCUMENTS, REJECTS

PART_ROWS = 50_000
PART_BYTES = 64 * 2**20


class PartWriter:
    """Writes tables as parts of about `PART_ROWS` rows or `PART_BYTES` bytes, whichever comes first."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._buffer: list[pa.Table] = []
        self._rows = self._bytes = 0
        self.paths: list[Path] = []

    def add(self, table: pa.Table) -> None:
        """Buffer rows, and write a part when there are enough."""
        self._buffer.append(table)
        self._rows += len(table)
        self._bytes += table.nbytes
        if self._rows >= PART_ROWS or self._bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows, if any."""
        if self._rows:
            path = self._folder / f"part-{len(self.paths):05d}.parquet"
            write_table(path, _concat(self._buffer))
            self.paths.append(path)
        self._buffer, self._rows, self._bytes = [], 0, 0


def _concat(tables: list[pa.Table]) -> pa.Table:
    """Concatenate tables whose extra columns can differ; columns of clashing types become text."""
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            if not pa.types.is_null(field.type):  # a column without values matches any type
                kinds.setdefault(field.name, set()).add(field.type)
    clashing = {name for name, types in kinds.items() if len(types) > 1}
    for name in clashing:
        tables = [
            table.set_column(table.column_names.index(name), name, _to_text(table[name]))
            if name in table.column_names
            else table
            for table in tables
        ]
    table = pa.concat_tables(tables, promote_options="default")
    # Names are sorted, so that the bytes do not depend on the order of columns in the source.
    core = [name for name in tables[0].column_names if name in DOCUMENTS.names or name in REJECTS.names]
    return table.select(core + sorted(set(table.column_names) - set(core))).combine_chunks()


def _to_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # nested values, or bytes that are not UTF-8
        values = [None if value is None else as_text(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(values, pa.string())])


class RejectWriter:
    """Writes rejected rows, and counts their reasons."""

    def __init__(self, folder: Path) -> None:
        self._parts = PartWriter(folder)
        self.reasons: dict[str, int] = {}
        self.first: dict[str, Reject] = {}  # by reason

    def add(self, rejects: Sequence[Reject]) -> None:
        """Buffer rejected rows."""
        for reject in rejects:
            self.reasons[reject.reason] = self.reasons.get(reject.reason, 0) + 1
            self.first.setdefault(reject.reason, reject)
        if rejects:
            columns = [[getattr(reject, name) for reject in rejects] for name in REJECTS.names]
            self._parts.add(pa.table([pa.array(c, f.type) for c, f in zip(columns, REJECTS, strict=True)], REJECTS))

    def flush(self) -> None:
        """Write the buffered rows, if any."""
        self._parts.flush()

    @property
    def paths(self) -> list[Path]:
        return self._parts.paths

    @property
    def count(self) -> int:
        return sum(self.reasons.values())


def drop_rows(paths: Sequence[Path], duplicates: np.ndarray, conflicts: np.ndarray) -> Iterator[list[Reject]]:
    """Remove rows from staged parts, rewriting only those that hold some; an empty part is deleted.

    Args:
        paths: the parts, in order.
        duplicates: row numbers of duplicates, which are dropped.
        conflicts: row numbers of documents with the id of another text, which become rejects.

    Yields:
        The rejected rows of each part.
    """
    first = 0
    for path in paths:
        count = pq.read_metadata(path).num_rows
        in_part = [rows[(rows >= first) & (rows < first + count)] - first for rows in (duplicates, conflicts)]
        first += count
        dropped = np.concatenate(in_part)
        if not len(dropped):
            continue
        table = pq.read_table(path, partitioning=None)
        rejected = table.take(pa.array(in_part[1])).select(["source", "row", "text"]).to_pylist()
        yield [Reject(row["source"], row["row"], "id_conflict", row["text"]) for row in rejected]
        keep = np.ones(count, dtype=bool)
        keep[dropped] = False
        path.unlink()
        if keep.any():
            write_table(path, table.filter(pa.array(keep)))

"""Rows to Parquet parts in a staging folder, flushed as they fill, so that memory stays flat."""

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
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0
        self.paths: list[Path] = []

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._rows += len(table)
        self._bytes += table.nbytes
        if self._rows >= PART_ROWS or self._bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting, if anything."""
        if self._rows:
            path = self._folder / f"part-{len(self.paths):05d}.parquet"
            write_table(path, _concat(self._waiting))
            self.paths.append(path)
        self._waiting, self._rows, self._bytes = [], 0, 0


def _concat(tables: list[pa.Table]) -> pa.Table:
    """Put tables with the same core and possibly other extra columns together; a clash of types becomes text."""
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            if not pa.types.is_null(field.type):  # a column without values agrees with any type
                kinds.setdefault(field.name, set()).add(field.type)
    clashing = {name for name, types in kinds.items() if len(types) > 1}
    if clashing:
        tables = [_as_text(table, clashing) for table in tables]
    whole = pa.concat_tables(tables, promote_options="default")
    # Names are sorted, so the same rows give the same bytes whatever order the columns came in.
    core = [name for name in tables[0].column_names if name in DOCUMENTS.names or name in REJECTS.names]
    return whole.select(core + sorted(set(whole.column_names) - set(core))).combine_chunks()


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    for name in names & set(table.column_names):
        table = table.set_column(table.schema.get_field_index(name), name, _cast_to_text(table[name]))
    return table


def _cast_to_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # nested values, or bytes that are no text
        values = [None if value is None else as_text(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(values, pa.string())])


class RejectWriter:
    """Writes refused rows, and keeps count of the reasons."""

    def __init__(self, folder: Path) -> None:
        self._parts = PartWriter(folder)
        self.reasons: dict[str, int] = {}
        self.first: dict[str, Reject] = {}

    def add(self, rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            self.reasons[reject.reason] = self.reasons.get(reject.reason, 0) + 1
            self.first.setdefault(reject.reason, reject)
        if rejects:
            columns = [[getattr(reject, name) for reject in rejects] for name in REJECTS.names]
            self._parts.add(pa.table([pa.array(c, f.type) for c, f in zip(columns, REJECTS, strict=True)], REJECTS))

    def flush(self) -> None:
        """Write what is waiting, if anything."""
        self._parts.flush()

    @property
    def paths(self) -> list[Path]:
        return self._parts.paths

    @property
    def count(self) -> int:
        return sum(self.reasons.values())


def drop_rows(paths: Sequence[Path], same: np.ndarray, other: np.ndarray) -> Iterator[list[Reject]]:
    """Take rows out of staged parts, rewriting only those that hold some; a part left empty is removed.

    Args:
        paths: the parts, in order.
        same: row numbers of duplicates.
        other: row numbers of documents whose id belongs to another text.

    Yields:
        The refused rows of each part.
    """
    first = 0
    for path in paths:
        count = pq.read_metadata(path).num_rows
        gone = [rows[(rows >= first) & (rows < first + count)] - first for rows in (same, other)]
        first += count
        dropped = np.concatenate(gone)
        if not len(dropped):
            continue
        table = pq.read_table(path, partitioning=None)
        refused = table.take(pa.array(gone[1])).select(["source", "row", "text"]).to_pylist()
        yield [Reject(row["source"], row["row"], "id_conflict", row["text"]) for row in refused]
        keep = np.ones(count, dtype=bool)
        keep[dropped] = False
        path.unlink()
        if keep.any():
            write_table(path, table.filter(pa.array(keep)))

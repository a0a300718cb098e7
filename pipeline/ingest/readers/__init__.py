"""One module for each file format, and `READERS`, the table of all of them."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import InputError
from pipeline.ingest.readers.base import RawRows, ReadOptions
from pipeline.ingest.readers.csv import read_delimited
from pipeline.ingest.readers.jsonl import jsonlines_columns, jsonlines_has_lists, read_jsonlines
from pipeline.ingest.readers.parquet import parquet_has_lists, read_parquet
from pipeline.ingest.readers.streams import data_suffix


@dataclass(frozen=True)
class Reader:
    """How files of one format are recognised and read.

    Attributes:
        suffixes: of the file names, without that of a compression.
        read: yields the rows of a file, some thousand at a time.
        has_lists: whether a column holds lists; None if the format has no lists.
        columns: the names of all columns; None if every row has all of them.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path, ReadOptions], Generator[RawRows, None, None]]
    has_lists: Callable[[Path, str, ReadOptions], bool] | None = None
    columns: Callable[[Path, ReadOptions], list[str]] | None = None


READERS = {
    "csv": Reader((".csv",), partial(read_delimited, delimiter=",", quoted=True)),
    "tsv": Reader((".tsv", ".tab"), partial(read_delimited, delimiter="\t", quoted=False)),
    "jsonl": Reader((".jsonl", ".ndjson", ".json"), read_jsonlines, jsonlines_has_lists, jsonlines_columns),
    "parquet": Reader((".parquet", ".pq"), read_parquet, parquet_has_lists),
}


def format_of(path: Path) -> str | None:
    """Return the format that the suffix of a file names, if any."""
    suffix = data_suffix(path)
    return next((name for name, reader in READERS.items() if suffix in reader.suffixes), None)


def open_rows(path: Path) -> Iterator[RawRows]:
    """Yield the rows of a file, some thousand at a time, in the format that its suffix names.

    Raises:
        InputError: the suffix names no format, or the file cannot be read.
    """
    name = format_of(path)
    if name is None:
        raise InputError(f"{path}: its name does not tell the format; end it in .parquet, .csv, .tsv or .jsonl")
    yield from READERS[name].read(path, ReadOptions())

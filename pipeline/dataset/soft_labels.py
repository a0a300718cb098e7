"""What another model thinks of the documents: a table of ids and the probability of each class, as soft labels."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson

from pipeline.errors import InputError
from pipeline.files import file_digest
from pipeline.ingest.readers.parquet import is_string, open_parquet
from pipeline.ingest.readers.streams import data_suffix, open_bytes
from pipeline.ingest.sources import FORMATS

ID_NAMES = ("doc_id", "id")
SUM_TOLERANCE = 0.01  # by which the probabilities of a text may miss 1, as rounded ones do
ROUNDING = 1e-6  # by which one may leave 0 to 1, as sums of floats do
BLOCK_BYTES = 16 * 2**20  # of JSON read at once; no line may be longer
LISTED = 5

# How Arrow's readers say where they failed: rows of CSV from 1 with the header, of JSON from 0 in each block.
CSV_VALUE = re.compile(
    r"column #(?P<column>\d+): Row #(?P<row>\d+): .* to double: invalid value '(?P<value>.*)'", re.DOTALL
)
CSV_ROW = re.compile(r"Row #(\d+)")
JSON_KIND = re.compile(r"Column\(/(?P<column>.*)\) changed from (?P<wanted>\w+) to (?P<kind>\w+) in row (?P<row>\d+)")
JSON_ROW = re.compile(r"in row (\d+)")


@dataclass(frozen=True)
class SoftLabels:
    """A teacher's opinion on some documents.

    Attributes:
        doc_ids: strings [texts], each once.
        probabilities: float32 [texts, classes], from 0 to 1; with one label each, every row adds up to 1.
        source: the file's name.
        digest: of the file.
    """

    doc_ids: pa.Array
    probabilities: np.ndarray
    source: str
    digest: str

    def aligned(self, doc_ids: pa.Array) -> np.ndarray:
        """Return the probabilities of documents in their order.

        Args:
            doc_ids: strings [documents].

        Returns:
            float32 [documents, classes]; NaN in the rows of which the teacher knows nothing.
        """
        places = pc.index_in(doc_ids, value_set=self.doc_ids)
        known = places.is_valid().to_numpy(zero_copy_only=False)
        found = np.full((len(doc_ids), self.probabilities.shape[1]), np.nan, dtype=np.float32)
        found[known] = self.probabilities[places.drop_null().to_numpy()]
        return found

    def provenance(self) -> dict[str, Any]:
        """Return what a bundle keeps of it."""
        return {"file": self.source, "sha256": self.digest, "texts": len(self.doc_ids)}


def read_soft_labels(path: Path, labels: Sequence[str], *, multi_label: bool) -> SoftLabels:
    """Read a teacher's table: a column `doc_id` (or `id`), and one column for each class, named as the class.

    Args:
        path: Parquet, CSV, TSV or JSON Lines, perhaps with .gz or .zst at the end of its name.
        labels: the classes of the documents, in the order of the columns to return.
        multi_label: whether a document can have several labels; then the probabilities need not add up to 1.

    Raises:
        InputError: it cannot be read as what its name says, its columns are not those, an id is missing or repeated,
            or a value is not a probability.
    """
    table = _read(path, labels)
    if not len(table):
        raise InputError(f"{path}: has no rows")
    doc_ids = _doc_ids(path, table)
    probabilities, sums = _probabilities(path, table, labels)
    if not multi_label:
        _check_sums(path, sums)
        probabilities /= sums[:, np.newaxis].astype(np.float32)
    return SoftLabels(doc_ids, probabilities, path.name, file_digest(path))


def check_soft_label_ids(soft_labels: SoftLabels, doc_ids: Iterable[pa.Array]) -> None:
    """See that every text of a teacher is a document.

    Args:
        teacher: whose ids are checked.
        doc_ids: of all documents there are, for example part by part.

    Raises:
        InputError: some are none; says how many, and the first.
    """
    unknown = soft_labels.doc_ids
    for known in doc_ids:
        unknown = unknown.filter(pc.invert(pc.is_in(unknown, value_set=known)))
        if not len(unknown):
            return
    if len(unknown):
        raise InputError(
            f"{soft_labels.source}: {len(unknown):,} of {len(soft_labels.doc_ids):,} ids are not documents here, "
            f"the first is {unknown[0].as_py()!r}; ingest them first, or remove them"
        )


def _read(path: Path, labels: Sequence[str]) -> pa.Table:
    """Return the id column, whatever its type, and in float64 the classes."""
    kind = FORMATS.get(data_suffix(path))
    if kind is None:
        raise InputError(f"{path}: its name does not tell the format; end it in .parquet, .csv, .tsv or .jsonl")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if kind == "parquet":
        return _read_parquet(path, labels)
    try:
        return _read_json(path, labels) if kind == "jsonl" else _read_csv(path, labels, tabs=kind == "tsv")
    except (ValueError, RecursionError) as error:  # Arrow's errors are of the first kind, and those of damaged text
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(f"{path}: is not what its name says, or is damaged: {' '.join(why.split())[:200]}")


def _read_parquet(path: Path, labels: Sequence[str]) -> pa.Table:
    with open_parquet(path) as file:
        schema = file.schema_arrow
        doc_id = _check_columns(path, schema.names, labels)
        for label in labels:
            kind = schema.field(label).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
                raise InputError(f"{path}, column {label!r}: is {kind}, not numbers; give probabilities from 0 to 1")
        try:
            table = file.read()
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(path, str(error)) from error
    return table.cast(pa.schema([_as_number(field, doc_id) for field in table.schema]), safe=False)


def _as_number(field: pa.Field, doc_id: str) -> pa.Field:
    return field if field.name == doc_id else pa.field(field.name, pa.float64())


def _read_csv(path: Path, labels: Sequence[str], *, tabs: bool) -> pa.Table:
    parsing = pacsv.ParseOptions(delimiter="\t" if tabs else ",", quote_char=False if tabs else '"')
    try:
        with open_bytes(path) as stream:
            names = pacsv.open_csv(stream, pacsv.ReadOptions(use_threads=False), parsing).schema.names
        types = {name: pa.float64() for name in labels} | {_check_columns(path, names, labels): pa.string()}
        converting = pacsv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=False)
        with open_bytes(path) as stream:  # by one thread, which knows the numbers of the rows
            return pacsv.read_csv(stream, pacsv.ReadOptions(use_threads=False), parsing, converting)
    except pa.ArrowInvalid as error:
        found = CSV_VALUE.search(str(error))
        if found is None:
            raise _unreadable(path, CSV_ROW.sub(lambda row: f"row {int(row[1]) - 1}", str(error))) from error
        place = f"{path}, row {int(found['row']) - 1}, column {names[int(found['column'])]!r}"
        raise InputError(f"{place}: {found['value'][:50]!r} is not a number; give a probability from 0 to 1") from error


def _read_json(path: Path, labels: Sequence[str]) -> pa.Table:
    doc_id, kind = _id_of_json(path)
    schema = pa.schema([(doc_id, kind), *((label, pa.float64()) for label in labels)])
    batches: list[pa.RecordBatch] = []
    try:
        with open_bytes(path) as stream:
            reading = pajson.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
            batches.extend(pajson.open_json(stream, reading, pajson.ParseOptions(explicit_schema=schema)))
    except pa.ArrowInvalid as error:
        raise _json_fault(path, str(error), sum(map(len, batches))) from error
    table = pa.Table.from_batches(batches)
    there = [name for name in table.column_names if table[name].null_count < len(table)]  # the schema adds what is not
    _check_columns(path, there, labels)
    return table


def _id_of_json(path: Path) -> tuple[str, pa.DataType]:
    """Return name and type of the column with the ids, going by the first object."""
    with open_bytes(path) as stream:
        first = json.loads(next((line for line in stream if line.strip()), b"{}"))
    if not isinstance(first, dict):
        raise InputError(f"{path}, row 1: is not a JSON object; write one on each line")
    doc_id = next((name for name in ID_NAMES if name in first), ID_NAMES[0])
    return doc_id, pa.int64() if isinstance(first.get(doc_id), int) else pa.string()


def _json_fault(path: Path, why: str, rows_before: int) -> InputError:
    found = JSON_KIND.search(why)
    if found is None:
        return _unreadable(path, JSON_ROW.sub(lambda row: f"in row {rows_before + int(row[1]) + 1}", why))
    place = f"{path}, row {rows_before + int(found['row']) + 1}, column {found['column']!r}"
    return InputError(f"{place}: {found['kind']} instead of {found['wanted']}; give it as in the other rows")


def _check_columns(path: Path, names: Sequence[str], labels: Sequence[str]) -> str:
    """Return the column with the ids, having seen that the others are the classes."""
    doc_id = next((name for name in ID_NAMES if name in names), None)
    if doc_id is None:
        raise InputError(f"{path}: no column 'doc_id' (there are: {_listed(names)}); say which document each row is of")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"{path}: two columns are named {_listed(twice)}; rename or remove one")
    missing = [label for label in labels if label not in names]
    if missing:
        raise InputError(f"{path}: no column for the classes {_listed(missing)}; add one for each class")
    others = [name for name in names if name not in {doc_id, *labels}]
    if others:
        raise InputError(f"{path}: other classes than those of the documents: {_listed(others)}; remove these columns")
    return doc_id


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return (", ".join(map(repr, names[:LISTED])) or "none") + more


def _doc_ids(path: Path, table: pa.Table) -> pa.Array:
    """Return the ids as ingest keeps them: text, without white space around."""
    name = next(name for name in ID_NAMES if name in table.column_names)
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (is_string(column.type) or pa.types.is_integer(column.type)):
        raise InputError(f"{path}, column {name!r}: is {column.type}, neither text nor whole numbers")
    doc_ids = pc.utf8_trim_whitespace(column.cast(pa.string())).combine_chunks()
    missing = pc.fill_null(pc.equal(doc_ids, ""), True).to_numpy(zero_copy_only=False)
    if missing.any():
        raise InputError(f"{path}, row {missing.argmax() + 1}, column {name!r}: no id; say which document it is of")
    _check_repeated(path, doc_ids)
    return doc_ids


def _check_repeated(path: Path, doc_ids: pa.Array) -> None:
    codes = doc_ids.dictionary_encode().indices.to_numpy()  # numbered as they first appear
    repeated = codes[1:] <= np.maximum.accumulate(codes)[:-1]
    if repeated.any():
        row = int(repeated.argmax()) + 1
        first = int((codes == codes[row]).argmax())
        raise InputError(
            f"{path}, row {row + 1}: id {doc_ids[row].as_py()!r} stands in row {first + 1} already; keep one of them"
        )


def _probabilities(path: Path, table: pa.Table, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities, float32 [texts, classes], and what they add up to, float64 [texts]."""
    probabilities = np.empty((len(table), len(labels)), dtype=np.float32)
    sums = np.zeros(len(table))
    faults: list[tuple[int, int]] = []
    for number, label in enumerate(labels):
        values = table[label].to_numpy()
        wrong = ~((values >= -ROUNDING) & (values <= 1 + ROUNDING))  # not a number is neither
        if wrong.any():
            faults.append((int(wrong.argmax()), number))
        probabilities[:, number] = np.clip(values, 0, 1)
        sums += probabilities[:, number]
    if faults:
        row, number = min(faults)
        value = table[labels[number]][row].as_py()
        said = "no value" if value is None else f"{value} is not a probability"
        raise InputError(f"{path}, row {row + 1}, column {labels[number]!r}: {said}; give a number from 0 to 1")
    return probabilities, sums


def _check_sums(path: Path, sums: np.ndarray) -> None:
    wrong = np.abs(sums - 1) > SUM_TOLERANCE
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{path}, row {row + 1}: the probabilities add up to {sums[row]:.4f}; a document with one label needs 1"
        )

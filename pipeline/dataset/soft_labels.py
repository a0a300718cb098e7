"""Soft labels for distillation: the class probabilities that another model gives to documents."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.files import file_digest
from pipeline.ingest.readers import open_rows
from pipeline.ingest.readers.base import MISSING, RawRows, all_strings, as_text
from pipeline.ingest.readers.parquet import is_string

ID_NAMES = ("doc_id", "id")
SUM_TOLERANCE = 0.01  # how far rounded probabilities of a text may be from adding up to 1
ROUNDING = 1e-6  # how far a probability may be outside 0 to 1, as sums of floats are
LISTED = 5  # names in an error message


@dataclass(frozen=True)
class SoftLabels:
    """The class probabilities of a teacher for some documents.

    Attributes:
        doc_ids: strings [texts], each once.
        probabilities: float32 [texts, classes], from 0 to 1; in a single-label task every row adds up to 1.
        source: name of the file.
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
            float32 [documents, classes]; NaN in the rows of documents without soft labels.
        """
        rows = pc.index_in(doc_ids, value_set=self.doc_ids)
        labelled = rows.is_valid().to_numpy(zero_copy_only=False)
        aligned = np.full((len(doc_ids), self.probabilities.shape[1]), np.nan, dtype=np.float32)
        aligned[labelled] = self.probabilities[rows.drop_null().to_numpy()]
        return aligned

    def provenance(self) -> dict[str, Any]:
        """Return what a bundle records of them."""
        return {"file": self.source, "sha256": self.digest, "texts": len(self.doc_ids)}


def read_soft_labels(path: Path, labels: Sequence[str], *, multi_label: bool) -> SoftLabels:
    """Read a table with a column `doc_id` (or `id`), and a column of probabilities named after each class.

    Args:
        path: Parquet, CSV, TSV or JSON Lines, possibly compressed with gzip or zstd.
        labels: the classes of the documents, in the order of the columns to return.
        multi_label: whether a document can have several labels; then its probabilities need not add up to 1.

    Raises:
        InputError: the file cannot be read, has missing or extra columns, or a missing or repeated id,
            or a value is not a probability.
    """
    tables: list[pa.Table] = []
    names: dict[str, None] = {}
    rows = 0
    for raw in open_rows(path):
        names |= dict.fromkeys(raw.columns)
        tables.append(_numeric_table(path, raw, labels, rows))
        rows += len(raw)
    if not rows:
        raise InputError(f"{path}: has no rows")
    doc_id = _check_columns(path, list(names), labels)
    table = pa.concat_tables(tables, promote_options="default")
    doc_ids = pc.utf8_trim_whitespace(table[doc_id]).combine_chunks()
    _check_doc_ids(path, doc_id, doc_ids)
    probabilities, sums = _probabilities(path, table, labels)
    if not multi_label:
        wrong = np.abs(sums - 1) > SUM_TOLERANCE
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"{path}, row {row + 1}: the probabilities add up to {sums[row]:.4f}; a document with one label needs 1"
            )
        probabilities /= sums[:, np.newaxis].astype(np.float32)
    return SoftLabels(doc_ids, probabilities, path.name, file_digest(path))


def check_soft_label_ids(soft_labels: SoftLabels, doc_ids: Iterable[pa.Array]) -> None:
    """Check that every text with soft labels is a document.

    Args:
        soft_labels: their ids are checked.
        doc_ids: of all ingested documents, for example part by part.

    Raises:
        InputError: some are not; says how many, and the first.
    """
    unknown = soft_labels.doc_ids
    for ids in doc_ids:
        unknown = unknown.filter(pc.invert(pc.is_in(unknown, value_set=ids)))
        if not len(unknown):
            return
    if len(unknown):
        raise InputError(
            f"{soft_labels.source}: {len(unknown):,} of {len(soft_labels.doc_ids):,} ids are not documents here, "
            f"the first is {unknown[0].as_py()!r}; ingest them first, or remove them"
        )


def _numeric_table(path: Path, raw: RawRows, labels: Sequence[str], rows_before: int) -> pa.Table:
    """Return ids as strings, and the classes as float64, of those columns that the rows have."""
    if raw.rejects:
        reject = min(raw.rejects, key=lambda reject: reject.row)
        row = rows_before + int(np.searchsorted(raw.rows, reject.row)) + 1
        raise InputError(f"{path}, row {row}: {reject.reason}: {reject.raw_text[:80]!r}; fix it, or remove the row")
    ids = {
        name: _strings(path, name, raw.columns[name]) for name in ID_NAMES if name in raw.columns and name not in labels
    }
    columns = {name: _numbers(path, name, raw.columns[name], rows_before) for name in labels if name in raw.columns}
    return pa.table(ids | columns)


def _strings(path: Path, name: str, values: Any) -> pa.Array:
    """Return ids as ingest reads them, from a list or an Arrow array."""
    if not isinstance(values, pa.Array):
        return pa.array([None if value in (None, MISSING) else as_text(value) for value in values], pa.string())
    if not (is_string(values.type) or pa.types.is_integer(values.type)):
        raise InputError(f"{path}, column {name!r}: is {values.type}, neither text nor whole numbers")
    return values.cast(pa.string())


def _numbers(path: Path, name: str, values: Any, rows_before: int) -> pa.Array:
    """Cast numbers, or strings of numbers, to float64; an empty string is null."""
    if isinstance(values, pa.Array):
        kind = values.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            raise InputError(f"{path}, column {name!r}: is {kind}, not numbers; give probabilities from 0 to 1")
        return values.cast(pa.float64(), safe=False)
    if set(map(type, values)) <= {int, float, type(None)}:
        return pa.array(values, pa.float64())
    texts = values if all_strings(values) else [None if value in (None, MISSING) else str(value) for value in values]
    texts = pc.utf8_trim_whitespace(pa.array(texts, pa.string()))
    texts = pc.if_else(pc.equal(texts, ""), None, texts)
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid as error:
        for row, text in enumerate(texts, start=rows_before + 1):
            try:
                text.cast(pa.float64())
            except pa.ArrowInvalid:
                value = text.as_py()[:50]
                raise InputError(
                    f"{path}, row {row}, column {name!r}: {value!r} is not a number; give a probability from 0 to 1"
                ) from error
        raise


def _check_columns(path: Path, names: Sequence[str], labels: Sequence[str]) -> str:
    """Return the name of the id column, after checking that the other columns are the classes."""
    doc_id = next((name for name in ID_NAMES if name in names and name not in labels), None)
    if doc_id is None:
        raise InputError(f"{path}: no column 'doc_id' (there are: {_listed(names)}); add the document ids")
    missing = [label for label in labels if label not in names]
    if missing:
        raise InputError(f"{path}: no column for the classes {_listed(missing)}; add one for each class")
    extra = [name for name in names if name not in {doc_id, *labels}]
    if extra:
        raise InputError(f"{path}: other classes than those of the documents: {_listed(extra)}; remove these columns")
    return doc_id


def _listed(names: Sequence[str]) -> str:
    remaining = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return (", ".join(repr(name[:80]) for name in names[:LISTED]) or "none") + remaining


def _check_doc_ids(path: Path, name: str, doc_ids: pa.Array) -> None:
    missing = pc.fill_null(pc.equal(doc_ids, ""), True).to_numpy(zero_copy_only=False)
    if missing.any():
        raise InputError(f"{path}, row {missing.argmax() + 1}, column {name!r}: no id; add the id of its document")
    codes = doc_ids.dictionary_encode().indices.to_numpy()  # numbered as they first appear
    repeated = codes[1:] <= np.maximum.accumulate(codes)[:-1]
    if repeated.any():
        row = int(repeated.argmax()) + 1
        first = int((codes == codes[row]).argmax())
        raise InputError(
            f"{path}, row {row + 1}: id {doc_ids[row].as_py()!r} is already in row {first + 1}; keep one of them"
        )


def _probabilities(path: Path, table: pa.Table, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities, float32 [texts, classes], and their sum for each text, float64 [texts]."""
    probabilities = np.empty((len(table), len(labels)), dtype=np.float32)
    sums = np.zeros(len(table))
    faults: list[tuple[int, int]] = []
    for number, label in enumerate(labels):
        values = table[label].to_numpy()
        wrong = ~((values >= -ROUNDING) & (values <= 1 + ROUNDING))  # NaN is neither
        if wrong.any():
            faults.append((int(wrong.argmax()), number))
        probabilities[:, number] = np.clip(values, 0, 1)
        sums += probabilities[:, number]
    if faults:
        row, number = min(faults)
        value = table[labels[number]][row].as_py()
        fault = "no value" if value is None else f"{value} is not a probability"
        raise InputError(f"{path}, row {row + 1}, column {labels[number]!r}: {fault}; give a number from 0 to 1")
    return probabilities, sums

"""Raw rows to documents, a column at a time, and the reasons why some rows cannot be taken."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import pyarrow as pa

from pipeline.config import IngestConfig
from pipeline.ingest.columns import SPLIT_NAMES, Columns
from pipeline.ingest.html import clean_html
from pipeline.ingest.label_column import LabelParser
from pipeline.ingest.readers.base import (
    MISSING,
    RawRows,
    Reject,
    RejectReasons,
    all_strings,
    as_text,
    escape_invalid_text,
)
from pipeline.schemas import DOCUMENTS


def to_documents(
    source: str, raw: RawRows, columns: Columns, config: IngestConfig, labelling: LabelParser
) -> tuple[pa.Table, list[Reject]]:
    """Return the rows that can be documents, in the documents schema with the other columns behind, and the rest.

    Args:
        source: what they come from, unless the rows say it themselves.
        raw: the rows.
        columns: which column is what.
        config: for the handling of texts.
        labelling: for that of labels.
    """
    values = {name: _python_values(raw.columns.get(name), len(raw)) for name in columns.used}
    reasons: RejectReasons = {}
    texts = _texts([values[name] for name in columns.text], config, reasons)
    hashes = _content_hashes(texts, config.max_text_bytes, reasons)
    core = [
        [content_hash.hex() for content_hash in hashes] if columns.id is None else _ids(values[columns.id], reasons),
        texts,
        [None] * len(raw) if columns.label is None else labelling.read(values[columns.label], reasons),
        [columns.fixed_split] * len(raw) if columns.split is None else _splits(values[columns.split], reasons),
        hashes,
        raw.sources or [source] * len(raw),
        raw.rows,
    ]
    extras = {name: column for name, column in raw.columns.items() if name not in values}
    table = _table(core, extras, [number for number in range(len(raw)) if number not in reasons])
    return table, raw.rejects + [_reject(number, reason, core, values) for number, reason in sorted(reasons.items())]


def _python_values(column: Any, count: int) -> list[Any]:
    if column is None:
        return [MISSING] * count
    if not isinstance(column, pa.Array):
        return list(column)
    # As text, because Python's dates have no nanoseconds.
    return (column.cast(pa.string()) if pa.types.is_temporal(column.type) else column).to_pylist()


def _texts(columns: Sequence[list[Any]], config: IngestConfig, reasons: RejectReasons) -> list[str]:
    """Return the text of each row; one that cannot be taken is empty and has a reason."""
    if len(columns) == 1 and all_strings(columns[0]):
        texts = columns[0]
    else:
        texts = [_text(number, parts, config.join, reasons) for number, parts in enumerate(zip(*columns, strict=True))]
    return [clean_html(text) for text in texts] if config.clean_html else texts


def _text(number: int, parts: Sequence[Any], join: str, reasons: RejectReasons) -> str:
    present = [part for part in parts if part is not MISSING and part is not None]
    if not present and all(part is MISSING for part in parts):
        reasons[number] = "text_missing"
        return ""
    if not all(isinstance(part, str) for part in present):
        reasons[number] = "text_not_a_string"
        return ""
    return present[0] if len(present) == 1 else join.join(part for part in present if part.strip())


def _content_hashes(texts: list[str], max_bytes: int, reasons: RejectReasons) -> list[bytes]:
    encoded = [text.encode() for text in texts]
    for number, content in enumerate(encoded):
        if len(content) > max_bytes:
            reasons.setdefault(number, "text_too_long")
    return [blake2b(content, digest_size=16).digest() for content in encoded]


def _ids(values: list[Any], reasons: RejectReasons) -> list[str]:
    if all_strings(values):
        ids = [value.strip() for value in values]
    else:
        ids = ["" if value is None or value is MISSING else as_text(value).strip() for value in values]
    for number in (number for number, doc_id in enumerate(ids) if not doc_id):
        reasons.setdefault(number, "id_missing")
    return ids


def _splits(values: list[Any], reasons: RejectReasons) -> list[str | None]:
    names = ["" if value is None or value is MISSING else as_text(value).strip().lower() for value in values]
    for number, name in enumerate(names):
        if name and name not in SPLIT_NAMES:
            reasons.setdefault(number, "bad_split")
    return [SPLIT_NAMES.get(name) for name in names]


def _table(core: list[Any], extras: dict[str, Any], kept: list[int]) -> pa.Table:
    if len(kept) < len(core[0]):
        core = [[column[number] for number in kept] for column in core]
        take = pa.array(kept, pa.int64())
        extras = {
            name: column.take(take) if isinstance(column, pa.Array) else [column[number] for number in kept]
            for name, column in extras.items()
        }
    arrays = [pa.array(column, field.type) for column, field in zip(core, DOCUMENTS, strict=True)]
    table = pa.table(arrays, schema=DOCUMENTS)
    for name, column in extras.items():
        table = table.append_column(_free_name(name, {*table.column_names, *extras}), _extra(column))
    return table


def _free_name(name: str, taken: set[str]) -> str:
    """Return a name that no column of documents has: the user's own `text` becomes `text_given`."""
    if name not in DOCUMENTS.names:
        return name
    while name in taken:
        name = f"{name}_given"
    return name


def _extra(column: Any) -> pa.Array:
    """Pass a column through: with its type if it has one, else as text."""
    if isinstance(column, pa.Array):
        return column
    if all_strings(column):
        return pa.array(column, pa.string())
    texts = [None if value is None or value is MISSING else as_text(value) for value in column]
    return pa.array(texts, pa.string())


def _reject(number: int, reason: str, core: list[Any], values: dict[str, list[Any]]) -> Reject:
    """Return a refused row with what stood in the columns that were wanted."""
    present = (column[number] for column in values.values())
    text = "\t".join(as_text(value) for value in present if value is not None and value is not MISSING)
    return Reject(core[5][number], core[6][number], reason, escape_invalid_text(text))

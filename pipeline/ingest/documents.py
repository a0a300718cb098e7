"""Raw rows become documents, a column at a time; invalid rows are rejected with a reason."""

import math
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
from pipeline.schemas import DOCUMENTS, GROUP


def to_documents(
    source: str, raw: RawRows, columns: Columns, config: IngestConfig, label_parser: LabelParser
) -> tuple[pa.Table, list[Reject]]:
    """Return the valid rows in the schema of documents, with the extra columns behind, and the other rows as rejects.

    Args:
        source: name of their source, unless the rows name it themselves.
        raw: the rows.
        columns: the role of each column.
        config: the settings for texts.
        label_parser: reads the label column.
    """
    values = {name: _python_values(raw.columns.get(name), len(raw)) for name in columns.used}
    reasons: RejectReasons = {}
    texts = _texts([values[name] for name in columns.text], config, reasons)
    encoded = [text.encode() for text in texts]
    for row, content in enumerate(encoded):
        if len(content) > config.max_text_bytes:
            reasons.setdefault(row, "text_too_long")
    hashes = [blake2b(content, digest_size=16).digest() for content in encoded]
    ids = [digest.hex() for digest in hashes] if columns.id is None else _strings(values[columns.id])
    for row, doc_id in enumerate(ids):
        if not doc_id:
            reasons.setdefault(row, "id_missing")
    core: list[list[Any]] = [
        ids,
        texts,
        [None] * len(raw) if columns.label is None else label_parser.read(values[columns.label], reasons),
        [columns.fixed_split] * len(raw) if columns.split is None else _splits(values[columns.split], reasons),
        hashes,
        raw.sources or [source] * len(raw),
        raw.rows,
    ]
    schema = DOCUMENTS
    if columns.group is not None:
        schema = DOCUMENTS.append(GROUP)
        core.append(_groups(values[columns.group], reasons))
    # The group column is passed through too, unless it has another role or its name is that of its copy.
    stored = {*columns.text, columns.label, columns.id, columns.split, GROUP.name}
    extras = {
        name: column
        for name, column in raw.columns.items()
        if name not in values or (name == columns.group and name not in stored)
    }
    rejects = []
    for row, reason in sorted(reasons.items()):
        present = (column[row] for column in values.values())
        raw_text = "\t".join(as_text(value) for value in present if value is not None and value is not MISSING)
        rejects.append(Reject(core[5][row], core[6][row], reason, escape_invalid_text(raw_text)))
    return _table(schema, core, extras, [row for row in range(len(raw)) if row not in reasons]), rejects


def _python_values(column: Any, count: int) -> list[Any]:
    if column is None:
        return [MISSING] * count
    if not isinstance(column, pa.Array):
        return list(column)
    # As text, because Python's dates have no nanoseconds.
    return (column.cast(pa.string()) if pa.types.is_temporal(column.type) else column).to_pylist()


def _texts(columns: Sequence[list[Any]], config: IngestConfig, reasons: RejectReasons) -> list[str]:
    """Return the text of each row; "" for a rejected one."""
    if len(columns) == 1 and all_strings(columns[0]):
        texts = columns[0]
    else:
        texts = [_text(row, values, config.join, reasons) for row, values in enumerate(zip(*columns, strict=True))]
    return [clean_html(text) for text in texts] if config.clean_html else texts


def _text(row: int, values: Sequence[Any], join: str, reasons: RejectReasons) -> str:
    present = [value for value in values if value is not MISSING and value is not None]
    if not present and all(value is MISSING for value in values):
        reasons[row] = "text_missing"
        return ""
    if not all(isinstance(value, str) for value in present):
        reasons[row] = "text_not_a_string"
        return ""
    return present[0] if len(present) == 1 else join.join(value for value in present if value.strip())


def _strings(values: list[Any]) -> list[str]:
    """Return values as text without white space around it; "" for null and missing ones."""
    if all_strings(values):
        return [value.strip() for value in values]
    return ["" if value is None or value is MISSING else as_text(value).strip() for value in values]


def _splits(values: list[Any], reasons: RejectReasons) -> list[str | None]:
    names = [name.lower() for name in _strings(values)]
    for row, name in enumerate(names):
        if name and name not in SPLIT_NAMES:
            reasons.setdefault(row, "bad_split")
    return [SPLIT_NAMES.get(name) for name in names]


def _groups(values: list[Any], reasons: RejectReasons) -> list[str]:
    """Return the group of each row as text.

    Data frames hold whole numbers beside gaps as floats: 17.0 is the group 17, and NaN is no group.
    """

    def plain(value: Any) -> Any:
        if not isinstance(value, float) or math.isinf(value):
            return value
        return None if math.isnan(value) else int(value) if value.is_integer() else value

    groups = _strings(list(map(plain, values)))
    for row, group in enumerate(groups):
        if not group:
            reasons.setdefault(row, "group_missing")
    return groups


def _table(schema: pa.Schema, core: list[Any], extras: dict[str, Any], valid: list[int]) -> pa.Table:
    """Return the valid rows as a table; an extra column keeps its Arrow type, or becomes text."""
    if len(valid) < len(core[0]):
        core = [[column[row] for row in valid] for column in core]
        extras = {
            name: column.take(pa.array(valid, pa.int64()))
            if isinstance(column, pa.Array)
            else [column[row] for row in valid]
            for name, column in extras.items()
        }
    arrays = [pa.array(column, field.type) for column, field in zip(core, schema, strict=True)]
    table = pa.table(arrays, schema=schema)
    for name, column in extras.items():
        free_name = name
        if name in schema.names:  # the user's own `text` becomes `text_given`
            while free_name in {*table.column_names, *extras}:
                free_name = f"{free_name}_given"
        if isinstance(column, pa.Array):
            array = column
        elif all_strings(column):
            array = pa.array(column, pa.string())
        else:
            texts = [None if value is None or value is MISSING else as_text(value) for value in column]
            array = pa.array(texts, pa.string())
        table = table.append_column(free_name, array)
    return table

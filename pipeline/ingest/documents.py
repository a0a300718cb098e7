"""Raw rows to documents: which column is what, and which values cannot be taken."""

import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.ingest.jsonlines import as_text
from pipeline.ingest.rows import MISSING, RawRows, Reject, printable
from pipeline.schemas import DOCUMENTS, SPLITS

SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "validation", "val": "validation", "dev": "validation"}
TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->", re.DOTALL)
LOST_AMPERSAND = re.compile(r"(?<![&\w])#(\d{2,5});")  # `#39;`, where a careless tool ate the `&`


@dataclass(frozen=True)
class Columns:
    """Which columns of a source are text, label, id and split; a fixed split holds for every row."""

    text: Sequence[str]
    label: str | None = None
    id: str | None = None
    split: str | None = None
    fixed_split: str | None = None

    @property
    def used(self) -> set[str]:
        return {*self.text, *(name for name in (self.label, self.id, self.split) if name)}


def find_columns(source: str, names: Iterable[str], config: IngestConfig) -> Columns:
    """Return what the settings mean for a source with these columns.

    Raises:
        InputError: a named column is not there.
    """
    there = list(names)
    fixed = SPLIT_NAMES.get(config.split or "")
    named = {"--label": config.label, "--id": config.id, "--split": None if fixed else config.split}
    wanted = [("--text", name) for name in config.text] + [(option, name) for option, name in named.items() if name]
    for option, name in wanted:
        if name not in there:
            shown = ", ".join(there[:30]) or "none"
            raise InputError(f"{source}: no column {name!r} (there are: {shown}); choose one with {option}")
    return Columns(
        text=config.text,
        label=config.label or ("label" if "label" in there and "label" not in config.text else None),
        id=config.id or next((name for name in ("id", "doc_id") if name in there and name not in config.text), None),
        split=named["--split"],
        fixed_split=fixed,
    )


@dataclass
class _Document:
    text: str
    doc_id: str
    label: str | None
    split: str | None
    content_hash: bytes


class _RefusedError(Exception):
    """A row that cannot become a document; the message is the reason."""


def to_documents(source: str, raw: RawRows, columns: Columns, config: IngestConfig) -> tuple[pa.Table, list[Reject]]:
    """Return the rows that can be documents, in the documents schema with the other columns behind, and the rest."""
    documents: list[_Document] = []
    kept: list[int] = []
    rejects = list(raw.rejects)
    sources = raw.sources or [source] * len(raw)
    values = {name: raw.columns.get(name, [MISSING] * len(raw)) for name in columns.used}
    for number in range(len(raw)):
        row = {name: column[number] for name, column in values.items()}
        try:
            documents.append(_document(row, columns, config))
            kept.append(number)
        except _RefusedError as refusal:
            text = "\t".join(as_text(value) for value in row.values() if value not in (None, MISSING))
            rejects.append(Reject(sources[number], raw.rows[number], str(refusal), printable(text)))
    core = [
        [document.doc_id for document in documents],
        [document.text for document in documents],
        [document.label for document in documents],
        [document.split for document in documents],
        [document.content_hash for document in documents],
        [sources[number] for number in kept],
        [raw.rows[number] for number in kept],
    ]
    table = pa.table([pa.array(column, field.type) for column, field in zip(core, DOCUMENTS, strict=True)], DOCUMENTS)
    for name in raw.columns.keys() - columns.used:
        table = _with_extra(table, name, [raw.columns[name][number] for number in kept], raw.types.get(name))
    return table, rejects


def _with_extra(table: pa.Table, name: str, values: list[Any], kind: pa.DataType | None) -> pa.Table:
    """Pass another column through, with its Arrow type if it has one, else as text."""
    if kind is None:
        values = [None if value is None or value is MISSING else as_text(value) for value in values]
        kind = pa.string()
    taken = name in DOCUMENTS.names
    return table.append_column(f"{name}_given" if taken else name, pa.array(values, kind))


def _document(row: dict[str, Any], columns: Columns, config: IngestConfig) -> _Document:
    text = _text([row[name] for name in columns.text], config)
    encoded = text.encode()
    if len(encoded) > config.max_text_bytes:
        raise _RefusedError("text_too_long")
    content_hash = hashlib.blake2b(encoded, digest_size=16).digest()
    return _Document(
        text=text,
        doc_id=content_hash.hex() if columns.id is None else _id(row[columns.id]),
        label=None if columns.label is None else _label(row[columns.label]),
        split=columns.fixed_split if columns.split is None else _split(row[columns.split]),
        content_hash=content_hash,
    )


def _text(parts: list[Any], config: IngestConfig) -> str:
    if all(part is MISSING for part in parts):
        raise _RefusedError("text_missing")
    present = [part for part in parts if part is not MISSING and part is not None]
    if not all(isinstance(part, str) for part in present):
        raise _RefusedError("text_not_a_string")
    text = present[0] if len(present) == 1 else config.join.join(part for part in present if part.strip())
    return clean_html(text) if config.clean_html else text


def clean_html(text: str) -> str:
    """Return text without HTML tags and with its entities decoded; "<3" and "a < b" are no tags."""
    repaired = LOST_AMPERSAND.sub(r"&#\1;", text)
    return TAG.sub(" ", html.unescape(html.unescape(repaired)))  # twice: `&amp;lt;b&amp;gt;` is common


def _id(value: Any) -> str:
    text = "" if value is None or value is MISSING else str(value).strip()
    if not text:
        raise _RefusedError("id_missing")
    return text


def _label(value: Any) -> str | None:
    if value is None or value is MISSING:
        return None
    if isinstance(value, list | dict):
        raise _RefusedError("label_not_a_value")
    return as_text(value).strip() or None


def _split(value: Any) -> str | None:
    text = "" if value is None or value is MISSING else str(value).strip().lower()
    if text and text not in SPLIT_NAMES:
        raise _RefusedError("bad_split")
    return SPLIT_NAMES.get(text)

"""The manifest of a batch: read back from the parts as they were written, so that it says what is there."""

import datetime
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.files import file_digest, value_digest
from pipeline.ingest.sources import Source
from pipeline.schemas import DOCUMENTS, split_labels

MAX_CLASSES = 10_000  # a column with more values is no label, and would not fit in a manifest


def recorded_settings(config: IngestConfig) -> dict[str, Any]:
    """Return the settings as a fingerprint and a manifest keep them.

    Without the newest where it is not used, so that a batch of an earlier version is known to be the same.
    """
    return config.model_dump(mode="json", exclude={"label_separator"} if config.label_separator is None else None)


def count_parts(parts: Sequence[Path], *, multi_label: bool = False) -> dict[str, Any]:
    """Return counts of documents, by class and by given split, and the names of the passed-through columns.

    Args:
        parts: of the documents.
        several: whether a document can have several labels; it counts in each of its classes.

    Raises:
        InputError: there are too many labels for a classifier.
    """
    documents = empty = 0
    by_number: Counter[int] = Counter()  # documents with so many labels
    labels: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    names: set[str] = set()
    for path in parts:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            names.update(file.schema_arrow.names)
            for batch in file.iter_batches(columns=["text", "label", "split"], use_threads=False):
                documents += len(batch)
                empty += pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(batch["text"])), 0)).as_py() or 0
                for label, count in _value_counts(batch["label"]).items():
                    classes = split_labels(label) if multi_label else [label]
                    by_number[len(classes)] += count
                    labels.update(dict.fromkeys(classes, count))
                splits.update(_value_counts(batch["split"]))
        if len(labels) > MAX_CLASSES:
            raise InputError(
                f"the label column has more than {MAX_CLASSES:,} different values, "
                "so it is no label; choose another with --label"
            )
    labelled = by_number.total()
    counts = {"documents": documents, "labelled": labelled, "unlabelled": documents - labelled, "empty": empty}
    if multi_label:
        counts |= {"several_labels": labelled - by_number[0] - by_number[1], "no_class": by_number[0]}
    return {
        "multi_label": multi_label,
        "counts": counts,
        "labels": dict(sorted(labels.items())),
        "splits": dict(sorted(splits.items())),
        "columns": sorted(names - set(DOCUMENTS.names)),
    }


def _value_counts(column: pa.Array) -> dict[str, int]:
    values, counts = pc.value_counts(column.drop_null()).flatten()
    return dict(zip(values.to_pylist(), counts.to_pylist(), strict=True))


def build_manifest(
    batch_id: str,
    fingerprint: str,
    config: IngestConfig,
    sources: Sequence[tuple[Source, list[tuple[str, str]]]],
    counted: dict[str, Any],
    reject_reasons: dict[str, int],
    parts: Sequence[Path],
    rejects_parts: Sequence[Path],
) -> dict[str, Any]:
    """Return the manifest.

    Args:
        batch_id: name of the batch.
        fingerprint: digest of the sources and the settings.
        config: the settings.
        sources: each with the digests of its files.
        counted: what `count_parts` says, with the counts of all rows.
        reject_reasons: refused rows by reason.
        parts: of the documents.
        rejects_parts: of the rejects.
    """
    return {
        "batch": batch_id,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "config": recorded_settings(config),
        "sources": [_described(source, digests) for source, digests in sources],
        **counted,
        "reject_reasons": dict(sorted(reject_reasons.items())),
        "parts": [_sealed(path) for path in parts],
        "rejects_parts": [_sealed(path) for path in rejects_parts],
    }


def _described(source: Source, digests: list[tuple[str, str]]) -> dict[str, Any]:
    one = source.format != "folder"
    return {
        "path": source.name,
        "files": len(source.files),
        "bytes": source.bytes,
        "sha256": digests[0][1] if one else value_digest(digests),  # of a folder: of its files' names and digests
    }


def _sealed(path: Path) -> dict[str, Any]:
    return {
        "file": path.name,
        "rows": pq.read_metadata(path).num_rows,
        "bytes": path.stat().st_size,
        "sha256": file_digest(path),
    }

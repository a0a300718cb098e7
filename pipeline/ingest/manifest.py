"""The manifest of a batch, counted from the parts as they were written."""

import datetime
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.files import file_digest, value_digest
from pipeline.ingest.parts import RejectWriter
from pipeline.ingest.sources import Source
from pipeline.schemas import DOCUMENTS, GROUP, split_labels

MAX_CLASSES = 10_000  # a column with more values is not a label, and would not fit in a manifest


def recorded_settings(config: IngestConfig) -> dict[str, Any]:
    """Return the settings as manifests record them and fingerprints hash them.

    `label_separator` and `group` are left out if unused: fingerprints from before these settings stay valid.
    """
    unused = {name for name in ("label_separator", "group") if getattr(config, name) is None}
    return config.model_dump(mode="json", exclude=unused)


def count_parts(parts: Sequence[Path], *, multi_label: bool, grouped: bool) -> dict[str, Any]:
    """Return counts of documents in total, by class and by given split, and the names of the extra columns.

    Args:
        parts: of the documents.
        multi_label: whether a document can have several labels; it counts in each of its classes.
        grouped: whether documents have a group; then the groups are counted.

    Raises:
        InputError: there are more than `MAX_CLASSES` labels.
    """
    documents = empty = 0
    by_number: Counter[int] = Counter()  # documents by their number of labels
    labels: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    names: set[str] = set()
    groups = [np.empty(0, np.uint64)]  # digests: the names of a million groups would not be small
    group = [GROUP.name] if grouped else []
    for path in parts:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            names.update(file.schema_arrow.names)
            for batch in file.iter_batches(columns=["text", "label", "split", *group], use_threads=False):
                documents += len(batch)
                empty += pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(batch["text"])), 0)).as_py() or 0
                for label, count in _value_counts(batch["label"]).items():
                    classes = split_labels(label) if multi_label else [label]
                    by_number[len(classes)] += count
                    labels.update(dict.fromkeys(classes, count))
                splits.update(_value_counts(batch["split"]))
                if grouped:
                    values = pc.unique(batch[GROUP.name]).to_pylist()
                    digests = b"".join(blake2b(value.encode(), digest_size=8).digest() for value in values)
                    groups.append(np.frombuffer(digests, np.uint64))
        if len(labels) > MAX_CLASSES:
            raise InputError(
                f"the label column has more than {MAX_CLASSES:,} different values, "
                "so it is no label; choose another with --label"
            )
    labelled = by_number.total()
    counts = {"documents": documents, "labelled": labelled, "unlabelled": documents - labelled, "empty": empty}
    if multi_label:
        counts |= {"several_labels": labelled - by_number[0] - by_number[1], "no_class": by_number[0]}
    if grouped:
        counts["groups"] = len(np.unique(np.concatenate(groups)))
    return {
        "multi_label": multi_label,
        "counts": counts,
        "labels": dict(sorted(labels.items())),
        "splits": dict(sorted(splits.items())),
        "columns": sorted(names.difference(DOCUMENTS.names, group)),
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
    parts: Sequence[Path],
    rejects: RejectWriter,
) -> dict[str, Any]:
    """Return the manifest of a batch.

    Args:
        batch_id: name of the batch.
        fingerprint: digest of the sources and the settings.
        config: the settings.
        sources: each with the digests of its files.
        counted: the result of `count_parts`, with the counts of all rows.
        parts: of the documents.
        rejects: the rejected rows.
    """
    return {
        "batch": batch_id,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "config": recorded_settings(config),
        "sources": [
            {
                "path": source.name,
                "files": len(source.files),
                "bytes": source.bytes,
                # Of a folder: of the names and digests of its files.
                "sha256": value_digest(digests) if source.is_folder else digests[0][1],
            }
            for source, digests in sources
        ],
        **counted,
        "reject_reasons": dict(sorted(rejects.reasons.items())),
        "parts": [_sealed(path) for path in parts],
        "rejects_parts": [_sealed(path) for path in rejects.paths],
    }


def _sealed(path: Path) -> dict[str, Any]:
    return {
        "file": path.name,
        "rows": pq.read_metadata(path).num_rows,
        "bytes": path.stat().st_size,
        "sha256": file_digest(path),
    }

"""Labels on disk: parts that say what decided their content, and the manifest that makes them exist.

Same fingerprint: nothing to do. So a run killed at any moment is finished by running it again, at the
cost of one part.
"""

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bundle import Bundle
from pipeline.config import ScoringConfig
from pipeline.errors import AccountingError, BatchError
from pipeline.files import atomic_path, file_digest, read_json, value_digest, write_json
from pipeline.workspace import Batch, Workspace

METADATA_KEY = b"nightlabel"


@dataclass(frozen=True)
class PartReport:
    """What became of one part; `skipped` if its labels were there already."""

    file: str
    rows: int
    counts: dict[str, int]  # by status
    labels: dict[str, int]
    fingerprint: str
    skipped: bool = False
    tokens: int = 0
    seconds: float = 0.0
    padding_share: float = 0.0
    truncated_texts: int = 0
    unknown_tokens: int = 0


@dataclass(frozen=True)
class BatchReport:
    """What became of a batch; the counts add up to its documents."""

    batch: str
    model: str
    provider: str
    parts: Sequence[PartReport]
    path: Path
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """Rows by status."""
        return _total(part.counts for part in self.parts)

    @property
    def labels(self) -> dict[str, int]:
        """Rows by label."""
        return dict(sorted(_total(part.labels for part in self.parts).items()))

    @property
    def skipped(self) -> bool:
        return all(part.skipped for part in self.parts)

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def rows_per_second(self) -> float:
        scored = [part for part in self.parts if not part.skipped]
        return sum(part.rows for part in scored) / max(sum(part.seconds for part in scored), 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return sum(part.tokens for part in self.parts) / max(sum(part.seconds for part in self.parts), 1e-9)


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def part_fingerprint(bundle: Bundle, config: ScoringConfig, part: dict[str, Any]) -> str:
    """Return what decides the content of a labels part: the model, the settings that matter, the input."""
    return value_digest(
        {
            "model": bundle.title,
            "digest": bundle.digest,
            "review_below": config.review_below,
            "input": part["sha256"],
        }
    )


def existing_part(folder: Path, part: dict[str, Any], expected: str) -> PartReport | None:
    """Return the report of a labels part that is there with the right fingerprint, else None."""
    path = folder / part["file"]
    if not path.exists():
        return None
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return None  # damaged: written again
    facts = json.loads((metadata.metadata or {}).get(METADATA_KEY, b"{}"))
    if facts.get("fingerprint") != expected or metadata.num_rows != part["rows"]:
        return None
    return PartReport(part["file"], part["rows"], facts["counts"], facts["labels"], expected, skipped=True)


def write_part(path: Path, labels: pa.Table, report: PartReport) -> None:
    if sum(report.counts.values()) != report.rows:
        raise AccountingError(f"{path}: {report.rows} documents became {report.counts}")
    facts = {"fingerprint": report.fingerprint, "counts": report.counts, "labels": report.labels}
    metadata = {METADATA_KEY: json.dumps(facts, sort_keys=True)}
    with atomic_path(path) as temporary:
        pq.write_table(labels.replace_schema_metadata(metadata), temporary, compression="zstd")


def commit_labels(batch: Batch, bundle: Bundle, config: ScoringConfig, report: BatchReport) -> None:
    """Check that every document is accounted for, then write the manifest.

    Raises:
        AccountingError: documents are not scored + review + empty.
    """
    if sum(report.counts.values()) != batch.rows:
        raise AccountingError(f"batch {batch.id}: {batch.rows} documents became {report.counts}")
    for stray in set(report.path.glob("*.parquet")) - {report.path / part.file for part in report.parts}:
        stray.unlink()  # of an earlier, longer content of this batch
    if not (report.skipped and is_labelled_at(report.path, batch)):
        write_json(report.path / "manifest.json", _manifest(batch, bundle, config, report))


def _manifest(batch: Batch, bundle: Bundle, config: ScoringConfig, report: BatchReport) -> dict[str, Any]:
    scored = [part for part in report.parts if not part.skipped]
    return {
        "batch": report.batch,
        "documents_fingerprint": batch.manifest["fingerprint"],
        "model": report.model,
        "model_digest": bundle.digest,
        "tokenizer_digest": bundle.settings["tokenizer_digest"],
        "classes": bundle.labels,
        "config": config.model_dump(mode="json"),
        "provider": report.provider,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "counts": {"documents": report.rows, **report.counts},
        "labels": report.labels,
        "parts": [
            {
                "file": part.file,
                "rows": part.rows,
                "fingerprint": part.fingerprint,
                "sha256": file_digest(report.path / part.file),
            }
            for part in report.parts
        ],
        "parts_scored": len(scored),
        "parts_skipped": len(report.parts) - len(scored),
        "seconds": round(report.seconds, 3),
        "rows_per_second": round(report.rows_per_second, 1),
        "tokens_per_second": round(report.tokens_per_second, 1),
        "truncated_texts": sum(part.truncated_texts for part in scored),
        "unknown_tokens": sum(part.unknown_tokens for part in scored),
        "tokens": sum(part.tokens for part in scored),
    }


def unlabelled(workspace: Workspace, model: str) -> list[Batch]:
    """Return the batches that a model has not labelled yet.

    Raises:
        BatchError: there are no batches at all.
    """
    batches = workspace.batches()
    if not batches:
        raise BatchError(f"no documents in {workspace.root} yet: start with nightlabel ingest FILE")
    return [batch for batch in batches if not is_labelled(workspace, batch, model)]


def is_labelled(workspace: Workspace, batch: Batch, model: str) -> bool:
    """Return whether a model, in whatever version, has labelled all of a batch as it is now."""
    return is_labelled_at(workspace.labels_of(model, batch.id), batch)


def is_labelled_at(folder: Path, batch: Batch) -> bool:
    """Return whether a labels folder is whole, and of this content of the batch."""
    if not (folder / "manifest.json").exists():
        return False
    try:
        manifest = read_json(folder / "manifest.json")
    except ValueError:
        return False
    same_documents = manifest.get("documents_fingerprint") == batch.manifest["fingerprint"]
    return same_documents and all((folder / part["file"]).exists() for part in batch.manifest["parts"])

"""Labels on disk: parts with the fingerprint of all that determines their content, and the manifest, written last.

A part with the same fingerprint is skipped, so a killed run is finished by running it again, at the cost of one part.
"""

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ScoringConfig
from pipeline.errors import AccountingError, BatchError
from pipeline.files import atomic_path, file_digest, read_json, value_digest, write_json
from pipeline.metrics.outliers import Outlier
from pipeline.metrics.profile import Profile
from pipeline.metrics.selective import REVIEW_BELOW, SelectivePolicy, SelectiveResult
from pipeline.models.bundle import Bundle
from pipeline.scoring.report import BatchReport, PartReport
from pipeline.workspace import Batch, Workspace

METADATA_KEY = b"nightlabel"
# What manifests have said since the first target precision; programs of users read it.
STORED_VERDICTS = {"met": "kept", "within noise": "missed", "violated": "broken", "": ""}


def read_documents(path: Path, part: dict[str, Any]) -> pa.Table:
    """Return ids, texts and hashes of a documents part, checked against its entry in the batch's manifest.

    Raises:
        BatchError: the file is missing or changed.
    """
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        raise BatchError(
            f"{path} is not the file that was committed (missing, truncated or changed); "
            "ingest the batch again with --replace"
        )
    return pq.read_table(pa.BufferReader(data), columns=["doc_id", "text", "content_hash"], use_threads=False)


def part_fingerprint(
    bundle: Bundle, config: ScoringConfig, variant: str, part: dict[str, Any], policy: SelectivePolicy | None
) -> str:
    """Return a digest of all that determines the content of a labels part: the model, some settings, the input."""
    inputs = {
        "model": bundle.title,
        "digest": bundle.digest,
        # Without a policy the default stands here in numbers, as in the fingerprints of earlier versions.
        "review_below": REVIEW_BELOW if policy is None and config.review_below is None else config.review_below,
        "input": part["sha256"],
    }
    if policy is not None:
        inputs["thresholds"] = policy.thresholds.tolist()
    if config.evidence:
        inputs["evidence"] = True
    # Left out for fp32, so that parts of earlier versions, without variants, stay valid.
    return value_digest(inputs if variant == "fp32" else {**inputs, "precision": variant})


def existing_part(folder: Path, part: dict[str, Any], fingerprint: str) -> PartReport | None:
    """Return the report of a labels part that exists with this fingerprint, else None."""
    path = folder / part["file"]
    if not path.exists():
        return None
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return None  # damaged: it is written again
    facts = _facts(metadata)
    if facts.get("fingerprint") != fingerprint or metadata.num_rows != part["rows"]:
        return None
    return PartReport(
        file=part["file"],
        rows=part["rows"],
        counts=facts["counts"],
        labels=facts["labels"],
        fingerprint=fingerprint,
        skipped=True,
        profile=Profile.from_json(facts["health"]) if facts.get("health") else None,
        outliers=_outliers(facts),
    )


def read_outliers(path: Path) -> list[Outlier] | None:
    """Return the outliers of a labels part; None for an old part without them."""
    return _outliers(_facts(pq.read_metadata(path)))


def _facts(metadata: pq.FileMetaData) -> dict[str, Any]:
    return json.loads((metadata.metadata or {}).get(METADATA_KEY, b"{}"))


def _outliers(facts: dict[str, Any]) -> list[Outlier] | None:
    rows = facts.get("strange")
    return None if rows is None else [Outlier.from_json(row) for row in rows]


def write_part(path: Path, labels: pa.Table, report: PartReport) -> None:
    """Write a labels part, with its counts and fingerprint in the file's metadata.

    Raises:
        AccountingError: the counts do not add up to the part's rows.
    """
    if sum(report.counts.values()) != report.rows:
        raise AccountingError(f"{path}: {report.rows} documents became {report.counts}")
    facts = {
        "fingerprint": report.fingerprint,
        "counts": report.counts,
        "labels": report.labels,
        "health": report.profile.as_json() if report.profile else None,
        "strange": None if report.outliers is None else [outlier.as_json() for outlier in report.outliers],
    }
    metadata = {METADATA_KEY: json.dumps(facts, sort_keys=True)}
    with atomic_path(path) as temporary:
        pq.write_table(labels.replace_schema_metadata(metadata), temporary, compression="zstd")


def commit_labels(
    batch: Batch, bundle: Bundle, config: ScoringConfig, report: BatchReport, facts: Mapping[str, Any]
) -> None:
    """Check that every document is accounted for, then write the manifest, unless all labels existed already.

    Args:
        batch: the documents.
        bundle: the model that labelled them.
        config: the settings of this run.
        report: of all parts.
        facts: further entries of the manifest, for example whether the labels are published.

    Raises:
        AccountingError: documents are not scored + review + empty.
    """
    if sum(report.counts.values()) != batch.rows:
        raise AccountingError(f"batch {batch.id}: {batch.rows} documents became {report.counts}")
    for surplus in set(report.path.glob("*.parquet")) - {report.path / part.file for part in report.parts}:
        surplus.unlink()  # of an earlier, longer content of this batch
    if not (report.skipped and is_labelled_at(report.path, batch)):
        write_json(report.path / "manifest.json", {**_manifest(batch, bundle, config, report), **facts})


def _manifest(batch: Batch, bundle: Bundle, config: ScoringConfig, report: BatchReport) -> dict[str, Any]:
    scored = report.scored_parts
    return {
        "batch": report.batch,
        "documents_fingerprint": batch.manifest["fingerprint"],
        "model": report.model,
        "model_digest": bundle.digest,
        "tokenizer_digest": bundle.settings["tokenizer_digest"],
        "classes": bundle.labels,
        "config": config.model_dump(mode="json"),
        "provider": report.device.provider,
        "device": report.device.name,
        "driver": report.device.driver,
        "promise": _policy_facts(bundle.policy(config.target_precision), bundle),
        "precision": report.variant.variant,
        "precision_reason": report.variant.reason,
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
        "padding_share": round(report.padding_share, 4),
        "stage_shares": {stage: round(share, 4) for stage, share in report.stage_shares.items()},
        "truncated_texts": sum(part.truncated_texts for part in scored),
        "unknown_tokens": sum(part.unknown_tokens for part in scored),
        "tokens": sum(part.tokens for part in scored),
    }


def _policy_facts(policy: SelectivePolicy | None, bundle: Bundle) -> dict[str, Any] | None:
    """Return the target of a selective policy and its results on the validation and test texts."""
    if policy is None or bundle.predictions is None:
        return None
    validation, test = (SelectiveResult.of(policy, bundle.predictions[split]) for split in ("validation", "test"))
    return {
        "target": policy.target,
        "per": policy.per,
        "validation": asdict(validation),
        "test": asdict(test),
        "on_test": STORED_VERDICTS[test.verdict(policy.target)],
        "kept_back": [bundle.labels[number] for number in policy.abstained_classes],
    }


def unlabelled(workspace: Workspace, model: str) -> list[Batch]:
    """Return the batches that a model has not labelled yet.

    Raises:
        BatchError: the workspace has no batches.
    """
    batches = workspace.batches()
    if not batches:
        raise BatchError(f"no documents in {workspace.root} yet: start with nightlabel ingest FILE")
    return [batch for batch in batches if not is_labelled(workspace, batch, model)]


def is_labelled(workspace: Workspace, batch: Batch, model: str) -> bool:
    """Return whether a model, in any version, has labelled a batch with the content it has now."""
    return is_labelled_at(workspace.labels_dir(model, batch.id), batch)


def is_labelled_at(folder: Path, batch: Batch) -> bool:
    """Return whether a labels folder is complete, and of the batch's present content."""
    if not (folder / "manifest.json").exists():
        return False
    try:
        manifest = read_json(folder / "manifest.json")
    except ValueError:
        return False
    same_documents = manifest.get("documents_fingerprint") == batch.manifest["fingerprint"]
    return same_documents and all((folder / part["file"]).exists() for part in batch.manifest["parts"])


@dataclass(frozen=True)
class LabelledBatch:
    """The labels of a batch by a model, complete on disk."""

    id: str
    path: Path
    manifest: dict[str, Any]

    @property
    def published(self) -> bool:
        """Whether they may be read, that is, are not held; old labels without this entry are published."""
        return bool(self.manifest.get("published", True))

    @property
    def parts(self) -> list[Path]:
        """The labels files, in order."""
        return [self.path / part["file"] for part in self.manifest["parts"]]

    @property
    def rows(self) -> int:
        """How many documents have a row."""
        return int(self.manifest["counts"]["documents"])

    @property
    def profile(self) -> Profile | None:
        """The data profile of the batch; None for old labels without one."""
        value = self.manifest.get("health")
        return Profile.from_json(value) if value else None


def labelled_batches(workspace: Workspace, model: str) -> list[LabelledBatch]:
    """Return the labels of a model, by batch; those with a damaged manifest are left out."""
    batches = []
    for path in workspace.labels_manifests(model):
        try:
            batches.append(LabelledBatch(path.parent.name.removeprefix("batch="), path.parent, read_json(path)))
        except ValueError:
            continue
    return batches

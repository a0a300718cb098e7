"""The report of an ingest, and the message for too many rejected rows."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.ingest.parts import RejectWriter
from pipeline.workspace import Batch

HINTS = {
    "invalid_encoding": "try --encoding cp1252 or fix the file",
    "id_conflict": "the id column is not unique: choose another --id",
    "id_missing": "choose another --id",
    "text_missing": "choose another --text",
    "group_missing": "fill in the group of these rows, choose another --group, or allow more with --max-reject-rate",
    "label_with_separator": "several labels are stored joined by '|', so none can hold it: "
    "rename them, or pass --label-separator '|' if it joins labels in your file",
    "not_json": "each line must be one JSON object (jq -c '.[]' makes lines of an array)",
    "not_an_object": "each line must be one JSON object (jq -c '.[]' makes lines of an array)",
}


@dataclass(frozen=True)
class IngestReport:
    """Counts of the rows of an ingest: rows_read = documents + duplicates + rejects."""

    batch_id: str
    rows_read: int
    documents: int
    duplicates: int
    rejects: int
    labelled: int
    unlabelled: int
    empty: int
    reject_reasons: dict[str, int]
    labels: dict[str, int]
    path: Path
    already_ingested: bool = False
    multi_label: bool = False  # whether documents can have several labels; then `labels` counts in each class
    several_labels: int = 0  # documents with more than one class
    no_class: int = 0  # documents labelled with none of the classes
    splits: dict[str, int] = field(default_factory=dict)  # counts by given split
    columns: list[str] = field(default_factory=list)  # extra columns of the user, passed through
    group: str | None = None  # the group column, if any
    groups: int = 0  # different values in it
    sources: list[str] = field(default_factory=list)
    parts: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, batch: Batch, *, already_ingested: bool, seconds: float) -> "IngestReport":
        """Read the report from the manifest of a batch."""
        manifest = batch.manifest
        return cls(
            batch_id=batch.id,
            **manifest["counts"],
            reject_reasons=manifest["reject_reasons"],
            labels=manifest["labels"],
            path=batch.path,
            already_ingested=already_ingested,
            multi_label=batch.multi_label,
            splits=manifest["splits"],
            columns=manifest["columns"],
            group=batch.group_column,
            sources=[source["path"] for source in manifest["sources"]],
            parts=len(manifest["parts"]),
            seconds=seconds,
        )


def reject_summary(rejects: RejectWriter) -> str:
    """Return the most frequent reasons, each with its count and the place of its first row."""
    by_count = sorted(rejects.reasons.items(), key=lambda item: -item[1])
    return ", ".join(
        f"{count:,} {reason} (first at {rejects.first[reason].source}:{rejects.first[reason].row})"
        for reason, count in by_count[:5]
    )


def reject_rate_message(rejects: RejectWriter, rows: int, limit: float) -> str:
    """Return one line: how many rows are rejected, the reasons, the first row of each, and what to do."""
    most_frequent = max(rejects.reasons, key=lambda reason: rejects.reasons[reason])
    advice = HINTS.get(most_frequent, "fix the rows, or allow more with --max-reject-rate")
    share = f"{rejects.count:,} of {rows:,} rows refused ({rejects.count / rows:.1%}, at most {limit:.1%} allowed)"
    return f"{share}: {reject_summary(rejects)}; nothing was written: {advice}"

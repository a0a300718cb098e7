"""The report of an ingest: what became of the rows that were read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.reports.markdown import table

if TYPE_CHECKING:
    from pipeline.ingest import IngestReport


def ingest_report(report: IngestReport) -> str:
    """Return what became of the rows of an ingest; the counts add up."""
    parts = [f"## Batch {report.batch_id}: {report.documents:,} documents"]
    if report.already_ingested:
        parts.append("Already ingested from the same sources with the same settings: nothing was done.")
    rows: list[tuple[object, ...]] = [
        ("documents", report.documents),
        ("duplicates (same id, same text)", report.duplicates),
        ("refused", report.rejects),
        ("**rows read**", report.rows_read),
    ]
    parts.append(table(["rows", "count"], rows))
    if report.multi_label:
        single = report.labelled - report.several_labels - report.no_class
        parts.append(
            f"Of the documents {report.labelled:,} are labelled: {single:,} with one of {len(report.labels):,} "
            f"classes, {report.several_labels:,} with several, {report.no_class:,} with none of them. "
            f"{report.unlabelled:,} are not labelled, {report.empty:,} are empty."
        )
    else:
        parts.append(
            f"Of the documents {report.labelled:,} have a label, {report.unlabelled:,} have none, "
            f"{report.empty:,} are empty."
        )
    if report.group:
        parts.append(f"Groups (column `{report.group}`): {report.groups:,}. A group stays in one split.")
    if report.reject_reasons:
        parts.append(table(["refused because", "rows"], report.reject_reasons.items()))
    return "\n\n".join(parts)

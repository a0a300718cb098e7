"""Reports as Markdown: one text for the run's page in the UI, the terminal, and a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.reports.markdown import first_words, percent, table
from pipeline.files import read_json
from pipeline.scoring.explanations import format_evidence
from pipeline.workspace import Workspace

if TYPE_CHECKING:  # these bring PyTorch along, which an ingest does not need
    from pipeline.scoring.report import BatchReport

WORST_CLASSES = 12  # a table of 150 classes is read by nobody
EVIDENCE_NOTE = "Carried by: what a word, or two that stand together, adds to the logit of the label."


def labels_report(reports: Sequence[BatchReport], workspace: Workspace) -> str:
    """Return what became of the documents of some batches; they add up."""
    from flows.reports.selective import target_precision_line

    manifests = [read_json(report.path / "manifest.json") for report in reports]
    rows: list[tuple[object, ...]] = [
        (
            report.batch,
            report.rows,
            *(report.counts.get(status, 0) for status in ("scored", "review", "empty")),
            "yes" if manifest.get("published", True) else "**held**",
            "already labelled" if report.skipped else f"{report.rows_per_second:,.0f} rows/s",
        )
        for report, manifest in zip(reports, manifests, strict=True)
    ]
    versions = ", ".join(dict.fromkeys(report.model for report in reports))
    parts = [
        f"## Labels by {versions} on {'the GPU' if reports[0].device.is_gpu else 'the CPU'}",
        table(["batch", "documents", "scored", "review", "empty", "published", "speed"], rows),
        _how_it_ran(reports),
        target_precision_line(manifests[-1].get("promise")),
        _label_mix(reports),
        *(drift_section(report.batch, manifest) for report, manifest in zip(reports, manifests, strict=True)),
        "### Some labelled rows",
        sample_table(workspace, reports[-1]),
    ]
    return "\n\n".join(part for part in parts if part)


def _how_it_ran(reports: Sequence[BatchReport]) -> str:
    device, choice = reports[0].device, reports[0].variant
    driver = f", driver {device.driver}" if device.driver else ""
    lines = [f"{device.name}{driver}. Precision {choice.variant}: {choice.reason}."]
    for report in reports:
        if not report.skipped:
            shares = ", ".join(f"{stage} {percent(share)}" for stage, share in report.stage_shares.items())
            lines.append(
                f"{report.batch}: {report.tokens_per_second:,.0f} tokens/s, {percent(report.padding_share)} padding; "
                f"busy: {shares}."
            )
    return "\n".join(lines)


def _label_mix(reports: Sequence[BatchReport]) -> str:
    total: dict[str, int] = {}
    for report in reports:
        for label, count in report.labels.items():
            total[label] = total.get(label, 0) + count
    rows = sum(report.rows - report.counts.get("empty", 0) for report in reports)
    ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    lines = [(label, count, percent(count / rows)) for label, count in ordered[:WORST_CLASSES]]
    left = len(ordered) - len(lines)
    return table(["label", "rows", "share"], lines) + (f"\n\nand {left} rarer labels." if left else "")


def drift_section(batch: str, manifest: dict[str, Any]) -> str:
    """Return how a batch compares with the model's reference, and whether its labels may be read."""
    parts = [f"### Health of {batch}"]
    if "checks" not in manifest:
        return f"{parts[0]}\n\nNot known: labelled before it was kept."
    rows = [
        (check["measure"], check["tonight"], check["reference"], _distance(check), check["verdict"])
        for check in manifest["checks"]
    ]
    if rows:
        parts.append(table(["measure", "tonight", "reference", "distance", "verdict"], rows))
    parts += [f"- {finding['sentence']}" for finding in manifest["findings"]]
    parts += manifest["notes"]
    if not manifest["published"]:
        parts.append(f"**Held: not published.** Look at it, then `nightlabel publish {batch}`.")
    if by := manifest.get("publication"):
        parts.append(f"Published by {by['by']} at {by['at']}: {by['reason']}.")
    return "\n\n".join(part for part in parts if part)


def _distance(check: dict[str, Any]) -> str:
    return "" if check["psi"] is None else f"PSI {check['psi']:.2f}, JS {check['js']:.2f}"


def sample_table(workspace: Workspace, report: BatchReport, rows: int = 10) -> str:
    """Return some labelled rows with their texts, evenly spread over the first part of a batch."""
    part = report.parts[0].file
    labels = pq.read_table(report.path / part, partitioning=None)
    texts = pq.read_table(workspace.batch(report.batch).path / part, columns=["text"], partitioning=None)
    chosen = range(0, len(labels), max(1, len(labels) // rows))[:rows]
    told = "evidence" in labels.column_names and labels["evidence"].null_count < len(labels)
    lines = []
    for row in chosen:
        confidence = labels["confidence"][row].as_py()
        text = first_words(texts["text"][row].as_py())
        carried = format_evidence(labels["evidence"][row].as_py()) if told else None
        lines.append((_label_of(labels, row), carried, percent(confidence), labels["status"][row].as_py(), text))
    header = ["label", "carried by", "confidence", "status", "text"]
    if told:
        return f"{table(header, lines)}\n\n{EVIDENCE_NOTE}"
    return table([header[0], *header[2:]], ((line[0], *line[2:]) for line in lines))


def _label_of(labels: pa.Table, row: int) -> str | None:
    """Return a row's label, or its labels; parts from before documents could have several have no such column."""
    several = labels["labels"][row].as_py() if "labels" in labels.column_names else None
    return labels["label"][row].as_py() if several is None else ", ".join(several) or "none"

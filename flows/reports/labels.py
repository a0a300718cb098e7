"""The report of a scoring: counts, speed, the mix of labels, drift checks, and some labelled rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from flows.reports.markdown import first_words, percent, table
from flows.reports.selective import target_precision_line
from pipeline.files import read_json
from pipeline.scoring.explanations import format_evidence
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.scoring.report import BatchReport

LISTED_LABELS = 12
EVIDENCE_NOTE = "Evidence: what a word or a word pair adds to the logit of the label."


def labels_report(reports: Sequence[BatchReport], workspace: Workspace) -> str:
    """Return what became of the documents of some batches; the counts add up."""
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
    labels: Counter[str] = Counter()
    for report in reports:
        labels.update(report.labels)
    non_empty = sum(report.rows - report.counts.get("empty", 0) for report in reports)
    most_frequent = sorted(labels.items(), key=lambda item: (-item[1], item[0]))[:LISTED_LABELS]
    mix = [(label, count, percent(count / non_empty)) for label, count in most_frequent]
    versions = ", ".join(dict.fromkeys(report.model for report in reports))
    device, choice = reports[0].device, reports[0].variant
    driver = f", driver {device.driver}" if device.driver else ""
    timings = [
        timing_line(report.batch, manifest)
        for report, manifest in zip(reports, manifests, strict=True)
        if not report.skipped
    ]
    parts = [
        f"## Labels by {versions} on {'the GPU' if device.is_gpu else 'the CPU'}",
        table(["batch", "documents", "scored", "review", "empty", "published", "speed"], rows),
        "\n".join([f"{device.name}{driver}. Variant {choice.variant}: {choice.reason}.", *timings]),
        target_precision_line(manifests[-1].get("promise")),
        table(["label", "rows", "share"], mix),
        f"and {len(labels) - len(mix)} rarer labels." if len(labels) > len(mix) else "",
        *(drift_section(report.batch, manifest) for report, manifest in zip(reports, manifests, strict=True)),
        "### Some labelled rows",
        sample_table(workspace, reports[-1]),
    ]
    return "\n\n".join(part for part in parts if part)


def timing_line(batch: str, manifest: dict[str, Any]) -> str:
    """Return the speed of a batch, its padding, and the share of time of each stage."""
    shares = ", ".join(f"{stage} {percent(share)}" for stage, share in manifest["stage_shares"].items())
    speed = f"{manifest['tokens_per_second']:,.0f} tokens/s, {percent(manifest['padding_share'])} padding"
    return f"{batch}: {speed}; busy: {shares}."


def drift_section(batch: str, manifest: dict[str, Any]) -> str:
    """Return the drift checks of a batch against the model's reference, its findings, and whether it is published."""
    heading = f"### Drift checks of {batch}"
    if "checks" not in manifest:
        return f"{heading}\n\nUnknown: the batch was labelled before drift checks were stored."
    rows = [
        (
            check["measure"],
            check["tonight"],
            check["reference"],
            "" if check["psi"] is None else f"PSI {check['psi']:.2f}, JS {check['js']:.2f}",
            check["verdict"],
        )
        for check in manifest["checks"]
    ]
    parts = [heading, table(["measure", "tonight", "reference", "distance", "verdict"], rows) if rows else ""]
    parts += [f"- {finding['sentence']}" for finding in manifest["findings"]]
    parts += manifest["notes"]
    if not manifest["published"]:
        parts.append(f"**Held: not published.** Look at it, then `nightlabel publish {batch}`.")
    if publication := manifest.get("publication"):
        parts.append(f"Published by {publication['by']} at {publication['at']}: {publication['reason']}.")
    return "\n\n".join(part for part in parts if part)


def sample_table(workspace: Workspace, report: BatchReport, rows: int = 10) -> str:
    """Return some labelled rows with their texts, evenly spread over the first part of a batch."""
    part = report.parts[0].file
    labels = pq.read_table(report.path / part, partitioning=None)
    texts = pq.read_table(workspace.batch(report.batch).path / part, columns=["text"], partitioning=None)
    positions = list(range(0, len(labels), max(1, len(labels) // rows)))[:rows]
    has_evidence = "evidence" in labels.column_names and labels["evidence"].null_count < len(labels)
    lines = []
    for row, text in zip(labels.take(positions).to_pylist(), texts.take(positions)["text"].to_pylist(), strict=True):
        names = row.get("labels")  # parts of before multi-label documents have no such column
        label = row["label"] if names is None else ", ".join(names) or "none"
        evidence = [format_evidence(row["evidence"])] if has_evidence else []
        lines.append((label, *evidence, percent(row["confidence"]), row["status"], first_words(text)))
    header = ["label", *(["evidence"] if has_evidence else []), "confidence", "status", "text"]
    return table(header, lines) + (f"\n\n{EVIDENCE_NOTE}" if has_evidence else "")

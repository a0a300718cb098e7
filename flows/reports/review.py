"""What reviews come to, as Markdown: after an export, after an import, and in the morning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.reports.markdown import percent, table

if TYPE_CHECKING:
    from pipeline.models.bundle import Bundle
    from pipeline.nights.summary import LabelledNight
    from pipeline.review.answers import ReviewImport
    from pipeline.review.export import ReviewExport
    from pipeline.review.precision import PrecisionEstimate, ReviewedPrecision
    from pipeline.workspace import Workspace

WHY = {
    "doubtful": "the model is least sure of them",
    "sample": "a random sample of what it is sure of",
    "suspicious": "training labels that look wrong",
}
LISTED_REFUSALS = 10


def export_report(exported: ReviewExport) -> str:
    """Return what was given out for review, and what to do with it."""
    rows = [(why, count, WHY[why]) for why, count in exported.reasons.items()]
    learnt = [
        f"No sample of {batch}: {exported.model} learnt from it, and is surer of it than of a night."
        for batch in exported.learnt
    ]
    return "\n\n".join(
        [
            f"## {exported.rows:,} rows to review, of {', '.join(exported.batches)} by {exported.model}",
            table(["why", "rows", ""], rows),
            *learnt,
            "In the column `correct_label` write `ok` where the label is right, the right label where it is wrong, and "
            "nothing where you did not look. Leave the other columns as they are; rows may be sorted or deleted.",
        ]
    )


def import_report(imported: ReviewImport) -> str:
    """Return what became of the rows of a reviewed file; they add up."""
    rows: list[tuple[object, ...]] = [
        ("imported", imported.imported),
        ("unchanged (known before, or there twice)", imported.unchanged),
        ("not reviewed", imported.not_reviewed),
        ("rejected", len(imported.row_errors)),
        ("**rows read**", imported.rows),
    ]
    parts = [f"## Review of {imported.path.name}", f"Read as {imported.how}.", table(["rows", "count"], rows)]
    found = [
        (why, confirmed + corrected, confirmed, corrected, percent(confirmed / (confirmed + corrected)))
        for why, confirmed in imported.confirmed.items()
        if confirmed + (corrected := imported.corrected[why])
    ]
    if found:
        parts.append(table(["why", "reviewed", "right", "corrected", "share right"], found))
    if imported.new_classes:
        parts.append(f"New classes: {', '.join(imported.new_classes)}. Each is learnt from its second text on.")
    if imported.row_errors:
        parts.append("\n".join(f"- {refusal}" for refusal in imported.row_errors[:LISTED_REFUSALS]))
        parts.append(f"Rejected rows, with the reasons: `{imported.rejected}`; mend them, and import that file.")
    return "\n\n".join(parts)


def reviewed_section(workspace: Workspace, night: LabelledNight, bundle: Bundle) -> list[str]:
    """Return what people found of the labels that the model was sure of; nothing where nobody looked."""
    found = _precision(workspace, night, bundle)
    lines = []
    if found.version:
        beside = "" if found.target_precision is None else f", {percent(found.target_precision)} promised"
        lines.append(f"- by {bundle.title}: {_tell(found.version)}{beside}.")
    if found.recent and found.recent != found.version:
        lines.append(f"- of the newest nights, whatever the version: {_tell(found.recent)}.")
    if not lines:
        return []
    said = "Of a random sample of the labels that were given as sure, people found right:"
    return ["### Reviewed", said, "\n".join(lines), *_broken(found)]


def precision_violation(workspace: Workspace, night: LabelledNight, bundle: Bundle) -> list[str]:
    """Return a sentence where people found fewer labels right than were promised; nothing where they did not."""
    return _broken(_precision(workspace, night, bundle))


def _precision(workspace: Workspace, night: LabelledNight, bundle: Bundle) -> ReviewedPrecision:
    from pipeline.review.precision import reviewed_precision

    return reviewed_precision(workspace, bundle, night.manifest.get("promise"))


def _tell(found: PrecisionEstimate) -> str:
    low, high = found.interval
    nights = f"{found.nights:,} night{'' if found.nights == 1 else 's'}"
    return (
        f"{found.confirmed:,} of {found.reviewed:,} in {nights}, {percent(found.share)} "
        f"(95 % interval {percent(low)} to {percent(high)})"
    )


def _broken(found: ReviewedPrecision) -> list[str]:
    if not (found.violated and found.version and found.target_precision is not None):
        return []
    return [
        f"The promised precision of {percent(found.target_precision)} is broken: people found {_tell(found.version)}. "
        "Train again with their corrections, or promise less."
    ]

"""The reports of reviews: after an export, after an import, and in the morning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.reports.markdown import percent, plural, table

if TYPE_CHECKING:
    from pipeline.models.bundle import Bundle
    from pipeline.nights.summary import LabelledNight
    from pipeline.review.answers import ReviewImport
    from pipeline.review.export import ReviewExport
    from pipeline.review.precision import PrecisionEstimate, ReviewedPrecision
    from pipeline.workspace import Workspace

WHY = {
    "doubtful": "the model is least confident of them",
    "sample": "a random sample of its confident labels",
    "suspicious": "training labels that are likely wrong",
}
LISTED_ERRORS = 10


def export_report(exported: ReviewExport) -> str:
    """Return what was exported for review, and how to fill in the table."""
    rows = [(why, count, WHY[why]) for why, count in exported.reasons.items()]
    trained = [
        f"No sample of {batch}: {exported.model} was trained on it, and is more confident of it than of a night."
        for batch in exported.trained_batches
    ]
    return "\n\n".join(
        [
            f"## {exported.rows:,} rows to review, of {', '.join(exported.batches)} by {exported.model}",
            table(["why", "rows", ""], rows),
            *trained,
            "In the column `correct_label` write `ok` where the label is right, the right label where it is wrong, and "
            "nothing where you did not look. Leave the other columns as they are; rows may be sorted or deleted.",
        ]
    )


def import_report(imported: ReviewImport) -> str:
    """Return what became of the rows of a reviewed file; the counts add up."""
    rows: list[tuple[object, ...]] = [
        ("imported", imported.imported),
        ("unchanged (known before, or there twice)", imported.unchanged),
        ("not reviewed", imported.not_reviewed),
        ("rejected", len(imported.row_errors)),
        ("**rows read**", imported.rows),
    ]
    parts = [f"## Review of {imported.path.name}", f"Read as {imported.encoding}.", table(["rows", "count"], rows)]
    reviewed = [
        (why, confirmed + corrected, confirmed, corrected, percent(confirmed / (confirmed + corrected)))
        for why, confirmed in imported.confirmed.items()
        if confirmed + (corrected := imported.corrected[why])
    ]
    if reviewed:
        parts.append(table(["why", "reviewed", "right", "corrected", "share right"], reviewed))
    if imported.new_classes:
        parts.append(f"New classes: {', '.join(imported.new_classes)}. Training uses each from its second text on.")
    if imported.row_errors:
        parts.append("\n".join(f"- {error}" for error in imported.row_errors[:LISTED_ERRORS]))
        parts.append(f"Rejected rows, with the reasons: `{imported.rejected}`; correct them, and import that file.")
    return "\n\n".join(parts)


def reviewed_section(workspace: Workspace, night: LabelledNight, bundle: Bundle) -> list[str]:
    """Return the precision that reviews measured on confident labels; nothing without reviews."""
    precision = _precision(workspace, night, bundle)
    lines = []
    if precision.version:
        target = "" if precision.target_precision is None else f", target {percent(precision.target_precision)}"
        lines.append(f"- by {bundle.title}: {_estimate(precision.version)}{target}.")
    if precision.recent and precision.recent != precision.version:
        lines.append(f"- of the newest nights, any version: {_estimate(precision.recent)}.")
    if not lines:
        return []
    heading = "Right labels in a random sample of the confident ones, as people reviewed them:"
    return ["### Reviewed", heading, "\n".join(lines), *precision_violation(workspace, night, bundle)]


def precision_violation(workspace: Workspace, night: LabelledNight, bundle: Bundle) -> list[str]:
    """Return a sentence if the reviewed precision violates the target; nothing otherwise."""
    precision = _precision(workspace, night, bundle)
    if not (precision.violated and precision.version and precision.target_precision is not None):
        return []
    return [
        f"The target precision of {percent(precision.target_precision)} is violated: people confirmed "
        f"{_estimate(precision.version)}. Train again with their corrections, or lower the target."
    ]


def _precision(workspace: Workspace, night: LabelledNight, bundle: Bundle) -> ReviewedPrecision:
    from pipeline.review.precision import reviewed_precision

    return reviewed_precision(workspace, bundle, night.manifest.get("promise"))


def _estimate(precision: PrecisionEstimate) -> str:
    low, high = precision.interval
    return (
        f"{precision.confirmed:,} of {precision.reviewed:,} in {plural(precision.nights, 'night')}, "
        f"{percent(precision.share)} (95 % interval {percent(low)} to {percent(high)})"
    )

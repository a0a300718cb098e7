"""Answers on the first screen of the morning report: rows, labels, changes, and rows for review."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.reports.markdown import percent
from flows.reports.morning_sections import device_kind, means, variant_and_device
from flows.reports.selective import target_precision_line
from pipeline.nights.summary import LabelledNight, RowAccounting, estimate_accuracy, label_shifts

if TYPE_CHECKING:
    from pipeline.models.bundle import Bundle
    from pipeline.scoring.labels import LabelledBatch
    from pipeline.workspace import Workspace

MIN_CHANGE = 0.01  # of a mean, for the first screen to mention it


def are_rows_accounted_for(accounts: Sequence[RowAccounting]) -> str:
    """Return how the rows of the night's batches add up, from the counts of each batch."""
    wrong = [account.batch for account in accounts if not account.adds_up]
    if wrong:
        return f"**No**: the rows of {', '.join(wrong)} do not add up; see below."
    if not accounts:
        return "No new batch came in."
    read, documents, duplicates, refused = (
        sum(getattr(account, name) for account in accounts)
        for name in ("rows_read", "documents", "duplicates", "refused")
    )
    lines = [
        "Yes, every row is accounted for:",
        f"{read:,} rows read = {documents:,} documents + {duplicates:,} duplicates + {refused:,} refused;",
    ]
    statuses = [account.statuses for account in accounts if account.statuses is not None]
    if statuses:
        scored, review, empty = (sum(counts[name] for counts in statuses) for name in ("scored", "review", "empty"))
        labelled = sum(account.documents for account in accounts if account.statuses is not None)
        lines.append(f"{labelled:,} documents = {scored:,} scored + {review:,} for review + {empty:,} empty.")
    if waiting := len(accounts) - len(statuses):
        lines.append(f"{waiting} batch{'' if waiting == 1 else 'es'} not labelled yet.")
    return " ".join(lines)


def are_labels_right(night: LabelledNight, bundle: Bundle) -> str:
    """Return the estimated share of right labels, or why there is no estimate, and the target precision."""
    estimate = estimate_accuracy(night, bundle)
    target = target_precision_line(night.manifest.get("promise"))
    unknown = " ".join(f"Of batch {batch} nothing can be said: {why}." for batch, why in estimate.left_out.items())
    if estimate.share is None:
        return f"{target} {unknown}".strip()
    condition = "if confidence is as well calibrated tonight as on the test texts"
    if estimate.calibration_error is not None:
        condition += f", where it was off by {100 * estimate.calibration_error:.1f} points"
    labels = "the likeliest labels" if bundle.thresholds is not None else "the labels"
    batches = f" of {', '.join(estimate.batches)}" if estimate.left_out else ""
    answer = f"About {100 * estimate.share:.0f} % of {labels}{batches} are right, {condition}."
    return " ".join(filter(None, [answer, target, unknown]))


def what_changed(night: LabelledNight, previous_night: LabelledNight | None) -> str:
    """Return the largest changes since the previous night."""
    if previous_night is None:
        return "Nothing to compare with: this is the first night of this model."
    changes = [f"{night.rows:,} rows after {previous_night.rows:,}"]
    largest = next((shift for shift in label_shifts(night, previous_night) if not shift.within_noise), None)
    if largest:
        changes.append(f"{largest.label} {percent(largest.tonight)} after {percent(largest.before)}")
    else:
        changes.append("the mix of labels as before")
    for name, tonight, before in means(night, previous_night):
        if tonight is not None and before is not None and abs(tonight - before) >= MIN_CHANGE:
            changes.append(f"{name} {percent(tonight)} after {percent(before)}")
    if night.manifest["model"] != previous_night.manifest["model"]:
        changes.append(f"{night.manifest['model']} since tonight, {previous_night.manifest['model']} before")
    if device_kind(night) != device_kind(previous_night):
        changes.append(f"on {device_kind(night)}, on {device_kind(previous_night)} before")
    elif variant_and_device(night) != variant_and_device(previous_night):
        changes.append("another variant of the model")
    return f"Since {previous_night.names}: {'; '.join(changes)}."


def review_task(workspace: Workspace, batch: LabelledBatch) -> str:
    """Return how many rows of a batch are for review, and the command that exports them."""
    counts = batch.manifest["counts"]
    share = percent(counts["review"] / counts["documents"])
    option = f" --model {batch.path.parent.name}" if len(workspace.models_that_labelled(batch.id)) > 1 else ""
    command = f"nightlabel review export --batch {batch.id}{option}"
    return f"{batch.id}: {counts['review']:,} for review ({share}), status `review` in `{batch.path}`: `{command}`"

"""The first screen of the morning report: an answer to each question of a morning, and the tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.reports.markdown import percent, plural
from flows.reports.morning_sections import device_kind, means, variant_and_device
from flows.reports.review import precision_violation
from flows.reports.selective import target_precision_line
from pipeline.nights.summary import LabelledNight, RowAccounting, estimate_accuracy, label_shifts

if TYPE_CHECKING:
    from flows.reports.morning import NightResult
    from pipeline.models.bundle import Bundle
    from pipeline.scoring.labels import LabelledBatch
    from pipeline.workspace import Workspace

MIN_CHANGE = 0.01  # of a mean, for the first screen to mention it


def did_it_run(morning: NightResult) -> str:
    """Return when the night ran, with which model and how fast, or which stage failed."""
    day = "" if morning.started.date() == morning.day else f"on {morning.started:%Y-%m-%d} "
    time = f"{day}from {morning.started:%H:%M} to {morning.ended:%H:%M}"
    failed = " and ".join(failure.stage for failure in morning.failures)
    if not morning.night:
        return f"The {failed} failed, {time}." if failed else f"Yes, {time}; there was nothing to label."
    manifest = morning.night.manifest
    answer = f"Not all of it: the {failed} failed" if failed else "Yes"
    return (
        f"{answer}, {time}: {manifest['model']} on {device_kind(morning.night)} ({manifest['device']}), "
        f"{morning.night.rows_per_second:,.0f} rows/s."
    )


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
    condition = "if confidence means tonight what it meant on the test texts"
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


def tasks(morning: NightResult) -> list[str]:
    """Return what a person has to do, the most urgent first."""
    lines = [
        f"Mend what made the {failure.stage} fail, see above; then run this night again."
        for failure in morning.failures
    ]
    lines += held_tasks(morning)
    if morning.night and morning.bundle:
        lines += precision_violation(morning.workspace, morning.night, morning.bundle)
    batches = morning.night.batches if morning.night else []
    for batch in batches:
        if batch.published:
            lines += [f"{batch.id}: {finding['sentence']}" for finding in batch.manifest.get("findings", [])]
    for documents in morning.unlabelled_batches:
        if refused := documents.manifest["counts"]["rejects"]:
            reasons = sorted(documents.manifest["reject_reasons"].items(), key=lambda reason: -reason[1])
            why = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
            folder = morning.workspace.rejects_dir(documents.id)
            lines.append(f"{documents.id}: {refused:,} refused ({why}), kept in `{folder}`.")
    lines += [review_task(morning.workspace, batch) for batch in batches if batch.manifest["counts"]["review"]]
    if morning.night and morning.bundle and morning.bundle.reference is None:
        lines.append(f"Train again: {morning.bundle.title} has no reference for a night to be compared with.")
    return lines


def held_tasks(morning: NightResult) -> list[str]:
    """Return for each held batch the finding that weighs most, and the command that publishes it."""
    lines = []
    for model, batch in morning.held:
        holds = [finding for finding in batch.manifest.get("findings", []) if finding["severity"] == "hold"]
        holds.sort(key=lambda finding: -abs(math.log(max(finding["value"], 1e-9) / finding["threshold"])))
        more = f" (And {plural(len(holds) - 1, 'more finding')}.)" if len(holds) > 1 else ""
        why = f"{holds[0]['sentence']}{more}" if holds else ""
        option = f" --model {model}" if len(morning.workspace.models_that_labelled(batch.id)) > 1 else ""
        command = f"nightlabel publish {batch.id}{option}"
        lines.append(f"{batch.id} is held, not published. {why} If it is as it should be: `{command}`")
    return lines


def review_task(workspace: Workspace, batch: LabelledBatch) -> str:
    """Return how many rows of a batch are for review, and the command that exports them."""
    counts = batch.manifest["counts"]
    share = percent(counts["review"] / counts["documents"])
    option = f" --model {batch.path.parent.name}" if len(workspace.models_that_labelled(batch.id)) > 1 else ""
    command = f"nightlabel review export --batch {batch.id}{option}"
    return f"{batch.id}: {counts['review']:,} for review ({share}), status `review` in `{batch.path}`: `{command}`"

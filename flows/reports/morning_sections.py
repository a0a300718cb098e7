"""The sections of the morning report below its first screen, as Markdown paragraphs; `pipeline.nights.plots` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.reports.labels import EVIDENCE_NOTE, drift_section, timing_line
from flows.reports.markdown import embedded, first_words, literal, percent, table
from flows.reports.review import reviewed_section
from flows.reports.selective import expected_coverage_section
from pipeline.metrics.drift import Histogram
from pipeline.nights.summary import LabelledNight, RowAccounting, label_shifts, outlier_rows

if TYPE_CHECKING:
    from pipeline.metrics.profile import Profile
    from pipeline.models.bundle import Bundle
    from pipeline.workspace import Workspace

LISTED_SHIFTS = 3


def rows_section(accounts: Sequence[RowAccounting], night: LabelledNight | None) -> list[str]:
    """Return what became of the rows of each batch, from the rows read to its labels."""
    if not accounts:
        return []
    published = {batch.id: batch.published for batch in night.batches} if night else {}
    lines = [
        (
            account.batch,
            *(account.rows_read, account.duplicates, account.refused, account.documents),
            *((account.statuses or {}).get(status) for status in ("scored", "review", "empty")),
            {True: "yes", False: "**held**", None: "not labelled"}[published.get(account.batch)],
        )
        for account in accounts
    ]
    header = ["batch", "read", "duplicates", "refused", "documents", "scored", "review", "empty", "published"]
    return ["## Rows", table(header, lines)]


def changes_section(night: LabelledNight, previous_night: LabelledNight | None) -> list[str]:
    """Return the figures of the night beside those of the previous night."""
    if previous_night is None:
        return []
    shifts = [
        (f"label {shift.label}", percent(shift.before), percent(shift.tonight), "" if shift.within_noise else "changed")
        for shift in label_shifts(night, previous_night)[:LISTED_SHIFTS]
    ]
    shares = [(name, percent(before), percent(tonight), "") for name, tonight, before in means(night, previous_night)]
    versions = [
        (name, before, tonight, "" if before == tonight else "changed")
        for name, before, tonight in (
            ("model", previous_night.manifest["model"], night.manifest["model"]),
            ("variant, device", variant_and_device(previous_night), variant_and_device(night)),
        )
    ]
    lines = [
        ("rows", f"{previous_night.rows:,}", f"{night.rows:,}", ""),
        *shifts,
        *shares,
        ("rows/s", f"{previous_night.rows_per_second:,.0f}", f"{night.rows_per_second:,.0f}", ""),
        *versions,
    ]
    columns = 4 if any(line[3] for line in lines) else 3
    header = ["", previous_night.names, "tonight", ""]
    moved = any(shift[3] for shift in shifts)
    note = "The share of a label that *moved* changed by more than chance explains." if moved else ""
    return ["## What changed", table(header[:columns], (line[:columns] for line in lines)), note]


def trust_section(workspace: Workspace, night: LabelledNight, bundle: Bundle, pictures: bool) -> list[str]:
    """Return the evidence for and against the labels: test scores, coverage, reviews, profile and drift checks."""
    test, multi_label = bundle.metrics["test"], bundle.thresholds is not None
    parts = ["## Are the labels right?"]
    if test["n"]:
        right = "all labels were right" if multi_label else "the label was right"
        scores = f"{percent(test['accuracy'])}, macro-F1 {percent(test['macro_f1'])}"
        parts.append(f"On its {test['n']:,} test texts {right} for {scores}.")
    if test["n"] and multi_label:
        parts[-1] += (
            " A document can have several labels: confidence is the probability of the likeliest, or where none was "
            "given, that it does not hold."
        )
    parts += expected_coverage_section(night, bundle)
    parts += reviewed_section(workspace, night, bundle)
    profile, reference = night.profile, _comparable_reference(night, bundle)
    if pictures and profile and profile.non_empty:
        from pipeline.nights.plots import profile_histograms

        profiles, suffix = [profile, *([reference] if reference else [])], " in the reference" if reference else ""
        shown = {
            "mean confidence": [percent(each.mean_confidence) for each in profiles],
            "tokens of a text": [f"{each.mean_length:,.1f}" for each in profiles],
            "unknown words": [percent(each.unknown_share) for each in profiles],
        }
        values = "; ".join(f"{name} {', '.join(numbers)}{suffix}" for name, numbers in shown.items())
        text = f"Histograms of confidence, length and unknown words: {values}"
        parts.append(embedded(profile_histograms(profile, reference), text))
    return [*parts, *(drift_section(batch.id, batch.manifest) for batch in night.batches)]


def _comparable_reference(night: LabelledNight, bundle: Bundle) -> Profile | None:
    """Return the model's reference if its profile is comparable with the night's."""
    profile, reference = night.profile, bundle.reference
    return reference if profile and reference and reference.non_empty and profile.comparable(reference) else None


def labels_section(night: LabelledNight, bundle: Bundle, pictures: bool) -> list[str]:
    """Return the share of each label, beside that in the reference."""
    from pipeline.nights.plots import label_mix, label_shares

    profile, reference_profile = night.profile, _comparable_reference(night, bundle)
    labels = profile.labels if profile else Histogram(tuple(night.labels), tuple(night.labels.values()))
    if not labels.size:
        return []
    reference = reference_profile.labels if reference_profile else None
    shares = label_shares(labels, reference)
    lines = [
        (
            "" if share.is_remainder else str(number),
            *(share.name, share.rows, percent(share.tonight)),
            *([percent(share.reference)] if reference else []),
        )
        for number, share in enumerate(shares, start=1)
    ]
    header = ["no.", "label", "rows", "share", *(["in the reference"] if reference else [])]
    parts = ["## Labels", table(header, lines)]
    if pictures:
        text = ", ".join(f"{share.name} {percent(share.tonight)}" for share in shares)
        parts.insert(1, embedded(label_mix(labels, reference), f"The mix of labels: {text}"))
    return parts


def outliers_section(workspace: Workspace, night: LabelledNight) -> list[str]:
    """Return the rows that are least like the model's reference, which a person should read first."""
    heading, rows = "## Outliers", outlier_rows(workspace, night)
    if not rows:
        unknown = "Unknown: the night was labelled before outliers were stored."
        return [heading, unknown] if night.non_empty else []
    batches, evidence = len(night.batches) > 1, any(row.evidence for row in rows)
    lines = [
        (
            *([row.batch] if batches else []),
            literal(row.doc_id),
            row.label or "none",
            *([literal(row.evidence)] if evidence else []),
            percent(row.confidence),
            row.why,
            literal(first_words(row.text)),
        )
        for row in rows
    ]
    header = [*(["batch"] if batches else []), "document", "label", *(["evidence"] if evidence else [])]
    note = f" {EVIDENCE_NOTE}" if evidence else ""
    intro = f"The rows least like the model's reference: read these first.{note}"
    return [heading, intro, table([*header, "confidence", "why", "text"], lines)]


def run_section(night: LabelledNight) -> list[str]:
    """Return device, variant, and where the time went."""
    manifest = night.manifest
    driver = f", driver {manifest['driver']}" if manifest.get("driver") else ""
    lines = [f"{manifest['device']}{driver}. Variant {manifest['precision']}: {manifest['precision_reason']}."]
    lines += [timing_line(batch.id, batch.manifest) for batch in night.batches]
    return ["## How it ran", "\n".join(lines)]


def device_kind(night: LabelledNight) -> str:
    """Return "the CPU" or "the GPU"."""
    return "the CPU" if night.manifest["provider"] == "CPUExecutionProvider" else "the GPU"


def variant_and_device(night: LabelledNight) -> str:
    """Return the variant of the model and the kind of device, for a person."""
    return f"{night.manifest['precision']} on {device_kind(night)}"


def means(night: LabelledNight, previous_night: LabelledNight) -> list[tuple[str, float | None, float | None]]:
    """Return the shares that two nights are compared by: name, tonight's, the previous night's."""
    tonight, before = night.profile, previous_night.profile
    return [
        ("confidence", tonight.mean_confidence if tonight else None, before.mean_confidence if before else None),
        ("unknown words", tonight.unknown_share if tonight else None, before.unknown_share if before else None),
        ("for review", night.review_share, previous_night.review_share),
    ]

"""The sections of the morning's report below its first screen, each as Markdown paragraphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.reports.labels import EVIDENCE_NOTE, drift_section
from flows.reports.markdown import embedded, first_words, percent, table
from flows.reports.review import reviewed_section
from flows.reports.selective import night_promise
from pipeline.metrics.drift import Histogram
from pipeline.nights.summary import LabelledNight, RowAccounting, label_shifts, outlier_rows

if TYPE_CHECKING:
    from pipeline.metrics.profile import Profile
    from pipeline.models.bundle import Bundle
    from pipeline.workspace import Workspace

LISTED_MOVES = 3


def rows_section(accounts: Sequence[RowAccounting], night: LabelledNight | None) -> list[str]:
    """Return what became of the rows of each batch, from what was read to its labels."""
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


def changes_section(night: LabelledNight, before: LabelledNight | None) -> list[str]:
    """Return the night beside the one before."""
    if before is None:
        return []
    moves = [
        (f"label {move.label}", percent(move.before), percent(move.tonight), "" if move.within_noise else "moved")
        for move in label_shifts(night, before)[:LISTED_MOVES]
    ]
    shares = [(name, percent(then), percent(now), "") for name, now, then in means(night, before)]
    lines = [
        ("rows", f"{before.rows:,}", f"{night.rows:,}", ""),
        *moves,
        *shares,
        ("rows/s", f"{before.rows_per_second:,.0f}", f"{night.rows_per_second:,.0f}", ""),
        *(
            (name, then, now, "" if then == now else "changed")
            for name, then, now in (
                ("model", before.manifest["model"], night.manifest["model"]),
                ("ran as", variant_and_device(before), variant_and_device(night)),
            )
        ),
    ]
    note = (
        "Labels that *moved* did so by more than chance explains." if any(line[3] == "moved" for line in moves) else ""
    )
    columns = 4 if any(line[3] for line in lines) else 3
    header = ["", before.names, "tonight", ""]
    return ["## What changed", table(header[:columns], (line[:columns] for line in lines)), note]


def trust_section(workspace: Workspace, night: LabelledNight, bundle: Bundle, pictures: bool) -> list[str]:
    """Return what speaks for the labels and against them."""
    profile, usual = night.profile, _comparable(night, bundle)
    parts = ["## Are the labels right?", _test_line(bundle), *night_promise(night, bundle)]
    parts += reviewed_section(workspace, night, bundle)
    if pictures and profile and profile.non_empty:
        from pipeline.nights.plots import profile_histograms

        parts.append(embedded(profile_histograms(profile, usual), _tell_histograms(profile, usual)))
    return [*parts, *(drift_section(batch.id, batch.manifest) for batch in night.batches)]


def _test_line(bundle: Bundle) -> str:
    test = bundle.metrics["test"]
    if not test["n"]:
        return ""
    several = bundle.thresholds is not None
    right = "all labels were right" if several else "the label was right"
    scores = f"{percent(test['accuracy'])}, macro-F1 {percent(test['macro_f1'])}"
    line = f"On its {test['n']:,} test texts {right} for {scores}."
    if several:
        line += (
            " A document can have several labels: confidence is the probability of the likeliest, or where none was "
            "given, that it does not hold."
        )
    return line


def _comparable(night: LabelledNight, bundle: Bundle) -> Profile | None:
    """Return the model's reference if the night can be drawn beside it."""
    profile, reference = night.profile, bundle.reference
    return reference if profile and reference and reference.non_empty and profile.comparable(reference) else None


def _tell_histograms(tonight: Profile, usual: Profile | None) -> str:
    measures = [
        ("mean confidence", *(percent(one.mean_confidence) if one else "" for one in (tonight, usual))),
        ("tokens of a text", *(f"{one.mean_length:,.1f}" if one else "" for one in (tonight, usual))),
        ("unknown words", *(percent(one.unknown_share) if one else "" for one in (tonight, usual))),
    ]
    said = [f"{name} {now}{f', {then} in the reference' if then else ''}" for name, now, then in measures]
    return f"Histograms of confidence, length and unknown words: {'; '.join(said)}"


def labels_section(night: LabelledNight, bundle: Bundle, pictures: bool) -> list[str]:
    """Return how often each label was given, beside the reference."""
    from pipeline.nights.plots import label_mix, label_shares

    profile, usual = night.profile, _comparable(night, bundle)
    given = profile.labels if profile else Histogram(tuple(night.labels), tuple(night.labels.values()))
    if not given.size:
        return []
    reference = usual.labels if usual else None
    shares = label_shares(given, reference)
    numbers = [str(number) if not share.is_remainder else "" for number, share in enumerate(shares, start=1)]
    lines = [
        (number, share.name, share.rows, percent(share.tonight), *([percent(share.reference)] if reference else []))
        for number, share in zip(numbers, shares, strict=True)
    ]
    listed = table(["no.", "label", "rows", "share", *(["in the reference"] if reference else [])], lines)
    if not pictures:
        return ["## Labels", listed]
    said = ", ".join(f"{one.name} {percent(one.tonight)}" for one in shares)
    return ["## Labels", embedded(label_mix(given, reference), f"The mix of labels: {said}"), listed]


def outliers_section(workspace: Workspace, night: LabelledNight) -> list[str]:
    """Return the rows that a person should read first."""
    rows = outlier_rows(workspace, night)
    if not rows:
        return ["## The strangest rows", "Not known: labelled before they were kept."] if night.non_empty else []
    several = len(night.batches) > 1
    told = any(row.evidence for row in rows)
    lines = [
        (
            *([row.batch] if several else []),
            _literal(row.doc_id),
            row.label or "none",
            *([_literal(row.evidence)] if told else []),
            percent(row.confidence),
            row.why,
            _literal(first_words(row.text)),
        )
        for row in rows
    ]
    which = ["document", "label", *(["carried by"] if told else [])]
    header = [*(["batch"] if several else []), *which, "confidence", "what is strange", "text"]
    note = f" {EVIDENCE_NOTE}" if told else ""
    return ["## The strangest rows", f"Those least like the model's reference.{note}", table(header, lines)]


def _literal(text: str) -> str:
    """Return foreign text so that it is shown as it is: no links, pictures or code out of a ticket."""
    return text.translate({ord(sign): f"\\{sign}" for sign in "\\`*[]"})


def run_section(night: LabelledNight) -> list[str]:
    """Return where the time went."""
    manifest = night.manifest
    driver = f", driver {manifest['driver']}" if manifest.get("driver") else ""
    lines = [f"{manifest['device']}{driver}. Precision {manifest['precision']}: {manifest['precision_reason']}."]
    for batch in night.batches:
        told = batch.manifest
        busy = ", ".join(f"{stage} {percent(share)}" for stage, share in told["stage_shares"].items())
        lines.append(
            f"{batch.id}: {told['tokens_per_second']:,.0f} tokens/s, {percent(told['padding_share'])} padding; "
            f"busy: {busy}."
        )
    return ["## How it ran", "\n".join(lines)]


def variant_and_device(night: LabelledNight) -> str:
    """Return the precision and the kind of device, for a person."""
    return f"{night.manifest['precision']} on {_place(night.manifest)}"


def _place(manifest: dict[str, Any]) -> str:
    return "the CPU" if manifest["provider"] == "CPUExecutionProvider" else "the GPU"


def means(night: LabelledNight, before: LabelledNight) -> list[tuple[str, float | None, float | None]]:
    """Return what is compared as one share each: its name, tonight's, that of the night before."""
    healths = [night.profile, before.profile]
    confidence, unknown = (
        [getattr(profile, name) if profile else None for profile in healths]
        for name in ("mean_confidence", "unknown_share")
    )
    return [
        ("confidence", confidence[0], confidence[1]),
        ("unknown words", unknown[0], unknown[1]),
        ("for review", night.review_share, before.review_share),
    ]

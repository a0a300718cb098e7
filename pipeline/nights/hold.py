"""When a night is held: drift checks against the model's reference and against the nights before.

A night that drifted far from the reference is held: its labels are written, but not published until a person has
looked. A drift that the last published nights had too only warns.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.config import DriftConfig
from pipeline.metrics.drift import Distance
from pipeline.metrics.profile import MEASURES, Profile, merge_profiles
from pipeline.models.bundle import Bundle
from pipeline.nights.drift_sentences import DESCRIBE, MEASURE_NAMES, format_share
from pipeline.scoring.labels import labelled_batches
from pipeline.scoring.report import BatchReport
from pipeline.workspace import Batch, Workspace

MIN_EMPTY = 5  # fewer empty texts raise no alarm, unless all texts are empty
Severity = Literal["warn", "hold"]


@dataclass(frozen=True)
class PastNight:
    """An earlier night; its profile is None if it has none, or was labelled by another version of the model."""

    rows: int
    profile: Profile | None


@dataclass(frozen=True)
class DriftFinding:
    """A measure beyond its threshold, in a sentence that says what to do."""

    measure: str
    value: float
    threshold: float
    severity: Severity
    sentence: str


@dataclass(frozen=True)
class DriftCheck:
    """A measure of a night and of the reference, as text; PSI and Jensen-Shannon distance if it has a histogram."""

    measure: str
    tonight: str
    reference: str
    verdict: str  # ok, warn or hold
    psi: float | None = None
    js: float | None = None


@dataclass(frozen=True)
class DriftReport:
    """The checks of a night, their findings, and notes on checks that were not made."""

    checks: Sequence[DriftCheck] = ()
    findings: Sequence[DriftFinding] = ()
    notes: Sequence[str] = ()

    @property
    def holds(self) -> bool:
        """Whether a person must look before the labels are published."""
        return any(finding.severity == "hold" for finding in self.findings)

    def __add__(self, other: "DriftReport") -> "DriftReport":
        return DriftReport(
            [*self.checks, *other.checks], [*self.findings, *other.findings], [*self.notes, *other.notes]
        )

    def warnings_only(self) -> "DriftReport":
        """Return the report with every hold lowered to a warning."""
        checks = [replace(check, verdict="warn") if check.verdict == "hold" else check for check in self.checks]
        return replace(self, checks=checks, findings=[replace(finding, severity="warn") for finding in self.findings])


def check_batch_drift(
    workspace: Workspace, batch: Batch, bundle: Bundle, report: BatchReport, config: DriftConfig
) -> DriftReport:
    """Check a labelled batch against the model's reference and the nights before it."""
    if bundle.trained_on(batch):  # its words are in the vocabulary, and its confidence is too high
        return DriftReport(notes=[f"Not compared: {bundle.title} was trained on this batch."])
    nights = earlier_nights(workspace, bundle, batch.id, config.nights)
    return check_drift(
        report.profile, bundle.reference, nights, config, rows=report.rows, empty=report.counts.get("empty", 0)
    )


def earlier_nights(workspace: Workspace, bundle: Bundle, batch_id: str, limit: int) -> list[PastNight]:
    """Return the most recent published nights of a model, without one batch and the training batches, newest first."""
    excluded = {batch for batch, _ in bundle.training_batches} | {batch_id}
    nights = [
        batch for batch in labelled_batches(workspace, bundle.name) if batch.published and batch.id not in excluded
    ]
    nights.sort(key=lambda batch: (batch.manifest.get("created", ""), batch.id), reverse=True)
    return [
        # Another version has another vocabulary and another confidence.
        PastNight(batch.rows, batch.profile if batch.manifest.get("model_digest") == bundle.digest else None)
        for batch in nights[:limit]
    ]


def check_drift(
    tonight: Profile | None,
    reference: Profile | None,
    nights: Sequence[PastNight],
    config: DriftConfig,
    *,
    rows: int,
    empty: int,
) -> DriftReport:
    """Check a night against the model's reference and the nights before it.

    Args:
        tonight: profile of the night; None if a part was labelled before profiles were stored.
        reference: profile of the model's reference; None for a bundle without one.
        nights: the published nights before, newest first.
        config: thresholds.
        rows: documents of the night.
        empty: documents without text.
    """
    report = _check_empty(rows, empty, reference, config) + _check_volume(rows, nights, config)
    note = ""
    if reference is None or not reference.non_empty:
        note = "Not compared: the model was trained before references were stored; train again to get one."
    elif tonight is None:
        note = "Not compared: some of its parts were labelled before data profiles were stored."
    elif not tonight.comparable(reference):
        note = "Not compared: the model's reference has other bins; train again to get a new one."
    elif tonight.non_empty:
        past = [night.profile for night in nights if night.profile and night.profile.comparable(tonight)]
        recent = past[: config.least_nights] if len(past) >= config.least_nights else []
        for measure in MEASURES:
            report += _check_measure(measure, tonight, reference, recent, config)
    if rows and note:
        report += DriftReport(notes=[note])
    return report if config.hold else report.warnings_only()


def _check_empty(rows: int, empty: int, reference: Profile | None, config: DriftConfig) -> DriftReport:
    """Check that there are rows, and that few of them are empty."""
    if not rows:
        sentence = "The batch has no rows: the feed did not come; see where it is made, and ingest it with --replace."
        finding = DriftFinding("rows", 0.0, 1.0, "hold", sentence)
        return DriftReport([DriftCheck("empty texts", "no rows", "", "hold")], [finding])
    usual = reference.empty_share if reference else 0.0
    excess = empty / rows - usual
    severity = _severity(excess, config.empty_warn, config.empty_hold)
    if empty < min(rows, MIN_EMPTY):
        severity = None
    share, usual_share = format_share(empty / rows), format_share(usual) if reference else ""
    check = DriftCheck("empty texts", share, usual_share, severity or "ok")
    if severity is None:
        return DriftReport([check])
    threshold = config.empty_hold if severity == "hold" else config.empty_warn
    comparison = f", {usual_share} were in the model's reference" if reference else ""
    sentence = (
        f"{share} of the texts are empty{comparison}: the wrong column, or an export that failed; ingest the right "
        "one with --replace."
    )
    return DriftReport([check], [DriftFinding("empty", round(excess, 4), threshold, severity, sentence)])


def _check_volume(rows: int, nights: Sequence[PastNight], config: DriftConfig) -> DriftReport:
    """Check the number of rows against the median of the nights before."""
    if not rows or len(nights) < config.least_nights:
        return DriftReport()
    counts, limit = [night.rows for night in nights], config.volume_factor
    usual = statistics.median(counts)
    ratio = rows / max(usual, 1)
    if 1 / limit < ratio < limit:
        return DriftReport([DriftCheck("rows", f"{rows:,}", f"{usual:,.0f}", "ok")])
    seen_before = 1 / limit < rows / max(statistics.median(counts[: config.least_nights]), 1) < limit
    severity: Severity = "warn" if seen_before else "hold"
    cause = "a feed sent more than once, or the history with it" if rows > usual else "a feed that broke off"
    sentence = (
        f"{rows:,} rows came in, {usual:,.0f} is usual (the median of the last {len(nights)} nights): {cause}; "
        f"compare it with its source.{_seen_before(config.least_nights) if seen_before else ''}"
    )
    finding = DriftFinding("rows", round(ratio, 4), limit if rows > usual else 1 / limit, severity, sentence)
    return DriftReport([DriftCheck("rows", f"{rows:,}", f"{usual:,.0f}", severity)], [finding])


def _check_measure(
    measure: str, tonight: Profile, reference: Profile, recent: Sequence[Profile], config: DriftConfig
) -> DriftReport:
    """Check one histogram; a drift that the recent nights had too only warns."""

    def distance_from(profile: Profile) -> Distance:
        return Distance.between(getattr(tonight, measure), getattr(profile, measure))

    distance = distance_from(reference)
    severity = _severity(distance.psi, config.psi_warn, config.psi_hold)
    if severity and not distance.significant:
        severity = None
    threshold = config.psi_hold if severity == "hold" else config.psi_warn
    value, reference_value, sentence = DESCRIBE[measure](tonight, reference)
    if severity and recent and distance_from(merge_profiles(recent)).psi < threshold:
        severity = "warn"
        sentence += f"{_seen_before(len(recent))} Train again with texts from them."
    psi, js = round(distance.psi, 4), round(distance.js, 4)
    check = DriftCheck(MEASURE_NAMES[measure], value, reference_value, severity or "ok", psi, js)
    return DriftReport([check], [DriftFinding(measure, psi, threshold, severity, sentence)] if severity else [])


def _severity(value: float, warn: float, hold: float) -> Severity | None:
    if value >= hold:
        return "hold"
    return "warn" if value >= warn else None


def _seen_before(nights: int) -> str:
    return f" The {nights} nights before had the same drift." if nights > 1 else " The night before had the same drift."

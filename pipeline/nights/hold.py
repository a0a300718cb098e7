"""Whether a night is out of the ordinary: beside the model's reference, and beside the nights before.

A night that is far from the reference is held: its labels are written, but not published until a person has looked.
What has been published several nights in a row is known, and warns only.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.config import DriftConfig
from pipeline.metrics.drift import Distance
from pipeline.metrics.profile import MEASURES, Profile, merge_profiles
from pipeline.models.bundle import Bundle
from pipeline.scoring.labels import labelled_batches
from pipeline.scoring.report import BatchReport
from pipeline.workspace import Batch, Workspace

LEAST_EMPTY = 5  # fewer empty texts are no alarm, unless there are no others
Severity = Literal["warn", "hold"]


@dataclass(frozen=True)
class PastNight:
    """An earlier night; without health where that is unknown, or of another version of the model."""

    rows: int
    profile: Profile | None


@dataclass(frozen=True)
class DriftFinding:
    """Something about a night that a person should know, in a sentence that says what to do."""

    measure: str
    value: float
    threshold: float
    severity: Severity
    sentence: str


@dataclass(frozen=True)
class DriftCheck:
    """One measure of a night beside the reference, as a person reads it; PSI and JS where it has a histogram."""

    measure: str
    tonight: str
    reference: str
    verdict: str  # ok, warn or hold
    psi: float | None = None
    js: float | None = None


@dataclass(frozen=True)
class DriftReport:
    """What was compared, what was found, and why anything was not compared."""

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
        checks = [replace(check, verdict="warn") if check.verdict == "hold" else check for check in self.checks]
        return replace(self, checks=checks, findings=[replace(one, severity="warn") for one in self.findings])


def check_drift(
    tonight: Profile | None,
    reference: Profile | None,
    nights: Sequence[PastNight],
    config: DriftConfig,
    *,
    rows: int,
    empty: int,
) -> DriftReport:
    """Compare a night with the model's reference and with the nights before it.

    Args:
        tonight: its health; None where a part was labelled before health was kept.
        reference: of the model; None for a bundle from before there were any.
        nights: the published nights before, newest first.
        config: thresholds.
        rows: documents of the night.
        empty: how many of them are empty.
    """
    found = _judge_feed(rows, empty, reference, config) + _judge_volume(rows, nights, config)
    obstacle = _obstacle(tonight, reference) if rows else None
    if obstacle:
        found += DriftReport(notes=[obstacle])
    elif tonight and reference and tonight.non_empty:
        usual = [night.profile for night in nights if night.profile and night.profile.comparable(tonight)]
        known = usual[: config.least_nights] if len(usual) >= config.least_nights else []
        for measure in MEASURES:
            found += _judge_measure(measure, tonight, reference, known, config)
    return found if config.hold else found.warnings_only()


def _obstacle(tonight: Profile | None, reference: Profile | None) -> str | None:
    """Return why a night cannot be compared with a reference, if so."""
    if reference is None or not reference.non_empty:
        return "Not compared: the model was trained before references were kept; train again to get one."
    if tonight is None:
        return "Not compared: some of its parts were labelled before their health was kept."
    if not tonight.comparable(reference):
        return "Not compared: the model's reference has other bins; train again to get a new one."
    return None


def _judge_feed(rows: int, empty: int, reference: Profile | None, config: DriftConfig) -> DriftReport:
    """Judge whether anything came in at all."""
    if not rows:
        sentence = "The batch has no rows: the feed did not come; see where it is made, and ingest it with --replace."
        finding = DriftFinding("rows", 0.0, 1.0, "hold", sentence)
        return DriftReport([DriftCheck("empty texts", "no rows", "", "hold")], [finding])
    share, usual = empty / rows, reference.empty_share if reference else 0.0
    many = empty == rows or empty >= LEAST_EMPTY
    severity = _severity(share - usual, config.empty_warn, config.empty_hold) if many else None
    check = DriftCheck("empty texts", _percent(share), _percent(usual) if reference else "", severity or "ok")
    if severity is None:
        return DriftReport([check])
    threshold = config.empty_hold if severity == "hold" else config.empty_warn
    sentence = (
        f"{_percent(share)} of the texts are empty{_beside(usual, reference)}: the wrong column, or an export that "
        "failed; ingest the right one with --replace."
    )
    return DriftReport([check], [DriftFinding("empty", round(share - usual, 4), threshold, severity, sentence)])


def _judge_volume(rows: int, nights: Sequence[PastNight], config: DriftConfig) -> DriftReport:
    """Judge whether about as much came in as in the nights before."""
    if not rows or len(nights) < config.least_nights:
        return DriftReport()
    usual, lately = (
        statistics.median(night.rows for night in some) for some in (nights, nights[: config.least_nights])
    )
    limit = config.volume_factor
    if 1 / limit < rows / max(usual, 1) < limit:
        return DriftReport([DriftCheck("rows", f"{rows:,}", f"{usual:,.0f}", "ok")])
    known = 1 / limit < rows / max(lately, 1) < limit
    why = "a feed sent more than once, or the history with it" if rows > usual else "a feed that broke off"
    sentence = (
        f"{rows:,} rows came in, {usual:,.0f} is usual (the median of the last {len(nights)} nights): {why}; "
        f"compare it with its source.{_known(config.least_nights) if known else ''}"
    )
    severity: Severity = "warn" if known else "hold"
    finding = DriftFinding(
        "rows", round(rows / max(usual, 1), 4), limit if rows > usual else 1 / limit, severity, sentence
    )
    return DriftReport([DriftCheck("rows", f"{rows:,}", f"{usual:,.0f}", severity)], [finding])


def _judge_measure(
    measure: str, tonight: Profile, reference: Profile, known: Sequence[Profile], config: DriftConfig
) -> DriftReport:
    """Judge one histogram; a change that the nights before had too does not hold."""
    distance = _distance(measure, tonight, reference)
    severity = _severity(distance.psi, config.psi_warn, config.psi_hold)
    if severity and not distance.significant:
        severity = None
    threshold = config.psi_hold if severity == "hold" else config.psi_warn
    more = ""
    if severity and known and _distance(measure, tonight, merge_profiles(known)).psi < threshold:
        severity, more = "warn", f"{_known(len(known))} Train again with texts from them."
    now, before, sentence = _TELL[measure](tonight, reference)
    check = DriftCheck(_NAMES[measure], now, before, severity or "ok", round(distance.psi, 4), round(distance.js, 4))
    if severity is None:
        return DriftReport([check])
    return DriftReport([check], [DriftFinding(measure, round(distance.psi, 4), threshold, severity, sentence + more)])


def _distance(measure: str, one: Profile, other: Profile) -> Distance:
    return Distance.between(getattr(one, measure), getattr(other, measure))


def _severity(value: float, warn: float, hold: float) -> Severity | None:
    if value >= hold:
        return "hold"
    return "warn" if value >= warn else None


def _tell_labels(tonight: Profile, reference: Profile) -> tuple[str, str, str]:
    """Return the class whose share changed most: tonight, in the reference, and a sentence about it."""
    changes = [abs(tonight.labels.share(n) - reference.labels.share(n)) for n in range(len(tonight.labels.bins))]
    most = int(np.argmax(changes))
    name, now, before = tonight.labels.bins[most], tonight.labels.share(most), reference.labels.share(most)
    sentence = (
        f"{_percent(now)} of the labels are {name}, {_percent(before)} were in the model's reference: something "
        "happened, or the texts are of another kind; read some of them."
    )
    return f"{name} {_percent(now)}", f"{name} {_percent(before)}", sentence


def _tell_lengths(tonight: Profile, reference: Profile) -> tuple[str, str, str]:
    now, before = tonight.mean_length, reference.mean_length
    why = "texts of another kind, or the wrong column"
    if now < before / 2:
        why = "the wrong column, or texts that were cut off"
    elif now > before * 2:
        why = "the wrong column, or several joined, or markup left in (--set ingest.clean_html=true)"
    sentence = (
        f"Half of the texts have {_middle(tonight)} ({now:,.1f} on average), {_middle(reference)} ({before:,.1f}) in "
        f"the model's reference: {why}; read some of them."
    )
    return f"{now:,.1f} tokens", f"{before:,.1f} tokens", sentence


def _middle(profile: Profile) -> str:
    """Return the lengths between which the middle half of the texts lies, as far as the bins tell."""
    shares = np.cumsum(profile.lengths.counts) / max(profile.non_empty, 1)
    first, last = (int(np.searchsorted(shares, share)) for share in (0.25, 0.75))
    lows = profile.lengths.bins
    low, high = int(lows[first]), int(lows[last + 1]) - 1 if last + 1 < len(lows) else None
    if high is None:
        return f"{low:,} or more tokens"
    if high == low:
        return f"{low:,} tokens" if low > 1 else "1 token"
    return f"{low:,} to {high:,} tokens"


def _tell_unknown(tonight: Profile, reference: Profile) -> tuple[str, str, str]:
    now, before = _percent(tonight.unknown_share), _percent(reference.unknown_share)
    why = "another language, or the wrong column"
    if tonight.unknown_share < reference.unknown_share:
        why = "texts that repeat themselves, or that it was trained on"
    sentence = f"{now} of the words are unknown to the model, {before} were in its reference: {why}; read some of them."
    return now, before, sentence


def _tell_confidence(tonight: Profile, reference: Profile) -> tuple[str, str, str]:
    now, before = _percent(tonight.mean_confidence), _percent(reference.mean_confidence)
    why = "texts that repeat themselves, or that it was trained on; read some of them."
    if tonight.mean_confidence < reference.mean_confidence:
        why = "texts unlike those it was trained on; read the least sure ones, label some, and train again."
    return now, before, f"The model is {now} sure on average, {before} in its reference: {why}"


_NAMES = {"labels": "labels", "lengths": "length", "unknown_words": "unknown words", "confidence": "confidence"}
_TELL = {
    "labels": _tell_labels,
    "lengths": _tell_lengths,
    "unknown_words": _tell_unknown,
    "confidence": _tell_confidence,
}


def _known(nights: int) -> str:
    return f" The {nights} nights before were like it." if nights > 1 else " The night before was like it."


def _beside(usual: float, reference: Profile | None) -> str:
    return f", {_percent(usual)} were in the model's reference" if reference else ""


def _percent(share: float) -> str:
    """Return a share as a person reads it, with a decimal where it is small."""
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def earlier_nights(workspace: Workspace, bundle: Bundle, batch_id: str, limit: int) -> list[PastNight]:
    """Return the most recent published nights of a model but one, newest first.

    Those that the model was trained on are no nights, see `Bundle.learnt`. Health is that of the same version:
    another one has other words, and is sure of other things.
    """
    training_batches = {batch for batch, _ in bundle.training_batches}
    nights = [
        batch
        for batch in labelled_batches(workspace, bundle.name)
        if batch.published and batch.id != batch_id and batch.id not in training_batches
    ]
    nights.sort(key=lambda batch: (batch.manifest.get("created", ""), batch.id), reverse=True)
    return [
        PastNight(batch.rows, batch.profile if batch.manifest.get("model_digest") == bundle.digest else None)
        for batch in nights[:limit]
    ]


def check_batch_drift(
    workspace: Workspace, batch: Batch, bundle: Bundle, report: BatchReport, config: DriftConfig
) -> DriftReport:
    """Return how a batch that was labelled compares with the model's reference and the nights before."""
    if bundle.trained_on(batch):  # its words are known, and the model is surer of it than of any other
        return DriftReport(notes=[f"Not compared: {bundle.title} was trained on this batch."])
    nights = earlier_nights(workspace, bundle, batch.id, config.nights)
    return check_drift(
        report.profile, bundle.reference, nights, config, rows=report.rows, empty=report.counts.get("empty", 0)
    )

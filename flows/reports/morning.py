"""The morning report of a night: did it run, is every row accounted for, are the labels right, what changed, tasks."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from flows.reports.markdown import plural
from flows.reports.morning_answers import are_labels_right, are_rows_accounted_for, review_task, what_changed
from flows.reports.morning_sections import (
    changes_section,
    device_kind,
    labels_section,
    outliers_section,
    rows_section,
    run_section,
    trust_section,
)
from flows.reports.review import precision_violation
from pipeline.errors import BatchError, NightlabelError
from pipeline.nights.summary import LabelledNight, RowAccounting, held_batches, night_before
from pipeline.workspace import Batch, Workspace

if TYPE_CHECKING:
    from pipeline.ingest import IngestReport
    from pipeline.models.bundle import Bundle
    from pipeline.scoring.labels import LabelledBatch


@dataclass(frozen=True)
class Failure:
    """A stage of a night that failed, and why."""

    stage: str  # "ingest" or "labelling"
    error: Exception

    def __str__(self) -> str:
        kind = "" if isinstance(self.error, NightlabelError) else f"{type(self.error).__name__}: "
        return f"the {self.stage} failed: {kind}{self.error}"


@dataclass(frozen=True)
class NightResult:
    """The results of a night, for the morning report.

    Attributes:
        day: the day it belongs to.
        started: when it began, with its time zone.
        ended: when it ended.
        workspace: has its documents and labels.
        read: counts of the ingest; None if there was nothing to read, or reading failed.
        unlabelled_batches: the batches that had no labels when it began.
        bundle: the model to label them with; None if there was no such model.
        night: those that have labels now; None if none has.
        failures: the stages that failed.
    """

    day: datetime.date
    started: datetime.datetime
    ended: datetime.datetime
    workspace: Workspace
    read: IngestReport | None
    unlabelled_batches: Sequence[Batch]
    bundle: Bundle | None
    night: LabelledNight | None
    failures: Sequence[Failure]

    @property
    def idle(self) -> bool:
        """Whether there was nothing to do, and nothing failed."""
        nothing_read = self.read is None or self.read.already_ingested
        return not self.unlabelled_batches and not self.failures and nothing_read

    @property
    def worth_keeping(self) -> bool:
        """Whether there is something to report: a night in a workspace without documents leaves no report."""
        if self.idle or self.night or self.read:
            return not self.idle
        try:
            return bool(self.workspace.batches())
        except BatchError:
            return True

    @cached_property
    def held(self) -> list[tuple[str, LabelledBatch]]:
        """All held labels, of this night and of earlier ones, each with the model's name."""
        return held_batches(self.workspace)

    @cached_property
    def previous_night(self) -> LabelledNight | None:
        """The newest night before this one, by the same model."""
        if self.bundle is None or self.night is None:
            return None
        return night_before(self.workspace, self.bundle.name, [batch.id for batch in self.night.batches])

    @cached_property
    def accounts(self) -> list[RowAccounting]:
        """What became of the rows of each batch of this night, those without labels included."""
        labelled = {batch.id: batch for batch in self.night.batches} if self.night else {}
        return [RowAccounting.of(batch, labelled.get(batch.id)) for batch in self.unlabelled_batches]


def outcome(morning: NightResult) -> list[str]:
    """Return the counts of a night, as the parts of a line; failures are reported apart from it."""
    held_ids = [held.id for _, held in morning.held]
    held = [f"held: {', '.join(held_ids)}"] if held_ids else []
    if morning.night:
        counts = morning.night.counts
        labelled = f"{counts['scored']:,} labelled, {counts['review']:,} for review, {counts['empty']:,} empty"
        return [f"{counts['documents']:,} rows: {labelled}", *held]
    if morning.failures:
        return held
    batches = len(morning.workspace.batches())
    return [f"nothing to do: all {batches:,} batches are labelled", *held]


def idle_report(morning: NightResult) -> str:
    """Return the report of a night without work."""
    parts = [f"# Night of {morning.day.isoformat()}"]
    if morning.read:
        parts.append(f"Already ingested: the same rows are in batch {morning.read.batch_id}.")
    parts.append("Nothing to label: every batch has its labels.")
    return "\n\n".join([*parts, *(f"- {task}" for task in held_tasks(morning))])


def night_report(morning: NightResult, *, pictures: bool) -> str:
    """Return the report of a night as Markdown; its first screen answers the questions of a morning.

    Args:
        morning: the results of the night.
        pictures: embed them (for the UI and the file; a terminal cannot show them).
    """
    night, bundle, to_do = morning.night, morning.bundle, tasks(morning)
    answers = {
        "Did it run?": did_it_run(morning),
        "Is every row accounted for?": are_rows_accounted_for(morning.accounts),
    }
    if night and bundle:
        answers["Are the labels right?"] = are_labels_right(night, bundle)
        answers["What changed?"] = what_changed(night, morning.previous_night)
    answers["What to do?"] = f"{plural(len(to_do), 'thing')}, below." if to_do else "Nothing."
    parts = [
        f"# Night of {morning.day.isoformat()}",
        *(f"**{str(failure)[:1].upper()}{str(failure)[1:]}**" for failure in morning.failures),
        "\n".join(f"- **{question}** {answer}" for question, answer in answers.items()),
        "## What to do",
        "\n".join(f"{number}. {task}" for number, task in enumerate(to_do, start=1)) or "Nothing.",
        *rows_section(morning.accounts, night),
    ]
    if night and bundle:
        parts += [
            *changes_section(night, morning.previous_night),
            *trust_section(morning.workspace, night, bundle, pictures),
            *labels_section(night, bundle, pictures),
            *outliers_section(morning.workspace, night),
            *run_section(night),
        ]
    return "\n\n".join(part for part in parts if part)


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

"""The morning's report: did it run, is every row accounted for, are the labels right, what changed, what to do."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from flows.reports.markdown import percent
from flows.reports.night_sections import (
    changes_section,
    labels_section,
    means,
    outliers_section,
    rows_section,
    run_section,
    trust_section,
    variant_and_device,
)
from flows.reports.review import precision_violation
from flows.reports.selective import target_precision_line
from pipeline.errors import BatchError, NightlabelError
from pipeline.nights.summary import (
    LabelledNight,
    RowAccounting,
    estimate_accuracy,
    held_batches,
    label_shifts,
    night_before,
)
from pipeline.workspace import Batch, Workspace

if TYPE_CHECKING:
    from pipeline.ingest import IngestReport
    from pipeline.models.bundle import Bundle
    from pipeline.scoring.labels import LabelledBatch

LEAST_CHANGE = 0.01  # of a mean, for the first screen to mention it


@dataclass(frozen=True)
class Failure:
    """What a night could not do, and why."""

    what: str  # "ingest" or "labelling"
    error: Exception

    def __str__(self) -> str:
        known = isinstance(self.error, NightlabelError)
        return f"the {self.what} failed: {'' if known else f'{type(self.error).__name__}: '}{self.error}"


@dataclass(frozen=True)
class NightResult:
    """What a night leaves for the morning.

    Attributes:
        day: the day it belongs to.
        started: when it began, with its time zone.
        ended: when it was done.
        workspace: where everything lies.
        read: what became of what came in; None if nothing was to be read, or reading failed.
        wanted: the batches that had no labels.
        bundle: what was to label them; None if there was no such model.
        night: those that have labels now; None if none has.
        failures: what it could not do.
    """

    day: datetime.date
    started: datetime.datetime
    ended: datetime.datetime
    workspace: Workspace
    read: IngestReport | None
    wanted: Sequence[Batch]
    bundle: Bundle | None
    night: LabelledNight | None
    failures: Sequence[Failure]

    @property
    def idle(self) -> bool:
        """Whether there was nothing to do, and nothing went wrong."""
        return not self.wanted and not self.failures and (self.read is None or self.read.already_ingested)

    @property
    def worth_keeping(self) -> bool:
        """Whether there is something to report: a night in a workspace without documents leaves none."""
        if self.idle or self.night or self.read:
            return not self.idle
        try:
            return bool(self.workspace.batches())
        except BatchError:
            return True

    @cached_property
    def held(self) -> list[tuple[str, LabelledBatch]]:
        """All labels that wait for a person, of this night and of those before, each with the model's name."""
        return held_batches(self.workspace)

    @cached_property
    def before(self) -> LabelledNight | None:
        """The newest night before this one, by the same model."""
        if self.bundle is None or self.night is None:
            return None
        return night_before(self.workspace, self.bundle.name, [batch.id for batch in self.night.batches])

    @cached_property
    def accounts(self) -> list[RowAccounting]:
        """What became of the rows of each batch of this night, those without labels included."""
        labelled = {batch.id: batch for batch in self.night.batches} if self.night else {}
        return [RowAccounting.of(batch, labelled.get(batch.id)) for batch in self.wanted]


def outcome(morning: NightResult) -> list[str]:
    """Return what a night did, in the parts of a line; failures are told apart from it."""
    waiting = [held.id for _, held in morning.held]
    held = [f"held: {', '.join(waiting)}"] if waiting else []
    if morning.night:
        counts = morning.night.counts
        labelled = f"{counts['scored']:,} labelled, {counts['review']:,} for review, {counts['empty']:,} empty"
        return [f"{counts['documents']:,} rows: {labelled}", *held]
    if morning.failures:
        return held
    batches = len(morning.workspace.batches())
    return [f"nothing to do: all {batches:,} batches are labelled", *held]


def idle_report(morning: NightResult) -> str:
    """Return what there is to say of a night without work."""
    parts = [f"# Night of {morning.day.isoformat()}"]
    if morning.read:
        sources = "what came in was ingested before"
        parts.append(f"Already ingested: {sources}, as batch {morning.read.batch_id}.")
    parts.append("Nothing to label: every batch has its labels.")
    return "\n\n".join([*parts, *(f"- {line}" for line in _held_lines(morning))])


def night_report(morning: NightResult, *, pictures: bool) -> str:
    """Return the report of a night as Markdown; its first screen answers what one asks in the morning.

    Args:
        morning: what the night did.
        pictures: embed them (for the UI and the file; a terminal cannot show them).
    """
    parts = [
        f"# Night of {morning.day.isoformat()}",
        *(f"**{str(failure)[:1].upper()}{str(failure)[1:]}**" for failure in morning.failures),
        _answers(morning),
        "## What to do",
        _to_do(morning),
        *rows_section(morning.accounts, morning.night),
    ]
    if morning.night and morning.bundle:
        parts += [
            *changes_section(morning.night, morning.before),
            *trust_section(morning.workspace, morning.night, morning.bundle, pictures),
            *labels_section(morning.night, morning.bundle, pictures),
            *outliers_section(morning.workspace, morning.night),
            *run_section(morning.night),
        ]
    return "\n\n".join(part for part in parts if part)


def _answers(morning: NightResult) -> str:
    """Return the questions of a morning, each with its answer in a line or two."""
    answers = [("Did it run?", _ran(morning)), ("Is every row accounted for?", _accounted(morning))]
    if morning.night and morning.bundle:
        answers += [
            ("Are the labels right?", _accuracy(morning.night, morning.bundle)),
            ("What changed?", _changed(morning.night, morning.before)),
        ]
    tasks = len(_tasks(morning))
    answers.append(("What to do?", f"{tasks} thing{'' if tasks == 1 else 's'}, below." if tasks else "Nothing."))
    return "\n".join(f"- **{question}** {answer}" for question, answer in answers)


def _ran(morning: NightResult) -> str:
    late = "" if morning.started.date() == morning.day else f"on {morning.started:%Y-%m-%d} "
    minutes = f"{late}from {morning.started:%H:%M} to {morning.ended:%H:%M}"
    failed = " and ".join(failure.what for failure in morning.failures)
    if not morning.night:
        return f"The {failed} failed, {minutes}." if failed else f"Yes, {minutes}; there was nothing to label."
    manifest = morning.night.manifest
    answer = f"Not all of it: the {failed} failed" if failed else "Yes"
    return (
        f"{answer}, {minutes}: {manifest['model']} in {variant_and_device(morning.night)} ({manifest['device']}), "
        f"{morning.night.rows_per_second:,.0f} rows/s."
    )


def _accounted(morning: NightResult) -> str:
    """Return how the rows add up: every claim is computed here, from the numbers beside it."""
    wrong = [account.batch for account in morning.accounts if not account.adds_up]
    if wrong:
        return f"**No**: the rows of {', '.join(wrong)} do not add up; see below."
    if not morning.accounts:
        return "No new batch came in."
    labelled = [account for account in morning.accounts if account.statuses is not None]
    lines = ["Yes, every row is accounted for:", _sum_read(morning.accounts)]
    if labelled:
        lines.append(_sum_labelled(labelled))
    if waiting := len(morning.accounts) - len(labelled):
        lines.append(f"{waiting} batch{'' if waiting == 1 else 'es'} not labelled yet.")
    return " ".join(lines)


def _sum_read(accounts: Sequence[RowAccounting]) -> str:
    read, documents = (sum(getattr(one, name) for one in accounts) for name in ("rows_read", "documents"))
    duplicates, refused = (sum(getattr(one, name) for one in accounts) for name in ("duplicates", "refused"))
    return f"{read:,} rows read = {documents:,} documents + {duplicates:,} duplicates + {refused:,} refused;"


def _sum_labelled(accounts: Sequence[RowAccounting]) -> str:
    scored, review, empty = (
        sum((one.statuses or {})[name] for one in accounts) for name in ("scored", "review", "empty")
    )
    documents = sum(one.documents for one in accounts)
    return f"{documents:,} documents = {scored:,} scored + {review:,} for review + {empty:,} empty."


def _accuracy(night: LabelledNight, bundle: Bundle) -> str:
    """Return about how many labels are right, or why that cannot be said."""
    found = estimate_accuracy(night, bundle)
    promised = target_precision_line(night.manifest.get("promise"))
    reasons = " ".join(f"Of batch {batch} nothing can be said: {why}." for batch, why in found.left_out.items())
    if found.share is None:
        return f"{promised} {reasons}".strip()
    meant = "it meant on the test texts"
    if found.calibration_error is not None:
        meant += f", where it was off by {100 * found.calibration_error:.1f} points"
    what = "the likeliest labels" if bundle.thresholds is not None else "the labels"
    of = f" of {', '.join(found.batches)}" if found.left_out else ""
    answer = f"About {found.share:.0%} of {what}{of} are right, if confidence means tonight what {meant}."
    return " ".join(filter(None, [answer.replace("%", " %"), promised, reasons]))


def _changed(night: LabelledNight, before: LabelledNight | None) -> str:
    """Return what changed most since the night before."""
    if before is None:
        return "Nothing to compare with: this is the first night of this model."
    said = [f"{night.rows:,} rows after {before.rows:,}"]
    moved = [move for move in label_shifts(night, before) if not move.within_noise]
    if moved:
        said.append(f"{moved[0].label} {percent(moved[0].tonight)} after {percent(moved[0].before)}")
    else:
        said.append("the mix of labels as before")
    for name, now, then in means(night, before):
        if now is not None and then is not None and abs(now - then) >= LEAST_CHANGE:
            said.append(f"{name} {percent(now)} after {percent(then)}")
    if night.manifest["model"] != before.manifest["model"]:
        said.append(f"{night.manifest['model']} since tonight, {before.manifest['model']} before")
    if variant_and_device(night) != variant_and_device(before):
        said.append(f"{variant_and_device(night)}, {variant_and_device(before)} before")
    return f"Since {before.names}: {'; '.join(said)}."


def _to_do(morning: NightResult) -> str:
    return "\n".join(f"{number}. {task}" for number, task in enumerate(_tasks(morning), start=1)) or "Nothing."


def _tasks(morning: NightResult) -> list[str]:
    """Return what a person has to do, the most urgent first."""
    tasks = [
        f"Mend what made the {failure.what} fail, see above; then run this night again." for failure in morning.failures
    ]
    tasks += _held_lines(morning)
    if morning.night and morning.bundle:
        tasks += precision_violation(morning.workspace, morning.night, morning.bundle)
    batches = morning.night.batches if morning.night else []
    for batch in batches:
        if batch.published:
            tasks += [f"{batch.id}: {finding['sentence']}" for finding in batch.manifest.get("findings", [])]
    tasks += [line for batch in morning.wanted if (line := _refused_line(morning.workspace, batch))]
    tasks += [_review_line(morning.workspace, batch) for batch in batches if batch.manifest["counts"]["review"]]
    if morning.night and morning.bundle and morning.bundle.reference is None:
        tasks.append(f"Train again: {morning.bundle.title} has no reference for a night to be compared with.")
    return tasks


def _held_lines(morning: NightResult) -> list[str]:
    lines = []
    for model, batch in morning.held:
        several = len(morning.workspace.models_that_labelled(batch.id)) > 1
        command = f"nightlabel publish {batch.id}{f' --model {model}' if several else ''}"
        lines.append(f"{batch.id} is held, not published. {_why_held(batch)} If it is as it should be: `{command}`")
    return lines


def _why_held(batch: LabelledBatch) -> str:
    """Return the finding that weighs most, and how many more there are."""
    found = [finding for finding in batch.manifest.get("findings", []) if finding["severity"] == "hold"]
    if not found:
        return ""
    first = max(found, key=lambda finding: abs(math.log(max(finding["value"], 1e-9) / finding["threshold"])))
    more = len(found) - 1
    return first["sentence"] + (f" (And {more} more finding{'' if more == 1 else 's'}.)" if more else "")


def _refused_line(workspace: Workspace, batch: Batch) -> str:
    refused, reasons = batch.manifest["counts"]["rejects"], batch.manifest["reject_reasons"]
    if not refused:
        return ""
    why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda one: -one[1]))
    return f"{batch.id}: {refused:,} refused ({why}), kept in `{workspace.rejects_dir(batch.id)}`."


def _review_line(workspace: Workspace, batch: LabelledBatch) -> str:
    counts = batch.manifest["counts"]
    share = percent(counts["review"] / counts["documents"])
    several = len(workspace.models_that_labelled(batch.id)) > 1
    model = f" --model {batch.path.parent.name}" if several else ""
    command = f"nightlabel review export --batch {batch.id}{model}"
    return f"{batch.id}: {counts['review']:,} for review ({share}), status `review` in `{batch.path}`: `{command}`"

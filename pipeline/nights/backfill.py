"""Backfill: plan the runs for past nights that are missing, failed, or labelled by an older model."""

import datetime
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pipeline.errors import ConfigError
from pipeline.files import read_json
from pipeline.workspace import Batch, Workspace

BackfillReason = Literal["missing", "failed", "stale-model"]
NightState = Literal["never ran", "completed", "failed", "under way", "to come"]

BACKFILL_REASONS: tuple[BackfillReason, ...] = ("missing", "failed", "stale-model")
DEFAULT_REASONS: tuple[BackfillReason, ...] = ("missing", "failed")
MAX_DAYS = 1_000  # more is a mistyped year
NOT_RUN_AGAIN: dict[NightState, str] = {
    "to come": "is to come",
    "under way": "is under way",
    "completed": "brought no batch",
}
DATED = re.compile(r"(\d{4}-\d\d-\d\d)(?!\d)")


@dataclass(frozen=True)
class NightRun:
    """The nightly run of a day.

    Attributes:
        state: how it ended, or that it has not.
        state_name: the state's name on the server.
        run: id of the run that is under way or to come, else of the last one that ended.
        ingests: whether a new run of the night has files to read.
    """

    state: NightState
    state_name: str
    run: str | None = None
    ingests: bool = False


@dataclass(frozen=True)
class BackfillJob:
    """The work of one backfill run.

    Attributes:
        kind: run a night, label one batch, or only wait for an existing run.
        day: the day of the night.
        batch: id of the batch to label.
        run: id of the run to wait for, or of the last run that ended before; None without any.
    """

    kind: Literal["night", "batch", "wait"]
    day: datetime.date
    batch: str | None = None
    run: str | None = None


@dataclass(frozen=True)
class BackfillRow:
    """A row of the plan: a day, or one of its batches, and what to do."""

    day: datetime.date
    night: str
    batch: str | None
    documents: int | None
    labels: str
    action: str
    work: BackfillJob | None  # rows can share one


@dataclass(frozen=True)
class _BatchState:
    """The labels of a batch, and the last run that tried to label it alone.

    Attributes:
        batch: the documents.
        model: name@version that has labelled all of it, if any.
        labels: the state of its labels, in words.
        last_run: id of the run.
    """

    batch: Batch
    model: str | None
    labels: str
    last_run: str | None

    @property
    def is_dated(self) -> bool:
        return _date_in(self.batch.id) is not None

    @classmethod
    def read(cls, workspace: Workspace, batch: Batch, model_name: str, last_run: str | None) -> Self:
        from pipeline.scoring.labels import is_labelled_at

        folder = workspace.labels_dir(model_name, batch.id)
        if is_labelled_at(folder, batch):
            manifest = read_json(folder / "manifest.json")
            published = "published" if manifest.get("published", True) else "held"
            return cls(batch, manifest["model"], f"{manifest['model']}, {published}", last_run)
        if (folder / "manifest.json").exists():
            return cls(batch, None, "of other documents, or damaged", last_run)
        parts = sum((folder / part.name).exists() for part in batch.parts)
        return cls(batch, None, f"{parts} of {len(batch.parts)} parts" if parts else "none", last_run)


def check_days(first: datetime.date, last: datetime.date | None) -> None:
    """Check a range of days.

    Raises:
        ConfigError: it ends before it starts, or has more than `MAX_DAYS`.
    """
    if last is None:
        return
    if last < first:
        raise ConfigError(f"--to {last} is before --from {first}: give the earlier day to --from")
    if (last - first).days >= MAX_DAYS:
        raise ConfigError(f"--from {first} --to {last} are more than {MAX_DAYS:,} days: give a shorter range")


def check_reasons(names: Sequence[str]) -> list[BackfillReason]:
    """Return the named reasons in a fixed order; `DEFAULT_REASONS` without names.

    Raises:
        ConfigError: there is no such reason.
    """
    for name in names:
        if name not in BACKFILL_REASONS:
            raise ConfigError(f"--only {name}: choose from {', '.join(BACKFILL_REASONS)}")
    return [reason for reason in BACKFILL_REASONS if reason in (names or DEFAULT_REASONS)]


def plan_backfill(
    workspace: Workspace,
    model: str,
    nights: Mapping[datetime.date, NightRun],
    last_runs: Mapping[str, str],
    only: Collection[BackfillReason],
    zone: datetime.tzinfo,
) -> list[BackfillRow]:
    """Return the plan, by day and batch.

    A batch belongs to the day that its id begins with, or else to the day on which it was ingested.

    Args:
        workspace: where documents and labels lie.
        model: name@version; labels by another version are stale.
        nights: the nightly run of each day. Look up nights and last runs before this call: a run that ends in between
            is then seen on disk.
        last_runs: by batch, the last ended run that labelled it alone.
        only: the reasons to run a night or batch again.
        zone: the time zone of the nights.
    """
    batches = defaultdict(list)
    for batch in workspace.batches():
        batches[day_of(batch, zone)].append(batch)
    name = model.partition("@")[0]
    rows = []
    for day, night in sorted(nights.items()):
        states = [_BatchState.read(workspace, batch, name, last_runs.get(batch.id)) for batch in batches[day]]
        rows += _plan_day(day, night, states, model, only)
    return rows


def day_of(batch: Batch, zone: datetime.tzinfo) -> datetime.date:
    """Return the day that a batch belongs to."""
    created = datetime.datetime.fromisoformat(batch.manifest["created"])
    return _date_in(batch.id) or created.astimezone(zone).date()


def _date_in(batch_id: str) -> datetime.date | None:
    match = DATED.match(batch_id)
    try:
        return datetime.date.fromisoformat(match[1]) if match else None
    except ValueError:
        return None


def _plan_day(
    day: datetime.date, night: NightRun, batches: Sequence[_BatchState], model: str, only: Collection[BackfillReason]
) -> list[BackfillRow]:
    dated = [state for state in batches if state.is_dated]
    action, work = _plan_night(day, night, dated, only)
    rows = []
    if not dated and (work or not batches):
        rows.append(BackfillRow(day, night.state_name, None, None, "none", action, work))
    for state in batches:
        batch_action, batch_work = _plan_batch(day, night, state, (action, work), model, only)
        rows.append(
            BackfillRow(day, night.state_name, state.batch.id, state.batch.rows, state.labels, batch_action, batch_work)
        )
    return rows


def _plan_night(
    day: datetime.date, night: NightRun, dated: Sequence[_BatchState], only: Collection[BackfillReason]
) -> tuple[str, BackfillJob | None]:
    """Return what to do with the night of a day, given the batches whose ids begin with its date."""
    if dated and all(state.model for state in dated):
        return "nothing: labelled", None
    if night.state == "under way" and any(reason in only for reason in DEFAULT_REASONS):
        return "wait for its run", BackfillJob("wait", day, run=night.run)
    if night.state in NOT_RUN_AGAIN:
        return f"nothing: its night {NOT_RUN_AGAIN[night.state]}", None
    if not dated and not night.ingests:
        return "nothing: no batch of that day, and nightly has no sources", None
    if (reason := _reason(night)) not in only:
        return _not_asked(reason), None
    return "ingest and label" if night.ingests else "label", BackfillJob("night", day, run=night.run)


def _plan_batch(
    day: datetime.date,
    night: NightRun,
    state: _BatchState,
    of_night: tuple[str, BackfillJob | None],
    model: str,
    only: Collection[BackfillReason],
) -> tuple[str, BackfillJob | None]:
    """Return what to do with a batch, given what is done with the night of its day."""
    if state.model == model:
        return "nothing: labelled", None
    job = BackfillJob("batch", day, state.batch.id, state.last_run)
    if state.model:
        if "stale-model" in only:
            return f"label again with {model}", job
        return f"nothing: labelled; --only stale-model labels it with {model}", None
    if of_night[1] or night.state in ("to come", "under way"):
        return of_night  # a night labels every batch without labels
    reason = _reason(night)
    return ("label", job) if reason in only else (_not_asked(reason), None)


def _reason(night: NightRun) -> BackfillReason:
    return "failed" if night.state == "failed" else "missing"


def _not_asked(reason: BackfillReason) -> str:
    return f"nothing: without --only {reason}"

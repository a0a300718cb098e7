"""What is still to be done for nights that are past: what lies in the workspace, beside what became of each night."""

import datetime
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.files import read_json
from pipeline.workspace import Batch, Workspace

BackfillReason = Literal["missing", "failed", "stale-model"]
NightState = Literal["never ran", "completed", "failed", "under way", "to come"]

BACKFILL_REASONS: tuple[BackfillReason, ...] = ("missing", "failed", "stale-model")
BY_DEFAULT: tuple[BackfillReason, ...] = ("missing", "failed")
MOST_DAYS = 1_000  # more is a mistyped year
LEFT_ALONE: dict[NightState, str] = {
    "to come": "is to come",
    "under way": "is under way",
    "completed": "brought no batch",
}
DATED = re.compile(r"(\d{4}-\d\d-\d\d)(?!\d)")


@dataclass(frozen=True)
class NightRun:
    """What became of the night of a day.

    Attributes:
        fate: how it ended, or that it has not.
        said: the same as its server says it.
        run: the run that is under way or to come, else the last one that ended.
        ingests: whether the night, when it is run again, has files to read.
    """

    state: NightState
    state_name: str
    run: str | None = None
    ingests: bool = False


@dataclass(frozen=True)
class BackfillJob:
    """What one run is to do.

    Attributes:
        kind: run a night, label one batch, or only wait for a run that is there.
        day: the night's.
        batch: which one, if it is one.
        run: that is waited for, or that ended last before this work; None if there was none.
    """

    kind: Literal["night", "batch", "wait"]
    day: datetime.date
    batch: str | None = None
    run: str | None = None


@dataclass(frozen=True)
class BackfillRow:
    """A day, or one of its batches, and what is to be done."""

    day: datetime.date
    night: str
    batch: str | None
    documents: int | None
    labels: str
    action: str
    work: BackfillJob | None  # of several rows it can be the same


@dataclass(frozen=True)
class _Labelled:
    """A batch, and by which version of the model it is labelled whole; None if it is not."""

    batch: Batch
    by: str | None
    words: str
    tried: str | None  # by the run that ended last, see `plan`

    @property
    def is_dated(self) -> bool:
        return _date_in(self.batch.id) is not None


def check_days(first: datetime.date, last: datetime.date | None) -> None:
    """See that a range of days has an end after its start.

    Raises:
        ConfigError: it ends before it starts, or is too long to be meant.
    """
    if last is None:
        return
    if last < first:
        raise ConfigError(f"--to {last} is before --from {first}: give the earlier day to --from")
    if (last - first).days >= MOST_DAYS:
        raise ConfigError(f"--from {first} --to {last} are more than {MOST_DAYS:,} days: give a shorter range")


def check_reasons(names: Sequence[str]) -> list[BackfillReason]:
    """Return what is to be made up for; what is so by default if nothing is named.

    Raises:
        ConfigError: there is no such reason.
    """
    for name in names:
        if name not in BACKFILL_REASONS:
            raise ConfigError(f"--only {name}: choose from {', '.join(BACKFILL_REASONS)}")
    return [reason for reason in BACKFILL_REASONS if reason in (names or BY_DEFAULT)]


def plan_backfill(
    workspace: Workspace,
    model: str,
    nights: Mapping[datetime.date, NightRun],
    tries: Mapping[str, str],
    only: Collection[BackfillReason],
    zone: datetime.tzinfo,
) -> list[BackfillRow]:
    """Return what there is of each day, and what is to be done.

    A batch belongs to the day that its name begins with, or else to the day on which it was ingested.

    Args:
        workspace: where documents and labels lie.
        model: name@version; labels by another version of it are stale.
        nights: what became of each day's night.
        tries: for batches that were labelled by themselves, the run that ended last. Look this and the nights up
            before this is called: what ends meanwhile is then seen on disk.
        only: what to make up for.
        zone: the time zone of the nights.
    """
    batches = defaultdict(list)
    for batch in workspace.batches():
        batches[day_of(batch, zone)].append(batch)
    name = model.partition("@")[0]
    rows = []
    for day, night in sorted(nights.items()):
        there = [_labelled(workspace, batch, name, tries.get(batch.id)) for batch in batches[day]]
        rows += _plan_day(day, night, there, model, only)
    return rows


def day_of(batch: Batch, zone: datetime.tzinfo) -> datetime.date:
    """Return the day a batch is for."""
    created = datetime.datetime.fromisoformat(batch.manifest["created"])
    return _date_in(batch.id) or created.astimezone(zone).date()


def _date_in(batch_id: str) -> datetime.date | None:
    found = DATED.match(batch_id)
    try:
        return datetime.date.fromisoformat(found[1]) if found else None
    except ValueError:
        return None


def _labelled(workspace: Workspace, batch: Batch, model: str, tried: str | None) -> _Labelled:
    from pipeline.scoring.labels import is_labelled_at  # brings PyTorch along

    folder = workspace.labels_dir(model, batch.id)
    if is_labelled_at(folder, batch):
        manifest = read_json(folder / "manifest.json")
        published = "published" if manifest.get("published", True) else "held"
        return _Labelled(batch, manifest["model"], f"{manifest['model']}, {published}", tried)
    if (folder / "manifest.json").exists():
        return _Labelled(batch, None, "of other documents, or damaged", tried)
    done = sum((folder / part.name).exists() for part in batch.parts)
    return _Labelled(batch, None, f"{done} of {len(batch.parts)} parts" if done else "none", tried)


def _plan_day(
    day: datetime.date, night: NightRun, batches: Sequence[_Labelled], model: str, only: Collection[BackfillReason]
) -> list[BackfillRow]:
    action, work = _for_night(day, night, [one for one in batches if one.is_dated], only)
    rows = []
    if not any(one.is_dated for one in batches) and (work or not batches):
        rows.append(BackfillRow(day, night.state_name, None, None, "none", action, work))
    for one in batches:
        batch_action, batch_work = _for_batch(day, night, one, (action, work), model, only)
        rows.append(
            BackfillRow(day, night.state_name, one.batch.id, one.batch.rows, one.words, batch_action, batch_work)
        )
    return rows


def _for_night(
    day: datetime.date, night: NightRun, batches: Sequence[_Labelled], only: Collection[BackfillReason]
) -> tuple[str, BackfillJob | None]:
    """Return what to do with the night of a day, given the batches that bear its date."""
    if batches and all(one.by for one in batches):
        return "nothing: labelled", None
    if night.state == "under way" and any(reason in only for reason in BY_DEFAULT):
        return "wait for its run", BackfillJob("wait", day, run=night.run)
    if night.state in LEFT_ALONE:
        return f"nothing: its night {LEFT_ALONE[night.state]}", None
    if not batches and not night.ingests:
        return "nothing: no batch of that day, and nightly has no sources", None
    if (reason := _reason(night)) not in only:
        return _not_asked(reason), None
    return "ingest and label" if night.ingests else "label", BackfillJob("night", day, run=night.run)


def _for_batch(
    day: datetime.date,
    night: NightRun,
    one: _Labelled,
    of_night: tuple[str, BackfillJob | None],
    model: str,
    only: Collection[BackfillReason],
) -> tuple[str, BackfillJob | None]:
    """Return what to do with a batch, given what is done with the night of its day."""
    if one.by == model:
        return "nothing: labelled", None
    if one.by:
        if "stale-model" in only:
            return f"label again with {model}", BackfillJob("batch", day, one.batch.id, one.tried)
        return f"nothing: labelled; --only stale-model labels it with {model}", None
    if of_night[1] or night.state in ("to come", "under way"):
        return of_night  # a night labels whatever has no labels
    reason = _reason(night)
    return (
        ("label", BackfillJob("batch", day, one.batch.id, one.tried)) if reason in only else (_not_asked(reason), None)
    )


def _reason(night: NightRun) -> BackfillReason:
    return "failed" if night.state == "failed" else "missing"


def _not_asked(reason: BackfillReason) -> str:
    return f"nothing: without --only {reason}"

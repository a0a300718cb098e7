"""Nights that were missed or failed, and labels of an older model: planned, then run on the server, each once."""

import datetime
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType, WorkPoolStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for

from flows.reports.markdown import table
from flows.server.orchestrator import POOL, UNDER_WAY, Orchestrator
from pipeline.errors import ConfigError
from pipeline.models.registry import Registry
from pipeline.nights.backfill import (
    BackfillJob,
    BackfillReason,
    BackfillRow,
    NightRun,
    NightState,
    check_days,
    plan_backfill,
)
from pipeline.workspace import Workspace

TAG = "backfill"
PAGE = 200  # the most runs that a server tells of at once
ASK_SECONDS = 2.0
FATE_OF_STATE: dict[StateType | None, NightState] = {
    StateType.COMPLETED: "completed",
    StateType.FAILED: "failed",
    StateType.CRASHED: "failed",
    StateType.CANCELLED: "failed",
}
Say = Callable[[str], None]


def backfill(
    api_url: str,
    password: str | None,
    workspace: str,
    first: datetime.date,
    last: datetime.date | None,
    only: Sequence[BackfillReason],
    model: str | None,
    *,
    dry_run: bool,
    wait: bool,
    show: Say,
    say: Say,
) -> bool:
    """Show what is to be done for the nights of a range, and have it done.

    Args:
        api_url: of the server.
        password: of the server, as user:password.
        workspace: folder in which everything is kept, as this process sees it.
        first: the first day.
        last: the last day; None for today, in the time zone of the nights.
        only: what to make up for.
        model: name or name@version; None for the one that nights use.
        dry_run: show the plan only.
        wait: until all runs have ended.
        show: told the plan, as Markdown.
        say: told the progress, line by line.

    Returns:
        Whether every run that was waited for completed.

    Raises:
        ConfigError: the range lies in the future, the server has no such deployments, or it went away.
        ModelError: no such model.
    """
    with Orchestrator.at(api_url, password) as orchestrator:
        nights = NightRuns(orchestrator.client, workspace, model)
        rows = nights.plan(first, last, only)
        show(plan_table(rows))
        if dry_run or not any(row.work for row in rows):
            say("Dry run: nothing was started." if dry_run else "Nothing to do.")
            return True
        runs = nights.start(rows)
        if wait:
            return nights.watch(runs, say)
        for run in runs:
            say(f"{run.name}: {url_for(run) or run.id}")
        say(nights.blocked_reason() or f"The runs go on by themselves; in the UI they have the tag {TAG}.")
        return True


def plan_table(rows: Sequence[BackfillRow]) -> str:
    """Return a plan as a Markdown table."""
    cells = [(row.day, row.night, row.batch, row.documents, row.labels, row.action) for row in rows]
    return table(["night", "its run", "batch", "documents", "labels", "to do"], cells)


class NightRuns:
    """The nights of a workspace on a server: those that were, and those that are made up for."""

    def __init__(self, client: SyncPrefectClient, workspace: str, model: str | None) -> None:
        """Find deployments and model.

        Raises:
            ConfigError: the server has no such deployments.
            ModelError: no such model.
        """
        self.client = client
        self.place = Workspace(Path(workspace).resolve())
        self.nightly = _deployment(client, "nightly/nightly")
        self.score = _deployment(client, "score/score")
        self.model = model
        self.bundle = Registry(self.place).find(model or self.nightly.parameters.get("model"))
        self.zone = _zone(self.nightly)
        self._runs: dict[datetime.date, list[FlowRun]] = defaultdict(list)

    def plan(
        self, first: datetime.date, last: datetime.date | None, only: Sequence[BackfillReason]
    ) -> list[BackfillRow]:
        """Return what is to be done for the nights of a range; `last` is today if None.

        Raises:
            ConfigError: the range ends before it starts, or lies in the future.
        """
        today = datetime.datetime.now(self.zone).date()
        for option, day in (("--from", first), ("--to", last or today)):
            if day > today:
                raise ConfigError(f"{option} {day} is in the future: the last night that was is that of {today}")
        check_days(first, last or today)
        self._read_runs(first)
        days = [first + datetime.timedelta(days=number) for number in range(((last or today) - first).days + 1)]
        nights, tries = {day: self._night(day) for day in days}, self._tries()
        return plan_backfill(self.place, self.bundle.title, nights, tries, only, self.zone)

    def start(self, rows: Sequence[BackfillRow]) -> list[FlowRun]:
        """Create the runs of a plan, and return them; a run that is there already, from whomever, is not made twice.

        Raises:
            ConfigError: the server refuses a run.
        """
        works = dict.fromkeys(row.work for row in rows if row.work)
        runs = [self._start(work) for work in works]
        return list({run.id: run for run in runs}.values())

    def watch(self, runs: Sequence[FlowRun], say: Say) -> bool:
        """Wait for runs to end, and say when each starts and ends; return whether all completed.

        Raises:
            ConfigError: the server went away.
        """
        waiting = _Waiting(self, runs, say)
        try:
            while waiting.go_on():
                time.sleep(ASK_SECONDS)
        except httpx.HTTPError as error:
            raise ConfigError(
                f"the server went away ({error}); the runs go on with it, and the same command waits for them again"
            ) from error
        except KeyboardInterrupt:
            say("No longer waiting. The runs go on: see them in the UI, or give the same command again.")
            raise
        say(f"{len(runs) - waiting.failed} completed, {waiting.failed} failed")
        return not waiting.failed

    def blocked_reason(self) -> str | None:
        """Return why no run would start now, if so."""
        name = self.nightly.work_pool_name or POOL
        try:
            pool = self.client.read_work_pool(name)
        except ObjectNotFound:
            return f"There is no work pool {name}: the runs start after nightlabel setup."
        if pool.is_paused:
            return f"The work pool {name} is paused: the runs start when it goes on (nightlabel up, or the UI)."
        if pool.status == WorkPoolStatus.NOT_READY:
            return (
                f"No worker is there: the runs start when one comes (nightlabel up, or prefect worker start -p {name})."
            )
        return None

    def _read_runs(self, first: datetime.date) -> None:
        """Read the runs of the nights from a day on, in the order in which they were, or are to be, run."""
        midnight = datetime.datetime.combine(first, datetime.time(), self.zone)
        since = midnight - datetime.timedelta(days=2)  # a night may be run for a day ahead
        self._runs.clear()
        for run in self.find(deployment_id={"any_": [self.nightly.id]}, expected_start_time={"after_": since}):
            day = _day_of(run, self.zone)
            if day and self._is_ours(run):
                self._runs[day].append(run)
        for runs in self._runs.values():
            runs.sort(key=_moment)

    def find(self, **filters: Any) -> Iterator[FlowRun]:
        """Yield all runs that Prefect's filters let pass, by the time at which they were to start."""
        wanted = FlowRunFilter.model_validate(filters)
        for page in range(0, 1_000_000, PAGE):
            found = self.client.read_flow_runs(
                flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=PAGE, offset=page
            )
            yield from found
            if len(found) < PAGE:
                return

    def _is_ours(self, run: FlowRun) -> bool:
        """Return whether a run works in this workspace with this model, as far as it says so itself."""
        given = run.parameters.get("workspace")
        folder = Path(self.nightly.path or ".", given).resolve() if given else self.place.root
        name = str(run.parameters.get("model") or self.bundle.name).partition("@")[0]
        return folder == self.place.root and name == self.bundle.name

    def _night(self, day: datetime.date) -> NightRun:
        runs = self._runs[day]
        ingests = bool(self._parameters(day).get("sources"))
        for run in reversed(runs):
            if run.state_type not in FATE_OF_STATE:
                to_come = _moment(run) > datetime.datetime.now(datetime.UTC)
                return NightRun("to come" if to_come else "under way", str(run.state_name), str(run.id), ingests)
        if not runs:
            return NightRun("never ran", "never ran", None, ingests)
        last = runs[-1]
        return NightRun(FATE_OF_STATE[last.state_type], str(last.state_name), str(last.id), ingests)

    def _parameters(self, day: datetime.date) -> dict[str, Any]:
        """Return what the night of a day is given: as the schedule would now, or as a person had asked for it."""
        asked = [run for run in self._runs[day] if TAG not in run.tags]
        by_hand = asked and not asked[-1].auto_scheduled
        return dict(asked[-1].parameters if by_hand else self.nightly.parameters)

    def _start(self, work: BackfillJob) -> FlowRun:
        if work.kind == "wait":
            run = self.client.read_flow_run(UUID(str(work.run)))
            return run.model_copy(update={"name": f"nightly {work.day}"})  # it has its own name once it has started
        if work.kind == "night":
            day = work.day.isoformat()
            given = {**self._parameters(work.day), "date": day, "workspace": str(self.place.root)}
            if self.model:
                given["model"] = self.model
            return self._create(self.nightly, f"nightly {day}", given, f"{day} {self.bundle.name}", work.run)
        batch, model = str(work.batch), self.bundle.title
        given = {"batches": [batch], "model": model, "workspace": str(self.place.root)}
        return self._create(self.score, f"score {batch} with {model}", given, f"{batch} {model}", work.run)

    def _create(
        self, deployment: DeploymentResponse, name: str, given: dict[str, Any], work: str, after: str | None
    ) -> FlowRun:
        """Create a run, or return the one that was created for the same work after the same run."""
        key = f"{TAG} {work} {self.place.root} after {after or 'none'}"
        try:
            return self.client.create_flow_run_from_deployment(
                deployment.id, name=name, parameters=given, tags=[TAG], idempotency_key=key
            )
        except httpx.HTTPStatusError as error:
            raise ConfigError(f"the server refuses to run {name}: {error.response.text}") from error

    def _tries(self) -> dict[str, str]:
        """Return the last run that ended of those for one batch, with this version of the model in this workspace."""
        wanted = {"model": self.bundle.title, "workspace": str(self.place.root)}
        return {
            run.parameters["batches"][0]: str(run.id)
            for run in self.find(deployment_id={"any_": [self.score.id]}, tags={"all_": [TAG]})
            if run.state_type in FATE_OF_STATE and wanted.items() <= run.parameters.items()
        }


class _Waiting:
    """Runs whose end is waited for, and what was said of them already."""

    def __init__(self, nights: NightRuns, runs: Sequence[FlowRun], say: Say) -> None:
        self._nights, self._say = nights, say
        self._names = {run.id: run.name for run in runs}
        self._started: set[UUID] = set()
        self._told: str | None = None
        self.failed = 0

    def go_on(self) -> bool:
        """Say what has happened since; return whether there is still something to wait for."""
        found = [run for ids in _chunks(list(self._names)) for run in self._nights.find(id={"any_": ids})]
        for run in found:
            self._look_at(run)
        for gone in self._names.keys() - {run.id for run in found}:
            self._ended(gone, "deleted", good=False)
        if self._names and not any(run.state_type in UNDER_WAY for run in found):
            self._tell_obstacle()
        return bool(self._names)

    def _look_at(self, run: FlowRun) -> None:
        if run.start_time and run.id not in self._started:
            self._started.add(run.id)
            self._names[run.id] = run.name
            self._line(f"{run.name}: started")
        if run.state and run.state.is_final():
            first_line = (run.state.message or "").strip().partition("\n")[0]
            said = f"{run.state.name}: {first_line}" if first_line else str(run.state.name)
            self._ended(run.id, said, good=run.state.is_completed())

    def _ended(self, run_id: UUID, said: str, *, good: bool) -> None:
        self._line(f"{self._names.pop(run_id)}: {said}")
        self.failed += not good

    def _tell_obstacle(self) -> None:
        why = self._nights.blocked_reason()
        if why and why != self._told:
            self._line(why)
        self._told = why

    def _line(self, text: str) -> None:
        self._say(f"{datetime.datetime.now():%H:%M:%S}  {text}")


def _chunks(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    return (ids[start : start + PAGE] for start in range(0, len(ids), PAGE))


def _deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound as error:
        raise ConfigError(f"the server has no deployment {name}: set it up with nightlabel setup") from error


def _zone(nightly: DeploymentResponse) -> datetime.tzinfo:
    """Return the time zone in which a night has its date."""
    for one in nightly.schedules:
        if isinstance(one.schedule, CronSchedule) and one.schedule.timezone:
            return ZoneInfo(one.schedule.timezone)
    return datetime.datetime.now().astimezone().tzinfo or datetime.UTC


def _day_of(run: FlowRun, zone: datetime.tzinfo) -> datetime.date | None:
    """Return the day whose night a run is; None if it was given one that is none."""
    given = run.parameters.get("date")
    if not given:
        return run.expected_start_time.astimezone(zone).date() if run.expected_start_time else None
    try:
        return datetime.date.fromisoformat(str(given)[:10])
    except ValueError:
        return None


def _moment(run: FlowRun) -> datetime.datetime:
    """Return when a run started, or is to start."""
    return run.start_time or run.expected_start_time or datetime.datetime.max.replace(tzinfo=datetime.UTC)

"""nightlabel backfill: plans missed and failed nights and stale labels, and runs each once on the server."""

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
from flows.server.orchestrator import IN_PROGRESS, POOL, Orchestrator
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
PAGE = 200  # the server's limit of runs in one answer
POLL_SECONDS = 2.0
NIGHT_STATES: dict[StateType | None, NightState] = {
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
    """Plan the nights of a range, show the plan, and run it on the server.

    Args:
        api_url: of the server.
        password: of the server, as user:password.
        workspace: workspace folder, as this process sees it.
        first: first day.
        last: last day; None for today, in the time zone of the nights.
        only: reasons to run a night or a batch.
        model: name or name@version; None for the model of the nightly deployment.
        dry_run: show the plan only.
        wait: wait until all runs have ended.
        show: prints the plan, as Markdown.
        say: prints a line of progress.

    Returns:
        Whether all runs completed; True without waiting.

    Raises:
        ConfigError: the range lies in the future, the server lacks the deployments, or it stops answering.
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
        say(nights.blocked_reason() or f"The runs continue on the server; in the UI they have the tag {TAG}.")
        return True


def plan_table(rows: Sequence[BackfillRow]) -> str:
    """Return a plan as a Markdown table."""
    cells = [(row.day, row.night, row.batch, row.documents, row.labels, row.action) for row in rows]
    return table(["night", "its run", "batch", "documents", "labels", "to do"], cells)


class NightRuns:
    """The runs of a workspace's nights on a server: past ones, and those that backfill creates."""

    def __init__(self, client: SyncPrefectClient, workspace: str, model: str | None) -> None:
        """Read the deployments, and find the model.

        Raises:
            ConfigError: the server lacks a deployment.
            ModelError: no such model.
        """
        self.client = client
        self.workspace = Workspace(Path(workspace).resolve())
        self.nightly = _deployment(client, "nightly/nightly")
        self.score = _deployment(client, "score/score")
        self.model = model
        self.bundle = Registry(self.workspace).find(model or self.nightly.parameters.get("model"))
        schedules = [entry.schedule for entry in self.nightly.schedules]
        zones = [ZoneInfo(cron.timezone) for cron in schedules if isinstance(cron, CronSchedule) and cron.timezone]
        self.zone = zones[0] if zones else datetime.datetime.now().astimezone().tzinfo or datetime.UTC
        self._runs: dict[datetime.date, list[FlowRun]] = defaultdict(list)

    def plan(
        self, first: datetime.date, last: datetime.date | None, only: Sequence[BackfillReason]
    ) -> list[BackfillRow]:
        """Return the plan for the nights of a range; `last` is today if None.

        Raises:
            ConfigError: the range ends before it starts, or lies in the future.
        """
        today = datetime.datetime.now(self.zone).date()
        for option, day in (("--from", first), ("--to", last or today)):
            if day > today:
                raise ConfigError(f"{option} {day} is in the future: the latest night is that of {today}")
        check_days(first, last or today)
        self._read_runs(first)
        days = [first + datetime.timedelta(days=number) for number in range(((last or today) - first).days + 1)]
        nights = {day: self._night(day) for day in days}
        return plan_backfill(self.workspace, self.bundle.title, nights, self._attempts(), only, self.zone)

    def start(self, rows: Sequence[BackfillRow]) -> list[FlowRun]:
        """Create the runs of a plan, and return them, existing ones included: no run is created twice.

        Raises:
            ConfigError: the server refuses a run.
        """
        runs = [self._start(job) for job in dict.fromkeys(row.work for row in rows if row.work)]
        return list({run.id: run for run in runs}.values())

    def watch(self, runs: Sequence[FlowRun], say: Say) -> bool:
        """Wait for runs to end, and print when each starts and ends; return whether all completed.

        Raises:
            ConfigError: the server stops answering.
        """
        waiting = RunWatch(self, runs, say)
        try:
            while waiting.poll():
                time.sleep(POLL_SECONDS)
        except httpx.HTTPError as error:
            raise ConfigError(
                f"the server does not answer ({error}); the runs continue, and the same command waits for them again"
            ) from error
        except KeyboardInterrupt:
            say("No longer waiting. The runs continue: see them in the UI, or repeat the command.")
            raise
        say(f"{len(runs) - waiting.failed} completed, {waiting.failed} failed")
        return not waiting.failed

    def blocked_reason(self) -> str | None:
        """Return why no run can start now; None if runs can start."""
        name = self.nightly.work_pool_name or POOL
        try:
            pool = self.client.read_work_pool(name)
        except ObjectNotFound:
            return f"There is no work pool {name}: the runs start after nightlabel setup."
        if pool.is_paused:
            return f"The work pool {name} is paused: the runs start when it resumes (nightlabel up, or the UI)."
        if pool.status == WorkPoolStatus.NOT_READY:
            return f"No worker is running: the runs start with one (nightlabel up, or prefect worker start -p {name})."
        return None

    def _read_runs(self, first: datetime.date) -> None:
        """Read the runs of the nights from a day on that use this workspace and this model, in order of their time."""
        midnight = datetime.datetime.combine(first, datetime.time(), self.zone)
        since = midnight - datetime.timedelta(days=2)  # a run may be for a later day than its own
        self._runs.clear()
        for run in self.find(deployment_id={"any_": [self.nightly.id]}, expected_start_time={"after_": since}):
            day = _day_of(run, self.zone)
            path = run.parameters.get("workspace")
            folder = Path(self.nightly.path or ".", path).resolve() if path else self.workspace.root
            name = str(run.parameters.get("model") or self.bundle.name).partition("@")[0]
            if day and folder == self.workspace.root and name == self.bundle.name:
                self._runs[day].append(run)
        for runs in self._runs.values():
            runs.sort(key=_time_of)

    def find(self, **filters: Any) -> Iterator[FlowRun]:
        """Yield all runs that pass Prefect's filters, by the time at which they were to start."""
        flow_run_filter = FlowRunFilter.model_validate(filters)
        for offset in range(0, 1_000_000, PAGE):
            runs = self.client.read_flow_runs(
                flow_run_filter=flow_run_filter, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=PAGE, offset=offset
            )
            yield from runs
            if len(runs) < PAGE:
                return

    def _night(self, day: datetime.date) -> NightRun:
        runs = self._runs[day]
        ingests = bool(self._parameters(day).get("sources"))
        for run in reversed(runs):
            if run.state_type not in NIGHT_STATES:
                to_come = _time_of(run) > datetime.datetime.now(datetime.UTC)
                return NightRun("to come" if to_come else "under way", str(run.state_name), str(run.id), ingests)
        if not runs:
            return NightRun("never ran", "never ran", None, ingests)
        last = runs[-1]
        return NightRun(NIGHT_STATES[last.state_type], str(last.state_name), str(last.id), ingests)

    def _parameters(self, day: datetime.date) -> dict[str, Any]:
        """Return the parameters of a day's night: those of its last run by hand, else those of the deployment."""
        runs = [run for run in self._runs[day] if TAG not in run.tags]
        by_hand = runs and not runs[-1].auto_scheduled
        return dict(runs[-1].parameters if by_hand else self.nightly.parameters)

    def _start(self, job: BackfillJob) -> FlowRun:
        if job.kind == "wait":
            run = self.client.read_flow_run(UUID(str(job.run)))
            return run.model_copy(update={"name": f"nightly {job.day}"})  # it gets its own name when it starts
        if job.kind == "night":
            day = job.day.isoformat()
            parameters = {**self._parameters(job.day), "date": day, "workspace": str(self.workspace.root)}
            if self.model:
                parameters["model"] = self.model
            return self._create(self.nightly, f"nightly {day}", parameters, f"{day} {self.bundle.name}", job.run)
        batch, model = str(job.batch), self.bundle.title
        parameters = {"batches": [batch], "model": model, "workspace": str(self.workspace.root)}
        return self._create(self.score, f"score {batch} with {model}", parameters, f"{batch} {model}", job.run)

    def _create(
        self, deployment: DeploymentResponse, name: str, parameters: dict[str, Any], job: str, after: str | None
    ) -> FlowRun:
        """Create a run, or return the one that was created for the same job after the same run."""
        key = f"{TAG} {job} {self.workspace.root} after {after or 'none'}"
        try:
            return self.client.create_flow_run_from_deployment(
                deployment.id, name=name, parameters=parameters, tags=[TAG], idempotency_key=key
            )
        except httpx.HTTPStatusError as error:
            raise ConfigError(f"the server refuses to run {name}: {error.response.text}") from error

    def _attempts(self) -> dict[str, str]:
        """Return by batch the last backfill run that ended, of this version in this workspace."""
        expected = {"model": self.bundle.title, "workspace": str(self.workspace.root)}
        return {
            run.parameters["batches"][0]: str(run.id)
            for run in self.find(deployment_id={"any_": [self.score.id]}, tags={"all_": [TAG]})
            if run.state_type in NIGHT_STATES and expected.items() <= run.parameters.items()
        }


class RunWatch:
    """Runs whose end is awaited, and what has been printed about them."""

    def __init__(self, nights: NightRuns, runs: Sequence[FlowRun], say: Say) -> None:
        self._nights, self._say = nights, say
        self._names = {run.id: run.name for run in runs}
        self._started: set[UUID] = set()
        self._reason: str | None = None
        self.failed = 0

    def poll(self) -> bool:
        """Print what has happened since the last call; return whether runs remain."""
        ids = list(self._names)
        pages = [ids[start : start + PAGE] for start in range(0, len(ids), PAGE)]
        runs = [run for page in pages for run in self._nights.find(id={"any_": page})]
        for run in runs:
            if run.start_time and run.id not in self._started:
                self._started.add(run.id)
                self._names[run.id] = run.name
                self._print(f"{run.name}: started")
            if run.state and run.state.is_final():
                first_line = (run.state.message or "").strip().partition("\n")[0]
                outcome = f"{run.state.name}: {first_line}" if first_line else str(run.state.name)
                self._finish(run.id, outcome, completed=run.state.is_completed())
        for deleted in self._names.keys() - {run.id for run in runs}:
            self._finish(deleted, "deleted", completed=False)
        if self._names and not any(run.state_type in IN_PROGRESS for run in runs):
            reason = self._nights.blocked_reason()
            if reason and reason != self._reason:
                self._print(reason)
            self._reason = reason
        return bool(self._names)

    def _finish(self, run_id: UUID, outcome: str, *, completed: bool) -> None:
        self._print(f"{self._names.pop(run_id)}: {outcome}")
        self.failed += not completed

    def _print(self, line: str) -> None:
        self._say(f"{datetime.datetime.now():%H:%M:%S}  {line}")


def _deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound as error:
        raise ConfigError(f"the server has no deployment {name}: set it up with nightlabel setup") from error


def _day_of(run: FlowRun, zone: datetime.tzinfo) -> datetime.date | None:
    """Return the day of a run's night; None if its parameter is not a date."""
    date = run.parameters.get("date")
    if not date:
        return run.expected_start_time.astimezone(zone).date() if run.expected_start_time else None
    try:
        return datetime.date.fromisoformat(str(date)[:10])
    except ValueError:
        return None


def _time_of(run: FlowRun) -> datetime.datetime:
    """Return when a run started, or is scheduled to start."""
    return run.start_time or run.expected_start_time or datetime.datetime.max.replace(tzinfo=datetime.UTC)

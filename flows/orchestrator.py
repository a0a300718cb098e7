"""A Prefect server, and what must be on it: a work pool, the deployments, and what watches over runs."""

import asyncio
import datetime
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas.schedules import CronSchedule as DatedSchedule
from prefect.states import Crashed

from pipeline.errors import ConfigError

POOL = "nightlabel"
SILENCE = datetime.timedelta(seconds=90)  # three heartbeats
UNDER_WAY = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
ENDS = ("Completed", "Failed", "Cancelled", "Crashed")
AGAIN = "Run it again: what is labelled already is not done twice."
WATCH = "nightlabel: crash runs that fell silent"


class Orchestrator:
    """A Prefect server that answers."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client

    @classmethod
    @contextmanager
    def at(cls, api_url: str) -> Iterator["Orchestrator"]:
        with SyncPrefectClient(api_url) as client:
            yield cls(client)

    def set_up(self, prefect_file: Path, environment: Mapping[str, str]) -> None:
        """Make the work pool, the automations and the deployments what they should be; what is right stays.

        Args:
            prefect_file: the deployments.
            environment: of the command that deploys.

        Raises:
            ConfigError: a deployment cannot be made; with what Prefect says of it.
        """
        self._open_pool()
        self._watch_heartbeats()
        ended = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(prefect_file), "--all"],
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            said = (ended.stdout + ended.stderr).strip().splitlines()
            raise ConfigError(f"{prefect_file} cannot be deployed: {said[-1] if said else 'Prefect says nothing'}")

    def _open_pool(self) -> None:
        try:
            pool = self.client.read_work_pool(POOL)
        except ObjectNotFound:
            self.client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            return
        if pool.is_paused:
            self.pause(False)

    def pause(self, paused: bool) -> None:
        """Make the work pool start no further runs, or go on; what was due meanwhile starts then."""
        self.client.update_work_pool(POOL, WorkPoolUpdate(is_paused=paused))

    def _watch_heartbeats(self) -> None:
        """A run whose process was killed cannot say so: it is marked as crashed once its heartbeats stay away."""
        wanted = AutomationCore(
            name=WATCH,
            description="A run whose process is gone would stay Running for ever.",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ENDS)},
                match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=SILENCE,
            ),
            actions=[
                ChangeFlowRunState(
                    name=None,
                    state=StateType.CRASHED,
                    force=False,
                    message=f"The process of this run is gone: killed, or its machine went down. {AGAIN}",
                )
            ],
        )
        if not self.client.read_automations_by_name(WATCH):
            self.client.create_automation(wanted)

    def under_way(self) -> list[FlowRun]:
        """Return the runs that the pool's workers have in hand, and the runs inside of them."""
        found = self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": UNDER_WAY}}}),
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [POOL]}}),
        )
        inner = found
        while inner:
            inner = self.client.read_flow_runs(
                flow_run_filter=FlowRunFilter.model_validate(
                    {
                        "state": {"type": {"any_": UNDER_WAY}},
                        "parent_flow_run_id": {"any_": [run.id for run in inner]},
                    }
                )
            )
            found = [*found, *inner]
        return found

    def crash_leftovers(self) -> list[str]:
        """Mark runs that no worker has in hand any more as crashed, and return their names."""
        left = self.under_way()
        for run in left:
            state: State[None] = Crashed(message=f"Its worker was stopped. {AGAIN}")
            self.client.set_flow_run_state(UUID(str(run.id)), state, force=True)
        return [run.name for run in left]

    def next_night(self) -> str:
        """Return when the next night runs, in words."""
        deployment = self.client.read_deployment_by_name("nightly/nightly")
        zones = {}
        for one in deployment.schedules:
            if not one.active or deployment.paused or not isinstance(one.schedule, CronSchedule):
                continue
            zone = one.schedule.timezone or "UTC"
            dates = asyncio.run(DatedSchedule(cron=one.schedule.cron, timezone=zone).get_dates(n=1))
            zones[dates[0]] = zone
        if not zones:
            return "the schedule of nightly is switched off"
        first = min(zones)
        return f"the next night runs at {first:%Y-%m-%d %H:%M} ({zones[first]})"

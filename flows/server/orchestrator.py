"""Setting up a Prefect server: work pool, concurrency limit, deployments, automations."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import DeploymentSchedule, FlowRun, State, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas.schedules import CronSchedule as DatedSchedule
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.common import SCORING_SLOT
from flows.server.automations import (
    RERUN_HINT,
    crash_silent_runs,
    label_announced_batches,
    notify_failed_runs,
    notify_held_batches,
)
from pipeline.errors import ConfigError

PREFECT_FILE = Path("deploy", "prefect.yaml")
POOL = "nightlabel"
WEBHOOK = "nightlabel"
IN_PROGRESS = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


class Orchestrator:
    """A Prefect server, through its API."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client

    @classmethod
    @contextmanager
    def at(cls, api_url: str, password: str | None = None) -> Iterator["Orchestrator"]:
        """Open a client of the API at a URL, with credentials as user:password."""
        with (
            temporary_settings({PREFECT_API_URL: api_url, PREFECT_API_AUTH_STRING: password}),
            get_client(sync_client=True) as client,
        ):
            yield cls(client)

    def set_up(self, prefect_file: Path, environment: Mapping[str, str], webhook: str | None = None) -> None:
        """Create or update work pool, concurrency limit, deployments and automations.

        A schedule or an automation that was switched on or off in the UI stays so, and so does a changed limit.

        Args:
            prefect_file: the deployments.
            environment: of the deploying command.
            webhook: URL to notify of failed and held nights; None keeps the present one.

        Raises:
            ConfigError: a deployment fails, with Prefect's reason; or the webhook is not a URL.
        """
        check_webhook(webhook)
        try:
            if self.client.read_work_pool(POOL).is_paused:
                self.pause(False)
        except ObjectNotFound:
            self.client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        try:
            self.client.read_global_concurrency_limit_by_name(SCORING_SLOT)
        except ObjectNotFound:  # one scoring run at a time; with several GPUs, raise the limit in the UI
            self.client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=SCORING_SLOT, limit=1))
        before = self._schedules()
        self._deploy(prefect_file, environment)
        for key, schedule in self._schedules().items():
            if key in before and before[key].active != schedule.active:
                self.client.update_deployment_schedule(key[0], schedule.id, active=before[key].active)
        self._ensure(crash_silent_runs())
        self._ensure(label_announced_batches(self.client.read_deployment_by_name("score/score").id))
        block = self._webhook_block(webhook)
        if block:
            self._ensure(notify_failed_runs(block))
            self._ensure(notify_held_batches(block))

    def _schedules(self) -> dict[tuple[UUID, str], DeploymentSchedule]:
        """Return the schedules that have a slug, by deployment and slug."""
        return {
            (deployment.id, schedule.slug): schedule
            for deployment in self.client.read_deployments(limit=200)
            for schedule in deployment.schedules
            if schedule.slug
        }

    def _deploy(self, prefect_file: Path, environment: Mapping[str, str]) -> None:
        ended = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(prefect_file), "--all"],
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            output = ended.stdout + ended.stderr
            invalid = re.search(r"Value error, (.+?)(?: \[type=|$)", output, re.MULTILINE)
            lines = [line.strip() for line in output.splitlines() if line.strip()]
            reason = invalid[1] if invalid else next(reversed(lines), "Prefect does not say why")
            raise ConfigError(f"{prefect_file} cannot be deployed: {reason}")

    def pause(self, paused: bool) -> None:
        """Pause or resume the work pool; runs that were due meanwhile start when it resumes."""
        self.client.update_work_pool(POOL, WorkPoolUpdate(is_paused=paused))

    def _ensure(self, automation: AutomationCore) -> None:
        """Create an automation, or update one of an earlier version; one that was switched off stays so."""
        for stored in self.client.read_automations_by_name(automation.name):
            if stored.tags != automation.tags:
                self.client.update_automation(stored.id, automation.model_copy(update={"enabled": stored.enabled}))
            return
        self.client.create_automation(automation)

    def _webhook_block(self, url: str | None) -> UUID | None:
        """Return the id of the block with the webhook's URL, set to `url` if given; None if there is no block."""
        if url:
            headers = SecretDict({"Content-Type": "application/json"})
            Webhook(url=SecretStr(url), headers=headers).save(WEBHOOK, overwrite=True, client=None)
        try:
            return self.client.read_block_document_by_name(WEBHOOK, "webhook").id
        except ObjectNotFound:
            return None

    def in_progress(self) -> list[FlowRun]:
        """Return the runs of the pool's workers, and their subflow runs."""
        runs = self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": IN_PROGRESS}}}),
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [POOL]}}),
        )
        subflows = runs
        while subflows:
            subflows = self.client.read_flow_runs(
                flow_run_filter=FlowRunFilter.model_validate(
                    {
                        "state": {"type": {"any_": IN_PROGRESS}},
                        "parent_flow_run_id": {"any_": [run.id for run in subflows]},
                    }
                )
            )
            runs = [*runs, *subflows]
        return runs

    def crash_leftovers(self) -> list[str]:
        """Mark the runs in progress as crashed, once no worker runs them any more; return their names."""
        runs = self.in_progress()
        for run in runs:
            state: State[None] = Crashed(message=f"Its worker was stopped. {RERUN_HINT}")
            self.client.set_flow_run_state(UUID(str(run.id)), state, force=True)
        return [run.name for run in runs]

    def next_night(self) -> str:
        """Return a phrase that says when the next night runs."""
        deployment = self.client.read_deployment_by_name("nightly/nightly")
        zones = {}
        for entry in deployment.schedules:
            if not entry.active or deployment.paused or not isinstance(entry.schedule, CronSchedule):
                continue
            zone = entry.schedule.timezone or "UTC"
            dates = asyncio.run(DatedSchedule(cron=entry.schedule.cron, timezone=zone).get_dates(n=1))
            zones[dates[0]] = zone
        if not zones:
            return "the schedule of nightly is switched off"
        first = min(zones)
        return f"the next night runs at {first:%Y-%m-%d %H:%M} ({zones[first]})"


def check_webhook(webhook: str | None) -> None:
    """Check the URL of a webhook.

    Raises:
        ConfigError: it is not an http(s) URL.
    """
    if webhook and not (webhook.startswith(("http://", "https://")) and urlsplit(webhook).hostname):
        raise ConfigError(f"--webhook {webhook}: give a URL that starts with http:// or https://")

"""A Prefect server, and what must be on it: a work pool, the deployments, and what watches over runs."""

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
UNDER_WAY = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


class Orchestrator:
    """A Prefect server that answers."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client

    @classmethod
    @contextmanager
    def at(cls, api_url: str, password: str | None = None) -> Iterator["Orchestrator"]:
        with (
            temporary_settings({PREFECT_API_URL: api_url, PREFECT_API_AUTH_STRING: password}),
            get_client(sync_client=True) as client,
        ):
            yield cls(client)

    def set_up(self, prefect_file: Path, environment: Mapping[str, str], webhook: str | None = None) -> None:
        """Make pool, limits, deployments and automations what they should be; what is right stays.

        What a person has switched off or on in the UI, a schedule or an automation, stays so.

        Args:
            prefect_file: the deployments.
            environment: of the command that deploys.
            webhook: address that is told of failed and held nights; None leaves it as it is.

        Raises:
            ConfigError: a deployment cannot be made, with what Prefect says of it; or the webhook is no address.
        """
        check_webhook(webhook)
        self._open_pool()
        self._limit_scoring()
        before = self._schedules()
        self._deploy(prefect_file, environment)
        for key, schedule in self._schedules().items():
            if key in before and before[key].active != schedule.active:
                self.client.update_deployment_schedule(key[0], schedule.id, active=before[key].active)
        self._automate(webhook)

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
            raise ConfigError(f"{prefect_file} cannot be deployed: {_reason(ended.stdout + ended.stderr)}")

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

    def _limit_scoring(self) -> None:
        """One scoring at a time; whoever has several GPUs raises the limit in the UI, and it stays raised."""
        try:
            self.client.read_global_concurrency_limit_by_name(SCORING_SLOT)
        except ObjectNotFound:
            self.client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=SCORING_SLOT, limit=1))

    def _automate(self, webhook: str | None) -> None:
        score = self.client.read_deployment_by_name("score/score")
        self._ensure(crash_silent_runs())
        self._ensure(label_announced_batches(score.id))
        block = self._webhook_block(webhook)
        if block:
            self._ensure(notify_failed_runs(block))
            self._ensure(notify_held_batches(block))

    def _ensure(self, wanted: AutomationCore) -> None:
        """Create an automation, or bring one of an earlier version up to date; one switched off stays so."""
        for there in self.client.read_automations_by_name(wanted.name):
            if there.tags != wanted.tags:
                self.client.update_automation(there.id, wanted.model_copy(update={"enabled": there.enabled}))
            return
        self.client.create_automation(wanted)

    def _webhook_block(self, url: str | None) -> UUID | None:
        """Return the block with the webhook's address, set to `url` if that is given; None where there is none."""
        if url:
            headers = SecretDict({"Content-Type": "application/json"})
            Webhook(url=SecretStr(url), headers=headers).save(WEBHOOK, overwrite=True, client=None)
        try:
            return self.client.read_block_document_by_name(WEBHOOK, "webhook").id
        except ObjectNotFound:
            return None

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
            state: State[None] = Crashed(message=f"Its worker was stopped. {RERUN_HINT}")
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


def check_webhook(webhook: str | None) -> None:
    """See that a webhook can be posted to.

    Raises:
        ConfigError: it is no address.
    """
    if webhook and not (webhook.startswith(("http://", "https://")) and urlsplit(webhook).hostname):
        raise ConfigError(f"--webhook {webhook}: give an address that starts with http:// or https://")


def _reason(said: str) -> str:
    """Return the line of a failed command that says why: a wrong value's, else the last one."""
    wrong = re.search(r"Value error, (.+?)(?: \[type=|$)", said, re.MULTILINE)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return wrong[1] if wrong else next(reversed(lines), "Prefect does not say why")

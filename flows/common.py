"""What all flows share: when a retry helps, what a run is called, and what its log and its page in the UI show."""

import datetime
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any, NoReturn, cast
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Failed
from prefect.tasks import Task
from prefect.utilities.urls import url_for

from flows.server.automations import BATCH
from pipeline.errors import NightlabelError

DEFAULT_WORKSPACE = ""  # a run that names no workspace takes the one of the process it runs in
SCORING_SLOT = "nightlabel-scoring"  # of the server's concurrency limit: how many score at once
LEASE_SECONDS = 60.0  # the slot of a run that was killed is free after so long
PATIENCE_SECONDS = 180.0  # for a server that is away, with what a run cannot do without
UI_SECONDS = 5.0  # progress in the UI is a call to the API each time


def is_transient(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 - Prefect's signature
    """Return whether trying again can help: a disk or network that failed, not input that is wrong."""
    try:
        state.result()
    except (NightlabelError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
        return False
    except OSError:
        return True
    except Exception:
        return False
    return False


RETRY: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [5, 30], "retry_condition_fn": is_transient}


def scheduled_day() -> datetime.date:
    """Return the day this run was scheduled for, in local time: a late run belongs to its own night."""
    scheduled = flow_run.scheduled_start_time
    return scheduled.astimezone().date() if scheduled else datetime.datetime.now().astimezone().date()


def file_names(sources: Sequence[str]) -> str:
    """Return what a run's name says of its sources: the first one without its folders, and how many follow."""
    first = PurePath(sources[0]).name or sources[0]
    return first if len(sources) == 1 else f"{first} and {len(sources) - 1} more"


class _UserErrors(logging.Filter):
    """A user's error says by itself what to do: it takes one line of the run's log, not four tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, NightlabelError) and os.environ.get("NIGHTLABEL_DEBUG") != "1":
            record.exc_text = f"{type(error).__name__}: {error}"  # what a formatter finds here it takes as it is
        return True


class _OnlyInRuns(logging.Filter):
    """Library lines belong to a run's log; outside a run Prefect would warn about each of them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.name.startswith("pipeline") or bool(FlowRunContext.get() or TaskRunContext.get())


def _prepare_logs() -> None:
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_UserErrors())
    library = logging.getLogger("pipeline")
    library.setLevel(logging.INFO)
    for handler in library.handlers:  # Prefect's, where its setting `extra_loggers` names this logger
        handler.addFilter(_OnlyInRuns())


_prepare_logs()


class PartTimeoutError(Exception):
    """Work that gave no result for longer than it may take."""


class RunProgress:
    """Shows how far a long task is: every line in the run's log, a bar in the UI now and then."""

    def __init__(self, description: str) -> None:
        self._logger = get_run_logger()
        self._description = description
        self._artifact: UUID | None = None
        self._updated = 0.0

    def __call__(self, share: float, line: str) -> None:
        self._logger.info(line)
        now = time.monotonic()
        if share < 1 and now - self._updated < UI_SECONDS:
            return
        self._updated = now
        with suppress(httpx.TransportError):  # a bar is no reason to wait for a server that is away
            if self._artifact is None:
                # In a synchronous task Prefect returns the id itself, whatever its annotation says.
                self._artifact = cast(UUID, create_progress_artifact(progress=0.0, description=self._description))
            update_progress_artifact(artifact_id=self._artifact, progress=round(share * 100, 1))


def show_report(key: str, markdown: str, description: str) -> UUID | None:
    """Attach a report to the run, where the UI shows it; return the artifact's id.

    A server that is away is waited for; if it stays away, the run goes on without the artifact, and None is returned.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return cast(UUID, create_markdown_artifact(markdown, key=key, description=description))
        except httpx.TransportError as error:
            if time.monotonic() > deadline:
                get_run_logger().warning("the report %s is not in the UI: the server stayed away (%s)", key, error)
                return None
            time.sleep(UI_SECONDS)


@contextmanager
def scoring_slot() -> Iterator[None]:
    """Wait for a place among those that score at once on this server; without such a limit there is room for all.

    The place of a run that was killed is free after `LEASE_SECONDS`.
    """
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(SCORING_SLOT)
        except ObjectNotFound:
            limit = None
    if limit is None:
        yield
        return
    if limit.active_slots >= limit.limit:
        get_run_logger().info("another run is scoring: waiting until it is done")
    finished = False
    try:
        # Neither losing the place to a server that was away, nor giving it back to one, is a reason to fail.
        with concurrency(SCORING_SLOT, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False):
            yield
            finished = True
    except httpx.TransportError:
        if not finished:
            raise


def announce(event: str, batch: str, workspace: Path, text: str) -> None:
    """Tell the server's automations something about a batch.

    Args:
        event: one of `flows.server.automations`.
        batch: its id.
        workspace: where it lies.
        text: a sentence for a person.
    """
    night = UUID(flow_run.root_flow_run_id)
    emit_event(
        event,
        {"prefect.resource.id": f"{BATCH}.{batch}", "prefect.resource.name": batch},
        payload={
            "text": text,
            "workspace": str(workspace.absolute()),
            "run": flow_run.name,
            "url": url_for("flow-run", obj_id=night),
        },
    )


def end_process(message: str) -> NoReturn:
    """End this process and mark its runs as failed: for work in threads that nothing else can stop.

    Args:
        message: what went wrong, for the runs' page.
    """
    client = get_client(sync_client=True)
    ids = [UUID(one) for one in (flow_run.id, flow_run.parent_flow_run_id) if one]
    for run in ids:
        client.set_flow_run_state(run, Failed(message=message), force=True)
    get_run_logger().error(message)
    time.sleep(UI_SECONDS)  # for the log to reach the server
    os._exit(1)

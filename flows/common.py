"""Shared by all flows: retries, run names, logs, progress and reports in the UI, the scoring slot, events."""

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

DEFAULT_WORKSPACE = ""  # the workspace of the process that runs the flow
SCORING_SLOT = "nightlabel-scoring"  # the server's concurrency limit of scoring runs
LEASE_SECONDS = 60.0  # after which the slot of a killed run is free
PATIENCE_SECONDS = 180.0  # how long a report waits for a server that does not answer
UI_SECONDS = 5.0  # between two progress updates, each of which is an API call


def is_transient(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 - Prefect's signature
    """Return whether a retry can help: after a failed disk or network, not after wrong input."""
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
    """Return the day this run was scheduled for, in local time, however late it starts."""
    scheduled = flow_run.scheduled_start_time
    return scheduled.astimezone().date() if scheduled else datetime.datetime.now().astimezone().date()


def file_names(sources: Sequence[str]) -> str:
    """Return the sources for a run's name: the first file name, and the number of others."""
    first = PurePath(sources[0]).name or sources[0]
    return first if len(sources) == 1 else f"{first} and {len(sources) - 1} more"


class _UserErrors(logging.Filter):
    """Log a user's error as one line, without the traceback: its message says what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, NightlabelError) and os.environ.get("NIGHTLABEL_DEBUG") != "1":
            record.exc_text = f"{type(error).__name__}: {error}"  # a formatter takes this as it is
        return True


class _OnlyInRuns(logging.Filter):
    """Pass the library's lines inside a run only: outside a run Prefect warns about each of them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.name.startswith("pipeline") or bool(FlowRunContext.get() or TaskRunContext.get())


for run_logger in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(run_logger).addFilter(_UserErrors())
library_logger = logging.getLogger("pipeline")
library_logger.setLevel(logging.INFO)
for handler in library_logger.handlers:  # Prefect's, if its setting `extra_loggers` names this logger
    handler.addFilter(_OnlyInRuns())


class PartTimeoutError(Exception):
    """No part finished within the time limit."""


class RunProgress:
    """Reports the progress of a task: lines in the run's log, and a progress bar in the UI."""

    def __init__(self, description: str) -> None:
        self._logger = get_run_logger()
        self._description = description
        self._artifact: UUID | None = None
        self._updated = 0.0

    def __call__(self, share: float, line: str) -> None:
        self._logger.info(line)
        seconds = time.monotonic()
        if share < 1 and seconds - self._updated < UI_SECONDS:
            return
        self._updated = seconds
        with suppress(httpx.TransportError):  # do not wait for the server because of a progress bar
            if self._artifact is None:
                # In a synchronous task Prefect returns the id itself, whatever its annotation says.
                self._artifact = cast(UUID, create_progress_artifact(progress=0.0, description=self._description))
            update_progress_artifact(artifact_id=self._artifact, progress=round(share * 100, 1))


def show_report(key: str, markdown: str, description: str) -> UUID | None:
    """Attach a report to the run as an artifact; return its id.

    Waits `PATIENCE_SECONDS` for a server that does not answer, then returns None.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return cast(UUID, create_markdown_artifact(markdown, key=key, description=description))
        except httpx.TransportError as error:
            if time.monotonic() > deadline:
                get_run_logger().warning("the report %s is not in the UI: the server does not answer (%s)", key, error)
                return None
            time.sleep(UI_SECONDS)


@contextmanager
def scoring_slot() -> Iterator[None]:
    """Hold a slot of the server's limit of concurrent scoring runs, if there is such a limit.

    The slot of a killed run is free after `LEASE_SECONDS`.
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
        get_run_logger().info("another run is scoring: waiting until it ends")
    finished = False
    try:
        # Losing the slot because the server does not answer, or failing to release it, does not fail the run.
        with concurrency(SCORING_SLOT, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False):
            yield
            finished = True
    except httpx.TransportError:
        if not finished:
            raise


def announce(event: str, batch: str, workspace: Path, text: str) -> None:
    """Emit an event about a batch for the server's automations.

    Args:
        event: one of `flows.server.automations`.
        batch: the batch id.
        workspace: the workspace folder.
        text: a sentence for people.
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
    """End this process and mark its runs as failed: the only way to stop a thread that hangs.

    Args:
        message: the reason, shown on the runs' page.
    """
    client = get_client(sync_client=True)
    for run_id in (flow_run.id, flow_run.parent_flow_run_id):
        if run_id:
            client.set_flow_run_state(UUID(run_id), Failed(message=message), force=True)
    get_run_logger().error(message)
    time.sleep(UI_SECONDS)  # for the log to reach the server
    os._exit(1)

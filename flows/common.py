"""What all flows share: when a retry helps, what a run is called, and what its log and its page in the UI show."""

import datetime
import logging
import os
import time
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any, cast
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.tasks import Task
from pydantic import Field

from pipeline.config import preset_names
from pipeline.errors import NightlabelError
from pipeline.workspace import default_root

WorkspacePath = Annotated[str, Field(min_length=1)]
# The pattern is for the form in the UI; `load_recipe` says more of what is wrong.
Preset = Annotated[str, Field(json_schema_extra={"pattern": rf"^({'|'.join(preset_names())}|.*\.toml)$"})]

HERE = str(default_root())  # the workspace of a run that names none
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
        if self._artifact is None:
            # In a synchronous task Prefect returns the id itself, whatever its annotation says.
            self._artifact = cast(UUID, create_progress_artifact(progress=0.0, description=self._description))
        update_progress_artifact(artifact_id=self._artifact, progress=round(share * 100, 1))


def show_report(key: str, markdown: str, description: str) -> None:
    """Attach a report to the run, where the UI shows it."""
    create_markdown_artifact(markdown, key=key, description=description)

"""The flow ingest: raw files in, a batch of documents out."""

import datetime
from typing import Annotated

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run
from pydantic import Field

from flows.common import DEFAULT_WORKSPACE, RETRY, announce, file_names, show_report
from flows.forms import OptionalDay, WorkspacePath, named, titled
from flows.reports.ingest import ingest_report
from flows.server.automations import BATCH_READY
from pipeline.config import IngestConfig
from pipeline.ingest import IngestReport
from pipeline.ingest import ingest as ingest_documents
from pipeline.models.registry import Registry
from pipeline.workspace import Workspace


def _run_name() -> str:
    parameters = flow_run.parameters
    batch = parameters.get("batch") or parameters.get("date") or datetime.date.today()
    return f"ingest {batch}: {file_names(parameters['sources'])}"


@task(
    name="read",
    task_run_name=lambda: f"read {file_names(task_run.parameters['sources'])}",
    cache_policy=NO_CACHE,
    **RETRY,
)
def read_task(
    sources: list[str],
    config: IngestConfig,
    batch: str | None,
    replace: bool,
    date: datetime.date | None,
    workspace: Workspace,
) -> IngestReport:
    """Read the sources into a batch."""
    log = get_run_logger().info
    return ingest_documents(workspace, sources, config, batch_id=batch, replace=replace, date=date, progress=log)


@flow(name="ingest", flow_run_name=_run_name, validate_parameters=True)
def ingest(
    sources: Annotated[list[str], Field(min_length=1), titled("Files")],
    config: Annotated[IngestConfig, titled("Reading")] = IngestConfig(),  # noqa: B008 - frozen, so sharing one is safe
    batch: Annotated[str | None, *named("Batch")] = None,
    replace: Annotated[bool, titled("Replace")] = False,
    date: OptionalDay = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> IngestReport:
    """Read raw files into a batch of documents, every row accounted for.

    Args:
        sources: Files, folders or globs, read in this order.
        config: File format and columns.
        batch: Name of the batch. Empty: the date, numbered if that is taken.
        replace: Replace a batch of this name that has other content.
        date: The day of the batch, as 2026-11-20. Empty: today.
        workspace: Workspace folder. Empty: the one that the worker was started with.
    """
    folder = Workspace(workspace)
    report = read_task(sources, config, batch, replace, date, folder)
    show_report("ingest", ingest_report(report), f"Batch {report.batch_id}: every row accounted for")
    is_night = flow_run.parent_flow_run_id is not None  # a night labels the batch itself
    if is_night or report.already_ingested or not report.unlabelled:
        return report
    registry = Registry(folder)
    if len([name for name in registry.names() if registry.champion(name)]) == 1:
        text = f"batch {report.batch_id} is ready: {report.documents:,} documents"
        get_run_logger().info("%s; announced as %s", text, BATCH_READY)
        announce(BATCH_READY, report.batch_id, folder.root, text)
    return report


if __name__ == "__main__":
    raise SystemExit("this is a module: use nightlabel ingest")

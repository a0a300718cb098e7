"""Raw files in, a batch of documents out."""

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
from pipeline.workspace import Workspace


def _run_name() -> str:
    given = flow_run.parameters
    batch = given.get("batch") or given.get("date") or datetime.date.today()
    return f"ingest {batch}: {file_names(given['sources'])}"


def _read_name() -> str:
    return f"read {file_names(task_run.parameters['sources'])}"


@task(name="read", task_run_name=_read_name, cache_policy=NO_CACHE, **RETRY)
def _read(
    sources: list[str],
    config: IngestConfig,
    batch: str | None,
    replace: bool,
    date: datetime.date | None,
    workspace: str,
) -> IngestReport:
    logger = get_run_logger()
    return ingest_documents(
        Workspace(workspace),
        sources,
        config,
        batch_id=batch,
        replace=replace,
        date=date,
        progress=logger.info,
    )


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
        config: How the files are read.
        batch: Name of the batch. Empty: the date, with a number behind it where that is taken.
        replace: Replace a batch of this name that has other content.
        date: The day the batch is for, as 2026-11-20. Empty: today.
        workspace: Folder in which everything is kept. Empty: the one that the worker was started with.
    """
    report = _read(sources, config, batch, replace, date, workspace)
    show_report("ingest", ingest_report(report), f"Batch {report.batch_id}: every row accounted for")
    if not flow_run.parent_flow_run_id:  # a night labels by itself what it has read
        _announce(Workspace(workspace), report)
    return report


def _announce(workspace: Workspace, report: IngestReport) -> None:
    """Tell the server of texts that want labels, if there is one model that can give them."""
    if report.already_ingested or not report.unlabelled:
        return
    from pipeline.models.registry import Registry  # brings PyTorch along, which reading files does not need

    registry = Registry(workspace)
    if len([name for name in registry.names() if registry.champion(name)]) != 1:
        return
    text = f"batch {report.batch_id} is ready: {report.documents:,} documents"
    get_run_logger().info("%s; announced as %s", text, BATCH_READY)
    announce(BATCH_READY, report.batch_id, workspace.root, text)

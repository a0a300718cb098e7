"""The flow nightly: ingest new files, label every unlabelled batch, report."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Completed, Failed

from flows.common import DEFAULT_WORKSPACE, file_names, scheduled_day, show_report
from flows.forms import ModelName, OptionalDay, WorkspacePath, titled
from flows.ingest import ingest
from flows.reports.morning import Failure, NightResult, idle_report, night_report, outcome
from flows.score import score
from pipeline.config import DriftConfig, IngestConfig, ScoringConfig
from pipeline.errors import NightlabelError
from pipeline.files import atomic_path
from pipeline.ingest import IngestReport
from pipeline.models.bundle import Bundle
from pipeline.models.registry import Registry
from pipeline.nights.summary import labelled_night
from pipeline.scoring.labels import unlabelled
from pipeline.workspace import Batch, Workspace


def _run_name() -> str:
    parameters = flow_run.parameters
    night = f"nightly {parameters.get('date') or scheduled_day()}"
    return f"{night}: {file_names(parameters['sources'])}" if parameters.get("sources") else night


@flow(name="nightly", flow_run_name=_run_name, validate_parameters=True)
def nightly(
    sources: Annotated[list[str], titled("New files")] = [],  # noqa: B006 - never changed
    date: OptionalDay = None,
    model: ModelName = None,
    ingest_config: Annotated[IngestConfig, titled("Reading")] = IngestConfig(),  # noqa: B008 - frozen
    score_config: Annotated[ScoringConfig, titled("Scoring")] = ScoringConfig(),  # noqa: B008
    health_config: Annotated[DriftConfig, titled("Drift checks")] = DriftConfig(),  # noqa: B008
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> str:
    """Ingest new files, label every unlabelled batch, and report.

    If the ingest fails, the batches in the workspace are labelled, and the run fails afterwards.

    Args:
        sources: Files, folders or globs to ingest; {date} stands for the night's date. Empty: only label.
        date: The day of the night, as 2026-11-20. Empty: the day it was scheduled for.
        model: Name or name@version. Empty: the champion of the only model there is.
        ingest_config: File format and columns.
        score_config: Device, variant, target precision and minibatches.
        health_config: Drift checks: which deviations warn, and which hold the labels.
        workspace: Workspace folder. Empty: the one that the worker was started with.
    """
    day, started, folder = date or scheduled_day(), _now(), Workspace(workspace)
    paths = [source.replace("{date}", day.isoformat()) for source in sources]
    failures: list[Failure] = []
    ingest_report: IngestReport | None = None
    bundle: Bundle | None = None
    batches: list[Batch] = []
    try:
        with _recording_failure("ingest", failures):
            if paths:
                ingest_report = ingest(paths, ingest_config, date=day, workspace=workspace)
                batches = [] if ingest_report.already_ingested else [folder.batch(ingest_report.batch_id)]
        if failures:
            get_run_logger().warning("the ingest failed; the batches in the workspace are labelled")
        with _recording_failure("labelling", failures):
            bundle = Registry(folder).find(model)
            batches = unlabelled(folder, bundle.name)
            if batches:
                names = [batch.id for batch in batches]
                labelled = score(names, model or bundle.name, score_config, health_config, workspace=workspace)
                bundle = Registry(folder).find(labelled[-1].model)  # the champion may have changed meanwhile
    except CancelledRun as error:
        return Cancelled(message=str(error))  # type: ignore[return-value]  # the caller gets CancelledRun
    night = labelled_night(folder, bundle.name, batches) if bundle else None
    morning = NightResult(day, started, _now(), folder, ingest_report, batches, bundle, night, failures)
    return _end(morning)  # type: ignore[return-value]  # the caller gets the text, or the error


@contextmanager
def _recording_failure(stage: str, failures: list[Failure]) -> Iterator[None]:
    """Record a failure, so that the night continues; a cancelled run ends."""
    try:
        yield
    except CancelledRun:
        raise
    except Exception as error:
        if not isinstance(error, NightlabelError):
            get_run_logger().exception("the %s failed", stage)
        failures.append(Failure(stage, error))


def _now() -> datetime.datetime:
    return datetime.datetime.now().astimezone()


def _end(morning: NightResult) -> State[str] | State[Exception]:
    """Write and show the report of a night, and return the final state of its run, whose message sums it up."""
    logger = get_run_logger()
    summary = [*map(str, morning.failures), *outcome(morning)]
    for line in summary[1 if morning.failures else 0 :]:  # Prefect logs the first failure as that of the run
        logger.info(line)
    if morning.worth_keeping:
        report, path = night_report(morning, pictures=True), morning.workspace.next_report_path(morning.day)
        with atomic_path(path) as temporary:
            temporary.write_text(report + "\n", encoding="utf-8")
        logger.info("the report of the night: %s", path)
        artifact = show_report("night", report, f"The night of {morning.day.isoformat()}")
        ui = get_current_settings().ui_url
        if artifact and ui:
            logger.info("the report in the UI: %s/artifacts/artifact/%s", ui, artifact)
        summary.append(f"report {path.relative_to(morning.workspace.root).as_posix()}")
    if morning.failures:
        return Failed(message="; ".join(summary), data=morning.failures[0].error)
    text = idle_report(morning) if morning.idle else night_report(morning, pictures=False)
    return Completed(message="; ".join(summary), data=text)


if __name__ == "__main__":
    raise SystemExit("this is a module: use nightlabel nightly")

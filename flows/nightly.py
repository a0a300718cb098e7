"""The night: ingest a source if one is given, label everything unlabelled, report."""

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
    given = flow_run.parameters
    night = f"nightly {given.get('date') or scheduled_day()}"
    return f"{night}: {file_names(given['sources'])}" if given.get("sources") else night


@flow(name="nightly", flow_run_name=_run_name, validate_parameters=True)
def nightly(
    sources: Annotated[list[str], titled("Files that came in")] = [],  # noqa: B006 - never changed
    date: OptionalDay = None,
    model: ModelName = None,
    ingest_config: Annotated[IngestConfig, titled("Reading")] = IngestConfig(),  # noqa: B008 - frozen
    score_config: Annotated[ScoringConfig, titled("Labelling")] = ScoringConfig(),  # noqa: B008
    health_config: Annotated[DriftConfig, titled("Holding bad nights")] = DriftConfig(),  # noqa: B008
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> str:
    """Ingest what came in, label everything that has no labels yet, and report.

    If the ingest fails, what is there already is labelled all the same, and the run fails afterwards.

    Args:
        sources: Files, folders or globs that came in; {date} stands for the night's date. Empty: only label.
        date: The day the night belongs to, as 2026-11-20. Empty: the day it was scheduled for.
        model: Name or name@version. Empty: the champion of the only model there is.
        ingest_config: How the files are read.
        score_config: Where and how the model runs.
        health_config: When a night is out of the ordinary, and whether its labels are held then.
        workspace: Folder in which everything is kept. Empty: the one that the worker was started with.
    """
    day, started, place = date or scheduled_day(), _now(), Workspace(workspace)
    came_in = [source.replace("{date}", day.isoformat()) for source in sources]
    failures: list[Failure] = []
    ingest_report: IngestReport | None = None
    bundle: Bundle | None = None
    wanted: list[Batch] = []
    try:
        with _noting("ingest", failures):
            if came_in:
                ingest_report = ingest(came_in, ingest_config, date=day, workspace=workspace)
                wanted = [] if ingest_report.already_ingested else [place.batch(ingest_report.batch_id)]
        if failures:
            get_run_logger().warning("the ingest failed; what is there is labelled all the same")
        with _noting("labelling", failures):
            bundle = Registry(place).find(model)
            wanted = unlabelled(place, bundle.name)
            if wanted:
                names = [batch.id for batch in wanted]
                labelled = score(names, model or bundle.name, score_config, health_config, workspace=workspace)
                bundle = Registry(place).find(labelled[-1].model)  # another one may have become champion meanwhile
    except CancelledRun as error:
        return Cancelled(message=str(error))  # type: ignore[return-value]  # the caller gets CancelledRun
    night = labelled_night(place, bundle.name, wanted) if bundle else None
    morning = NightResult(day, started, _now(), place, ingest_report, wanted, bundle, night, failures)
    return _end(morning)  # type: ignore[return-value]  # the caller gets the text, or the error


@contextmanager
def _noting(stage: str, failures: list[Failure]) -> Iterator[None]:
    """Note what fails, so that the night goes on with the rest; a run that is cancelled does not."""
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
    """Report a night, and return the state that its run ends in, whose message says what it did."""
    said = [*map(str, morning.failures), *outcome(morning)]
    for line in said[1 if morning.failures else 0 :]:  # the first failure is told as that of the run
        get_run_logger().info(line)
    if morning.worth_keeping:
        said.append(f"report {_keep_report(morning)}")
    if morning.failures:
        return Failed(message="; ".join(said), data=morning.failures[0].error)
    text = idle_report(morning) if morning.idle else night_report(morning, pictures=False)
    return Completed(message="; ".join(said), data=text)


def _keep_report(morning: NightResult) -> str:
    """Write a night's report and show it in the UI; return its path within the workspace."""
    text = night_report(morning, pictures=True)
    path = morning.workspace.next_report_path(morning.day)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    get_run_logger().info("the report of the night: %s", path)
    artifact = show_report("night", text, f"The night of {morning.day.isoformat()}")
    ui = get_current_settings().ui_url
    if artifact and ui:
        get_run_logger().info("the report in the UI: %s/artifacts/artifact/%s", ui, artifact)
    return path.relative_to(morning.workspace.root).as_posix()

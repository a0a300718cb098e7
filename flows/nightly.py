"""The night: ingest a source if one is given, label everything unlabelled, report.

Run it with: python -m flows.nightly --source tickets.csv
"""

import datetime
import sys

from prefect import flow
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.common import HERE, WorkspacePath, file_names, scheduled_day, show_report
from flows.ingest import ingest
from flows.report import ingest_report, labels_report
from flows.score import score
from pipeline.config import HealthConfig, IngestConfig, ScoringConfig
from pipeline.workspace import Workspace


def _run_name() -> str:
    given = flow_run.parameters
    night = f"nightly {given.get('date') or scheduled_day()}"
    return f"{night}: {file_names(given['sources'])}" if given.get("sources") else night


@flow(name="nightly", flow_run_name=_run_name, validate_parameters=True)
def nightly(
    sources: list[str] = [],  # noqa: B006 - never changed
    date: datetime.date | None = None,
    model: str | None = None,
    ingest_config: IngestConfig = IngestConfig(),  # noqa: B008 - frozen
    score_config: ScoringConfig = ScoringConfig(),  # noqa: B008
    health_config: HealthConfig = HealthConfig(),  # noqa: B008
    workspace: WorkspacePath = HERE,
) -> str:
    """Ingest what came in, label everything that has no labels yet, and report.

    Args:
        sources: Files, folders or globs that came in; {date} stands for the night's date. Empty: only label.
        date: The day the night belongs to. Empty: the day it was scheduled for.
        model: Name or name@version. Empty: the champion of the only model there is.
        ingest_config: How the files are read.
        score_config: Where and how the model runs.
        health_config: When a night is out of the ordinary, and whether its labels are held then.
        workspace: Folder in which everything is kept.
    """
    day = date or scheduled_day()
    came_in = [source.replace("{date}", day.isoformat()) for source in sources]
    parts = [f"# Night of {day.isoformat()}"]
    if came_in:
        parts.append(ingest_report(ingest(came_in, ingest_config, date=day, workspace=workspace)))
    try:
        reports = score(model=model, config=score_config, health=health_config, workspace=workspace)
    except CancelledRun as error:
        return Cancelled(message=str(error))  # type: ignore[return-value]  # the caller gets CancelledRun
    if reports:
        parts.append(labels_report(reports, Workspace(workspace)))
    else:
        parts.append("Nothing to label: every batch has its labels.")
    report = "\n\n".join(parts)
    show_report("night", report, f"The night of {day.isoformat()}")
    return report


if __name__ == "__main__":
    from flows.cli import main

    main(["nightly", *sys.argv[1:]])

"""The end of a night's scoring: drift checks, accounting, and the manifest that makes the labels exist."""

from collections.abc import Sequence
from dataclasses import asdict

from pipeline.config import DriftConfig
from pipeline.nights.hold import check_batch_drift
from pipeline.scoring.labels import commit_labels
from pipeline.scoring.report import BatchReport, PartReport
from pipeline.scoring.score import batch_report, score_parts
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace


def score_batch(
    workspace: Workspace,
    batch: Batch,
    scorer: Scorer,
    health: DriftConfig = DriftConfig(),  # noqa: B008 - frozen
) -> BatchReport:
    """Label a whole batch, without an orchestrator; parts already labelled are left as they are.

    Raises:
        Exception: the first part that fails stops the others, and its error is raised.
    """
    report = score_parts(workspace, batch, scorer)
    return finish_batch(workspace, batch, scorer, report.parts, report.seconds, health)


def finish_batch(
    workspace: Workspace,
    batch: Batch,
    scorer: Scorer,
    parts: Sequence[PartReport],
    seconds: float,
    health: DriftConfig = DriftConfig(),  # noqa: B008 - frozen
) -> BatchReport:
    """Account for every document of a batch and make its labels exist; return what became of it.

    What is out of the ordinary by `health` is written but not published.
    """
    report = batch_report(workspace, batch, scorer, parts, seconds)
    drift_report = check_batch_drift(workspace, batch, scorer.bundle, report, health)
    facts = {
        "published": not drift_report.holds,
        **asdict(drift_report),
        "health": report.profile.as_json() if report.profile else None,
    }
    commit_labels(batch, scorer.bundle, scorer.config, report, facts)
    return report

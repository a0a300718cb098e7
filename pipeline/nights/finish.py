"""The end of a night's scoring: drift checks, accounting, and the manifest that commits the labels."""

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
    drift: DriftConfig = DriftConfig(),  # noqa: B008 - frozen
) -> BatchReport:
    """Label a whole batch without an orchestrator; parts that are labelled already are skipped.

    Raises:
        Exception: that of the first part that fails; the other parts are stopped.
    """
    report = score_parts(workspace, batch, scorer)
    return finish_batch(workspace, batch, scorer, report.parts, report.seconds, drift)


def finish_batch(
    workspace: Workspace,
    batch: Batch,
    scorer: Scorer,
    parts: Sequence[PartReport],
    seconds: float,
    drift: DriftConfig,
) -> BatchReport:
    """Account for every document of a batch and commit its labels, published or, if a drift check says so, held."""
    report = batch_report(workspace, batch, scorer, parts, seconds)
    drift_report = check_batch_drift(workspace, batch, scorer.bundle, report, drift)
    facts = {
        "published": not drift_report.holds,
        **asdict(drift_report),
        "health": report.profile.as_json() if report.profile else None,
    }
    commit_labels(batch, scorer.bundle, scorer.config, report, facts)
    return report

"""Documents in, labels out, part by part. Run it with: python -m flows.score"""

import sys
import time
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.common import RETRY, WorkspacePath, show_report
from flows.report import labels_report
from pipeline.config import ScoringConfig
from pipeline.labels import BatchReport, PartReport, unlabelled
from pipeline.registry import Registry
from pipeline.scoring import Scorer, finish_batch, score_part
from pipeline.workspace import Batch, Workspace


@task(name="score part", task_run_name="score {name}", cache_policy=NO_CACHE, **RETRY)
def _score_part(workspace: Workspace, batch: Batch, part: dict[str, Any], scorer: Scorer, name: str) -> PartReport:  # noqa: ARG001 - the name of the run
    return score_part(workspace, batch, part, scorer)


@task(name="commit", task_run_name="commit {batch.id}", cache_policy=NO_CACHE, **RETRY)
def _commit(workspace: Workspace, batch: Batch, scorer: Scorer, parts: list[PartReport], seconds: float) -> BatchReport:
    return finish_batch(workspace, batch, scorer, parts, seconds)


def _run_name() -> str:
    given = flow_run.parameters
    batches = given.get("batches") or ["what is new"]
    more = f" and {len(batches) - 1} more" if len(batches) > 1 else ""
    return f"score {batches[0]}{more} with {given.get('model') or 'the champion'}"


@flow(name="score", flow_run_name=_run_name, validate_parameters=True)
def score(
    batches: list[str] = [],  # noqa: B006 - never changed
    model: str | None = None,
    config: ScoringConfig = ScoringConfig(),  # noqa: B008 - frozen
    workspace: WorkspacePath = "workspace",
) -> list[BatchReport]:
    """Label documents with the champion or a named version; parts already labelled are left as they are.

    Args:
        batches: Batches to label. Empty: all that have no labels yet.
        model: Name or name@version. Empty: the champion of the only model there is.
        config: Where and how the model runs.
        workspace: Folder in which everything is kept.
    """
    logger = get_run_logger()
    place = Workspace(workspace)
    bundle = Registry(place).find(model)
    wanted = [place.batch(name) for name in batches] or unlabelled(place, bundle.name)
    if not wanted:
        logger.info("nothing to do: all %d batches are labelled by %s", len(place.batches()), bundle.name)
        return []
    scorer = Scorer(bundle, config)
    logger.info("scoring %s with %s on %s", ", ".join(batch.id for batch in wanted), bundle.title, scorer.provider)
    reports = [_score_batch(place, batch, scorer) for batch in wanted]
    show_report("labels", labels_report(reports, place), "Every document accounted for, and some labelled rows")
    return reports


def _score_batch(workspace: Workspace, batch: Batch, scorer: Scorer) -> BatchReport:
    started = time.monotonic()
    logger = get_run_logger()
    parts: list[PartReport] = []
    for part in batch.manifest["parts"]:
        parts.append(_score_part(workspace, batch, part, scorer, f"{batch.id} {part['file']}"))
        rows = sum(done.rows for done in parts)
        logger.info(
            "batch %s: %s of %s rows, %d of %d parts",
            batch.id,
            f"{rows:,}",
            f"{batch.rows:,}",
            len(parts),
            len(batch.parts),
        )
    report = _commit(workspace, batch, scorer, parts, time.monotonic() - started)
    if report.skipped:
        logger.info("batch %s: already labelled by %s, nothing to do", batch.id, report.model)
    else:
        done = sum(part.skipped for part in parts)
        logger.info(
            "batch %s: %s rows labelled at %s rows/s (%d of %d parts were there already)",
            batch.id,
            f"{report.rows:,}",
            f"{report.rows_per_second:,.0f}",
            done,
            len(parts),
        )
    return report


if __name__ == "__main__":
    from flows.cli import main

    main(["score", *sys.argv[1:]])
